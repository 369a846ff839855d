"""Planes of numbers and the few brushes that all anatomy is drawn with."""

import functools
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
    """Blur with a Gaussian of *sigma* pixels; the border repeats."""
    rows, columns = picture.shape
    return _kernel(rows, sigma) @ picture @ _kernel(columns, sigma).T


@functools.lru_cache(maxsize=64)
def _kernel(length: int, sigma: float) -> Plane:
    """The blur of a line as a matrix; its rows sum to 1."""
    position = np.arange(length, dtype=np.float32)
    weights = np.exp(-0.5 * ((position[:, None] - position[None, :]) / max(sigma, 1e-3)) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)
