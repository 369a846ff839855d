"""New keys of a hospital, and hospitals that are taken out: both command lines, from request to roster."""

import shutil
import stat
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import client.command
import server.command
from client.launch import SiteError, only_one
from client.membership import MembershipError, make_keys, own_key, read_joined, read_membership
from client.site_file import SiteFile, read_site
from client.site_journal import make_journal, open_journal
from server.server_file import read_server, read_sites
from shared_models import terminal
from shared_models.configuration import ConfigurationError
from shared_models.identity_keys import identity_line, read_identity_key, read_identity_line
from shared_models.node_keys import public_line
from shared_models.roster import Roster
from shared_models.site_request import read_request, write_request

SITE = """
name = "{name}"
state = "state"
[images]
folder = "images"
[labels]
file = "labels.csv"
key = "PatientID"
[policy]
min_cohort = 2
min_threshold = 2
allowed_tasks = ["binary-classification"]
allowed_architectures = ["small-cnn"]
min_patients = 1
max_unusable_share = 1.0
max_runs_per_study = 1
[consortium]
root = "../server/root.pub"
roster = "roster.toml"
identity_key = "identity.key"
[server]
address = "localhost:9443"
ca_certificate = "ca.pem"
node_key = "node.key"
"""


class World:
    """A coordinator and the hospitals "north" and "south", which were admitted and have joined."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "server" / "server.toml"
        self.roster_file = folder / "server" / "roster.toml"
        self.ok(self.coordinator("init", str(folder / "server"), "--host", "localhost", config=False))
        for name in ("north", "south"):
            (folder / name).mkdir()
            (folder / name / "site.toml").write_text(SITE.format(name=name))
            request, _ = make_keys(folder / name, name)
            make_journal(self.file(name), own_key(self.file(name)))
            self.ok(self.coordinator("admit", str(request)))
        for name in ("north", "south"):
            self.ok(self.join(name))

    @staticmethod
    def ok(done: Result) -> str:
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    def coordinator(self, *arguments: str, config: bool = True, input: str | None = None) -> Result:
        more = ["--config", str(self.config)] if config else []
        return CliRunner().invoke(server.command.app, [*arguments, *more], input=input)

    def hospital(self, name: str, *arguments: str) -> Result:
        config = str(self.folder / name / "site.toml")
        return CliRunner().invoke(client.command.app, [*arguments, "--config", config])

    def join(self, name: str) -> Result:
        return self.hospital(name, "join", str(self.roster_file))

    def file(self, name: str) -> SiteFile:
        return read_site(self.folder / name / "site.toml")

    def renewal(self, name: str) -> Path:
        return self.folder / name / f"{name}.renewal.request.toml"

    def keys(self, name: str) -> tuple[str, str]:
        """Public lines of the keys that are in use at the hospital."""
        folder = self.folder / name
        return public_line((folder / "node.key").read_bytes()), read_identity_line(folder / "identity.key")

    def sites(self) -> Roster:
        return read_sites(read_server(self.config))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def refused(done: Result, *words: str, error: type[Exception] = ConfigurationError) -> None:
    assert isinstance(done.exception, error), done.output
    for word in words:
        assert word in str(done.exception)


# New keys


def test_new_keys_wait_beside_the_old_ones_until_the_roster_with_them_is_joined(world: World) -> None:
    old = world.keys("north")
    said = world.ok(world.hospital("north", "renew-keys"))
    request = read_request(world.renewal("north"))
    assert request.fingerprint in said
    assert "signed by the old identity key too" in said
    assert request.previous_identity_key == old[1]
    assert {request.node_key, request.identity_key}.isdisjoint(old)
    assert world.keys("north") == old
    for name in ("node.key.new", "identity.key.new"):
        assert stat.S_IMODE((world.folder / "north" / name).stat().st_mode) == 0o600
    assert "not in this version; the old ones stay in use" in world.ok(world.join("north"))
    assert world.keys("north") == old
    before = world.sites().entry("north")
    assert before is not None
    said = world.ok(world.coordinator("admit", str(world.renewal("north")), "--replace"))
    assert before.fingerprint in said
    assert request.fingerprint in said
    assert "its holder asks for this" in said
    assert "version 3" in said
    said = world.ok(world.join("north"))
    assert f"replaced in version 3: north, keys {before.fingerprint}" in said
    assert world.keys("north") == (request.node_key, request.identity_key)
    assert not list((world.folder / "north").glob("*.key.new"))
    identity, roster = read_membership(world.file("north"))
    assert identity_line(identity) == request.identity_key
    assert roster == world.sites()
    assert "replaced in version 3: north" in world.ok(world.join("south"))


def test_a_site_that_did_not_ask_for_new_keys_does_not_join_a_roster_with_some(world: World) -> None:
    world.ok(world.hospital("north", "renew-keys"))
    world.ok(world.coordinator("admit", str(world.renewal("north")), "--replace"))
    for path in (world.folder / "north").glob("*.key.new"):
        path.unlink()
    before = world.file("north").consortium.roster.read_bytes()
    refused(world.join("north"), "version 3", "did not ask for that", error=MembershipError)
    assert world.file("north").consortium.roster.read_bytes() == before


def test_putting_new_keys_in_place_that_was_broken_off_is_ended_by_joining_again(world: World) -> None:
    world.ok(world.hospital("north", "renew-keys"))
    world.ok(world.coordinator("admit", str(world.renewal("north")), "--replace"))
    folder = world.folder / "north"
    shutil.copyfile(world.roster_file, folder / "roster.toml")
    (folder / "node.key.new").replace(folder / "node.key")  # and then the power went out
    refused(world.hospital("north", "start"), "join again", error=MembershipError)
    world.ok(world.join("north"))
    request = read_request(world.renewal("north"))
    assert world.keys("north") == (request.node_key, request.identity_key)
    assert read_joined(world.file("north")) == world.sites()


def test_new_keys_that_wait_are_not_replaced_unasked(world: World) -> None:
    world.ok(world.hospital("north", "renew-keys"))
    first = read_request(world.renewal("north"))
    refused(world.hospital("north", "renew-keys"), "node.key.new", "--again")
    assert read_request(world.renewal("north")) == first
    world.ok(world.hospital("north", "renew-keys", "--again"))
    second = read_request(world.renewal("north"))
    assert second.identity_key != first.identity_key
    assert read_identity_line(world.folder / "north" / "identity.key.new") == second.identity_key


def test_the_journal_goes_on_under_the_new_key_and_the_old_one_vouches_for_it(world: World) -> None:
    world.ok(world.hospital("north", "renew-keys"))
    world.ok(world.coordinator("admit", str(world.renewal("north")), "--replace"))
    said = world.ok(world.join("north"))
    assert "the journal goes on under the new key" in said
    assert "could not sign" not in said
    entries = open_journal(world.file("north")).verify()
    assert [entry.kind for entry in entries] == ["created", "new-key"]
    assert entries[-1].body["endorsed"] is True
    open_journal(world.file("north")).append("request", {})
    assert len(open_journal(world.file("north")).verify()) == 3


def test_the_journal_of_a_hospital_that_lost_its_key_says_so(world: World) -> None:
    read_out = without_the_old_key(world)
    admitted = ("admit", str(world.renewal("north")), "--replace", "--fingerprint", read_out)
    world.ok(world.coordinator(*admitted))
    assert "the old key could not sign that" in world.ok(world.join("north"))
    entries = open_journal(world.file("north")).verify()
    assert entries[-1].body["endorsed"] is False


@pytest.mark.slow
def test_new_keys_are_not_put_in_place_below_a_site_that_runs(world: World) -> None:
    world.ok(world.hospital("north", "renew-keys"))
    world.ok(world.coordinator("admit", str(world.renewal("north")), "--replace"))
    old, before = world.keys("north"), world.file("north").consortium.roster.read_bytes()
    with only_one(world.file("north").state):
        refused(world.join("north"), "is running already", "end it first", error=SiteError)
    assert (world.keys("north"), world.file("north").consortium.roster.read_bytes()) == (old, before)
    world.ok(world.join("north"))


def test_a_change_that_was_broken_off_behind_the_journal_is_ended_by_joining_again(world: World) -> None:
    world.ok(world.hospital("north", "renew-keys"))
    world.ok(world.coordinator("admit", str(world.renewal("north")), "--replace"))
    new = read_identity_key(world.folder / "north" / "identity.key.new")
    open_journal(world.file("north")).renew_key(new, endorsed=True)  # and then the power went out
    world.ok(world.join("north"))
    assert [entry.kind for entry in open_journal(world.file("north")).verify()] == ["created", "new-key"]


# … where the old key is lost


def without_the_old_key(world: World) -> str:
    """The request of a hospital that lost its identity key. Returns the fingerprint that it reads out."""
    (world.folder / "north" / "identity.key").unlink()
    said = world.ok(world.hospital("north", "renew-keys"))
    assert "only after a call by telephone" in said
    request = read_request(world.renewal("north"))
    assert request.previous_identity_key is None
    return request.fingerprint


def test_a_request_without_the_old_key_needs_what_was_read_out_by_telephone(world: World) -> None:
    read_out = without_the_old_key(world)
    before = world.roster_file.read_bytes()
    request = str(world.renewal("north"))
    done = world.coordinator("admit", request, "--replace")
    refused(done, "without its old key's signature", "--fingerprint")
    assert "NOT signed by the identity key that the roster has now" in done.output
    done = world.coordinator("admit", request, "--replace", "--fingerprint", "0000-0000-0000-0000-0000")
    refused(done, "read out 0000-", "is not the hospital's")
    assert world.roster_file.read_bytes() == before
    world.ok(world.coordinator("admit", request, "--replace", "--fingerprint", read_out.upper()))
    world.ok(world.join("north"))
    assert world.keys("north")[1] == read_request(world.renewal("north")).identity_key


def test_on_a_terminal_the_coordinator_types_what_was_read_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_out = without_the_old_key(world)
    monkeypatch.setattr("server.roster_command.on_terminal", lambda: True)
    request = str(world.renewal("north"))
    done = world.coordinator("admit", request, "--replace", input="1111-1111-1111-1111-1111\n")
    refused(done, "is not the hospital's")
    assert read_out not in done.output  # else it could be copied from the screen
    world.ok(world.coordinator("admit", request, "--replace", input=f"{read_out}\n"))
    assert world.sites().version == 3


def test_a_key_that_was_lost_can_be_left_out_though_it_is_there(world: World) -> None:
    (world.folder / "north" / "identity.key").write_bytes(b"damaged")
    refused(world.hospital("north", "renew-keys"), "the old key", "--without-old-key")
    world.ok(world.hospital("north", "renew-keys", "--without-old-key"))
    assert read_request(world.renewal("north")).previous_signature is None


def test_nobody_else_can_say_that_the_old_key_signed(world: World) -> None:
    """Neither by naming it, nor with another key of the consortium, nor with that key's signature on other keys."""
    world.ok(world.hospital("north", "renew-keys"))
    request = read_request(world.renewal("north"))
    world.ok(world.hospital("south", "renew-keys"))
    souths = read_request(world.renewal("south"))
    own = request.previous_signature
    for change in (
        {"previous_signature": request.signature},
        {"previous_signature": souths.previous_signature},
        {"previous_identity_key": souths.previous_identity_key},
    ):
        write_request(world.renewal("north"), request.model_copy(update=change))
        done = world.coordinator("admit", str(world.renewal("north")), "--replace")
        refused(done, "is not signed by the previous identity key")
    write_request(world.renewal("north"), request.model_copy(update={"previous_signature": None}))
    done = world.coordinator("admit", str(world.renewal("north")), "--replace")
    refused(done, "belong together")
    forged = souths.model_copy(update={"previous_signature": own})
    write_request(world.renewal("south"), forged)
    refused(world.coordinator("admit", str(world.renewal("south")), "--replace"), "is not signed by")


