"""The hospital's command line: making a site, and what stops it from starting."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from client.command import app
from client.launch import ServerNotReached, SiteError, check_server
from client.membership import MembershipError, read_membership
from client.site_file import Server, read_site
from server.certificates import Authority
from shared_models.configuration import ConfigurationError
from shared_models.identity_keys import fingerprint, identity_line, new_identity_key, read_identity_key
from shared_models.node_keys import new_node_key, public_line
from shared_models.processes import free_port, write_private
from shared_models.roster import Roster, RosterSite, write_roster
from shared_models.site_request import read_request

ROOT = Ed25519PrivateKey.generate()
SOUTH = RosterSite(name="south", node_key=new_node_key()[1], identity_key=new_identity_key()[1])


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels.csv").write_text("PatientID,finding\n")
    (tmp_path / "ca.pem").write_bytes(Authority("Test").issued.certificate)
    (tmp_path / "root.pub").write_text(identity_line(ROOT) + "\n")
    return [
        *("--name", "north", "--server", "localhost:9443", "--ca", str(tmp_path / "ca.pem")),
        *("--root", str(tmp_path / "root.pub")),
        *("--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels.csv")),
        *("--key", "PatientID"),
    ]


def test_init_makes_a_site_whose_private_key_stays_private(tmp_path: Path, options: list[str]) -> None:
    done = CliRunner().invoke(app, ["init", str(tmp_path / "site"), *options])
    assert done.exit_code == 0, done.output
    site = read_site(tmp_path / "site" / "site.toml")
    assert site.images.folder == tmp_path / "images"
    assert site.server is not None
    assert stat.S_IMODE(site.server.node_key.stat().st_mode) == 0o600
    assert stat.S_IMODE(site.consortium.identity_key.stat().st_mode) == 0o600
    request = read_request(tmp_path / "site" / "north.request.toml")
    assert request.node_key == public_line(site.server.node_key.read_bytes())
    assert request.identity_key == identity_line(read_identity_key(site.consortium.identity_key))
    assert request.name == "north"
    assert request.fingerprint in done.output
    assert fingerprint(identity_line(ROOT)) in done.output
    assert "PRIVATE" not in (tmp_path / "site" / "north.request.toml").read_text()
    assert site.policy.min_cohort == 2


def test_init_leaves_an_existing_site_alone(tmp_path: Path, options: list[str]) -> None:
    CliRunner().invoke(app, ["init", str(tmp_path / "site"), *options])
    before = contents(tmp_path / "site")
    again = CliRunner().invoke(app, ["init", str(tmp_path / "site"), *options])
    assert isinstance(again.exception, ConfigurationError)
    assert contents(tmp_path / "site") == before


@pytest.mark.parametrize("gone", ["node.key", "identity.key"])
def test_init_without_site_toml_never_replaces_a_key(tmp_path: Path, options: list[str], gone: str) -> None:
    CliRunner().invoke(app, ["init", str(tmp_path / "site"), *options])
    (tmp_path / "site" / "site.toml").unlink()
    (tmp_path / "site" / gone).unlink()
    before = contents(tmp_path / "site")
    again = CliRunner().invoke(app, ["init", str(tmp_path / "site"), *options])
    assert isinstance(again.exception, ConfigurationError)
    (left,) = {"node.key", "identity.key"} - {gone}
    for words in (f"({left})", "move them away", "choose another folder"):
        assert words in str(again.exception)
    assert contents(tmp_path / "site") == before


def test_a_private_file_is_replaced_only_where_that_is_said(tmp_path: Path) -> None:
    write_private(tmp_path / "a.key", b"first")
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "a.key", b"second")
    assert (tmp_path / "a.key").read_bytes() == b"first"
    write_private(tmp_path / "a.key", b"second", replace=True)
    assert (tmp_path / "a.key").read_bytes() == b"second"
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600


def test_init_refuses_a_root_key_that_is_none(tmp_path: Path, options: list[str]) -> None:
    for text in ("nonsense", new_identity_key()[0].decode(), new_node_key()[1]):
        (tmp_path / "root.pub").write_text(text)
        done = CliRunner().invoke(app, ["init", str(tmp_path / "site"), *options])
        assert isinstance(done.exception, ConfigurationError)
        assert str(tmp_path / "root.pub") in str(done.exception)
        assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("--name", "Nord Klinik", "name"), ("--server", "localhost", "server.address")],
)
def test_init_refuses_what_site_toml_would_refuse(
    tmp_path: Path, options: list[str], option: str, value: str, words: str
) -> None:
    options[options.index(option) + 1] = value
    done = CliRunner().invoke(app, ["init", str(tmp_path / "site"), *options])
    assert isinstance(done.exception, ConfigurationError)
    assert words in str(done.exception)
    assert not (tmp_path / "site").exists()


# Joining


class Member:
    """The site "north" as `init` made it, and rosters that its consortium's root key signs."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        self.folder, self.config = folder, folder / "site.toml"
        assert CliRunner().invoke(app, ["init", str(folder), *options]).exit_code == 0
        self.file = read_site(self.config)
        self.entry = read_request(folder / "north.request.toml").site
        self.given = folder.parent / "roster.toml"

    def give(self, version: int = 1, *sites: RosterSite, root: Ed25519PrivateKey | None = None) -> Roster:
        """Write the coordinator's roster: this site and "south", unless other sites are named."""
        roster = Roster(version=version, site=sites or (self.entry, SOUTH))
        write_roster(self.given, roster, root or ROOT)
        return roster

    def run(self, command: str, *arguments: str) -> Result:
        return CliRunner().invoke(app, [command, *arguments, "--config", str(self.config)])

    def join(self) -> Result:
        return self.run("join", str(self.given))

    def refuses(self, *words: str) -> None:
        """Joining is refused, and the site keeps what it has, be it nothing."""
        before = contents(self.folder)
        done = self.join()
        assert isinstance(done.exception, MembershipError), done.output
        for word in words:
            assert word in str(done.exception)
        assert contents(self.folder) == before


