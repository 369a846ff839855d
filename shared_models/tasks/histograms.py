"""Counts of scores and log losses, which add up over patients and sites, and the metrics that their sums give."""

import numpy as np

from shared_models.tasks.task import Counts, Doubles

LOSS_CUT = 5.0
"""A patient's log loss is cut here (nats)."""
LOSS_UNITS = 1000
"""Grid points from zero to the cut."""
LOSS_SHARE = 0.5
"""How far the loss counts in what one patient changes, a histogram entry counting 1: less makes it noisier."""
LOSS_NOISE_UNIT = round(LOSS_UNITS / LOSS_SHARE)


def pair_of_histograms(scores: Doubles, labels: Counts, *, num_bins: int) -> Counts:
    """Count scores of negative and of positive patients by bin.

    Args:
        scores: float64, shape (num_patients,), in [0, 1].
        labels: int64, shape (num_patients,), 0 or 1.
        num_bins: over [0, 1].

    Returns:
        int64, shape (2 · num_bins,): those with label 0, then those with label 1. Each patient is in one bin.
    """
    bins = np.minimum((scores * num_bins).astype(np.int64), num_bins - 1)
    return np.bincount(labels * num_bins + bins, minlength=2 * num_bins).astype(np.int64)


def among_bins(scores: Doubles) -> Doubles:
    """Where scores in [0, 1] lie among the bins, in [0, 1]: by the cube root of their odds, score / (1 − score).

    Scores of rare classes and findings lie close together near 0, those of a model that is sure near 0 and 1, and would
    share a bin. The order of scores stays, and with it their AUROC; 0, ½ and 1 stay where they are.
    """
    yes, no = np.cbrt(scores), np.cbrt(1.0 - scores)
    places: Doubles = yes / (yes + no)
    return places


def scores_between_bins(num_bins: int) -> Doubles:
    """The scores at the edges of the bins among which `among_bins` puts scores, shape (num_bins + 1,)."""
    yes = np.linspace(0.0, 1.0, num_bins + 1) ** 3
    scores: Doubles = yes / (yes + yes[::-1])
    return scores


def log_losses(likelihoods: Doubles) -> Doubles:
    """The log loss of patients whose label had these probabilities, in nats, cut at `LOSS_CUT`."""
    losses: Doubles = np.minimum(-np.log(np.maximum(likelihoods, 1e-300)), LOSS_CUT)
    return losses


def on_loss_grid(losses: Doubles) -> int:
    """The sum of losses in [0, LOSS_CUT], each rounded to the grid, on which `LOSS_CUT` is `LOSS_UNITS`."""
    return int(np.rint(losses * (LOSS_UNITS / LOSS_CUT)).astype(np.int64).sum())


def mean_loss(summed: float, num: float, *, cut: bool) -> float | None:
    """Mean loss in nats, of a sum on the grid over *num* patients; None where there are none."""
    return ratio(summed * LOSS_CUT / LOSS_UNITS, num, cut=cut, largest=LOSS_CUT)


def auroc(negative: Doubles, positive: Doubles, *, cut: bool) -> float | None:
    """AUROC of a pair of histograms; None where one of them is empty.

    Pairs within a bin count one half, so it differs from the exact one by at most half the share of such pairs. Counts
    below zero stay as they are: cutting them would pull AUROC towards one half.

    Source: Bamber (1975), the area as the probability of correct ranking, ties counted one half.
    """
    num_negative, num_positive = negative.sum(), positive.sum()
    below = np.concatenate([[0.0], np.cumsum(negative)[:-1]])
    pairs = num_negative * num_positive if min(num_negative, num_positive) > 0 else 0.0
    return ratio(float((positive * (below + negative / 2)).sum()), pairs, cut=cut)


def ratio(part: float, whole: float, *, cut: bool, largest: float = 1.0) -> float | None:
    """*part* over *whole*, with *cut* brought into [0, largest]; None where *whole* is not above 0."""
    if whole <= 0:
        return None
    return float(min(max(part / whole, 0.0), largest)) if cut else float(part / whole)


def mean_of_known(values: list[float | None]) -> float | None:
    """The mean of what is not None; None where all of it is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def least_zero(count: float, *, cut: bool) -> float:
    """A count of patients, with *cut* not below 0."""
    return float(max(count, 0.0)) if cut else float(count)
