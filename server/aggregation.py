"""FedAvg and FedAvgM from sums: the server adds integer vectors as they arrive and never keeps one."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shared_models.manifest import FloatVector
from shared_models.vector import Counts, IntVector, VectorLayout, from_bytes


class RunningSum:
    """The sum of vectors modulo 2^32: one vector of memory, whatever the number of sites.

    Args:
        layout: of the vectors; more than ``layout.num_sites_max`` are refused.
    """

    def __init__(self, layout: VectorLayout) -> None:
        self._layout = layout
        self._total: IntVector = np.zeros(layout.length, dtype=np.uint32)
        self.num_vectors = 0

    def add(self, payload: bytes) -> None:
        """Fold one site's vector into the sum.

        Raises:
            ValueError: the payload has another length, or one vector too many; the sum stays as it was.
        """
        if self.num_vectors >= self._layout.num_sites_max:
            raise ValueError(f"the study allows at most {self._layout.num_sites_max} sites in a sum")
        vector = from_bytes(payload, length=self._layout.length)
        np.add(self._total, vector, out=self._total)
        self.num_vectors += 1

    def mean(self) -> tuple[NDArray[np.float64], Counts]:
        """Return the weighted mean of the updates added, float64, and the summed statistics, int64."""
        mean, _, statistics = self._layout.decode_sum(self._total)
        return mean, statistics

    def statistics(self) -> Counts:
        """Return the sum of vectors that hold statistics only, int64."""
        _, _, statistics = self._layout.decode_sum(self._total)
        return statistics


@dataclass(frozen=True, slots=True)
class GlobalModel:
    """The global weights and the velocity that server momentum carries over, float32, shape (num_weights,)."""

    weights: FloatVector
    velocity: FloatVector

    @classmethod
    def begin(cls, weights: FloatVector) -> Self:
        """The model before the first round."""
        return cls(weights, np.zeros_like(weights))

    def moved(self, mean_update: NDArray[np.float64], *, momentum: float) -> "GlobalModel":
        """Return the next global model: v ← momentum · v + mean update, w ← w + v.

        Source: McMahan et al. (2017), algorithm 1, for momentum 0 (FedAvg); Hsu, Qi and Brown (2019), section 4.2,
        else (FedAvgM).
        """
        velocity = momentum * self.velocity.astype(np.float64) + mean_update
        weights = self.weights.astype(np.float64) + velocity
        return GlobalModel(weights.astype(np.float32), velocity.astype(np.float32))
