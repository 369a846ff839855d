"""Gaussian noise, drawn in float64 from a cryptographic generator."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privacy.noise_blocks import Block, blocks_of, for_each
from privacy.randomness import PIECE, CryptographicGenerator


def noised_sum(
    parts: list[Tensor], *, standard_deviation: float, generator: CryptographicGenerator
) -> list[Tensor]:
    """Add independent N(0, standard_deviation²) to every entry of *parts*, in place, and return them.

    *Guarantee*: where *parts* changes by at most C in L2 norm with one patient, this is the Gaussian mechanism
    with noise multiplier standard_deviation / C, up to float64 arithmetic. Noise is drawn and added in float64; a
    noised entry is then rounded where *parts* are float32, which is post-processing.

    Args:
        parts: contiguous tensors, float64 or float32, all on one device.
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
    flat = [part.view(-1) for part in parts]

    def add(block: Block) -> None:
        left = block.end - block.begin
        room = torch.empty(min(PIECE, left), dtype=torch.float64)
        drawn = room[:0]
        for here in _between(flat, block.begin, block.end):
            rest = here
            while len(rest):
                if not len(drawn):
                    drawn = room[:left]
                    block.generator.normal_into(drawn)
                num = min(len(drawn), len(rest))
                some = rest[:num]
                some.copy_(some.double().add_(drawn[:num], alpha=standard_deviation))
                rest, drawn, left = rest[num:], drawn[num:], left - num

    for_each(blocks_of(sum(map(len, flat)), generator), add)


def _between(flat: list[Tensor], begin: int, end: int) -> Iterator[Tensor]:
    """The numbers from *begin* to before *end*, counted over all parts, in the parts that they are in."""
    for part in flat:
        if end > 0 and begin < len(part):
            yield part[max(0, begin) : end]
        begin, end = begin - len(part), end - len(part)


def _add_on_device(parts: list[Tensor], standard_deviation: float, generator: CryptographicGenerator) -> None:
    """One copy of uniform bits to the device, which makes of them what `CryptographicGenerator.normal_into` would."""
    sizes = [part.numel() for part in parts]
    num = sum(sizes)
    words = torch.empty(num + num % 2, dtype=torch.int64, pin_memory=parts[0].device.type == "cuda")

    def draw(block: Block) -> None:
        odd = (block.end - block.begin) % 2  # of the last block only
        drawn = block.generator.words(block.end - block.begin + odd)
        words[block.begin : block.end + odd] = torch.from_numpy(drawn)

    for_each(blocks_of(num, generator), draw)
    there = words.to(parts[0].device, non_blocking=True)
    whole = len(there) // PIECE * PIECE
    noise = torch.cat([_normal(there[:whole].view(-1, 2, PIECE // 2)), _normal(there[whole:].view(1, 2, -1))])
    for part, piece in zip(parts, torch.split(noise[:num], sizes), strict=True):
        part.add_(piece.view(part.shape), alpha=standard_deviation)


def _normal(words: Tensor) -> Tensor:
    """Box and Muller (1958) in float64, of words of 64 bits, shape (n, 2, m): those of lengths, those of angles."""
    uniform = (words.bitwise_right_shift(11) & (2**53 - 1)).double() * 2.0**-53
    lengths = torch.sqrt(-2.0 * torch.log(1.0 - uniform[:, 0]))
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
    noise = generator.normal(counts.size)
    noise *= standard_deviation
    noise *= units
    return counts + np.rint(noise, out=noise).astype(np.int64)
