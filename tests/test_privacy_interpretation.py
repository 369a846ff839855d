"""What ε and δ mean for one patient: the bound holds for every test, and one mechanism reaches it."""

import math
from itertools import product
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.accounting import gaussian_delta
from privacy.interpretation import best_guess


@pytest.mark.parametrize(
    ("epsilon", "delta", "expected"), [(0.0, 0.0, 0.5), (math.log(3), 0.0, 0.75), (0.0, 1.0, 1.0)]
)
def test_known_answers(epsilon: float, delta: float, expected: float) -> None:
    assert best_guess(epsilon=epsilon, delta=delta) == pytest.approx(expected)


@given(st.floats(0.0, 100.0), st.floats(0.0, 0.1))
def test_the_bound_is_that_of_even_odds_and_below_the_two_parts_added(epsilon: float, delta: float) -> None:
    bound, of_epsilon = best_guess(epsilon=epsilon, delta=delta), 1.0 / (1.0 + math.exp(-epsilon))
    assert of_epsilon - 1e-12 <= bound <= min(1.0, of_epsilon + delta) + 1e-12
    assert bound == pytest.approx((math.exp(epsilon) + delta) / (1.0 + math.exp(epsilon)))


def test_the_worst_mechanism_reaches_the_bound_and_no_guess_does_better() -> None:
    """With probability δ it tells all, else it answers truly with odds e^ε: every way to guess from its outputs."""
    epsilon, delta = 1.3, 0.02
    right = (1 - delta) * math.exp(epsilon) / (1 + math.exp(epsilon))
    outputs = {  # output: (probability with the patient, without)
        "surely in": (delta, 0.0),
        "in": (right, 1 - delta - right),
        "out": (1 - delta - right, right),
        "surely out": (0.0, delta),
    }
    for large, small in [(0, 1), (1, 0)]:
        assert all(
            sum(outputs[one][large] for one in event)
            <= math.exp(epsilon) * sum(outputs[one][small] for one in event) + delta + 1e-12
            for event in product(outputs, repeat=1)
        ), "it is (ε, δ)-differentially private"
    best = max(
        sum(0.5 * pair[0 if guess else 1] for guess, pair in zip(guesses, outputs.values(), strict=True))
        for guesses in product((True, False), repeat=len(outputs))
    )
    assert best == pytest.approx(best_guess(epsilon=epsilon, delta=delta))


@pytest.mark.parametrize("deviation", [0.5, 1.0, 3.0])
def test_the_best_guess_at_gaussian_noise_stays_below_the_bound(deviation: float) -> None:
    truly = NormalDist().cdf(0.5 / deviation)
    for epsilon in (0.5, 1.0, 4.0):
        delta = gaussian_delta(standard_deviation=deviation, num_releases=1, epsilon=epsilon)
        assert truly <= best_guess(epsilon=epsilon, delta=delta)
