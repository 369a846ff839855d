"""A real deployment on loopback: what it does, and what an attacker cannot make it do."""

import hashlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    RegisterNodeRequest,
    StartRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PushAppMessagesRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from toy_consortium import Consortium, ToySite, make_server, make_site
from toy_processes import processes_below

from client.doctor import SiteDoctor
from client.launch import ServerNotReached, SiteError, check_server
from client.node_probe import ask_for_node
from client.site_file import Server as ServerEntry
from client.site_file import read_site
from server.certificates import Authority
from server.doctor import ServerDoctor
from server.launch import connected
from server.superlink import BUNDLE, Access, bundle, list_nodes, registered_nodes, start_run
from server.superlink import _command as command
from shared_models.checkup import Finding, run_checks
from shared_models.node_keys import new_node_key, pem_bytes
from shared_models.processes import Child, flower_environment, python_module

pytestmark = [pytest.mark.deployed, pytest.mark.slow]

NAMES = ("north", "south", "west")


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    running = Consortium(tmp_path_factory.mktemp("c"), NAMES)
    yield running
    running.close()


def asked(consortium: Consortium, body: bytes, timeout: float = 30.0) -> dict[str, bytes]:
    replies, _ = consortium.exchange(dict.fromkeys(NAMES, body), timeout)
    return {site: message for site, message, _ in replies}


# What it does


@pytest.mark.thorough
def test_every_site_answers_under_the_name_that_its_key_has_in_the_roster(consortium: Consortium) -> None:
    assert asked(consortium, b"hello") == {name: name.encode() + b": hello" for name in NAMES}


@pytest.mark.thorough
def test_large_messages_come_through_whole_in_both_directions(consortium: Consortium) -> None:
    body = b"mirror " + os.urandom(12_000_000)
    replies = asked(consortium, body, 60.0)
    assert {site: hashlib.sha256(reply).digest() for site, reply in replies.items()} == dict.fromkeys(
        NAMES, hashlib.sha256(body).digest()
    )


@pytest.mark.thorough
def test_a_slow_site_is_dropped_at_the_deadline_and_its_late_reply_is_thrown_away(
    consortium: Consortium,
) -> None:
    replies, seconds = consortium.exchange(dict.fromkeys(NAMES, b"sleep south 6"), 4.0)
    assert sorted(site for site, _, _ in replies) == ["north", "west"]
    assert seconds < 5.0
    assert asked(consortium, b"again") == {name: name.encode() + b": again" for name in NAMES}


def test_a_site_that_is_not_connected_is_left_out(consortium: Consortium) -> None:
    replies, _ = consortium.exchange({"north": b"hello", "nobody": b"hello"}, 20.0)
    assert [site for site, _, _ in replies] == ["north"]


def test_a_site_answers_again_after_its_agent_was_killed(consortium: Consortium) -> None:
    site = consortium.sites["west"]
    before = json.loads((site.file.state / "site.json").read_text())["agent"]
    os.kill(before, signal.SIGKILL)
    assert asked(consortium, b"still there?")["west"] == b"west: still there?"
    assert json.loads((site.file.state / "site.json").read_text())["agent"] != before
    assert any("the agent ended" in line for line in site.told)


def test_status_names_the_connected_sites(consortium: Consortium) -> None:
    now = connected(consortium.file.state, consortium.roster)
    assert now is not None
    assert now[0]["run_id"] == "toy-run"
    assert now[1] == sorted(NAMES)


def test_no_process_of_ours_reports_its_use_or_looks_for_updates(consortium: Consortium) -> None:
    pids = [child for site in consortium.sites.values() for child in _pids(site)]
    flower = [
        pid for pid in pids if b"client.supernode" in _command(pid) or b"client.forwarder" in _command(pid)
    ]
    flower += [pid for pid in processes_below(consortium.file.state) if b"server.superlink" in _command(pid)]
    assert len(flower) == 2 * len(NAMES) + 1
    for pid in flower:
        environment = dict(
            entry.split(b"=", 1) for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if entry
        )
        assert environment[b"FLWR_TELEMETRY_ENABLED"] == b"0"
        assert environment[b"FLWR_DISABLE_UPDATE_CHECK"] == b"1"
        assert b"/state/" in environment[b"FLWR_HOME"]
        assert b"/state/" in environment[b"HOME"]


# What an attacker cannot do: outside the gate, with nothing but the CA certificate


def test_from_outside_no_run_can_be_started_and_no_node_registered(consortium: Consortium) -> None:
    _, public = generate_key_pairs()
    key = public_key_to_bytes(public)
    with ControlHttpClient.from_server_address(*_outside(consortium), interceptors=[]) as control:
        for attack in (
            lambda: control.StartRun(StartRunRequest(fab=Fab(hash_str="", content=bundle()))),
            lambda: control.RegisterNode(RegisterNodeRequest(public_key=key)),
            lambda: control.ListNodes(ListNodesRequest()),
        ):
            assert _refused(attack) == 404
    assert len(registered_nodes(consortium.server.access)) == len(NAMES)


