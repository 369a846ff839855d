"""Confidence intervals by patient of how well marks cover masks, from the counts of patients by Dice.

A patient is in one cell of a structure, so that the summed cells hold all that is known of who the patients are. Means
are taken for normal on the logit scale, shares by Wilson's interval, and the median by its order statistics: how many
patients lie below the true median is binomial, whatever the distribution of Dice.
"""

from collections.abc import Callable, Mapping
from math import sqrt

import numpy as np

from server.intervals import Interval, Share, Z, mean_of_limits, of_mean, of_share
from shared_models.tasks.overlap import Overlaps

NoiseOn = Callable[[str], float | None]
"""The deviation that noise gives a metric; None where it leaves it undefined."""


def of_structures(
    overlaps: Mapping[str, Overlaps], *, deviation: float, noise_on: NoiseOn
) -> dict[str, Interval | None]:
    """An interval for each metric of each structure, and for the means over structures that somebody has.

    Args:
        overlaps: of each structure, summed.
        deviation: of the noise on each cell, in patients.
        noise_on: what it does to each metric.
    """
    found: dict[str, Interval | None] = {}
    of_metric: dict[str, list[Interval | None]] = {}
    for name, own in overlaps.items():
        values = own.metrics(cut=False)
        for metric, one in _of_structure(name, own, deviation, noise_on).items():
            found[f"{metric}/{name}"] = one
            if values[metric] is not None:
                of_metric.setdefault(metric, []).append(one)
    return found | {metric: _over_structures(there) for metric, there in of_metric.items()}


def _over_structures(intervals: list[Interval | None]) -> Interval | None:
    return intervals[0] if len(intervals) == 1 else mean_of_limits(intervals)


def _of_structure(
    name: str, own: Overlaps, deviation: float, noise_on: NoiseOn
) -> dict[str, Interval | None]:
    bins, missed = own.cells[:-3], float(own.cells[-3])
    middles = own.middles
    half = len(bins) // 2
    found: dict[str, Interval | None] = {
        "median_dice": _of_median(own) if deviation == 0.0 else None,
        "below_half": of_share(
            Share(
                part=missed + float(bins[:half].sum()),
                rest=float(bins[half:].sum()),
                part_cells=half + 1,
                rest_cells=len(bins) - half,
            ),
            deviation=deviation,
        ),
        "detected": of_share(
            Share(part=float(bins.sum()), rest=missed, part_cells=len(bins), rest_cells=1),
            deviation=deviation,
        ),
        "specificity": of_share(
            Share(part=float(own.cells[-2]), rest=float(own.cells[-1]), part_cells=1, rest_cells=1),
            deviation=deviation,
        ),
    }
    counts = np.append(bins, missed)
    for metric, values in (("dice", middles), ("iou", middles / (2.0 - middles))):
        noise = noise_on(f"{metric}/{name}")
        found[metric] = None if noise is None else of_mean(np.append(values, 0.0), counts, noise=noise)
    return found


def _of_median(own: Overlaps) -> Interval | None:
    """The Dice of the patients between whom, counted from below, the true median lies."""
    num = own.num_with
    if num <= 0:
        return None
    below = np.cumsum([own.cells[-3], *own.cells[:-3]])
    ladder = np.array([0.0, *own.middles])
    low, high = (num / 2 + sign * Z * sqrt(num) / 2 for sign in (-1, 1))
    at_low = int(np.searchsorted(below, max(np.floor(low), 1.0)))
    at_high = int(np.searchsorted(below, min(np.ceil(high) + 1.0, num)))
    return Interval(low=float(ladder[at_low]), high=float(ladder[at_high]), method="order")
