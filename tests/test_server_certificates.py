"""New certificates for the server, and what the server says of the one it has."""

import ipaddress
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import Result
from cryptography import x509
from test_server_files import Coordinator, refused, run

from server.certificate_check import check_tls
from server.certificates import Authority, issue_server_certificate
from server.launch import open_server
from server.server_file import Tls, read_server, read_sites
from shared_models import key_files
from shared_models.certificate_checks import names_of
from shared_models.configuration import ConfigurationError
from shared_models.identity_keys import read_identity_key
from shared_models.key_files import is_encrypted
from shared_models.processes import write_private

NOW = datetime.now(UTC)


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator(tmp_path / "server")


def tls_of(coordinator: Coordinator) -> Tls:
    return read_server(coordinator.config).tls


def certificate(coordinator: Coordinator, *arguments: str) -> Result:
    return run("certificate", "--config", str(coordinator.config), *arguments)


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def files(coordinator: Coordinator) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in coordinator.folder.rglob("*") if path.is_file()}


def take(coordinator: Coordinator, authority: Authority, *, days: int = 825) -> None:
    """The server's files with this authority and a certificate of it."""
    folder = coordinator.folder / "tls"
    issued = authority.server(["localhost"], days=days)
    (folder / "ca.pem").write_bytes(authority.issued.certificate)
    (folder / "server.pem").write_bytes(issued.certificate)
    write_private(folder / "server.key", issued.key, replace=True)
    write_private(folder / "ca.key", authority.key_file(None), replace=True)


# A new one


def test_a_new_certificate_has_the_same_names_and_a_new_key_under_the_same_authority(
    coordinator: Coordinator,
) -> None:
    tls = tls_of(coordinator)
    before, ca = read(tls.certificate), tls.ca_certificate.read_bytes()
    done = certificate(coordinator, "--days", "90")
    assert done.exit_code == 0, (done.output, done.exception)
    made = read(tls.certificate)
    assert names_of(made) == names_of(before) == ["localhost"]
    assert made.public_key() != before.public_key()
    assert made.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=90)
    assert tls.ca_certificate.read_bytes() == ca
    assert stat.S_IMODE(tls.key.stat().st_mode) == 0o600
    assert check_tls(tls) == []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)  # and they belong together
    assert "hospitals need nothing new" in done.output
    assert not list((coordinator.folder / "tls").glob("*.new"))


def test_new_names_take_the_place_of_the_old_ones_and_that_is_said(coordinator: Coordinator) -> None:
    done = certificate(
        coordinator, "--host", "fl.example.org", "--host", "192.0.2.7", "--host", "2001:db8::1"
    )
    assert done.exit_code == 0, (done.output, done.exception)
    assert names_of(read(tls_of(coordinator).certificate)) == ["fl.example.org", "192.0.2.7", "2001:db8::1"]
    assert "No longer for localhost" in done.output


def test_a_lost_certificate_can_be_made_again_with_names(coordinator: Coordinator) -> None:
    tls = tls_of(coordinator)
    tls.certificate.unlink()
    tls.key.unlink()
    refused(certificate(coordinator), "for which names: say --host")
    assert certificate(coordinator, "--host", "localhost").exit_code == 0
    assert check_tls(tls) == []


