"""``round``: what carrying the messages of one round costs, in worker processes and over Flower."""

import tempfile
from pathlib import Path

from server.result import RoundEntry
from shared_models.configuration import parse_toml
from simulations.benchmarks.table import Benchmark, Row, rows_of
from simulations.preparation.hospitals import prepare
from simulations.run_folder import Engine
from simulations.runner import Display, Options, run_scenario
from simulations.scenario import Scenario

BASELINE: Engine = "local"
NUM_SITES = 3
SCENARIO = """
title = "Next to no training, one million weights"
seed = 1

[hospitals]
kind = "phantom"
num_hospitals = {num_sites}
patients_per_hospital = 20
image_size = 32

[study]
name = "round-benchmark"
title = "Next to no training, one million weights"
task = {{ kind = "binary-classification", label = "finding", positive = ["opacity"], negative = ["clear"] }}
patients = {{ roles = "hash", min_training = 1 }}
image = {{ modalities = ["DX", "CR"], channels = 1, rows = 8, columns = 8, intensity = "percentiles" }}
model = {{ architecture = "small-cnn", width = {width} }}
training = {{ num_rounds = {num_rounds}, local_steps = 1, sample_rate = 0.1, learning_rate = 0.01 }}
privacy = {{ mode = "none" }}
evaluation = {{ num_bins = 2, unnoised = true }}

[study.aggregation]
weights = "equal"
num_sites_max = {num_sites}
min_cohort = {num_sites}
threshold = 2
num_colluding = 0
round_timeout_seconds = 120.0
"""
SILENT = Display(
    prepared=lambda done, total: None,
    rounds=lambda done: None,
    baselines=lambda done, total: None,
    say=lambda text: None,
)


def measure(quick: bool) -> tuple[Row, ...]:
    """Seconds of a round, and of what is left of it without the slowest site's training."""
    num_runs, num_rounds, width = (1, 2, 8) if quick else (2, 11, 64)
    text = SCENARIO.format(num_sites=NUM_SITES, num_rounds=num_rounds, width=width)
    scenario = parse_toml(text, Scenario, origin="the benchmark's scenario")
    rounds: dict[Engine, list[RoundEntry]] = {BASELINE: [], "deployed": []}
    with tempfile.TemporaryDirectory(prefix="cb-") as folder:
        prepare(scenario.hospitals, Path(folder) / "hospitals", scenario.seed)
        for number in range(num_runs):
            for engine, entries in rounds.items():
                # the first round, in which each process does things for the first time, is left out
                entries.extend(run_engine(scenario, engine, Path(folder), number)[1:])
    case = f"{NUM_SITES} sites × {weights_of(width) / 1e6:.2f} million weights"
    return (
        *rows_of(f"{case}: a round's exchange", "s", _seconds(rounds), baseline=BASELINE),
        *rows_of(
            f"{case}: without training", "s", _seconds(rounds, without_training=True), baseline=BASELINE
        ),
    )


def run_engine(scenario: Scenario, engine: Engine, folder: Path, number: int) -> tuple[RoundEntry, ...]:
    """The rounds of one run in *folder*, whose hospitals are prepared."""
    options = Options(
        engine=engine,
        compare=False,
        out=folder / f"{engine}-{number}",
        hospitals=folder / "hospitals",
        num_workers=NUM_SITES,
    )
    return run_scenario(scenario, options, SILENT).rounds


def _seconds(
    rounds: dict[Engine, list[RoundEntry]], *, without_training: bool = False
) -> dict[str, tuple[float, ...]]:
    return {
        engine: tuple(
            entry.seconds["exchange"] - (entry.seconds["train_slowest_site"] if without_training else 0.0)
            for entry in entries
        )
        for engine, entries in rounds.items()
    }


def weights_of(width: int) -> int:
    """Number of weights of the small CNN with one channel."""
    return 9 * (width + 26 * width**2) + 11 * 3 * width + 4 * width + 1


BENCHMARK = Benchmark(
    name="round",
    title="one round with next to no training, by engine",
    method="seconds from the first request to the last vector folded, as result.json has them, of real sites and the "
    "real round loop; the first round of a run is left out; engines in turn; higher is slower",
    measure=measure,
)
