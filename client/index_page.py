"""``index.html``: what the site makes of its images, for whoever looks after them. It never leaves the site.

One page without network, script or other file. There are counts, names of scanners and classes, and a few prepared
images in small; no name, identifier, date, pseudonym or path of a file.
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path

from client.basic_profile import Kind
from client.dicom_index import Index
from client.pages import render
from client.private_file import replace_private_file
from client.quality_notes import quality_notes
from client.reasons import LabelProblem
from client.roles import Role
from client.scanner_rows import scanner_rows
from client.thumbnails import Thumbnail
from shared_models.study import Study
from shared_models.visible_text import visible

PAGE_NAME = "index.html"
MOST_SIZES = 8


def write_page(
    path: Path,
    index: Index,
    study: Study,
    *,
    site: str,
    refusals: Sequence[str],
    pictures: Sequence[Thumbnail],
    now: datetime,
) -> None:
    """Write the page, whole or not at all, mode 0600.

    Args:
        path: where.
        index: what was found.
        study: what was wanted.
        site: name of the hospital.
        refusals: why it would not train, of `client.data_floor.floor_refusals`.
        pictures: images in small.
        now: UTC.

    Raises:
        OSError: it cannot be written.
    """
    sizes = [(f"{rows} × {columns}", number) for (rows, columns), number in index.tally.sizes.items()]
    spacings = [
        (f"{pixel[0]:g} × {pixel[1]:g} mm" if pixel else "not stated", number)
        for pixel, number in index.tally.spacings.items()
    ]
    scanners = scanner_rows(index)
    page = render(
        "index.html.jinja",
        site=site,
        title=visible(study.title),
        study_hash=study.hash,
        now=now,
        index=index,
        tally=index.tally,
        refusals=refusals,
        notes=quality_notes(index, study),
        scanners=scanners,
        num_unnamed=index.num_files - sum(row.num_files for row in scanners),
        roles=list(Role),
        classes=_by_class(index),
        problems=sorted(index.label_problems.items(), key=_by_number),
        finding_problems=[
            (name, problem, number)
            for name, counted in index.finding_problems.items()
            for problem, number in sorted(counted.items(), key=_by_number)
        ],
        mask_problems=list(index.mask_problems.items()),
        kinds=[(kind, index.tally.kinds.get(kind, 0)) for kind in Kind],
        measures={"rows × columns": _largest(sizes), "size of a pixel": _largest(spacings)},
        groups=[(name, list(group)) for name, group in groupby(pictures, key=lambda each: each.class_name)],
    )
    replace_private_file(path, page.encode("utf-8"))


def _by_class(index: Index) -> list[tuple[str, list[int]]]:
    """Patients of each class, or of each value of a finding: in each role, and in all."""
    columns = [index.num_patients_by_class(role) for role in (*Role, None)]
    return [(name, [column[name] for column in columns]) for name in columns[0]]


def _largest(counts: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Those with most files, and all others together."""
    found = sorted(counts, key=lambda item: (-item[1], item[0]))
    rest = sum(number for _, number in found[MOST_SIZES:])
    return [*found[:MOST_SIZES], *([("others", rest)] if rest else [])]


def _by_number(item: tuple[LabelProblem, int]) -> tuple[int, str]:
    return -item[1], item[0].code
