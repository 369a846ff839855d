"""Whole scenarios: the local engine end to end, the figures it writes, and what bad input is told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting import pld
from safetensors.numpy import load_file
from studies import study_text
from typer.testing import CliRunner

from client.site_file import read_site
from server.result import Result
from shared_models.architectures import build_model
from shared_models.manifest import Manifest
from shared_models.messages import Open, encode
from simulations.command import app
from simulations.local_exchange import LocalExchange
from simulations.preparation.hospitals import read_hospitals
from simulations.run_folder import OutputFolderError, worth_keeping
from simulations.runner import Display, Options, run_scenario
from simulations.scenario import built_in_scenarios, read_scenario
from simulations.work_folder import enrol, write_site

ROOT = Path(__file__).resolve().parent.parent


def scenario_text(*, private: bool = False, changes: dict[str, str] | None = None) -> str:
    wanted = {
        'modalities = ["CR"]': 'modalities = ["CR", "DX"]\nintensity = "percentiles"',
        "min_training = 1": "min_training = 5",
        **(changes or {}),
    }
    lines = study_text(wanted, private=private).splitlines()
    study = [line.replace("[", "[study.", 1) if line.startswith("[") else line for line in lines]
    head = [
        'title = "A tiny scenario"',
        "seed = 3",
        "[hospitals]",
        'kind = "phantom"',
        "num_hospitals = 3",
        "patients_per_hospital = [40, 30, 30]",
        "image_size = 48",
        "[study]",
    ]
    return "\n".join([*head, *study]) + "\n"


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory) -> Path:
    """Three tiny hospitals, prepared once."""
    from simulations.preparation.hospitals import prepare
    from simulations.preparation.sources import PhantomSource

    out = tmp_path_factory.mktemp("prepared") / "hospitals"
    source = PhantomSource(num_hospitals=3, patients_per_hospital=(40, 30, 30), image_size=48)
    prepare(source, out, 3)
    return out


def quiet() -> Display:
    return Display(
        prepared=lambda done, total: None,
        rounds=lambda done: None,
        baselines=lambda done, total: None,
        say=lambda text: None,
    )


def run(tmp_path: Path, hospitals: Path, name: str, **kwargs: object) -> tuple[Result, Path]:
    path = tmp_path / f"{name}.toml"
    path.write_text(
        scenario_text(**{k: v for k, v in kwargs.items() if k in ("private", "changes")}), "utf-8"
    )
    options = Options(
        engine=kwargs.get("engine", "local"),
        compare=bool(kwargs.get("compare", False)),
        out=tmp_path / name,
        hospitals=hospitals,
        num_workers=int(kwargs.get("workers", 2)),
    )
    return run_scenario(read_scenario(str(path)), options, quiet()), options.out


def weights(out: Path) -> np.ndarray:
    arrays = load_file(out / "model.safetensors")
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


def test_every_built_in_scenario_is_valid() -> None:
    names = built_in_scenarios()
    assert {"demo", "ham10000", "ham10000-private", "pneumoniamnist", "pneumoniamnist-private"} <= set(names)
    hashes = {read_scenario(name).study.hash for name in names}
    assert len(hashes) == len(names)


def test_private_and_plain_scenarios_differ_in_privacy_and_its_training_only() -> None:
    for name in ("ham10000", "pneumoniamnist"):
        plain, private = read_scenario(name), read_scenario(f"{name}-private")
        assert plain.hospitals == private.hospitals
        assert plain.seed == private.seed
        assert plain.study.task == private.study.task
        assert plain.study.image == private.study.image
        assert private.study.privacy.mode == "local"


@pytest.mark.slow
def test_a_private_run_with_baselines_writes_what_the_documents_say(tmp_path, hospitals) -> None:
    little_noise = {
        "epsilon = 4.0": "epsilon = 100.0"
    }  # on so few patients, more would leave no AUROC to plot
    result, out = run(tmp_path, hospitals, "private", private=True, compare=True, changes=little_noise)
    written = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert Result.model_validate_json((out / "result.json").read_bytes(), strict=False) == result
    assert list(written)[:1] == ["schema"]
    assert {
        "schema",
        "study",
        "engine",
        "versions",
        "privacy",
        "sites",
        "rounds",
        "test",
        "baselines",
    } <= set(written)
    assert set(written["baselines"]["alone"]) == {"hospital-1", "hospital-2", "hospital-3"}
    assert written["baselines"]["pooled"]["auroc"] is not None
    for site in written["sites"]:
        assert 0 < site["patients_used"] <= site["patients_found"]
        assert [number for number, _ in site["epsilon_by_round"]] == [1, 2, 3]
        assert site["epsilon_by_round"][-1][1] == pytest.approx(site["epsilon"])
        assert site["epsilon_by_round"] == sorted(site["epsilon_by_round"])
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "the server opens sums of at least 2 sites, and nothing else" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert "<script" not in page
    assert page.count("<svg") == 7
    assert not list(out.rglob("*.partial"))


@pytest.mark.thorough
def test_the_epsilon_in_the_result_equals_an_independent_computation(tmp_path, hospitals) -> None:
    result, _ = run(tmp_path, hospitals, "epsilon", private=True)
    privacy = result.privacy
    assert privacy.noise_multiplier is not None
    accountant = pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    step = dp.PoissonSampledDpEvent(privacy.sample_rate, dp.GaussianDpEvent(privacy.noise_multiplier))
    accountant.compose(step, privacy.steps)
    accountant.compose(dp.GaussianDpEvent(30.0))
    expected = accountant.get_epsilon(privacy.delta)
    assert privacy.epsilon == pytest.approx(expected, rel=1e-6)
    assert privacy.epsilon_rdp is not None
    assert privacy.epsilon < privacy.epsilon_rdp
    assert all(site.epsilon == pytest.approx(expected, rel=1e-6) for site in result.sites)
    assert expected <= 5.0


@pytest.mark.thorough
def test_the_number_of_workers_does_not_change_a_bit_of_the_weights(tmp_path, hospitals) -> None:
    _, one = run(tmp_path, hospitals, "one", workers=1)
    _, three = run(tmp_path, hospitals, "three", workers=3)
    np.testing.assert_array_equal(weights(one), weights(three))


@pytest.mark.slow
@pytest.mark.deployed
def test_local_and_deployed_engines_give_bit_identical_weights(tmp_path, hospitals) -> None:
    local_result, local = run(tmp_path, hospitals, "local")
    deployed_result, deployed = run(tmp_path, hospitals, "deployed", engine="deployed")
    np.testing.assert_array_equal(weights(local), weights(deployed))
    assert local_result.test == deployed_result.test
    assert deployed_result.engine == "deployed"
    assert all(site.test is not None for site in deployed_result.sites), "read from each site's own result"


@pytest.mark.slow
def test_a_fixed_seed_without_noise_gives_the_same_figures_as_ever(tmp_path, hospitals) -> None:
    """Golden: refactoring must not change numbers. The tolerance covers other processors' arithmetic."""
    result, out = run(tmp_path, hospitals, "golden")
    assert result.test["num_patients"] == GOLDEN_PATIENTS
    assert float(np.abs(weights(out)).mean()) == pytest.approx(GOLDEN_MEAN, rel=1e-3)


