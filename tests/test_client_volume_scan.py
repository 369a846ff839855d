"""A hospital's series become volumes of its index: prepared, cached, refused with a reason, and trained on."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from dicom_files import SECRET, Hospital
from ingest_runs import folder_of, images_of, kept, killed_at, run
from pydicom import dcmread
from rich.console import Console
from series_files import (
    by_simpleitk,
    changed,
    shuffled,
    volume_hospital,
    volume_image,
    volume_study,
    write_enhanced,
    write_series,
)

from client.decoding import DecodingWorker
from client.decoding_limits import Limits
from client.dicom_index import Index
from client.evaluation import kept_of_images
from client.index_report import INDEX_NAME, render_index
from client.ingestion import Ingested, ingest
from client.labels import LabelsError
from client.scan_memory import SCAN_NAME
from client.training import Machine, PlainGradientSum, add_sample
from privacy.randomness import CryptographicGenerator
from shared_models.architectures import build_model
from shared_models.augmentation import Augmentation
from shared_models.tasks.registry import task_of

DATA = os.environ.get("COLLEGIUM_DATA")
STUDY = volume_study()
FAULTY = (sys.executable, "-P", str(Path(__file__).with_name("faulty_decoding.py")))
FINE = volume_image(depth=14, rows=28, columns=26, spacing=0.8, slice_spacing=1.5)


def left_out(index: Index) -> dict[str, str]:
    return {file.path: file.reason.code for file in index.left_out}


def reasons_below(index: Index, folder: str) -> set[str]:
    return {code for path, code in left_out(index).items() if path.startswith(folder)}


def one_series(tmp_path: Path, **options: object) -> tuple[Hospital, list[Path]]:
    """A hospital of one patient with one series."""
    hospital = Hospital(tmp_path / "hospital")
    paths = write_series(hospital.images / "s", **options)  # type: ignore[arg-type]
    hospital.label([("PAT-0001", "yes")])
    return hospital, paths


def volume_of(found: Ingested) -> npt.NDArray[np.float32]:
    """The one volume there is."""
    (image,) = (image for part in found.patients.values() for image in part.images)
    return image.numpy()


def in_window(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Hounsfield units as the study's window shows them; black where SimpleITK has no value."""
    levels = np.clip((values.astype(np.float64) - 39.5) / 799.0 + 0.5, 0.0, 1.0)
    return np.where(values == -5000.0, 0.0, levels)


# What becomes a volume


@pytest.mark.parametrize("kind", ["axial", "oblique"])
def test_a_series_whose_names_are_in_no_order_is_the_volume_that_simpleitk_makes_of_it(
    tmp_path: Path, kind: str
) -> None:
    hospital, paths = one_series(tmp_path, kind=kind)
    found, _, told = run(hospital, volume_study(FINE))
    assert told == []
    got = volume_of(found)
    want = in_window(by_simpleitk(paths, (14, 28, 26), (1.5, 0.8, 0.8)))
    assert got.shape == (1, 14, 28, 26)
    assert (want > 0.0).mean() > 0.3
    assert (np.abs(got[0] - want) < 1e-4).mean() > 0.999, "but for a place on the border, to rounding"


def test_the_frames_of_one_file_are_the_same_volume_as_one_file_each(tmp_path: Path) -> None:
    hospital, _ = one_series(tmp_path, kind="oblique")
    single = volume_of(run(hospital, STUDY)[0])
    shutil.rmtree(hospital.images / "s")
    write_enhanced(hospital.images / "all.dcm")
    found, _, _ = run(hospital, STUDY)
    assert left_out(found.index) == {}
    np.testing.assert_array_equal(volume_of(found), single)


@pytest.mark.slow
def test_names_and_folders_of_the_files_change_nothing(tmp_path: Path) -> None:
    hospital, paths = one_series(tmp_path, kind="oblique")
    before = volume_of(run(hospital, STUDY)[0])
    for number, path in enumerate(shuffled(paths)):
        target = hospital.images / f"{number % 3}" / f"x{number}"
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    found, reader, _ = run(hospital, STUDY)
    assert reader.pixels == [], "files that were moved are read, but not decoded again"
    np.testing.assert_array_equal(volume_of(found), before)
    shutil.rmtree(hospital.site().state)
    np.testing.assert_array_equal(volume_of(run(hospital, STUDY)[0]), before)


