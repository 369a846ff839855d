"""``deployed-round``: a round of three sites over TLS with next to no training, beside Flower's own SecAgg+.

Ours is what people run: gate, SuperLink, SuperNodes, forwarders and agents, as in ``round``. Flower's is a SuperLink
and three SuperNodes as shipped, with an app that is written to a temporary folder here: a client without training, its
mod ``secaggplus_mod``, and `SecAggPlusWorkflow`.
"""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from server.certificates import Authority
from server.result import RoundEntry
from shared_models.configuration import parse_toml
from shared_models.processes import Child, flower_environment, free_port, write_private
from simulations.benchmarks.rounds import NUM_SITES, SCENARIO, run_engine, weights_of
from simulations.benchmarks.table import Benchmark, Row, rows_of
from simulations.preparation.hospitals import prepare
from simulations.scenario import Scenario

BASELINE = "Flower SecAgg+"
OURS = "ours"
WITHOUT_SETUP = "ours, without setup"
ROUND_SECONDS = 180.0
LOOK_SECONDS = 0.5

PROJECT = """
[project]
name = "secagg-round"
version = "1.0.0"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "benchmark"

[tool.flwr.app.components]
serverapp = "secagg_round.server:app"
clientapp = "secagg_round.client:app"

[tool.flwr.app.config]
num-rounds = {num_rounds}
num-sites = {num_sites}
num-weights = {num_weights}
seconds = "{seconds}"
"""
CLIENT = """
from flwr.client import ClientApp, NumPyClient
from flwr.client.mod import secaggplus_mod


class Client(NumPyClient):
    def fit(self, parameters, config):
        return parameters, 1, {}


def client_fn(context):
    return Client().to_client()


app = ClientApp(client_fn=client_fn, mods=[secaggplus_mod])
"""
SERVER = """
import time

import numpy as np
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerApp, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow

app = ServerApp()


class Timed(SecAggPlusWorkflow):
    def __call__(self, grid, context):
        before, begun = context.state.array_records["parameters"], time.perf_counter()
        super().__call__(grid, context)
        seconds = time.perf_counter() - begun
        halted = context.state.array_records["parameters"] is before
        with open(context.run_config["seconds"], "a") as file:
            file.write("halted\\n" if halted else f"{seconds}\\n")


@app.main()
def main(grid, context):
    num_sites = context.run_config["num-sites"]
    weights = np.random.default_rng(0).normal(0.0, 0.01, context.run_config["num-weights"])
    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_fit_clients=num_sites,
        min_available_clients=num_sites,
        initial_parameters=ndarrays_to_parameters([weights.astype(np.float32)]),
    )
    legacy = LegacyContext(
        context, config=ServerConfig(num_rounds=context.run_config["num-rounds"]), strategy=strategy
    )
    DefaultWorkflow(fit_workflow=Timed(num_shares=num_sites, reconstruction_threshold=2))(grid, legacy)
"""
LAUNCH = """
import sys
from importlib import import_module
from shared_models.processes import follow_parent

follow_parent()
name = sys.argv[1]
sys.argv = ["flower-" + name, *sys.argv[2:]]
getattr(import_module(f"flwr.{name}.cli"), f"flower_{name}")()
"""
"""Flower's own command, in a process that does not outlive ours."""


def measure(quick: bool) -> tuple[Row, ...]:
    """Seconds of a round without the slowest site's training."""
    num_rounds, num_flower_rounds, width = (3, 2, 8) if quick else (11, 4, 64)
    text = SCENARIO.format(num_sites=NUM_SITES, num_rounds=num_rounds, width=width)
    scenario = parse_toml(text, Scenario, origin="the benchmark's scenario")
    # Flower's SuperExec ends a moment after the SuperLink and may still write then
    with tempfile.TemporaryDirectory(prefix="cb-", ignore_cleanup_errors=True) as folder:
        prepare(scenario.hospitals, Path(folder) / "hospitals", scenario.seed)
        first, *later = run_engine(scenario, "deployed", Path(folder), 0)
        flower = _flower(Path(folder) / "flower", num_flower_rounds, weights_of(width))[1:]
    setup = first.seconds.get("setup", 0.0) / scenario.study.aggregation.rounds_per_batch
    ours = [overhead(entry) for entry in later]
    case = f"{NUM_SITES} sites × {weights_of(width) / 1e6:.2f} million weights: a round"
    samples = {BASELINE: flower, OURS: [value + setup for value in ours], WITHOUT_SETUP: ours}
    return rows_of(case, "s", samples, baseline=BASELINE)


