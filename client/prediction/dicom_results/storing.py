"""Results on their way into the hospital's PACS, by whichever protocol ``[pacs]`` of ``site.toml`` names.

The files stay where they are, whatever becomes of them. Storing one again is always right: a PACS knows its UID.
``pacs.hours``, ``pacs.studies_per_minute`` and ``pacs.max_mib_per_second`` are about fetching; they do not hold here.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from client.pacs_file import Pacs
from client.prediction.dicom_results.storing_outcomes import NotStored, Storing

MOST_BACKOFF_SECONDS = 300.0
PACS_STORED_NOTHING = 4
"""Exit status where the PACS does not answer, or does not let this site store."""
_TRIED_AGAIN = (Storing.TIMEOUT, Storing.CONNECTION_LOST, Storing.NO_ROOM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What became of one file.

    Attributes:
        detail: codes of the protocol, and names of kinds of objects.
        tried: whether it was; after what concerns all files the others are not.
    """

    path: Path
    outcome: Storing
    detail: str = ""
    tried: bool = True

    @property
    def sentence(self) -> str:
        """What became of it, and what to do, without anything that names a patient."""
        told = f"{self.outcome.sentence} {self.detail}".rstrip()
        return told if self.outcome.is_stored else f"{told} {self.outcome.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFiles:
    """What became of all files of one call, in their order."""

    files: tuple[Stored, ...] = field(repr=False)

    @property
    def num_stored(self) -> int:
        """How many the PACS has."""
        return sum(one.outcome.is_stored for one in self.files)

    @property
    def troubles(self) -> dict[str, int]:
        """Each thing that went wrong, in a sentence, with the number of files that it befell."""
        found: dict[str, int] = {}
        for one in self.files:
            if not one.outcome.is_stored:
                found[one.sentence] = found.get(one.sentence, 0) + 1
        return found

    @property
    def exit_code(self) -> int:
        """0: all are stored; 3: some are not; 4: the PACS does not answer, or does not let this site store."""
        if any(one.outcome.fatal for one in self.files):
            return PACS_STORED_NOTHING
        return 0 if self.num_stored == len(self.files) else 3


class StoreConnection(Protocol):
    """A connection that stores, by whichever protocol."""

    def store(self, path: Path, sop_class: UID) -> str:
        """Store one file. Returns what the PACS changed, as a code. Raises NotStored."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...


def store(
    paths: Sequence[Path], pacs: Pacs, progress: Callable[[Stored], None] = lambda stored: None
) -> StoredFiles:
    """Store files in the PACS, one after the other.

    Args:
        paths: DICOM files that Collegium wrote.
        pacs: where; its time limit, attempts and pauses hold.
        progress: told of each file.

    Raises:
        ConfigurationError: certificates or credentials cannot be used.
    """
    classes = {path: _class_of(path) for path in paths}
    found = list[Stored]()
    with _connection(pacs, {one for one in classes.values() if one is not None}) as connection:
        for path in paths:
            ended = next((one for one in found if one.outcome.fatal), None)
            if ended is not None:
                stored = Stored(path=path, outcome=ended.outcome, detail=ended.detail, tried=False)
            else:
                stored = _stored(connection, path, classes[path], pacs)
            found.append(stored)
            progress(stored)
    return StoredFiles(files=tuple(found))


def _stored(connection: StoreConnection, path: Path, sop_class: UID | None, pacs: Pacs) -> Stored:
    """Store one file, several times where the PACS fails to answer."""
    if sop_class is None:
        return Stored(path=path, outcome=Storing.NOT_READABLE)
    pause = pacs.backoff_seconds
    for attempt in range(1, pacs.attempts + 1):
        try:
            changed = connection.store(path, sop_class)
        except NotStored as trouble:
            if trouble.outcome not in _TRIED_AGAIN or attempt == pacs.attempts:
                return Stored(path=path, outcome=trouble.outcome, detail=trouble.detail)
        except (OSError, InvalidDicomError):
            return Stored(path=path, outcome=Storing.NOT_READABLE)
        else:
            outcome = Storing.CHANGED if changed else Storing.STORED
            return Stored(path=path, outcome=outcome, detail=changed and f"({changed})")
        time.sleep(min(pause, MOST_BACKOFF_SECONDS))
        pause *= 2.0
    raise RuntimeError("there is at least one attempt")


def _class_of(path: Path) -> UID | None:
    """The SOP class of a file; None where it cannot be read."""
    with suppress(OSError, InvalidDicomError, AttributeError):
        return UID(dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"]).SOPClassUID)
    return None


@contextmanager
def _connection(pacs: Pacs, classes: set[UID]) -> Iterator[StoreConnection]:
    """A connection by the protocol of the site. Raises ConfigurationError."""
    connection: StoreConnection
    if pacs.dimse is not None:
        from client.pacs_dimse import dimse_access
        from client.prediction.dicom_results.storing_dimse import DimseStore

        # Nobody connects to this machine when it stores, as a PACS does that sends images by C-MOVE.
        service = pacs.dimse.model_copy(update={"retrieve": "get", "listen_host": None, "listen_port": None})
        with dimse_access(pacs, service) as access:
            connection = DimseStore(access, classes)
            try:
                yield connection
            finally:
                connection.close()
    elif pacs.dicomweb is not None:
        from client.pacs_web import web_access
        from client.prediction.dicom_results.storing_web import WebStore

        connection = WebStore(web_access(pacs, pacs.dicomweb))
        try:
            yield connection
        finally:
            connection.close()
    else:
        raise RuntimeError("[pacs] has one of the two")
