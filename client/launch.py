"""Brings up a site's processes, keeps them up, and ends them in order.

The agent (data, keys, model), Flower's SuperNode (the connection to the server) and the forwarder between them:
all three as one user, or the agent as one and the other two as another. One that dies is started again, at growing
intervals; the operator is told why in words. None outlives this process, even when it is killed.
"""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from client.agent import DRAINED, UNUSABLE
from client.certificate_words import certificate_words
from client.door_place import DoorError, door_place
from client.key_handover import HandedKey, handed_identity_key, handed_node_key
from client.network_file import NetworkFile
from client.site_file import Server, SiteFile
from shared_models.passphrase import PassphraseOf, passphrase_of
from shared_models.processes import (
    Child,
    flower_environment,
    free_port,
    private_folder,
    python_module,
    write_private,
)

CONNECT_SECONDS = 5.0
LOOK_SECONDS = 0.2
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
STEADY_SECONDS = 60.0
LOCK_TRIES = 3
RUNNING, TROUBLE = "site.json", "trouble.json"
NOT_ADMITTED = "[code: 2004]"  # Flower: the node key is not registered
NOT_AUTHENTICATED = "Invalid SuperNode authentication"

Tell = Callable[[str], None]
Words = Callable[[str, "Child"], str]  # why the process of this name has ended


class SiteError(RuntimeError):
    """The site cannot start. The message says what is wrong and what to do."""


class ServerNotReached(RuntimeError):
    """The server does not answer now; it may later."""


@dataclass(slots=True)
class _Part:
    """One of the three processes, and what is needed to start it again."""

    start: Callable[[], Child]
    child: Child | None = None
    started: float = 0.0
    not_before: float = 0.0
    pause: float = field(default=FIRST_PAUSE_SECONDS)


