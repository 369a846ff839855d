"""A scenario whose validations get no better: federation and baselines end early, and cost what was spent."""

from pathlib import Path

import pytest
from test_simulations_run import quiet, scenario_text

from client.budget import training_cost
from simulations.runner import Options, run_scenario
from simulations.scenario import read_scenario


@pytest.mark.thorough
def test_federation_and_baselines_end_early_and_cost_what_was_spent(tmp_path: Path) -> None:
    """Steps so small that no validation is better than the first: with patience 1, three rounds of eight."""
    text = scenario_text(
        changes={
            'mode = "none"': 'mode = "local"\nepsilon = 5.0\ndelta = 1e-4\nnum_patients = 1000\nmax_grad_norm = 1.0',
            "num_rounds = 3": "num_rounds = 8",
            "validation_rounds = [1, 3]": "validation_rounds = [1, 2, 3, 4, 5]",
            "learning_rate = 0.1": 'learning_rate = 1e-12\noptimizer = "adamw"\nearly_stopping = 1',
        }
    )
    (tmp_path / "scenario.toml").write_text(text, encoding="utf-8")
    scenario = read_scenario(str(tmp_path / "scenario.toml"))
    options = Options(engine="local", compare=True, out=tmp_path / "out", num_workers=1)
    result = run_scenario(scenario, options, quiet())
    cost = training_cost(scenario.study)
    assert cost is not None
    spent = cost.after(3 * scenario.study.training.local_steps).epsilon(1e-4)
    assert len(result.rounds) == 3
    assert result.test
    assert [site.epsilon for site in result.sites] == [pytest.approx(spent)] * 3
    assert result.privacy.epsilon is not None
    assert result.privacy.epsilon > 1.2 * spent
    assert result.baselines is not None
    assert result.baselines.pooled is not None
    every = [result.baselines.pooled, *result.baselines.alone.values()]
    assert [one.epsilon for one in every] == [pytest.approx(spent)] * 4