@pytest.mark.slow
def test_percentiles_are_those_of_the_whole_volume(tmp_path: Path) -> None:
    hospital, _ = one_series(tmp_path)
    image = volume_image(intensity="percentiles", window_center=None, window_width=None)
    levels = volume_of(run(hospital, volume_study(image))[0])
    assert 0.9 < levels.max() <= 1.0
    for path in hospital.images.rglob("*.dcm"):
        changed(path, PhotometricInterpretation="MONOCHROME1")
    inverted = volume_of(run(hospital, volume_study(image))[0])
    inside = levels > 0.05
    np.testing.assert_allclose(inverted[inside], 1.0 - levels[inside], atol=0.06)


@pytest.mark.slow
def test_each_series_of_a_patient_is_an_image_and_each_file_is_in_the_index_once(tmp_path: Path) -> None:
    hospital = volume_hospital(tmp_path / "h")
    write_series(hospital.images / "0" / "second", patient="PAT-0000", series="2", high=50.0)
    write_series(hospital.images / "9" / "copy", patient="PAT-0000", series="2", high=50.0)
    found, _, _ = run(hospital, STUDY)
    index = found.index
    named = [path for entry in index.images for path in entry.paths] + list(left_out(index))
    there = [
        path.relative_to(hospital.images).as_posix() for path in hospital.images.rglob("*") if path.is_file()
    ]
    assert sorted(named) == sorted(there)
    assert index.num_files == len(there)
    assert {entry.path.rsplit("/", 1)[0]: len(entry.paths) for entry in index.images} == {
        "0/0000": 10, "0/0003": 1, "0/second": 10, "1/0004": 10,
    }  # fmt: skip
    assert reasons_below(index, "1/0001") == {"missing-slice"}
    assert reasons_below(index, "2/0002") == {"truncated"}
    assert reasons_below(index, "9/copy") == {"duplicate-file"}
    assert reasons_below(index, "unlabelled") == {"no-label"}
    assert index.num_patients() == 3
    assert index.unusable_share == pytest.approx((9 + 10 + 10 + 3 + 1) / len(there))
    written = json.loads((hospital.site().state / INDEX_NAME).read_text())
    assert written["summary"]["num_files"] == len(there)
    assert sorted(
        path for entry in written["images"] for path in (entry["path"], *entry.get("further", ()))
    ) == sorted(path for entry in index.images for path in entry.paths)
    assert sum(len(part.images) for part in found.patients.values()) == 4
    console = Console(file=StringIO(), width=300)
    console.print(render_index(index, STUDY))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"31 of {len(there)} files are used in 4 volumes: 3 of 6 patients" in said
    assert "no window" not in said


# What becomes none


def gone(paths: Sequence[Path]) -> None:
    paths[4].unlink()


def pixels_cut(paths: Sequence[Path]) -> None:
    paths[-1].write_bytes(paths[-1].read_bytes()[:-400])


def header_cut(paths: Sequence[Path]) -> None:
    paths[-1].write_bytes(paths[-1].read_bytes()[:300])


def all_zeros(paths: Sequence[Path]) -> None:
    """As after a copy that was ended: the size is there."""
    paths[-1].write_bytes(bytes(paths[-1].stat().st_size))


def at_the_place_of_another(paths: Sequence[Path]) -> None:
    changed(paths[4], ImagePositionPatient=["-30", "12", "44"])


def out_of_the_row(paths: Sequence[Path]) -> None:
    changed(paths[4], ImagePositionPatient=["-30", "12", "49"])


def of_another_patient(paths: Sequence[Path]) -> None:
    changed(paths[4], PatientID="PAT-0002")


def of_another_study(paths: Sequence[Path]) -> None:
    changed(paths[4], StudyInstanceUID="1.2.3.4")


def a_localizer(paths: Sequence[Path]) -> None:
    changed(paths[4], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])


def of_another_size(paths: Sequence[Path]) -> None:
    changed(paths[-1], Rows=20, Columns=24)


def without_a_place(paths: Sequence[Path]) -> None:
    changed(paths[-1], ImagePositionPatient=None)


