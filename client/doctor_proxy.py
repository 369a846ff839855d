"""Which proxy the SuperNode's connection to the server takes, as its HTTP library (httpx) reads the environment.

httpx looks at ``HTTPS_PROXY`` and ``ALL_PROXY`` in small or capital letters, and leaves out what ``NO_PROXY`` names:
an address exactly, a name with all names below it, ``.name`` for the names below only. It does not know networks
(``10.0.0.0/8``).
"""

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from shared_models.checkup import Wrong, printable

SCHEMES = ("http", "https")
DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that connects with ``CONNECT``. ``url`` may hold a password: it is never shown."""

    url: str
    scheme: str
    host: str
    port: int
    authorization: str | None

    @property
    def shown(self) -> str:
        """``host:port``."""
        return printable(f"{self.host}:{self.port}")


def proxy_for(host: str, port: int, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy through which the SuperNode would reach the server, or None.

    Args:
        host: name or address of the server.
        port: its port.
        environment: the variables that the SuperNode gets.

    Raises:
        Wrong: a variable names a proxy that the SuperNode cannot use; it would not even start.
    """
    found = _variables(environment)
    for kind in ("http", "https", "all"):
        if kind in found:
            _parsed(kind, found[kind])
    no_proxy = [entry.strip() for entry in found.get("no", "").split(",")]
    if "*" in no_proxy or any(_exempts(entry, host, port) for entry in no_proxy if entry):
        return None
    used = next((kind for kind in ("https", "all") if kind in found), None)
    return None if used is None else _parsed(used, found[used])


def misread_networks(host: str, environment: Mapping[str, str]) -> list[str]:
    """Networks in ``NO_PROXY`` that hold the server's address, and that httpx does not understand."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return []
    entries = [entry.strip() for entry in _variables(environment).get("no", "").split(",") if "/" in entry]
    return [printable(entry) for entry in entries if _holds(entry, address)]


def _holds(entry: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    """``{"https": …}`` from ``HTTPS_PROXY`` and ``https_proxy``; small letters win, and an empty one takes away."""
    found = {
        name.lower().removesuffix("_proxy"): value
        for name, value in environment.items()
        if value and name.lower().endswith("_proxy")
    }
    for name, value in environment.items():
        if name.endswith("_proxy"):
            if value:
                found[name.lower().removesuffix("_proxy")] = value
            else:
                found.pop(name.lower().removesuffix("_proxy"), None)
    return found


def _parsed(kind: str, text: str) -> Proxy:
    variable = f"{kind.upper()}_PROXY"
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise Wrong(f"{variable} is not a URL; correct or unset it where the site is started") from error
    if parts.scheme not in SCHEMES:
        raise Wrong(
            f"{variable} names a proxy of the kind {printable(parts.scheme)}, with which the SuperNode does not even "
            "start, NO_PROXY or not: unset it where the site is started"
        )
    if not host:
        raise Wrong(f"{variable} names no host; correct or unset it where the site is started")
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
    token = "Basic " + base64.b64encode(login.encode()).decode("ascii") if login else None
    return Proxy(url, parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], token)


def _exempts(entry: str, host: str, port: int) -> bool:
    """Whether one entry of ``NO_PROXY`` leaves out the server, by httpx's rules."""
    if "://" in entry:
        scheme, _, entry = entry.partition("://")
        if scheme not in ("https", "all"):
            return False
        exact = True
    else:
        exact = _is_address(entry.split("/")[0]) or entry.lower() == "localhost"
    name, _, number = entry.split("/")[0].partition(":")
    if number and number != str(port):
        return False
    name, host = name.lower(), host.lower()
    if exact and not name.startswith("*"):
        return name == host
    name = name.removeprefix("*") if exact else name
    if name.startswith("."):
        return host.endswith(name) and host != name
    return host == name or host.endswith(f".{name}")


def _is_address(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True
