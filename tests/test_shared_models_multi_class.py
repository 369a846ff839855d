"""Multi-class classification: metrics from sums equal the reference library's, and one patient moves them little."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from score_figures import check_each
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    matthews_corrcoef,
    precision_score,
    recall_score,
    roc_auc_score,
)

from shared_models.tasks.histograms import LOSS_CUT, LOSS_UNITS, among_bins
from shared_models.tasks.multi_class import MultiClassClassification
from shared_models.tasks.patients import by_patient
from shared_models.tasks.task import MISSING

NAMES = ("nevus", "keratosis", "melanoma", "other")
TASK = MultiClassClassification(num_bins=100, names=NAMES, weights=(1.0,) * 4)


def patients(seed: int, num: int = 500, *, shares: tuple[float, ...] = (0.6, 0.2, 0.15, 0.05)):
    random = np.random.default_rng(seed)
    labels = random.choice(len(shares), size=num, p=shares)
    logits = random.normal(size=(num, len(shares))) + 1.5 * np.eye(len(shares))[labels]
    exps = np.exp(logits)
    return exps / exps.sum(axis=1, keepdims=True), labels.astype(np.int64)


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(0, 1000))
def test_metrics_from_sums_over_sites_equal_scikit_learn_on_pooled_patients(seed: int) -> None:
    scores, labels = patients(seed)
    statistics = np.sum([TASK.statistics(scores[part::3], labels[part::3]) for part in range(3)], axis=0)
    metrics = TASK.metrics(statistics)
    taken = scores.argmax(axis=1)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, taken), abs=1e-12)
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, taken), abs=1e-12)
    matrix = confusion_matrix(labels, taken, labels=range(4))
    assert [[metrics[f"confusion/{a}/{b}"] for b in NAMES] for a in NAMES] == matrix.tolist()
    recalls = recall_score(labels, taken, labels=range(4), average=None, zero_division=0)
    binned = np.minimum((among_bins(scores) * 100).astype(int), 99)
    for own, name in enumerate(NAMES):
        exact = roc_auc_score(labels == own, binned[:, own])
        assert metrics[f"auroc/{name}"] == pytest.approx(exact, abs=1e-12)
        assert metrics[f"sensitivity/{name}"] == pytest.approx(recalls[own])
        rest = labels != own
        assert metrics[f"specificity/{name}"] == pytest.approx((taken[rest] != own).mean())
        assert metrics[f"num_patients/{name}"] == (labels == own).sum()
    check_each(TASK, statistics, {name: (scores[:, own], labels == own) for own, name in enumerate(NAMES)})
    of_classes = {
        "f1": f1_score(labels, taken, labels=range(4), average=None, zero_division=np.nan),
        "ppv": precision_score(labels, taken, labels=range(4), average=None, zero_division=np.nan),
    }
    for metric, values in of_classes.items():
        for own, name in enumerate(NAMES):
            found = metrics[f"{metric}/{name}"]
            assert (found is None and np.isnan(values[own])) or found == pytest.approx(values[own])
    assert metrics["mcc"] == pytest.approx(matthews_corrcoef(labels, taken))
    cut = np.maximum(scores[np.arange(len(labels)), labels], np.exp(-LOSS_CUT))
    assert metrics["loss"] == pytest.approx(-np.log(cut).mean(), abs=LOSS_CUT / LOSS_UNITS)
    assert metrics["loss"] <= log_loss(labels, scores, labels=range(4)) + LOSS_CUT / LOSS_UNITS
    assert metrics["num_patients"] == len(labels)
    assert metrics["num_classes"] == 4


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(0, 100))
def test_the_mean_auroc_is_off_by_at_most_half_the_mean_share_of_tied_pairs(seed: int) -> None:
    scores, labels = patients(seed)
    statistics = TASK.statistics(scores, labels)
    pairs = statistics[: 2 * 100 * 4].reshape(4, 2, 100)
    tied = [(rest * own).sum() / (rest.sum() * own.sum()) for rest, own in pairs]
    exact = roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert TASK.metrics(statistics)["auroc"] == pytest.approx(exact, abs=np.mean(tied) / 2 + 1e-12)


anything = st.floats(allow_nan=True, allow_infinity=True)


@settings(deadline=None)
@given(st.lists(anything, min_size=4, max_size=4), st.integers(MISSING, 3), st.integers(0, 50))
def test_one_patient_changes_the_statistics_by_at_most_the_sensitivity(
    scores: list[float], label: int, seed: int
) -> None:
    others, labels = patients(seed, 20)
    without = TASK.statistics(others, labels)
    both = TASK.statistics(np.vstack([others, [scores]]), np.append(labels, label))
    change = (both - without) / TASK.noise_units
    assert np.linalg.norm(change) <= TASK.l2_sensitivity + 1e-12
    assert (change >= 0).all()


def test_the_sensitivity_is_reached_and_no_looser_than_it_has_to_be() -> None:
    one = TASK.statistics(np.array([[0.0, 0.0, 0.0, 1.0]]), np.array([0])) / TASK.noise_units
    assert np.linalg.norm(one) == pytest.approx(TASK.l2_sensitivity)


def test_a_patient_whose_scores_are_not_finite_counts_as_undecided() -> None:
    broken = np.array([[np.nan, 0.2, 0.3, 0.5], [np.inf, 0.0, 0.0, 0.0]])
    even = np.full((2, 4), 0.25)
    labels = np.array([1, 2])
    assert (TASK.statistics(broken, labels) == TASK.statistics(even, labels)).all()


def test_a_class_without_patients_has_no_metric_and_is_left_out_of_the_means() -> None:
    scores, labels = patients(3, shares=(0.6, 0.4, 0.0, 0.0))
    metrics = TASK.metrics(TASK.statistics(scores, labels))
    assert metrics["auroc/melanoma"] is None
    assert metrics["sensitivity/melanoma"] is None
    assert metrics["num_classes"] == 2
    known = [metrics["auroc/nevus"], metrics["auroc/keratosis"]]
    assert metrics["auroc"] == pytest.approx(np.mean(known))
    taken = scores.argmax(axis=1)
    recalls = [(taken[labels == own] == own).mean() for own in (0, 1)]
    assert metrics["balanced_accuracy"] == pytest.approx(np.mean(recalls))


def test_no_patient_at_all_gives_no_metric() -> None:
    metrics = TASK.metrics(TASK.statistics(np.zeros((0, 4)), np.zeros(0, dtype=np.int64)))
    assert metrics["auroc"] is None
    assert metrics["accuracy"] is None
    assert metrics["num_patients"] == metrics["num_classes"] == 0.0


@pytest.mark.slow
def test_auroc_from_noised_counts_is_not_pulled_towards_one_half() -> None:
    task = MultiClassClassification(num_bins=10, names=NAMES[:3], weights=(1.0,) * 3)
    scores, labels = patients(1, 900, shares=(0.4, 0.3, 0.3))
    exact = task.statistics(scores, labels)
    random = np.random.default_rng(2)
    values = [
        task.metrics(exact + np.rint(random.normal(0, 5, exact.shape)).astype(np.int64))["auroc"]
        for _ in range(400)
    ]
    wanted = task.metrics(exact)["auroc"]
    assert wanted is not None
    assert all(value is not None and 0 <= value <= 1 for value in values)
    assert abs(np.mean(values) - wanted) < 5 * np.std(values) / np.sqrt(len(values))


def test_the_loss_equals_torch_weighs_classes_and_leaves_out_what_is_not_known() -> None:
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    labels = torch.tensor([0.0, 3.0, 1.0, MISSING])
    plain = torch.nn.functional.cross_entropy(logits, labels.clamp_min(0).long(), reduction="none")
    weighted = MultiClassClassification(num_bins=10, names=NAMES, weights=(1.0, 2.0, 1.0, 3.0))
    losses = weighted.loss(logits, labels)
    assert torch.allclose(losses, plain * torch.tensor([1.0, 3.0, 2.0, 0.0]))
    losses.sum().backward()
    assert logits.grad is not None
    assert not logits.grad[3].any()


def test_the_loss_of_an_image_depends_on_no_other_image() -> None:
    logits, labels = torch.randn(5, 4), torch.tensor([0.0, 1.0, 2.0, 3.0, MISSING])
    alone = torch.cat([TASK.loss(logits[one : one + 1], labels[one : one + 1]) for one in range(5)])
    assert torch.equal(TASK.loss(logits, labels), alone)


def test_a_patient_of_several_classes_is_of_the_last_of_them_and_has_the_mean_score_of_all_images() -> None:
    scores = np.array(
        [[0.7, 0.1, 0.1, 0.1], [0.2, 0.2, 0.5, 0.1], [0.0, 0.0, 0.9, 0.1], [0.1, 0.6, 0.2, 0.1]]
    )
    found, labels = by_patient(scores, np.array([0, 2, 2, 1]), np.array([0, 3, 4]))
    assert labels.tolist() == [2, 1]
    assert found == pytest.approx(np.array([[0.3, 0.1, 0.5, 0.1], [0.1, 0.6, 0.2, 0.1]]))


def test_scores_of_a_rare_class_keep_apart_in_few_bins() -> None:
    """A calibrated model of a class that one patient in a hundred has; 20 bins."""
    random = np.random.default_rng(5)
    labels = (random.random(20_000) < 0.01).astype(np.int64)
    score = 1 / (1 + np.exp(-(random.normal(size=labels.size) * 1.2 + 1.5 * labels - 5.2)))
    scores = np.stack([1 - score, score], axis=1)
    task = MultiClassClassification(num_bins=20, names=("usual", "rare"), weights=(1.0, 1.0))
    exact = roc_auc_score(labels, score)
    assert task.metrics(task.statistics(scores, labels))["auroc/rare"] == pytest.approx(exact, abs=0.02)
    in_even_bins = roc_auc_score(labels, (score * 20).astype(int))
    assert abs(in_even_bins - exact) > 0.1


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_where_scores_lie_among_the_bins_keeps_their_order(scores: list[float]) -> None:
    low, high = among_bins(np.sort(np.array(scores)))
    assert 0 <= low <= high <= 1
    assert among_bins(np.array([0.0, 0.5, 1.0])).tolist() == [0.0, 0.5, 1.0]
