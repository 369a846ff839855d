"""Noise and sampling from a cryptographic generator, never from torch's or NumPy's global state."""

import os
from typing import Self

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
_CHUNK = 8192
"""Numbers made at a time: they stay in the processor's cache, and torch computes them with one thread."""
_ZEROS = bytes(8 * _CHUNK)


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
        self._words = bytearray(8 * _CHUNK + 15)  # of a stream cipher the library wants a block of room

    @classmethod
    def from_operating_system(cls) -> Self:
        """Return a generator with a fresh key from the operating system: the product's choice."""
        return cls(os.urandom(32))

    def uniform(self, size: int) -> Doubles:
        """Return *size* numbers of [0, 1), float64, each a multiple of 2^-53."""
        numbers = np.empty(size)
        for begin in range(0, size, _CHUNK):
            self._fill(numbers[begin : begin + _CHUNK])
        return numbers

    def words(self, size: int) -> NDArray[np.int64]:
        """Return *size* uniform words of 64 bits, of which `uniform` takes the upper 53 each."""
        words = np.empty(8 * size + 15, dtype=np.uint8)
        for begin in range(0, size, _CHUNK):
            count = min(_CHUNK, size - begin)
            self._stream.update_into(_ZEROS[: 8 * count], words.data[8 * begin : 8 * (begin + count) + 15])
        return words[: 8 * size].view("<i8")

    def normal(self, size: int) -> Doubles:
        """Return *size* standard normal numbers, float64.

        Of each 16,384 numbers, or as many as are left, with one more if they are odd, the first half is r · cos a and
        the second r · sin a; the uniform numbers behind all r come before those behind all a.

        Source: Box and Muller (1958). In float64; the largest possible value is about 8.6.
        """
        numbers = np.empty(size + size % 2)
        radius, angle = np.empty(_CHUNK), np.empty(_CHUNK)
        for begin in range(0, len(numbers), 2 * _CHUNK):
            half = min(_CHUNK, (len(numbers) - begin) // 2)
            self._fill(radius[:half])
            self._fill(angle[:half])
            lengths = np.negative(radius[:half], out=radius[:half])
            np.log1p(lengths, out=lengths)
            np.multiply(lengths, -2.0, out=lengths)
            np.sqrt(lengths, out=lengths)
            angles = torch.from_numpy(angle[:half]).mul_(2.0 * np.pi)
            pair = torch.from_numpy(numbers[begin : begin + 2 * half]).view(2, half)
            torch.cos(angles, out=pair[0])
            torch.sin(angles, out=pair[1])
            pair.mul_(torch.from_numpy(lengths))  # NumPy's sine and cosine are several times slower
        return numbers[:size]

    def _fill(self, numbers: Doubles) -> None:
        """Write uniform numbers, at most a chunk of them."""
        size = numbers.size
        self._stream.update_into(_ZEROS[: 8 * size], self._words)
        words = np.frombuffer(self._words, dtype="<u8", count=size)
        np.multiply(words >> np.uint64(11), 2.0**-53, out=numbers)

    def integers(self, bounds: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return one number of 0..bound−1 for each bound, int64; bounds are at least 1 and below 2^31.

        The bias is below 2^-22 for each.
        """
        return np.minimum((self.uniform(bounds.size) * bounds).astype(np.int64), bounds - 1)
