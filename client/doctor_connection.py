"""``collegium-client doctor --config network.toml``: the checks of the user that connects to the server.

That user has the node key and nothing else of the hospital's; the rest is checked by the user who has the data.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from client.doctor_files import check_node_key, check_room
from client.doctor_server import ServerChecks
from client.door_status import LETS_IN, door_status
from client.launch import running
from client.network_file import NetworkFile, read_network
from client.site_file import Server
from shared_models.checkup import Check, Outcome, Wrong, needed, ok, warning
from shared_models.configuration import ConfigurationError
from shared_models.file_checks import check_own_folder, check_state_folder

NO_FILE, NO_KEY = "network.toml cannot be used", "the node key cannot be used"


@dataclass(slots=True)
class _Known:
    """What earlier checks found, for the later ones."""

    file: NetworkFile | None = None
    node_key: bytes | None = None


class ConnectionDoctor:
    """The checks of one network user, in their order.

    Args:
        config: its ``network.toml``.
        payload_bytes: what is sent and received to measure the connection.
        environment: variables that SuperNode and forwarder get.
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
        self._known = _Known()
        self._server = ServerChecks(environment, payload_bytes, now)

    def checks(self) -> Iterator[Check]:
        """All checks, each with its name."""
        yield "network.toml", self._network_file
        yield "folder", self._folder
        yield "node key", self._node_key
        yield "state folder", lambda: check_state_folder(self._file().state)
        yield "disk", lambda: check_room(self._file().state, self._payload_bytes)
        yield "processes", self._processes
        yield "agent", self._agent
        yield from self._server.checks(self._server_entry)
        yield "roster version", self._server.tell_roster_version
        yield "registration", self._registration
        yield "round trip", self._server.check_round_trip

    def close(self) -> None:
        """Close the connection to the server, where there is one."""
        self._server.close()

    def _file(self) -> NetworkFile:
        return needed(self._known.file, NO_FILE)

    def _server_entry(self) -> Server:
        return self._file().server

    def _network_file(self) -> Outcome:
        try:
            self._known.file = file = read_network(self._config)
        except ConfigurationError as error:
            raise Wrong(str(error)) from error
        return ok(f"server {file.server.address}, agent at {file.agent_socket}")

    def _folder(self) -> Outcome:
        self._file()
        return check_own_folder(self._config.resolve().parent, private=True)

    def _node_key(self) -> Outcome:
        outcome, self._known.node_key = check_node_key(
            self._file().server.node_key, "collegium-client init-network"
        )
        return outcome

    def _processes(self) -> Outcome:
        found = running(self._file().state)
        if not found:
            return ok("not running; `collegium-client connect` starts them")
        return ok(f"{' and '.join(found)} are running. These checks do not disturb them")

    def _agent(self) -> Outcome:
        told = door_status(self._file().agent_socket)
        return ok(told) if LETS_IN in told else warning(told)

    def _registration(self) -> Outcome:
        name = self._file().name
        request = f"{name}.request.toml" if name is not None else "the hospital's request file"
        return self._server.check_registration(needed(self._known.node_key, NO_KEY), request)
