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
# and taken out with:    collegium-server revoke NAME
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


class RevokedSite(RosterSite):
    """A site's keys that were taken out of the roster, for good.

    ``version`` is the first version without them; ``replaced`` says that the site has newer keys since then.
    """

    version: int = Field(ge=1, lt=2**31)
    replaced: bool


class Roster(Frozen):
    """All sites. Names and keys are each unique: a site is known by its keys, never by what it says.

    A new consortium has version 0, without sites; every change makes the next version. Keys that were taken out are
    remembered in ``revoked`` and never come back: the SuperLink withdraws a node key for good.
    """

    version: int = Field(ge=0, lt=2**31)
    site: tuple[RosterSite, ...] = Field(default=(), strict=False)
    revoked: tuple[RevokedSite, ...] = Field(default=(), strict=False)

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
        for past in self.revoked:
            if past.version > self.version:
                raise ValueError(
                    f'"{past.name}" was taken out in version {past.version}, which is yet to come'
                )
            for kind, key in (("node", past.node_key), ("identity", past.identity_key)):
                if key in owners:
                    raise ValueError(
                        f'the {kind} key of "{owners[key]}" was taken out of the roster in version {past.version} '
                        f'(as "{past.name}"), and a key that was taken out never comes back: the hospital makes new '
                        "ones with `collegium-client renew-keys` and sends that request"
                    )
        return self

    @property
    def hash(self) -> bytes:
        """SHA-256, 32 bytes, of version, sites and revoked keys: the identity of this version."""
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

    def revocation(self, site: RosterSite) -> RevokedSite | None:
        """The latest entry under which one of *site*'s keys was taken out, or None."""
        keys = {site.node_key, site.identity_key}
        return next(
            (past for past in reversed(self.revoked) if keys & {past.node_key, past.identity_key}), None
        )

    def with_site(self, site: RosterSite) -> "Roster":
        """The next version, with *site* in it.

        Raises:
            ConfigurationError: its name or a key is taken, or a key was taken out before.
        """
        if site in self.site:
            raise ConfigurationError(f'"{site.name}" is in the roster already, with just these keys')
        if there := self.entry(site.name):
            raise ConfigurationError(
                f'"{site.name}" is in the roster already, with other keys ({there.fingerprint}; the request has '
                f"{site.fingerprint}). If this hospital has new keys, say --replace; another hospital needs "
                "a name of its own"
            )
        return self._next(site, (*self.site, site), self.revoked)

    def with_keys_replaced(self, site: RosterSite) -> "Roster":
        """The next version, with the keys of *site* in place of those under its name, which never come back.

        Raises:
            ConfigurationError: there is no site of this name, a key stays the same, or one is taken or was taken out.
        """
        old = self._present(site.name, "there is nothing to replace: admit it without --replace")
        if site == old:
            raise ConfigurationError(f'"{site.name}" is in the roster already, with just these keys')
        sites = tuple(site if entry is old else entry for entry in self.site)
        return self._next(site, sites, (*self.revoked, self._taken_out(old, replaced=True)))

    def without_site(self, name: str) -> "Roster":
        """The next version, without the site of this name, whose keys never come back.

        Raises:
            ConfigurationError: there is no site of this name.
        """
        old = self._present(name, "check the name")
        sites = tuple(entry for entry in self.site if entry is not old)
        return self._next(old, sites, (*self.revoked, self._taken_out(old, replaced=False)))

    def _present(self, name: str, remedy: str) -> RosterSite:
        entry = self.entry(name)
        if entry is None:
            known = ", ".join(site.name for site in self.site) or "none"
            raise ConfigurationError(f'"{name}" is not in the roster (there: {known}); {remedy}')
        return entry

    def _taken_out(self, old: RosterSite, *, replaced: bool) -> RevokedSite:
        keys = old.model_dump()
        return RevokedSite(**keys, version=self.version + 1, replaced=replaced)

    def _next(
        self, changed: RosterSite, site: tuple[RosterSite, ...], revoked: tuple[RevokedSite, ...]
    ) -> "Roster":
        try:
            return Roster(version=self.version + 1, site=site, revoked=revoked)
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise ConfigurationError(f'"{changed.name}" cannot be admitted: {reason}') from error


class RosterFile(Roster):
    """What stands in the file: a roster, and the root key's signature on all of it."""

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
    roster = Roster(version=file.version, site=file.site, revoked=file.revoked)
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
        lines += ["", "[[site]]", *_keys(site)]
    for past in roster.revoked:
        lines += ["", "[[revoked]]", *_keys(past), f"version = {past.version}"]
        lines += [f"replaced = {str(past.replaced).lower()}"]
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _keys(site: RosterSite) -> list[str]:
    return [
        f'name = "{site.name}"',
        f'node_key = "{site.node_key}"',
        f'identity_key = "{site.identity_key}"',
    ]


def _statement(roster: Roster) -> bytes:
    return b"collegium-roster-signature-1\n" + _values(roster)


def _values(roster: Roster) -> bytes:
    return canonical_json(Roster(version=roster.version, site=roster.site, revoked=roster.revoked))
