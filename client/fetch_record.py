"""``fetch.csv`` in the state folder: what became of each study that was asked for. Only this user may read it.

It holds accession numbers and Study Instance UIDs, so that a data manager can see which study lacks; it never leaves
the site. Lines are added, and are on disk before the next study begins; of several lines for one study the last counts.
A line that was cut off is left out when the file is read, and the next call writes the file anew.
"""

import csv
import io
import os
import threading
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, fields
from datetime import datetime
from pathlib import Path

from client.fetch_reasons import OUTCOMES, Outcome
from client.private_file import replace_private_file

RECORD_NAME = "fetch.csv"
FOUND = "found"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line. ``outcome`` is the code of an Outcome; or `FOUND`, for how many studies an accession number has.

    ``number``: images of the study that are there, or studies of the accession number. ``modalities``: those that
    were wanted, separated by spaces; empty for any.
    """

    accession: str = field(default="", repr=False)
    study: str = field(default="", repr=False)
    modalities: str = ""
    outcome: str
    number: int = 0
    detail: str = ""
    when: str = ""

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.outcome in OUTCOMES and OUTCOMES[self.outcome].settled


NAMES = tuple(part.name for part in fields(Line))


class FetchRecord:
    """The record of one site; several threads may add to it.

    Raises:
        OSError: it cannot be read or written.
    """

    def __init__(self, state: Path) -> None:
        self.path = state / RECORD_NAME
        self._lock = threading.Lock()
        self._lines: dict[tuple[str, str], Line] = {}
        self._by_accession: dict[str, dict[str, Line]] = {}
        if self.path.exists():
            for line in _read(self.path):
                self._keep(line)
        replace_private_file(self.path, _text([*self._lines.values()], header=True).encode())

    def add(self, *lines: Line) -> None:
        """Add lines; they are on disk when this returns."""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        stamped = [Line(**{name: getattr(line, name) for name in NAMES[:-1]}, when=now) for line in lines]
        with self._lock:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            with os.fdopen(descriptor, "ab") as file:
                file.write(_text(stamped).encode())
                file.flush()
                os.fsync(file.fileno())
            for line in stamped:
                self._keep(line)

    def of_study(self, study: str) -> Line | None:
        """What became of a study last."""
        with self._lock:
            return self._lines.get(("", study))

    def of_accession(self, accession: str) -> list[Line] | None:
        """What became of each study of an accession number; None where it is not known how many it has."""
        with self._lock:
            found = self._lines.get((accession, ""))
            if found is None or found.outcome != FOUND:
                return None
            lines = [line for line in self._by_accession.get(accession, {}).values() if line.study]
        return lines if len(lines) == found.number else None

    def _keep(self, line: Line) -> None:
        key = ("", line.study) if line.study else (line.accession, "")
        self._lines.pop(key, None)
        self._lines[key] = line
        self._by_accession.setdefault(line.accession, {})[line.study] = line


def _read(path: Path) -> list[Line]:
    """All whole lines; what is no line of ours is left out."""
    text = path.read_bytes().decode("utf-8", "replace")
    whole = text[: text.rfind("\n") + 1]
    rows = csv.reader(io.StringIO(whole, newline=""))
    lines = []
    for row in rows:
        if len(row) != len(NAMES) or row[3] not in {*OUTCOMES, FOUND} or not row[4].isdecimal():
            continue
        accession, study, modalities, outcome, number, detail, when = row
        lines.append(
            Line(
                accession=accession,
                study=study,
                modalities=modalities,
                outcome=outcome,
                number=int(number),
                detail=detail,
                when=when,
            )
        )
    return lines


def _text(lines: Sequence[Line], *, header: bool = False) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    if header:
        writer.writerow(NAMES)
    writer.writerows(astuple(line) for line in lines)
    return buffer.getvalue()


def line_of(
    outcome: Outcome,
    *,
    accession: str = "",
    study: str = "",
    modalities: str = "",
    number: int = 0,
    detail: str = "",
) -> Line:
    """A line for an outcome."""
    return Line(
        accession=accession,
        study=study,
        modalities=modalities,
        outcome=outcome.code,
        number=number,
        detail=detail,
    )
