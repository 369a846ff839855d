"""The gate: the only part of the server that is reachable from outside.

It ends TLS and passes ten calls of Flower's Fleet interface on to the SuperLink, which listens on the loopback
interface only. One more call, by which a site examines its connection, it answers itself (`server.gate_doctor`).
Everything else (starting runs, taking tasks, registering nodes, documentation pages) does not exist from outside: the
answer is 404.

Guarantees:
    * A request passes only if its target, byte for byte as received, is one of `PASSED` and its method is POST.
      Nothing is decoded or normalised first, so ``..``, ``%2e``, ``//``, a full URL as target, a query or an
      encoded slash cannot turn into another path. The doctor's target is compared in the same way.
    * Only the headers in `HEADERS_IN` are handed on; the request towards the SuperLink is built anew, so no
      header, length or connection trick reaches it. Contradicting lengths are refused.
    * Bodies stream through in pieces; a body above `MAX_BODY_BYTES` is cut off.
    * A key that is not registered gets no further than the SuperLink's own check, and no key can be registered
      from here: ``register-node`` is not among the calls that pass.
"""

import argparse
import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.gate_doctor import TARGET, DoctorRefused, GateDoctor
from shared_models.processes import follow_parent

PASSED = frozenset(
    b"/v1/fleet/" + call
    for call in (
        b"activate-node",
        b"deactivate-node",
        b"send-node-heartbeat",
        b"pull-messages",
        b"push-messages",
        b"get-run",
        b"get-fab",
        b"push-object",
        b"pull-object",
        b"confirm-message-received",
    )
)
HEADERS_IN = frozenset(
    {
        b"content-type",
        b"accept",
        b"flwr-public-key",
        b"flwr-signature",
        b"flwr-timestamp",
        b"flwr-package-name",
        b"flwr-package-version",
        b"flwr-component-name",
    }
)
LENGTH_AND_HEADERS_IN = HEADERS_IN | {b"content-length"}
HEADERS_OUT = frozenset({b"content-type", b"flwr-version-incompatibility-message"})
MAX_HEADER_BYTES = 16 * 1024
MAX_BODY_BYTES = 256 * 1024 * 1024  # one object; Flower sends a model in pieces of 5 MB
MAX_CONNECTIONS = 4096
FIRST_REQUEST_SECONDS = 15.0
SILENCE_SECONDS = 60.0

Message = dict[str, Any]  # an ASGI event
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger("collegium.gate")


class BodyRefused(Exception):
    """The request body is too long, too slow, or broke off."""


class Gate:
    """The ASGI application: one table of what passes, one way to pass it.

    Args:
        upstream: client whose base URL is the SuperLink on loopback.
        doctor: answers the one call that is not passed on.
    """

    def __init__(self, upstream: httpx.AsyncClient, doctor: GateDoctor) -> None:
        self._upstream = upstream
        self._doctor = doctor

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        names = [name for name, _ in scope["headers"]]
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            await _answer(send, 431, b"headers too large\n")
            return
        if b"content-length" in names and b"transfer-encoding" in names:
            await _answer(send, 400, b"contradicting lengths\n")
            return
        target: bytes = scope["raw_path"]
        if target not in {*PASSED, TARGET} or scope["method"] != "POST" or scope["query_string"]:
            await _answer(send, 404, b"not found\n")
            return
        if int(dict(scope["headers"]).get(b"content-length", b"0")) > MAX_BODY_BYTES:
            await _answer(send, 413, b"too large\n")
            return
        await (self._examine if target == TARGET else self._pass)(scope, receive, send)

    async def _examine(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            await self._doctor.answer(scope["headers"], _body(receive), send)
        except DoctorRefused as error:
            await _answer(send, error.status, error.text)
        except BodyRefused as error:
            await _answer(send, 413, f"{error}\n".encode())

    async def _pass(self, scope: Message, receive: Receive, send: Send) -> None:
        path = scope["raw_path"].decode("ascii")
        headers = [(name, value) for name, value in scope["headers"] if name in LENGTH_AND_HEADERS_IN]
        started = False
        try:
            request = self._upstream.build_request("POST", path, headers=headers, content=_body(receive))
            reply = await self._upstream.send(request, stream=True)
            try:
                out = [(name, value) for name, value in reply.headers.raw if name.lower() in HEADERS_OUT]
                if "content-length" in reply.headers:
                    out.append((b"content-length", reply.headers["content-length"].encode("ascii")))
                await send({"type": "http.response.start", "status": reply.status_code, "headers": out})
                started = True
                async for piece in reply.aiter_raw():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            finally:
                await reply.aclose()
        except BodyRefused as error:
            await _answer(send, 413, f"{error}\n".encode())
        except httpx.HTTPError as error:
            log.warning("the SuperLink did not answer %s: %s", path, type(error).__name__)
            if started:
                raise
            await _answer(send, 503, b"not available now\n")


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    """The request body, piece by piece, within the limits of size and silence."""
    size = 0
    while True:
        try:
            event = await asyncio.wait_for(receive(), SILENCE_SECONDS)
        except TimeoutError as error:
            raise BodyRefused("too slow") from error
        if event["type"] != "http.request":
            raise BodyRefused("broken off")
        piece = event.get("body", b"")
        size += len(piece)
        if size > MAX_BODY_BYTES:
            raise BodyRefused("too large")
        if piece:
            yield piece
        if not event.get("more_body", False):
            return


async def _answer(send: Send, status: int, text: bytes) -> None:
    """An answer of the gate's own. The connection ends with it: what follows on it is not trusted."""
    length = str(len(text)).encode("ascii")
    headers = [(b"content-type", b"text/plain"), (b"content-length", length), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text, "more_body": False})


