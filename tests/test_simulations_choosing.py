"""Settings are chosen by the one-standard-error rule."""

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from simulations.choosing import Candidate, auroc_error, chosen
from simulations.modes import Job, Trained
from simulations.scenario import read_scenario

BASE = read_scenario("pneumoniamnist-scattering").study


def candidate(auroc: float, balanced: float, reach: float) -> Candidate:
    model = Trained(
        job=Job(mode="local", epsilon=1.0, seed=1, values=(), on="validation"),
        metrics={"auroc": auroc, "balanced_accuracy": balanced},
        by_hospital={},
        noise_multiplier=None,
        seconds=1.0,
    )
    return Candidate(models=(model,), reach=reach)


def test_the_error_is_that_of_drawing_other_patients() -> None:
    generator = np.random.default_rng(1)
    drawn = []
    for _ in range(2000):
        negative, positive = generator.exponential(1.0, 60), 4.0 * generator.exponential(1.0, 140)
        drawn.append(mannwhitneyu(positive, negative).statistic / (60 * 140))
    told = auroc_error(0.8, num_negative=60, num_positive=140)
    assert float(np.mean(drawn)) == pytest.approx(0.8, abs=0.01)
    assert told == pytest.approx(float(np.std(drawn)), rel=0.1)
    assert auroc_error(1.0, num_negative=60, num_positive=140) == 0.0


def test_of_those_within_one_error_of_the_best_the_most_restrained_is_taken() -> None:
    error = auroc_error(0.9, num_negative=100, num_positive=100)
    best = candidate(0.9, 0.8, reach=9.0)
    near = candidate(0.9 - 0.9 * error, 0.7, reach=3.0)
    far = candidate(0.9 - 1.1 * error, 0.9, reach=1.0)
    same_reach = candidate(0.9 - 0.5 * error, 0.75, reach=3.0)
    several = [best, far, near, same_reach]
    assert chosen(several, num_negative=100, num_positive=100) is same_reach
    assert chosen([best, far], num_negative=100, num_positive=100) is best
    assert chosen([best, near], num_negative=10**9, num_positive=10**9) is best


def test_the_reach_counts_each_rounds_rate_and_the_clipping_bound() -> None:
    values = (("learning_rate", 2.0), ("max_grad_norm", 0.5), ("num_rounds", 4))
    job = Job(mode="distributed", epsilon=1.0, seed=1, values=values, on="validation")
    model = Trained(job=job, metrics={}, by_hospital={}, noise_multiplier=None, seconds=1.0)
    assert math.isclose(Candidate.of([model], BASE).reach, 4 * 2.0 * 0.5)
