"""The scattering transform is the published one, and its classifier treats each image by itself."""

import copy
import math
from itertools import pairwise, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from studies import make_study

from privacy.clipping import check_supported
from shared_models.architectures import build_model
from shared_models.manifest import Manifest
from shared_models.networks.scattering import Scattering, ScatteringClassifier
from shared_models.networks.wavelets import FilterBank, filter_bank
from shared_models.study import Study

Picture = NDArray[np.float64]
STUDY = {'architecture = "small-cnn"\nwidth = 8': 'architecture = "scattering"\nangles = 4'}


def pictures(num: int, rows: int, columns: int, seed: int = 0) -> Picture:
    return np.random.default_rng(seed).random((num, rows, columns))


def scattered(picture: Picture, *, scales: int, angles: int) -> Picture:
    rows, columns = picture.shape
    transform = Scattering(rows=rows, columns=columns, scales=scales, angles=angles)
    return transform(torch.from_numpy(picture)[None])[0].numpy()


# Against the definitions, by convolution in space


def kernel(deviation: float, angle: float, peak: float, slant: float) -> NDArray[np.complex128]:
    """A slanted Gaussian times a wave, on whole pixels as far as it matters; the mean is taken out of a wave."""
    reach = math.ceil(6.0 * deviation / min(1.0, slant))
    down, right = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    along = down * math.cos(angle) + right * math.sin(angle)
    across = right * math.cos(angle) - down * math.sin(angle)
    bump = np.exp(-(along**2 + slant**2 * across**2) / (2 * deviation**2))
    bump *= slant / (2 * math.pi * deviation**2)
    wave = bump * np.exp(1j * peak * along)
    return wave - wave.sum() / bump.sum() * bump if peak else wave


def convolved(picture: Picture, weights: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """The sum over all offsets, on a torus."""
    reach = len(weights) // 2
    total = np.zeros(picture.shape, dtype=complex)
    for (row, column), weight in np.ndenumerate(weights):
        total += weight * np.roll(picture, (row - reach, column - reach), (0, 1))
    return total


def slow_scattering(picture: Picture, *, scales: int, angles: int) -> Picture:
    step = 2**scales
    grid = [math.ceil(size / step) for size in picture.shape]
    after = [(one + 1) * step - size for one, size in zip(grid, picture.shape, strict=True)]
    padded = np.pad(picture, [(step, after[0]), (step, after[1])], mode="reflect")
    waves = {
        (scale, number): kernel(
            0.8 * 2**scale, math.pi * number / angles, 3 * math.pi / 4 / 2**scale, 4 / angles
        )
        for scale, number in product(range(scales), range(angles))
    }
    first = {path: np.abs(convolved(padded, wave)) for path, wave in waves.items()}
    second = [
        np.abs(convolved(first[fine, one], waves[coarse, other]))
        for fine in range(scales)
        for coarse in range(fine + 1, scales)
        for one, other in product(range(angles), repeat=2)
    ]
    smooth = kernel(0.8 * 2 ** (scales - 1), 0.0, 0.0, 1.0)
    paths = [convolved(part, smooth).real for part in (padded, *first.values(), *second)]
    return np.stack([path[step:-step:step, step:-step:step] for path in paths])


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns", "angles"), [(9, 11, 4), (8, 12, 6), (13, 8, 5)])
def test_coefficients_equal_those_by_explicit_convolution_in_space(
    rows: int, columns: int, angles: int
) -> None:
    (picture,) = pictures(1, rows, columns)
    want = slow_scattering(picture, scales=2, angles=angles)
    got = scattered(picture, scales=2, angles=angles)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)


def test_with_one_scale_coefficients_are_those_of_kymatio() -> None:
    """Known answers of Kymatio 0.3.0, which takes π as 3.1415; its angle t is our (3 − t) modulo 8."""
    row, column = np.mgrid[0:16, 0:16]
    got = scattered(((row + 1) * (2 * column + 3) % 17) / 16.0, scales=1, angles=8)
    of_kymatio = [0.5553964, 0.03155855, 0.05722642, 0.04567452, 0.09138841, 0.09621637, 0.07900495]
    paths = [0, *(1 + (3 - angle) % 8 for angle in range(6))]
    np.testing.assert_allclose(got[paths, 3, 5], of_kymatio, rtol=1e-4)


def test_with_two_scales_coefficients_are_near_those_of_kymatio_which_samples_in_between() -> None:
    row, column = np.mgrid[0:16, 0:16]
    got = scattered(((row + 1) * (2 * column + 3) % 17) / 16.0, scales=2, angles=4)
    of_kymatio = [0.5212, 0.08411, 0.13108, 0.04543, 0.04958, 0.00964, 0.01122, 0.02515]
    paths = [0, 2, 1, 6, 5, 9 + 4 + 1, 9 + 4 + 2, 9 + 8 + 2]
    np.testing.assert_allclose(got[paths, 2, 1], of_kymatio, rtol=0.03)


