"""A site's membership in the consortium: its own keys, and the roster by which it knows the others.

Only a roster that the pinned root key signed is used, and only one that has this site's own keys under its name.
A site that has a version of the roster never goes back to an older one.
"""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.private_file import replace_private_file
from client.renewed_keys import renewed_keys
from client.site_file import Server, SiteFile
from shared_models.configuration import ConfigurationError
from shared_models.identity_keys import (
    IdentityKeyError,
    new_identity_key,
    read_identity_key,
    read_identity_line,
    read_public_key,
)
from shared_models.node_keys import NodeKeyError, canonical_line, new_node_key, public_line
from shared_models.passphrase import PassphraseOf, asked_passphrase, passphrase_of
from shared_models.processes import write_private
from shared_models.roster import RevokedSite, Roster, parse_roster, read_roster
from shared_models.site_request import SiteRequest, write_request

NODE_KEY, NODE_PUBLIC, IDENTITY_KEY = "node.key", "node.pub", "identity.key"


class MembershipError(ValueError):
    """The site is not, or not yet, a member of the consortium. The message says why and what to do."""


def make_keys(
    folder: Path, name: str, passphrase: str | None = None, *, node_public: str | None = None
) -> tuple[Path, SiteRequest]:
    """Make a site's node key and identity key in *folder*, and the request that the coordinator gets.

    Args:
        folder: where the keys are put.
        name: of the hospital.
        passphrase: what the private keys are encrypted under; None leaves them plain.
        node_public: public node key, one line, whose private key another user has; then none is made.

    Returns:
        The path of the request's file, and the request.

    Raises:
        FileExistsError: a key is there already; it stays as it is.
    """
    node_key = node_public or make_node_key(folder, passphrase)
    identity_file, _ = new_identity_key(passphrase)
    write_private(folder / IDENTITY_KEY, identity_file)
    identity = read_identity_key(folder / IDENTITY_KEY, lambda _: passphrase or "")
    request = SiteRequest.signed(name=name, node_key=node_key, identity=identity)
    path = folder / f"{name}.request.toml"
    write_request(path, request)
    return path, request


def make_node_key(folder: Path, passphrase: str | None = None) -> str:
    """Make a node key in *folder*. Returns its public key as one line. Raises FileExistsError."""
    node_file, node_key = new_node_key(passphrase)
    write_private(folder / NODE_KEY, node_file)
    return node_key


