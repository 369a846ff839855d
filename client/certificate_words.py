"""What is wrong with a server's certificate, in words: whose it is to mend, and how."""

import socket
import ssl
from datetime import UTC, datetime, timedelta

from cryptography import x509

from client.site_file import Server
from shared_models.certificate_checks import names_of
from shared_models.checkup import printable

NOT_YET_VALID, EXPIRED = 9, 10  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
OTHER_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
CONNECT_SECONDS = 5.0
MEND = "the coordinator makes a new one with `collegium-server certificate` and starts the server again"


def certificate_words(server: Server, error: ssl.SSLCertVerificationError) -> str:
    """Say what made the check of the server's certificate fail.

    Looks at the certificate once more, unchecked, to tell dates and names; nothing is sent to whoever shows it.
    """
    now = datetime.now(UTC)
    if error.verify_code in (EXPIRED, NOT_YET_VALID) and (said := _of_the_authority(server, now)):
        return said
    shown = _shown(server)
    if error.verify_code == EXPIRED:
        ended = f"ended {_when(shown.not_valid_after_utc, now)}" if shown else "has ended"
        return (
            f"the certificate of {server.address} {ended}: {MEND}. Nothing has to be changed here, unless this "
            f"machine's clock is wrong: it says {now:%d %B %Y}"
        )
    if error.verify_code == NOT_YET_VALID:
        begins = f"only from {shown.not_valid_before_utc:%d %B %Y, %H:%M} UTC on" if shown else "only later"
        return (
            f"the certificate of {server.address} is valid {begins}, and this machine's clock says "
            f"{now:%d %B %Y, %H:%M} UTC: set the clock. If it is right, the server's was wrong: {MEND}"
        )
    if error.verify_code in OTHER_NAME:
        names = f" (it is for {printable(', '.join(names_of(shown)))})" if shown and names_of(shown) else ""
        return (
            f"the certificate of {server.address} is not for the name {server.host}{names}; use one of its names "
            "in server.address, or ask the coordinator for a new one: collegium-server certificate --host "
            f"{server.host}"
        )
    issuer = f', but by "{printable(shown.issuer.rfc4514_string())}"' if shown else ""
    return (
        f"{server.address} is not the consortium's server: its certificate was not issued by "
        f"{server.ca_certificate}{issuer} ({error.verify_message}). Compare that file with the coordinator's ca.pem; a "
        "proxy that opens TLS looks like this too. Nothing was sent"
    )


def _of_the_authority(server: Server, now: datetime) -> str | None:
    """What is wrong with the dates of this site's own ca.pem, or None."""
    for authority in x509.load_pem_x509_certificates(server.ca_certificate.read_bytes()):
        if now > authority.not_valid_after_utc:
            return (
                f"server.ca_certificate: {server.ca_certificate}, the consortium's authority, ended "
                f"{_when(authority.not_valid_after_utc, now)}: ask the coordinator for a new ca.pem"
            )
        if now < authority.not_valid_before_utc:
            return (
                f"server.ca_certificate: {server.ca_certificate} is valid only from "
                f"{authority.not_valid_before_utc:%d %B %Y, %H:%M} UTC on, and this machine's clock says "
                f"{now:%d %B %Y, %H:%M} UTC: set the clock"
            )
    return None


def _shown(server: Server) -> x509.Certificate | None:
    """The certificate that is shown at the address, unchecked; None where it cannot be had."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((server.host, server.port), CONNECT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=server.host) as tls,
        ):
            return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
    except (OSError, ValueError):
        return None


def _when(past: datetime, now: datetime) -> str:
    days = (now - past) // timedelta(days=1)
    ago = "less than a day ago" if days == 0 else f"{days} day{'s' * (days != 1)} ago"
    return f"{ago} (on {past:%d %B %Y})"