def test_from_outside_no_task_can_be_taken(consortium: Consortium) -> None:
    with RuntimeHttpClient.from_server_address(*_outside(consortium), interceptors=[]) as runtime:
        task = AcquireTaskRequest(supported_task_types=["flwr-serverapp", "flwr-clientapp"])
        assert _refused(lambda: runtime.AcquireTask(task)) == 404
        assert _refused(lambda: runtime.PushMessages(PushAppMessagesRequest())) == 404


def test_an_unknown_node_key_cannot_register_itself_nor_pull_messages(consortium: Consortium) -> None:
    private, public = generate_key_pairs()
    key = public_key_to_bytes(public)
    node = next(iter(registered_nodes(consortium.server.access)))
    signed = [NodeAuthHttpInterceptor(private, public)]
    with FleetHttpClient.from_server_address(*_outside(consortium), interceptors=signed) as fleet:
        assert _refused(lambda: fleet.RegisterNode(RegisterNodeFleetRequest(public_key=key))) == 404
        activate = ActivateNodeRequest(public_key=key, heartbeat_interval=30)
        assert _refused(lambda: fleet.ActivateNode(activate)) == 412
        pull = PullMessagesRequest(node=Node(node_id=node))
        assert _refused(lambda: fleet.PullMessages(pull)) == 401
    with FleetHttpClient.from_server_address(*_outside(consortium), interceptors=[]) as fleet:
        assert _refused(lambda: fleet.PullMessages(pull)) == 401
    assert len(registered_nodes(consortium.server.access)) == len(NAMES)


@pytest.mark.parametrize(
    "target",
    [
        "/v1/control/list-nodes",
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/..%2fcontrol/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/get-run/../../control/list-nodes",
        "/v1/fleet/pull-messages/..;/../control/list-nodes",
        "//v1/control/list-nodes",
        "/v1//fleet/register-node",
        "/v1/fleet//register-node",
        "/v1/fleet/register-node",
        "/V1/FLEET/pull-messages",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages?x=1",
        "/v1/fleet/pull-messages#/../../control",
        "/v1/fleet/pull%2Dmessages",
        "/v1/fleet\\..\\control/list-nodes",
        "http://127.0.0.1/v1/control/list-nodes",
        "http://127.0.0.1/v1/fleet/pull-messages",
        "*",
        "/",
        "/docs",
        "/openapi.json",
        "/health",
        "/v1/runtime/acquire-task",
        "/v1/collegium/doctor/",
        "/v1/collegium/doctor?x=1",
        "/v1/collegium/doctor/../../fleet/register-node",
        "/v1/fleet/../collegium/doctor",
        "/v1/collegium/%64octor",
    ],
)
def test_no_spelling_of_a_path_gets_through_the_gate(consortium: Consortium, target: str) -> None:
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    assert _raw(consortium, head.encode()) in (400, 404)


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 4\r\nContent-Length: 9\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        b"Content-Length: +4\r\n",
        b"Content-Length: 4\r\n : x\r\n",
        b"X-Long: " + b"a" * 40_000 + b"\r\n",
    ],
)
def test_contradicting_or_overlong_headers_are_refused(consortium: Consortium, lines: bytes) -> None:
    head = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n0\r\n\r\n"
    assert _raw(consortium, head) in (400, 431, 501)


def test_a_request_hidden_behind_another_is_judged_by_itself(consortium: Consortium) -> None:
    hidden = b"POST /v1/control/list-nodes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    first = (
        b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/protobuf\r\n"
        b"Connection: keep-alive, flwr-public-key\r\nContent-Length: "
        + str(len(hidden)).encode()
        + b"\r\n\r\n"
    )
    answers = _raw_text(
        consortium, first + hidden + hidden.replace(b"Content-Length", b"Connection: close\r\nContent-Length")
    )
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answers)]
    assert len(statuses) == 2
    assert statuses[0] in (400, 401, 415, 422)
    assert statuses[1] == 404


# … nor another user of the coordinator's machine, who reaches the SuperLink itself


def test_on_loopback_nothing_can_be_commanded_without_the_secrets(consortium: Consortium) -> None:
    access = consortium.server.access
    inside = (access.address, False, access.ca_certificate.read_bytes())
    _, public = generate_key_pairs()
    with ControlHttpClient.from_server_address(*inside, interceptors=[]) as control:
        assert _refused(lambda: control.StartRun(StartRunRequest(fab=Fab(content=bundle())))) == 401
        register = RegisterNodeRequest(public_key=public_key_to_bytes(public))
        assert _refused(lambda: control.RegisterNode(register)) == 401
    with RuntimeHttpClient.from_server_address(*inside, interceptors=[]) as runtime:
        task = AcquireTaskRequest(supported_task_types=["flwr-serverapp"])
        assert _refused(lambda: runtime.AcquireTask(task)) == 401