@pytest.fixture
def member(tmp_path: Path, options: list[str]) -> Member:
    return Member(tmp_path / "site", options)


def test_a_site_that_joined_knows_its_key_and_the_others(member: Member) -> None:
    roster = member.give()
    done = member.join()
    assert done.exit_code == 0, done.output
    assert "version 1 of the roster, 2 sites\n" in done.output
    assert f"roster {roster.fingerprint}\n" in done.output
    for entry in roster.site:
        assert f"{entry.name}: keys {entry.fingerprint}" in done.output
    identity, joined = read_membership(member.file)
    assert identity_line(identity) == member.entry.identity_key
    assert joined == roster
    assert member.file.consortium.roster.read_bytes() == member.given.read_bytes()


def test_a_single_site_is_not_several(member: Member) -> None:
    member.give(1, member.entry)
    assert "version 1 of the roster, 1 site\n" in member.join().output
    assert "roster: version 1, 1 site\n" in member.run("status").output


def test_a_newer_roster_takes_the_place_of_the_older_and_the_same_one_may_be_joined_again(
    member: Member,
) -> None:
    for version in (1, 4, 4):
        roster = member.give(version)
        assert member.join().exit_code == 0
        assert read_membership(member.file)[1] == roster


def test_an_older_roster_is_refused(member: Member) -> None:
    member.give(3)
    member.join()
    member.give(2)
    member.refuses("is version 2 of the roster, this site has version 3 already")


def test_another_roster_of_the_same_version_is_refused(member: Member) -> None:
    member.give(3)
    member.join()
    west = SOUTH.model_copy(update={"name": "west"})
    member.give(3, member.entry, west)
    member.refuses("two different rosters", "version 3", "do not join")


def test_a_roster_that_was_edited_on_the_way_is_refused(member: Member) -> None:
    member.give()
    member.given.write_text(member.given.read_text().replace('"south"', '"west"'))
    member.refuses(str(member.given), "is not signed by the consortium's root key", "edited")


def test_a_roster_of_another_consortium_is_refused(member: Member) -> None:
    member.give(root=Ed25519PrivateKey.generate())
    member.refuses("is not signed by the consortium's root key", fingerprint(identity_line(ROOT)))


def test_a_roster_without_this_site_is_refused(member: Member) -> None:
    member.give(1, SOUTH)
    member.refuses('"north" is not in version 1', "(there: south)", "north.request.toml")


def test_a_roster_with_another_key_under_this_sites_name_is_refused(member: Member) -> None:
    member.give(1, member.entry.model_copy(update={"identity_key": new_identity_key()[1]}))
    member.refuses('another identity key under "north"')
    member.give(1, member.entry.model_copy(update={"node_key": new_node_key()[1]}))
    member.refuses('another node key under "north"')


