"""All files below a folder, quickly and in a fixed order."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG


@dataclass(frozen=True, slots=True)
class FoundFile:
    """What is no folder below the images folder.

    Attributes:
        name: its path below the folder, with ``/``.
        size: in bytes; None where it is no regular file or cannot be looked at.
        mtime_ns: when it was last changed.
        identity: device and number of the file; copies have others, links the same.
    """

    name: str
    size: int | None
    mtime_ns: int
    identity: tuple[int, int]


def files_below(folder: Path) -> list[FoundFile]:
    """Return everything below *folder* that is not a folder, and folders that are links or cannot be listed.

    Raises:
        OSError: *folder* itself cannot be listed.
    """
    return [_found(entry, name) for entry, name in _walk(os.fspath(folder), "")]


def _walk(folder: str, prefix: str) -> Iterator[tuple[os.DirEntry[str], str]]:
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        name = prefix + entry.name
        try:
            is_folder = entry.is_dir(follow_symlinks=False)
        except OSError:
            is_folder = False
        if not is_folder:
            yield entry, name
            continue
        try:
            below = list(_walk(entry.path, name + "/"))
        except OSError:
            below = [(entry, name)]  # reading it will say why
        yield from below


def _found(entry: os.DirEntry[str], name: str) -> FoundFile:
    try:
        status = entry.stat()
    except OSError:
        return FoundFile(name, None, 0, (0, 0))
    regular = S_ISREG(status.st_mode)
    return FoundFile(
        name, status.st_size if regular else None, status.st_mtime_ns, (status.st_dev, status.st_ino)
    )
