"""A hospital as two unix users: what the one that connects to the server can do, and what it cannot."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from separate_users import (
    FIRST_UID,
    TESTS,
    User,
    door_folder,
    internet_sockets,
    processes_of,
    remove,
    shared_folder,
    why_not,
)
from unix_sockets_only import SOCKET_CALL

from shared_models.processes import free_port

HANDLE = """
import sys
from pathlib import Path
from client.agent_channel import AgentClient
print(AgentClient(Path(sys.argv[1])).handle(sys.argv[2].encode(), timeout_seconds=20.0).decode())
"""
MIRROR = """
import os, sys
from pathlib import Path
from client.agent_channel import AgentClient
sent = b"mirror " + os.urandom(120_000_000)
print(AgentClient(Path(sys.argv[1])).handle(sent, timeout_seconds=60.0) == sent)
"""
REFUSED = {"EACCES", "EPERM"}


def wait_until(true: Callable[[], bool], seconds: float, say: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {say()}"
        time.sleep(0.1)


# One agent with a toy handler, as the data user; the network user, and a third who is neither


@dataclass
class House:
    data: User
    network: User
    third: User
    run: Path
    agent: "subprocess.Popen[bytes]"

    @property
    def door(self) -> Path:
        return self.run / "agent.sock"

    @property
    def log(self) -> Path:
        return self.data.folder / "site" / "state" / "logs" / "agent.log"


SITE = """
name = "north"
state = "state"
[images]
folder = "../images"
[labels]
file = "../labels.csv"
key = "PatientID"
[policy]
min_cohort = 2
min_patients = 1
max_unusable_share = 0.2
max_runs_per_study = 1
min_threshold = 2
allowed_tasks = ["binary-classification"]
allowed_architectures = ["small-cnn"]
[consortium]
root = "root.pub"
roster = "roster.toml"
identity_key = "identity.key"
[agent]
socket = "{door}"
network_user = {uid}
node_public = "node.pub"
"""
PRIVATE = (
    "images/1.dcm",
    "labels.csv",
    "site/site.toml",
    "site/identity.key",
    "site/state/site.secret",
    "site/state/journal.sqlite",
    "site/state/index.json",
    "site/state/runs/run/site_result.json",
)
"""Written here with mode 0644: the folders alone have to keep others out."""


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    if reason := why_not():
        pytest.skip(reason)
    folder = shared_folder()
    data, network, third = (
        User(FIRST_UID + number, folder / name) for number, name in enumerate(("data", "network", "third"))
    )
    run = door_folder(folder / "run", data, network)
    for name in PRIVATE:
        path = data.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret")
    (data.folder / "site" / "site.toml").write_text(SITE.format(door=run / "agent.sock", uid=network.uid))
    log = data.folder / "site" / "state" / "logs" / "agent.log"
    log.parent.mkdir()
    data.owns(data.folder)
    command = ["-P", str(TESTS / "toy_agent.py"), "--config", str(data.folder / "site" / "site.toml")]
    if os.uname().machine in SOCKET_CALL:
        command = ["-P", str(TESTS / "unix_sockets_only.py"), *command]
    with log.open("wb") as output:
        os.chown(log, data.uid, data.uid)
        agent = data.start(command, stdin=subprocess.PIPE, stdout=output, stderr=output)
    try:
        made = House(data, network, third, run, agent)
        wait_until(made.door.exists, 20.0, log.read_text)
        yield made
    finally:
        agent.kill()
        agent.communicate()
        remove(folder)


@pytest.mark.slow
def test_the_network_user_hands_a_request_in_and_gets_the_reply(house: House) -> None:
    assert house.network.run(["-c", HANDLE, str(house.door), "hello"]) == "north: hello\n"


def test_the_network_user_reads_nothing_of_the_hospitals_data_and_keys(house: House) -> None:
    paths = [*(house.data.folder / name for name in PRIVATE), house.log]
    reading = {str(path): ("read", str(path)) for path in paths}
    writing = {f"write {path}": ("write", str(path)) for path in paths}
    folders = {str(path.parent): ("look", str(path.parent)) for path in paths}
    assert set(house.data.tries(**reading, **folders).values()) == {"done"}, "they are there"
    assert set(house.network.tries(**reading, **writing, **folders).values()) <= REFUSED


def test_the_network_user_reaches_neither_the_agents_memory_nor_its_controls(house: House) -> None:
    pid, sockets = house.agent.pid, house.data.folder / "site" / "state" / "agent"
    outside = {
        "memory": ("memory", pid),
        "trace": ("trace", pid),
        "signal": ("signal", pid),
        "files": ("look", f"/proc/{pid}/fd"),
        "environment": ("read", f"/proc/{pid}/environ"),
        "control": ("connect", str(sockets / "control")),
        "inner": ("connect", str(sockets / "inner")),
    }
    own = house.data.tries(**{name: outside[name] for name in ("signal", "files", "environment", "control")})
    assert set(own.values()) == {"done"}, "the data user can"
    assert set(house.network.tries(**outside).values()) <= REFUSED
    assert house.agent.poll() is None


def test_the_network_user_cannot_listen_in_the_agents_place(house: House) -> None:
    attempts = {
        "socket": ("replace", str(house.door)),
        "folder": ("replace", str(house.run)),
        "new": ("write", str(house.run / "another.sock")),
    }
    assert set(house.network.tries(**attempts).values()) <= REFUSED


def test_a_third_user_is_kept_out_by_the_file_system(house: House) -> None:
    assert house.third.tries(door=("connect", str(house.door))) == {"door": "EACCES"}


def test_a_third_user_whom_the_file_system_lets_pass_is_refused_at_the_door_and_logged(house: House) -> None:
    house.door.chmod(0o666)
    house.run.chmod(0o2755)
    try:
        assert house.network.tries(door=("connect", str(house.door))) == {"door": "done"}
        assert house.third.tries(door=("connect", str(house.door))) == {"door": "ECONNRESET"}
    finally:
        house.run.chmod(0o2750)
        house.door.chmod(0o660)
    assert f"refused a connection of uid {house.third.uid} " in house.log.read_text()


def test_the_data_user_itself_does_not_come_in_by_the_door(house: House) -> None:
    assert house.data.tries(door=("connect", str(house.door))) == {"door": "ECONNRESET"}


@pytest.mark.slow
def test_the_agent_works_where_no_internet_socket_can_be_made_and_has_none(house: House) -> None:
    assert house.network.run(["-c", HANDLE, str(house.door), "hello"]) == "north: hello\n"
    assert internet_sockets(house.agent.pid) == []
    if os.uname().machine in SOCKET_CALL:
        filtered = [str(TESTS / "unix_sockets_only.py"), str(TESTS / "trying.py"), '{"it": ["internet"]}']
        assert json.loads(house.data.run(filtered)) == {"it": "EAFNOSUPPORT"}
    assert house.data.tries(it=("internet",)) == {"it": "done"}


@pytest.mark.thorough
def test_large_messages_pass_the_door_between_users_in_both_directions(house: House) -> None:
    assert house.network.run(["-c", MIRROR, str(house.door)]) == "True\n"


# Three hospitals, six users, one run, by the commands only

PAGE = (TESTS.parent / "docs" / "two-machines.md").read_text(encoding="utf-8")
NAMES = ("hospital-1", "hospital-2", "hospital-3")
NUM_ROUNDS = 8


def study() -> str:
    """The study of docs/two-machines.md, shorter."""
    found = re.search(r"^```toml study\.toml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert found
    text = found.group(1).replace("num_rounds = 10", f"num_rounds = {NUM_ROUNDS}")
    text = text.replace("validation_rounds = [5, 10]", f"validation_rounds = [{NUM_ROUNDS}]")
    patient = "round_timeout_seconds = 300.0\nstep_timeout_seconds = 300.0"
    text, times = re.subn(r"^round_timeout_seconds = .*$", patient, text, flags=re.MULTILINE)
    assert times == 1
    return text


class Hospital:
    """One hospital with its two users, who give each other nothing but public files."""

    def __init__(self, name: str, number: int, folder: Path) -> None:
        self.name, self.folder = name, folder
        folder.mkdir()
        self.data = User(FIRST_UID + 10 * number, folder / "data")
        self.network = User(FIRST_UID + 10 * number + 1, folder / "network")
        self.run = door_folder(folder / "run", self.data, self.network)
        self.site, self.side = self.data.folder / "site", self.network.folder / "side"
        self.started: list[subprocess.Popen[bytes]] = []

    def command(self, user: User, *arguments: str) -> str:
        return user.run(["-P", "-m", "client.command", *arguments])

    def make(self, public: Path, images: Path, port: int) -> Path:
        """Both users make their files. Returns the request for the coordinator, for everybody to read."""
        shutil.copytree(images, self.data.folder / "pacs")
        self.data.owns(self.data.folder)
        server = ("--server", f"127.0.0.1:{port}", "--ca", str(public / "ca.pem"))
        door = str(self.run / "agent.sock")
        self.command(self.network, "init-network", str(self.side), *server, "--socket", door)
        shutil.copyfile(self.side / "node.pub", self.folder / "node.pub")
        self.command(
            self.data,
            *("init", str(self.site), "--name", self.name, "--node-public", str(self.folder / "node.pub")),
            *("--agent-socket", door, "--network-user", str(self.network.uid)),
            *("--root", str(public / "root.pub")),
            *("--images", str(self.data.folder / "pacs" / "images"), "--key", "PatientID"),
            *("--labels", str(self.data.folder / "pacs" / "labels.csv")),
        )
        return Path(shutil.copy(self.site / f"{self.name}.request.toml", self.folder))

    def start(self, user: User, log: str, *command: str) -> None:
        with (self.folder / log).open("wb") as output:
            self.started.append(user.start(command, stdout=output, stderr=output, start_new_session=True))

    def said(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob("*.log"))

    def status(self, user: User) -> dict[str, object]:
        config = self.site / "site.toml" if user is self.data else self.side / "network.toml"
        return dict(json.loads(self.command(user, "status", "--json", "--config", str(config))))

    def doctor(self, user: User) -> dict[str, dict[str, str]]:
        config = self.site / "site.toml" if user is self.data else self.side / "network.toml"
        told = self.command(user, "doctor", "--json", "--payload-mib", "0.1", "--config", str(config))
        return {finding["check"]: finding for finding in json.loads(told)}

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Its agent stands still, and with it the round."""
        processes = processes_of(self.data.uid)
        try:
            for pid in processes:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in processes:
                os.kill(pid, signal.SIGCONT)

    def end(self) -> list[int]:
        for process in self.started:
            process.send_signal(signal.SIGINT)
        return [process.wait(30.0) for process in self.started]

    def kill(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()
        for user in (self.data, self.network):
            for pid in processes_of(user.uid):
                os.kill(pid, signal.SIGKILL)


def coordinator(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-P", "-m", "server.command", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def rounds_done(server: Path) -> int:
    for path in (server / "state" / "runs").glob("*/progress.json"):
        try:
            return int(json.loads(path.read_text())["round"])
        except (OSError, ValueError):
            return 0
    return 0


@pytest.fixture
def machine() -> Iterator[Path]:
    if reason := why_not():
        pytest.skip(reason)
    folder = shared_folder()
    yield folder
    remove(folder)


@pytest.mark.deployed
@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_three_hospitals_of_two_users_each_train_together(machine: Path) -> None:
    server, public, port = machine / "server", machine / "public", free_port()
    coordinator(machine, "init", str(server), "--host", "127.0.0.1", "--port", str(port))
    (machine / "study.toml").write_text(study())
    public.mkdir()
    for name in ("tls/ca.pem", "root.pub"):
        shutil.copy(server / name, public)
    prepare = ["prepare", "phantom", "--out", str(machine / "phantom"), "--num-hospitals", "3"]
    simulate = [sys.executable, "-P", "-m", "simulations.command", *prepare, "--patients", "80"]
    subprocess.run([*simulate, "--image-size", "48"], cwd=machine, check=True, capture_output=True)

    hospitals = [Hospital(name, number, machine / name) for number, name in enumerate(NAMES, start=1)]
    for hospital in hospitals:
        request = hospital.make(public, machine / "phantom" / hospital.name, port)
        coordinator(machine, "admit", str(request), "--config", str(server / "server.toml"))
    config, proposal = ("--config", str(server / "server.toml")), server / "study.proposal.toml"
    coordinator(machine, "propose", str(machine / "study.toml"), *config)
    for path in (server / "roster.toml", proposal):
        shutil.copy(path, public)
    running: subprocess.Popen[bytes] | None = None
    try:
        for hospital in hospitals:
            site = ("--config", str(hospital.site / "site.toml"))
            hospital.command(hospital.data, "join", str(public / "roster.toml"), *site)
            hospital.command(hospital.data, "review", str(public / proposal.name), "--approve", *site)
            filtered = [str(TESTS / "unix_sockets_only.py")] if os.uname().machine in SOCKET_CALL else []
            agent = (*filtered, "-P", "-m", "client.command", "agent", *site)
            hospital.start(hospital.data, "agent.log", *agent)
            side = ("--config", str(hospital.side / "network.toml"))
            hospital.start(hospital.network, "connect.log", "-P", "-m", "client.command", "connect", *side)
        with (machine / "server.log").open("wb") as log:
            running = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "server.command",
                    "run",
                    "--config",
                    str(server / "server.toml"),
                ],
                env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
                stdout=log,
                stderr=log,
            )

        def said() -> str:
            return (machine / "server.log").read_text() + "".join(each.said() for each in hospitals)

        wait_until(lambda: rounds_done(server) >= 1 or running.poll() is not None, 240.0, said)
        for hospital, waited_for in zip(hospitals, (hospitals[-1], *hospitals), strict=False):
            with (
                waited_for.stopped()
            ):  # rounds wait, so that the run is in its middle however slow the machine is
                if hospital is hospitals[0]:
                    check_the_doctors(hospital)
                check_the_separation(hospital, port)
        wait_until(lambda: running.poll() is not None, 240.0, said)
        assert running.returncode == 0, said()
        (result,) = (server / "state" / "runs").glob("*/result.json")
        rounds = json.loads(result.read_text())["rounds"]
        assert [entry["survivors"] for entry in rounds] == [list(NAMES)] * NUM_ROUNDS
        for hospital in hospitals:
            assert hospital.end() == [130, 130], hospital.said()
            wait_until(lambda one=hospital: not processes_of(one.data.uid), 10.0)
            wait_until(lambda one=hospital: not processes_of(one.network.uid), 10.0)
    finally:
        for hospital in hospitals:
            hospital.kill()
        if running is not None:
            running.kill()
            running.wait()


