"""The network user's commands: ``init-network``, ``connect``, and what ``status`` tells this user."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.door_status import LETS_IN, door_status
from client.foreground import foreground
from client.membership import NODE_PUBLIC, check_node_key_file, make_node_key
from client.network_file import NetworkFile, read_network
from client.options import NETWORK_FILE, EndWithParentOption, NetworkConfigOption
from client.site_file import SiteFile
from shared_models.configuration import ConfigurationError, parse_toml
from shared_models.passphrase import asked_passphrase, new_passphrase
from shared_models.processes import private_folder

SOCKET = Path("/run/collegium/agent.sock")
NETWORK_USER = "collegium-net"

out = Console(highlight=False, soft_wrap=True)


def init_network(  # noqa: PLR0917 - the options of a command line
    folder: Annotated[Path, typer.Argument(help="Folder to make; must not hold a network.toml yet.")],
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the consortium's server answers.")],
    ca: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The coordinator's ca.pem.")],
    agent_socket: Annotated[
        Path, typer.Option("--socket", help="Where the agent lets this user in.")
    ] = SOCKET,
    name: Annotated[str | None, typer.Option(help="The hospital's name, for messages.")] = None,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Encrypt the private key under a passphrase.")
    ] = False,
) -> None:
    """Make the network user's side of a site: its node key, and network.toml. Run it as that user."""
    config = folder / "network.toml"
    if config.exists() or (folder / "node.key").exists():
        raise ConfigurationError(
            f"{folder} holds a network.toml or a node.key already; choose another folder. A key that the coordinator "
            "admitted cannot be made again"
        )
    text = _network_toml(server, agent_socket.absolute(), name)
    parse_toml(text, NetworkFile, origin=f"{config}, which was not made")
    secret = new_passphrase() if passphrase else None
    private_folder(folder)
    shutil.copyfile(ca, folder / "ca.pem")
    public = folder / NODE_PUBLIC
    public.write_text(make_node_key(folder, secret) + "\n", encoding="ascii")
    config.write_text(text, encoding="utf-8")
    out.print(f"Made {config}.", markup=False)
    out.print(f"Give {public} to the user who has the data; it is not secret. That user makes the site with:")
    out.print(f"  collegium-client init SITE --node-public {public.name} …", markup=False)
    out.print(f"Then start:  collegium-client connect --config {config}", markup=False)


def connect(
    config: NetworkConfigOption = NETWORK_FILE,
    end_with_parent: EndWithParentOption = False,
) -> None:
    """Connect the agent to the server, as the network user, until Ctrl-C or SIGTERM."""
    from client.launch import run_network

    with foreground(end_with_parent):
        file = read_network(config)
        check_node_key_file(file.server)
        out.print(
            f"Connecting to {file.server.address}; logs are in {file.state / 'logs'}. Ctrl-C ends it.",
            markup=False,
        )
        if LETS_IN not in (door := door_status(file.agent_socket)):
            out.print(f"The agent: {door}. Trying again for each message.", markup=False)
        run_network(
            file,
            tell=lambda line: out.print(line, markup=False),
            ended=lambda: False,
            passphrase=asked_passphrase(),
        )


def network_status(config: Path, as_json: bool) -> None:
    """Show what of the network user's side runs, what went wrong last, and whether agent and server answer."""
    from client.launch import ServerNotReached, SiteError, check_server, last_trouble, running

    file = read_network(config)
    processes = running(file.state)
    try:
        check_server(file.server)
        server = f"{file.server.address} answers and is the consortium's"
    except (SiteError, ServerNotReached) as error:
        server = str(error)
    values = {
        "supernode": _process(processes.get("SuperNode")),
        "forwarder": _process(processes.get("forwarder")),
        "last_trouble": last_trouble(file.state) if processes else None,
        "agent": door_status(file.agent_socket),
        "server": server,
    }
    if as_json:
        typer.echo(json.dumps(values, indent=2))
        return
    out.print(f"Network side of {file.name or 'the site'}", markup=False)
    for name, value in values.items():
        out.print(f"  {name.replace('_', ' ')}: {value or 'none'}", markup=False)


def connection_toml(
    server: str | None, ca: Path | None, node_key: str | None, agent_socket: Path, network_user: str
) -> str:
    """The table of ``site.toml`` for whoever connects to the server: `[server]` this user, `[agent]` another.

    Raises:
        ConfigurationError: the options say neither, or both.
    """
    if node_key is not None:
        if server is not None or ca is not None:
            raise ConfigurationError(
                "--node-public and --server, --ca exclude each other: with --node-public the network user knows the "
                "server, by `collegium-client init-network`"
            )
        user = network_user if network_user.isdecimal() else json.dumps(network_user, ensure_ascii=False)
        return f"""\
[agent]
socket = {json.dumps(str(agent_socket.absolute()), ensure_ascii=False)}
network_user = {user:<16}  # runs SuperNode and forwarder; nobody else is let in
node_public = "node.pub"         # that user's; the roster must have it under this site's name
"""
    if server is None or ca is None:
        raise ConfigurationError(
            "--server and --ca are missing; or --node-public, where another user connects to the server"
        )
    return f"""\
[server]
address = {json.dumps(server)}
ca_certificate = "ca.pem"      # the coordinator's; the server must prove itself against it
node_key = "node.key"          # never leaves this machine
"""


def no_server(site: SiteFile, config: Path) -> str:
    """Why a site without a server cannot be started as a whole, and what to do."""
    if site.agent is not None:
        return (
            f"{config}: this site is run by two users, as [agent] says. Run `collegium-client agent` as this user, and "
            "`collegium-client connect` as the network user"
        )
    return f"{config}: [server] is missing; add it with address, ca_certificate and node_key"


def _process(pid: int | None) -> str:
    return "not running" if pid is None else f"running (process {pid})"


def _network_toml(server: str, agent_socket: Path, name: str | None) -> str:
    named = f"name = {json.dumps(name)}\n" if name is not None else ""
    return f"""\
# The network user's file: SuperNode and forwarder, with the node key and nothing else of the hospital's.
# Relative paths count from this file's folder.

{named}state = "state"                # logs, Flower's folder; private to this user
agent_socket = {json.dumps(str(agent_socket), ensure_ascii=False)}

[server]
address = {json.dumps(server)}
ca_certificate = "ca.pem"      # the coordinator's; the server must prove itself against it
node_key = "node.key"          # never leaves this machine
"""
