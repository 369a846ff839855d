"""The SuperLink: Flower's message store, on the loopback interface only, and how we command it.

Flower serves three interfaces on one port. Who may use which:

=========  =====================================  ==============================================
interface  what it can do                         what guards it here
=========  =====================================  ==============================================
Fleet      a node's calls                         the node key; from outside only through `server.gate`
Runtime    take the server's task, push messages  the SuperExec secret, then the task's token
Control    start and stop runs, register nodes    a bearer token that only this process pair knows
=========  =====================================  ==============================================

As shipped, Flower's Control interface asks for nothing: whoever reaches the port can start a run. The gate
already keeps everyone outside away from it. So that other users of the coordinator's machine are kept away
too, the child process sets its own login check (`_TokenLogin`, the plug-in type that Flower has for this).
What remains: whoever can read files as the coordinator's user, or is root there, owns the server.

Flower refuses node authentication without TLS, so the loopback connection has TLS as well, with an authority
that is made anew at each start.
"""

import hashlib
import hmac
import io
import os
import secrets
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

from server.certificates import Authority
from shared_models.node_keys import canonical_line, pem_bytes
from shared_models.processes import (
    Child,
    flower_environment,
    follow_parent,
    free_port,
    private_folder,
    python_module,
    write_private,
)
from shared_models.roster import Roster, RosterSite

READY_SECONDS = 60.0
CONTROL_TOKEN = "COLLEGIUM_CONTROL_TOKEN_FILE"  # noqa: S105 - the name of a variable

BUNDLE = """\
[project]
name = "collegium"
version = "1.0.0"
description = "Holds no code: every participant runs the Collegium that it installed itself."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "collegium"

[tool.flwr.app.components]
serverapp = "server.server_app:never_imported"
clientapp = "client.forwarder:never_imported"

[tool.flwr.app.config]
"""


class SuperLinkError(RuntimeError):
    """The SuperLink did not start, or refused a command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach the SuperLink and prove oneself: two secrets in files that only the owner can read."""

    port: int
    ca_certificate: Path
    control_token: Path
    superexec_secret: Path

    @property
    def address(self) -> str:
        """``host:port`` on loopback."""
        return f"127.0.0.1:{self.port}"


class SuperLink:
    """The running SuperLink, and the few commands that we give it.

    Args:
        state: the server's state folder; the SuperLink's own files go to its folder ``superlink``.
        log: file for its log.
    """

    def __init__(self, state: Path, *, log: Path) -> None:
        folder = private_folder(state / "superlink")
        self.access = _new_access(folder)
        self.child = Child(
            "SuperLink",
            python_module("server.superlink", *_arguments(folder, self.access)),
            log=log,
            environment={
                **flower_environment(folder / "home"),
                CONTROL_TOKEN: str(self.access.control_token),
            },
        )

    def wait_until_ready(self, seconds: float = READY_SECONDS) -> None:
        """Return when it answers commands.

        Raises:
            SuperLinkError: it ended, or did not answer within *seconds*.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.child.ended() is not None:
                raise SuperLinkError(f"the SuperLink ended while starting; see {self.child.log}")
            try:
                list_nodes(self.access)
            except httpx.TransportError:
                time.sleep(0.1)
            else:
                return
        raise SuperLinkError(f"the SuperLink did not answer within {seconds:.0f} s; see {self.child.log}")

    def register(self, roster: Roster) -> None:
        """Make the SuperLink's registered nodes exactly those of the roster.

        Raises:
            SuperLinkError: a site comes back with a key that was withdrawn; Flower withdraws for good.
        """
        wanted = {site.node_key for site in roster.site}
        for node_id, key in registered_nodes(self.access).items():
            if key not in wanted:
                _unregister(self.access, node_id)
        known = set(registered_nodes(self.access).values())
        for site in roster.site:
            if site.node_key not in known:
                _register(self.access, site)

    def start_run(self) -> int:
        """Start a run with the bundle that holds no code. Returns Flower's id of it."""
        return start_run(self.access, bundle())


def bundle(files: Mapping[str, bytes] = MappingProxyType({"pyproject.toml": BUNDLE.encode()})) -> bytes:
    """The app bundle, in Flower's format: a zip file with a manifest. Ours holds one TOML file and no Python."""
    manifest = [f"{name},{hashlib.sha256(text).hexdigest()},{len(text) * 8}" for name, text in files.items()]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in {**files, ".info/CONTENT": "\n".join(manifest).encode()}.items():
            file.writestr(
                zipfile.ZipInfo(name), text
            )  # with a fixed date, so that equal bundles are equal bytes
    return packed.getvalue()


def start_run(access: Access, fab: bytes) -> int:
    """Start a run of the given bundle. Raises SuperLinkError."""
    from flwr.proto.control_pb2 import StartRunRequest
    from flwr.proto.fab_pb2 import Fab

    request = StartRunRequest(fab=Fab(hash_str=hashlib.sha256(fab).hexdigest(), content=fab))
    reply = _command(access, "StartRun", request)
    if not reply.run_id:
        raise SuperLinkError("the SuperLink did not start the run; see its log")
    return int(reply.run_id)


