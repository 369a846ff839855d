"""Multi-label classification: several findings, of each of which an image says yes, no, or nothing."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from shared_models.configuration import Frozen
from shared_models.tasks.curves import Pair, figures_of_scores
from shared_models.tasks.focal import focused
from shared_models.tasks.fourfold import RATIOS, Fourfold
from shared_models.tasks.histograms import (
    LOSS_NOISE_UNIT,
    LOSS_SHARE,
    among_bins,
    least_zero,
    log_losses,
    mean_loss,
    mean_of_known,
    on_loss_grid,
    pair_of_histograms,
    scores_between_bins,
)
from shared_models.tasks.overlap import Overlaps
from shared_models.tasks.patients import by_patient
from shared_models.tasks.task import Constants, Counts, Doubles, Focusing, Metrics, Name, Parts
from shared_models.visible_text import quoted

if TYPE_CHECKING:
    from torch import Tensor

MOST_FINDINGS = 64
OF_EACH_FINDING = ("auroc", "average_precision", *RATIOS, "brier", "calibration_error")
"""What is known of a finding, and their means."""


class Finding(Frozen):
    """A finding: its name, the column of every hospital's labels file, and the values that mean yes and no.

    ``positive_weight`` is the weight of an image that has it in this finding's part of the loss.
    """

    name: Name
    column: str = Field(min_length=1)
    positive: tuple[str, ...] = Field(min_length=1, strict=False)
    negative: tuple[str, ...] = Field(min_length=1, strict=False)
    positive_weight: float = Field(default=1.0, gt=0.0)

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        if both := sorted(set(self.positive) & set(self.negative)):
            raise ValueError(f"positive and negative must not share values; both hold {both}")
        return self


class MultiLabelTable(Frozen):
    """What is learnt: findings, in the order of the model's outputs."""

    kind: Literal["multi-label-classification"]
    findings: tuple[Finding, ...] = Field(min_length=1, max_length=MOST_FINDINGS, strict=False)
    focusing: Focusing = 0.0

    takes_positive_weight: ClassVar[bool] = False
    mask_values: ClassVar[tuple[tuple[int, ...], ...]] = ()
    class_names: ClassVar[tuple[str, ...]] = ("negative", "positive")
    words: ClassVar[Mapping[str, str]] = {
        "findings.name": "names of the findings, in their order",
        "findings.column": "column of the labels file of the finding",
        "findings.positive": "values that say yes to the finding",
        "findings.negative": "values that say no to the finding",
        "findings.positive_weight": "weight in the loss of images with the finding",
        "focusing": "exponent of the focal loss; 0 is cross-entropy",
    }

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        twice = sorted(name for name, times in Counter(self.finding_names).items() if times > 1)
        if twice:
            raise ValueError(f"each finding needs a name of its own; several are called {twice}")
        return self

    @property
    def finding_names(self) -> tuple[str, ...]:
        """In the order of the outputs."""
        return tuple(one.name for one in self.findings)

    @property
    def columns(self) -> tuple[str, ...]:
        """One for each finding; several findings may share one."""
        return tuple(one.column for one in self.findings)

    def value_of(self, cell: str, column: int) -> int | None:
        """1 where the cell says that the finding is there, 0 where it says that it is not."""
        finding = self.findings[column]
        if cell in finding.positive or cell in finding.negative:
            return int(cell in finding.positive)
        return None

    @property
    def in_words(self) -> str:
        """What the model learns, for those who decide at a hospital."""
        findings = "; ".join(
            f"{quoted(one.name)} (column {quoted(one.column)}: {quoted(*one.positive)} for yes, "
            f"{quoted(*one.negative)} for no)"
            for one in self.findings
        )
        return (
            f"The model learns which of {len(self.findings)} findings an image shows, by these columns of the labels "
            f"file: {findings}. Where a column is empty or has any other value, that finding is taken as not known; an "
            "image of which no finding is known is left out."
        )

    def task(self, constants: Constants) -> "MultiLabelClassification":
        """The task with these constants."""
        return MultiLabelClassification(
            num_bins=constants.num_bins,
            names=self.finding_names,
            positive_weights=tuple(one.positive_weight for one in self.findings),
            focusing=self.focusing,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiLabelClassification:
    """A logit for each finding.

    Attributes:
        num_bins: bins of each score histogram over [0, 1], even, so that 0.5 is the edge of a bin.
        names: of the findings, in the order of the outputs.
        positive_weights: of images that have the finding, in its part of the training loss; constants of the study.
        focusing: exponent of the focal loss; 0 is cross-entropy.
    """

    num_bins: int
    names: tuple[str, ...]
    positive_weights: tuple[float, ...]
    focusing: float = 0.0

    num_values = 2
    even_share = 0.5
    dense = False
    headings = (
        ("auroc", "AUROC, mean of findings"),
        ("accuracy", "accuracy"),
        ("balanced_accuracy", "balanced accuracy"),
        ("sensitivity", "sensitivity"),
        ("specificity", "specificity"),
        ("average_precision", "average precision, mean of findings"),
        ("loss", "log loss"),
    )

    @property
    def num_outputs(self) -> int:
        """One for each finding."""
        return len(self.names)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The findings."""
        return self.names

    @property
    def activation(self) -> Literal["sigmoid"]:
        """Of each finding by itself."""
        return "sigmoid"

    @property
    def label_shape(self) -> tuple[int, ...]:
        """A value for each finding."""
        return (len(self.names),)

    @property
    def num_histograms(self) -> int:
        """Each finding."""
        return len(self.names)

    @property
    def parts(self) -> Parts | None:
        """Each finding by itself."""
        columns = (
            ("num_positive", "with it"),
            ("num_negative", "without it"),
            ("auroc", "AUROC"),
            ("balanced_accuracy", "balanced accuracy"),
            ("sensitivity", "sensitivity"),
            ("specificity", "specificity"),
        )
        return Parts(word="finding", names=self.names, columns=columns, confusion=False)

    @property
    def statistics_in_words(self) -> str:
        """What the statistics tell, for those who decide at a hospital."""
        return (
            f"for each of {len(self.names)} findings, how many patients with it and how many without it got a score in "
            f"each of {self.num_bins} intervals; how many patients there are; and the sum of the errors"
        )

    def finely_binned(self) -> "MultiLabelClassification":
        """The same task with 2,000 bins, for exact figures where no noise has to fit into the bins."""
        return replace(self, num_bins=2000)

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Weighted cross-entropy or focal loss per image: logits and labels (batch, findings) float → (batch,).

        The sum over the findings that are known, over the number of all: what is known weighs the same, whatever else
        is known of that image.
        """
        import torch.nn.functional as F

        known, labels = labels >= 0, labels.clamp_min(0)
        weights = known * (1.0 + (logits.new_tensor(self.positive_weights) - 1.0) * labels)
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return (weights * focused(losses, self.focusing)).sum(1) / len(self.names)

    def scores(self, logits: "Tensor") -> "Tensor":
        """Probability of each finding: logits (batch, findings) → the same shape, in [0, 1]."""
        return logits.sigmoid()

    def kept(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Its scores."""
        return self.scores(logits)

    def by_patient(self, kept: Doubles, labels: Counts, first_image: Counts) -> tuple[Doubles, Counts]:
        """The mean score over the images, and the label that decides (`shared_models.tasks.patients`)."""
        return by_patient(kept, labels, first_image)

    def among_bins(self, scores: Doubles) -> Doubles:
        """Where scores lie among the bins: by the cube root of their odds."""
        return among_bins(scores)

    @property
    def num_statistics(self) -> int:
        """For each finding two histograms (patients without it, with it); the number of patients; the summed loss."""
        return 2 * self.num_bins * len(self.names) + 2

    @property
    def noise_units(self) -> Counts:
        """The unit of noise on each statistic, int64, shape (num_statistics,)."""
        return np.array([1] * (self.num_statistics - 1) + [LOSS_NOISE_UNIT], dtype=np.int64)

    @property
    def l2_sensitivity(self) -> float:
        """Most that one patient changes the statistics by, in L2 norm and in noise units.

        A patient is in one bin of the pair of histograms of each finding that is known, in the number of patients, and
        adds at most `LOSS_SHARE` units to the loss: √(findings + 1 + LOSS_SHARE²) where all are known, else less.
        """
        return float(np.sqrt(len(self.names) + 1 + LOSS_SHARE**2))

    def statistics(self, scores: Doubles, labels: Counts) -> Counts:
        """Sum over patients.

        Args:
            scores: float64, shape (num_patients, findings), in [0, 1]; a non-finite one counts as 0.5.
            labels: int64, shape (num_patients, findings): 0, 1, or `MISSING`.

        Returns:
            int64, shape (num_statistics,). A patient's loss is the mean over the findings that are known.
        """
        scores = np.where(np.isfinite(scores), scores, 0.5).clip(0.0, 1.0)
        known = labels >= 0
        places = self.among_bins(scores)
        histograms = [
            pair_of_histograms(places[rows, one], labels[rows, one], num_bins=self.num_bins)
            for one, rows in enumerate(known.T)
        ]
        losses = log_losses(np.where(labels == 1, scores, 1.0 - scores))
        some = known.any(axis=1)
        means = (losses * known).sum(axis=1)[some] / known.sum(axis=1)[some]
        return np.concatenate([*histograms, [some.sum(), on_loss_grid(means)]]).astype(np.int64)

    def pairs(self, statistics: Counts) -> Mapping[str, Pair]:
        """Each finding by itself."""
        counts = statistics[:-2].astype(np.float64).reshape(len(self.names), 2, self.num_bins)
        edges = scores_between_bins(self.num_bins)
        return {
            name: Pair(negative=without, positive=having, edges=edges)
            for name, (without, having) in zip(self.names, counts, strict=True)
        }

    def decisions(self, statistics: Counts) -> Mapping[str, Fourfold]:
        """A finding is taken to be there where its score is 0.5 or more."""
        return {name: pair.at(self.num_bins // 2) for name, pair in self.pairs(statistics).items()}

    def overlaps(self, statistics: Counts) -> Mapping[str, Overlaps]:
        """Nothing is marked."""
        return {}

    def metrics(self, statistics: Counts, *, cut: bool = True) -> Metrics:
        """Metrics from summed statistics, over all findings and of each.

        Means over findings are over those of which the metric is known; ``num_findings`` counts those that some
        patients have and some have not. Noised counts are taken as they are, negative ones too. Only the metric itself
        is cut to its range, unless *cut* says no.
        """
        pairs, decisions, num = self.pairs(statistics), self.decisions(statistics), float(statistics[-2])
        of_findings = {
            name: {**figures_of_scores(pair, cut=cut), **decisions[name].figures(cut=cut)}
            for name, pair in pairs.items()
        }
        counts = {name: (pair.negative.sum(), pair.positive.sum()) for name, pair in pairs.items()}
        found: dict[str, float | None] = {
            metric: mean_of_known([own[metric] for own in of_findings.values()]) for metric in OF_EACH_FINDING
        }
        found |= {
            "loss": mean_loss(float(statistics[-1]), num, cut=cut),
            "num_patients": max(num, 0.0),
            "num_findings": float(sum(min(both) > 0 for both in counts.values())),
        }
        for name, own in of_findings.items():
            found |= {f"{metric}/{name}": own[metric] for metric in OF_EACH_FINDING}
            found[f"num_positive/{name}"] = least_zero(counts[name][1], cut=cut)
            found[f"num_negative/{name}"] = least_zero(counts[name][0], cut=cut)
        return found
