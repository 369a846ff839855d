"""What noise on evaluation statistics does to AUROC, by simulation with the study's own bins."""

from math import log, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from privacy.noise import noised_counts
from privacy.randomness import CryptographicGenerator
from shared_models.tasks.binary import BinaryClassification
from shared_models.tasks.task import Task

ASSUMED_AUROC = 0.9
"""Of the model whose evaluation is simulated; all classes have as many patients, and each finding half of them."""
_DRAWS = 1000


def auroc_deviation(task: Task, *, bin_deviation: float, num_patients: int) -> float | None:
    """Return by how much noise of *bin_deviation* on each bin moves AUROC, as a standard deviation; simulated.

    The model is made up: calibrated scores, log-odds normal in both classes with the same variance, AUROC
    `ASSUMED_AUROC`, half of the patients positive, no chance in who they are. None where the noise leaves AUROC
    undefined in more than one of a hundred draws.

    Of several classes one is simulated, against all others, with its even share of the patients; of several findings,
    one. The mean over all of them has the deviation of one over the root of their number, because each has noise of its
    own.

    Source: Green and Swets (1966), "Signal detection theory and psychophysics", for two normal classes, whose AUROC is
    Φ(distance / √2); the bins and AUROC itself are the task's own.
    """
    one = BinaryClassification(num_bins=task.num_bins, positive_weight=1.0)
    scores, labels = _made_up(num_patients, share=task.even_share)
    exact = one.statistics(task.among_bins(scores), labels)
    # A fixed key: the same plan twice prints the same figure, and nothing here protects anybody.
    generator = CryptographicGenerator(bytes(32))
    aurocs = []
    for _ in range(_DRAWS):
        noised = noised_counts(
            exact, units=one.noise_units, standard_deviation=bin_deviation, generator=generator
        )
        found = one.metrics(noised)["auroc"]
        if found is not None:
            aurocs.append(found)
    if len(aurocs) < 0.99 * _DRAWS:
        return None
    return float(np.std(aurocs)) / sqrt(task.num_histograms)


def _made_up(num_patients: int, *, share: float = 0.5) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores, float64 in [0, 1], and labels, int64, of made-up patients, *share* of them positive: quantiles."""
    apart = sqrt(2.0) * NormalDist().inv_cdf(ASSUMED_AUROC)
    every = round(1.0 / share)
    labels = (np.arange(num_patients) % every == every - 1).astype(np.int64)
    scores = np.empty(num_patients)
    for label, mean in ((0, -apart / 2), (1, apart / 2)):
        chosen = np.flatnonzero(labels == label)
        normal = NormalDist(mean, 1.0)
        logits = [
            apart * normal.inv_cdf((rank + 0.5) / len(chosen)) + log(share / (1.0 - share))
            for rank in range(len(chosen))
        ]
        scores[chosen] = 1.0 / (1.0 + np.exp(-np.array(logits)))
    return scores, labels
