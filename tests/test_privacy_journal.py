"""The journal: whatever is done to the file is noticed, one test for each manipulation; what was written stays."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from journals import IDENTITY, journal_in

import privacy.journal
from privacy.journal import (
    ANCHOR_NAME,
    BEGINNING,
    JOURNAL_NAME,
    NEW_KEY,
    Entry,
    Journal,
    JournalEdited,
    JournalError,
    JournalMissing,
    JournalOlder,
    check_chain,
    check_signatures,
    create_journal,
)

NUM = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A journal of `NUM` entries and the one that it began with."""
    journal = journal_in(tmp_path)
    for number in range(NUM):
        journal.append("request", {"number": number, "text": "ε", "share": 0.25, "none": None})
    return tmp_path


def changed(folder: Path, *commands: str) -> None:
    """Whoever can write the file can take the triggers away first."""
    connection = sqlite3.connect(folder / JOURNAL_NAME)
    connection.executescript("DROP TRIGGER entries_stay; DROP TRIGGER entries_keep;" + ";".join(commands))
    connection.close()


def rows(folder: Path) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(folder / JOURNAL_NAME)
    found = connection.execute("SELECT * FROM entry ORDER BY sequence").fetchall()
    connection.close()
    return found


# What it does


def test_what_was_written_is_there_after_a_restart_in_order_and_chained(folder: Path) -> None:
    journal = journal_in(folder)
    entries = journal.verify()
    assert [entry.sequence for entry in entries] == list(range(1, NUM + 2))
    assert [entry.body["number"] for entry in entries[1:]] == list(range(NUM))
    assert entries[1].body == {"number": 0, "text": "ε", "share": 0.25, "none": None}
    assert entries[0].previous == BEGINNING
    for before, after in zip(entries, entries[1:], strict=False):
        assert after.previous == before.hash
    assert journal.head == entries[-1].hash
    assert journal.holds(entries[3].hash)
    assert not journal.holds(bytes(32))


def test_the_file_is_private_and_a_copy_of_it_is_a_copy_of_all(folder: Path) -> None:
    assert (folder / JOURNAL_NAME).stat().st_mode & 0o777 == 0o600
    assert (folder / ANCHOR_NAME).stat().st_mode & 0o777 == 0o600
    beside = [path.name for path in folder.iterdir() if path.stat().st_size > 0]
    assert sorted(beside) == [ANCHOR_NAME, JOURNAL_NAME]


def test_a_journal_is_made_once(folder: Path) -> None:
    before = (folder / JOURNAL_NAME).read_bytes()
    with pytest.raises(FileExistsError):
        create_journal(folder, IDENTITY, site="north")
    (folder / ANCHOR_NAME).unlink()
    with pytest.raises(FileExistsError):
        create_journal(folder, IDENTITY, site="north")
    assert (folder / JOURNAL_NAME).read_bytes() == before


