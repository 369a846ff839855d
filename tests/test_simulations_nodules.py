"""Made-up CT series: the geometry that they say is the geometry they have, and a network finds their nodules."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from series_files import volume_image

from client.series import read_series
from client.volume import resampled
from server.result import Result
from shared_models.configuration import parse_toml
from simulations.preparation.cases import Case
from simulations.preparation.dicom_writer import SlicePicture, dicom_bytes
from simulations.preparation.nodule_hospitals import nodule_caseloads
from simulations.preparation.sources import NodulePhantomSource
from simulations.preparation.thorax import Ball, Thorax, draw_thorax, hounsfield_at
from simulations.preparation.tomograph import TOMOGRAPHS, Tomograph
from simulations.runner import Display, Options, run_scenario
from simulations.scenario import Scenario, read_scenario

TINY = NodulePhantomSource(num_hospitals=4, patients_per_hospital=(3,), image_size=24)
RUN = """
title = "A few volumes"
seed = 3

[hospitals]
kind = "nodule-phantom"
num_hospitals = 3
patients_per_hospital = 14
image_size = 16

[study]
name = "few-volumes"
title = "Nodules in a few volumes"
task = { kind = "binary-classification", label = "finding", positive = ["nodule"], negative = ["clear"] }
patients = { roles = "hash", min_training = 4, validation_fraction = 0.2, test_fraction = 0.2 }
model = { architecture = "small-cnn-3d", width = 8 }
training.num_rounds = 2
training.local_steps = 2
training.sample_rate = 0.5
training.learning_rate = 0.5
training.augmentation = { flip = ["columns"] }
privacy = { mode = "local", epsilon = 6.0, delta = 1e-3, num_patients = 300, max_grad_norm = 1.0 }
evaluation = { validation_rounds = [2], num_bins = 10, epsilon = 6.0 }

[study.image]
modalities = ["CT"]
channels = 1
depth = 8
rows = 8
columns = 8
spacing = 30.0
slice_spacing = 20.0
intensity = "percentiles"

[study.aggregation]
weights = "patients"
max_patients = 100
num_sites_max = 3
min_cohort = 2
threshold = 2
num_colluding = 0
round_timeout_seconds = 120.0
"""


def grid(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y and z of the places of a grid around zero."""
    z, y, x = np.meshgrid(
        *((np.arange(size) - (size - 1) / 2.0) * step for size, step in zip(shape, spacing, strict=True)),
        indexing="ij",
    )
    return x, y, z


def slices_of(case: Case, study: int = 1) -> list[SlicePicture]:
    pictures = [image.picture() for image in case.images if image.header.study == study]
    assert all(isinstance(picture, SlicePicture) for picture in pictures)
    return pictures  # type: ignore[return-value]


def test_a_nodule_is_one_bright_ball_in_a_lung_and_nothing_else_differs() -> None:
    x, y, z = grid((24, 40, 56), (8.0, 6.0, 6.0))
    for seed in range(3):
        sick = draw_thorax(np.random.default_rng(seed), positive=True, size=2.0)
        ball = sick.nodule
        assert ball is not None
        with_it, without = (hounsfield_at(one, x, y, z) for one in (sick, replace(sick, nodule=None)))
        away = np.sqrt((x - ball.middle[0]) ** 2 + (y - ball.middle[1]) ** 2 + (z - ball.middle[2]) ** 2)
        assert np.abs((with_it - without)[away > ball.radius + 20.0]).max() < 1.0
        inside = with_it[away < 0.7 * ball.radius]
        assert inside.mean() > -60.0
        assert (with_it - without)[away < 0.7 * ball.radius].mean() > 400.0, "it was air"
        assert with_it.min() > -1001.0
        assert with_it.max() < 400.0
    assert draw_thorax(np.random.default_rng(0), positive=False, size=1.0).nodule is None


@pytest.mark.slow
@pytest.mark.parametrize("machine", TOMOGRAPHS, ids=lambda machine: machine.name)
def test_each_scanners_files_lie_where_their_headers_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Tomograph
) -> None:
    """What is read of the files, on a grid along the patient's axes, is the chest itself at these places."""
    quiet = replace(machine, noise=0.0, slice_spacings=(5.0, 5.0))
    monkeypatch.setattr("simulations.preparation.nodule_hospitals.TOMOGRAPHS", (quiet,))
    source = NodulePhantomSource(num_hospitals=1, patients_per_hospital=(2,), image_size=90, nodule_size=2.0)
    (caseload,) = nodule_caseloads(source, 5)
    number, case = next(
        (number, case) for number, case in enumerate(caseload.cases) if case.label == "nodule"
    )
    paths = []
    for place, image in enumerate(image for image in case.images if image.header.study == 1):
        paths.append(tmp_path / f"{place}.dcm")
        paths[-1].write_bytes(dicom_bytes(image.header, image.picture()))
    volume = read_series(paths, volume_image())
    shape, spacing = (24, 40, 60), (5.0, 5.0, 5.0)
    found = resampled(volume, spacing=spacing, shape=shape, outside=np.nan)
    thorax = draw_thorax(np.random.default_rng([5, 0, number, 1]), positive=True, size=2.0)
    x, y, z = grid(shape, spacing)
    want = hounsfield_at(thorax, *(axis + at for axis, at in zip((x, y, z), volume.middle, strict=True)))
    there = ~np.isnan(found)
    assert there.mean() > 0.9
    error = np.abs(found - want)[there]
    assert np.median(error) < 3.0
    assert np.quantile(error, 0.95) < 120.0, "Hounsfield units, at borders of 1,000"
    mirrored = np.abs(found - want[:, :, ::-1])[there & there[:, :, ::-1]]
    assert np.quantile(mirrored, 0.95) > 300.0


