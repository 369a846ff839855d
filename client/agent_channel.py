"""How the forwarder and the local command line speak with the site's agent: gRPC over a unix socket.

Three methods, all on plain bytes: ``Handle`` (request → reply), ``Status`` (→ JSON) and ``Drain`` (finish what
runs, take nothing new, end). gRPC does not tell its Python servers who the peer of a unix socket is
(``SO_PEERCRED`` is out of reach), so the file system decides who may connect: the socket is 0660 in a folder
that is 0750. Whoever is to speak with the agent belongs to that folder's group, and nobody else does.
"""

import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

SERVICE = "collegium.Agent"
HANDLE, STATUS, DRAIN = "Handle", "Status", "Drain"
MAX_SOCKET_PATH = 100
OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
)


class AgentUnreachable(RuntimeError):
    """The agent does not answer: it is not running, is starting, or is ending."""


class AgentFailed(RuntimeError):
    """The agent answered with a failure of its own."""


def socket_path(state: Path) -> Path:
    """Where the agent of the site with this state folder listens.

    Operating systems allow about 100 characters for a socket's path. Where the state folder's own is too long, the
    socket lies in a folder of this user below the system's folder for temporary files instead.

    Raises:
        ValueError: that folder belongs to somebody else, who could then listen in the agent's place.
    """
    path = state / "agent" / "socket"
    if len(str(path)) <= MAX_SOCKET_PATH:
        return path
    digest = hashlib.sha256(str(state.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    own = Path(tempfile.gettempdir()) / f"collegium-{os.getuid()}"
    own.mkdir(mode=0o750, exist_ok=True)
    found = own.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
        raise ValueError(
            f"state = {state}: the path is too long for a socket, and {own}, which would hold it instead, is not "
            "only this user's to write; choose a shorter state folder, or remove the other one"
        )
    return own / digest / "socket"


class AgentClient:
    """A connection to the agent.

    Args:
        path: the agent's socket.
    """

    def __init__(self, path: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{path}", options=OPTIONS)

    def handle(self, message: bytes, *, timeout_seconds: float) -> bytes:
        """Have one request answered. Raises AgentUnreachable, AgentFailed, or TimeoutError after the timeout."""
        return self._call(HANDLE, message, timeout_seconds)

    def status(self, *, timeout_seconds: float = 5.0) -> dict[str, str]:
        """What the agent says of itself. Raises like `handle`."""
        values = json.loads(self._call(STATUS, b"", timeout_seconds))
        return {str(name): str(value) for name, value in values.items()}

    def drain(self, *, timeout_seconds: float = 5.0) -> None:
        """Ask the agent to finish what runs, take nothing new, and end. Raises like `handle`."""
        self._call(DRAIN, b"", timeout_seconds)

    def _call(self, method: str, message: bytes, timeout_seconds: float) -> bytes:
        call = self._channel.unary_unary(f"/{SERVICE}/{method}")
        try:
            reply: bytes = call(message, timeout=timeout_seconds)
        except grpc.RpcError as error:
            code = error.code()
            if code == grpc.StatusCode.UNAVAILABLE:
                raise AgentUnreachable(error.details()) from error
            if code == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError(f"no answer within {timeout_seconds:.0f} s") from error
            raise AgentFailed(f"{code.name}: {error.details()}") from error
        return reply

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