@pytest.mark.parametrize(("scales", "angles"), list(product((1, 2, 3, 4), (4, 8))))
def test_there_are_as_many_paths_as_published(scales: int, angles: int) -> None:
    transform = Scattering(rows=32, columns=16, scales=scales, angles=angles)
    published = 1 + scales * angles + scales * (scales - 1) // 2 * angles**2
    found = transform(torch.zeros(2, 32, 16))
    assert transform.num_paths == published
    assert found.shape == (2, published, 32 // 2**scales, 16 // 2**scales)


# What the theory promises


@pytest.mark.parametrize(("scales", "angles"), list(product((1, 2, 3, 4), (4, 6, 8, 16))))
@pytest.mark.parametrize("size", [(36, 36), (40, 64)])
def test_littlewood_paley_sums_are_at_most_1_and_nowhere_0(
    scales: int, angles: int, size: tuple[int, int]
) -> None:
    bank = filter_bank(*size, scales=scales, angles=angles)
    total = bank.littlewood_paley()
    assert total.min() > 0.04
    assert total.max() <= 1 + 1e-12
    assert total[0, 0] == pytest.approx(1.0, abs=1e-12 if scales <= 2 and angles <= 8 else 0.11)
    assert np.abs(bank.wavelets[:, :, 0, 0]).max() < 1e-15, "wavelets have mean zero"


def on_torus(pictures: Picture, bank: FilterBank) -> tuple[list[Picture], list[Picture]]:
    """Amplitudes of all paths before, and coefficients after the low-pass, at each pixel."""

    def filtered(values: Picture, transfer: Picture) -> NDArray[np.complex128]:
        return np.fft.ifft2(np.fft.fft2(values) * transfer)

    scales, angles = bank.wavelets.shape[:2]
    paths = [((-1,), pictures)]
    for depth in (1, 2):
        paths += [
            ((*path, scale), np.abs(filtered(values, bank.wavelets[scale, angle])))
            for path, values in paths
            if len(path) == depth
            for scale in range(path[-1] + 1, scales)
            for angle in range(angles)
        ]
    amplitudes = [values for _, values in paths]
    return amplitudes, [filtered(values, bank.low_pass).real for values in amplitudes]


def norm(parts: list[Picture]) -> float:
    return math.sqrt(sum(float((part**2).sum()) for part in parts))


@pytest.mark.thorough
@pytest.mark.parametrize(("scales", "angles"), [(1, 8), (2, 4), (2, 8), (3, 4), (4, 4)])
def test_the_difference_of_two_images_never_grows(scales: int, angles: int) -> None:
    """Bruna and Mallat (2013), section 2.2. Noise, and waves at which the filters are largest."""
    bank = filter_bank(32, 32, scales=scales, angles=angles)
    waves = [np.fft.ifft2(transfer).real for transfer in bank.wavelets.reshape(-1, 32, 32)]
    for other in (*pictures(3, 32, 32), *waves, np.ones((32, 32))):
        (image,) = pictures(1, 32, 32, seed=9)
        (_, here), (_, there) = on_torus(image, bank), on_torus(other, bank)
        changed = [one - another for one, another in zip(here, there, strict=True)]
        assert norm(changed) <= norm([image - other]) * (1 + 1e-12)
        _, alone = on_torus(other, bank)
        assert norm(alone) <= norm([other]) * (1 + 1e-12)


@pytest.mark.parametrize("shift", [1, 2])
def test_a_shift_matters_less_the_more_scales_there_are(shift: int) -> None:
    """A shift by c changes coefficients by at most |c| times the L1 norm of the low-pass's derivative."""
    (image,) = pictures(1, 64, 64)
    changes = []
    for scales in (1, 2, 3, 4):
        bank = filter_bank(64, 64, scales=scales, angles=4)
        amplitudes, here = on_torus(image, bank)
        _, there = on_torus(np.roll(image, shift, 1), bank)
        moved = norm([one - another for one, another in zip(here, there, strict=True)])
        deviation = 0.8 * 2 ** (scales - 1)
        assert 0 < moved <= shift * 2 / (deviation * math.sqrt(2 * math.pi)) * norm(amplitudes)
        changes.append(moved / norm([image]))
    assert all(later < 0.7 * earlier for earlier, later in pairwise(changes))


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_a_shift_by_a_whole_step_shifts_the_coefficients_by_one(scales: int) -> None:
    step = 2**scales
    image = np.zeros((64, 56))
    image[24:32, 24:32] = pictures(1, 8, 8)[0]
    here = scattered(image, scales=scales, angles=4)
    there = scattered(np.roll(image, (step, -step), (0, 1)), scales=scales, angles=4)
    np.testing.assert_allclose(there[:, 1:, :-1], here[:, :-1, 1:], rtol=0, atol=1e-12)


def test_mirroring_an_image_mirrors_its_coefficients() -> None:
    """At the diagonal: rows become columns, and angle l becomes L/2 − l."""
    (image,) = pictures(1, 30, 30)
    here = scattered(image, scales=2, angles=4)
    there = scattered(image.T, scales=2, angles=4)
    turned = [0, *(1 + 4 * scale + (2 - angle) % 4 for scale in range(2) for angle in range(4))]
    np.testing.assert_allclose(there[:9], here[turned].transpose(0, 2, 1), rtol=0, atol=1e-12)


# Any size, any device and type


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns"), [(28, 28), (29, 35), (64, 48), (127, 33), (224, 224)])
def test_any_size_will_do(rows: int, columns: int) -> None:
    transform = Scattering(rows=rows, columns=columns, scales=2, angles=8)
    image = torch.from_numpy(pictures(1, rows, columns)).float()
    found = transform(image)
    assert found.shape == (1, 81, math.ceil(rows / 4), math.ceil(columns / 4))
    assert found.dtype == torch.float32
    exact = transform(image.double())
    assert float((found - exact).norm() / exact.norm()) < 1e-6


def test_a_constant_image_has_only_its_level() -> None:
    found = scattered(np.full((29, 31), 0.7), scales=2, angles=8)
    np.testing.assert_allclose(found[0], 0.7, rtol=1e-12)
    assert np.abs(found[1:]).max() < 1e-12


def test_an_image_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 28, 27\), must be \(n, 28, 28\)"):
        Scattering(rows=28, columns=28, scales=2, angles=8)(torch.zeros(1, 28, 27))


