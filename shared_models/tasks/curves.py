"""From a pair of histograms of scores to curves, calibration, and what a threshold does.

Everything here depends on a patient through one cell only, (bin, label): sums over sites give it as pooled patients
would, up to where a score lies within its bin. How far that can move a figure is stated beside it.
"""

from dataclasses import dataclass

import numpy as np

from shared_models.tasks.fourfold import Fourfold, known, share
from shared_models.tasks.histograms import auroc
from shared_models.tasks.task import Counts, Doubles

CALIBRATION_GROUPS = 10
"""Of scores, each a tenth wide, in which predicted and observed shares are compared; fewer where bins are wider."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Patients by score: of one question, of one class against all others, or of one finding.

    Attributes:
        negative, positive: counts, float64, shape (..., num_bins), lowest scores first; noised ones may be below zero.
        edges: scores between the bins, float64, shape (num_bins + 1,), from 0 to 1.
    """

    negative: Doubles
    positive: Doubles
    edges: Doubles

    @property
    def num_bins(self) -> int:
        """Of each histogram."""
        return len(self.edges) - 1

    @property
    def middles(self) -> Doubles:
        """The score that stands for those of a bin, shape (num_bins,): none is further off than half its width."""
        middles: Doubles = (self.edges[:-1] + self.edges[1:]) / 2
        return middles

    def nearest_edge(self, threshold: float) -> int:
        """The edge whose score is nearest to *threshold*."""
        return int(np.abs(self.edges - threshold).argmin())

    def at(self, edge: int) -> Fourfold:
        """What is right and wrong where scores from ``edges[edge]`` on are taken for positive."""
        below, above = edge, self.num_bins - edge
        return Fourfold(
            true_positive=self.positive[..., edge:].sum(-1),
            false_positive=self.negative[..., edge:].sum(-1),
            true_negative=self.negative[..., :edge].sum(-1),
            false_negative=self.positive[..., :edge].sum(-1),
            cells=(above, above, below, below),
        )

    def coarser(self, most: int) -> "Pair":
        """The same with neighbouring bins put together until there are at most *most*, each of about as many."""
        if self.num_bins <= most:
            return self
        return self._put_together(np.rint(np.linspace(0, self.num_bins, most + 1)).astype(int))

    def by_score(self, groups: int) -> "Pair":
        """The same in *groups* parts of [0, 1] of equal width, as far as there are edges: the nearest are taken."""
        wanted = np.linspace(0.0, 1.0, groups + 1)[:, None]
        return self._put_together(np.abs(self.edges - wanted).argmin(1))

    def _put_together(self, edges: Counts) -> "Pair":
        first = np.unique(edges)
        return Pair(
            negative=np.add.reduceat(self.negative, first[:-1], axis=-1),
            positive=np.add.reduceat(self.positive, first[:-1], axis=-1),
            edges=self.edges[first],
        )


def figures_of_scores(pair: Pair, *, cut: bool) -> dict[str, float | None]:
    """The figures that rest on the scores and on no threshold; None where nobody is there whom one is about."""
    return {
        "auroc": auroc(pair.negative, pair.positive, cut=cut),
        "average_precision": known(average_precision(pair), cut=cut),
        "brier": known(brier(pair), cut=cut),
        "calibration_error": known(calibration_error(pair), cut=cut),
    }


def curve(pair: Pair) -> Fourfold:
    """The fourfold tables at all edges, from 0 on: of each figure shape (..., num_bins + 1).

    The ROC curve is its sensitivity over 1 − specificity, the precision-recall curve its ppv over its sensitivity.
    """
    none = np.zeros((*pair.positive.shape[:-1], 1))
    false_negative = np.concatenate([none, np.cumsum(pair.positive, axis=-1)], axis=-1)
    true_negative = np.concatenate([none, np.cumsum(pair.negative, axis=-1)], axis=-1)
    return Fourfold(
        true_positive=false_negative[..., -1:] - false_negative,
        false_positive=true_negative[..., -1:] - true_negative,
        true_negative=true_negative,
        false_negative=false_negative,
        cells=(pair.num_bins,) * 4,
    )


def average_precision(pair: Pair) -> Doubles:
    """Sum over thresholds of the ppv times the gain in sensitivity; of scores in one bin all are one threshold.

    With noise the ppv at each threshold is cut to [0, 1]: where hardly anybody lies above it, it is a ratio of noise.

    Returns:
        Shape (...); NaN where nobody is positive.

    Source: scikit-learn's ``average_precision_score``, which it equals on the binned scores.
    """
    tables = curve(pair)
    precision = np.nan_to_num(tables.ppv[..., :-1]).clip(0.0, 1.0)
    return share((pair.positive * precision).sum(-1), pair.positive.sum(-1))


