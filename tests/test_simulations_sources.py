"""MedMNIST and HAM10000 are read as they are published; what is wrong with a file is told."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from shared_models.configuration import ConfigurationError, Frozen, parse_toml
from simulations.preparation.cases import SourceError
from simulations.preparation.dicom_writer import GreyPicture, JpegPicture
from simulations.preparation.ham10000 import ham10000_caseloads, locate_ham10000, read_metadata
from simulations.preparation.medmnist import locate_medmnist, medmnist_caseloads, read_medmnist
from simulations.preparation.sources import HamSource, MedMnistSource, PhantomSource, Source

METADATA_HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset\n"
ROWS = (
    "HAM_1,ISIC_1,nv,histo,45.0,male,back,vidir_modern",
    "HAM_1,ISIC_2,nv,histo,45.0,male,back,vidir_modern",
    "HAM_2,ISIC_3,mel,histo,,unknown,back,vidir_molemax",
    "HAM_3,ISIC_4,bkl,histo,0.0,female,back,rosendahl",
    "HAM_4,ISIC_5,vasc,histo,80.0,female,back,vienna_dias",
)


def write_ham(
    folder: Path, rows: tuple[str, ...] = ROWS, header: str = METADATA_HEADER, num_images: int = 5
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "HAM10000_metadata_with_site.csv").write_text(header + "\n".join(rows) + "\n")
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number in range(1, num_images + 1):
            archive.writestr(f"ISIC_{number}.jpg", picture(number))


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


def write_medmnist(path: Path, *, column: bool, **changes: NDArray[np.generic]) -> None:
    generator = np.random.default_rng(0)
    arrays: dict[str, NDArray[np.generic]] = {}
    for part, number in (("train", 60), ("val", 20), ("test", 20)):
        labels = (np.arange(number) % 4 == 0).astype(np.uint8)
        arrays[f"{part}_images"] = generator.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        arrays[f"{part}_labels"] = labels[:, None] if column else labels
    np.savez(path, **(arrays | changes))


def read_ham(folder: Path, max_patients: int | None = None) -> tuple[tuple[str, tuple[str, ...]], ...]:
    source = HamSource(folder=folder, max_patients=max_patients)
    with ham10000_caseloads(source, locate_ham10000(source)) as caseloads:
        return tuple((load.name, tuple(case.patient_id for case in load.cases)) for load in caseloads)


def test_the_four_sources_of_ham10000_become_four_hospitals_and_lesions_patients(tmp_path: Path) -> None:
    write_ham(tmp_path)
    assert read_ham(tmp_path) == (
        ("vidir-molemax", ("HAM_2",)),
        ("vidir-modern", ("HAM_1",)),
        ("rosendahl", ("HAM_3",)),
        ("vienna-dias", ("HAM_4",)),
    )


def test_a_lesion_keeps_its_label_sex_age_and_streams(tmp_path: Path) -> None:
    write_ham(tmp_path)
    source = HamSource(folder=tmp_path)
    with ham10000_caseloads(source, locate_ham10000(source)) as caseloads:
        case = caseloads[1].cases[0]
        streams = [image.picture() for image in case.images]
        unknown = caseloads[0].cases[0].images[0].header.subject
    assert (case.label, case.images[0].header.subject.sex, case.images[0].header.subject.age_years) == (
        "nv",
        "M",
        45,
    )
    assert streams == [JpegPicture(stream=picture(1)), JpegPicture(stream=picture(2))]
    assert (unknown.sex, unknown.age_years) == ("", None)


def test_a_lesion_seen_at_two_sources_has_one_role(tmp_path: Path) -> None:
    write_ham(tmp_path, (*ROWS[:4], "HAM_1,ISIC_5,nv,histo,45.0,male,back,rosendahl"))
    source = HamSource(folder=tmp_path)
    with ham10000_caseloads(source, locate_ham10000(source)) as caseloads:
        roles = {case.role for load in caseloads for case in load.cases if case.patient_id == "HAM_1"}
        places = [load.name for load in caseloads for case in load.cases if case.patient_id == "HAM_1"]
    assert places == ["vidir-modern", "rosendahl"]
    assert len(roles) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("HAM_9,ISIC_1,naevus,histo,45.0,male,back,rosendahl", "line 2: dx is 'naevus'"),
        ("HAM_9,ISIC_1,nv,histo,45.0,male,back,graz", "line 2: dataset is 'graz'"),
        ("HAM_9,ISIC_1,nv,histo,old,male,back,rosendahl", "line 2: age is 'old'"),
        ("HAM_9,ISIC_1,nv,histo,450,male,back,rosendahl", "line 2: age is 450"),
        ("../../etc,ISIC_1,nv,histo,45,male,back,rosendahl", "line 2: lesion_id is '../../etc'"),
        ("HAM_9,ISIC_1,nv", "line 2: dataset is ''"),
    ],
)
def test_a_wrong_row_is_told_with_its_line_column_and_value(row: str, message: str, tmp_path: Path) -> None:
    write_ham(tmp_path, (row,))
    with pytest.raises(SourceError, match=message):
        read_metadata(tmp_path / "HAM10000_metadata_with_site.csv")


def test_a_lesion_with_two_labels_is_refused(tmp_path: Path) -> None:
    write_ham(tmp_path, (ROWS[0], ROWS[1].replace(",nv,", ",mel,")))
    with pytest.raises(SourceError, match="lesion HAM_1 is both nv and mel"):
        read_ham(tmp_path)


def test_missing_column_member_archive_and_folder_are_told(tmp_path: Path) -> None:
    write_ham(tmp_path / "column", header=METADATA_HEADER.replace("dataset", "site"))
    with pytest.raises(SourceError, match="has no column dataset"):
        read_ham(tmp_path / "column")
    write_ham(tmp_path / "member", num_images=3)
    with pytest.raises(SourceError, match=r"lacks 2 of 5 images .* the first is ISIC_4\.jpg"):
        read_ham(tmp_path / "member")
    write_ham(tmp_path / "archive")
    (tmp_path / "archive" / "images.zip").write_bytes(b"not a zip")
    with pytest.raises(SourceError, match="cannot be read as a zip archive"):
        read_ham(tmp_path / "archive")
    with pytest.raises(SourceError, match=r"images\.zip: is missing"):
        read_ham(tmp_path / "nowhere")


@pytest.mark.parametrize("column", [True, False], ids=["labels (N,1)", "labels (N,)"])
def test_medmnist_keeps_the_official_split_as_roles(column: bool, tmp_path: Path) -> None:
    path = tmp_path / "breastmnist.npz"
    write_medmnist(path, column=column)
    source = MedMnistSource(dataset="breastmnist", file=path, num_hospitals=2, min_patients=10)
    caseloads = medmnist_caseloads(source, locate_medmnist(source), seed=0)
    cases = [case for load in caseloads for case in load.cases]
    roles = [case.role for case in cases]
    assert [roles.count(role) for role in ("train", "validation", "test")] == [60, 20, 20]
    assert len({case.patient_id for case in cases}) == 100
    assert [case.label for case in cases].count("normal-or-benign") == 25
    data = read_medmnist(path, 2)
    by_id = {case.patient_id: case for case in cases}
    shown = by_id["breastmnist-validation-00003"].images[0].picture()
    assert isinstance(shown, GreyPicture)
    np.testing.assert_array_equal(shown.pixels, data.images[63])


def test_every_part_of_a_medmnist_hospital_has_the_same_proportions(tmp_path: Path) -> None:
    path = tmp_path / "pneumoniamnist.npz"
    write_medmnist(path, column=True)
    source = MedMnistSource(
        file=path, num_hospitals=2, partition="quantity", shares=(3.0, 1.0), min_patients=1
    )
    large, small = medmnist_caseloads(source, path, seed=1)
    for role, number in (("train", 60), ("validation", 20), ("test", 20)):
        assert abs(sum(case.role == role for case in large.cases) - 0.75 * number) <= 2
    assert large.label_counts["pneumonia"] + small.label_counts["pneumonia"] == 25


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (
            "val_labels",
            np.zeros(19, np.uint8),
            r"val_labels is uint8 of shape \(19,\); must be 20 whole numbers",
        ),
        ("val_labels", np.full(20, 2, np.uint8), r"val_labels runs from 2 to 2; must be in 0\.\.1"),
        ("test_images", np.zeros((20, 28, 28, 3), np.uint8), "test_images is uint8 of shape"),
        ("test_images", np.zeros((20, 28, 28), np.float32), "test_images is float32"),
        ("test_images", np.zeros((20, 14, 14), np.uint8), "differ in size"),
        ("train_labels", np.array([{}] * 60), "cannot be read"),
    ],
)
def test_a_wrong_medmnist_array_is_told(
    name: str, array: NDArray[np.generic], message: str, tmp_path: Path
) -> None:
    write_medmnist(tmp_path / "x.npz", column=True, **{name: array})
    with pytest.raises(SourceError, match=message):
        read_medmnist(tmp_path / "x.npz", 2)


def test_files_that_are_no_medmnist_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", something=np.zeros(3))
    with pytest.raises(SourceError, match="has no array train_images"):
        read_medmnist(tmp_path / "other.npz", 2)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(SourceError, match=r"cannot be read as a \.npz file"):
        read_medmnist(tmp_path / "text.npz", 2)
    with pytest.raises(SourceError, match="is not a file"):
        locate_medmnist(MedMnistSource(file=tmp_path / "nowhere.npz"))


def test_without_a_path_the_data_folder_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("COLLEGIUM_DATA", raising=False)
    with pytest.raises(SourceError, match="no path is given for ham10000; give one, or set COLLEGIUM_DATA"):
        locate_ham10000(HamSource())
    monkeypatch.setenv("COLLEGIUM_DATA", str(tmp_path))
    with pytest.raises(SourceError, match="is not a folder"):
        locate_medmnist(MedMnistSource())


class Table(Frozen):
    """A scenario with nothing but its hospitals."""

    hospitals: Source


def test_a_source_is_written_as_a_flat_table() -> None:
    text = '[hospitals]\nkind = "phantom"\nnum_hospitals = 3\npatients_per_hospital = [90, 60, 30]\n'
    source = parse_toml(text, Table, origin="scenario").hospitals
    assert isinstance(source, PhantomSource)
    assert source.num_patients == (90, 60, 30)
    one = parse_toml(
        '[hospitals]\nkind = "phantom"\npatients_per_hospital = 50\n', Table, origin="x"
    ).hospitals
    assert isinstance(one, PhantomSource)
    assert one.num_patients == (50, 50, 50, 50)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('kind = "phantom"\npatients_per_hospital = [1, 2]', "has 2 numbers for 4 hospitals"),
        ('kind = "phantom"\nprevalence = [0.5, 0.2]', "needs 0 < lowest <= highest < 1"),
        ('kind = "phantom"\nalpha = 1.0', "alpha is not a known key"),
        ('kind = "medmnist"\npartition = "dirichlet"', 'partition = "dirichlet" needs exactly one of: alpha'),
        ('kind = "medmnist"\nalpha = 0.5', 'partition = "iid" does not use alpha'),
        ('kind = "medmnist"\npartition = "quantity"\nshares = [1, 2]', "shares has 2 values for 5 hospitals"),
        ('kind = "ham10000"\nnum_hospitals = 3', "num_hospitals is not a known key"),
        ('kind = "mri"', "phantom"),
    ],
)
def test_a_wrong_table_is_told(lines: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_toml(f"[hospitals]\n{lines}\n", Table, origin="scenario")


def test_sources_are_frozen() -> None:
    with pytest.raises(ValidationError):
        PhantomSource().num_hospitals = 3  # type: ignore[misc]


def real_data(name: str) -> Path:
    folder = Path(os.environ.get("COLLEGIUM_DATA", "/nonexistent")) / name
    if not folder.is_dir():
        pytest.skip(f"set COLLEGIUM_DATA to a folder that holds {name}/ to run this test")
    return folder


def test_the_published_ham10000_has_its_published_counts() -> None:
    source = HamSource(folder=real_data("ham10000"))
    with ham10000_caseloads(source, locate_ham10000(source)) as caseloads:
        counts = {load.name: load.num_images for load in caseloads}
        patients = {case.patient_id for load in caseloads for case in load.cases}
        roles = {(case.patient_id, case.role) for load in caseloads for case in load.cases}
    assert counts == {"vidir-molemax": 3954, "vidir-modern": 3363, "rosendahl": 2259, "vienna-dias": 439}
    assert len(patients) == len(roles) == 7470


@pytest.mark.parametrize(
    ("name", "counts"), [("pneumoniamnist", (4708, 524, 624)), ("breastmnist", (546, 78, 156))]
)
def test_the_published_medmnist_files_have_their_published_counts(name: str, counts: tuple[int, ...]) -> None:
    (path,) = real_data(name).glob("*.npz")
    data = read_medmnist(path, 2)
    assert tuple(np.bincount(data.roles)) == counts
    assert data.images.shape == (sum(counts), 28, 28)
