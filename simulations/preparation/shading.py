"""Planes of numbers and the few brushes that all anatomy is drawn with."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.floating[Any]]
"""float32, shape (rows, columns), or a shape that broadcasts to it."""


def step(value: Plane) -> Plane:
    """A soft edge from 0 to 1."""
    edge: Plane = 0.5 + 0.5 * np.tanh(0.5 * value)
    return edge


def bump(dx: Plane, dy: Plane) -> Plane:
    """A round hill of height 1 and radius about 1, at distance (dx, dy) from its centre."""
    hill: Plane = np.exp(-1.1 * (dx * dx + dy * dy))
    return hill


def cloud(generator: np.random.Generator, rows: int, columns: int) -> Plane:
    """Blurred noise of mean 0 and standard deviation 1, its grain growing with the picture."""
    noise = generator.standard_normal((rows, columns), dtype=np.float32)
    smooth = blur(noise, 0.03 * max(rows, columns)) + 0.5 * blur(noise, 0.012 * max(rows, columns))
    return np.asarray((smooth - smooth.mean()) / (smooth.std() + 1e-6), dtype=np.float32)


def blur(picture: Plane, sigma: float) -> Plane:
    """Blur with a Gaussian of *sigma* pixels; the border repeats.

    Taps are summed in a fixed order, without a matrix library: the result does not depend on its threads.
    """
    return _blur_rows(_blur_rows(picture, sigma).T, sigma).T


def _blur_rows(picture: Plane, sigma: float) -> Plane:
    reach, length = math.ceil(2.5 * sigma), picture.shape[1]
    padded = np.pad(picture, ((0, 0), (reach, reach)), mode="edge")
    weights = [math.exp(-0.5 * (tap / max(sigma, 1e-3)) ** 2) for tap in range(-reach, reach + 1)]
    blurred: Plane = np.zeros_like(picture)
    for start, weight in enumerate(weights):
        blurred += weight / sum(weights) * padded[:, start : start + length]
    return blurred
