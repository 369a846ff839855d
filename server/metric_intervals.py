"""An interval for each metric of a task: which method for which, and what is done where a mean is over classes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from server import intervals
from server.intervals import Interval, Share, mean_of_independent, mean_of_limits, of_share
from server.overlap_intervals import of_structures
from shared_models.tasks.curves import Pair
from shared_models.tasks.fourfold import RATIOS
from shared_models.tasks.task import Counts, Doubles, Metrics, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What noise there is: on each cell, in patients, and what it does to each metric; none by default."""

    deviation: float = 0.0
    of_metrics: Mapping[str, float | None] | None = None

    def on(self, metric: str) -> float | None:
        """The deviation that it gives this metric; None where it leaves it undefined."""
        return 0.0 if self.of_metrics is None else self.of_metrics.get(metric)


def metric_intervals(task: Task, statistics: Counts, noise: Noise) -> dict[str, Interval | None]:
    """An interval for each metric that has one, by its name; None where the data do not give it."""
    if overlaps := task.overlaps(statistics):
        values = task.metrics(statistics, cut=False)
        marked = of_structures(overlaps, deviation=noise.deviation, noise_on=noise.on)
        return {metric: one for metric, one in marked.items() if metric in values}
    pairs, decisions = task.pairs(statistics), task.decisions(statistics)
    own: dict[str, dict[str, Interval | None]] = {}
    for name, pair in pairs.items():
        suffix = "" if task.parts is None else f"/{name}"
        own[name] = {
            **intervals.of_figures(decisions[name], deviation=noise.deviation),
            **_of_scores(pair, noise, suffix),
        }
    if task.parts is None:
        return {metric: one for of_part in own.values() for metric, one in of_part.items()}
    values = task.metrics(statistics, cut=False)
    found = {f"{metric}/{name}": one for name, of_part in own.items() for metric, one in of_part.items()}
    for metric in ("auroc", "average_precision", "brier", *RATIOS):
        there = [
            of_part[metric] for name, of_part in own.items() if values.get(f"{metric}/{name}") is not None
        ]
        found[metric] = mean_of_limits(there)
    if task.parts.confusion:
        found |= _of_confusion(_confusion(values, task.parts.names), noise.deviation)
    return {metric: one for metric, one in found.items() if metric in values}


def _of_scores(pair: Pair, noise: Noise, suffix: str) -> dict[str, Interval | None]:
    found: dict[str, Interval | None] = {}
    for metric, interval in (
        ("auroc", intervals.of_auroc),
        ("average_precision", intervals.of_average_precision),
        ("brier", intervals.of_brier),
    ):
        deviation = noise.on(metric + suffix)
        found[metric] = None if deviation is None else interval(pair, noise=deviation)
    return found


def _confusion(values: Metrics, names: tuple[str, ...]) -> Doubles:
    return np.array(
        [[values[f"confusion/{own}/{taken}"] for taken in names] for own in names], dtype=np.float64
    )


def _of_confusion(confusion: Doubles, deviation: float) -> dict[str, Interval | None]:
    """Of one of several classes: who is of a class is of no other, so that sensitivities are independent."""
    num, right, own = len(confusion), confusion.diagonal(), confusion.sum(1)
    there = [one for one in range(num) if own[one] > 0]
    recalls = [
        of_share(
            Share(
                part=float(right[one]), rest=float(own[one] - right[one]), part_cells=1, rest_cells=num - 1
            ),
            deviation=deviation,
        )
        for one in there
    ]
    overall = Share(
        part=float(right.sum()),
        rest=float(confusion.sum() - right.sum()),
        part_cells=num,
        rest_cells=num**2 - num,
    )
    return {
        "accuracy": of_share(overall, deviation=deviation),
        "balanced_accuracy": mean_of_independent([float(right[one] / own[one]) for one in there], recalls),
        "mcc": intervals.of_correlation(confusion, cells=np.ones_like(confusion), deviation=deviation),
    }
