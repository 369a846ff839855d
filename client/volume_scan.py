"""From the files of a hospital's folder to volumes: files are grouped into series, and each series is one image.

First what every file's header says and, where it is wanted, the digest of its bytes; then, series by series in the
order of their first files, one volume of all its files. What is wrong with one file is wrong with its series: a volume
is never silently thinner than its series.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from client.dicom_file import Unusable
from client.doubtful_series import FileOfSeries, doubtful_series
from client.file_reading import Prepared
from client.file_tree import FoundFile
from client.mask_files import check_mask
from client.preparation import Plane
from client.reading_pool import Reader, ReadingPool, reading_pool
from client.reasons import Reason
from client.scan import AHEAD_BYTES, COPIES, PASSING, Progress, Scan, Seen, with_finding
from client.scan_memory import Finding, Record
from client.structures import MaskWanted

MAX_SERIES_FILES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    """The files of one series, in the order of their paths.

    Attributes:
        files: one for each SOPInstanceUID, the first.
        copies: further files with one of these.
        finding: why they are no volume, whatever their pixels are.
        volume: keyed hash of the contents of *files* and of their mask; empty where there is a finding.
        mask: where the study learns from masks, that of the series.
    """

    files: tuple[Seen, ...]
    copies: tuple[Seen, ...]
    finding: Unusable | None = None
    volume: str = ""
    mask: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Volume:
    """What is known of the volume of a series, and the volume itself where it was made just now.

    Exactly one of ``finding`` and ``pixel_facts`` says something, unless nobody wanted to know.
    """

    finding: Finding | None = None
    pixel_facts: str = ""
    plane: Plane | None = None


class VolumeScan(Scan):
    """A `Scan` of a study of volumes.

    A series whose files did not change is not read again. A file of a series that cannot be used is left out for the
    reason of its own, or else for that of its series.
    """

    _by_volume: dict[str, _Volume]
    _doubtful: set[str]

    def read(self, files: Sequence[FoundFile], progress: Progress = lambda done, total: None) -> None:
        """Read all files that are to be read, and add all of them to the index, as `Scan.read`.

        A file whose header was read is half done.
        """
        self._by_volume = {
            one.volume: _Volume(finding=one.finding, pixel_facts=one.pixel_facts)
            for one in self._memory.records.values()
            if one.volume
        }
        readers, seen = self._num_readers, list[Seen]()
        kept = set(self._masks.kept) if self._masks else set[bytes]()
        ahead = min(max(AHEAD_BYTES // self._images.cache.record_bytes, 2 * readers), 64 * readers)
        with reading_pool(self._make_reader, readers, ahead=ahead) as pool:
            for each in pool.in_order(self._headers(files, pool)):
                seen.append(self._remembered(each))
                progress(len(seen) // 2, len(files))
                self._checkpoint_if_due()
            groups, self._doubtful = self._by_series(seen), doubtful_series(map(_of_series, seen))
            for group, volume in zip(groups, pool.in_order(self._volumes(groups, pool)), strict=True):
                kept |= self._settled_series(group, volume)
                progress((len(files) + len(self._builder)) // 2, len(files))
                self._checkpoint_if_due()
        self._ended(kept)

    # Headers

    def _headers(self, files: Sequence[FoundFile], pool: ReadingPool) -> Iterator[Future[Seen] | Seen]:
        for file in files:
            each = self._seen(file)
            yield pool.submit(self._examined, each) if self._lacks_digest(each.record) else each

    def _lacks_digest(self, record: Record | None) -> bool:
        if record is None:
            return True
        return not record.content and self._is_wanted(record)

    def _is_wanted(self, record: Record) -> bool:
        try:
            self._builder.check_wanted(record)
        except Unusable:
            return False
        return True

    def _read(self, reader: Reader, file: FoundFile) -> tuple[Record, Plane | None]:
        """What the header says, and the digest of the bytes where the file is wanted. For any thread."""
        path = self._folder / file.name
        record = Record(size=file.size or 0, mtime_ns=file.mtime_ns)
        try:
            record = self._with_header(record, reader.header(path, self._image))
            if self._is_wanted(record):
                digest = reader.digest(path, self._image)
                record = replace(record, content=self._secret.pseudonym("content", digest.hex()))
        except Unusable as found:
            return with_finding(record, "header" if record.pseudonyms else "file", found), None
        return record, None

    def _remembered(self, each: Seen) -> Seen:
        """The file, of which the memory knows from here on, so that the next run need not read it again."""
        record = _known_of(each)
        if record.pseudonyms.get("PatientID") in self._builder.withdrawn:
            each = replace(each, record=_of_withdrawn(record))
        if _may_be_kept(each):
            self._memory.put(each.key, _known_of(each))
        return each

    # Series

    def _by_series(self, seen: Iterable[Seen]) -> list[list[Seen]]:
        """Files of one series together; a file by itself that has none, or is not to be used at all."""
        groups: dict[str | int, list[Seen]] = {}
        for number, each in enumerate(seen):
            pseudonyms = _known_of(each).pseudonyms
            gone = pseudonyms.get("PatientID") in self._builder.withdrawn
            series = "" if gone else pseudonyms.get("SeriesInstanceUID", "")
            groups.setdefault(series or number, []).append(each)
        return list(groups.values())

    def _series(self, group: Sequence[Seen]) -> _Series:
        """What is known of a series before its pixels are read, as far as other series are settled."""
        files: dict[str, Seen] = {}
        copies = []
        for number, each in enumerate(group):
            instance = _known_of(each).pseudonyms.get("SOPInstanceUID") or str(number)
            if instance in files:
                copies.append(each)
            else:
                files[instance] = each
        series = _Series(files=tuple(files.values()), copies=tuple(copies), mask=self._mask_of_series(group))
        try:
            self._check_series([_known_of(each) for each in group], len(files))
            if self._masks is not None:
                check_mask(series.mask)
        except Unusable as found:
            return replace(series, finding=found.with_traceback(None))
        contents = sorted(_known_of(each).content for each in series.files)
        contents += [f"mask {series.mask}"] if series.mask else []
        return replace(series, volume=self._secret.pseudonym("volume", " ".join(contents)))

    def _mask_of(self, file: FoundFile, pseudonyms: Mapping[str, str]) -> str:
        """A slice has no mask of its own."""
        return ""

    def _mask_of_series(self, group: Sequence[Seen]) -> str:
        if self._masks is None:
            return ""
        return self._masks.of_series([(each.file.name, _known_of(each).pseudonyms) for each in group])

    def _check_series(self, records: Sequence[Record], num_files: int) -> None:
        """Raise Unusable: a file is not to be used, or they do not belong together."""
        for record in records:
            try:
                self._builder.check_wanted(_without_volume(record))
            except Unusable as found:
                raise Unusable(found.reason, "(of another file of its series)") from None
        for keyword in ("PatientID", "StudyInstanceUID", self._builder.key):
            if len({record.pseudonyms[keyword] for record in records}) > 1:
                raise Unusable(Reason.NO_VOLUME, f"The files of its series have several {keyword}.")
        if records[0].pseudonyms["SeriesInstanceUID"] in self._doubtful:
            raise Unusable(
                Reason.MISSING_SLICE, "A file of its folder is too broken to say of which series it is."
            )
        if num_files > MAX_SERIES_FILES:
            raise Unusable(
                Reason.TOO_LARGE, f"Its series has {num_files} files; at most {MAX_SERIES_FILES} are read."
            )

    def _volumes(
        self, groups: Sequence[Sequence[Seen]], pool: ReadingPool
    ) -> Iterator[Future[_Volume] | _Volume]:
        for group in groups:
            series = self._series(group)
            if series.finding is not None:
                yield _Volume()
            elif (known := self._known_volume(series.volume)) is not None:
                yield known
            else:
                yield pool.submit(self._made, series)

    def _known_volume(self, volume: str) -> _Volume | None:
        """What need not be found out by reading."""
        known = self._by_volume.get(volume)
        if known is None or (known.finding is not None and self._recheck):
            return None
        return known if known.finding is not None or self._images.find(volume) is not None else None

    def _made(self, reader: Reader, series: _Series) -> _Volume:
        """Read one series. For any thread."""
        try:
            prepared = self._prepared(
                reader, [each.file for each in series.files], self._wanted_mask(series.mask)
            )
        except Unusable as found:
            return _Volume(finding=Finding(stage="volume", reason=found.reason, detail=found.detail))
        facts = prepared.facts.keyed(lambda digest: self._secret.pseudonym("pixels", digest))
        return _Volume(pixel_facts=facts.model_dump_json(), plane=prepared.plane)

    def _prepared(self, reader: Reader, files: Sequence[FoundFile], mask: MaskWanted | None) -> Prepared:
        paths = [self._folder / file.name for file in files]
        prepared = reader.prepare_series(paths, self._image, mask)
        for path, file in zip(paths, files, strict=True):
            try:
                status = path.stat()
            except OSError as error:
                raise Unusable(Reason.NOT_READABLE, f"({error.strerror})") from None
            if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
                raise Unusable(Reason.NOT_READABLE, "A file of its series was changed while it was read.")
        return prepared

    def _settled_series(self, group: Sequence[Seen], volume: _Volume) -> set[bytes]:
        """Put a series into the index, its volume to the others, its records into the memory; return whose are kept."""
        series = self._series(group)  # by now, what came before it is settled
        if series.finding is not None:
            return self._left_out(group, series.finding)
        if volume.finding is None:
            records = [_of_volume(each, series.volume, volume) for each in series.files]
            self._use_or_leave(series, records, volume.plane)
        else:
            self._left_out([*series.files, *series.copies], volume.finding.raised())
            passing = volume.finding.reason in PASSING
            records = [
                _without_volume(_known_of(each)) if passing else _of_volume(each, series.volume, volume)
                for each in series.files
            ]
            if passing:
                self._by_volume.pop(series.volume, None)
        records += [_without_volume(_known_of(each)) for each in series.copies]
        files = (*series.files, *series.copies)
        for each, record in zip(files, records, strict=True):
            self._memory.put(each.key, record)
        return {each.key for each in files}

    def _use_or_leave(self, series: _Series, records: Sequence[Record], plane: Plane | None) -> None:
        """Use a volume, unless the study or the site asks more of its pixels."""
        try:
            self._builder.check_wanted(records[0])
        except Unusable as found:
            self._left_out([*series.files, *series.copies], found.with_traceback(None))
            return
        paths = [each.file.name for each in series.files]
        self._builder.add_volume(paths, records)
        for each in series.copies:
            self._builder.add(each.file.name, _without_volume(_known_of(each)))
        self._contents[paths[0]] = series.volume
        if plane is not None and self._images.find(series.volume) is None:
            self._images.add(series.volume, plane, patient=records[0].pseudonyms["PatientID"])

    def _left_out(self, group: Sequence[Seen], finding: Unusable) -> set[bytes]:
        """Leave all files of a series out, each for its own reason or else for this; return whose records are kept."""
        kept = set()
        for each in group:
            record = _known_of(each)
            told = _without_volume(record)
            if told.finding is None:
                told = with_finding(told, "volume", finding)
            left_out = self._builder.add(each.file.name, told)
            if left_out is not None and left_out.reason in COPIES:
                record = _without_volume(record)  # whether its series was read is chance
            if _may_be_kept(each):
                self._memory.put(each.key, record)
                kept.add(each.key)
        return kept


def _of_series(each: Seen) -> FileOfSeries:
    record = _known_of(each)
    return FileOfSeries(
        path=each.file.name,
        series=record.pseudonyms.get("SeriesInstanceUID", ""),
        reason=None if record.finding is None else record.finding.reason,
    )


def _known_of(each: Seen) -> Record:
    if each.record is None:
        raise RuntimeError("a file was settled before it was read")
    return each.record


def _may_be_kept(each: Seen) -> bool:
    finding = _known_of(each).finding
    return each.file.size is not None and (finding is None or finding.reason not in PASSING)


def _without_volume(record: Record) -> Record:
    """What is known of the file by itself."""
    of_series = record.finding is not None and record.finding.stage == "volume"
    finding = None if of_series else record.finding
    return replace(record, finding=finding, has_window=False, pixel_facts="", volume="")


def _of_volume(each: Seen, key: str, volume: _Volume) -> Record:
    """What is known of the file, and of the volume that it is a part of."""
    return replace(
        _known_of(each),
        finding=volume.finding,
        has_window=volume.finding is None,
        pixel_facts=volume.pixel_facts,
        volume=key,
    )


def _of_withdrawn(record: Record) -> Record:
    return Record(size=record.size, mtime_ns=record.mtime_ns, pseudonyms=record.pseudonyms)
