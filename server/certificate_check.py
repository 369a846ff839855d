"""What must be right about the server's certificate before sites are let in, and what ends soon."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from server.server_file import Tls
from shared_models.certificate_checks import is_issued_by
from shared_models.configuration import ConfigurationError

SOON = timedelta(days=30)
RENEW = "make a new one with `collegium-server certificate`"


def read_certificate(path: Path, name: str) -> x509.Certificate:
    """Read a PEM certificate; *name* is its key in ``server.toml``. Raises ConfigurationError."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{name}: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigurationError(f"{name}: {path} is not a PEM certificate") from error


def check_authority(authority: x509.Certificate, path: Path, now: datetime) -> None:
    """Check that the consortium's authority is valid now. Raises ConfigurationError."""
    if now > authority.not_valid_after_utc:
        raise ConfigurationError(
            f"tls.ca_certificate: {path} ended {_ago(now - authority.not_valid_after_utc)}: no hospital trusts a "
            "certificate of it any more. Make a new authority with `collegium-server init` in another folder, take its "
            "tls folder, and give the new ca.pem to every hospital"
        )
    if now < authority.not_valid_before_utc:
        raise ConfigurationError(
            f"tls.ca_certificate: {path} is valid only from {authority.not_valid_before_utc:%d %B %Y} on: check this "
            "machine's clock"
        )


def check_tls(tls: Tls, now: datetime | None = None) -> list[str]:
    """Check the server's certificate as hospitals will.

    Returns:
        What ends within 30 days, one sentence each.

    Raises:
        ConfigurationError: it or its key cannot be read, they do not belong together, the consortium's authority did
            not issue it, or one of both is not valid now.
    """
    now = now or datetime.now(UTC)
    certificate = read_certificate(tls.certificate, "tls.certificate")
    authority = read_certificate(tls.ca_certificate, "tls.ca_certificate")
    check_authority(authority, tls.ca_certificate, now)
    check_key(certificate, tls)
    if not is_issued_by(certificate, authority):
        raise ConfigurationError(
            f"tls.certificate: {tls.certificate} was not issued by {tls.ca_certificate}; sites would refuse it: put "
            f"the right file there, or {RENEW}"
        )
    if now > certificate.not_valid_after_utc:
        raise ConfigurationError(
            f"tls.certificate: {tls.certificate} ended {_ago(now - certificate.not_valid_after_utc)}; sites would "
            f"refuse it: {RENEW}"
        )
    if now < certificate.not_valid_before_utc:
        raise ConfigurationError(
            f"tls.certificate: {tls.certificate} is valid only from {certificate.not_valid_before_utc:%d %B %Y} on: "
            "check this machine's clock"
        )
    return _ending(certificate, authority, tls, now)


def check_key(certificate: x509.Certificate, tls: Tls) -> None:
    """Check that the server's private key is that of its certificate. Raises ConfigurationError."""
    try:
        key = load_pem_private_key(tls.key.read_bytes(), None)
    except OSError as error:
        raise ConfigurationError(f"tls.key: {tls.key} cannot be read ({error.strerror}): {RENEW}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(
            f"tls.key: {tls.key} is not a PEM private key without a passphrase: {RENEW}"
        ) from error
    own, there = (
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for public in (key.public_key(), certificate.public_key())
    )
    if own != there:
        raise ConfigurationError(
            f"tls.certificate: {tls.certificate} is about another key than {tls.key}: put the right files there, or "
            f"{RENEW}"
        )


def _ending(certificate: x509.Certificate, authority: x509.Certificate, tls: Tls, now: datetime) -> list[str]:
    said = []
    if (left := certificate.not_valid_after_utc - now) < SOON:
        said.append(f"{tls.certificate} ends {_in(left)}: {RENEW}, and start the server again")
    if (left := authority.not_valid_after_utc - now) < SOON:
        said.append(
            f"{tls.ca_certificate}, the consortium's authority, ends {_in(left)}: every hospital needs a new ca.pem"
        )
    return said


def _ago(past: timedelta) -> str:
    days = past // timedelta(days=1)
    return "today" if days == 0 else f"{days} day{'s' * (days != 1)} ago"


def _in(left: timedelta) -> str:
    days = math.ceil(left / timedelta(days=1))
    return f"in {days} day{'s' * (days != 1)}"
