"""Whole federated runs of several classes and of several findings: masks, noise, files and pages."""

import csv
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file
from studies import ONE_QUESTION, THREE_CLASSES, TWO_FINDINGS
from test_simulations_run import quiet, scenario_text

from server.result import Result
from shared_models.model_file import read_model
from shared_models.study import read_study
from shared_models.tasks.registry import task_of
from simulations.command import _table_of_parts
from simulations.preparation.hospitals import prepare, read_hospitals
from simulations.preparation.sources import PhantomSource
from simulations.runner import Engine, Options, run_scenario
from simulations.scenario import read_scenario

needs_data = pytest.mark.skipif(
    "COLLEGIUM_DATA" not in os.environ,
    reason="set COLLEGIUM_DATA to a folder that holds the public data sets",
)
TABLES = {"classes": THREE_CLASSES, "findings": TWO_FINDINGS}
EACH = pytest.mark.parametrize("kind", ["classes", pytest.param("findings", marks=pytest.mark.thorough)])
NAMES = {"classes": ("clear lungs", "opacity", "mass"), "findings": ("opacity", "effusion")}
LESS_NOISE = {"epsilon = 4.0": "epsilon = 100.0"}
"""On so few patients more would leave no figure."""
DISTRIBUTED = {
    'mode = "local"': 'mode = "distributed"',
    "local_steps = 2": "local_steps = 1",
    'weights = "equal"': 'weights = "patients"\nmax_patients = 100',
    "min_cohort = 2": "min_cohort = 3",
    "num_colluding = 0": "num_colluding = 1",
    "threshold = 2": "threshold = 3",
}


