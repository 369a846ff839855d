"""The consortium's root private key, which is at hand only when something is signed."""

from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.server_file import ServerFile
from shared_models.configuration import ConfigurationError
from shared_models.identity_keys import IdentityKeyError, identity_line, read_identity_key, read_public_key
from shared_models.passphrase import asked_passphrase

RootKeyOption = Annotated[
    Path | None, typer.Option(help="The root's private key; root.key beside server.toml if not given.")
]


def root_private(server: ServerFile, config: Path, root_key: Path | None) -> Ed25519PrivateKey:
    """The private key that belongs to the server's root.pub: at *root_key*, or beside *config*.

    Raises:
        ConfigurationError: it is not there, or is another key.
    """
    path = root_key or config.resolve().parent / "root.key"
    try:
        private = read_identity_key(path, asked_passphrase())
    except IdentityKeyError as error:
        raise ConfigurationError(
            f"the root key: {error}. If you keep it elsewhere, say where with --root-key"
        ) from error
    if identity_line(private) != read_public_key(server.root):
        raise ConfigurationError(
            f"{path} is not the private key of {server.root}; say with --root-key where the consortium's is"
        )
    return private
