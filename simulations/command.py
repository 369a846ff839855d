"""The command ``collegium-simulate``."""

import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from shared_models.configuration import ConfigurationError
from simulations.audit_command import audit_command
from simulations.modes_command import modes_command
from simulations.plan_command import plan_command
from simulations.prepare_command import prepare_command

if TYPE_CHECKING:
    from rich.progress import TaskID

    from server.result import Result
    from shared_models.study import Study
    from shared_models.tasks.task import Parts
    from simulations.runner import Display

app = typer.Typer(
    help="Run many virtual hospitals on this machine, through the code that real hospitals run.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command("prepare")(prepare_command)
app.command("modes")(modes_command)
app.command("plan")(plan_command)
app.command("audit")(audit_command)
console = Console(stderr=True)
INPUT, FAILURE, INTERRUPTED = 2, 1, 130


@app.command()
def run(  # noqa: PLR0917 - the options of a command line
    scenario: Annotated[
        str, typer.Argument(help="A built-in scenario, or the path of a scenario file.")
    ] = "demo",
    engine: Annotated[
        str, typer.Option(help="local: worker processes. deployed: real Flower over TLS.")
    ] = "local",
    compare: Annotated[
        bool, typer.Option(help="Also train each hospital alone, and one pooled model.")
    ] = False,
    pooled: Annotated[
        bool, typer.Option("--pooled", help="Also train one pooled model; --compare does that too.")
    ] = False,
    leave_one_out: Annotated[
        bool, typer.Option(help="Also train, for each hospital, a model on all others, and test it there.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder.", show_default="collegium-runs/SCENARIO-TIME")
    ] = None,
    hospitals: Annotated[Path | None, typer.Option(help="A folder that `prepare` filled.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the scenario's own seed.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier run in --out.")] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run in --out, which was stopped, or add baselines to it."
        ),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes.", show_default="as many as processors")
    ] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print result.json to standard output.")
    ] = False,
) -> None:
    """Run a scenario: hospitals' DICOM in, one jointly trained CNN and a report out."""
    from simulations.runner import Options, default_out, default_workers, run_scenario
    from simulations.scenario import read_scenario

    if engine not in ("local", "deployed"):
        raise typer.BadParameter(f"{engine!r}; choose local or deployed", param_hint="--engine")
    chosen = read_scenario(scenario)
    if seed is not None:
        model = chosen.study.model.model_copy(update={"seed": seed})
        study = chosen.study.model_copy(update={"model": model})
        chosen = chosen.model_copy(update={"seed": seed, "study": study})
    options = Options(
        engine="local" if engine == "local" else "deployed",
        compare=compare,
        pooled=pooled,
        leave_one_out=leave_one_out,
        out=out or default_out(scenario),
        hospitals=hospitals,
        overwrite=overwrite,
        resume=resume,
        num_workers=workers or default_workers(),
    )
    _warn(chosen.study)
    try:
        with _display(chosen.study.training.num_rounds) as display:
            result = run_scenario(chosen, options, display)
    except KeyboardInterrupt:
        console.print(f"stopped; nothing is left running, and {_left(options.out)}", highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    if json_output:
        sys.stdout.write(result.to_json() + "\n")
    _summary(result, chosen.study, options.out)


def _left(out: Path) -> str:
    if not out.exists():
        return "the unfinished run's folder was removed"
    again = f"--out {shlex.quote(str(out))} --resume"
    return (
        f"what was trained is kept: the same command with {again}, and without --overwrite, goes on with it"
    )


def _warn(study: "Study") -> None:
    if study.privacy.mode == "none":
        console.print("[bold red]NO PRIVACY[/]: this study trains without differential privacy (mode none).")
    aggregation = study.aggregation
    least, colluding = aggregation.min_sites_in_sum, aggregation.num_colluding
    told = f"secure aggregation: the server opens sums of {least} or more sites and nothing else"
    if colluding:
        told += f"; with up to {colluding} of them on its side, sums over {least - colluding} or more of the others"
    else:
        told += "; nothing is promised once one of them is on its side (num_colluding = 0)"
    console.print(f"[dim]{told}[/]", highlight=False)


@contextmanager
def _display(num_rounds: int) -> Iterator["Display"]:
    """Progress bars for the phases of a run; each appears when it begins."""
    from simulations.runner import Display

    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield Display(
            prepared=lambda done, total: advance("images prepared", done, total),
            rounds=lambda done: advance("rounds", done, num_rounds),
            baselines=lambda done, total: advance("baselines", done, total),
            say=lambda text: bars.console.print(f"[dim]{text}[/]"),
        )


def _summary(result: "Result", study: "Study", out: Path) -> None:
    from shared_models.tasks.registry import task_of
    from shared_models.tasks.task import compared_of

    task = task_of(study)
    table, parts = Table(title=f"{result.study.title}", title_justify="left"), task.parts
    table.add_column("model", no_wrap=True)
    for column in (*(word for _, word in compared_of(task)), "epsilon"):
        table.add_column(column, justify="right")

    def row(
        name: str,
        values: dict[str, float | None],
        epsilon: float | None,
        noise: dict[str, float | None] | None = None,
    ) -> None:
        shown = [_shown(values.get(metric), (noise or {}).get(metric)) for metric, _ in compared_of(task)]
        table.add_row(name, *shown, "none: no privacy" if epsilon is None else f"{epsilon:.2f}")

    row("federated (as the server knows it)", result.test, result.privacy.epsilon, result.test_noise)
    if result.exact_test is not None:
        row("federated (exact, simulation only)", result.exact_test, result.privacy.epsilon)
    if result.baselines is not None:
        for name, alone in result.baselines.alone.items():
            row(f"alone: {name}", alone.metrics, alone.epsilon)
        if result.baselines.pooled is not None:
            row("pooled", result.baselines.pooled.metrics, result.baselines.pooled.epsilon)
    console.print(table)
    if result.baselines is not None and result.baselines.left_out:
        console.print(_table_of_left_out(result, compared_of(task)))
    if parts is not None and result.test:
        console.print(_table_of_parts(result, parts))
    burned = [entry.round for entry in result.rounds if entry.burned]
    if burned:
        console.print(f"burned rounds: {', '.join(map(str, burned))}; the report says why", style="yellow")
    if result.test_burned:
        console.print(f"the final test has no figures: {result.test_burned}", style="yellow")
    console.print(
        f"report: {out / 'report.html'}\nfigures: {out / 'result.json'}\nmodel: {out / 'model.safetensors'}"
    )


def _table_of_left_out(result: "Result", metrics: Sequence[tuple[str, str]]) -> Table:
    """Each hospital's test patients under the model of all others, and under the federated one, which had its part."""
    table = Table("hospital", title="a hospital that had no part in the training", title_justify="left")
    for _, word in metrics:
        for whose in ("model of the others", "federated"):
            table.add_column(f"{word}, {whose}", justify="right")
    tested = {site.name: site.test or {} for site in result.sites}
    for name, one in result.baselines.left_out.items() if result.baselines else ():
        both = one.own or {}, tested.get(name, {})
        table.add_row(name, *(_shown(own.get(metric), None) for metric, _ in metrics for own in both))
    return table


def _table_of_parts(result: "Result", parts: "Parts") -> Table:
    """The federated model on each class or finding: exact where the simulation knows it, else as the server does."""
    metrics, noise = (result.exact_test, {}) if result.exact_test else (result.test, result.test_noise or {})
    source = "exact, simulation only" if result.exact_test else "as the server knows it"
    table = Table(parts.word, title=f"federated ({source})", title_justify="left")
    for _, heading in parts.columns:
        table.add_column(heading, justify="right")
    for name in parts.names:
        row = []
        for key, _ in parts.columns:
            value = metrics.get(f"{key}/{name}")
            counted = key.startswith("num_") and value is not None
            row.append(f"{value:.0f}" if counted else _shown(value, noise.get(f"{key}/{name}")))
        table.add_row(name, *row)
    return table


def _shown(value: float | None, noise: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if noise is None else f"{value:.3f} ± {noise:.3f}"


def main() -> None:
    """Entry point: clean messages, and exit codes that scripts can trust (2 input, 1 run, 130 Ctrl-C)."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        app()
    except ValueError as error:
        if not _is_input_error(error):
            raise
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        raise SystemExit(INPUT) from None
    except RuntimeError as error:
        if not _is_stop(error):
            raise
        console.print(f"[bold red]the run stopped:[/] {escape(str(error))}", highlight=False)
        raise SystemExit(FAILURE) from None


def _is_input_error(error: ValueError) -> bool:
    """Whether the user can mend it. The classes are looked up late: their modules are slow to import."""
    from privacy.accounting import PrivacyTargetError
    from server.checkpoint import CheckpointError
    from simulations.preparation.cases import SourceError
    from simulations.preparation.hospitals import PreparationError
    from simulations.preparation.partition import PartitionError
    from simulations.run_folder import OutputFolderError

    known = (
        CheckpointError,
        ConfigurationError,
        OutputFolderError,
        PartitionError,
        PreparationError,
        PrivacyTargetError,
        SourceError,
    )
    return isinstance(error, known)


def _is_stop(error: RuntimeError) -> bool:
    from server.exchange import ExchangeError
    from server.run_state import TooFewSitesError

    return isinstance(error, ExchangeError | TooFewSitesError)


if __name__ == "__main__":
    main()
