"""How the forwarder and the local command line speak with the site's agent: gRPC over unix sockets.

Three methods, all on plain bytes: ``Handle`` (request → reply), ``Status`` (→ JSON) and ``Drain`` (finish what
runs, take nothing new, end). ``Handle`` is reached through the door (`client.door`), which lets one user in and
nobody else; behind it lies the inner socket. ``Status`` and ``Drain`` are on the control socket. Inner and
control socket lie in a folder 0700 of the agent's own user.
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
CONTROL, INNER, DOOR = "control", "inner", "door"
MAX_SOCKET_PATH = 100
OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
)
# An agent that was started again is found at once, however long it was away.
RECONNECT = (("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 1000))


class AgentUnreachable(RuntimeError):
    """The agent does not answer: it is not running, is starting, or is ending."""


class AgentFailed(RuntimeError):
    """The agent answered with a failure of its own."""


def socket_path(state: Path, name: str = CONTROL) -> Path:
    """Where the agent of the site with this state folder has its socket of this *name*.

    Operating systems allow about 100 characters for a socket's path. Where the state folder's own is too long, the
    sockets lie in a folder of this user below the system's folder for temporary files instead.

    Args:
        state: the site's state folder.
        name: `CONTROL`, `INNER`, or `DOOR` where one user runs the whole site.

    Raises:
        ValueError: that folder belongs to somebody else, who could then listen in the agent's place.
    """
    folder = state / "agent"
    if len(str(folder / CONTROL)) <= MAX_SOCKET_PATH:
        return folder / name
    digest = hashlib.sha256(str(state.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    own = Path(tempfile.gettempdir()) / f"collegium-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    found = own.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
        raise ValueError(
            f"state = {state}: the path is too long for a socket, and {own}, which would hold it instead, is not "
            "only this user's to write; choose a shorter state folder, or remove the other one"
        )
    return own / digest / name


class AgentClient:
    """A connection to the agent.

    Args:
        path: the door, to have requests handled; the control socket, to ask and to drain.
    """

    def __init__(self, path: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{path}", options=(*OPTIONS, *RECONNECT))

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
