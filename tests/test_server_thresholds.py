"""Operating points: what the study may say, and which thresholds its validations choose."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import ONE_QUESTION, THREE_CLASSES, make_study

from server.checkpoint import Progress, RoundRecord
from server.result import build_result
from server.thresholds import NEVER_VALIDATED, NOT_REACHED, choose, chosen_for, smoothed
from shared_models.configuration import ConfigurationError
from shared_models.operating_points import OperatingPoint
from shared_models.study import Study, read_study
from shared_models.study_changes import changes
from shared_models.tasks.binary import BinaryClassification
from shared_models.tasks.curves import Pair
from shared_models.tasks.registry import task_of
from simulations.work_folder import write_study

TASK = BinaryClassification(num_bins=20, positive_weight=1.0)


def with_points(points: str, changed: dict[str, str] | None = None) -> Study:
    return make_study({"[aggregation]": f"operating_points = [{points}]\n\n[aggregation]", **(changed or {})})


def patients(seed: int, num: int = 400) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = (random.random(num) < 0.3).astype(np.int64)
    labels[:2] = 0, 1
    return 1 / (1 + np.exp(-(random.normal(size=num) + 1.5 * labels - 0.7))), labels


def pair(seed: int) -> Pair:
    return TASK.pairs(TASK.statistics(*patients(seed)))["positive"]


@settings(deadline=None)
@given(st.integers(0, 500), st.floats(0.05, 0.95), st.sampled_from(["sensitivity", "specificity"]))
def test_of_exact_sums_the_best_threshold_that_reaches_the_target_is_chosen(
    seed: int, target: float, metric: str
) -> None:
    validated = pair(seed)
    point = OperatingPoint.model_validate({"name": "wanted", metric: target})
    even, chosen = choose([point], validated, validated_round=3)
    assert (even.name, even.threshold, even.validated_round) == ("0.5", 0.5, None)
    reaching = [edge for edge in range(1, 20) if float(getattr(validated.at(edge), metric)) >= target]
    if not reaching:
        assert (chosen.threshold, chosen.missing) == (None, NOT_REACHED)
        return
    best = max(reaching) if metric == "sensitivity" else min(reaching)
    assert chosen.threshold == validated.edges[best]
    assert chosen.validated_round == 3


def test_a_threshold_of_the_study_needs_no_validation_and_a_target_without_one_says_so() -> None:
    points = [OperatingPoint(name="low", threshold=0.2), OperatingPoint(name="screening", sensitivity=0.9)]
    _, low, screening = choose(points, None, validated_round=None)
    assert (low.threshold, low.missing) == (0.2, None)
    assert (screening.threshold, screening.missing) == (None, NEVER_VALIDATED)


def test_each_class_has_a_threshold_of_its_own_from_the_last_validation() -> None:
    study = with_points('{ name = "screening", sensitivity = 0.8 }', {ONE_QUESTION: THREE_CLASSES})
    task, random = task_of(study), np.random.default_rng(0)
    labels = random.integers(0, 3, 300)
    sharp = np.exp(random.normal(size=(300, 3)) + np.array([3.0, 2.0, 1.0]) * np.eye(3)[labels])
    sharp /= sharp.sum(axis=1, keepdims=True)
    blurred = np.full((300, 3), 1 / 3)
    validations = {1: task.statistics(blurred, labels), 3: task.statistics(sharp, labels)}
    points = chosen_for(study, validations)
    assert set(points) == {"clear lungs", "opacity", "mass"}
    pairs = task.pairs(validations[3])
    for name, (_, screening) in points.items():
        assert screening.validated_round == 3
        assert screening.threshold is not None
        assert float(pairs[name].at(pairs[name].nearest_edge(screening.threshold)).sensitivity) >= 0.8
    assert len({screening.threshold for _, screening in points.values()}) > 1


def test_with_early_stopping_the_validation_of_the_model_that_is_kept_decides() -> None:
    stops = {
        "local_steps = 2": "local_steps = 2\nearly_stopping = 1",
        "validation_rounds = [1, 3]": "validation_rounds = [1, 2]",
    }
    study = with_points('{ name = "screening", sensitivity = 0.8 }', stops)
    task, (scores, labels) = task_of(study), patients(5)
    good, bad = task.statistics(scores, labels), task.statistics(1 - scores, labels)
    rounds = tuple(
        RoundRecord(
            round=number,
            asked=(),
            survivors=(),
            burned=None,
            refusals={},
            seconds={},
            validation=tuple(sums.tolist()),
        )
        for number, sums in ((1, good), (2, bad))
    )
    progress = Progress(
        run_id="a", study_hash=study.hash, rounds=rounds, test=tuple(good.tolist()), tested=("x", "y")
    )
    told = build_result(study, progress, engine="local", refusals={}).test_assessment
    assert told is not None
    assert [point.validated_round for point in told.parts[0].operating_points] == [None, 1]


def test_with_noise_a_threshold_is_chosen_that_about_reaches_the_target() -> None:
    """A lucky bin of a noised curve must not decide: the sensitivity itself has no bias to speak of."""
    point, random, reached = OperatingPoint(name="screening", sensitivity=0.8), np.random.default_rng(1), []
    exact = pair(1)
    for _ in range(300):
        noise = np.rint(random.normal(0, 4, (2, 20)))
        noised = Pair(
            negative=exact.negative + noise[0], positive=exact.positive + noise[1], edges=exact.edges
        )
        (_, chosen) = choose([point], noised, validated_round=1)
        if chosen.threshold is not None:
            reached.append(float(exact.at(exact.nearest_edge(chosen.threshold)).sensitivity))
    assert len(reached) > 290
    assert np.mean(reached) == pytest.approx(0.83, abs=0.05)


@given(st.lists(st.floats(-1, 2), min_size=2, max_size=30))
def test_a_smoothed_curve_only_rises_or_only_falls_and_a_monotone_one_stays(values: list[float]) -> None:
    curve = np.array(values)
    assert (np.diff(smoothed(curve, falling=False)) >= -1e-12).all()
    assert (np.diff(smoothed(curve, falling=True)) <= 1e-12).all()
    assert (smoothed(np.sort(curve), falling=False) == np.sort(curve)).all()


@pytest.mark.parametrize(
    ("points", "told"),
    [
        ('{ name = "a" }', "say exactly one of"),
        ('{ name = "a", threshold = 0.5, sensitivity = 0.9 }', "say exactly one of"),
        ('{ name = "a", threshold = 1.0 }', "less than 1"),
        ('{ name = "0.5", threshold = 0.4 }', "a name of its own"),
        ('{ name = "a", threshold = 0.4 }, { name = "a", threshold = 0.3 }', "a name of its own"),
        ('{ name = "a", recall = 0.4 }', "is not a known key"),
    ],
)
def test_a_wrong_operating_point_is_told_with_what_is_allowed(points: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        with_points(points)


def test_a_target_without_any_validation_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="from validation patients"):
        with_points(
            '{ name = "a", sensitivity = 0.9 }', {"validation_rounds = [1, 3]": "validation_rounds = []"}
        )
    with_points('{ name = "a", threshold = 0.9 }', {"validation_rounds = [1, 3]": "validation_rounds = []"})


def test_operating_points_are_in_the_hash_are_written_and_told_when_they_change(tmp_path) -> None:
    study = with_points('{ name = "screening", sensitivity = 0.9 }')
    write_study(tmp_path / "study.toml", study)
    assert read_study(tmp_path / "study.toml") == study
    assert study.hash != make_study().hash
    told = [one.sentence for one in changes(make_study(), study)]
    assert told == [
        "operating points (evaluation.operating_points.name): none → screening",
        "sensitivity that is wanted of the operating point “screening” "
        "(evaluation.operating_points.sensitivity): none → 0.9",
    ]
