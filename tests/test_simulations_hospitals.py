"""Preparing hospitals: the same thing twice gives the same bytes; what is there already is never lost."""

import csv
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import typer
from test_simulations_sources import real_data, write_ham, write_medmnist
from typer.testing import CliRunner

from simulations.preparation.dicom_writer import GreyPicture
from simulations.preparation.hospitals import PreparationError, prepare, read_hospitals
from simulations.preparation.phantom_hospitals import phantom_caseloads
from simulations.preparation.sources import (
    FracturePhantomSource,
    HamSource,
    MedMnistSource,
    NodulePhantomSource,
    PhantomSource,
    Source,
)
from simulations.prepare_command import prepare_command

SMALL = PhantomSource(num_hospitals=6, patients_per_hospital=(6,), image_size=48)


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Interrupt:
    """Progress that presses Ctrl-C after some images."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, done: int, total: int) -> None:
        if done >= self.after:
            raise KeyboardInterrupt


def interrupted(out: Path, source: Source = SMALL) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(source, out, 0, Interrupt(after=10))


@pytest.mark.slow
def test_preparing_twice_is_byte_identical(tmp_path: Path) -> None:
    prepare(SMALL, tmp_path / "a", 3)
    prepare(SMALL, tmp_path / "b", 3)
    prepare(SMALL, tmp_path / "c", 4)
    first = bytes_of(tmp_path / "a")
    assert first == bytes_of(tmp_path / "b")
    assert len(first) > 40
    assert first.keys() & bytes_of(tmp_path / "c").keys()
    assert first != bytes_of(tmp_path / "c")


def test_a_hospital_holds_its_images_and_one_label_per_patient(tmp_path: Path) -> None:
    hospitals = prepare(SMALL, tmp_path, 0)
    assert [hospital.name for hospital in hospitals] == [f"hospital-{number}" for number in range(1, 7)]
    for hospital in hospitals:
        with hospital.labels_file.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == [hospital.label_key, hospital.label_column] == ["PatientID", "finding"]
        assert len(rows) == hospital.num_patients == 6
        datasets = [pydicom.dcmread(path) for path in hospital.images.glob("*/*.dcm")]
        assert len(datasets) == hospital.num_images
        assert {dataset.PatientID for dataset in datasets} == {row["PatientID"] for row in rows}
        assert len({dataset.SOPInstanceUID for dataset in datasets}) == len(datasets)


@pytest.mark.slow
def test_pixels_on_disk_are_the_pixels_that_were_drawn(tmp_path: Path) -> None:
    hospitals = prepare(SMALL, tmp_path, 0)
    inverted = set()
    for hospital, caseload in zip(hospitals, phantom_caseloads(SMALL, 0), strict=True):
        for case in caseload.cases[:2]:
            picture = case.images[0].picture()
            assert isinstance(picture, GreyPicture)
            dataset = pydicom.dcmread(hospital.images / case.patient_id / "1.dcm")
            stored = dataset.pixel_array.astype(np.int64)
            turned = dataset.PhotometricInterpretation == "MONOCHROME1"
            np.testing.assert_array_equal(
                2**dataset.BitsStored - 1 - stored if turned else stored, picture.pixels
            )
            inverted.add(turned)
    assert inverted == {True, False}


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: dicom3tools)"
)
def test_dciodvfy_finds_no_error_in_any_hospital_of_any_kind(tmp_path: Path) -> None:
    write_ham(tmp_path / "ham")
    write_medmnist(tmp_path / "m.npz", column=True)
    sources: tuple[Source, ...] = (
        SMALL,
        NodulePhantomSource(patients_per_hospital=(2,), image_size=24),
        FracturePhantomSource(patients_per_hospital=(2,)),
        HamSource(folder=tmp_path / "ham"),
        MedMnistSource(file=tmp_path / "m.npz", num_hospitals=2),
        MedMnistSource(dataset="breastmnist", file=tmp_path / "m.npz", num_hospitals=2),
    )
    for number, source in enumerate(sources):
        for hospital in prepare(source, tmp_path / str(number), 0):
            path = next(hospital.images.glob("*/1.dcm"))
            found = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
            assert "Error" not in found.stdout + found.stderr, (source.kind, hospital.name)


@pytest.mark.slow
def test_a_complete_preparation_is_used_as_it_is(tmp_path: Path) -> None:
    first = prepare(SMALL, tmp_path, 0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert prepare(SMALL, tmp_path, 0, Interrupt(after=0)) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert read_hospitals(tmp_path).hospitals == first


def test_prepared_hospitals_can_be_moved(tmp_path: Path) -> None:
    prepare(SMALL, tmp_path / "old", 0)
    (tmp_path / "old").rename(tmp_path / "new")
    hospital = read_hospitals(tmp_path / "new").hospitals[0]
    assert hospital.folder == tmp_path / "new" / "hospital-1"
    assert hospital.images.is_dir()


@pytest.mark.slow
def test_an_interrupted_preparation_is_recognised_and_taken_up_again(tmp_path: Path) -> None:
    interrupted(tmp_path / "a")
    with pytest.raises(PreparationError, match="was interrupted and is not complete"):
        read_hospitals(tmp_path / "a")
    prepare(SMALL, tmp_path / "a", 0)
    prepare(SMALL, tmp_path / "b", 0)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_an_interrupted_preparation_of_something_else_is_left_alone(tmp_path: Path) -> None:
    interrupted(tmp_path)
    before = bytes_of(tmp_path)
    with pytest.raises(PreparationError, match="interrupted preparation of something else"):
        prepare(SMALL, tmp_path, 1)
    assert bytes_of(tmp_path) == before


@pytest.mark.slow
def test_another_preparation_is_replaced_only_when_asked(tmp_path: Path) -> None:
    prepare(SMALL, tmp_path / "a", 0)
    before = bytes_of(tmp_path / "a")
    other = PhantomSource(num_hospitals=2, patients_per_hospital=(3,), image_size=48)
    with pytest.raises(PreparationError, match=r"holds another preparation \(phantom, 6 hospitals, seed 0\)"):
        prepare(other, tmp_path / "a", 0)
    assert bytes_of(tmp_path / "a") == before
    prepare(other, tmp_path / "a", 0, overwrite=True)
    prepare(other, tmp_path / "b", 0)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


@pytest.mark.parametrize(
    "foreign",
    ["notes.txt", "hospital-1/notes.txt", "hospital-1/images/mine/1.dcm", "hospital-1/images/mine/2.dcm"],
)
def test_a_file_that_we_did_not_write_stops_overwriting_before_anything_is_removed(
    foreign: str, tmp_path: Path
) -> None:
    prepare(SMALL, tmp_path, 0)
    (tmp_path / foreign).parent.mkdir(exist_ok=True)
    (tmp_path / foreign).write_text("mine")
    before = bytes_of(tmp_path)
    with pytest.raises(PreparationError, match="was not written by Collegium"):
        prepare(SMALL, tmp_path, 1, overwrite=True)
    assert bytes_of(tmp_path) == before


@pytest.mark.slow
def test_a_link_is_not_followed_when_overwriting(tmp_path: Path) -> None:
    prepare(SMALL, tmp_path / "other", 0)
    prepare(SMALL, tmp_path / "out", 0)
    (tmp_path / "out" / "linked").symlink_to(tmp_path / "other" / "hospital-1")
    with pytest.raises(PreparationError, match="linked: was not written by Collegium"):
        prepare(SMALL, tmp_path / "out", 1, overwrite=True)
    assert read_hospitals(tmp_path / "other").hospitals


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_somebody_else_is_never_touched(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(PreparationError, match="is not empty and was not prepared by Collegium"):
        prepare(SMALL, tmp_path, 0, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_missing_files_and_a_damaged_record_are_told(tmp_path: Path) -> None:
    hospitals = prepare(SMALL, tmp_path, 0)
    next(hospitals[2].images.glob("*/1.dcm")).unlink()
    with pytest.raises(PreparationError, match=r"hospital-3: holds \d+ of \d+ images; prepare it again"):
        prepare(SMALL, tmp_path, 0)
    assert prepare(SMALL, tmp_path, 0, overwrite=True) == hospitals
    (tmp_path / "hospitals.json").write_text("{}")
    with pytest.raises(PreparationError, match=r"hospitals\.json: cannot be read"):
        read_hospitals(tmp_path)
    with pytest.raises(PreparationError, match=r"holds no hospitals\.json"):
        read_hospitals(tmp_path / "nowhere")


def test_where_the_source_lies_does_not_matter_but_what_it_holds_does(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        write_medmnist(tmp_path / name / "m.npz", column=True)
    sources = [MedMnistSource(file=tmp_path / name / "m.npz", num_hospitals=2) for name in ("here", "there")]
    shutil.copy(tmp_path / "here" / "m.npz", tmp_path / "there" / "m.npz")
    first = prepare(sources[0], tmp_path / "out", 0)
    assert prepare(sources[1], tmp_path / "out", 0) == first
    write_medmnist(tmp_path / "here" / "m.npz", column=False)
    with pytest.raises(PreparationError, match="holds another preparation"):
        prepare(sources[0], tmp_path / "out", 0)


def test_medmnist_hospitals_have_a_role_column(tmp_path: Path) -> None:
    write_medmnist(tmp_path / "m.npz", column=True)
    hospitals = prepare(MedMnistSource(file=tmp_path / "m.npz", num_hospitals=2), tmp_path / "out", 0)
    for hospital in hospitals:
        header, *rows = hospital.labels_file.read_text().splitlines()
        assert header == "PatientID,finding,role"
        assert {row.split(",")[2] for row in rows} == {"train", "validation", "test"}
        assert hospital.has_roles


def test_some_real_lesions_become_valid_hospitals(tmp_path: Path) -> None:
    hospitals = prepare(HamSource(folder=real_data("ham10000"), max_patients=3), tmp_path, 0)
    assert [hospital.num_patients for hospital in hospitals] == [3, 3, 3, 3]
    dataset = pydicom.dcmread(next(hospitals[0].images.glob("*/1.dcm")))
    assert dataset.pixel_array.shape == (150, 200, 3)
    assert dataset.PhotometricInterpretation == "YBR_FULL_422"


def run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command("prepare")(prepare_command)
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_the_command_prints_what_it_prepared(tmp_path: Path) -> None:
    options = (
        "--num-hospitals",
        "2",
        "--patients",
        "4,5",
        "--image-size",
        "32",
        "--out",
        str(tmp_path / "out"),
    )
    code, output = run("phantom", *options)
    assert code == 0, output
    assert "hospital-2" in output
    assert "Plattenwerk CR 30" in output
    code, output = run("phantom", *options, "--json")
    assert [hospital["num_patients"] for hospital in json.loads(output)] == [4, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("phantom", "--alpha", "1"), "--alpha: does not apply to phantom"),
        (("phantom", "--patients", "many"), "--patients is 'many'"),
        (("phantom", "--image-size", "5"), "--image-size: Input should be greater than or equal to 32"),
        (("pneumoniamnist", "--partition", "dirichlet"), "needs exactly one of: alpha"),
        (("ham10000", "--source", "/nonexistent"), "is missing"),
        (("ham10000", "--num-hospitals", "2"), "--num-hospitals: does not apply to ham10000"),
    ],
)
def test_the_command_tells_wrong_input_with_exit_code_2(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    code, output = run(*arguments, "--out", str(tmp_path / "out"))
    assert code == 2
    assert message in output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_told_with_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, output = run("phantom", "--out", str(tmp_path / "file" / "out"))
    assert code == 2
    assert "Error:" in output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
