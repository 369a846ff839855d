"""A site's journal: an append-only record, hash-chained and signed, in one SQLite file with an anchor beside it.

Each entry holds the hash of the one before and is signed by the site's identity key. What that shows, and to whom:

====================================  =====================================================================
an entry changed, removed, inserted   its hash, or its neighbour's, no longer fits; nobody without the key can mend it
the end cut off, an older copy        the anchor, a signed file beside the journal, names an entry that is not there
journal and anchor both older, or     other sites hold this site's signature on a later head of the chain
all written anew with the key         (`privacy.secure_aggregation.receipts`)
====================================  =====================================================================

Every link and signature is checked when a journal is opened. From then on each entry that is read is compared with what
was checked, and entries that another process appended are checked before anybody sees them.

*Guarantee*: when `Journal.append` returns, the entry is on disk, and the anchor names it or, where the caller says that
an entry which is anchored follows before anything leaves the site, an earlier one.
"""

import fcntl
import hashlib
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

JOURNAL_NAME, ANCHOR_NAME = "journal.sqlite", "journal.anchor"
BEGINNING = bytes(32)
CREATED, NEW_KEY, RUN, SPENT = "created", "new-key", "run", "spent"
"""Kinds of entries that this room writes; `client.site_journal` names all."""

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Clock: TypeAlias = Callable[[], datetime]

_SCHEMA = """
CREATE TABLE entry (
    sequence INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL,
    previous BLOB NOT NULL, signature BLOB NOT NULL
) STRICT;
CREATE INDEX entry_kind ON entry (kind, sequence);
CREATE TRIGGER entries_stay BEFORE DELETE ON entry BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER entries_keep BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
"""
_COLUMNS = "sequence, time, kind, body, previous, signature"
_REMEDY = "put the newest backup of {name} and {anchor} back, both of one time"


class JournalError(RuntimeError):
    """The journal cannot be used; nothing may be trained until it can."""


class JournalMissing(JournalError):
    """There is no journal, or no anchor, where the site should have them."""


class JournalEdited(JournalError):
    """The journal is not what this site wrote."""


class JournalOlder(JournalError):
    """The journal ends before something that this site has written or signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry.

    Attributes:
        sequence: 1, 2, 3, …
        time: UTC, ISO 8601, by the site's own clock.
        kind: what it tells; `client.site_journal` names them.
        body: its values.
        previous: hash of the entry before, 32 bytes; zeros before the first.
        signature: of the site's identity key on the hash, 64 bytes.
    """

    sequence: int
    time: str
    kind: str
    body: Mapping[str, Json]
    previous: bytes
    signature: bytes

    @property
    def hash(self) -> bytes:
        """SHA-256, 32 bytes, of everything but the signature."""
        values = [self.sequence, self.time, self.kind, self.body, self.previous.hex()]
        return hashlib.sha256(b"collegium-journal-entry-1\n" + _canonical(values).encode("ascii")).digest()

    def is_signed(self, public_key: bytes) -> bool:
        """Whether the key, 32 bytes, signed this entry."""
        return _verifies(public_key, self.signature, _statement(self.hash))

    def to_json(self) -> dict[str, Json]:
        """For exports; `from_json` reads it."""
        return {
            "sequence": self.sequence,
            "time": self.time,
            "kind": self.kind,
            "body": dict(self.body),
            "previous": self.previous.hex(),
            "signature": self.signature.hex(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Json]) -> "Entry":
        """Raises JournalEdited where *values* are no entry."""
        try:
            sequence, time, kind, body = (values[name] for name in ("sequence", "time", "kind", "body"))
            previous, signature = (bytes.fromhex(str(values[name])) for name in ("previous", "signature"))
        except (KeyError, ValueError) as error:
            raise JournalEdited("the export holds something that is no entry") from error
        if not (isinstance(sequence, int) and isinstance(body, dict)) or len(signature) != 64:
            raise JournalEdited("the export holds something that is no entry")
        return cls(
            sequence=sequence,
            time=str(time),
            kind=str(kind),
            body=body,
            previous=previous,
            signature=signature,
        )