@dataclass(frozen=True)
class Done:
    result: Result
    out: Path

    @property
    def weights(self) -> np.ndarray:
        arrays = load_file(self.out / "model.safetensors")
        return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hospitals; the first has no mass, and knows nothing of effusions."""
    out = tmp_path_factory.mktemp("prepared") / "hospitals"
    prepare(PhantomSource(num_hospitals=3, patients_per_hospital=(40, 30, 30), image_size=48), out, 3)
    for number, hospital in enumerate(read_hospitals(out).hospitals):
        with hospital.labels_file.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        with hospital.labels_file.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["PatientID", "finding", "effusion"])
            for row in rows:
                draw = hashlib.sha256(row["PatientID"].encode()).digest()[0]
                finding = row["finding"]
                if number > 0 and draw < 80:
                    finding = "mass"
                elif finding == "opacity" and draw % 2:
                    finding = "consolidation"
                effusion = "" if number == 0 else ("1", "0", "0", "?")[draw % 4]
                writer.writerow([row["PatientID"], finding, effusion])
    return out


def run(
    tmp_path: Path,
    hospitals: Path,
    kind: str,
    *,
    private: bool = False,
    changes: dict[str, str] | None = None,
    compare: bool = False,
    workers: int = 2,
    engine: Engine = "local",
) -> Done:
    path = tmp_path / f"{kind}-{workers}-{engine}.toml"
    wanted = {ONE_QUESTION: TABLES[kind], **(changes or {})}
    path.write_text(scenario_text(private=private, changes=wanted), encoding="utf-8")
    out = path.with_suffix("")
    options = Options(engine=engine, compare=compare, out=out, hospitals=hospitals, num_workers=workers)
    return Done(run_scenario(read_scenario(str(path)), options, quiet()), out)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, hospitals: Path) -> Callable[[str], Done]:
    """A run without privacy of each kind."""
    return cache(lambda kind: run(tmp_path_factory.mktemp("plain"), hospitals, kind, compare=True))


@pytest.mark.slow
@EACH
def test_a_run_without_noise_tells_each_class_or_finding_in_all_its_files(
    kind: str, plain: Callable[[str], Done]
) -> None:
    done = plain(kind)
    result, names = done.result, NAMES[kind]
    assert Result.model_validate_json((done.out / "result.json").read_bytes(), strict=False) == result
    for metrics in (result.test, result.exact_test, result.rounds[0].metrics, result.rounds[2].metrics):
        assert metrics is not None
        assert all(f"auroc/{name}" in metrics for name in names)
        assert metrics["auroc"] is not None
    assert result.baselines is not None
    assert result.baselines.pooled is not None
    assert all(f"auroc/{name}" in result.baselines.pooled.metrics for name in names)

    page = (done.out / "report.html").read_text(encoding="utf-8")
    word = {"classes": "class", "findings": "finding"}[kind]
    assert f"Each {word}: federated, exact (simulation only)" in page
    assert all(f"<td>{name}</td>" in page for name in names)
    assert ("true class" in page) == (kind == "classes")
    assert "mean AUROC federated" in page

    card = read_model(done.out / "model.safetensors").card
    assert card.outputs == names
    assert card.activation == {"classes": "softmax", "findings": "sigmoid"}[kind]


@pytest.mark.thorough
@pytest.mark.deployed
@pytest.mark.parametrize("kind", TABLES)
def test_local_and_deployed_engines_give_the_same_weights_and_figures_to_the_bit(
    tmp_path: Path, hospitals: Path, kind: str
) -> None:
    """With groups, an operating point that validations choose, and a rate that they lower."""
    changes = {
        "learning_rate = 0.1": 'learning_rate = 0.1\nschedule = "plateau"',
        "unnoised = true": 'unnoised = true\nsubgroups = ["sex"]\nmin_subgroup = 5\n'
        'operating_points = [{ name = "sensitive", sensitivity = 0.9 }]',
    }
    local = run(tmp_path, hospitals, kind, changes=changes)
    deployed = run(tmp_path, hospitals, kind, changes=changes, engine="deployed")
    assert deployed.result.engine == "deployed"
    np.testing.assert_array_equal(local.weights, deployed.weights)
    assert local.result.test == deployed.result.test
    assert local.result.test_subgroups == deployed.result.test_subgroups
    assert local.result.test_subgroups
    assert local.result.test_assessment == deployed.result.test_assessment


@pytest.mark.slow
@EACH
def test_the_sum_that_is_opened_is_the_sum_of_what_the_sites_counted(
    kind: str, plain: Callable[[str], Done]
) -> None:
    """Every figure that does not depend on the width of bins is the same in the sum of masked vectors, to a digit."""
    result = plain(kind).result
    assert result.exact_test is not None
    by_bins = ("auroc", "average_precision", "brier", "calibration_error")
    same = {name for name in result.test if not name.startswith(by_bins)}
    assert len(same) > 10
    assert {name: result.test[name] for name in same} == {name: result.exact_test[name] for name in same}
    assert result.test["num_patients"] == sum((site.test or {})["num_patients"] or 0 for site in result.sites)
    assert result.test["num_patients"]


@pytest.mark.thorough
@EACH
def test_the_number_of_workers_does_not_change_a_bit_of_the_weights(
    kind: str, tmp_path: Path, hospitals: Path, plain: Callable[[str], Done]
) -> None:
    one = run(tmp_path, hospitals, kind, workers=1)
    np.testing.assert_array_equal(one.weights, plain(kind).weights)
    assert one.result.test == plain(kind).result.test


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        pytest.param("classes", {}, id="classes-local"),
        pytest.param("findings", DISTRIBUTED, id="findings-distributed"),
        pytest.param("classes", DISTRIBUTED, id="classes-distributed", marks=pytest.mark.thorough),
        pytest.param("findings", {}, id="findings-local", marks=pytest.mark.thorough),
    ],
)
def test_a_private_run_noises_every_figure_and_says_by_how_much(
    kind: str, mode: dict[str, str], tmp_path: Path, hospitals: Path
) -> None:
    done = run(tmp_path, hospitals, kind, private=True, changes={**LESS_NOISE, **mode})
    result = done.result
    assert result.privacy.epsilon is not None
    assert result.privacy.epsilon <= 5.0
    assert result.test_noise is not None
    counted = {name for name in result.test if name.startswith("num_")}
    assert set(result.test_noise) == set(result.test) - counted
    assert all(value is None or value > 0 for value in result.test_noise.values())
    assert result.test != result.exact_test
    assert "±" in (done.out / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_hospital_without_patients_of_a_class_trains_and_is_tested_on_the_classes_it_has(
    plain: Callable[[str], Done],
) -> None:
    result = plain("classes").result
    first = result.sites[0].test
    assert first is not None
    assert first["num_patients/mass"] == 0
    assert first["auroc/mass"] is None
    assert first["num_classes"] == 2
    assert first["auroc"] is not None
    assert result.test["num_classes"] == 3


@pytest.mark.thorough
def test_a_hospital_that_knows_nothing_of_a_finding_helps_with_the_others(
    plain: Callable[[str], Done],
) -> None:
    done = plain("findings")
    first = done.result.sites[0].test
    assert first is not None
    assert first["num_positive/effusion"] == first["num_negative/effusion"] == 0
    assert first["auroc/effusion"] is None
    assert first["num_positive/opacity"]
    (name,) = [site.name for site in done.result.sites[:1]]
    index = json.loads(
        (done.out / "work" / "sites" / name / "state" / "index.json").read_text(encoding="ascii")
    )
    assert index["summary"]["labels"]["train"]["effusion"]["positive"] == 0
    known = index["summary"]["labels"]["train"]["opacity"]
    assert index["summary"]["labels"]["train"]["effusion"]["missing"] == known["negative"] + known["positive"]
    assert index["finding_problems"]["effusion"] == {"empty-finding": 40}


@pytest.mark.slow
@EACH
def test_the_terminal_shows_each_class_or_finding(kind: str, plain: Callable[[str], Done]) -> None:
    study = read_study(plain(kind).out / "study.toml")
    parts = task_of(study).parts
    assert parts is not None
    console = Console(record=True, width=120, file=StringIO())
    console.print(_table_of_parts(plain(kind).result, parts))
    shown = console.export_text()
    assert "exact, simulation only" in shown
    assert all(f"│ {name}" in shown for name in NAMES[kind])


# Real images


@pytest.mark.thorough
@needs_data
def test_seven_classes_of_ham10000_train_although_two_of_the_sources_lack_one(tmp_path: Path) -> None:
    whole = read_scenario("ham10000-7")
    training = whole.study.training.model_copy(update={"num_rounds": 2, "sample_rate": 0.2})
    evaluation = whole.study.evaluation.model_copy(update={"validation_rounds": (2,)})
    study = whole.study.model_copy(update={"training": training, "evaluation": evaluation})
    hospitals = whole.hospitals.model_copy(update={"max_patients": 250})
    scenario = whole.model_copy(update={"study": study, "hospitals": hospitals})
    options = Options(engine="local", compare=False, out=tmp_path / "out", num_workers=2)
    result = run_scenario(scenario, options, quiet())

    assert result.test["num_patients"]
    names = study.task.class_names
    assert len(names) == 7
    assert sum(result.test[f"num_patients/{name}"] or 0 for name in names) == result.test["num_patients"]
    trained = []
    for site in result.sites:
        state = tmp_path / "out" / "work" / "sites" / site.name / "state"
        index = json.loads((state / "index.json").read_text(encoding="ascii"))
        assert not index["label_problems"]
        trained.append(index["summary"]["labels"]["train"]["actinic keratosis or Bowen"])
    assert trained.count(0) >= 2
    assert any(trained)
