"""docs/two-machines.md, followed as it stands: one network namespace for the server and one for each hospital."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.deployed, pytest.mark.slow, pytest.mark.timeout(600)]

PAGE = (Path(__file__).parents[1] / "docs" / "two-machines.md").read_text(encoding="utf-8")
SERVER_ADDRESS, PORT = "192.0.2.10", 9443
HOSPITALS = ("hospital-1", "hospital-2", "hospital-3")
MACHINES = ("server", *HOSPITALS)
ROSTER = "consortium/roster.toml"
LISTENING = "0A"
TERMINAL = {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}  # one thread: all machines share this one's processors


# The page


def blocks() -> dict[str, str]:
    """The page's fenced blocks by what stands behind the three backticks."""
    return dict(re.findall(r"^```([^\n]+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))


def handed_over() -> list[tuple[str, str, str, str]]:
    """(machine, file, machine, file) of the page's tables of files that go from one machine to another."""
    rows = re.findall(
        r"^\| ([a-z0-9-]+): `([^`]+)` \| ([a-z0-9 -]+): `([^`]+)` \|$", PAGE, flags=re.MULTILINE
    )
    return [
        (source, file, target, name)
        for source, file, targets, name in rows
        for target in (HOSPITALS if targets == "every hospital" else (targets,))
    ]


# The machines


class Machine:
    """A network namespace with an address of its own, and a folder that only its commands use."""

    def __init__(self, network: "Network", name: str, address: str, folder: Path) -> None:
        self.name, self.address, self.folder = name, address, folder
        self.namespace = f"{network.prefix}-{name}"
        self._network = network
        folder.mkdir()
        (folder / "tmp").mkdir()
        self._own = {"HOME": str(folder), "TMPDIR": str(folder / "tmp"), **TERMINAL}
        self.started: list[subprocess.Popen[bytes]] = []

    def do(self, step: str, **names: str) -> str:
        """Run the page's block of this step to its end and return what it printed."""
        command, environment = self._command(step, names)
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, f"{self.name}, {step}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, step: str, **names: str) -> "subprocess.Popen[bytes]":
        """Start the page's block of this step as in a terminal of its own."""
        command, environment = self._command(step, names)
        with (self.folder / "terminal.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.started.append(process)
        return process

    def _command(self, step: str, names: dict[str, str]) -> tuple[list[str], dict[str, str]]:
        self._network.done.add(step)
        text = blocks()[step]
        if step.startswith("sh hospital"):
            text = text.replace("hospital-1", self.name)
        for name, value in names.items():
            text = text.replace(name, value)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        shell = ["bash", "-euo", "pipefail", "-c", text]
        return ip_command("netns", "exec", self.namespace, *shell), {**os.environ, **self._own, "PATH": path}

    def terminal(self) -> str:
        """What the commands that were started have printed."""
        return (self.folder / "terminal.log").read_text()

    def processes(self) -> list[int]:
        return [int(pid) for pid in ip("netns", "pids", self.namespace).split()]

    def listeners(self) -> set[tuple[str, int]]:
        """(address, port) of every TCP listener that is not on loopback; addresses as the kernel prints them."""
        found = set()
        for table in ("tcp", "tcp6"):
            for line in ip("netns", "exec", self.namespace, "cat", f"/proc/net/{table}").splitlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                address, port = local.split(":")
                if state == LISTENING and address != "0100007F":
                    found.add((address, int(port, 16)))
        return found

    def reaches(self, address: str, port: int) -> bool:
        program = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()"
        command = ip_command(
            "netns", "exec", self.namespace, sys.executable, "-c", program, address, str(port)
        )
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def cable(self, state: str) -> None:
        ip("-n", self.namespace, "link", "set", "eth0", state)


class Network:
    """A switch in a namespace of its own, and the machines on it. Nothing of it is in this machine's network."""

    def __init__(self) -> None:
        self.prefix = f"collegium-{os.getpid()}"
        self.done: set[str] = set()
        self.machines: dict[str, Machine] = {}
        self.namespaces: list[str] = []

    def build(self, folder: Path) -> None:
        """Make the namespaces and plug the cables in."""
        switch = f"{self.prefix}-switch"
        self.namespaces.append(switch)
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "switch", "type", "bridge")
        ip("-n", switch, "link", "set", "switch", "up")
        for number, name in enumerate(MACHINES):
            machine = Machine(self, name, f"192.0.2.{10 + number}", folder / name)
            self.namespaces.append(machine.namespace)
            ip("netns", "add", machine.namespace)
            cable = ("link", "add", "eth0", "type", "veth", "peer", "name", f"port{number}", "netns", switch)
            ip("-n", machine.namespace, *cable)
            ip("-n", machine.namespace, "address", "add", f"{machine.address}/24", "dev", "eth0")
            ip("-n", machine.namespace, "link", "set", "lo", "up")
            ip("-n", machine.namespace, "link", "set", "eth0", "up")
            ip("-n", switch, "link", "set", f"port{number}", "master", "switch")
            ip("-n", switch, "link", "set", f"port{number}", "up")
            self.machines[name] = machine

    def close(self) -> None:
        """End whatever still runs in the namespaces, all of it ours, and remove them."""
        for machine in self.machines.values():
            for process in machine.started:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        wait_until(lambda: not any(machine.processes() for machine in self.machines.values()), 15.0, ok=False)
        for machine in self.machines.values():
            for pid in machine.processes():
                os.kill(pid, signal.SIGKILL)
        for namespace in self.namespaces:
            subprocess.run(ip_command("netns", "delete", namespace), capture_output=True, check=False)


def ip_command(*arguments: str) -> list[str]:
    return ["ip", *arguments]


def ip(*arguments: str) -> str:
    done = subprocess.run(ip_command(*arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def why_no_namespaces() -> str | None:
    """Why network namespaces cannot be made here, or None."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    if shutil.which("ip") is None:
        return "the command ip (iproute2) is not there"
    name = f"collegium-{os.getpid()}-trial"
    commands = [
        ("netns", "add", name),
        ("netns", "exec", name, "true"),
        ("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "port0"),
        ("-n", name, "link", "add", "switch", "type", "bridge"),
    ]
    try:
        for arguments in commands:
            done = subprocess.run(ip_command(*arguments), capture_output=True, text=True, check=False)
            if done.returncode != 0:
                return f"ip {' '.join(arguments)}: {done.stderr.strip()}"
    finally:
        subprocess.run(ip_command("netns", "delete", name), capture_output=True, check=False)
    return None


def remove_leftovers() -> None:
    """Namespaces of an earlier test that was killed, with all that runs in them."""
    for line in ip("netns", "list").splitlines():
        namespace = line.split()[0]
        owner = re.fullmatch(r"collegium-(\d+)-[a-z0-9-]+", namespace)
        if owner and not Path(f"/proc/{owner.group(1)}").exists():
            for pid in ip("netns", "pids", namespace).split():
                os.kill(int(pid), signal.SIGKILL)
            ip("netns", "delete", namespace)


def wait_until(true: Callable[[], bool], seconds: float, *, ok: bool = True, say: str = "") -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            assert not ok, f"not within {seconds:g} s: {say}"
            return
        time.sleep(0.2)


# A run on them


def runs_of(server: Machine) -> list[Path]:
    return sorted((server.folder / "consortium" / "state" / "runs").glob("*"))


def rounds_done(run: Path) -> int:
    try:
        return int(json.loads((run / "progress.json").read_text())["round"])
    except (OSError, ValueError):
        return 0


def wait_for_round(server: Machine, number: int, num_runs: int) -> Path:
    """The folder of the latest run, once this many rounds of it are done."""

    def there() -> bool:
        assert server.started[-1].poll() is None, server.terminal()
        return len(runs_of(server)) == num_runs and rounds_done(runs_of(server)[-1]) >= number

    wait_until(there, 120.0, say=f"round {number}")
    return runs_of(server)[-1]


def ended(process: "subprocess.Popen[bytes]", machine: Machine, seconds: float) -> int:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        pytest.fail(f"{machine.name} did not end within {seconds:g} s:\n{machine.terminal()}")


def ctrl_c(process: "subprocess.Popen[bytes]") -> None:
    os.killpg(process.pid, signal.SIGINT)


@pytest.fixture
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    if reason := why_no_namespaces():
        pytest.skip(reason)
    remove_leftovers()
    made = Network()
    try:
        made.build(tmp_path_factory.mktemp("machines"))
        yield made
    finally:
        made.close()


@pytest.mark.thorough
def test_the_page_is_followed_as_it_stands(network: Network) -> None:
    server, hospitals = network.machines["server"], [network.machines[name] for name in HOSPITALS]
    last = hospitals[-1]

    # 1 to 5: files, keys, admission, the roster, the hospitals' approval
    server.do("sh server init")
    (server.folder / "consortium" / "study.toml").write_text(blocks()["toml study.toml"])
    assert "the roster has 0 hospitals" in server.do("sh server propose")
    given = [move for move in handed_over() if move[0] == "server"]
    hand_over(network, [move for move in given if move[1] != ROSTER], num=9)
    for hospital in hospitals:
        hospital.do("sh hospital images")
        hospital.do("sh hospital init")
        hospital.do("sh hospital index")
    hand_over(network, [move for move in handed_over() if move[0] != "server"], num=3)
    server.do("sh server admit")
    hand_over(network, [move for move in given if move[1] == ROSTER], num=3)
    for hospital in hospitals:
        hospital.do("sh hospital join")
        assert "Nothing was decided" in hospital.do("sh hospital review")
        assert "Approved by Dr Example" in hospital.do("sh hospital approve")

    # 5 and 6: the sites start, and the first run; the cable of one hospital is pulled in the middle of it
    sites = [hospital.start("sh hospital start") for hospital in hospitals]
    running = server.start("sh server run")
    first = wait_for_round(server, 2, 1)
    last.cable("down")
    assert first.name in server.do("sh server status")
    check_what_is_open(network, hospitals[:-1])
    for hospital in hospitals[:-1]:
        assert f"{SERVER_ADDRESS}:{PORT} answers" in hospital.do("sh hospital status")
    assert f"{SERVER_ADDRESS}:{PORT} answers" not in last.do("sh hospital status")
    assert ended(running, server, 240.0) == 0, server.terminal()

    # 7: results at the server; who was there is told
    assert len(server.do("sh server results").split()) == 2
    result = json.loads((first / "result.json").read_text())
    survivors = [entry["survivors"] for entry in result["rounds"]]
    assert survivors[0] == list(HOSPITALS)
    assert survivors[-1] == list(HOSPITALS[:-1])
    assert not any(entry["burned"] for entry in result["rounds"])
    assert result["test"]["auroc"] is not None
    for hospital in hospitals[:-1]:
        own = hospital.folder / "site" / "state" / "runs" / first.name / "site_result.json"
        assert json.loads(own.read_text())["test"] is not None
        assert first.name in hospital.do("sh hospital ledger")

    # 8: the cable is back, and the hospital takes part again without anybody doing anything at it
    last.cable("up")
    running = server.start("sh server run")
    second = wait_for_round(server, 3, 2)
    ctrl_c(running)
    assert ended(running, server, 30.0) == 130, server.terminal()
    assert not server.processes()
    assert not (second / "result.json").exists()
    resumed = server.start("sh server resume", RUN_ID=second.name)
    assert ended(resumed, server, 240.0) == 0, server.terminal()
    result = json.loads((second / "result.json").read_text())
    assert [entry["round"] for entry in result["rounds"]] == list(range(1, 11))
    assert result["rounds"][-1]["survivors"] == list(HOSPITALS)

    # nothing stays
    for process, hospital in zip(sites, hospitals, strict=True):
        ctrl_c(process)
        assert ended(process, hospital, 30.0) == 130, hospital.terminal()
    assert not any(machine.processes() for machine in network.machines.values())
    commands = {name for name in blocks() if name.startswith("sh ")}
    assert network.done == commands - {"sh install"}, "every command of the page was run, as were no others"


def hand_over(network: Network, moved: list[tuple[str, str, str, str]], *, num: int) -> None:
    assert len(moved) == num
    for source, file, target, name in moved:
        shutil.copyfile(network.machines[source].folder / file, network.machines[target].folder / name)


def check_what_is_open(network: Network, hospitals: list[Machine]) -> None:
    """The server listens on its one port, hospitals on none; nothing else can be reached from elsewhere."""
    server = network.machines["server"]
    assert server.listeners() == {("00000000", PORT)}
    hidden = json.loads((server.folder / "consortium" / "state" / "server.json").read_text())[
        "superlink_port"
    ]
    for hospital in hospitals:
        assert hospital.listeners() == set()
        assert hospital.reaches(SERVER_ADDRESS, PORT)
        assert not hospital.reaches(SERVER_ADDRESS, hidden)
    one, other = hospitals
    assert not one.reaches(other.address, PORT)
