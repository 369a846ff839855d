"""AUROC of pairs of the same site."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from shared_models.tasks.curves import Pair
from shared_models.tasks.multi_class import MultiClassClassification
from simulations.within_sites import auroc_within

EDGES = np.linspace(0, 1, 11)


def binary_pair(*, ill: list[float], well: list[float]) -> Pair:
    negative, positive = (np.histogram(kind, EDGES)[0].astype(np.float64) for kind in (well, ill))
    return Pair(negative=negative, positive=positive, edges=EDGES)


def test_a_model_that_only_recognises_the_site_is_no_better_than_chance_within_sites() -> None:
    """Nearly all of the first site are ill and have a high score, nearly none of the second."""
    first, second = binary_pair(ill=[0.9] * 90, well=[0.9] * 10), binary_pair(ill=[0.1] * 10, well=[0.1] * 90)
    assert auroc_within([{"positive": first}, {"positive": second}]) == pytest.approx(0.5)


def test_each_site_counts_by_its_pairs_and_one_without_both_kinds_not_at_all() -> None:
    random = np.random.default_rng(3)
    sites, right, pairs = [], 0.0, 0
    for ill, well in ((30, 20), (5, 80), (0, 40)):
        scores = [np.rint(random.random(num) * 9.99 - 0.5) / 10 + 0.05 for num in (ill, well)]
        sites.append({"positive": binary_pair(ill=list(scores[0]), well=list(scores[1]))})
        if ill:
            right += ill * well * roc_auc_score([1] * ill + [0] * well, np.concatenate(scores))
            pairs += ill * well
    assert auroc_within(sites) == pytest.approx(right / pairs)
    assert auroc_within(sites[2:]) is None
    assert auroc_within([]) is None


def test_of_several_classes_it_is_the_mean_over_those_that_some_site_has() -> None:
    task = MultiClassClassification(num_bins=2000, names=("a", "b", "c"), weights=(1.0,) * 3)
    random = np.random.default_rng(5)
    labels = random.integers(0, 2, 60)  # nobody is of class c
    logits = random.normal(size=(60, 3)) + 1.5 * np.eye(3)[labels]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = auroc_within([task.pairs(task.statistics(scores, labels))])
    known = [roc_auc_score(labels == one, scores[:, one]) for one in (0, 1)]
    assert found == pytest.approx(np.mean(known), abs=0.005)
