"""What the sums of an evaluation say of a model: intervals of its metrics, curves, calibration, operating points."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from server import intervals
from server.intervals import Interval, mean_of_independent, mean_of_limits, of_share
from server.overlap_intervals import of_structures
from server.thresholds import Chosen
from shared_models.configuration import Frozen
from shared_models.tasks.curves import (
    Pair,
    auroc_error,
    brier_error,
    calibration_error_by_chance,
    curve,
    reliability,
)
from shared_models.tasks.fourfold import RATIOS, Fourfold, known
from shared_models.tasks.histograms import auroc, mean_of_known
from shared_models.tasks.overlap import Overlaps
from shared_models.tasks.task import Counts, Doubles, Metrics, Task

CURVE_POINTS = 100
"""Steps of a curve in a result at most: of more bins those edges are taken that part patients evenly."""

OVERLAP_GROUPS = 20
"""Of Dice, in which patients are counted in a result."""


class IntervalEntry(Frozen):
    """A 95 % confidence interval, and the method that it comes from."""

    low: float
    high: float
    method: str


class CurveEntry(Frozen):
    """At rising thresholds: what it does to take patients for positive from each threshold on."""

    threshold: tuple[float, ...]
    sensitivity: tuple[float | None, ...]
    specificity: tuple[float | None, ...]
    ppv: tuple[float | None, ...]


class CalibrationEntry(Frozen):
    """A group of scores: how many patients have one, their mean score, and the share of them who are positive."""

    low: float
    high: float
    num_patients: float
    predicted: float | None
    observed: float | None
    interval: IntervalEntry | None


class OperatingPointEntry(Frozen):
    """A threshold, where it comes from, and what it does. ``missing`` says why there is no threshold."""

    name: str
    wanted: str
    threshold: float | None
    validated_round: int | None
    missing: str | None
    figures: dict[str, float | None]
    intervals: dict[str, IntervalEntry | None]


class PartEntry(Frozen):
    """One question, class or finding."""

    name: str
    num_negative: float
    num_positive: float
    num_bins: int
    auroc_error: float | None
    brier_error: float | None
    calibration_error_by_chance: float | None
    curve: CurveEntry
    calibration: tuple[CalibrationEntry, ...]
    operating_points: tuple[OperatingPointEntry, ...]


class OverlapEntry(Frozen):
    """How well the marks of a structure cover its masks, patient by patient.

    ``num_patients`` counts those who have it by their Dice, in bins from 0 to 1 of the same width; ``num_missed`` those
    of them of whom nothing was found; ``num_marked`` those who do not have it and were marked all the same.
    """

    name: str
    num_with: float
    num_without: float
    num_missed: float
    num_marked: float
    num_patients: tuple[float, ...]


class Assessment(Frozen):
    """All of it: of the server's sums, or of exact ones.

    Attributes:
        noise: standard deviation of the noise on each cell of the sums, in patients; 0 where they are exact.
        intervals: by metric, for those that have one.
        parts: the question, or each class or finding.
        overlaps: each structure, where marks are judged.
    """

    noise: float
    intervals: dict[str, IntervalEntry]
    parts: tuple[PartEntry, ...]
    overlaps: tuple[OverlapEntry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What noise there is: on each cell, in patients, and what it does to each metric; none by default."""

    deviation: float = 0.0
    of_metrics: Mapping[str, float | None] | None = None

    def on(self, metric: str) -> float | None:
        """The deviation that it gives this metric; None where it leaves it undefined."""
        return 0.0 if self.of_metrics is None else self.of_metrics.get(metric)


def assess(
    task: Task, statistics: Counts, *, noise: Noise, points: Mapping[str, tuple[Chosen, ...]]
) -> Assessment:
    """Return what *statistics* say.

    Args:
        task: whose statistics they are.
        statistics: summed.
        noise: that they carry.
        points: operating points of each of the task's pairs.
    """
    pairs = task.pairs(statistics)
    found = metric_intervals(task, statistics, noise)
    return Assessment(
        noise=noise.deviation,
        intervals={name: entry for name, one in found.items() if (entry := _entry(one)) is not None},
        parts=tuple(_part(name, pair, points.get(name, ()), noise.deviation) for name, pair in pairs.items()),
        overlaps=tuple(_overlap(name, own) for name, own in task.overlaps(statistics).items()),
    )


