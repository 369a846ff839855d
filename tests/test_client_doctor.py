"""`collegium-client doctor`: everything that can be wrong at a site and on the way to the server is found and told."""

import json
import os
import socket
import ssl
import stat
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from toy_consortium import make_server, make_site
from toy_gate import REFUSED, UNKNOWN, ConnectProxy, Interceptor, Listener, ToyGate
from typer.testing import CliRunner

from client.approvals import Approvals
from client.command import app
from client.doctor import SiteDoctor
from client.doctor_connection import ConnectionDoctor
from client.doctor_network import Answer, Route, connect
from client.doctor_payload import payload_bytes
from client.doctor_proxy import proxy_for
from client.doctor_server import judge_clock, judge_speed
from client.membership import own_key
from client.site_file import read_site
from client.site_journal import make_journal, open_journal
from server.certificates import Authority
from server.gate_doctor import DoctorRefused
from server.server_file import read_sites
from shared_models.checkup import Finding, Wrong, run_checks, shown
from shared_models.identity_keys import read_identity_key
from shared_models.node_keys import new_node_key, public_line
from shared_models.processes import free_port, write_private
from shared_models.proposal import sign_study, write_proposal
from shared_models.roster import Roster, write_roster
from shared_models.study import Study, read_study

PAYLOAD = 300_000
AUTHORITY = Authority("Toy consortium")


class Hospital:
    """The site "north" with all that it needs, and the way to examine it."""

    def __init__(self, folder: Path, authority: Authority = AUTHORITY) -> None:
        self.base, self.folder, self.authority = folder, folder / "north", authority
        self.server, keys = make_server(folder / "server", ("north", "south"))
        folder.joinpath("ca.pem").write_bytes(authority.issued.certificate)
        self.config = make_site(self.folder, "north", self.server, keys["north"], ca=folder / "ca.pem")
        self.folder.chmod(0o700)
        (self.folder / "images").mkdir()
        (self.folder / "images" / "a.dcm").write_bytes(b"DICM")
        (self.folder / "labels.csv").write_text("PatientID;finding\nJane;yes\n")
        self.state = self.folder / "state"
        self.state.mkdir(mode=0o700)
        file = read_site(self.config)
        make_journal(file, own_key(file))
        write_private(self.state / "index.json", b"{}")
        self.port = self.server.listen.port
        self.environment: dict[str, str] = {}

    def gate(self, **options: object) -> ToyGate:
        return ToyGate(self.base / "gate", self.authority, port=self.port, **options)  # type: ignore[arg-type]

    def sign_roster(self, version: int) -> None:
        root = read_identity_key(self.base / "server" / "root.key")
        sites = read_sites(self.server).site
        write_roster(self.server.roster, Roster(version=version, site=sites), root)

    def address(self, address: str) -> None:
        text = self.config.read_text()
        self.config.write_text(text.replace(f"127.0.0.1:{self.port}", address))

    def findings(self) -> dict[str, Finding]:
        doctor = SiteDoctor(self.config, payload_bytes=PAYLOAD, environment=self.environment)
        try:
            return {finding.check: finding for finding in run_checks(doctor.checks())}
        finally:
            doctor.close()

    def run(self, *options: str) -> Result:
        return CliRunner().invoke(
            app, ["doctor", "--config", str(self.config), "--payload-mib", "0.1", *options]
        )


@pytest.fixture
def north(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path)


def says(findings: Mapping[str, Finding], check: str, state: str, *words: str) -> None:
    assert findings[check].state == state, findings[check]
    for word in words:
        assert word in findings[check].message, findings[check]


def not_checked(findings: Mapping[str, Finding], *checks: str) -> None:
    for check in checks:
        assert findings[check].state == "not checked", findings[check]
        assert findings[check].message.startswith("not checked: ")


BEHIND_TLS = ("clock", "roster version", "registration", "round trip")


# Everything in order


