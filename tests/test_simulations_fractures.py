"""The synthetic forearm looks like one; a fracture changes a bone and nothing else; a network finds it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from simulations.preparation.anatomy import View
from simulations.preparation.forearm import Forearm, draw_arm_view, draw_forearm, forearm_depth
from simulations.preparation.fracture_hospitals import fracture_caseloads
from simulations.preparation.hospitals import prepare
from simulations.preparation.shading import Plane
from simulations.preparation.sources import FracturePhantomSource
from simulations.runner import Display, Options, run_scenario
from simulations.scenario import read_scenario


def patient(seed: int, *, broken: bool, age_years: int = 40) -> Forearm:
    return draw_forearm(np.random.default_rng(seed), age_years=age_years, broken=broken)


def picture(forearm: Forearm, view: View | None = None, size: int = 96) -> Plane:
    return forearm_depth(forearm, view or View(), size, size, np.random.default_rng(0))


def test_bones_are_denser_than_tissue_and_tissue_than_air() -> None:
    for seed in range(10):
        forearm = replace(patient(seed, broken=False), cast=False)
        depth = picture(forearm)
        row = depth[48]
        bone = max(row[38:41].max(), row[55:58].max())
        assert bone > 1.15 * row[48]
        assert row[48] > 0.3
        assert row[2] == pytest.approx(0.0, abs=1e-6)


def test_a_fracture_changes_bone_where_it_is_and_nothing_in_the_air() -> None:
    for seed in range(20):
        whole, broken = patient(seed, broken=False), patient(seed, broken=True)
        intact = replace(
            broken, bones=(replace(broken.bones[0], fracture=None), replace(broken.bones[1], fracture=None))
        )
        assert intact == whole
        difference = np.abs(picture(broken) - picture(whole))
        assert difference.max() > 0.05
        assert difference[:, :4].max() < 1e-6
        lines = [bone.fracture.y for bone in broken.bones if bone.fracture is not None]
        above = int((min(lines) - 0.2 + 1.0) / 2.0 * 96)
        assert difference[: max(0, above)].max(initial=0.0) < 0.03


def test_some_patients_have_both_bones_broken_and_the_young_have_growth_plates() -> None:
    broken = [patient(seed, broken=True) for seed in range(60)]
    both = sum(all(bone.fracture is not None for bone in one.bones) for one in broken)
    assert 5 < both < 35
    assert all(any(bone.fracture is not None for bone in one.bones) for one in broken)
    assert patient(1, broken=False, age_years=9).growth_plates
    assert not patient(1, broken=False, age_years=30).growth_plates


def test_optical_depth_is_finite_single_precision_and_never_negative() -> None:
    for seed in range(20):
        view = draw_arm_view(np.random.default_rng(seed))
        depth = forearm_depth(patient(seed, broken=True), view, 61, 83, np.random.default_rng(seed))
        assert depth.shape == (61, 83)
        assert depth.dtype == np.float32
        assert np.isfinite(depth).all()
        assert depth.min() >= 0


def test_files_say_that_they_are_forearms_and_hospitals_differ(tmp_path: Path) -> None:
    source = FracturePhantomSource(num_hospitals=3, patients_per_hospital=(6,), image_size=48)
    hospitals = prepare(source, tmp_path, 2)
    for hospital in hospitals:
        assert set(hospital.label_counts) == {"fracture", "intact"}
        header = pydicom.dcmread(next(hospital.images.glob("*/1.dcm")), stop_before_pixels=True)
        assert header.BodyPartExamined == "FOREARM"
    assert len({hospital.scanner for hospital in hospitals}) == 3


def test_a_hospital_with_more_patients_has_the_same_first_ones() -> None:
    few, many = (
        fracture_caseloads(FracturePhantomSource(num_hospitals=2, patients_per_hospital=number), 5)
        for number in ((10,), (20,))
    )
    headers = [[case.images[0].header for case in load.cases[:10]] for load in (few[1], many[1])]
    assert headers[0] == headers[1]


@pytest.mark.thorough
def test_the_federation_finds_fractures_better_than_hospitals_alone(tmp_path: Path) -> None:
    display = Display(
        prepared=lambda done, total: None,
        rounds=lambda done: None,
        baselines=lambda done, total: None,
        say=lambda text: None,
    )
    result = run_scenario(
        read_scenario("fracture-phantom"),
        Options(engine="local", compare=True, out=tmp_path / "run"),
        display,
    )
    federated = result.test["auroc"]
    assert result.baselines is not None
    alone = [site.auroc for site in result.baselines.alone.values() if site.auroc is not None]
    assert federated is not None
    assert federated > 0.8
    assert federated > sum(alone) / len(alone) + 0.05