def metric_intervals(task: Task, statistics: Counts, noise: Noise) -> dict[str, Interval | None]:
    """An interval for each metric that has one, by its name; None where the data do not give it."""
    if overlaps := task.overlaps(statistics):
        return of_structures(overlaps, deviation=noise.deviation, noise_on=noise.on)
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
            intervals.Share(
                part=float(right[one]), rest=float(own[one] - right[one]), part_cells=1, rest_cells=num - 1
            ),
            deviation=deviation,
        )
        for one in there
    ]
    overall = intervals.Share(
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


def _part(name: str, pair: Pair, points: tuple[Chosen, ...], deviation: float) -> PartEntry:
    return PartEntry(
        name=name,
        num_negative=max(float(pair.negative.sum()), 0.0),
        num_positive=max(float(pair.positive.sum()), 0.0),
        num_bins=pair.num_bins,
        auroc_error=_known(auroc_error(pair), lowest=0.0, largest=0.5),
        brier_error=_known(brier_error(pair), lowest=0.0),
        calibration_error_by_chance=_known(calibration_error_by_chance(pair, deviation=deviation)),
        curve=_curve(pair),
        calibration=_calibration(pair, deviation),
        operating_points=tuple(_point(pair, chosen, deviation) for chosen in points),
    )


def _overlap(name: str, own: Overlaps) -> OverlapEntry:
    bins = own.cells[:-3]
    groups = np.array_split(bins, min(OVERLAP_GROUPS, len(bins)))
    missed, _, marked = (max(float(cell), 0.0) for cell in own.cells[-3:])
    return OverlapEntry(
        name=name,
        num_with=max(own.num_with, 0.0),
        num_without=max(own.num_without, 0.0),
        num_missed=missed,
        num_marked=marked,
        num_patients=tuple(max(float(group.sum()), 0.0) for group in groups),
    )


def _curve(pair: Pair) -> CurveEntry:
    tables, edges = curve(pair), _spread(pair)
    sensitivity, specificity, ppv = (
        tuple(_known(value) for value in values[edges])
        for values in (tables.sensitivity, tables.specificity, tables.ppv)
    )
    thresholds = tuple(float(edge) for edge in pair.edges[edges])
    return CurveEntry(threshold=thresholds, sensitivity=sensitivity, specificity=specificity, ppv=ppv)


def _spread(pair: Pair) -> Counts:
    """The edges at which a curve is told."""
    if pair.num_bins <= CURVE_POINTS:
        return np.arange(pair.num_bins + 1)
    patients = np.cumsum((pair.negative + pair.positive).clip(0.0))
    places = np.searchsorted(patients, np.linspace(0.0, patients[-1], CURVE_POINTS)[1:-1]) + 1
    return np.unique([0, *places, pair.num_bins])


def _calibration(pair: Pair, deviation: float) -> tuple[CalibrationEntry, ...]:
    groups, predicted, observed = reliability(pair)
    width = Pair(negative=np.ones(pair.num_bins), positive=np.ones(pair.num_bins), edges=pair.edges).coarser(
        groups.num_bins
    )
    return tuple(
        CalibrationEntry(
            low=float(groups.edges[one]),
            high=float(groups.edges[one + 1]),
            num_patients=max(float(groups.negative[one] + groups.positive[one]), 0.0),
            predicted=_known(predicted[one]),
            observed=_known(observed[one]),
            interval=_entry(
                of_share(
                    intervals.Share(
                        part=float(groups.positive[one]),
                        rest=float(groups.negative[one]),
                        part_cells=int(width.positive[one]),
                        rest_cells=int(width.negative[one]),
                    ),
                    deviation=deviation,
                )
            ),
        )
        for one in range(groups.num_bins)
    )


def _point(pair: Pair, chosen: Chosen, deviation: float) -> OperatingPointEntry:
    if chosen.threshold is None:
        return OperatingPointEntry(
            name=chosen.name,
            wanted=chosen.wanted,
            threshold=None,
            validated_round=None,
            missing=chosen.missing,
            figures={},
            intervals={},
        )
    edge = pair.nearest_edge(chosen.threshold)
    table: Fourfold = pair.at(edge)
    found = intervals.of_figures(table, deviation=deviation)
    return OperatingPointEntry(
        name=chosen.name,
        wanted=chosen.wanted,
        threshold=float(pair.edges[edge]),
        validated_round=chosen.validated_round,
        missing=None,
        figures=table.figures(cut=True),
        intervals={metric: _entry(found[metric]) for metric in RATIOS},
    )


def chosen_in(assessment: Assessment | None) -> dict[str, tuple[Chosen, ...]]:
    """The thresholds of an assessment, by part: for the same model on other sums."""
    if assessment is None:
        return {}
    return {
        part.name: tuple(
            Chosen(
                name=one.name,
                wanted=one.wanted,
                threshold=one.threshold,
                validated_round=one.validated_round,
                missing=one.missing,
            )
            for one in part.operating_points
        )
        for part in assessment.parts
    }


def auroc_in_bins(pairs: Mapping[str, Pair], num_bins: int) -> float | None:
    """The mean AUROC of finely binned *pairs* as it would be in *num_bins* bins: beside the fine one, their price."""
    rough = [pair.coarser(num_bins) for pair in pairs.values()]
    return mean_of_known([auroc(pair.negative, pair.positive, cut=True) for pair in rough])


def _entry(interval: Interval | None) -> IntervalEntry | None:
    if interval is None:
        return None
    return IntervalEntry(low=interval.low, high=interval.high, method=interval.method)


def _known(value: Doubles | float, *, lowest: float = 0.0, largest: float = 1.0) -> float | None:
    return known(value, cut=True, lowest=lowest, largest=largest)
