"""Identity keys: what is one, what is refused, and how two people compare them."""

import base64
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from shared_models.identity_keys import (
    IdentityKeyError,
    canonical_identity_line,
    fingerprint,
    identity_line,
    is_signed,
    new_identity_key,
    public_bytes,
    read_identity_key,
    read_public_key,
    sign,
)
from shared_models.node_keys import new_node_key
from shared_models.processes import write_private

RFC8032_SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
RFC8032_PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
RFC8032_SIGNATURE = bytes.fromhex(
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
    "d25bf5f0595bbe24655141438e7a100b"
)


def test_a_key_that_was_written_is_read_again(tmp_path: Path) -> None:
    file, line = new_identity_key()
    write_private(tmp_path / "identity.key", file)
    private = read_identity_key(tmp_path / "identity.key")
    assert identity_line(private) == line
    assert line.startswith("ssh-ed25519 ")
    assert public_bytes(line) == private.public_key().public_bytes_raw()
    (tmp_path / "root.pub").write_text(f"  {line} a comment\n")
    assert read_public_key(tmp_path / "root.pub") == line


def test_keys_and_signatures_are_those_of_rfc_8032() -> None:
    private = Ed25519PrivateKey.from_private_bytes(RFC8032_SEED)
    assert public_bytes(identity_line(private)) == RFC8032_PUBLIC
    assert base64.b64decode(sign(private, b"")) == RFC8032_SIGNATURE


def test_only_the_signature_of_this_key_on_this_statement_is_one() -> None:
    private, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    signature = sign(private, b"statement")
    assert is_signed(identity_line(private), b"statement", signature)
    assert not is_signed(identity_line(private), b"another", signature)
    assert not is_signed(identity_line(other), b"statement", signature)
    assert not is_signed(identity_line(private), b"statement", signature[:-4])
    assert not is_signed(identity_line(private), b"statement", "not base64")


def test_a_key_that_others_may_read_is_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    write_private(path, new_identity_key()[0])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(IdentityKeyError, match=f"chmod 600 {path}"):
            read_identity_key(path)
    path.chmod(0o400)
    read_identity_key(path)


def test_what_is_no_private_identity_key_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    with pytest.raises(IdentityKeyError, match="cannot be read"):
        read_identity_key(path)
    for content, words in (
        (b"", "is not an OpenSSH private key"),
        (b"\xff\x00nonsense", "is not an OpenSSH private key"),
        (new_identity_key()[1].encode(), "is not an OpenSSH private key"),
        (new_identity_key()[0][:-60], "is not an OpenSSH private key"),
        (new_node_key()[0], "of another kind than Ed25519"),
        (_rsa(), "of another kind than Ed25519"),
    ):
        write_private(path, content, replace=True)
        with pytest.raises(IdentityKeyError, match=words) as caught:
            read_identity_key(path)
        assert str(path) in str(caught.value)


def test_what_is_no_public_identity_key_is_refused(tmp_path: Path) -> None:
    file, line = new_identity_key()
    for text, words in (
        ("", "is not a public key"),
        ("ü", "is not a public key"),
        ("ssh-ed25519 AAAA", "is not a public key"),
        (line[:-6], "is not a public key"),
        (f"{line}\n{new_identity_key()[1]}", "several lines"),
        (file.decode(), "is a private key: it must never leave"),
        (new_node_key()[1], "of another kind"),
        ("x" * 5000, "too long"),
    ):
        (tmp_path / "root.pub").write_text(text, encoding="utf-8")
        with pytest.raises(IdentityKeyError, match=words):
            canonical_identity_line(text)
        with pytest.raises(IdentityKeyError, match=words) as caught:
            read_public_key(tmp_path / "root.pub")
        assert str(tmp_path / "root.pub") in str(caught.value)
    (tmp_path / "root.pub").write_bytes(b"\xff\xfe")
    with pytest.raises(IdentityKeyError, match="is not text"):
        read_public_key(tmp_path / "root.pub")
    with pytest.raises(IdentityKeyError, match="cannot be read"):
        read_public_key(tmp_path / "none.pub")


def test_a_fingerprint_is_short_and_covers_every_key_in_its_place() -> None:
    node, identity = new_node_key()[1], new_identity_key()[1]
    assert len(fingerprint(node, identity)) == 24
    assert fingerprint(node, identity) == fingerprint(node, identity)
    others = {fingerprint(new_node_key()[1], identity), fingerprint(node, new_identity_key()[1])}
    others |= {fingerprint(identity, node), fingerprint(node), fingerprint(identity)}
    assert len(others | {fingerprint(node, identity)}) == 6


def _rsa() -> bytes:
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
