"""New keys of a site that wait beside the old ones, until the roster has them."""

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.site_file import SiteFile
from shared_models.configuration import ConfigurationError
from shared_models.identity_keys import (
    IdentityKeyError,
    new_identity_key,
    read_identity_key,
    read_identity_line,
)
from shared_models.key_files import is_encrypted, read_key_file
from shared_models.node_keys import NodeKeyError, canonical_line, new_node_key, public_line
from shared_models.passphrase import PassphraseOf, passphrase_of
from shared_models.processes import write_private
from shared_models.roster import Roster
from shared_models.site_request import SiteRequest, write_request

NEW = ".new"


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewedKeys:
    """Public lines of the new keys, and which file is to take which other's place."""

    name: str
    node_key: str
    identity_key: str
    moves: tuple[tuple[Path, Path], ...]

    def are_in(self, roster: Roster) -> bool:
        """Whether the roster has both under the site's name."""
        entry = roster.entry(self.name)
        return entry is not None and (entry.node_key, entry.identity_key) == (
            self.node_key,
            self.identity_key,
        )

    def place_of(self, current: Path) -> Path:
        """Where the key lies that is to be at *current*."""
        return next((new for new, target in self.moves if target == current), current)

    def put_in_place(self) -> None:
        """Put them in the old keys' place; the old ones are gone. Done again, it ends what was broken off."""
        for new, current in self.moves:
            new.replace(current)


def renewed_keys(file: SiteFile) -> RenewedKeys | None:
    """The new keys that wait beside the site's, or None where there are none.

    Raises:
        ConfigurationError: a key cannot be read.
    """
    node, identity = _node_file(file), file.consortium.identity_key
    if node is None:
        return None
    moves = tuple((_new(path), path) for path in (node, identity) if _new(path).exists())
    if not moves:
        return None
    present = {current: new for new, current in moves}  # one alone where this was broken off
    node_path = present.get(node, node)
    try:
        node_key = _node_line(file, node_path)
    except NodeKeyError as error:
        raise ConfigurationError(f"{node_path} {error}; make new keys again: renew-keys --again") from error
    return RenewedKeys(
        name=file.name,
        node_key=node_key,
        identity_key=read_identity_line(present.get(identity, identity)),
        moves=moves,
    )


def renew_keys(
    file: SiteFile,
    folder: Path,
    *,
    passphrase: PassphraseOf = passphrase_of,
    new_passphrase: str | None = None,
    signed_by_old: bool = True,
    node_public: str | None = None,
    again: bool = False,
) -> tuple[Path, SiteRequest]:
    """Make new keys beside the site's, and the request to have them take the old ones' place.

    The old keys stay in use until the site joins a roster with the new ones.

    Args:
        file: the site's file.
        folder: where the request is written.
        passphrase: opens the old identity key where it is encrypted.
        new_passphrase: what the new keys are encrypted under; None leaves them plain.
        signed_by_old: whether the old identity key signs too; the hospital has to do without where it lost it.
        node_public: the network user's new public node key, one line, where another user connects to the server.
        again: whether new keys that wait already may be lost.

    Returns:
        The path of the request's file, and the request.

    Raises:
        ConfigurationError: the site has no server, another user's new key is needed and not given, new keys wait
            already, or the old key cannot be opened.
    """
    node = _node_file(file)
    if node is None:
        raise ConfigurationError("[server] is missing; add it with address, ca_certificate and node_key")
    if (file.agent is None) != (node_public is None):
        raise ConfigurationError(
            "--node-public belongs to a site of two users ([agent] in site.toml), and there it is needed: the network "
            "user makes a new key with `collegium-client init-network` in another folder, and gives its node.pub"
        )
    paths = tuple(_new(path) for path in (node, file.consortium.identity_key))
    if (waiting := [path for path in paths if path.exists()]) and not again:
        raise ConfigurationError(
            f"{waiting[0]} is there: new keys were made already. Send their request, or make others in their place "
            "with --again; those that are there can then no longer be admitted"
        )
    previous = _old_identity(file, passphrase) if signed_by_old else None
    if node_public is not None:
        node_file, node_key = (node_public + "\n").encode("ascii"), node_public
    else:
        node_file, node_key = new_node_key(new_passphrase)
    identity_file, _ = new_identity_key(new_passphrase)
    for path, content in zip(paths, (node_file, identity_file), strict=True):
        write_private(path, content, replace=again)
    identity = read_identity_key(paths[1], lambda _: new_passphrase or "")
    request = SiteRequest.signed(name=file.name, node_key=node_key, identity=identity, previous=previous)
    path = folder / f"{file.name}.renewal.request.toml"
    write_request(path, request)
    return path, request


def has_encrypted_identity(file: SiteFile) -> bool:
    """Whether the site's identity key is encrypted under a passphrase. Raises ConfigurationError."""
    return is_encrypted(read_key_file(file.consortium.identity_key))


def _old_identity(file: SiteFile, passphrase: PassphraseOf) -> Ed25519PrivateKey:
    try:
        return read_identity_key(file.consortium.identity_key, passphrase)
    except IdentityKeyError as error:
        raise ConfigurationError(
            f"the old key: {error}. If it or its passphrase is lost, say --without-old-key"
        ) from error


def _node_file(file: SiteFile) -> Path | None:
    """The node key's own file; of a site of two users, the copy of the other user's public key."""
    if file.server is not None:
        return file.server.node_key
    return file.agent.node_public if file.agent is not None else None


def _node_line(file: SiteFile, path: Path) -> str:
    if file.server is not None:
        return public_line(read_key_file(path))
    return canonical_line(path.read_text(encoding="utf-8"))


def _new(path: Path) -> Path:
    return path.with_name(path.name + NEW)
