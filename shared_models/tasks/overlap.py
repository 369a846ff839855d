"""How well marks cover masks: patients counted by their Dice, and the metrics that such counts give."""

from dataclasses import dataclass

import numpy as np

from shared_models.tasks.histograms import ratio
from shared_models.tasks.task import Counts, Doubles

CELLS_BESIDE_BINS = 3
"""Patients of whom nothing of the structure was found; patients without it, unmarked, and marked."""


def cells_of(voxels: Doubles, *, num_bins: int) -> Counts:
    """Count patients, each in exactly one cell.

    Args:
        voxels: float64, shape (num_patients, 3): of both mark and mask, of the mark, of the mask; finite.
        num_bins: over (0, 1].

    Returns:
        int64, shape (num_bins + CELLS_BESIDE_BINS,): patients by bin of their Dice; those with the structure whose
        Dice is 0; those without it of whom nothing was marked; those of whom something was.
    """
    both, mark, mask = np.maximum(voxels, 0.0).T
    with np.errstate(all="ignore"):  # absurd numbers may overflow; the result lies in its range
        dice = np.nan_to_num(np.where(both > 0, 2.0 * both / (mark + mask), 0.0)).clip(0.0, 1.0)
    cells = np.minimum((dice * num_bins).astype(np.int64), num_bins - 1)
    cells = np.where(dice > 0, cells, num_bins)
    cells = np.where(mask > 0, cells, num_bins + 1 + (mark > 0))
    return np.bincount(cells, minlength=num_bins + CELLS_BESIDE_BINS).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Overlaps:
    """Counts as `cells_of` made them, summed, possibly with noise."""

    cells: Doubles

    @property
    def num_with(self) -> float:
        """Patients who have the structure."""
        return float(self.cells[:-2].sum())

    @property
    def num_without(self) -> float:
        """Patients who do not."""
        return float(self.cells[-2:].sum())

    @property
    def middles(self) -> Doubles:
        """The Dice that stands for that of a bin, shape (num_bins,)."""
        num_bins = len(self.cells) - CELLS_BESIDE_BINS
        middles: Doubles = (np.arange(num_bins) + 0.5) / num_bins
        return middles

    def metrics(self, *, cut: bool) -> dict[str, float | None]:
        """Metrics of one structure; None where nobody has it, or everybody.

        A bin stands for the Dice in its middle: the mean Dice and the median are off by half a bin at most, the mean
        IoU by one. All others are exact.
        """
        bins, missed = self.cells[:-3], self.cells[-3]
        middles = self.middles
        num = self.num_with
        return {
            "dice": ratio(float(middles @ bins), num, cut=cut),
            "iou": ratio(float(middles / (2.0 - middles) @ bins), num, cut=cut),
            "median_dice": self._median(middles),
            "below_half": ratio(float(missed + bins[: len(bins) // 2].sum()), num, cut=cut),
            "detected": ratio(float(bins.sum()), num, cut=cut),
            "specificity": ratio(float(self.cells[-2]), self.num_without, cut=cut),
        }

    def _median(self, middles: Doubles) -> float | None:
        """The Dice that half of the patients do not exceed; 0 where half of them were missed."""
        if self.num_with <= 0:
            return None
        below = np.cumsum([self.cells[-3], *self.cells[:-3]])
        place = int(np.argmax(below >= self.num_with / 2.0))
        return float([0.0, *middles][place])
