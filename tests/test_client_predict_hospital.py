"""A hospital that took no part in the training asks the model about its DICOM files: the figures are the evaluation's.

And a study in a real PACS, which is brought into a private folder for as long as it is read.
"""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from orthanc import Orthanc, needs_orthanc
from pacs_site import ACCESSION, PATIENT, PacsSite, dicomweb, dimse, make_study
from pydicom import dcmread
from sklearn.metrics import roc_auc_score
from studies import study_text
from trained_models import model_file
from typer.testing import CliRunner

from client.command import app
from client.evaluation import patient_scores
from client.ingestion import ingest
from client.patients import PatientSet
from client.reasons import Reason
from client.secret import SiteSecret
from client.site_file import read_site
from client.training import Machine
from shared_models.model_file import TrainedModel, read_model
from shared_models.study import Study
from shared_models.tasks.curves import auroc_error
from shared_models.tasks.task import Metrics
from simulations.hospital_data import pooled
from simulations.preparation.hospitals import Hospital, prepare, read_hospitals
from simulations.preparation.sources import HamSource, PhantomSource
from simulations.runner import Display, Options, run_scenario
from simulations.scenario import Scenario, read_scenario
from simulations.work_folder import write_site

MACHINE = Machine(device=torch.device("cpu"), physical_batch=64, mixed_precision=False)
LEFT_OUT = "hospital-4"


def quiet() -> Display:
    return Display(
        prepared=lambda done, total: None,
        rounds=lambda done: None,
        baselines=lambda done, total: None,
        say=lambda text: None,
    )


def without(hospitals: Path, name: str) -> None:
    """Take a hospital out of the record of what was prepared; its folder stays."""
    record = hospitals / "hospitals.json"
    found = json.loads(record.read_text(encoding="utf-8"))
    found["hospitals"] = [one for one in found["hospitals"] if one["name"] != name]
    record.write_text(json.dumps(found), encoding="utf-8")


def scenario(folder: Path) -> Scenario:
    changes = {
        'modalities = ["CR"]': 'modalities = ["CR", "DX"]\nintensity = "percentiles"',
        "rows = 16": "rows = 24",
        "columns = 16": "columns = 24",
        "num_rounds = 3": "num_rounds = 20",
        "learning_rate = 0.1": "learning_rate = 0.5",
        "validation_rounds = [1, 3]": 'validation_rounds = [20]\noperating_points = [{ name = "sensitive", '
        "sensitivity = 0.8 }]",
    }
    lines = study_text(changes).splitlines()
    study = [line.replace("[", "[study.", 1) if line.startswith("[") else line for line in lines]
    head = [
        'title = "Three phantom hospitals"',
        "seed = 3",
        "[hospitals]",
        'kind = "phantom"',
        "num_hospitals = 3",
    ]
    path = folder / "scenario.toml"
    path.write_text(
        "\n".join([*head, "patients_per_hospital = [2, 2, 2]", "[study]", *study]), encoding="utf-8"
    )
    return read_scenario(str(path))


def trained_without(
    folder: Path, hospitals: Path, name: str, wanted: Scenario
) -> tuple[TrainedModel, Hospital]:
    """The model of all hospitals but one, and that one."""
    stranger = next(one for one in read_hospitals(hospitals).hospitals if one.name == name)
    without(hospitals, name)
    options = Options(engine="local", compare=False, out=folder / "run", hospitals=hospitals, num_workers=1)
    run_scenario(wanted, options, quiet())
    return read_model(folder / "run" / "model.safetensors"), stranger


