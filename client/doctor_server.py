"""The checks of a site that have to do with the server: from the way there to the time that a round's traffic takes."""

import ssl
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from cryptography import x509

from client.doctor_network import (
    Answer,
    GateConnection,
    Route,
    check_accepted,
    connect,
    resolve,
    shown_certificate,
    trusting,
)
from client.doctor_proxy import misread_networks, proxy_for
from client.node_probe import ask_for_node
from client.site_file import Server
from shared_models.certificate_checks import (
    WARN_AUTHORITY_DAYS,
    WARN_SERVER_DAYS,
    check_issuer,
    check_names,
    check_validity,
    read_certificate,
)
from shared_models.checkup import Check, NotChecked, Outcome, Wrong, needed, ok, warning
from shared_models.roster import Roster

AHEAD_SECONDS = 5.0  # Flower: SYSTEM_TIME_TOLERANCE
BEHIND_SECONDS = 305.0  # Flower: TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
WARN_AHEAD_SECONDS, WARN_BEHIND_SECONDS = 2.0, 5.0
SLOW_SECONDS = 60.0
NUM_LOOKS = 3
MAX_PAYLOAD_BYTES = 256 << 20  # the gate takes no more at once
MIB = 1 << 20
NO_ROUTE, NO_CONNECTION = "the way to the server is not known", "no connection to the server"
NO_TLS, NO_ANSWER = "the server has not proved who it is", "the server has not said what time it has"


class ServerChecks:
    """Each check stands on those before it, and says so where they failed.

    Args:
        environment: variables that the SuperNode gets.
        payload_bytes: what is sent and received to measure the connection.
        now: this machine's clock, seconds since 1970.
    """

    def __init__(self, environment: Mapping[str, str], payload_bytes: int, now: Callable[[], float]) -> None:
        self._environment = environment
        self._payload_bytes = payload_bytes
        self._now = now
        self._route: Route | None = None
        self._found = False
        self._reached = False
        self._authority: tuple[bytes, x509.Certificate] | None = None
        self._gate: GateConnection | None = None
        self._answer: Answer | None = None

    def close(self) -> None:
        """Close the connection, where there is one."""
        if self._gate is not None:
            self._gate.close()

    def checks(self, server: Callable[[], Server]) -> list[Check]:
        """The way there and who answers, one after the other, up to the clock.

        Args:
            server: where it answers; raises NotChecked where that is not known.
        """
        return [
            ("proxy", lambda: self.check_proxy(server())),
            ("name", self.check_name),
            ("port", self.check_port),
            ("authority", lambda: self.check_authority(server())),
            ("certificate", self.check_certificate),
            ("clock", self.check_clock),
        ]

    def check_proxy(self, server: Server) -> Outcome:
        """Say which way the SuperNode goes to the server. Raises Wrong."""
        host = server.host
        proxy = proxy_for(host, server.port, self._environment)
        self._route = Route(host, server.port, proxy)
        if proxy is None:
            return ok("none on the way to the server")
        if proxy.scheme == "https":
            return warning(
                f"the SuperNode goes through {proxy.shown}, which is itself reached by TLS: the doctor cannot look "
                f"through it, and checks nothing behind it. Add {host} to NO_PROXY if it can be reached directly"
            )
        if networks := misread_networks(host, self._environment):
            return warning(
                f"the SuperNode goes through {proxy.shown}, though NO_PROXY names {', '.join(networks)}: it reads no "
                f"networks there. Add {host} itself to NO_PROXY"
            )
        return ok(f"the SuperNode goes through {proxy.shown}; if that is not wanted, add {host} to NO_PROXY")

    def check_name(self) -> Outcome:
        """Raises Wrong where the server's name is not known."""
        route = needed(self._route, NO_ROUTE)
        addresses = [] if route.proxy else resolve(route.host)
        self._found = True
        if route.proxy:
            return ok(f"{route.host}: looked up by the proxy")
        if addresses == [route.host]:
            return ok(f"{route.host} is an address")
        return ok(f"{route.host} is {', '.join(addresses[:4])}")

    def check_port(self) -> Outcome:
        """Raises Wrong where no connection comes about."""
        route = needed(self._route, NO_ROUTE)
        if not self._found:
            raise NotChecked("the server's name is not known")
        connect(route).close()
        self._reached = True
        return ok(f"{route.address} takes connections")

    def check_authority(self, server: Server) -> Outcome:
        """Check the consortium's ``ca.pem``. Raises Wrong."""
        path = server.ca_certificate
        certificate = read_certificate(path, mend="ask the coordinator for ca.pem")
        self._authority = (path.read_bytes(), certificate)
        return check_validity(
            certificate,
            f"the consortium's {path.name}",
            self._today(),
            warn_days=WARN_AUTHORITY_DAYS,
            mend="ask the coordinator for a new ca.pem",
        )

    def check_certificate(self) -> Outcome:
        """Check that the server is the consortium's, as the SuperNode will. Raises Wrong."""
        raw, authority = needed(self._authority, "ca.pem cannot be used")
        if not self._reached:
            raise NotChecked(NO_CONNECTION)
        route = needed(self._route, NO_ROUTE)
        shown = shown_certificate(route)
        check_issuer(shown, authority, route.address)
        valid = check_validity(
            shown,
            f"the certificate of {route.address}",
            self._today(),
            warn_days=WARN_SERVER_DAYS,
            mend="ask the coordinator to make it again",
        )
        check_names(shown, route.host, route.address)
        context = _context(raw)
        check_accepted(route, context)
        self._gate = GateConnection(route, context, self._now)
        return valid

    def check_clock(self) -> Outcome:
        """Compare this machine's clock with the server's. Raises Wrong where Flower would refuse signatures."""
        gate = needed(self._gate, NO_TLS)
        looks = [gate.ask() for _ in range(NUM_LOOKS)]
        self._answer = min(looks, key=lambda look: look.up_seconds + look.down_seconds)
        return judge_clock(self._answer.ahead_seconds)

    def check_roster_version(self, own: Roster) -> Outcome:
        """Compare the roster's version with the one that the server was started with. Raises Wrong."""
        needed(self._gate, NO_TLS)
        return judge_roster(own.version, needed(self._answer, NO_ANSWER).roster_version)

    def tell_roster_version(self) -> Outcome:
        """Tell the server's version, where no roster is at hand to compare it with."""
        needed(self._gate, NO_TLS)
        version = needed(self._answer, NO_ANSWER).roster_version
        return ok(
            f"the server has version {version}; the user with the data compares it with the site's: collegium-client "
            "doctor --config site.toml"
        )

    def check_registration(self, node_key: bytes, request: str) -> Outcome:
        """Ask whether the server knows this site's node key.

        Args:
            node_key: the private key, as OpenSSH writes it.
            request: what to send to the coordinator where it does not.

        Raises:
            Wrong: it does not, or refuses the signature.
        """
        verdict = ask_for_node(needed(self._gate, NO_TLS).client, node_key)
        if verdict == "unknown":
            raise Wrong(
                f"the server does not know this site's node key: send {request} to the coordinator, who adds "
                "it with `collegium-server admit` and starts the server again"
            )
        if verdict == "not authenticated":
            raise Wrong(
                "the server refuses this site's signature: set this machine's clock; see the line on the clock"
            )
        return ok("the server knows this site's node key")

    def check_round_trip(self) -> Outcome:
        """Send and receive as much as a round does, and say how long that takes. Raises Wrong."""
        gate = needed(self._gate, NO_TLS)
        around = needed(self._answer, NO_ANSWER)
        num_bytes = min(self._payload_bytes, MAX_PAYLOAD_BYTES)
        return judge_speed(num_bytes, gate.ask(num_bytes), around, round_bytes=self._payload_bytes)

    def _today(self) -> datetime:
        return datetime.fromtimestamp(self._now(), UTC)