def read_node_public(path: Path) -> str:
    """Read a public node key from a file with its one line. Raises MembershipError with the file's path."""
    try:
        return canonical_line(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MembershipError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise MembershipError(f"{path}: is not text; it is the network user's node.pub") from error
    except NodeKeyError as error:
        raise MembershipError(f"{path}: {error}; it is the network user's node.pub") from error


def check_node_key_file(server: Server) -> None:
    """Check that the file of the node key holds one, which others cannot read. Raises ConfigurationError."""
    path = server.node_key
    try:
        public_line(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"server.node_key: {path} cannot be read ({error.strerror})") from error
    except NodeKeyError as error:
        raise ConfigurationError(f"server.node_key: {path} {error}") from error
    if path.stat().st_mode & 0o077:
        raise ConfigurationError(f"server.node_key: others may read {path}; mend it with: chmod 600 {path}")


def read_membership(
    file: SiteFile, passphrase: PassphraseOf = passphrase_of
) -> tuple[Ed25519PrivateKey, Roster]:
    """Read the site's identity key, and the roster that it joined.

    Raises:
        MembershipError: a key cannot be used, the site has joined no roster, or the roster does not have it.
        PassphraseError: the key is encrypted, and there is no passphrase.
    """
    return own_key(file, passphrase), read_joined(file)


def read_joined(file: SiteFile) -> Roster:
    """Read the roster that the site joined, and check that its own identity key stands in it, without opening it.

    Raises:
        MembershipError: as `read_membership`.
    """
    identity, root = own_identity(file), root_key(file)
    if not file.consortium.roster.exists():
        raise MembershipError(
            f"{file.consortium.roster} is not there: this site has not joined yet. Send {file.name}.request.toml to "
            "the coordinator, and join with the roster.toml that comes back: collegium-client join roster.toml"
        )
    try:
        roster = read_roster(file.consortium.roster, root)
    except ConfigurationError as error:
        raise MembershipError(f"consortium.roster: {error}") from error
    check_entry(file, roster, identity)
    return roster


def check_node_key(file: SiteFile, roster: Roster) -> None:
    """Check that the roster has the site's node key under its name, where the site has one.

    Raises:
        MembershipError: the key cannot be read, or the roster has another one.
    """
    if file.server is not None:
        path, own = file.server.node_key, own_node_key(file.server.node_key)
    elif file.agent is not None:
        path, own = file.agent.node_public, read_node_public(file.agent.node_public)
    else:
        return
    entry = roster.entry(file.name)
    if entry is None or entry.node_key != own:
        raise MembershipError(
            f'the roster has another node key under "{file.name}" than {path}: put the right key there, or ask the '
            "coordinator whose keys were admitted under this name"
        )


def join(file: SiteFile, given: Path) -> Roster:
    """Check the roster in the file *given* and make it the site's own.

    It may have the site's new keys in place of those in use: then `client.key_change` is to put them there. Where it
    says that this site was taken out, it becomes the site's own too, so that the site knows.

    Raises:
        MembershipError: it is not the consortium's, does not have this site's keys under its name, or is older
            than the roster that the site has; that one stays as it is. Or this site was taken out.
    """
    root = root_key(file)
    try:
        raw = given.read_bytes()
        roster = parse_roster(raw.decode("utf-8"), root, origin=str(given))
    except OSError as error:
        raise MembershipError(f"{given}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise MembershipError(f"{given}: is not UTF-8 text; get it from the coordinator again") from error
    except ConfigurationError as error:
        raise MembershipError(str(error)) from error
    _check_newer(file, roster, given, root)
    renewed = renewed_keys(file)
    if renewed is None or not renewed.are_in(roster):
        identity = own_identity(file)
        if roster.entry(file.name) is None and _own_revocation(file, roster, identity):
            replace_private_file(file.consortium.roster, raw)
        check_entry(file, roster, identity)
        check_node_key(file, roster)
    replace_private_file(file.consortium.roster, raw)
    return roster


def own_key(file: SiteFile, passphrase: PassphraseOf | None = None) -> Ed25519PrivateKey:
    """The site's private identity key; unless *passphrase* gives it, a person at the terminal is asked for one.

    Raises:
        MembershipError: it cannot be used.
        PassphraseError: it is encrypted, and there is no passphrase.
    """
    try:
        return read_identity_key(file.consortium.identity_key, passphrase or asked_passphrase())
    except IdentityKeyError as error:
        raise MembershipError(f"consortium.identity_key: {error}") from error


def own_identity(file: SiteFile) -> str:
    """The site's public identity key, one line; an encrypted private key is not opened. Raises MembershipError."""
    try:
        return read_identity_line(file.consortium.identity_key)
    except IdentityKeyError as error:
        raise MembershipError(f"consortium.identity_key: {error}") from error


def own_node_key(path: Path) -> str:
    """The public node key, one line, of the private one at *path*, which is not opened. Raises MembershipError."""
    try:
        return public_line(path.read_bytes())
    except OSError as error:
        raise MembershipError(f"server.node_key: {path} cannot be read ({error.strerror})") from error
    except NodeKeyError as error:
        raise MembershipError(f"server.node_key: {path} {error}") from error


def root_key(file: SiteFile) -> str:
    """The consortium's root public key that this site pinned, one line. Raises MembershipError."""
    try:
        return read_public_key(file.consortium.root)
    except IdentityKeyError as error:
        raise MembershipError(f"consortium.root: {error}; it is the coordinator's root.pub") from error


def check_entry(file: SiteFile, roster: Roster, identity: str) -> None:
    """Check that the roster has this site's identity key (one line) under its name. Raises MembershipError."""
    entry = roster.entry(file.name)
    if past := _own_revocation(file, roster, identity):
        raise MembershipError(_revoked_words(file, roster, past))
    if entry is None:
        known = ", ".join(site.name for site in roster.site) or "none"
        raise MembershipError(
            f'"{file.name}" is not in version {roster.version} of the roster (there: {known}); send '
            f"{file.name}.request.toml to the coordinator, or ask for the newest roster.toml and join with it"
        )
    if entry.identity_key != identity:
        raise MembershipError(
            f'version {roster.version} of the roster has another identity key under "{file.name}" '
            f"than {file.consortium.identity_key}: put the right key there; if it is right, somebody else was "
            "admitted under this name: tell the coordinator"
        )


def _own_revocation(file: SiteFile, roster: Roster, identity: str) -> RevokedSite | None:
    """The entry by which this site's identity key was taken out of the roster, or None."""
    mine = (past for past in roster.revoked if past.name == file.name and past.identity_key == identity)
    return next(mine, None)


def _revoked_words(file: SiteFile, roster: Roster, past: RevokedSite) -> str:
    if roster.entry(file.name) is not None:
        return (
            f'version {past.version} of the roster put other keys for "{file.name}" in place of this site\'s '
            f"({past.fingerprint}), which can never be used again: join again, which puts the new keys there. If this "
            "hospital did not ask for that, tell the coordinator and the other hospitals by telephone"
        )
    latest = max(entry.version for entry in roster.revoked if entry.name == file.name)
    return (
        f'"{file.name}" was taken out of the consortium in version {latest} of the roster: its keys '
        f"({past.fingerprint}) are revoked and can never be admitted again. Ask the coordinator why. To come back: "
        "make new keys with `collegium-client renew-keys`, have them admitted, and join with the roster that comes back"
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