def predicted(folder: Path, images: Path) -> list[dict[str, str]]:
    """What ``collegium-client predict`` writes of all images of a hospital."""
    words = [str(folder / "run" / "model.safetensors"), str(images), "--out", str(folder / "predictions")]
    done = CliRunner().invoke(app, ["predict", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return rows(folder / "predictions" / "predictions.csv")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def site_of(folder: Path, hospital: Hospital, study: Study) -> Path:
    return write_site(folder / "stranger", hospital, study, seed=3)


def evaluated(model: TrainedModel, patients: PatientSet) -> Metrics:
    """The site's own exact evaluation."""
    task = model.task.finely_binned()
    return task.metrics(task.statistics(*patient_scores(model.model, patients, task=task, machine=MACHINE)))


def check_stranger(folder: Path, model: TrainedModel, stranger: Hospital, positive: set[str]) -> Metrics:
    """Predictions equal those of the site's own tensors, and AUROC of the files the site's own evaluation.

    An image whose pixels the site uses already under another name is no image of the evaluation; its prediction is
    there all the same. A row's first folder is the patient, as hospitals are prepared.
    """
    table = {row["name"]: row for row in predicted(folder, stranger.images)}
    site = read_site(site_of(folder, stranger, model.study))
    found = ingest(site, model.study, SiteSecret.load(site.state))
    patients = pooled([*found.patients.values()])
    assert {file.reason for file in found.index.left_out} <= {Reason.DUPLICATE_PIXELS}
    used = sorted(entry.path for entry in found.index.images)
    assert set(table) == {*used, *(file.path for file in found.index.left_out)}
    scores = np.array([float(table[name]["probability/positive"]) for name in used])

    with torch.no_grad():
        logits = torch.cat([model.model(image[None]) for image in patients.images[: len(patients.images)]])
    wanted = model.task.scores(logits.double()).numpy()
    np.testing.assert_allclose(np.sort(scores), np.sort(wanted), rtol=0, atol=1e-6)

    labels = {
        row[stranger.label_key]: int(row[stranger.label_column] in positive)
        for row in rows(stranger.labels_file)
    }
    owners = [name.split("/")[0] for name in used]
    names, first = np.unique(owners, return_index=True)
    of_images = np.array([labels[owner] for owner in owners])
    task = model.task.finely_binned()
    of_patients, truth = task.by_patient(scores, of_images, np.append(first, len(owners)))
    statistics = task.statistics(of_patients, truth)
    told, exact = task.metrics(statistics), evaluated(model, patients)
    assert told["num_patients"] == exact["num_patients"] == stranger.num_patients
    assert told["auroc"] == pytest.approx(exact["auroc"], abs=1e-9)
    assert told["loss"] == pytest.approx(exact["loss"], abs=1e-4)
    error = auroc_error(task.pairs(statistics)["positive"])
    assert roc_auc_score(truth, of_patients) == pytest.approx(exact["auroc"], abs=error + 1e-9)

    numbers = {owner: table[name]["patient"] for owner, name in zip(owners, used, strict=True)}
    by_number = {row["patient"]: row for row in rows(folder / "predictions" / "predictions_by_patient.csv")}
    for owner, score in zip(names, of_patients, strict=True):
        row = by_number[numbers[owner]]
        if int(row["num_images"]) == owners.count(owner):
            assert float(row["probability/positive"]) == pytest.approx(score, abs=1e-12)
    return exact


@pytest.mark.slow
def test_a_phantom_hospital_that_took_no_part_has_the_figures_of_its_own_evaluation(tmp_path: Path) -> None:
    source = PhantomSource(
        num_hospitals=4, patients_per_hospital=(60, 60, 60, 50), image_size=48, contrast=3.0, opacity_size=2.0
    )
    prepare(source, tmp_path / "hospitals", 3)
    model, stranger = trained_without(tmp_path, tmp_path / "hospitals", LEFT_OUT, scenario(tmp_path))
    exact = check_stranger(tmp_path, model, stranger, {"opacity"})
    assert exact["auroc"] is not None
    assert 0.55 < exact["auroc"] <= 1.0
    by_image = rows(tmp_path / "predictions" / "predictions.csv")
    (point,) = (one for one in model.card.points("positive") if one.name == "sensitive")
    assert point.threshold is not None
    for row in by_image:
        reached = float(row["probability/positive"]) >= point.threshold
        assert row["point/positive/sensitive"] == str(int(reached))


@pytest.mark.thorough
@pytest.mark.skipif("COLLEGIUM_DATA" not in os.environ, reason="COLLEGIUM_DATA is not set")
def test_vienna_dias_that_took_no_part_has_the_figures_of_its_own_evaluation(tmp_path: Path) -> None:
    found = read_scenario("ham10000")
    prepare(
        HamSource(folder=Path(os.environ["COLLEGIUM_DATA"]) / "ham10000"), tmp_path / "hospitals", found.seed
    )
    training = found.study.training.model_copy(update={"num_rounds": 3})
    evaluation = found.study.evaluation.model_copy(update={"validation_rounds": (3,)})
    study = found.study.model_copy(update={"training": training, "evaluation": evaluation})
    wanted = found.model_copy(update={"study": study})
    model, stranger = trained_without(tmp_path, tmp_path / "hospitals", "vienna-dias", wanted)
    exact = check_stranger(tmp_path, model, stranger, set(study.task.positive))  # type: ignore[union-attr]
    assert exact["auroc"] is not None
    assert exact["auroc"] > 0.5


# A study in a PACS


@pytest.mark.thorough
@needs_orthanc
@pytest.mark.parametrize("way", ["dimse", "dicomweb"])
def test_a_study_in_a_pacs_is_read_and_nothing_of_it_stays(tmp_path: Path, way: str) -> None:
    from dicom_files import make_study as study_of

    model = model_file(tmp_path / "model.safetensors", study_of())
    studies = [make_study(tmp_path / "files", number) for number in range(2)]
    with Orthanc(tmp_path / "orthanc") as orthanc:
        orthanc.upload([path for study in studies for path in study])
        site = PacsSite(
            tmp_path / "site", dimse(orthanc.dicom_port) if way == "dimse" else dicomweb(orthanc.url)
        )
        wanted = dcmread(studies[1][0], stop_before_pixels=True)
        options = (
            ["--accession", str(wanted.AccessionNumber)]
            if way == "dimse"
            else ["--study-uid", str(wanted.StudyInstanceUID)]
        )
        words = ["predict", str(model), *options, "--config", str(site.config), "--workers", "1"]
        before = set(site.folder.rglob("*"))
        done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert set(site.folder.rglob("*")) == before
        table = rows(tmp_path / "out" / "predictions.csv")
        grey = [dcmread(path, stop_before_pixels=True) for path in studies[1][:2]]
        assert {row["name"] for row in table} == {str(one.SOPInstanceUID) for one in grey}
        assert len({row["patient"] for row in table}) == 1
        for secret in (PATIENT, ACCESSION):
            assert secret not in done.output

        unknown = ["predict", str(model), "--accession", "NOBODY", "--config", str(site.config)]
        done = CliRunner().invoke(app, [*unknown, "--out", str(tmp_path / "none")], catch_exceptions=False)
        assert done.exit_code == 1
        assert "unknown-accession" in done.output
        assert "NOBODY" not in done.output
