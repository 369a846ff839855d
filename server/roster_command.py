"""``collegium-server admit`` and ``revoke``: who is in the roster, decided by whoever holds the root key."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from server.root_key import RootKeyOption, root_private
from server.server_file import ServerFile, read_server, read_sites
from shared_models.configuration import ConfigurationError
from shared_models.roster import Roster, RosterSite, write_roster
from shared_models.site_request import SiteRequest, read_request
from shared_models.terminal import confirmed, on_terminal

out = Console(highlight=False, soft_wrap=True)

ConfigOption = Annotated[Path, typer.Option("--config", help="The server's file.", dir_okay=False)]


def admit(
    request_file: Annotated[Path, typer.Argument(help="The hospital's request file.", dir_okay=False)],
    config: ConfigOption = Path("server.toml"),
    root_key: RootKeyOption = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="The hospital is in the roster and has new keys.")
    ] = False,
    fingerprint: Annotated[
        str | None,
        typer.Option(help="What the hospital read out by telephone; another one is refused."),
    ] = None,
) -> None:
    """Put a hospital into the roster and sign it, after comparing the keys' fingerprint with it by telephone."""
    server = read_server(config)
    request = read_request(request_file)
    before = read_sites(server)
    change = before.with_keys_replaced if replace else before.with_site
    roster = change(request.site)
    _check_read_out(request, fingerprint)
    if replace and (old := before.entry(request.name)):
        _tell_replacement(request, old, compared=fingerprint is not None)
    write_roster(server.roster, roster, root_private(server, config, root_key))
    done = "has new keys" if replace else "is admitted"
    out.print(f'"{request.name}" {done}; the roster has {num_sites(roster)}.')
    if not replace and any(past.name == request.name for past in before.revoked):
        out.print("A hospital of this name was taken out of the roster before; these keys are new.")
    out.print(f"Fingerprint of its keys: {request.fingerprint}")
    if fingerprint is None:
        out.print("Compare it with what the hospital reads out before you give the roster to anybody.")
    _tell_next(server, roster)


def revoke(
    name: Annotated[str, typer.Argument(help="The hospital's name in the roster.")],
    config: ConfigOption = Path("server.toml"),
    root_key: RootKeyOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take a hospital out of the roster and sign it. Its keys never come back; it may be admitted with new ones."""
    server = read_server(config)
    before = read_sites(server)
    roster = before.without_site(name)
    for entry in before.site:
        if entry.name == name:
            out.print(f'"{name}" has the keys {entry.fingerprint}.')
    confirmed(f'Take "{name}" out of the roster? Its keys can never be admitted again.', yes=yes)
    write_roster(server.roster, roster, root_private(server, config, root_key))
    out.print(f'"{name}" is taken out; the roster has {num_sites(roster)}.')
    _tell_next(server, roster)
    out.print(
        f'Until the server is started again, "{name}" still takes part. The other hospitals count it as a site until '
        "they have joined with the new version."
    )


def num_sites(roster: Roster) -> str:
    """How many sites there are, in words."""
    num = len(roster.site)
    return f"{num} site{'s' * (num != 1)}"


def _tell_next(server: ServerFile, roster: Roster) -> None:
    out.print(
        f"Then give {server.roster} (version {roster.version}) to every hospital:  collegium-client join roster.toml"
    )
    out.print("A running server learns of it at its next start.")


def _check_read_out(request: SiteRequest, read_out: str | None) -> None:
    if read_out is not None and read_out.strip().lower() != request.fingerprint:
        raise ConfigurationError(
            f"the hospital read out {read_out.strip()}, and the request holds keys with {request.fingerprint}: this "
            "request is not the hospital's. Nothing was changed"
        )


def _tell_replacement(request: SiteRequest, old: RosterSite, *, compared: bool) -> None:
    """Show old and new keys; where the old key did not sign, have the telephone decide before anything changes."""
    out.print(f'Keys of "{request.name}" now:       {old.fingerprint}')
    if request.previous_identity_key == old.identity_key:
        out.print(f"Keys that the request asks for: {request.fingerprint}")
        out.print(
            "The request is signed by the identity key that the roster has now: its holder asks for this."
        )
        return
    out.print(
        "The request is NOT signed by the identity key that the roster has now: the hospital has lost it, or somebody "
        "else asks. Only the telephone can tell: call the hospital, at a number that you have from elsewhere, and let "
        "it read out the fingerprint of its new keys."
    )
    if compared:
        return
    if not on_terminal():
        raise ConfigurationError(
            f'the keys of "{request.name}" are replaced without its old key\'s signature only with what the hospital '
            "read out by telephone: --fingerprint XXXX-XXXX-XXXX-XXXX-XXXX. Nothing was changed"
        )
    _check_read_out(request, typer.prompt("What the hospital read out", type=str))
