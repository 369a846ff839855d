"""Whether ONNX Runtime computes with a file what torch computes with the model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from client.prediction.onnx_export.errors import ExportRefused
from client.prediction.onnx_export.graph import INPUT, OUTPUTS
from shared_models.model_file import TrainedModel

Images = npt.NDArray[np.float32]

TOLERANCE = 1e-4
"""Of each probability; of each logit times its size, where that is above 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Largest differences over some images: of logits as `TOLERANCE` takes them, and of probabilities."""

    logits: float
    probabilities: float

    @property
    def largest(self) -> float:
        """Of both."""
        return max(self.logits, self.probabilities)


class OnnxModel:
    """An ONNX file that can be asked, on one thread or *threads*."""

    def __init__(self, data: bytes, *, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: Images) -> tuple[Images, Images]:
        """Return logits and probabilities of (batch, channels, ...)."""
        logits, probabilities = self._session.run(list(OUTPUTS), {INPUT: images})
        return logits, probabilities


def edge_inputs(shape: Sequence[int]) -> Mapping[str, Images]:
    """Return images at the edges of what may come, each of shape (1, *shape), and some random ones in a batch.

    Args:
        shape: (channels, ...).
    """
    drawn = np.random.default_rng(20_260_301)
    point, half = np.zeros((shape[0], math.prod(shape[1:]))), np.zeros(shape)
    point[:, point.shape[1] // 2 + shape[-1] // 2] = 1.0
    half[..., : shape[-1] // 2] = 1.0
    places = np.indices(shape[1:]).sum(axis=0) % 2
    found = {
        "random": drawn.random((3, *shape)),
        "dark and random": drawn.random((1, *shape)) * 0.01,
        "smooth": np.broadcast_to(np.linspace(0.0, 1.0, shape[-1]), shape)[None],
        "all 0": np.zeros((1, *shape)),
        "all 1": np.ones((1, *shape)),
        "all ½": np.full((1, *shape), 0.5),
        "all 0.3": np.full((1, *shape), 0.3),
        "one point": point.reshape(1, *shape),
        "one half": half[None],
        "chessboard": np.broadcast_to(places, shape)[None],
    }
    return {name: np.ascontiguousarray(images, dtype=np.float32) for name, images in found.items()}


def difference(trained: TrainedModel, file: OnnxModel, images: Images) -> Difference:
    """Return by how much the file differs from the model on these images."""
    with torch.no_grad():
        logits = trained.model(torch.from_numpy(images))
        probabilities = logits.sigmoid() if trained.card.activation == "sigmoid" else logits.softmax(1)
    of_file = file(images)
    size = np.maximum(1.0, np.abs(logits.numpy()))
    return Difference(
        logits=_largest((of_file[0] - logits.numpy()) / size),
        probabilities=_largest(of_file[1] - probabilities.numpy()),
    )


def check(trained: TrainedModel, data: bytes, inputs: Mapping[str, Images]) -> float:
    """Return the largest difference over all inputs.

    Raises:
        ExportRefused: it is above `TOLERANCE`, or no number.
    """
    file = OnnxModel(data)
    found = {name: difference(trained, file, images).largest for name, images in inputs.items()}
    worst = max(found, key=lambda name: found[name])
    if not found[worst] <= TOLERANCE:
        raise ExportRefused(
            f"ONNX Runtime's outputs differ from those of {trained.name} by {found[worst]:.1e} on the input “{worst}”, "
            f"more than {TOLERANCE:g}; nothing was written, since what the study's test says holds for the model only"
        )
    return found[worst]


def _largest(values: Images) -> float:
    """Infinite where one is no number."""
    return float(np.nan_to_num(np.abs(values), nan=np.inf).max())
