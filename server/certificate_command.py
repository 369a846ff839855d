"""``collegium-server certificate``: a new certificate for the server; hospitals need nothing new."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from rich.console import Console

from server.certificate_check import check_authority, check_tls, read_certificate
from server.certificates import SERVER_DAYS, Issued, issue_server_certificate
from server.server_file import Tls, read_server
from shared_models.certificate_checks import names_of
from shared_models.configuration import ConfigurationError
from shared_models.key_files import KeyFileError, open_key, read_key_file
from shared_models.passphrase import asked_passphrase
from shared_models.processes import write_private

out = Console(highlight=False, soft_wrap=True)


def certificate(
    config: Annotated[Path, typer.Option("--config", help="The server's file.", dir_okay=False)] = Path(
        "server.toml"
    ),
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address by which sites reach this server; those it has if not given."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=SERVER_DAYS, help="How long it is valid.")] = SERVER_DAYS,
    ca_key: Annotated[
        Path | None, typer.Option(help="The authority's private key; ca.key beside ca.pem if not given.")
    ] = None,
) -> None:
    """Issue a new certificate for the server, with a new key, under the authority that the hospitals know."""
    tls = read_server(config).tls
    now = datetime.now(UTC)
    authority = read_certificate(tls.ca_certificate, "tls.ca_certificate")
    check_authority(authority, tls.ca_certificate, now)
    key = _authority_key(authority, tls, ca_key or tls.ca_certificate.parent / "ca.key")
    before = _hosts_now(tls)
    hosts = host or before
    if not hosts:
        raise ConfigurationError(
            f"tls.certificate: {tls.certificate} cannot tell for which names: say --host"
        )
    try:
        issued = issue_server_certificate(authority, key, hosts, now=now, days=days)
    except ValueError as error:
        raise ConfigurationError(f"--host: {error}") from error
    _put(tls, issued)
    check_tls(tls)
    made = read_certificate(tls.certificate, "tls.certificate")
    out.print(f"Wrote {tls.certificate} and {tls.key}. A running server takes them at its next start.")
    out.print(f"It is for {', '.join(names_of(made))}, until {made.not_valid_after_utc:%d %B %Y}.")
    if gone := [name for name in before if name not in names_of(made)]:
        out.print(
            f"No longer for {', '.join(gone)}: a hospital whose server.address has that name is refused."
        )
    out.print(f"{tls.ca_certificate} is as it was: hospitals need nothing new.")


def _authority_key(authority: x509.Certificate, tls: Tls, path: Path) -> EllipticCurvePrivateKey:
    try:
        key = open_key(read_key_file(path), path, asked_passphrase())
    except KeyFileError as error:
        raise ConfigurationError(
            f"the authority's key: {error}. If you keep it elsewhere, say where with --ca-key"
        ) from error
    if not isinstance(key, EllipticCurvePrivateKey) or key.public_key() != authority.public_key():
        raise ConfigurationError(
            f"{path} is not the private key of {tls.ca_certificate}; say with --ca-key where the authority's is"
        )
    return key


def _hosts_now(tls: Tls) -> list[str]:
    """The names of the certificate that is there; none where there is none."""
    try:
        return names_of(read_certificate(tls.certificate, "tls.certificate"))
    except ConfigurationError:
        return []


def _put(tls: Tls, issued: Issued) -> None:
    """Put key and certificate in place, each whole or not at all; `check_tls` finds one without the other."""
    fresh = tls.key.with_name(tls.key.name + ".new")
    write_private(fresh, issued.key, replace=True)
    beside = tls.certificate.with_name(tls.certificate.name + ".new")
    beside.write_bytes(issued.certificate)
    fresh.replace(tls.key)
    beside.replace(tls.certificate)
