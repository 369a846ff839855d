"""Public-key sealing of bundles between two sites, and the sealing of escrows.

HPKE (RFC 9180) in base mode with the hybrid of ML-KEM-768 and X25519: traffic that is stored today stays closed even
if one of the two is broken. Who sealed is shown by a signature over the ciphertext, not by HPKE.
"""

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from privacy.secure_aggregation.refusals import Malformed

_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_PROBE: Final = X25519PrivateKey.generate()
_MLKEM_BYTES: Final = 1184
PUBLIC_KEY_BYTES: Final = _MLKEM_BYTES + 32
TAG_BYTES: Final = 16
SEALED_BYTES: Final = 1120 + TAG_BYTES
"""By how much a sealed bundle is longer than its plaintext."""


class SealingKey:
    """The private half of a site's key pair for one batch. It is in this process's memory only."""

    def __init__(self) -> None:
        mlkem, x25519 = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
        self._private: MLKEM768X25519PrivateKey | None = MLKEM768X25519PrivateKey(mlkem, x25519)
        self.public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()

    def open(self, sealed: bytes, info: bytes) -> bytes:
        """Return the plaintext. Raises Malformed where it was not sealed for this key and *info*."""
        if self._private is None:
            raise RuntimeError("the sealing key was erased")
        try:
            return _SUITE.decrypt(sealed, self._private, info)
        except (InvalidTag, ValueError) as error:
            raise Malformed("a bundle does not open") from error

    def erase(self) -> None:
        """Drop the private key."""
        self._private = None


def seal(plaintext: bytes, public_key: bytes, info: bytes) -> bytes:
    """Seal for the holder of *public_key*; opens only under the same *info*. Raises Malformed: not a key."""
    return _SUITE.encrypt(plaintext, read_public_key(public_key), info)


def read_public_key(raw: bytes) -> MLKEM768X25519PublicKey:
    """Return the key that *raw* encodes. Raises Malformed."""
    if len(raw) != PUBLIC_KEY_BYTES:
        raise Malformed(f"a sealing key has {len(raw)} bytes, it must have {PUBLIC_KEY_BYTES}")
    try:
        mlkem = MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM_BYTES])
        x25519 = X25519PublicKey.from_public_bytes(raw[_MLKEM_BYTES:])
        _PROBE.exchange(x25519)  # refuses points of low order, with which sealing would fail later
    except ValueError as error:
        raise Malformed("a sealing key is none") from error
    return MLKEM768X25519PublicKey(mlkem, x25519)


def seal_escrow(plaintext: bytes, key: bytes) -> bytes:
    """AES-256-GCM under a key that is used for this one message: the nonce is zero."""
    return AESGCM(key).encrypt(bytes(12), plaintext, None)


def open_escrow(sealed: bytes, key: bytes) -> bytes:
    """Return the plaintext. Raises Malformed where it was not sealed under *key*."""
    try:
        return AESGCM(key).decrypt(bytes(12), sealed, None)
    except InvalidTag as error:
        raise Malformed("an escrow does not open") from error
