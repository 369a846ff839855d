"""Noise on very many numbers in blocks, each from a generator of its own, so that several threads can make it.

Which thread makes which block has no influence on the numbers, nor has how many there are.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from privacy.randomness import PIECE, CryptographicGenerator

BLOCK = 32 * PIECE
"""Numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Numbers from *begin* to before *end*, and where their randomness comes from."""

    begin: int
    end: int
    generator: CryptographicGenerator


def blocks_of(size: int, generator: CryptographicGenerator) -> list[Block]:
    """Cut *size* numbers into blocks.

    *Guarantee*: a single block has *generator* itself; several have one each, under keys that are 256 bits of
    *generator*'s output each, used for nothing else. So no two blocks share any of their stream, within a call or with
    any other use of *generator*, and together they cannot be told from independent uniform bits.
    """
    if size <= BLOCK:
        return [Block(begin=0, end=size, generator=generator)]
    return [
        Block(begin=begin, end=min(begin + BLOCK, size), generator=generator.child())
        for begin in range(0, size, BLOCK)
    ]


def for_each(blocks: list[Block], work: Callable[[Block], None]) -> None:
    """Do *work* for each block, in as many threads as torch computes with. Raises what any of them raised."""
    num_threads = min(torch.get_num_threads(), len(blocks))
    if num_threads == 1:
        for block in blocks:
            work(block)
        return
    with ThreadPoolExecutor(num_threads, thread_name_prefix="noise") as threads:
        list(threads.map(work, blocks))