GOLDEN_PATIENTS = 22
GOLDEN_MEAN = 0.0416268


@pytest.mark.slow
def test_a_worker_that_dies_takes_its_sites_with_it_and_nothing_else(tmp_path, hospitals) -> None:
    scenario = tmp_path / "kill.toml"
    scenario.write_text(scenario_text(), encoding="utf-8")
    study = read_scenario(str(scenario)).study
    paths = [
        write_site(tmp_path / hospital.name, hospital, study, seed=3)
        for hospital in read_hospitals(hospitals).hospitals
    ]
    roster = enrol(tmp_path / "server", paths, study).hash.hex()
    files = [read_site(path) for path in paths]
    manifest = Manifest.of(build_model(study)).hash
    request = encode(Open(run_id="run-1", study_hash=study.hash, manifest_hash=manifest, roster_hash=roster))
    with LocalExchange(files, num_workers=3) as exchange:
        everybody = dict.fromkeys(exchange.sites(), request)
        assert len(list(exchange.exchange(everybody, timeout_seconds=60))) == 3
        victim = exchange._workers[0]
        os.kill(victim.process.pid, signal.SIGKILL)
        victim.process.join()
        assert len(list(exchange.exchange(everybody, timeout_seconds=60))) == 2
        assert len(exchange.sites()) == 2


def test_a_folder_with_something_else_in_it_is_not_touched(tmp_path, hospitals) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work", encoding="utf-8")
    scenario = read_scenario("demo")
    for overwrite in (False, True):
        options = Options(engine="local", compare=False, out=out, hospitals=hospitals, overwrite=overwrite)
        with pytest.raises(OutputFolderError, match="is no earlier run"):
            run_scenario(scenario, options, quiet())
    assert (out / "thesis.tex").read_text(encoding="utf-8") == "years of work"


@pytest.mark.thorough
def test_a_wrong_scenario_is_told_with_line_and_key(tmp_path) -> None:
    path = tmp_path / "wrong.toml"
    text = scenario_text().replace("num_rounds = 3", "num_rounds = 0")
    path.write_text(text, encoding="utf-8")
    line = text.splitlines().index("num_rounds = 0") + 1
    done = subprocess.run(
        [sys.executable, "-m", "simulations.command", "run", str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 2
    assert f"line {line}: study.training.num_rounds = 0" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_an_unknown_scenario_is_told_with_those_there_are() -> None:
    result = CliRunner().invoke(app, ["run", "nowhere"])
    assert "built in are" in str(result.exception)


@pytest.mark.slow
def _listens_to_ctrl_c() -> None:
    """As in a terminal: a shell that starts something in the background has it ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_running_and_what_was_trained_is_kept(tmp_path, hospitals) -> None:
    path = tmp_path / "long.toml"
    path.write_text(scenario_text(changes={"num_rounds = 3": "num_rounds = 9999"}), encoding="utf-8")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "simulations.command", "run", str(path), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--hospitals", str(hospitals)],
        stderr=subprocess.PIPE,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        start_new_session=True,
        preexec_fn=_listens_to_ctrl_c,  # noqa: PLW1509 - this process has no other threads
    )
    deadline = time.monotonic() + 60
    while not worth_keeping(out, read_scenario(str(path))):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"nothing is left running" in told
    assert f"--out {out} --resume" in " ".join(told.decode().split())
    assert worth_keeping(out, read_scenario(str(path)))
    deadline = time.monotonic() + 10
    while subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True, check=False).stdout.strip():
        assert time.monotonic() < deadline, "a process of the simulation is left"
        time.sleep(0.1)
