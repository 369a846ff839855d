"""``collegium-simulate modes``: what each mode of privacy costs in accuracy, before anybody trains."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

EPSILONS = (1.0, 3.0, 8.0)
WIDTH_WITHOUT_TERMINAL = 150

err = Console(stderr=True, highlight=False)


def modes_command(
    *,
    scenario: Annotated[
        str, typer.Argument(help="A scenario, by name or file, whose study has mode distributed.")
    ],
    epsilons: Annotated[
        list[float] | None,
        typer.Option("--epsilon", help="To compare; may be repeated.", show_default="1, 3, 8"),
    ] = None,
    modes: Annotated[
        list[str] | None, typer.Option("--mode", help="May be repeated.", show_default="all five")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Models of each kind.")] = 3,
    settings: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Values for some modes and epsilons.")
    ] = None,
    candidates: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Compare these settings on validation patients."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of hospitals and results.", show_default="build/modes/SCENARIO"),
    ] = None,
    by_hospital: Annotated[bool, typer.Option("--by-hospital", help="AUROC at each hospital too.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts: docs/modes.md.")] = False,
) -> None:
    """Train a scenario's study under each mode of privacy, and compare what the models can do.

    A model that --out holds already is not trained again. With --candidates, test patients are not looked at.
    """
    from shared_models.configuration import read_toml
    from shared_models.tasks.registry import task_of
    from simulations.modes import MODES, Settings, train_jobs
    from simulations.modes_jobs import as_json as written
    from simulations.modes_jobs import comparison, hospitals_table, jobs_of, prepared, ranking
    from simulations.scenario import read_scenario

    if unknown := sorted(set(modes or ()) - set(MODES)):
        raise typer.BadParameter(f"{', '.join(unknown)}; choose from {', '.join(MODES)}", param_hint="--mode")
    chosen = read_scenario(scenario)
    kinds = [
        (mode, epsilon)
        for mode in MODES
        if mode in (modes or MODES)
        for epsilon in ((None,) if mode == "none" else tuple(epsilons or EPSILONS))
    ]
    tried = None if candidates is None else read_toml(candidates, Settings).setting
    fixed = () if settings is None else read_toml(settings, Settings).setting
    jobs = jobs_of(kinds, fixed=fixed, candidates=tried, num_seeds=seeds)
    folder = out or Path("build/modes") / Path(scenario).stem
    sites = prepared(chosen, folder)
    trained = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bars:
        bar = bars.add_task("models", total=len(jobs))
        for one in train_jobs(sites, jobs, done=folder, num_workers=workers):
            trained.append(one)
            bars.advance(bar)
    if as_json:
        typer.echo(written(trained))
        return
    headings = task_of(chosen.study).headings
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_WITHOUT_TERMINAL
    if tried is not None:
        console.print(ranking(trained, headings))
        return
    console.print(comparison(trained, chosen.title, headings))
    if by_hospital:
        console.print(hospitals_table(trained, headings))
