"""The index as the hospital sees it: a file in the site's state folder, and tables for the terminal.

Both stay at the site. The file names images by path and patients by pseudonym; the tables hold counts only.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from client.dicom_index import Index
from client.private_file import replace_private_file
from client.quality_notes import quality_notes
from client.roles import Role
from client.scanner_rows import scanner_rows
from shared_models.study import Study

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
            smallest_class=min(summary["patients"][Role.TRAIN.value].values()),
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
        "label_problems": {problem.code: number for problem, number in index.label_problems.items()},
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
        "patients": {
            role.value: {str(label): index.num_patients(role, label) for label in (0, 1)} for role in Role
        },
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
    if index.tally.scanners:
        parts.append(_scanner_table(index))
    parts.append(_patient_table(index))
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


def _patient_table(index: Index) -> Table:
    table = Table(title="Patients used", title_justify="left")
    table.add_column("Role")
    for heading in ("Negative", "Positive", "All"):
        table.add_column(heading, justify="right")
    for role in Role:
        counts = (index.num_patients(role, 0), index.num_patients(role, 1), index.num_patients(role))
        table.add_row(role.value, *(str(count) for count in counts))
    return table
