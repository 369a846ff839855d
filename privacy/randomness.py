"""Noise and sampling from a cryptographic generator, never from torch's or NumPy's global state."""

import os
from typing import Self

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


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

    @classmethod
    def from_operating_system(cls) -> Self:
        """Return a generator with a fresh key from the operating system: the product's choice."""
        return cls(os.urandom(32))

    def uniform(self, size: int) -> Doubles:
        """Return *size* numbers of [0, 1), float64, each a multiple of 2^-53."""
        words = np.frombuffer(self._stream.update(bytes(8 * size)), dtype="<u8")
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(self, size: int) -> Doubles:
        """Return *size* standard normal numbers, float64.

        Source: Box and Muller (1958). In float64; the largest possible value is about 8.6.
        """
        half = (size + 1) // 2
        radius = np.sqrt(-2.0 * np.log1p(-self.uniform(half)))
        angle = 2.0 * np.pi * self.uniform(half)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]

    def integers(self, bounds: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return one number of 0..bound−1 for each bound, int64; bounds are at least 1 and below 2^31.

        The bias is below 2^-22 for each.
        """
        return np.minimum((self.uniform(bounds.size) * bounds).astype(np.int64), bounds - 1)
