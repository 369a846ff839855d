"""Sites with keys under a passphrase: made, joined, opened for their processes, never plain on disk."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_consortium
from test_client_command import Member, contents, options
from typer.testing import CliRunner

from client.command import app
from client.key_handover import handed_identity_key, handed_node_key
from client.launch import SiteError
from client.membership import own_key, read_joined, read_membership
from client.site_file import Server, read_site
from client.site_journal import make_journal, read_journal
from shared_models import key_files
from shared_models.configuration import ConfigurationError
from shared_models.identity_keys import identity_line, read_identity_key, read_identity_line
from shared_models.key_files import is_encrypted
from shared_models.node_keys import public_line
from shared_models.passphrase import PassphraseError
from shared_models.processes import Child, write_private
from shared_models.site_request import read_request

__all__ = ["options"]

WORDS = "nine o'clock, Tuesday"


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_files, "KDF_ROUNDS", 1)


@pytest.fixture
def member(tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch) -> Member:
    monkeypatch.setenv("COLLEGIUM_PASSPHRASE", WORDS)
    made = Member(tmp_path / "site", [*options, "--passphrase"])
    monkeypatch.delenv("COLLEGIUM_PASSPHRASE")
    return made


def server_of(member: Member) -> Server:
    assert member.file.server is not None
    return member.file.server


def test_init_encrypts_both_keys_and_the_request_is_theirs(member: Member) -> None:
    node, identity = server_of(member).node_key, member.file.consortium.identity_key
    for path in (node, identity):
        assert is_encrypted(path.read_bytes())
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    request = read_request(member.folder / "north.request.toml")
    assert request.node_key == public_line(node.read_bytes())
    assert request.identity_key == read_identity_line(identity)
    assert identity_line(read_identity_key(identity, lambda _: WORDS)) == request.identity_key
    assert not [path for path, raw in contents(member.folder).items() if WORDS.encode() in raw]


def test_init_without_any_passphrase_makes_nothing(tmp_path: Path, options: list[str]) -> None:
    done = CliRunner().invoke(app, ["init", str(tmp_path / "site"), *options, "--passphrase"])
    assert isinstance(done.exception, PassphraseError)
    assert not (tmp_path / "site").exists()


def test_joining_and_looking_need_no_passphrase_and_taking_part_does(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    roster = member.give()
    assert member.join().exit_code == 0
    assert json.loads(member.run("status", "--json").output)["roster_version"] == roster.version
    assert read_joined(member.file) == roster
    with pytest.raises(PassphraseError, match="is encrypted"):
        read_membership(member.file)
    assert isinstance(member.run("start").exception, PassphraseError)
    monkeypatch.setenv("COLLEGIUM_PASSPHRASE", "wrong")
    done = member.run("start")
    assert isinstance(done.exception, ConfigurationError)
    assert "the passphrase does not open it" in str(done.exception)
    monkeypatch.setenv("COLLEGIUM_PASSPHRASE", WORDS)
    assert read_membership(member.file)[1] == roster


def test_what_only_looks_needs_no_passphrase_and_what_writes_into_the_journal_does(
    member: Member, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for command in (["journal", "show"], ["journal", "verify"], ["ledger"]):
        done = member.run(command[0], *command[1:])
        assert done.exit_code == 0, (command, done.output, done.exception)
    (tmp_path / "patients").write_text("Jane\n")
    assert isinstance(member.run("withdraw", "--file", str(tmp_path / "patients")).exception, PassphraseError)
    monkeypatch.setenv("COLLEGIUM_PASSPHRASE", WORDS)
    assert member.run("withdraw", "--file", str(tmp_path / "patients")).exit_code == 0


def test_the_doctor_knows_keys_under_a_passphrase(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    member.give()
    member.join()

    def said() -> dict[str, tuple[str, str]]:
        lines = json.loads(member.run("doctor", "--json").output)
        return {line["check"]: (line["state"], line["message"]) for line in lines}

    without = said()
    assert without["node key"] == (
        "ok",
        f"{server_of(member).node_key} is there, private, and under a passphrase, which was not given",
    )
    for check in ("identity key", "journal", "roster"):
        assert without[check][0] == "ok", without[check]
    monkeypatch.setenv("COLLEGIUM_PASSPHRASE", WORDS)
    assert "opens under its passphrase" in said()["node key"][1]
    monkeypatch.setenv("COLLEGIUM_PASSPHRASE", "wrong")
    state, message = said()["node key"]
    assert (state, "the passphrase does not open it" in message) == ("wrong", True)


def test_start_asks_for_one_passphrase_on_a_terminal_and_opens_both_keys(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def types(prompt: str) -> str:
        asked.append(prompt)
        return WORDS

    def reached(_: Server) -> None:
        raise SiteError("the keys are open")

    monkeypatch.setattr("shared_models.passphrase.on_terminal", lambda: True)
    monkeypatch.setattr("getpass.getpass", types)
    monkeypatch.setattr("client.launch.check_server", reached)
    member.give()
    member.join()
    done = member.run("start")
    assert str(done.exception) == "the keys are open"
    assert asked == [f"Passphrase of {member.file.consortium.identity_key}: "]


def test_children_read_the_opened_keys_from_memory_and_nothing_is_on_disk(
    member: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(member.folder)
    program = "import os, sys; print(open(sys.argv[1]).read(), oct(os.stat(sys.argv[1]).st_mode), os.environ)"
    monkeypatch.setenv("COLLEGIUM_PASSPHRASE", WORDS)
    identity_key = member.file.consortium.identity_key
    with (
        handed_node_key(server_of(member).node_key, lambda _: WORDS) as node,
        handed_identity_key(identity_key, lambda _: WORDS) as identity,
    ):
        for number, key in enumerate((node, identity, node)):  # again, as after a crash
            log = tmp_path / f"{number}.log"
            command = [sys.executable, "-c", program, str(key.path)]
            child = Child("child", command, log=log, environment={}, descriptors=key.descriptors)
            assert child.wait(20.0)
            child.stop()
            assert child.ended() == 0, child.said()
            assert "-----BEGIN OPENSSH PRIVATE KEY-----" in child.said()
            assert "0o100600" in child.said()
            assert WORDS not in child.said()  # nor does a child inherit the passphrase
            opened = child.said().split("0o100600")[0].strip().encode() + b"\n"
            assert not is_encrypted(opened)
            held = server_of(member).node_key if key is node else identity_key
            assert key_files.stated_public_line(opened) == key_files.stated_public_line(held.read_bytes())
        descriptors = [*node.descriptors, *identity.descriptors]
        assert len(descriptors) == 2
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    assert contents(member.folder) == before


def test_keys_that_are_plain_are_read_from_where_they_are(tmp_path: Path, options: list[str]) -> None:
    plain = Member(tmp_path / "site", options)
    for handed, path in (
        (handed_node_key, server_of(plain).node_key),
        (handed_identity_key, plain.file.consortium.identity_key),
    ):
        with handed(path, lambda _: WORDS) as key:
            assert (key.path, key.descriptors) == (path, ())


def test_new_keys_are_under_the_passphrase_of_the_old_ones(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = member.run("renew-keys")
    assert isinstance(done.exception, PassphraseError | ConfigurationError)
    assert not list(member.folder.glob("*.new"))
    monkeypatch.setenv("COLLEGIUM_PASSPHRASE", WORDS)
    assert member.run("renew-keys").exit_code == 0
    request = read_request(member.folder / "north.renewal.request.toml")
    assert request.previous_identity_key == member.entry.identity_key
    for name in ("node.key.new", "identity.key.new"):
        assert is_encrypted((member.folder / name).read_bytes())
    member.give(2, request.site)
    monkeypatch.delenv("COLLEGIUM_PASSPHRASE")
    assert isinstance(member.join().exception, PassphraseError)  # the journal goes on under the new key
    monkeypatch.setenv("COLLEGIUM_PASSPHRASE", WORDS)
    assert member.join().exit_code == 0
    assert read_journal(member.file).verify()[-1].body["endorsed"] is True
    key = read_identity_key(member.file.consortium.identity_key, lambda _: WORDS)
    assert identity_line(key) == request.identity_key


def status(config: Path) -> dict[str, str]:
    """What `collegium-client status` says of the agent."""
    done = CliRunner().invoke(app, ["status", "--json", "--config", str(config)])
    agent: dict[str, str] = json.loads(done.output)["agent"]
    return agent


@pytest.mark.thorough
@pytest.mark.deployed
def test_a_site_with_encrypted_keys_starts_and_connects(tmp_path: Path) -> None:
    """The command and the agent that hospitals run; the passphrase is in a file, and in no child's environment."""
    consortium = toy_consortium.Consortium(tmp_path / "c", ("north",))
    try:
        consortium.sites["north"].close()
        folder = tmp_path / "c" / "north"
        file = read_site(folder / "site.toml")
        make_journal(file, own_key(file))
        identity = consortium.file.root.parent / "north.identity.key"
        for path in (folder / "node.key", identity):
            key = key_files.open_key(path.read_bytes(), path, lambda _: "")
            assert isinstance(key, key_files.PrivateKey)
            write_private(path, key_files.key_file(key, WORDS), replace=True)
        write_private(tmp_path / "words", f"{WORDS}\n".encode())
        variables = {**os.environ, "COLLEGIUM_PASSPHRASE_FILE": str(tmp_path / "words")}
        command = [sys.executable, "-m", "client.command", "start", "--config", str(folder / "site.toml")]
        with (tmp_path / "start.log").open("wb") as log:
            started = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
        try:
            consortium.wait_for((), 60.0)
            consortium.wait_for(("north",), 60.0)
            deadline = time.monotonic() + 60
            while (told := status(folder / "site.toml"))["agent"] != "waiting":
                assert time.monotonic() < deadline, (
                    told,
                    (folder / "state" / "logs" / "agent.log").read_text(),
                )
                time.sleep(0.2)
            pids = json.loads((folder / "state" / "site.json").read_text())
            for name in ("agent", "SuperNode", "forwarder"):
                assert b"COLLEGIUM_PASSPHRASE" not in Path(f"/proc/{pids[name]}/environ").read_bytes()
            for path in (folder / "state").rglob("*"):
                assert not path.is_file() or b"PRIVATE KEY" not in path.read_bytes()
        finally:
            started.terminate()
            started.wait(30)
    finally:
        consortium.close()
