"""The real gate on loopback, with a toy in place of the SuperLink; and proxies that stand in its way."""

import asyncio
import http
import select
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import uvicorn

from server.certificates import Authority
from server.gate import SERVED, Gate
from server.gate_doctor import GateDoctor
from shared_models.processes import free_port

KNOWN = httpx.Response(400, json={"code": 2003, "detail": "Invalid heartbeat interval."})
UNKNOWN = httpx.Response(412, json={"code": 2004, "detail": "Failed to activate SuperNode."})
REFUSED = httpx.Response(401, json={"detail": "Invalid SuperNode authentication"})


async def in_pieces(content: bytes) -> AsyncIterator[bytes]:
    """A body that comes as from a real connection."""
    yield content


class Running:
    """Something that serves in a thread until it is left."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError


class ToyGate(Running):
    """A gate with a certificate of *authority*, whose SuperLink answers every call alike.

    ``passed`` holds the path of each call that got through to the SuperLink.
    """

    def __init__(
        self,
        folder: Path,
        authority: Authority,
        *,
        names: tuple[str, ...] = ("localhost", "127.0.0.1"),
        days: int = 825,
        roster_version: int = 1,
        ahead_seconds: float = 0.0,
        superlink: httpx.Response = KNOWN,
        port: int | None = None,
    ) -> None:
        issued = authority.server(names, days=days)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "server.pem").write_bytes(issued.certificate)
        (folder / "server.key").write_bytes(issued.key)
        self.port = port or free_port()
        self.passed: list[str] = []

        def answer(request: httpx.Request) -> httpx.Response:
            self.passed.append(request.url.path)
            return httpx.Response(superlink.status_code, content=in_pieces(superlink.content))

        upstream = httpx.AsyncClient(base_url="https://superlink", transport=httpx.MockTransport(answer))
        self.doctor = GateDoctor(roster_version, now=lambda: time.time() + ahead_seconds)
        config = uvicorn.Config(
            Gate(upstream, self.doctor),
            host="127.0.0.1",
            port=self.port,
            ssl_certfile=str(folder / "server.pem"),
            ssl_keyfile=str(folder / "server.key"),
            log_config=None,
            **SERVED,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()))
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self._server.started:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def close(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join()


class Listener(Running):
    """Listens on loopback, and has each connection served by *serve* in a thread."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.heard = b""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            connection.settimeout(10.0)
            with connection, suppress(OSError):
                self._serve(connection)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


def read_head(connection: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head and (piece := connection.recv(4096)):
        head += piece
    return head


def relay(one: socket.socket, other: socket.socket) -> None:
    ends = {one: other, other: one}
    while True:
        for ready in select.select([one, other], [], [], 10.0)[0]:
            piece = ready.recv(65536)
            if not piece:
                return
            ends[ready].sendall(piece)


class ConnectProxy(Listener):
    """An HTTP proxy that connects whatever is asked for to one port of loopback, or answers *status*."""

    def __init__(self, target: int, status: int = 200) -> None:
        self.heads: list[bytes] = []

        def serve(connection: socket.socket) -> None:
            self.heads.append(read_head(connection))
            connection.sendall(f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n\r\n".encode())
            if status == 200:
                with socket.create_connection(("127.0.0.1", target)) as onward:
                    relay(connection, onward)

        super().__init__(serve)


class Interceptor(Listener):
    """Opens TLS with a certificate of its own, and notes what it gets to hear inside.

    Args:
        folder: for its certificate.
        name: common name of its authority, as the product that does this would have it.
        connect: whether it is a proxy that is asked with CONNECT first.
    """

    def __init__(self, folder: Path, name: str, host: str, *, connect: bool) -> None:
        issued = Authority(name).server([host])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "certificate.pem").write_bytes(issued.certificate)
        (folder / "certificate.key").write_bytes(issued.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "certificate.pem", folder / "certificate.key")

        def serve(connection: socket.socket) -> None:
            if connect:
                read_head(connection)
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            with context.wrap_socket(connection, server_side=True) as tls:
                while piece := tls.recv(4096):
                    self.heard += piece

        super().__init__(serve)
