"""Receipts that hospitals keep of each other, and what they say about a journal."""

import json
from collections.abc import Iterable
from pathlib import Path

from client.site_journal import RECEIPTS
from privacy.journal import Entry, JournalOlder, keys_of
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


def check_receipts(entries: tuple[Entry, ...], receipts: Iterable[Receipt], *, site: str, origin: str) -> int:
    """Check that a journal holds the head of every receipt that its site signed.

    Args:
        entries: of the journal; its chain and signatures are checked.
        receipts: of whatever sites.
        site: name of the journal's.
        origin: names the journal in messages.

    Returns:
        How many of the receipts the site signed.

    Raises:
        JournalOlder: a head is not in the journal: it was put back to an older copy, or written anew.
    """
    keys, heads = keys_of(entries), {entry.hash for entry in entries}
    about = [one for one in receipts if one.site == site and any(one.is_signed(key) for key in keys)]
    missing = [one for one in about if one.journal_head not in heads]
    if missing:
        first = missing[0]
        raise JournalOlder(
            f'{origin}: "{site}" signed in round {first.round} of run {first.run_id} for a journal that this is not: '
            f"it is an older copy, or was written anew ({len(missing)} of {len(about)} receipts "
            "are about entries that it does not hold)"
        )
    return len(about)