# … nor a server that has turned against the hospitals


def test_a_bundle_with_code_in_it_is_not_executed_at_a_site(consortium: Consortium, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    evil = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\napp = None\n".encode()
    pyproject = BUNDLE.replace("never_imported", "app")
    names = (
        "client/__init__.py",
        "client/forwarder.py",
        "client/agent.py",
        "shared_models/__init__.py",
        "sitecustomize.py",
    )
    fab = bundle({"pyproject.toml": pyproject.encode(), **dict.fromkeys(names, evil)})
    access = consortium.server.access
    state = tmp_path / "s"
    (state / "runs" / "evil").mkdir(parents=True)
    app = Child(
        "evil",
        python_module(
            "toy_one_exchange",
            *("--superlink", access.address, "--ca-certificate", str(access.ca_certificate)),
            *("--secret", str(access.superexec_secret), "--flower-run", str(start_run(access, fab))),
            *("--root", str(consortium.file.root), "--roster", str(consortium.file.roster)),
            *("--state", str(state), "--run-id", "evil"),
        ),
        log=tmp_path / "evil.log",
        environment=flower_environment(tmp_path / "home"),
    )
    try:
        assert app.wait(60.0), app.said()
    finally:
        app.stop()
    assert sorted((state / "replies").read_text().split()) == sorted(NAMES)
    assert not marker.exists()
    for site in consortium.sites.values():
        assert not list((site.file.state / "flower").rglob("*.py"))
        assert not list((site.file.state / "flower").rglob("pyproject.toml"))


# Whom the server turns away, and what the hospital is told


def test_a_supernode_with_an_unregistered_key_is_turned_away_and_the_operator_is_told(
    consortium: Consortium, tmp_path: Path
) -> None:
    private, _ = new_node_key()
    site = ToySite(make_site(tmp_path / "x", "stranger", consortium.file, private))
    try:
        deadline = time.monotonic() + 30
        while not any("does not know this site's node key" in line for line in site.told):
            assert time.monotonic() < deadline, site.told
            time.sleep(0.2)
    finally:
        site.close()
    assert consortium.connected() == tuple(sorted(NAMES))
    assert len(registered_nodes(consortium.server.access)) == len(NAMES)


def test_a_wrong_ca_certificate_is_told_in_words_and_nothing_starts(
    consortium: Consortium, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(Authority("Somebody else").issued.certificate)
    private, _ = new_node_key()
    site = ToySite(make_site(tmp_path / "x", "north", consortium.file, private, ca=other))
    site.close()
    assert isinstance(site.error, SiteError)
    assert "is not the consortium's server" in str(site.error)
    assert not (site.file.state / "logs").exists()


def test_a_name_that_the_certificate_does_not_hold_is_told_in_words(consortium: Consortium) -> None:
    port = consortium.file.listen.port
    with pytest.raises(SiteError, match=r"is not for the name 127\.1"):
        check_server(_entry(consortium, f"127.1:{port}"))  # reaches 127.0.0.1 by a name of its own
    with pytest.raises(ServerNotReached, match="not a known name"):
        check_server(_entry(consortium, "no-such-host.invalid:9443"))


# The doctor


def test_the_doctor_of_a_running_site_finds_nothing_wrong_and_disturbs_nothing(
    consortium: Consortium,
) -> None:
    findings = _examined(consortium.sites["north"].file.state.parent / "site.toml")
    for check in ("certificate", "clock", "roster", "roster version", "registration", "round trip"):
        assert findings[check].state == "ok", findings[check]
    assert "running; its agent is waiting" in findings["site"].message
    assert asked(consortium, b"as before") == {name: name.encode() + b": as before" for name in NAMES}
    assert not any("ended" in line for line in consortium.sites["north"].told)


def test_the_doctor_of_a_site_with_an_unregistered_node_key_says_so(
    consortium: Consortium, tmp_path: Path
) -> None:
    private, _ = new_node_key()
    findings = _examined(make_site(tmp_path / "x", "stranger", consortium.file, private))
    assert findings["registration"].state == "wrong"
    assert "does not know this site's node key" in findings["registration"].message
    assert "stranger.request.toml" in findings["registration"].message
    assert len(registered_nodes(consortium.server.access)) == len(NAMES)


@pytest.mark.parametrize(
    ("ahead", "verdict"),
    [(0, "known"), (3, "known"), (6, "not authenticated"), (-300, "known"), (-310, "not authenticated")],
)
def test_asking_for_a_registered_key_leaves_its_node_as_it_was(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch, ahead: int, verdict: str
) -> None:
    now = datetime.now
    monkeypatch.setattr(
        "flwr.supernode.node_auth_http_interceptor.now", lambda: now(UTC) + timedelta(seconds=ahead)
    )
    private, public = new_node_key()
    access = consortium.server.access
    command(access, "RegisterNode", RegisterNodeRequest(public_key=pem_bytes(public)))
    before = _node_of(access, public)
    assert before.status == "registered"
    try:
        context = ssl.create_default_context(cafile=str(consortium.file.tls.ca_certificate))
        base = f"https://127.0.0.1:{consortium.file.listen.port}"
        with httpx.Client(base_url=base, verify=context, trust_env=False) as client:
            assert ask_for_node(client, private) == verdict
        assert _node_of(access, public) == before
    finally:
        command(access, "UnregisterNode", UnregisterNodeRequest(node_id=before.node_id))


def test_the_doctor_of_a_running_server_knows_it(consortium: Consortium) -> None:
    config = consortium.file.state.parent / "server.toml"
    findings = {finding.check: finding for finding in run_checks(ServerDoctor(config).checks())}
    assert "taken by this server" in findings["port"].message
    assert findings["running"].message == "yes, with version 1 of the roster"


def _examined(config: Path) -> dict[str, Finding]:
    doctor = SiteDoctor(config, payload_bytes=1 << 20, environment={})
    try:
        return {finding.check: finding for finding in run_checks(doctor.checks())}
    finally:
        doctor.close()


def _node_of(access: Access, key: str) -> Any:
    return next(node for node in list_nodes(access) if bytes(node.public_key) == pem_bytes(key))


# What is left when it ends


def test_sigterm_to_a_site_and_to_the_server_leaves_no_process(tmp_path: Path) -> None:
    _ends_without_a_trace(tmp_path, signal.SIGTERM, expected=130)


def test_a_killed_site_and_a_killed_server_leave_no_process(tmp_path: Path) -> None:
    _ends_without_a_trace(tmp_path, signal.SIGKILL, expected=-signal.SIGKILL)


def _ends_without_a_trace(tmp_path: Path, number: signal.Signals, *, expected: int) -> None:
    file, keys = make_server(tmp_path / "server", ("north", "south"))
    config = make_site(tmp_path / "north", "north", file, keys["north"])
    toy = [sys.executable, str(Path(__file__).with_name("toy_processes.py"))]
    server = subprocess.Popen([*toy, "server", str(tmp_path / "server")])
    site = subprocess.Popen([*toy, "site", str(config)])
    try:
        deadline = time.monotonic() + 40
        while (
            len(processes_below(tmp_path)) < 8
        ):  # two launchers, gate, SuperLink, ServerApp, three at the site
            assert time.monotonic() < deadline, [_command(pid) for pid in processes_below(tmp_path)]
            time.sleep(0.2)
        time.sleep(2.0)
        for launcher in (site, server):
            launcher.send_signal(number)
            assert launcher.wait(30) == expected
    finally:
        for launcher in (site, server):
            launcher.kill()
            launcher.wait()
    deadline = time.monotonic() + 15
    while left := processes_below(tmp_path):
        assert time.monotonic() < deadline, [_command(pid) for pid in left]
        time.sleep(0.2)


def _outside(consortium: Consortium) -> tuple[str, bool, bytes]:
    return (
        f"127.0.0.1:{consortium.file.listen.port}",
        False,
        consortium.file.tls.ca_certificate.read_bytes(),
    )


def _refused(call: Callable[[], object]) -> int:
    with pytest.raises(httpx.HTTPStatusError) as caught:
        call()
    return caught.value.response.status_code


def _raw(consortium: Consortium, request: bytes) -> int:
    return int(_raw_text(consortium, request).split(b" ", 2)[1])


def _raw_text(consortium: Consortium, request: bytes) -> bytes:
    context = ssl.create_default_context(cafile=str(consortium.file.tls.ca_certificate))
    address = ("127.0.0.1", consortium.file.listen.port)
    with (
        socket.create_connection(address, 10.0) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.sendall(request)
        answer = b""
        while piece := tls.recv(65536):
            answer += piece
    return answer


def _entry(consortium: Consortium, address: str) -> ServerEntry:
    entry = read_site(consortium.sites["north"].file.state.parent / "site.toml").server
    assert entry is not None
    return entry.model_copy(update={"address": address})


def _pids(site: ToySite) -> list[int]:
    values = json.loads((site.file.state / "site.json").read_text())
    return [pid for name, pid in values.items() if name != "launcher"]


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