def no_number(paths: Sequence[Path]) -> None:
    changed(paths[-1], SOPInstanceUID=None)


def a_bomb(paths: Sequence[Path]) -> None:
    changed(paths[-1], Rows=60000, Columns=60000)


def turned(paths: Sequence[Path]) -> None:
    changed(paths[-1], ImageOrientationPatient=["0", "1", "0", "-1", "0", "0"])


def twice(paths: Sequence[Path]) -> None:
    """Other pixels under the same place and another number: a series in time."""
    shutil.copy(paths[4], paths[4].with_name("again.dcm"))
    changed(paths[4].with_name("again.dcm"), SOPInstanceUID="1.2.3.4", PixelData=bytes(2 * 24 * 20))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "code", "own"),
    [
        (gone, "missing-slice", None),
        (pixels_cut, "truncated", "truncated"),
        (header_cut, "missing-slice", "truncated"),
        (all_zeros, "missing-slice", "not-dicom"),
        (at_the_place_of_another, "no-volume", None),
        (out_of_the_row, "missing-slice", None),
        (of_another_patient, "no-volume", "no-label"),
        (of_another_study, "no-volume", None),
        (a_localizer, "not-hounsfield", None),
        (of_another_size, "no-volume", None),
        (without_a_place, "no-volume", None),
        (no_number, "missing-identifier", "missing-identifier"),
        (a_bomb, "too-large", "too-large"),
        (turned, "no-volume", None),
        (twice, "no-volume", None),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_wrong_with_one_slice_leaves_out_the_series_with_a_named_reason(
    tmp_path: Path, harm: Callable[[Sequence[Path]], None], code: str, own: str | None
) -> None:
    """Nothing is ever made of the slices that are left; the next patient's volume is what it was."""
    hospital, paths = one_series(tmp_path)
    write_series(hospital.images / "z", patient="PAT-0003")
    hospital.label([("PAT-0001", "yes"), ("PAT-0003", "no")])
    harm(paths)
    for _ in range(2):
        found, reader, _ = run(hospital, STUDY)
        codes = reasons_below(found.index, "s/")
        expected = {code} if own in (None, code) else {code, own}
        assert codes == expected or (own == "no-label" and codes == {"no-label"})
        assert [entry.path for entry in found.index.images] == ["z/000.dcm"]
        assert len(volume_of(found)) == 1
        assert found.index.num_files == len(list(hospital.images.rglob("*.dcm")))
    assert reader.headers == []
    assert reader.pixels == [], "what was found of a series is remembered"


def test_a_second_series_between_the_slices_of_the_first_is_kept_apart(tmp_path: Path) -> None:
    hospital, paths = one_series(tmp_path)
    before = volume_of(run(hospital, STUDY)[0])
    others = write_series(tmp_path / "others", series="2", high=10.0, kind="oblique")
    for path in others:
        path.rename(hospital.images / "s" / f"{path.stem}b.dcm")
    found, _, _ = run(hospital, STUDY)
    assert left_out(found.index) == {}
    assert [len(entry.paths) for entry in found.index.images] == [10, 10]
    volumes = [image.numpy() for part in found.patients.values() for image in part.images]
    assert len(volumes) == 2
    np.testing.assert_array_equal(volumes[0], before)
    assert np.abs(volumes[1] - before).max() > 0.1
    changed(hospital.images / "s" / "005b.dcm", SeriesInstanceUID=str(_series_of(paths[0])))
    mixed, _, _ = run(hospital, STUDY)
    assert mixed.index.images == ()
    codes = {path: code for path, code in left_out(mixed.index).items() if path != "s/005b.dcm"}
    assert set(codes.values()) == {"no-volume", "missing-slice"}
    assert {code for path, code in codes.items() if "b" in path} == {"missing-slice"}


def _series_of(path: Path) -> object:
    return dcmread(path).SeriesInstanceUID


@pytest.mark.slow
def test_labels_by_slice_are_refused_and_labels_by_series_are_taken(tmp_path: Path) -> None:
    hospital, paths = one_series(tmp_path)
    write_series(hospital.images / "t", series="2", high=20.0)
    with pytest.raises(LabelsError, match="names single slices"):
        ingest(hospital.site(key="SOPInstanceUID"), STUDY, SECRET)
    hospital.label([(str(_series_of(paths[0])), "yes")], header=("SeriesInstanceUID", "finding"))
    index = ingest(hospital.site(key="SeriesInstanceUID"), STUDY, SECRET).index
    assert [(entry.path, entry.label) for entry in index.images] == [("s/000.dcm", 1)]
    assert reasons_below(index, "t/") == {"no-label"}


@pytest.mark.slow
def test_of_a_patient_who_withdrew_nothing_is_read_and_nothing_kept(tmp_path: Path) -> None:
    hospital = volume_hospital(tmp_path / "h")
    first, _, _ = run(hospital, STUDY)
    patient = SECRET.pseudonym("patient", "PAT-0000")
    assert patient in {entry.patient for entry in first.index.images}
    volume = images_of(first)[patient]
    del first
    found, reader, _ = run(hospital, STUDY, withdrawn={patient})
    assert reader.pixels == []
    assert reasons_below(found.index, "0/0000") == {"withdrawn"}
    stored = b"".join(path.read_bytes() for path in folder_of(hospital, STUDY).glob("images-*.bin"))
    assert volume not in stored


# Processes


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("segfault", "decoder-crashed"),
        ("eat", "too-much-memory"),
        ("large", "decoder-crashed"),
        pytest.param("spin", "too-slow", marks=pytest.mark.thorough),
    ],
)
def test_a_slice_that_ends_the_decoder_costs_its_series_and_no_other(
    tmp_path: Path, kind: str, code: str
) -> None:
    hospital = volume_hospital(tmp_path / "h")
    path = hospital.images / "0" / "0000" / "004.dcm"
    path.rename(path.with_name(f"{kind}.dcm"))
    limits = Limits(memory_bytes=2**30, processor_seconds=1, clock_seconds=100)
    found = ingest(hospital.site(), STUDY, SECRET, make_reader=lambda: DecodingWorker(limits, FAULTY))
    assert reasons_below(found.index, "0/0000") == {code}
    assert [entry.path for entry in found.index.images] == ["0/0003/all.dcm", "1/0004/000.dcm"]
    path.with_name(f"{kind}.dcm").rename(path)
    shutil.rmtree(hospital.site().state)
    assert len(ingest(hospital.site(), STUDY, SECRET).index.images) == 3


