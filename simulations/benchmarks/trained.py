"""Rerun of a table of ``docs/scenarios.md``: models of several seeds, on the official test images."""

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from shared_models.configuration import ConfigurationError
from simulations.benchmarks.demo import NAME, demo
from simulations.benchmarks.rounds import SILENT
from simulations.benchmarks.table import Benchmark, Row, rows_of
from simulations.runner import Options, default_workers, run_scenario
from simulations.scenario import Scenario, read_scenario

SCENARIOS = ("pneumoniamnist", "breastmnist")
NUM_SEEDS = 3
METRICS = {"auroc": "AUROC", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
POOLED, FEDERATED, AS_KNOWN = "pooled", "federated, exact", "federated, as the server knows it"


def measure(quick: bool) -> tuple[Row, ...]:
    """Train each scenario with several seeds, and one pooled model with each.

    Raises:
        ConfigurationError: ``COLLEGIUM_DATA`` is not set.
    """
    if quick:
        return _rows(NAME, [demo(quick=True)])
    if "COLLEGIUM_DATA" not in os.environ:
        raise ConfigurationError(
            f"the scenarios {' and '.join(SCENARIOS)} read public images: set COLLEGIUM_DATA to the folder in which "
            "the collections lie, see docs/scenarios.md"
        )
    return tuple(
        row
        for name in SCENARIOS
        for row in _rows(name, [_of_seed(read_scenario(name), later) for later in range(NUM_SEEDS)])
    )


def _of_seed(scenario: Scenario, later: int) -> Scenario:
    """The scenario with the seeds of hospitals and model counted up."""
    model = scenario.study.model
    model = model.model_copy(update={"seed": model.seed + later})
    study = scenario.study.model_copy(update={"model": model})
    return scenario.model_copy(update={"seed": scenario.seed + later, "study": study})


def _rows(name: str, scenarios: list[Scenario]) -> tuple[Row, ...]:
    """One row for each metric and kind of model, over the seeds."""
    models = [_trained(scenario) for scenario in scenarios]
    rows: list[Row] = []
    for metric, words in METRICS.items():
        values = {kind: [_known(model[kind], metric) for model in models] for kind in models[0]}
        rows += rows_of(f"{name}: {words} on test patients", "", values, baseline=POOLED)
    return tuple(rows)


def _known(metrics: Mapping[str, float | None], metric: str) -> float:
    value = metrics[metric]
    if value is None:
        raise RuntimeError(f"{metric} of a model is not known: its test has no patients of one kind")
    return value


def _trained(scenario: Scenario) -> dict[str, Mapping[str, float | None]]:
    with TemporaryDirectory() as folder:
        options = Options(
            engine="local",
            compare=False,
            pooled=True,
            out=Path(folder) / "run",
            num_workers=default_workers(),
        )
        result = run_scenario(scenario, options, SILENT)
    if result.baselines is None or result.baselines.pooled is None or result.exact_test is None:
        raise RuntimeError("a simulation with a pooled model has figures of both")
    return {
        POOLED: result.baselines.pooled.metrics,
        FEDERATED: result.exact_test,
        AS_KNOWN: result.test,
    }


BENCHMARK = Benchmark(
    name="trained",
    title="models without privacy on PneumoniaMNIST and BreastMNIST, five hospitals",
    method=(
        "the built-in scenarios, seeds of hospitals and model counted up; figures on the official test images, "
        "more is better; the baseline is one model on the pooled data, after as many steps"
    ),
    measure=measure,
)
