"""Prepared images of one preparation on disk: fixed-size records in one file, named by a catalogue.

Guarantees: whatever ends the process at whatever moment, the next one finds a cache of whole records that are what was
prepared; the same sequence of calls gives the same bytes. How: records are only appended, and forced to the disk
before the catalogue names them; the catalogue is replaced in one step; what lies behind its last record is cut off;
each record has a checksum, which is checked when the cache is opened.

One process at a time works on a cache; `client.cache_folder` sees to that. Readers map the file of the records: it
does not shrink under them, since it is only cut behind the catalogue and rewritten under another name.
"""

import errno
import fcntl
import json
import os
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.preparation import Plane
from client.private_file import replace_private_file

SCHEMA = 1
CATALOGUE_NAME = "catalogue.json"
_NAME = "images-{generation}.bin"
_CHECKED_AT_ONCE = 16 * 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CacheFull(Exception):
    """The cache can take no more; what is in it stays usable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one record is: the keyed hash of its file's bytes, CRC-32 of its own, and its patient's pseudonym."""

    content: str
    checksum: int
    patient: str


class ImageCache:
    """The records of one preparation. Not for several threads, save `find`.

    Args:
        folder: holds this cache alone; created (0700) where it is missing.
        shape: of an image.
        limit: bytes that the records may take.

    Attributes:
        problems: what was found wrong when it was opened, in sentences for the site's operator.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], *, limit: int) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self.shape, self.limit = folder, shape, limit
        self.record_bytes = 4 * int(np.prod(shape))
        self.problems: list[str] = []
        self._remove_leftovers()
        self._generation, self._entries = self._read_catalogue()
        self._rows = {entry.content: row for row, entry in enumerate(self._entries) if entry is not None}
        self._damaged: dict[str, int] = {}
        self._changed = False
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._check_records()
        except BaseException:
            os.close(self._file)
            raise

    def __len__(self) -> int:
        """Number of records, erased ones included."""
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """Bytes of all records, erased ones included."""
        return len(self._entries) * self.record_bytes

    def find(self, content: str) -> int | None:
        """Return the row of the image with this content, None where it is not here."""
        return self._rows.get(content)

    def add(self, content: str, plane: Plane, *, patient: str) -> int:
        """Write an image and return its row. It is lost if the process ends before `checkpoint`.

        Raises:
            CacheFull: the limit or the disk does not allow it; nothing was changed.
        """
        row = self._damaged.get(content, len(self._entries))
        data = np.ascontiguousarray(plane, dtype="<f4").tobytes()
        if len(data) != self.record_bytes:
            raise ValueError(f"plane has {len(data)} bytes; must have {self.record_bytes}")
        if row == len(self._entries) and self.num_bytes + len(data) > self.limit:
            raise CacheFull
        self._write(row, data)
        entry = Entry(content=content, checksum=zlib.crc32(data), patient=patient)
        if row == len(self._entries):
            self._entries.append(entry)
        else:
            self._entries[row] = entry
            del self._damaged[content]
        self._rows[content] = row
        self._changed = True
        return row

    def checkpoint(self) -> None:
        """Make what was added survive whatever happens from here on.

        Raises:
            CacheFull: the disk is full; what the catalogue named before stays.
        """
        if not self._changed:
            return
        try:
            os.fsync(self._file)
            replace_private_file(self._folder / CATALOGUE_NAME, self._catalogue())
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise CacheFull from error
        self._changed = False

    def erase(self, *, keep: Collection[str], withdrawn: Collection[str] = ()) -> int:
        """Overwrite with zeros the records that are not to be kept, and rewrite the file where half of it is gone.

        Records of patients who withdrew are erased at once. The others wait while somebody uses what `images` gave,
        who would see zeros.

        Args:
            keep: contents; those of files that are there.
            withdrawn: pseudonyms of patients of whom nothing is kept.

        Returns:
            How many records were erased.
        """
        in_use = not self._is_unused()
        gone = [
            row
            for row, entry in enumerate(self._entries)
            if entry is not None
            and (entry.patient in withdrawn or (entry.content not in keep and not in_use))
        ]
        if self._erase_rows([*gone, *self._damaged.values()]):
            self.checkpoint()
        self._damaged.clear()
        self._compact()
        return len(gone)

    def images(self) -> NDArray[np.float32]:
        """All records, memory-mapped and read-only, shape (num_records, channels, ...)."""
        if not self._entries:
            return np.zeros((0, *self.shape), dtype=np.float32)
        with self._path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # the mapping holds it, since it keeps a copy of the descriptor
            return np.memmap(file, dtype="<f4", mode="r", shape=(len(self._entries), *self.shape))

    def close(self) -> None:
        """Close the file; what `images` returned stays usable."""
        os.close(self._file)

    @property
    def _path(self) -> Path:
        return self._folder / _NAME.format(generation=self._generation)

    def _is_unused(self) -> bool:
        """Whether nobody, in this process or another, holds what `images` gave."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return True

    def _write(self, row: int, data: bytes) -> None:
        begin = row * self.record_bytes
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:], begin + written)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            if row == len(self._entries):
                os.ftruncate(self._file, begin)
            raise CacheFull from error

    def _catalogue(self) -> bytes:
        """Canonical: one line for each record, in their order."""
        head = {
            "schema": SCHEMA,
            "generation": self._generation,
            "shape": list(self.shape),
            "num_records": len(self._entries),
        }
        lines = [json.dumps(head)]
        lines += [
            json.dumps(None if entry is None else [entry.content, entry.checksum, entry.patient])
            for entry in self._entries
        ]
        body = "\n".join(lines)
        return f"{body}\n{zlib.crc32(body.encode())}\n".encode()

    def _read_catalogue(self) -> tuple[int, list[Entry | None]]:
        """Generation and entries; none where there is no catalogue, or one that cannot be used."""
        try:
            text = (self._folder / CATALOGUE_NAME).read_bytes()
        except FileNotFoundError:
            return 0, []
        except OSError as error:
            self.problems.append(
                f"The cache's catalogue cannot be read ({error.strerror}); it is made again."
            )
            return 0, []
        try:
            return _catalogue_of(text, self.shape)
        except (ValueError, LookupError, TypeError):
            self.problems.append(
                "The cache's catalogue is damaged or of another version; images are prepared again."
            )
            return 0, []

    def _remove_leftovers(self) -> None:
        """What a process left that was ended while it replaced a file."""
        for path in self._folder.iterdir():
            if re.fullmatch(r"\.catalogue\.json\.[0-9a-f]+", path.name):
                path.unlink()

    def _check_records(self) -> None:
        """Cut off what the catalogue does not name, and forget records whose bytes are not what was written."""
        for path in self._folder.glob("images-*.bin"):
            if path != self._path:
                path.unlink()
        there = os.fstat(self._file).st_size
        if there > self.num_bytes:
            os.ftruncate(self._file, self.num_bytes)
        if missing := max(0, len(self._entries) - there // self.record_bytes):
            del self._entries[len(self._entries) - missing :]
            os.ftruncate(self._file, self.num_bytes)
            self._rows = {entry.content: row for row, entry in enumerate(self._entries) if entry is not None}
            self._changed = True
        for row in self._damaged_rows():
            if (entry := self._entries[row]) is not None:
                self._entries[row] = None
                del self._rows[entry.content]
                self._damaged[entry.content] = row
                self._changed = True
        if wrong := missing + len(self._damaged):
            self.problems.append(f"{wrong} images of the cache were damaged; they are prepared again.")

    def _damaged_rows(self) -> list[int]:
        at_once = max(1, _CHECKED_AT_ONCE // self.record_bytes)
        starts = range(0, len(self._entries), at_once)
        if len(starts) <= 1:
            return [row for start in starts for row in self._damaged_in(start, at_once)]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            parts = threads.map(lambda start: self._damaged_in(start, at_once), starts)
            return [row for part in parts for row in part]

    def _damaged_in(self, start: int, number: int) -> list[int]:
        rows = range(start, min(start + number, len(self._entries)))
        try:
            block = memoryview(os.pread(self._file, len(rows) * self.record_bytes, start * self.record_bytes))
        except OSError:  # the disk cannot read it
            return list(rows)
        wrong = []
        for position, row in enumerate(rows):
            part = block[position * self.record_bytes : (position + 1) * self.record_bytes]
            entry = self._entries[row]
            if entry is not None and zlib.crc32(part) != entry.checksum:
                wrong.append(row)
        return wrong

    def _erase_rows(self, rows: Sequence[int]) -> bool:
        zeros = bytes(self.record_bytes)
        for row in rows:
            self._write(row, zeros)
            if (entry := self._entries[row]) is not None:
                del self._rows[entry.content]
            self._entries[row] = None
            self._changed = True
        return bool(rows)

    def _compact(self) -> None:
        """Write the records that are left to a file of the next generation, once half of this one is empty."""
        live = [row for row, entry in enumerate(self._entries) if entry is not None]
        if len(live) * 2 > len(self._entries) or not self._entries:
            return
        old, old_path = self._file, self._path
        generation = self._generation + 1
        path = self._folder / _NAME.format(generation=generation)
        new = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        entries = [self._entries[row] for row in live]
        try:
            with os.fdopen(os.dup(new), "wb") as file:
                for data in self._records(live):
                    file.write(data)
        except OSError as error:
            os.close(new)
            path.unlink()
            if error.errno not in _FULL:
                raise
            return
        self._file, self._generation, self._entries, self._changed = new, generation, entries, True
        self._rows = {entry.content: row for row, entry in enumerate(entries) if entry is not None}
        self.checkpoint()
        os.close(old)
        old_path.unlink()

    def _records(self, rows: Sequence[int]) -> Iterator[bytes]:
        for row in rows:
            yield os.pread(self._file, self.record_bytes, row * self.record_bytes)


def erase_patients(folder: Path, withdrawn: Collection[str]) -> None:
    """Erase the records of these patients from a cache that is not open.

    Raises:
        CacheFull: the disk is full.
        ValueError: the cache has no catalogue that can be used.
    """
    try:
        text = (folder / CATALOGUE_NAME).read_text(encoding="ascii")
    except FileNotFoundError:
        return
    head, *rest = text.split("\n")
    patients = {values[2] for line in rest[:-2] if isinstance(values := json.loads(line), list)}
    if patients.isdisjoint(withdrawn):
        return
    cache = ImageCache(folder, tuple(json.loads(head)["shape"]), limit=0)
    try:
        kept = {entry.content for entry in cache._entries if entry is not None}
        cache.erase(keep=kept, withdrawn=withdrawn)
    finally:
        cache.close()


def _catalogue_of(text: bytes, shape: tuple[int, ...]) -> tuple[int, list[Entry | None]]:
    """Generation and entries. Raises ValueError, LookupError or TypeError for anything but such a catalogue."""
    body, checksum, end = text.rsplit(b"\n", 2)
    if end or zlib.crc32(body) != int(checksum):
        raise ValueError("the checksum is another")
    first, *rest = body.decode("ascii").split("\n")
    head = json.loads(first)
    if head != {**head, "schema": SCHEMA, "shape": list(shape), "num_records": len(rest)}:
        raise ValueError("another schema or shape")
    return int(head["generation"]), [_entry(line) for line in rest]


def _entry(line: str) -> Entry | None:
    """One line of the catalogue. Raises ValueError or TypeError."""
    values = json.loads(line)
    if values is None:
        return None
    content, checksum, patient = values
    if not (isinstance(content, str) and isinstance(checksum, int) and isinstance(patient, str)):
        raise TypeError
    return Entry(content=content, checksum=checksum, patient=patient)
