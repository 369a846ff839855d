"""Noise and sampling from a cryptographic generator, never from torch's or NumPy's global state."""

import math
import os
from typing import Self

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

Doubles = NDArray[np.float64]
PIECE = 32768
"""Numbers made at a time: few enough to stay in the processor's cache, enough to outweigh the calls."""
_ZEROS = bytes(8 * PIECE)
_SPACING = 2.0**-53


class CryptographicGenerator:
    """A stream of AES-256-CTR read as random numbers.

    *Guarantee*: with a key from the operating system, outputs cannot be told from independent uniform bits
    without the key. The key is in this process's memory only and is never derived from a message.

    Args:
        key: 32 bytes, used for this generator alone.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError(f"the key has {len(key)} bytes, it must have 32")
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._words = bytearray(8 * PIECE + 15)  # of a stream cipher the library wants a block of room

    @classmethod
    def from_operating_system(cls) -> Self:
        """Return a generator with a fresh key from the operating system: the product's choice."""
        return cls(os.urandom(32))

    def child(self) -> "CryptographicGenerator":
        """Return a generator of its own, under a key that is the next 256 bits of this one."""
        return type(self)(self.words(4).tobytes())

    def uniform(self, size: int) -> Doubles:
        """Return *size* numbers of [0, 1), float64, each a multiple of 2^-53."""
        numbers = np.empty(size)
        for begin in range(0, size, PIECE):
            part = numbers[begin : begin + PIECE]
            np.copyto(part, self._next(part.size))
            part *= _SPACING
        return numbers

    def words(self, size: int) -> NDArray[np.int64]:
        """Return *size* uniform words of 64 bits, of which `uniform` takes the upper 53 each."""
        words = np.empty(8 * size + 15, dtype=np.uint8)
        for begin in range(0, size, PIECE):
            count = min(PIECE, size - begin)
            self._stream.update_into(_ZEROS[: 8 * count], words.data[8 * begin : 8 * (begin + count) + 15])
        return words[: 8 * size].view("<i8")

    def normal(self, size: int) -> Doubles:
        """Return *size* standard normal numbers, float64, as `normal_into` makes them."""
        numbers = torch.empty(size, dtype=torch.float64)
        self.normal_into(numbers)
        return numbers.numpy()

    def normal_into(self, numbers: Tensor) -> None:
        """Fill *numbers*, float64, shape (n,), contiguous, on the processor, with standard normal numbers.

        Of each `PIECE`, or as many as are left, with one more if they are odd, the first half is r · cos a and the
        second r · sin a; the uniform numbers behind all r come before those behind all a.

        Source: Box and Muller (1958). In float64; the largest possible value is about 8.6.
        """
        for part in torch.split(numbers, PIECE):
            if len(part) % 2:
                even = torch.empty(len(part) + 1, dtype=torch.float64)
                self._fill_with_pairs(even)
                part.copy_(even[:-1])
            else:
                self._fill_with_pairs(part)

    def _fill_with_pairs(self, numbers: Tensor) -> None:
        """Fill an even number of them, a piece at most.

        With a uniform number u = k · 2^-53 the difference 1 - u is exact. All is torch's between the uniform numbers
        and the end: after a call of NumPy's its sine and cosine have taken three times as long.
        """
        numbers.copy_(torch.from_numpy(self._next(len(numbers))))
        pairs = numbers.view(2, -1)
        first, angles = pairs.unbind(0)
        lengths = torch.rsub(first, 1.0, alpha=_SPACING).log_().mul_(-2.0).sqrt_()
        angles.mul_(2.0 * math.pi * _SPACING)
        torch.cos(angles, out=first)
        angles.sin_()
        pairs.mul_(lengths)

    def _next(self, size: int) -> NDArray[np.int64]:
        """The next *size* uniform numbers, a piece at most, in units of 2^-53; good until the next call."""
        self._stream.update_into(_ZEROS if size == PIECE else _ZEROS[: 8 * size], self._words)
        words: NDArray[np.uint64] = np.frombuffer(self._words, dtype="<u8", count=size)
        return np.right_shift(words, np.uint64(11), out=words).view("<i8")

    def integers(self, bounds: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return one number of 0..bound−1 for each bound, int64; bounds are at least 1 and below 2^31.

        The bias is below 2^-22 for each.
        """
        return np.minimum((self.uniform(bounds.size) * bounds).astype(np.int64), bounds - 1)