def overhead(entry: RoundEntry) -> float:
    """Seconds of all phases of a round, less what the slowest site trained. Raises RuntimeError: it was burned."""
    if entry.burned is not None:
        raise RuntimeError(f"round {entry.round} was burned: {entry.burned}")
    phases = (seconds for phase, seconds in entry.seconds.items() if not phase.endswith("_slowest_site"))
    return sum(phases) - entry.seconds["train_slowest_site"]


# Flower's


def _flower(folder: Path, num_rounds: int, num_weights: int) -> list[float]:
    """Seconds of each round, by a timer around the workflow in the server's app."""
    home, seconds, port = folder / "home", folder / "seconds.txt", free_port()
    environment = {**flower_environment(home), "PATH": _path()}
    tls = _certificates(folder / "tls")
    (home / ".flwr").mkdir(mode=0o700)
    (home / ".flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{tls / "ca.pem"}"\n',
        encoding="utf-8",
    )
    values = {"num_rounds": num_rounds, "num_sites": NUM_SITES, "num_weights": num_weights}
    _write_app(folder / "app", PROJECT.format(**values, seconds=seconds))
    with ExitStack() as stack:
        server = Child(
            "Flower's SuperLink",
            _command("superlink", *_superlink_arguments(tls, port)),
            log=folder / "superlink.log",
            environment=environment,
        )
        stack.callback(server.stop)
        for number in range(NUM_SITES):
            node = Child(
                f"Flower's SuperNode {number}",
                _command("supernode", *_supernode_arguments(tls, port)),
                log=folder / f"supernode-{number}.log",
                environment=environment,
            )
            stack.callback(node.stop)
        _start(folder / "app", server, environment)
        return _read(seconds, num_rounds, server)


def _superlink_arguments(tls: Path, port: int) -> list[str]:
    return [
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--ssl-ca-certfile", str(tls / "ca.pem")),
        *("--ssl-certfile", str(tls / "server.pem"), "--ssl-keyfile", str(tls / "server.key")),
        "--disable-runtime-dependency-installation",
    ]


def _supernode_arguments(tls: Path, port: int) -> list[str]:
    return [
        *("--superlink", f"127.0.0.1:{port}", "--root-certificates", str(tls / "ca.pem")),
        *("--host", "127.0.0.1", "--port", str(free_port())),
    ]


def _command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-P", "-c", LAUNCH, name, *arguments]


def _path() -> str:
    """Flower finds its other programs by name: those beside this Python come first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _certificates(folder: Path) -> Path:
    folder.mkdir(parents=True)
    authority = Authority("Benchmark", days=2)
    issued = authority.server(["127.0.0.1", "localhost"], days=2)
    (folder / "ca.pem").write_bytes(authority.issued.certificate)
    (folder / "server.pem").write_bytes(issued.certificate)
    write_private(folder / "server.key", issued.key)
    return folder


def _write_app(folder: Path, project: str) -> None:
    package = folder / "secagg_round"
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(project, encoding="utf-8")
    for name, text in (("__init__", ""), ("client", CLIENT), ("server", SERVER)):
        (package / f"{name}.py").write_text(text, encoding="utf-8")


def _start(app: Path, server: Child, environment: dict[str, str]) -> None:
    """``flwr run``, as soon as the SuperLink answers."""
    command = [str(Path(sys.executable).parent / "flwr"), "run", str(app), "here"]
    deadline = time.monotonic() + ROUND_SECONDS
    while True:
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return
        if server.ended() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"flwr run failed:\n{done.stdout}{done.stderr}\n{server.said()[-2000:]}")
        time.sleep(LOOK_SECONDS)


def _read(seconds: Path, num_rounds: int, server: Child) -> list[float]:
    deadline = time.monotonic() + (num_rounds + 1) * ROUND_SECONDS
    while time.monotonic() < deadline and server.ended() is None:
        lines = seconds.read_text(encoding="ascii").splitlines() if seconds.exists() else []
        if "halted" in lines:
            break
        if len(lines) == num_rounds:
            return [float(line) for line in lines]
        time.sleep(LOOK_SECONDS)
    raise RuntimeError(f"Flower's run did not come to its end:\n{server.said()[-3000:]}")


BENCHMARK = Benchmark(
    name="deployed-round",
    title="a deployed round with secure aggregation, beside Flower's SecAgg+",
    method="wall clock of a round over TLS on loopback, less the slowest site's training; ours: all phases that "
    "result.json has, with setup shared among the rounds of its batch; Flower's: SecAggPlusWorkflow as shipped, a "
    "process for each message and its own polling; the first round of each is left out",
    measure=measure,
)
