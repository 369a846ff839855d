"""Which slices of a volume are shown."""

import numpy as np
import numpy.typing as npt

from client.prediction.explanations.attribution import Attribution
from client.prediction.reading import Reading


def num_slices(reading: Reading) -> int:
    """Of a volume; 1 of a plane image."""
    return reading.prepared.shape[1] if reading.prepared.ndim == 4 else 1


def chosen_slice(reading: Reading, attribution: Attribution | None = None) -> int:
    """Return the slice to look at first, from 0: that of the map's maximum, else of most marks, else the middle."""
    if reading.prepared.ndim < 4:
        return 0
    if attribution is not None and attribution.largest > 0.0:
        return int(attribution.values.max(axis=(1, 2)).argmax())
    if reading.mask is not None and reading.mask.any():
        return int((reading.mask > 0).sum(axis=(1, 2)).argmax())
    return num_slices(reading) // 2


def neighbours(number: int, of: int, *, most: int) -> tuple[int, ...]:
    """Return up to *most* slices around one of *of*, it among them, each as far from the next.

    They span about a third of the volume.
    """
    step = max(1, of // (3 * most))
    places = range(number % step, of, step)
    first = min(max(0, number // step - most // 2), max(0, len(places) - most))
    return tuple(places[first : first + most])


def grey_or_colour(reading: Reading, number: int) -> npt.NDArray[np.uint8]:
    """Return one slice, or the image, as uint8 of shape (rows, columns, 3)."""
    plane = reading.prepared[:, number] if reading.prepared.ndim == 4 else reading.prepared
    levels = np.round(np.clip(plane, 0.0, 1.0) * 255.0).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(np.broadcast_to(levels, (3, *levels.shape[1:])), 0, -1))
