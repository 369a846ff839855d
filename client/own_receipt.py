"""What the site itself signed last, as the server gives it back: its journal must hold that.

A site whose state folder was put back to an older copy cannot tell by its own files, for they agree with each other.
Its own signature on a later head of its journal tells it. The server only carries the receipt: it cannot forge one. A
server that withholds it takes this check away, and the receipts that other hospitals keep are left
(`collegium-client journal verify --receipts`).
"""

import logging

from client.site_journal import FORGIVEN, RELEASED
from privacy.journal import Entry, Journal, JournalOlder, keys_of
from privacy.secure_aggregation.receipts import Receipt
from privacy.secure_aggregation.refusals import Malformed

log = logging.getLogger("collegium.site")


def check_own_receipt(message: bytes, journal: Journal) -> None:
    """Check the encoded receipt *message*; an empty one, or one that this site did not sign, says nothing.

    Raises:
        JournalOlder: this site signed for a journal that went further than this one does.
    """
    if not message:
        return
    try:
        receipt = Receipt.from_bytes(message)
    except Malformed as error:
        log.warning("the server gave back something that is no receipt: %s", error)
        return
    entries = journal.entries()
    if not any(receipt.is_signed(key) for key in keys_of(entries)):
        log.warning("the server gave back a receipt that this site did not sign")
        return
    if journal.holds(receipt.journal_head) or receipt.journal_head.hex() in _forgiven(entries):
        return
    if _begun_after_loss(entries):
        journal.append(FORGIVEN, {"journal_head": receipt.journal_head.hex()})
        return
    raise JournalOlder(
        f"in round {receipt.round} of run {receipt.run_id} this site signed for a journal that went further than "
        f"{journal.path} does: it is an older copy, from a backup or a restored snapshot, and what patients have spent "
        "since then is not in it. Put the newest copy back; if it is lost for good: collegium-client journal replace"
    )


def _forgiven(entries: tuple[Entry, ...]) -> set[str]:
    """Heads of the lost journal that the site was shown before."""
    return {str(entry.body["journal_head"]) for entry in entries if entry.kind == FORGIVEN}


def _begun_after_loss(entries: tuple[Entry, ...]) -> bool:
    """The hospital said itself that an earlier journal is lost, and has confirmed no round since."""
    lost = entries[0].body["after_loss"] is not None
    return lost and not any(entry.kind == RELEASED and entry.body["asked"] == "confirm" for entry in entries)
