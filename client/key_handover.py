"""Encrypted private keys of a site, handed to its processes in memory: opened, they are never on disk.

The SuperNode cannot read an encrypted key, and the agent has nobody to ask for a passphrase. The launcher opens both
keys and passes each on as an anonymous file that lives in memory only (``memfd_create``), by inheritance: the child
reads it as ``/proc/self/fd/N``. A key that is not encrypted is read from where it is.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from client.site_file import Server, SiteFile
from shared_models.configuration import ConfigurationError
from shared_models.identity_keys import read_identity_key
from shared_models.key_files import is_encrypted, key_file, read_key_file
from shared_models.node_keys import NodeKeyError, plain_node_key
from shared_models.passphrase import PassphraseOf


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedKey:
    """Where a child process reads a key, and the descriptors that it inherits for that."""

    path: Path
    descriptors: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedKeys:
    """Where the SuperNode reads the node key, and the agent the identity key."""

    node: HandedKey
    identity: HandedKey


@contextmanager
def handed_keys(file: SiteFile, server: Server, passphrase: PassphraseOf) -> Iterator[HandedKeys]:
    """Open the site's keys where they are encrypted; on leaving, what is in memory is gone.

    Raises:
        ConfigurationError: a key cannot be read, or there is no passphrase that opens it.
    """
    held: list[int] = []

    def handed(path: Path, opened: bytes) -> HandedKey:
        held.append(_memory_file(path.name, opened))
        return HandedKey(path=Path(f"/proc/self/fd/{held[-1]}"), descriptors=(held[-1],))

    identity, node = file.consortium.identity_key, server.node_key
    keys = HandedKeys(node=HandedKey(path=node), identity=HandedKey(path=identity))
    try:
        if is_encrypted(read_key_file(identity)):
            opened = key_file(read_identity_key(identity, passphrase))
            keys = HandedKeys(node=keys.node, identity=handed(identity, opened))
        if is_encrypted(raw := read_key_file(node)):
            try:
                opened = plain_node_key(raw, node, passphrase)
            except NodeKeyError as error:
                raise ConfigurationError(f"server.node_key: {error}") from error
            keys = HandedKeys(node=handed(node, opened), identity=keys.identity)
        yield keys
    finally:
        for descriptor in held:
            os.close(descriptor)


def _memory_file(name: str, content: bytes) -> int:
    """A file of this user's in memory, gone with the last process that has it. Returns its descriptor."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    os.fchmod(descriptor, 0o600)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    return descriptor
