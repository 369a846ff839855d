"""FedAvg from sums: the server adds integer vectors as they arrive and never keeps one."""

import numpy as np

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

    def mean_update(self, global_weights: FloatVector) -> tuple[FloatVector, Counts]:
        """Return the next global weights (weighted mean of the updates added) and the summed statistics.

        Source: McMahan et al. (2017), algorithm 1.
        """
        mean, _, statistics = self._layout.decode_sum(self._total)
        return (global_weights.astype(np.float64) + mean).astype(np.float32), statistics

    def statistics(self) -> Counts:
        """Return the sum of vectors that hold statistics only, int64."""
        _, _, statistics = self._layout.decode_sum(self._total)
        return statistics
