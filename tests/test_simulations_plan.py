"""``collegium-simulate plan``: what it reads, what it tells, and what it refuses."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from studies import ONE_QUESTION, THREE_CLASSES, TWO_FINDINGS, study_text, write_study_file
from test_server_aggregation import DISTRIBUTED
from typer.testing import CliRunner

from client.budget import evaluation_cost, training_cost
from client.review_leaving import vector_bytes
from shared_models.architectures import build_model
from shared_models.configuration import ConfigurationError
from shared_models.manifest import Manifest
from shared_models.proposal import sign_study
from shared_models.tasks.binary import BinaryClassification
from shared_models.tasks.multi_class import MultiClassClassification
from shared_models.tasks.registry import task_of
from simulations.command import app
from simulations.evaluation_noise import ASSUMED_AUROC, _made_up, auroc_deviation
from simulations.plan import Plan
from simulations.scenario import read_scenario

TERMS = {
    "num_sites_max = 3": "num_sites_max = 10",
    "threshold = 2": "threshold = 7",
    "num_colluding = 0": "num_colluding = 1",
}


def planned(*words: str) -> Plan:
    done = CliRunner().invoke(app, ["plan", *words, "--json"], catch_exceptions=False)
    return Plan.model_validate_json(done.stdout)


def told(*words: str) -> str:
    return CliRunner().invoke(app, ["plan", *words], catch_exceptions=False).stdout


@pytest.fixture
def file(tmp_path: Path) -> str:
    write_study_file(tmp_path / "study.toml", TERMS, private=True)
    return str(tmp_path / "study.toml")


@pytest.mark.thorough
def test_the_studys_own_row_has_the_noise_that_its_sites_will_add(file: str) -> None:
    study = read_scenario("demo").study
    cost = training_cost(study)
    assert cost is not None
    plan = planned("demo")
    assert [entry.epsilon for entry in plan.costs] == [1.0, 3.0, 8.0]
    assert plan.own is not None
    assert plan.own.noise_multiplier == cost.noise_multiplier
    assert plan.own.epsilon_pld == cost.epsilon(1e-4)
    assert plan.own.epsilon_rdp == cost.rdp_epsilon(1e-4)
    assert planned(file, "--epsilon", "2").costs[1].of_study, "a study's own epsilon is always among them"
    assert [entry.epsilon for entry in planned(file, "--epsilon", "2").costs] == [2.0, 5.0]


@pytest.mark.slow
def test_a_scenario_says_how_many_sites_and_patients_there_are() -> None:
    plan = planned("demo")
    assert plan.patients_from == "scenario"
    assert plan.patients == (round(600 * 0.6),) * 4
    assert plan.expected_batch == pytest.approx(0.4 * 4 * 360)
    assert plan.evaluation.num_tested == round(4 * 600 * 0.25)


@pytest.mark.thorough
def test_a_study_alone_is_planned_with_the_fewest_patients_that_it_allows(file: str) -> None:
    plan = planned(file)
    assert (plan.patients, plan.patients_from) == ((1,) * 10, "least")
    assert "say --patients" in told(file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--patients", "1003", "--sites", "8"), (126, 126, 126, 125, 125, 125, 125, 125)),
        (("--patients", "7,8,9,10,11,12,13"), (7, 8, 9, 10, 11, 12, 13)),
    ],
)
def test_patients_are_given_together_or_for_each_site(
    file: str, words: tuple[str, ...], expected: tuple[int, ...]
) -> None:
    assert planned(file, *words).patients == expected


@pytest.mark.slow
def test_the_overshoot_of_each_possible_sum_is_the_designs(file: str) -> None:
    plan = planned(file, "--patients", "5000")
    assert [one.num_sites for one in plan.overshoots] == [7, 8, 9, 10]
    assert plan.overshoots[-1].factor == pytest.approx(1.29, abs=5e-3)
    own = plan.own
    assert own is not None
    assert own.distributed is not None
    assert own.curator is not None
    assert own.local is not None
    assert own.distributed.deviation / own.curator.deviation == pytest.approx(math.sqrt(10 / 6))
    assert own.local.norm / own.curator.norm == pytest.approx(math.sqrt(10))
    assert own.curator.norm / own.curator.deviation == pytest.approx(math.sqrt(plan.num_weights))
    text = told(file, "--patients", "5000")
    assert "√(sites in the sum / 6)" in text
    assert re.search(r"^10 +1\.29$", text, flags=re.MULTILINE)


@pytest.mark.slow
def test_vectors_go_up_with_the_bytes_that_the_review_tells(file: str) -> None:
    """The review counts the vector itself; a header of the message is around it."""
    study = write_study_file(Path(file), TERMS, private=True)
    up = {one.kind: one for one in planned(file).traffic.by_kind}
    sizes = vector_bytes(study)
    headers = up["train"].most_up - sizes[1]
    assert 60 < headers < 200
    assert up["train"].up == sizes[1] + sizes[3] + 2 * headers
    assert up["train, with validation"].up == sizes[2] + headers
    assert 0 < up["evaluate"].up - sizes[4] < headers + 20


@pytest.mark.slow
def test_as_many_steps_one_by_one_take_as_many_rounds(file: str) -> None:
    plan = planned(file)
    assert plan.steps == 6
    assert plan.if_distributed is not None
    assert (plan.traffic.rounds, plan.if_distributed.rounds) == (3, 6)
    train = {one.kind: one.times for one in plan.if_distributed.by_kind}
    assert train["train"] + train["train, with validation"] == 6
    assert train["confirm"] == train["unmask"] == 7


@pytest.mark.thorough
def test_a_study_with_shared_noise_is_told_by_its_own_column_and_has_no_other_way_to_compare(
    tmp_path: Path,
) -> None:
    write_study_file(tmp_path / "study.toml", DISTRIBUTED, private=True)
    words = (str(tmp_path / "study.toml"), "--patients", "4000")
    plan, text = planned(*words), told(*words)
    assert plan.own is not None
    assert plan.own.distributed is not None
    assert plan.own.curator is not None
    assert plan.own.distributed.norm / plan.own.curator.norm == pytest.approx(math.sqrt(4 / 2))
    assert f"the noise of one step has {plan.own.distributed.norm:.3g}" in text
    assert plan.if_distributed is None
    assert plan.refused is None


@pytest.mark.slow
def test_a_grid_that_is_too_coarse_for_the_model_is_told_before_anybody_trains(tmp_path: Path) -> None:
    many = {
        **DISTRIBUTED,
        "num_sites_max = 3": "num_sites_max = 1000",
        "threshold = 2": "threshold = 600",
        "width = 8": "width = 64",
    }
    write_study_file(tmp_path / "study.toml", many, private=True)
    words = (str(tmp_path / "study.toml"), "--patients", "100000", "--sites", "600")
    assert "rounding to the grid" in str(planned(*words).refused)
    assert "CANNOT KEEP ITS PROMISE" in told(*words)


@pytest.mark.slow
def test_a_delta_that_is_too_large_for_so_few_patients_is_said_to_be(file: str) -> None:
    assert "IS TOO LARGE" in told(file, "--patients", "5000")
    few = planned(file, "--patients", "4000")
    assert few.delta.value == 1e-4
    assert few.delta.within
    assert few.delta.largest_advised == pytest.approx(4000**-1.1)
    assert not planned(file, "--patients", "5000").delta.within


@pytest.mark.thorough
def test_a_study_without_privacy_is_planned_and_said_to_protect_nobody(tmp_path: Path) -> None:
    write_study_file(tmp_path / "study.toml")
    words = (str(tmp_path / "study.toml"), "--patients", "900")
    plan, text = planned(*words), told(*words)
    assert plan.own is None
    assert (plan.delta.of_study, plan.delta.value) == (False, pytest.approx(900**-1.1))
    assert plan.costs[1].noise_multiplier is not None
    assert plan.overshoots == ()
    assert plan.costs[1].distributed is None
    assert "NO PRIVACY" in text
    assert "num_colluding of 1 at least" in text
    assert "EXACT" in text


@pytest.mark.slow
def test_an_epsilon_out_of_reach_is_told_in_its_row(file: str) -> None:
    plan = planned(file, "--epsilon", "0.001")
    assert plan.costs[0].noise_multiplier is None
    assert "cannot be reached" in told(file, "--epsilon", "0.001")


@pytest.mark.slow
def test_a_proposal_is_planned_as_its_study(file: str, tmp_path: Path) -> None:
    text = study_text(TERMS, private=True)
    _, proposal = sign_study(text, Ed25519PrivateKey.generate(), origin="study.toml")
    (tmp_path / "study.proposal.toml").write_text(proposal, encoding="utf-8")
    assert planned(str(tmp_path / "study.proposal.toml")) == planned(file)


@pytest.mark.slow
def test_output_that_is_no_terminal_has_no_frames(file: str) -> None:
    assert not set(told(file)) & set("┃│━─┏┳")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sites", "11"), "11 sites; the study allows 10"),
        (("--sites", "6"), "6 sites; the study wants 7"),
        (("--patients", "9"), "fewer than the 10 sites"),
        (("--patients", "many"), "must be a whole number"),
        (("--patients", "0"), "must be 1 at least"),
        (("--patients", "5,5,5,5,5,5,5", "--sites", "8"), "leave one out"),
        (("--epsilon", "0"), "must lie above 0"),
        (("--epsilon", "nan"), "must lie above 0"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_words(file: str, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        CliRunner().invoke(app, ["plan", file, *words], catch_exceptions=False)


def test_a_file_that_is_not_there_or_no_study_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no scenario of that name and no such file"):
        CliRunner().invoke(app, ["plan", "nowhere"], catch_exceptions=False)
    (tmp_path / "study.toml").write_text("name = 3", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="is missing; add it"):
        CliRunner().invoke(app, ["plan", str(tmp_path / "study.toml")], catch_exceptions=False)
    (tmp_path / "scenario.toml").write_text("seed = 1\n[study]\nname = 3", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="hospitals is missing"):
        CliRunner().invoke(app, ["plan", str(tmp_path / "scenario.toml")], catch_exceptions=False)


# Noise on evaluation


def test_the_made_up_patients_have_the_auroc_that_is_told_and_their_scores_are_calibrated() -> None:
    scores, labels = _made_up(4_000)
    fine = BinaryClassification(num_bins=2000, positive_weight=1.0)
    assert fine.metrics(fine.statistics(scores, labels))["auroc"] == pytest.approx(ASSUMED_AUROC, abs=2e-3)
    for low in np.arange(0.1, 0.9, 0.2):
        chosen = (scores >= low) & (scores < low + 0.2)
        assert labels[chosen].mean() == pytest.approx(scores[chosen].mean(), abs=0.03)


@pytest.mark.slow
def test_noise_on_the_bins_moves_auroc_as_its_gradient_says() -> None:
    """Delta method: AUROC is a ratio of polynomials in the counts; its derivative in each count, times the noise."""
    task = BinaryClassification(num_bins=10, positive_weight=1.0)
    exact = task.statistics(*_made_up(2_000))
    base, slopes = task.metrics(exact)["auroc"], []
    assert base is not None
    for entry in range(20):
        step = np.zeros_like(exact)
        step[entry] = 10
        up, down = task.metrics(exact + step)["auroc"], task.metrics(exact - step)["auroc"]
        assert up is not None
        assert down is not None
        slopes.append((up - down) / 20)
    expected = 2.0 * math.sqrt(sum(slope**2 for slope in slopes))
    simulated = auroc_deviation(task, bin_deviation=2.0, num_patients=2_000)
    assert simulated == pytest.approx(expected, rel=0.1)


@pytest.mark.slow
def test_the_noise_on_a_bin_is_that_of_all_sites_together(file: str) -> None:
    study = write_study_file(Path(file), TERMS, private=True)
    cost = evaluation_cost(study)
    assert cost is not None
    expected = cost.standard_deviation * math.sqrt(1.25) * math.sqrt(10)
    assert planned(file).evaluation.bin_deviation == pytest.approx(expected)


@pytest.mark.slow
def test_noise_that_drowns_the_patients_leaves_no_auroc_and_is_said_to() -> None:
    task = BinaryClassification(num_bins=2000, positive_weight=1.0)
    assert auroc_deviation(task, bin_deviation=50.0, num_patients=100) is None


@pytest.mark.slow
def test_the_plan_is_the_same_twice(file: str) -> None:
    words = ("plan", file, "--patients", "3000", "--json")
    first, second = (CliRunner().invoke(app, words).stdout for _ in range(2))
    assert json.loads(first) == json.loads(second)


# Several classes and findings


@pytest.mark.slow
def test_the_told_noise_of_the_mean_auroc_is_that_of_the_task_itself() -> None:
    """Four classes of equal size, all of their histograms noised together, as a site does it."""
    task = MultiClassClassification(num_bins=20, names=tuple("abcd"), weights=(1.0,) * 4)
    num, classes = 2_000, 4
    score, _ = _made_up(num, share=1 / classes)
    labels = np.arange(num) % classes
    scores = np.stack([np.roll(score, own + 1) for own in range(classes)], axis=1)
    exact = task.statistics(scores, labels)
    wanted = task.metrics(exact)
    assert [wanted[f"auroc/{name}"] for name in "abcd"] == pytest.approx([ASSUMED_AUROC] * 4, abs=0.02)
    random = np.random.default_rng(4)
    means = [
        task.metrics(exact + np.rint(random.normal(0, 3.0, exact.shape)).astype(np.int64))["auroc"]
        for _ in range(400)
    ]
    told = auroc_deviation(task, bin_deviation=3.0, num_patients=num)
    assert told == pytest.approx(float(np.std(np.array(means, dtype=float))), rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "bins"),
    [(THREE_CLASSES, "3 × 2 × 20 bins"), (TWO_FINDINGS, "2 × 2 × 20 bins")],
    ids=["classes", "findings"],
)
def test_a_plan_tells_of_the_bins_and_the_mean_auroc_of_several(
    tmp_path: Path, table: str, bins: str
) -> None:
    changed = {**TERMS, ONE_QUESTION: table, "\nepsilon = 4.0": "\nepsilon = 50.0"}
    study = write_study_file(tmp_path / "study.toml", changed, private=True)
    file = str(tmp_path / "study.toml")
    plan, cost, task = planned(file, "--patients", "9000"), evaluation_cost(study), task_of(study)
    assert cost is not None
    assert plan.evaluation.num_histograms == task.num_outputs
    assert plan.num_weights == Manifest.of(build_model(study)).num_weights
    expected = cost.standard_deviation * math.sqrt(task.num_outputs + 1.25) * math.sqrt(10)
    assert plan.evaluation.bin_deviation == pytest.approx(expected)
    shown = " ".join(told(file, "--patients", "9000").split())
    assert bins in shown
    assert "moves the final mean AUROC by ±" in shown
