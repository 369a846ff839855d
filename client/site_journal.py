"""The journal of a site: where it lies, and what its entries are called.

=============  ==========================================================================================
kind           what happened
=============  ==========================================================================================
created        the journal began
new-key        the site's identity key was replaced
approval       somebody at the hospital approved or refused a study, or took an approval back
request        a request came in
refused        it was refused, with the reason
run            a run was opened: what each of its steps costs, and its noised count (`privacy.ledger`)
spent          a round was charged, before its training
released       an answer left the site: kind, bytes and hash
receipts       what the other sites signed in a round
withdrawn      a patient withdrew, by pseudonym
forgiven       a head of the lost journal, in a journal that was begun after a loss
=============  ==========================================================================================
"""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.membership import own_identity, own_key
from client.secret import SECRET_NAME, SecretError, SiteSecret
from client.site_file import SiteFile
from privacy.journal import CREATED, NEW_KEY, RUN, SPENT, Journal, Json, create_journal
from privacy.secure_aggregation.receipts import Receipt
from shared_models.identity_keys import public_bytes
from shared_models.messages import Confirm, Evaluate, Request, Train, Unmask
from shared_models.processes import private_folder

APPROVAL, REQUEST, REFUSED, RELEASED = "approval", "request", "refused", "released"
RECEIPTS, WITHDRAWN = "receipts", "withdrawn"
FORGIVEN = "forgiven"
KINDS = (
    CREATED,
    NEW_KEY,
    APPROVAL,
    REQUEST,
    REFUSED,
    RUN,
    SPENT,
    RELEASED,
    RECEIPTS,
    WITHDRAWN,
    FORGIVEN,
)
SECRET = "secret"  # noqa: S105 - the name of a value that commits to it


def make_journal(file: SiteFile, identity: Ed25519PrivateKey, *, after_loss: str | None = None) -> Journal:
    """Make the journal of a new site, and its secret where there is none. Raises FileExistsError."""
    secret = SiteSecret.create(private_folder(file.state))
    details = {SECRET: secret.commitment}
    return create_journal(file.state, identity, site=file.name, details=details, after_loss=after_loss)


def check_secret(journal: Journal, secret: SiteSecret) -> None:
    """Check that the secret is the one with which the journal's pseudonyms were made.

    Raises:
        SecretError: it is another: who withdrew could not be recognised.
    """
    expected = journal.entries(CREATED)[0].body.get(SECRET)
    if expected is not None and expected != secret.commitment:
        raise SecretError(
            f"{journal.path.with_name(SECRET_NAME)}: is another secret than the one that this site began with. "
            "Put the right one back from a backup: with this one every patient has another pseudonym and role, and who "
            "withdrew is in again"
        )


def open_journal(file: SiteFile, identity: Ed25519PrivateKey | None = None) -> Journal:
    """Open and check the site's journal, to append to it.

    Raises:
        JournalError: it is missing, older than it should be, or not what the site wrote.
        MembershipError: the identity key cannot be read.
    """
    identity = identity or own_key(file)
    return Journal(file.state, public_key=identity.public_key().public_bytes_raw(), identity=identity)


def read_journal(file: SiteFile) -> Journal:
    """Open and check the site's journal; nothing is written, not even the anchor, and no private key is opened.

    Raises:
        JournalError: as `open_journal`.
        MembershipError: the identity key's file cannot be read.
    """
    return Journal(file.state, public_key=public_bytes(own_identity(file)))


class Record:
    """Writes down what the site is asked and what it does.

    A request is on disk at once; the anchor tells of it with the next charge, refusal or release, before which nothing
    leaves. What the others signed is written together with the release that follows.

    Args:
        journal: the site's.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._received: list[tuple[str, dict[str, Json]]] = []

    def request(self, request: Request | None, *, digest: bytes, num_bytes: int) -> int:
        """A request came in; None is one that cannot be read. Returns the entry's number."""
        body = {"bytes": num_bytes, "sha256": digest.hex(), **_about(request)}
        return self._journal.append(REQUEST, body, anchored=False).sequence

    def refused(self, number: int, request: Request | None, *, reason: str, detail: str) -> None:
        """Request *number* was refused; *detail* stays at the site."""
        body = {"request": number, **_about(request), "reason": reason, "detail": detail}
        self._journal.append(REFUSED, body)

    def released(self, number: int, request: Request, *, digest: bytes, num_bytes: int, again: bool) -> None:
        """An answer to request *number* leaves; *again*: the stored one, to the identical request."""
        body = {
            "request": number,
            **_about(request),
            "bytes": num_bytes,
            "sha256": digest.hex(),
            "again": again,
        }
        if self._received:
            self._journal.append_together(*self._received, (RELEASED, body))
            self._received = []
        else:
            self._journal.append(RELEASED, body)

    def receipts(self, receipts: tuple[Receipt, ...]) -> None:
        """What the other sites signed in a round: written with the release that follows."""
        self._received.append((RECEIPTS, {"receipts": [dict(receipt.to_json()) for receipt in receipts]}))


def _about(request: Request | None) -> dict[str, str | int | None]:
    if request is None:
        return {"asked": "unreadable", "run_id": None, "study_hash": None, "round": None}
    number = request.round if isinstance(request, Train | Evaluate | Confirm | Unmask) else None
    return {
        "asked": request.kind,
        "run_id": request.run_id,
        "study_hash": request.study_hash,
        "round": number,
    }
