"""``collegium-client``: one hospital's command line."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.agent_command import agent
from client.card_command import card
from client.doctor_command import doctor
from client.fetch_command import fetch
from client.foreground import foreground
from client.index_command import index
from client.init_command import init
from client.journal_command import app as journal_app
from client.key_change import take_new_keys
from client.ledger_command import ledger
from client.membership import MembershipError, check_node_key, check_node_key_file, read_joined
from client.membership import join as join_consortium
from client.network_command import connect, init_network, network_status, no_server
from client.network_file import is_network_file
from client.options import SITE_FILE, ConfigOption, EitherConfigOption, EndWithParentOption, JsonOption
from client.predict_command import predict
from client.renew_command import renew
from client.renewed_keys import renewed_keys
from client.review_command import review
from client.site_file import SiteFile, read_site
from client.withdraw_command import patient, withdraw
from privacy.journal import JournalError
from shared_models.configuration import ConfigurationError
from shared_models.passphrase import asked_passphrase
from shared_models.processes import private_folder
from shared_models.roster import Roster

USAGE, FAILURE = 2, 1

app = typer.Typer(
    help="One hospital's side of Collegium.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


app.command()(init)


@app.command()
def join(
    roster_file: Annotated[Path, typer.Argument(help="The coordinator's roster.toml.", dir_okay=False)],
    config: ConfigOption = SITE_FILE,
) -> None:
    """Take the coordinator's roster, after checking that the consortium's root key signed it with this site in it."""
    site = read_site(config)
    renewed = renewed_keys(site)
    with _at_rest(site) if renewed else nullcontext():
        roster = join_consortium(site, roster_file)
        if renewed and renewed.are_in(roster):
            vouched = take_new_keys(site, renewed, roster)
            out.print(
                "The new keys are in the old ones' place, which are gone; the journal goes on under the new key"
            )
            if not vouched:
                out.print("and says that the old key could not sign that.", style="yellow")
    out.print(f'"{site.name}" has joined: version {roster.version} of the roster, {_num_sites(roster)}')
    out.print("Compare with another hospital by telephone, so that nobody was given a roster of their own:")
    out.print(f"  roster {roster.fingerprint}")
    for entry in roster.site:
        out.print(f"  site {entry.name}: keys {entry.fingerprint}", markup=False)
    for past in roster.revoked:
        what = "replaced" if past.replaced else "taken out"
        out.print(f"  {what} in version {past.version}: {past.name}, keys {past.fingerprint}", markup=False)
    if renewed_keys(site) is not None:
        out.print("This site's new keys are not in this version; the old ones stay in use.")
    out.print(f"Wrote {site.consortium.roster}. A running site learns of it at its next start.")


@app.command()
def start(config: ConfigOption = SITE_FILE, end_with_parent: EndWithParentOption = False) -> None:
    """Connect to the server and take part, until Ctrl-C or SIGTERM."""
    from client.launch import run_site

    with foreground(end_with_parent):
        site = read_site(config)
        if site.server is None:
            raise ConfigurationError(no_server(site, config))
        check_node_key_file(site.server)
        check_node_key(site, read_joined(site))
        out.print(f'Site "{site.name}" starts; logs are in {site.state / "logs"}. Ctrl-C ends it.')
        run_site(
            site,
            config,
            tell=lambda line: out.print(line, markup=False),
            ended=lambda: False,
            passphrase=asked_passphrase(),
        )


@app.command()
def status(
    config: EitherConfigOption = SITE_FILE,
    as_json: JsonOption = False,
) -> None:
    """Show which roster the site has, whether it runs, what its agent does, and whether the server answers.

    With a network.toml, as the network user: whether SuperNode and forwarder run, whether the agent lets them in.
    """
    if is_network_file(config):
        network_status(config, as_json)
        return
    site = read_site(config)
    roster, joined = _roster_status(site)
    values = {
        "site": site.name,
        "roster": roster,
        "roster_version": joined.version if joined else None,
        "roster_fingerprint": joined.fingerprint if joined else None,
        "agent": _agent_status(site),
        "server": _server_status(site),
    }
    if as_json:
        typer.echo(json.dumps(values, indent=2))
        return
    out.print(f"Site {site.name}", markup=False)
    out.print(f"  roster: {roster}", markup=False)
    if joined:
        out.print(f"  roster fingerprint: {joined.fingerprint}")
    for name, value in _agent_status(site).items():
        out.print(f"  {name}: {value}", markup=False)
    out.print(f"  server: {values['server']}", markup=False)


app.command()(fetch)
app.command()(index)
app.command()(predict)
app.command()(card)
app.command()(ledger)
app.command("renew-keys")(renew)
app.command()(agent)
app.command("init-network")(init_network)
app.command()(connect)
app.command()(doctor)
app.command()(review)
app.command()(withdraw)
app.command()(patient)
app.add_typer(journal_app, name="journal")


def main() -> None:
    """Entry point of ``collegium-client``: errors become one clear message and an exit status."""
    from client.launch import SiteError

    try:
        app(standalone_mode=True)
    except (ConfigurationError, MembershipError) as error:
        err.print(str(error), style="red", markup=False)
        sys.exit(USAGE)
    except (JournalError, SiteError, OSError) as error:
        err.print(str(error), style="red", markup=False)
        sys.exit(FAILURE)


@contextmanager
def _at_rest(site: SiteFile) -> Iterator[None]:
    """Keep the site from running meanwhile: its processes would go on under keys that are gone. Raises SiteError."""
    from client.launch import only_one

    with only_one(private_folder(site.state)):
        yield


def _num_sites(roster: Roster) -> str:
    num = len(roster.site)
    return f"{num} site{'s' * (num != 1)}"


def _roster_status(site: SiteFile) -> tuple[str, Roster | None]:
    """In words, and the roster itself where the site joined one."""
    try:
        roster = read_joined(site)
    except MembershipError as error:
        return str(error), None
    return f"version {roster.version}, {_num_sites(roster)}", roster


def _agent_status(site: SiteFile) -> dict[str, str]:
    from client.agent_channel import AgentClient, AgentFailed, AgentUnreachable, socket_path

    try:
        with AgentClient(socket_path(site.state)) as agent:
            return agent.status()
    except (AgentUnreachable, TimeoutError):
        return {"agent": "not running"}
    except (AgentFailed, ValueError) as error:
        return {"agent": str(error)}


def _server_status(site: SiteFile) -> str:
    from client.launch import ServerNotReached, SiteError, check_server

    if site.agent is not None:
        return "the network user's: collegium-client status --config network.toml"
    if site.server is None:
        return "none named in site.toml"
    try:
        check_server(site.server)
    except (SiteError, ServerNotReached) as error:
        return str(error)
    return f"{site.server.address} answers and is the consortium's"


if __name__ == "__main__":
    main()
