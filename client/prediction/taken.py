"""An input on its way to the model: read and prepared, or left out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from client.dicom_file import Unusable
from client.prediction.foreign_files import seems_to_be
from client.prediction.inputs import Input
from client.prediction.reading import Plane, Unread
from client.prediction.refusals import OVERRIDABLE
from client.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Taken:
    """One image or volume; the attributes are those of `client.prediction.reading.Reading`."""

    name: str = field(repr=False)
    files: tuple[Path, ...] = field(repr=False)
    frame: int | None = None
    identifiers: Mapping[str, str] = field(repr=False)
    plane: Plane = field(repr=False)
    spacing: tuple[float, ...] | None
    overrides: tuple[str, ...]


Found: TypeAlias = Taken | Unread


def left_out(one: Input, found: Unusable, *, num_files: int = 1) -> Unread:
    """The input with why it is left out."""
    sentence = str(found)
    if found.reason is Reason.NOT_DICOM:
        sentence = f"{sentence} {seems_to_be(one.path)}".rstrip()
    return Unread(
        name=one.name,
        code=found.reason.code,
        sentence=sentence,
        can_be_overridden=found.reason in OVERRIDABLE,
        num_files=num_files,
    )
