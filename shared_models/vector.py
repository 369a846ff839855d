"""The one integer vector that leaves a site in a round: ``update | weight | statistics``, modulo 2^32.

Fixed point on an agreed grid makes the sum over sites exact, whatever their order, and is what secure
aggregation needs. The bound is proven from the study before the first round: ``num_sites_max`` vectors, each
entry at most ``largest``, stay below 2^31, so the sum read as a signed integer is the true sum.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared_models.study import Study

IntVector = NDArray[np.uint32]
Counts = NDArray[np.int64]

_BLOCK_ENTRIES = 1 << 15
GRADIENT_RANGE = 512.0
"""Largest entry of a site's sum of clipped gradients on the grid, in units of the clipping bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorLayout:
    """Where what stands in the vector, and on which grid.

    Attributes:
        num_weights: length of the update.
        num_statistics: number of additive evaluation statistics behind it; 0 where the round has none.
        num_sites_max: most vectors that are ever summed.
        update_bound: entries of the update are cut to [-update_bound, update_bound].
        max_weight: largest weight of one site in the mean.

    A site sends the mean over its patients, its update, which the sum weights (`encode`, `decode_sum`); or, under
    ``privacy.mode = "distributed"``, a sum over its patients (`encode_gradient`, `decode_gradient`).
    """

    num_weights: int
    num_statistics: int
    num_sites_max: int
    update_bound: float
    max_weight: int

    def __post_init__(self) -> None:
        if self.max_weight > self.largest:
            raise ValueError(
                f"max_patients = {self.max_weight} times num_sites_max = {self.num_sites_max} does not stay below "
                "2^31; lower one of them"
            )

    @classmethod
    def of_study(cls, study: Study, *, num_weights: int, num_statistics: int) -> "VectorLayout":
        """The layout that a study fixes for vectors with so many weights and statistics."""
        aggregation, bound = study.aggregation, study.aggregation.update_bound
        if study.privacy.mode == "distributed" and study.privacy.max_grad_norm is not None:
            bound = GRADIENT_RANGE * study.privacy.max_grad_norm
        return cls(
            num_weights=num_weights,
            num_statistics=num_statistics,
            num_sites_max=aggregation.num_sites_max,
            update_bound=bound,
            max_weight=aggregation.max_patients or 1,
        )

    @property
    def length(self) -> int:
        """Number of entries of the vector."""
        return (self.num_weights + 1 if self.num_weights else 0) + self.num_statistics

    @property
    def largest(self) -> int:
        """Largest absolute value of one site's entry: num_sites_max of them stay below 2^31."""
        return (2**31 - 1) // self.num_sites_max

    @property
    def scale(self) -> float:
        """Grid points per unit of the update."""
        return self.largest / self.update_bound

    def encode(self, *, update: NDArray[np.float64] | None, weight: int, statistics: Counts) -> IntVector:
        """Return the vector of one site.

        Args:
            update: float64, shape (num_weights,); None for a layout without weights. Non-finite entries count
                as zero, entries beyond the bound are cut: the reply goes in any case.
            weight: 1..max_weight; cut to it.
            statistics: int64, shape (num_statistics,); cut to the largest entry.

        Returns:
            uint32, shape (length,), little-endian.

        Raises:
            ValueError: a wrong shape, which is an error in our own code.
        """
        entries = self._with_statistics(statistics)
        if self.num_weights:
            if update is None or update.shape != (self.num_weights,):
                raise ValueError(f"the update must have shape ({self.num_weights},)")
            weight = min(max(weight, 1), self.max_weight)
            self._scale_update(update, weight / self.max_weight * self.scale, entries[: self.num_weights])
            entries[self.num_weights] = weight
        return entries.view(np.uint32).astype("<u4", copy=False)

    def encode_gradient(self, *, gradient: Counts, weight: int, statistics: Counts) -> IntVector:
        """Return the vector of one site, whose *gradient* is on the grid already, with its noise.

        Args:
            gradient: int64, shape (num_weights,), ``scale`` points per unit; what is beyond the bound is cut, which
                is after the noise and so costs no privacy.
            weight: as in `encode`; the site's number of patients.
            statistics: as in `encode`.

        Returns:
            uint32, shape (length,), little-endian.

        Raises:
            ValueError: a wrong shape, which is an error in our own code.
        """
        if gradient.shape != (self.num_weights,):
            raise ValueError(f"the gradient must have shape ({self.num_weights},)")
        entries = self._with_statistics(statistics)
        entries[: self.num_weights] = np.clip(gradient, -self.largest, self.largest)
        entries[self.num_weights] = min(max(weight, 1), self.max_weight)
        return entries.view(np.uint32).astype("<u4", copy=False)

    def _with_statistics(self, statistics: Counts) -> NDArray[np.int32]:
        if statistics.shape != (self.num_statistics,):
            raise ValueError(
                f"statistics have shape {statistics.shape}, the layout says ({self.num_statistics},)"
            )
        entries = np.empty(self.length, dtype=np.int32)
        entries[self.length - self.num_statistics :] = np.clip(statistics, -self.largest, self.largest)
        return entries

    def _scale_update(self, update: NDArray[np.float64], factor: float, out: NDArray[np.int32]) -> None:
        """Write the rounded product of *update*, cut to the bound, and *factor*; block by block, for the cache.

        Rounding is monotone: what is cut after it is the same as what is cut before.
        """
        most = min(float(np.rint(self.update_bound * factor)), float(self.largest))
        scaled = np.empty(min(_BLOCK_ENTRIES, update.size))
        with np.errstate(over="ignore"):
            for start in range(0, update.size, _BLOCK_ENTRIES):
                block = update[start : start + _BLOCK_ENTRIES]
                here = scaled[: block.size]
                np.multiply(block, factor, out=here)
                finite = np.isfinite(block)
                if not finite.all():
                    here[~finite] = 0.0
                np.rint(here, out=here)
                np.clip(here, -most, most, out=here)
                out[start : start + block.size] = here

    def decode_sum(self, total: IntVector) -> tuple[NDArray[np.float64], int, Counts]:
        """Return (mean update, float64, shape (num_weights,); total weight; summed statistics, int64).

        Args:
            total: sum of at most num_sites_max encoded vectors modulo 2^32, uint32, shape (length,).

        Raises:
            ValueError: the sum has another length, or a total weight below 1: no honest vector is in it.
        """
        entries, weight, statistics = self._parts(total)
        if not self.num_weights:
            return np.zeros(0), 0, statistics
        return entries / (self.scale * (weight / self.max_weight)), weight, statistics

    def decode_gradient(self, total: IntVector) -> tuple[NDArray[np.float64], int, Counts]:
        """Return (summed gradient, float64, shape (num_weights,); number of patients; summed statistics, int64).

        Args:
            total: sum of at most num_sites_max vectors of `encode_gradient` modulo 2^32, uint32, shape (length,).

        Raises:
            ValueError: as `decode_sum`.
        """
        entries, weight, statistics = self._parts(total)
        return entries / self.scale, weight, statistics

    def _parts(self, total: IntVector) -> tuple[Counts, int, Counts]:
        if total.shape != (self.length,):
            raise ValueError(f"the sum has shape {total.shape}, the layout says ({self.length},)")
        signed = total.astype(np.uint32).view(np.int32).astype(np.int64)
        if not self.num_weights:
            return signed[:0], 0, signed
        weight = int(signed[self.num_weights])
        if weight < 1:
            raise ValueError(f"the total weight is {weight}; every site's weight is at least 1")
        return signed[: self.num_weights], weight, signed[self.num_weights + 1 :]
