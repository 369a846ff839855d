"""The statistics of the auditor: known answers, and that their false alarms are as rare as they say."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.audit.gaussian import (
    correlation_bound,
    kolmogorov_bound,
    kolmogorov_distance,
    largest_correlation_between,
    largest_correlation_within,
    mean_square_interval,
    normal_magnitudes,
)
from privacy.audit.one_run import epsilon_bound, fewest_correct, p_value
from privacy.audit.proportions import count_interval
from simulations.audit.similarity import structural_similarity

# The one-run bound


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "published"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],
)
def test_the_one_run_bound_is_that_of_the_paper(
    canaries: int, guesses: int, correct: int, delta: float, published: float
) -> None:
    """Steinke, Nasr and Jagielski (2023), arXiv 2305.08846v1, pages 46 and 28."""
    bound = epsilon_bound(num_canaries=canaries, num_guesses=guesses, num_correct=correct, delta=delta)
    assert bound == pytest.approx(published, abs=1e-3)


def test_without_delta_the_p_value_is_the_tail_of_randomised_response() -> None:
    accuracy = math.e / (1 + math.e)
    expected = sum(math.comb(10, k) * accuracy**k * (1 - accuracy) ** (10 - k) for k in (9, 10))
    found = p_value(num_canaries=50, num_guesses=10, num_correct=9, epsilon=1.0, delta=0.0)
    assert found == pytest.approx(expected, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.floats(0.0, 4.0), st.sampled_from([0.0, 1e-5, 1e-3]))
def test_no_claim_is_refuted_by_coin_flips_and_a_larger_epsilon_never_more_than_a_smaller(
    guesses: int, epsilon: float, delta: float
) -> None:
    def value(correct: int, larger: float) -> float:
        return p_value(
            num_canaries=100, num_guesses=guesses, num_correct=correct, epsilon=larger, delta=delta
        )

    assert value(guesses // 2, epsilon) > 0.05
    assert value(guesses, epsilon) <= value(guesses, epsilon + 0.5) + 1e-12


def test_the_fewest_correct_guesses_that_refute_are_the_first_whose_bound_is_above_the_claim() -> None:
    fewest = fewest_correct(num_canaries=1000, num_guesses=200, epsilon=2.0, delta=1e-5)
    assert fewest is not None
    bounds = [
        epsilon_bound(num_canaries=1000, num_guesses=200, num_correct=number, delta=1e-5)
        for number in (fewest - 1, fewest)
    ]
    assert bounds[0] <= 2.0 < bounds[1]
    assert fewest_correct(num_canaries=1000, num_guesses=20, epsilon=3.0, delta=1e-5) is None


def test_more_correct_guesses_than_guesses_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="num_correct = 3"):
        p_value(num_canaries=5, num_guesses=2, num_correct=3, epsilon=1.0, delta=0.0)


# Intervals


@pytest.mark.parametrize("false_alarm", [0.2, 0.02])
def test_intervals_are_left_as_seldom_as_they_say(false_alarm: float) -> None:
    random, times = np.random.default_rng(1), 4000
    squares = (random.normal(size=(times, 30)) ** 2).mean(axis=1)
    least, most = mean_square_interval(30, false_alarm=false_alarm)
    allowed = 4 * math.sqrt(false_alarm / times)
    assert abs(np.mean((squares < least) | (squares > most)) - false_alarm) < allowed

    counts = random.binomial(50, 0.3, size=times)
    lowest, highest = count_interval(50, 0.3, false_alarm=false_alarm)
    assert np.mean((counts < lowest) | (counts > highest)) < false_alarm + allowed

    pairs = random.normal(size=(times, 2, 20))
    products = np.einsum("tk,tk->t", pairs[:, 0], pairs[:, 1])
    correlations = np.abs(products) / np.prod(np.linalg.norm(pairs, axis=2), axis=1)
    outside = np.mean(correlations > correlation_bound(20, false_alarm=false_alarm))
    assert abs(outside - false_alarm) < allowed

    distances = [kolmogorov_distance(random.normal(size=100)) for _ in range(500)]
    bound = kolmogorov_bound(100, false_alarm=false_alarm)
    assert np.mean(np.array(distances) > bound) < false_alarm + 4 * math.sqrt(false_alarm / 500)


def test_the_kolmogorov_distance_of_one_point_is_known() -> None:
    assert kolmogorov_distance(np.zeros(1)) == pytest.approx(0.5)


def test_shifted_copies_are_found_between_rows_and_within_one() -> None:
    noise = np.random.default_rng(2).normal(size=(3, 500))
    assert max(largest_correlation_between(noise), largest_correlation_within(noise)) < 0.3
    copied = noise.copy()
    copied[2] = np.roll(noise[0], 123)
    assert largest_correlation_between(copied) == pytest.approx(1.0)
    copied = noise.copy()
    copied[:, 250:] = copied[:, :250]
    assert largest_correlation_within(copied) == pytest.approx(1.0)


def test_the_mean_over_rows_leaves_its_bound_as_seldom_as_that_of_one_long_row() -> None:
    random, times = np.random.default_rng(5), 400
    bound = correlation_bound(8 * 100, false_alarm=0.1 / 100)
    outside = [largest_correlation_within(random.normal(size=(8, 100))) > bound for _ in range(times)]
    assert np.mean(outside) < 0.1 + 4 * math.sqrt(0.1 / times)


def test_magnitudes_of_normal_numbers_are_normal_and_grow_with_them() -> None:
    noise = np.random.default_rng(4).normal(size=20_000)
    magnitudes = normal_magnitudes(noise)
    assert kolmogorov_distance(magnitudes) < kolmogorov_bound(20_000, false_alarm=1e-6)
    assert np.array_equal(np.argsort(magnitudes), np.argsort(np.abs(noise)))
    assert np.isfinite(normal_magnitudes(np.array([0.0, 60.0]))).all()


# Similarity of pictures


def test_a_picture_is_similar_to_itself_and_not_to_noise() -> None:
    random = np.random.default_rng(3)
    rows, columns = np.mgrid[0:32, 0:32]
    picture = 0.5 + 0.4 * np.sin(rows / 5.0) * np.cos(columns / 7.0)
    assert structural_similarity(picture, picture) == pytest.approx(1.0)
    noise = random.uniform(size=(32, 32))
    assert abs(structural_similarity(picture, noise)) < 0.1
    assert structural_similarity(picture, noise) == pytest.approx(structural_similarity(noise, picture))
    assert structural_similarity(picture, 1.0 - picture) < 0.0


def test_of_two_even_pictures_only_the_luminance_differs() -> None:
    """Wang et al. (2004), equation 6, with constant pictures."""
    one, other = np.full((16, 16), 0.2), np.full((16, 16), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert structural_similarity(one, other) == pytest.approx(expected)
