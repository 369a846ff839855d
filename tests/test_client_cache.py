"""What is remembered between two runs: never wrong, never a name, and whole whatever ends a run."""

import fcntl
import gc
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from dicom_files import NAME, OTHER_SECRET, SECRET, Hospital, dataset, gradient, make_image, make_study, write
from ingest_runs import STUDY, folder_of, images_of, kept, killed_at, mixed_hospital, run

from client.cache_folder import CACHE_NAME, preparation_hash
from client.file_facts import HeaderFacts, PixelFacts
from client.file_reading import Header, Prepared
from client.image_cache import CATALOGUE_NAME, CacheFull, ImageCache
from client.ingestion import ingest
from client.scan_memory import SCAN_NAME, Record, ScanMemory
from client.site_data import ProgressLines
from client.stored_images import StoredImages, joined
from client.structures import MaskWanted
from shared_models.study import Image
from simulations.benchmarks.ingest import ReaderInThisProcess

RECORD = 4 * 16 * 16


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return mixed_hospital(tmp_path / "hospital")


def without_times(files: dict[str, object]) -> dict[str, object]:
    """The same without the times at which files were changed: of folders that were made one after the other."""
    rows = [(path, json.loads(text)) for path, text, _ in files[SCAN_NAME]]  # type: ignore[attr-defined]
    return {**files, SCAN_NAME: [(path, record[:1] + record[2:]) for path, record in rows]}


def reasons(found) -> dict[str, str]:
    return {file.path: file.reason.code for file in found.index.left_out}


# The second run


def test_the_second_run_reads_no_file_and_finds_the_same(hospital: Hospital) -> None:
    first, reader, told = run(hospital)
    assert len(reader.headers) == first.index.num_files
    assert told == []
    before = kept(hospital)
    second, reader, told = run(hospital)
    assert (reader.headers, reader.pixels, told) == ([], [], [])
    assert second.index == first.index
    assert images_of(second) == images_of(first)
    assert kept(hospital) == before
    assert (
        reasons(first)
        == {
            "0/again.dcm": "duplicate",
            "1/cut.dcm": "truncated",
            "2/unlabelled.dcm": "no-label",
            "notes.txt": "not-dicom",
            "z/copy.dcm": "duplicate",
        }
        or "duplicate" in reasons(first).values()
    )


def test_images_are_what_a_run_without_cache_makes(hospital: Hospital) -> None:
    with_cache, _, _ = run(hospital)
    shutil.rmtree(hospital.site().state)
    without, reader, told = run(hospital, cache_gib=0.0)
    assert told == []
    assert with_cache.index == without.index
    assert images_of(with_cache) == images_of(without)
    again, reader, _ = run(hospital, cache_gib=0.0)
    assert len(reader.pixels) == len(again.index.images), "without a cache images are prepared again"
    assert images_of(again) == images_of(without)


@pytest.mark.slow
def test_several_processes_give_what_one_gives(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path / "many")
    hospital.label(hospital.add_patients(range(80)))
    alone, _, _ = run(hospital)
    files = kept(hospital)
    shutil.rmtree(hospital.site().state)
    site = hospital.site()
    site = site.model_copy(update={"compute": site.compute.model_copy(update={"num_readers": 3})})
    several = ingest(site, STUDY, SECRET)
    assert several.index == alone.index
    assert images_of(several) == images_of(alone)
    assert kept(hospital) == files


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_file_is_read_again_and_no_other(hospital: Hospital, change: str) -> None:
    first, _, _ = run(hospital)
    path = hospital.images / "0" / "0000-0.dcm"
    if change == "size":
        write(path, dataset(gradient(20, 20, high=50), patient="PAT-0000", image="0"))
    else:
        write(path, dataset(gradient(high=50), patient="PAT-0000", image="0"))
        os.utime(path, (1, 1))
    second, reader, _ = run(hospital)
    assert reader.headers == ["0000-0.dcm"]
    assert images_of(second) != images_of(first)
    shutil.rmtree(hospital.site().state)
    assert images_of(second) == images_of(run(hospital)[0])


