"""``collegium-server doctor``: everything that the server needs before a run, checked one by one.

Nothing of the server changes, but for a file of 1 MiB that is written to the disk and taken away. A server that is
running is not disturbed. No third party is asked anything.
"""

import errno
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from server.certificate_check import check_key
from server.doctor_running import RunningGate, ask_own_gate
from server.server_file import ServerFile, read_server, read_sites
from shared_models.certificate_checks import (
    WARN_AUTHORITY_DAYS,
    WARN_SERVER_DAYS,
    check_validity,
    is_issued_by,
    names_of,
    read_certificate,
)
from shared_models.checkup import Check, Outcome, Wrong, needed, ok, warning
from shared_models.configuration import ConfigurationError
from shared_models.file_checks import MIB, check_disk, check_own_folder, check_state_folder, read_private_file
from shared_models.identity_keys import read_public_key
from shared_models.proposal import read_proposal
from shared_models.roster import Roster
from shared_models.study import Study

NEED_BYTES, LEAST_BYTES = 1024 * MIB, 64 * MIB
NO_SERVER, NO_CERTIFICATE = "server.toml cannot be used", "the certificate cannot be used"
NO_AUTHORITY = "the consortium's ca.pem cannot be used"


@dataclass(slots=True)
class _Known:
    """What earlier checks found, for the later ones."""

    server: ServerFile | None = None
    study: Study | None = None
    roster: Roster | None = None
    certificate: x509.Certificate | None = None
    authority: x509.Certificate | None = None
    is_free: bool = False
    running: RunningGate | None = None


