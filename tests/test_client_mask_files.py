"""Each image gets its own mask or is left out by name, and both are read, kept and erased together."""

import json
from base64 import b64decode
from datetime import UTC, datetime
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from dicom_files import OTHER_SECRET, SECRET, dataset, gradient, make_image, uid
from ingest_runs import run
from mask_sites import ORGANS, MaskedHospital, mask_study, png, square
from PIL import Image as Pillow
from pydicom import dcmread
from rich.console import Console
from series_files import HOUNSFIELD, volume_image, write_series
from test_client_masks import SHAPE, drawn, in_simpleitk, lies_beside, seg_changed, uids, write_seg

from client import ingestion
from client.cache_folder import preparation_hash
from client.index_page import write_page
from client.index_report import render_index
from client.ingestion import DataRefused, Ingested
from client.labels import LabelsError
from client.masks import volume_mask
from client.quality_notes import quality_notes
from client.reasons import MaskProblem
from client.roles import Role
from client.secret import SiteSecret
from client.series import read_series
from client.site_file import Masks, SiteFile
from client.thumbnails import thumbnails
from shared_models.study import Study
from simulations.benchmarks.ingest import ReaderInThisProcess

STUDY = mask_study()


@pytest.fixture
def hospital(tmp_path: Path) -> MaskedHospital:
    made = MaskedHospital(tmp_path / "hospital")
    made.add_lesions(range(10))
    return made


def ingest(site: SiteFile, study: Study, secret: SiteSecret) -> Ingested:
    """Read in this process; that the one which decodes says the same is a test of its own."""
    return ingestion.ingest(site, study, secret, make_reader=ReaderInThisProcess)


