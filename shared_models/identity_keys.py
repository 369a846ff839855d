"""Identity keys: the Ed25519 keys with which sites sign, and the root key with which the consortium signs its roster.

A private key never leaves the machine that made it. A public key travels as one OpenSSH line. People compare
fingerprints over another channel, such as the telephone.
"""

import base64
import binascii
import hashlib
from pathlib import Path
from typing import Annotated, TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import AfterValidator

from shared_models.configuration import ConfigurationError
from shared_models.key_files import (
    KeyFileError,
    is_encrypted,
    key_file,
    open_key,
    read_key_file,
    stated_public_line,
)
from shared_models.passphrase import PassphraseOf, passphrase_of

MAX_PUBLIC_CHARACTERS = 4096
SIGNATURE_BYTES = 64


class IdentityKeyError(ConfigurationError):
    """A file or text is not the identity key, or the root key, that it should be."""


def new_identity_key(passphrase: str | None = None) -> tuple[bytes, str]:
    """Make a key pair.

    Args:
        passphrase: what the file is encrypted under; None leaves it plain.

    Returns:
        The private key as an OpenSSH file, and the public key as one line.
    """
    private = Ed25519PrivateKey.generate()
    return key_file(private, passphrase), identity_line(private)


def read_identity_key(path: Path, passphrase: PassphraseOf = passphrase_of) -> Ed25519PrivateKey:
    """Read a private key from its OpenSSH file.

    Args:
        path: of the file.
        passphrase: gives its passphrase where it is encrypted.

    Raises:
        IdentityKeyError: the file is not there, others may read it, it holds no key or one of another kind, or the
            passphrase does not open it.
        PassphraseError: it is encrypted, and there is no passphrase.
    """
    try:
        private = open_key(read_key_file(path), path, passphrase)
    except KeyFileError as error:
        raise IdentityKeyError(str(error)) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise IdentityKeyError(
            f"{path}: is a key of another kind than Ed25519 (the node key, perhaps); "
            "put the key back that `init` made"
        )
    return private


def read_identity_line(path: Path) -> str:
    """The public key, as one line, of a private key's file; an encrypted one is not opened for it.

    Raises:
        IdentityKeyError: as `read_identity_key`, but for the passphrase.
    """
    try:
        raw = read_key_file(path)
    except KeyFileError as error:
        raise IdentityKeyError(str(error)) from error
    if not is_encrypted(raw):
        return identity_line(read_identity_key(path))
    try:
        return canonical_identity_line(stated_public_line(raw) or "")
    except IdentityKeyError as error:
        raise IdentityKeyError(f"{path}: its public key {error}") from error


def identity_line(private: Ed25519PrivateKey) -> str:
    """The public key, as one line, that belongs to *private*."""
    return _line(private.public_key())


def canonical_identity_line(text: str) -> str:
    """Read a public key, one OpenSSH line, and return it without comment.

    Raises:
        IdentityKeyError: the text is a private key, another kind of key, or no key at all.
    """
    if "PRIVATE KEY" in text:
        raise IdentityKeyError("is a private key: it must never leave its machine")
    if len(text) > MAX_PUBLIC_CHARACTERS:
        raise IdentityKeyError("is too long to be a public key; expected one line: ssh-ed25519 …")
    if len(text.strip().splitlines()) > 1:
        raise IdentityKeyError("holds several lines; expected one line: ssh-ed25519 …")
    try:
        key = serialization.load_ssh_public_key(text.strip().encode("ascii"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IdentityKeyError("is not a public key; expected one line: ssh-ed25519 …") from error
    if not isinstance(key, Ed25519PublicKey):
        raise IdentityKeyError("is a key of another kind; expected one line: ssh-ed25519 …")
    return _line(key)


def read_public_key(path: Path) -> str:
    """Read a public key from a file with its one line. Raises IdentityKeyError with the file's path."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise IdentityKeyError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise IdentityKeyError(f"{path}: is not text; expected one line: ssh-ed25519 …") from error
    try:
        return canonical_identity_line(text)
    except IdentityKeyError as error:
        raise IdentityKeyError(f"{path}: {error}") from error


def public_bytes(line: str) -> bytes:
    """The 32 bytes of a public key given as its one line."""
    return _load(line).public_bytes_raw()


def line_of_public_bytes(raw: bytes) -> str:
    """The one line of a public key given as its 32 bytes."""
    return _line(Ed25519PublicKey.from_public_bytes(raw))


def fingerprint(*lines: str) -> str:
    """Eighty bits of the keys' SHA-256 in groups of four hexadecimal digits, for reading aloud.

    Args:
        lines: public keys, each its one canonical line; their order counts.
    """
    digits = hashlib.sha256("\n".join(("collegium-keys-1", *lines)).encode("ascii")).hexdigest()[:20]
    return "-".join(digits[start : start + 4] for start in range(0, 20, 4))


def sign(private: Ed25519PrivateKey, statement: bytes) -> str:
    """Sign *statement*, which begins with a label of its own kind. Returns the signature in base64."""
    return base64.b64encode(private.sign(statement)).decode("ascii")


def is_signed(line: str, statement: bytes, signature: str) -> bool:
    """Whether *signature* is that of the public key *line* on *statement*."""
    try:
        _load(line).verify(base64.b64decode(signature, validate=True), statement)
    except (InvalidSignature, binascii.Error):
        return False
    return True


def _signature(text: str) -> str:
    try:
        raw = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise ValueError("is not base64") from error
    if len(raw) != SIGNATURE_BYTES:
        raise ValueError(f"holds {len(raw)} bytes; a signature has {SIGNATURE_BYTES}")
    return text


Signature: TypeAlias = Annotated[str, AfterValidator(_signature)]
"""A signature in a file: 64 bytes in base64."""


def _load(line: str) -> Ed25519PublicKey:
    key = serialization.load_ssh_public_key(line.encode("ascii"))
    if not isinstance(key, Ed25519PublicKey):
        raise IdentityKeyError("is not an Ed25519 key")
    return key


def _line(key: Ed25519PublicKey) -> str:
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")