def average_precision_bounds(pair: Pair) -> tuple[float, float]:
    """Between what the average precision of the scores themselves lies, of exact counts without batch shape.

    Within a bin all positives may lie below all negatives, or above them.
    """
    positive, negative = pair.positive[::-1].astype(np.int64), pair.negative[::-1]
    found = np.arange(1, positive.sum() + 1)
    wrong_before = np.repeat(np.cumsum(negative) - negative, positive)
    wrong_with = np.repeat(np.cumsum(negative), positive)
    return float((found / (found + wrong_with)).mean()), float((found / (found + wrong_before)).mean())


def auroc_error(pair: Pair) -> float:
    """How far AUROC may be from that of the scores themselves: half the share of pairs that share a bin."""
    tied = (pair.negative * pair.positive).sum(-1)
    return float(share(tied, pair.negative.sum(-1) * pair.positive.sum(-1)) / 2)


def brier(pair: Pair) -> Doubles:
    """Mean square of score − label, each score taken for the middle of its bin; shape (...), NaN without patients."""
    missed = pair.negative * pair.middles**2 + pair.positive * (1.0 - pair.middles) ** 2
    return share(missed.sum(-1), (pair.negative + pair.positive).sum(-1))


def brier_error(pair: Pair) -> float:
    """How far `brier` may be from that of the scores themselves.

    A score is off by at most h, half the width of its bin, and (d ± h)² differs from d² by at most 2dh + h².
    """
    half = np.diff(pair.edges) / 2
    off = pair.negative * pair.middles + pair.positive * (1.0 - pair.middles)
    everyone = pair.negative + pair.positive
    return float(share((2 * half * off + half**2 * everyone).sum(-1), everyone.sum(-1)))


def reliability(pair: Pair) -> tuple[Pair, Doubles, Doubles]:
    """Predicted beside observed, in at most `CALIBRATION_GROUPS` groups of scores, each about a tenth wide.

    Returns:
        The groups; the mean score of each, by the middles of its bins; the share of positive patients of each. NaN
        where a group has no patients.
    """
    groups = pair.by_score(CALIBRATION_GROUPS)
    everyone = groups.negative + groups.positive
    weighed = Pair(
        negative=pair.negative * pair.middles, positive=pair.positive * pair.middles, edges=pair.edges
    ).by_score(CALIBRATION_GROUPS)
    predicted = share(weighed.negative + weighed.positive, everyone)
    return groups, predicted, share(groups.positive, everyone)


def cells_of_groups(pair: Pair) -> Pair:
    """Of how many cells the counts of each group of `reliability` are the sums."""
    one = np.ones(pair.num_bins)
    return Pair(negative=one, positive=one, edges=pair.edges).by_score(CALIBRATION_GROUPS)


def calibration_error(pair: Pair) -> Doubles:
    """Expected calibration error: mean over patients of |predicted − observed| of their group; shape (...).

    Groups are parts of [0, 1] of the same width, or what is nearest to that among the bins. In them it is off by at
    most half the width of the widest bin, the mean score of a group being off by no more.

    Source: Naeini, Cooper and Hauskrecht (2015), "Obtaining well calibrated probabilities using Bayesian binning".
    """
    groups, predicted, observed = reliability(pair)
    everyone = (groups.negative + groups.positive).clip(0.0)
    return share((everyone * np.nan_to_num(np.abs(predicted - observed))).sum(-1), everyone.sum(-1))


def calibration_error_by_chance(pair: Pair, *, deviation: float) -> float:
    """The calibration error that a perfectly calibrated model would be expected to show with as many patients.

    The number of positives in a group of n patients varies by √(n p (1 − p)) around n p, and noise of *deviation* on
    each bin adds to it; the mean of |x| of a normal x is √(2/π) of its deviation.
    """
    groups, predicted, _ = reliability(pair)
    bins = cells_of_groups(pair)
    everyone, p = (groups.negative + groups.positive).clip(0.0), np.nan_to_num(predicted).clip(0.0, 1.0)
    variance = everyone * p * (1 - p) + deviation**2 * bins.negative * ((1 - p) ** 2 + p**2)
    missed = np.sqrt(2 / np.pi * variance) * (everyone > 0)
    return float(share(missed.sum(-1), everyone.sum(-1)))