def test_however_many_images_come_at_once_each_has_the_same_coefficients() -> None:
    transform = Scattering(rows=28, columns=28, scales=2, angles=8)
    images = torch.from_numpy(pictures(30, 28, 28)).float()
    together = transform(images)
    alone = torch.cat([transform(image[None]) for image in images])
    assert torch.allclose(together, alone, rtol=0, atol=1e-6)


# The classifier


def study(changes: dict[str, str] | None = None) -> Study:
    return make_study({**STUDY, **(changes or {})})


@pytest.mark.parametrize(
    "changes", [{}, {"channels = 1": "channels = 3"}, {"rows = 16": "rows = 21", "angles = 4": "scales = 3"}]
)
def test_nothing_but_the_head_has_weights_and_nothing_is_a_buffer(changes: dict[str, str]) -> None:
    built = study(changes)
    image, model = built.image, build_model(built)
    shape = image.channels, image.rows, image.columns
    check_supported(model, image_shape=shape)
    assert [name for name, _ in Manifest.of(model).entries] == ["head.weight", "head.bias"]
    assert set(model.state_dict()) == {"head.weight", "head.bias"}
    logits = model(torch.zeros(2, *shape))
    assert logits.shape == (2, 1)
    assert torch.equal(copy.deepcopy(model)(torch.zeros(2, *shape)), logits)


def test_coefficients_of_an_order_are_normalised_for_each_image_by_itself() -> None:
    model = ScatteringClassifier(channels=3, rows=16, columns=16, scales=2, angles=4, num_outputs=1)
    images = torch.from_numpy(pictures(6, 16, 16)).float().view(2, 3, 16, 16)
    found = model.features(images)
    transform = Scattering(rows=16, columns=16, scales=2, angles=4)
    for image, features in zip(images, found, strict=True):
        paths = transform(image)
        begin = 0
        for start, stop in ((0, 1), (1, 9), (9, 25)):
            order = paths[:, start:stop].flatten()
            want = F.group_norm(order[None], 1)[0] * 4.0 / math.sqrt(3 * len(order))
            got = features[begin : begin + len(order)]
            begin += len(order)
            assert torch.allclose(got, want, atol=1e-5)
            assert abs(float(got.mean())) < 1e-6
        assert 3.0 < float(features.norm()) <= 4.0
        assert begin == len(features)
    changed = images.clone()
    changed[1] = 1.0
    assert torch.equal(model.features(changed)[0], found[0])


def test_a_broken_image_breaks_no_other() -> None:
    model = build_model(study())
    images = torch.from_numpy(pictures(3, 16, 16)).float()[:, None]
    want = model(images)
    images[1, 0, 3, 3] = math.nan
    got = model(images)
    assert got[1].isnan().all()
    assert torch.equal(got[[0, 2]], want[[0, 2]])
