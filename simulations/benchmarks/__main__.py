"""``python -m simulations.benchmarks [NAME]``: what ``make bench`` runs."""

import logging
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from shared_models.configuration import ConfigurationError
from shared_models.processes import python_module
from simulations.benchmarks.machine import this_machine
from simulations.benchmarks.table import Benchmark, Outcome, show, write
from simulations.preparation.cases import SourceError

ALL = "all"
MODULES = {
    "encode": "encode",
    "dp-step": "dp_step",
    "ingest": "ingest",
    "predict": "predict",
    "round": "rounds",
    "secure-aggregation": "secure_aggregation",
    "deployed-round": "deployed_round",
    "quantisation": "quantisation",
    "trained": "trained",
}
NEED_DATA = ("trained",)
"""Left out of all where ``COLLEGIUM_DATA`` does not say where public images are."""
EXIT_WRONG_INPUT = 2

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(width=None if sys.stdout.isatty() else 130)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help=f"{ALL}, or one of: {', '.join(MODULES)}.")] = ALL,
    out: Annotated[Path, typer.Option(help="Folder for NAME.json.")] = Path("build/bench"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Only see that it works; the figures mean nothing.")
    ] = False,
) -> None:
    """Run all benchmarks, or one; print each table and write its figures to OUT/NAME.json."""
    if name != ALL and name not in MODULES:
        typer.echo(f"{name}: no such benchmark; choose {ALL} or one of: {', '.join(MODULES)}", err=True)
        raise typer.Exit(EXIT_WRONG_INPUT)
    if name == ALL:
        missing = NEED_DATA if "COLLEGIUM_DATA" not in os.environ and not quick else ()
        for each in missing:
            console.print(f"{each}: left out, COLLEGIUM_DATA is not set (docs/scenarios.md)\n")
        names = [each for each in MODULES if each not in missing]
        raise typer.Exit(max(_in_own_process(each, out, quick=quick) for each in names))
    benchmark = load(name)
    try:
        with console.status(f"measuring {name}"):
            outcome = run(benchmark, quick=quick)
    except (ConfigurationError, SourceError) as error:
        typer.echo(f"{name}: {error}", err=True)
        raise typer.Exit(EXIT_WRONG_INPUT) from None
    show(outcome, console)
    console.print(f"figures: {write(outcome, out)} (measured in {outcome.seconds:.0f} s)\n")


def _in_own_process(name: str, out: Path, *, quick: bool) -> int:
    """What one benchmark leaves behind (loaded code, a grown heap) must not speed up or slow down the next."""
    options = ["--out", str(out), *(["--quick"] if quick else [])]
    return abs(
        subprocess.run(python_module("simulations.benchmarks", name, *options), check=False).returncode
    )


def load(name: str) -> Benchmark:
    """Import the module of a benchmark, one of `MODULES`, and what it needs: torch, Flower."""
    benchmark: Benchmark = import_module(f"simulations.benchmarks.{MODULES[name]}").BENCHMARK
    return benchmark


def run(benchmark: Benchmark, *, quick: bool) -> Outcome:
    """Run one benchmark."""
    machine, started, begun = this_machine(), datetime.now(UTC), time.perf_counter()
    rows = benchmark.measure(quick)
    return Outcome(
        benchmark=benchmark,
        rows=rows,
        started=started,
        seconds=time.perf_counter() - begun,
        quick=quick,
        machine=machine,
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    app()
