"""Confidence intervals by patient, from sums alone.

Each figure depends on a patient through the cell that the patient is in, (bin, label) or (true class, class taken), so
that the sums hold all that a bootstrap over patients would draw from. Where a closed form exists it is taken. Noise of
evaluation, where there is some, is in each interval.

==============  ================================================================  =====================================
method          for                                                               source
==============  ================================================================  =====================================
``wilson``      shares of patients, and F1; with noise by Fieller's theorem       Wilson (1927); Fieller (1954)
``delong``      AUROC: the wider, on each side, of two                            DeLong (1988); Newcombe (2006)
``mover``       means of shares of different patients                             Zou and Donner (2008)
``delta``       Matthews' correlation, on Fisher's z, two patients added          Itaya et al. (2024); Agresti (1998)
``bootstrap``   average precision and Brier score, logit: draws of the cells      Efron and Tibshirani (1993)
``logit``       means of a figure of each patient, as Dice; one patient added     central limit theorem
``order``       medians, by the order statistics around them                      Thompson (1936)
``bound``       means over classes or findings: the mean of their limits          Cauchy and Schwarz
==============  ================================================================  =====================================
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import atanh, exp, log, sqrt, tanh
from statistics import NormalDist
from typing import Literal

import numpy as np
from scipy import optimize
from scipy.special import stdtrit

from shared_models.tasks.curves import Pair, average_precision, brier
from shared_models.tasks.fourfold import Fourfold, correlation
from shared_models.tasks.histograms import auroc
from shared_models.tasks.task import Doubles

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
DRAWS = 1000
Method = Literal["wilson", "delong", "mover", "delta", "bootstrap", "logit", "order", "bound"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Where a figure lies at the level of `LEVEL`, and by which method."""

    low: float
    high: float
    method: Method


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share of patients: *part* and *rest*, each a sum of so many cells, which may carry noise."""

    part: float
    rest: float
    part_cells: int
    rest_cells: int


def of_share(share: Share, *, deviation: float) -> Interval | None:
    """Wilson's interval; with noise of *deviation* on each cell, its extension.

    All p are in it for which x − pn is no more than `Z` of its own deviation: x is the part and n the whole, and
    x − pn = (1 − p) part − p rest has the variance n p (1 − p) of who the patients are, and that of the noise,
    ((1 − p)² part_cells + p² rest_cells) deviation². Both sides are quadratic in p. Without noise it is Wilson's.

    Returns:
        None where the whole is not told from 0 by the noise.
    """
    x, n, noise = share.part, share.part + share.rest, (Z * deviation) ** 2
    square = n * n + Z * Z * n - noise * (share.part_cells + share.rest_cells)
    linear = -2 * x * n - Z * Z * n + 2 * noise * share.part_cells
    constant = x * x - noise * share.part_cells
    inside = linear * linear - 4 * square * constant
    if n <= 0 or square <= 0 or inside < 0:
        return None
    low, high = ((-linear + sign * sqrt(inside)) / (2 * square) for sign in (-1, 1))
    return _within(low, high, 0.0, "wilson")


def of_figures(table: Fourfold, *, deviation: float) -> dict[str, Interval | None]:
    """Of each of `shared_models.tasks.fourfold.RATIOS`."""
    right, wrong = float(table.true_positive), float(table.false_positive)
    free, missed = float(table.true_negative), float(table.false_negative)
    cells = table.cells
    shares = {
        "accuracy": Share(
            part=right + free,
            rest=wrong + missed,
            part_cells=cells[0] + cells[2],
            rest_cells=cells[1] + cells[3],
        ),
        "sensitivity": Share(part=right, rest=missed, part_cells=cells[0], rest_cells=cells[3]),
        "specificity": Share(part=free, rest=wrong, part_cells=cells[2], rest_cells=cells[1]),
        "ppv": Share(part=right, rest=wrong, part_cells=cells[0], rest_cells=cells[1]),
        "npv": Share(part=free, rest=missed, part_cells=cells[2], rest_cells=cells[3]),
        "f1": Share(part=right, rest=wrong + missed, part_cells=cells[0], rest_cells=cells[1] + cells[3]),
    }
    found = {name: of_share(share, deviation=deviation) for name, share in shares.items()}
    if (
        union := found["f1"]
    ) is not None:  # of TP / (TP + FP + FN) = p, of which F1 = 2p / (1 + p) is a rising function
        low, high = (2 * p / (1 + p) for p in (union.low, union.high))
        found["f1"] = Interval(low=low, high=high, method="wilson")
    halves = [found["sensitivity"], found["specificity"]]
    found["balanced_accuracy"] = mean_of_independent(
        [_value(table.sensitivity), _value(table.specificity)], halves
    )
    matrix = np.array([[free, wrong], [missed, right]])
    of_cells = np.array([[cells[2], cells[1]], [cells[3], cells[0]]])
    found["mcc"] = of_correlation(matrix, cells=of_cells, deviation=deviation)
    return found


def mean_of_independent(
    values: Sequence[float | None], intervals: Sequence[Interval | None]
) -> Interval | None:
    """Of the mean of figures of different patients, each with its interval; None where one has none.

    Source: Zou and Donner (2008), "Construction of confidence limits about effect measures", equation 5 (MOVER).
    """
    known = [
        (value, one)
        for value, one in zip(values, intervals, strict=True)
        if value is not None and one is not None
    ]
    if not known or len(known) < len(values):
        return None
    mean = sum(value for value, _ in known) / len(known)
    down = sqrt(sum((value - one.low) ** 2 for value, one in known)) / len(known)
    up = sqrt(sum((one.high - value) ** 2 for value, one in known)) / len(known)
    return _within(mean - down, mean + up, 0.0, "mover")


def mean_of_limits(intervals: Sequence[Interval | None]) -> Interval | None:
    """Of a mean over classes or findings of the same patients: the means of the lower and of the upper limits.

    How the figures of classes go together cannot be told from the sums. The deviation of a mean is never larger than
    the mean of the deviations, whatever the correlations (Cauchy and Schwarz), so that this interval is never shorter
    than the right one, and up to √(number) times as long.
    """
    known = [one for one in intervals if one is not None]
    if not known or len(known) < len(intervals):
        return None
    low, high = (
        sum(limits) / len(known) for limits in zip(*((one.low, one.high) for one in known), strict=True)
    )
    return Interval(low=low, high=high, method="bound")


def of_auroc(pair: Pair, *, noise: float) -> Interval | None:
    """From two histograms, ties counted one half; *noise* is the deviation that noise gives AUROC.

    On each side the wider of DeLong's interval on the logit scale and Newcombe's: where one kind has few patients,
    DeLong's variance is often far too small, and the more so the nearer AUROC is to 1.

    Where all positives lie above all negatives, or all below, DeLong's variance is 0 and says nothing. The variance of
    AUROC is then taken for the most that it can be, A (1 − A) over the number of the smaller kind: Wilson's interval.

    Source: DeLong, DeLong and Clarke-Pearson (1988); Newcombe (2006), "Confidence intervals for an effect size measure
    based on the Mann-Whitney statistic", part 2, method 5; Birnbaum and Klose (1957) for the bound.
    """
    value = auroc(pair.negative, pair.positive, cut=False)
    if value is None:
        return None
    num_negative, num_positive = float(pair.negative.sum()), float(pair.positive.sum())
    smaller = min(num_negative, num_positive)
    most = max(value * (1 - value), 0.0) / smaller
    below = np.cumsum(pair.negative) - pair.negative / 2
    above = num_positive - np.cumsum(pair.positive) + pair.positive / 2
    variance = sum(
        float((counts * (placed / others - value) ** 2).sum() / (own * max(own - 1, 1)))
        for counts, own, placed, others in (
            (pair.positive, num_positive, below, num_negative),
            (pair.negative, num_negative, above, num_positive),
        )
    )
    if not 0 < value < 1 or variance <= 0:
        inside = min(max(value, 0.0), 1.0)
        bound = of_share(
            Share(part=inside * smaller, rest=(1 - inside) * smaller, part_cells=0, rest_cells=0),
            deviation=0.0,
        )
        return None if bound is None else _with_noise(value, (bound.low, bound.high), noise, 0.0, "delong")
    delong = _on_logit(value, sqrt(min(variance, most)) / (value * (1 - value)))
    newcombe = _newcombe(value, max(num_negative, 1.0), max(num_positive, 1.0))
    limits = min(delong[0], newcombe[0]), max(delong[1], newcombe[1])
    return _with_noise(value, limits, noise, 0.0, "delong")


def _newcombe(value: float, num_negative: float, num_positive: float) -> tuple[float, float]:
    """All A in (0, 1) from which *value* is no more than `Z` deviations away that A itself would give it."""
    mean = (num_negative + num_positive) / 2

    def beyond(a: float) -> float:
        own = (1 - a) / (2 - a) + a / (1 + a)
        variance = a * (1 - a) * (1 + (mean - 1) * own) / (num_negative * num_positive)
        return (a - value) ** 2 - Z * Z * variance

    return float(optimize.brentq(beyond, 0.0, value)), float(optimize.brentq(beyond, value, 1.0))


def of_mean(values: Doubles, counts: Doubles, *, noise: float) -> Interval | None:
    """Of the mean of a figure in [0, 1] of patients, of whom *counts* have each of *values*, shape (n,).

    One patient is added to the variance, half with the figure 0 and half with 1: a few patients who happen to be alike
    know nothing of the one in fifty of whom nothing is found. Where all are in one cell their variance is taken for the
    most that it can be, m (1 − m), which gives Wilson's interval. *noise* is the deviation that noise gives the mean.

    Source: as Agresti and Coull (1998) do for shares.
    """
    num = float(counts.sum())
    if num <= 0:
        return None
    mean = float(values @ counts) / num
    inside = min(max(mean, 0.0), 1.0)
    spread = float((values - mean) ** 2 @ counts)
    if not 0 < mean < 1 or spread <= 0:
        bound = of_share(
            Share(part=inside * num, rest=(1 - inside) * num, part_cells=0, rest_cells=0), deviation=0.0
        )
        return None if bound is None else _with_noise(inside, (bound.low, bound.high), noise, 0.0, "logit")
    middle = (num * mean + 0.5) / (num + 1)
    added = float((values - middle) ** 2 @ counts) + 0.5 * middle**2 + 0.5 * (1 - middle) ** 2
    deviation = sqrt(added / num / num)
    return _with_noise(mean, _on_logit(mean, deviation / (mean * (1 - mean))), noise, 0.0, "logit")


def of_correlation(confusion: Doubles, *, cells: Doubles, deviation: float) -> Interval | None:
    """Of Matthews' correlation, of one decision or several classes.

    Two patients are added, the same part of them to each cell, before the delta method: of a cell with nobody in it it
    would say that nobody can ever be there. The interval is widened to the figure where that lies outside.

    Args:
        confusion: counts, float64, shape (classes, classes); a row for each true class.
        cells: of how many noised statistics each of them is the sum, the same shape.
        deviation: of the noise on each statistic.

    Source: Itaya et al. (2024) for the delta method; Agresti and Coull (1998) for the patients that are added.
    """
    value = float(correlation(confusion))
    if np.isnan(value) or abs(value) >= 1:
        return None
    if not _sampling(confusion):  # all are taken for one: nothing is known of how the two go together
        return None
    with_two = confusion.clip(0.0) + 2.0 / confusion.size
    sampling, middle = _sampling(with_two), float(correlation(with_two))
    noise = deviation * sqrt(float((cells * _slopes(confusion) ** 2).sum()))
    half = Z * sqrt(sampling) / (1 - middle**2)
    low, high = (tanh(atanh(middle) + sign * half) for sign in (-1, 1))
    return _with_noise(value, (min(low, value), max(high, value)), noise, -1.0, "delta")


def _sampling(confusion: Doubles) -> float:
    """Variance of the correlation by who the patients are; 0 where it has no slope."""
    slopes = _slopes(confusion)
    return float((confusion.clip(0.0) * slopes**2).sum()) if np.isfinite(slopes).all() else 0.0


def _slopes(confusion: Doubles) -> Doubles:
    """Of the correlation, for each cell."""
    step = 1e-6 * max(float(confusion.sum()), 1.0)
    shifts = np.eye(confusion.size).reshape(-1, *confusion.shape) * step
    up, down = correlation(confusion + shifts), correlation(confusion - shifts)
    return (np.asarray(up - down) / (2 * step)).reshape(confusion.shape)


def of_average_precision(pair: Pair, *, noise: float) -> Interval | None:
    """By the bootstrap over patients, on the logit scale.

    The deviation is that of the few positive patients' places among the others, and is made larger as that of a mean of
    so many is.
    """
    value = float(average_precision(pair))
    if not 0 < value < 1:
        return None
    drawn = average_precision(resampled(pair))
    drawn = drawn[(drawn > 0) & (drawn < 1)]
    if len(drawn) < 0.9 * DRAWS:
        return None
    spread = float(np.std(np.log(drawn / (1 - drawn)))) * _of_few(float(pair.positive.sum()))
    limits = _on_logit(value, spread)
    return _with_noise(value, limits, noise, 0.0, "bootstrap")


def of_brier(pair: Pair, *, noise: float) -> Interval | None:
    """By the bootstrap over patients, on the logit scale: of rare patients a few large errors make most of it."""
    value = float(brier(pair))
    if not 0 < value < 1:
        return None
    num = float(pair.negative.sum() + pair.positive.sum())
    spread = float(np.std(brier(resampled(pair)))) / (value * (1 - value)) * _of_few(num)
    return _with_noise(value, _on_logit(value, spread), noise, 0.0, "bootstrap")


def _of_few(num: float) -> float:
    """By what a deviation that *num* patients tell is made larger: √(n / (n − 1)), and Student's quantile for Z."""
    num = max(num, 2.0)
    return sqrt(num / (num - 1)) * float(stdtrit(num - 1, (1 + LEVEL) / 2)) / Z


