"""Figures that rest on scores, of each class or finding, against scikit-learn and definitions on pooled patients."""

from collections.abc import Mapping

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss

from shared_models.tasks.curves import brier_error
from shared_models.tasks.task import Counts, Doubles, Task


def check_each(task: Task, statistics: Counts, patients: Mapping[str, tuple[Doubles, Doubles]]) -> None:
    """Average precision, Brier score and calibration error of each part, and their means.

    Args:
        task: of several classes or findings.
        statistics: summed over sites.
        patients: by class or finding, the scores and whether they are positive.
    """
    pairs, metrics = task.pairs(statistics), task.metrics(statistics)
    found: dict[str, list[float]] = {}
    for name, (scores, positive) in patients.items():
        labels = np.zeros(len(scores), dtype=np.int64) + positive
        pair = pairs[name]
        binned = np.digitize(scores, pair.edges[1:-1])
        half = float(np.diff(pair.edges).max()) / 2
        edges = np.unique(np.abs(pair.edges - np.linspace(0, 1, 11)[:, None]).argmin(1))
        group = np.digitize(scores, pair.edges[edges[1:-1]])
        missed = sum(abs((scores - labels)[group == one].sum()) for one in range(len(edges) - 1)) / len(
            labels
        )
        own = {
            "average_precision": (average_precision_score(labels, binned), 1e-12),
            "brier": (brier_score_loss(labels, scores), brier_error(pair) + 1e-12),
            "calibration_error": (missed, half),
        }
        for metric, (value, error) in own.items():
            assert metrics[f"{metric}/{name}"] == pytest.approx(value, abs=error), (metric, name)
            found.setdefault(metric, []).append(metrics[f"{metric}/{name}"] or 0.0)
    for metric, values in found.items():
        assert metrics[metric] == pytest.approx(np.mean(values), abs=1e-12)
