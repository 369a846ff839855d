"""Private keys under a passphrase: what their files tell, and what opens them."""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared_models import key_files, passphrase
from shared_models.identity_keys import (
    IdentityKeyError,
    identity_line,
    new_identity_key,
    read_identity_key,
    read_identity_line,
)
from shared_models.key_files import KeyFileError, is_encrypted, key_file, open_key, stated_public_line
from shared_models.node_keys import NodeKeyError, new_node_key, plain_node_key, public_line
from shared_models.passphrase import (
    PLACES,
    PassphraseError,
    asked_passphrase,
    found_passphrase,
    new_passphrase,
    passphrase_of,
)
from shared_models.processes import write_private

WORDS = "correct horse, Bäckerei"


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_files, "KDF_ROUNDS", 1)
    for name in passphrase.VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_private(tmp_path / "identity.key", new_identity_key(WORDS)[0])
    return tmp_path / "identity.key"


# Files


def test_an_encrypted_key_states_its_public_key_and_opens_under_its_passphrase_only() -> None:
    for make in (new_identity_key, new_node_key):
        raw, line = make(WORDS)
        assert is_encrypted(raw)
        assert stated_public_line(raw) == line
        opened = open_key(raw, Path("a.key"), lambda _: WORDS)
        assert isinstance(opened, Ed25519PrivateKey | ec.EllipticCurvePrivateKey)
        plain = key_file(opened)
        assert not is_encrypted(plain)
        assert stated_public_line(plain) == line
        for wrong in ("correct horse", WORDS + " ", WORDS.upper()):
            with pytest.raises(KeyFileError, match=r"a\.key: the passphrase does not open it"):
                open_key(raw, Path("a.key"), lambda _, wrong=wrong: wrong)


def test_a_plain_key_needs_no_passphrase_and_asks_for_none(tmp_path: Path) -> None:
    def never(_: Path) -> str:
        raise AssertionError("asked")

    write_private(tmp_path / "identity.key", new_identity_key()[0])
    assert identity_line(read_identity_key(tmp_path / "identity.key", never)) == read_identity_line(
        tmp_path / "identity.key"
    )


def test_a_key_that_states_another_public_key_than_its_own_is_not_used(tmp_path: Path) -> None:
    """The clear part of the file is what `join` and `status` go by: it must not differ from what is signed with."""
    import base64

    private = Ed25519PrivateKey.generate()
    raw = key_file(private, WORDS)
    own, other = (
        base64.b64decode(line.split()[1]) for line in (identity_line(private), new_identity_key()[1])
    )
    body = base64.b64decode(b"".join(raw.splitlines()[1:-1]))
    assert own in body
    forged = base64.encodebytes(body.replace(own, other))
    raw = b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + forged + b"-----END OPENSSH PRIVATE KEY-----\n"
    assert stated_public_line(raw) != identity_line(private)
    with pytest.raises(KeyFileError):
        open_key(raw, tmp_path / "identity.key", lambda _: WORDS)


def test_the_public_keys_of_encrypted_files_are_known_without_the_passphrase(path: Path) -> None:
    line = read_identity_line(path)
    assert line == identity_line(read_identity_key(path, lambda _: WORDS))
    node, node_line = new_node_key(WORDS)
    assert public_line(node) == node_line
    assert public_line(plain_node_key(node, path, lambda _: WORDS)) == node_line
    with pytest.raises(NodeKeyError, match="elliptic-curve"):
        public_line(path.read_bytes())
    with pytest.raises(NodeKeyError, match="elliptic-curve"):
        plain_node_key(path.read_bytes(), path, lambda _: WORDS)


def test_what_is_no_openssh_file_is_not_taken_for_an_encrypted_one() -> None:
    good = new_identity_key(WORDS)[0]
    for raw in (b"", b"\xff", good[:40], good.replace(b"OPENSSH", b"RSA"), good[:60] + b"\n-----END"):
        assert not is_encrypted(raw)
        assert stated_public_line(raw) is None
        with pytest.raises(KeyFileError, match="is not an OpenSSH private key"):
            open_key(raw, Path("a.key"), lambda _: WORDS)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not there")
