"""``NAME.request.toml``: with this file a hospital asks the coordinator to admit it to the consortium.

It holds nothing secret. Its signature, by the identity key that it asks for, proves that the sender has that key;
whose key it is, the fingerprint tells that the hospital reads out by telephone.
"""

from pathlib import Path
from typing import Annotated, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import AfterValidator, model_validator

from shared_models.configuration import ConfigurationError, read_toml
from shared_models.identity_keys import Signature, canonical_identity_line, identity_line, is_signed, sign
from shared_models.roster import RosterSite
from shared_models.study import canonical_json

HEADING = """\
# A hospital asks to be admitted. For the coordinator:  collegium-server admit REQUEST_FILE
"""


class SiteRequest(RosterSite):
    """The entry that a site asks for, with its signature on it.

    Where the site asks to have its keys replaced, and still has the old identity key, that key signs too:
    ``previous_identity_key`` and ``previous_signature`` show that whoever asks is who was admitted before.
    """

    signature: Signature
    previous_identity_key: Annotated[str, AfterValidator(canonical_identity_line)] | None = None
    previous_signature: Signature | None = None

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.previous_identity_key is None) != (self.previous_signature is None):
            raise ValueError("previous_identity_key and previous_signature belong together")
        return self

    @classmethod
    def signed(
        cls,
        *,
        name: str,
        node_key: str,
        identity: Ed25519PrivateKey,
        previous: Ed25519PrivateKey | None = None,
    ) -> Self:
        """Make the request of the site that has this identity key, and had the *previous* one before."""
        site = RosterSite(name=name, node_key=node_key, identity_key=identity_line(identity))
        return cls(
            name=site.name,
            node_key=site.node_key,
            identity_key=site.identity_key,
            signature=sign(identity, _statement(site)),
            previous_identity_key=identity_line(previous) if previous else None,
            previous_signature=sign(previous, _renewal(site)) if previous else None,
        )

    @property
    def site(self) -> RosterSite:
        """The entry without the signature, as the roster has it."""
        return RosterSite(name=self.name, node_key=self.node_key, identity_key=self.identity_key)


def read_request(path: Path) -> SiteRequest:
    """Read a request and check its signatures. Raises ConfigurationError."""
    request = read_toml(path, SiteRequest)
    if not is_signed(request.identity_key, _statement(request.site), request.signature):
        raise ConfigurationError(
            f"{path}: is not signed by the identity key that it names: it was edited, or made by somebody who does "
            "not have that key. Ask the hospital for the file as `collegium-client init` wrote it"
        )
    previous, signature = request.previous_identity_key, request.previous_signature
    if previous and signature and not is_signed(previous, _renewal(request.site), signature):
        raise ConfigurationError(
            f"{path}: is not signed by the previous identity key that it names: it was edited, or made by somebody "
            "who does not have that key. Ask the hospital for the file as `collegium-client renew-keys` wrote it"
        )
    return request


def write_request(path: Path, request: SiteRequest) -> None:
    """Write the request as a file that `read_request` reads. Raises OSError."""
    values = {
        "name": request.name,
        "node_key": request.node_key,
        "identity_key": request.identity_key,
        "signature": request.signature,
        "previous_identity_key": request.previous_identity_key,
        "previous_signature": request.previous_signature,
    }
    text = "".join(f'{key} = "{value}"\n' for key, value in values.items() if value is not None)
    path.write_text(HEADING + "\n" + text, encoding="utf-8")


def _statement(site: RosterSite) -> bytes:
    return b"collegium-site-request-1\n" + canonical_json(site)


def _renewal(site: RosterSite) -> bytes:
    return b"collegium-site-renewal-1\n" + canonical_json(site)
