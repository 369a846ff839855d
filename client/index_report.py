"""The index as the hospital sees it: a file in the site's state folder, and tables for the terminal.

Both stay at the site. The file names images by path and patients by pseudonym; the tables hold counts only.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from client.dicom_index import Index
from client.private_file import replace_private_file
from client.quality_notes import quality_notes
from client.reasons import LabelProblem, MaskProblem
from client.roles import Role
from client.scanner_rows import scanner_rows
from shared_models.study import Study
from shared_models.tasks.task import MISSING

INDEX_NAME = "index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What an index counted for one study.

    Attributes:
        num_patients: by role.
        num_files: in the images folder.
        num_images: of these, usable.
        unusable_share: of the files.
        smallest_class: training patients of the class that has fewest.
        time: when it was written, UTC.
    """

    num_patients: Mapping[Role, int]
    num_files: int
    num_images: int
    unusable_share: float
    smallest_class: int
    time: datetime


def read_counts(state: Path, study_hash: str) -> Counts | None:
    """The counts of the index in the site's state folder; None where there is none, or it is of another study."""
    path = state / INDEX_NAME
    try:
        time = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        values = json.loads(path.read_text(encoding="ascii"))
        if values["study_hash"] != study_hash:
            return None
        summary = values["summary"]
        return Counts(
            num_patients={role: sum(summary["patients"][role.value].values()) for role in Role},
            num_files=summary["num_files"],
            num_images=summary["num_images"],
            unusable_share=summary["unusable_share"],
            smallest_class=summary["smallest_class"],
            time=time,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it can be made again at any time


def write_index(index: Index, state: Path, *, study: Study) -> Path:
    """Write the index to the site's state folder: whole or not at all, mode 0600. Returns its path."""
    head = {
        "schema": 1,
        "study_hash": study.hash,
        "summary": summary_of(index, study),
        "label_problems": _codes(index.label_problems),
        "finding_problems": {name: _codes(counted) for name, counted in index.finding_problems.items()},
        **({"mask_problems": _codes(index.mask_problems)} if index.task.mask_values else {}),
    }
    images = (
        {
            "path": entry.path,
            "patient": entry.patient,
            "study": entry.study,
            "label": entry.label,
            "role": entry.role.value,
            "has_window": entry.has_window,
            **({"further": entry.further} if entry.further else {}),
        }
        for entry in index.images
    )
    left_out = (
        {"path": file.path, "reason": file.reason.code, "detail": file.detail} for file in index.left_out
    )
    parts = [
        json.dumps(head, indent=1).removesuffix("\n}"),
        _listed("images", images),
        _listed("left_out", left_out),
    ]
    path = state / INDEX_NAME
    replace_private_file(path, (",\n".join(parts) + "\n}\n").encode("ascii"))
    return path


def _listed(name: str, entries: Iterable[Mapping[str, object]]) -> str:
    """A list with a line for each entry: many times as fast as indented JSON, and as readable."""
    lines = ",\n  ".join(json.dumps(entry) for entry in entries)
    return f' "{name}": [\n  {lines}\n ]' if lines else f' "{name}": []'


def summary_of(index: Index, study: Study) -> dict[str, object]:
    """The counts of an index, ready for JSON: what ``collegium-client index --json`` prints."""
    return {
        "num_files": index.num_files,
        "num_images": len(index.images),
        "num_studies": index.num_studies,
        "num_patients_found": index.num_patients_found,
        "num_patients": index.num_patients(),
        "unusable_share": index.unusable_share,
        "patients": {role.value: _by_value(index, role) for role in Role},
        "smallest_class": min(index.num_patients_by_class(Role.TRAIN).values()),
        "labels": {role.value: _by_name(index, role) for role in Role},
        "left_out": index.left_out_counts,
        "scanners": {
            name: {
                "used": tally.num_used,
                "left_out": {reason.code: number for reason, number in tally.left_out.items()},
            }
            for name, tally in index.tally.scanners.items()
        },
        "identifying": {kind.field: number for kind, number in index.tally.kinds.items()},
        "notes": list(quality_notes(index, study)),
    }


def _codes(problems: Mapping[LabelProblem, int] | Mapping[MaskProblem, int]) -> dict[str, int]:
    return {problem.code: number for problem, number in problems.items()}


def _by_value(index: Index, role: Role) -> dict[str, int]:
    """Patients by the number of their label; where a label has several values, all of them in one."""
    if index.task.finding_names:
        return {"all": index.num_patients(role)}
    counts = index.label_counts(role)
    return {str(label): counts[0, label] for label in range(len(index.task.class_names))}


def _by_name(index: Index, role: Role) -> dict[str, object]:
    """Patients by the name of their label; where a label has several values, for each finding."""
    classes, counts = index.task.class_names, index.label_counts(role)
    if not index.task.finding_names:
        return {name: counts[0, label] for label, name in enumerate(classes)}
    values = (*enumerate(classes), (MISSING, "missing"))
    return {
        finding: {name: counts[number, value] for value, name in values}
        for number, finding in enumerate(index.task.finding_names)
    }


def render_index(index: Index, study: Study) -> RenderableType:
    """Return the index as tables: files used, why others are not and what to do, scanners, patients, notes."""
    volumes = f" in {len(index.images)} volumes" if index.num_used_files > len(index.images) else ""
    usable = (
        f"{index.num_used_files} of {index.num_files} files are used{volumes}: "
        f"{index.num_patients()} of {index.num_patients_found} patients, {index.num_studies} studies."
    )
    parts: list[RenderableType] = [Text(usable, style="bold")]
    if index.left_out:
        parts.append(_left_out_table(index))
    if index.label_problems:
        parts.append(_label_table(index))
    if index.mask_problems:
        parts.append(_mask_table(index))
    if index.tally.scanners:
        parts.append(_scanner_table(index))
    parts += _patient_tables(index)
    if index.tally.num_headers:
        parts.append(
            Text(
                f"{index.tally.num_removed} of {index.tally.num_headers} headers say that the patient's identity was "
                f"removed; {index.tally.num_to_remove} hold values that the Basic Profile of DICOM PS3.15 removes."
            )
        )
    parts += [Text(note, style="yellow") for note in quality_notes(index, study)]
    return Group(*parts)


def _left_out_table(index: Index) -> Table:
    table = Table(
        title=f"Left out: {len(index.left_out)} files ({index.unusable_share:.1%})", title_justify="left"
    )
    table.add_column("Files", justify="right")
    table.add_column("Reason")
    table.add_column("Why")
    table.add_column("What to do")
    for reason, number in index.left_out_reasons:
        table.add_row(str(number), reason.code, reason.sentence, reason.remedy)
    return table


def _scanner_table(index: Index) -> Table:
    table = Table(title="By scanner", title_justify="left")
    table.add_column("Scanner")
    for heading in ("Files", "Used"):
        table.add_column(heading, justify="right")
    table.add_column("Main reason against the others")
    for row in scanner_rows(index):
        reason = row.main_reason.code if row.main_reason else ""
        table.add_row(Text(row.name), str(row.num_files), str(row.num_used), reason)
    return table


def _label_table(index: Index) -> Table:
    table = Table(title=f"Labels file: {index.num_label_rows} rows", title_justify="left")
    table.add_column("Number", justify="right")
    table.add_column("What is wrong")
    table.add_column("What to do")
    for problem, number in sorted(index.label_problems.items(), key=lambda item: -item[1]):
        table.add_row(str(number), problem.sentence, problem.remedy)
    return table


def _mask_table(index: Index) -> Table:
    table = Table(title="Masks folder", title_justify="left")
    table.add_column("Files", justify="right")
    table.add_column("What is wrong")
    table.add_column("What to do")
    for problem, number in index.mask_problems.items():
        table.add_row(str(number), problem.sentence, problem.remedy)
    return table


def _patient_tables(index: Index) -> list[Table]:
    if index.task.finding_names:
        return [_patient_table(index, ()), _finding_table(index)]
    if len(index.task.class_names) == 2:
        return [_patient_table(index, index.task.class_names)]
    return [_class_table(index)]


def _patient_table(index: Index, classes: Sequence[str]) -> Table:
    """A row for each role."""
    table = Table(title="Patients used", title_justify="left")
    table.add_column("Role")
    for heading in (*(name.capitalize() for name in classes), "All"):
        table.add_column(heading, justify="right")
    for role in Role:
        counts = index.label_counts(role)
        own = [counts[0, label] for label in range(len(classes))]
        table.add_row(role.value, *(str(count) for count in (*own, index.num_patients(role))))
    return table


def _class_table(index: Index) -> Table:
    """A row for each class."""
    table, counts = _roles_table("Class", "Patients used"), [index.label_counts(role) for role in Role]
    for label, name in enumerate(index.task.class_names):
        table.add_row(name, *(str(of_role[0, label]) for of_role in counts))
    table.add_row("All", *(str(index.num_patients(role)) for role in Role))
    return table


def _finding_table(index: Index) -> Table:
    """A row for each finding or structure: patients with it, without it, those not known; what is wrong."""
    first = "Structure" if index.task.mask_values else "Finding"
    table, counts = (
        _roles_table(first, "Patients with / without / not known"),
        [index.label_counts(role) for role in Role],
    )
    wrong = list(dict.fromkeys(one for counted in index.finding_problems.values() for one in counted))
    for problem in wrong:
        table.add_column(f"Cells {problem.code.removesuffix('-finding')}", justify="right")
    for number, name in enumerate(index.task.finding_names):
        patients = (
            " / ".join(str(of_role[number, value]) for value in (1, 0, MISSING)) for of_role in counts
        )
        problems = (str(index.finding_problems.get(name, {}).get(problem, 0)) for problem in wrong)
        table.add_row(name, *patients, *problems)
    return table


def _roles_table(first: str, title: str) -> Table:
    table = Table(first, title=title, title_justify="left")
    for role in Role:
        table.add_column(role.value.capitalize(), justify="right")
    return table
