"""`collegium-server doctor`: what would stop a run or keep the hospitals away is found and told."""

import json
import os
import socket
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from toy_gate import Listener, ToyGate
from typer.testing import CliRunner

from server.certificates import Authority
from server.command import app
from server.doctor import ServerDoctor, judge_cohort, judge_names
from server.server_file import ServerFile, read_server, read_sites
from shared_models.checkup import Finding, Wrong, run_checks, shown
from shared_models.identity_keys import new_identity_key, read_identity_key
from shared_models.node_keys import new_node_key
from shared_models.processes import free_port, write_private
from shared_models.proposal import PROPOSAL_NAME, sign_study, write_proposal
from shared_models.roster import Roster, RosterSite, write_roster

STUDY = (Path(__file__).parents[1] / "docs" / "two-machines.md").read_text(encoding="utf-8")
STUDY = STUDY.split("```toml study.toml\n")[1].split("```")[0]


class Coordinator:
    """A server that `init` made, with a study, three sites and its private keys taken away."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, folder / "server.toml"
        self.port = free_port()
        CliRunner().invoke(app, ["init", str(folder), "--host", "localhost", "--port", str(self.port)])
        folder.chmod(0o700)
        self.root = read_identity_key(folder / "root.key")
        self.study, text = sign_study(STUDY, self.root, origin="study.toml")
        write_proposal(folder / PROPOSAL_NAME, text)
        self.roster(1, 3)
        (folder / "root.key").unlink()
        self.ca_key = (folder / "tls" / "ca.key").read_bytes()
        (folder / "tls" / "ca.key").unlink()

    @property
    def file(self) -> ServerFile:
        return read_server(self.config)

    def roster(self, version: int, num_sites: int) -> None:
        sites = [
            RosterSite(name=f"h-{number}", node_key=new_node_key()[1], identity_key=new_identity_key()[1])
            for number in range(num_sites)
        ]
        write_roster(self.folder / "roster.toml", Roster(version=version, site=tuple(sites)), self.root)

    def certificates(
        self, authority: Authority, *, names: tuple[str, ...] = ("localhost",), days: int = 825
    ) -> None:
        issued = authority.server(names, days=days)
        tls = self.folder / "tls"
        (tls / "ca.pem").write_bytes(authority.issued.certificate)
        (tls / "server.pem").write_bytes(issued.certificate)
        write_private(tls / "server.key", issued.key, replace=True)

    def findings(self) -> dict[str, Finding]:
        return {finding.check: finding for finding in run_checks(ServerDoctor(self.config).checks())}

    def run(self, *options: str) -> Result:
        return CliRunner().invoke(app, ["doctor", "--config", str(self.config), *options])


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator(tmp_path / "consortium")


def says(findings: Mapping[str, Finding], check: str, state: str, *words: str) -> None:
    assert findings[check].state == state, findings[check]
    for word in words:
        assert word in findings[check].message, findings[check]


def test_a_server_that_has_everything_is_told_so(coordinator: Coordinator) -> None:
    findings = coordinator.findings()
    assert {finding.state for finding in findings.values()} == {"ok"}, findings
    done = coordinator.run()
    assert done.exit_code == 0, done.output
    assert "Nothing is wrong" in done.output
    values = json.loads(coordinator.run("--json").output)
    assert [value["check"] for value in values] == list(findings)
    assert not coordinator.file.state.exists()


def test_lines_fit_a_terminal_of_eighty_columns(coordinator: Coordinator) -> None:
    for finding in coordinator.findings().values():
        for line in shown(finding, 80).splitlines():
            assert len(line) <= 80 or " " not in line.strip(), line  # a path is not broken


def test_a_server_file_that_cannot_be_read_ends_every_other_check(coordinator: Coordinator) -> None:
    coordinator.config.write_text("study = 3\n")
    findings = coordinator.findings()
    says(findings, "server.toml", "wrong", "study = 3")
    others = [finding for name, finding in findings.items() if name != "server.toml"]
    assert {finding.state for finding in others} == {"not checked"}
    assert coordinator.run().exit_code == 1


@pytest.mark.parametrize(
    ("path", "mode", "check", "words"),
    [
        ("tls/server.key", 0o644, "server key", "chmod 600"),
        (".", 0o777, "folder", "chmod 700"),
        ("state", 0o750, "state folder", "chmod 700"),
    ],
)
def test_files_that_others_may_read_are_named_with_the_command_that_mends_it(
    coordinator: Coordinator, path: str, mode: int, check: str, words: str
) -> None:
    coordinator.file.state.mkdir(mode=0o700)
    (coordinator.folder / path).chmod(mode)
    says(coordinator.findings(), check, "wrong", words, str(coordinator.folder / path))


def test_private_keys_that_the_server_does_not_need_are_a_warning(coordinator: Coordinator) -> None:
    write_private(coordinator.folder / "root.key", new_identity_key()[0])
    write_private(coordinator.folder / "tls" / "ca.key", coordinator.ca_key)
    findings = coordinator.findings()
    says(findings, "root key", "warning", "best keep it elsewhere")
    says(findings, "authority key", "warning", "best keep it elsewhere")
    assert coordinator.run().exit_code == 0
    (coordinator.folder / "root.key").chmod(0o640)
    says(coordinator.findings(), "root key", "wrong", "chmod 600")


def test_a_full_disk_is_found_by_writing_to_it(coordinator: Coordinator) -> None:
    state = coordinator.file.state
    state.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "tmpfs", str(state)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        says(coordinator.findings(), "disk", "wrong", "is full", str(state), "make room")
    finally:
        subprocess.run(["umount", str(state)], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_told(coordinator: Coordinator) -> None:
    coordinator.file.state.mkdir(mode=0o500)
    says(coordinator.findings(), "disk", "wrong", "nothing can be written")


# Study and roster


def test_a_study_that_cannot_be_read_is_told(coordinator: Coordinator) -> None:
    (coordinator.folder / PROPOSAL_NAME).unlink()
    findings = coordinator.findings()
    says(findings, "study", "wrong", "cannot be read")
    says(findings, "sites", "not checked")


def test_the_number_of_sites_is_compared_with_the_study(coordinator: Coordinator) -> None:
    study = coordinator.study
    with pytest.raises(Wrong, match="1 in the roster, the study wants 2 to 3: add others"):
        judge_cohort(1, study)
    with pytest.raises(Wrong, match="num_sites_max"):
        judge_cohort(4, study)
    assert judge_cohort(2, study).state == "warning"
    coordinator.roster(2, 1)
    says(coordinator.findings(), "sites", "wrong", "collegium-server admit")


def test_a_roster_that_the_root_key_did_not_sign_is_told(coordinator: Coordinator) -> None:
    sites = read_sites(coordinator.file)
    write_roster(coordinator.folder / "roster.toml", sites, Ed25519PrivateKey.generate())
    says(coordinator.findings(), "roster", "wrong", "is not signed by the consortium's root key")


# Certificates


def test_an_expired_certificate_is_told(coordinator: Coordinator) -> None:
    past = datetime.now(UTC) - timedelta(days=100)
    coordinator.certificates(Authority("Toy", now=past), days=30)
    says(coordinator.findings(), "certificate", "wrong", "has expired on")


def test_certificates_that_end_soon_are_warnings(coordinator: Coordinator) -> None:
    coordinator.certificates(Authority("Toy", days=60), days=20)
    findings = coordinator.findings()
    says(findings, "certificate", "warning", "in 20 days")
    says(findings, "authority", "warning", "in 60 days")


def test_certificate_and_key_that_do_not_belong_together_are_told(coordinator: Coordinator) -> None:
    other = Authority("Toy").server(["localhost"])
    write_private(coordinator.folder / "tls" / "server.key", other.key, replace=True)
    says(coordinator.findings(), "server key", "wrong", "is about another key than")
    (coordinator.folder / "tls" / "server.pem").write_bytes(other.certificate)
    says(coordinator.findings(), "certificate", "wrong", "was not issued by", "every hospital would refuse")
    (coordinator.folder / "tls" / "server.key").unlink()
    says(coordinator.findings(), "server key", "wrong", "is not there")


def test_names_that_do_not_lead_to_this_machine_are_warnings(coordinator: Coordinator) -> None:
    names = ("192.0.2.10", "no-such-host.invalid")
    coordinator.certificates(Authority("Toy"), names=("localhost", *names))
    says(coordinator.findings(), "names", "warning", "no-such-host.invalid")
    told = judge_names(["127.0.0.1", "192.0.2.10"])
    assert told.state == "warning"
    assert "192.0.2.10" in told.message
    assert "NAT" in told.message
    with pytest.raises(Wrong, match="holds no name"):
        judge_names([])


# The port


def own_gate(coordinator: Coordinator, folder: Path, authority: Authority, roster_version: int) -> ToyGate:
    return ToyGate(folder, authority, port=coordinator.port, roster_version=roster_version)


def test_another_program_on_the_port_is_told(coordinator: Coordinator, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", coordinator.port)):
        pass
    says(coordinator.findings(), "port", "ok", "is free")
    with Listener(lambda connection: connection.close()) as other:
        coordinator.config.write_text(
            coordinator.config.read_text().replace(f"port = {coordinator.port}", f"port = {other.port}")
        )
        findings = coordinator.findings()
    says(findings, "port", "wrong", f"another program listens on 127.0.0.1:{other.port}")
    says(findings, "running", "not checked")


def test_a_stranger_with_tls_on_the_port_is_not_taken_for_the_server(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    with own_gate(coordinator, tmp_path / "gate", Authority("Collegium consortium of localhost"), 1):
        says(coordinator.findings(), "port", "wrong", "another program")


def test_the_server_that_is_running_is_known_and_a_newer_roster_is_told(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    authority = Authority("Toy")
    gate = tmp_path / "gate"
    with own_gate(coordinator, gate, authority, 1):
        (coordinator.folder / "tls" / "ca.pem").write_bytes(authority.issued.certificate)
        says(coordinator.findings(), "port", "ok", "which is running")
        says(coordinator.findings(), "running", "warning", "another certificate")
        (coordinator.folder / "tls" / "server.pem").write_bytes((gate / "server.pem").read_bytes())
        says(coordinator.findings(), "running", "ok", "version 1")
        coordinator.roster(2, 3)
        says(coordinator.findings(), "running", "warning", "version 1", "version 2", "start the server again")


def test_an_address_that_is_not_this_machines_is_told(coordinator: Coordinator) -> None:
    text = coordinator.config.read_text()
    coordinator.config.write_text(text.replace('"127.0.0.1"', '"192.0.2.10"'))
    says(coordinator.findings(), "port", "wrong", "is no address of this machine", "listen.host")


def test_every_check_stands_in_the_page() -> None:
    page = (Path(__file__).parents[1] / "docs" / "doctor.md").read_text()
    part = page.split("## At the server")[1].split("\n## ")[0]
    names = [name for name, _ in ServerDoctor(Path("x")).checks()]
    assert [line.split("`")[1] for line in part.splitlines() if line.startswith("| `")] == names
