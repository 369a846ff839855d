"""A site's membership in the consortium: its own keys, and the roster by which it knows the others.

Only a roster that the pinned root key signed is used, and only one that has this site's own keys under its name.
A site that has a version of the roster never goes back to an older one.
"""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.private_file import replace_private_file
from client.site_file import SiteFile
from shared_models.configuration import ConfigurationError
from shared_models.identity_keys import (
    IdentityKeyError,
    identity_line,
    new_identity_key,
    read_identity_key,
    read_public_key,
)
from shared_models.node_keys import NodeKeyError, new_node_key, public_line
from shared_models.processes import write_private
from shared_models.roster import Roster, parse_roster, read_roster
from shared_models.site_request import SiteRequest, write_request

NODE_KEY, IDENTITY_KEY = "node.key", "identity.key"


class MembershipError(ValueError):
    """The site is not, or not yet, a member of the consortium. The message says why and what to do."""


def make_keys(folder: Path, name: str) -> tuple[Path, SiteRequest]:
    """Make a site's node key and identity key in *folder*, and the request that the coordinator gets.

    Returns:
        The path of the request's file, and the request.

    Raises:
        FileExistsError: a key is there already; it stays as it is.
    """
    node_file, node_key = new_node_key()
    identity_file, _ = new_identity_key()
    write_private(folder / NODE_KEY, node_file)
    write_private(folder / IDENTITY_KEY, identity_file)
    identity = read_identity_key(folder / IDENTITY_KEY)
    request = SiteRequest.signed(name=name, node_key=node_key, identity=identity)
    path = folder / f"{name}.request.toml"
    write_request(path, request)
    return path, request


def read_membership(file: SiteFile) -> tuple[Ed25519PrivateKey, Roster]:
    """Read the site's identity key, and the roster that it joined.

    Raises:
        MembershipError: a key cannot be used, the site has joined no roster, or the roster does not have it.
    """
    identity, root = own_key(file), root_key(file)
    if not file.consortium.roster.exists():
        raise MembershipError(
            f"{file.consortium.roster} is not there: this site has not joined yet. Send {file.name}.request.toml to "
            "the coordinator, and join with the roster.toml that comes back: collegium-client join roster.toml"
        )
    try:
        roster = read_roster(file.consortium.roster, root)
    except ConfigurationError as error:
        raise MembershipError(f"consortium.roster: {error}") from error
    _check_entry(file, roster, identity)
    return identity, roster


def check_node_key(file: SiteFile, roster: Roster) -> None:
    """Check that the roster has the site's node key under its name, where the site has a server.

    Raises:
        MembershipError: the key cannot be read, or the roster has another one.
    """
    if file.server is None:
        return
    path, entry = file.server.node_key, roster.entry(file.name)
    try:
        own = public_line(path.read_bytes())
    except OSError as error:
        raise MembershipError(f"server.node_key: {path} cannot be read ({error.strerror})") from error
    except NodeKeyError as error:
        raise MembershipError(f"server.node_key: {path} {error}") from error
    if entry is None or entry.node_key != own:
        raise MembershipError(
            f'the roster has another node key under "{file.name}" than {path}: put the right key there, or ask the '
            "coordinator whose keys were admitted under this name"
        )


def join(file: SiteFile, given: Path) -> Roster:
    """Check the roster in the file *given* and make it the site's own.

    Raises:
        MembershipError: it is not the consortium's, does not have this site's keys under its name, or is older
            than the roster that the site has; that one stays as it is.
    """
    identity, root = own_key(file), root_key(file)
    try:
        raw = given.read_bytes()
        roster = parse_roster(raw.decode("utf-8"), root, origin=str(given))
    except OSError as error:
        raise MembershipError(f"{given}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise MembershipError(f"{given}: is not UTF-8 text; get it from the coordinator again") from error
    except ConfigurationError as error:
        raise MembershipError(str(error)) from error
    _check_entry(file, roster, identity)
    check_node_key(file, roster)
    _check_newer(file, roster, given, root)
    replace_private_file(file.consortium.roster, raw)
    return roster


def own_key(file: SiteFile) -> Ed25519PrivateKey:
    """The site's private identity key. Raises MembershipError."""
    try:
        return read_identity_key(file.consortium.identity_key)
    except IdentityKeyError as error:
        raise MembershipError(f"consortium.identity_key: {error}") from error


def root_key(file: SiteFile) -> str:
    """The consortium's root public key, one OpenSSH line, as this site pinned it. Raises MembershipError."""
    try:
        return read_public_key(file.consortium.root)
    except IdentityKeyError as error:
        raise MembershipError(f"consortium.root: {error}; it is the coordinator's root.pub") from error


def _check_entry(file: SiteFile, roster: Roster, identity: Ed25519PrivateKey) -> None:
    """The roster has this site's identity key under its name."""
    entry = roster.entry(file.name)
    if entry is None:
        known = ", ".join(site.name for site in roster.site) or "none"
        raise MembershipError(
            f'"{file.name}" is not in version {roster.version} of the roster (there: {known}); send '
            f"{file.name}.request.toml to the coordinator, or ask for the newest roster.toml and join with it"
        )
    if entry.identity_key != identity_line(identity):
        raise MembershipError(
            f'version {roster.version} of the roster has another identity key under "{file.name}" '
            f"than {file.consortium.identity_key}: put the right key there; if it is right, somebody else was "
            "admitted under this name: tell the coordinator"
        )


def _check_newer(file: SiteFile, roster: Roster, given: Path, root: str) -> None:
    own = file.consortium.roster
    if not own.exists():
        return
    try:
        before = read_roster(own, root)
    except ConfigurationError as error:
        raise MembershipError(
            f"the roster that this site has cannot be compared with {given}: {error}. Ask the coordinator by telephone "
            f"for the newest version's number; if {given} is that one (version {roster.version}), remove {own} and "
            "join again"
        ) from error
    if roster.version < before.version:
        raise MembershipError(
            f"{given} is version {roster.version} of the roster, this site has version {before.version} already: ask "
            "the coordinator for the newest roster.toml"
        )
    if roster.version == before.version and roster.hash != before.hash:
        raise MembershipError(
            f"{given} and {own} are two different rosters, both signed as version {roster.version}: do not join. "
            "Ask the coordinator which sites there are, and to sign a new version"
        )
