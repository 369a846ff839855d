"""``collegium-client renew-keys``: new keys for a hospital that is in the roster, or was."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.membership import read_node_public
from client.options import SITE_FILE, ConfigOption
from client.renewed_keys import has_encrypted_identity, renew_keys
from client.site_file import SiteFile, read_site
from shared_models.passphrase import PassphraseOf, asked_passphrase, new_passphrase

out = Console(highlight=False, soft_wrap=True)


def renew(
    config: ConfigOption = SITE_FILE,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Encrypt the new keys under a new passphrase.")
    ] = False,
    without_old_key: Annotated[
        bool, typer.Option("--without-old-key", help="The old identity key, or its passphrase, is lost.")
    ] = False,
    node_public: Annotated[
        Path | None,
        typer.Option(
            help="Of a site of two users: the network user's new node.pub.", exists=True, dir_okay=False
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="In place of new keys that were made before and not admitted.")
    ] = False,
) -> None:
    """Make new keys, and the request to replace the old ones, which stay in use until the new ones are joined."""
    site = read_site(config)
    there = site.consortium.identity_key.exists()
    signed = there and not without_old_key
    opened = asked_passphrase()
    path, request = renew_keys(
        site,
        config.resolve().parent,
        passphrase=opened,
        new_passphrase=_for_the_new(site, opened, signed=signed, asked=passphrase),
        signed_by_old=signed,
        node_public=None if node_public is None else read_node_public(node_public),
        again=again,
    )
    if signed:
        out.print("The request is signed by the old identity key too: the coordinator sees who asks.")
    else:
        reason = "is not used" if there else f"is not there ({site.consortium.identity_key})"
        out.print(
            f"The old identity key {reason}: the coordinator takes this request only after a call by telephone."
        )
    out.print(f"Send to the coordinator: {path}")
    out.print(f"and read out this fingerprint of your new keys to them by telephone: {request.fingerprint}")
    out.print("The coordinator admits it with:  collegium-server admit REQUEST_FILE --replace")
    out.print("(without --replace if this hospital is not in the roster any more)")
    out.print("Until then the old keys stay in use. When the coordinator's roster.toml comes back:")
    out.print(f"end the site, then:  collegium-client join roster.toml --config {config}")
    out.print("which puts the new keys in the old ones' place. Then start the site again.")


def _for_the_new(site: SiteFile, opened: PassphraseOf, *, signed: bool, asked: bool) -> str | None:
    """The new keys' passphrase: a new one where that is asked for, else the old keys', else none."""
    if asked:
        return new_passphrase()
    if signed and has_encrypted_identity(site):
        return opened(site.consortium.identity_key)
    return None
