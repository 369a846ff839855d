"""Subgroups of the final test: which of them may be told, before anything of them is written.

A group of few patients is withheld, and with it as many others as it takes that nobody can subtract: what is shown of
all test patients less what is shown of the other groups of an attribute must not be a small group.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from server.assessment import IntervalEntry
from server.metric_intervals import Noise, metric_intervals
from server.metric_noise import cell_deviation, noise_on_metrics, number_deviation
from shared_models.configuration import Frozen
from shared_models.study import Study
from shared_models.subgroups import groups_of
from shared_models.tasks.registry import task_of
from shared_models.tasks.task import Counts

DRAWS = 200
"""Of the noise, for each group."""

MARGIN = 3.0
"""A group is told of where its noised number is above the floor by so many standard deviations of the noise. One that
is below the floor gets there with a probability of 0.0013."""


class GroupEntry(Frozen):
    """The final model on the test patients of one group."""

    name: str
    metrics: dict[str, float | None]
    intervals: dict[str, IntervalEntry]


class SubgroupsEntry(Frozen):
    """The groups of one attribute that are shown, and how many are not: too small, or needed to hide one that is."""

    attribute: str
    shown: tuple[GroupEntry, ...]
    num_withheld: int


def withheld(numbers: Sequence[float], floor: int) -> set[int]:
    """Which groups of one attribute are not told, by their places.

    Args:
        numbers: patients of each group; all groups together are all patients, whose figures are known.
        floor: fewest patients that may be told of.

    Returns:
        All groups with fewer than *floor*. If those together have patients, but fewer than *floor*, or only one of them
        has any, the smallest of the others follow until neither is so, or none is left.
    """
    gone = {place for place, number in enumerate(numbers) if number < floor}
    rest = sorted(set(range(len(numbers))) - gone, key=lambda place: numbers[place])
    while rest and _can_be_told(numbers, gone, floor):
        gone.add(rest.pop(0))
    return gone


def _can_be_told(numbers: Sequence[float], gone: set[int], floor: int) -> bool:
    """Whether subtracting what is shown from the whole leaves a small group, or one group alone."""
    there = [numbers[place] for place in gone if numbers[place] > 0]
    return bool(there) and (len(there) == 1 or sum(there) < floor)


def margin_of(study: Study, *, num_sites: int) -> float:
    """Patients by which a group's number has to be above the floor: 0 without noise, or without groups.

    Args:
        study: says how much noise each site added.
        num_sites: in the sum.
    """
    if study.evaluation.min_subgroup is None:
        return 0.0
    return MARGIN * number_deviation(study, num_sites=num_sites)


def released(study: Study, statistics: Counts, *, margin: float) -> dict[str, tuple[int, ...]]:
    """Return the statistics of the groups that may be told, by ``attribute/group``; the others are dropped here.

    With noise nobody knows how many patients a group has: the number has to be above the floor by *margin*.

    Args:
        study: names the groups and the floor.
        statistics: summed, of all groups, in the order of `shared_models.subgroups.groups_of`.
        margin: of `margin_of`.
    """
    task, floor = task_of(study), study.evaluation.min_subgroup
    if floor is None:
        return {}
    blocks = iter(statistics.reshape(-1, task.num_statistics))
    told: dict[str, tuple[int, ...]] = {}
    for attribute, names in groups_of(study.evaluation).items():
        own = [next(blocks) for _ in names]
        numbers = [(task.metrics(block)["num_patients"] or 0.0) - margin for block in own]
        gone = withheld(numbers, floor)
        told |= {
            f"{attribute}/{name}": tuple(int(entry) for entry in block)
            for place, (name, block) in enumerate(zip(names, own, strict=True))
            if place not in gone
        }
    return told


def entries(
    study: Study, told: Mapping[str, tuple[int, ...]], *, num_sites: int
) -> tuple[SubgroupsEntry, ...]:
    """Return what is shown of the groups that may be told.

    Args:
        study: names the groups.
        told: what `released` returned.
        num_sites: in the sum.
    """
    deviation = cell_deviation(study, num_sites=num_sites)
    return tuple(
        SubgroupsEntry(
            attribute=attribute,
            shown=tuple(
                _group(study, name, told[key], deviation)
                for name in names
                if (key := f"{attribute}/{name}") in told
            ),
            num_withheld=sum(f"{attribute}/{name}" not in told for name in names),
        )
        for attribute, names in groups_of(study.evaluation).items()
    )


def _group(study: Study, name: str, statistics: tuple[int, ...], deviation: float | None) -> GroupEntry:
    task, counts = task_of(study), np.array(statistics, dtype=np.int64)
    noise = Noise()
    if deviation is not None:
        of_metrics = noise_on_metrics(task, counts, deviation=deviation, draws=DRAWS)
        noise = Noise(deviation=deviation, of_metrics=of_metrics)
    found = metric_intervals(task, counts, noise)
    return GroupEntry(
        name=name,
        metrics=dict(task.metrics(counts)),
        intervals={
            metric: IntervalEntry(low=one.low, high=one.high, method=one.method)
            for metric, one in found.items()
            if one is not None
        },
    )
