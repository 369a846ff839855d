"""Curves and figures of a pair of histograms, against scikit-learn on the patients themselves."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    f1_score,
    matthews_corrcoef,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from shared_models.tasks.binary import BinaryClassification
from shared_models.tasks.curves import (
    Pair,
    auroc_error,
    average_precision,
    average_precision_bounds,
    brier,
    brier_error,
    calibration_error,
    calibration_error_by_chance,
    curve,
    reliability,
)
from shared_models.tasks.fourfold import Fourfold, correlation
from shared_models.tasks.histograms import among_bins, scores_between_bins
from shared_models.tasks.multi_class import MultiClassClassification

many = settings(deadline=None, max_examples=50)
BINS = st.sampled_from([2, 10, 20, 100])


def patients(seed: int, num: int = 300, *, share: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = (random.random(num) < share).astype(np.int64)
    labels[:2] = 0, 1
    scores = 1 / (1 + np.exp(-(random.normal(size=num) + 1.5 * labels - 0.7)))
    return scores, labels


def pair_of(scores: np.ndarray, labels: np.ndarray, num_bins: int, *, even: bool = True) -> Pair:
    """As the server has it: summed over three sites."""
    task = BinaryClassification(num_bins=num_bins, positive_weight=1.0, even_bins=even)
    parts = [task.statistics(scores[part::3], labels[part::3]) for part in range(3)]
    return task.pairs(np.sum(parts, axis=0))["positive"]


@pytest.mark.slow
@many
@given(st.integers(0, 1000), BINS, st.floats(0.0, 1.0))
def test_what_a_threshold_at_an_edge_does_equals_scikit_learn(seed: int, num_bins: int, share: float) -> None:
    scores, labels = patients(seed)
    pair = pair_of(scores, labels, num_bins)
    edge = pair.nearest_edge(share)
    assert abs(pair.edges[edge] - share) <= 0.5 / num_bins + 1e-12
    table, taken = pair.at(edge), scores >= pair.edges[edge]
    if edge == num_bins:
        taken[:] = False
    assert float(table.sensitivity) == pytest.approx(recall_score(labels, taken))
    assert float(table.specificity) == pytest.approx(recall_score(1 - labels, ~taken))
    assert float(table.f1) == pytest.approx(f1_score(labels, taken))
    assert float(table.mcc) == pytest.approx(matthews_corrcoef(labels, taken))
    if taken.any():
        assert float(table.ppv) == pytest.approx(precision_score(labels, taken))
    if not taken.all():
        assert float(table.npv) == pytest.approx(precision_score(1 - labels, ~taken))


@many
@given(st.integers(0, 1000), BINS)
def test_the_curve_is_that_of_the_binned_scores_and_each_of_its_points_is_a_threshold(
    seed: int, num_bins: int
) -> None:
    scores, labels = patients(seed)
    pair = pair_of(scores, labels, num_bins)
    tables = curve(pair)
    binned = np.minimum((scores * num_bins).astype(int), num_bins - 1)
    wrong, right, _ = roc_curve(labels, binned, drop_intermediate=False)
    ours = {
        (round(1 - x, 9), round(y, 9)) for x, y in zip(tables.specificity, tables.sensitivity, strict=True)
    }
    assert {(round(x, 9), round(y, 9)) for x, y in zip(wrong, right, strict=True)} == ours
    for edge in (0, num_bins // 2, num_bins):
        for name in ("sensitivity", "specificity", "ppv", "npv"):
            one = getattr(pair.at(edge), name)
            assert float(getattr(tables, name)[edge]) == pytest.approx(float(one), nan_ok=True)


@many
@given(st.integers(0, 1000), BINS, st.booleans())
def test_average_precision_equals_scikit_learn_on_binned_scores_and_lies_within_its_bounds(
    seed: int, num_bins: int, even: bool
) -> None:
    scores, labels = patients(seed)
    pair = pair_of(scores, labels, num_bins, even=even)
    binned = np.digitize(scores, pair.edges[1:-1])
    ours = float(average_precision(pair))
    assert ours == pytest.approx(average_precision_score(labels, binned), abs=1e-12)
    low, high = average_precision_bounds(pair)
    assert low - 1e-12 <= average_precision_score(labels, scores) <= high + 1e-12
    assert low - 1e-12 <= ours <= high + 1e-12


@many
@given(st.integers(0, 1000), BINS, st.booleans())
def test_auroc_and_the_brier_score_are_off_by_no_more_than_is_stated(
    seed: int, num_bins: int, even: bool
) -> None:
    scores, labels = patients(seed)
    task = BinaryClassification(num_bins=num_bins, positive_weight=1.0, even_bins=even)
    pair, metrics = (
        pair_of(scores, labels, num_bins, even=even),
        task.metrics(task.statistics(scores, labels)),
    )
    assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=auroc_error(pair) + 1e-12)
    exact = brier_score_loss(labels, scores)
    assert float(brier(pair)) == pytest.approx(exact, abs=brier_error(pair) + 1e-12)
    assert metrics["brier"] == pytest.approx(float(brier(pair)))


@many
@given(st.integers(0, 1000), st.sampled_from([(20, True), (200, False), (2000, False)]))
def test_the_calibration_error_is_that_of_groups_a_tenth_wide(seed: int, bins: tuple[int, bool]) -> None:
    """In both kinds of bins, against the formula on the scores themselves in groups with the edges that are told."""
    scores, labels = patients(seed, 2000)
    pair = pair_of(scores, labels, bins[0], even=bins[1])
    groups, _, _ = reliability(pair)
    assert groups.num_bins == 10
    half = np.diff(pair.edges).max() / 2
    assert groups.edges == pytest.approx(np.linspace(0, 1, 11), abs=half)
    place = np.digitize(scores, groups.edges[1:-1])
    off = [np.abs((scores - labels)[place == group].sum()) for group in range(10)]
    assert float(calibration_error(pair)) == pytest.approx(sum(off) / len(labels), abs=half)
    tenth = np.minimum((scores * 10).astype(int), 9)
    of_tenths = sum(np.abs((scores - labels)[tenth == group].sum()) for group in range(10)) / len(labels)
    assert float(calibration_error(pair)) == pytest.approx(of_tenths, abs=0.01)


@many
@given(st.integers(0, 1000))
def test_the_calibration_curve_is_scikit_learns(seed: int) -> None:
    scores, labels = patients(seed)
    pair = pair_of(scores, labels, 2000)
    groups, predicted, observed = reliability(pair)
    there = (groups.negative + groups.positive) > 0
    right, mean = calibration_curve(labels, scores, n_bins=10)
    assert observed[there] == pytest.approx(right)
    assert predicted[there] == pytest.approx(mean, abs=0.5 / 2000)
    weights = (groups.negative + groups.positive)[there] / len(labels)
    assert float(calibration_error(pair)) == pytest.approx(
        float((weights * np.abs(right - mean)).sum()), abs=0.5 / 2000
    )


@many
@given(st.integers(0, 1000), st.sampled_from([3, 7, 10]))
def test_putting_bins_together_loses_nobody_and_keeps_their_edges(seed: int, most: int) -> None:
    pair = pair_of(*patients(seed), 20)
    rough = pair.coarser(most)
    assert rough.num_bins == most
    assert set(rough.edges) <= set(pair.edges)
    assert (rough.edges[0], rough.edges[-1]) == (0.0, 1.0)
    assert rough.negative.sum() == pair.negative.sum()
    for edge in range(most + 1):
        before = pair.at(pair.nearest_edge(rough.edges[edge]))
        assert float(rough.at(edge).true_positive) == float(before.true_positive)


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(st.integers(0, 100), st.sampled_from([0.0, 4.0]))
def test_the_calibration_error_by_chance_is_about_that_of_a_calibrated_model(
    seed: int, deviation: float
) -> None:
    random = np.random.default_rng(seed)
    scores = random.uniform(size=800)
    seen = []
    for _ in range(200):
        pair = pair_of(scores, (random.random(800) < scores).astype(np.int64), 20)
        noise = [np.rint(random.normal(0, deviation, 20)) for _ in range(2)]
        noised = Pair(negative=pair.negative + noise[0], positive=pair.positive + noise[1], edges=pair.edges)
        seen.append(float(calibration_error(noised)))
    told = calibration_error_by_chance(pair, deviation=deviation)
    assert told == pytest.approx(np.mean(seen), rel=0.15)


@many
@given(st.integers(0, 1000))
def test_the_correlation_of_several_classes_equals_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, 60)
    taken = np.where(random.random(60) < 0.6, labels, random.integers(0, 4, 60))
    confusion = np.zeros((4, 4))
    np.add.at(confusion, (labels, taken), 1)
    assert float(correlation(confusion)) == pytest.approx(matthews_corrcoef(labels, taken))


@pytest.mark.slow
@many
@given(st.integers(0, 1000))
def test_figures_of_each_class_equal_scikit_learn_on_pooled_patients(seed: int) -> None:
    random = np.random.default_rng(seed)
    names = ("nevus", "melanoma", "keratosis")
    labels = random.choice(3, 400, p=[0.6, 0.3, 0.1])
    assume(len(set(labels)) == 3)
    logits = random.normal(size=(400, 3)) + 1.5 * np.eye(3)[labels]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    task = MultiClassClassification(num_bins=100, names=names, weights=(1.0,) * 3)
    metrics = task.metrics(sum(task.statistics(scores[part::3], labels[part::3]) for part in range(3)))
    taken = scores.argmax(axis=1)
    binned = np.minimum((among_bins(scores) * 100).astype(int), 99)
    of_classes = []
    for one, name in enumerate(names):
        own = {
            "f1": f1_score(labels == one, taken == one),
            "mcc": matthews_corrcoef(labels == one, taken == one),
            "average_precision": average_precision_score(labels == one, binned[:, one]),
        }
        for metric, value in own.items():
            assert metrics[f"{metric}/{name}"] == pytest.approx(value, abs=1e-12)
        pair = task.pairs(task.statistics(scores, labels))[name]
        exact = brier_score_loss(labels == one, scores[:, one])
        assert metrics[f"brier/{name}"] == pytest.approx(exact, abs=brier_error(pair) + 1e-12)
        of_classes.append(own)
    for metric in ("f1", "average_precision"):
        assert metrics[metric] == pytest.approx(np.mean([own[metric] for own in of_classes]))
    assert metrics["f1"] == pytest.approx(f1_score(labels, taken, average="macro"))
    assert metrics["mcc"] == pytest.approx(matthews_corrcoef(labels, taken))


@many
@given(st.floats(0.0, 1.0), st.sampled_from([2, 20, 100]))
def test_a_score_lies_in_the_bin_whose_edges_are_said(score: float, num_bins: int) -> None:
    edges = scores_between_bins(num_bins)
    place = int(np.minimum(among_bins(np.array([score]))[0] * num_bins, num_bins - 1))
    assert edges[place] - 1e-9 <= score <= edges[place + 1] + 1e-9
    assert edges[num_bins // 2] == 0.5


def test_where_nobody_is_of_a_kind_there_is_no_figure_about_it() -> None:
    counts = np.zeros(4)
    some = Pair(negative=np.array([1.0, 2.0, 0.0, 0.0]), positive=counts, edges=np.linspace(0, 1, 5))
    assert np.isnan(average_precision(some))
    assert some.at(2).figures(cut=True) == {
        "accuracy": 1.0,
        "balanced_accuracy": None,
        "sensitivity": None,
        "specificity": 1.0,
        "ppv": None,
        "npv": 1.0,
        "f1": None,
        "mcc": None,
    }


def test_whoever_takes_all_for_one_has_no_correlation() -> None:
    table = Fourfold(
        true_positive=np.float64(3),
        false_positive=np.float64(5),
        true_negative=np.float64(0),
        false_negative=np.float64(0),
        cells=(1, 1, 1, 1),
    )
    assert table.figures(cut=True)["mcc"] == 0.0
