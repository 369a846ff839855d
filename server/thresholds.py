"""Where the operating points of a study lie: thresholds by the validation sums of the federation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shared_models.operating_points import OperatingPoint
from shared_models.study import Study
from shared_models.tasks.curves import Pair, curve
from shared_models.tasks.registry import task_of
from shared_models.tasks.task import Counts, Doubles

EVEN = OperatingPoint(name="0.5", threshold=0.5)
"""Always there."""
NEVER_VALIDATED = "no validation gave a sum from which a threshold could be chosen"
NOT_REACHED = "no threshold reached it among validation patients"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """An operating point with its threshold; ``missing`` says why there is none.

    Attributes:
        wanted: in words.
        validated_round: whose model decided; None where the study itself says the threshold.
    """

    name: str
    wanted: str
    threshold: float | None
    validated_round: int | None = None
    missing: str | None = None


def choose(
    points: Sequence[OperatingPoint], validated: Pair | None, *, validated_round: int | None
) -> tuple[Chosen, ...]:
    """Return the threshold of each point, that of ½ first.

    For a sensitivity the highest edge of a bin that reaches it is taken, for a specificity the lowest. Noise makes the
    curve of validation patients go up and down; what is looked at is then the mean of the highest and the lowest curve
    that only rises. Test patients have no part in it, so that their intervals hold for the threshold as it was chosen.

    Args:
        points: of the study.
        validated: the last validation; None where there is none.
        validated_round: the round whose model that was.
    """
    return tuple(_chosen(point, validated, validated_round) for point in (EVEN, *points))


def _chosen(point: OperatingPoint, validated: Pair | None, validated_round: int | None) -> Chosen:
    if point.threshold is not None:
        return Chosen(name=point.name, wanted=f"threshold {point.threshold:g}", threshold=point.threshold)
    metric = "sensitivity" if point.sensitivity is not None else "specificity"
    target = point.sensitivity if point.sensitivity is not None else point.specificity
    wanted = f"{metric} {target:g}"
    if validated is None or target is None:
        return Chosen(name=point.name, wanted=wanted, threshold=None, missing=NEVER_VALIDATED)
    tables = curve(validated)
    falling = metric == "sensitivity"
    reached = smoothed(getattr(tables, metric), falling=falling) >= target
    reached[[0, -1]] = False  # where all or nobody is taken for positive there is no threshold
    edges = np.flatnonzero(reached)
    if not len(edges):
        return Chosen(name=point.name, wanted=wanted, threshold=None, missing=NOT_REACHED)
    edge = edges[-1] if falling else edges[0]
    return Chosen(
        name=point.name,
        wanted=wanted,
        threshold=float(validated.edges[edge]),
        validated_round=validated_round,
    )


def chosen_for(study: Study, validations: Mapping[int, Counts]) -> dict[str, tuple[Chosen, ...]]:
    """The thresholds of each question, class or finding.

    Args:
        study: names the points.
        validations: summed statistics, by the round whose model was validated; the last is taken.
    """
    task, last = task_of(study), max(validations, default=None)
    pairs = {} if last is None else task.pairs(validations[last])
    return {
        name: choose(study.evaluation.operating_points, pairs.get(name), validated_round=last)
        for name in task.output_names
    }


def smoothed(values: Doubles, *, falling: bool) -> Doubles:
    """The mean of the lowest curve above *values* and the highest below, of those that only fall, or only rise."""
    rising = values[::-1] if falling else values
    above = np.maximum.accumulate(rising)
    below = np.minimum.accumulate(rising[::-1])[::-1]
    middle: Doubles = (above + below) / 2
    return middle[::-1] if falling else middle
