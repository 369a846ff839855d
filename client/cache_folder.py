"""``cache/`` in the site's state folder: one folder for each preparation, one process at a time in each.

A preparation is all that decides which values an image gets: the study's choices, our own code, the versions of the
decoders, and the site's secret, by whose keyed hashes images are found. Another preparation is another folder.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from client.image_cache import CacheFull, ImageCache, erase_patients
from client.preparation import PREPARATION, Plane
from client.secret import SiteSecret
from client.structures import MaskValues
from shared_models.study import Image

CACHE_NAME = "cache"
_UNTOLD_SECONDS = 10.0
"""A wait that is shorter is nothing to tell of."""

# fmt: off
_LIBRARIES = (
    "numpy", "pillow", "pydicom", "pyjpegls", "pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle", "python-gdcm",
    "scipy",
)
# fmt: on
RESERVE_BYTES = 2**30
"""So much of the disk stays free: the site has to write its journal, whatever the cache wants."""

_FOLDER = re.compile(r"[0-9a-f]{32}")

Tell = Callable[[str], None]


def preparation_hash(image: Image, secret: SiteSecret, structures: MaskValues = ()) -> str:
    """Return what stands for a preparation, 32 hexadecimal digits.

    Args:
        image: what the study wants.
        secret: the site's.
        structures: where a mask is prepared with each image, what its values mean.
    """
    values: dict[str, object] = {
        "preparation": PREPARATION,
        "image": image.model_dump(mode="json"),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "secret": secret.commitment,
    }
    if structures:
        values["masks"] = structures
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


class PreparedImages:
    """Prepared images of one preparation: on disk as far as they may be, the others in memory.

    Args:
        cache: open.
        make_room: asked for so many bytes, returns the limit of the cache from now on.
        tell: gets a sentence for the site's operator.
        wanted: whether images are to be kept on disk at all.

    Attributes:
        folder: of the preparation; other files that belong to it lie there too.
        in_memory: images for which the disk has no room, in the order in which they came.
    """

    def __init__(
        self, folder: Path, cache: ImageCache, make_room: Callable[[int], int], tell: Tell, *, wanted: bool
    ) -> None:
        self.folder, self.cache = folder, cache
        self.in_memory: list[Plane] = []
        self._memory: dict[str, int] = {}
        self._make_room, self._tell = make_room, tell
        self._full = not wanted

    def find(self, content: str) -> int | None:
        """Return the number of the image with this content, None where it is not here. For any thread."""
        row = self.cache.find(content)
        return self._memory.get(content) if row is None else row

    def add(self, content: str, plane: Plane, *, patient: str) -> int:
        """Keep an image and return its number: its row on disk, or a negative one in memory."""
        if not self._full:
            try:
                try:
                    return self.cache.add(content, plane, patient=patient)
                except CacheFull:
                    self.cache.limit = self._make_room(self.cache.num_bytes + self.cache.record_bytes)
                    return self.cache.add(content, plane, patient=patient)
            except CacheFull:
                self._say_full()
        self.in_memory.append(plane)
        self._memory[content] = -len(self.in_memory)
        return self._memory[content]

    def checkpoint(self) -> None:
        """Make what is on disk survive whatever happens."""
        try:
            self.cache.checkpoint()
        except CacheFull:
            self._say_full()

    def erase(self, *, keep: Collection[str], withdrawn: Collection[str]) -> None:
        """Erase the images of files that are gone and of patients who withdrew; the numbers of others may change."""
        try:
            self.cache.erase(keep=keep, withdrawn=withdrawn)
        except CacheFull:
            self._say_full()

    def _say_full(self) -> None:
        if not self._full:
            self._tell(
                f"The cache is full at {self.cache.num_bytes / 2**30:.3g} GiB (images.cache_gib in site.toml, or "
                "the disk); the other images are held in memory and prepared again each time."
            )
        self._full = True


@contextmanager
def opened_cache(
    state: Path,
    preparation: str,
    shape: tuple[int, ...],
    *,
    limit: int,
    withdrawn: Collection[str],
    tell: Tell,
) -> Iterator[PreparedImages]:
    """Open the cache of one preparation for this process alone; a second one waits until the first is done.

    Args:
        state: the site's state folder.
        preparation: `preparation_hash`.
        shape: of an image.
        limit: bytes that the images of all preparations may take together; those that were not used for longest go
            first.
        withdrawn: pseudonyms of patients whose images are erased, in all preparations that nobody works on.
        tell: gets sentences for the site's operator.
    """
    root = state / CACHE_NAME
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(root, preparation, tell):
        _erase_elsewhere(root, preparation, withdrawn, tell)
        if (root / preparation).is_dir() and _num_bytes(root / preparation) > limit > 0:
            shutil.rmtree(root / preparation)
            tell("The cache is larger than images.cache_gib in site.toml allows; it is made again.")
        cache = ImageCache(root / preparation, shape, limit=0)
        try:
            for problem in cache.problems:
                tell(problem)
            with suppress(OSError):
                os.utime(root / preparation)

            def make_room(needed: int) -> int:
                return _make_room(root, preparation, needed, limit)

            cache.limit = make_room(cache.num_bytes)
            yield PreparedImages(root / preparation, cache, make_room, tell, wanted=limit > 0)
        finally:
            cache.close()


@contextmanager
def _locked(root: Path, preparation: str, tell: Tell) -> Iterator[None]:
    """Hold the lock of a preparation; the operating system frees it when the process ends, however it ends."""
    descriptor = os.open(root / f"{preparation}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _taken_within(descriptor, _UNTOLD_SECONDS):
            tell("Another process of this site prepares the same images; waiting until it is done.")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _taken_within(descriptor: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        else:
            return True


@contextmanager
def _locked_if_free(root: Path, preparation: str) -> Iterator[bool]:
    descriptor = os.open(root / f"{preparation}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _others(root: Path, preparation: str) -> list[Path]:
    """Folders of other preparations, those that were not used for longest first."""
    found = [path for path in root.iterdir() if _FOLDER.fullmatch(path.name) and path.name != preparation]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def _make_room(root: Path, preparation: str, needed: int, limit: int) -> int:
    """Remove other preparations until *needed* bytes fit beside those that are left; return what may be used."""
    others = {path: _num_bytes(path) for path in _others(root, preparation)}
    own = _num_bytes(root / preparation)
    limit = min(limit, own + sum(others.values()) + max(0, shutil.disk_usage(root).free - RESERVE_BYTES))
    for path in list(others):
        if sum(others.values()) + needed <= limit or needed > limit:
            break
        with _locked_if_free(root, path.name) as free:
            if free:
                shutil.rmtree(path, ignore_errors=True)
                del others[path]
    return max(0, limit - sum(others.values()))


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("images-*.bin"))


def _erase_elsewhere(root: Path, preparation: str, withdrawn: Collection[str], tell: Tell) -> None:
    """Erase patients who withdrew from the caches of other preparations."""
    for path in _others(root, preparation) if withdrawn else ():
        with _locked_if_free(root, path.name) as free:
            if not free:
                continue
            try:
                erase_patients(path, withdrawn)
            except (CacheFull, ValueError, OSError):
                shutil.rmtree(path, ignore_errors=True)
                tell("The cache of another study cannot be used and was removed.")
