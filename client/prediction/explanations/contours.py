"""Edges of the structures of a mask."""

import numpy as np
import numpy.typing as npt

from client.prediction.reading import Mask


def edge(mask: Mask) -> npt.NDArray[np.bool_]:
    """Return the pixels of a structure that lie beside one of another, or of none; shape of *mask*, (rows, columns).

    The border of the image is no edge.
    """
    padded = np.pad(mask, 1, mode="edge")
    beside = (padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1])
    found: npt.NDArray[np.bool_] = (mask > 0) & np.logical_or.reduce([mask != other for other in beside])
    return found