def test_a_file_of_the_same_size_and_time_is_found_by_recheck(hospital: Hospital) -> None:
    first, _, _ = run(hospital)
    path = hospital.images / "0" / "0000-0.dcm"
    status = path.stat()
    write(path, dataset(gradient(high=50), patient="PAT-0000", image="0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert images_of(run(hospital)[0]) == images_of(first), (
        "size and time of change are all that is looked at"
    )
    second, reader, _ = run(hospital, recheck=True)
    assert len(reader.headers) == second.index.num_files
    assert reader.pixels.count("0000-0.dcm") == 1
    assert images_of(second) != images_of(first)
    shutil.rmtree(hospital.site().state)
    assert images_of(second) == images_of(run(hospital)[0])


def test_a_moved_file_is_not_prepared_again(hospital: Hospital) -> None:
    first, _, _ = run(hospital)
    (hospital.images / "0" / "0000-0.dcm").rename(hospital.images / "1" / "moved.dcm")
    second, reader, _ = run(hospital)
    assert (reader.headers, reader.pixels) == (["moved.dcm"], [])
    assert images_of(second) == images_of(first)


def test_the_image_of_a_deleted_file_is_erased(hospital: Hospital) -> None:
    first, _, _ = run(hospital)
    path = hospital.images / "0" / "0003-0.dcm"
    image, number = pixels_of(hospital, "PAT-0003", first), len(first.index.images)
    assert image in stored_bytes(hospital)
    path.unlink()
    run(hospital)
    assert image in stored_bytes(hospital), "whoever trains on it would see zeros"
    del first
    gc.collect()
    second, reader, _ = run(hospital)
    assert reader.headers == []
    assert len(second.index.images) == number - 1
    assert image not in stored_bytes(hospital)
    assert len(kept(hospital)[SCAN_NAME]) == second.index.num_files  # type: ignore[arg-type]


def test_a_row_added_to_the_labels_file_prepares_its_image_only(hospital: Hospital) -> None:
    run(hospital)
    with hospital.labels.open("a") as file:
        file.write("PAT-9999,yes\n")
    _, reader, _ = run(hospital)
    assert reader.pixels == ["unlabelled.dcm"]


def test_a_file_that_cannot_be_read_now_is_tried_again(hospital: Hospital) -> None:
    (hospital.images / "link.dcm").symlink_to(hospital.images / "later.dcm")
    first, _, _ = run(hospital)
    assert reasons(first)["link.dcm"] == "not-a-file"
    hospital.add("later.dcm", dataset(gradient(), patient="PAT-0000", image="77"))
    second, _, _ = run(hospital)
    assert "link.dcm" not in reasons(second) or reasons(second)["link.dcm"] == "duplicate-file"


def test_another_study_with_the_same_images_prepares_nothing_and_another_size_prepares_all(
    hospital: Hospital,
) -> None:
    run(hospital)
    _, reader, _ = run(hospital, make_study(roles="hash").model_copy(update={"name": "another"}))
    assert reader.headers == []
    found, reader, _ = run(hospital, make_study(image=make_image(rows=8, columns=8)))
    assert len(reader.headers) == found.index.num_files
    assert preparation_hash(make_image(), SECRET) != preparation_hash(make_image(), OTHER_SECRET)


# Whatever ends a run


@pytest.mark.slow
def test_killed_at_any_moment_the_next_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = mixed_hospital(tmp_path / "whole", num_patients=4)
    run(whole, checkpoint_seconds=0.0)
    expected = kept(whole)
    event, hospital = 1, Hospital(tmp_path / "killed")
    shutil.copytree(whole.images, hospital.images, dirs_exist_ok=True)
    shutil.copy(whole.labels, hospital.labels)
    while killed_at(event, lambda: run(hospital, checkpoint_seconds=0.0)):
        run(hospital)
        assert kept(hospital) == expected, f"killed at event {event}"
        shutil.rmtree(hospital.site().state)
        event += 1
    assert event > 50, "too few moments: the tested calls are not those that are made"


@pytest.mark.thorough
def test_killed_again_and_again_while_images_are_erased_it_still_ends_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    def prepared(name: str) -> Hospital:
        hospital = mixed_hospital(tmp_path / name, num_patients=5)
        run(hospital)
        for path in sorted(hospital.images.rglob("*.dcm"))[::2]:
            path.unlink()
        hospital.add("y/new.dcm", dataset(gradient(high=33), patient="PAT-0004", image="new"))
        return hospital

    whole, patient = prepared("whole"), SECRET.pseudonym("patient", "PAT-0004")
    run(whole, withdrawn={patient}, checkpoint_seconds=0.0)
    expected = kept(whole)
    assert any("images-1" in name for name in expected), "the file of the records was rewritten"
    event, hospital = 1, prepared("killed")
    shutil.copytree(hospital.site().state, tmp_path / "state")
    while killed_at(event, lambda: run(hospital, withdrawn={patient}, checkpoint_seconds=0.0)):
        killed_at(event + 1, lambda: run(hospital, withdrawn={patient}, checkpoint_seconds=0.0))
        run(hospital, withdrawn={patient})
        assert without_times(kept(hospital)) == without_times(expected), f"killed at event {event}"
        shutil.rmtree(hospital.site().state)
        shutil.copytree(tmp_path / "state", hospital.site().state)
        event += 1
    assert event > 20


@pytest.mark.thorough
@pytest.mark.parametrize("num_files", [1, 7, 40, 75])
def test_kill_9_of_an_indexer_with_its_processes(tmp_path: Path, num_files: int) -> None:
    hospital = Hospital(tmp_path / "many")
    hospital.label(hospital.add_patients(range(80)))
    run(hospital)
    expected = kept(hospital)
    shutil.rmtree(hospital.site().state)
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from dicom_files import SECRET, Hospital, make_study\n"
        "from client.ingestion import ingest\n"
        "hospital = Hospital.__new__(Hospital); root = Path(sys.argv[1])\n"
        "hospital.root, hospital.images, hospital.labels = root, root / 'images', root / 'labels.csv'\n"
        f"die = lambda done, total: done == {num_files} and os.kill(os.getpid(), signal.SIGKILL)\n"
        "ingest(hospital.site(), make_study(), SECRET, progress=die, checkpoint_seconds=0.0)\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(path) for path in Path(__file__).parents[:2]),
    }
    done = subprocess.run([sys.executable, "-c", program, str(hospital.root)], env=environment, check=False)
    assert done.returncode == -9
    _, reader, _ = run(hospital)
    assert kept(hospital) == expected
    assert len(reader.headers) <= 81 - num_files, "what was read before is not read again"


