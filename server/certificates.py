"""The consortium's certificate authority and the server's certificate."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared_models.key_files import key_file

CA_DAYS = 3650
SERVER_DAYS = 825
CLOCK_SLACK = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """A new certificate authority that can issue server certificates and nothing else.

    Args:
        name: common name, as an operator sees it.
        now: the time from which certificates are valid (with an hour's slack for clocks that differ).
        days: how long the authority is valid.
    """

    def __init__(self, name: str, *, now: datetime | None = None, days: int = CA_DAYS) -> None:
        self._now = now or datetime.now(UTC)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = (
            _builder(self._name, self._name, self._key, self._now, self._now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def issued(self) -> Issued:
        """The authority's own certificate and key."""
        return Issued(certificate=self._certificate.public_bytes(Encoding.PEM), key=_key_pem(self._key))

    def key_file(self, passphrase: str | None) -> bytes:
        """The authority's key as a file: under the passphrase, plain where there is none."""
        return key_file(self._key, passphrase)

    def server(self, hosts: Sequence[str], *, days: int = SERVER_DAYS) -> Issued:
        """Issue a server certificate.

        Args:
            hosts: DNS names and IP addresses by which sites reach the server; at least one.
            days: how long it is valid.

        Raises:
            ValueError: no host, or one that is neither a name nor an address.
        """
        return issue_server_certificate(self._certificate, self._key, hosts, now=self._now, days=days)


def issue_server_certificate(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str],
    *,
    now: datetime,
    days: int = SERVER_DAYS,
) -> Issued:
    """Issue a server certificate under an authority, with a new key.

    Args:
        authority: the authority's own certificate.
        authority_key: its key.
        hosts: DNS names and IP addresses by which sites reach the server; at least one.
        now: the time from which it is valid (with an hour's slack for clocks that differ).
        days: how long it is valid, but no longer than the authority.

    Raises:
        ValueError: no host, or one that is neither a name nor an address.
    """
    if not hosts:
        raise ValueError("hosts must hold at least one name or address")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Collegium server")])
    until = min(now + timedelta(days=days), authority.not_valid_after_utc)
    certificate = (
        _builder(name, authority.subject, key, now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    return Issued(certificate=certificate.public_bytes(Encoding.PEM), key=_key_pem(key))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(until)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not host or not all(
        part and part.replace("-", "").isalnum() and part.isascii() for part in host.split(".")
    ):
        raise ValueError(f'host "{host}" is neither a DNS name nor an IP address')
    return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
