"""What noise on evaluation statistics does to AUROC and Dice, by simulation with the study's own bins."""

from math import log, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from privacy.noise import noised_counts
from privacy.randomness import CryptographicGenerator
from shared_models.tasks.binary import BinaryClassification
from shared_models.tasks.overlap import Overlaps, cells_of
from shared_models.tasks.task import Task

ASSUMED_AUROC = 0.9
"""Of the model whose evaluation is simulated; all classes have as many patients, and each finding half of them."""
ASSUMED_DICE = 0.85
"""Mean over patients of the model whose marks are evaluated; every patient has every structure."""
_DICE_SPREAD = 0.1
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
    found = [
        one.metrics(
            noised_counts(exact, units=one.noise_units, standard_deviation=bin_deviation, generator=generator)
        )["auroc"]
        for _ in range(_DRAWS)
    ]
    return _deviation_of_mean(found, task.num_histograms)


def dice_deviation(task: Task, *, bin_deviation: float, num_patients: int) -> float | None:
    """Return by how much noise of *bin_deviation* on each cell moves the mean Dice, as a standard deviation; simulated.

    The model is made up: the Dice of its patients is normal around `ASSUMED_DICE`, cut to (0, 1], no chance in who they
    are. None where the noise leaves it undefined in more than one of a hundred draws.
    """
    normal = NormalDist(ASSUMED_DICE, _DICE_SPREAD)
    dices = [min(max(normal.inv_cdf((rank + 0.5) / num_patients), 0.01), 1.0) for rank in range(num_patients)]
    mask = np.full(num_patients, 1e6)
    exact = cells_of(np.stack([dices * mask, mask, mask], axis=1), num_bins=task.num_bins)
    generator = CryptographicGenerator(bytes(32))  # as above
    units = np.ones(len(exact), dtype=np.int64)
    found = [
        Overlaps(
            noised_counts(exact, units=units, standard_deviation=bin_deviation, generator=generator).astype(
                np.float64
            )
        ).metrics(cut=True)["dice"]
        for _ in range(_DRAWS)
    ]
    return _deviation_of_mean(found, task.num_histograms)


def _deviation_of_mean(found: list[float | None], number: int) -> float | None:
    """Of the mean over so many that have noise of their own; None where one is often not known."""
    known = [value for value in found if value is not None]
    return float(np.std(known)) / sqrt(number) if len(known) >= 0.99 * _DRAWS else None


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