def test_a_signature_by_another_key_than_the_rosters_counts_for_nothing(world: World) -> None:
    """South's key signs for itself under north's name: a stranger's signature, as good as none."""
    text = (world.folder / "south" / "site.toml").read_text()
    (world.folder / "south" / "site.toml").write_text(text.replace('name = "south"', 'name = "north"'))
    world.ok(world.hospital("south", "renew-keys"))
    request = world.folder / "south" / "north.renewal.request.toml"
    done = world.coordinator("admit", str(request), "--replace")
    assert "NOT signed by the identity key that the roster has now" in done.output
    refused(done, "--fingerprint")


def test_replacing_needs_a_site_of_that_name_and_new_keys(world: World) -> None:
    old = world.folder / "north" / "north.request.toml"
    refused(world.coordinator("admit", str(old), "--replace"), "with just these keys")
    world.ok(world.hospital("north", "renew-keys"))
    refused(world.coordinator("admit", str(world.renewal("north"))), "with other keys", "--replace")
    world.ok(world.coordinator("admit", str(world.renewal("north")), "--replace"))
    before = world.roster_file.read_bytes()
    refused(world.coordinator("admit", str(old), "--replace"), "never comes back", "renew-keys")
    world.ok(world.coordinator("revoke", "south", "--yes"))
    world.ok(world.hospital("south", "renew-keys"))
    done = world.coordinator("admit", str(world.renewal("south")), "--replace")
    refused(done, '"south" is not in the roster (there: north)', "without --replace")
    assert world.roster_file.read_bytes() != before