@pytest.mark.slow
def test_what_the_process_of_its_own_prepares_is_what_this_one_does(tmp_path: Path) -> None:
    hospital = volume_hospital(tmp_path / "h")
    here, _, _ = run(hospital, STUDY)
    files = kept(hospital)
    shutil.rmtree(hospital.site().state)
    site = hospital.site()
    site = site.model_copy(update={"compute": site.compute.model_copy(update={"num_readers": 3})})
    there = ingest(site, STUDY, SECRET)
    assert there.index == here.index
    assert images_of(there) == images_of(here)
    assert kept(hospital) == files


def test_a_series_has_more_time_than_a_file_and_never_without_end() -> None:
    limits = Limits.of(volume_image())
    assert limits.memory_bytes == 2 * Limits().memory_bytes
    assert limits.of_series(1).processor_seconds == 121
    assert limits.of_series(300).processor_seconds == 420
    assert limits.of_series(4000).processor_seconds == 600
    assert limits.of_series(4000).clock_seconds == 1800


# What is remembered


@pytest.mark.slow
def test_the_second_run_reads_nothing_and_a_changed_slice_its_series_only(tmp_path: Path) -> None:
    hospital = volume_hospital(tmp_path / "h")
    first, reader, _ = run(hospital, STUDY)
    assert len(reader.headers) == first.index.num_files
    before = kept(hospital)
    second, reader, _ = run(hospital, STUDY)
    assert (reader.headers, reader.pixels) == ([], [])
    assert second.index == first.index
    assert images_of(second) == images_of(first)
    assert kept(hospital) == before
    path = hospital.images / "1" / "0004" / "003.dcm"
    changed(path, PixelData=bytes(2 * 24 * 20))
    third, reader, _ = run(hospital, STUDY)
    assert reader.headers == ["003.dcm"]
    assert len(reader.pixels) == 10
    assert third.index == first.index
    patient = SECRET.pseudonym("patient", "PAT-0004")
    differing = [name for name, image in images_of(third).items() if image != images_of(first)[name]]
    assert differing == [patient]
    shutil.rmtree(hospital.site().state)
    assert images_of(run(hospital, STUDY)[0]) == images_of(third)


