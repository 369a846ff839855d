"""A site's node key: the elliptic-curve key by which the server knows the site's connection.

The private key never leaves the site. The public key travels as one OpenSSH line in the site's request, which the
coordinator puts into the roster.
"""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared_models.key_files import is_encrypted, key_file, open_key, stated_public_line
from shared_models.passphrase import PassphraseOf

MAX_KEY_TEXT = 4096


class NodeKeyError(ValueError):
    """A text that is not a node public key."""


def new_node_key(passphrase: str | None = None) -> tuple[bytes, str]:
    """Make a key pair.

    Args:
        passphrase: what the file is encrypted under; None leaves it plain.

    Returns:
        The private key as an OpenSSH file, and the public key as one line.
    """
    private = ec.generate_private_key(ec.SECP256R1())
    return key_file(private, passphrase), _line(private.public_key())


def plain_node_key(private_file: bytes, path: Path, passphrase: PassphraseOf) -> bytes:
    """The file of a node key without its passphrase, as Flower reads it. *path* is for messages.

    Raises:
        KeyFileError: the passphrase does not open it.
        NodeKeyError: it is a key of another kind.
        PassphraseError: there is no passphrase.
    """
    private = open_key(private_file, path, passphrase)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise NodeKeyError(f"{path} is not an elliptic-curve (NIST) private key")
    return key_file(private)


def public_line(private_file: bytes) -> str:
    """The public key, as one line, of a private key's OpenSSH file; an encrypted one is not opened for it."""
    if is_encrypted(private_file):
        return canonical_line(stated_public_line(private_file) or "")
    try:
        private = serialization.load_ssh_private_key(private_file, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise NodeKeyError("is not an OpenSSH private key") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise NodeKeyError("is not an elliptic-curve (NIST) private key")
    return _line(private.public_key())


def canonical_line(text: str) -> str:
    """Read a public key, OpenSSH or PEM, and return it as one OpenSSH line without comment.

    Raises:
        NodeKeyError: the text is a private key, another kind of key, or no key at all.
    """
    if "PRIVATE KEY" in text:
        raise NodeKeyError("is a private key: it must never leave its hospital; ask for its request file")
    try:
        raw = text.strip().encode("ascii")
        if len(raw) > MAX_KEY_TEXT:
            raise NodeKeyError("is too long to be a node public key")
        if raw.startswith(b"-----BEGIN"):
            key: object = serialization.load_pem_public_key(raw)
        else:
            key = serialization.load_ssh_public_key(raw)
    except (ValueError, UnsupportedAlgorithm) as error:
        if isinstance(error, NodeKeyError):
            raise
        raise NodeKeyError("is not a public key; expected one line: ecdsa-sha2-nistp256 …") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not key.curve.name.startswith("secp"):
        raise NodeKeyError(
            "is not an elliptic-curve (NIST P-256, P-384 or P-521) key; expected one line: ecdsa-sha2-nistp256 …"
        )
    return _line(key)


def pem_bytes(line: str) -> bytes:
    """The PEM encoding of a public key given as its one line."""
    return _load(line).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _load(line: str) -> ec.EllipticCurvePublicKey:
    key = serialization.load_ssh_public_key(line.encode("ascii"))
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise NodeKeyError("is not an elliptic-curve key")
    return key


def _line(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")
