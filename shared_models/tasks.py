"""Tasks: a loss, statistics that add up over patients and sites, and metrics from their sums.

The server never sees a score or a label; it sees sums of these statistics. What one patient can change of them is
bounded, which is what evaluation noise is scaled to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from shared_models.study import Study

Metrics: TypeAlias = Mapping[str, float | None]

LOSS_CUT = 5.0
"""A patient's log loss is cut here (nats)."""
LOSS_UNITS = 1000
"""Grid points from zero to the cut."""
LOSS_SHARE = 0.5
"""How far the loss counts in what one patient changes, a histogram entry counting 1: less makes it noisier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryClassification:
    """One logit per image; label 1 is positive.

    Attributes:
        num_bins: bins of the score histogram over [0, 1], even, so that 0.5 is the edge of a bin.
        positive_weight: weight of a positive image in the training loss, a constant of the study.
    """

    num_bins: int
    positive_weight: float

    num_outputs = 1

    def finely_binned(self) -> "BinaryClassification":
        """The same task with 2,000 bins, for exact figures where no noise has to fit into the bins."""
        return replace(self, num_bins=2000)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Weighted cross-entropy per image: logits (batch, 1), labels (batch,) float → (batch,)."""
        weights = 1.0 + (self.positive_weight - 1.0) * labels
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels, weight=weights, reduction="none")

    def scores(self, logits: Tensor) -> Tensor:
        """Probability of the positive class: logits (batch, 1) → (batch,) in [0, 1]."""
        return logits[:, 0].sigmoid()

    @property
    def num_statistics(self) -> int:
        """Two histograms (negative, positive patients) and the summed loss."""
        return 2 * self.num_bins + 1

    @property
    def noise_units(self) -> NDArray[np.int64]:
        """The unit of noise on each statistic, int64, shape (num_statistics,)."""
        return np.array([1] * (2 * self.num_bins) + [round(LOSS_UNITS / LOSS_SHARE)], dtype=np.int64)

    @property
    def l2_sensitivity(self) -> float:
        """Most that one patient changes the statistics by, in L2 norm and in noise units: one bin and the loss."""
        return float(np.hypot(1.0, LOSS_SHARE))

    def statistics(self, scores: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sum over patients.

        Args:
            scores: one per patient, float64, shape (num_patients,), in [0, 1]; a non-finite one counts as 0.5.
            labels: one per patient, int64, shape (num_patients,), 0 or 1.

        Returns:
            int64, shape (num_statistics,).
        """
        scores = np.where(np.isfinite(scores), scores, 0.5)
        bins = np.minimum((scores * self.num_bins).astype(np.int64), self.num_bins - 1)
        histogram = np.bincount(labels * self.num_bins + bins, minlength=2 * self.num_bins)
        likelihood = np.where(labels == 1, scores, 1.0 - scores)
        losses = np.minimum(-np.log(np.maximum(likelihood, 1e-300)), LOSS_CUT)
        loss = np.rint(losses * (LOSS_UNITS / LOSS_CUT)).astype(np.int64).sum()
        return np.concatenate([histogram, [loss]]).astype(np.int64)

    def metrics(self, statistics: NDArray[np.int64], *, cut: bool = True) -> Metrics:
        """Metrics from summed statistics; None where a class that a metric needs is empty.

        AUROC is that of the histogram: pairs within a bin count one half, so it differs from the exact one by at
        most half the share of such pairs. Noised counts are taken as they are, negative ones too: cutting them at
        zero would pull AUROC towards one half. Only the metric itself is cut to its range, unless *cut* says no.

        Source: Bamber (1975), the area as the probability of correct ranking, ties counted one half.
        """
        counts = statistics[:-1].astype(np.float64)
        negative, positive = counts[: self.num_bins], counts[self.num_bins :]
        num_negative, num_positive = negative.sum(), positive.sum()
        num = num_negative + num_positive
        half = self.num_bins // 2
        true_positive, true_negative = positive[half:].sum(), negative[:half].sum()
        below = np.concatenate([[0.0], np.cumsum(negative)[:-1]])
        pairs = num_negative * num_positive if min(num_negative, num_positive) > 0 else 0.0
        ratio = _ratio if cut else _any_ratio
        sensitivity = ratio(true_positive, num_positive)
        specificity = ratio(true_negative, num_negative)
        balanced = None if sensitivity is None or specificity is None else (sensitivity + specificity) / 2
        return {
            "auroc": ratio(float((positive * (below + negative / 2)).sum()), pairs),
            "accuracy": ratio(true_positive + true_negative, num),
            "balanced_accuracy": balanced,
            "sensitivity": sensitivity,
            "specificity": specificity,
            "loss": ratio(float(statistics[-1]) * LOSS_CUT / LOSS_UNITS, num, largest=LOSS_CUT),
            "num_patients": float(max(num, 0.0)),
        }


def _ratio(part: float, whole: float, *, largest: float = 1.0) -> float | None:
    return float(min(max(part / whole, 0.0), largest)) if whole > 0 else None


def _any_ratio(part: float, whole: float, *, largest: float = 1.0) -> float | None:
    return float(part / whole) if whole > 0 else None


def task_of(study: Study) -> BinaryClassification:
    """The task that the study names."""
    return BinaryClassification(
        num_bins=study.evaluation.num_bins, positive_weight=study.training.positive_weight
    )
