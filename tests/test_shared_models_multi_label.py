"""Multi-label classification: metrics from sums equal the reference library's, and what is not known has no part."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from score_figures import check_each
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    matthews_corrcoef,
    precision_score,
    recall_score,
    roc_auc_score,
)

from shared_models.tasks.histograms import LOSS_CUT, LOSS_UNITS, among_bins
from shared_models.tasks.multi_label import MultiLabelClassification
from shared_models.tasks.patients import by_patient
from shared_models.tasks.task import MISSING

NAMES = ("effusion", "nodule", "fracture")
TASK = MultiLabelClassification(num_bins=100, names=NAMES, positive_weights=(1.0,) * 3)


def patients(seed: int, num: int = 500, *, missing: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = (random.random((num, 3)) < [0.5, 0.3, 0.1]).astype(np.int64)
    scores = 1 / (1 + np.exp(-(random.normal(size=(num, 3)) + 1.5 * labels - 0.7)))
    labels[random.random((num, 3)) < missing] = MISSING
    return scores, labels


@pytest.mark.thorough
@settings(deadline=None)
@given(st.integers(0, 1000))
def test_metrics_from_sums_over_sites_equal_scikit_learn_on_pooled_patients(seed: int) -> None:
    scores, labels = patients(seed)
    statistics = np.sum([TASK.statistics(scores[part::3], labels[part::3]) for part in range(3)], axis=0)
    metrics = TASK.metrics(statistics)
    binned = np.minimum((among_bins(scores) * 100).astype(int), 99)
    wanted: dict[str, list[float]] = {}
    for one, name in enumerate(NAMES):
        known = labels[:, one] >= 0
        true, score = labels[known, one], scores[known, one]
        own = {
            "auroc": roc_auc_score(true, binned[known, one]),
            "accuracy": accuracy_score(true, score >= 0.5),
            "balanced_accuracy": balanced_accuracy_score(true, score >= 0.5),
            "sensitivity": recall_score(true, score >= 0.5),
            "specificity": recall_score(1 - true, score < 0.5),
            "ppv": precision_score(true, score >= 0.5),
            "npv": precision_score(1 - true, score < 0.5),
            "f1": f1_score(true, score >= 0.5),
            "mcc": matthews_corrcoef(true, score >= 0.5),
        }
        for metric, value in own.items():
            assert metrics[f"{metric}/{name}"] == pytest.approx(value, abs=1e-12)
            wanted.setdefault(metric, []).append(value)
        assert metrics[f"num_positive/{name}"] == (true == 1).sum()
        assert metrics[f"num_negative/{name}"] == (true == 0).sum()
    check_each(
        TASK,
        statistics,
        {
            name: (scores[labels[:, one] >= 0, one], labels[labels[:, one] >= 0, one] == 1)
            for one, name in enumerate(NAMES)
        },
    )
    for metric, values in wanted.items():
        assert metrics[metric] == pytest.approx(np.mean(values), abs=1e-12)
    some = (labels >= 0).any(axis=1)
    likelihood = np.maximum(np.where(labels == 1, scores, 1 - scores), np.exp(-LOSS_CUT))
    losses = np.ma.masked_array(-np.log(likelihood), labels < 0)[some].mean(axis=1)
    assert metrics["loss"] == pytest.approx(float(losses.mean()), abs=LOSS_CUT / LOSS_UNITS)
    assert metrics["num_patients"] == some.sum()
    assert metrics["num_findings"] == 3


anything = st.floats(allow_nan=True, allow_infinity=True)


@settings(deadline=None)
@given(
    st.lists(anything, min_size=3, max_size=3),
    st.lists(st.integers(MISSING, 1), min_size=3, max_size=3),
    st.integers(0, 50),
)
def test_one_patient_changes_the_statistics_by_at_most_the_sensitivity(
    scores: list[float], labels: list[int], seed: int
) -> None:
    others, theirs = patients(seed, 20)
    without = TASK.statistics(others, theirs)
    both = TASK.statistics(np.vstack([others, [scores]]), np.vstack([theirs, [labels]]))
    change = (both - without) / TASK.noise_units
    assert np.linalg.norm(change) <= TASK.l2_sensitivity + 1e-12
    assert (change >= 0).all()
    assert change.any() == (max(labels) >= 0)


def test_the_sensitivity_is_reached_and_no_looser_than_it_has_to_be() -> None:
    one = TASK.statistics(np.zeros((1, 3)), np.ones((1, 3), dtype=np.int64)) / TASK.noise_units
    assert np.linalg.norm(one) == pytest.approx(TASK.l2_sensitivity)


def test_a_score_that_is_not_finite_counts_as_one_half() -> None:
    labels = np.array([[0, 1, MISSING]])
    broken = TASK.statistics(np.array([[np.nan, np.inf, np.nan]]), labels)
    assert (broken == TASK.statistics(np.full((1, 3), 0.5), labels)).all()


def test_a_finding_that_nobody_has_gives_no_metric_and_is_left_out_of_the_means() -> None:
    scores, labels = patients(4, missing=0.0)
    labels[:, 2] = 0
    metrics = TASK.metrics(TASK.statistics(scores, labels))
    assert metrics["auroc/fracture"] is None
    assert metrics["sensitivity/fracture"] is None
    assert metrics["specificity/fracture"] is not None
    assert metrics["num_findings"] == 2
    assert metrics["auroc"] == pytest.approx(np.mean([metrics["auroc/effusion"], metrics["auroc/nodule"]]))


def test_no_patient_at_all_gives_no_metric() -> None:
    metrics = TASK.metrics(TASK.statistics(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64)))
    assert metrics["auroc"] is None
    assert metrics["loss"] is None
    assert metrics["num_patients"] == 0.0


def test_the_loss_equals_torch_weighs_positives_and_leaves_out_what_is_not_known() -> None:
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    labels = torch.tensor([[0.0, 1.0, 1.0], [MISSING, 0.0, 1.0], [MISSING, MISSING, MISSING]])
    plain = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, labels.clamp_min(0), reduction="none"
    )
    weights = torch.tensor([[1.0, 2.0, 5.0], [0.0, 1.0, 5.0], [0.0, 0.0, 0.0]])
    weighted = MultiLabelClassification(num_bins=10, names=NAMES, positive_weights=(3.0, 2.0, 5.0))
    losses = weighted.loss(logits, labels)
    assert torch.allclose(losses, (plain * weights).sum(1) / 3)
    losses.sum().backward()
    assert logits.grad is not None
    assert not logits.grad[labels < 0].any()
    assert logits.grad[labels >= 0].all()


def test_the_loss_of_an_image_depends_on_no_other_image() -> None:
    logits, labels = torch.randn(4, 3), torch.randint(MISSING, 2, (4, 3)).float()
    alone = torch.cat([TASK.loss(logits[one : one + 1], labels[one : one + 1]) for one in range(4)])
    assert torch.equal(TASK.loss(logits, labels), alone)


def test_a_patient_has_a_finding_where_any_image_has_it_and_misses_it_where_none_tells() -> None:
    scores = np.array([[0.8, 0.3, 0.5], [0.4, 0.1, 0.6], [0.6, 0.2, 0.7]])
    labels = np.array([[1, 0, MISSING], [0, MISSING, MISSING], [1, 0, MISSING]])
    found, of_patient = by_patient(scores, labels, np.array([0, 3]))
    assert of_patient.tolist() == [[1, 0, MISSING]]
    assert found[0, :2] == pytest.approx([0.6, 0.2])
    assert np.isfinite(found).all()
