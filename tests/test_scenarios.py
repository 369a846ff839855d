"""The shipped scenarios reach what the README says. Minutes each: `make thorough`."""

import os
from pathlib import Path

import pytest

from server.result import Result
from simulations.run_folder import Engine
from simulations.run_plots import alone_mean
from simulations.runner import Display, Options, run_scenario
from simulations.scenario import read_scenario

DATA = os.environ.get("COLLEGIUM_DATA")
needs_data = pytest.mark.skipif(
    DATA is None, reason="set COLLEGIUM_DATA to a folder that holds the public data sets"
)


def run(name: str, out: Path, *, seed: int | None = None, engine: Engine = "local") -> Result:
    scenario = read_scenario(name)
    if seed is not None:
        model = scenario.study.model.model_copy(update={"seed": seed})
        study = scenario.study.model_copy(update={"model": model})
        scenario = scenario.model_copy(update={"seed": seed, "study": study})
    display = Display(
        prepared=lambda done, total: None,
        rounds=lambda done: None,
        baselines=lambda done, total: None,
        say=lambda text: None,
    )
    return run_scenario(scenario, Options(engine=engine, compare=True, out=out), display)


def gain(result: Result) -> float:
    """AUROC of the federated model over the mean of the hospitals alone, on the same test patients."""
    mean = alone_mean(result, "auroc")
    federated = (result.exact_test or result.test)["auroc"]
    assert mean is not None
    assert federated is not None
    return federated - mean


@pytest.mark.thorough
def test_in_the_demo_federated_beats_alone_by_three_points_in_the_mean_of_three_seeds(tmp_path) -> None:
    gains = [gain(run("demo", tmp_path / str(seed), seed=seed)) for seed in (7, 8, 9)]
    assert sum(gains) / len(gains) >= 0.03, gains


@pytest.mark.thorough
@needs_data
@pytest.mark.deployed
def test_ham10000_deployed_is_above_alone_and_within_three_points_of_pooled(tmp_path) -> None:
    result = run("ham10000", tmp_path / "ham10000", engine="deployed")
    assert result.baselines is not None
    assert result.baselines.pooled is not None
    assert gain(result) > 0
    federated, pooled = result.test["auroc"], result.baselines.pooled.auroc
    assert federated is not None
    assert pooled is not None
    assert federated >= pooled - 0.03
    assert all(site.test is not None and site.test["auroc"] is not None for site in result.sites)


@pytest.mark.thorough
@needs_data
@pytest.mark.deployed
def test_pneumoniamnist_deployed_reaches_its_auroc_on_the_official_test_images(tmp_path) -> None:
    result = run("pneumoniamnist", tmp_path / "pneumoniamnist", engine="deployed")
    assert result.test["num_patients"] == 624
    assert result.test["auroc"] is not None
    assert result.test["auroc"] >= 0.93


@pytest.mark.thorough
@needs_data
@pytest.mark.parametrize("name", ["ham10000-private", "pneumoniamnist-private"])
def test_the_private_scenarios_learn_within_their_epsilon(tmp_path, name: str) -> None:
    result = run(name, tmp_path / name)
    assert result.privacy.epsilon is not None
    assert result.privacy.epsilon <= 8.0
    assert all(site.epsilon is not None and site.epsilon <= 8.0 for site in result.sites)
    assert result.exact_test is not None
    assert result.exact_test["auroc"] is not None
    assert result.exact_test["auroc"] > 0.6
