"""``collegium-client predict``: what a trained model says of the hospital's own images."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
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
    from client.prediction.inputs import Input
    from client.prediction.reading import Reading, Unread, Writer
    from client.prediction.summary import Summary
    from client.prediction.tables import Tables
    from client.reasons import Reason
    from client.scan import Progress as Done
    from shared_models.model_file import TrainedModel

OUT = Path("collegium-predictions")
FAILURE = 1
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
    out.
    """
    from client.prediction.inputs import inputs_of
    from client.prediction.pacs_study import studies_in_pacs
    from client.reasons import Reason
    from shared_models.model_file import ModelFileError, read_model

    allowed, compute = _reasons(override or []), _compute(device, workers)
    _check_out(folder, overwrite)
    if not (inputs or accession or study_uid):
        raise ConfigurationError(
            "what is to be read? Name DICOM files or folders, or a study in the PACS by --accession or --study-uid"
        )
    named = inputs_of(inputs or [])
    with foreground(False):
        try:
            models = [read_model(path) for path in (model, *(further or ()))]
            modalities = () if Reason.OTHER_MODALITY in allowed else models[0].image.modalities
            with studies_in_pacs(config, accession or (), study_uid or (), modalities=modalities) as fetched:
                summary = _predicted(
                    models,
                    [*named, *fetched.inputs],
                    fetched.unread,
                    allowed,
                    folder=folder,
                    identifiers=identifiers,
                    compute=compute,
                    show=not as_json,
                )
        except ModelFileError as error:
            err.print(str(error), style="red", markup=False)
            raise typer.Exit(FAILURE) from error
    if as_json:
        typer.echo(json.dumps({**summary.values(), "out": str(folder)}, indent=2))
    else:
        _print(summary, folder)
    raise typer.Exit(summary.exit_code)


def _predicted(
    models: Sequence["TrainedModel"],
    inputs: Sequence["Input"],
    unread: Sequence["Unread"],
    allowed: Sequence["Reason"],
    *,
    folder: Path,
    identifiers: bool,
    compute: Compute,
    show: bool,
) -> "Summary":
    from client.decoding import DecoderDoesNotStart
    from client.device import DeviceError, choose_device, prepare_torch
    from client.prediction.predictor import Predictor
    from client.prediction.tables import Tables

    prepare_torch(compute)
    try:
        predictor = Predictor(
            models, device=choose_device(compute), overrides=allowed, num_readers=compute.num_readers
        )
    except DeviceError as error:
        raise ConfigurationError(str(error).replace("compute.device", "--device")) from error
    tables = Tables(
        folder,
        predictor.ensemble,
        identifiers=identifiers,
        overrides=[reason.code for reason in allowed],
        now=datetime.now(UTC),
    )
    try:
        with tables, _shown(show) as progress:
            return written(chain(unread, predictor.readings(inputs, progress)), tables, [])
    except DecoderDoesNotStart as error:
        raise OSError(str(error)) from error


def written(found: Iterable["Reading | Unread"], tables: "Tables", writers: Sequence["Writer"]) -> "Summary":
    """Give each reading to the tables and all *writers* as it comes, and tell them when there is no more."""
    from client.prediction.reading import Reading
    from client.prediction.summary import Summary

    summary = Summary()
    for one in found:
        summary.add(one)
        if not isinstance(one, Reading):
            tables.left_out(one)
            continue
        for writer in (tables, *writers):
            writer.write(one)
    for writer in (tables, *writers):
        writer.finish()
    return summary


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
def _shown(show: bool) -> Iterator["Done"]:
    columns = (
        TextColumn("reading images"),
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
    out.print(f"{summary.num_read} read: {folder / CSV_NAME}, {folder / JSON_NAME} (private)", markup=False)
    out.print(NOT_A_DEVICE)