# Taken out


def test_a_site_that_is_revoked_is_out_of_the_next_version_and_told_so(world: World) -> None:
    entry = world.sites().entry("north")
    assert entry is not None
    said = world.ok(world.coordinator("revoke", "north", "--yes"))
    for words in (
        entry.fingerprint,
        "version 3",
        "to every hospital",
        "next start",
        '"north" still takes part',
    ):
        assert words in said
    roster = world.sites()
    assert [site.name for site in roster.site] == ["south"]
    assert [(past.name, past.version, past.replaced) for past in roster.revoked] == [("north", 3, False)]
    told = ("was taken out of the consortium in version 3", entry.fingerprint, "renew-keys")
    refused(world.join("north"), *told, error=MembershipError)
    refused(world.hospital("north", "start"), *told, error=MembershipError)
    assert "taken out of the consortium" in world.ok(world.hospital("north", "status"))
    assert f"taken out in version 3: north, keys {entry.fingerprint}" in world.ok(world.join("south"))


def test_a_revoked_site_keeps_no_older_roster_and_a_forged_one_does_not_take_it_out(world: World) -> None:
    older = world.roster_file.read_bytes()
    world.ok(world.coordinator("revoke", "north", "--yes"))
    signed = world.roster_file.read_text()
    own = world.file("north").consortium.roster
    world.roster_file.write_text(signed.replace("version = 3", "version = 4"))
    refused(world.join("north"), "is not signed by", error=MembershipError)
    assert own.read_bytes() == older
    world.roster_file.write_text(signed)
    refused(world.join("north"), "taken out", error=MembershipError)
    assert own.read_text() == signed
    world.roster_file.write_bytes(older)
    refused(world.join("north"), "has version 3 already", error=MembershipError)


