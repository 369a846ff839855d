"""What a model says of one image or one series (`Reading`), and an input of which it says nothing (`Unread`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Plane: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class PointReading:
    """One operating point of one output: whether the score reaches its threshold."""

    output: str
    name: str
    threshold: float
    reached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far several models differ in one output: standard deviation over them, lowest and highest probability."""

    deviation: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """What a model, or the mean of several, says of one image or one series.

    Attributes:
        name: of the input: the path of its file as given, or below the folder that was given; of a series that of its
            first file.
        files: one of an image; of a volume all slices that were used, in the order of their paths.
        frame: which frame of the file was taken, from 0; None of an image of one frame and of volumes.
        patient: a number from 1 on that images of one patient share, in this call only; 0 where the file names nobody.
        identifiers: PatientID, StudyInstanceUID, SeriesInstanceUID, SOPInstanceUID and AccessionNumber of the first
            file, empty where it has none.
        prepared: float32, shape (channels, *shape) in [0, 1]: what entered the model.
        spacing: mm between neighbouring points of ``prepared`` along each axis of its shape; None where not known.
        probabilities: by output, in the order of the card's outputs. Of segmentation that of each structure, which is
            the highest of any point; the background has none.
        points: the operating points of the study's evaluation; empty of several models and of segmentation.
        statements: by output, what the study's test showed of such a score; without those of which it shows too little.
        mask: uint8, shape of ``prepared`` without its channels: 0 is nothing, n is structure n; None of classification.
        overrides: sentences: for what the input would have been refused, had nobody said otherwise.
        spreads: by output, where there are several models; else empty.
    """

    name: str
    files: tuple[Path, ...]
    frame: int | None = None
    patient: int = 0
    identifiers: Mapping[str, str] = field(default_factory=dict, repr=False)
    prepared: Plane = field(repr=False)
    spacing: tuple[float, ...] | None = None
    probabilities: Mapping[str, float]
    points: tuple[PointReading, ...] = ()
    statements: Mapping[str, str] = field(default_factory=dict)
    mask: Mask | None = field(default=None, repr=False)
    overrides: tuple[str, ...] = ()
    spreads: Mapping[str, Spread] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """An input that gave no reading.

    Attributes:
        name: as of `Reading`; of a series that was left out as a whole, that of its first file.
        code: of the reason, as in `client.reasons`.
        sentence: why, without anything that names a patient.
        can_be_overridden: whether ``--override`` of this code could let it through.
        num_files: how many files it is; more than one of a series.
    """

    name: str
    code: str
    sentence: str
    can_be_overridden: bool = False
    num_files: int = 1


class Writer(Protocol):
    """Takes what was read, one after the other, and is told when there is no more."""

    def write(self, reading: Reading) -> None:
        """Take one reading."""
        ...

    def left_out(self, unread: Unread) -> None:
        """Take an input that gave none."""
        ...

    def finish(self) -> None:
        """Write what is left to be written."""
        ...
