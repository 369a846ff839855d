"""``collegium-simulate prepare``: hospital folders of valid DICOM, from synthetic or public images."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from simulations.preparation.cases import SourceError
from simulations.preparation.hospitals import Hospital, PreparationError, prepare
from simulations.preparation.partition import PartitionError
from simulations.preparation.sources import Source

EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130


class PrepareKind(StrEnum):
    """What can be prepared."""

    PHANTOM = "phantom"
    NODULE_PHANTOM = "nodule-phantom"
    FRACTURE_PHANTOM = "fracture-phantom"
    PNEUMONIAMNIST = "pneumoniamnist"
    BREASTMNIST = "breastmnist"
    HAM10000 = "ham10000"


_PATH_FIELD = {
    PrepareKind.HAM10000: "folder",
    PrepareKind.PNEUMONIAMNIST: "file",
    PrepareKind.BREASTMNIST: "file",
}
_FLAGS = {"patients_per_hospital": "--patients", "file": "--source", "folder": "--source"}


def prepare_command(
    *,
    kind: Annotated[PrepareKind, typer.Argument(help="Which images.")],
    out: Annotated[Path, typer.Option(help="Folder to write the hospitals to.", file_okay=False)],
    source: Annotated[
        Path | None,
        typer.Option(help="MedMNIST file, or HAM10000 folder; else it is looked for in $COLLEGIUM_DATA."),
    ] = None,
    num_hospitals: Annotated[int | None, typer.Option(help="Number of hospitals.")] = None,
    patients: Annotated[
        str | None, typer.Option(help="Phantoms: patients per hospital, one number or one each: 150,80,80.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Phantoms: nominal height and width in pixels.")
    ] = None,
    partition: Annotated[
        str | None, typer.Option(help="MedMNIST: iid, quantity, dirichlet or missing-label.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Dirichlet concentration; smaller is more uneven.")
    ] = None,
    shares: Annotated[str | None, typer.Option(help="Sizes of the hospitals, for quantity: 5,3,1.")] = None,
    missing: Annotated[
        str | None, typer.Option(help="Label that each hospital lacks, for missing-label: pneumonia,,normal.")
    ] = None,
    max_patients: Annotated[
        int | None,
        typer.Option(help="Take only so many patients (HAM10000: per hospital), for quick trials."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides everything that is drawn.")] = 0,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace an earlier preparation; only files that we wrote are removed."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the hospitals as JSON.")] = False,
) -> None:
    """Prepare hospitals: one folder each, with DICOM images and a labels file."""
    given = {
        "num_hospitals": num_hospitals,
        "patients_per_hospital": _numbers("--patients", patients, int),
        "image_size": image_size,
        "partition": partition,
        "alpha": alpha,
        "shares": _numbers("--shares", shares, float),
        "missing": None if missing is None else tuple(part.strip() for part in missing.split(",")),
        "max_patients": max_patients,
        _PATH_FIELD.get(kind, "file"): source,
    }
    try:
        chosen = _source(kind, {name: value for name, value in given.items() if value is not None})
        hospitals = _prepare_with_progress(chosen, out, seed, overwrite=overwrite)
    except (SourceError, PartitionError, PreparationError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or out}: {error.strerror}")
    except KeyboardInterrupt:
        typer.echo(
            f"Interrupted. {out} is marked as incomplete; the same command takes it up again.", err=True
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps([hospital.model_dump(mode="json") for hospital in hospitals], indent=2))
    else:
        Console().print(_table(hospitals))
        typer.echo(f"Prepared {len(hospitals)} hospitals in {out}")


def _source(kind: PrepareKind, values: dict[str, Any]) -> Source:
    """Validate the options as the ``[hospitals]`` table that they stand for."""
    tags: dict[str, Any] = {"kind": kind.value}
    if kind in (PrepareKind.PNEUMONIAMNIST, PrepareKind.BREASTMNIST):
        tags = {"kind": "medmnist", "dataset": kind.value}
    adapter: TypeAdapter[Source] = TypeAdapter(Source)
    try:
        return adapter.validate_python(tags | values)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            field = str(problem["loc"][1]) if len(problem["loc"]) > 1 else ""
            flag = _FLAGS.get(field, f"--{field.replace('_', '-')}") if field else str(kind)
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(
                f"{flag}: {'does not apply to ' + kind if problem['type'] == 'extra_forbidden' else message}"
            )
        _fail("\n".join(lines))


def _numbers(flag: str, text: str | None, number: type[int] | type[float]) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(number(part) for part in text.split(","))
    except ValueError:
        _fail(f"{flag} is {text!r}; must be numbers separated by commas")


def _prepare_with_progress(source: Source, out: Path, seed: int, *, overwrite: bool) -> tuple[Hospital, ...]:
    console = Console(stderr=True)
    columns = (TextColumn("Writing images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return prepare(source, out, seed, show, overwrite=overwrite)


def _table(hospitals: tuple[Hospital, ...]) -> Table:
    table = Table("hospital", "patients", "images", "labels (patients)", "scanner")
    for hospital in hospitals:
        counts = ", ".join(f"{label} {count}" for label, count in hospital.label_counts.items())
        table.add_row(
            hospital.name, str(hospital.num_patients), str(hospital.num_images), counts, hospital.scanner
        )
    return table


def _fail(message: str) -> NoReturn:
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(EXIT_WRONG_INPUT)
