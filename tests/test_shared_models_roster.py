"""The roster: who is in it, who signed it, and what an attacker who holds the file can make of it."""

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared_models.configuration import ConfigurationError
from shared_models.identity_keys import identity_line, new_identity_key, public_bytes
from shared_models.node_keys import canonical_line, new_node_key, pem_bytes
from shared_models.roster import Roster, RosterSite, read_roster, write_roster
from shared_models.site_request import SiteRequest, read_request, write_request

ROOT = Ed25519PrivateKey.generate()
LINE = identity_line(ROOT)


def a_site(name: str) -> RosterSite:
    return RosterSite(name=name, node_key=new_node_key()[1], identity_key=new_identity_key()[1])


def _entry(site: RosterSite) -> str:
    keys = f'node_key = "{site.node_key}"\nidentity_key = "{site.identity_key}"\n'
    return f'\n[[site]]\nname = "{site.name}"\n{keys}'


def _swapped(text: str) -> str:
    """The two sites' identity keys, each under the other's name."""
    first, second = [line for line in text.splitlines() if line.startswith("identity_key")]
    return text.replace(first, "FIRST").replace(second, first).replace("FIRST", second)


@pytest.fixture
def roster() -> Roster:
    return Roster(version=2, site=(a_site("north"), a_site("south")))


@pytest.fixture
def path(tmp_path: Path, roster: Roster) -> Path:
    write_roster(tmp_path / "roster.toml", roster, ROOT)
    return tmp_path / "roster.toml"


def test_a_roster_that_was_written_is_read_again_and_knows_its_sites(path: Path, roster: Roster) -> None:
    again = read_roster(path, LINE)
    assert again == roster
    assert again.hash == roster.hash
    north, south = roster.site
    assert dict(again.identities) == {
        "north": public_bytes(north.identity_key),
        "south": public_bytes(south.identity_key),
    }
    assert all(len(key) == 32 for key in again.identities.values())
    assert again.name_of(south.node_key) == "south"
    assert again.name_of(new_node_key()[1]) is None
    assert again.entry("north") == north
    assert again.entry("west") is None
    assert not path.with_name("roster.toml.new").exists()


def test_a_new_consortium_has_a_signed_roster_without_sites(tmp_path: Path) -> None:
    write_roster(tmp_path / "roster.toml", Roster(version=0), ROOT)
    assert read_roster(tmp_path / "roster.toml", LINE) == Roster(version=0)


def test_the_hash_covers_version_names_keys_and_order(roster: Roster) -> None:
    north, south = roster.site
    others = [
        Roster(version=3, site=roster.site),
        Roster(version=2, site=(south, north)),
        Roster(version=2, site=(north,)),
        Roster(version=2, site=(north.model_copy(update={"name": "west"}), south)),
        Roster(version=2, site=(a_site("north"), south)),
    ]
    assert len({roster.hash, *(other.hash for other in others)}) == 6
    assert len(roster.hash) == 32


def test_the_hash_is_that_of_the_labelled_canonical_encoding() -> None:
    private = Ed25519PrivateKey.from_private_bytes(bytes(32))
    key = ec.derive_private_key(1, ec.SECP256R1()).public_key()
    node = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    site = RosterSite(name="north", node_key=node, identity_key=identity_line(private))
    entry = f'{{"identity_key":"{site.identity_key}","name":"north","node_key":"{node}"}}'
    encoding = f'{{"revoked":[],"site":[{entry}],"version":1}}'
    expected = hashlib.sha256(b"collegium-roster-1\n" + encoding.encode()).digest()
    assert Roster(version=1, site=(site,)).hash == expected
    past = f'{entry[:-1]},"replaced":false,"version":2}}'
    encoding = f'{{"revoked":[{past}],"site":[],"version":2}}'
    expected = hashlib.sha256(b"collegium-roster-1\n" + encoding.encode()).digest()
    assert Roster(version=1, site=(site,)).without_site("north").hash == expected


def test_the_fingerprint_of_a_roster_is_all_of_its_hash(roster: Roster) -> None:
    """Whoever signs chooses both of two rosters: a shortened one would have to withstand a search for a pair."""
    groups = roster.fingerprint.split("-")
    assert [len(group) for group in groups] == [4] * 16
    assert bytes.fromhex("".join(groups)) == roster.hash


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("version = 2", "version = 3"),
        lambda text: text.replace('"north"', '"west"'),
        lambda text: text[: text.rindex("[[site]]")],
        _swapped,
        lambda text: text + _entry(a_site("west")),
    ],
    ids=["version", "name", "site-removed", "keys-swapped", "site-added"],
)
def test_a_roster_that_was_edited_is_refused(path: Path, change) -> None:
    text = path.read_text()
    changed = change(text)
    assert changed != text
    path.write_text(changed)
    with pytest.raises(ConfigurationError, match="is not signed by the consortium's root key") as caught:
        read_roster(path, LINE)
    assert str(path) in str(caught.value)
    assert "edited after it was signed" in str(caught.value)


def test_comments_and_spelling_are_not_signed(path: Path, roster: Roster) -> None:
    path.write_text("# another comment\n" + path.read_text().replace("\n[[site]]", "\n\n[[ site ]]  # one"))
    assert read_roster(path, LINE) == roster


