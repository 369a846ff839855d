"""The coordinator's files: server.toml, the roster, the certificates."""

import ipaddress
import json
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import Result
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from server.certificates import Authority
from server.command import app
from server.server_file import read_server, read_sites
from shared_models.configuration import ConfigurationError
from shared_models.identity_keys import (
    fingerprint,
    identity_line,
    new_identity_key,
    read_identity_key,
    read_public_key,
)
from shared_models.node_keys import canonical_line, new_node_key, pem_bytes, public_line
from shared_models.processes import write_private
from shared_models.roster import Roster, write_roster
from shared_models.site_request import SiteRequest, read_request, write_request

GOOD = """
study = "study.toml"
root = "root.pub"
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


def test_a_node_keys_public_line_follows_from_the_private_key() -> None:
    private, line = new_node_key()
    assert public_line(private) == line
    assert canonical_line(pem_bytes(line).decode()) == line


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
    assert stat.S_IMODE((folder / "root.key").stat().st_mode) == 0o600
    root = read_public_key(server.root)
    assert identity_line(read_identity_key(folder / "root.key")) == root
    assert fingerprint(root) in done.output
    assert read_sites(server) == Roster(version=0)
    again = CliRunner().invoke(app, ["init", str(folder), "--host", "localhost"])
    assert isinstance(again.exception, ConfigurationError)
    assert serialization.load_pem_private_key(server.tls.key.read_bytes(), None).private_numbers() == (
        key.private_numbers()  # type: ignore[union-attr]
    )


# Admission


class Coordinator:
    """A server made by `init`, and the coordinator at its command line."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, folder / "server.toml"
        assert run("init", str(folder), "--host", "localhost").exit_code == 0
        self.roster = folder / "roster.toml"

    def admit(self, request: Path, *more: str) -> Result:
        return run("admit", str(request), "--config", str(self.config), *more)

    def sites(self) -> Roster:
        return read_sites(read_server(self.config))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def a_request(folder: Path, name: str, identity: Ed25519PrivateKey | None = None) -> Path:
    request = SiteRequest.signed(
        name=name, node_key=new_node_key()[1], identity=identity or Ed25519PrivateKey.generate()
    )
    write_request(folder / f"{name}.request.toml", request)
    return folder / f"{name}.request.toml"


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator(tmp_path / "server")


def refused(done: Result, *words: str) -> None:
    assert isinstance(done.exception, ConfigurationError), done.output
    for word in words:
        assert word in str(done.exception)


def test_admit_prints_the_fingerprint_to_compare_and_signs_the_next_version(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    for number, name in enumerate(("north", "south"), start=1):
        request = a_request(tmp_path, name)
        done = coordinator.admit(request)
        assert done.exit_code == 0, done.output
        assert read_request(request).fingerprint in done.output
        assert "to every hospital" in done.output
        assert coordinator.sites().version == number
    assert [site.name for site in coordinator.sites().site] == ["north", "south"]
    assert coordinator.sites().entry("south") == read_request(tmp_path / "south.request.toml").site


def test_a_request_that_cannot_be_admitted_leaves_the_roster_as_it_was(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    identity = Ed25519PrivateKey.generate()
    coordinator.admit(a_request(tmp_path, "north", identity))
    before = coordinator.roster.read_bytes()
    refused(coordinator.admit(tmp_path / "north.request.toml"), "is in the roster already")
    (tmp_path / "other").mkdir()
    refused(
        coordinator.admit(a_request(tmp_path / "other", "north")),
        '"north" is in the roster already, with other keys',
        "--replace",
        "a name of its own",
    )
    refused(coordinator.admit(a_request(tmp_path, "west", identity)), "have the same identity key")
    foreign = a_request(tmp_path, "east")
    foreign.write_text(foreign.read_text().replace('"east"', '"centre"'))
    refused(coordinator.admit(foreign), str(foreign), "is not signed by the identity key that it names")
    refused(coordinator.admit(tmp_path / "none.toml"), "cannot be read")
    assert coordinator.roster.read_bytes() == before


def test_admission_needs_the_consortiums_root_key(coordinator: Coordinator, tmp_path: Path) -> None:
    request = a_request(tmp_path, "north")
    before = coordinator.roster.read_bytes()
    key = coordinator.folder / "root.key"
    key.chmod(0o644)
    refused(coordinator.admit(request), f"chmod 600 {key}")
    elsewhere = tmp_path / "stick.key"
    key.rename(elsewhere)
    elsewhere.chmod(0o600)
    refused(coordinator.admit(request), str(key), "cannot be read", "--root-key")
    write_private(tmp_path / "another.key", new_identity_key()[0])
    refused(
        coordinator.admit(request, "--root-key", str(tmp_path / "another.key")), "is not the private key of"
    )
    assert coordinator.roster.read_bytes() == before
    assert coordinator.admit(request, "--root-key", str(elsewhere)).exit_code == 0
    assert coordinator.sites().version == 1


def test_the_server_refuses_a_roster_that_was_edited_or_is_another_consortiums(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    coordinator.admit(a_request(tmp_path, "north"))
    good = coordinator.roster.read_text()
    coordinator.roster.write_text(good.replace('"north"', '"south"'))
    for command in ("status", "run"):
        if command == "run":
            coordinator.roster.write_text(good)
            write_roster(coordinator.roster, coordinator.sites(), Ed25519PrivateKey.generate())
        refused(
            run(command, "--config", str(coordinator.config)), "is not signed by the consortium's root key"
        )
    refused(coordinator.admit(a_request(tmp_path, "west")), "is not signed by the consortium's root key")


def test_status_shows_the_rosters_version_and_the_sites_fingerprints(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    request = a_request(tmp_path, "north")
    coordinator.admit(request)
    shown = run("status", "--config", str(coordinator.config)).output
    assert "Roster: version 1, 1 site\n" in shown
    assert read_request(request).fingerprint in shown
    values = json.loads(run("status", "--json", "--config", str(coordinator.config)).output)
    assert (values["roster_version"], values["sites"]) == (1, {"north": False})


@pytest.mark.parametrize("name", ["ca.key", "server.key"])
def test_init_without_server_toml_never_replaces_the_keys_of_its_certificates(
    coordinator: Coordinator, name: str
) -> None:
    coordinator.config.unlink()
    other = {"ca.key": "server.key", "server.key": "ca.key"}[name]
    (coordinator.folder / "tls" / other).unlink()
    files = [path for path in coordinator.folder.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    done = run("init", str(coordinator.folder), "--host", "localhost")
    refused(done, f"tls/{name}", "move them away", "choose another folder")
    assert {path: path.read_bytes() for path in coordinator.folder.rglob("*") if path.is_file()} == before


def test_init_never_replaces_a_root_key(coordinator: Coordinator, tmp_path: Path) -> None:
    before = (coordinator.folder / "root.key").read_bytes()
    coordinator.config.unlink()
    (coordinator.folder / "tls").rename(tmp_path / "old-tls")
    assert run("init", str(coordinator.folder), "--host", "localhost").exit_code == 0
    assert (coordinator.folder / "root.key").read_bytes() == before
    coordinator.config.unlink()
    (coordinator.folder / "tls").rename(tmp_path / "older-tls")
    (coordinator.folder / "root.key").unlink()
    refused(run("init", str(coordinator.folder), "--host", "localhost"), "exists without its root.key")
    assert not coordinator.config.exists()
