"""Subgroups of test patients that a study names: by sex, age and maker of the scanner.

The statistics of each group are the task's, over its patients only, and stand behind those of all test patients. A
patient is in exactly one group of each attribute; whoever's header does not say is in the group `UNKNOWN`.
"""

from math import sqrt
from typing import TYPE_CHECKING, Literal

from shared_models.tasks.registry import task_of

if TYPE_CHECKING:
    from shared_models.study import Evaluation, Study

Attribute = Literal["sex", "age", "vendor"]
SEXES = {"F": "female", "M": "male", "O": "other"}
"""Groups by PatientSex (0010,0040)."""
OTHER = "other"
UNKNOWN = "unknown"


def groups_of(evaluation: "Evaluation") -> dict[Attribute, tuple[str, ...]]:
    """The groups of each attribute that the study names, in the order of their statistics."""
    bands, vendors = evaluation.age_bands, evaluation.vendors
    ages = [f"{low} to {high - 1}" for low, high in zip(bands, bands[1:], strict=False)]
    ends = (f"under {bands[0]}", f"{bands[-1]} and over") if bands else ("", "")
    every: dict[Attribute, tuple[str, ...]] = {
        "sex": (*SEXES.values(), UNKNOWN),
        "age": (ends[0], *ages, ends[1], UNKNOWN),
        "vendor": (*vendors, OTHER, UNKNOWN),
    }
    return {attribute: every[attribute] for attribute in evaluation.subgroups}


def num_groups(evaluation: "Evaluation") -> int:
    """Of all attributes together."""
    return sum(len(names) for names in groups_of(evaluation).values())


def test_sensitivity(study: "Study") -> float:
    """Most that one patient changes the statistics of the final test by, in L2 norm and in noise units.

    A patient adds the same statistics, of norm s at most, to those of all patients and to those of one group of each of
    the A attributes, and nothing to any other group. These parts do not overlap: together √(1 + A) · s.
    """
    return task_of(study).l2_sensitivity * sqrt(1 + len(study.evaluation.subgroups))


def num_test_statistics(study: "Study") -> int:
    """How many numbers the final test releases: the task's, for all test patients and for each group."""
    return task_of(study).num_statistics * (1 + num_groups(study.evaluation))
