"""Whole federated runs of segmentation, in planes and volumes: masks, noise, files and pages."""

import os
from pathlib import Path

import numpy as np
import pytest
from mask_sites import LESION, ORGANS, mask_study
from PIL import Image as Pillow
from pydicom import dcmread
from safetensors import safe_open
from test_simulations_run import quiet

from client.ingestion import ingest
from client.secret import SiteSecret
from client.site_file import read_site
from server.result import Result
from shared_models.model_file import read_model
from shared_models.tasks.registry import task_of
from simulations.evaluation_noise import ASSUMED_DICE, dice_deviation
from simulations.preparation.cases import SourceError
from simulations.preparation.hospitals import PreparationError, prepare, read_hospitals
from simulations.preparation.sources import HamSource, NodulePhantomSource
from simulations.runner import Options, run_scenario
from simulations.scenario import Scenario, read_scenario
from simulations.work_folder import write_site

needs_data = pytest.mark.skipif(
    "COLLEGIUM_DATA" not in os.environ,
    reason="set COLLEGIUM_DATA to a folder that holds the public data sets",
)
MODES: dict[str, dict[str, dict[str, object]]] = {
    "none": {},
    "local": {
        "privacy": {"mode": "local", "epsilon": 8.0, "delta": 1e-3, "num_patients": 300, "max_grad_norm": 1.0}
    },
    "distributed": {
        "privacy": {
            "mode": "distributed",
            "epsilon": 8.0,
            "delta": 1e-3,
            "num_patients": 300,
            "max_grad_norm": 1.0,
        },
        "training": {"local_steps": 1},
        "aggregation": {"server_momentum": 0.0, "update_bound": 1.0},
    },
}
EACH_MODE = pytest.mark.parametrize(
    "mode", ["none", pytest.param("local", marks=pytest.mark.thorough), "distributed"]
)
NODULES = {"num_hospitals": 3, "patients_per_hospital": (12,), "image_size": 24}
VOLUMES = {"depth": 10, "rows": 12, "columns": 18, "spacing": 16.0, "slice_spacing": 17.0}


def small(
    name: str, hospitals: dict[str, object], image: dict[str, object], mode: str, *, rounds: int = 2
) -> Scenario:
    """A built-in scenario with few patients, small images and few rounds, under a mode of privacy."""
    values = read_scenario(name).model_dump()
    values["hospitals"] |= hospitals
    study = values["study"]
    study["image"] |= image
    study["patients"] |= {"min_training": 3}
    study["training"] |= {"num_rounds": rounds, "local_steps": 3, "sample_rate": 0.5, "warmup_rounds": 0}
    study["training"] |= {"schedule": "constant"}
    study["evaluation"] |= {"validation_rounds": (rounds,), "num_bins": 20}
    study["model"] |= {"width": 8, "levels": 2}
    study["aggregation"] |= {"num_sites_max": hospitals.get("num_hospitals", 4)}
    if mode != "none":
        study["evaluation"] |= {"unnoised": False, "epsilon": 100.0}
    for table, own in MODES[mode].items():
        study[table] |= own
    return Scenario.model_validate(values)


def run(scenario: Scenario, out: Path, *, engine: str = "local", compare: bool = False) -> Result:
    options = Options(engine=engine, compare=compare, out=out)  # type: ignore[arg-type]
    return run_scenario(scenario, options, quiet())


@pytest.mark.thorough
@EACH_MODE
def test_nodules_of_volumes_are_outlined_by_a_federation(mode: str, tmp_path: Path) -> None:
    result = run(small("nodule-phantom-segmentation", NODULES, VOLUMES, mode), tmp_path / "run")
    assert result.exact_test is not None
    assert result.exact_test["dice"] is not None
    assert (result.test_noise is None) == (mode == "none")
    assert result.rounds[-1].metrics is not None
    assert {"dice", "iou", "median_dice", "below_half", "detected", "loss"} <= set(result.test)
    assert all(not site.left_out for site in result.sites)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Dice over the run" in page
    assert "AUROC" not in page
    assert read_model(tmp_path / "run" / "model.safetensors").card.outputs == ("nodule",)


@pytest.mark.thorough
def test_without_noise_the_server_knows_what_the_sites_know(tmp_path: Path) -> None:
    result = run(
        small("nodule-phantom-segmentation", NODULES, VOLUMES, "none"), tmp_path / "run", compare=True
    )
    assert result.exact_test is not None
    for metric, value in result.test.items():
        within = {"dice": 0.026, "median_dice": 0.026, "iou": 0.051}.get(metric.partition("/")[0], 1e-12)
        assert value == pytest.approx(result.exact_test[metric], abs=within), metric
    assert result.baselines is not None
    assert result.baselines.pooled is not None
    assert result.baselines.pooled.auroc is None
    assert result.baselines.pooled.metrics["dice"] is not None
    by_site = [site.test for site in result.sites]
    assert sum(test["num_patients"] for test in by_site if test) == result.test["num_patients"]


@pytest.mark.thorough
@needs_data
@pytest.mark.parametrize("mode", ["none", pytest.param("local", marks=pytest.mark.thorough)])
def test_lesions_of_four_real_hospitals_are_outlined_by_a_federation(mode: str, tmp_path: Path) -> None:
    scenario = small(
        "ham10000-segmentation", {"max_patients": 40}, {"rows": 24, "columns": 32}, mode, rounds=4
    )
    result = run(scenario, tmp_path / "run")
    assert result.exact_test is not None
    assert result.exact_test["dice"] is not None
    assert all(not site.left_out for site in result.sites)
    assert result.exact_test["num_with/lesion"] == result.exact_test["num_patients"]
    if mode == "none":
        assert result.exact_test["dice"] > 0.6


