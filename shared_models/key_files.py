"""Files of private keys: OpenSSH's format, plain or encrypted under a passphrase (bcrypt KDF, AES-256-CTR).

Chosen over PKCS #8 because that is encrypted under 2048 iterations of PBKDF2 by the library that we use, which a
guesser of passphrases hardly notices; because the public key stands in the clear, so that a site can be looked at
without its passphrase; and because ``ssh-keygen -p -f FILE`` sets, changes and removes a passphrase.
"""

import base64
import binascii
import os
import re
from pathlib import Path
from typing import TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from shared_models.configuration import ConfigurationError
from shared_models.passphrase import PassphraseOf

KDF_ROUNDS = 64  # half a second on a machine of 2025; OpenSSH's own is 24
MAX_BYTES = 16384
OTHERS = 0o077
MAGIC = b"openssh-key-v1\0"

PrivateKey: TypeAlias = Ed25519PrivateKey | EllipticCurvePrivateKey


class KeyFileError(ConfigurationError):
    """A private key's file cannot be used. The message says why; it never holds any of the file."""


def key_file(private: PrivateKey, passphrase: str | None = None) -> bytes:
    """The OpenSSH file of a private key: encrypted under the passphrase, plain where there is none."""
    encryption: KeySerializationEncryption = NoEncryption()
    if passphrase is not None:
        builder = PrivateFormat.OpenSSH.encryption_builder().kdf_rounds(KDF_ROUNDS)
        encryption = builder.build(passphrase.encode("utf-8"))
    return private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, encryption)


def read_key_file(path: Path) -> bytes:
    """What stands in a private key's file.

    Raises:
        KeyFileError: it is not there, or others may read it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(MAX_BYTES)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if mode & OTHERS:
        raise KeyFileError(f"{path}: others may read this private key; mend it with: chmod 600 {path}")
    return raw


def is_encrypted(raw: bytes) -> bool:
    """Whether a private key's file is encrypted under a passphrase."""
    header = _clear_part(raw)
    return header is not None and header[0] != b"none"


def stated_public_line(raw: bytes) -> str | None:
    """The public key, as one OpenSSH line, that stands in the clear in a private key's OpenSSH file, or None.

    In an encrypted file nothing vouches for it until `open_key` has compared it.
    """
    header = _clear_part(raw)
    return None if header is None else _line_of(header[1])


def open_key(raw: bytes, path: Path, passphrase: PassphraseOf) -> object:
    """The private key in a file, whatever its kind, asking for a passphrase where it needs one.

    Args:
        raw: what stands in the file.
        path: the file, for messages and for whom the passphrase is asked.
        passphrase: called only if the file is encrypted.

    Raises:
        KeyFileError: the file holds no private key, or the passphrase does not open it.
        PassphraseError: there is no passphrase.
    """
    encrypted = is_encrypted(raw)
    secret = passphrase(path).encode("utf-8") if encrypted else None
    try:
        if raw.lstrip().startswith(b"-----BEGIN OPENSSH"):
            private: object = serialization.load_ssh_private_key(raw, secret)
        else:
            private = serialization.load_pem_private_key(raw, secret)
    except UnsupportedAlgorithm as error:
        raise KeyFileError(f"{path}: cannot be opened: {error}") from error
    except (ValueError, TypeError) as error:
        if encrypted:
            raise KeyFileError(f"{path}: the passphrase does not open it (or the file is damaged)") from error
        raise KeyFileError(
            f"{path}: is not an OpenSSH private key; put the key back that `init` made"
        ) from error
    if isinstance(private, Ed25519PrivateKey | EllipticCurvePrivateKey):
        _check_stated(raw, path, private)
    return private


def _check_stated(raw: bytes, path: Path, private: PrivateKey) -> None:
    stated = stated_public_line(raw)
    own = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")
    if stated is not None and stated != own:
        raise KeyFileError(
            f"{path}: states another public key than its own: it was tampered with, or is damaged"
        )


def _clear_part(raw: bytes) -> tuple[bytes, bytes] | None:
    """Cipher and public key (OpenSSH wire format) of an OpenSSH private key file; None if it is no such file."""
    found = re.search(rb"-----BEGIN OPENSSH PRIVATE KEY-----(.*?)-----END", raw, flags=re.DOTALL)
    if not found:
        return None
    try:
        body = base64.b64decode(b"".join(found.group(1).split()), validate=True)
        if not body.startswith(MAGIC):
            return None
        cipher, rest = _string(body[len(MAGIC) :])
        _, rest = _string(rest)
        _, rest = _string(rest)
        public, _ = _string(rest[4:])  # behind the number of keys
    except (ValueError, binascii.Error):
        return None
    return cipher, public


def _string(data: bytes) -> tuple[bytes, bytes]:
    length = int.from_bytes(data[:4], "big")
    if len(data) < 4 + length:
        raise ValueError("ends early")
    return data[4 : 4 + length], data[4 + length :]


def _line_of(public: bytes) -> str | None:
    try:
        kind = _string(public)[0].decode("ascii")
    except ValueError:
        return None
    return f"{kind} {base64.b64encode(public).decode('ascii')}"
