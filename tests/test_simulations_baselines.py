"""Models trained outside the federation: who is in them, and at whom they are tested."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from test_simulations_run import hospitals, quiet, scenario_text  # noqa: F401 - a fixture

from client.site_file import read_site
from server.result import Result
from simulations.baselines import POOLED, BaselineJob, baseline_jobs, run_baselines
from simulations.runner import Options, run_scenario
from simulations.scenario import read_scenario

POINT = 'operating_points = [{ name = "screening", sensitivity = 0.8 }]'


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, hospitals: Path) -> tuple[Result, Path]:  # noqa: F811
    """A run without privacy, with all baselines."""
    folder = tmp_path_factory.mktemp("left-out")
    path = folder / "scenario.toml"
    path.write_text(scenario_text(changes={"num_bins = 20": f"num_bins = 20\n{POINT}"}), encoding="utf-8")
    options = Options(
        engine="local", compare=True, leave_one_out=True, out=folder / "out", hospitals=hospitals
    )
    return run_scenario(read_scenario(str(path)), options, quiet()), folder / "out"


def site_files(out: Path) -> list[Path]:
    return sorted((out / "work" / "sites").glob("*/site.toml"))


@pytest.mark.thorough
def test_jobs_are_what_was_asked_for_and_each_has_randomness_of_its_own(done: tuple[Result, Path]) -> None:
    files = site_files(done[1])
    names = [read_site(path).name for path in files]

    def jobs(**asked: bool) -> tuple[BaselineJob, ...]:
        return baseline_jobs(files, seed=3, **asked)

    assert not jobs(compare=False, leave_one_out=False)
    assert [job.name for job in jobs(compare=True, leave_one_out=False)] == [POOLED, *names]
    assert [job.name for job in jobs(compare=False, leave_one_out=False, pooled=True)] == [POOLED]
    assert jobs(compare=True, leave_one_out=False, pooled=True) == jobs(compare=True, leave_one_out=False)
    others = jobs(compare=False, leave_one_out=True)
    assert {(job.name, *job.train_on) for job in others} == {
        (name, *(other for other in names if other != name)) for name in names
    }
    everything = jobs(compare=True, leave_one_out=True)
    assert len({job.label for job in everything}) == len(everything) == 2 * len(names) + 1


@pytest.mark.slow
def test_each_hospital_is_tested_under_the_model_of_the_others(done: tuple[Result, Path]) -> None:
    result, out = done
    assert result.baselines is not None
    assert result.baselines.pooled is not None
    assert set(result.baselines.left_out) == {site.name for site in result.sites}
    for site in result.sites:
        left_out, by_role = result.baselines.left_out[site.name], site.patients_by_role
        assert left_out.own is not None
        assert left_out.by_site is not None
        assert by_role is not None
        assert left_out.own["num_patients"] == by_role["test"]
        assert left_out.own == left_out.by_site[site.name]
        assert left_out.metrics != result.baselines.pooled.metrics
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "A hospital that had no part in the training" in page
    assert "model of the others" in page


@pytest.mark.thorough
def test_what_the_hospital_that_is_left_out_trains_on_changes_nothing(
    done: tuple[Result, Path], tmp_path: Path
) -> None:
    """Its images are turned to noise; the model of the others, tested at another hospital, stays as it was."""
    result, out = done
    shutil.copytree(out, tmp_path / "out")
    (spoilt, *others) = site_files(tmp_path / "out")
    name, other = read_site(spoilt).name, read_site(others[0]).name
    folder = tmp_path / "images"
    shutil.copytree(read_site(spoilt).images.folder, folder)
    for place, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        content = bytearray(path.read_bytes())
        content[-48 * 48 :] = np.random.default_rng(place).bytes(48 * 48)
        path.write_bytes(bytes(content))
    text = spoilt.read_text(encoding="utf-8")
    spoilt.write_text(text.replace(str(read_site(spoilt).images.folder), str(folder)), encoding="utf-8")
    for path in [spoilt, *others]:
        moved = path.read_text(encoding="utf-8").replace(str(out), str(tmp_path / "out"))
        path.write_text(moved, encoding="utf-8")
    jobs = baseline_jobs([spoilt, *others], seed=3, compare=True, leave_one_out=True)
    wanted = [job for job in jobs if (job.left_out and job.name == name) or job.name == POOLED]
    again = {job.label: metrics for job, metrics in run_baselines(wanted, num_workers=1)}
    assert result.baselines is not None
    before, after = result.baselines.left_out[name], again[f"without {name}"]
    assert before.by_site is not None
    assert after.by_site is not None
    assert after.by_site[other] == before.by_site[other]
    assert after.by_site[name] != before.by_site[name]
    assert result.baselines.pooled is not None
    assert result.baselines.pooled.by_site is not None
    assert again[POOLED].by_site is not None
    assert again[POOLED].by_site[other] != result.baselines.pooled.by_site[other]


@pytest.mark.slow
def test_thresholds_of_the_servers_sums_are_applied_to_the_exact_ones(done: tuple[Result, Path]) -> None:
    """Without noise both are the same patients: at a threshold they have the same figures, to a digit."""
    result, out = done
    assert result.test_assessment is not None
    assert result.exact_assessment is not None
    (served,), (exact,) = result.test_assessment.parts, result.exact_assessment.parts
    assert [point.name for point in served.operating_points] == ["0.5", "screening"]
    assert served.operating_points == exact.operating_points
    screening = served.operating_points[1]
    assert screening.threshold is not None
    assert screening.validated_round == 3
    assert result.exact_auroc_in_bins == pytest.approx(result.test["auroc"])
    page = (out / "report.html").read_text(encoding="utf-8")
    for words in (
        "ROC curve",
        "Precision-recall curve",
        "Calibration",
        "Operating points",
        "sensitivity 0.8",
    ):
        assert words in page
