"""How much of an image a model marked, structure by structure."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from client.prediction.reading import Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Of one structure: points of the model's grid, and what they are in mm², of a volume in ml.

    The second is None where the file does not say how large its pixels are.
    """

    num_points: int
    amount: float | None


def unit_of(num_axes: int) -> str:
    """Of `Size.amount`, for images of so many axes."""
    return "ml" if num_axes == 3 else "mm2"


def sizes_of(reading: Reading, names: Sequence[str]) -> dict[str, Size]:
    """By structure; empty where nothing was to be marked."""
    if reading.mask is None:
        return {}
    counts = np.bincount(reading.mask.ravel(), minlength=len(names) + 1)
    point = None if reading.spacing is None else prod(reading.spacing)
    if point is not None and reading.mask.ndim == 3:
        point /= 1000.0
    return {
        name: Size(num_points=int(count), amount=None if point is None else float(count * point))
        for name, count in zip(names, counts[1:], strict=True)
    }