def judge_clock(ahead: float) -> Outcome:
    """Judge how many seconds this machine's clock is ahead of the server's. Raises Wrong.

    Flower takes a signature that is up to 305 s old by the server's clock, and up to 5 s from the future.
    """
    side = "ahead of" if ahead > 0 else "behind"
    told = f"this machine's clock is {abs(ahead):.1f} s {side} the server's"
    mend = "set it, and keep it set with NTP (timedatectl set-ntp true); if it is right, tell the coordinator"
    if ahead >= AHEAD_SECONDS or -ahead >= BEHIND_SECONDS:
        limit = AHEAD_SECONDS if ahead > 0 else BEHIND_SECONDS
        raise Wrong(f"{told}; from {limit:.0f} s on the server refuses this site: {mend}")
    if ahead > WARN_AHEAD_SECONDS or -ahead > WARN_BEHIND_SECONDS:
        return warning(f"{told}: {mend}")
    return ok(told)


def judge_roster(own: int, server: int) -> Outcome:
    """Compare versions of the roster. Raises Wrong where they differ."""
    if own < server:
        raise Wrong(
            f"this site has version {own}, the server version {server}: ask the coordinator for version {server} of "
            "roster.toml, join with it (collegium-client join roster.toml), and start the site again"
        )
    if own > server:
        raise Wrong(
            f"this site has version {own}, the server was started with version {server}: the coordinator has to start "
            "it again with the newest roster.toml"
        )
    return ok(f"version {own}, as the server's")


def judge_speed(num_bytes: int, measured: Answer, around: Answer, *, round_bytes: int) -> Outcome:
    """Say how fast the connection is, and what that means for a round.

    Args:
        num_bytes: sent, and received.
        measured: the answer to so many bytes.
        around: the quickest answer to none, whose time is not the bytes'.
        round_bytes: what a round sends each way.
    """
    pause = around.up_seconds + around.down_seconds
    up = max(measured.up_seconds - pause, 1e-6)
    down = max(measured.down_seconds, 1e-6)
    size = num_bytes / MIB
    told = (
        f"{size:.3g} MiB up in {up:.2f} s ({size / up:.3g} MiB/s), down in {down:.2f} s ({size / down:.3g} MiB/s), "
        f"there and back without load {1000 * pause:.0f} ms"
    )
    whole = (up + down) * round_bytes / num_bytes
    if whole > SLOW_SECONDS:
        return warning(
            f"{told}. A round's model and masked vector need {whole:.0f} s: tell the coordinator, the study's "
            "round_timeout_seconds must leave room for that"
        )
    return ok(f"{told}. A round's model and masked vector need {whole:.1f} s of a line without other load")


def _context(authority: bytes) -> ssl.SSLContext:
    try:
        return trusting(authority)
    except (ssl.SSLError, ValueError) as error:
        raise Wrong("ca.pem is not a PEM certificate; ask the coordinator for it again") from error
