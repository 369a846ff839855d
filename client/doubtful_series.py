"""Which series may lack a slice, because a file beside them is too broken to say of which series it is."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from client.reasons import Reason

_LOST = frozenset(
    {
        Reason.NOT_READABLE,
        Reason.BROKEN_HEADER,
        Reason.TOO_DEEP,
        Reason.TRUNCATED,
        Reason.DECODER_CRASHED,
        Reason.TOO_SLOW,
        Reason.TOO_MUCH_MEMORY,
    }
)
"""Reasons of files that may have been slices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOfSeries:
    """A file, by its path with ``/``; the series that it names, or empty; and why it cannot be used, None if it can."""

    path: str = field(repr=False)
    series: str = field(repr=False)
    reason: Reason | None


def doubtful_series(files: Iterable[FileOfSeries]) -> set[str]:
    """Series that may lack a slice: alone in a folder with a file that does not even say of which series it is.

    Where slices of several series lie in one folder nobody can tell whose it was.
    """
    series, endings, lost = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set), []
    for file in files:
        folder, _, name = file.path.rpartition("/")
        if file.series:
            series[folder].add(file.series)
            endings[folder].add(PurePosixPath(name).suffix)
        elif file.reason is not None:
            lost.append((folder, PurePosixPath(name).suffix, file.reason))
    return {
        only
        for folder, ending, reason in lost
        if reason in _LOST or (reason is Reason.NOT_DICOM and ending and ending in endings[folder])
        if len(series[folder]) == 1
        for only in series[folder]
    }
