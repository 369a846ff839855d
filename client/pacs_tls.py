"""TLS towards a PACS."""

import ssl
from pathlib import Path


def tls_context(authority: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """What a PACS's certificate is judged by: one authority, or those of the system. Raises OSError, SSLError."""
    context = ssl.create_default_context(cafile=None if authority is None else str(authority))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context
