"""Journals for tests of what is written into them."""

from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.journal import JOURNAL_NAME, Journal, create_journal

if TYPE_CHECKING:
    from privacy.ledger import Ledger

IDENTITY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def journal_in(folder: Path, identity: Ed25519PrivateKey = IDENTITY, *, site: str = "north") -> Journal:
    """The journal in *folder*, opened anew; made where there is none."""
    if not (folder / JOURNAL_NAME).exists():
        folder.mkdir(parents=True, exist_ok=True)
        return create_journal(folder, identity, site=site)
    return Journal(folder, public_key=identity.public_key().public_bytes_raw(), identity=identity)


def ledger_in(folder: Path) -> "Ledger":
    from privacy.ledger import Ledger  # takes long to import

    return Ledger(journal_in(folder))
