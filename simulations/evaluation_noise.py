"""What noise on evaluation statistics does to AUROC, by simulation with the study's own bins."""

from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from privacy.noise import noised_counts
from privacy.randomness import CryptographicGenerator
from shared_models.tasks import BinaryClassification

ASSUMED_AUROC = 0.9
"""Of the model whose evaluation is simulated; half of its patients are positive."""
_DRAWS = 1000


def auroc_deviation(task: BinaryClassification, *, bin_deviation: float, num_patients: int) -> float | None:
    """Return by how much noise of *bin_deviation* on each bin moves AUROC, as a standard deviation; simulated.

    The model is made up: calibrated scores, log-odds normal in both classes with the same variance, AUROC
    `ASSUMED_AUROC`, half of the patients positive, no chance in who they are. None where the noise leaves AUROC
    undefined in more than one of a hundred draws.

    Source: Green and Swets (1966), "Signal detection theory and psychophysics", for two normal classes, whose AUROC is
    Φ(distance / √2); the bins and AUROC itself are the task's own.
    """
    exact = task.statistics(*_made_up(num_patients))
    # A fixed key: the same plan twice prints the same figure, and nothing here protects anybody.
    generator = CryptographicGenerator(bytes(32))
    aurocs = []
    for _ in range(_DRAWS):
        noised = noised_counts(
            exact, units=task.noise_units, standard_deviation=bin_deviation, generator=generator
        )
        found = task.metrics(noised)["auroc"]
        if found is not None:
            aurocs.append(found)
    return float(np.std(aurocs)) if len(aurocs) >= 0.99 * _DRAWS else None


def _made_up(num_patients: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores, float64 in [0, 1], and labels, int64, of *num_patients* made-up patients: quantiles of both classes."""
    apart = sqrt(2.0) * NormalDist().inv_cdf(ASSUMED_AUROC)
    labels = (np.arange(num_patients) % 2).astype(np.int64)
    scores = np.empty(num_patients)
    for label, mean in ((0, -apart / 2), (1, apart / 2)):
        chosen = np.flatnonzero(labels == label)
        normal = NormalDist(mean, 1.0)
        logits = [apart * normal.inv_cdf((rank + 0.5) / len(chosen)) for rank in range(len(chosen))]
        scores[chosen] = 1.0 / (1.0 + np.exp(-np.array(logits)))
    return scores, labels
