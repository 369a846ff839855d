"""The hospital's labels file: a CSV with one row a patient, study or image.

What is not known, not there or contradictory is counted, never guessed.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from client.dicom_file import IDENTIFIER_KEYWORDS, Unusable
from client.identifiers import normalised
from client.label_statements import Statements
from client.reasons import LabelProblem, Reason
from client.roles import Role
from client.site_file import Labels
from shared_models.study import Study
from shared_models.tasks.task import Label, TaskTable

ROLE_COLUMN = "role"
DELIMITERS = (",", ";")


class LabelsError(Exception):
    """The labels file as a whole cannot be used. The message says why; it never holds the content of a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTable:
    """What the labels file says, by value of its key column. Stays in memory.

    ``labels`` and ``unusable`` share no key: the label, or why there is none. ``roles`` holds every role that a
    row states for a key; it is empty where the study does not take roles from the file. ``masks`` holds every mask that
    a row names for a key, where the file names masks. ``finding_problems`` are those of ``problems`` that concern one
    finding, where the study has findings. Where masks are what is learnt, a label is ``()``: there is a row.
    """

    num_rows: int
    problems: Mapping[LabelProblem, int]
    finding_problems: Mapping[str, Mapping[LabelProblem, int]]
    labels: Mapping[str, Label] = field(repr=False)
    unusable: Mapping[str, Reason] = field(repr=False)
    roles: Mapping[str, frozenset[Role]] = field(repr=False)
    masks: Mapping[str, frozenset[str]] = field(default_factory=dict, repr=False)

    def label_of(self, key: str) -> Label:
        """Return the label. Raises Unusable: no row, no label, an unknown or a contradictory one."""
        if key in self.labels:
            return self.labels[key]
        raise Unusable(self.unusable.get(key, Reason.NO_LABEL))

    @property
    def keys(self) -> frozenset[str]:
        """Every key that some row has."""
        return frozenset(self.labels) | frozenset(self.unusable)

    def keyed(self, pseudonym: Callable[[str], str]) -> "LabelTable":
        """The same with *pseudonym* of each key in its place."""
        return replace(
            self,
            labels={pseudonym(key): label for key, label in self.labels.items()},
            unusable={pseudonym(key): reason for key, reason in self.unusable.items()},
            roles={pseudonym(key): roles for key, roles in self.roles.items()},
            masks={pseudonym(key): masks for key, masks in self.masks.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """Positions in a row; ``role`` and ``mask`` are None where they do not come from the file."""

    key: int
    labels: tuple[int, ...]
    role: int | None
    mask: int | None
    num_columns: int


def read_labels(file: Labels, study: Study, *, mask_column: str | None = None) -> LabelTable:
    """Read a labels file: UTF-8 with or without byte order mark, ``,`` or ``;`` between cells, one header row.

    What a cell means is the task's (`shared_models.tasks`). Rows of one key that do not say the same make the key
    unusable; an empty label says nothing. Where a label has several findings, all this goes for each of them by itself:
    a finding that is contradictory, unknown or empty is missing, and a key is unusable where all are. Every problem of
    a row is counted, none is fatal.

    Args:
        file: where the file is and which columns matter.
        study: the task's values and where roles come from.
        mask_column: names the mask of each key, where some column does.

    Raises:
        LabelsError: the file cannot be read, is no such CSV, or a column is missing.
    """
    header, rows = _read_rows(file.file)
    columns = _find_columns(header, file, study, mask_column)
    said = Statements(study.task)
    roles: dict[str, set[Role]] = {}
    masks: dict[str, set[str]] = {}
    for row in rows:
        if len(row) != columns.num_columns:
            said.problems[LabelProblem.WRONG_LENGTH] += 1
            continue
        cells = [cell.strip() for cell in row]
        if not (key := normalised(cells[columns.key])):
            said.problems[LabelProblem.EMPTY_KEY] += 1
            continue
        said.add(key, [cells[position] for position in columns.labels])
        if columns.role is not None:
            _add_role(roles.setdefault(key, set()), cells[columns.role], said.problems)
        if columns.mask is not None and (mask := cells[columns.mask]):
            masks.setdefault(key, set()).add(mask)
    labels, unusable = said.resolved()
    return LabelTable(
        num_rows=len(rows),
        problems=said.all_problems(),
        finding_problems=said.finding_problems(),
        labels=labels,
        unusable=unusable,
        roles={key: frozenset(stated) for key, stated in roles.items()},
        masks={key: frozenset(named) for key, named in masks.items()},
    )


def columns_of(file: Labels, task: TaskTable) -> tuple[str, ...]:
    """The columns of this hospital's labels file that hold the label.

    Raises:
        LabelsError: site.toml names one column where the study wants several.
    """
    if file.column is None or not task.columns:
        return tuple(file.columns.get(column, column) for column in task.columns)
    if len(task.columns) > 1:
        raise LabelsError(
            f"{file.file}: labels.column in site.toml names one column, and the study takes labels from "
            f"{len(task.columns)}; remove labels.column, and say in [labels.columns] what the file calls these: "
            f"{', '.join(dict.fromkeys(task.columns))}"
        )
    return (file.column,)


def check_columns(file: Labels) -> None:
    """Check what can be checked without a study: the file is such a CSV and has the columns that site.toml names.

    Raises:
        LabelsError: as of `read_labels`.
    """
    header, _ = _read_rows(file.file)
    wanted = [file.key, *([file.column] if file.column else []), *file.columns.values()]
    if missing := [name for name in wanted if name not in header]:
        raise LabelsError(
            f"{file.file}: column {', '.join(missing)} is missing. {_shown(header, file.column or '')}"
        )


def _add_role(stated: set[Role], cell: str, problems: Counter[LabelProblem]) -> None:
    if cell in set(Role):
        stated.add(Role(cell))
    else:
        problems[LabelProblem.UNKNOWN_ROLE] += 1


def _read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header and all rows that are not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabelsError(
            f"{path}: cannot be read ({error.strerror}); check labels.file in site.toml"
        ) from error
    except UnicodeDecodeError as error:
        raise LabelsError(
            f"{path}: is not UTF-8 text (byte {error.start}); save it as CSV in UTF-8"
        ) from None
    rows = list(_parse(text, path))
    if not rows:
        raise LabelsError(f"{path}: is empty; its first line must name the columns")
    return [cell.strip() for cell in rows[0]], rows[1:]


def _parse(text: str, path: Path) -> Iterator[list[str]]:
    first_line = text.lstrip().partition("\n")[0]
    delimiter = max(DELIMITERS, key=first_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        yield from (row for row in reader if any(cell.strip() for cell in row))
    except csv.Error as error:
        raise LabelsError(
            f"{path}: line {reader.line_num} is not valid CSV ({error}); look for a quote that is not closed"
        ) from error


def _find_columns(header: list[str], file: Labels, study: Study, mask: str | None) -> _Columns:
    labels, masks = columns_of(file, study.task), [] if mask is None else [mask]
    wanted = [file.key, *labels, *([ROLE_COLUMN] if study.patients.roles == "column" else []), *masks]
    if repeated := sorted({name for name in wanted if header.count(name) > 1}):
        raise LabelsError(f"{file.file}: column {', '.join(repeated)} occurs more than once; keep one")
    if missing := [name for name in dict.fromkeys(wanted) if name not in header]:
        raise LabelsError(f"{file.file}: column {', '.join(missing)} is missing. {_shown(header, *labels)}")
    role = header.index(ROLE_COLUMN) if ROLE_COLUMN in wanted else None
    return _Columns(
        key=header.index(file.key),
        labels=tuple(header.index(label) for label in labels),
        role=role,
        mask=None if mask is None else header.index(mask),
        num_columns=len(header),
    )


def _shown(header: list[str], *labels: str) -> str:
    """The columns there are. A first line without any known name may be a patient's row, so it is not shown."""
    known = {name.lower() for name in (*IDENTIFIER_KEYWORDS, *labels, ROLE_COLUMN)}
    if not known & {name.lower() for name in header}:
        return f"Its first line has {len(header)} cells and none is a name known here: is the header line missing?"
    return (
        f"There are: {', '.join(header)}. Rename one in the file, or set labels.key, labels.column, labels.columns or "
        "masks.column in site.toml"
    )
