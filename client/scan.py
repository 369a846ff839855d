"""From the files of a hospital's folder to records and prepared images; what did not change is not read again."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from client.cache_folder import PreparedImages
from client.decoding import DecodingWorker
from client.dicom_file import Unusable
from client.dicom_index import IndexBuilder
from client.file_reading import Header
from client.file_tree import FoundFile
from client.identifiers import PSEUDONYM_KINDS
from client.mask_files import MaskFiles
from client.person import Person
from client.preparation import Plane
from client.reading_pool import Reader, ReadingPool, reading_pool
from client.reasons import Reason
from client.roles import role_draw
from client.scan_memory import Finding, Record, ScanMemory
from client.secret import SiteSecret
from client.stored_images import StoredImages
from client.structures import MaskWanted

Progress = Callable[[int, int], None]

CHECKPOINT_SECONDS = 5.0
_FILES_A_READER = 32
"""A process more for each so many files: it takes about as long to start as to read them."""
AHEAD_BYTES = 256 * 2**20
PASSING = frozenset({Reason.NOT_A_FILE, Reason.NOT_READABLE, Reason.TOO_SLOW, Reason.TOO_MUCH_MEMORY})
"""Reasons that may be the machine's and not the file's: such files are read again each time."""
COPIES = frozenset({Reason.DUPLICATE, Reason.DUPLICATE_FILE})


@dataclass(frozen=True, slots=True)
class Seen:
    """A file on its way: its key in the memory, what is known of it, and its image where it was prepared just now."""

    file: FoundFile
    key: bytes
    record: Record | None
    plane: Plane | None = None


class Scan:
    """One walk over the files of an images folder.

    Each file is looked at, checked and prepared in one of several processes, unless the memory knows a file of its
    path, size and time of change. What the file gives is settled in the order of the paths.

    Args:
        folder: the images folder.
        builder: takes the records.
        secret: makes pseudonyms and keyed hashes.
        memory: what is known of the files; it is brought up to date.
        images: prepared images; it is brought up to date.
        recheck: read every file again and compare the digest of its bytes, whatever its size and time of change.
        num_readers: how many read at a time.
        checkpoint_seconds: between two moments at which what was read is safe.
        make_reader: makes what reads; a process of its own.
        masks: where the study learns from masks, those of the site.
    """

    def __init__(
        self,
        folder: Path,
        builder: IndexBuilder,
        secret: SiteSecret,
        memory: ScanMemory,
        images: PreparedImages,
        *,
        num_readers: int,
        recheck: bool = False,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        make_reader: Callable[[], Reader] = DecodingWorker,
        masks: MaskFiles | None = None,
    ) -> None:
        self._folder, self._builder, self._secret = folder, builder, secret
        self._memory, self._images, self._recheck = memory, images, recheck
        self._num_readers, self._checkpoint_seconds = num_readers, checkpoint_seconds
        self._make_reader, self._masks = make_reader, masks
        self._image = builder.study.image
        self._by_content = {
            self._key(record): record
            for record in memory.records.values()
            if record.content and (record.pixel_facts or record.finding)
        }
        self._on_the_way: Counter[str] = Counter()
        self._contents: dict[str, str] = {}
        self._saved = time.monotonic()

    def read(self, files: Sequence[FoundFile], progress: Progress = lambda done, total: None) -> None:
        """Read all files that are to be read, and add all of them to the index.

        Args:
            files: in the order of the index.
            progress: called with files done and files in all.

        Raises:
            DecoderDoesNotStart: no file can be read.
        """
        seen = [self._seen(file) for file in files]
        num_unknown = sum(each.record is None for each in seen)
        readers = min(self._num_readers, 1 + num_unknown // _FILES_A_READER)
        ahead = min(max(AHEAD_BYTES // self._images.cache.record_bytes, 2 * readers), 64 * readers)
        kept = set(self._masks.kept) if self._masks else set[bytes]()
        with reading_pool(self._make_reader, readers, ahead=ahead) as pool:
            started = (self._started(each, pool) for each in seen)
            for before, read in zip(seen, pool.in_order(started), strict=True):
                each = self._completed(before, read, pool)
                if self._settled(each):
                    kept.add(each.key)
                progress(len(self._builder), len(files))
                self._checkpoint_if_due()
        self._ended(kept)

    def stored(self, paths: Sequence[str]) -> StoredImages:
        """Return the images of these used files, where they are."""
        found = [self._images.find(self._contents[path]) for path in paths]
        numbers = np.array([-1 if number is None else number for number in found], dtype=np.int64)
        return StoredImages(
            [self._images.cache.images(), self._images.in_memory],
            (numbers < 0).astype(np.int64),
            np.where(numbers < 0, -1 - numbers, numbers),
            shape=self._images.cache.shape,
        )

    def _checkpoint_if_due(self) -> None:
        if time.monotonic() - self._saved >= self._checkpoint_seconds:
            self._images.checkpoint()
            self._memory.commit()
            self._saved = time.monotonic()

    def _ended(self, kept: set[bytes]) -> None:
        """Make all of it safe, and forget what is not there any more."""
        self._images.checkpoint()
        self._memory.forget_all_but(kept)
        records = self._memory.records.values()
        there = {self._key(record) for record in records} | {record.volume for record in records}
        self._images.erase(keep=there | set(self._contents.values()), withdrawn=self._builder.withdrawn)

    def _seen(self, file: FoundFile) -> Seen:
        """What is known of a file; nothing where it changed."""
        key = bytes.fromhex(self._secret.pseudonym("path", file.name))
        known = None if self._recheck else self._memory.records.get(key)
        if known is not None and (known.size, known.mtime_ns) != (file.size, file.mtime_ns):
            known = None
        if known is not None and known.mask != self._mask_of(file, known.pseudonyms):
            known = None
        return Seen(file, key, known)

    def _mask_of(self, file: FoundFile, pseudonyms: Mapping[str, str]) -> str:
        """The mask of an image, as its record holds it."""
        return "" if self._masks is None else self._masks.of(file.name, pseudonyms)

    def _wanted_mask(self, mask: str) -> MaskWanted | None:
        return None if self._masks is None else self._masks.wanted(mask)

    def _key(self, record: Record) -> str:
        """What the prepared image of a file is found by: its content, and that of its mask."""
        if not record.mask or not record.content:
            return record.content
        return self._secret.pseudonym("masked", f"{record.content} {record.mask}")

    def _started(self, each: Seen, pool: ReadingPool) -> Future[Seen] | Seen:
        """Begin to read a file, if it has to be read as far as is known by now."""
        if each.record is None:
            return pool.submit(self._examined, each)
        instance = each.record.pseudonyms.get("SOPInstanceUID", "")
        unclear = self._on_the_way[instance] > 0  # whether it is a duplicate
        self._on_the_way[instance] += 1
        if unclear or not self._lacks_image(each.record):
            return each
        return pool.submit(self._examined, each)

    def _completed(self, before: Seen, read: Seen, pool: ReadingPool) -> Seen:
        """The file with its image, if that is wanted now that all files before it are settled."""
        if before.record is not None:
            self._on_the_way[before.record.pseudonyms.get("SOPInstanceUID", "")] -= 1
        if read.plane is None and read.record is not None and self._lacks_image(read.record):
            return pool.submit(self._examined, read).result()
        return read

    def _lacks_image(self, record: Record) -> bool:
        """Whether the image of a file is wanted and not there."""
        try:
            self._builder.check_wanted(record)
        except Unusable:
            return False
        if record.finding is not None:
            return False
        return not record.pixel_facts or self._images.find(self._key(record)) is None

    def _examined(self, reader: Reader, each: Seen) -> Seen:
        """Read one file, as far as it is wanted. For any thread."""
        record, plane = self._read(reader, each.file)
        return replace(each, record=record, plane=plane)

    def _read(self, reader: Reader, file: FoundFile) -> tuple[Record, Plane | None]:
        path = self._folder / file.name
        record = Record(size=file.size or 0, mtime_ns=file.mtime_ns)
        try:
            record = self._with_header(record, reader.header(path, self._image))
            record = replace(record, mask=self._mask_of(file, record.pseudonyms))
        except Unusable as found:
            return with_finding(record, "file", found), None
        try:
            self._builder.check_wanted(record)
            is_copy = False
        except Unusable as found:
            is_copy = found.reason in COPIES
            if not is_copy:
                return record, None
        try:
            digest = reader.digest(path, self._image)
            record = replace(record, content=self._secret.pseudonym("content", digest.hex()))
            if is_copy:
                return record, None
            if (known := self._known(self._key(record))) is not None:
                return replace(
                    record, finding=known.finding, has_window=known.has_window, pixel_facts=known.pixel_facts
                ), None
            prepared = reader.prepare(path, self._image, self._wanted_mask(record.mask))
        except Unusable as found:
            return with_finding(record, "pixels", found), None
        facts = prepared.facts.keyed(lambda digest: self._secret.pseudonym("pixels", digest))
        record = replace(record, has_window=prepared.has_window, pixel_facts=facts.model_dump_json())
        return record, prepared.plane

    def _known(self, key: str) -> Record | None:
        """The record of another file, or an earlier one, of this content and mask whose pixels need not be read."""
        known = self._by_content.get(key)
        if known is None:
            return None
        if known.finding is not None:
            return None if self._recheck else known
        return None if self._images.find(key) is None else known

    def _with_header(self, record: Record, header: Header) -> Record:
        identifiers = header.identifiers
        pseudonyms = {
            keyword: self._secret.pseudonym(kind, identifiers[keyword]) if identifiers[keyword] else ""
            for keyword, kind in PSEUDONYM_KINDS.items()
        } | Person.of(header.person).pseudonyms(identifiers["PatientID"], self._secret)
        record = replace(
            record,
            pseudonyms=pseudonyms,
            role_draw=role_draw(identifiers["PatientID"], self._secret) if identifiers["PatientID"] else 0.0,
            header_facts=header.facts.model_dump_json(),
        )
        return record if header.finding is None else with_finding(record, "header", header.finding)

    def _settled(self, each: Seen) -> bool:
        """Put a file into the index, its image to the others and its record into the memory; whether it is kept."""
        record = each.record
        if record is None:
            raise RuntimeError("a file was settled before it was read")
        finding = self._builder.add(each.file.name, record)
        if finding is None:
            key = self._contents[each.file.name] = self._key(record)
            self._by_content[key] = record
            if each.plane is not None and self._images.find(key) is None:
                self._images.add(key, each.plane, patient=record.pseudonyms["PatientID"])
        elif finding.reason is Reason.WITHDRAWN:
            record = Record(
                size=record.size, mtime_ns=record.mtime_ns, pseudonyms=record.pseudonyms, mask=record.mask
            )
        elif finding.reason in COPIES:  # whether it was prepared is chance
            record = replace(record, finding=None, has_window=False, pixel_facts="")
        if each.file.size is None or (record.finding is not None and record.finding.reason in PASSING):
            return False
        self._memory.put(each.key, record)
        return True


def with_finding(record: Record, stage: str, found: Unusable) -> Record:
    """The record with what was found against its file."""
    return replace(record, finding=Finding(stage=stage, reason=found.reason, detail=found.detail))