def resampled(pair: Pair) -> Pair:
    """The pair of each of `DRAWS` bootstrap samples: as many patients, drawn from the cells with replacement.

    Counts that noise left below zero are taken for zero here. A fixed key: the same sums give the same figures.
    """
    there = (pair.negative > 0) | (pair.positive > 0)
    cells = np.concatenate([pair.negative[there], pair.positive[there]]).clip(0.0)
    num = round(max(float(pair.negative.sum() + pair.positive.sum()), 1.0))
    drawn = np.random.default_rng(0).multinomial(num, cells / cells.sum(), size=DRAWS).astype(np.float64)
    negative, positive = np.zeros((2, DRAWS, pair.num_bins))
    negative[:, there], positive[:, there] = np.split(drawn, 2, axis=1)
    return Pair(negative=negative, positive=positive, edges=pair.edges)


def _on_logit(value: float, spread: float) -> tuple[float, float]:
    """Limits of a figure in (0, 1) that has this deviation on the logit scale."""
    middle = log(value / (1 - value))
    low, high = (1 / (1 + exp(-(middle + sign * Z * spread))) for sign in (-1, 1))
    return low, high


def _with_noise(
    value: float, limits: tuple[float, float], noise: float, lowest: float, method: Method
) -> Interval:
    """Sampling and noise are independent: their distances from the figure add up in squares (MOVER)."""
    low = value - sqrt((value - limits[0]) ** 2 + (Z * noise) ** 2)
    high = value + sqrt((limits[1] - value) ** 2 + (Z * noise) ** 2)
    return _within(low, high, lowest, method)


def _within(low: float, high: float, lowest: float, method: Method) -> Interval:
    low, high = (min(max(limit, lowest), 1.0) for limit in (low, high))
    return Interval(low=low, high=high, method=method)


def _value(figure: Doubles) -> float | None:
    return None if np.isnan(figure) else float(figure)
