"""Where the passphrase of a private key comes from. It is never written anywhere, and never part of a message.

Looked for in this order: the file that ``COLLEGIUM_PASSPHRASE_FILE`` names, systemd's credential
``collegium-passphrase``, ``COLLEGIUM_PASSPHRASE``. A command that a person started asks on the terminal after that.
"""

import getpass
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from shared_models.configuration import ConfigurationError
from shared_models.terminal import on_terminal

FILE = "COLLEGIUM_PASSPHRASE_FILE"
VALUE = "COLLEGIUM_PASSPHRASE"
CREDENTIALS_FOLDER = "CREDENTIALS_DIRECTORY"
CREDENTIAL = "collegium-passphrase"
VARIABLES = frozenset({FILE, VALUE, CREDENTIALS_FOLDER})
"""Variables by which a process finds the passphrase; child processes do not inherit them."""
PLACES = (
    f"the file that {FILE} names, systemd's credential {CREDENTIAL} (${CREDENTIALS_FOLDER}/{CREDENTIAL}), "
    f"or the variable {VALUE}"
)
OTHERS = 0o077
MAX_BYTES = 4096

PassphraseOf: TypeAlias = Callable[[Path], str]
"""Gives the passphrase of the private key at a path, or raises PassphraseError."""


class PassphraseError(ConfigurationError):
    """There is no passphrase, or it cannot be used. The message says where one is looked for."""


def found_passphrase() -> str | None:
    """The passphrase from one of the three places, or None where none of them is set.

    Raises:
        PassphraseError: the place that comes first cannot be read, others may read it, or it is empty.
    """
    if FILE in os.environ:
        return _from_file(Path(os.environ[FILE]), f"{FILE} = {os.environ[FILE]}", private=True)
    if folder := os.environ.get(CREDENTIALS_FOLDER):
        credential = Path(folder) / CREDENTIAL
        if credential.exists():  # systemd guards it by its folder, and may show an ACL as group bits
            return _from_file(credential, f"systemd's credential {credential}", private=False)
    if VALUE in os.environ:
        return _usable(os.environ[VALUE], VALUE)
    return None


def passphrase_of(key: Path) -> str:
    """The passphrase of *key*, from the three places only: for processes that have no person before them.

    Raises:
        PassphraseError: none of them has it.
    """
    found = found_passphrase()
    if found is None:
        raise PassphraseError(
            f"{key}: is encrypted, and its passphrase was not given. It is looked for in {PLACES}"
        )
    return found


def asked_passphrase() -> PassphraseOf:
    """What gives the passphrase from the three places, and else asks for it on the terminal, once for all keys."""
    said: list[str] = []

    def ask(key: Path) -> str:
        if not said:
            found = found_passphrase()
            if found is None and on_terminal():
                found = _usable(getpass.getpass(f"Passphrase of {key}: "), "the passphrase")
            said.append(found if found is not None else passphrase_of(key))
        return said[0]

    return ask


def new_passphrase() -> str:
    """The passphrase for keys that are about to be made: from the three places, else asked for twice.

    Raises:
        PassphraseError: there is none and no terminal, it is empty, or the second was not the first.
    """
    found = found_passphrase()
    if found is not None:
        return found
    if not on_terminal():
        raise PassphraseError(
            f"no passphrase was given, and there is no terminal. It is looked for in {PLACES}"
        )
    first = _usable(getpass.getpass("Passphrase for the new keys: "), "the passphrase")
    if getpass.getpass("The same again: ") != first:
        raise PassphraseError("the two passphrases differ; nothing was made")
    return first


def _from_file(path: Path, name: str, *, private: bool) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PassphraseError(f"{name}: cannot be read ({error.strerror})") from error
    if private and mode & OTHERS:
        raise PassphraseError(f"{name}: others may read this passphrase; mend it with: chmod 600 {path}")
    if len(raw) > MAX_BYTES:
        raise PassphraseError(f"{name}: is longer than {MAX_BYTES} bytes; it is to hold one passphrase")
    try:
        return _usable(raw.decode("utf-8").rstrip("\r\n"), name)
    except UnicodeDecodeError as error:
        raise PassphraseError(f"{name}: is not UTF-8 text") from error


def _usable(passphrase: str, name: str) -> str:
    if not passphrase.strip():
        raise PassphraseError(f"{name}: is empty; a key under an empty passphrase is as good as plain")
    return passphrase