def pairs(found: Ingested) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The prepared image and mask of each image, by its path in the index."""
    paths = sorted(found.index.images, key=lambda entry: (entry.patient, entry.path))
    made = {}
    for role in Role:
        patients = found.patients[role]
        entries = [entry for entry in paths if entry.role is role]
        assert patients.masks is not None
        assert len(entries) == len(patients.images) == len(patients.masks)
        for place, entry in enumerate(entries):
            made[entry.path] = patients.images[place].numpy(), patients.masks[place].numpy()
    return made


def reasons(found: Ingested) -> dict[str, str]:
    return {file.path: file.reason.code for file in found.index.left_out}


def test_a_png_of_the_same_name_goes_with_its_image(hospital: MaskedHospital) -> None:
    found = ingest(hospital.site(), STUDY, SECRET)
    assert not found.index.left_out
    assert not found.index.mask_problems
    for path, (image, mask) in pairs(found).items():
        number = int(Path(path).stem)
        np.testing.assert_array_equal(mask[0], square(number) > 0)
        assert image.shape == (1, 16, 16)
        assert image[mask > 0].min() > image[mask == 0].max(), "the image lies under its mask"


@pytest.mark.slow
def test_the_process_that_decodes_reads_masks_as_this_one_does(hospital: MaskedHospital) -> None:
    here, there = (
        pairs(found)
        for found in (
            ingest(hospital.site(), STUDY, SECRET),
            ingestion.ingest(hospital.site(), STUDY, OTHER_SECRET),
        )
    )
    assert here.keys() == there.keys()
    assert all((here[path][1] == there[path][1]).all() for path in here)


def test_the_index_counts_who_has_a_structure(hospital: MaskedHospital) -> None:
    png(hospital.masks / "a" / "0003.png", square(3) * 0)
    index = ingest(hospital.site(), STUDY, SECRET).index
    assert sum(index.num_patients(role, 1) for role in Role) == 9
    assert sum(index.num_patients(role, 0) for role in Role) == 1
    assert not index.left_out, "an empty mask is a mask"


def test_what_is_missing_doubled_or_does_not_fit_is_left_out_by_name(hospital: MaskedHospital) -> None:
    masks = hospital.masks / "a"
    (masks / "0000.png").unlink()
    png(masks / "0001.png", np.zeros((8, 8), dtype=np.uint8))
    (masks / "0002.png").write_bytes(b"no picture")
    png(hospital.masks / f"{uid('PAT-0003', '1', '1')}.png", square(3))
    png(hospital.masks / "stranger.png", square(1))
    (hospital.masks / "notes.txt").write_text("nothing")
    found = ingest(hospital.site(), STUDY, SECRET)
    assert reasons(found) == {
        "a/0000.dcm": "no-mask",
        "a/0001.dcm": "mask-other-size",
        "a/0002.dcm": "mask-unreadable",
        "a/0003.dcm": "several-masks",
    }
    assert found.index.mask_problems == {MaskProblem.NO_IMAGE: 1, MaskProblem.NO_MASK: 1}
    assert len(pairs(found)) == 6


def test_a_mask_may_be_named_after_the_number_of_its_image(hospital: MaskedHospital) -> None:
    (hospital.masks / "a" / "0004.png").rename(hospital.masks / f"{uid('PAT-0004', '1', '1')}.png")
    found = ingest(hospital.site(), STUDY, SECRET)
    assert not found.index.left_out
    np.testing.assert_array_equal(pairs(found)["a/0004.dcm"][1][0], square(4) > 0)


@pytest.mark.parametrize("below", [False, True])
def test_masks_may_lie_among_the_images_and_do_not_count_as_files_there(
    hospital: MaskedHospital, *, below: bool
) -> None:
    folder = hospital.images / "masks" if below else hospital.images
    for path in sorted(hospital.masks.rglob("*.png")):
        (folder / "a").mkdir(parents=True, exist_ok=True)
        path.rename(folder / "a" / path.name)
    (hospital.images / "notes.txt").write_text("nothing")
    found = ingest(hospital.site(masks=Masks(folder=folder)), STUDY, SECRET)
    assert reasons(found) == {"notes.txt": "not-dicom"}
    assert found.index.num_files == 11
    assert not found.index.mask_problems
    assert len(pairs(found)) == 10


def by_column(hospital: MaskedHospital, rows: list[tuple[str, str]]) -> Ingested:
    hospital.label(
        [(uid(f"PAT-{int(name):04d}", "1", "1"), mask) for name, mask in rows],
        header=("SOPInstanceUID", "mask"),
    )
    where = Masks(folder=hospital.masks, column="mask")
    return ingest(hospital.site(key="SOPInstanceUID", masks=where), STUDY, SECRET)


def test_the_labels_file_may_name_the_masks_and_say_that_nothing_is_to_be_marked(
    hospital: MaskedHospital,
) -> None:
    rows = [
        ("0", "a/0005.png"),
        ("1", "none"),
        ("2", ""),
        ("3", "a/nowhere.png"),
        ("4", "a/0004.png"),
        ("4", "none"),
    ]
    found = by_column(hospital, rows)
    assert reasons(found) == {
        "a/0002.dcm": "no-mask",
        "a/0003.dcm": "no-mask",
        "a/0004.dcm": "several-masks",
        **{f"a/{number:04d}.dcm": "no-label" for number in range(5, 10)},
    }
    made = pairs(found)
    np.testing.assert_array_equal(made["a/0000.dcm"][1][0], square(5) > 0)
    assert not made["a/0001.dcm"][1].any()
    assert found.index.mask_problems[MaskProblem.NO_IMAGE] == 8


def test_a_row_that_stands_for_several_images_cannot_name_a_mask(hospital: MaskedHospital) -> None:
    with pytest.raises(LabelsError, match=r"labels\.key is SOPInstanceUID"):
        ingest(hospital.site(masks=Masks(folder=hospital.masks, column="mask")), STUDY, SECRET)


def test_where_masks_are_must_be_said(hospital: MaskedHospital) -> None:
    with pytest.raises(DataRefused, match=r"add \[masks\]"):
        ingest(hospital.site(masks=None), STUDY, SECRET)
    with pytest.raises(DataRefused, match=r"holds the images folder"):
        ingest(hospital.site(masks=Masks(folder=hospital.root)), STUDY, SECRET)
    with pytest.raises(DataRefused, match=r"check masks\.folder"):
        ingest(hospital.site(masks=Masks(folder=hospital.root / "nowhere")), STUDY, SECRET)


def test_values_of_a_mask_mean_the_structures_that_the_study_names(hospital: MaskedHospital) -> None:
    drawn = np.zeros((16, 16), dtype=np.uint8)
    drawn[:4], drawn[4:6], drawn[6:8], drawn[8:10] = 1, 6, 2, 9
    png(hospital.masks / "a" / "0000.png", drawn)
    png(hospital.masks / "a" / "0001.png", np.full((16, 16), 9, dtype=np.uint8))
    found = ingest(hospital.site(), mask_study(ORGANS), SECRET)
    wanted = np.zeros((16, 16))
    wanted[:6], wanted[6:8] = 1, 2
    made = pairs(found)
    np.testing.assert_array_equal(made["a/0000.dcm"][1][0], wanted)
    assert list(made) == ["a/0000.dcm"]
    assert reasons(found)["a/0001.dcm"] == "mask-other-values", (
        "nothing in it has a value that the study names"
    )
    assert found.index.images[0].label == (1, 1)


def test_a_mask_is_turned_padded_and_cut_with_its_image(hospital: MaskedHospital) -> None:
    study = mask_study(image=make_image(rows=24, columns=20, orientation="standard"))
    inside = np.zeros((16, 10), dtype=np.uint8)
    inside[:5, :3] = 200
    pixels = (inside + gradient(16, 10, high=50)).astype(np.uint8)
    hospital.add("a/0000.dcm", dataset(pixels, patient="PAT-0000", PatientOrientation=["R", "F"]))
    png(hospital.masks / "a" / "0000.png", inside)
    image, mask = pairs(ingest(hospital.site(), study, SECRET))["a/0000.dcm"]
    assert mask.sum() > 15
    assert image[mask > 0].mean() > 0.7, "but for the edge, which is in between"
    assert image[mask == 0].mean() < 0.2


# What is kept


def test_nothing_is_read_again_while_image_and_mask_are_as_they_were(hospital: MaskedHospital) -> None:
    first, _, _ = run(hospital, STUDY)
    again, reader, told = run(hospital, STUDY)
    assert (reader.headers, reader.pixels, told) == ([], [], [])
    assert {path: mask.tobytes() for path, (_, mask) in pairs(first).items()} == {
        path: mask.tobytes() for path, (_, mask) in pairs(again).items()
    }


def test_a_mask_that_changed_is_read_again_with_its_image_and_no_other(hospital: MaskedHospital) -> None:
    run(hospital, STUDY)
    png(hospital.masks / "a" / "0006.png", square(1, side=8))
    (hospital.masks / "a" / "0007.png").unlink()
    found, reader, _ = run(hospital, STUDY)
    assert reader.pixels == ["0006.dcm"]
    np.testing.assert_array_equal(pairs(found)["a/0006.dcm"][1][0], square(1, side=8) > 0)
    assert reasons(found) == {"a/0007.dcm": "no-mask"}


def test_images_with_masks_have_a_cache_of_their_own() -> None:
    image = make_image()
    hashes = {
        preparation_hash(image, SECRET),
        preparation_hash(image, SECRET, STUDY.task.mask_values),
        preparation_hash(image, SECRET, mask_study(ORGANS).task.mask_values),
        preparation_hash(image, OTHER_SECRET, STUDY.task.mask_values),
    }
    assert len(hashes) == 4


def test_the_mask_of_a_patient_who_withdrew_is_erased_with_the_image(hospital: MaskedHospital) -> None:
    first, _, _ = run(hospital, STUDY)
    gone = next(entry.patient for entry in first.index.images if entry.path == "a/0002.dcm")
    (stored,) = (hospital.root / "state" / "cache").glob("*/images-*.bin")
    values = np.fromfile(stored, dtype="<f4").reshape(-1, 2, 16, 16)
    assert (values[:, 1] == square(2) / 255).all(axis=(1, 2)).sum() == 1
    found, _, _ = run(hospital, STUDY, withdrawn=[gone])
    assert "a/0002.dcm" not in pairs(found)
    values = np.fromfile(stored, dtype="<f4").reshape(-1, 2, 16, 16)
    assert not (values[:, 1] == square(2) / 255).all(axis=(1, 2)).any()
    assert (values == 0).all(axis=(1, 2, 3)).sum() == 1


def test_neither_a_name_nor_a_number_of_a_mask_is_in_what_is_remembered(hospital: MaskedHospital) -> None:
    number = uid("PAT-0004", "1", "1")
    (hospital.masks / "a" / "0004.png").rename(hospital.masks / f"{number}.png")
    run(hospital, STUDY)
    for path in (hospital.root / "state" / "cache").rglob("*.sqlite"):
        content = path.read_bytes()
        assert number.encode() not in content
        assert b".png" not in content


# DICOM SEG


def seg_hospital(tmp_path: Path) -> MaskedHospital:
    """Four series of slices, each with a SEG in one folder, whose names say nothing; one more has none."""
    hospital = MaskedHospital(tmp_path / "hospital")
    rows = []
    for number in range(5):
        patient = f"PAT-{number:04d}"
        kind = "oblique" if number % 2 else "axial"
        paths = write_series(
            hospital.images / patient, kind=kind, shape=SHAPE, patient=patient, high=100 + 9 * number
        )
        if number < 4:
            write_seg(hospital.masks / f"{9 - number}.dcm", drawn(), paths)
        rows.append((patient,))
    hospital.label(rows, header=("PatientID",))
    return hospital


VOLUME = volume_image(depth=12, rows=14, columns=13, spacing=1.0, slice_spacing=1.0)
VOLUMES = mask_study(image=VOLUME)


@pytest.mark.slow
def test_a_seg_goes_with_the_series_that_it_was_drawn_on(tmp_path: Path) -> None:
    hospital = seg_hospital(tmp_path)
    found = ingest(hospital.site(), VOLUMES, SECRET)
    assert {file.reason.code for file in found.index.left_out} == {"no-mask"}
    assert len(found.index.left_out) == SHAPE[0]
    made = pairs(found)
    assert len(made) == 4
    for path, (image, mask) in made.items():
        paths = sorted((hospital.images / path).parent.iterdir())
        number = int(path[4:8])
        seg = hospital.masks / f"{9 - number}.dcm"
        want = volume_mask(seg, read_series(paths, VOLUME), VOLUME, instances=uids(paths))
        np.testing.assert_array_equal(mask, want)
        assert mask.sum() > 20
        assert image.shape == mask.shape == (1, 12, 14, 13)


@pytest.mark.slow
def test_nothing_of_volumes_is_read_again_until_a_mask_changes(tmp_path: Path) -> None:
    hospital = seg_hospital(tmp_path)
    run(hospital, VOLUMES)
    _, reader, _ = run(hospital, VOLUMES)
    assert (reader.headers, reader.pixels, reader.masks) == ([], [], [])
    paths = sorted((hospital.images / "PAT-0002").iterdir(), key=lambda path: dcmread(path).SOPInstanceUID)
    in_order = sorted(paths, key=lambda path: float(dcmread(path).ImagePositionPatient[2]))
    write_seg(hospital.masks / "7.dcm", np.flip(drawn(), 1).copy(), in_order)
    _, reader, _ = run(hospital, VOLUMES)
    assert reader.masks == ["7.dcm"]
    assert len(reader.pixels) == SHAPE[0]


def test_a_nifti_goes_with_the_folder_of_its_name_or_the_series_that_it_is_named_after(
    tmp_path: Path,
) -> None:
    hospital = MaskedHospital(tmp_path / "hospital")
    for number, name in enumerate(["b/PAT-0000.nii.gz", f"{uid('PAT-0001', '1', '1')}.nii"]):
        patient = f"PAT-{number:04d}"
        paths = write_series(
            hospital.images / "b" / patient, shape=SHAPE, patient=patient, high=100 + 9 * number
        )
        of = read_series(paths, HOUNSFIELD)
        (hospital.masks / name).parent.mkdir(exist_ok=True)
        SimpleITK.WriteImage(in_simpleitk(drawn(), of), str(hospital.masks / name))
    hospital.label([("PAT-0000",), ("PAT-0001",)], header=("PatientID",))
    found = ingest(hospital.site(), VOLUMES, SECRET)
    assert not found.index.left_out
    assert all(mask.sum() > 20 for _, mask in pairs(found).values())


@pytest.mark.slow
def test_a_seg_that_does_not_lie_on_its_series_leaves_the_series_out_by_name(tmp_path: Path) -> None:
    hospital = seg_hospital(tmp_path)
    seg_changed(hospital.masks / "9.dcm", lies_beside)
    (hospital.masks / "8.dcm").write_bytes((hospital.masks / "8.dcm").read_bytes()[:-2])
    found = ingest(hospital.site(), VOLUMES, SECRET)
    by_patient = {file.path[:8]: file.reason.code for file in found.index.left_out}
    assert by_patient == {"PAT-0000": "mask-elsewhere", "PAT-0001": "mask-unreadable", "PAT-0004": "no-mask"}


@pytest.mark.slow
def test_segs_may_lie_among_the_slices(tmp_path: Path) -> None:
    hospital = seg_hospital(tmp_path)
    for path in hospital.masks.iterdir():
        path.rename(hospital.images / "PAT-0000" / f"seg-{path.name}")
    found = ingest(hospital.site(masks=Masks(folder=hospital.images)), VOLUMES, SECRET)
    assert {file.path[:8] for file in found.index.left_out} == {"PAT-0004"}
    assert len(pairs(found)) == 4


@pytest.mark.slow
def test_segments_are_structures_by_their_number(tmp_path: Path) -> None:
    of_two = mask_study(
        {
            "kind": "segmentation",
            "structures": [{"name": "upper", "values": [2]}, {"name": "rest", "values": [1]}],
        },
        image=VOLUME,
    )
    hospital = seg_hospital(tmp_path)
    paths = sorted(
        (hospital.images / "PAT-0000").iterdir(),
        key=lambda path: float(dcmread(path).ImagePositionPatient[2]),
    )
    write_seg(hospital.masks / "9.dcm", drawn(), paths, segments=2, numbered=True)
    found = ingest(hospital.site(), of_two, SECRET)
    (mask,) = [mask for path, (_, mask) in pairs(found).items() if path.startswith("PAT-0000")]
    assert set(np.unique(mask)) == {0.0, 1.0, 2.0}
    assert {entry.label for entry in found.index.images if entry.path.startswith("PAT-0000")} == {(1, 1)}
    wrong = mask_study(
        {"kind": "segmentation", "structures": [{"name": "other", "values": [7]}]}, image=VOLUME
    )
    left_out = ingest(hospital.site(), wrong, SECRET).index.left_out
    assert {file.reason.code for file in left_out} == {"mask-other-values", "no-mask"}


# What is told


def test_that_nobody_is_without_a_structure_is_nothing_to_look_at_and_that_nobody_has_it_is(
    hospital: MaskedHospital,
) -> None:
    index = ingest(hospital.site(), STUDY, SECRET).index
    assert index.num_patients_by_class() == {"lesion": 10}
    assert not quality_notes(index, STUDY)
    for path in hospital.masks.rglob("*.png"):
        png(path, np.zeros((16, 16), dtype=np.uint8))
    index = ingest(hospital.site(), STUDY, SECRET).index
    assert any("counts as lesion" in note for note in quality_notes(index, STUDY))


def test_the_page_and_the_terminal_tell_what_is_wrong_in_the_masks_folder(hospital: MaskedHospital) -> None:
    (hospital.masks / "notes.txt").write_text("nothing")
    png(hospital.masks / "stranger.png", square(1))
    index = ingest(hospital.site(), STUDY, SECRET).index
    console = Console(file=StringIO(), width=300)
    console.print(render_index(index, STUDY))
    write_page(
        hospital.root / "index.html",
        index,
        STUDY,
        site="north",
        refusals=(),
        pictures=(),
        now=datetime.now(UTC),
    )
    page = (hospital.root / "index.html").read_text(encoding="utf-8")
    for problem in MaskProblem:
        assert problem.sentence in console.file.getvalue()  # type: ignore[attr-defined]
        assert problem.sentence in page
    written = json.loads((hospital.root / "state" / "index.json").read_text(encoding="utf-8"))
    assert written["mask_problems"] == {"mask-without-image": 1, "not-a-mask": 1}


@pytest.mark.slow
def test_a_picture_shows_the_edge_of_the_mask_in_red_and_nothing_else(hospital: MaskedHospital) -> None:
    found = ingest(hospital.site(), STUDY, SECRET)
    (picture,) = thumbnails(found.index, found.patients, SECRET, per_class=1)
    assert picture.class_name == "lesion"
    content = b64decode(picture.uri.partition(",")[2])
    shown = np.asarray(Pillow.open(BytesIO(content)).convert("RGB")).astype(int)
    red = (shown == [255, 0, 0]).all(axis=2)
    assert red.sum() == 4 * 5, "the edge of a square of six"
    assert (shown[~red].max(axis=1) == shown[~red].min(axis=1)).all(), "all else is grey"
