"""How ``doctor`` reaches the server: step by step, to say which one fails. Nothing is sent before TLS holds.

Every step takes the way that the SuperNode takes: directly, or through the proxy that the environment names.
"""

import json
import math
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx
from cryptography import x509

from client.doctor_proxy import Proxy
from shared_models.checkup import NotChecked, Wrong, printable

TARGET = "/v1/collegium/doctor"
CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 60.0
PIECE_BYTES = 1 << 16
FACTS_BYTES = 4096
BUSY_TRIES = 5
BUSY_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Route:
    """The way to the server."""

    host: str
    port: int
    proxy: Proxy | None = None

    @property
    def address(self) -> str:
        """``host:port`` of the server, with brackets around an IPv6 host."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the gate said, and how long it took.

    Attributes:
        ahead_seconds: this machine's clock minus the server's, with half the way there and back taken off.
        up_seconds: until the gate had everything and its answer began.
        down_seconds: from there to the answer's end.
    """

    roster_version: int
    ahead_seconds: float
    up_seconds: float
    down_seconds: float


def resolve(host: str) -> list[str]:
    """The addresses of a name. Raises Wrong."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a name"
        raise Wrong(
            f"{host} is not a known name ({reason}): check server.address in site.toml, and this machine's name "
            "servers"
        ) from error
    return sorted({str(entry[4][0]) for entry in found})


def connect(route: Route, seconds: float = CONNECT_SECONDS) -> socket.socket:
    """Open a connection to the server, through the proxy where there is one. Raises Wrong or NotChecked."""
    if route.proxy is None:
        return _open(route.host, route.port, route.address, seconds)
    plain = _open(route.proxy.host, route.proxy.port, f"the proxy {route.proxy.shown}", seconds)
    try:
        return _through_proxy(plain, route, route.proxy)
    except BaseException:
        plain.close()
        raise


def shown_certificate(route: Route, seconds: float = CONNECT_SECONDS) -> x509.Certificate:
    """The certificate that the other end shows, whoever that is; nothing is sent to it. Raises Wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with connect(route, seconds) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=route.host) as tls:
                raw = tls.getpeercert(binary_form=True)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "it hung up"
            raise Wrong(
                f"{route.address} answers, but not with TLS ({printable(str(reason))}): check server.address; another "
                "program may listen there, or a firewall hang up"
            ) from error
    if raw is None:
        raise Wrong(f"{route.address} shows no certificate: it is not the consortium's server")
    return x509.load_der_x509_certificate(raw)


