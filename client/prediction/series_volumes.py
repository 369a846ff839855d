"""Volumes: the files of a series are one, and what is wrong with one of them is wrong with all.

As in training (`client.volume_scan`): a volume is never silently thinner than its series.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import reduce

from client.dicom_file import Unusable
from client.doubtful_series import FileOfSeries, doubtful_series
from client.file_reading import Header
from client.prediction.inputs import Input
from client.prediction.refusals import Terms, examined
from client.prediction.taken import Found, Taken, left_out
from client.reading_pool import Reader, ReadingPool
from client.reasons import Reason
from client.volume_scan import MAX_SERIES_FILES

_OF_ANOTHER = "(of another file of its series)"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """A file whose header was read: either what it says, or why it cannot be used; both where it says its series."""

    one: Input = field(repr=False)
    terms: Terms
    header: Header | None = field(default=None, repr=False)
    finding: Unusable | None = None

    def value(self, keyword: str) -> str:
        """Of an identifier; empty where it has none."""
        return "" if self.header is None else self.header.identifiers[keyword]


def series_volumes(
    inputs: Sequence[Input],
    terms: Terms,
    pool: ReadingPool,
    *,
    progress: Callable[[int], None],
) -> Iterator[Found]:
    """Yield what becomes of each series, in the order of their first files, and of files that belong to none.

    Args:
        inputs: the files.
        terms: what they have to be.
        pool: reads them.
        progress: called with how many files are done; one whose header was read is half done.
    """
    seen, see = list[_Seen](), _seen_by(terms)
    headers: Iterator[_Seen] = pool.in_order(pool.submit(see, one) for one in inputs)
    for each in headers:
        seen.append(each)
        progress(len(seen) // 2)
    doubtful = doubtful_series(
        FileOfSeries(
            path=each.one.path.as_posix(),
            series=each.value("SeriesInstanceUID"),
            reason=None if each.finding is None else each.finding.reason,
        )
        for each in seen
    )
    groups, num_done = _by_series(seen), 0
    volumes = pool.in_order(_started(groups, doubtful, pool))
    for group, found in zip(groups, volumes, strict=True):
        num_done += len(group)
        yield from found
        progress((len(inputs) + num_done) // 2)


def _seen_by(terms: Terms) -> Callable[[Reader, Input], _Seen]:
    def seen(reader: Reader, one: Input) -> _Seen:
        """Read one header. For any thread."""
        header = None
        try:
            header = reader.header(one.path, terms.image)
            header, own = examined(reader, one.path, terms)
        except Unusable as found:
            return _Seen(one=one, terms=terms, header=header, finding=found.with_traceback(None))
        return _Seen(one=one, terms=own, header=header)

    return seen


def _by_series(seen: Sequence[_Seen]) -> list[list[_Seen]]:
    """Files of one series together; a file by itself that names none."""
    groups: dict[str | int, list[_Seen]] = {}
    for number, each in enumerate(seen):
        groups.setdefault(each.value("SeriesInstanceUID") or number, []).append(each)
    return list(groups.values())


def _started(
    groups: Sequence[Sequence[_Seen]], doubtful: set[str], pool: ReadingPool
) -> Iterator[Future[list[Found]] | list[Found]]:
    for group in groups:
        own = [left_out(each.one, each.finding) for each in group if each.finding is not None]
        rest = [each for each in group if each.finding is None]
        if own:
            if rest:
                first = next(each.finding for each in group if each.finding is not None)
                own.append(left_out(rest[0].one, Unusable(first.reason, _OF_ANOTHER), num_files=len(rest)))
            yield [*own]
            continue
        try:
            files = _without_copies(rest)
            _check_series(rest, len(files), doubtful)
        except Unusable as found:
            yield [left_out(rest[0].one, found, num_files=len(rest))]
            continue
        yield pool.submit(_volume, files)


def _without_copies(group: Sequence[_Seen]) -> list[_Seen]:
    """One for each SOPInstanceUID, the first."""
    return list(
        {
            each.value("SOPInstanceUID") or str(place): each for place, each in reversed([*enumerate(group)])
        }.values()
    )[::-1]


def _check_series(group: Sequence[_Seen], num_files: int, doubtful: set[str]) -> None:
    """Raise Unusable: the files do not belong together."""
    series = group[0].value("SeriesInstanceUID")
    if not series:
        raise Unusable(Reason.MISSING_IDENTIFIER, "SeriesInstanceUID is empty.")
    for keyword in ("PatientID", "StudyInstanceUID"):
        if len({each.value(keyword) for each in group}) > 1:
            raise Unusable(Reason.NO_VOLUME, f"The files of its series have several {keyword}.")
    if series in doubtful:
        raise Unusable(
            Reason.MISSING_SLICE, "A file of its folder is too broken to say of which series it is."
        )
    if num_files > MAX_SERIES_FILES:
        raise Unusable(
            Reason.TOO_LARGE, f"Its series has {num_files} files; at most {MAX_SERIES_FILES} are read."
        )


def _volume(reader: Reader, group: Sequence[_Seen]) -> list[Found]:
    """Read one series. For any thread."""
    terms, first = reduce(Terms.joined, [each.terms for each in group]), group[0]
    if first.header is None:
        raise RuntimeError("a series was begun whose headers were not read")
    try:
        while True:
            made = reader.prepare_series([each.one.path for each in group], terms.image)
            try:
                terms.check_pixels(made.facts)
            except Unusable as found:
                terms = terms.without(found, first.header.facts)
                continue
            break
    except Unusable as found:
        return [left_out(first.one, found, num_files=len(group))]
    return [
        Taken(
            name=first.one.name,
            files=tuple(each.one.path for each in group),
            identifiers=first.header.identifiers,
            plane=made.plane,
            spacing=terms.image.voxel,
            overrides=terms.sentences,
        )
    ]
