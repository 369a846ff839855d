"""``collegium-server doctor``: is everything there that this server needs, and will the hospitals reach it?"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from shared_models.checkup import COLOURS, Finding, as_values, failed, run_checks, shown, summary

WIDEST = 100

out = Console(highlight=False, soft_wrap=True)


def doctor(
    config: Annotated[Path, typer.Option("--config", help="The server's file.", dir_okay=False)] = Path(
        "server.toml"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Check files, keys, certificates, study, roster, disk and port; say what is wrong and what to do."""
    from server.doctor import ServerDoctor

    width = min(out.width, WIDEST) if out.is_terminal else None
    findings: list[Finding] = []
    for finding in run_checks(ServerDoctor(config).checks()):
        findings.append(finding)
        if not as_json:
            out.print(shown(finding, width), style=COLOURS[finding.state], markup=False)
    if as_json:
        typer.echo(json.dumps(as_values(findings), indent=2, ensure_ascii=False))
    else:
        out.print(summary(findings), markup=False)
    if failed(findings):
        raise typer.Exit(1)
