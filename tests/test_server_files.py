"""The coordinator's files: server.toml, the roster, the certificates."""

import ipaddress
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typer.testing import CliRunner

from server.certificates import Authority
from server.command import app
from server.roster import admit, read_roster
from server.server_file import read_server
from shared_models.configuration import ConfigurationError
from shared_models.node_keys import canonical_line, fingerprint, new_node_key, pem_bytes, public_line

GOOD = """
study = "study.toml"
roster = "roster.toml"
state = "state"
[listen]
host = "0.0.0.0"
port = 9443
[tls]
certificate = "tls/server.pem"
key = "tls/server.key"
ca_certificate = "tls/ca.pem"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "server.toml"
    path.write_text(text)
    return path


def test_relative_paths_count_from_the_files_own_folder(tmp_path: Path) -> None:
    server = read_server(written(tmp_path, GOOD))
    assert server.tls.key == tmp_path / "tls/server.key"
    assert server.state == tmp_path / "state"
    assert server.listen.address == "0.0.0.0:9443"


def test_every_problem_of_a_server_file_is_told_at_once(tmp_path: Path) -> None:
    wrong = (
        GOOD.replace("9443", "94430")
        .replace('state = "state"\n', "")
        .replace("[tls]", '[tls]\ncolour = "red"')
    )
    with pytest.raises(ConfigurationError) as caught:
        read_server(written(tmp_path, wrong))
    message = str(caught.value)
    assert "3 problems" in message
    assert "listen.port = 94430" in message
    assert "state is missing" in message
    assert "tls.colour is not a known key" in message


def test_the_key_may_not_be_one_of_the_certificates(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="key must be a file of its own"):
        read_server(written(tmp_path, GOOD.replace("tls/server.key", "tls/ca.pem")))


def test_a_site_is_admitted_with_either_spelling_of_its_key(tmp_path: Path) -> None:
    line, pem = new_node_key()[1], pem_bytes(new_node_key()[1]).decode()
    roster = tmp_path / "roster.toml"
    admit(roster, "north", line + " a comment")
    admit(roster, "south", pem)
    sites = read_roster(roster).site
    assert [site.name for site in sites] == ["north", "south"]
    assert read_roster(roster).name_of(line) == "north"
    assert read_roster(roster).name_of(canonical_line(pem)) == "south"
    assert read_roster(roster).name_of(new_node_key()[1]) is None


def test_a_wrong_entry_is_refused_and_leaves_the_roster_as_it_was(tmp_path: Path) -> None:
    private, line = new_node_key()
    roster = tmp_path / "roster.toml"
    admit(roster, "north", line)
    before = roster.read_bytes()
    foreign = ed25519.Ed25519PrivateKey.generate().public_key()
    brainpool = ec.generate_private_key(ec.BrainpoolP256R1()).public_key()
    for name, key, words in (
        ("north", new_node_key()[1], 'two sites are named "north"'),
        ("south", line, "have the same node key"),
        ("south", pem_bytes(line).decode(), "have the same node key"),
        ("south", "ecdsa-sha2-nistp256 AAAA", "is not a public key"),
        ("south", "", "is not a public key"),
        ("south", "ü", "is not a public key"),
        ("south", private.decode(), "is a private key: it must never leave"),
        ("south", "x" * 5000, "too long"),
        ("south", foreign.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(), "elliptic-curve"),
        (
            "south",
            brainpool.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
            "elliptic-curve",
        ),
        ("Süd!", new_node_key()[1], "name"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            admit(roster, name, key)
        assert roster.read_bytes() == before


def test_a_roster_that_was_edited_by_hand_is_checked_like_an_admitted_one(tmp_path: Path) -> None:
    path = tmp_path / "roster.toml"
    path.write_text('[[site]]\nname = "north"\nnode_key = "nonsense"\n[[site]]\nname = "south"\n')
    with pytest.raises(ConfigurationError) as caught:
        read_roster(path)
    assert "2 problems" in str(caught.value)
    assert "is not a public key" in str(caught.value)


def test_fingerprint_and_public_key_follow_from_the_private_key() -> None:
    private, line = new_node_key()
    assert public_line(private) == line
    assert fingerprint(line) == fingerprint(canonical_line(pem_bytes(line).decode()))
    assert fingerprint(line) != fingerprint(new_node_key()[1])
    assert len(fingerprint(line)) == 24


def test_the_server_certificate_holds_exactly_the_given_names() -> None:
    authority = Authority("Test", now=datetime(2026, 1, 1, tzinfo=UTC))
    issued = authority.server(["fl.example.org", "192.0.2.7", "2001:db8::1"])
    certificate = x509.load_pem_x509_certificate(issued.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("192.0.2.7"),
        ipaddress.ip_address("2001:db8::1"),
    ]
    ca = x509.load_pem_x509_certificate(authority.issued.certificate)
    certificate.verify_directly_issued_by(ca)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    with pytest.raises(ValueError, match="neither a DNS name nor an IP address"):
        authority.server(["https://fl.example.org"])
    with pytest.raises(ValueError, match="at least one"):
        authority.server([])


def test_init_makes_a_server_whose_keys_only_the_owner_can_read(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    done = CliRunner().invoke(app, ["init", str(folder), "--host", "localhost", "--host", "127.0.0.1"])
    assert done.exit_code == 0, done.output
    server = read_server(folder / "server.toml")
    assert server.listen.host == "127.0.0.1"  # made for this machine only, so nobody else is let in
    for name in ("server.key", "ca.key"):
        assert stat.S_IMODE((folder / "tls" / name).stat().st_mode) == 0o600
    key = serialization.load_pem_private_key(server.tls.key.read_bytes(), None)
    certificate = x509.load_pem_x509_certificate(server.tls.certificate.read_bytes())
    assert key.public_key() == certificate.public_key()
    assert read_roster(server.roster).site == ()
    again = CliRunner().invoke(app, ["init", str(folder), "--host", "localhost"])
    assert isinstance(again.exception, ConfigurationError)
    assert serialization.load_pem_private_key(server.tls.key.read_bytes(), None).private_numbers() == (
        key.private_numbers()  # type: ignore[union-attr]
    )


def test_admit_prints_the_fingerprint_to_compare(tmp_path: Path) -> None:
    CliRunner().invoke(app, ["init", str(tmp_path), "--host", "localhost"])
    line = new_node_key()[1]
    (tmp_path / "node.pub").write_text(line + " north\n")
    done = CliRunner().invoke(
        app, ["admit", "north", str(tmp_path / "node.pub"), "--config", str(tmp_path / "server.toml")]
    )
    assert done.exit_code == 0, done.output
    assert fingerprint(line) in done.output
