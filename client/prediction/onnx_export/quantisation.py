"""Eight bits: of weights (dynamic), or of weights and activations (static), by ONNX Runtime.

Source: Jacob and others (2018), "Quantization and training of neural networks for efficient integer-arithmetic-only
inference". What it changes is measured by ``make bench BENCH=quantisation``.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory

from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from client.prediction.onnx_export.check import Images
from client.prediction.onnx_export.errors import ExportRefused
from client.prediction.onnx_export.graph import INPUT

FEWEST_IMAGES = 16
"""That ranges of activations are taken from."""
_KINDS = ["Conv", "Gemm", "MatMul"]


class Int8(StrEnum):
    """Which numbers have eight bits."""

    DYNAMIC = "dynamic"
    STATIC = "static"


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Sequence[Images]) -> None:
        self._left = iter(images)

    def get_next(self) -> dict[str, Images] | None:
        """Return one prepared image; None where there is no more."""
        image = next(self._left, None)
        return None if image is None else {INPUT: image[None]}


def dynamic(data: bytes) -> bytes:
    """Return the file with weights of eight bits; ranges of activations are taken anew from each input."""
    with _prepared(data) as (folder, prepared):
        quantize_dynamic(
            prepared, folder / "int8.onnx", op_types_to_quantize=_KINDS, weight_type=QuantType.QUInt8
        )
        return (folder / "int8.onnx").read_bytes()


def static(data: bytes, images: Sequence[Images]) -> bytes:
    """Return the file with weights and activations of eight bits.

    Args:
        data: of `graph.onnx_bytes`.
        images: prepared, each of shape (channels, ...): the smallest and the largest value that each layer gives for
            them are the ends of its range.

    Raises:
        ExportRefused: there are fewer than `FEWEST_IMAGES`.
    """
    if len(images) < FEWEST_IMAGES:
        raise ExportRefused(
            f"Static quantisation takes the ranges of activations from images, and {len(images)} could be read; give a "
            f"folder with {FEWEST_IMAGES} at least, of all kinds that the model will see"
        )
    with _prepared(data) as (folder, prepared):
        quantize_static(
            prepared,
            folder / "int8.onnx",
            _Images(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_KINDS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return (folder / "int8.onnx").read_bytes()


@contextmanager
def _prepared(data: bytes) -> Iterator[tuple[Path, Path]]:
    """A folder that is gone afterwards, and in it the file with the shapes of all its tensors."""
    logger = logging.getLogger()
    level = logger.level
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "float32.onnx").write_bytes(data)
        logger.setLevel(logging.ERROR)
        try:
            quant_pre_process(folder / "float32.onnx", folder / "prepared.onnx", skip_symbolic_shape=True)
            yield folder, folder / "prepared.onnx"
        finally:
            logger.setLevel(level)
