"""The synthetic chest looks like one, differs between patients and scanners, and depends on its seed alone."""

import numpy as np
import pytest

from simulations.preparation.anatomy import View, draw_anatomy, draw_view
from simulations.preparation.phantom import optical_depth
from simulations.preparation.phantom_hospitals import phantom_caseloads
from simulations.preparation.scanner import SCANNERS, Scanner, expose, scanner_of
from simulations.preparation.shading import Plane, blur
from simulations.preparation.sources import PhantomSource


def chest(seed: int, *, positive: bool = False, size: int = 96) -> Plane:
    generator = np.random.default_rng(seed)
    anatomy = draw_anatomy(generator, female=False, positive=positive)
    return optical_depth(anatomy, View(), size, size, np.random.default_rng(seed))


def test_lungs_are_darker_than_mediastinum_abdomen_and_spine() -> None:
    for seed in range(10):
        depth = chest(seed)
        lungs = np.median(np.concatenate([depth[36:52, 22:32], depth[36:52, 64:74]]))
        assert lungs < 0.75 * np.median(depth[36:52, 46:50])
        assert lungs < 0.8 * np.median(depth[80:90, 30:60])


def test_opacities_make_the_lungs_denser_and_change_nothing_else() -> None:
    brighter = []
    for seed in range(20):
        clear, sick = chest(seed), chest(seed, positive=True)
        assert np.all(sick >= clear - 0.2)
        np.testing.assert_allclose(sick[:, :3], clear[:, :3], atol=1e-4)
        brighter.append(float((sick - clear).mean()))
    assert min(brighter) > 0.002


def test_optical_depth_is_finite_single_precision_and_never_negative() -> None:
    for seed in range(20):
        generator = np.random.default_rng(seed)
        anatomy = draw_anatomy(generator, female=seed % 2 == 0, positive=True)
        depth = optical_depth(anatomy, draw_view(generator), 61, 83, generator)
        assert depth.shape == (61, 83)
        assert depth.dtype == np.float32
        assert np.isfinite(depth).all()
        assert depth.min() >= 0


@pytest.mark.parametrize("machine", SCANNERS, ids=lambda scanner: scanner.name)
def test_every_scanner_uses_its_whole_grey_range(machine: Scanner) -> None:
    picture = expose(machine, chest(1), np.random.default_rng(0))
    assert picture.dtype == np.uint16
    assert picture.min() == 0
    assert picture.max() == 2**machine.bits_stored - 1
    assert 0.2 < picture.mean() / picture.max() < 0.8


def test_fewer_photons_make_more_noise() -> None:
    flat = np.full((64, 64), 2.0, np.float32)
    flat[:, :8] = 0.0
    quiet, loud = sorted(SCANNERS, key=lambda scanner: -scanner.photons)[:: len(SCANNERS) - 1]
    deviation = [
        expose(machine, flat, np.random.default_rng(0))[:, 32:].std() / 2**machine.bits_stored
        for machine in (quiet, loud)
    ]
    assert deviation[1] > 2 * deviation[0]


def test_blur_keeps_a_constant_picture_and_the_mean_of_a_point() -> None:
    np.testing.assert_allclose(blur(np.full((20, 30), 3.0, np.float32), 2.0), 3.0, rtol=1e-5)
    point = np.zeros((41, 41), np.float32)
    point[20, 20] = 1.0
    assert blur(point, 2.0).sum() == pytest.approx(1.0, rel=1e-3)
    assert blur(point, 2.0)[20, 20] == pytest.approx(1 / (2 * np.pi * 4), rel=0.02)


def test_scanners_repeat_after_the_table_with_another_setting() -> None:
    first, again = (scanner_of(number, np.random.default_rng(number)) for number in (0, len(SCANNERS)))
    assert first.name == again.name
    assert first.kvp != again.kvp


def test_a_hospital_with_more_patients_has_the_same_first_ones() -> None:
    few, many = (
        phantom_caseloads(PhantomSource(num_hospitals=2, patients_per_hospital=number), 5)
        for number in ((10,), (20,))
    )
    for small, large in zip(few[1].cases[:10], large_cases := many[1].cases[:10], strict=True):
        assert small.patient_id == large.patient_id
        assert small.images[0].header == large.images[0].header
    assert len(large_cases) == 10


def test_prevalence_spans_the_asked_range_and_scanners_differ() -> None:
    caseloads = phantom_caseloads(
        PhantomSource(num_hospitals=5, patients_per_hospital=(100,), prevalence=(0.2, 0.6)), 0
    )
    shares = sorted(load.label_counts["opacity"] / 100 for load in caseloads)
    assert (shares[0], shares[-1]) == (0.2, 0.6)
    assert len({load.scanner for load in caseloads}) == 5


def test_some_patients_have_more_than_one_image_and_they_differ() -> None:
    (caseload,) = phantom_caseloads(PhantomSource(num_hospitals=1, patients_per_hospital=(100,)), 0)
    several = next(case for case in caseload.cases if len(case.images) > 1)
    first, second = (image.picture() for image in several.images[:2])
    assert not np.array_equal(first.pixels, second.pixels)  # type: ignore[union-attr]
    assert len({image.header.study for image in several.images}) == len(several.images)
