"""Multi-class classification: each image is of one of several classes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from shared_models.configuration import Frozen
from shared_models.tasks.curves import Pair, figures_of_scores
from shared_models.tasks.focal import focused
from shared_models.tasks.fourfold import Fourfold, correlation, known
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
    ratio,
    scores_between_bins,
)
from shared_models.tasks.overlap import Overlaps
from shared_models.tasks.patients import by_patient
from shared_models.tasks.task import Constants, Counts, Doubles, Focusing, Metrics, Name, Parts
from shared_models.visible_text import quoted

if TYPE_CHECKING:
    from torch import Tensor

MOST_CLASSES = 64
OF_EACH_CLASS = (
    "auroc",
    "average_precision",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "f1",
    "mcc",
    "brier",
    "calibration_error",
)
"""What is known of a class against all others."""


class NamedClass(Frozen):
    """A class: its name, the values of the labels file that mean it, and the weight of its images in the loss."""

    name: Name
    values: tuple[str, ...] = Field(min_length=1, strict=False)
    weight: float = Field(default=1.0, gt=0.0)


class MultiClassTable(Frozen):
    """What is learnt. ``label`` is the column of every hospital's labels file.

    The order of the classes is that of the model's outputs, and decides of a patient whose images are of several: the
    last of them counts.
    """

    kind: Literal["multi-class-classification"]
    label: str = Field(min_length=1)
    classes: tuple[NamedClass, ...] = Field(min_length=2, max_length=MOST_CLASSES, strict=False)
    focusing: Focusing = 0.0

    takes_positive_weight: ClassVar[bool] = False
    mask_values: ClassVar[tuple[tuple[int, ...], ...]] = ()
    finding_names: ClassVar[tuple[str, ...]] = ()
    words: ClassVar[Mapping[str, str]] = {
        "label": "column of the labels file",
        "classes.name": "names of the classes, in their order",
        "classes.values": "values that mean the class",
        "classes.weight": "weight in the loss of the class",
        "focusing": "exponent of the focal loss; 0 is cross-entropy",
    }

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        if twice := _repeated(self.class_names):
            raise ValueError(f"each class needs a name of its own; several are called {twice}")
        if twice := _repeated([value for one in self.classes for value in one.values]):
            raise ValueError(f"each value belongs to one class, and stands there once; see {twice}")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the outputs."""
        return tuple(one.name for one in self.classes)

    @property
    def columns(self) -> tuple[str, ...]:
        """The label's."""
        return (self.label,)

    def value_of(self, cell: str, column: int) -> int | None:
        """The number of the class that has this value."""
        return next((number for number, one in enumerate(self.classes) if cell in one.values), None)

    @property
    def in_words(self) -> str:
        """What the model learns, for those who decide at a hospital."""
        classes = "; ".join(f"{quoted(one.name)} ({quoted(*one.values)})" for one in self.classes)
        return (
            f"The model learns to tell {len(self.classes)} classes of images apart. Their names, and the values in the "
            f"column {quoted(self.label)} of the labels file that mean them: {classes}. Images with any other value "
            "are left out. A patient with images of several classes counts, when the model is tested, as one of the "
            "last of these classes."
        )

    def task(self, constants: Constants) -> "MultiClassClassification":
        """The task with these constants."""
        return MultiClassClassification(
            num_bins=constants.num_bins,
            names=self.class_names,
            weights=tuple(one.weight for one in self.classes),
            focusing=self.focusing,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiClassClassification:
    """A logit for each class.

    Attributes:
        num_bins: bins of each score histogram over [0, 1].
        names: of the classes, in the order of the outputs.
        weights: of an image of each class in the training loss, constants of the study.
        focusing: exponent of the focal loss; 0 is cross-entropy.
    """

    num_bins: int
    names: tuple[str, ...]
    weights: tuple[float, ...]
    focusing: float = 0.0

    dense = False
    headings = (
        ("auroc", "AUROC, mean of classes"),
        ("accuracy", "accuracy"),
        ("balanced_accuracy", "balanced accuracy"),
        ("average_precision", "average precision, mean of classes"),
        ("loss", "log loss"),
    )

    @property
    def num_outputs(self) -> int:
        """One for each class."""
        return len(self.names)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The classes."""
        return self.names

    @property
    def activation(self) -> Literal["softmax"]:
        """Over the classes."""
        return "softmax"

    @property
    def num_values(self) -> int:
        """The classes."""
        return len(self.names)

    @property
    def label_shape(self) -> tuple[int, ...]:
        """One value for an image."""
        return ()

    @property
    def num_histograms(self) -> int:
        """Each class against all others."""
        return len(self.names)

    @property
    def even_share(self) -> float:
        """One class of all."""
        return 1.0 / len(self.names)

    @property
    def parts(self) -> Parts | None:
        """Each class against all others."""
        columns = (
            ("num_patients", "number"),
            ("auroc", "AUROC against the others"),
            ("sensitivity", "sensitivity"),
            ("specificity", "specificity"),
        )
        return Parts(word="class", names=self.names, columns=columns, confusion=True)

    @property
    def statistics_in_words(self) -> str:
        """What the statistics tell, for those who decide at a hospital."""
        return (
            f"for each of {len(self.names)} classes, how many of its patients and how many of all others got a score "
            f"in each of {self.num_bins} intervals; how many patients of each class the model took for which; and the "
            "sum of the errors"
        )

    def finely_binned(self) -> "MultiClassClassification":
        """The same task with 2,000 bins, for exact figures where no noise has to fit into the bins."""
        return replace(self, num_bins=2000)

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Weighted cross-entropy or focal loss per image: logits (batch, classes), labels (batch,) float → (batch,)."""
        import torch.nn.functional as F

        known, classes = labels >= 0, labels.clamp_min(0).long()
        weights = known * logits.new_tensor(self.weights)[classes]
        return weights * focused(F.cross_entropy(logits, classes, reduction="none"), self.focusing)

    def scores(self, logits: "Tensor") -> "Tensor":
        """Probability of each class: logits (batch, classes) → the same shape, in [0, 1]."""
        return logits.softmax(1)

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
        """For each class two histograms (all others, its own patients); the confusion matrix; the summed loss."""
        num = len(self.names)
        return 2 * self.num_bins * num + num**2 + 1

    @property
    def noise_units(self) -> Counts:
        """The unit of noise on each statistic, int64, shape (num_statistics,)."""
        return np.array([1] * (self.num_statistics - 1) + [LOSS_NOISE_UNIT], dtype=np.int64)

    @property
    def l2_sensitivity(self) -> float:
        """Most that one patient changes the statistics by, in L2 norm and in noise units.

        A patient is in one bin of each class' pair of histograms, in one cell of the confusion matrix, and adds at most
        `LOSS_SHARE` units to the loss: √(classes + 1 + LOSS_SHARE²). Whoever has a class that is not known is nowhere.
        """
        return float(np.sqrt(len(self.names) + 1 + LOSS_SHARE**2))

    def statistics(self, scores: Doubles, labels: Counts) -> Counts:
        """Sum over patients.

        Args:
            scores: float64, shape (num_patients, classes), in [0, 1]; where one of a patient's is not finite, all
                classes count as equally probable.
            labels: the class of each patient, int64, shape (num_patients,), or `MISSING`.

        Returns:
            int64, shape (num_statistics,).
        """
        num = len(self.names)
        scores, labels = scores[labels >= 0], labels[labels >= 0]
        finite = np.isfinite(scores).all(axis=1, keepdims=True)
        scores = np.where(finite, scores, 1.0 / num).clip(0.0, 1.0)
        places = self.among_bins(scores)
        histograms = [
            pair_of_histograms(places[:, own], (labels == own).astype(np.int64), num_bins=self.num_bins)
            for own in range(num)
        ]
        confusion = np.bincount(labels * num + scores.argmax(axis=1), minlength=num**2)
        losses = log_losses(scores[np.arange(len(labels)), labels])
        return np.concatenate([*histograms, confusion, [on_loss_grid(losses)]]).astype(np.int64)

    def pairs(self, statistics: Counts) -> Mapping[str, Pair]:
        """Each class against all others."""
        num, edges = len(self.names), scores_between_bins(self.num_bins)
        counts = statistics[: 2 * self.num_bins * num].astype(np.float64).reshape(num, 2, self.num_bins)
        return {
            name: Pair(negative=others, positive=own, edges=edges)
            for name, (others, own) in zip(self.names, counts, strict=True)
        }

    def confusion(self, statistics: Counts) -> Doubles:
        """The confusion matrix: a row for each true class, a column for each that is taken for it."""
        num = len(self.names)
        return statistics[2 * self.num_bins * num : -1].astype(np.float64).reshape(num, num)

    def decisions(self, statistics: Counts) -> Mapping[str, Fourfold]:
        """The class with the highest score is taken; each class against all others."""
        confusion, others = self.confusion(statistics), len(self.names) - 1
        right, own, taken = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        return {
            name: Fourfold(
                true_positive=right[one],
                false_positive=taken[one] - right[one],
                true_negative=confusion.sum() - own[one] - taken[one] + right[one],
                false_negative=own[one] - right[one],
                cells=(1, others, others**2, others),
            )
            for one, name in enumerate(self.names)
        }

    def overlaps(self, statistics: Counts) -> Mapping[str, Overlaps]:
        """Nothing is marked."""
        return {}

    def metrics(self, statistics: Counts, *, cut: bool = True) -> Metrics:
        """Metrics from summed statistics, over all classes and of each.

        Means over classes are over those that have patients, which ``num_classes`` counts. Noised counts are taken as
        they are, negative ones too. Only the metric itself is cut to its range, unless *cut* says no.
        """
        confusion, decisions = self.confusion(statistics), self.decisions(statistics)
        total, own, right = confusion.sum(), confusion.sum(1), confusion.diagonal()
        of_classes = {
            name: {**decisions[name].figures(cut=cut), **figures_of_scores(pair, cut=cut)}
            for name, pair in self.pairs(statistics).items()
        }
        found: dict[str, float | None] = {
            "auroc": mean_of_known([one["auroc"] for one in of_classes.values()]),
            "average_precision": mean_of_known([one["average_precision"] for one in of_classes.values()]),
            "accuracy": ratio(right.sum(), total, cut=cut),
            "balanced_accuracy": mean_of_known([one["sensitivity"] for one in of_classes.values()]),
            "f1": mean_of_known([one["f1"] for one in of_classes.values()]),
            "mcc": known(correlation(confusion), cut=cut, lowest=-1.0),
            "brier": mean_of_known([one["brier"] for one in of_classes.values()]),
            "calibration_error": mean_of_known([one["calibration_error"] for one in of_classes.values()]),
            "loss": mean_loss(float(statistics[-1]), total, cut=cut),
            "num_patients": float(max(total, 0.0)),
            "num_classes": float((own > 0).sum()),
        }
        for one, name in enumerate(self.names):
            found[f"num_patients/{name}"] = least_zero(own[one], cut=cut)
            found |= {f"{metric}/{name}": of_classes[name][metric] for metric in OF_EACH_CLASS}
        for one, true in enumerate(self.names):
            for other, predicted in enumerate(self.names):
                found[f"confusion/{true}/{predicted}"] = least_zero(confusion[one, other], cut=cut)
        return found


def _repeated(values: "list[str] | tuple[str, ...]") -> list[str]:
    return sorted(value for value, times in Counter(values).items() if times > 1)
