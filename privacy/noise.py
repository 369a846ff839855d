"""Gaussian noise, drawn in float64 from a cryptographic generator."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privacy.randomness import CryptographicGenerator


def noised_sum(
    parts: list[Tensor], *, standard_deviation: float, generator: CryptographicGenerator
) -> list[Tensor]:
    """Return *parts* with independent N(0, standard_deviation²) added to every entry.

    *Guarantee*: where *parts* changes by at most C in L2 norm with one patient, this is the Gaussian mechanism
    with noise multiplier standard_deviation / C, up to float64 arithmetic.

    Args:
        parts: float64 tensors on any device; they are not changed.
        standard_deviation: of each entry, in the units of *parts*.
        generator: the product passes one with a key from the operating system.
    """
    sizes = [part.numel() for part in parts]
    noise = torch.from_numpy(generator.normal(sum(sizes)) * standard_deviation)
    return [
        part + piece.view(part.shape).to(part.device)
        for part, piece in zip(parts, torch.split(noise, sizes), strict=True)
    ]


def noised_counts(
    counts: NDArray[np.int64],
    *,
    units: NDArray[np.int64],
    standard_deviation: float,
    generator: CryptographicGenerator,
) -> NDArray[np.int64]:
    """Return *counts* with an independent rounded Gaussian on every entry.

    Rounding an added Gaussian is post-processing of the Gaussian mechanism on integers.

    Args:
        counts: int64, shape (n,).
        units: of noise on each entry, int64, shape (n,).
        standard_deviation: in these units: entry j gets standard_deviation · units[j].
        generator: the product passes one with a key from the operating system.
    """
    noise = np.rint(generator.normal(counts.size) * standard_deviation * units)
    return counts + noise.astype(np.int64)