def test_a_slice_that_comes_later_completes_its_series(tmp_path: Path) -> None:
    hospital, paths = one_series(tmp_path)
    whole = volume_of(run(hospital, STUDY)[0])
    content = paths[4].read_bytes()
    paths[4].unlink()
    assert set(left_out(run(hospital, STUDY)[0].index).values()) == {"missing-slice"}
    paths[4].write_bytes(content)
    found, reader, _ = run(hospital, STUDY)
    assert reader.headers == [paths[4].name]
    np.testing.assert_array_equal(volume_of(found), whole)


@pytest.mark.slow
def test_a_label_that_comes_later_reads_its_series_only(tmp_path: Path) -> None:
    hospital = volume_hospital(tmp_path / "h")
    run(hospital, STUDY)
    with hospital.labels.open("a") as file:
        file.write("PAT-9999,yes\n")
    found, reader, _ = run(hospital, STUDY)
    assert sorted(reader.headers) == sorted(reader.pixels) == ["000.dcm", "001.dcm", "002.dcm"]
    assert "unlabelled/000.dcm" in {entry.path for entry in found.index.images}


def test_recheck_finds_a_slice_of_the_same_size_and_time(tmp_path: Path) -> None:
    hospital, paths = one_series(tmp_path)
    before = volume_of(run(hospital, STUDY)[0])
    status = paths[4].stat()
    changed(paths[4], PixelData=bytes(2 * 24 * 20))
    os.utime(paths[4], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert paths[4].stat().st_size == status.st_size
    np.testing.assert_array_equal(volume_of(run(hospital, STUDY)[0]), before)
    found, reader, _ = run(hospital, STUDY, recheck=True)
    assert len(reader.pixels) == 10
    assert np.abs(volume_of(found) - before).max() > 0.1
    again, reader, _ = run(hospital, STUDY, recheck=True)
    assert (len(reader.headers), reader.pixels) == (10, []), "read, but not decoded again"
    np.testing.assert_array_equal(volume_of(again), volume_of(found))


@pytest.mark.slow
def test_a_damaged_volume_is_made_again(tmp_path: Path) -> None:
    hospital = volume_hospital(tmp_path / "h")
    first, _, _ = run(hospital, STUDY)
    images, files = images_of(first), kept(hospital)
    del first
    path = folder_of(hospital, STUDY) / "images-0.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    found, reader, told = run(hospital, STUDY)
    assert len(told) == 1
    assert "1 images of the cache were damaged" in told[0]
    assert len(reader.pixels) == 10
    assert images_of(found) == images
    assert kept(hospital) == files


@pytest.mark.thorough
def test_killed_at_any_moment_the_next_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = volume_hospital(tmp_path / "whole", num_patients=4)
    run(whole, STUDY, checkpoint_seconds=0.0)
    expected = kept(whole)
    event, hospital = 1, Hospital(tmp_path / "killed")
    shutil.copytree(whole.images, hospital.images, dirs_exist_ok=True)
    shutil.copy(whole.labels, hospital.labels)
    while killed_at(event, lambda: run(hospital, STUDY, checkpoint_seconds=0.0)):
        run(hospital, STUDY)
        assert kept(hospital) == expected, f"killed at event {event}"
        shutil.rmtree(hospital.site().state)
        event += 1
    assert event > 15, "too few moments: the tested calls are not those that are made"


@pytest.mark.thorough
@pytest.mark.parametrize("num_files", [1, 20, 25, 36])
def test_kill_9_of_an_indexer_with_its_processes(tmp_path: Path, num_files: int) -> None:
    hospital = volume_hospital(tmp_path / "h")
    run(hospital, STUDY)
    expected = kept(hospital)
    shutil.rmtree(hospital.site().state)
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from dicom_files import SECRET, Hospital; from series_files import volume_study\n"
        "from client.ingestion import ingest\n"
        "hospital = Hospital.__new__(Hospital); root = Path(sys.argv[1])\n"
        "hospital.root, hospital.images, hospital.labels = root, root / 'images', root / 'labels.csv'\n"
        f"die = lambda done, total: done >= {num_files} and os.kill(os.getpid(), signal.SIGKILL)\n"
        "ingest(hospital.site(), volume_study(), SECRET, progress=die, checkpoint_seconds=0.0)\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(path) for path in Path(__file__).parents[:2]),
    }
    done = subprocess.run([sys.executable, "-c", program, str(hospital.root)], env=environment, check=False)
    assert done.returncode == -9
    run(hospital, STUDY)
    assert kept(hospital) == expected


