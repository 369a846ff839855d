"""`collegium-simulate modes`: the same study under each mode, trained by the hospitals' own code."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from client.budget import training_cost
from client.patients import PatientSet
from client.roles import Role
from client.training import Machine
from shared_models.configuration import ConfigurationError
from shared_models.study import Study
from shared_models.tasks.binary import BinaryClassification
from simulations import modes
from simulations.command import app
from simulations.modes import MODES, Job, Mode, Setting, Settings, Trained, study_of, trained_weights
from simulations.modes_jobs import comparison, hospitals_table, jobs_of, ranking
from simulations.scenario import read_scenario

SCENARIO = """
title = "Four small hospitals"
seed = 3

[hospitals]
kind = "phantom"
num_hospitals = 4
patients_per_hospital = 30
image_size = 32

[study]
name = "modes"
title = "Opacities in synthetic radiographs"
task = { kind = "binary-classification", label = "finding", positive = ["opacity"], negative = ["clear"] }
patients = { roles = "hash", min_training = 5 }
image = { modalities = ["DX", "CR"], channels = 1, rows = 16, columns = 16, intensity = "percentiles" }
model = { architecture = "small-cnn", width = 8 }
training = { num_rounds = 3, local_steps = 1, sample_rate = 0.5, learning_rate = 0.5 }
privacy = { mode = "distributed", epsilon = 3.0, delta = 1e-3, num_patients = 300, max_grad_norm = 1.0 }
evaluation = { num_bins = 10, epsilon = 3.0 }

[study.aggregation]
weights = "patients"
max_patients = 1000
num_sites_max = 4
min_cohort = 3
threshold = 3
num_colluding = 1
round_timeout_seconds = 120.0
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "modes.toml"
    path.write_text(SCENARIO)
    return path


def study(scenario: Path, mode: Mode, epsilon: float | None = 3.0, **values: float) -> Study:
    job = Job(mode=mode, epsilon=epsilon, seed=1, values=tuple(sorted(values.items())), on="test")
    return study_of(read_scenario(str(scenario)).study, job)


def blank_hospitals(num: int, patients: int) -> dict[str, dict[Role, PatientSet]]:
    """All images are zero, so that nothing but biases, and noise, moves."""
    made = PatientSet(
        pseudonyms=tuple(map(str, range(patients))),
        images=torch.zeros(patients, 1, 16, 16),
        labels=torch.zeros(patients),
        first_image=np.arange(patients + 1),
    )
    return {f"hospital-{number}": {Role.TRAIN: made} for number in range(num)}


@pytest.mark.thorough
def test_each_mode_has_the_noise_that_its_name_says(scenario: Path) -> None:
    """One step of noise alone: the deviation of the weights' move, against the curator's."""
    machine = Machine(device=torch.device("cpu"), physical_batch=64, mixed_precision=False)
    values = {"num_rounds": 1, "learning_rate": 1.0, "sample_rate": 0.001}
    moved = {}
    for mode in ("curator", "curator-overshoot", "distributed", "local"):
        wanted = study(scenario, mode, **values)
        weights, multiplier = trained_weights(wanted, mode, blank_hospitals(4, 200), machine)
        before = modes.flatten(modes.build_model(wanted))
        cost = training_cost(wanted)
        assert cost is not None
        assert multiplier == cost.noise_multiplier
        per_patient = multiplier * 1.0 / (0.001 * 800)
        moved[mode] = float(np.std(weights - before)) / per_patient
    # counts of hospitals have noise of 30 patients each, so that divisors differ a little
    assert moved["curator"] == pytest.approx(1.0, rel=0.25)
    assert moved["curator-overshoot"] == pytest.approx((4 / 2) ** 0.5, rel=0.25)
    assert moved["distributed"] == pytest.approx((4 / 2) ** 0.5, rel=0.25)
    assert moved["local"] == pytest.approx(4**0.5, rel=0.25)


