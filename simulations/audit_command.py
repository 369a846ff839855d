"""``collegium-simulate audit``: try to break what a scenario's study promises."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from simulations.audit.findings import Audit

FAILED, INTERRUPTED = 1, 130
console = Console(stderr=True)


def audit_command(
    scenario: Annotated[
        str, typer.Argument(help="A built-in scenario, or the path of a scenario file.")
    ] = "demo",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where audit.json and audit.html go; a run of the same study gets a section in its report.",
            show_default="collegium-runs/SCENARIO-TIME",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes.", show_default="as many as processors")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print audit.json to standard output.")] = False,
) -> None:
    """Try to break the promise of a scenario's study, with the code that hospitals run. Exits with 1 if it breaks."""
    from server.checkpoint import write_atomically
    from simulations.audit.page import add_to_report, write_audit_page
    from simulations.audit.suite import run_audit
    from simulations.runner import default_out, default_workers
    from simulations.scenario import read_scenario

    chosen = read_scenario(scenario)
    folder = _place(out or default_out(scenario))
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console) as bars:
            task = bars.add_task("groups of checks", total=None)
            audit, pictures = run_audit(
                chosen,
                name=scenario,
                num_workers=workers or default_workers(),
                tell=lambda done, total: bars.update(task, completed=done, total=total),
            )
    except KeyboardInterrupt:
        console.print("stopped; nothing is left running, and nothing was written")
        raise typer.Exit(INTERRUPTED) from None
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "audit.json", audit.to_json().encode())
    write_audit_page(folder / "audit.html", audit, pictures)
    if _is_run_of(folder, audit.study_hash):
        add_to_report(folder / "report.html", audit)

    if json_output:
        sys.stdout.write(audit.to_json() + "\n")
    _show(audit, folder)
    if not audit.ok:
        raise typer.Exit(FAILED)


def _place(out: Path) -> Path:
    """A folder that is new, empty, an earlier run's, or an earlier audit's."""
    from simulations.run_folder import MARKER, OutputFolderError

    known = (out / MARKER).exists() or (out / "audit.json").exists()
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not known)):
        raise OutputFolderError(f"{out}: exists and is no earlier run or audit; choose another --out")
    return out


def _is_run_of(folder: Path, study_hash: str) -> bool:
    """Whether a report lies there, and is about this study."""
    if not (folder / "report.html").exists() or not (folder / "result.json").exists():
        return False
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return bool(result["study"]["hash"] == study_hash)


def _show(audit: "Audit", folder: Path) -> None:
    from simulations.audit.findings import figure

    table = Table(title=f"{audit.study}: mode {audit.mode}, ε = {audit.epsilon:g}", title_justify="left")
    for column in ("check", "measured", "seen", "expected", ""):
        table.add_column(column, justify="right" if column in ("seen", "expected") else "left")
    for check in audit.checks:
        for number, finding in enumerate(check.findings):
            table.add_row(
                "" if number else check.name,
                finding.what,
                figure(finding.seen),
                finding.expected,
                "ok" if finding.ok else "[bold red]FAILED[/]",
                end_section=number == len(check.findings) - 1,
            )
    console.print(table)
    failed = [check.name for check in audit.checks if not check.ok]
    if failed:
        console.print(f"[bold red]the promise does not hold[/]: {', '.join(failed)}")
    else:
        console.print(f"nothing was found against the promise in {len(audit.checks)} checks")
    console.print(f"page: {folder / 'audit.html'}\nfigures: {folder / 'audit.json'}", highlight=False)
