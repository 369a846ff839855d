"""Initial weights from a file: which one the study's hash names, whether it is that one, and what is taken of it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from shared_models.configuration import ConfigurationError
from shared_models.networks.network import Network
from shared_models.study import Weights

MOST_BYTES = 2**31
"""Of a file: half a billion weights."""


class WeightsError(ConfigurationError):
    """The initial weights that a study names cannot be used. The message says which file, where, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenOver:
    """What became of a model's tensors.

    Attributes:
        taken: names of those that the file had.
        initial: names of those that stay as the seed made them; of the head only.
        unused: names of the file's that were not taken.
    """

    taken: tuple[str, ...]
    initial: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """For logs and reviews."""
        stay = f"; {', '.join(self.initial)} as the seed made them" if self.initial else ""
        unused = f"; of the file {len(self.unused)} without a place in the model" if self.unused else ""
        return f"{len(self.taken)} tensors from the file{stay}{unused}"


def weights_path(weights: Weights, folder: Path | None) -> Path:
    """Where the file lies. Raises WeightsError where no folder is known."""
    if folder is None:
        raise WeightsError(
            f"the study begins with weights from {weights.file}, and no folder is known that has it; put it into the "
            "folder `weights` of site.toml, for a server beside its proposal, for a simulation into the scenario's "
            "`weights`"
        )
    return folder / weights.file


def read_weights(weights: Weights, folder: Path | None) -> Mapping[str, Tensor]:
    """Return the tensors of the file that the study names.

    Raises:
        WeightsError: it is missing, is another one, or is no safetensors file.
    """
    path = weights_path(weights, folder)
    return _read(path, weights.sha256)


@lru_cache(maxsize=2)
def _read(path: Path, sha256: str) -> Mapping[str, Tensor]:
    """By the hash of what was read: a file that is replaced later changes nothing."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise WeightsError(f"{path}: has {size} bytes; must be at most {MOST_BYTES}")
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot be read ({error.strerror}); ask the coordinator for the study's initial weights, whose "
            f"SHA-256 is {sha256}, and put the file there"
        ) from error
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise WeightsError(
            f"{path}: has SHA-256 {found}, and the study names {sha256}; it is another file or a damaged copy: ask the "
            "coordinator for the right one"
        )
    try:
        tensors: Mapping[str, Tensor] = load(content)
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{path}: is not a safetensors file, though its SHA-256 is the study's") from error
    return tensors


def take_over(network: Network, tensors: Mapping[str, Tensor], *, file: str) -> TakenOver:
    """Write the file's tensors into the model.

    All but the head must be there, with the model's shapes; the head is taken where it fits, else it stays.

    Raises:
        WeightsError: a tensor is missing, has another shape, or holds what is no number. The model is as it was.
    """
    weights = dict(network.named_parameters())
    head = {f"head.{name}" for name, _ in network.head.named_parameters()}
    taken = {}
    for name, weight in weights.items():
        found = tensors.get(name)
        if found is not None and found.shape == weight.shape:
            if not found.is_floating_point() or not bool(found.isfinite().all()):
                raise WeightsError(f"{file}: {name} holds values that are not finite numbers")
            taken[name] = found
        elif name not in head:
            what = "is missing" if found is None else f"has shape {tuple(found.shape)}"
            raise WeightsError(
                f"{file}: {name} {what}; the study's model wants {tuple(weight.shape)}. Only the head may differ: take "
                "a file of the same architecture, width, stem and number of channels, or rename its tensors"
            )
    with torch.no_grad():
        for name, found in taken.items():
            weights[name].copy_(found)
    return TakenOver(
        taken=tuple(taken),
        initial=tuple(name for name in weights if name not in taken),
        unused=tuple(name for name in tensors if name not in taken),
    )