def check_server(server: Server) -> None:
    """Connect once as the SuperNode will, to tell the operator in words what is wrong.

    Raises:
        SiteError: the certificate is not what the site was given to expect, or a file is missing.
        ServerNotReached: nobody answers there at the moment.
    """
    host, port = server.host, server.port
    ca = server.ca_certificate
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except FileNotFoundError as error:
        raise SiteError(
            f"server.ca_certificate: {ca} does not exist; ask the coordinator for ca.pem"
        ) from error
    except (ssl.SSLError, OSError) as error:
        raise SiteError(
            f"server.ca_certificate: {ca} is not a PEM certificate; ask the coordinator"
        ) from error
    try:
        with (
            socket.create_connection((host, port), CONNECT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        raise SiteError(certificate_words(server, error)) from error
    except ssl.SSLError as error:
        raise SiteError(
            f"{server.address} answers, but not with TLS ({error.reason}); check server.address and any proxy"
        ) from error
    except ConnectionRefusedError as error:
        raise ServerNotReached(
            f"{server.address} refuses connections: the server is not running, or the port is wrong"
        ) from error
    except TimeoutError as error:
        raise ServerNotReached(f"{server.address} does not answer; a firewall may be in the way") from error
    except socket.gaierror as error:
        raise ServerNotReached(
            f"{host} is not a known name ({error.strerror}); check server.address"
        ) from error
    except OSError as error:
        raise ServerNotReached(f"{server.address} cannot be reached: {error.strerror or error}") from error


def run_site(
    file: SiteFile,
    config: Path,
    *,
    tell: Tell,
    agent: Sequence[str] | None = None,
    ended: Callable[[], bool],
    passphrase: PassphraseOf = passphrase_of,
) -> None:
    """Keep the site up until *ended* says so, the agent was drained, or an exception (Ctrl-C) comes.

    Args:
        file: the site's file.
        config: where it was read from; the agent reads it again.
        tell: shows one line to the operator.
        agent: command that runs the agent; our own unless a test brings another.
        ended: asked several times a second.
        passphrase: opens the site's keys where they are encrypted.

    Raises:
        SiteError: something is wrong that waiting does not mend.
        ConfigurationError: a key cannot be opened.
    """
    if file.server is None:
        raise SiteError(f"{config}: [server] is missing; add it with address, ca_certificate and node_key")
    own, node = file.consortium.identity_key, file.server.node_key
    with (
        only_one(private_folder(file.state)),
        handed_identity_key(own, passphrase) as identity_key,
        handed_node_key(node, passphrase) as node_key,
    ):
        _look_at(file.server, tell)
        parts = _network_parts(file.server, file.state, door_of(file), node_key)
        parts["agent"] = _agent_part(file, config, identity_key, agent)
        request = f"{file.name}.request.toml"
        _keep_up(parts, file.state, tell, ended, _words(file.server, request))


def run_agent(
    file: SiteFile,
    config: Path,
    *,
    tell: Tell,
    agent: Sequence[str] | None = None,
    ended: Callable[[], bool],
    passphrase: PassphraseOf = passphrase_of,
) -> None:
    """Keep the agent alone up, as the user who has the data; arguments and errors as those of `run_site`."""
    with (
        only_one(private_folder(file.state)),
        handed_identity_key(file.consortium.identity_key, passphrase) as key,
    ):
        _keep_up({"agent": _agent_part(file, config, key, agent)}, file.state, tell, ended, _log_words)


def run_network(
    file: NetworkFile, *, tell: Tell, ended: Callable[[], bool], passphrase: PassphraseOf = passphrase_of
) -> None:
    """Keep SuperNode and forwarder up, as the network user, until *ended* says so or an exception comes.

    Args:
        file: the network user's file.
        tell: shows one line to the operator.
        ended: asked several times a second.
        passphrase: opens the node key where it is encrypted.

    Raises:
        SiteError: something is wrong that waiting does not mend.
        ConfigurationError: the key cannot be opened.
    """
    with only_one(private_folder(file.state)), handed_node_key(file.server.node_key, passphrase) as key:
        _look_at(file.server, tell)
        parts = _network_parts(file.server, file.state, file.agent_socket, key)
        request = f"{file.name}.request.toml" if file.name else "the hospital's request"
        _keep_up(parts, file.state, tell, ended, _words(file.server, request))


def running(state: Path) -> dict[str, int]:
    """Name → process id of what a launcher on this state folder keeps up; empty where there is no launcher."""
    try:
        with (state / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(OSError, ValueError):
            values = json.loads((state / RUNNING).read_text(encoding="utf-8"))
            return {str(name): int(pid) for name, pid in values.items()}
    except OSError:
        pass
    return {}


def last_trouble(state: Path) -> str | None:
    """Why a process ended last since the launcher was started, with the time; None where none did."""
    try:
        values = json.loads((state / TROUBLE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return f"{values['at']}: {values['reason']}"


def door_of(file: SiteFile) -> Path:
    """The socket of the agent's door. Raises SiteError where it cannot be opened."""
    try:
        return door_place(file).socket
    except DoorError as error:
        raise SiteError(str(error)) from error


def _look_at(server: Server, tell: Tell) -> None:
    try:
        check_server(server)
    except ServerNotReached as error:
        tell(f"{error}. Trying again until it answers.")


def _agent_part(file: SiteFile, config: Path, key: HandedKey, agent: Sequence[str] | None) -> _Part:
    own = python_module("client.agent", "--config", str(config.resolve()), "--identity-key", str(key.path))
    return _part("agent", agent or own, file.state, {}, key.descriptors)


def _network_parts(server: Server, state: Path, door: Path, key: HandedKey) -> dict[str, _Part]:
    """SuperNode and forwarder, in the order in which they are ended."""
    flower = private_folder(state / "flower")
    secret = flower / "superexec.secret"
    write_private(secret, secrets.token_bytes(32), replace=True)
    port = free_port()
    environment = flower_environment(flower / "home")
    supernode = python_module(
        "client.supernode",
        *("--superlink", server.address, "--root-certificates", str(server.ca_certificate)),
        *("--auth-supernode-private-key", str(key.path)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
        *("--host", "127.0.0.1", "--port", str(port)),
    )
    forwarder = python_module(
        "client.forwarder",
        *("--supernode", f"127.0.0.1:{port}", "--secret", str(secret), "--agent", str(door)),
    )
    return {
        "SuperNode": _part("SuperNode", supernode, state, environment, key.descriptors),
        "forwarder": _part("forwarder", forwarder, state, environment),
    }


def _part(
    name: str,
    command: Sequence[str],
    state: Path,
    environment: dict[str, str],
    inherited: Sequence[int] = (),
) -> _Part:
    log = state / "logs" / f"{name.lower()}.log"
    return _Part(lambda: Child(name, command, log=log, environment=environment, descriptors=inherited))


def _keep_up(
    parts: dict[str, _Part], state: Path, tell: Tell, ended: Callable[[], bool], words: Words
) -> None:
    """Supervise; in the end, however it comes, end all in order."""
    (state / TROUBLE).unlink(missing_ok=True)
    try:
        _supervise(parts, state, tell, ended, words)
    finally:
        for part in parts.values():
            if part.child is not None:
                part.child.stop()
        (state / RUNNING).unlink(missing_ok=True)


def _supervise(
    parts: dict[str, _Part], state: Path, tell: Tell, ended: Callable[[], bool], words: Words
) -> None:
    while not ended():
        now = time.monotonic()
        for name, part in parts.items():
            status = part.child.ended() if part.child is not None else None
            if part.child is not None and status is None:
                continue
            if part.child is not None:
                if name == "agent" and status == DRAINED:
                    tell("the agent was drained; the site ends")
                    return
                if name == "agent" and status == UNUSABLE:
                    raise SiteError(part.child.said().strip())
                _mourn(name, part, state, tell, words)
            if now >= part.not_before:
                part.child, part.started = part.start(), now
                _write_running(parts, state)
        time.sleep(LOOK_SECONDS)


def _mourn(name: str, part: _Part, state: Path, tell: Tell, words: Words) -> None:
    """A process has ended by itself: say why, and set when it is started again."""
    child, now = part.child, time.monotonic()
    if child is None:
        return
    if now - part.started > STEADY_SECONDS:
        part.pause = FIRST_PAUSE_SECONDS
    reason = words(name, child)
    trouble = {"at": time.strftime("%Y-%m-%d %H:%M:%S"), "reason": reason}
    (state / TROUBLE).write_text(json.dumps(trouble), encoding="utf-8")
    tell(f"{reason}. Starting it again in {part.pause:.0f} s.")
    part.not_before = now + part.pause
    part.pause = min(2 * part.pause, LONGEST_PAUSE_SECONDS)
    child.stop()
    part.child = None


def _log_words(name: str, child: Child) -> str:
    return f"the {name} ended; see {child.log}"


def _words(server: Server, request: str) -> Words:
    """Why SuperNode or forwarder ended; *request* is what the coordinator has to admit."""

    def words(name: str, child: Child) -> str:
        said = child.said() if name == "SuperNode" else ""
        if NOT_ADMITTED in said:
            return (
                f"the server does not know this site's node key {server.node_key}: send {request} to the coordinator, "
                "who adds it with `collegium-server admit` and starts the server again. If it was admitted before, it "
                "was taken out: the newest roster.toml says so when you join with it"
            )
        if NOT_AUTHENTICATED in said:
            return "the server refuses this site's signature: check that this machine's clock is right"
        return _log_words(name, child)

    return words


def _write_running(parts: dict[str, _Part], state: Path) -> None:
    pids = {name: part.child.pid for name, part in parts.items() if part.child is not None}
    (state / RUNNING).write_text(json.dumps({"launcher": os.getpid(), **pids}), encoding="utf-8")


@contextmanager
def only_one(state: Path) -> Iterator[None]:
    """Keep the site with this state folder from running, but for here. Raises SiteError where it runs already."""
    with (state / "lock").open("w") as lock:
        for tries_left in reversed(range(LOCK_TRIES)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if not tries_left:
                    raise SiteError(f"this site is running already on {state}; end it first") from error
            time.sleep(LOOK_SECONDS)  # `running` holds the lock for a moment
        yield