def trusting(authority: bytes) -> ssl.SSLContext:
    """What the SuperNode accepts: the consortium's authority (PEM) and no other. Raises ssl.SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.decode("ascii"))
    return context


def check_accepted(route: Route, context: ssl.SSLContext, seconds: float = CONNECT_SECONDS) -> None:
    """Have OpenSSL judge the server as it will for the SuperNode. Raises Wrong."""
    with connect(route, seconds) as plain:
        try:
            context.wrap_socket(plain, server_hostname=route.host).close()
        except ssl.SSLCertVerificationError as error:
            raise Wrong(
                f"the certificate of {route.address} is refused ({error.verify_message}); ask the coordinator"
            ) from error
        except OSError as error:
            raise Wrong(f"{route.address} hangs up while TLS begins; a firewall may be in the way") from error


class GateConnection:
    """Speaks with the gate over a connection that is verified.

    Args:
        route: the way there.
        context: what is accepted at the other end.
        now: this machine's clock, seconds since 1970.
    """

    def __init__(self, route: Route, context: ssl.SSLContext, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._where = route.address
        self.client = httpx.Client(
            base_url=f"https://{route.address}",
            verify=context,
            proxy=route.proxy.url if route.proxy else None,
            trust_env=False,
            timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
        )

    def ask(self, num_bytes: int = 0) -> Answer:
        """Send so many bytes and have as many sent back. Raises Wrong."""
        for _ in range(BUSY_TRIES):
            answer = self._try(num_bytes)
            if answer is not None:
                return answer
            time.sleep(BUSY_PAUSE_SECONDS)
        raise Wrong(f"{self._where} is busy with other sites' doctors; try again in a minute")

    def _try(self, num_bytes: int) -> Answer | None:
        headers = {"content-length": str(num_bytes), "collegium-reply-bytes": str(num_bytes)}
        began, tick = self._now(), time.perf_counter()
        try:
            with self.client.stream("POST", TARGET, content=_zeros(num_bytes), headers=headers) as reply:
                turned = time.perf_counter() - tick
                if reply.status_code == httpx.codes.SERVICE_UNAVAILABLE:
                    return None
                if reply.status_code == httpx.codes.REQUEST_TIMEOUT:
                    raise Wrong(
                        f"the line to {self._where} is so slow that {num_bytes / (1 << 20):.3g} MiB do not pass within "
                        "five minutes; measure with less: --payload-mib"
                    )
                if reply.status_code != httpx.codes.OK:
                    raise Wrong(self._refused(reply.status_code))
                facts = self._facts(reply, num_bytes)
        except httpx.HTTPError as error:
            reason = printable(str(error) or type(error).__name__)
            raise Wrong(
                f"the connection to {self._where} broke while it was used ({reason}): try again; if it stays so, "
                "a firewall in between may limit what passes"
            ) from error
        ended = time.perf_counter() - tick
        server_time, version = facts
        half = (turned if num_bytes else ended) / 2
        return Answer(version, began + half - server_time, turned, ended - turned)

    def _facts(self, reply: httpx.Response, num_bytes: int) -> tuple[float, int]:
        """Read the answer to its end; what stands in its first line."""
        start, size = b"", 0
        for piece in reply.iter_raw():
            size += len(piece)
            if size > num_bytes + FACTS_BYTES:
                raise Wrong(f"{self._where} sends more than was asked for: it is not a Collegium server")
            if len(start) < FACTS_BYTES:
                start += piece
        try:
            values = json.loads(start.partition(b"\n")[0])
            server_time, version = float(values["time"]), values["roster_version"]
        except (ValueError, TypeError, KeyError) as error:
            raise Wrong(self._refused(reply.status_code)) from error
        if not math.isfinite(server_time) or not isinstance(version, int):
            raise Wrong(self._refused(reply.status_code))
        return server_time, version

    def _refused(self, status: int) -> str:
        return (
            f"{self._where} does not answer as this version of Collegium does (HTTP {status}): compare the versions "
            "with the coordinator"
        )

    def close(self) -> None:
        """Close the connection."""
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open(host: str, port: int, shown: str, seconds: float) -> socket.socket:
    try:
        return socket.create_connection((host, port), seconds)
    except ConnectionRefusedError as error:
        raise Wrong(
            f"{shown} refuses connections: it is not running, or the port is wrong. Ask the coordinator whether the "
            "server is up, and compare the port"
        ) from error
    except TimeoutError as error:
        raise Wrong(
            f"{shown} does not answer within {seconds:.0f} s; a firewall may be in the way: ask your IT to allow "
            f"connections out to TCP port {port}"
        ) from error
    except socket.gaierror as error:
        raise Wrong(f"{shown} is not a known name ({error.strerror})") from error
    except OSError as error:
        raise Wrong(
            f"{shown} cannot be reached ({error.strerror or error}); check this machine's network"
        ) from error


def _through_proxy(plain: socket.socket, route: Route, proxy: Proxy) -> socket.socket:
    if proxy.scheme == "https":
        raise NotChecked(f"the proxy {proxy.shown} is itself reached by TLS")
    lines = [f"CONNECT {route.address} HTTP/1.1", f"Host: {route.address}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    told = f"the proxy {proxy.shown}"
    try:
        plain.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
        status = _status(plain)
    except TimeoutError as error:
        raise Wrong(
            f"{told} does not answer; ask your IT, or name {route.host} in NO_PROXY if it can be reached directly"
        ) from error
    except OSError as error:
        raise Wrong(f"{told} hangs up ({error.strerror or error}); ask your IT") from error
    if status == httpx.codes.PROXY_AUTHENTICATION_REQUIRED:
        raise Wrong(f"{told} wants a login: put it into HTTPS_PROXY (http://user:password@host:port)")
    if not 200 <= status < 300:
        raise Wrong(
            f"{told} does not connect to {route.address} (HTTP {status}): ask your IT to allow it, or the coordinator "
            "whether the server is up"
        )
    return plain


def _status(plain: socket.socket) -> int:
    """Read the proxy's answer, byte by byte so that nothing behind it is lost. Returns its status, 0 if it is none."""
    head = b""
    while not head.endswith(b"\r\n\r\n") and len(head) < FACTS_BYTES:
        piece = plain.recv(1)
        if not piece:
            break
        head += piece
    words = head.split(b" ", 2)
    return int(words[1]) if len(words) > 1 and words[0].startswith(b"HTTP/1.") and words[1].isdigit() else 0


def _zeros(num_bytes: int) -> Iterator[bytes]:
    piece = bytes(PIECE_BYTES)
    for begin in range(0, num_bytes, PIECE_BYTES):
        yield piece[: min(PIECE_BYTES, num_bytes - begin)]
