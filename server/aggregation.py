"""FedAvg and FedAvgM: the next global model from the mean update, which is all that the server learns."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shared_models.manifest import FloatVector


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
