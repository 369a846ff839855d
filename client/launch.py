"""Brings up a site's three processes, keeps them up, and ends them in order.

The agent (data, keys, model), Flower's SuperNode (the connection to the server) and the forwarder between them.
One that dies is started again, at growing intervals; the operator is told why in words. None outlives this
process, even when it is killed.
"""

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
from client.agent_channel import socket_path
from client.certificate_words import certificate_words
from client.key_handover import HandedKeys, handed_keys
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
RUNNING = "site.json"
NOT_ADMITTED = "[code: 2004]"  # Flower: the node key is not registered
NOT_AUTHENTICATED = "Invalid SuperNode authentication"

Tell = Callable[[str], None]


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
    private_folder(file.state)
    with only_one(file.state), handed_keys(file, file.server, passphrase) as keys:
        try:
            check_server(file.server)
        except ServerNotReached as error:
            tell(f"{error}. Trying again until it answers.")
        parts = _parts(file, file.server, config, keys, agent)
        try:
            _supervise(parts, file, tell, ended)
        finally:
            for part in parts.values():
                if part.child is not None:
                    part.child.stop()
            (file.state / RUNNING).unlink(missing_ok=True)


def _parts(
    file: SiteFile, server: Server, config: Path, keys: HandedKeys, agent: Sequence[str] | None
) -> dict[str, _Part]:
    """The three processes, in the order in which they are ended."""
    try:
        socket_at = socket_path(file.state)
    except ValueError as error:
        raise SiteError(str(error)) from error
    logs = file.state / "logs"
    flower = private_folder(file.state / "flower")
    secret = flower / "superexec.secret"
    write_private(secret, secrets.token_bytes(32), replace=True)
    port = free_port()
    environment = flower_environment(flower / "home")
    supernode = python_module(
        "client.supernode",
        *("--superlink", server.address, "--root-certificates", str(server.ca_certificate)),
        *("--auth-supernode-private-key", str(keys.node.path)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
        *("--host", "127.0.0.1", "--port", str(port)),
    )
    forwarder = python_module(
        "client.forwarder",
        *("--supernode", f"127.0.0.1:{port}", "--secret", str(secret), "--agent", str(socket_at)),
    )
    identity = ("--identity-key", str(keys.identity.path))
    own = agent or python_module("client.agent", "--config", str(config.resolve()), *identity)

    def part(
        name: str, command: Sequence[str], variables: dict[str, str], inherited: Sequence[int] = ()
    ) -> _Part:
        log = logs / f"{name.lower()}.log"
        return _Part(lambda: Child(name, command, log=log, environment=variables, descriptors=inherited))

    return {
        "SuperNode": part("SuperNode", supernode, environment, keys.node.descriptors),
        "forwarder": part("forwarder", forwarder, environment),
        "agent": part("agent", own, {}, keys.identity.descriptors),
    }


def _supervise(parts: dict[str, _Part], file: SiteFile, tell: Tell, ended: Callable[[], bool]) -> None:
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
                _mourn(name, part, file, tell, now)
            if now >= part.not_before:
                part.child, part.started = part.start(), now
                _write_running(parts, file.state)
        time.sleep(LOOK_SECONDS)


def _mourn(name: str, part: _Part, file: SiteFile, tell: Tell, now: float) -> None:
    """A process has ended by itself: say why, and set when it is started again."""
    child = part.child
    if child is None:
        return
    if now - part.started > STEADY_SECONDS:
        part.pause = FIRST_PAUSE_SECONDS
    reason = _supernode_words(child, file) if name == "SuperNode" else f"the {name} ended; see {child.log}"
    tell(f"{reason}. Starting it again in {part.pause:.0f} s.")
    part.not_before = now + part.pause
    part.pause = min(2 * part.pause, LONGEST_PAUSE_SECONDS)
    child.stop()
    part.child = None


def _supernode_words(child: Child, file: SiteFile) -> str:
    said = child.said()
    if file.server is not None and NOT_ADMITTED in said:
        return (
            f"the server does not know this site's node key {file.server.node_key}: send {file.name}.request.toml to "
            "the coordinator, who adds it with `collegium-server admit` and starts the server again. If it was "
            "admitted before, it was taken out: the newest roster.toml says so when you join with it"
        )
    if NOT_AUTHENTICATED in said:
        return "the server refuses this site's signature: check that this machine's clock is right"
    return f"the SuperNode ended; see {child.log}"


def _write_running(parts: dict[str, _Part], state: Path) -> None:
    pids = {name: part.child.pid for name, part in parts.items() if part.child is not None}
    (state / RUNNING).write_text(json.dumps({"launcher": os.getpid(), **pids}), encoding="utf-8")


@contextmanager
def only_one(state: Path) -> Iterator[None]:
    """Keep the site with this state folder from running, but for here. Raises SiteError where it runs already."""
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SiteError(f"this site is running already on {state}; end it first") from error
        yield
