"""How far the noise of evaluation moves each metric: what the server has to know to read its own figures."""

from math import sqrt

import numpy as np

from privacy.accounting import EvaluationCost
from privacy.noise import noised_counts
from privacy.randomness import CryptographicGenerator
from shared_models.study import Study
from shared_models.subgroups import test_sensitivity
from shared_models.tasks.registry import task_of
from shared_models.tasks.task import Counts, Task

DRAWS = 400


def metric_noise(
    study: Study, statistics: tuple[int, ...], *, num_sites: int
) -> dict[str, float | None] | None:
    """Standard deviation of each metric under the noise of evaluation; None where there is none.

    The noise that is in *statistics* already is put on top once more, many times over (a parametric bootstrap): what
    that does to a metric is about what the first noise did. It is post-processing of what the server has, and looks at
    nothing else. Chance in who the patients are is not in it.

    Args:
        study: says how much noise each site added.
        statistics: summed, noised.
        num_sites: in the sum.

    Returns:
        By metric, but for numbers of patients; None for one that was undefined in more than one of ten draws.

    Source: Efron and Tibshirani (1993), "An introduction to the bootstrap", section 6.5.
    """
    deviation = cell_deviation(study, num_sites=num_sites)
    if deviation is None:
        return None
    return noise_on_metrics(task_of(study), np.array(statistics, dtype=np.int64), deviation=deviation)


def noise_on_metrics(
    task: Task, counts: Counts, *, deviation: float, draws: int = DRAWS
) -> dict[str, float | None]:
    """Standard deviation that noise of *deviation* on each statistic, in its units, gives each metric."""
    # A fixed key: the same result has the same figures, and nothing here protects anybody.
    generator = CryptographicGenerator(bytes(32))
    drawn = [
        task.metrics(
            noised_counts(counts, units=task.noise_units, standard_deviation=deviation, generator=generator),
            cut=False,
        )
        for _ in range(draws)
    ]
    return {
        name: _deviation([one[name] for one in drawn]) for name in drawn[0] if not name.startswith("num_")
    }


def number_deviation(study: Study, *, num_sites: int) -> float:
    """Standard deviation of the noise on a number of patients that is read off such sums; 0 where there is none.

    Found by drawing: which statistics count patients is the task's own affair.
    """
    deviation = cell_deviation(study, num_sites=num_sites)
    if deviation is None:
        return 0.0
    task, generator = task_of(study), CryptographicGenerator(bytes(32))
    # So many of each that no number of patients is cut at zero.
    many = np.full(task.num_statistics, int(100 * deviation) + 1, dtype=np.int64)
    drawn = [
        task.metrics(
            noised_counts(many, units=task.noise_units, standard_deviation=deviation, generator=generator),
            cut=False,
        )["num_patients"]
        or 0.0
        for _ in range(DRAWS)
    ]
    return float(np.std(drawn))


def cell_deviation(study: Study, *, num_sites: int) -> float | None:
    """Standard deviation of the noise on each summed statistic of the final test, in its units; None for none."""
    evaluation, delta = study.evaluation, study.privacy.delta
    if evaluation.epsilon is None or delta is None:
        return None
    cost = EvaluationCost.for_target(
        epsilon=evaluation.epsilon, delta=delta, num_releases=evaluation.num_releases
    )
    return sqrt(num_sites) * cost.standard_deviation * test_sensitivity(study)


def _deviation(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.std(known)) if len(known) >= 0.9 * len(values) else None
