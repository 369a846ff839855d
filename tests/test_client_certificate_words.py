"""What a hospital is told about the server's certificate, over real TLS connections on loopback."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError
from toy_consortium import needs_ipv6

from client.launch import SiteError, check_server
from client.site_file import Server
from server.certificates import Authority, Issued
from shared_models.processes import write_private

NOW = datetime.now(UTC)


@contextmanager
def listening(folder: Path, issued: Issued, host: str = "127.0.0.1") -> Iterator[int]:
    """A TLS server with this certificate, which says nothing. Yields its port."""
    (folder / "server.pem").write_bytes(issued.certificate)
    write_private(folder / "server.key", issued.key, replace=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        listener.settimeout(0.1)
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                try:
                    plain, _ = listener.accept()
                except TimeoutError:
                    continue
                plain.settimeout(5.0)
                try:
                    context.wrap_socket(plain, server_side=True).close()
                except OSError:
                    plain.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ended.set()
            thread.join()


def site(folder: Path, authority: Authority, port: int, host: str = "127.0.0.1") -> Server:
    (folder / "ca.pem").write_bytes(authority.issued.certificate)
    return Server(address=f"{host}:{port}", ca_certificate=folder / "ca.pem", node_key=folder / "node.key")


def told(folder: Path, authority: Authority, issued: Issued, known: Authority | None = None) -> str:
    """What the hospital is told that has the *known* authority's ca.pem."""
    with (
        listening(folder, issued) as port,
        pytest.raises(SiteError) as caught,
    ):
        check_server(site(folder, known or authority, port))
    return str(caught.value)


def test_a_good_certificate_is_no_matter(tmp_path: Path) -> None:
    authority = Authority("Ours")
    with listening(tmp_path, authority.server(["127.0.0.1"])) as port:
        check_server(site(tmp_path, authority, port))


def test_an_expired_certificate_is_told_with_its_days_and_who_mends_it(tmp_path: Path) -> None:
    authority = Authority("Ours", now=NOW - timedelta(days=100, hours=2))
    said = told(tmp_path, authority, authority.server(["127.0.0.1"], days=93))
    assert f"ended 7 days ago (on {NOW - timedelta(days=7, hours=2):%d %B %Y})" in said
    assert "the coordinator makes a new one with `collegium-server certificate`" in said
    assert "Nothing has to be changed here" in said
    assert f"it says {datetime.now(UTC):%d %B %Y}" in said


def test_a_certificate_that_is_not_valid_yet_points_at_the_clocks(tmp_path: Path) -> None:
    past = Authority("Ours")
    future = Authority("Ours", now=NOW + timedelta(days=3))
    future._key, future._certificate = past._key, past._certificate
    said = told(tmp_path, past, future.server(["127.0.0.1"]))
    assert f"is valid only from {NOW + timedelta(days=3, hours=-1):%d %B %Y, %H:%M} UTC on" in said
    assert "set the clock" in said
    assert "the server's was wrong" in said


def test_an_authority_that_ended_or_has_not_begun_is_told_as_the_own_file(tmp_path: Path) -> None:
    ended = Authority("Ours", now=NOW - timedelta(days=20), days=10)
    said = told(tmp_path, ended, ended.server(["127.0.0.1"], days=5))
    assert (
        f"server.ca_certificate: {tmp_path / 'ca.pem'}, the consortium's authority, ended 10 days ago" in said
    )
    assert "ask the coordinator for a new ca.pem" in said
    coming = Authority("Ours", now=NOW + timedelta(days=2))
    said = told(tmp_path, coming, coming.server(["127.0.0.1"]))
    assert f"server.ca_certificate: {tmp_path / 'ca.pem'} is valid only from" in said
    assert "set the clock" in said


def test_a_foreign_certificate_is_told_with_who_issued_it(tmp_path: Path) -> None:
    foreign = Authority("Hospital proxy\n\x1b[31m")
    said = told(tmp_path, foreign, foreign.server(["127.0.0.1"]), known=Authority("Ours"))
    assert "is not the consortium's server: its certificate was not issued by" in said
    assert "Hospital proxy" in said
    assert "\x1b" not in said
    assert "\n" not in said
    assert "Nothing was sent" in said


def test_another_consortiums_expired_certificate_is_first_of_all_foreign(tmp_path: Path) -> None:
    foreign = Authority("Theirs", now=NOW - timedelta(days=100))
    said = told(tmp_path, foreign, foreign.server(["127.0.0.1"], days=5), known=Authority("Ours"))
    assert "is not the consortium's server" in said


def test_a_certificate_for_other_names_is_told_with_those_names(tmp_path: Path) -> None:
    authority = Authority("Ours")
    said = told(tmp_path, authority, authority.server(["fl.example.org", "2001:db8::1"]))
    assert "is not for the name 127.0.0.1 (it is for fl.example.org, 2001:db8::1)" in said
    assert "collegium-server certificate --host 127.0.0.1" in said


# Addresses


@needs_ipv6
def test_an_ipv6_address_stands_in_brackets_and_is_reached(tmp_path: Path) -> None:
    authority = Authority("Ours")
    with listening(tmp_path, authority.server(["::1"]), "::1") as port:
        server = site(tmp_path, authority, port, "[::1]")
        assert (server.host, server.port) == ("::1", port)
        check_server(server)
    with (
        listening(tmp_path, authority.server(["::2"]), "::1") as port,
        pytest.raises(SiteError, match=r"of \[::1\]:\d+ is not for the name ::1 \(it is for ::2\)"),
    ):
        check_server(site(tmp_path, authority, port, "[::1]"))


@pytest.mark.parametrize(
    "address",
    [
        "localhost",
        "::1:9443",
        "2001:db8::1:9443",
        "[localhost]:9443",
        "[::g]:9443",
        "[]:9443",
        "a:0",
        "a:65536",
        "https://a:9443",
        "a b:9443",
        ":9443",
        "[::1]",
        "a:9443/x",
        "[::1%eth0]:9443",
    ],
)
def test_what_is_no_address_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(ValidationError):
        Server(address=address, ca_certificate=tmp_path, node_key=tmp_path)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("fl.example.org:9443", "fl.example.org"),
        ("192.0.2.1:1", "192.0.2.1"),
        ("[2001:db8::1]:65535", "2001:db8::1"),
    ],
)
def test_names_and_addresses_of_both_kinds_are_taken(tmp_path: Path, address: str, host: str) -> None:
    assert Server(address=address, ca_certificate=tmp_path, node_key=tmp_path).host == host
