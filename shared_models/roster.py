"""``roster.toml``: the consortium's sites and their public keys, in numbered versions, each signed by the root key.

The roster is the only source of a peer's keys. Every hospital pins the root's public key and checks the signature
by itself, so that whoever holds the file, the server included, cannot change it.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import AfterValidator, Field, ValidationError, model_validator

from shared_models.configuration import ConfigurationError, Frozen, parse_toml
from shared_models.identity_keys import (
    Signature,
    canonical_identity_line,
    fingerprint,
    is_signed,
    public_bytes,
    sign,
)
from shared_models.node_keys import canonical_line
from shared_models.study import Slug, canonical_json

HEADING = """\
# The consortium's sites and their public keys, signed by its root key: a changed file is refused.
# A site is added with:  collegium-server admit REQUEST_FILE
"""


class RosterSite(Frozen):
    """One site: its name, its Flower node's public key and its identity key, each one OpenSSH line."""

    name: Slug
    node_key: Annotated[str, AfterValidator(canonical_line)]
    identity_key: Annotated[str, AfterValidator(canonical_identity_line)]

    @property
    def fingerprint(self) -> str:
        """One fingerprint over both keys, as the hospital reads it out."""
        return fingerprint(self.node_key, self.identity_key)


class Roster(Frozen):
    """All sites. Names and keys are each unique: a site is known by its keys, never by what it says.

    A new consortium has version 0, without sites; every change makes the next version.
    """

    version: int = Field(ge=0, lt=2**31)
    site: tuple[RosterSite, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _unique(self) -> Self:
        names: set[str] = set()
        owners: dict[str, str] = {}
        for site in self.site:
            if site.name in names:
                raise ValueError(f'two sites are named "{site.name}"; each needs a name of its own')
            names.add(site.name)
            for kind, key in (("node", site.node_key), ("identity", site.identity_key)):
                if (owner := owners.setdefault(key, site.name)) != site.name:
                    raise ValueError(
                        f'"{owner}" and "{site.name}" have the same {kind} key; every site makes its own'
                    )
        return self

    @property
    def hash(self) -> bytes:
        """SHA-256, 32 bytes, of version and sites: the identity of this version."""
        return hashlib.sha256(b"collegium-roster-1\n" + _values(self)).digest()

    @property
    def fingerprint(self) -> str:
        """All of its hash, in groups of four hexadecimal digits, for reading aloud.

        Not shortened as those of keys are: whoever signs chooses both of two rosters, and could search for a pair
        whose first digits agree.
        """
        digits = self.hash.hex()
        return "-".join(digits[start : start + 4] for start in range(0, len(digits), 4))

    @property
    def identities(self) -> Mapping[str, bytes]:
        """Name → identity public key, 32 bytes, of every site."""
        return MappingProxyType({site.name: public_bytes(site.identity_key) for site in self.site})

    def name_of(self, node_key: str) -> str | None:
        """The name of the site with this node key (one OpenSSH line), or None."""
        return next((site.name for site in self.site if site.node_key == node_key), None)

    def entry(self, name: str) -> RosterSite | None:
        """The site of this name, or None."""
        return next((site for site in self.site if site.name == name), None)

    def with_site(self, site: RosterSite) -> "Roster":
        """The next version, with *site* in it. Raises ConfigurationError where its name or a key is taken."""
        if site in self.site:
            raise ConfigurationError(f'"{site.name}" is in the roster already, with just these keys')
        try:
            return Roster(version=self.version + 1, site=(*self.site, site))
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise ConfigurationError(f'"{site.name}" cannot be admitted: {reason}') from error


class RosterFile(Roster):
    """What stands in the file: a roster, and the root key's signature on version and sites."""

    signature: Signature


def read_roster(path: Path, root: str) -> Roster:
    """Read the roster and check its signature.

    Args:
        path: of ``roster.toml``.
        root: the root's public key, one OpenSSH line.

    Raises:
        ConfigurationError: the file is not there, has problems, or was not signed by this root key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"{path}: the roster cannot be read ({error.strerror}); the coordinator has it"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is not UTF-8 text; get the roster from the coordinator") from error
    return parse_roster(text, root, origin=str(path))


def parse_roster(text: str, root: str, *, origin: str) -> Roster:
    """Read a roster's *text* and check its signature, as `read_roster`; *origin* names it in messages."""
    file = parse_toml(text, RosterFile, origin=origin)
    roster = Roster(version=file.version, site=file.site)
    if not is_signed(root, _statement(roster), file.signature):
        raise ConfigurationError(
            f"{origin}: is not signed by the consortium's root key {fingerprint(root)}: it was edited after it was "
            "signed, or it is another consortium's. Get roster.toml from the coordinator as it is there, and compare "
            "the root key's fingerprint with the coordinator by telephone"
        )
    return roster


def write_roster(path: Path, roster: Roster, root_private: Ed25519PrivateKey) -> None:
    """Sign the roster with the root key and put it at *path*, whole or not at all. Raises OSError."""
    lines = [
        HEADING,
        f"version = {roster.version}",
        f'signature = "{sign(root_private, _statement(roster))}"',
    ]
    for site in roster.site:
        lines += ["", "[[site]]", f'name = "{site.name}"']
        lines += [f'node_key = "{site.node_key}"', f'identity_key = "{site.identity_key}"']
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _statement(roster: Roster) -> bytes:
    return b"collegium-roster-signature-1\n" + _values(roster)


def _values(roster: Roster) -> bytes:
    return canonical_json(Roster(version=roster.version, site=roster.site))
