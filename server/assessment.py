"""What the sums of an evaluation say of a model: intervals of its metrics, curves, calibration, operating points."""

from collections.abc import Mapping, Sequence

import numpy as np

from server import intervals
from server.intervals import Interval, of_share
from server.metric_intervals import Noise, metric_intervals
from server.thresholds import Chosen
from shared_models.configuration import Frozen
from shared_models.tasks.curves import (
    Pair,
    auroc_error,
    brier_error,
    calibration_error_by_chance,
    cells_of_groups,
    curve,
    reliability,
)
from shared_models.tasks.fourfold import RATIOS, Fourfold, known
from shared_models.tasks.histograms import auroc, mean_of_known
from shared_models.tasks.overlap import Overlaps
from shared_models.tasks.task import Counts, Doubles, Task

CURVE_POINTS = 100
"""Of more bins a curve has half as many that part the positive patients evenly, from below and from above, as many that
part the negative ones, and the edges of the operating points."""

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

    ``num_patients`` counts those who have it by their Dice, between each two of ``edges``, from 0 to 1; ``num_missed``
    those of them of whom nothing was found; ``num_marked`` those who do not have it and were marked all the same.
    """

    name: str
    num_with: float
    num_without: float
    num_missed: float
    num_marked: float
    edges: tuple[float, ...]
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


def _part(name: str, pair: Pair, chosen: tuple[Chosen, ...], deviation: float) -> PartEntry:
    points = tuple(_point(pair, one, deviation) for one in chosen)
    return PartEntry(
        name=name,
        num_negative=max(float(pair.negative.sum()), 0.0),
        num_positive=max(float(pair.positive.sum()), 0.0),
        num_bins=pair.num_bins,
        auroc_error=_known(auroc_error(pair), lowest=0.0, largest=0.5),
        brier_error=_known(brier_error(pair), lowest=0.0),
        calibration_error_by_chance=_known(calibration_error_by_chance(pair, deviation=deviation)),
        curve=_curve(pair, [one.threshold for one in points if one.threshold is not None]),
        calibration=_calibration(pair, deviation),
        operating_points=points,
    )


def _overlap(name: str, own: Overlaps) -> OverlapEntry:
    bins = own.cells[:-3]
    edges = np.rint(np.linspace(0, len(bins), min(OVERLAP_GROUPS, len(bins)) + 1)).astype(np.int64)
    missed, _, marked = (max(float(cell), 0.0) for cell in own.cells[-3:])
    return OverlapEntry(
        name=name,
        num_with=max(own.num_with, 0.0),
        num_without=max(own.num_without, 0.0),
        num_missed=missed,
        num_marked=marked,
        edges=tuple(float(edge) / len(bins) for edge in edges),
        num_patients=tuple(max(float(group.sum()), 0.0) for group in np.split(bins, edges[1:-1])),
    )


def _curve(pair: Pair, thresholds_too: Sequence[float]) -> CurveEntry:
    tables, edges = curve(pair), _spread(pair, thresholds_too)
    sensitivity, specificity, ppv = (
        tuple(_known(value) for value in values[edges])
        for values in (tables.sensitivity, tables.specificity, tables.ppv)
    )
    thresholds = tuple(float(edge) for edge in pair.edges[edges])
    return CurveEntry(threshold=thresholds, sensitivity=sensitivity, specificity=specificity, ppv=ppv)


def _spread(pair: Pair, thresholds_too: Sequence[float]) -> Counts:
    """The edges at which a curve is told."""
    if pair.num_bins <= CURVE_POINTS:
        return np.arange(pair.num_bins + 1)
    negative, positive = _evenly(pair.negative), _evenly(pair.positive)
    points = [pair.nearest_edge(threshold) for threshold in thresholds_too]
    return np.unique([0, pair.num_bins, *points, *negative, *positive, *(positive + 1)])


def _evenly(counts: Doubles) -> Counts:
    """The bins at which each so many of *counts* have been passed."""
    num = np.cumsum(counts.clip(0.0))
    return np.searchsorted(num, np.linspace(0.0, num[-1], CURVE_POINTS // 2 + 1)[1:-1])


def _calibration(pair: Pair, deviation: float) -> tuple[CalibrationEntry, ...]:
    groups, predicted, observed = reliability(pair)
    width = cells_of_groups(pair)
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
