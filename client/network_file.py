"""``network.toml``: the file of the user that runs SuperNode and forwarder, where that is a user of its own."""

import tomllib
from pathlib import Path

from client.site_file import FilePath, Server
from shared_models.configuration import Frozen, read_toml
from shared_models.study import Slug


class NetworkFile(Frozen):
    """The connection between a consortium's server and one hospital's agent. It names no patient data.

    ``agent_socket`` is the door of the agent, as ``agent.socket`` in ``site.toml``. ``name`` is for messages.
    """

    name: Slug | None = None
    state: FilePath
    agent_socket: FilePath
    server: Server


def read_network(path: Path) -> NetworkFile:
    """Read ``network.toml``; relative paths in it count from the file's own folder. Raises ConfigurationError."""
    file = read_toml(path, NetworkFile)
    root = path.resolve().parent
    return file.model_copy(
        update={
            "state": root / file.state,
            "agent_socket": root / file.agent_socket,
            "server": file.server.below(root),
        }
    )


def is_network_file(path: Path) -> bool:
    """Whether the file at *path* is a ``network.toml`` rather than a ``site.toml``, by the one key that tells."""
    try:
        return "agent_socket" in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
