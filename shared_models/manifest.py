"""Names and shapes of a model's weights: how a model becomes one flat vector and back."""

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
    """The weights of a model in order: ``entries`` holds (name, shape) of each parameter.

    Two models whose manifests are equal exchange flat vectors; all others are refused.
    """

    entries: tuple[tuple[str, tuple[int, ...]], ...]

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
        return cls(tuple((name, tuple(weight.shape)) for name, weight in model.named_parameters()))

    @property
    def num_weights(self) -> int:
        """Length of the flat vector."""
        return sum(prod(shape) for _, shape in self.entries)

    @property
    def hash(self) -> str:
        """SHA-256, hexadecimal, over names and shapes in order."""
        text = json.dumps([[name, list(shape)] for name, shape in self.entries], separators=(",", ":"))
        return hashlib.sha256(b"collegium-manifest-1\n" + text.encode()).hexdigest()


def flatten(model: nn.Module) -> FloatVector:
    """Return the weights of *model*, float32, shape (num_weights,), in the manifest's order."""
    with torch.no_grad():
        return np.concatenate(
            [weight.detach().to("cpu", torch.float32).numpy().ravel() for weight in model.parameters()]
        ).astype("<f4", copy=False)


def unflatten(vector: FloatVector, model: nn.Module) -> None:
    """Write *vector*, float32, shape (num_weights,), into the weights of *model*.

    Raises:
        ValueError: the vector's length is not the model's number of weights.
    """
    manifest = Manifest.of(model)
    if vector.shape != (manifest.num_weights,):
        raise ValueError(f"the vector has shape {vector.shape}, the model needs ({manifest.num_weights},)")
    start = 0
    with torch.no_grad():
        for weight in model.parameters():
            part = vector[start : start + weight.numel()].reshape(weight.shape)
            weight.copy_(torch.from_numpy(np.array(part, dtype=np.float32)))
            start += weight.numel()


def named_arrays(vector: FloatVector, manifest: Manifest) -> dict[str, FloatVector]:
    """Return the weights by name, each in its shape, as views of *vector*.

    Raises:
        ValueError: the vector's length is not the manifest's number of weights.
    """
    if vector.shape != (manifest.num_weights,):
        raise ValueError(f"the vector has shape {vector.shape}, the manifest needs ({manifest.num_weights},)")
    arrays, start = {}, 0
    for name, shape in manifest.entries:
        arrays[name] = vector[start : start + prod(shape)].reshape(shape)
        start += prod(shape)
    return arrays
