"""Sampling, clipping and noise do what the accountant assumes."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from exact_gradients import STUDY, TASK, exact_sum, norm_of, random_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from privacy.clipping import ClippedGradientSum, UnsupportedModelError, check_supported
from privacy.noise import _add_on_device, noised_counts, noised_sum
from privacy.noise_blocks import BLOCK, Block, blocks_of, for_each
from privacy.randomness import PIECE, CryptographicGenerator
from privacy.sampling import pick_images, sample_patients
from shared_models.architectures import build_model


def generator(number: int = 0) -> CryptographicGenerator:
    return CryptographicGenerator(number.to_bytes(32, "big"))


# Randomness


def test_a_generator_from_the_operating_system_never_repeats_itself() -> None:
    first = CryptographicGenerator.from_operating_system().normal(8)
    second = CryptographicGenerator.from_operating_system().normal(8)
    assert not np.array_equal(first, second)


def test_torchs_and_numpys_global_seeds_do_not_fix_the_noise() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(1)
        np.random.seed(1)
        draws.append(CryptographicGenerator.from_operating_system().normal(4))
    assert not np.array_equal(draws[0], draws[1])


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="must have 32"):
        CryptographicGenerator(b"short")


def _fits_variance(samples: np.ndarray, claimed: float) -> bool:
    """Whether the sample variance lies within five standard errors of the claimed one, both ways."""
    ratio = samples.var() / claimed**2
    return bool(abs(ratio - 1) < 5 * math.sqrt(2 / samples.size))


@pytest.mark.parametrize(("actual", "accepted"), [(1.0, True), (0.9, False), (1.1, False)])
def test_noise_has_the_claimed_variance_and_the_test_rejects_others(actual: float, accepted: bool) -> None:
    parts = [torch.zeros(300, 100, dtype=torch.float64), torch.zeros(20_000, dtype=torch.float64)]
    noised = noised_sum(parts, standard_deviation=2.0 * actual, generator=generator(1))
    samples = np.concatenate([part.numpy().ravel() for part in noised])
    assert _fits_variance(samples, 2.0) is accepted
    assert abs(samples.mean()) < 5 * 2.2 / math.sqrt(samples.size)


def test_bits_sent_to_a_device_become_the_same_noise_and_parts_do_not_matter() -> None:
    sizes = (5, 40_000, 1, 3)
    parts = [torch.ones(size, dtype=torch.float64) for size in sizes]
    here = torch.cat(noised_sum(parts, standard_deviation=2.0, generator=generator(8)))
    whole = torch.from_numpy(generator(8).normal(sum(sizes)))
    assert torch.equal(here, torch.ones(sum(sizes), dtype=torch.float64).add_(whole, alpha=2.0))
    there = [torch.ones(size, dtype=torch.float64) for size in sizes]
    _add_on_device(there, 2.0, generator(8))
    assert torch.allclose(here, torch.cat(there), rtol=1e-14, atol=1e-14)


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_the_noise_of_a_large_model_does_not_depend_on_threads_parts_or_device(threads: int) -> None:
    sizes = (3, BLOCK - 1, 2 * PIECE + 7, BLOCK + PIECE, 11)
    parts = [torch.ones(size, dtype=torch.float64) for size in sizes]
    here = torch.cat(noised_sum(parts, standard_deviation=2.0, generator=generator(8)))
    keys, expected = generator(8), []
    for begin in range(0, sum(sizes), BLOCK):
        own = CryptographicGenerator(keys.words(4).tobytes())
        expected.append(torch.from_numpy(own.normal(min(BLOCK, sum(sizes) - begin))))
    whole = torch.cat(expected)
    assert torch.equal(here, torch.ones(sum(sizes), dtype=torch.float64).add_(whole, alpha=2.0))
    there = [torch.ones(size, dtype=torch.float64) for size in sizes]
    _add_on_device(there, 2.0, generator(8))
    assert torch.allclose(here, torch.cat(there), rtol=1e-14, atol=1e-14)


@pytest.mark.slow
def test_no_block_of_noise_repeats_another_or_what_its_generator_gives_later(threads: int) -> None:
    drawn = generator(11)
    first = noised_sum(
        [torch.zeros(2 * BLOCK + 5, dtype=torch.float64)], standard_deviation=1.0, generator=drawn
    )[0]
    again = noised_sum(
        [torch.zeros(BLOCK + 9, dtype=torch.float64)], standard_deviation=1.0, generator=drawn
    )[0]
    later = torch.from_numpy(drawn.normal(1000))
    pieces = [
        first[:BLOCK],
        first[BLOCK : 2 * BLOCK],
        again[:BLOCK],
        *(part[-5:] for part in (first, again)),
        later,
    ]
    whole = torch.cat(pieces)
    assert len(torch.unique(whole)) > len(whole) - 10
    correlation = float(torch.corrcoef(torch.stack(pieces[:3]))[0, 1:].abs().max())
    assert correlation < 6 / math.sqrt(BLOCK)


def test_what_a_thread_raises_is_raised(threads: int) -> None:
    def broken(block: Block) -> None:
        if block.begin:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        for_each(blocks_of(3 * BLOCK, generator(12)), broken)


def test_normal_numbers_pass_a_kolmogorov_smirnov_test() -> None:
    samples = np.sort(generator(2).normal(20_001))
    cdf = 0.5 * (1 + np.vectorize(math.erf)(samples / math.sqrt(2)))
    steps = np.arange(samples.size) / samples.size
    distance = max(np.abs(cdf - steps).max(), np.abs(cdf - steps - 1 / samples.size).max())
    assert distance < 1.95 / math.sqrt(samples.size)


@pytest.mark.parametrize("size", [1, 2, 7, PIECE, PIECE + 3])
def test_normal_numbers_are_those_of_box_and_muller_whatever_the_number(size: int) -> None:
    """Against the formula with scalars, from the same uniform numbers."""
    uniform, expected = generator(9), []
    for begin in range(0, size, PIECE):
        half = (min(PIECE, size - begin) + 1) // 2
        lengths, angles = uniform.uniform(2 * half).reshape(2, half)
        radius = [math.sqrt(-2.0 * math.log1p(-u)) for u in lengths]
        for function in (math.cos, math.sin):
            expected += [r * function(2 * math.pi * v) for r, v in zip(radius, angles, strict=True)]
    assert np.allclose(generator(9).normal(size), expected[:size], rtol=1e-14, atol=2e-15)


def test_the_noise_on_a_sum_in_float32_is_added_in_float64_and_rounded_once() -> None:
    torch_sum = torch.rand(40_001, generator=torch.Generator().manual_seed(1)) * 1e-3
    exact = noised_sum([torch_sum.double()], standard_deviation=3.0, generator=generator(10))[0]
    single = noised_sum([torch_sum.clone()], standard_deviation=3.0, generator=generator(10))[0]
    assert single.dtype == torch.float32
    assert torch.equal(single, exact.float())


def test_noised_counts_scale_their_noise_with_each_unit() -> None:
    counts = np.full(40_000, 7, dtype=np.int64)
    units = np.repeat([1, 1000], 20_000)
    noised = noised_counts(counts, units=units, standard_deviation=5.0, generator=generator(3)) - 7
    assert noised.dtype == np.int64
    assert _fits_variance(noised[20_000:].astype(float), 5000.0)
    assert noised[:20_000].std() == pytest.approx(math.sqrt(25 + 1 / 12), rel=0.03)


# Sampling


def test_sampling_is_by_patient_whatever_the_number_of_images() -> None:
    """A patient with 200 images is sampled as often as one with a single image."""
    draw = generator(4)
    first_image = np.array([0, 1, 201, 202], dtype=np.int64)
    seen = np.zeros(3)
    for _ in range(4000):
        patients = sample_patients(3, sample_rate=0.3, generator=draw)
        images = pick_images(patients, first_image=first_image, generator=draw)
        assert len(images) == len(patients)
        assert all(first_image[p] <= i < first_image[p + 1] for p, i in zip(patients, images, strict=True))
        seen[patients] += 1
    assert np.abs(seen / 4000 - 0.3).max() < 5 * math.sqrt(0.3 * 0.7 / 4000)


def test_batch_sizes_vary_as_poisson_sampling_demands() -> None:
    """Fixed batches would have no variance; the accountant assumes binomial sizes."""
    draw = generator(5)
    sizes = np.array([len(sample_patients(200, sample_rate=0.1, generator=draw)) for _ in range(4000)])
    assert sizes.var() == pytest.approx(200 * 0.1 * 0.9, rel=0.12)


def test_every_image_of_a_sampled_patient_is_equally_likely() -> None:
    draw = generator(6)
    first_image = np.array([0, 4], dtype=np.int64)
    only = np.zeros(1, dtype=np.int64)
    picked = [int(pick_images(only, first_image=first_image, generator=draw)[0]) for _ in range(4000)]
    assert np.abs(np.bincount(picked, minlength=4) / 4000 - 0.25).max() < 0.035


def test_an_empty_sample_is_a_valid_outcome() -> None:
    assert len(sample_patients(5, sample_rate=1e-12, generator=generator(7))) == 0


# Clipping


@pytest.mark.parametrize("bound", [1e-3, 0.3, 100.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
def test_the_clipped_sum_equals_exact_autograd(bound: float, scale: float) -> None:
    images, labels = random_images(1, 6, scale)
    summed = ClippedGradientSum(build_model(STUDY), max_grad_norm=bound)
    summed.add(images[:4], labels[:4], loss=TASK.loss)
    summed.add(images[4:], labels[4:], loss=TASK.loss)
    difference = [
        got - want for got, want in zip(summed.take(), exact_sum(images, labels, bound), strict=True)
    ]
    largest = min(bound, 1e6) * len(images)
    assert norm_of(difference) <= 1e-5 * largest


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.01, 1.0, 1e4]))
def test_no_patient_moves_the_sum_by_more_than_the_bound(seed: int, scale: float) -> None:
    images, labels = random_images(seed, 1, scale)
    summed = ClippedGradientSum(build_model(STUDY), max_grad_norm=0.5)
    summed.add(images, labels, loss=TASK.loss)
    assert norm_of(summed.take()) <= 0.5 * (1 + 1e-6)


def test_a_patient_with_a_gradient_that_is_not_finite_contributes_zero() -> None:
    images, labels = random_images(2, 5)
    broken = images.clone()
    broken[2, 0, 3, 3] = float("nan")
    summed = ClippedGradientSum(build_model(STUDY), max_grad_norm=1.0)
    summed.add(broken, labels, loss=TASK.loss)
    kept = [0, 1, 3, 4]
    expected = exact_sum(images[kept], labels[kept], 1.0)
    got = summed.take()
    assert all(bool(part.isfinite().all()) for part in got)
    assert norm_of([a - b for a, b in zip(got, expected, strict=True)]) < 1e-4


def test_without_patients_the_sum_is_zero_and_after_taking_it_begins_anew() -> None:
    summed = ClippedGradientSum(build_model(STUDY), max_grad_norm=1.0)
    assert norm_of(summed.take()) == 0.0
    summed.add(*random_images(3, 2), loss=TASK.loss)
    assert norm_of(summed.take()) > 0.0
    assert norm_of(summed.take()) == 0.0


def test_physical_batches_are_added_in_float64_and_what_was_taken_stays_as_it_is() -> None:
    images, labels = random_images(5, 6)
    summed = ClippedGradientSum(build_model(STUDY), max_grad_norm=1.0)
    singly = []
    for begin in (0, 2, 4):
        summed.add(images[begin : begin + 2], labels[begin : begin + 2], loss=TASK.loss)
        singly.append(summed.take())
    before = [part.clone() for part in singly[0]]
    for begin in (0, 2, 4):
        summed.add(images[begin : begin + 2], labels[begin : begin + 2], loss=TASK.loss)
    for got, parts in zip(summed.take(), zip(*singly, strict=True), strict=True):
        assert got.dtype == torch.float64
        assert torch.equal(got, parts[0].double() + parts[1].double() + parts[2].double())
    assert all(torch.equal(part, kept) for part, kept in zip(singly[0], before, strict=True))


def test_a_patients_gradient_does_not_depend_on_the_other_patients_of_the_batch() -> None:
    images, labels = random_images(4, 4)
    others = images.clone()
    others[1:] = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(99))
    sums = []
    for batch in (images, others):
        alone, rest = (ClippedGradientSum(build_model(STUDY), max_grad_norm=10.0) for _ in range(2))
        alone.add(batch, labels, loss=TASK.loss)
        rest.add(batch[1:], labels[1:], loss=TASK.loss)
        sums.append([a - b for a, b in zip(alone.take(), rest.take(), strict=True)])
    assert norm_of([a - b for a, b in zip(*sums, strict=True)]) < 1e-5


def test_batch_normalisation_is_refused_with_what_to_use_instead() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    with pytest.raises(UnsupportedModelError, match="use GroupNorm"):
        check_supported(model)


def test_closing_takes_the_hooks_off_the_model() -> None:
    model = build_model(STUDY)
    summed = ClippedGradientSum(model, max_grad_norm=1.0)
    summed.add(*random_images(5, 2), loss=TASK.loss)
    summed.close()
    assert not any(hasattr(weight, "grad_sample") for weight in model.parameters())
    TASK.loss(model(random_images(5, 2)[0]), torch.ones(2)).sum().backward()
    assert not any(hasattr(weight, "grad_sample") for weight in model.parameters())