def test_a_site_that_has_everything_is_told_so(north: Hospital) -> None:
    with north.gate() as gate:
        findings = north.findings()
        done = north.run()
        assert gate.passed == 2 * ["/v1/fleet/activate-node"]
    assert {finding.state for finding in findings.values()} == {"ok"}, findings
    assert done.exit_code == 0, done.output
    assert f"Nothing is wrong: all {len(findings)} checks are ok." in done.output
    assert "0.286 MiB up in" in findings["round trip"].message
    assert "MiB/s" in findings["round trip"].message
    assert done.output.count("[✓]") == len(done.output.splitlines()) - 1 == len(findings)


def test_the_report_for_scripts_is_a_list_of_checks(north: Hospital) -> None:
    done = north.run("--json")
    values = json.loads(done.output)
    assert done.exit_code == 1
    assert [set(value) for value in values] == len(values) * [{"check", "state", "message"}]
    states = {value["check"]: value["state"] for value in values}
    assert (states["site.toml"], states["port"], states["clock"]) == ("ok", "wrong", "not checked")


def test_warnings_do_not_fail(north: Hospital) -> None:
    north.state.joinpath("index.json").unlink()
    with north.gate():
        done = north.run()
    assert "\n1 warning\n" in done.output
    assert done.exit_code == 0


def test_the_report_says_nothing_about_patients_and_leaves_nothing_behind(north: Hospital) -> None:
    before = {path: path.stat().st_mtime_ns for path in north.folder.rglob("*") if path.is_file()}
    with north.gate():
        told = north.run("--json").output
    assert "Jane" not in told
    assert "yes" not in told
    assert {path: path.stat().st_mtime_ns for path in north.folder.rglob("*") if path.is_file()} == before


def test_lines_fit_a_terminal_of_eighty_columns(north: Hospital) -> None:
    for finding in north.findings().values():
        for line in shown(finding, 80).splitlines():
            assert len(line) <= 80 or " " not in line.strip(), line  # a path is not broken