def test_two_processes_append_to_one_chain(folder: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[2])\nfrom pathlib import Path\nfrom journals import journal_in\n"
        "journal = journal_in(Path(sys.argv[1]))\nfor number in range(25): journal.append('request', {'n': number})"
    )
    command = [sys.executable, "-c", program, str(folder), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    both = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(journal_in(folder).verify()) == NUM + 1 + 50


def test_a_journal_opened_for_reading_cannot_be_written(folder: Path) -> None:
    journal = Journal(folder, public_key=IDENTITY.public_key().public_bytes_raw())
    with pytest.raises(JournalError, match="for reading"):
        journal.append("request", {})


# What was written stays, whatever happens to the process


def test_what_append_returned_for_is_on_disk_after_kill_9(folder: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[2])\nfrom pathlib import Path\nfrom journals import journal_in\n"
        "journal = journal_in(Path(sys.argv[1]))\n"
        "while True: print(journal.append('request', {}).sequence, flush=True)"
    )
    command = [sys.executable, "-c", program, str(folder), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for pause in (0.01, 0.02, 0.05):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(pause)
        os.kill(process.pid, signal.SIGKILL)
        told = [int(line) for line in process.stdout.read().splitlines()[:-1]]
        process.stdout.close()
        process.wait()
        entries = journal_in(folder).verify()
        assert not told or len(entries) >= max(told)


def test_an_entry_of_which_the_anchor_was_not_told_counts(folder: Path) -> None:
    """The process was killed between the two."""
    anchor = (folder / ANCHOR_NAME).read_bytes()
    journal_in(folder).append("request", {"number": NUM})
    (folder / ANCHOR_NAME).write_bytes(anchor)
    assert len(journal_in(folder).verify()) == NUM + 2
    assert json.loads((folder / ANCHOR_NAME).read_text())["sequence"] == NUM + 2


def test_an_entry_that_the_anchor_is_told_of_later_is_on_disk_at_once_and_vouched_for_by_the_next(
    folder: Path,
) -> None:
    journal = journal_in(folder)
    anchor = (folder / ANCHOR_NAME).read_bytes()
    journal.append("request", {"number": NUM}, anchored=False)
    assert (folder / ANCHOR_NAME).read_bytes() == anchor
    copy = folder.parent / "as after a power failure"
    shutil.copytree(folder, copy)
    assert journal_in(copy).verify()[-1].body == {"number": NUM}

    journal.append("released", {"number": NUM})
    with sqlite3.connect(folder / JOURNAL_NAME) as connection:
        connection.execute("DROP TRIGGER entries_stay")
        connection.execute("DELETE FROM entry WHERE sequence = ?", (NUM + 2,))
    with pytest.raises(JournalError, match="missing"):
        journal_in(folder)


def test_entries_written_together_are_chained_and_anchored_and_all_or_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = journal_in(folder)
    first, second = journal.append_together(("receipts", {"number": 1}), ("released", {"number": 2}))
    assert second.previous == first.hash
    assert journal_in(folder).head == second.hash
    assert json.loads((folder / ANCHOR_NAME).read_text())["sequence"] == NUM + 3

    whole = privacy.journal._insert

    def full(connection: sqlite3.Connection, entry: Entry) -> None:
        if entry.kind == "released":
            raise sqlite3.OperationalError("database or disk is full")
        whole(connection, entry)

    monkeypatch.setattr(privacy.journal, "_insert", full)
    with pytest.raises(JournalError, match="full disk"):
        journal.append_together(("receipts", {"number": 3}), ("released", {"number": 4}))
    assert len(journal.verify()) == NUM + 3
    monkeypatch.undo()
    assert journal.append("request", {}).previous == second.hash


def test_a_disk_that_is_full_is_told_and_nothing_is_half_written(folder: Path) -> None:
    program = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv[2])\nfrom pathlib import Path\n"
        "from journals import journal_in\nfrom privacy.journal import JournalError\n"
        "journal = journal_in(Path(sys.argv[1]))\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 4096,) * 2)\n"
        "try:\n    while True: journal.append('request', {'text': 'x' * 3000})\n"
        "except JournalError as error: print(error)"
    )
    command = [sys.executable, "-c", program, str(folder), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "look for a full disk" in done.stdout
    journal = journal_in(folder)
    journal.append("request", {"number": "after"})
    assert journal.verify()[-1].body == {"number": "after"}


# Manipulations, by somebody without the identity key


@pytest.mark.parametrize(
    "command",
    [
        "UPDATE entry SET body = replace(body, '3', '4') WHERE sequence = 5",
        "UPDATE entry SET body = replace(body, '7', '9') WHERE sequence = 9",
        "UPDATE entry SET time = '2020-01-01T00:00:00.000+00:00' WHERE sequence = 3",
        "UPDATE entry SET kind = 'released' WHERE sequence = 4",
        "UPDATE entry SET previous = zeroblob(32) WHERE sequence = 4",
        "UPDATE entry SET signature = zeroblob(64) WHERE sequence = 9",
        "UPDATE entry SET body = 'no json' WHERE sequence = 4",
    ],
)
def test_an_edited_entry_is_noticed(folder: Path, command: str) -> None:
    changed(folder, command)
    with pytest.raises(JournalEdited):
        journal_in(folder)


def test_a_signature_in_the_middle_that_was_replaced_is_noticed(folder: Path) -> None:
    changed(folder, "UPDATE entry SET signature = zeroblob(64) WHERE sequence = 4")
    with pytest.raises(JournalEdited, match="entry 4 is not signed"):
        journal_in(folder)


@pytest.mark.parametrize("number", range(1, NUM + 1))
def test_a_removed_entry_is_noticed(folder: Path, number: int) -> None:
    changed(folder, f"DELETE FROM entry WHERE sequence = {number}")
    with pytest.raises(JournalEdited):
        journal_in(folder)


@pytest.mark.parametrize("number", range(1, NUM + 1))
def test_a_removed_entry_is_noticed_though_all_later_ones_were_numbered_anew(
    folder: Path, number: int
) -> None:
    changed(
        folder,
        f"DELETE FROM entry WHERE sequence = {number}",
        f"UPDATE entry SET sequence = -sequence WHERE sequence > {number}",
        "UPDATE entry SET sequence = -sequence - 1 WHERE sequence < 0",
    )
    (folder / ANCHOR_NAME).write_text(json.dumps({"sequence": NUM, "hash": rehashed(folder)[-1].hash.hex()}))
    with pytest.raises(JournalEdited):
        journal_in(folder)


def rehashed(folder: Path) -> list[Entry]:
    """The entries of the file with a chain that fits, as somebody would mend it who lacks the key."""
    entries, previous = [], BEGINNING
    for row in rows(folder):
        sequence, time_, kind, body, _, signature = row
        entry = Entry(
            sequence=int(str(sequence)),
            time=str(time_),
            kind=str(kind),
            body=json.loads(str(body)),
            previous=previous,
            signature=signature,  # type: ignore[arg-type]
        )
        entries.append(entry)
        previous = entry.hash
    return entries


def test_an_edited_journal_whose_chain_was_mended_lacks_the_signature(folder: Path) -> None:
    changed(folder, "UPDATE entry SET body = replace(body, '3', '4') WHERE sequence = 5")
    connection = sqlite3.connect(folder / JOURNAL_NAME)
    for entry in rehashed(folder):
        connection.execute(
            "UPDATE entry SET previous = ? WHERE sequence = ?", (entry.previous, entry.sequence)
        )
    connection.commit()
    connection.close()
    last = rehashed(folder)[-1]
    (folder / ANCHOR_NAME).write_text(json.dumps({"sequence": NUM + 1, "hash": last.hash.hex()}))
    with pytest.raises(JournalEdited, match="entry 5 is not signed by this site"):
        journal_in(folder)


@pytest.mark.parametrize("at", [2, 5, NUM + 1])
def test_an_inserted_entry_is_noticed(folder: Path, at: int) -> None:
    changed(
        folder,
        f"UPDATE entry SET sequence = -sequence WHERE sequence >= {at}",
        "UPDATE entry SET sequence = -sequence + 1 WHERE sequence < 0",
        f"INSERT INTO entry SELECT {at}, time, kind, body, previous, signature FROM entry WHERE sequence = {at + 1}",
    )
    with pytest.raises(JournalEdited):
        journal_in(folder)


def test_an_entry_appended_by_somebody_without_the_key_is_noticed(folder: Path) -> None:
    other = Ed25519PrivateKey.generate()
    last = journal_in(folder).verify()[-1]
    forged = replace(last, sequence=last.sequence + 1, previous=last.hash)
    signature = other.sign(b"collegium-journal-signature-1\n" + forged.hash)
    connection = sqlite3.connect(folder / JOURNAL_NAME)
    connection.execute(
        "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?)",
        (forged.sequence, forged.time, forged.kind, json.dumps(dict(forged.body)), last.hash, signature),
    )
    connection.commit()
    connection.close()
    with pytest.raises(JournalEdited, match="is not signed by this site"):
        journal_in(folder)


@pytest.mark.parametrize("num", [1, 3, NUM])
def test_a_cut_off_end_is_noticed(folder: Path, num: int) -> None:
    changed(folder, f"DELETE FROM entry WHERE sequence > {NUM + 1 - num}")
    with pytest.raises(JournalOlder, match="its end was cut off"):
        journal_in(folder)


def test_all_entries_removed_is_noticed(folder: Path) -> None:
    changed(folder, "DELETE FROM entry")
    with pytest.raises(JournalMissing, match="holds no entry"):
        journal_in(folder)


def test_a_deleted_journal_is_noticed_and_none_is_made_in_its_place(folder: Path) -> None:
    (folder / JOURNAL_NAME).unlink()
    with pytest.raises(JournalMissing, match="put the newest backup"):
        Journal(folder, public_key=IDENTITY.public_key().public_bytes_raw(), identity=IDENTITY)
    assert not (folder / JOURNAL_NAME).exists()


def test_a_deleted_or_edited_anchor_is_noticed(folder: Path) -> None:
    anchor = (folder / ANCHOR_NAME).read_text()
    (folder / ANCHOR_NAME).unlink()
    with pytest.raises(JournalMissing, match="without it nobody can tell"):
        journal_in(folder)
    for text in ("", "{}", "no json", '{"sequence": 1, "hash": "zz"}', anchor.replace(str(NUM + 1), "4")):
        (folder / ANCHOR_NAME).write_text(text)
        with pytest.raises(JournalEdited):
            journal_in(folder)
        with pytest.raises(JournalMissing):
            (folder / ANCHOR_NAME).unlink()
            journal_in(folder)


def test_an_older_copy_of_the_journal_is_noticed(folder: Path) -> None:
    shutil.copyfile(folder / JOURNAL_NAME, folder / "backup")
    journal_in(folder).append("spent", {"run_id": "run-1", "round": 1, "num_steps": 1})
    shutil.copyfile(folder / "backup", folder / JOURNAL_NAME)
    with pytest.raises(JournalOlder, match=f"ends at entry {NUM + 1}, but this site wrote {NUM + 2}"):
        journal_in(folder)


def test_another_sites_journal_is_noticed(folder: Path, tmp_path: Path) -> None:
    journal_in(tmp_path / "other", Ed25519PrivateKey.generate(), site="south")
    for name in (JOURNAL_NAME, ANCHOR_NAME):
        shutil.copyfile(tmp_path / "other" / name, folder / name)
    with pytest.raises(JournalEdited, match="another identity key"):
        journal_in(folder)


@pytest.mark.parametrize("content", [b"", b"no database", bytes(8192)])
def test_a_file_that_is_no_journal_is_noticed(folder: Path, content: bytes) -> None:
    (folder / JOURNAL_NAME).write_bytes(content)
    with pytest.raises(JournalError):
        journal_in(folder)


@pytest.mark.slow
def test_any_flipped_bit_of_the_file_changes_nothing_or_is_noticed(folder: Path) -> None:
    """A bit of an unused part of the file may change; nothing that is read from it may."""
    path = folder / JOURNAL_NAME
    whole, expected = path.read_bytes(), journal_in(folder).verify()
    anchor = (folder / ANCHOR_NAME).read_bytes()
    random_bits, noticed = random.Random(1), 0
    for _ in range(300):
        content = bytearray(whole)
        bit = random_bits.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        (folder / ANCHOR_NAME).write_bytes(anchor)
        try:
            found = journal_in(folder).verify()
        except JournalError:
            noticed += 1
        else:
            assert found == expected
    assert noticed > 30


def forged(folder: Path, entries: list[tuple[str, dict]], signer: Ed25519PrivateKey) -> None:
    """Write a journal of one's own from the first entry on, chain, signatures and anchor included."""
    (folder / "own").mkdir()
    own = create_journal(folder / "own", signer, site="north")
    for kind, body in entries:
        own.append(kind, body)
    for name in (JOURNAL_NAME, ANCHOR_NAME):
        shutil.copyfile(folder / "own" / name, folder / name)


@pytest.mark.parametrize("endorsed", [True, False])
def test_a_journal_forged_from_the_first_entry_cannot_end_under_the_sites_key(
    folder: Path, endorsed: bool
) -> None:
    """The forger knows the site's public key only, and has its own key hand over to it."""
    forger, public = Ed25519PrivateKey.generate(), IDENTITY.public_key().public_bytes_raw().hex()
    for accepted in ("", forger.sign(b"anything").hex()):
        body = {"identity": public, "endorsed": endorsed, "accepted": accepted}
        shutil.rmtree(folder / "own", ignore_errors=True)
        forged(folder, [("approval", {"verdict": "approved"}), (NEW_KEY, body)], forger)
        with pytest.raises(JournalEdited, match="has not taken it over"):
            journal_in(folder)


def test_a_second_beginning_is_noticed(folder: Path) -> None:
    journal_in(folder).append("created", {"site": "north", "identity": "00" * 32, "after_loss": None})
    with pytest.raises(JournalEdited, match="its first entry, and no other"):
        journal_in(folder)


def test_an_anchor_for_an_earlier_entry_cannot_be_made_without_the_key(folder: Path) -> None:
    changed(folder, f"DELETE FROM entry WHERE sequence > {NUM}")
    last = rehashed(folder)[-1]
    text = json.loads((folder / ANCHOR_NAME).read_text())
    (folder / ANCHOR_NAME).write_text(json.dumps({**text, "sequence": NUM, "hash": last.hash.hex()}))
    with pytest.raises(JournalEdited, match="is not signed by this site"):
        journal_in(folder)


# … while the site runs


def test_an_entry_that_somebody_without_the_key_appends_is_never_read_by_a_running_site(folder: Path) -> None:
    running = journal_in(folder)
    last = running.verify()[-1]
    planted = replace(last, sequence=last.sequence + 1, previous=last.hash, kind="approval")
    signature = Ed25519PrivateKey.generate().sign(b"collegium-journal-signature-1\n" + planted.hash)
    connection = sqlite3.connect(folder / JOURNAL_NAME)
    connection.execute(
        "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?)",
        (planted.sequence, planted.time, "approval", json.dumps(dict(planted.body)), last.hash, signature),
    )
    connection.commit()
    connection.close()
    for look in (lambda: running.entries("approval"), running.verify, lambda: running.append("request", {})):
        with pytest.raises(JournalEdited, match="is not signed by this site"):
            look()


@pytest.mark.parametrize(
    "command",
    [
        "DELETE FROM entry WHERE sequence = 4",
        "UPDATE entry SET body = replace(body, '2', '3') WHERE sequence = 4",
        "UPDATE entry SET kind = 'approval' WHERE sequence = 4",
    ],
)
def test_an_entry_changed_in_the_middle_is_noticed_by_a_running_site_that_reads_it(
    folder: Path, command: str
) -> None:
    running = journal_in(folder)
    changed(folder, command)
    with pytest.raises(JournalEdited):
        running.entries("request")
    with pytest.raises(JournalEdited):
        running.verify()


@pytest.mark.parametrize(
    ("manipulation", "error"),
    [
        (lambda folder, backup: shutil.copyfile(backup, folder / JOURNAL_NAME), JournalOlder),
        (lambda folder, backup: (folder / JOURNAL_NAME).unlink(), JournalMissing),
        (lambda folder, backup: changed(folder, f"DELETE FROM entry WHERE sequence > {NUM}"), JournalOlder),
        (
            lambda folder, backup: changed(
                folder, f"UPDATE entry SET body = '{{}}' WHERE sequence = {NUM + 2}"
            ),
            JournalEdited,
        ),
    ],
)
def test_a_manipulation_under_a_running_site_stops_the_next_entry(
    folder: Path, manipulation: Callable[[Path, Path], object], error: type[JournalError]
) -> None:
    backup = folder / "backup"
    shutil.copyfile(folder / JOURNAL_NAME, backup)
    journal = journal_in(folder)
    journal.append("request", {"number": NUM})
    manipulation(folder, backup)
    with pytest.raises(error):
        journal.append("spent", {"run_id": "run-1", "round": 1, "num_steps": 1})


# A new identity key


def renewed(folder: Path, *, endorsed: bool) -> Ed25519PrivateKey:
    new = Ed25519PrivateKey.generate()
    journal_in(folder).renew_key(new, endorsed=endorsed)
    return new


@pytest.mark.parametrize("endorsed", [True, False])
def test_a_journal_goes_on_under_a_new_key_and_not_under_the_old(folder: Path, endorsed: bool) -> None:
    new = renewed(folder, endorsed=endorsed)
    with pytest.raises(JournalEdited, match="another identity key"):
        journal_in(folder)
    journal = journal_in(folder, new)
    journal.append("request", {"number": "later"})
    entries = journal.verify()
    assert [entry.kind for entry in entries[-2:]] == [NEW_KEY, "request"]
    assert entries[-2].body["endorsed"] is endorsed
    assert entries[-1].is_signed(new.public_key().public_bytes_raw())


def test_a_stranger_cannot_claim_that_the_old_key_endorsed_theirs(folder: Path) -> None:
    new = renewed(folder, endorsed=False)
    entries = list(journal_in(folder, new).verify())
    body = {**entries[-1].body, "endorsed": True}
    bare = replace(entries[-1], body=body)
    entries[-1] = replace(bare, signature=new.sign(b"collegium-journal-signature-1\n" + bare.hash))
    check_chain(tuple(entries), origin="test")
    with pytest.raises(JournalEdited):
        check_signatures(tuple(entries), origin="test")
