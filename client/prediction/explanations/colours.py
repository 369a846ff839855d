"""Which colour means what: of maps how much, of contours which structure. Both are told apart by colour-blind eyes."""

from functools import cache

import numpy as np
import numpy.typing as npt

from client.prediction.explanations.attribution import Attribution

Colours = npt.NDArray[np.uint8]

SCALE = "viridis"
"""Of matplotlib: lightness grows evenly, from violet by green to yellow (Smith and van der Walt 2015)."""
MOST_OPAQUE = 0.75
"""Of the colour where a map is at the scale's end; where it is 0 the image is seen as it is."""
SMALLEST_SCALE = 0.5
"""Log odds that the scale ends at, at least: a map that says next to nothing stays as pale as it is."""

STRUCTURES: tuple[tuple[int, int, int], ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
"""In their order in the study; an eighth begins again. Source: Okabe and Ito (2008), "Color universal design"."""


@cache
def colour_table() -> Colours:
    """Return the scale's colours from 0 to its end, shape (256, 3)."""
    from matplotlib import colormaps

    table = colormaps[SCALE](np.arange(256), bytes=True)[:, :3]
    return np.ascontiguousarray(table, dtype=np.uint8)


def scale_end(attribution: Attribution) -> float:
    """Return the log odds at the scale's end: the map's largest value, or `SMALLEST_SCALE` where that is more."""
    return max(attribution.largest, SMALLEST_SCALE)


def structure_colour(number: int) -> tuple[int, int, int]:
    """Return the colour of structure *number*, from 1."""
    return STRUCTURES[(number - 1) % len(STRUCTURES)]
