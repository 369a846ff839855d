"""Receipts that hospitals keep of each other, and what they say about a journal."""

import json
from collections.abc import Collection, Iterable
from pathlib import Path

from client.site_journal import RECEIPTS
from privacy.journal import Entry, JournalEdited, JournalOlder
from privacy.secure_aggregation.receipts import Receipt
from privacy.secure_aggregation.refusals import Malformed
from shared_models.configuration import ConfigurationError


def receipts_of(entries: Iterable[Entry]) -> tuple[Receipt, ...]:
    """The receipts that stand in a journal, in order."""
    found = []
    for entry in entries:
        if entry.kind == RECEIPTS:
            kept = entry.body["receipts"]
            found += (
                [Receipt.from_json(one) for one in kept if isinstance(one, dict)]
                if isinstance(kept, list)
                else []
            )
    return tuple(found)


def read_receipts(path: Path) -> tuple[Receipt, ...]:
    """Read a file that ``journal export --receipts`` wrote. Raises ConfigurationError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return tuple(Receipt.from_json(one) for one in values["receipts"])
    except (OSError, ValueError, KeyError, TypeError, Malformed) as error:
        raise ConfigurationError(
            f"{path}: is no file of receipts; the other hospital makes one with: "
            "collegium-client journal export --receipts"
        ) from error


def check_receipts(
    entries: tuple[Entry, ...],
    receipts: Iterable[Receipt],
    *,
    site: str,
    keys: Collection[bytes],
    origin: str,
) -> int:
    """Check that a journal holds the head of every receipt that a site signed.

    Args:
        entries: of the journal; its chain and signatures are checked.
        receipts: of whatever sites.
        site: name of the site whose journal this should be, as known from elsewhere than the journal.
        keys: its identity keys, now and before, likewise.
        origin: names the journal in messages.

    Returns:
        How many of the receipts the site signed; one at least.

    Raises:
        JournalOlder: a head is not in the journal: it was put back to an older copy, or written anew.
        JournalEdited: a receipt names the site, and none of its keys signed it.
        ConfigurationError: there is no receipt about the site.
    """
    heads, given = {entry.hash for entry in entries}, tuple(receipts)
    about = [one for one in given if one.site == site]
    if not about:
        others = ", ".join(sorted({one.site for one in given})) or "nobody"
        raise ConfigurationError(
            f'there is no receipt about "{site}" (there are: {others}); nothing was compared'
        )
    if any(not any(one.is_signed(key) for key in keys) for one in about):
        raise JournalEdited(
            f'{origin}: a receipt about "{site}" is signed by none of its keys: the receipt was made up, or the '
            "journal was begun anew under another key. Compare the identity key with the roster"
        )
    missing = [one for one in about if one.journal_head not in heads]
    if missing:
        first = missing[0]
        raise JournalOlder(
            f'{origin}: "{site}" signed in round {first.round} of run {first.run_id} for a journal that this is not: '
            f"it is an older copy, or was written anew ({len(missing)} of {len(about)} receipts "
            "are about entries that it does not hold)"
        )
    return len(about)
