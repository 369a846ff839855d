"""``collegium-client fetch``: bring studies from the hospital's PACS into its images folder."""

import fcntl
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from client.fetch_reasons import Outcome
from client.foreground import foreground
from client.options import SITE_FILE, ConfigOption, JsonOption
from client.pacs_file import Pacs
from client.pacs_query import Wanted, read_accessions, read_studies
from client.quiet_libraries import quiet_threads
from client.site_file import SiteFile, read_site
from shared_models.configuration import ConfigurationError
from shared_models.processes import private_folder

if TYPE_CHECKING:
    from client.fetch_run import Tally

ALL, FAILURE, SOME_FAILED, PACS_CLOSED, OUTSIDE_HOURS = 0, 1, 3, 4, 5
LOCK_NAME = "fetch.lock"
DAY = ["%Y-%m-%d"]

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def fetch(  # noqa: PLR0917 - the options of a command line
    config: ConfigOption = SITE_FILE,
    accessions: Annotated[
        Path | None, typer.Option(help="Accession numbers, one a line.", dir_okay=False)
    ] = None,
    studies: Annotated[
        Path | None, typer.Option(help="Study Instance UIDs, one a line.", dir_okay=False)
    ] = None,
    modality: Annotated[
        list[str] | None, typer.Option(help="Only series of this modality; may be given several times.")
    ] = None,
    first: Annotated[
        datetime | None, typer.Option("--from", formats=DAY, help="Only studies of this day or later.")
    ] = None,
    last: Annotated[
        datetime | None, typer.Option("--to", formats=DAY, help="Only studies of this day or earlier.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Ask about complete studies too: they may have grown.")
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Outside pacs.hours: end (exit 5), rather than wait for them.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring studies from the PACS into the images folder; call it again to go on where it ended."""
    wanted = Wanted(
        accessions=() if accessions is None else read_accessions(accessions),
        studies=() if studies is None else read_studies(studies),
        modalities=tuple(sorted({code.upper() for code in modality or ()})),
        first=_day(first),
        last=_day(last),
    )
    site = read_site(config)
    if site.pacs is None:
        raise ConfigurationError(f"{config}: has no [pacs]; add it to fetch from a PACS, see docs/pacs.md")
    with foreground(False), quiet_threads(), _only_one(private_folder(site.state)):
        tally = _fetched(site, site.pacs, wanted, wait=not no_wait, again=again, show=not as_json)
    if as_json:
        typer.echo(json.dumps(_values(site, tally), indent=2))
    else:
        _print(site, tally)
    raise typer.Exit(exit_code(tally))


def exit_code(tally: "Tally") -> int:
    """0: everything is there. 3: something is left to do. 4: the PACS let nobody in. 5: the hours are over. 1: disk."""
    stopped = None if tally.stopped is None else tally.stopped.outcome
    if stopped in (Outcome.UNREACHABLE, Outcome.REFUSED):
        return PACS_CLOSED
    if stopped is Outcome.OUTSIDE_HOURS:
        return OUTSIDE_HOURS
    if stopped is not None:
        return FAILURE
    return SOME_FAILED if tally.failed else ALL


def _fetched(site: SiteFile, pacs: Pacs, wanted: Wanted, *, wait: bool, again: bool, show: bool) -> "Tally":
    from client.fetch_limits import Hours
    from client.fetch_record import FetchRecord
    from client.fetch_run import Fetch, FetchOptions, pace_of, withdrawn_by
    from client.fetch_store import MIB, ImageStore
    from client.pacs import pacs_connections
    from client.secret import SecretError, SiteSecret
    from client.site_journal import read_journal
    from client.withdrawal import withdrawn

    try:
        secret = SiteSecret.load(site.state)
    except SecretError as error:
        raise ConfigurationError(str(error)) from error
    gone = withdrawn(read_journal(site))
    pace = pace_of(pacs.studies_per_minute, pacs.max_mib_per_second)
    store = ImageStore(
        site.images.folder,
        secret,
        min_free_bytes=pacs.min_free_mib * MIB,
        max_object_bytes=pacs.max_object_mib * MIB,
        received=pace.received,
    )
    options = FetchOptions(
        connections=pacs.connections,
        attempts=pacs.attempts,
        backoff_seconds=pacs.backoff_seconds,
        hours=None if pacs.hours is None else Hours.of(pacs.hours),
        wait=wait,
        again=again,
    )
    with pacs_connections(pacs) as connect, _shown(show) as progress:
        return Fetch(
            wanted,
            options,
            connect=connect,
            store=store,
            record=FetchRecord(site.state),
            pace=pace,
            is_withdrawn=withdrawn_by(gone, lambda patient: secret.pseudonym("patient", patient)),
            progress=progress,
        ).run()


@contextmanager
def _only_one(state: Path) -> Iterator[None]:
    """Keep a second fetch from running. Raises ConfigurationError where one does."""
    with (state / LOCK_NAME).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(f"another fetch is running on {state}; let it end, or end it") from error
        yield


@contextmanager
def _shown(show: bool) -> Iterator[Callable[["Tally"], None]]:
    """Counts as they grow, on a terminal."""
    columns = (TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not show) as bar:
        task = bar.add_task("asking the PACS", total=None)

        def tell(tally: "Tally") -> None:
            done = sum(tally.outcomes.values()) + tally.known
            bar.update(
                task,
                description=f"{tally.queries_done}/{tally.queries} questions, {done} studies, {tally.failed} failed, "
                f"{tally.images} images, {tally.num_bytes / (1 << 20):.1f} MiB",
            )

        yield tell


def _day(given: datetime | None) -> date | None:
    return None if given is None else given.date()


def _sorted(tally: "Tally") -> Sequence[tuple[Outcome, int]]:
    return sorted(tally.outcomes.items(), key=lambda item: (-item[1], item[0].code))


def _values(site: SiteFile, tally: "Tally") -> dict[str, object]:
    from client.fetch_record import RECORD_NAME

    return {
        "known": tally.known,
        "outcomes": {outcome.code: number for outcome, number in _sorted(tally)},
        "failed": tally.failed,
        "images": tally.images,
        "bytes": tally.num_bytes,
        "stopped": None if tally.stopped is None else tally.stopped.outcome.code,
        "detail": "" if tally.stopped is None else tally.stopped.detail,
        "record": str(site.state / RECORD_NAME),
    }


def _print(site: SiteFile, tally: "Tally") -> None:
    from client.fetch_record import RECORD_NAME

    if tally.known:
        out.print(f"{tally.known} were complete already")
    for outcome, number in _sorted(tally):
        out.print(f"{number} × {outcome.code}: {outcome.sentence}", markup=False)
        if not outcome.settled:
            out.print(f"    {outcome.remedy}", markup=False)
    out.print(f"{tally.images} new images, {tally.num_bytes / (1 << 20):.1f} MiB")
    if tally.stopped is not None:
        out.print(f"Ended early: {tally.stopped}", style="red", markup=False)
    out.print(f"Each study with what became of it: {site.state / RECORD_NAME} (private)", markup=False)
