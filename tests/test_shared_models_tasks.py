"""Metrics from sums equal the reference library's on the same patients."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, roc_auc_score
from studies import make_study

from shared_models.tasks.binary import BinaryClassification
from shared_models.tasks.histograms import LOSS_CUT, LOSS_UNITS, among_bins
from shared_models.tasks.registry import task_of

TASK = BinaryClassification(num_bins=100, positive_weight=1.0)


def patients(seed: int, num: int = 500) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = (random.random(num) < 0.3).astype(np.int64)
    scores = 1 / (1 + np.exp(-(random.normal(size=num) + 1.5 * labels - 0.7)))
    return scores, labels


@pytest.mark.slow
@given(st.integers(0, 1000))
def test_metrics_from_sums_over_sites_equal_scikit_learn_on_pooled_patients(seed: int) -> None:
    scores, labels = patients(seed)
    parts = [TASK.statistics(scores[part::3], labels[part::3]) for part in range(3)]
    metrics = TASK.metrics(np.sum(parts, axis=0))
    binned = np.minimum((scores * 100).astype(int), 99)
    assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, binned), abs=1e-12)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, scores >= 0.5), abs=1e-12)
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, scores >= 0.5))
    cut = np.maximum(np.where(labels == 1, scores, 1 - scores), np.exp(-LOSS_CUT))
    assert metrics["loss"] == pytest.approx(-np.log(cut).mean(), abs=LOSS_CUT / LOSS_UNITS)
    assert metrics["loss"] <= log_loss(labels, scores) + LOSS_CUT / LOSS_UNITS
    assert metrics["num_patients"] == len(labels)


@pytest.mark.parametrize("sure", [0.3, 1.0, 8.0])
def test_without_noise_bins_are_narrow_where_scores_of_a_sure_model_lie(sure: float) -> None:
    scores, labels = patients(4)
    scores = 1.0 / (1.0 + ((1.0 - scores) / scores) ** sure)
    fine = TASK.finely_binned()
    assert fine.metrics(fine.statistics(scores, labels))["auroc"] == pytest.approx(
        roc_auc_score(labels, np.minimum((among_bins(scores) * 2000).astype(int), 1999)), abs=1e-12
    )
    exact, few = roc_auc_score(labels, scores), replace(TASK, even_bins=False)
    by_odds = few.metrics(few.statistics(scores, labels))["auroc"]
    by_width = TASK.metrics(TASK.statistics(scores, labels))["auroc"]
    assert by_odds == pytest.approx(exact, abs=0.01)
    if sure > 1.0:
        assert abs(by_odds - exact) < abs(by_width - exact) / 10
    assert few.decisions(few.statistics(scores, labels)) == TASK.decisions(TASK.statistics(scores, labels))


def test_a_study_has_even_bins_only_where_noise_fills_them() -> None:
    assert not task_of(make_study()).even_bins
    assert task_of(make_study(private=True)).even_bins


@pytest.mark.slow
@given(st.integers(0, 200))
def test_the_histogram_is_off_by_at_most_half_the_share_of_tied_pairs(seed: int) -> None:
    scores, labels = patients(seed)
    statistics = TASK.statistics(scores, labels)
    negative, positive = statistics[:100], statistics[100:200]
    tied = (negative * positive).sum() / (negative.sum() * positive.sum())
    exact = roc_auc_score(labels, scores)
    auroc = TASK.metrics(statistics)["auroc"]
    assert auroc is not None
    assert abs(auroc - exact) <= tied / 2 + 1e-12


@given(st.floats(0, 1), st.integers(0, 1), st.integers(0, 100))
def test_one_patient_changes_the_statistics_by_at_most_the_sensitivity(
    score: float, label: int, seed: int
) -> None:
    scores, labels = patients(seed, 20)
    without = TASK.statistics(scores, labels)
    with_patient = TASK.statistics(np.append(scores, score), np.append(labels, label))
    change = (with_patient - without) / TASK.noise_units
    assert np.linalg.norm(change) <= TASK.l2_sensitivity + 1e-12


def test_auroc_from_noised_counts_is_not_pulled_towards_one_half() -> None:
    scores, labels = patients(1, 600)
    task = BinaryClassification(num_bins=10, positive_weight=1.0)
    exact = task.statistics(scores, labels)
    random = np.random.default_rng(2)
    noised = [exact + np.rint(random.normal(0, 5, exact.shape)).astype(np.int64) for _ in range(400)]
    values = [task.metrics(statistics)["auroc"] for statistics in noised]
    wanted = task.metrics(exact)["auroc"]
    assert wanted is not None
    assert all(value is not None and 0 <= value <= 1 for value in values)
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - wanted) < 5 * error


def test_counts_below_zero_give_no_metric_out_of_range() -> None:
    statistics = np.full(TASK.num_statistics, -1, dtype=np.int64)
    metrics = TASK.metrics(statistics)
    assert metrics["auroc"] is None
    assert metrics["num_patients"] == 0.0


def test_a_score_that_is_not_finite_counts_as_one_half() -> None:
    statistics = TASK.statistics(np.array([np.nan, np.inf]), np.array([0, 1]))
    assert statistics[50] == 1
    assert statistics[150] == 1


def test_an_empty_class_gives_no_metric_instead_of_a_wrong_one() -> None:
    metrics = TASK.metrics(TASK.statistics(np.array([0.2, 0.7]), np.array([0, 0])))
    assert metrics["auroc"] is None
    assert metrics["sensitivity"] is None
    assert metrics["accuracy"] == 0.5


def test_the_loss_equals_torch_and_weighs_positive_images() -> None:
    logits, labels = torch.tensor([[0.3], [-1.2]]), torch.tensor([1.0, 0.0])
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], labels, reduction="none")
    assert torch.allclose(TASK.loss(logits, labels), plain)
    weighted = BinaryClassification(num_bins=10, positive_weight=3.0).loss(logits, labels)
    assert torch.allclose(weighted, plain * torch.tensor([3.0, 1.0]))
