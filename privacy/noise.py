"""Gaussian noise, drawn in float64 from a cryptographic generator."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privacy.randomness import CryptographicGenerator

_PIECE = 16384
"""Numbers drawn at a time: they stay in the processor's cache until they are added. `normal` makes them so, too."""


def noised_sum(
    parts: list[Tensor], *, standard_deviation: float, generator: CryptographicGenerator
) -> list[Tensor]:
    """Add independent N(0, standard_deviation²) to every entry of *parts*, in place, and return them.

    *Guarantee*: where *parts* changes by at most C in L2 norm with one patient, this is the Gaussian mechanism
    with noise multiplier standard_deviation / C, up to float64 arithmetic.

    Args:
        parts: contiguous float64 tensors, all on one device.
        standard_deviation: of each entry, in the units of *parts*.
        generator: the product passes one with a key from the operating system.
    """
    if parts[0].device.type == "cpu":
        _add_on_processor(parts, standard_deviation, generator)
    else:
        _add_on_device(parts, standard_deviation, generator)
    return parts


def _add_on_processor(
    parts: list[Tensor], standard_deviation: float, generator: CryptographicGenerator
) -> None:
    """Piece by piece, so that the noise is never in memory as a whole."""
    left = sum(part.numel() for part in parts)
    drawn = torch.empty(0)
    for part in parts:
        rest = part.view(-1)
        while len(rest):
            if not len(drawn):
                drawn = torch.from_numpy(generator.normal(min(_PIECE, left)))
            num = min(len(drawn), len(rest))
            rest[:num].add_(drawn[:num], alpha=standard_deviation)
            rest, drawn, left = rest[num:], drawn[num:], left - num


def _add_on_device(parts: list[Tensor], standard_deviation: float, generator: CryptographicGenerator) -> None:
    """One copy of uniform bits to the device, which makes of them what `CryptographicGenerator.normal` would."""
    sizes = [part.numel() for part in parts]
    num = sum(sizes)
    even = num + num % 2
    words = torch.from_numpy(generator.words(even)).to(parts[0].device)
    whole = even // _PIECE * _PIECE
    noise = torch.cat(
        [_normal(words[:whole].view(-1, 2, _PIECE // 2)), _normal(words[whole:].view(1, 2, -1))]
    )
    for part, piece in zip(parts, torch.split(noise[:num], sizes), strict=True):
        part.add_(piece.view(part.shape), alpha=standard_deviation)


def _normal(words: Tensor) -> Tensor:
    """Box and Muller (1958) in float64, of words of 64 bits, shape (n, 2, m): those of lengths, those of angles."""
    uniform = (words.bitwise_right_shift(11) & (2**53 - 1)).double() * 2.0**-53
    lengths = torch.sqrt(-2.0 * torch.log1p(-uniform[:, 0]))
    angles = 2.0 * math.pi * uniform[:, 1]
    return torch.stack((lengths * torch.cos(angles), lengths * torch.sin(angles)), 1).flatten()


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
        units: of noise on each entry, int64, shape (n,), or (1,) where all are alike.
        standard_deviation: in these units: entry j gets standard_deviation · units[j].
        generator: the product passes one with a key from the operating system.
    """
    noise = np.rint(generator.normal(counts.size) * standard_deviation * units)
    return counts + noise.astype(np.int64)