@pytest.mark.thorough
def test_deployed_hospitals_learn_the_same_from_masks_as_simulated_ones(tmp_path: Path) -> None:
    scenario = small("nodule-phantom-segmentation", NODULES, VOLUMES, "none")
    local, deployed = (run(scenario, tmp_path / engine, engine=engine) for engine in ("local", "deployed"))
    assert local.test == deployed.test
    assert (tmp_path / "local" / "model.safetensors").stat().st_size > 1000
    weights = []
    for engine in ("local", "deployed"):
        with safe_open(tmp_path / engine / "model.safetensors", "np") as file:
            weights.append(np.concatenate([file.get_tensor(name).ravel() for name in sorted(file.keys())]))
    np.testing.assert_array_equal(*weights)


# Preparation


@pytest.mark.thorough
def test_a_seg_of_the_preparation_lies_where_the_nodule_is_brighter_than_the_lung(tmp_path: Path) -> None:
    source = NodulePhantomSource(
        num_hospitals=4, patients_per_hospital=(3,), image_size=32, nodule_size=2.0, masks=True
    )
    scenario = read_scenario("nodule-phantom-segmentation")
    image = scenario.study.image.model_copy(update=VOLUMES | {"spacing": 10.0, "rows": 24, "columns": 36})
    study = scenario.study.model_copy(update={"image": image})
    for hospital in prepare(source, tmp_path / "hospitals", 3):
        assert hospital.num_masks >= 3
        path = write_site(tmp_path / "sites" / hospital.name, hospital, study, seed=3)
        site = read_site(path)
        found = ingest(site, study, SiteSecret.load(site.state))
        assert not found.index.left_out
        assert not found.index.mask_problems
        inside = []
        for patients in found.patients.values():
            assert patients.masks is not None
            for volume, mask in zip(patients.images, patients.masks, strict=True):
                inside += volume[mask > 0].tolist()
        assert len(inside) > 10
        assert np.mean(np.array(inside) > 0.35) > 0.8, "a nodule is of soft tissue, a lung is not"


@pytest.mark.slow
def test_a_patient_without_a_nodule_has_an_empty_seg(tmp_path: Path) -> None:
    source = NodulePhantomSource(num_hospitals=1, patients_per_hospital=(4,), image_size=24, masks=True)
    (hospital,) = prepare(source, tmp_path, 3)
    labels = dict(line.split(",") for line in hospital.labels_file.read_text().splitlines()[1:])
    for patient, finding in labels.items():
        made = dcmread(hospital.masks / patient / "1.dcm")
        assert bool(made.pixel_array.any()) == (finding == "nodule")


@pytest.mark.slow
def test_the_images_of_a_source_are_the_same_with_and_without_masks(tmp_path: Path) -> None:
    for masks in (False, True):
        source = NodulePhantomSource(num_hospitals=1, patients_per_hospital=(2,), image_size=16, masks=masks)
        prepare(source, tmp_path / str(masks), 3)
    for path in (tmp_path / "False").rglob("*.dcm"):
        assert path.read_bytes() == (tmp_path / "True" / path.relative_to(tmp_path / "False")).read_bytes()


def test_masks_are_part_of_a_preparation(tmp_path: Path) -> None:
    source = NodulePhantomSource(num_hospitals=1, patients_per_hospital=(2,), image_size=16, masks=True)
    (hospital,) = prepare(source, tmp_path, 3)
    next(hospital.masks.rglob("*.dcm")).unlink()
    with pytest.raises(PreparationError, match=r"of 2 masks"):
        read_hospitals(tmp_path)
    other = source.model_copy(update={"masks": False})
    (hospital,) = prepare(other, tmp_path, 3, overwrite=True)
    assert not list(hospital.masks.rglob("*.dcm"))


@pytest.mark.slow
@needs_data
def test_published_masks_of_lesions_are_written_beside_their_images(tmp_path: Path) -> None:
    source = HamSource(max_patients=3, masks=True)
    for hospital in prepare(source, tmp_path, 5):
        assert hospital.num_masks == hospital.num_images
        for path in hospital.images.rglob("*.dcm"):
            mask = np.array(Pillow.open(hospital.masks / path.parent.name / f"{path.stem}.png"))
            header = dcmread(path, stop_before_pixels=True)
            assert mask.shape == (header.Rows, header.Columns)
            assert set(np.unique(mask)) <= {0, 255}
            assert mask.any()
    assert prepare(source.model_copy(update={"masks": False}), tmp_path, 5, overwrite=True)
    assert not list(tmp_path.rglob("*.png"))


def test_a_folder_without_masks_is_told(tmp_path: Path) -> None:
    for name in ("images.zip", "HAM10000_metadata_with_site.csv"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(SourceError, match=r"masks_200x150\.zip: is missing"):
        prepare(HamSource(folder=tmp_path, masks=True), tmp_path / "out", 5)


# The plan


@pytest.mark.slow
@pytest.mark.parametrize("table", [LESION, ORGANS], ids=["one structure", "two structures"])
def test_what_noise_does_to_dice_is_about_what_theory_says(table: dict[str, object]) -> None:
    task = task_of(mask_study(table))
    told = dice_deviation(task, bin_deviation=2.0, num_patients=1000)
    middles = (np.arange(task.num_bins) + 0.5) / task.num_bins
    spread = np.sqrt(np.sum((middles - ASSUMED_DICE) ** 2) + ASSUMED_DICE**2)
    wanted = 2.0 * spread / 1000 / np.sqrt(len(task.names))  # type: ignore[attr-defined]
    assert told == pytest.approx(wanted, rel=0.15)
    assert dice_deviation(task, bin_deviation=100.0, num_patients=20) is None
