"""What is asked of a PACS: lists of accession numbers or studies, or modalities and dates; and what it answers.

Nothing here is for logs or terminals: accession numbers and UIDs identify patients.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Protocol

from client.fetch_reasons import NotFetched, Outcome
from shared_models.configuration import ConfigurationError

LONGEST_LIST_BYTES = 64 << 20
MOST_ANSWERS = 100_000
"""To one question."""
LONGEST_VALUE = 1024
"""Of what a PACS says: identifiers have 64 characters at most (PS3.5 section 6.2, LO)."""
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_ACCESSION = re.compile(r"[^\\*?\x00-\x1f\x7f]{1,64}")


def is_accession(text: str) -> bool:
    """Whether *text* may stand in a question as an accession number: no wildcard, and not too long."""
    return _ACCESSION.fullmatch(text) is not None


def is_uid(text: str) -> bool:
    """Whether *text* is made as a UID (PS3.5 section 9.1), so that it may stand in an address or a request."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def checked_uid(text: str) -> str:
    """Return a UID that a PACS sent. Raises NotFetched where it is none."""
    if not is_uid(text):
        raise NotFetched(Outcome.PACS_ERROR, "(an answer holds a UID that is none)")
    return text


def checked_text(text: str) -> str:
    """Return a value that a PACS sent, without padding, so that it can be encoded. Raises NotFetched: too long."""
    if len(text) > LONGEST_VALUE:
        raise NotFetched(Outcome.PACS_ERROR, "(an answer holds a value that is too long)")
    return text.encode("utf-8", "replace").decode("utf-8").strip(" \0")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyQuery:
    """One question to the PACS. Exactly one of accession, study and day is given.

    ``modalities`` narrows a question about a day; series are chosen by their own modality in any case.
    """

    accession: str = field(default="", repr=False)
    study: str = field(default="", repr=False)
    day: date | None = None
    modality: str = ""

    def keys(self) -> dict[str, str]:
        """Matching keys of the study level by keyword (PS3.4 C.2.2.2, PS3.18 section 8.3.4): the given ones only."""
        given = {
            "AccessionNumber": self.accession,
            "StudyInstanceUID": self.study,
            "StudyDate": "" if self.day is None else f"{self.day:%Y%m%d}",
            "ModalitiesInStudy": self.modality,
        }
        return {keyword: value for keyword, value in given.items() if value}

    def fits(self, found: "FoundStudy") -> bool:
        """Whether an answer is one to this question: some services ignore keys that they do not know."""
        if self.accession:
            return found.accession == self.accession
        if self.study:
            return found.study == self.study
        return self.day is None or found.day == f"{self.day:%Y%m%d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be fetched: lists, or days; and of these only what has the modalities and lies in the days.

    An empty ``modalities`` means any. Without a list, both days are needed.
    """

    accessions: tuple[str, ...] = field(default=(), repr=False)
    studies: tuple[str, ...] = field(default=(), repr=False)
    modalities: tuple[str, ...] = ()
    first: date | None = None
    last: date | None = None

    def __post_init__(self) -> None:
        listed = bool(self.accessions or self.studies)
        if (self.first is None) != (self.last is None):
            raise ConfigurationError("--from and --to belong together: give both or none")
        if self.first is not None and self.last is not None and self.first > self.last:
            raise ConfigurationError("--from is later than --to")
        if not listed and self.first is None:
            raise ConfigurationError(
                "what is to be fetched? Give --accessions FILE, --studies FILE, or --from and --to (with --modality)"
            )
        if wrong := [code for code in self.modalities if not re.fullmatch(r"[A-Z0-9_]{1,16}", code)]:
            raise ConfigurationError(f"--modality {wrong[0]!r} is no modality; give codes such as CT, CR, DX")

    @property
    def num_queries(self) -> int:
        """How many questions `queries` gives."""
        return sum(1 for _ in self.queries())

    def queries(self) -> Iterator[StudyQuery]:
        """The questions, in order: one for each line of a list, or one for each day and modality.

        Days are asked one by one because archives cut long answers off.
        """
        if self.accessions or self.studies:
            yield from (StudyQuery(accession=number) for number in self.accessions)
            yield from (StudyQuery(study=uid) for uid in self.studies)
            return
        if self.first is None or self.last is None:
            raise RuntimeError("without lists there are days")
        for offset in range((self.last - self.first).days + 1):
            for modality in self.modalities or ("",):
                yield StudyQuery(day=self.first + timedelta(days=offset), modality=modality)

    def admits_day(self, day: str) -> bool:
        """Whether a study of this Study Date (``YYYYMMDD``) is wanted."""
        if self.first is None or self.last is None:
            return True
        return f"{self.first:%Y%m%d}" <= day <= f"{self.last:%Y%m%d}"

    def admits_modality(self, modality: str) -> bool:
        """Whether a series of this modality is wanted."""
        return not self.modalities or modality in self.modalities


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundStudy:
    """A study that the PACS lists. Empty where it does not say."""

    study: str = field(repr=False)
    accession: str = field(default="", repr=False)
    patient: str = field(default="", repr=False)
    day: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSeries:
    """A series that the PACS lists."""

    series: str = field(repr=False)
    modality: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundInstance:
    """An image, or another object, that the PACS lists. ``sop_class`` is empty where it does not say."""

    instance: str = field(repr=False)
    sop_class: str = ""


class Incoming(Protocol):
    """One object on its way to the disk. Leaving it without `accept` takes away what was written."""

    def __enter__(self) -> "Incoming":
        """Begin to write."""
        ...

    def __exit__(self, *_: object) -> None:
        """Take away what was not accepted."""
        ...

    def write(self, data: bytes) -> None:
        """Add bytes of a DICOM file. Raises NotFetched."""
        ...

    def accept(self) -> None:
        """Check that it is what was asked for, and put it in its place. Raises NotFetched."""
        ...


Receive = Callable[[], Incoming]


class PacsConnection(Protocol):
    """A connection to a PACS, by whichever protocol. Each method raises NotFetched; then close it, and make another."""

    def studies(self, query: StudyQuery) -> list[FoundStudy]:
        """The studies that fit."""
        ...

    def series(self, study: str) -> list[FoundSeries]:
        """The series of a study."""
        ...

    def instances(self, study: str, series: str) -> list[FoundInstance]:
        """The objects of a series."""
        ...

    def retrieve(
        self, study: str, series: str, instances: Sequence[FoundInstance], receive: Receive, *, whole: bool
    ) -> None:
        """Have these objects of a series sent, each into an Incoming; *whole* says that they are the whole series."""
        ...

    def close(self) -> None:
        """End the connection; never raises."""
        ...


def read_accessions(path: Path) -> tuple[str, ...]:
    """Accession numbers, one a line. Raises ConfigurationError, which names lines and no number."""
    return _read_list(path, is_accession, "accession number")


def read_studies(path: Path) -> tuple[str, ...]:
    """Study Instance UIDs, one a line. Raises ConfigurationError, which names lines and no UID."""
    return _read_list(path, is_uid, "Study Instance UID")


def _read_list(path: Path, fits: Callable[[str], bool], what: str) -> tuple[str, ...]:
    """The lines, without empty ones, comments (``#``) and repetitions, in their order."""
    try:
        if path.stat().st_size > LONGEST_LIST_BYTES:
            raise ConfigurationError(
                f"{path}: is too large for a list ({LONGEST_LIST_BYTES >> 20} MiB at most)"
            )
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is not UTF-8 text; save it as UTF-8, one {what} a line") from error
    found: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if not fits(text):
            raise ConfigurationError(
                f"{path}: line {number} holds no {what}; give one a line, and nothing else"
            )
        found[text] = None
    if not found:
        raise ConfigurationError(f"{path}: holds no {what}; give one a line")
    return tuple(found)
