"""Keys from secrets, and mask streams added to vectors in place.

A mask is the AES-256-CTR stream of a key that is used once, counter from zero, read as little-endian uint32. Its key
is derived from a seed together with everything that the round is about, so that the same seed can never mask two
different things with one stream.
"""

from typing import Final

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from privacy.secure_aggregation.encoding import Field, statement

Vector = NDArray[np.uint32]

KEY_BYTES: Final = 32
BLOCK_ENTRIES: Final = 1 << 18
"""Entries that are masked at once: one MiB, which stays in the processor's cache."""
_ZEROS: Final = bytes(4 * BLOCK_ENTRIES)
_SLACK: Final = 15  # update_into wants room for one more block of the cipher, less one byte


def derive(secret: bytes, label: str, *fields: Field) -> bytes:
    """Return 32 bytes that are bound to *label* and *fields*. Source: HKDF with SHA-256, RFC 5869, without salt."""
    return HKDF(
        algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=statement(label, *fields)
    ).derive(secret)


def add_mask(vector: Vector, key: bytes) -> None:
    """Add the mask of *key* to *vector*, in place, modulo 2^32."""
    _apply(vector, key, np.add)


def subtract_mask(vector: Vector, key: bytes) -> None:
    """Subtract the mask of *key* from *vector*, in place, modulo 2^32."""
    _apply(vector, key, np.subtract)


def _apply(vector: Vector, key: bytes, operation: np.ufunc) -> None:
    if vector.dtype != np.uint32 or vector.ndim != 1:
        raise ValueError(f"a masked vector is one row of uint32, not {vector.dtype} of shape {vector.shape}")
    stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    buffer = bytearray(4 * min(BLOCK_ENTRIES, vector.size) + _SLACK)
    zeros = memoryview(_ZEROS)
    for start in range(0, vector.size, BLOCK_ENTRIES):
        block = vector[start : start + BLOCK_ENTRIES]
        stream.update_into(zeros[: 4 * block.size], buffer)
        mask = np.frombuffer(buffer, dtype="<u4", count=block.size)
        operation(block, mask, out=block)
