"""What can be wrong with the server's certificate, in words. OpenSSL decides whether it holds; this says why not."""

import ipaddress
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID

from shared_models.checkup import Outcome, Wrong, ok, printable, warning

WARN_SERVER_DAYS = 30
WARN_AUTHORITY_DAYS = 90


def read_certificate(path: Path, *, mend: str) -> x509.Certificate:
    """Read a PEM certificate. Raises Wrong, with *mend* as the rest of its sentence."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise Wrong(f"{path} cannot be read ({error.strerror}); check the path, or {mend}") from error
    except ValueError as error:
        raise Wrong(f"{path} is not a PEM certificate; {mend}") from error


def common_name(name: x509.Name) -> str:
    """The common name, or all of a name that has none, fit to be shown."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return printable(str(found[0].value) if found else name.rfc4514_string() or "nobody")


def names_of(certificate: x509.Certificate) -> list[str]:
    """The DNS names and addresses that a certificate is for, as they stand in it."""
    try:
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = [str(address) for address in held.get_values_for_type(x509.IPAddress)]
    return [*held.get_values_for_type(x509.DNSName), *addresses]


def is_for(certificate: x509.Certificate, host: str) -> bool:
    """Whether the certificate is for this name or address; a ``*`` stands for the first part of a name."""
    names = [name.lower() for name in names_of(certificate)]
    try:
        return str(ipaddress.ip_address(host)) in names
    except ValueError:
        wanted = host.lower().rstrip(".")
    return wanted in names or f"*.{wanted.partition('.')[2]}" in names


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether *authority*, by its key and name, issued the certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def days_left(certificate: x509.Certificate, now: datetime) -> float:
    """Days until it ends; negative after that."""
    return (certificate.not_valid_after_utc - now).total_seconds() / 86400


def check_validity(
    certificate: x509.Certificate, what: str, now: datetime, *, warn_days: int, mend: str
) -> Outcome:
    """Check that a certificate is valid now and for some time.

    Args:
        certificate: the certificate.
        what: what it is called, as the beginning of a sentence.
        now: this machine's clock, with a time zone.
        warn_days: with fewer days left, a warning.
        mend: how to get a new one, as the rest of a sentence.

    Raises:
        Wrong: it is not valid yet, or no longer.
    """
    clock = f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC"
    if now < certificate.not_valid_before_utc:
        raise Wrong(
            f"{what} is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on; {clock}. If the "
            f"clock is wrong, set it; else {mend}"
        )
    left = days_left(certificate, now)
    end = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    if left < 0:
        raise Wrong(f"{what} has expired on {end}; {clock}. If the clock is wrong, set it; else {mend}")
    if left < warn_days:
        return warning(f"{what} expires on {end}, in {left:.0f} days; {mend}")
    return ok(f"{what} is valid until {end}, {left:.0f} days")


def check_issuer(certificate: x509.Certificate, authority: x509.Certificate, where: str) -> None:
    """Tell a foreign certificate from the consortium's.

    Args:
        certificate: what was shown at the other end.
        authority: the consortium's own.
        where: ``HOST:PORT``.

    Raises:
        Wrong: somebody else issued it; the message names who, which usually is the product that opens TLS.
    """
    if is_issued_by(certificate, authority):
        return
    issuer, own = common_name(certificate.issuer), common_name(authority.subject)
    if certificate.issuer == authority.subject:
        raise Wrong(
            f'the certificate of {where} was issued by another authority of the name "{own}" than the one in '
            "ca.pem: ask the coordinator whether the server was made anew, and for its ca.pem"
        )
    raise Wrong(
        f'the certificate of {where} was issued by "{issuer}", not by "{own}": most likely a proxy or firewall in '
        f"between opens TLS. Ask your IT to exempt {where} from TLS inspection; if nothing inspects it, compare ca.pem "
        "with the coordinator's"
    )


def check_names(certificate: x509.Certificate, host: str, where: str) -> None:
    """Raises Wrong where the certificate is not for the name by which the server is reached."""
    if not is_for(certificate, host):
        raise Wrong(
            f"the certificate of {where} is for {_listed(names_of(certificate))}, not for {host}: use one of these "
            f"as server.address, or ask the coordinator to make it again with --host {host}"
        )


def _listed(names: Sequence[str]) -> str:
    return printable(", ".join(names[:8])) or "no name"
