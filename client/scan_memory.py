"""What the site remembers of each file below its images folder, so that files that did not change are not read again.

An SQLite file, mode 0600, one for each preparation. Whatever could identify anybody is in it as a keyed hash: the
path of a file, its identifiers, its content. It is a memory and nothing more: whatever is wrong with it, it is thrown
away and made again.
"""

import json
import os
import sqlite3
import zlib
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from client.dicom_file import Unusable
from client.file_facts import HeaderFacts, PixelFacts
from client.reasons import Reason

SCHEMA = 4
SCAN_NAME = "scan.sqlite"

_REASONS = {reason.code: reason for reason in Reason}
_TABLE = "CREATE TABLE files (path BLOB PRIMARY KEY, record TEXT NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID"
_PUT = "INSERT OR REPLACE INTO files VALUES (?, ?, ?)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Why a file cannot be used.

    ``stage``: ``file`` (nothing is known of it), ``header``, ``pixels``, or ``volume``: that of its series.
    """

    stage: str
    reason: Reason
    detail: str = ""

    def raised(self) -> Unusable:
        """The same, to be raised."""
        return Unusable(self.reason, self.detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is remembered of one file.

    Attributes:
        size: of the file, in bytes.
        mtime_ns: when it was last changed, nanoseconds of the file system's clock.
        pseudonyms: of patient, study, accession number and instance, by DICOM keyword, and of the person
            (`client.person.Person.pseudonyms`); empty where the file has none.
        role_draw: the patient's number that fixes the role.
        finding: why the file cannot be used, whatever the labels say; None where nothing was found.
        content: keyed hash of its bytes; empty where its pixels were not wanted yet.
        has_window: whether it says how it is to be shown; means nothing without content.
        header_facts: JSON of `HeaderFacts`, empty where there are none.
        pixel_facts: JSON of `PixelFacts`, empty where there are none.
        volume: keyed hash of the contents of all files of its series, where a finding of stage ``volume`` and the
            facts of the pixels are those of that volume; empty where they are of the file itself.
        mask: where a study learns from masks, which one goes with the image (`client.mask_files`); empty for none.
        drawn_on: of a mask that is a DICOM SEG, pseudonyms of the images and series that it was drawn on.
    """

    size: int
    mtime_ns: int
    pseudonyms: dict[str, str] = field(default_factory=dict)
    role_draw: float = 0.0
    finding: Finding | None = None
    content: str = ""
    has_window: bool = False
    header_facts: str = ""
    pixel_facts: str = ""
    volume: str = ""
    mask: str = ""
    drawn_on: tuple[str, ...] = ()

    @property
    def header(self) -> HeaderFacts | None:
        """What the header says, as far as it may be remembered."""
        return _header_of(self.header_facts) if self.header_facts else None

    @property
    def pixels(self) -> PixelFacts | None:
        """What the stored values say."""
        return _pixels_of(self.pixel_facts) if self.pixel_facts else None

    def to_json(self) -> str:
        """Return the record as text."""
        finding = self.finding and [self.finding.stage, self.finding.reason.code, self.finding.detail]
        return json.dumps(
            [
                self.size,
                self.mtime_ns,
                self.pseudonyms,
                self.role_draw,
                finding,
                self.content,
                self.has_window,
                self.header_facts,
                self.pixel_facts,
                self.volume,
                self.mask,
                self.drawn_on,
            ]
        )

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Return the record that `to_json` wrote. Raises ValueError, LookupError or TypeError for any other text."""
        (
            size,
            mtime_ns,
            pseudonyms,
            role_draw,
            finding,
            content,
            has_window,
            header,
            pixels,
            volume,
            mask,
            drawn_on,
        ) = json.loads(text)
        if finding is not None:
            stage, code, detail = finding
            finding = Finding(stage=stage, reason=_REASONS[code], detail=detail)
        return cls(
            size=size,
            mtime_ns=mtime_ns,
            pseudonyms=pseudonyms,
            role_draw=role_draw,
            finding=finding,
            content=content,
            has_window=has_window,
            header_facts=header,
            pixel_facts=pixels,
            volume=volume,
            mask=mask,
            drawn_on=tuple(drawn_on),
        )


@lru_cache(maxsize=4096)
def _header_of(text: str) -> HeaderFacts:
    """Headers of one scanner often say the same."""
    return HeaderFacts.model_validate_json(text)


@lru_cache(maxsize=1024)
def _pixels_of(facts: str) -> PixelFacts:
    """Of a file that is on its way, which is asked for it several times."""
    return PixelFacts.model_validate_json(facts)


class ScanMemory:
    """The records of all files, by keyed hash of their path.

    Args:
        folder: where the file is; exists.
        tell: gets a sentence for the site's operator where something is wrong.

    Attributes:
        records: by keyed hash of the path, as the file had them when it was opened and as they were put since.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self._path, self._tell = folder / SCAN_NAME, tell
        self.records: dict[bytes, Record] = {}
        self._fresh: dict[bytes, Record] = {}
        self._connection: sqlite3.Connection | None = None
        try:
            self._open()
        except (sqlite3.Error, OSError, _OfAnotherVersion):
            self._throw_away()
            self._tell("What the site remembered of its files cannot be used; all files are read again.")
            try:
                self._open()
            except (sqlite3.Error, OSError) as error:
                self._give_up(error)

    def put(self, path: bytes, record: Record) -> None:
        """Remember a record; it is lost if the process ends before `commit`."""
        if self.records.get(path) != record:
            self.records[path] = self._fresh[path] = record

    def forget_all_but(self, paths: Collection[bytes]) -> None:
        """Forget the files that are not among *paths*, and commit."""
        self.commit()
        gone = [(path,) for path in self.records if path not in paths]
        for (path,) in gone:
            del self.records[path]
        if self._connection is None:
            return
        try:
            with self._connection:
                self._connection.executemany("DELETE FROM files WHERE path = ?", gone)
        except sqlite3.Error as error:
            self._give_up(error)

    def commit(self) -> None:
        """Write what was put."""
        fresh, self._fresh = self._fresh, {}
        if self._connection is None or not fresh:
            return
        rows = []
        for path, record in fresh.items():
            text = record.to_json()
            rows.append((path, text, zlib.crc32(path + text.encode())))
        try:
            with self._connection:
                self._connection.executemany(_PUT, rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file; what was not committed is lost."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> None:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = self._connection = sqlite3.connect(self._path, timeout=30.0)
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA synchronous = NORMAL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and not connection.execute("SELECT 1 FROM sqlite_master").fetchall():
            with connection:
                connection.execute(_TABLE)
                connection.execute(f"PRAGMA user_version = {SCHEMA}")
        elif version != SCHEMA:
            raise _OfAnotherVersion
        num_wrong = 0
        for path, text, checksum in connection.execute("SELECT path, record, checksum FROM files"):
            try:
                if wrong := zlib.crc32(path + text.encode()) != checksum:
                    num_wrong += wrong
                else:
                    self.records[path] = Record.from_json(text)
            except (ValueError, LookupError, TypeError, AttributeError):
                num_wrong += 1
        if num_wrong:
            self._tell(f"What the site remembered of {num_wrong} files is damaged; they are read again.")

    def _throw_away(self) -> None:
        self.close()
        self.records.clear()
        for name in (SCAN_NAME, f"{SCAN_NAME}-journal", f"{SCAN_NAME}-wal", f"{SCAN_NAME}-shm"):
            with suppress(OSError):
                self._path.with_name(name).unlink()

    def _give_up(self, error: Exception) -> None:
        self.close()
        self._tell(
            f"What is read now cannot be remembered for the next time ({type(error).__name__}: {error})."
        )


class _OfAnotherVersion(Exception):
    pass
