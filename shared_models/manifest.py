"""Names and shapes of a model's weights: how a model becomes one flat vector and back.

Only trainable weights are in the vector. Frozen ones are made by the study's seed, at each site for itself.
"""

import hashlib
import json
from dataclasses import dataclass
from math import prod
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

FloatVector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The weights of a model in order: ``entries`` holds (name, shape) of each trainable parameter.

    Two models whose manifests are equal exchange flat vectors; all others are refused. ``frozen`` is the SHA-256,
    hexadecimal, of the weights that stay as they are, or empty where there are none: as these do not travel, they have
    to be the same everywhere beforehand.
    """

    entries: tuple[tuple[str, tuple[int, ...]], ...]
    frozen: str = ""

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Return the manifest of *model*.

        Raises:
            ValueError: the model has buffers (running statistics), which are no weights and would stay behind.
        """
        if buffers := [name for name, _ in model.named_buffers()]:
            raise ValueError(
                f"a shared model must have no buffers, this one has {buffers[:3]}; use GroupNorm"
            )
        weights = trainable_weights(model)
        return cls(tuple((name, tuple(weight.shape)) for name, weight in weights.items()), _frozen(model))

    @property
    def num_weights(self) -> int:
        """Length of the flat vector."""
        return sum(prod(shape) for _, shape in self.entries)

    @property
    def hash(self) -> str:
        """SHA-256, hexadecimal, over names and shapes in order, and over the frozen weights where there are any."""
        text = json.dumps([[name, list(shape)] for name, shape in self.entries], separators=(",", ":"))
        return hashlib.sha256(b"collegium-manifest-1\n" + (text + self.frozen).encode()).hexdigest()


def trainable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that training changes, by name, in the order of the flat vector."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _frozen(model: nn.Module) -> str:
    digest, trained = hashlib.sha256(), trainable_weights(model)
    stay = [(name, weight) for name, weight in model.named_parameters() if name not in trained]
    for name, weight in stay:
        digest.update(json.dumps([name, list(weight.shape)]).encode())
        digest.update(_array(weight).tobytes())
    return digest.hexdigest() if stay else ""


def _array(weight: nn.Parameter) -> FloatVector:
    return weight.detach().to("cpu", torch.float32).numpy().astype("<f4", copy=False)


def flatten(model: nn.Module) -> FloatVector:
    """Return the trainable weights of *model*, float32, shape (num_weights,), in the manifest's order."""
    return np.concatenate([_array(weight).ravel() for weight in trainable_weights(model).values()])


def unflatten(vector: FloatVector, model: nn.Module) -> None:
    """Write *vector*, float32, shape (num_weights,), into the trainable weights of *model*.

    Raises:
        ValueError: the vector's length is not the model's number of weights.
    """
    weights = trainable_weights(model).values()
    num_weights = sum(weight.numel() for weight in weights)
    if vector.shape != (num_weights,):
        raise ValueError(f"the vector has shape {vector.shape}, the model needs ({num_weights},)")
    start = 0
    with torch.no_grad():
        for weight in weights:
            part = vector[start : start + weight.numel()].reshape(weight.shape)
            weight.copy_(torch.from_numpy(np.array(part, dtype=np.float32)))
            start += weight.numel()