def check_the_separation(hospital: Hospital, port: int) -> None:
    """In the middle of a run: both users' processes are there, and a SuperNode's code gets at nothing."""
    agents, others = processes_of(hospital.data.uid), processes_of(hospital.network.uid)
    assert len(agents) == 2, hospital.said()  # launcher and agent
    assert len(others) == 3, hospital.said()  # launcher, SuperNode and forwarder
    assert [line for pid in agents for line in internet_sockets(pid)] == []
    assert [line for pid in others for line in internet_sockets(pid)] != []

    state, pacs = hospital.site / "state", hospital.data.folder / "pacs"
    files = [
        next((pacs / "images").rglob("*.dcm")),
        pacs / "labels.csv",
        *(hospital.site / name for name in ("site.toml", "identity.key", "roster.toml")),
        *(state / name for name in ("site.secret", "journal.sqlite", "index.json", "logs/agent.log")),
        next(state.glob("runs/*/site_result.json")),
    ]
    attempts: dict[str, tuple[str | int, ...]] = {str(path): ("read", str(path)) for path in files}
    attempts |= {name: ("connect", str(state / "agent" / name)) for name in ("inner", "control")}
    assert set(hospital.data.tries(**attempts).values()) == {"done"}, "they are there"
    attempts |= {f"{what} {pid}": (what, pid) for pid in agents for what in ("memory", "trace", "signal")}
    assert set(hospital.network.tries(**attempts).values()) <= REFUSED

    own = hospital.status(hospital.data)
    assert own["agent"]["agent"] in ("working", "waiting"), own  # type: ignore[index]
    other = hospital.status(hospital.network)
    assert str(other["supernode"]).startswith("running"), other
    assert str(other["agent"]).startswith("lets this user in"), other
    assert other["server"] == f"127.0.0.1:{port} answers and is the consortium's"
    assert other["last_trouble"] is None


def check_the_doctors(hospital: Hospital) -> None:
    """Each of the two users, in the middle of a run, is told that nothing is wrong."""
    examined = hospital.doctor(hospital.data)
    assert {name for name, found in examined.items() if found["state"] != "ok"} == {"connection"}, examined
    assert "doctor --config network.toml" in examined["connection"]["message"]
    examined = hospital.doctor(hospital.network)
    assert {found["state"] for found in examined.values()} == {"ok"}, examined
    assert "SuperNode and forwarder are running" in examined["processes"]["message"]
