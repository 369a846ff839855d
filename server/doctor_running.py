"""Whether what listens on the server's port is this server, and with what it was started."""

import ssl
from dataclasses import dataclass
from http.client import HTTPException, HTTPSConnection

from cryptography import x509

from server.gate_doctor import TARGET, parse_facts
from server.server_file import ServerFile
from shared_models.certificate_checks import is_issued_by

SECONDS = 5.0
FACTS_BYTES = 4096


@dataclass(frozen=True, slots=True)
class RunningGate:
    """What the gate that is running was started with."""

    certificate: x509.Certificate
    roster_version: int


def ask_own_gate(server: ServerFile, authority: x509.Certificate) -> RunningGate | None:
    """Ask what listens on the server's port.

    Args:
        server: whose port it is.
        authority: which issued the certificate of the server's gate, be it the present one or one before it.

    Returns:
        None where another program listens there, or none.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.listen.host, server.listen.host)  # noqa: S104
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # it is reached by an address of this machine, and may have expired:
    context.verify_mode = ssl.CERT_NONE  # who issued it is looked at below
    connection = HTTPSConnection(host, server.listen.port, timeout=SECONDS, context=context)
    try:
        connection.connect()
        raw = (
            connection.sock.getpeercert(binary_form=True)
            if isinstance(connection.sock, ssl.SSLSocket)
            else None
        )
        if raw is None or not is_issued_by(certificate := x509.load_der_x509_certificate(raw), authority):
            return None
        connection.request("POST", TARGET.decode("ascii"), body=b"")
        reply = connection.getresponse()
        version = parse_facts(reply.read(FACTS_BYTES)) if reply.status == 200 else None
    except (OSError, HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return None if version is None else RunningGate(certificate, version)