class Journal:
    """An existing journal, checked when it is opened.

    Args:
        folder: holds the journal and its anchor.
        public_key: 32 bytes, the site's identity key as it is now.
        identity: the private key; without it nothing can be appended.
        clock: tells the time of entries.

    Raises:
        JournalMissing, JournalEdited, JournalOlder: the message says what to do.
    """

    def __init__(
        self,
        folder: Path,
        *,
        public_key: bytes,
        identity: Ed25519PrivateKey | None = None,
        clock: Clock = lambda: datetime.now(UTC),
    ) -> None:
        self._path, self._anchor = folder / JOURNAL_NAME, folder / ANCHOR_NAME
        self._identity, self._clock = identity, clock
        self._turn, self._depth = threading.RLock(), 0
        with self.exclusive():
            entries = self._checked()
            if keys_of(entries)[-1] != public_key:
                raise JournalEdited(
                    f"{self._path} was written with another identity key than this site has; put the right key back, "
                    "or the journal that belongs to it"
                )
            self._key = public_key
            self._known: list[tuple[str, bytes]] = [(entry.kind, entry.hash) for entry in entries]
            if identity is not None:
                self._write_anchor(identity)

    @property
    def path(self) -> Path:
        """Of the SQLite file."""
        return self._path

    @property
    def head(self) -> bytes:
        """Hash of the last entry, 32 bytes: it stands for the whole journal."""
        return self._known[-1][1]

    def append(self, kind: str, body: Mapping[str, Json], *, anchored: bool = True) -> Entry:
        """Write an entry, durably.

        Args:
            kind: what it tells.
            body: its values.
            anchored: whether the anchor names it at once. If not, the next entry's anchor vouches for it: only for
                entries after which nothing is spent, and nothing leaves, before another one is anchored.

        Raises:
            JournalMissing, JournalEdited, JournalOlder: the file is not the one that was opened.
            JournalError: it cannot be written; the message says whether the entry counts.
            OSError: the folder cannot be locked; nothing was written.
        """
        signer = self._writer()
        return self._append(signer, ((kind, body),), anchor_by=signer if anchored else None)[-1]

    def append_together(self, *entries: tuple[str, Mapping[str, Json]]) -> tuple[Entry, ...]:
        """Write several entries, kind and body of each, durably and all or none. Raises as `append`."""
        signer = self._writer()
        return self._append(signer, entries, anchor_by=signer)

    def _writer(self) -> Ed25519PrivateKey:
        if self._identity is None:
            raise JournalError("this journal was opened for reading")
        return self._identity

    def renew_key(self, identity: Ed25519PrivateKey, *, endorsed: bool) -> None:
        """Go on under a new identity key.

        Args:
            identity: the new private key.
            endorsed: whether the old key signs the change. Where it was lost the new one does, and the journal says so.

        Raises:
            JournalError: as `append`.
        """
        signer = self._identity if endorsed else identity
        if signer is None:
            raise JournalError("this journal was opened for reading")
        public_key = identity.public_key().public_bytes_raw()
        with self.exclusive(), self._connection() as connection:
            self._catch_up(connection)
            accepted = identity.sign(_takes_over(self.head, public_key)).hex()
            body: dict[str, Json] = {
                "identity": public_key.hex(),
                "endorsed": endorsed,
                "accepted": accepted,
            }
            self._append(signer, ((NEW_KEY, body),), anchor_by=identity)
            self._identity, self._key = identity, public_key

    def _append(
        self,
        signer: Ed25519PrivateKey,
        entries: tuple[tuple[str, Mapping[str, Json]], ...],
        *,
        anchor_by: Ed25519PrivateKey | None,
    ) -> tuple[Entry, ...]:
        with self.exclusive(), self._connection() as connection:
            self._catch_up(connection)
            time = self._clock().astimezone(UTC).isoformat(timespec="milliseconds")
            written: list[Entry] = []
            for number, (kind, body) in enumerate(entries, start=len(self._known) + 1):
                previous = written[-1].hash if written else self.head
                written.append(_signed(signer, number, time, kind, body, previous))
            with _written(connection, self._path):
                for entry in written:
                    _insert(connection, entry)
            self._known += [(entry.kind, entry.hash) for entry in written]
            try:
                if anchor_by is not None:
                    self._write_anchor(anchor_by)
            except OSError as error:
                kinds = ", ".join(entry.kind for entry in written)
                raise JournalError(
                    f"{self._anchor} cannot be written ({error.strerror}); look for a full disk. The entry itself "
                    f"({kinds}) is written and counts"
                ) from error
        return tuple(written)

    def entries(self, *kinds: str, after: int = 0) -> tuple[Entry, ...]:
        """All entries in order, or those of some *kinds*, with a sequence above *after*.

        Raises:
            JournalMissing, JournalEdited, JournalOlder: what stands on disk is not what was checked.
        """
        with self.exclusive(), self._connection() as connection:
            self._catch_up(connection)
            found = _rows(connection, after, kinds)
        expected = [
            (number, known)
            for number, (kind, known) in enumerate(self._known, start=1)
            if number > after and (not kinds or kind in kinds)
        ]
        if [(entry.sequence, entry.hash) for entry in found] != expected:
            raise JournalEdited(_edited(self._path, "entries were changed or taken out while the site ran"))
        return found

    def holds(self, head: bytes) -> bool:
        """Whether an entry of this journal has that hash."""
        return any(known == head for _, known in self._known)

    def verify(self) -> tuple[Entry, ...]:
        """Check every link, every signature and the anchor again; return all entries. Raises like opening it."""
        with self.exclusive():
            entries = self._checked()
            if len(entries) < len(self._known) or entries[len(self._known) - 1].hash != self.head:
                raise JournalOlder(
                    f"{self._path} does not go on from where it was when this command began; "
                    + _REMEDY.format(name=self._path.name, anchor=self._anchor.name)
                )
        return entries

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Nobody else appends meanwhile, in this or another process."""
        with self._turn, ExitStack() as stack:
            if self._depth == 0:
                stack.enter_context(_lock(self._path.parent))
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    def _checked(self) -> tuple[Entry, ...]:
        """All entries, with every link, every signature and the anchor checked."""
        with self._connection() as connection:
            entries = _rows(connection, 0, ())
        check_chain(entries, origin=str(self._path))
        check_signatures(entries, origin=str(self._path))
        self._check_anchor(entries)
        return entries

    def _check_anchor(self, entries: tuple[Entry, ...]) -> None:
        remedy = _REMEDY.format(name=self._path.name, anchor=self._anchor.name)
        try:
            values = json.loads(self._anchor.read_text(encoding="ascii"))
            number, found = int(values["sequence"]), bytes.fromhex(values["hash"])
            signature = bytes.fromhex(values["signature"])
        except FileNotFoundError as error:
            raise JournalMissing(
                f"{self._anchor} is not there: without it nobody can tell whether the journal was cut off; {remedy}"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise JournalEdited(f"{self._anchor} cannot be read as the journal's anchor; {remedy}") from error
        if not any(_verifies(key, signature, _anchored(number, found)) for key in keys_of(entries)):
            raise JournalEdited(_edited(self._anchor, "it is not signed by this site"))
        if number > len(entries):
            raise JournalOlder(
                f"{self._path} ends at entry {len(entries)}, but this site wrote {number}: it is an older copy, or its "
                f"end was cut off, and what patients have spent since then is not in it; {remedy}"
            )
        if number < 1 or entries[number - 1].hash != found:
            raise JournalEdited(_edited(self._path, f"entry {number} is not the one that its anchor names"))

    def _write_anchor(self, signer: Ed25519PrivateKey) -> None:
        _replace(self._anchor, _anchor_text(signer, len(self._known), self.head))

    def _catch_up(self, connection: sqlite3.Connection) -> None:
        """Take over what another process of this site appended; refuse a file that does not continue ours."""
        number = len(self._known)
        later = _rows(connection, number - 1, ())
        if not later:
            raise JournalOlder(
                f"{self._path} was put back to an older state while the site ran, or its end was cut off; "
                + _REMEDY.format(name=self._path.name, anchor=self._anchor.name)
            )
        if later[0].hash != self.head:
            raise JournalEdited(_edited(self._path, f"entry {number} changed while the site ran"))
        if len(later) == 1:
            return
        check_chain(later, origin=str(self._path), first=number, previous=later[0].previous)
        self._key = check_signatures(later[1:], origin=str(self._path), key=self._key)
        self._known += [(entry.kind, entry.hash) for entry in later[1:]]

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        if not self._path.exists():
            raise JournalMissing(
                f"{self._path} is not there, and it is the only record of what patients have spent: "
                + _REMEDY.format(name=self._path.name, anchor=self._anchor.name)
                + ". If it is lost for good: collegium-client journal replace"
            )
        try:
            connection = _connect(self._path)
        except sqlite3.Error as error:
            raise JournalEdited(_edited(self._path, f"it does not open ({error})")) from error
        try:
            yield connection
        except sqlite3.DatabaseError as error:
            raise JournalEdited(_edited(self._path, f"it is not readable ({error})")) from error
        finally:
            connection.close()


def create_journal(
    folder: Path,
    identity: Ed25519PrivateKey,
    *,
    site: str,
    details: Mapping[str, Json] = MappingProxyType({}),
    after_loss: str | None = None,
    clock: Clock = lambda: datetime.now(UTC),
) -> Journal:
    """Make a site's journal with its first entry, mode 0600.

    Args:
        folder: where it will lie.
        identity: the site's identity key.
        site: its name.
        details: what else the first entry says.
        after_loss: why an earlier journal is not continued; what was spent before is then not known.
        clock: tells the time of entries.

    Raises:
        FileExistsError: there is a journal, or an anchor, already.
    """
    path, anchor = folder / JOURNAL_NAME, folder / ANCHOR_NAME
    if anchor.exists():
        raise FileExistsError(f"{anchor} is there already")
    public_key = identity.public_key().public_bytes_raw()
    body: dict[str, Json] = {
        "site": site,
        "identity": public_key.hex(),
        "nonce": secrets.token_hex(32),  # keeps the hashes of later entries from being guessed
        "after_loss": after_loss,
        **details,
    }
    time = clock().astimezone(UTC).isoformat(timespec="milliseconds")
    with _lock(folder):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        connection = _connect(path)
        try:
            connection.executescript(_SCHEMA)
            with _written(connection, path):
                entry = _signed(identity, 1, time, CREATED, body, BEGINNING)
                _insert(connection, entry)
        finally:
            connection.close()
        _replace(anchor, _anchor_text(identity, 1, entry.hash))
    return Journal(folder, public_key=public_key, identity=identity, clock=clock)


def check_chain(
    entries: tuple[Entry, ...], *, origin: str, first: int = 1, previous: bytes = BEGINNING
) -> None:
    """Check that each entry follows from the one before. Raises JournalEdited, or JournalMissing."""
    if not entries:
        raise JournalMissing(f"{origin} holds no entry; put the newest backup back")
    for number, entry in enumerate(entries, start=first):
        if entry.sequence != number:
            raise JournalEdited(_edited(origin, f"entry {number} is missing"))
        if entry.previous != previous:
            raise JournalEdited(
                _edited(origin, f"entry {max(number - 1, 1)} was changed, or one was put in after it")
            )
        previous = entry.hash
    if any((entry.kind == CREATED) != (entry.sequence == 1) for entry in entries):
        raise JournalEdited(
            _edited(origin, "its first entry, and no other, is that of a journal's beginning")
        )


def keys_of(entries: tuple[Entry, ...]) -> tuple[bytes, ...]:
    """The identity keys, 32 bytes each, with which a journal was written, in order."""
    try:
        return tuple(
            bytes.fromhex(str(entry.body["identity"]))
            for entry in entries
            if entry.kind in (CREATED, NEW_KEY)
        )
    except (KeyError, ValueError) as error:
        raise JournalEdited("the journal names a key that is none") from error


def check_signatures(entries: tuple[Entry, ...], *, origin: str, key: bytes | None = None) -> bytes:
    """Check every signature, by the key that was the site's at that entry.

    An entry that names a new key is signed by the one before, or, where that was lost, by the new one and says so. In
    both cases the new key has signed that it takes this very journal over.

    Args:
        entries: a chain that was checked.
        origin: names it in messages.
        key: the site's when they begin; None for a whole journal, which says it itself.

    Returns:
        The site's key after the last entry.

    Raises:
        JournalEdited: by the first entry that is not signed as it has to be.
    """
    current = keys_of(entries[:1])[0] if key is None else key
    for entry in entries:
        signer = current
        if entry.kind == NEW_KEY:
            current = keys_of((entry,))[0]
            signer = signer if entry.body.get("endorsed") is True else current
            accepted = _bytes_of(entry.body.get("accepted"))
            if not _verifies(current, accepted, _takes_over(entry.previous, current)):
                raise JournalEdited(
                    _edited(origin, f"the new key of entry {entry.sequence} has not taken it over")
                )
        if not entry.is_signed(signer):
            raise JournalEdited(_edited(origin, f"entry {entry.sequence} is not signed by this site"))
    return current


def _bytes_of(value: Json) -> bytes:
    try:
        return bytes.fromhex(str(value))
    except ValueError:
        return b""


def _verifies(public_key: bytes, signature: bytes, statement: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, statement)
    except (InvalidSignature, ValueError):
        return False
    return True


def _takes_over(head: bytes, public_key: bytes) -> bytes:
    return b"collegium-journal-new-key-1\n" + head + public_key


def _anchored(number: int, found: bytes) -> bytes:
    return b"collegium-journal-anchor-1\n" + number.to_bytes(8, "big") + found


def _anchor_text(signer: Ed25519PrivateKey, number: int, found: bytes) -> bytes:
    signature = signer.sign(_anchored(number, found)).hex()
    return json.dumps({"sequence": number, "hash": found.hex(), "signature": signature}).encode("ascii")


def _rows(connection: sqlite3.Connection, after: int, kinds: tuple[str, ...]) -> tuple[Entry, ...]:
    chosen = f" AND kind IN ({', '.join('?' * len(kinds))})" if kinds else ""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM entry WHERE sequence > ?{chosen} ORDER BY sequence",  # noqa: S608 - no value in it
        (after, *kinds),
    ).fetchall()
    return tuple(_entry(row) for row in rows)


def _edited(origin: Path | str, what: str) -> str:
    return (
        f"{origin} was damaged, or changed by somebody else than this site: {what}. Find out which, and put the "
        f"newest backup of {JOURNAL_NAME} and {ANCHOR_NAME} back, both of one time"
    )


def _canonical(values: Mapping[str, Json] | list[object]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _statement(found: bytes) -> bytes:
    return b"collegium-journal-signature-1\n" + found


def _signed(  # noqa: PLR0917 - the columns in their order
    identity: Ed25519PrivateKey, number: int, time: str, kind: str, body: Mapping[str, Json], previous: bytes
) -> Entry:
    body = json.loads(_canonical(body))  # what is signed is what will be read again
    bare = Entry(sequence=number, time=time, kind=kind, body=body, previous=previous, signature=b"")
    return Entry(
        sequence=number,
        time=time,
        kind=kind,
        body=body,
        previous=previous,
        signature=identity.sign(_statement(bare.hash)),
    )


def _entry(row: tuple[int, str, str, str, bytes, bytes]) -> Entry:
    sequence, time, kind, body, previous, signature = row
    try:
        values = json.loads(body)
    except ValueError as error:
        raise JournalEdited(f"entry {sequence} of the journal is not readable") from error
    return Entry(sequence=sequence, time=time, kind=kind, body=values, previous=previous, signature=signature)


def _insert(connection: sqlite3.Connection, entry: Entry) -> None:
    connection.execute(
        f"INSERT INTO entry ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608 - no value in it
        (entry.sequence, entry.time, entry.kind, _canonical(entry.body), entry.previous, entry.signature),
    )


def _connect(path: Path) -> sqlite3.Connection:
    """One file, no write-ahead log beside it: a copy of the file is a copy of the journal."""
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=30.0
    )
    connection.execute("PRAGMA journal_mode = TRUNCATE")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


@contextmanager
def _written(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    """One transaction, durable at its end."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except sqlite3.OperationalError as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise JournalError(
            f"{path} cannot be written ({error}); look for a full disk or wrong permissions"
        ) from error


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, content: bytes) -> None:
    """Put *content* at *path*, mode 0600, whole or not at all, durably."""
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