def test_ssh_keygen_gives_a_plain_key_a_passphrase_and_another_one(tmp_path: Path) -> None:
    private, line = new_identity_key()
    path = tmp_path / "identity.key"
    write_private(path, private)
    for old, new in (("", "first"), ("first", WORDS)):
        command = ["ssh-keygen", "-q", "-p", "-a", "1", "-f", str(path), "-P", old, "-N", new]
        subprocess.run(command, check=True, capture_output=True, timeout=20)
    assert is_encrypted(path.read_bytes())
    assert read_identity_line(path) == line
    assert identity_line(read_identity_key(path, lambda _: WORDS)) == line
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# Where the passphrase comes from


def test_the_places_are_tried_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found_passphrase() is None
    monkeypatch.setenv("COLLEGIUM_PASSPHRASE", "from the variable")
    assert found_passphrase() == "from the variable"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert found_passphrase() == "from the variable"
    write_private(tmp_path / "collegium-passphrase", b"from systemd\n")
    assert found_passphrase() == "from systemd"
    write_private(tmp_path / "words", b"  from the file \r\n")
    monkeypatch.setenv("COLLEGIUM_PASSPHRASE_FILE", str(tmp_path / "words"))
    assert found_passphrase() == "  from the file "
    assert passphrase_of(Path("a.key")) == "  from the file "


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_passphrase_file_that_others_may_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    write_private(tmp_path / "words", WORDS.encode())
    monkeypatch.setenv("COLLEGIUM_PASSPHRASE_FILE", str(tmp_path / "words"))
    (tmp_path / "words").chmod(0o400)
    assert found_passphrase() == WORDS
    (tmp_path / "words").chmod(mode)
    with pytest.raises(PassphraseError, match=f"chmod 600 {tmp_path / 'words'}"):
        found_passphrase()


def test_what_is_no_passphrase_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLLEGIUM_PASSPHRASE", "")
    with pytest.raises(PassphraseError, match="COLLEGIUM_PASSPHRASE: is empty"):
        found_passphrase()
    words = tmp_path / "words"
    monkeypatch.setenv("COLLEGIUM_PASSPHRASE_FILE", str(words))
    with pytest.raises(PassphraseError, match=r"COLLEGIUM_PASSPHRASE_FILE = .*: cannot be read"):
        found_passphrase()
    for content, told in ((b"\n", "is empty"), (b"\xff", "is not UTF-8"), (b"x" * 5000, "longer than")):
        write_private(words, content, replace=True)
        with pytest.raises(PassphraseError, match=told):
            found_passphrase()


def test_without_a_passphrase_the_three_places_are_named(path: Path) -> None:
    with pytest.raises(PassphraseError) as caught:
        read_identity_key(path)
    message = str(caught.value)
    assert f"{path}: is encrypted" in message
    assert PLACES in message
    for place in (
        "COLLEGIUM_PASSPHRASE_FILE",
        "$CREDENTIALS_DIRECTORY/collegium-passphrase",
        "COLLEGIUM_PASSPHRASE",
    ):
        assert place in message
    with pytest.raises(PassphraseError, match="is encrypted"):
        asked_passphrase()(path)  # this test has no terminal
    with pytest.raises(PassphraseError, match="there is no terminal"):
        new_passphrase()


class Person:
    """Sits at the terminal and types these lines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
        self.lines, self.asked = list(lines), []
        monkeypatch.setattr(passphrase, "on_terminal", lambda: True)
        monkeypatch.setattr("getpass.getpass", self.types)

    def types(self, prompt: str) -> str:
        self.asked.append(prompt)
        return self.lines.pop(0)


def test_on_a_terminal_one_passphrase_is_asked_for_once_for_all_keys(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = Person(monkeypatch, WORDS)
    opened = asked_passphrase()
    for _ in range(2):
        read_identity_key(path, opened)
    assert person.asked == [f"Passphrase of {path}: "]


def test_a_wrong_passphrase_is_told_in_words_without_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Person(monkeypatch, "open sesame")
    with pytest.raises(IdentityKeyError, match="the passphrase does not open it") as caught:
        read_identity_key(path, asked_passphrase())
    assert "sesame" not in str(caught.value)


def test_a_new_passphrase_is_typed_twice_and_is_not_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    Person(monkeypatch, WORDS, WORDS)
    assert new_passphrase() == WORDS
    Person(monkeypatch, WORDS, WORDS + "!")
    with pytest.raises(PassphraseError, match="differ; nothing was made"):
        new_passphrase()
    Person(monkeypatch, " ")
    with pytest.raises(PassphraseError, match="is empty"):
        new_passphrase()