@pytest.mark.slow
def test_scanners_differ_in_the_distance_the_order_and_the_names_of_their_slices(tmp_path: Path) -> None:
    caseloads = nodule_caseloads(replace_patients(TINY, 8), 1)
    for caseload, machine in zip(caseloads, TOMOGRAPHS, strict=True):
        thickness, numbers = set(), []
        for case in caseload.cases:
            pictures = slices_of(case)
            thickness.add(pictures[0].thickness)
            numbers.append([image.header.image for image in case.images if image.header.study == 1])
            heights = [picture.position[2] for picture in sorted(pictures, key=lambda one: one.position[2])]
            assert np.diff(heights).min() > 5.0
        assert thickness == set(machine.slice_spacings)
        assert any(number != sorted(number) for number in numbers) is machine.shuffled
    tilted, turned = slices_of(caseloads[1].cases[0])[0], slices_of(caseloads[2].cases[0])[0]
    assert np.cross(tilted.across, tilted.down)[2] < 0.99
    assert abs(turned.across[1]) > 0.1


def replace_patients(source: NodulePhantomSource, number: int) -> NodulePhantomSource:
    return source.model_copy(update={"patients_per_hospital": (number,)})


def test_a_patient_depends_on_the_seed_and_the_number_alone() -> None:
    few, many, other = (
        nodule_caseloads(source, seed)[2]
        for source, seed in ((TINY, 4), (replace_patients(TINY, 5), 4), (TINY, 5))
    )
    first, again = few.cases[1].images[0].picture(), many.cases[1].images[0].picture()
    assert isinstance(first, SlicePicture)
    assert isinstance(again, SlicePicture)
    if few.cases[1].label == many.cases[1].label:
        np.testing.assert_array_equal(first.hounsfield, again.hounsfield)
    changed = other.cases[1].images[0].picture()
    assert isinstance(changed, SlicePicture)
    assert not np.array_equal(first.hounsfield, changed.hounsfield)


@pytest.mark.parametrize("signed", [True, False])
def test_hounsfield_units_are_read_back_as_they_were_written(tmp_path: Path, signed: bool) -> None:
    case = nodule_caseloads(TINY, 0)[0].cases[0]
    picture = case.images[0].picture()
    assert isinstance(picture, SlicePicture)
    path = tmp_path / "one.dcm"
    path.write_bytes(dicom_bytes(case.images[0].header, replace(picture, signed=signed)))
    dataset = pydicom.dcmread(path)
    units = dataset.pixel_array.astype(int) * int(dataset.RescaleSlope) + int(dataset.RescaleIntercept)
    np.testing.assert_array_equal(units, picture.hounsfield)
    assert dataset.ImageType[2] == "AXIAL"
    with pytest.raises(ValueError, match="at least -1024"):
        dicom_bytes(
            case.images[0].header, replace(picture, hounsfield=np.full((4, 4), -2000, dtype=np.int16))
        )


def test_a_thorax_can_be_looked_at_at_one_place() -> None:
    nodule = Ball(middle=(78.0, 0.0, 0.0), radius=15.0)
    sizes = {"width": 1.0, "depth": 1.0, "lungs": 1.0, "heart": 1.0, "ribs": 0.0}
    thorax = Thorax(**sizes, vessels=(), nodule=nodule)
    places = {
        "outside": (300.0, 0.0, 0.0),
        "lung": (-78.0, 0.0, 0.0),
        "nodule": nodule.middle,
        "spine": (0.0, 72.0, 0.0),
    }
    at = {
        name: float(hounsfield_at(thorax, *(np.array([value]) for value in place))[0])
        for name, place in places.items()
    }
    assert at["outside"] == pytest.approx(-1000.0, abs=1.0)
    assert at["lung"] == pytest.approx(-850.0, abs=5.0)
    assert at["nodule"] == pytest.approx(40.0, abs=5.0)
    assert at["spine"] > 300.0


def ran(scenario: Scenario, out: Path, *, compare: bool = False) -> Result:
    display = Display(
        prepared=lambda done, total: None,
        rounds=lambda done: None,
        baselines=lambda done, total: None,
        say=lambda text: None,
    )
    return run_scenario(scenario, Options(engine="local", compare=compare, out=out), display)


@pytest.mark.thorough
def test_series_become_volumes_that_three_hospitals_train_on_masked_and_private(tmp_path: Path) -> None:
    """From DICOM files to a model: no file is left out, and what is spent is what was promised."""
    scenario = parse_toml(RUN, Scenario, origin="test")
    result = ran(scenario, tmp_path / "run")
    assert len(result.sites) == 3
    assert result.privacy.epsilon is not None
    assert 0.0 < result.privacy.epsilon <= 6.0
    assert all(site.epsilon is not None and site.epsilon <= 6.0 for site in result.sites)
    assert result.exact_test is not None
    assert result.exact_test["num_patients"] is not None
    assert result.exact_test["num_patients"] > 0
    assert (tmp_path / "run" / "model.safetensors").stat().st_size > 4 * 40_000


@pytest.mark.thorough
def test_the_shipped_scenario_finds_nodules_within_its_epsilon(tmp_path: Path) -> None:
    result = ran(read_scenario("nodule-phantom"), tmp_path / "run")
    assert result.privacy.epsilon is not None
    assert result.privacy.epsilon <= 8.0
    assert result.exact_test is not None
    assert result.exact_test["auroc"] is not None
    assert result.exact_test["auroc"] > 0.7
