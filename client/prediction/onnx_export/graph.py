"""The ONNX file of a model: input ``images``, outputs ``logits`` and ``probabilities``, the card in its metadata."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor, nn

from client.prediction.onnx_export.errors import ExportRefused
from client.prediction.onnx_export.exact_norms import with_exact_norms
from shared_models.model_card import NOT_A_DEVICE
from shared_models.model_file import TrainedModel
from shared_models.networks.scattering import ScatteringClassifier

FORMAT = "collegium-onnx-1"
INPUT, OUTPUTS = "images", ("logits", "probabilities")
PREPARATION = (
    "float32, shape (batch, channels, rows, columns), of volumes (batch, channels, slices, rows, columns), in [0, 1]: "
    "images prepared as the key image of the card's study says, as collegium-client prepares them. This file does not "
    "prepare anything."
)


class WithProbabilities(nn.Module):
    """A network that gives its logits and what the task's activation makes of them, both of the same shape."""

    def __init__(self, network: nn.Module, activation: str) -> None:
        super().__init__()
        self.network, self.activation = network, activation

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to logits and probabilities."""
        logits = self.network(images)
        return logits, logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(1)


def onnx_bytes(trained: TrainedModel) -> bytes:
    """Return the model as ONNX.

    Raises:
        ExportRefused: it cannot be written as ONNX.
    """
    if isinstance(trained.model, ScatteringClassifier):
        raise ExportRefused(
            f"{trained.name} is of the architecture scattering, whose Fourier transform of complex numbers torch does "
            "not export; any other architecture can be exported"
        )
    network = WithProbabilities(with_exact_norms(trained.model).cpu(), trained.card.activation).eval()
    example = torch.zeros((2, *trained.image.shape))
    with _quietly():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1)}},
        )
    if program is None:
        raise ExportRefused(f"{trained.name} cannot be written as ONNX by this version of torch")
    return described(program.model_proto.SerializeToString(), trained)


def described(data: bytes, trained: TrainedModel, *, precision: str = "float32") -> bytes:
    """Return the file with the card, its digest and what the input is in its metadata."""
    model = onnx.load_model_from_string(data)
    onnx.helper.set_model_props(
        model,
        {
            "format": FORMAT,
            "precision": precision,
            "card": trained.card.to_json(),
            "digest": trained.digest,
            "outputs": json.dumps(list(trained.card.outputs)),
            "activation": trained.card.activation,
            "image": trained.image.model_dump_json(),
            "preparation": PREPARATION,
            "intended_use": trained.card.intended_use,
        },
    )
    model.producer_name = "Collegium"
    model.doc_string = NOT_A_DEVICE
    written: bytes = model.SerializeToString()
    return written


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch says of packages that are not there and of its own future."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
