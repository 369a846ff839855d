"""Intervals of Dice from counts of patients: known answers, and how often they cover what is true of everybody."""

import numpy as np
import pytest

from server.assessment import assess
from server.intervals import of_mean
from server.metric_intervals import Noise, metric_intervals
from server.metric_noise import noise_on_metrics
from shared_models.tasks.segmentation import Segmentation

TASK = Segmentation(num_bins=20, names=("lesion",), weights=(1.0,))
NEEDS_PAIRS = ("dice", "iou", "median_dice", "below_half", "detected", "specificity")


def kept(random: np.random.Generator, num: int) -> np.ndarray:
    """What is kept of patients of whom one in five lacks the lesion, and some are missed."""
    dice = random.beta(6, 2, num) * (random.random(num) > 0.05)
    there = random.random(num) < 0.8
    mask = np.where(there, 100.0, 0.0)
    mark = np.where(there, 100.0, random.random(num) < 0.3)
    return np.stack([np.where(there, dice * 100, 0), mark, mask, np.ones(num), np.ones(num)], axis=1)


def statistics(random: np.random.Generator, num: int) -> np.ndarray:
    scores = kept(random, num)
    return TASK.statistics(scores, (scores[:, 2:3] > 0).astype(np.int64))


def test_the_interval_of_a_mean_is_that_of_a_normal_mean_where_it_is_far_from_the_ends() -> None:
    random = np.random.default_rng(1)
    values = np.linspace(0.0, 1.0, 50)
    counts = random.integers(0, 200, 50).astype(float)
    found = of_mean(values, counts, noise=0.0)
    sample = np.repeat(values, counts.astype(int))
    half = 1.959964 * sample.std(ddof=1) / np.sqrt(len(sample))
    assert found is not None
    assert (found.low, found.high) == pytest.approx((sample.mean() - half, sample.mean() + half), abs=1e-4)


def test_patients_who_all_have_the_same_dice_are_not_told_as_certain_and_nobody_has_no_interval() -> None:
    alike = of_mean(np.array([0.25, 0.75]), np.array([0.0, 8.0]), noise=0.0)
    assert alike is not None
    assert alike.low < 0.6 < 0.85 < alike.high
    assert of_mean(np.array([0.25, 0.75]), np.array([0.0, 0.0]), noise=0.0) is None


def test_every_metric_of_segmentation_but_the_loss_has_an_interval_that_holds_it() -> None:
    summed = statistics(np.random.default_rng(2), 200)
    values, found = TASK.metrics(summed), metric_intervals(TASK, summed, Noise())
    for metric in NEEDS_PAIRS:
        for name in (metric, f"{metric}/lesion"):
            one, value = found[name], values[name]
            assert one is not None
            assert value is not None
            assert one.low <= value <= one.high


def test_an_assessment_counts_patients_by_dice_and_has_no_curves() -> None:
    summed = statistics(np.random.default_rng(3), 300)
    assessment = assess(TASK, summed, noise=Noise(), points={})
    (own,) = assessment.overlaps
    assert assessment.parts == ()
    assert own.num_missed + sum(own.num_patients) == own.num_with
    assert own.num_with + own.num_without == 300
    assert 0 < own.num_marked < own.num_without


@pytest.mark.parametrize("num_bins", [7, 20, 30, 50, 2000])
def test_patients_are_counted_at_their_dice_whatever_the_number_of_bins(num_bins: int) -> None:
    task = Segmentation(num_bins=num_bins, names=("lesion",), weights=(1.0,))
    summed = np.zeros(task.num_statistics, dtype=np.int64)
    place = int(0.51 * num_bins)
    summed[place] = 12
    (own,) = assess(task, summed, noise=Noise(), points={}).overlaps
    (group,) = np.nonzero(own.num_patients)[0]
    assert own.edges[group] <= place / num_bins < own.edges[group + 1]
    assert own.edges[group + 1] - own.edges[group] <= 2 / min(num_bins, 20)
    assert (own.edges[0], own.edges[-1]) == (0.0, 1.0)
    assert len(own.edges) == len(own.num_patients) + 1


def coverage(num: int, repetitions: int, deviation: float) -> dict[str, float]:
    """How often the intervals hold the figure of very many patients."""
    random = np.random.default_rng(7)
    truth = TASK.metrics(statistics(np.random.default_rng(0), 400_000))
    held = dict.fromkeys(NEEDS_PAIRS, 0)
    known = dict.fromkeys(NEEDS_PAIRS, 0)
    units = TASK.noise_units
    for _ in range(repetitions):
        summed, noise = statistics(random, num), Noise()
        if deviation:
            summed = summed + np.rint(random.normal(size=len(summed)) * deviation * units).astype(np.int64)
            noise = Noise(deviation=deviation, of_metrics=noise_on_metrics(TASK, summed, deviation=deviation))
        found = metric_intervals(TASK, summed, noise)
        for metric in NEEDS_PAIRS:
            one, value = found[metric], truth[metric]
            assert value is not None
            if one is not None:
                known[metric] += 1
                held[metric] += one.low - 1e-9 <= value <= one.high + 1e-9
    return {metric: held[metric] / known[metric] for metric in NEEDS_PAIRS if known[metric]}


@pytest.mark.slow
@pytest.mark.parametrize("num", [60, 300])
def test_intervals_cover_at_their_rate(num: int) -> None:
    for metric, rate in coverage(num, 1000, 0.0).items():
        assert rate > 0.93, (metric, rate)
        assert rate < 0.995 or metric == "median_dice", (metric, rate)


@pytest.mark.thorough
def test_intervals_cover_at_their_rate_where_evaluation_is_noised() -> None:
    for metric, rate in coverage(300, 300, 2.0).items():
        assert rate > 0.92, (metric, rate)
