"""Which of a site's data every user of its machine may read."""

import stat
from pathlib import Path

from client.site_file import SiteFile


def exposed(site: SiteFile) -> list[str]:
    """One line for each of images, labels and masks that every user of this machine may read, with what mends it."""
    network_user = ", the network user too" if site.agent is not None else ""
    return [
        f"{key}: every user of this machine may read {path}{network_user}; take that right away with: chmod o= {path}"
        for key, path in (
            ("images.folder", site.images.folder),
            ("labels.file", site.labels.file),
            *([("masks.folder", site.masks.folder)] if site.masks is not None else []),
        )
        if _open_to_others(path)
    ]


def _open_to_others(path: Path) -> bool:
    """By the mode bits for others alone; groups and access-control lists are not looked at."""
    real = path.resolve()
    try:
        modes = [above.stat().st_mode for above in (real, *real.parents)]
    except OSError:
        return False  # the agent itself will say that it cannot be read
    bits = stat.S_IXOTH if stat.S_ISDIR(modes[0]) else stat.S_IROTH
    return bool(modes[0] & bits) and all(mode & stat.S_IXOTH for mode in modes[1:])
