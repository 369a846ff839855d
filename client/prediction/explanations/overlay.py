"""An image with the map of what spoke for its reading, or with the contours of its structures."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from client.prediction.explanations.attribution import Attribution
from client.prediction.explanations.colours import MOST_OPAQUE, colour_table, scale_end, structure_colour
from client.prediction.explanations.contours import edge
from client.prediction.explanations.slices import chosen_slice, grey_or_colour
from client.prediction.reading import Mask, Plane, Reading

Kind = TypeVar("Kind", bound=np.generic)
Picture = npt.NDArray[np.uint8]
"""RGB, shape (rows, columns, 3)."""


def overlay(
    reading: Reading, attribution: Attribution | None = None, *, slice_number: int | None = None
) -> Picture:
    """Return the image that entered the model, or one slice of it, with its map and contours, in its own size.

    Args:
        reading: of classification or segmentation.
        attribution: its map, if there is one.
        slice_number: of a volume, from 0; without one `chosen_slice`.

    Returns:
        uint8, shape (rows, columns, 3).
    """
    number = chosen_slice(reading, attribution) if slice_number is None else slice_number
    picture = grey_or_colour(reading, number)
    if attribution is not None:
        picture = coloured(picture, slice_of(attribution.values, number), scale_end(attribution))
    if reading.mask is not None:
        picture = outlined(picture, slice_of(reading.mask, number))
    return picture


def slice_of(values: npt.NDArray[Kind], number: int) -> npt.NDArray[Kind]:
    """Return one slice of a map or mask of a volume; of a plane image all of it."""
    return values[number] if values.ndim == 3 else values


def coloured(picture: Picture, values: Plane, end: float) -> Picture:
    """Return the picture with a map over it: a larger value is further along the scale, and less is seen through it.

    Args:
        picture: RGB.
        values: at least 0, shape (rows, columns).
        end: value at the scale's end.
    """
    share = np.clip(values / end, 0.0, 1.0)
    colours = colour_table()[np.round(share * 255.0).astype(np.uint8)]
    opaque = (MOST_OPAQUE * share)[..., None]
    mixed: Picture = np.round(picture * (1.0 - opaque) + colours * opaque).astype(np.uint8)
    return mixed


def outlined(picture: Picture, mask: Mask) -> Picture:
    """Return the picture with the edge of each structure in its colour."""
    found, edges = picture.copy(), edge(mask)
    for number in np.unique(mask[edges]):
        found[edges & (mask == number)] = structure_colour(int(number))
    return found