def test_the_authoritys_key_may_be_elsewhere_and_must_be_its_own(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    key = coordinator.folder / "tls" / "ca.key"
    key.rename(tmp_path / "stick.key")
    before = files(coordinator)
    refused(certificate(coordinator), str(key), "cannot be read", "--ca-key")
    write_private(tmp_path / "other.key", Authority("Another").key_file(None))
    refused(
        certificate(coordinator, "--ca-key", str(tmp_path / "other.key")),
        "is not the private key of",
        "ca.pem",
    )
    refused(
        certificate(coordinator, "--ca-key", str(coordinator.folder / "root.key")), "is not the private key"
    )
    (tmp_path / "stick.key").chmod(0o644)
    refused(certificate(coordinator, "--ca-key", str(tmp_path / "stick.key")), "others may read")
    assert files(coordinator) == before
    (tmp_path / "stick.key").chmod(0o600)
    assert certificate(coordinator, "--ca-key", str(tmp_path / "stick.key")).exit_code == 0


def test_an_authority_that_ended_issues_nothing_more(coordinator: Coordinator) -> None:
    take(coordinator, Authority("Ours", now=NOW - timedelta(days=400), days=395))
    before = files(coordinator)
    refused(certificate(coordinator), "ca.pem ended 5 days ago", "give the new ca.pem to every hospital")
    take(coordinator, Authority("Ours", now=NOW + timedelta(days=2)))
    refused(certificate(coordinator), "is valid only from", "clock")
    assert before.keys() == files(coordinator).keys()


def test_a_certificate_ends_no_later_than_its_authority() -> None:
    authority = Authority("Ours", now=NOW - timedelta(days=90), days=100)
    issued = issue_server_certificate(
        authority._certificate, authority._key, ["localhost"], now=NOW, days=825
    )
    made = x509.load_pem_x509_certificate(issued.certificate)
    assert made.not_valid_after_utc == authority._certificate.not_valid_after_utc


def test_what_is_no_host_changes_nothing(coordinator: Coordinator) -> None:
    before = files(coordinator)
    refused(
        certificate(coordinator, "--host", "https://fl.example.org"), "neither a DNS name nor an IP address"
    )
    assert files(coordinator) == before


# What the server says of the one it has


def test_a_server_does_not_start_with_a_certificate_that_ended(coordinator: Coordinator) -> None:
    take(coordinator, Authority("Ours", now=NOW - timedelta(days=50)), days=47)
    server = read_server(coordinator.config)
    with (
        pytest.raises(ConfigurationError, match=r"ended 3 days ago; .*collegium-server certificate"),
        open_server(server, read_sites(server)),
    ):
        pass
    assert not server.state.exists()
    assert certificate(coordinator).exit_code == 0
    assert check_tls(server.tls) == []


def test_a_certificate_that_is_not_valid_yet_is_refused(coordinator: Coordinator) -> None:
    tls = tls_of(coordinator)
    with pytest.raises(ConfigurationError, match="is valid only from"):
        check_tls(tls, NOW - timedelta(days=2))


def test_a_certificate_about_another_key_is_refused(coordinator: Coordinator) -> None:
    tls = tls_of(coordinator)
    good = tls.key.read_bytes()
    write_private(tls.key, Authority("x").server(["localhost"]).key, replace=True)
    with pytest.raises(ConfigurationError, match="is about another key than"):
        check_tls(tls)
    write_private(tls.key, b"nonsense", replace=True)
    with pytest.raises(ConfigurationError, match="is not a PEM private key"):
        check_tls(tls)
    tls.key.unlink()
    with pytest.raises(ConfigurationError, match=r"server\.key cannot be read"):
        check_tls(tls)
    write_private(tls.key, good)
    assert check_tls(tls) == []


def test_a_certificate_of_another_authority_is_refused(coordinator: Coordinator) -> None:
    tls = tls_of(coordinator)
    tls.ca_certificate.write_bytes(Authority("Collegium consortium of localhost").issued.certificate)
    with pytest.raises(ConfigurationError, match="was not issued by"):
        check_tls(tls)
    tls.ca_certificate.write_text("nonsense")
    with pytest.raises(ConfigurationError, match="is not a PEM certificate"):
        check_tls(tls)
    tls.ca_certificate.unlink()
    with pytest.raises(ConfigurationError, match=r"ca\.pem cannot be read"):
        check_tls(tls)


def test_what_ends_within_thirty_days_is_told(coordinator: Coordinator) -> None:
    take(coordinator, Authority("Ours", days=50), days=40)
    tls = tls_of(coordinator)
    assert check_tls(tls, NOW + timedelta(days=9)) == []
    (said,) = check_tls(tls, NOW + timedelta(days=11))
    assert "server.pem ends in 30 days" in said or "server.pem ends in 29 days" in said
    assert "collegium-server certificate" in said
    both = check_tls(tls, NOW + timedelta(days=39, hours=20))
    assert "server.pem ends in 1 day:" in both[0]
    assert "every hospital needs a new ca.pem" in both[1]


def test_run_warns_of_what_ends_soon_and_refuses_what_has_ended(coordinator: Coordinator) -> None:
    take(coordinator, Authority("Ours"), days=20)
    done = run("run", "--config", str(coordinator.config))
    assert "server.pem ends in 20 days: make a new one with `collegium-server certificate`" in done.output
    refused(done, "study.toml")  # which this server does not have
    take(coordinator, Authority("Ours", now=NOW - timedelta(days=50)), days=20)
    refused(run("run", "--config", str(coordinator.config)), "server.pem ended 30 days ago")


# Names


@pytest.mark.parametrize(
    ("hosts", "interface"),
    [
        (["localhost"], "127.0.0.1"),
        (["::1"], "::1"),
        (["::1", "127.0.0.1"], "localhost"),
        (["localhost", "::1"], "localhost"),
        (["fl.example.org", "192.0.2.7"], "0.0.0.0"),
        (["fl.example.org", "192.0.2.7", "2001:db8::1"], "::"),
    ],
)
def test_init_takes_names_and_addresses_of_both_kinds_and_listens_for_them(
    tmp_path: Path, hosts: list[str], interface: str
) -> None:
    done = run("init", str(tmp_path / "server"), *(word for host in hosts for word in ("--host", host)))
    assert done.exit_code == 0, (done.output, done.exception)
    server = read_server(tmp_path / "server" / "server.toml")
    assert server.listen.host == interface
    names = read(server.tls.certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [ipaddress.ip_address(host) for host in hosts if host[0].isdigit() or ":" in host]
    assert names.get_values_for_type(x509.IPAddress) == addresses


# Keys under a passphrase


@pytest.mark.slow
def test_root_key_and_authority_under_a_passphrase_admit_and_issue_with_it_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_server_files import a_request

    monkeypatch.setattr(key_files, "KDF_ROUNDS", 1)
    folder = tmp_path / "server"
    refused(run("init", str(folder), "--host", "localhost", "--passphrase"), "no passphrase was given")
    assert not folder.exists()
    monkeypatch.setenv("COLLEGIUM_PASSPHRASE", "a long one")
    assert run("init", str(folder), "--host", "localhost", "--passphrase").exit_code == 0
    for name in ("root.key", "tls/ca.key"):
        assert is_encrypted((folder / name).read_bytes())
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    read_identity_key(folder / "root.key")
    config = ("--config", str(folder / "server.toml"))
    request = str(a_request(tmp_path, "north"))
    monkeypatch.setenv("COLLEGIUM_PASSPHRASE", "another")
    refused(run("admit", request, *config), "the root key", "the passphrase does not open it")
    refused(run("certificate", *config), "the authority's key", "the passphrase does not open it")
    monkeypatch.delenv("COLLEGIUM_PASSPHRASE")
    refused(run("admit", request, *config), "root.key: is encrypted", "COLLEGIUM_PASSPHRASE_FILE")
    refused(run("certificate", *config), "ca.key: is encrypted", "COLLEGIUM_PASSPHRASE_FILE")
    monkeypatch.setenv("COLLEGIUM_PASSPHRASE", "a long one")
    assert run("admit", request, *config).exit_code == 0
    assert run("revoke", "north", "--yes", *config).exit_code == 0
    assert run("certificate", *config).exit_code == 0
    assert run("status", *config).exit_code == 0
