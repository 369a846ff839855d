"""Brings up the server's three processes, and ends them in order.

``SuperLink`` (loopback) → ``gate`` (the only one reachable from outside) → ``ServerApp`` (the run itself). They
end in the opposite order. None outlives this process, even when it is killed.
"""

import fcntl
import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypedDict

import httpx

from server.certificate_check import check_tls
from server.server_app import FAILURE
from server.server_file import ServerFile
from server.superlink import Access, SuperLink, SuperLinkError, connected_sites
from shared_models.processes import Child, flower_environment, private_folder, python_module
from shared_models.roster import Roster

GATE_SECONDS = 15.0
LOOK_SECONDS = 0.2
RUNNING = "server.json"


class ServerError(RuntimeError):
    """The server could not start, or a part of it ended before the run did."""


class RunFailed(RuntimeError):
    """The run itself failed; it can be resumed."""


class Running(TypedDict):
    """What a running server writes into its state folder for ``status``."""

    pid: int
    superlink_port: int
    run_id: str


class Server:
    """A running gate and SuperLink, in which runs can be played. Made by `open_server`."""

    def __init__(self, file: ServerFile, superlink: SuperLink, gate: Child) -> None:
        self._file = file
        self._superlink = superlink
        self._gate = gate
        self.log = file.state / "logs" / "server-app.log"

    @property
    def access(self) -> Access:
        """How to command the SuperLink."""
        return self._superlink.access

    def run(
        self, run_id: str, *, watch: Callable[[], None] = lambda: None, module: str = "server.server_app"
    ) -> None:
        """Play one run to its end.

        Args:
            run_id: our id of the run; its folder ``state/runs/RUN_ID`` holds its ``study.proposal.toml``.
            watch: called several times a second meanwhile, to show how far the run is.
            module: the main module of the process that plays it; tests have their own.

        Raises:
            RunFailed: the run's main job ended with an error.
            ServerError: the gate or the SuperLink ended meanwhile.
        """
        running = Running(pid=os.getpid(), superlink_port=self.access.port, run_id=run_id)
        (self._file.state / RUNNING).write_text(json.dumps(running), encoding="utf-8")
        app = Child(
            "ServerApp",
            python_module(module, *self._arguments(run_id, self._superlink.start_run())),
            log=self.log,
            environment=flower_environment(self._file.state / "superlink" / "home"),
        )
        try:
            while app.ended() is None:
                for part in (self._superlink.child, self._gate):
                    if part.ended() is not None:
                        raise ServerError(f"the {part.name} ended before the run did; see {part.log}")
                watch()
                time.sleep(LOOK_SECONDS)
        finally:
            app.stop()
            (self._file.state / RUNNING).unlink(missing_ok=True)
        if app.ended() != 0:
            raise RunFailed(f"the run failed: {self._reason(run_id)}; details in {self.log}")

    def _arguments(self, run_id: str, flower_run: int) -> list[str]:
        return [
            *("--superlink", self.access.address, "--ca-certificate", str(self.access.ca_certificate)),
            *("--secret", str(self.access.superexec_secret), "--flower-run", str(flower_run)),
            *("--root", str(self._file.root), "--roster", str(self._file.roster)),
            *("--state", str(self._file.state), "--run-id", run_id),
        ]

    def _reason(self, run_id: str) -> str:
        try:
            return (self._file.state / "runs" / run_id / FAILURE).read_text(encoding="utf-8").strip()
        except OSError:
            return "its process ended without a reason"


@contextmanager
def open_server(file: ServerFile, roster: Roster) -> Iterator[Server]:
    """Bring up SuperLink and gate; on leaving, end everything.

    Raises:
        ConfigurationError: the certificate is not one that sites would take.
        ServerError: another server uses the state folder, or a part did not come up.
        SuperLinkError: the SuperLink did not start or refused a key.
    """
    check_tls(file.tls)
    logs = private_folder(file.state) / "logs"
    with ExitStack() as stack:
        stack.enter_context(_only_one(file.state))
        superlink = SuperLink(file.state, log=logs / "superlink.log")
        stack.callback(superlink.child.stop)
        superlink.wait_until_ready()
        superlink.register(roster)
        gate = _start_gate(file, superlink.access, roster, logs / "gate.log")
        stack.callback(gate.stop)
        _wait_for_gate(file, gate)
        yield Server(file, superlink, gate)


def connected(state: Path, roster: Roster) -> tuple[Running, list[str]] | None:
    """What the server that runs on this state folder is doing, and the sites that are connected to it."""
    try:
        running: Running = json.loads((state / RUNNING).read_text(encoding="utf-8"))
        os.kill(running["pid"], 0)
    except (OSError, ValueError, KeyError):
        return None
    folder = state / "superlink"
    access = Access(
        port=running["superlink_port"],
        ca_certificate=folder / "tls" / "ca.pem",
        control_token=folder / "control.token",
        superexec_secret=folder / "superexec.secret",
    )
    try:
        return running, connected_sites(access, roster)
    except (SuperLinkError, httpx.HTTPError):
        return running, []  # it is starting or ending; who only looks is not to fail for it


def _start_gate(file: ServerFile, access: Access, roster: Roster, log: Path) -> Child:
    arguments: Sequence[str] = (
        *("--host", file.listen.host, "--port", str(file.listen.port)),
        *("--certificate", str(file.tls.certificate), "--key", str(file.tls.key)),
        *("--upstream", f"https://{access.address}", "--upstream-ca", str(access.ca_certificate)),
        *("--roster-version", str(roster.version)),
    )
    return Child("gate", python_module("server.gate", *arguments), log=log, environment={})


def _wait_for_gate(file: ServerFile, gate: Child) -> None:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(file.listen.host, file.listen.host)  # noqa: S104
    context = ssl.create_default_context(cafile=str(file.tls.ca_certificate))
    context.check_hostname = False
    deadline = time.monotonic() + GATE_SECONDS
    while time.monotonic() < deadline:
        if gate.ended() is not None:
            raise ServerError(f"the gate cannot listen on {file.listen.address}: {_last_line(gate.said())}")
        try:
            with (
                socket.create_connection((host, file.listen.port), 1.0) as plain,
                context.wrap_socket(plain),
            ):
                return
        except ssl.SSLCertVerificationError as error:
            raise ServerError(
                f"{file.tls.certificate} was not issued by {file.tls.ca_certificate} ({error.verify_message}); "
                "sites would refuse it"
            ) from error
        except OSError:
            time.sleep(0.1)
    raise ServerError(f"the gate did not answer on {file.listen.address}; see {gate.log}")


@contextmanager
def _only_one(state: Path) -> Iterator[None]:
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ServerError(f"another server is running on {state}; end it first") from error
        yield


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