def test_the_memory_holds_no_name_and_no_identifier(tmp_path: Path) -> None:
    hospital, paths = one_series(tmp_path)
    run(hospital, STUDY)
    with sqlite3.connect(folder_of(hospital, STUDY) / SCAN_NAME) as connection:
        rows = repr(connection.execute("SELECT * FROM files").fetchall())
    connection.close()
    assert str(_series_of(paths[0])) not in rows
    assert "PAT-0001" not in rows
    assert "Walburga" not in rows


# Real files


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="set COLLEGIUM_DATA to a folder that holds the public data sets")
def test_each_real_odd_or_hostile_file_is_in_the_index_once_and_a_real_enhanced_ct_is_a_volume(
    tmp_path: Path,
) -> None:
    hospital, corpora = Hospital(tmp_path / "h"), Path(str(DATA)) / "dicom"
    hospital.images.rmdir()
    hospital.images.symlink_to(corpora)
    patients = set()
    for path in corpora.rglob("*"):
        with suppress(Exception):
            patients.add(str(dcmread(path, stop_before_pixels=True).PatientID))
    rows = [(patient, "yes") for patient in sorted(patients) if patient.isalnum()]
    hospital.label(rows)
    image = volume_image(
        modalities=("CT", "MR"), intensity="percentiles", window_center=None, window_width=None
    )
    index = ingest(hospital.site(), volume_study(image), SECRET).index
    named = [path for entry in index.images for path in entry.paths] + list(left_out(index))
    there = [
        path.relative_to(corpora).as_posix()
        for path in corpora.rglob("*")
        if path.is_file() or path.is_symlink()
    ]
    assert sorted(named) == sorted(there)
    assert "eCT_Supplemental.dcm" in {entry.path.rsplit("/", 1)[-1] for entry in index.images}
    assert ingest(hospital.site(), volume_study(image), SECRET).index == index


# What is trained


@pytest.mark.slow
def test_volumes_are_sampled_mirrored_and_scored(tmp_path: Path) -> None:
    hospital = volume_hospital(tmp_path / "h", num_patients=9)
    study = volume_study()
    training = study.training.model_copy(
        update={"augmentation": Augmentation(flip=("columns",)), "sample_rate": 1.0}
    )
    found, _, _ = run(hospital, study)
    patients = max(found.patients.values(), key=len)
    assert patients.images.shape[1:] == (1, 8, 16, 16)
    machine = Machine(device=torch.device("cpu"), physical_batch=4, mixed_precision=False)
    model, task = build_model(study), task_of(study)
    gradient = PlainGradientSum(model, task, mixed_precision=False)
    seen: list[torch.Tensor] = []

    class Watched(PlainGradientSum):
        def add(self, images, labels, patient):
            seen.append(images)
            super().add(images, labels, patient)

    gradient = Watched(model, task, mixed_precision=False)
    add_sample(
        gradient,
        patients,
        training=training,
        machine=machine,
        generator=CryptographicGenerator(bytes(32)),
    )
    drawn, whole = torch.cat(seen), patients.images[:]
    mirrored = [any(torch.equal(one, other.flip(-1)) for other in whole) for one in drawn]
    plain = [any(torch.equal(one, other) for other in whole) for one in drawn]
    assert all(one or other for one, other in zip(mirrored, plain, strict=True))
    assert len(drawn) == len(patients)
    assert any(mirrored)
    assert any(bool(part.abs().sum() > 0.0) for part in gradient.take())
    scores = kept_of_images(model, patients, task=task, machine=machine)
    assert scores.shape == (len(whole),)
    assert ((scores > 0.0) & (scores < 1.0)).all()
