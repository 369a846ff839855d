"""The whole of `collegium-client predict`: tables, viewer, maps, pictures and DICOM results of one call."""

import csv
import json
import stat
from pathlib import Path

import pytest
from mask_sites import MaskedHospital, mask_study
from orthanc import Orthanc, needs_orthanc
from pacs_site import PacsSite, dicomweb, dimse
from pydicom import dcmread
from readings import errors_of
from test_client_predict import invoke, rows
from trained_models import model_file

from client.command import app
from shared_models.processes import free_port
from simulations.preparation.hospitals import prepare
from simulations.preparation.sources import PhantomSource

from studies import make_study  # isort: skip
from typer.testing import CliRunner  # isort: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Radiographs of a phantom hospital as a PACS would give them, a file that is none, and a model."""
    root = tmp_path_factory.mktemp("outputs")
    source = PhantomSource(kind="phantom", num_hospitals=1, patients_per_hospital=(4,), image_size=48)
    prepare(source, root / "hospitals", seed=3)
    (root / "images").mkdir()
    for number, path in enumerate(sorted((root / "hospitals").rglob("*.dcm"))[:3]):
        (root / "images" / f"{number}.dcm").write_bytes(path.read_bytes())
    (root / "images" / "=notes.txt").write_text("nothing", encoding="utf-8")
    modality = str(dcmread(root / "images" / "0.dcm").Modality)
    study = make_study({'modalities = ["CR"]': f'modalities = ["{modality}", "DX", "CR"]'})
    model_file(root / "model.safetensors", study)
    return root


@pytest.mark.slow
def test_one_call_writes_everything_that_is_wanted(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wanted = (
        "--explain",
        "grad-cam",
        "--explain",
        "occlusion",
        "--pictures",
        "--dicom",
        "sr",
        "--dicom",
        "sc",
    )
    code, said = invoke(place / "model.safetensors", place / "images", "--out", out, "--workers", 1, *wanted)
    assert code == 3, said
    assert "6 DICOM results written" in said
    assert len(rows(out / "predictions.csv")) == 3
    assert {path.name for path in (out / "pictures").iterdir()} == {
        f"{number:05d}-{method}.png" for number in (1, 2, 3) for method in ("grad-cam", "occlusion")
    }
    results = sorted((out / "dicom").glob("*.dcm"))
    assert [path.name.partition("-")[2] for path in results] == ["picture.dcm", "report.dcm"] * 3
    assert not [line for path in results for line in errors_of(path)]
    with (out / "dicom" / "files.csv").open(newline="") as file:
        assert {row["input"] for row in csv.DictReader(file)} == {"0.dcm", "1.dcm", "2.dcm"}
    studies = {dcmread(path).StudyInstanceUID for path in (place / "images").glob("*.dcm")}
    assert {dcmread(path).StudyInstanceUID for path in results} == studies
    drawn = dcmread(results[0])
    assert (drawn.Columns, drawn.SamplesPerPixel) == (640, 3)

    page = (out / "index.html").read_text(encoding="utf-8")
    assert "card.html" in page
    assert (out / "card.html").exists()
    listed = (out / "list.js").read_text(encoding="utf-8")
    assert listed.count("collegium.entry(") == 4, "what was left out is in the list, too"
    assert "not-dicom" in listed
    for path in (out, *out.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.thorough
def test_a_second_call_leaves_nothing_of_the_first(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (place / "model.safetensors", "--out", out, "--workers", 1)
    more = ("--explain", "grad-cam", "--pictures", "--dicom", "sr")
    assert invoke(*words, place / "images" / "0.dcm", place / "images" / "1.dcm", *more)[0] == 0
    assert invoke(*words, place / "images" / "2.dcm", "--overwrite")[0] == 0
    assert not list(out.rglob("*.png"))
    assert not list(out.rglob("*.dcm"))
    assert len(list((out / "images").glob("*.js"))) == 1


@pytest.mark.slow
def test_contours_and_masks_of_segmentation_need_no_map(tmp_path: Path) -> None:
    hospital = MaskedHospital(tmp_path / "hospital")
    hospital.add_lesions(range(2))
    model_file(tmp_path / "model.safetensors", mask_study())
    out = tmp_path / "out"
    wanted = ("--pictures", "--dicom", "seg", "--dicom", "sr", "--dicom", "sc")
    code, said = invoke(
        tmp_path / "model.safetensors", hospital.images, "--out", out, "--workers", 1, *wanted
    )
    assert code == 0, said
    assert {path.name for path in (out / "pictures").iterdir()} == {
        "00001-contours.png",
        "00002-contours.png",
    }
    results = sorted((out / "dicom").glob("*.dcm"))
    assert {dcmread(path).Modality for path in results} == {"SEG", "SR", "OT"}
    assert not [line for path in results for line in errors_of(path)]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--explain", "magic"), "--explain magic: give grad-cam or occlusion"),
        (("--dicom", "pdf"), "--dicom pdf: give one of sr, seg, sc"),
        (("--dicom", "seg"), "makes no masks"),
        (("--store",), "--store: which results?"),
        (("--pictures",), "--pictures: of what?"),
        (("--explained-output", "positive"), "--explained-output: of which maps?"),
        (("--explain", "grad-cam", "--explained-output", "cat"), "cat"),
        (("--store", "--dicom", "sr", "--config", "missing.toml"), "missing.toml"),
    ],
)
def test_what_cannot_be_made_is_told_before_anything_is_read(
    place: Path, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    done = CliRunner().invoke(
        app,
        [
            "predict",
            str(place / "model.safetensors"),
            str(place / "images"),
            "--out",
            str(tmp_path / "o"),
            *words,
        ],
    )
    said = done.output + str(done.exception or "")
    assert done.exit_code != 0
    assert told in " ".join(said.split()), said
    assert not (tmp_path / "o" / "predictions.csv").exists()


@pytest.mark.slow
@needs_orthanc
@pytest.mark.parametrize("way", ["dimse", "dicomweb"])
def test_results_are_stored_in_the_studies_of_their_images(place: Path, tmp_path: Path, way: str) -> None:
    files = sorted((place / "images").glob("*.dcm"))
    orthanc = Orthanc(tmp_path / "orthanc", move_port=free_port())
    with orthanc:
        orthanc.upload(files)
        table = dicomweb(orthanc.url) if way == "dicomweb" else dimse(orthanc.dicom_port)
        site = PacsSite(tmp_path, table)
        words = (
            place / "model.safetensors",
            *files,
            "--workers",
            1,
            "--dicom",
            "sr",
            "--store",
            "--config",
            site.config,
        )
        code, said = invoke(*words, "--out", tmp_path / "out", "--json")
        assert code == 0, said
        told = json.loads(said[said.index("{") :])
        assert (told["num_results"], told["num_stored"], told["not_stored"]) == (3, 3, {})
        for path in files:
            header = dcmread(path, stop_before_pixels=True)
            found = orthanc._ask("POST", "/tools/lookup", content=str(header.StudyInstanceUID)).json()
            (study,) = [one for one in found if one["Type"] == "Study"]
            series = orthanc._ask("GET", f"/studies/{study['ID']}/series").json()
            assert "SR" in {one["MainDicomTags"]["Modality"] for one in series}
    code, said = invoke(*words, "--out", tmp_path / "again")
    assert code == 4, said
    assert "0 of 3 stored" in said
    assert len(list((tmp_path / "again" / "dicom").glob("*.dcm"))) == 3, "the files stay"
