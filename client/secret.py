"""The site's secret, and what is derived from it: pseudonyms and uniform draws, both by keyed hash."""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from client.private_file import create_private_file

NUM_SECRET_BYTES = 32
NUM_PSEUDONYM_DIGITS = 32
SECRET_NAME = "site.secret"  # noqa: S105 - the file's name, not its content

_LOST = (
    "Put it back from a backup: with a new secret every patient gets another pseudonym and role, who withdrew is in "
    "again, and what patients have spent is no longer known"
)


class SecretError(Exception):
    """The site's secret cannot be used. The message says why and what to do; it never holds the secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSecret:
    """The key behind every pseudonym of one site. It never leaves the site and is never shown."""

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) != NUM_SECRET_BYTES:
            raise ValueError(f"key has {len(self.key)} bytes; must be {NUM_SECRET_BYTES}")

    def pseudonym(self, kind: str, identifier: str) -> str:
        """Return what stands for *identifier* in everything the site writes.

        Guarantees: the same at one site for ever; without the secret, neither the identifier nor whether
        two sites mean the same one can be told.

        Args:
            kind: what is named, such as ``patient`` or ``study``; equal identifiers of two kinds differ.
            identifier: the identifier as the hospital knows it.

        Returns:
            32 hexadecimal digits (128 bits).

        Source:
            HMAC, RFC 2104, with SHA-256, truncated as in its section 5.
        """
        return self._digest("pseudonym", kind, identifier).hex()[:NUM_PSEUDONYM_DIGITS]

    def uniform(self, kind: str, identifier: str) -> float:
        """Return a number in [0, 1), a multiple of 2^-53, fixed by secret, *kind* and *identifier* alone."""
        return (int.from_bytes(self._digest("uniform", kind, identifier)[:8], "big") >> 11) * 2.0**-53

    @classmethod
    def create(
        cls, state: Path, *, random_bytes: Callable[[int], bytes] = secrets.token_bytes
    ) -> "SiteSecret":
        """Make the secret of a new site, unless it is there already, and return it.

        Args:
            state: the site's state folder; created (0700) where it is missing.
            random_bytes: source of a new secret; the operating system's unless a test says otherwise.

        Raises:
            SecretError: as `load`.
        """
        create_private_file(state / SECRET_NAME, random_bytes(NUM_SECRET_BYTES))
        return cls.load(state)

    @classmethod
    def load(cls, state: Path) -> "SiteSecret":
        """Return the secret in the site's state folder.

        Raises:
            SecretError: it is not there, has the wrong size, or others may read it.
        """
        path = state / SECRET_NAME
        if not path.exists():
            raise SecretError(f"{path}: is not there. {_LOST}")
        if mode := path.stat().st_mode & 0o077:
            raise SecretError(
                f"{path}: may be read or written by other users (mode bits {mode:03o}). Whoever has it can undo "
                "the pseudonyms: find out who could read it, then run chmod 600 on it"
            )
        key = path.read_bytes()
        if len(key) != NUM_SECRET_BYTES:
            raise SecretError(f"{path}: holds {len(key)} bytes, must be {NUM_SECRET_BYTES}. {_LOST}")
        return cls(key=key)

    @property
    def commitment(self) -> str:
        """What stands for the secret where another one must be noticed; it tells nothing about the secret."""
        return self._digest("commitment", "site", "secret").hex()

    def _digest(self, purpose: str, kind: str, identifier: str) -> bytes:
        parts = (purpose.encode(), kind.encode(), identifier.encode("utf-8", "surrogateescape"))
        message = b"collegium-1" + b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hmac.digest(self.key, message, hashlib.sha256)
