"""``collegium-client predict``: what a trained model says of the hospital's own images."""

import json
import webbrowser
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from client.foreground import foreground
from client.index_command import RateColumn
from client.options import SITE_FILE, ConfigOption, JsonOption
from client.site_file import Compute
from shared_models.configuration import ConfigurationError

if TYPE_CHECKING:
    from client.pacs_file import Pacs
    from client.prediction.dicom_results.storing import StoredFiles
    from client.prediction.inputs import Input
    from client.prediction.outputs import Results, Wanted
    from client.prediction.reading import Reading, Unread, Writer
    from client.prediction.summary import Summary
    from client.reasons import Reason
    from client.scan import Progress as Done
    from shared_models.model_file import TrainedModel

OUT = Path("collegium-predictions")
FAILURE = 1
KINDS = {"sr": "REPORT", "seg": "SEGMENTATION", "sc": "PICTURE"}
NOT_A_DEVICE = "For research only, not a medical device: no decision on a patient may rest on this."

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def predict(  # noqa: PLR0917 - the options of a command line
    model: Annotated[Path, typer.Argument(help="A model.safetensors.", show_default=False)],
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(help="DICOM files and folders; folders with all below them.", show_default=False),
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Where predictions go.", file_okay=False)] = OUT,
    further: Annotated[
        list[Path] | None,
        typer.Option(
            "--with", help="A further model, whose mean with the first is taken; may be given several times."
        ),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            help="Read inputs that would be refused for this reason, and say so in every output; may be given "
            "several times."
        ),
    ] = None,
    identifiers: Annotated[
        bool,
        typer.Option("--identifiers", help="Write Patient ID, accession number and UIDs into the tables."),
    ] = False,
    accession: Annotated[
        list[str] | None,
        typer.Option(help="A study in the PACS of site.toml, by its accession number; several times."),
    ] = None,
    study_uid: Annotated[
        list[str] | None, typer.Option(help="A study in the PACS, by its Study Instance UID; several times.")
    ] = None,
    explain: Annotated[
        list[str] | None,
        typer.Option(help="Maps of what spoke for a reading: grad-cam or occlusion; may be given twice."),
    ] = None,
    explained_output: Annotated[
        str | None,
        typer.Option(help="The output that maps are of; else the most probable one of each reading."),
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Write maps and contours as PNG, too.")
    ] = False,
    dicom: Annotated[
        list[str] | None,
        typer.Option(
            help="Write DICOM results: sr (Structured Report), seg (Segmentation), sc (picture); several times."
        ),
    ] = None,
    store: Annotated[
        bool, typer.Option("--store", help="Store the DICOM results in the PACS of site.toml.")
    ] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the viewer in the browser.")] = False,
    config: ConfigOption = SITE_FILE,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:NUMBER.")] = "auto",
    workers: Annotated[
        int, typer.Option(min=0, max=256, help="Processes that read files; 0: as many as there are cores.")
    ] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace predictions in --out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask a trained model about DICOM images: probabilities, and what the study's test showed of such scores.

    Exit status: 0 all inputs were read; 1 none was, or the model cannot be used; 2 wrong usage; 3 some inputs were left
    out, or some DICOM results were not written or stored; 4 the PACS stored nothing.
    """
    from client.prediction.inputs import inputs_of
    from client.prediction.pacs_study import studies_in_pacs
    from client.reasons import Reason
    from shared_models.model_file import ModelFileError, read_model

    allowed, compute = _reasons(override or []), _compute(device, workers)
    wanted = _wanted(explain or [], explained_output, dicom or [], pictures=pictures)
    if store and not wanted.kinds:
        raise ConfigurationError("--store: which results? Give --dicom sr, --dicom seg or --dicom sc too")
    pacs = _pacs(config) if store else None
    _check_out(folder, overwrite)
    if not (inputs or accession or study_uid):
        raise ConfigurationError(
            "what is to be read? Name DICOM files or folders, or a study in the PACS by --accession or --study-uid"
        )
    named = inputs_of(inputs or [])
    with foreground(False), ExitStack() as kept:
        try:
            models = [read_model(path) for path in (model, *(further or ()))]
            modalities = () if Reason.OTHER_MODALITY in allowed else models[0].image.modalities
            in_pacs = studies_in_pacs(config, accession or (), study_uid or (), modalities=modalities)
            with err.status("bringing images from the PACS") if accession or study_uid else nullcontext():
                fetched = kept.enter_context(in_pacs)
            summary, results = _predicted(
                models,
                [*named, *fetched.inputs],
                fetched.unread,
                allowed,
                wanted,
                folder=folder,
                identifiers=identifiers,
                compute=compute,
                show=not as_json,
            )
        except ModelFileError as error:
            err.print(str(error), style="red", markup=False)
            raise typer.Exit(FAILURE) from error
        stored = _stored(results, pacs, show=not as_json)
    if as_json:
        typer.echo(
            json.dumps({**summary.values(), **_of_results(results, stored), "out": str(folder)}, indent=2)
        )
    else:
        _print(summary, folder)
        _print_results(results, stored)
    if open_page and summary.num_read:
        _open(folder)
    raise typer.Exit(_exit_code(summary, results, stored))


def _predicted(
    models: Sequence["TrainedModel"],
    inputs: Sequence["Input"],
    unread: Sequence["Unread"],
    allowed: Sequence["Reason"],
    wanted: "Wanted",
    *,
    folder: Path,
    identifiers: bool,
    compute: Compute,
    show: bool,
) -> tuple["Summary", "Results | None"]:
    from client.decoding import DecoderDoesNotStart
    from client.device import DeviceError, choose_device, prepare_torch
    from client.prediction.outputs import opened_outputs
    from client.prediction.predictor import Predictor
    from client.prediction.tables import Tables

    prepare_torch(compute)
    now = datetime.now(UTC)
    try:
        chosen = choose_device(compute)
        predictor = Predictor(models, device=chosen, overrides=allowed, num_readers=compute.num_readers)
    except DeviceError as error:
        raise ConfigurationError(str(error).replace("compute.device", "--device")) from error
    tables = Tables(
        folder,
        predictor.ensemble,
        identifiers=identifiers,
        overrides=[reason.code for reason in allowed],
        now=now,
    )
    try:
        with (
            opened_outputs(folder, models, wanted, device=chosen, now=now) as outputs,
            tables,
            _shown(show) as progress,
        ):
            found = chain(unread, predictor.readings(inputs, progress))
            return written(found, [tables, outputs.writer]), outputs.results
    except DecoderDoesNotStart as error:
        raise OSError(str(error)) from error


def written(found: Iterable["Reading | Unread"], writers: Sequence["Writer"]) -> "Summary":
    """Give each reading, and each input that gave none, to all *writers* as it comes, and tell them the end."""
    from client.prediction.reading import Reading
    from client.prediction.summary import Summary

    summary = Summary()
    for one in found:
        summary.add(one)
        for writer in writers:
            if isinstance(one, Reading):
                writer.write(one)
            else:
                writer.left_out(one)
    for writer in writers:
        writer.finish()
    return summary


def _stored(results: "Results | None", pacs: "Pacs | None", *, show: bool) -> "StoredFiles | None":
    """Store what was written in the PACS, where it is wanted."""
    if results is None or pacs is None:
        return None
    from client.prediction.dicom_results.storing import store

    with _shown(show, "storing results") as progress:
        files, done = results.written, count(1)
        return store(files, pacs, lambda _: progress(next(done), len(files)))


def _exit_code(summary: "Summary", results: "Results | None", stored: "StoredFiles | None") -> int:
    """Of the PACS where it stored nothing, else of the inputs; where all were read, of the results."""
    from client.prediction.dicom_results.storing import PACS_STORED_NOTHING
    from client.prediction.summary import SOME_LEFT_OUT

    if stored is not None and stored.exit_code == PACS_STORED_NOTHING:
        return PACS_STORED_NOTHING
    if summary.exit_code:
        return summary.exit_code
    lacking = (results is not None and results.not_written) or (stored is not None and stored.exit_code)
    return SOME_LEFT_OUT if lacking else 0


def _wanted(explain: Sequence[str], output: str | None, dicom: Sequence[str], *, pictures: bool) -> "Wanted":
    """Raises ConfigurationError where something of that name cannot be made."""
    from client.prediction.dicom_results.numbering import Kind
    from client.prediction.explanations.attribution import Method
    from client.prediction.outputs import Wanted

    methods = {method.value: method for method in Method}
    if wrong := [name for name in explain if name not in methods]:
        raise ConfigurationError(f"--explain {wrong[0]}: give {' or '.join(methods)}")
    if wrong := [name for name in dicom if name not in KINDS]:
        raise ConfigurationError(f"--dicom {wrong[0]}: give one of {', '.join(KINDS)}")
    if output is not None and not explain:
        raise ConfigurationError("--explained-output: of which maps? Give --explain too")
    return Wanted(
        methods=tuple(methods[name] for name in dict.fromkeys(explain)),
        output=output,
        pictures=pictures,
        kinds=tuple(Kind[KINDS[name]] for name in dict.fromkeys(dicom)),
    )


def _pacs(config: Path) -> "Pacs":
    from client.site_file import read_site

    pacs = read_site(config).pacs
    if pacs is None:
        raise ConfigurationError(f"{config}: has no [pacs]; add it to store results, see docs/pacs.md")
    return pacs


def _reasons(codes: Sequence[str]) -> list["Reason"]:
    """Raises ConfigurationError where one cannot be overridden."""
    from client.prediction.refusals import OVERRIDABLE

    known = {reason.code: reason for reason in OVERRIDABLE}
    if wrong := [code for code in codes if code not in known]:
        raise ConfigurationError(f"--override {wrong[0]}: give one of {', '.join(known)}")
    return [known[code] for code in dict.fromkeys(codes)]


def _check_out(folder: Path, overwrite: bool) -> None:
    from client.prediction.tables import CSV_NAME, JSON_NAME

    if not overwrite and any((folder / name).exists() for name in (CSV_NAME, JSON_NAME)):
        raise ConfigurationError(
            f"{folder}: has predictions already; name another folder with --out, or give --overwrite"
        )


def _compute(device: str, workers: int) -> Compute:
    try:
        return Compute(device=device, num_readers=workers)
    except ValueError as error:
        raise ConfigurationError(f"--device {device}: give auto, cpu, cuda or cuda:NUMBER") from error


@contextmanager
def _shown(show: bool, what: str = "reading images") -> Iterator["Done"]:
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not show) as bar:
        task = bar.add_task("files", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print(summary: "Summary", folder: Path) -> None:
    from client.prediction.summary import readings_table
    from client.prediction.tables import CSV_NAME, JSON_NAME
    from shared_models.visible_text import visible

    if (table := readings_table(summary)) is not None:
        out.print(table)
    for unread in summary.told:
        out.print(f"{visible(unread.name)}: {unread.code}: {unread.sentence}", style="yellow", markup=False)
    more = sum(summary.left_out.values()) - len(summary.told)
    if more:
        counts = ", ".join(f"{number} × {code}" for code, number in summary.left_out.most_common())
        out.print(f"Left out in all: {counts}")
    if summary.can_be_overridden:
        codes = " ".join(f"--override {code}" for code in sorted(summary.can_be_overridden))
        out.print(f"The model was not trained for some of these. To read them all the same: {codes}")
    if summary.num_overridden:
        out.print(
            f"{summary.num_overridden} of the readings are of inputs for which the model was not trained.",
            style="red",
        )
    from client.prediction.page import PAGE_NAME

    names = ", ".join(str(folder / name) for name in (CSV_NAME, JSON_NAME, PAGE_NAME))
    out.print(f"{summary.num_read} read: {names} (private)", markup=False)
    out.print(NOT_A_DEVICE)


def _of_results(results: "Results | None", stored: "StoredFiles | None") -> dict[str, object]:
    """For scripts."""
    found: dict[str, object] = {}
    if results is not None:
        found["num_results"] = len(results.written)
        found["not_written"] = dict(results.not_written)
    if stored is not None:
        found["num_stored"] = stored.num_stored
        found["not_stored"] = stored.troubles
    return found


def _print_results(results: "Results | None", stored: "StoredFiles | None") -> None:
    if results is None:
        return
    out.print(f"{len(results.written)} DICOM results written")
    for sentence, number in results.not_written.items():
        out.print(f"{number} readings without: {sentence}", style="yellow", markup=False)
    if stored is not None:
        out.print(f"{stored.num_stored} of {len(stored.files)} stored in the PACS")
        for sentence, number in stored.troubles.items():
            out.print(f"{number} not stored: {sentence}", style="red", markup=False)


def _open(folder: Path) -> None:
    from client.prediction.page import PAGE_NAME

    page = (folder / PAGE_NAME).resolve()
    if not webbrowser.open(page.as_uri()):
        err.print(f"No browser was found; open {page} in one", style="yellow", markup=False)
