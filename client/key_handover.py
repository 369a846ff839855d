"""Encrypted private keys of a site, handed to its processes in memory: opened, they are never on disk.

The SuperNode cannot read an encrypted key, and the agent has nobody to ask for a passphrase. The launcher opens the
keys and passes each on as an anonymous file that lives in memory only (``memfd_create``), by inheritance: the child
reads it as ``/proc/self/fd/N``. A key that is not encrypted is read from where it is.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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


@contextmanager
def handed_identity_key(path: Path, passphrase: PassphraseOf) -> Iterator[HandedKey]:
    """Open the identity key at *path* if it is encrypted; on leaving, what is in memory is gone.

    Raises:
        ConfigurationError: it cannot be read, or there is no passphrase that opens it.
    """
    if not is_encrypted(read_key_file(path)):
        yield HandedKey(path=path)
        return
    with _in_memory(path.name, key_file(read_identity_key(path, passphrase))) as handed:
        yield handed


@contextmanager
def handed_node_key(path: Path, passphrase: PassphraseOf) -> Iterator[HandedKey]:
    """The same for the node key at *path*. Raises as `handed_identity_key`."""
    raw = read_key_file(path)
    if not is_encrypted(raw):
        yield HandedKey(path=path)
        return
    try:
        opened = plain_node_key(raw, path, passphrase)
    except NodeKeyError as error:
        raise ConfigurationError(f"server.node_key: {error}") from error
    with _in_memory(path.name, opened) as handed:
        yield handed


@contextmanager
def _in_memory(name: str, content: bytes) -> Iterator[HandedKey]:
    descriptor = _memory_file(name, content)
    try:
        yield HandedKey(path=Path(f"/proc/self/fd/{descriptor}"), descriptors=(descriptor,))
    finally:
        os.close(descriptor)


def _memory_file(name: str, content: bytes) -> int:
    """A file of this user's in memory, gone with the last process that has it. Returns its descriptor."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    os.fchmod(descriptor, 0o600)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    return descriptor
