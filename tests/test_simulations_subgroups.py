"""Subgroups from the DICOM headers of hospitals to the report: right in the sum, and small ones nowhere."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from safetensors import safe_open
from test_simulations_run import hospitals, quiet, scenario_text  # noqa: F401 - a fixture

from client.ingestion import ingest
from client.roles import Role
from client.secret import SiteSecret
from client.site_file import read_site
from server.result import Result
from shared_models.study import read_study
from shared_models.subgroups import groups_of
from simulations.command import _summary, console
from simulations.runner import Options, run_scenario
from simulations.scenario import read_scenario

pytestmark = pytest.mark.slow
GROUPS = (
    'subgroups = ["sex", "age", "vendor"]\nage_bands = [45, 70]\nvendors = ["Collegium"]\nmin_subgroup = 5'
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, hospitals: Path) -> tuple[Result, Path, str]:  # noqa: F811
    """A run without noise; its result, its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("grouped")
    path = folder / "scenario.toml"
    path.write_text(scenario_text(changes={"num_bins = 20": f"num_bins = 20\n{GROUPS}"}), encoding="utf-8")
    options = Options(engine="local", compare=False, out=folder / "out", hospitals=hospitals)
    scenario = read_scenario(str(path))
    result = run_scenario(scenario, options, quiet())
    with console.capture() as printed:
        _summary(result, scenario.study, options.out)
    return result, options.out, printed.get()


def truth(out: Path) -> dict[str, Counter[str]]:
    """Test patients of all hospitals by group, from the files themselves."""
    found: dict[str, Counter[str]] = {"sex": Counter(), "age": Counter(), "vendor": Counter()}
    for path in sorted((out / "work" / "sites").glob("*/site.toml")):
        site, study = read_site(path), read_study(path.with_name("study.toml"))
        index = ingest(site, study, SiteSecret.load(site.state)).index
        ages: dict[str, list[int]] = {}
        sexes: dict[str, str] = {}
        for image in index.images:
            if image.role is Role.TEST:
                header = dcmread(site.images.folder / image.path, stop_before_pixels=True)
                ages.setdefault(image.patient, []).append(int(header.PatientAge[:3]))
                sexes[image.patient] = {"F": "female", "M": "male"}[header.PatientSex]
        for patient, years in ages.items():
            age = min(years)
            band = "under 45" if age < 45 else "45 to 69" if age < 70 else "70 and over"
            found["age"][band] += 1
            found["sex"][sexes[patient]] += 1
    return found


@pytest.mark.thorough
def test_the_groups_that_are_shown_have_the_patients_whom_the_files_name(
    ran: tuple[Result, Path, str],
) -> None:
    result, out, _ = ran
    assert result.test_subgroups is not None
    numbers = truth(out)
    shown = 0
    for one in result.test_subgroups:
        for group in one.shown:
            shown += 1
            if one.attribute != "vendor":
                assert group.metrics["num_patients"] == numbers[one.attribute][group.name]
            assert group.metrics["num_patients"] >= 5
    assert shown >= 2
    (sex,) = [one for one in result.test_subgroups if one.attribute == "sex"]
    assert [group.name for group in sex.shown] == ["female", "male"]
    assert sum(group.metrics["num_patients"] or 0 for group in sex.shown) == result.test["num_patients"]


def test_a_group_below_the_floor_is_shown_nowhere(ran: tuple[Result, Path, str]) -> None:
    """In no file of the server, not in the result, the report or what is printed, and nobody can subtract it."""
    result, out, printed = ran
    assert result.test_subgroups is not None
    study = read_study(out / "study.toml")
    page = (out / "report.html").read_text(encoding="utf-8")
    (checkpoint,) = (out / "work" / "server").rglob("checkpoint.safetensors")
    with safe_open(checkpoint, framework="numpy") as file:
        kept = json.loads(file.metadata()["progress"])["groups"]
    shown = {f"{one.attribute}/{group.name}" for one in result.test_subgroups for group in one.shown}
    assert set(kept) == shown
    every = groups_of(study.evaluation)
    for one in result.test_subgroups:
        names = {group.name for group in one.shown}
        assert one.num_withheld == len(every[one.attribute]) - len(names)  # type: ignore[index]
        for name in set(every[one.attribute]) - names:  # type: ignore[index]
            assert f"{one.attribute}/{name}" not in json.dumps(kept)
            assert name not in printed
            table = page[page.index("<h2>Subgroups</h2>") :]
            table = table[table.index(f"<th>{one.attribute}</th>") :].split("</table>")[0]
            assert f"<td>{name}</td>" not in table
        rest = (result.test["num_patients"] or 0) - sum(
            group.metrics["num_patients"] or 0 for group in one.shown
        )
        assert rest == 0 or rest >= 5 or not one.shown
    assert any(one.num_withheld for one in result.test_subgroups)
    logs = [path for path in (out / "work" / "server").rglob("*") if path.is_file() and path != checkpoint]
    for path in logs:
        text = path.read_bytes()
        assert b"sex/other" not in text
        assert b"70 and over" not in text or "age/70 and over" in shown or path.name == "study.toml"


def test_the_figures_of_all_patients_are_those_of_the_sites_own_counts(ran: tuple[Result, Path, str]) -> None:
    """The block of all patients is not mistaken for that of a group, nor the validation for either."""
    result, _, _ = ran
    assert result.exact_test is not None
    for metric in ("num_patients", "accuracy", "sensitivity", "specificity", "mcc", "loss"):
        assert result.test[metric] == result.exact_test[metric]
    assert result.rounds[-1].metrics is not None
    by_role = [site.patients_by_role for site in result.sites]
    assert result.rounds[-1].metrics["num_patients"] == sum((one or {})["validation"] for one in by_role)


@pytest.mark.thorough
def test_with_noise_groups_have_intervals_that_hold_it(tmp_path: Path, hospitals: Path) -> None:  # noqa: F811
    path = tmp_path / "scenario.toml"
    changes = {"num_bins = 20": f"num_bins = 4\n{GROUPS}", "epsilon = 4.0": "epsilon = 100.0"}
    path.write_text(scenario_text(private=True, changes=changes), encoding="utf-8")
    options = Options(engine="local", compare=False, out=tmp_path / "out", hospitals=hospitals)
    result = run_scenario(read_scenario(str(path)), options, quiet())
    assert result.test_subgroups is not None
    assert result.test_assessment is not None
    assert result.test_assessment.noise > 0
    groups = [group for one in result.test_subgroups for group in one.shown]
    assert groups
    for group in groups:
        accuracy, interval = group.metrics["accuracy"], group.intervals["accuracy"]
        assert accuracy is not None
        assert interval.low <= accuracy <= interval.high
        exact = np.sqrt(accuracy * (1 - accuracy) / max(group.metrics["num_patients"] or 1, 1))
        assert interval.high - interval.low > 2 * exact