def test_a_check_that_breaks_is_an_error_of_its_line_and_the_others_go_on(
    north: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("at\x1b[31m the\nworst time")

    monkeypatch.setattr("client.doctor.check_room", broken)
    with north.gate():
        findings = north.findings()
    says(findings, "disk", "wrong", "this check itself broke (ZeroDivisionError: at?[31m the?worst time)")
    assert findings["round trip"].state == "ok"


# The site's own files


def test_a_site_file_that_cannot_be_read_ends_every_other_check(north: Hospital) -> None:
    north.config.write_text("name = 3\n")
    findings = north.findings()
    says(findings, "site.toml", "wrong", "name = 3")
    not_checked(findings, *(name for name in findings if name not in ("site.toml", "authority")))
    assert "Traceback" not in north.run().output


@pytest.mark.parametrize(
    ("path", "mode", "check", "state", "words"),
    [
        ("north/node.key", 0o644, "node key", "wrong", "chmod 600"),
        ("server/north.identity.key", 0o640, "identity key", "wrong", "chmod 600"),
        ("north/state/site.secret", 0o604, "site secret", "wrong", "chmod 600"),
        ("north/state", 0o755, "state folder", "wrong", "chmod 700"),
        ("north", 0o770, "folder", "wrong", "chmod 700"),
        ("north", 0o755, "folder", "warning", "chmod 700"),
    ],
)
def test_files_that_others_may_read_are_named_with_the_command_that_mends_it(
    north: Hospital, path: str, mode: int, check: str, state: str, words: str
) -> None:
    (north.base / path).chmod(mode)
    says(north.findings(), check, state, words, str(north.base / path))
    assert stat.S_IMODE((north.base / path).stat().st_mode) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_state_folder_of_another_user_is_told(north: Hospital) -> None:
    os.chown(north.state, 12345, -1)
    says(north.findings(), "state folder", "warning", "belongs to user 12345")


def test_keys_that_are_gone_or_none_are_told(north: Hospital) -> None:
    key = north.folder / "node.key"
    key.write_text("nonsense")
    says(north.findings(), "node key", "wrong", "is not an OpenSSH private key")
    key.unlink()
    findings = north.findings()
    says(findings, "node key", "wrong", f"{key} is not there")
    not_checked(findings, "registration")


def test_a_secret_that_is_gone_has_to_come_from_a_backup(north: Hospital) -> None:
    (north.state / "site.secret").unlink()
    says(north.findings(), "site secret", "wrong", "from a backup")


def test_a_journal_that_is_gone_or_was_edited_is_found(north: Hospital) -> None:
    says(north.findings(), "journal", "ok", "1 entries, each signed")
    (north.state / "journal.anchor").unlink()
    says(north.findings(), "journal", "wrong", "put the newest backup")
    (north.state / "journal.sqlite").unlink()
    says(north.findings(), "journal", "wrong", "is not there")


def test_a_full_disk_is_found_by_writing_to_it(north: Hospital) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "tmpfs", str(north.state)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        says(north.findings(), "disk", "wrong", "is full", str(north.state), "make room")
        assert list(north.state.iterdir()) == []
    finally:
        subprocess.run(["umount", str(north.state)], check=True)


def test_a_disk_with_little_left_is_told(north: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.doctor_files.NEED_BYTES", 1 << 60)
    says(north.findings(), "disk", "warning", "make room")
    monkeypatch.setattr("client.doctor_files.LEAST_BYTES", 1 << 60)
    says(north.findings(), "disk", "wrong", "only", "make room")


# Data and device


def test_a_missing_index_is_told_and_an_old_one_too(north: Hospital) -> None:
    index = north.state / "index.json"
    os.utime(index, (1_000_000_000, 1_000_000_000))
    says(north.findings(), "index", "warning", "labels file was changed after", "collegium-client index")
    for other in (north.folder / "labels.csv", north.folder / "images"):
        os.utime(other, (900_000_000, 900_000_000))
    says(north.findings(), "index", "warning", "days ago", "collegium-client index")
    index.unlink()
    says(north.findings(), "index", "warning", "collegium-client index")


def test_images_and_labels_that_cannot_be_read_are_told(north: Hospital) -> None:
    (north.folder / "images" / "a.dcm").unlink()
    (north.folder / "labels.csv").write_text("MRN;finding\nJane;yes\n")
    findings = north.findings()
    says(findings, "images", "wrong", "holds no file", "images.folder")
    says(findings, "labels", "wrong", "column PatientID is missing")
    assert "Jane" not in findings["labels"].message
    (north.folder / "images").rmdir()
    (north.folder / "labels.csv").unlink()
    findings = north.findings()
    says(findings, "images", "wrong", "is not a folder that is there")
    says(findings, "labels", "wrong", "cannot be read")


def test_a_pacs_has_a_line_only_where_there_is_one_and_one_that_is_not_there_is_told(north: Hospital) -> None:
    assert "pacs" not in north.findings()
    text, port = north.config.read_text(), free_port()
    north.config.write_text(
        f'{text}\n[pacs.dimse]\nhost = "127.0.0.1"\nport = {port}\ncalled_ae_title = "ARCHIVE"\n'
    )
    says(north.findings(), "pacs", "wrong", f"ARCHIVE at 127.0.0.1:{port}", "Nothing answers", "firewall")
    north.config.write_text(f'{text}\n[pacs.dicomweb]\nurl = "http://127.0.0.1:{port}/dicom-web"\n')
    findings = north.findings()
    says(findings, "pacs", "wrong", f"127.0.0.1:{port}", "Nothing answers", "firewall")
    assert list(findings) == page_checks("At a hospital")


def test_a_device_that_is_not_there_is_told(north: Hospital) -> None:
    north.config.write_text(north.config.read_text() + '\n[compute]\ndevice = "cuda:77"\n')
    says(north.findings(), "device", "wrong", "cuda:77", 'device = "cpu"')


# The way to the server


def test_a_closed_port_is_told_and_nothing_behind_it_is_checked(north: Hospital) -> None:
    findings = north.findings()
    says(findings, "port", "wrong", "refuses connections", f"127.0.0.1:{north.port}")
    not_checked(findings, "certificate", *BEHIND_TLS)


def test_an_unknown_name_is_told(north: Hospital) -> None:
    north.address("no-such-host.invalid:9443")
    findings = north.findings()
    says(findings, "name", "wrong", "no-such-host.invalid is not a known name", "server.address")
    not_checked(findings, "port", "certificate", *BEHIND_TLS)


def test_a_server_that_never_answers_is_told_apart_from_a_closed_port() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # whoever comes after the queue is full hears nothing
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        try:
            with pytest.raises(Wrong, match=rf"does not answer within .*TCP port {port}"):
                connect(Route("127.0.0.1", port), 0.3)
        finally:
            for one in waiting:
                one.close()


def test_something_else_behind_the_port_is_told(north: Hospital) -> None:
    with Listener(lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")) as other:
        north.address(f"127.0.0.1:{other.port}")
        findings = north.findings()
    says(findings, "certificate", "wrong", "answers, but not with TLS")
    not_checked(findings, *BEHIND_TLS)


# Certificates


def test_a_certificate_for_another_name_is_told_with_its_names(north: Hospital) -> None:
    with north.gate(names=("server.example.org", "192.0.2.10")):
        findings = north.findings()
    says(
        findings, "certificate", "wrong", "is for server.example.org, 192.0.2.10, not for 127.0.0.1", "--host"
    )
    not_checked(findings, *BEHIND_TLS)


def test_an_expired_certificate_is_told_and_the_clock_named(tmp_path: Path) -> None:
    north = Hospital(tmp_path, Authority("Toy consortium", now=datetime.now(UTC) - timedelta(days=100)))
    with north.gate(days=30):
        findings = north.findings()
    says(findings, "certificate", "wrong", "has expired on", "clock", "ask the coordinator")
    says(findings, "authority", "ok")


def test_a_certificate_that_is_not_valid_yet_is_told(tmp_path: Path) -> None:
    north = Hospital(tmp_path, Authority("Toy consortium", now=datetime.now(UTC) + timedelta(days=2)))
    with north.gate():
        findings = north.findings()
    says(findings, "authority", "wrong", "valid only from", "If the clock is wrong, set it")
    says(findings, "certificate", "wrong", "valid only from", "If the clock is wrong, set it")


def test_a_certificate_that_ends_soon_is_a_warning(tmp_path: Path) -> None:
    north = Hospital(tmp_path, Authority("Toy consortium", days=60))
    with north.gate(days=20):
        findings = north.findings()
    says(findings, "certificate", "warning", "expires on", "in 20 days")
    says(findings, "authority", "warning", "in 60 days")
    says(findings, "clock", "ok")


def test_a_ca_certificate_that_is_none_is_told(north: Hospital) -> None:
    (north.base / "ca.pem").write_text("nonsense")
    findings = north.findings()
    says(findings, "authority", "wrong", "is not a PEM certificate", "ask the coordinator")
    not_checked(findings, "certificate", *BEHIND_TLS)


def test_the_ca_of_another_consortium_with_the_same_name_is_told_apart_from_interception(
    north: Hospital,
) -> None:
    (north.base / "ca.pem").write_bytes(Authority("Toy consortium").issued.certificate)
    with north.gate():
        says(north.findings(), "certificate", "wrong", "another authority of the name", "ca.pem")


def test_something_that_opens_tls_is_named_and_hears_nothing(north: Hospital) -> None:
    with Interceptor(north.base / "i", "Acme Web Gateway CA", "127.0.0.1", connect=False) as between:
        north.address(f"127.0.0.1:{between.port}")
        findings = north.findings()
        heard = between.heard
    says(findings, "certificate", "wrong", 'issued by "Acme Web Gateway CA", not by "Toy consortium"')
    says(findings, "certificate", "wrong", f"exempt 127.0.0.1:{between.port} from TLS inspection")
    not_checked(findings, *BEHIND_TLS)
    assert heard == b""


def test_a_name_that_an_interceptor_chose_cannot_command_the_terminal(north: Hospital) -> None:
    with Interceptor(north.base / "i", "\x1b[2Jevil\r\n" + 20 * "x", "127.0.0.1", connect=False) as between:
        north.address(f"127.0.0.1:{between.port}")
        message = north.findings()["certificate"].message
    assert "?[2Jevil??xxx" in message
    assert message.isprintable()


# Proxies


def test_a_proxy_of_the_environment_is_used_and_named_without_its_password(north: Hospital) -> None:
    with north.gate(names=("server.example.org",)), ConnectProxy(north.port) as proxy:
        north.address("server.example.org:9443")
        north.environment = {"HTTPS_PROXY": f"http://nurse:pa55word@127.0.0.1:{proxy.port}"}
        findings = north.findings()
        heads = proxy.heads
    assert {finding.state for finding in findings.values()} == {"ok"}, findings
    says(findings, "proxy", "ok", f"through 127.0.0.1:{proxy.port}", "NO_PROXY")
    assert "pa55word" not in "".join(finding.message for finding in findings.values())
    assert heads[0].startswith(b"CONNECT server.example.org:9443 HTTP/1.1\r\n")
    assert all(b"Proxy-Authorization: Basic bnVyc2U6cGE1NXdvcmQ=\r\n" in head for head in heads)


def test_a_proxy_that_opens_tls_is_told(north: Hospital) -> None:
    with Interceptor(north.base / "i", "Hospital IT proxy", "server.example.org", connect=True) as proxy:
        north.address("server.example.org:9443")
        north.environment = {"https_proxy": f"127.0.0.1:{proxy.port}"}
        findings = north.findings()
        heard = proxy.heard
    says(findings, "port", "ok")
    says(findings, "certificate", "wrong", 'issued by "Hospital IT proxy"', "server.example.org:9443")
    assert heard == b""


@pytest.mark.parametrize(("status", "words"), [(407, "wants a login"), (403, "HTTP 403"), (502, "HTTP 502")])
def test_a_proxy_that_does_not_connect_is_told(north: Hospital, status: int, words: str) -> None:
    with ConnectProxy(1, status) as proxy:
        north.address("server.example.org:9443")
        north.environment = {"ALL_PROXY": f"http://127.0.0.1:{proxy.port}"}
        findings = north.findings()
    says(findings, "port", "wrong", f"the proxy 127.0.0.1:{proxy.port}", words)
    not_checked(findings, "certificate", *BEHIND_TLS)


def test_a_proxy_of_a_kind_with_which_the_supernode_does_not_start_is_told(north: Hospital) -> None:
    north.environment = {"ALL_PROXY": "socks5://127.0.0.1:1080", "NO_PROXY": "*"}
    findings = north.findings()
    says(findings, "proxy", "wrong", "ALL_PROXY", "socks5", "does not even start")
    not_checked(findings, "name", "port")


def test_a_proxy_that_is_itself_reached_by_tls_is_told_and_nothing_behind_it_is_checked(
    north: Hospital,
) -> None:
    with Listener(lambda connection: None) as proxy:
        north.address("server.example.org:9443")
        north.environment = {"HTTPS_PROXY": f"https://127.0.0.1:{proxy.port}"}
        findings = north.findings()
    says(findings, "proxy", "warning", "cannot look through it", "server.example.org to NO_PROXY")
    not_checked(findings, "port", "certificate", *BEHIND_TLS)


def test_a_network_in_no_proxy_is_told_because_the_supernode_does_not_read_it(north: Hospital) -> None:
    north.address("127.1.2.3:9443")
    north.environment = {"HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.0/8, 10.0.0.0/8"}
    says(north.findings(), "proxy", "warning", "127.0.0.0/8", "Add 127.1.2.3 itself")


PROXIES: list[dict[str, str]] = [
    {},
    {"HTTPS_PROXY": "http://p:1"},
    {"https_proxy": "p:1", "HTTPS_PROXY": "http://q:2"},
    {"https_proxy": "", "HTTPS_PROXY": "http://q:2"},
    {"HTTP_PROXY": "http://p:1"},
    {"ALL_PROXY": "http://p:1"},
    {"ALL_PROXY": "http://p:1", "HTTPS_PROXY": "https://q:2"},
]
NO_PROXIES = (
    *("", "*", "a.org", ".a.org", "*.a.org", "server.a.org", "erver.a.org", "A.ORG", "b.org, a.org"),
    *("server.a.org:9443", "server.a.org:1", "https://server.a.org", "http://server.a.org", "all://*.a.org"),
    *("10.0.0.1", "10.0.0.0/8", "10.0.0.1:9443", "localhost", "0.0.1"),
)


@pytest.mark.parametrize("proxies", PROXIES, ids=str)
def test_the_proxy_is_the_one_that_the_supernodes_http_library_takes(
    proxies: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for no_proxy in NO_PROXIES:
        monkeypatch.setenv("NO_PROXY", no_proxy)
        with httpx.Client(verify=context) as client:
            for host in ("server.a.org", "a.org", "10.0.0.1", "localhost", "127.0.0.1"):
                transport = client._transport_for_url(httpx.URL(f"https://{host}:9443"))
                pool = getattr(transport, "_pool")  # noqa: B009 - private, which mypy would not let pass
                taken = getattr(pool, "_proxy_url", None)
                ours = proxy_for(host, 9443, {**proxies, "NO_PROXY": no_proxy})
                expected = (taken.host.decode(), taken.port) if taken else None
                assert (ours and (ours.host, ours.port)) == expected, (proxies, no_proxy, host)


# Clock, roster, key


@pytest.mark.parametrize(
    ("server_ahead", "state", "words"),
    [
        (-60.0, "wrong", "60.0 s ahead of the server's"),
        (-3.0, "warning", "3.0 s ahead of the server's"),
        (0.0, "ok", "the server's"),
        (60.0, "warning", "60.0 s behind the server's"),
        (400.0, "wrong", "400.0 s behind the server's"),
    ],
)
def test_a_skewed_clock_is_told(north: Hospital, server_ahead: float, state: str, words: str) -> None:
    with north.gate(ahead_seconds=server_ahead):
        findings = north.findings()
    says(findings, "clock", state, words, *([] if state == "ok" else ["NTP"]))


def test_the_clock_is_judged_by_what_flower_takes() -> None:
    assert judge_clock(4.9).state == "warning"
    assert judge_clock(-304.0).state == "warning"
    for skew, limit in ((5.0, "from 5 s on"), (-305.0, "from 305 s on")):
        with pytest.raises(Wrong, match=limit):
            judge_clock(skew)


@pytest.mark.parametrize(
    ("own", "server", "words"),
    [(3, 4, "ask the coordinator for version 4"), (5, 4, "the coordinator has to start it again")],
)
def test_another_version_of_the_roster_than_the_servers_is_told(
    north: Hospital, own: int, server: int, words: str
) -> None:
    north.sign_roster(own)
    with north.gate(roster_version=server):
        says(north.findings(), "roster version", "wrong", f"version {own}", words)


def test_a_site_that_has_not_joined_is_told(north: Hospital) -> None:
    north.server.roster.unlink()
    with north.gate():
        findings = north.findings()
    says(findings, "roster", "wrong", "has not joined yet", "collegium-client join")
    not_checked(findings, "roster version")
    says(findings, "registration", "ok")


def test_a_roster_with_another_node_key_is_told(north: Hospital) -> None:
    write_private(north.folder / "node.key", new_node_key()[0], replace=True)
    says(north.findings(), "roster", "wrong", "another node key")


@pytest.mark.parametrize(
    ("superlink", "state", "words"),
    [
        (UNKNOWN, "wrong", "collegium-server admit"),
        (REFUSED, "wrong", "clock"),
        (httpx.Response(503), "not checked", "SuperLink"),
        (httpx.Response(200), "wrong", "HTTP 200"),
        (httpx.Response(412, text="<html>"), "wrong", "HTTP 412"),
    ],
)
def test_a_node_key_that_the_server_does_not_take_is_told(
    north: Hospital, superlink: httpx.Response, state: str, words: str
) -> None:
    with north.gate(superlink=superlink):
        findings = north.findings()
    says(findings, "registration", state, words)
    says(findings, "round trip", "ok")


# Speed


@pytest.fixture
def small_study(tmp_path: Path) -> Iterator[Path]:
    page = (Path(__file__).parents[1] / "docs" / "two-machines.md").read_text()
    path = tmp_path / "study.toml"
    path.write_text(page.split("```toml study.toml\n")[1].split("```")[0])
    yield path


def num_weight_bytes(study: Study) -> int:
    from shared_models.architectures import build_model

    return sum(4 * value.numel() for value in build_model(study).state_dict().values())


def test_the_payload_is_the_size_of_the_studys_model(north: Hospital, small_study: Path) -> None:
    assert payload_bytes(north.config, small_study) == num_weight_bytes(read_study(small_study))


def test_the_payload_of_a_proposal_is_that_of_its_study(north: Hospital, small_study: Path) -> None:
    study, text = sign_study(small_study.read_text(), Ed25519PrivateKey.generate(), origin="study.toml")
    proposal = small_study.with_name("study.proposal.toml")
    write_proposal(proposal, text)
    assert payload_bytes(north.config, proposal) == num_weight_bytes(study)


def test_without_a_study_it_is_the_one_that_the_site_approved(north: Hospital, small_study: Path) -> None:
    assert payload_bytes(north.config, None) == 4 << 20
    file, study = read_site(north.config), read_study(small_study)
    Approvals(open_journal(file), file.state).decide(study, "approved")
    assert payload_bytes(north.config, None) == num_weight_bytes(study)
    (north.state / "journal.anchor").unlink()
    assert payload_bytes(north.config, None) == 4 << 20


def test_a_slow_line_is_a_warning_with_the_time_that_a_round_needs() -> None:
    quick = Answer(1, 0.0, 0.1, 0.0)
    slow = judge_speed(8 << 20, Answer(1, 0.0, 40.1, 40.0), quick, round_bytes=8 << 20)
    assert slow.state == "warning"
    assert "8 MiB up in 40.00 s (0.2 MiB/s), down in 40.00 s (0.2 MiB/s)" in slow.message
    assert "need 80 s" in slow.message
    assert judge_speed(8 << 20, Answer(1, 0.0, 1.1, 1.0), quick, round_bytes=8 << 20).state == "ok"
    larger = judge_speed(8 << 20, Answer(1, 0.0, 20.1, 20.0), quick, round_bytes=32 << 20)
    assert "need 160 s" in larger.message


def test_a_line_too_slow_for_the_gate_is_told(north: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    with north.gate() as gate:
        answered = gate.doctor.answer
        monkeypatch.setattr(
            gate.doctor, "answer", lambda *given: too_slow(*given) if len(gate.passed) else answered(*given)
        )
        findings = north.findings()
    says(findings, "clock", "ok")
    says(findings, "round trip", "wrong", "so slow that 0.286 MiB do not pass", "--payload-mib")


async def too_slow(_headers: object, body: AsyncIterator[bytes], _send: object) -> None:
    async for _ in body:
        pass
    raise DoctorRefused(408, b"too slow\n")


def test_a_busy_gate_is_told(north: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.doctor_network.BUSY_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("server.gate_doctor.MAX_AT_ONCE", 0)
    with north.gate():
        findings = north.findings()
    says(findings, "clock", "wrong", "is busy", "try again")
    not_checked(findings, "roster version")


def test_a_server_of_another_version_is_told(north: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.doctor_network.TARGET", "/v1/collegium/older")
    with north.gate():
        says(north.findings(), "clock", "wrong", "HTTP 404", "compare the versions")


def page_checks(heading: str) -> list[str]:
    page = (Path(__file__).parents[1] / "docs" / "doctor.md").read_text()
    part = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [line.split("`")[1] for line in part.splitlines() if line.startswith("| `")]


def test_every_check_stands_in_the_page() -> None:
    doctor = SiteDoctor(Path("x"), payload_bytes=1, environment={})
    listed = page_checks("At a hospital")
    listed.remove("pacs")  # only where there is one, as another test shows
    assert listed == [name for name, _ in doctor.checks()]


# Two users


class TwoUsers(Hospital):
    """The same site, whose connection is another user's: "north" has the data, "net" the node key."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.side, self.door = folder / "net", folder / "run" / "agent.sock"
        self.side.mkdir(mode=0o700)
        self.door.parent.mkdir(mode=0o755)
        self.network = self.side / "network.toml"
        text, server = self.config.read_text().split("[server]")
        self.network.write_text(
            f'name = "north"\nstate = "state"\nagent_socket = "{self.door}"\n[server]{server}'
        )
        key = (self.folder / "node.key").rename(self.side / "node.key")
        (self.folder / "node.pub").write_text(public_line(key.read_bytes()) + "\n")
        uid = os.geteuid() or 61_999
        self.config.write_text(
            f'{text}[agent]\nsocket = "{self.door}"\nnetwork_user = {uid}\nnode_public = "node.pub"\n'
        )

    def network_findings(self) -> dict[str, Finding]:
        doctor = ConnectionDoctor(self.network, payload_bytes=PAYLOAD, environment=self.environment)
        try:
            return {finding.check: finding for finding in run_checks(doctor.checks())}
        finally:
            doctor.close()

    @contextmanager
    def lets_in(self) -> Iterator[None]:
        """An agent's door that lets whoever comes in."""
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.door))
            listening.listen()

            def greet() -> None:
                with listening.accept()[0] as visitor:
                    visitor.send(b"x")

            greeting = threading.Thread(target=greet)
            greeting.start()
            yield
            greeting.join()


@pytest.fixture
def two(tmp_path: Path) -> TwoUsers:
    return TwoUsers(tmp_path)


def test_the_user_with_the_data_is_told_that_the_connection_is_the_other_users(two: TwoUsers) -> None:
    findings = two.findings()
    says(findings, "site.toml", "ok", "another user's")
    says(findings, "connection", "not checked", "collegium-client doctor --config network.toml")
    assert {name for name, found in findings.items() if found.state != "ok"} == {"connection"}, findings
    assert two.run().exit_code == 0
    listed = page_checks("At a hospital")
    assert list(findings) == [
        name for name in listed[: listed.index("proxy")] if name not in ("node key", "pacs")
    ] + page_checks("Where another user connects to the server: the user with the data")


def test_a_door_that_others_could_take_over_is_told(two: TwoUsers) -> None:
    two.door.parent.chmod(0o777)
    says(two.findings(), "door", "wrong", "could listen in the agent's place", "install -d")


def test_a_network_users_key_that_the_roster_does_not_have_is_told(two: TwoUsers) -> None:
    (two.folder / "node.pub").write_text(new_node_key()[1] + "\n")
    says(two.findings(), "roster", "wrong", "another node key")


def test_a_network_user_who_has_everything_is_told_so(two: TwoUsers) -> None:
    with two.gate() as gate, two.lets_in():
        findings = two.network_findings()
        assert gate.passed == ["/v1/fleet/activate-node"]
    assert {finding.state for finding in findings.values()} == {"ok"}, findings
    says(findings, "roster version", "ok", "the server has version 1")
    assert list(findings) == page_checks("Where another user connects to the server: that user")


def test_the_command_takes_the_network_users_file(two: TwoUsers) -> None:
    done = CliRunner().invoke(app, ["doctor", "--config", str(two.network)])
    assert "[✓] network.toml: server 127.0.0.1:" in done.output
    assert f"[!] agent: not running: nobody listens at {two.door}" in done.output
    assert "[✗] port: 127.0.0.1" in done.output
    assert done.exit_code == 1


def test_what_is_wrong_at_the_network_users_is_told(two: TwoUsers) -> None:
    (two.side / "node.key").chmod(0o644)
    with two.gate(superlink=UNKNOWN):
        findings = two.network_findings()
    says(findings, "node key", "wrong", "chmod 600")
    not_checked(findings, "registration")
    (two.side / "node.key").chmod(0o600)
    with two.gate(superlink=UNKNOWN):
        says(two.network_findings(), "registration", "wrong", "send north.request.toml to the coordinator")
    two.network.write_text("agent_socket = 3\n")
    findings = two.network_findings()
    says(findings, "network.toml", "wrong", "agent_socket")
    not_checked(findings, *(name for name in findings if name != "network.toml"))


def test_images_that_everyone_may_read_are_told(two: TwoUsers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.exposure._open_to_others", lambda path: path.name == "images")
    says(two.findings(), "readers", "warning", "images.folder", "the network user too", "chmod o=")


@pytest.mark.slow
def test_the_port_of_a_gate_is_free_again_after_it(north: Hospital) -> None:
    """The toys of these tests leave nothing behind that would make another test pass or fail."""
    with north.gate():
        pass
    assert free_port()
    says(north.findings(), "port", "wrong")
