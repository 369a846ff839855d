"""``collegium-client index``: what the site makes of its images and labels, as tables and as a page."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from client.approvals import Approvals
from client.chosen_study import chosen_study
from client.options import SITE_FILE, ConfigOption, JsonOption
from client.site_file import read_site
from client.site_journal import read_journal
from shared_models.configuration import ConfigurationError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class RateColumn(ProgressColumn):
    """Files a second, of late."""

    def render(self, task: Task) -> Text:
        """Return the rate; nothing before there is one."""
        return Text("" if task.speed is None else f"{task.speed:,.0f} files/s")


def index(  # noqa: PLR0917 - the options of a command line
    config: ConfigOption = SITE_FILE,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 1 where the site would refuse to train.")
    ] = False,
    study: Annotated[
        Path | None, typer.Option(help="A study or proposal; without it the approved one.", dir_okay=False)
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Where the page goes; without it index.html in the state folder.", dir_okay=False),
    ] = None,
    recheck: Annotated[
        bool,
        typer.Option(
            "--recheck", help="Read every file, even where its size and time of change are the same."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read all images and labels as a run would, and say what can be used and why the rest cannot."""
    from client.data_floor import floor_refusals
    from client.index_page import PAGE_NAME, write_page
    from client.index_report import INDEX_NAME, render_index, summary_of
    from client.ingestion import DataRefused, ingest
    from client.labels import LabelsError
    from client.secret import SecretError, SiteSecret
    from client.thumbnails import thumbnails
    from client.withdrawal import withdrawn

    site = read_site(config)
    journal = read_journal(site)
    agreed = chosen_study(site, Approvals(journal, site.state), study)
    columns = (
        TextColumn("reading images"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=err, transient=True) as bar:
            task = bar.add_task("files", total=None)
            secret = SiteSecret.load(site.state)
            ingested = ingest(
                site,
                agreed,
                secret,
                withdrawn=withdrawn(journal),
                progress=lambda done, total: bar.update(task, completed=done, total=total),
                tell=lambda line: bar.console.print(line, style="yellow", markup=False),
                recheck=recheck,
            )
    except (DataRefused, LabelsError, SecretError) as error:
        raise ConfigurationError(str(error)) from error
    found = ingested.index
    refusals = floor_refusals(found, agreed, site.policy)
    page = report or site.state / PAGE_NAME
    try:
        write_page(
            page,
            found,
            agreed,
            site=site.name,
            refusals=refusals,
            pictures=thumbnails(found, ingested.patients, secret, per_class=site.quality.thumbnails),
            now=datetime.now(UTC),
        )
    except OSError as error:
        raise ConfigurationError(f"{page}: cannot be written ({error.strerror}); see --report") from error
    if as_json:
        typer.echo(json.dumps({**summary_of(found, agreed), "refused": " ".join(refusals) or None}, indent=2))
    else:
        out.print(render_index(found, agreed))
        out.print(f"The same as a page, with some images: {page}", markup=False, soft_wrap=True)
        out.print(f"Each file with its reason: {site.state / INDEX_NAME}", markup=False, soft_wrap=True)
        for line in refusals:
            out.print(f"This site would refuse to train: {line}", style="red", markup=False)
    if strict and refusals:
        raise typer.Exit(1)
