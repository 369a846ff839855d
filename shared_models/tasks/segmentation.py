"""Segmentation: which pixels of an image, or voxels of a volume, belong to which structure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from shared_models.configuration import Frozen
from shared_models.tasks.curves import Pair
from shared_models.tasks.fourfold import Fourfold
from shared_models.tasks.histograms import (
    LOSS_CUT,
    LOSS_NOISE_UNIT,
    LOSS_SHARE,
    least_zero,
    mean_loss,
    mean_of_known,
    on_loss_grid,
)
from shared_models.tasks.overlap import CELLS_BESIDE_BINS, Overlaps, cells_of
from shared_models.tasks.task import Constants, Counts, Doubles, Metrics, Name, Parts
from shared_models.visible_text import quoted

if TYPE_CHECKING:
    from torch import Tensor

MOST_STRUCTURES = 32
BACKGROUND = "background"
"""What the first output is the probability of, where several structures share out an image."""

MaskValue = Annotated[int, Field(ge=1, le=65_535)]


class Structure(Frozen):
    """A structure: its name, and the values of a mask that mean it; without any, whatever is above 0.

    ``weight`` is that of its voxels in the cross-entropy.
    """

    name: Name
    values: tuple[MaskValue, ...] = Field(default=(), strict=False)
    weight: float = Field(default=1.0, gt=0.0)


class SegmentationTable(Frozen):
    """What is learnt: structures, in the order of the model's outputs.

    ``dice_weight`` is the share of the Dice loss in the training loss; the rest is cross-entropy. ``smoothing`` voxels
    are added to both sides of the Dice, so that an image without the structure has a loss too.
    """

    kind: Literal["segmentation"]
    structures: tuple[Structure, ...] = Field(min_length=1, max_length=MOST_STRUCTURES, strict=False)
    dice_weight: float = Field(default=0.5, ge=0.0, le=1.0)
    smoothing: float = Field(default=1.0, gt=0.0, le=1e6)

    takes_positive_weight: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ()
    class_names: ClassVar[tuple[str, ...]] = ("absent", "present")
    words: ClassVar[Mapping[str, str]] = {
        "structures.name": "names of the structures, in their order",
        "structures.values": "values of a mask that mean the structure",
        "structures.weight": "weight in the cross-entropy of voxels of the structure",
        "dice_weight": "share of the Dice loss in the training loss",
        "smoothing": "voxels added to both sides of the Dice loss",
    }

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        twice = sorted(name for name, times in Counter(self.finding_names).items() if times > 1)
        if twice:
            raise ValueError(f"each structure needs a name of its own; several are called {twice}")
        if BACKGROUND in self.finding_names:
            raise ValueError(f'no structure can be called "{BACKGROUND}": that is what belongs to none')
        if len(self.structures) > 1 and any(not one.values for one in self.structures):
            raise ValueError("with several structures each needs the values that mean it in a mask")
        values = Counter(value for one in self.structures for value in set(one.values))
        if shared := sorted(value for value, times in values.items() if times > 1):
            raise ValueError(f"each value of a mask belongs to one structure; several have {shared}")
        return self

    @property
    def finding_names(self) -> tuple[str, ...]:
        """The structures: an image has each of them or not."""
        return tuple(one.name for one in self.structures)

    @property
    def mask_values(self) -> tuple[tuple[int, ...], ...]:
        """Of each structure."""
        return tuple(one.values for one in self.structures)

    def value_of(self, cell: str, column: int) -> int | None:
        """No cell says anything: masks do."""
        return None

    @property
    def in_words(self) -> str:
        """What the model learns, for those who decide at a hospital."""
        structures = "; ".join(
            quoted(one.name)
            + (
                f" (value {', '.join(map(str, one.values))} of the mask)"
                if one.values
                else " (whatever is above 0 in the mask)"
            )
            for one in self.structures
        )
        return (
            f"The model learns to mark in an image, point by point, what belongs to {structures}. It learns from masks "
            "that somebody drew on this hospital's images; everything else in a mask counts as background, and images "
            "without a mask are left out."
        )

    def task(self, constants: Constants) -> "Segmentation":
        """The task with these constants."""
        return Segmentation(
            num_bins=constants.num_bins,
            names=self.finding_names,
            weights=tuple(one.weight for one in self.structures),
            dice_weight=self.dice_weight,
            smoothing=self.smoothing,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """A logit for each voxel; with several structures one for the background and one for each of them.

    Labels are masks of shape (batch, 1, ...): 0 is background, k is structure k, counted from 1.

    Attributes:
        num_bins: bins of each histogram of Dice over (0, 1], even, so that 0.5 is the edge of a bin.
        names: of the structures, in the order of the outputs.
        weights: of their voxels in the cross-entropy; constants of the study.
        dice_weight: share of the Dice loss; the rest is cross-entropy.
        smoothing: voxels added to both sides of the Dice loss.
    """

    num_bins: int
    names: tuple[str, ...]
    weights: tuple[float, ...]
    dice_weight: float = 0.5
    smoothing: float = 1.0

    num_values = 2
    even_share = 0.5
    dense = True
    headings = (
        ("dice", "Dice"),
        ("iou", "IoU"),
        ("median_dice", "median Dice"),
        ("below_half", "Dice below ½"),
        ("detected", "found at all"),
        ("specificity", "rightly unmarked"),
        ("loss", "log loss"),
    )

    @property
    def num_outputs(self) -> int:
        """One, or the background and each structure."""
        return 1 if len(self.names) == 1 else len(self.names) + 1

    @property
    def output_names(self) -> tuple[str, ...]:
        """The structures; before them the background, where there are several."""
        return self.names if len(self.names) == 1 else (BACKGROUND, *self.names)

    @property
    def activation(self) -> Literal["sigmoid", "softmax"]:
        """Of each voxel."""
        return "sigmoid" if len(self.names) == 1 else "softmax"

    @property
    def label_shape(self) -> tuple[int, ...]:
        """What an image has is a value for each structure, 1 where its mask has some of it."""
        return (len(self.names),)

    @property
    def num_histograms(self) -> int:
        """Each structure."""
        return len(self.names)

    @property
    def parts(self) -> Parts | None:
        """Each structure by itself; None where there is one, of which the figures over all say it already."""
        if len(self.names) == 1:
            return None
        columns = (
            ("num_with", "with it"),
            ("num_without", "without it"),
            ("dice", "Dice"),
            ("iou", "IoU"),
            ("median_dice", "median Dice"),
            ("below_half", "Dice below ½"),
            ("detected", "found at all"),
            ("specificity", "rightly unmarked"),
        )
        return Parts(word="structure", names=self.names, columns=columns, confusion=False)

    @property
    def statistics_in_words(self) -> str:
        """What the statistics tell, for those who decide at a hospital."""
        return (
            f"for each of {len(self.names)} structures, of how many patients who have it the mark covered it to each "
            f"of {self.num_bins} degrees or not at all, and how many patients who do not have it were marked or not; "
            "and the sum of the errors"
        )

    def finely_binned(self) -> "Segmentation":
        """The same task with 2,000 bins, for exact figures where no noise has to fit into the bins."""
        return replace(self, num_bins=2000)

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Dice loss and cross-entropy per image: logits (batch, outputs, ...), labels (batch, 1, ...) → (batch,).

        The Dice is that of the one image, of each structure by itself; their mean counts. Voxels whose label is
        `MISSING` have no part.

        Source: Milletari, Navab and Ahmadi (2016), "V-Net", for the Dice of probabilities.
        """
        classes, known = _classes_of(labels)
        inside = [classes == number for number in range(1, len(self.names) + 1)]
        probabilities = self.scores(logits)
        dices = []
        for number, true in enumerate(inside):
            own = (probabilities[:, number if len(self.names) == 1 else number + 1] * known).flatten(1)
            both = (own * true.flatten(1)).sum(1)
            all_of_it = own.sum(1) + true.flatten(1).sum(1)
            dices.append((2.0 * both + self.smoothing) / (all_of_it + self.smoothing))
        dice_loss = 1.0 - sum(dices[1:], dices[0]) / len(dices)

        weights = known * 1.0
        for true, weight in zip(inside, self.weights, strict=True):
            weights = weights + (weight - 1.0) * true
        entropy = (weights * self._entropies(logits, classes)).flatten(1).mean(1)
        return self.dice_weight * dice_loss + (1.0 - self.dice_weight) * entropy

    def scores(self, logits: "Tensor") -> "Tensor":
        """Probabilities of each voxel: logits (batch, outputs, ...) → the same shape, in [0, 1]."""
        return logits.sigmoid() if len(self.names) == 1 else logits.softmax(1)

    def marks(self, logits: "Tensor") -> "Tensor":
        """What each voxel is taken for: logits (batch, outputs, ...) → int64 (batch, ...), 0 for background."""
        import torch

        if len(self.names) == 1:
            return (logits[:, 0] > 0).long()
        return torch.nan_to_num(logits, nan=-torch.inf).argmax(1)

    def kept(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Numbers of voxels, and the log loss.

        Args:
            logits: shape (batch, outputs, ...).
            labels: shape (batch, 1, ...).

        Returns:
            Shape (batch, 3 · structures + 2): for each structure the voxels of both mark and mask, of the mark, of the
            mask; then the mean log loss over voxels; then 1, the number of images.
        """
        import torch

        classes, known = _classes_of(labels)
        predicted = self.marks(logits) * known
        columns = []
        for number in range(1, len(self.names) + 1):
            mark, mask = (predicted == number).flatten(1), (classes == number).flatten(1)
            columns += [(mark & mask).sum(1), mark.sum(1), mask.sum(1)]
        losses = (self._entropies(logits, classes) * known).flatten(1)
        columns.append(losses.sum(1) / known.flatten(1).sum(1).clamp_min(1))
        columns.append(torch.ones_like(columns[0]))
        return torch.stack([column.to(logits.dtype) for column in columns], dim=1)

    def by_patient(self, kept: Doubles, labels: Counts, first_image: Counts) -> tuple[Doubles, Counts]:
        """Voxels and losses of all of a patient's images together; each structure is there where any image has it."""
        num_patients = len(first_image) - 1
        owner = np.repeat(np.arange(num_patients), np.diff(first_image))
        sums = np.zeros((num_patients, kept.shape[1]))
        np.add.at(sums, owner, kept)
        present = np.zeros((num_patients, len(self.names)), dtype=np.int64)
        np.maximum.at(present, owner, labels.astype(np.int64))
        return sums, present

    def among_bins(self, scores: Doubles) -> Doubles:
        """Where Dice lies among the bins: as it is."""
        return scores

    @property
    def num_statistics(self) -> int:
        """For each structure bins of Dice, patients missed, and those without it, unmarked and marked; the loss."""
        return (self.num_bins + CELLS_BESIDE_BINS) * len(self.names) + 1

    @property
    def noise_units(self) -> Counts:
        """The unit of noise on each statistic, int64, shape (num_statistics,)."""
        return np.array([1] * (self.num_statistics - 1) + [LOSS_NOISE_UNIT], dtype=np.int64)

    @property
    def l2_sensitivity(self) -> float:
        """Most that one patient changes the statistics by, in L2 norm and in noise units.

        A patient is in exactly one cell of each structure, however many images and voxels there are, and adds at most
        `LOSS_SHARE` units to the loss: √(structures + LOSS_SHARE²).
        """
        return float(np.sqrt(len(self.names) + LOSS_SHARE**2))

    def statistics(self, scores: Doubles, labels: Counts) -> Counts:
        """Sum over patients.

        Args:
            scores: what `by_patient` summed of each, float64, shape (num_patients, 3 · structures + 2). A loss that is
                not finite counts as the largest; numbers of voxels that are not count as 0.
            labels: not used.

        Returns:
            int64, shape (num_statistics,).
        """
        voxels = np.nan_to_num(scores[:, :-2], nan=0.0, posinf=0.0, neginf=0.0).reshape(
            len(scores), len(self.names), 3
        )
        cells = [cells_of(voxels[:, number], num_bins=self.num_bins) for number in range(len(self.names))]
        losses = scores[:, -2] / np.maximum(scores[:, -1], 1.0)
        losses = np.where(np.isfinite(losses), losses, LOSS_CUT).clip(0.0, LOSS_CUT)
        return np.concatenate([*cells, [on_loss_grid(losses)]]).astype(np.int64)

    def pairs(self, statistics: Counts) -> Mapping[str, Pair]:
        """There are none: a patient is judged by the mark, not by a score."""
        return {}

    def decisions(self, statistics: Counts) -> Mapping[str, Fourfold]:
        """There are none."""
        return {}

    def overlaps(self, statistics: Counts) -> Mapping[str, Overlaps]:
        """Of each structure."""
        cells = statistics[:-1].astype(np.float64).reshape(len(self.names), -1)
        return {name: Overlaps(own) for name, own in zip(self.names, cells, strict=True)}

    def metrics(self, statistics: Counts, *, cut: bool = True) -> Metrics:
        """Metrics from summed statistics, over all structures and of each.

        The Dice of a patient without the structure is not defined: such patients have no part in it, and are counted
        apart (``specificity``). Means over structures are over those of which the metric is known; ``num_structures``
        counts those that some patients have. Noised counts are taken as they are, negative ones too. Only the metric
        itself is cut to its range, unless *cut* says no.
        """
        of_structures: dict[str, list[float | None]] = {}
        found: dict[str, float | None] = {}
        nums, num_known = [], 0
        for name, overlaps in self.overlaps(statistics).items():
            for metric, value in overlaps.metrics(cut=cut).items():
                of_structures.setdefault(metric, []).append(value)
                found[f"{metric}/{name}"] = value
            found[f"num_with/{name}"] = least_zero(overlaps.num_with, cut=cut)
            found[f"num_without/{name}"] = least_zero(overlaps.num_without, cut=cut)
            nums.append(overlaps.num_with + overlaps.num_without)
            num_known += overlaps.num_with > 0
        num = float(np.mean(nums))
        return {
            **{metric: mean_of_known(values) for metric, values in of_structures.items()},
            "loss": mean_loss(float(statistics[-1]), num, cut=cut),
            "num_patients": max(num, 0.0),
            "num_structures": float(num_known),
            **found,
        }

    def _entropies(self, logits: "Tensor", classes: "Tensor") -> "Tensor":
        """Cross-entropy of each voxel, shape (batch, ...)."""
        import torch.nn.functional as F

        if len(self.names) == 1:
            return F.binary_cross_entropy_with_logits(
                logits[:, 0], classes.clamp_min(0).to(logits.dtype), reduction="none"
            )
        return F.cross_entropy(logits, classes.clamp_min(0), reduction="none")


def _classes_of(labels: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Class numbers, int64, shape (batch, ...), and which of them are known."""
    classes = labels[:, 0].long()
    return classes, classes >= 0