@pytest.mark.slow
def test_of_two_processes_at_once_the_second_waits_and_finds_all_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.cache_folder._UNTOLD_SECONDS", 0.0)
    hospital = mixed_hospital(tmp_path / "two")
    children = []
    for _ in range(4):
        if (child := os.fork()) == 0:
            try:
                _, reader, told = run(hospital, progress=lambda done, total: time.sleep(0.02))
                waited = any("waiting" in line for line in told)
                os._exit(10 + bool(reader.headers) + 2 * waited)
            finally:
                os._exit(1)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sorted(codes) == [11, 12, 12, 12], "one reads; three wait and read nothing"
    alone = mixed_hospital(tmp_path / "alone")
    run(alone)
    assert without_times(kept(hospital)) == without_times(kept(alone))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 72 KiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=72k", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_with_little_room_costs_the_cache_and_not_the_run(
    hospital: Hospital, small_disk: Path
) -> None:
    expected, _, _ = run(hospital)
    shutil.rmtree(hospital.site().state)
    hospital.site().state.symlink_to(small_disk)
    for _ in range(2):
        found, _, told = run(hospital, checkpoint_seconds=0.0)
        assert found.index == expected.index
        assert images_of(found) == images_of(expected)
        assert any("cache is full" in line for line in told)
    assert stored_bytes(hospital) == b"", "the last bytes of a disk are for the journal"


def test_a_disk_that_is_full_in_the_middle_of_a_record_leaves_whole_records(small_disk: Path) -> None:
    planes = np.random.default_rng(3).random((100, 1, 16, 16)).astype(np.float32)
    cache, number = ImageCache(small_disk / "c", (1, 16, 16), limit=2**40), 0
    (small_disk / "ballast").write_bytes(bytes(10_000))
    with pytest.raises(CacheFull):
        for number, plane in enumerate(planes):
            cache.add(f"{number:02x}", plane, patient="p")
    assert len(cache) == number > 10
    with pytest.raises(CacheFull):
        cache.checkpoint()
    (small_disk / "ballast").unlink()
    cache.checkpoint()
    cache.close()
    again = ImageCache(small_disk / "c", (1, 16, 16), limit=2**40)
    assert again.problems == []
    np.testing.assert_array_equal(again.images(), planes[:number])
    again.close()