def list_nodes(access: Access) -> Sequence[Any]:
    """All nodes that the SuperLink has registered, as Flower's ``NodeInfo``."""
    from flwr.proto.control_pb2 import ListNodesRequest

    nodes: Sequence[Any] = _command(access, "ListNodes", ListNodesRequest()).nodes_info
    return nodes


def registered_nodes(access: Access) -> dict[int, str]:
    """Node id → public key (one OpenSSH line) of every node that is not unregistered."""
    return {
        int(node.node_id): canonical_line(bytes(node.public_key).decode("ascii"))
        for node in list_nodes(access)
        if node.status != "unregistered"
    }


def connected_sites(access: Access, roster: Roster) -> list[str]:
    """Names of the roster's sites that are connected now, sorted."""
    online = {
        canonical_line(bytes(node.public_key).decode("ascii"))
        for node in list_nodes(access)
        if node.status == "online"
    }
    return sorted(site.name for site in roster.site if site.node_key in online)


def _register(access: Access, site: RosterSite) -> None:
    from flwr.proto.control_pb2 import RegisterNodeRequest

    try:
        _command(access, "RegisterNode", RegisterNodeRequest(public_key=pem_bytes(site.node_key)))
    except SuperLinkError as error:
        raise SuperLinkError(
            f'the node key of "{site.name}" cannot be registered; a key that was once taken out of the roster '
            f"stays withdrawn: the site makes a new one, and is admitted with that ({error})"
        ) from error


def _unregister(access: Access, node_id: int) -> None:
    from flwr.proto.control_pb2 import UnregisterNodeRequest

    _command(access, "UnregisterNode", UnregisterNodeRequest(node_id=node_id))


class _Bearer:
    """Adds the control token to each request (Flower's client interceptor interface)."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept(self, context: Any, call_next: Any) -> Any:
        context.request.headers["authorization"] = f"Bearer {self._token}"
        return call_next(context)


def _command(access: Access, name: str, request: Any) -> Any:
    """Give one Control command and return the reply. Raises SuperLinkError or httpx.TransportError."""
    from flwr.supercore.control.control_http_client import ControlHttpClient

    bearer = _Bearer(access.control_token.read_text(encoding="ascii"))
    with ControlHttpClient.from_server_address(
        access.address,
        insecure=False,
        root_certificates=access.ca_certificate.read_bytes(),
        interceptors=[bearer],
    ) as client:
        try:
            return getattr(client, name)(request)
        except httpx.HTTPStatusError as error:
            raise SuperLinkError(f"the SuperLink refused {name}: {error.response.text[:300]}") from error


def _new_access(folder: Path) -> Access:
    """Fresh secrets and a fresh loopback authority for one start."""
    authority = Authority("Collegium loopback", days=3650)
    issued = authority.server(["127.0.0.1", "localhost"], days=3650)
    tls = private_folder(folder / "tls")
    (tls / "ca.pem").write_bytes(authority.issued.certificate)
    (tls / "server.pem").write_bytes(issued.certificate)
    write_private(tls / "server.key", issued.key, replace=True)
    write_private(folder / "control.token", secrets.token_hex(32).encode("ascii"), replace=True)
    write_private(folder / "superexec.secret", secrets.token_bytes(32), replace=True)
    return Access(
        port=free_port(),
        ca_certificate=tls / "ca.pem",
        control_token=folder / "control.token",
        superexec_secret=folder / "superexec.secret",
    )


def _arguments(folder: Path, access: Access) -> list[str]:
    tls = folder / "tls"
    return [
        *("--host", "127.0.0.1", "--port", str(access.port)),
        *("--ssl-certfile", str(tls / "server.pem"), "--ssl-keyfile", str(tls / "server.key")),
        *("--ssl-ca-certfile", str(tls / "ca.pem")),
        *("--database", str(folder / "state.db")),
        "--enable-supernode-auth",
        *("--isolation", "process"),  # Flower ignores the SuperExec secret in its other mode
        *("--superexec-auth-secret-file", str(access.superexec_secret)),
        "--disable-runtime-dependency-installation",
    ]


def _token_login(token: str) -> Any:
    """Flower's login plug-in for Control that wants our token, and otherwise behaves as without login."""
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin

    class TokenLogin(NoOpControlAuthnPlugin):  # type: ignore[misc, unused-ignore]
        def validate_tokens_in_metadata(self, metadata: Any) -> Any:
            given = "".join(str(value) for _, value in metadata)
            if not hmac.compare_digest(given.encode(), token.encode()):
                return False, None
            return super().validate_tokens_in_metadata(metadata)

    return TokenLogin()


def main() -> None:
    """Run the SuperLink as the server's child process, with the login check in place."""
    follow_parent()
    from flwr.superlink.cli import flower_superlink as command

    token = Path(os.environ.pop(CONTROL_TOKEN)).read_text(encoding="ascii")
    command_module: Any = sys.modules["flwr.superlink.cli.flower_superlink"]
    command_module.load_control_authn_plugin = lambda: _token_login(token)
    sys.argv[0] = "flower-superlink"
    command()


if __name__ == "__main__":
    main()
