"""A whole deployment on loopback for tests: real gate, SuperLink, ServerApp, SuperNodes and forwarders.

Only the job of the ServerApp and the handlers of the agents are toys, each implementing the real interface.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from multiprocessing.connection import Client, Connection
from pathlib import Path
from types import MappingProxyType

import pytest
import toy_server_app

from client import launch as site_launch
from client.site_file import SiteFile, read_site
from server.certificates import Authority
from server.launch import Server, open_server
from server.server_file import Listen, ServerFile, Tls, read_sites
from shared_models.identity_keys import identity_line, new_identity_key, read_identity_key
from shared_models.node_keys import new_node_key
from shared_models.processes import free_port, write_private
from shared_models.roster import Roster, RosterSite, write_roster

TESTS = Path(__file__).resolve().parent


def _ipv6_there() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not _ipv6_there(), reason="this machine has no IPv6 loopback address")


def make_server(
    folder: Path, names: tuple[str, ...], *, port: int | None = None, host: str = "127.0.0.1"
) -> tuple[ServerFile, dict[str, bytes]]:
    """Write a server's files below *folder*. Returns them and the sites' private node keys."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = Authority("Toy consortium")
    issued = authority.server(["localhost", "127.0.0.1", "::1"])
    (folder / "ca.pem").write_bytes(authority.issued.certificate)
    (folder / "server.pem").write_bytes(issued.certificate)
    write_private(folder / "server.key", issued.key)
    write_private(folder / "root.key", new_identity_key()[0])
    root = read_identity_key(folder / "root.key")
    (folder / "root.pub").write_text(identity_line(root))
    keys, sites = {}, []
    for name in names:
        keys[name], public = new_node_key()
        private, identity = new_identity_key()
        write_private(folder / f"{name}.identity.key", private)
        sites.append(RosterSite(name=name, node_key=public, identity_key=identity))
    write_roster(folder / "roster.toml", Roster(version=1, site=tuple(sites)), root)
    file = ServerFile(
        study=folder / "study.toml",
        root=folder / "root.pub",
        roster=folder / "roster.toml",
        state=folder / "state",
        listen=Listen(host=host, port=port or free_port()),
        tls=Tls(
            certificate=folder / "server.pem", key=folder / "server.key", ca_certificate=folder / "ca.pem"
        ),
    )
    (folder / "server.toml").write_text(
        f"""
study = "study.toml"
root = "root.pub"
roster = "roster.toml"
state = "state"
[listen]
host = "{host}"
port = {file.listen.port}
[tls]
certificate = "server.pem"
key = "server.key"
ca_certificate = "ca.pem"
"""
    )
    return file, keys


def make_site(
    folder: Path,
    name: str,
    server: ServerFile,
    key: bytes,
    *,
    ca: Path | None = None,
    reached: str = "127.0.0.1",
) -> Path:
    """Write a site's files below *folder*. Returns the path of its ``site.toml``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_private(folder / "node.key", key)
    identity = server.root.parent / f"{name}.identity.key"
    if not identity.exists():
        write_private(identity, new_identity_key()[0])
    config = folder / "site.toml"
    config.write_text(
        f"""
name = "{name}"
state = "state"
[images]
folder = "images"
[labels]
file = "labels.csv"
key = "PatientID"
[policy]
min_cohort = 2
min_patients = 1
max_unusable_share = 1.0
max_runs_per_study = 100
min_threshold = 1
allowed_tasks = ["binary-classification"]
allowed_architectures = ["small-cnn"]
[consortium]
root = "{server.root}"
roster = "{server.roster}"
identity_key = "{identity}"
[server]
address = "{reached}:{server.listen.port}"
ca_certificate = "{ca or server.tls.ca_certificate}"
node_key = "node.key"
"""
    )
    return config


class ToySite:
    """One site's three processes, kept up by a thread of the test."""

    def __init__(self, config: Path) -> None:
        self.file: SiteFile = read_site(config)
        self.told: list[str] = []
        self.error: Exception | None = None
        self._ended = threading.Event()
        command = [sys.executable, "-P", str(TESTS / "toy_agent.py"), "--config", str(config)]
        self._thread = threading.Thread(target=self._run, args=(config, command))
        self._thread.start()

    def _run(self, config: Path, command: list[str]) -> None:
        try:
            site_launch.run_site(
                self.file, config, tell=self.told.append, agent=command, ended=self._ended.is_set
            )
        except Exception as error:  # noqa: BLE001
            self.error = error

    def log(self, name: str) -> str:
        path = self.file.state / "logs" / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


class Consortium:
    """A running server with toy sites; `exchange` drives the ServerApp's exchange from the test."""

    def __init__(
        self,
        folder: Path,
        names: tuple[str, ...],
        *,
        host: str = "127.0.0.1",
        reached: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._stack = ExitStack()
        try:
            self._bring_up(folder, names, host, reached)
        except BaseException:
            self.close()
            raise

    def _bring_up(self, folder: Path, names: tuple[str, ...], host: str, reached: Mapping[str, str]) -> None:
        self.file, keys = make_server(folder / "server", names, host=host)
        self.roster: Roster = read_sites(self.file)
        old = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), old])
        self._stack.callback(os.environ.__setitem__, "PYTHONPATH", old)
        self.server: Server = self._stack.enter_context(open_server(self.file, self.roster))
        self.error: Exception | None = None
        (self.file.state / "runs" / "toy-run").mkdir(parents=True)
        self._run = threading.Thread(target=self._play)
        self._run.start()
        self._stack.callback(self._end_run)
        self.sites = {
            name: ToySite(
                make_site(folder / name, name, self.file, keys[name], reached=reached.get(name, "127.0.0.1"))
            )
            for name in names
        }
        for site in self.sites.values():
            self._stack.callback(site.close)
        self._app: Connection = self._connect()
        self.wait_for(names)

    def _play(self) -> None:
        try:
            self.server.run("toy-run", module="toy_server_app")
        except Exception as error:  # noqa: BLE001
            self.error = error

    def _connect(self) -> Connection:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                return Client(str(self.file.state / "toy"), family="AF_UNIX", authkey=toy_server_app.KEY)
            except (FileNotFoundError, ConnectionRefusedError):
                if self.error is not None:
                    raise self.error from None
                time.sleep(0.1)
        raise TimeoutError((self.file.state / "logs" / "server-app.log").read_text())

    def _end_run(self) -> None:
        if hasattr(self, "_app"):
            self._app.send(("end",))
            self._app.close()
        self._run.join()

    def wait_for(self, names: tuple[str, ...], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while set(self.connected()) != set(names):
            if time.monotonic() > deadline:
                raise TimeoutError(f"only {self.connected()} of {names} are connected")
            time.sleep(0.2)

    def connected(self) -> tuple[str, ...]:
        self._app.send(("sites",))
        return self._app.recv()

    def exchange(
        self, requests: Mapping[str, bytes], timeout_seconds: float
    ) -> tuple[list[tuple[str, bytes, float]], float]:
        """Returns (site, message, seconds after sending) of each reply, and the seconds of the whole."""
        self._app.send(("exchange", dict(requests), timeout_seconds))
        return self._app.recv()

    def close(self) -> None:
        self._stack.close()
