"""``collegium-client doctor``: everything that a site needs before it takes part, checked one by one.

Nothing of the site changes, but for a file of 1 MiB that is written to the disk and taken away. No line says anything
about patients: the report may be sent to the coordinator.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from client.doctor_data import check_images, check_index, check_labels, check_readers
from client.doctor_files import check_node_key as check_node_key_file
from client.doctor_files import check_room
from client.doctor_server import ServerChecks
from client.door_place import DoorError, door_place
from client.membership import MembershipError, check_node_key, read_joined
from client.secret import SECRET_NAME, SecretError, SiteSecret
from client.site_file import Server, SiteFile, read_site
from client.site_journal import read_journal
from privacy.journal import JournalError
from shared_models.checkup import Check, NotChecked, Outcome, Wrong, needed, ok, warning
from shared_models.configuration import ConfigurationError
from shared_models.file_checks import check_own_folder, check_state_folder, read_private_file
from shared_models.identity_keys import IdentityKeyError, read_identity_line
from shared_models.roster import Roster

if TYPE_CHECKING:
    import torch

AGENT_SECONDS = 3.0
NO_IDENTITY = "the identity key cannot be used"
LOST_KEY = (
    "collegium-client renew-keys --without-old-key, which the coordinator admits after a call by telephone"
)
NO_SITE, NO_SERVER, NO_KEY = (
    "site.toml cannot be used",
    "site.toml names no server",
    "the node key cannot be used",
)
NETWORK_DOCTOR = "collegium-client doctor --config network.toml"


@dataclass(slots=True)
class _Known:
    """What earlier checks found, for the later ones."""

    site: SiteFile | None = None
    agent: str | None = None
    node_key: bytes | None = None
    identity_key: str | None = None
    roster: Roster | None = None


class SiteDoctor:
    """The checks of one site, in their order.

    Args:
        config: its ``site.toml``.
        payload_bytes: what is sent and received to measure the connection.
        environment: variables that the site's processes get.
        now: this machine's clock, seconds since 1970.
    """

    def __init__(
        self,
        config: Path,
        *,
        payload_bytes: int,
        environment: Mapping[str, str],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._payload_bytes = payload_bytes
        self._now = now
        self._known = _Known()
        self._server = ServerChecks(environment, payload_bytes, now)

    def checks(self) -> Iterator[Check]:
        """All checks, each with its name. Which there are depends on what ``site.toml`` says, the first of them."""
        server = self._server
        yield "site.toml", self._site_file
        two_users = self._known.site is not None and self._known.site.agent is not None
        yield "folder", self._folder
        if not two_users:
            yield "node key", self._node_key
        yield "identity key", self._identity_key
        yield "state folder", self._state_folder
        yield "site secret", self._site_secret
        yield "journal", self._journal
        yield "disk", lambda: check_room(self._site().state, self._payload_bytes)
        yield "site", self._running
        yield "images", lambda: check_images(self._site().images)
        yield "labels", lambda: check_labels(self._site().labels)
        yield "readers", lambda: check_readers(self._site())
        yield "index", lambda: check_index(self._site(), self._now())
        if self._known.site is not None and self._known.site.pacs is not None:
            yield "pacs", self._pacs
        yield "device", self._device
        yield "roster", self._roster
        if two_users:
            yield "door", self._door
            yield "connection", self._connection
            return
        yield from server.checks(self._server_entry)
        yield "roster version", lambda: server.check_roster_version(self._joined())
        yield "registration", self._registration
        yield "round trip", self._round_trip

    def close(self) -> None:
        """Close the connection to the server, where there is one."""
        self._server.close()

    def _site(self) -> SiteFile:
        return needed(self._known.site, NO_SITE)

    def _server_entry(self) -> Server:
        return needed(self._site().server, NO_SERVER)

    def _joined(self) -> Roster:
        return needed(self._known.roster, "this site has no roster that it can use")

    def _site_file(self) -> Outcome:
        try:
            self._known.site = site = read_site(self._config)
        except ConfigurationError as error:
            raise Wrong(str(error)) from error
        if site.agent is not None:
            return ok(f'site "{site.name}", whose connection to the server is another user\'s')
        if site.server is None:
            return warning(
                f'site "{site.name}" has no [server]: it can be simulated only. Add [server] with address, '
                "ca_certificate and node_key"
            )
        return ok(f'site "{site.name}", server {site.server.address}')

    def _folder(self) -> Outcome:
        self._site()
        return check_own_folder(self._config.resolve().parent, private=True)

    def _node_key(self) -> Outcome:
        outcome, self._known.node_key = check_node_key_file(
            self._server_entry().node_key, "collegium-client init"
        )
        return outcome

    def _identity_key(self) -> Outcome:
        path = self._site().consortium.identity_key
        read_private_file(
            path, mend=f"put the key back that `collegium-client init` made, or, if it is lost: {LOST_KEY}"
        )
        try:
            self._known.identity_key = read_identity_line(path)
        except IdentityKeyError as error:
            raise Wrong(str(error)) from error
        return ok(f"{path} is there and private")

    def _state_folder(self) -> Outcome:
        return check_state_folder(self._site().state)

    def _site_secret(self) -> Outcome:
        state = self._site().state
        path = state / SECRET_NAME
        try:
            SiteSecret.load(state)
        except SecretError as error:
            raise Wrong(str(error)) from error
        return ok(f"{path} is there and private; keep a backup")

    def _journal(self) -> Outcome:
        needed(self._known.identity_key, NO_IDENTITY)
        try:
            entries = read_journal(self._site()).verify()
        except (JournalError, MembershipError) as error:
            raise Wrong(str(error)) from error
        return ok(f"{len(entries)} entries, each signed, none changed, none missing")

    def _running(self) -> Outcome:
        from client.agent_channel import AgentClient, AgentFailed, AgentUnreachable, socket_path

        state, start = self._site().state, "start" if self._site().agent is None else "agent"
        not_running = f"not running; `collegium-client {start}` starts it"
        if not state.exists():
            return ok(not_running)
        try:
            with AgentClient(socket_path(state)) as agent:
                self._known.agent = agent.status(timeout_seconds=AGENT_SECONDS)["agent"]
        except AgentUnreachable:
            return ok(not_running)
        except (AgentFailed, TimeoutError, ValueError, KeyError) as error:
            return warning(
                f"its agent does not answer as it should ({error}); see {state / 'logs' / 'agent.log'}"
            )
        return ok(f"running; its agent is {self._known.agent}. These checks do not disturb it")

    def _at_work(self) -> bool:
        return (self._known.agent or "").startswith("working")

    def _pacs(self) -> Outcome:
        from client.doctor_pacs import check_pacs

        return check_pacs(needed(self._site().pacs, "site.toml names no PACS"))

    def _device(self) -> Outcome:
        from client.device import DeviceError, choose_device

        compute = self._site().compute
        try:
            device = choose_device(compute)
        except DeviceError as error:
            raise Wrong(str(error)) from error
        if device.type != "cuda":
            return _processor(compute.device)
        return _gpu(device, mixed_precision=compute.mixed_precision, touch=not self._at_work())

    def _roster(self) -> Outcome:
        site = self._site()
        needed(self._known.identity_key, NO_IDENTITY)
        try:
            roster = read_joined(site)
            check_node_key(site, roster)
        except MembershipError as error:
            raise Wrong(str(error)) from error
        self._known.roster = roster
        return ok(f"version {roster.version}, signed, with this site's own keys")

    def _door(self) -> Outcome:
        try:
            place = door_place(self._site())
        except DoorError as error:
            raise Wrong(str(error)) from error
        return ok(f"{place.socket} is where only uid {place.uid} is let in")

    def _connection(self) -> Outcome:
        raise NotChecked(f"the network user's: {NETWORK_DOCTOR}")

    def _registration(self) -> Outcome:
        site = self._site()
        return self._server.check_registration(
            needed(self._known.node_key, NO_KEY), f"{site.name}.request.toml"
        )

    def _round_trip(self) -> Outcome:
        self._site()
        if self._at_work():
            raise NotChecked(
                "the site is at work in a round, which measuring would slow down; try again later"
            )
        return self._server.check_round_trip()


def _processor(wanted: str) -> Outcome:
    import torch

    num = torch.get_num_threads()
    told = f"the processor, {num} thread{'s' * (num != 1)}"
    if wanted == "auto" and Path("/dev/nvidiactl").exists():
        return warning(
            f"{told}: this machine has an NVIDIA device that torch cannot use; check the driver with nvidia-smi, or "
            'set compute.device = "cpu"'
        )
    return ok(told)


def _gpu(device: "torch.device", *, mixed_precision: bool, touch: bool) -> Outcome:
    import torch

    found = torch.cuda.get_device_properties(device)
    told = f"{device}, {found.name}, {found.total_memory / 1024**3:.0f} GiB"
    if touch:
        try:
            torch.ones(1, device=device).sum().item()
        except RuntimeError as error:
            raise Wrong(
                f"{told}: nothing can be computed on it ({str(error).splitlines()[0]}); see nvidia-smi, or set "
                'compute.device = "cpu"'
            ) from error
    if mixed_precision and found.major < 8:
        return warning(f"{told}: has no bfloat16, so compute.mixed_precision has no effect; set it to false")
    return ok(told)
