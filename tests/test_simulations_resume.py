"""A stopped run goes on: what was trained is not trained again, and nothing of another run is mistaken for it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_simulations_run import hospitals, quiet, scenario_text  # noqa: F401 - a fixture

from server.checkpoint import read_checkpoint
from server.result import Result
from shared_models.configuration import ConfigurationError
from shared_models.messages import Evaluate, decode_request
from simulations import baselines, kept_baselines
from simulations.baselines import POOLED, baseline_jobs
from simulations.local_exchange import LocalExchange
from simulations.preparation.hospitals import PreparationError
from simulations.run_folder import Engine, Noted, OutputFolderError, begun, held, worth_keeping
from simulations.runner import Display, Options, run_scenario
from simulations.scenario import Scenario, read_scenario

WEIGHTS = {'weights = "equal"': 'weights = "patients"\nmax_patients = 100'}


def scenario_in(folder: Path, *, changes: dict[str, str] | None = None, faults: str = "") -> Scenario:
    path = folder / "scenario.toml"
    path.write_text(scenario_text(changes=changes) + faults, encoding="utf-8")
    return read_scenario(str(path))


def options_for(out: Path, hospitals: Path, **given: bool) -> Options:  # noqa: F811
    return replace(Options(engine="local", compare=False, out=out, hospitals=hospitals), **given)


def ctrl_c_after(num_rounds: int) -> Display:
    def rounds(done: int) -> None:
        if done == num_rounds:
            raise KeyboardInterrupt

    return replace(quiet(), rounds=rounds)


def trained_again() -> tuple[Display, list[int]]:
    told: list[int] = []
    return replace(quiet(), rounds=told.append), told


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_its_next_round(tmp_path: Path, hospitals: Path) -> None:  # noqa: F811
    scenario, out = scenario_in(tmp_path, changes={"num_rounds = 3": "num_rounds = 4"}), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_scenario(scenario, options_for(out, hospitals), ctrl_c_after(2))
    checkpoint = begun(out)
    assert checkpoint is not None
    progress, after_two = read_checkpoint(checkpoint, study_hash=scenario.study.hash)
    assert [record.burned for record in progress.rounds] == [None, None]

    shutil.copytree(hospitals, tmp_path / "others")
    with pytest.raises(OutputFolderError, match="begun with other hospitals"):
        run_scenario(scenario, options_for(out, tmp_path / "others", resume=True), quiet())

    display, told = trained_again()
    result = run_scenario(scenario, options_for(out, hospitals, resume=True), display)

    assert told[0] == 3
    assert result.run_id == progress.run_id
    assert [entry.round for entry in result.rounds] == [1, 2, 3, 4]
    assert not any(entry.burned for entry in result.rounds), "it was stopped between two rounds"
    assert result.exact_test is not None
    whole = run_scenario(scenario, options_for(tmp_path / "whole", hospitals), quiet())
    assert result.exact_test == whole.exact_test
    kept, of_whole = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "whole"))
    assert all(np.array_equal(kept[name], of_whole[name]) for name in of_whole)
    assert after_two.num_steps == 2


@pytest.mark.slow
def test_a_stop_in_the_final_test_costs_its_figures_and_nothing_passes_for_them(
    tmp_path: Path,
    hospitals: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under privacy: what each hospital has spent is shown all the same."""
    path = tmp_path / "scenario.toml"
    path.write_text(scenario_text(private=True), encoding="utf-8")
    scenario, out = read_scenario(str(path)), tmp_path / "out"
    original = LocalExchange.exchange

    def stopped(self, requests, **given):  # type: ignore[no-untyped-def]
        for reply in original(self, requests, **given):
            yield reply
            if all(isinstance(decode_request(message)[0], Evaluate) for message in requests.values()):
                raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(LocalExchange, "exchange", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_scenario(scenario, options_for(out, hospitals), quiet())
    result = run_scenario(scenario, options_for(out, hospitals, resume=True, pooled=True), quiet())
    assert result.test_burned is not None
    assert not result.test
    with_figures = [site.name for site in result.sites if site.test is not None]
    assert (result.exact_test is None) == (len(with_figures) < len(result.sites))
    assert all(site.epsilon == pytest.approx(result.privacy.epsilon) for site in result.sites)
    assert result.baselines is not None
    assert result.baselines.pooled is not None
    assert result.baselines.pooled.epsilon == pytest.approx(result.privacy.epsilon)


def test_a_run_that_is_going_on_is_not_entered(tmp_path: Path) -> None:
    scenario, prepared = scenario_in(tmp_path), tmp_path / "prepared"
    out = marked(tmp_path / "out", scenario, hospitals=prepared)
    (out / "work").mkdir()
    with held(out):
        for given in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(OutputFolderError, match="a run is going on in it"):
                run_scenario(scenario, options_for(out, prepared, **given), quiet())
    assert (out / "work").exists()


@pytest.mark.slow
def test_ctrl_c_during_a_resumption_never_removes_what_was_there(tmp_path: Path, hospitals: Path) -> None:  # noqa: F811
    scenario, out = scenario_in(tmp_path), tmp_path / "out"
    marked(out, scenario, hospitals=hospitals)

    def say(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_scenario(scenario, options_for(out, hospitals, resume=True), replace(quiet(), say=say))
    assert (out / "scenario.json").exists()


def test_other_versions_are_told_of(tmp_path: Path) -> None:
    scenario, prepared = scenario_in(tmp_path), tmp_path / "prepared"
    noted = Noted.of(scenario, "local", prepared)
    out = marked(tmp_path / "out")
    older = noted.model_copy(update={"versions": {**noted.versions, "torch": "1.0"}})
    (out / "scenario.json").write_text(older.model_dump_json(), encoding="utf-8")
    told: list[str] = []
    with pytest.raises(PreparationError):
        run_scenario(scenario, options_for(out, prepared, resume=True), replace(quiet(), say=told.append))
    assert "torch 1.0 → " in told[0]


def test_a_run_that_is_stopped_before_its_first_round_is_done_leaves_nothing_half_written(
    tmp_path: Path,
    hospitals: Path,  # noqa: F811
) -> None:
    def say(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_scenario(
            scenario_in(tmp_path), options_for(tmp_path / "out", hospitals), replace(quiet(), say=say)
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_baselines_are_added_to_a_run_that_is_done_and_none_is_trained_twice(
    tmp_path: Path,
    hospitals: Path,  # noqa: F811
) -> None:
    scenario, out = scenario_in(tmp_path), tmp_path / "out"
    first = run_scenario(scenario, options_for(out, hospitals), quiet())
    assert first.baselines is None

    display, told = trained_again()
    pooled = run_scenario(scenario, options_for(out, hospitals, resume=True, pooled=True), display)
    assert told == [scenario.study.training.num_rounds]
    assert pooled.model_digest == first.model_digest
    assert pooled.baselines is not None

    figures = out / "work" / "baselines" / "pooled" / "pooled.json"
    assert json.loads(figures.read_text())["study_hash"] == scenario.study.hash
    both = run_scenario(scenario, options_for(out, hospitals, resume=True, leave_one_out=True), quiet())
    without = run_scenario(scenario, options_for(out, hospitals, resume=True), quiet())
    assert without.baselines is not None
    assert both.baselines is not None
    assert without.baselines == both.baselines, "nothing was asked for, and nothing is lost"
    assert both.baselines.pooled == pooled.baselines.pooled, "seconds among it: trained once"
    assert set(both.baselines.left_out) == {site.name for site in both.sites}
    assert not both.baselines.alone
    assert Result.model_validate_json((out / "result.json").read_bytes(), strict=False) == without


class PowerCutError(RuntimeError):
    """Stands for whatever ends a process."""


def train_until(monkeypatch: pytest.MonkeyPatch, num_rounds: int) -> None:
    """Cut the power in the round after so many."""
    original = baselines._Learner.round

    def round_or_not(self, state, number, generator, reductions):  # type: ignore[no-untyped-def]
        if number > num_rounds:
            raise PowerCutError
        return original(self, state, number, generator, reductions)

    monkeypatch.setattr(baselines._Learner, "round", round_or_not)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"round_timeout": 'server_optimizer = "adam"\nserver_learning_rate = 0.01\nround_timeout'},
        {
            "learning_rate = 0.1": 'learning_rate = 0.1\nschedule = "plateau"\nema_decay = 0.5\nearly_stopping = 9',
            "validation_rounds = [1, 3]": "validation_rounds = [1, 2]",
        },
    ],
    ids=["plain", "adam", "plateau"],
)
def test_a_baseline_that_was_cut_off_ends_as_if_it_had_not_been(
    tmp_path: Path,
    hospitals: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
) -> None:
    scenario, out = scenario_in(tmp_path, changes=changes), tmp_path / "out"
    run_scenario(scenario, options_for(out, hospitals), quiet())
    files = sorted((out / "work" / "sites").glob("*/site.toml"))
    monkeypatch.setattr(kept_baselines, "SECONDS_BETWEEN", 0.0)

    def pooled_kept_in(folder: Path) -> baselines.BaselineJob:
        (job,) = baseline_jobs(files, seed=3, compare=False, leave_one_out=False, pooled=True, keep_in=folder)
        return job

    _, whole = baselines._train_baseline(pooled_kept_in(tmp_path / "whole"))
    with monkeypatch.context() as cut:
        train_until(cut, 2)
        with pytest.raises(PowerCutError):
            baselines._train_baseline(pooled_kept_in(tmp_path / "cut"))
    _, gone_on = baselines._train_baseline(pooled_kept_in(tmp_path / "cut"))
    assert gone_on.metrics == whole.metrics
    assert gone_on.by_site == whole.by_site
    assert not list((tmp_path / "cut").rglob("*.safetensors")), "the state is not needed any more"

    train_until(monkeypatch, 0)
    assert baselines._train_baseline(pooled_kept_in(tmp_path / "cut"))[1] == gone_on
    with pytest.raises(PowerCutError):
        baselines._train_baseline(pooled_kept_in(tmp_path / "empty"))


def spoil_text(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def spoil_study(path: Path) -> None:
    state, metadata = kept_baselines.read_model_state(path)
    kept_baselines.write_model_state(path, state, {**metadata, "study_hash": "0" * 64})


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [spoil_text, spoil_study])
def test_a_state_that_is_damaged_or_of_another_study_is_begun_anew(
    tmp_path: Path,
    hospitals: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
) -> None:
    scenario, out = scenario_in(tmp_path), tmp_path / "out"
    run_scenario(scenario, options_for(out, hospitals), quiet())
    monkeypatch.setattr(kept_baselines, "SECONDS_BETWEEN", 0.0)
    files = sorted((out / "work" / "sites").glob("*/site.toml"))
    (job,) = baseline_jobs(
        files, seed=3, compare=False, leave_one_out=False, pooled=True, keep_in=tmp_path / "kept"
    )
    with monkeypatch.context() as cut:
        train_until(cut, 2)
        with pytest.raises(PowerCutError):
            baselines._train_baseline(job)
    state = tmp_path / "kept" / POOLED / f"{POOLED}.safetensors"
    spoil(state)
    train_until(monkeypatch, 0)
    with pytest.raises(PowerCutError):
        baselines._train_baseline(job)


def marked(
    out: Path,
    scenario: Scenario | None = None,
    *,
    engine: Engine = "local",
    hospitals: Path | None = None,  # noqa: F811
) -> Path:
    out.mkdir()
    (out / ".collegium-run").write_text("ours", encoding="utf-8")
    if scenario is not None:
        noted = Noted.of(scenario, engine, hospitals)
        (out / "scenario.json").write_text(noted.model_dump_json(), encoding="utf-8")
    return out


def test_what_cannot_be_gone_on_with_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path)
    other = scenario.model_copy(update={"seed": scenario.seed + 1})
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    (prepared / "hospitals.json").write_text("{}", encoding="utf-8")
    anew = marked(tmp_path / "anew", scenario, hospitals=prepared)
    (prepared / "hospitals.json").write_text('{"seed": 2}', encoding="utf-8")
    complete = marked(tmp_path / "complete", scenario, hospitals=prepared)
    (complete / "result.json").write_text("{}", encoding="utf-8")
    cases = [
        (tmp_path / "missing", "holds no run to go on with"),
        (nothing, "holds no run to go on with"),
        (marked(tmp_path / "old"), "another version of Collegium"),
        (marked(tmp_path / "other", other, hospitals=prepared), "another scenario"),
        (marked(tmp_path / "deployed", scenario, engine="deployed", hospitals=prepared), "deployed engine"),
        (marked(tmp_path / "own", scenario), "other hospitals, those of its own"),
        (anew, "were prepared anew since"),
        (complete, "its folder work is gone"),
    ]
    for out, words in cases:
        before = sorted(out.rglob("*")) if out.exists() else None
        with pytest.raises(OutputFolderError, match=words):
            run_scenario(scenario, options_for(out, prepared, resume=True), quiet())
        assert (sorted(out.rglob("*")) if out.exists() else None) == before


