"""``collegium-client export``: a trained model as ONNX, checked against the model itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from shared_models.configuration import ConfigurationError

if TYPE_CHECKING:
    from client.prediction.onnx_export.check import Images
    from client.prediction.onnx_export.quantisation import Int8
    from shared_models.model_file import TrainedModel

FAILURE = 1
MOST_IMAGES = 256
"""That are taken of a folder for calibration."""

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def export(
    model: Annotated[Path, typer.Argument(help="A model.safetensors.", show_default=False)],
    onnx: Annotated[Path, typer.Option(help="The file to write.", dir_okay=False, show_default=False)],
    int8: Annotated[
        Literal["dynamic", "static"] | None,
        typer.Option(
            help="Weights of eight bits; static: activations too, whose ranges --calibration gives."
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="A folder with DICOM images of all kinds that the model will see.", file_okay=False
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a model as ONNX, with its card, once ONNX Runtime computes the same with it.

    Exit status: 0; 1 where the model cannot be used or exported, or the file would differ from it; 2 wrong usage.
    """
    from client.prediction.onnx_export.errors import ExportRefused, check_installed
    from shared_models.model_file import ModelFileError, read_model

    if (int8 == "static") != (calibration is not None):
        raise ConfigurationError("--calibration FOLDER goes with --int8 static, and the other way round")
    if onnx.exists() and not overwrite:
        raise ConfigurationError(f"{onnx}: is there already; name another file, or give --overwrite")
    try:
        check_installed()
        _export(read_model(model), onnx, int8, calibration)
    except (ModelFileError, ExportRefused) as error:
        err.print(str(error), style="red", markup=False)
        raise typer.Exit(FAILURE) from error


def _export(
    trained: "TrainedModel", path: Path, int8: Literal["dynamic", "static"] | None, calibration: Path | None
) -> None:
    """Raises ExportRefused, OSError."""
    from client.prediction.onnx_export.check import OnnxModel, check, difference, edge_inputs
    from client.prediction.onnx_export.graph import described, onnx_bytes
    from client.prediction.onnx_export.quantisation import Int8
    from client.private_file import replace_private_file

    data = onnx_bytes(trained)
    inputs = edge_inputs(trained.image.shape)
    largest = check(trained, data, inputs)
    lines = [f"Outputs equal those of {trained.name} within {largest:.1e}, on random and on edge inputs."]
    if int8 is not None:
        images = _calibration_images(trained, calibration) if calibration is not None else []
        size = len(data)
        data = described(_quantised(data, Int8(int8), images), trained, precision=f"int8-{int8}")
        file = OnnxModel(data)
        judged = images or list(inputs["random"])
        worst = max(difference(trained, file, image[None]).probabilities for image in judged)
        lines += [
            f"Eight bits, {int8}: {len(data):,} bytes in place of {size:,}. On {len(judged)} "
            f"{'images of --calibration' if images else 'random images'} a probability differs by up to {worst:.3f}.",
            "The study's test was made with the model, not with this file: test the file before you rely on its card.",
        ]
    replace_private_file(path, data)
    for line in lines:
        out.print(line, markup=False)
    out.print(f"Wrote {path}, with the model's card and digest {trained.digest}.", markup=False)
    out.print(trained.card.intended_use, markup=False)


def _quantised(data: bytes, kind: "Int8", images: list["Images"]) -> bytes:
    from client.prediction.onnx_export import quantisation

    if kind is quantisation.Int8.DYNAMIC:
        return quantisation.dynamic(data)
    return quantisation.static(data, images)


def _calibration_images(trained: "TrainedModel", folder: Path) -> list["Images"]:
    """Prepared as for a reading; those that would be refused are left out."""
    import torch

    from client.decoding import DecoderDoesNotStart
    from client.prediction.inputs import inputs_of
    from client.prediction.predictor import Predictor
    from client.prediction.reading import Reading

    found: list[Images] = []
    try:
        for one in Predictor([trained], device=torch.device("cpu")).readings(inputs_of([folder])):
            if isinstance(one, Reading):
                found.append(one.prepared)
            if len(found) == MOST_IMAGES:
                break
    except DecoderDoesNotStart as error:
        raise OSError(str(error)) from error
    return found
