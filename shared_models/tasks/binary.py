"""Binary classification: each image is positive or negative."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from shared_models.configuration import Frozen
from shared_models.tasks.curves import Pair, figures_of_scores
from shared_models.tasks.fourfold import Fourfold
from shared_models.tasks.histograms import (
    LOSS_NOISE_UNIT,
    LOSS_SHARE,
    among_bins,
    log_losses,
    mean_loss,
    on_loss_grid,
    pair_of_histograms,
    scores_between_bins,
)
from shared_models.tasks.overlap import Overlaps
from shared_models.tasks.patients import by_patient
from shared_models.tasks.task import Constants, Counts, Doubles, Metrics, Parts
from shared_models.visible_text import quoted

if TYPE_CHECKING:
    from torch import Tensor


class BinaryTable(Frozen):
    """What is learnt. ``label`` is the column of every hospital's labels file."""

    kind: Literal["binary-classification"]
    label: str = Field(min_length=1)
    positive: tuple[str, ...] = Field(min_length=1, strict=False)
    negative: tuple[str, ...] = Field(min_length=1, strict=False)

    takes_positive_weight: ClassVar[bool] = True
    mask_values: ClassVar[tuple[tuple[int, ...], ...]] = ()
    class_names: ClassVar[tuple[str, ...]] = ("negative", "positive")
    finding_names: ClassVar[tuple[str, ...]] = ()
    words: ClassVar[Mapping[str, str]] = {
        "label": "column of the labels file",
        "positive": "values that count as positive",
        "negative": "values that count as negative",
    }

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        if both := sorted(set(self.positive) & set(self.negative)):
            raise ValueError(f"positive and negative must not share values; both hold {both}")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The label's."""
        return (self.label,)

    def value_of(self, cell: str, column: int) -> int | None:
        """1 for a positive value, 0 for a negative one."""
        if cell in self.positive or cell in self.negative:
            return int(cell in self.positive)
        return None

    @property
    def in_words(self) -> str:
        """What the model learns, for those who decide at a hospital."""
        return (
            f"The model learns to tell images labelled {quoted(*self.positive)} (positive) from images labelled "
            f"{quoted(*self.negative)} (negative), in the column {quoted(self.label)} of the labels file. Images "
            "with any other value are left out."
        )

    def task(self, constants: Constants) -> "BinaryClassification":
        """The task with these constants."""
        return BinaryClassification(
            num_bins=constants.num_bins,
            positive_weight=constants.positive_weight,
            even_bins=constants.noised,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryClassification:
    """One logit per image; label 1 is positive.

    Attributes:
        num_bins: bins of the score histogram, an even number, so that 0.5 is the edge of a bin.
        positive_weight: weight of a positive image in the training loss, a constant of the study.
        even_bins: whether all bins are of the same width; else scores lie among them as `among_bins` says.
    """

    num_bins: int
    positive_weight: float
    even_bins: bool = True

    num_outputs = 1
    output_names = ("positive",)
    num_values = 2
    num_histograms = 1
    even_share = 0.5
    dense = False
    headings = (
        ("auroc", "AUROC"),
        ("accuracy", "accuracy"),
        ("balanced_accuracy", "balanced accuracy"),
        ("sensitivity", "sensitivity"),
        ("specificity", "specificity"),
        ("average_precision", "average precision"),
        ("loss", "log loss"),
    )

    @property
    def activation(self) -> Literal["sigmoid"]:
        """The logistic function."""
        return "sigmoid"

    @property
    def label_shape(self) -> tuple[int, ...]:
        """One value for an image."""
        return ()

    @property
    def parts(self) -> Parts | None:
        """Sensitivity and specificity say it already."""
        return None

    @property
    def statistics_in_words(self) -> str:
        """What the statistics tell, for those who decide at a hospital."""
        return (
            f"how many patients of each label got a score in each of {self.num_bins} intervals, and the sum of the "
            "errors"
        )

    def finely_binned(self) -> "BinaryClassification":
        """The same task with 2,000 bins, for exact figures where no noise has to fit into the bins."""
        return replace(self, num_bins=2000, even_bins=False)

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Weighted cross-entropy per image: logits (batch, 1), labels (batch,) float → (batch,)."""
        import torch.nn.functional as F

        known, labels = labels >= 0, labels.clamp_min(0)
        weights = known * (1.0 + (self.positive_weight - 1.0) * labels)
        losses = F.binary_cross_entropy_with_logits(logits[:, 0], labels, reduction="none")
        return weights * losses

    def scores(self, logits: "Tensor") -> "Tensor":
        """Probability of the positive class: logits (batch, 1) → (batch,) in [0, 1]."""
        return logits[:, 0].sigmoid()

    def kept(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Its scores."""
        return self.scores(logits)

    def by_patient(self, kept: Doubles, labels: Counts, first_image: Counts) -> tuple[Doubles, Counts]:
        """The mean score over the images, and the label that decides (`shared_models.tasks.patients`)."""
        return by_patient(kept, labels, first_image)

    def among_bins(self, scores: Doubles) -> Doubles:
        """Where scores lie among the bins, in [0, 1] and in their order."""
        return scores if self.even_bins else among_bins(scores)

    @property
    def num_statistics(self) -> int:
        """Two histograms (negative, positive patients) and the summed loss."""
        return 2 * self.num_bins + 1

    @property
    def noise_units(self) -> Counts:
        """The unit of noise on each statistic, int64, shape (num_statistics,)."""
        return np.array([1] * (2 * self.num_bins) + [LOSS_NOISE_UNIT], dtype=np.int64)

    @property
    def l2_sensitivity(self) -> float:
        """Most that one patient changes the statistics by, in L2 norm and in noise units: one bin and the loss."""
        return float(np.hypot(1.0, LOSS_SHARE))

    def statistics(self, scores: Doubles, labels: Counts) -> Counts:
        """Sum over patients.

        Args:
            scores: one per patient, float64, shape (num_patients,), in [0, 1]; a non-finite one counts as 0.5.
            labels: one per patient, int64, shape (num_patients,), 0 or 1.

        Returns:
            int64, shape (num_statistics,).
        """
        scores = np.where(np.isfinite(scores), scores, 0.5).clip(0.0, 1.0)
        histograms = pair_of_histograms(self.among_bins(scores), labels, num_bins=self.num_bins)
        losses = log_losses(np.where(labels == 1, scores, 1.0 - scores))
        return np.concatenate([histograms, [on_loss_grid(losses)]]).astype(np.int64)

    def pairs(self, statistics: Counts) -> Mapping[str, Pair]:
        """The one pair."""
        counts = statistics[:-1].astype(np.float64)
        negative, positive = counts[: self.num_bins], counts[self.num_bins :]
        even = np.linspace(0.0, 1.0, self.num_bins + 1)
        edges = even if self.even_bins else scores_between_bins(self.num_bins)
        return {"positive": Pair(negative=negative, positive=positive, edges=edges)}

    def decisions(self, statistics: Counts) -> Mapping[str, Fourfold]:
        """Scores from 0.5 on are taken for positive."""
        return {"positive": self.pairs(statistics)["positive"].at(self.num_bins // 2)}

    def overlaps(self, statistics: Counts) -> Mapping[str, Overlaps]:
        """Nothing is marked."""
        return {}

    def metrics(self, statistics: Counts, *, cut: bool = True) -> Metrics:
        """Metrics from summed statistics; None where a class that a metric needs is empty.

        Noised counts are taken as they are, negative ones too. Only the metric itself is cut to its range, unless *cut*
        says no.
        """
        pair, decision = self.pairs(statistics)["positive"], self.decisions(statistics)["positive"]
        num = float(pair.negative.sum() + pair.positive.sum())
        return {
            **figures_of_scores(pair, cut=cut),
            **decision.figures(cut=cut),
            "loss": mean_loss(float(statistics[-1]), num, cut=cut),
            "num_patients": max(num, 0.0),
        }