def test_what_is_no_roster_is_refused_in_words(member: Member) -> None:
    member.refuses("cannot be read")
    member.given.write_bytes(b"\xff\xfe")
    member.refuses("is not UTF-8 text")
    member.given.write_text("version = 1\n")
    member.refuses("signature is missing")


def test_a_roster_of_the_site_that_was_damaged_is_not_simply_replaced(member: Member) -> None:
    member.give(3)
    member.join()
    own = member.file.consortium.roster
    own.write_text(own.read_text().replace('"south"', '"west"'))
    member.refuses("cannot be compared", f"remove {own}")
    own.unlink()
    assert member.join().exit_code == 0


def test_the_pinned_root_and_the_own_key_must_be_keys(member: Member) -> None:
    member.give()
    root, key = member.file.consortium.root, member.file.consortium.identity_key
    good = root.read_text()
    root.write_text("nonsense")
    member.refuses("consortium.root", str(root), "root.pub")
    root.unlink()
    member.refuses("consortium.root", "cannot be read")
    root.write_text(good)
    key.chmod(0o644)
    member.refuses("consortium.identity_key", f"chmod 600 {key}")
    write_private(key, new_node_key()[0], replace=True)
    member.refuses("consortium.identity_key", "of another kind than Ed25519")
    key.unlink()
    member.refuses("consortium.identity_key", "cannot be read")


def test_a_site_that_has_not_joined_does_not_start(member: Member) -> None:
    done = member.run("start")
    assert isinstance(done.exception, MembershipError)
    assert "has not joined yet" in str(done.exception)
    assert "collegium-client join" in str(done.exception)
    assert not member.file.state.joinpath("logs").exists()


def test_a_site_whose_keys_are_not_those_of_its_roster_does_not_start(member: Member) -> None:
    member.give()
    member.join()
    good = member.file.consortium.roster.read_bytes()
    member.file.consortium.roster.write_bytes(good.replace(b'"south"', b'"west"'))
    assert "is not signed by" in str(member.run("start").exception)
    member.file.consortium.roster.write_bytes(good)
    write_private(member.folder / "node.key", new_node_key()[0], replace=True)
    assert "another node key" in str(member.run("start").exception)
    write_private(member.folder / "identity.key", new_identity_key()[0], replace=True)
    done = member.run("start")
    assert isinstance(done.exception, MembershipError)
    assert "another identity key" in str(done.exception)
    assert not member.file.state.joinpath("logs").exists()


def test_status_shows_the_rosters_version_or_why_there_is_none(member: Member) -> None:
    values = json.loads(member.run("status", "--json").output)
    assert values["roster_version"] is None
    assert values["roster_fingerprint"] is None
    assert "has not joined yet" in values["roster"]
    roster = member.give(7)
    member.join()
    assert "roster: version 7, 2 sites" in member.run("status").output
    assert roster.fingerprint in member.run("status").output
    values = json.loads(member.run("status", "--json").output)
    assert (values["roster_version"], values["roster_fingerprint"]) == (7, roster.fingerprint)


# Starting


def test_start_refuses_a_key_that_others_can_read(tmp_path: Path, options: list[str]) -> None:
    CliRunner().invoke(app, ["init", str(tmp_path / "site"), *options])
    (tmp_path / "site" / "node.key").chmod(0o644)
    done = CliRunner().invoke(app, ["start", "--config", str(tmp_path / "site" / "site.toml")])
    assert isinstance(done.exception, ConfigurationError)
    assert "chmod 600" in str(done.exception)


@pytest.mark.slow
def test_a_wrong_file_ends_with_a_message_and_status_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "client.command", "start", "--config", str(tmp_path / "none.toml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_does_not_answer_and_a_ca_that_is_none_are_told_apart(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(Authority("Test").issued.certificate)
    entry = Server(address=f"127.0.0.1:{free_port()}", ca_certificate=ca, node_key=tmp_path / "node.key")
    with pytest.raises(ServerNotReached, match="refuses connections"):
        check_server(entry)
    with pytest.raises(SiteError, match="does not exist"):
        check_server(entry.model_copy(update={"ca_certificate": tmp_path / "none.pem"}))
    ca.write_text("not a certificate")
    with pytest.raises(SiteError, match="not a PEM certificate"):
        check_server(entry)