def test_revoking_asks_on_a_terminal_and_wants_yes_without_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = world.roster_file.read_bytes()
    refused(world.coordinator("revoke", "north"), "say --yes", "Nothing was changed")
    refused(world.coordinator("revoke", "west", "--yes"), '"west" is not in the roster (there: north, south)')
    monkeypatch.setattr(terminal, "on_terminal", lambda: True)
    assert world.coordinator("revoke", "north", input="n\n").exit_code == 1
    assert world.roster_file.read_bytes() == before
    world.ok(world.coordinator("revoke", "north", input="y\n"))
    assert world.sites().entry("north") is None


def test_revoked_keys_are_refused_at_once_and_new_ones_are_admitted(world: World) -> None:
    world.ok(world.coordinator("revoke", "north", "--yes"))
    old = world.folder / "north" / "north.request.toml"
    refused(world.coordinator("admit", str(old)), "taken out of the roster in version 3", "renew-keys")
    refused(world.join("north"), "taken out", error=MembershipError)
    world.ok(world.hospital("north", "renew-keys"))
    said = world.ok(world.coordinator("admit", str(world.renewal("north"))))
    assert "A hospital of this name was taken out of the roster before" in said
    world.ok(world.join("north"))
    assert read_joined(world.file("north")) == world.sites()
    assert world.sites().version == 4


@pytest.mark.slow
def test_the_list_of_revoked_keys_is_signed(world: World) -> None:
    world.ok(world.coordinator("revoke", "north", "--yes"))
    signed = world.roster_file.read_text()
    for edited in (
        signed[: signed.index("[[revoked]]")],
        signed.replace("replaced = false", "replaced = true"),
        signed.replace('name = "north"', 'name = "west"'),
    ):
        assert edited != signed
        world.roster_file.write_text(edited)
        refused(world.join("south"), "is not signed by", error=MembershipError)
