"""Whether the site's images, labels and index are there and readable. No content is shown."""

import os
import time
from pathlib import Path

from client.exposure import exposed
from client.index_report import INDEX_NAME
from client.labels import LabelsError, check_columns
from client.site_file import Images, Labels, SiteFile
from shared_models.checkup import Outcome, Wrong, ok, warning

OLD_DAYS = 90.0
DAY_SECONDS = 86400.0
INDEX = "run: collegium-client index"


def check_images(images: Images) -> Outcome:
    """Check that the folder can be read and holds at least one file that can. Raises Wrong."""
    folder = images.folder
    if not folder.is_dir():
        raise Wrong(
            f"{folder} is not a folder that is there: correct images.folder in site.toml, or mount it"
        )
    try:
        first = _first_file(folder)
    except OSError as error:
        raise Wrong(
            f"{error.filename} cannot be read ({error.strerror}): give the user that runs the site the right to"
        ) from error
    if first is None:
        raise Wrong(f"{folder} holds no file: put the images there, correct images.folder, or mount the disk")
    return ok(f"{folder} can be read")


def check_labels(labels: Labels) -> Outcome:
    """Check that the file can be read and has the columns that site.toml names. Raises Wrong."""
    try:
        check_columns(labels)
    except LabelsError as error:
        raise Wrong(str(error)) from error
    return ok(f"{labels.file} can be read and has the column {labels.key}")


def check_readers(site: SiteFile) -> Outcome:
    """Check that not every user of this machine may read images and labels."""
    if lines := exposed(site):
        return warning(". ".join(lines))
    return ok("images and labels are not open to every user of this machine")


def check_index(site: SiteFile, now: float) -> Outcome:
    """Check that the images were looked at, and not long before they changed."""
    path = site.state / INDEX_NAME
    if not path.exists():
        return warning(f"nobody has looked yet at what the site makes of its images; {INDEX}")
    made = path.stat().st_mtime
    told = f"made {time.strftime('%Y-%m-%d %H:%M', time.localtime(made))}, {_age(now - made)} ago"
    for what, other in (("labels file", site.labels.file), ("images folder", site.images.folder)):
        if other.exists() and other.stat().st_mtime > made:
            return warning(f"{told}; the {what} was changed after that: {INDEX}")
    if now - made > OLD_DAYS * DAY_SECONDS:
        return warning(f"{told}; look again whether the data are still what they were: {INDEX}")
    return ok(told)


def _first_file(folder: Path) -> Path | None:
    """Some file below the folder, opened once to see that it can be. Raises OSError."""
    with os.scandir(folder) as entries:
        below = []
        for entry in entries:
            if entry.is_file():
                with Path(entry.path).open("rb") as file:
                    file.read(1)
                return Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                below.append(Path(entry.path))
    return next((found for path in below if (found := _first_file(path)) is not None), None)


def _age(seconds: float) -> str:
    hours = max(seconds, 0.0) / 3600
    if hours < 1:
        return "less than an hour"
    return f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"