def test_a_roster_of_another_consortium_is_refused(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="another consortium's"):
        read_roster(path, new_identity_key()[1])


def test_a_sites_signature_on_its_request_does_not_sign_a_roster(tmp_path: Path) -> None:
    """The statements carry labels: what one kind of file is signed with is no signature for another kind."""
    node = new_node_key()[1]
    request = SiteRequest.signed(name="north", node_key=node, identity=ROOT)
    path = tmp_path / "roster.toml"
    path.write_text(f'version = 1\nsignature = "{request.signature}"\n' + _entry(request.site))
    with pytest.raises(ConfigurationError, match="is not signed by"):
        read_roster(path, LINE)


def test_a_roster_that_is_not_there_or_no_text_says_who_has_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be read .*; the coordinator has it"):
        read_roster(tmp_path / "none.toml", LINE)
    (tmp_path / "roster.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="is not UTF-8 text"):
        read_roster(tmp_path / "roster.toml", LINE)


def test_every_problem_of_a_roster_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "roster.toml"
    path.write_text(
        'version = -1\nsignature = "AAAA"\n'
        '[[site]]\nname = "north"\nnode_key = "nonsense"\nidentity_key = "nonsense"\n'
        '[[site]]\nname = "Süd"\n'
    )
    with pytest.raises(ConfigurationError) as caught:
        read_roster(path, LINE)
    message = str(caught.value)
    assert "7 problems" in message
    for words in ("version = -1", "3 bytes; a signature has 64", "line 5: site.0.node_key", "site.1.name"):
        assert words in message
    path.write_text('version = 0\nsignature = "!"\n')
    with pytest.raises(ConfigurationError, match="is not base64"):
        read_roster(path, LINE)


def test_names_and_both_keys_are_unique_and_a_refused_site_changes_nothing(roster: Roster) -> None:
    north = roster.site[0]
    extended = roster.with_site(a_site("west"))
    assert (extended.version, [site.name for site in extended.site]) == (3, ["north", "south", "west"])
    for site, words in (
        (north, "is in the roster already"),
        (a_site("north"), "in the roster already, with other keys"),
        (a_site("west").model_copy(update={"node_key": north.node_key}), "have the same node key"),
        (
            a_site("west").model_copy(update={"identity_key": north.identity_key}),
            "have the same identity key",
        ),
    ):
        with pytest.raises(ConfigurationError, match=words):
            roster.with_site(site)
    assert roster.version == 2


def test_a_node_key_may_be_spelled_as_pem_and_is_still_the_same_key(roster: Roster) -> None:
    north = roster.site[0]
    pem = pem_bytes(north.node_key).decode()
    assert canonical_line(pem) == north.node_key
    same = RosterSite(name="west", node_key=pem, identity_key=new_identity_key()[1])
    with pytest.raises(ConfigurationError, match="have the same node key"):
        roster.with_site(same)


def test_an_entry_with_a_wrong_key_is_refused() -> None:
    node, identity = new_node_key(), new_identity_key()
    brainpool = ec.generate_private_key(ec.BrainpoolP256R1()).public_key()
    pem = brainpool.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    for name, node_key, identity_key, words in (
        ("north", "", identity[1], "is not a public key"),
        ("north", "ü", identity[1], "is not a public key"),
        ("north", "ecdsa-sha2-nistp256 AAAA", identity[1], "is not a public key"),
        ("north", "x" * 5000, identity[1], "too long"),
        ("north", node[0].decode(), identity[1], "is a private key: it must never leave"),
        ("north", identity[1], identity[1], "elliptic-curve"),
        ("north", pem, identity[1], "elliptic-curve"),
        ("north", node[1], node[1], "of another kind"),
        ("north", node[1], identity[0].decode(), "is a private key: it must never leave"),
        ("Süd!", node[1], identity[1], "name"),
    ):
        with pytest.raises(ValueError, match=words):
            RosterSite(name=name, node_key=node_key, identity_key=identity_key)


# Requests


def test_a_request_is_read_again_and_has_one_fingerprint_over_both_keys(tmp_path: Path) -> None:
    identity = Ed25519PrivateKey.generate()
    request = SiteRequest.signed(name="north", node_key=new_node_key()[1], identity=identity)
    write_request(tmp_path / "north.request.toml", request)
    again = read_request(tmp_path / "north.request.toml")
    assert again == request
    assert again.site.identity_key == identity_line(identity)
    assert again.fingerprint == again.site.fingerprint
    assert len(again.fingerprint) == 24


@pytest.mark.slow
def test_nobody_can_ask_for_a_place_with_somebody_elses_identity_key(tmp_path: Path) -> None:
    identity = Ed25519PrivateKey.generate()
    request = SiteRequest.signed(name="north", node_key=new_node_key()[1], identity=identity)
    path = tmp_path / "north.request.toml"
    for change in (
        {"name": "south"},
        {"node_key": new_node_key()[1]},
        {"identity_key": new_identity_key()[1]},
    ):
        write_request(path, request.model_copy(update=change))
        with pytest.raises(ConfigurationError, match="is not signed by the identity key that it names"):
            read_request(path)
    write_request(path, request)
    path.write_text(path.read_text() + 'colour = "red"\n')
    with pytest.raises(ConfigurationError, match="colour is not a known key"):
        read_request(path)