def test_options_that_do_not_go_with_a_resumption_are_refused(tmp_path: Path) -> None:
    scenario, out = scenario_in(tmp_path), tmp_path / "out"
    asked = options_for(out, tmp_path, resume=True)
    with pytest.raises(ConfigurationError, match="local engine"):
        run_scenario(scenario, replace(asked, engine="deployed"), quiet())
    with pytest.raises(ConfigurationError, match="give one of them"):
        run_scenario(scenario, replace(asked, overwrite=True), quiet())
    assert not out.exists()


@pytest.mark.slow
def test_a_scenario_with_faults_is_not_gone_on_with(tmp_path: Path, hospitals: Path) -> None:  # noqa: F811
    names = [entry["name"] for entry in json.loads((hospitals / "hospitals.json").read_text())["hospitals"]]
    fault = f'[[faults]]\nsite = "{names[0]}"\nround = 2\nexchange = "train"\nwhen = "before"\n'
    scenario = scenario_in(tmp_path, faults=fault)
    with pytest.raises(ConfigurationError, match="cannot be gone on with"):
        run_scenario(scenario, options_for(tmp_path / "out", hospitals, resume=True), quiet())


@pytest.mark.slow
def test_a_run_that_was_stopped_before_its_first_round_begins_again(
    tmp_path: Path,
    hospitals: Path,  # noqa: F811
) -> None:
    """The power failed: nobody removed the folder."""
    scenario, out = scenario_in(tmp_path), tmp_path / "out"
    marked(out, scenario, hospitals=hospitals)
    (out / "work" / "sites" / "half").mkdir(parents=True)
    assert not worth_keeping(out, scenario)
    result = run_scenario(scenario, options_for(out, hospitals, resume=True), quiet())
    assert len(result.rounds) == scenario.study.training.num_rounds
    assert not (out / "work" / "sites" / "half").exists()
    shutil.rmtree(out)
