"""``collegium-client doctor``: is everything there that this site needs, and can it reach the server?"""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.network_file import is_network_file
from client.options import SITE_FILE, EitherConfigOption, JsonOption
from shared_models.checkup import COLOURS, as_values, failed, run_checks, shown, summary
from shared_models.processes import with_loopback

MAX_PAYLOAD_MIB = 256  # the gate takes no more at once
WIDEST = 100

out = Console(highlight=False, soft_wrap=True)


def doctor(
    config: EitherConfigOption = SITE_FILE,
    as_json: JsonOption = False,
    study: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Measure with the size of its model; else the approved study's."
        ),
    ] = None,
    payload_mib: Annotated[
        float | None,
        typer.Option(min=0.001, max=MAX_PAYLOAD_MIB, help="Measure with so many MiB."),
    ] = None,
) -> None:
    """Check files, keys, disk, data, device and the way to the server; say what is wrong and what to do."""
    from client.doctor import SiteDoctor
    from client.doctor_connection import ConnectionDoctor
    from client.doctor_payload import payload_bytes

    size = round(payload_mib * (1 << 20)) if payload_mib is not None else payload_bytes(config, study)
    doctor_of = ConnectionDoctor if is_network_file(config) else SiteDoctor
    site = doctor_of(config, payload_bytes=size, environment=with_loopback(os.environ))
    findings = []
    width = min(out.width, WIDEST) if out.is_terminal else None
    try:
        for finding in run_checks(site.checks()):
            findings.append(finding)
            if not as_json:
                out.print(shown(finding, width), style=COLOURS[finding.state], markup=False)
    finally:
        site.close()
    if as_json:
        typer.echo(json.dumps(as_values(findings), indent=2, ensure_ascii=False))
    else:
        out.print(summary(findings), markup=False)
    if failed(findings):
        raise typer.Exit(1)
