"""Where fetched images are put: whole, checked, and under pseudonyms.

::

    images.folder/pacs/<study>/<image>.dcm           both 32 hexadecimal digits, by the site's secret
    images.folder/pacs/<study>/.<image>.<8 digits>.part    on its way; removed by the next call if it was left behind

The names follow from the UIDs and the secret: an image that comes twice has one file.
"""

import errno
import os
import secrets
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from client.dicom_file import Unusable, identifiers_of, opened, read_header
from client.fetch_reasons import NotFetched, Outcome
from client.pacs_query import Incoming
from client.secret import SiteSecret

FOLDER_NAME = "pacs"
MIB = 1 << 20
FOLDER_MODE, FILE_MODE = 0o750, 0o640  # nothing for others; the group as the umask allows
_FULL = (errno.ENOSPC, errno.EDQUOT)
_one_parser = threading.Lock()  # `dicom_file.guarded` must not run in two threads


class ImageStore:
    """The folder of fetched images.

    Args:
        images: the site's images folder, which must be there.
        secret: makes the names.
        min_free_bytes: less free than this counts as full.
        max_object_bytes: of one image.
        received: told of every piece that comes, to keep the pace.
    """

    def __init__(
        self,
        images: Path,
        secret: SiteSecret,
        *,
        min_free_bytes: int,
        max_object_bytes: int,
        received: Callable[[int], None] = lambda num_bytes: None,
    ) -> None:
        self._images, self.root, self._secret = images, images / FOLDER_NAME, secret
        self._min_free, self.max_object_bytes, self.received = min_free_bytes, max_object_bytes, received

    def prepare(self) -> int:
        """Make the folder, and take away what an earlier call left half written. Returns how many files.

        Raises:
            NotFetched: nothing can be written there, or too little is free.
        """
        with _told():
            if not self._images.is_dir():
                raise NotFetched(Outcome.NOT_WRITABLE, "(images.folder is not there)")
            self.root.mkdir(mode=FOLDER_MODE, exist_ok=True)
            self._check_owner()
            left = [*self.root.glob(".*.part"), *self.root.glob("*/.*.part")]
            for path in left:
                path.unlink()
            trial = self.root / f".{secrets.token_hex(8)}.part"
            try:
                trial.write_bytes(b"\0" * 4096)
            finally:
                trial.unlink(missing_ok=True)
        self.check_room()
        return len(left)

    def _check_owner(self) -> None:
        """Refuse a folder, or a link to one, that another user put there, to read the images or to change them."""
        trusted = {0, os.geteuid(), self._images.stat().st_uid}
        found = self.root.stat()
        if not {self.root.lstat().st_uid, found.st_uid} <= trusted or found.st_mode & 0o002:
            raise NotFetched(
                Outcome.NOT_WRITABLE, f"({FOLDER_NAME} in images.folder is open to another user)"
            )

    def check_room(self, num_bytes: int = 0) -> None:
        """Raise NotFetched where too little is free, or would be after so many bytes."""
        with _told():
            found = os.statvfs(self.root)
        free = found.f_bavail * found.f_frsize
        if free - num_bytes < self._min_free:
            raise NotFetched(Outcome.DISK_FULL, f"({free // MIB} MiB free)")

    def study(self, study: str, expected: Collection[str] = ()) -> "StudyFolder":
        """The folder of one study, into which only the *expected* images are taken."""
        return StudyFolder(
            self, study, self.root / self._secret.pseudonym("study", study), frozenset(expected)
        )

    def name_of(self, instance: str) -> str:
        """The file name of an image."""
        return f"{self._secret.pseudonym('image', instance)}.dcm"


class StudyFolder:
    """One study's folder; made with its first image."""

    def __init__(self, store: ImageStore, study: str, folder: Path, expected: frozenset[str]) -> None:
        self.store, self.study, self.folder, self.expected = store, study, folder, expected
        self._lock = threading.Lock()
        self._num_left = 2 * len(expected) + 1  # some archives send an image twice
        self.num_new = self.num_new_bytes = 0

    def has(self, instance: str) -> bool:
        """Whether the image is there; whatever is there under its name was checked before."""
        return (self.folder / self.store.name_of(instance)).is_file()

    @property
    def num_images(self) -> int:
        """Images of the study that are there."""
        try:
            return sum(entry.name.endswith(".dcm") for entry in os.scandir(self.folder))
        except FileNotFoundError:
            return 0

    def incoming(self) -> Incoming:
        """A new object on its way. Raises NotFetched where far more come than are expected."""
        with self._lock:
            self._num_left -= 1
            if self._num_left < 0:
                raise NotFetched(Outcome.PACS_ERROR, "(more objects than were asked for)")
        return _IncomingFile(self)

    def count(self, num_bytes: int) -> None:
        """Count an image that was put in its place."""
        with self._lock:
            self.num_new += 1
            self.num_new_bytes += num_bytes


class _IncomingFile:
    """A temporary file in the study's folder."""

    def __init__(self, study: StudyFolder) -> None:
        self._study, self._num_bytes = study, 0

    def __enter__(self) -> "_IncomingFile":
        with _told():
            self._study.folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
            self._path = self._study.folder / f".{secrets.token_hex(8)}.part"
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
            self._file = os.fdopen(descriptor, "wb")
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what could not be flushed is taken away anyway
            self._file.close()
        self._path.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        self._num_bytes += len(data)
        if self._num_bytes > self._study.store.max_object_bytes:
            raise NotFetched(Outcome.TOO_LARGE)
        self._study.store.check_room(len(data))
        with _told():
            self._file.write(data)
        self._study.store.received(len(data))

    def accept(self) -> None:
        with _told():
            self._file.flush()
            os.fsync(self._file.fileno())
        try:
            with _one_parser, opened(self._path) as file:
                identifiers = identifiers_of(read_header(file))
        except Unusable as finding:
            raise NotFetched(Outcome.WRONG_OBJECT, f"({finding.reason.code})") from None
        if identifiers.StudyInstanceUID != self._study.study:
            raise NotFetched(Outcome.WRONG_OBJECT, "(of another study)")
        if identifiers.SOPInstanceUID not in self._study.expected:
            raise NotFetched(Outcome.WRONG_OBJECT, "(not among the listed images)")
        target = self._study.folder / self._study.store.name_of(identifiers.SOPInstanceUID)
        new = not target.exists()
        with _told():
            self._path.replace(target)
            _sync(self._study.folder)
        if new:
            self._study.count(self._num_bytes)


class _told:  # noqa: N801 - reads as a word in `with _told():`
    """Turn an operating system's error of writing into NotFetched."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            outcome = Outcome.DISK_FULL if error.errno in _FULL else Outcome.NOT_WRITABLE
            raise NotFetched(outcome, f"({error.strerror})") from None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