def test_a_memory_on_a_full_disk_is_given_up_and_says_so(small_disk: Path) -> None:
    told: list[str] = []
    memory = ScanMemory(small_disk, told.append)
    for number in range(2000):
        memory.put(number.to_bytes(16, "big"), Record(size=number, mtime_ns=0, header_facts="x" * 100))
    memory.commit()
    assert len(told) == 1
    assert "cannot be remembered" in told[0]
    assert len(memory.records) == 2000
    memory.close()


# Damage


def damaged(hospital: Hospital, name: str) -> Path:
    return folder_of(hospital) / name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (CATALOGUE_NAME, "empty"),
        (CATALOGUE_NAME, "foreign"),
        (CATALOGUE_NAME, "flipped"),
        (CATALOGUE_NAME, "missing"),
        ("images-0.bin", "empty"),
        ("images-0.bin", "flipped"),
        ("images-0.bin", "torn"),
        ("images-0.bin", "longer"),
        ("images-0.bin", "missing"),
        (SCAN_NAME, "empty"),
        (SCAN_NAME, "foreign"),
        (SCAN_NAME, "flipped"),
        (SCAN_NAME, "torn"),
        (SCAN_NAME, "missing"),
        (SCAN_NAME, "folder"),
    ],
)
def test_whatever_is_damaged_is_made_again_and_ends_with_the_same_bytes(
    hospital: Hospital, name: str, damage: str
) -> None:
    first, _, _ = run(hospital)
    before, path = kept(hospital), damaged(hospital, name)
    content = path.read_bytes()
    path.unlink()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        path.write_bytes(b"something else entirely\n" * 100)
    elif damage == "flipped":
        place = len(content) - 700 if name != CATALOGUE_NAME else 60
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
    elif damage == "torn":
        path.write_bytes(content[: len(content) * 2 // 3])
    elif damage == "longer":
        path.write_bytes(content + content[:100])
    elif damage == "folder":
        path.mkdir()
    second, _, told = run(hospital)
    assert second.index == first.index
    assert images_of(second) == images_of(first)
    if damage == "folder":
        assert told
        return
    assert kept(hospital) == before
    third, reader, told = run(hospital)
    assert (reader.headers, told) == ([], [])
    assert images_of(third) == images_of(first)


def test_a_flipped_bit_in_one_image_costs_that_image_only(hospital: Hospital) -> None:
    run(hospital)
    path = damaged(hospital, "images-0.bin")
    content = bytearray(path.read_bytes())
    content[2 * RECORD + 17] ^= 1
    path.write_bytes(content)
    _, reader, told = run(hospital)
    assert len(reader.pixels) == 1
    assert told == ["1 images of the cache were damaged; they are prepared again."]


@pytest.mark.slow
def test_every_flipped_bit_of_the_memory_is_harmless(hospital: Hospital) -> None:
    first, _, _ = run(hospital)
    path = damaged(hospital, SCAN_NAME)
    content = path.read_bytes()
    chosen = np.random.default_rng(0).integers(0, 8 * len(content), 60)
    for bit in chosen:
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(changed)
        second, _, _ = run(hospital)
        assert second.index == first.index
        assert images_of(second) == images_of(first)


def test_a_record_of_another_schema_is_thrown_away(hospital: Hospital) -> None:
    run(hospital)
    path = damaged(hospital, SCAN_NAME)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    found, reader, told = run(hospital)
    assert len(told) == 1
    assert "cannot be used" in told[0]
    assert len(reader.headers) == found.index.num_files
    assert reader.pixels == [] or len(reader.pixels) == len(found.index.images)


# Nobody is named


def test_no_identifier_no_date_and_no_path_is_in_the_cache_or_the_memory(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path / "hospital")
    made = dataset(
        gradient(),
        patient="MRN-445566",
        StudyDate="20190314",
        PatientBirthDate="19510203",
        StudyDescription="Thorax of Oftering",
        Manufacturer="Maker",
        ManufacturerModelName="Model-7",
        ViewPosition="PA",
        BodyPartExamined="CHEST",
        BurnedInAnnotation="NO",
        InstitutionName="St Elsewhere",
    )
    hospital.add("OFTERING_WALBURGA/MRN-445566.dcm", made)
    hospital.add("other.dcm", dataset(gradient(high=9), patient="MRN-778899", ManufacturerModelName=NAME))
    hospital.label([("MRN-445566", "yes"), ("MRN-778899", "no")])
    found, _, _ = run(hospital)
    assert len(found.index.images) == 2
    names = [
        "MRN-445566", "MRN-778899", "Oftering", "OFTERING", "Walburga", "20190314", "19510203", "Elsewhere",
        "ACC-", str(made.SOPInstanceUID), str(made.StudyInstanceUID), str(made.SeriesInstanceUID), "other.dcm",
        SECRET.key.hex(),
    ]  # fmt: skip
    files = [path for path in (hospital.site().state / CACHE_NAME).rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {SCAN_NAME, CATALOGUE_NAME, "images-0.bin"}
    for path in files:
        content = path.read_bytes()
        assert [
            name for name in names if name.encode() in content or name.encode("utf-16-le") in content
        ] == []
        assert path.stat().st_mode & 0o077 == 0
        assert path.parent.stat().st_mode & 0o077 == 0
    memory = ScanMemory(folder_of(hospital), print)
    facts = sorted((record.header for record in memory.records.values()), key=lambda each: each.scanner)  # type: ignore[union-attr]
    memory.close()
    assert [each.scanner for each in facts if each] == ["?", "Maker Model-7"]
    assert facts[1] is not None
    assert (facts[1].view, facts[1].body_part, facts[1].burned_in) == ("PA", "CHEST", "NO")
    assert (facts[1].modality, facts[1].photometric, facts[1].rows, facts[1].bits_stored) == (
        "CR",
        "MONOCHROME2",
        16,
        8,
    )


def test_facts_of_the_pixels_tell_a_blank_image_and_equal_pixels(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path / "hospital")
    hospital.add("a.dcm", dataset(np.full((16, 16), 7, np.uint8), patient="A"))
    hospital.add("b.dcm", dataset(gradient(), patient="B"))
    hospital.add("c.dcm", dataset(gradient(), patient="C"))
    hospital.label([("A", "yes"), ("B", "no"), ("C", "no")])
    run(hospital)
    memory = ScanMemory(folder_of(hospital), print)
    facts = {
        record.pseudonyms["PatientID"]: record.pixels
        for record in memory.records.values()
        if record.pixels is not None
    }
    memory.close()
    blank, first, second = (facts[SECRET.pseudonym("patient", name)] for name in "ABC")
    assert (blank.blank, blank.lowest_share, blank.highest_share) == (True, 1.0, 1.0)
    assert first.digest == second.digest != blank.digest
    assert not first.blank
    assert first.lowest_share == np.count_nonzero(gradient() == 0) / 256


# Withdrawal


def stored_bytes(hospital: Hospital) -> bytes:
    paths = sorted((hospital.site().state / CACHE_NAME).rglob("images-*.bin"))
    return b"".join(path.read_bytes() for path in paths)


def pixels_of(hospital: Hospital, patient: str, found) -> bytes:
    name = SECRET.pseudonym("patient", patient)
    part = next(part for part in found.patients.values() if name in part.pseudonyms)
    return part.images[part.images_of(part.pseudonyms.index(name))[0]].numpy().tobytes()


def test_images_of_a_patient_who_withdrew_are_overwritten_in_the_caches_of_all_preparations(
    hospital: Hospital,
) -> None:
    small = make_study(image=make_image(rows=8, columns=8))
    first, _, _ = run(hospital)
    other, _, _ = run(hospital, small)
    images = [pixels_of(hospital, "PAT-0003", found) for found in (first, other)]
    assert all(image in stored_bytes(hospital) for image in images)
    gone = SECRET.pseudonym("patient", "PAT-0003")
    second, reader, _ = run(hospital, withdrawn={gone})
    assert reader.headers == []
    assert all(gone not in part.pseudonyms for part in second.patients.values())
    assert not any(image in stored_bytes(hospital) for image in images)
    assert all(
        gone not in (hospital.site().state / CACHE_NAME / name / CATALOGUE_NAME).read_text()
        for name in (preparation_hash(study.image, SECRET) for study in (STUDY, small))
    )
    memory = ScanMemory(folder_of(hospital), print)
    records = [record for record in memory.records.values() if record.pseudonyms.get("PatientID") == gone]
    memory.close()
    assert records
    assert all(
        (record.content, record.header_facts, record.pixel_facts) == ("", "", "") for record in records
    )


# Size


def test_the_limit_is_kept_and_what_does_not_fit_is_held_in_memory(hospital: Hospital) -> None:
    expected, _, _ = run(hospital)
    shutil.rmtree(hospital.site().state)
    limit = 3.5 * RECORD / 2**30
    found, _, told = run(hospital, cache_gib=limit)
    assert len(told) == 1
    assert "cache is full" in told[0]
    assert images_of(found) == images_of(expected)
    assert len(stored_bytes(hospital)) == 3 * RECORD
    again, reader, _ = run(hospital, cache_gib=limit)
    assert len(reader.pixels) == len(found.index.images) - 3
    assert images_of(again) == images_of(expected)


def test_the_preparation_that_was_not_used_for_longest_goes_first(hospital: Hospital) -> None:
    num = len(run(hospital)[0].index.images)
    old, recent = (
        make_study(image=make_image(rows=16, columns=16, aspect=aspect)) for aspect in ("crop", "stretch")
    )
    shutil.rmtree(hospital.site().state)
    limit = 2.5 * num * RECORD / 2**30
    for study in (old, STUDY):
        run(hospital, study, cache_gib=limit)
    os.utime(folder_of(hospital, old), (1, 1))
    run(hospital, recent, cache_gib=limit)
    assert not folder_of(hospital, old).exists()
    assert folder_of(hospital).exists()
    assert len(stored_bytes(hospital)) == 2 * num * RECORD


def test_a_cache_that_another_process_uses_is_not_removed(hospital: Hospital) -> None:
    other = make_study(image=make_image(aspect="crop"))
    num = len(run(hospital, other)[0].index.images)
    lock = os.open(f"{folder_of(hospital, other)}.lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        found, _, told = run(hospital, cache_gib=1.5 * num * RECORD / 2**30)
    finally:
        os.close(lock)
    assert folder_of(hospital, other).exists()
    assert len(told) == 1
    assert len(found.index.images) == num


def test_a_lower_limit_than_what_is_there_makes_the_cache_again(hospital: Hospital) -> None:
    first, _, _ = run(hospital)
    second, _, told = run(hospital, cache_gib=2.5 * RECORD / 2**30)
    assert "larger than images.cache_gib" in told[0]
    assert len(stored_bytes(hospital)) == 2 * RECORD
    assert images_of(second) == images_of(first)


# The file of the records


def test_records_are_only_there_after_a_checkpoint(tmp_path: Path) -> None:
    plane = np.random.default_rng(1).random((1, 16, 16)).astype(np.float32)
    cache = ImageCache(tmp_path / "c", (1, 16, 16), limit=10 * RECORD)
    assert cache.add("aa", plane, patient="p") == 0
    cache.checkpoint()
    assert cache.add("bb", plane + 1, patient="q") == 1
    cache.close()
    again = ImageCache(tmp_path / "c", (1, 16, 16), limit=10 * RECORD)
    assert (again.find("aa"), again.find("bb"), again.problems) == (0, None, [])
    np.testing.assert_array_equal(again.images()[0], plane)
    for number in range(9):
        again.add(f"{number:02x}", plane, patient="p")
    with pytest.raises(CacheFull):
        again.add("ff", plane, patient="p")
    again.close()


@pytest.mark.slow
def test_images_in_use_stay_what_they_are_while_others_are_erased_and_the_file_is_rewritten(
    hospital: Hospital,
) -> None:
    first, _, _ = run(hospital)
    before = images_of(first)
    paths = sorted(hospital.images.rglob("*.dcm"))
    for path in paths[len(paths) // 3 :]:
        path.unlink()
    second, _, _ = run(hospital)
    assert images_of(first) == before
    del first
    gc.collect()
    third, _, _ = run(hospital)
    assert images_of(second) == images_of(third), "erasing waits for these too"
    expected = images_of(second)
    del second, third
    gc.collect()
    fourth, _, _ = run(hospital)
    assert (folder_of(hospital) / "images-1.bin").exists()
    assert len(stored_bytes(hospital)) == RECORD * len(fourth.index.images)
    assert images_of(fourth) == expected


class InventingReader(ReaderInThisProcess):
    """Says of each file what follows from its name; decodes nothing."""

    def header(self, path: Path, image: Image) -> Header:
        number = int(path.stem)
        study = {
            "StudyInstanceUID": number // 2,
            "SeriesInstanceUID": number // 2,
            "AccessionNumber": number // 2,
        }
        names = {"PatientID": number // 10, **study}
        identifiers = {key: str(value) for key, value in {**names, "SOPInstanceUID": number}.items()}
        facts = HeaderFacts(
            modality="CR", scanner="Maker Model-7", rows=2048, columns=2048, spacing=(0.1, 0.1)
        )
        return Header(identifiers=identifiers, facts=facts, finding=None)

    def digest(self, path: Path, image: Image) -> bytes:
        return int(path.stem).to_bytes(32, "big")

    def prepare(self, path: Path, image: Image, mask: MaskWanted | None = None) -> Prepared:
        facts = PixelFacts(digest=f"{int(path.stem):064x}", lowest_share=0.1, highest_share=0.1, blank=False)
        plane = np.full((1, 16, 16), int(path.stem) % 256 / 255, dtype=np.float32)
        return Prepared(plane=plane, has_window=True, facts=facts)


@pytest.mark.thorough
def test_100_000_files_that_did_not_change_are_checked_in_seconds(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path / "large")
    for number in range(100_000):
        folder = hospital.images / f"{number // 500:03d}"
        if number % 500 == 0:
            folder.mkdir()
        (folder / f"{number}").write_bytes(b"x")
    hospital.label([(str(patient), "yes" if patient % 2 else "no") for patient in range(10_000)])
    begun = time.perf_counter()
    first = ingest(hospital.site(), STUDY, SECRET, make_reader=InventingReader).index
    again = time.perf_counter()
    used = time.process_time()
    second = ingest(hospital.site(), STUDY, SECRET).index
    used, ended = time.process_time() - used, time.perf_counter()
    print(
        f"first run {again - begun:.1f} s, without any decoding; second run {ended - again:.1f} s, {used:.1f} s of work"
    )
    assert len(first.images) == 100_000
    assert second == first
    assert used < 30.0, "processor time, which a busy machine does not stretch"


# What is told meanwhile


def test_the_agent_says_every_half_minute_how_far_it_is() -> None:
    said: list[str] = []
    now = 0.0
    lines = ProgressLines(said.append, lambda: now)
    for done in range(1, 101):
        now = done * 1.5
        lines(done, 400)
    assert said == [
        "reading images: 20 of 400 files, 1 a second, 10 min left",
        "reading images: 40 of 400 files, 1 a second, 9 min left",
        "reading images: 60 of 400 files, 1 a second, 8 min left",
        "reading images: 80 of 400 files, 1 a second, 8 min left",
        "reading images: 100 of 400 files, 1 a second, 8 min left",
    ]


# Images that are gathered


def test_stored_images_are_indexed_like_a_tensor_and_joined_without_copying(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    mapped = np.memmap(tmp_path / "a", dtype="<f4", mode="w+", shape=(5, 1, 4, 4))
    mapped[:] = random.random((5, 1, 4, 4))
    others = [random.random((1, 4, 4)).astype(np.float32) for _ in range(3)]
    row = np.array([4, 0, 2, 1, 0])
    source = np.array([0, 1, 1, 0, 0])
    stored = StoredImages([mapped, others], source, row, shape=(1, 4, 4))
    whole = torch.stack(
        [torch.from_numpy(np.array((mapped, others)[s][r])) for s, r in zip(source, row, strict=True)]
    )
    assert stored.shape == whole.shape
    assert torch.equal(stored[:], whole)
    assert torch.equal(stored[1:3], whole[1:3])
    assert torch.equal(stored[torch.tensor([3, 3, 0])], whole[[3, 3, 0]])
    assert torch.equal(stored[2], whole[2])
    assert torch.equal(torch.stack(list(stored)), whole)
    assert torch.equal(stored[:0], whole[:0])
    assert torch.equal(stored.selected([4, 1])[:], whole[[4, 1]])
    assert torch.equal(joined([stored, stored.selected([0])])[:], torch.cat([whole, whole[:1]]))
    assert torch.equal(joined([stored, whole])[:], torch.cat([whole, whole]))
    stored[0][:] = 7.0
    assert torch.equal(stored[:], whole), "what is returned is a copy"
    with pytest.raises(IndexError):
        stored[5]
