"""The noise on the server's metrics, as the result tells it, against the noise that they really have."""

import numpy as np
import pytest
from studies import make_study

from client.budget import evaluation_cost
from privacy.noise import noised_counts
from privacy.randomness import CryptographicGenerator
from server.metric_noise import metric_noise
from shared_models.tasks.registry import task_of

STUDY = make_study(private=True)
TASK = task_of(STUDY)


def exact(num: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, num)
    scores = 1 / (1 + np.exp(-(rng.normal(size=num) + 2.0 * labels - 1.0)))
    return TASK.statistics(scores, labels)


@pytest.mark.slow
@pytest.mark.parametrize("num_sites", [1, 4])
def test_it_is_about_the_noise_that_the_metrics_have(num_sites: int) -> None:
    counts, cost = exact(4000), evaluation_cost(STUDY)
    assert cost is not None
    generator = CryptographicGenerator(bytes([9]) * 32)
    seen, told = [], []
    for number in range(200):
        noised = counts
        for _ in range(num_sites):
            noised = noised_counts(
                noised,
                units=TASK.noise_units,
                standard_deviation=cost.standard_deviation * TASK.l2_sensitivity,
                generator=generator,
            )
        seen.append(TASK.metrics(noised))
        if number < 3:
            told.append(metric_noise(STUDY, tuple(noised.tolist()), num_sites=num_sites))
    for name in ("auroc", "accuracy", "balanced_accuracy", "loss"):
        real = float(np.std([one[name] for one in seen]))  # type: ignore[arg-type]
        for one in told:
            assert one is not None
            assert one[name] == pytest.approx(real, rel=0.3), name


def test_exact_evaluation_has_none() -> None:
    study = make_study()
    assert metric_noise(study, tuple(exact(100).tolist()), num_sites=2) is None


@pytest.mark.slow
def test_a_metric_that_the_noise_leaves_undefined_has_no_figure() -> None:
    nobody = tuple([0] * TASK.num_statistics)
    told = metric_noise(STUDY, nobody, num_sites=3)
    assert told is not None
    assert told["auroc"] is None