class ServerDoctor:
    """The checks of one server, in their order.

    Args:
        config: its ``server.toml``.
        now: this machine's clock, seconds since 1970.
    """

    def __init__(self, config: Path, now: Callable[[], float] = time.time) -> None:
        self._config = config
        self._now = now
        self._known = _Known()

    def checks(self) -> list[Check]:
        """All checks, each with its name."""
        return [
            ("server.toml", self._server_file),
            ("folder", self._folder),
            ("state folder", lambda: check_state_folder(self._server().state)),
            ("disk", self._disk),
            ("study", self._study),
            ("roster", self._roster),
            ("sites", self._sites),
            (
                "root key",
                lambda: self._best_elsewhere("root.key", "`collegium-server admit`, `revoke` and `propose`"),
            ),
            ("authority", self._authority),
            ("authority key", lambda: self._best_elsewhere("ca.key", "a new server certificate")),
            ("certificate", self._certificate),
            ("server key", self._server_key),
            ("names", self._names),
            ("port", self._port),
            ("running", self._running),
        ]

    def _server(self) -> ServerFile:
        return needed(self._known.server, NO_SERVER)

    def _server_file(self) -> Outcome:
        try:
            self._known.server = server = read_server(self._config)
        except ConfigurationError as error:
            raise Wrong(str(error)) from error
        return ok(f"listens on {server.listen.address}")

    def _folder(self) -> Outcome:
        self._server()
        return check_own_folder(self._config.resolve().parent, private=False)

    def _disk(self) -> Outcome:
        return check_disk(self._server().state, need_bytes=NEED_BYTES, least_bytes=LEAST_BYTES)

    def _study(self) -> Outcome:
        try:
            root = read_public_key(self._server().root)
            self._known.study = study = read_proposal(self._server().study, root)[0]
        except ConfigurationError as error:
            raise Wrong(str(error)) from error
        return ok(f'"{study.name}", hash {study.hash[:16]}, signed by the root key')

    def _roster(self) -> Outcome:
        try:
            self._known.roster = roster = read_sites(self._server())
        except ConfigurationError as error:
            raise Wrong(str(error)) from error
        return ok(f"version {roster.version}, signed by the root key of root.pub")

    def _sites(self) -> Outcome:
        study = needed(self._known.study, "the study cannot be used")
        roster = needed(self._known.roster, "the roster cannot be used")
        return judge_cohort(len(roster.site), study)

    def _best_elsewhere(self, name: str, use: str) -> Outcome:
        server = self._server()
        folders = dict.fromkeys((self._config.resolve().parent, server.tls.ca_certificate.parent))
        found = next((folder / name for folder in folders if (folder / name).exists()), None)
        if found is None:
            return ok(f"{name} is not on this machine, where it is needed for {use} only")
        read_private_file(found, mend="look for it")
        return warning(
            f"{found} is still on this machine; it is needed for {use} only: best keep it elsewhere"
        )

    def _authority(self) -> Outcome:
        path = self._server().tls.ca_certificate
        self._known.authority = certificate = read_certificate(path, mend="put it back from a backup")
        return check_validity(
            certificate,
            path.name,
            self._today(),
            warn_days=WARN_AUTHORITY_DAYS,
            mend="make a new authority with `collegium-server init` in another folder, take that folder's tls, "
            "and give its ca.pem to every hospital",
        )

    def _certificate(self) -> Outcome:
        path = self._server().tls.certificate
        self._known.certificate = certificate = read_certificate(path, mend="put it back from a backup")
        if not is_issued_by(certificate, needed(self._known.authority, NO_AUTHORITY)):
            raise Wrong(
                f"{path} was not issued by {self._server().tls.ca_certificate}: every hospital would refuse it. Put "
                "the two back that belong together"
            )
        return check_validity(
            certificate,
            path.name,
            self._today(),
            warn_days=WARN_SERVER_DAYS,
            mend="make a new one with `collegium-server certificate`",
        )

    def _server_key(self) -> Outcome:
        path = self._server().tls.key
        read_private_file(path, mend="put it back from a backup")
        try:
            check_key(needed(self._known.certificate, NO_CERTIFICATE), self._server().tls)
        except ConfigurationError as error:
            raise Wrong(str(error)) from error
        return ok(f"{path} is private and belongs to the certificate")

    def _names(self) -> Outcome:
        return judge_names(names_of(needed(self._known.certificate, NO_CERTIFICATE)))

    def _port(self) -> Outcome:
        server = self._server()
        listen = server.listen
        try:
            _try_to_listen(listen.host, listen.port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise Wrong(_cannot_listen(listen.address, error)) from error
        else:
            self._known.is_free = True
            return ok(f"{listen.address} is free; nothing runs there now")
        authority = needed(self._known.authority, f"{listen.address} is taken; {NO_AUTHORITY}")
        self._known.running = ask_own_gate(server, authority)
        if self._known.running is None:
            raise Wrong(
                f"another program listens on {listen.address}: end it (ss -ltnp shows which), or choose another port "
                "here, and with it as server.address at every hospital"
            )
        return ok(f"{listen.address} is taken by this server, which is running")

    def _running(self) -> Outcome:
        if self._known.is_free:
            return ok("no; `collegium-server run` starts it")
        running = needed(self._known.running, "whether the server runs is not known")
        own = needed(self._known.roster, "the roster cannot be used").version
        again = "start the server again when no run is under way"
        if running.roster_version != own:
            return warning(
                f"the server was started with version {running.roster_version} of the roster, roster.toml is version "
                f"{own}: {again}"
            )
        if running.certificate != self._known.certificate:
            return warning(f"the server was started with another certificate than there is now: {again}")
        return ok(f"yes, with version {own} of the roster")

    def _today(self) -> datetime:
        return datetime.fromtimestamp(self._now(), UTC)


def judge_cohort(num_sites: int, study: Study) -> Outcome:
    """Compare the number of sites in the roster with what the study wants. Raises Wrong."""
    least, most = study.aggregation.min_sites_in_sum, study.aggregation.num_sites_max
    told = f"{num_sites} in the roster, the study wants {least} to {most}"
    if num_sites < least:
        raise Wrong(f"{told}: add others with `collegium-server admit`")
    if num_sites > most:
        raise Wrong(f"{told}: the hospitals have to agree on a study with a larger aggregation.num_sites_max")
    if num_sites == least:
        return warning(f"{told}: if a single one is missing, no round comes about")
    return ok(told)


def judge_names(names: list[str]) -> Outcome:
    """Check that each name of the certificate leads to this machine. Raises Wrong where it has none."""
    if not names:
        raise Wrong("the certificate holds no name, so no hospital can use it: make it again with --host")
    unknown, elsewhere = [], []
    for name in names:
        try:
            addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(name, None)}
        except (socket.gaierror, UnicodeError):
            unknown.append(name)
            continue
        if not any(_is_own(address) for address in addresses):
            elsewhere.append(f"{name} ({', '.join(sorted(addresses)[:2])})")
    if unknown:
        return warning(f"not known here: {', '.join(unknown)}; hospitals that use it must know it")
    if elsewhere:
        return warning(
            f"no address of this machine: {', '.join(elsewhere)}. That is right if a router passes the port on (NAT); "
            "else hospitals reach another machine by it"
        )
    return ok(f"{', '.join(names)}: each leads to this machine")


def _is_own(address: str) -> bool:
    """Whether a socket of this machine may have this address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _try_to_listen(host: str, port: int) -> None:
    """Bind as the gate will, for a moment. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def _cannot_listen(address: str, error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"{address} is no address of this machine: correct listen.host in server.toml, 0.0.0.0 takes all"
        )
    if error.errno == errno.EACCES:
        return f"this user may not listen on {address}: choose a port above 1023"
    return f"nothing can listen on {address} ({error.strerror}): correct [listen] in server.toml"
