"""The fourfold table of a decision: who is positive or not, and taken for positive or not."""

from dataclasses import dataclass

import numpy as np

from shared_models.tasks.task import Doubles

RATIOS = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv", "f1", "mcc")
"""The figures of a fourfold table, by their names in a result."""


def share(part: Doubles, whole: Doubles) -> Doubles:
    """*part* over *whole*, entry by entry; NaN where *whole* is not above 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    quotient: Doubles = np.divide(
        part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole > 0
    )
    return quotient


def known(value: Doubles | float, *, cut: bool, lowest: float = 0.0, largest: float = 1.0) -> float | None:
    """A figure as it stands in a result: None where it is NaN; with *cut* brought into its range."""
    if np.isnan(value):
        return None
    return float(min(max(float(value), lowest), largest)) if cut else float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fourfold:
    """Counts of patients; noised ones may be below zero. All four of one shape, which figures have as well.

    A figure is NaN where nobody is there whom it is about.

    Attributes:
        cells: of how many noised statistics each of the four is the sum, in their order.
    """

    true_positive: Doubles
    false_positive: Doubles
    true_negative: Doubles
    false_negative: Doubles
    cells: tuple[int, int, int, int]

    @property
    def num_positive(self) -> Doubles:
        """Patients who are positive."""
        return np.asarray(self.true_positive + self.false_negative)

    @property
    def num_negative(self) -> Doubles:
        """Patients who are negative."""
        return np.asarray(self.true_negative + self.false_positive)

    @property
    def accuracy(self) -> Doubles:
        """Share of patients who are taken for what they are."""
        return share(self.true_positive + self.true_negative, self.num_positive + self.num_negative)

    @property
    def balanced_accuracy(self) -> Doubles:
        """Mean of sensitivity and specificity."""
        return (self.sensitivity + self.specificity) / 2

    @property
    def sensitivity(self) -> Doubles:
        """Share of positive patients who are taken for positive (recall)."""
        return share(self.true_positive, self.num_positive)

    @property
    def specificity(self) -> Doubles:
        """Share of negative patients who are not taken for positive."""
        return share(self.true_negative, self.num_negative)

    @property
    def ppv(self) -> Doubles:
        """Share of positive ones among those taken for positive (precision)."""
        return share(self.true_positive, self.true_positive + self.false_positive)

    @property
    def npv(self) -> Doubles:
        """Share of negative ones among those not taken for positive."""
        return share(self.true_negative, self.true_negative + self.false_negative)

    @property
    def f1(self) -> Doubles:
        """Harmonic mean of ppv and sensitivity: 2 TP / (2 TP + FP + FN)."""
        return share(
            2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative
        )

    @property
    def mcc(self) -> Doubles:
        """Matthews' correlation of being positive and being taken for it, in [−1, 1]; 0 where all are taken for one.

        NaN where all patients are of one kind.
        """
        taken = self.true_positive + self.false_positive
        left = self.true_negative + self.false_negative
        margins = taken.clip(0.0) * left.clip(0.0)
        covariance = self.true_positive * self.true_negative - self.false_positive * self.false_negative
        both = np.where((self.num_positive > 0) & (self.num_negative > 0), 1.0, np.nan)
        there = self.num_positive.clip(0.0) * self.num_negative.clip(0.0)
        return np.nan_to_num(share(covariance, np.sqrt(there * margins))) * both

    def figures(self, *, cut: bool) -> dict[str, float | None]:
        """All `RATIOS` of one table; None where nobody is there whom one is about."""
        return {
            name: known(getattr(self, name), cut=cut, lowest=-1.0 if name == "mcc" else 0.0)
            for name in RATIOS
        }


def correlation(confusion: Doubles) -> Doubles:
    """Matthews' correlation of several classes, of confusion matrices of shape (..., classes, classes).

    0 where all are taken for one class, NaN where all are of one.

    Source: Gorodkin (2004), "Comparing two K-category assignments by a K-category correlation coefficient".
    """
    own, taken, total = confusion.sum(-1), confusion.sum(-2), confusion.sum((-1, -2))
    covariance = np.trace(confusion, axis1=-2, axis2=-1) * total - (own * taken).sum(-1)
    of_own = (total**2 - (own**2).sum(-1)).clip(0.0)
    of_taken = (total**2 - (taken**2).sum(-1)).clip(0.0)
    several = np.where(of_own > 0, 1.0, np.nan)
    return np.asarray(np.nan_to_num(share(covariance, np.sqrt(of_own * of_taken))) * several)