def test_settings_replace_the_scenarios_values_for_the_modes_and_epsilons_that_they_name(
    scenario: Path,
) -> None:
    settings = (
        Setting(learning_rate=2.0),
        Setting(modes=("local",), learning_rate=0.1),
        Setting(epsilons=(1.0,), max_grad_norm=0.3),
    )
    jobs = jobs_of([("local", 1.0), ("distributed", 3.0)], fixed=settings, candidates=None, num_seeds=2)
    assert [(job.mode, job.seed, dict(job.values)) for job in jobs] == [
        ("local", 1, {"learning_rate": 0.1, "max_grad_norm": 0.3}),
        ("local", 2, {"learning_rate": 0.1, "max_grad_norm": 0.3}),
        ("distributed", 1, {"learning_rate": 2.0}),
        ("distributed", 2, {"learning_rate": 2.0}),
    ]
    made = study_of(read_scenario(str(scenario)).study, jobs[0])
    assert (made.privacy.mode, made.privacy.epsilon, made.privacy.max_grad_norm) == ("local", 1.0, 0.3)
    assert (made.training.learning_rate, made.model.seed) == (0.1, 1)


def test_candidates_are_evaluated_on_validation_patients_with_a_seed_of_their_own() -> None:
    tried = (Setting(learning_rate=1.0), Setting(learning_rate=2.0, modes=("local",)))
    jobs = jobs_of([("curator", 3.0)], fixed=(), candidates=tried, num_seeds=2)
    assert [(job.on, dict(job.values)) for job in jobs] == [("validation", {"learning_rate": 1.0})] * 2
    table = jobs_of([("curator", 3.0)], fixed=(), candidates=None, num_seeds=1000)
    assert len({job.seed for job in (*jobs, *table)}) == 1002


HEADINGS = BinaryClassification.headings


def trained(mode: Mode, epsilon: float | None, seed: int, auroc: float, **values: float) -> Trained:
    metrics = {"auroc": auroc, "accuracy": 0.5, "balanced_accuracy": 0.5}
    return Trained(
        job=Job(mode=mode, epsilon=epsilon, seed=seed, values=tuple(values.items()), on="test"),
        metrics=metrics,
        by_hospital={"north": metrics},
        noise_multiplier=None,
        seconds=1.0,
    )


def test_the_table_has_the_mean_and_the_range_over_seeds() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(comparison([trained("local", 3.0, 1, 0.8), trained("local", 3.0, 2, 0.9)], "x", HEADINGS))
    console.print(hospitals_table([trained("local", 3.0, 1, 0.6)], HEADINGS))
    worse, better = {"learning_rate": 1.0}, {"learning_rate": 2.0}
    aurocs = [(worse, 5, 0.7), (better, 5, 0.6), (better, 6, 0.9)]
    models = [trained("local", 3.0, seed, auroc, **tried) for tried, seed, auroc in aurocs]
    console.print(ranking(models, HEADINGS))
    told = console.export_text()
    assert "0.850 (0.800–0.900)" in told
    assert "north" in told
    assert "0.600" in told
    assert told.index("0.750 (0.600–0.900)") < told.index("0.700"), "the best mean comes first"


def test_a_study_of_another_mode_is_refused(scenario: Path) -> None:
    base = read_scenario("demo").study
    assert base.privacy.mode != "distributed"
    with pytest.raises(ConfigurationError, match="must have privacy"):
        study_of(base, Job(mode="local", epsilon=1.0, seed=1, values=(), on="test"))


def run(scenario: Path, folder: Path, *options: str) -> Result:
    arguments = ["modes", str(scenario), "--out", str(folder), "--epsilon", "3", *options]
    return CliRunner().invoke(app, arguments)


@pytest.mark.thorough
def test_all_modes_are_trained_once_and_kept(scenario: Path, tmp_path: Path) -> None:
    done = run(scenario, tmp_path / "out", "--seeds", "1", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [entry["mode"] for entry in told] == list(MODES)
    assert {entry["on"] for entry in told} == {"test"}
    assert all(0.0 <= entry["metrics"]["auroc"] <= 1.0 for entry in told)
    again = run(scenario, tmp_path / "out", "--seeds", "1", "--json")
    assert json.loads(again.stdout) == told, "what is there is not trained again"
    scenario.write_text(SCENARIO.replace("seed = 3", "seed = 4"))
    other = run(scenario, tmp_path / "out")
    assert isinstance(other.exception, ConfigurationError)
    assert "another scenario" in str(other.exception)


def test_an_unknown_mode_is_told_with_those_there_are(scenario: Path, tmp_path: Path) -> None:
    done = run(scenario, tmp_path / "out", "--mode", "global")
    assert done.exit_code == 2
    assert "curator-overshoot" in done.output.replace("\n", "")


def test_a_file_of_settings_is_read_strictly() -> None:
    with pytest.raises(ValueError, match="learning_rates"):
        Settings.model_validate({"setting": [{"learning_rates": 1.0}]})
