"""From the values of a mask to the numbers of a study's structures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from client.dicom_file import Unusable
from client.reasons import Reason

MaskValues: TypeAlias = tuple[tuple[int, ...], ...]
"""Of each structure of a study: the values of a mask that mean it; without any, all above 0."""

WHOLE: MaskValues = ((),)
"""One structure: whatever is above 0."""

Classes: TypeAlias = npt.NDArray[np.uint8]
"""0 where no structure is, k where the study's k-th is, counted from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskWanted:
    """The mask of an image: its file, None where it is stated that nothing is there; and the study's structures."""

    path: Path | None = field(repr=False)
    structures: MaskValues


def with_mask(plane: npt.NDArray[np.float32], classes: Classes) -> npt.NDArray[np.float32]:
    """The image with its mask as one more channel at the end: the numbers of the structures."""
    return np.concatenate([plane, classes.astype(np.float32)])


def present(classes: npt.NDArray[np.generic], structures: MaskValues) -> tuple[int, ...]:
    """For each structure 1 where some of it is in a prepared mask, else 0."""
    there = set(np.unique(classes).tolist())
    return tuple(int(number in there) for number in range(1, len(structures) + 1))


def classes_of(values: npt.NDArray[np.generic], structures: MaskValues) -> Classes:
    """Return the structure of each value. Values that the study does not name are background.

    Args:
        values: numbers of any type; those with a fraction count as the nearest whole number where a study names values.
        structures: the study's.

    Raises:
        Unusable: something is above 0, and nothing of it is named.
    """
    classes = np.zeros(values.shape, dtype=np.uint8)
    for number, named in enumerate(structures, start=1):
        inside = np.isin(np.rint(values.astype(np.float64)), named) if named else values > 0  # type: ignore[operator]
        classes[inside] = number
    if not classes.any() and bool((values > 0).any()):  # type: ignore[operator]
        raise Unusable(Reason.MASK_OTHER_VALUES)
    return classes


def structure_of(value: int, structures: MaskValues) -> int:
    """Return the number of the structure that a value above 0 means, 0 where none."""
    for number, named in enumerate(structures, start=1):
        if not named or value in named:
            return number
    return 0
