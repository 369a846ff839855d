"""``model.safetensors``: the weights, the card that says what they are, and a digest over both.

The digest shows accidents and mix-ups: a file cut short, a card that was edited, weights of another run. It does not
show forgery, since whoever can write a file can compute it anew; hospitals that compare the digest with each other and
with the coordinator's ``result.json`` know that they have the same model.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from shared_models.architectures import outline
from shared_models.manifest import Manifest
from shared_models.model_card import FORMAT, CardError, ModelCard
from shared_models.networks.network import Network
from shared_models.study import Image, Study
from shared_models.tasks.registry import task_of
from shared_models.tasks.task import Task

MOST_BYTES = 2**31
"""Of a file: half a billion weights."""

Arrays = Mapping[str, NDArray[np.float32]]


class ModelFileError(Exception):
    """A model file cannot be used. The message says in one sentence which, why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedModel:
    """A model that is ready to be asked: all its weights in place, in evaluation mode, on the processor.

    Attributes:
        card: what it is.
        task: the study's.
        model: takes (batch, *image.shape) in [0, 1], gives logits.
        digest: SHA-256, hexadecimal, over card and weights.
        name: of its file, without folders.
    """

    card: ModelCard
    task: Task
    model: Network = field(repr=False)
    digest: str
    name: str

    @property
    def study(self) -> Study:
        """Which the model was trained in."""
        return self.card.study

    @property
    def image(self) -> Image:
        """How images are prepared for it."""
        return self.card.study.image


def digest_of(card: str, arrays: Arrays) -> str:
    """SHA-256, hexadecimal, over the card's JSON and, sorted by name, each tensor's name, shape and values."""
    digest = hashlib.sha256(f"{FORMAT}\n{len(card)}\n{card}".encode())
    for name in sorted(arrays):
        digest.update(json.dumps([name, list(arrays[name].shape)]).encode())
        digest.update(np.ascontiguousarray(arrays[name], dtype="<f4").data)
    return digest.hexdigest()


def model_bytes(card: ModelCard, arrays: Arrays) -> tuple[bytes, str]:
    """Return the file's content, the same bytes for the same card and weights, and the digest that stands in it."""
    text = card.to_json()
    digest = digest_of(text, arrays)
    return _sorted_header(
        save(dict(arrays), metadata={"format": FORMAT, "card": text, "digest": digest})
    ), digest


def _sorted_header(content: bytes) -> bytes:
    """The same with its header's keys sorted: safetensors leaves their order to chance.

    Source: safetensors' own description of its format: eight bytes with the header's length, the header as JSON,
    padded with spaces, and the tensors.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def read_model(path: Path) -> TrainedModel:
    """Read a model, and check that card and weights are those that were written together.

    Raises:
        ModelFileError: it is missing, no model of this format, damaged or cut short, changed, or does not fit the study
            in it.
    """
    metadata, arrays = _read(path)
    found = metadata.get("format")
    if found == "collegium-model-1":
        raise ModelFileError(
            f"{path}: is a model of the first format, which has no digest over card and weights; use the "
            "version that trained it, or a model of a run of this version"
        )
    if found != FORMAT or not {"card", "digest"} <= set(metadata):
        raise ModelFileError(
            f"{path}: is a safetensors file, and no model of a Collegium study: it has no card; name the "
            "model.safetensors of a run"
        )
    digest = digest_of(metadata["card"], arrays)
    if digest != metadata["digest"]:
        raise ModelFileError(
            f"{path}: its card and its weights are not those that were written together: one of them was changed or "
            "damaged; take the file from the coordinator again"
        )
    try:
        card = ModelCard.from_json(metadata["card"])
        model = _with_weights(outline(card.study), arrays, card)
    except (CardError, ValueError) as error:
        raise ModelFileError(
            f"{path}: does not fit this version ({error}); use the version that it was trained with"
        ) from error
    return TrainedModel(card=card, task=task_of(card.study), model=model, digest=digest, name=path.name)


def _read(path: Path) -> tuple[dict[str, str], dict[str, NDArray[np.float32]]]:
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise ModelFileError(f"{path}: has {size} bytes; a model has at most {MOST_BYTES}")
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read ({error.strerror}); name a model.safetensors"
        ) from error
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            arrays = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise ModelFileError(
            f"{path}: is no safetensors file, or was cut short or damaged; copy it again from the coordinator"
        ) from error
    if any(array.dtype != np.float32 for array in arrays.values()):
        raise ModelFileError(
            f"{path}: holds weights that are not float32, and is no model of a Collegium study"
        )
    return metadata, arrays


def _with_weights(model: Network, arrays: Arrays, card: ModelCard) -> Network:
    """The study's network with these weights. Raises ValueError where they are not its own."""
    weights = dict(model.named_parameters())
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    if shapes != {name: array.shape for name, array in arrays.items()}:
        raise ValueError("its weights have other names or shapes than those of its study's network")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(torch.from_numpy(arrays[name].copy()))
    if not all(bool(weight.isfinite().all()) for weight in weights.values()):
        raise ValueError("some of its weights are no finite numbers")
    if Manifest.of(model).hash != card.manifest_hash:
        raise ValueError("its weights are not those that its card names")
    if tuple(task_of(card.study).output_names) != card.outputs:
        raise ValueError("its outputs are not those of its study")
    return model.eval().requires_grad_(False)
