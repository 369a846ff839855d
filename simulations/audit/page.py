"""``audit.html``, one self-contained page, and the section about it in a run's ``report.html``."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from server.checkpoint import write_atomically
from simulations.audit.findings import Audit, figure
from simulations.audit.inversion import Reconstruction
from simulations.audit.similarity import Picture
from simulations.pages import render

_PLACE = re.compile(r"<!-- audit -->(.*<!-- end of audit -->)?", flags=re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    name: str
    source: str
    similarity: float | None


def write_audit_page(path: Path, audit: Audit, pictures: Sequence[Reconstruction]) -> None:
    """Write the page, whole or not at all. It needs no network and no other file."""
    bounds = [check.findings[0].seen for check in audit.checks if check.name == "one-run"]
    page = render(
        "audit.html.jinja",
        audit=audit,
        bound=bounds[0] if bounds else None,
        alarm=figure(audit.false_alarm),
        number=figure,
        pictures=[
            (attack, [_row(each) for each in pictures if each.attack == attack])
            for attack in dict.fromkeys(each.attack for each in pictures)
        ],
    )
    write_atomically(path, page.encode())


def add_to_report(path: Path, audit: Audit) -> None:
    """Put a section about the audit into a run's report, in place of that of an earlier one."""
    section = render("audit_section.html.jinja", audit=audit)
    marked = f"<!-- audit -->\n{section}<!-- end of audit -->"
    page = path.read_text(encoding="utf-8")
    write_atomically(path, _PLACE.sub(lambda _: marked, page, count=1).encode())


def _row(each: Reconstruction) -> list[_Shown]:
    names = ("original", "unprotected", "protected", "random")
    return [
        _Shown(
            name=name,
            source=_png(getattr(each, name)),
            similarity=None if name == "original" else each.similarity(name),
        )
        for name in names
    ]


def _png(picture: Picture) -> str:
    """The picture as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(np.rint(255.0 * picture).astype(np.uint8)).save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