class _ImpatientProtocol(H11Protocol):
    """Hangs up on a connection that does not bring its first request in time."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.loop.call_later(FIRST_REQUEST_SECONDS, self._hang_up_if_silent)

    def _hang_up_if_silent(self) -> None:
        begun: object = self.scope  # None until a request was read; uvicorn's annotation says otherwise
        if begun is None and not self.transport.is_closing():
            self.transport.close()


SERVED: dict[str, Any] = {
    "http": _ImpatientProtocol,
    "ws": "none",
    "lifespan": "off",
    "h11_max_incomplete_event_size": MAX_HEADER_BYTES,
    "limit_concurrency": MAX_CONNECTIONS,
    "timeout_keep_alive": 75,
    "timeout_graceful_shutdown": 2,
    "server_header": False,
    "proxy_headers": False,
    "access_log": False,
    "log_level": "warning",
}
"""How uvicorn serves the gate."""


def serve(
    *,
    host: str,
    port: int,
    certificate: Path,
    key: Path,
    upstream: str,
    upstream_ca: Path,
    roster_version: int,
) -> None:
    """Serve the gate until SIGINT or SIGTERM.

    Args:
        host: interface to listen on; ``::`` means all, by IPv6 and IPv4 alike.
        port: port to listen on.
        certificate: the server's certificate, PEM.
        key: its private key, PEM.
        upstream: base URL of the SuperLink on loopback.
        upstream_ca: the CA certificate that the SuperLink must prove itself against.
        roster_version: of the roster whose sites the SuperLink knows.
    """
    context = ssl.create_default_context(cafile=str(upstream_ca))
    client = httpx.AsyncClient(
        base_url=upstream,
        verify=context,
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(SILENCE_SECONDS, pool=None),
        limits=httpx.Limits(max_connections=128, max_keepalive_connections=32, keepalive_expiry=2.0),
        headers={"accept-encoding": "identity", "user-agent": "collegium-gate"},
    )
    uvicorn.run(
        Gate(client, GateDoctor(roster_version)),
        host="" if host == "::" else host,  # empty: asyncio listens by IPv6 and IPv4; "::" would be IPv6 only
        port=port,
        ssl_certfile=str(certificate),
        ssl_keyfile=str(key),
        **SERVED,
    )


def main() -> None:
    """Run as the server's child process."""
    follow_parent()
    parser = argparse.ArgumentParser(description="the gate of a Collegium server")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--certificate", required=True, type=Path)
    parser.add_argument("--key", required=True, type=Path)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--upstream-ca", required=True, type=Path)
    parser.add_argument("--roster-version", required=True, type=int)
    given = parser.parse_args()
    serve(
        host=given.host,
        port=given.port,
        certificate=given.certificate,
        key=given.key,
        upstream=given.upstream,
        upstream_ca=given.upstream_ca,
        roster_version=given.roster_version,
    )


if __name__ == "__main__":
    main()
