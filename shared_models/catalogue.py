"""The catalogue of architectures: what a study may name, and what each wants. Known before torch is.

How they are built: `shared_models.architectures`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One architecture.

    Attributes:
        dimensions: 2 for plane images, 3 for volumes.
        dense: whether it gives logits for each pixel, shape (batch, num_outputs, ...), and not one vector for an image.
        keys: of ``[model]``, those that change something besides ``architecture`` and ``seed``.
        width: the default of ``model.width``.
        source: who described it.
    """

    dimensions: Literal[2, 3]
    dense: bool
    keys: frozenset[str]
    width: int
    source: str


_ALL = frozenset({"dropout", "weights", "trainable", "last_blocks"})
_SMALL_CNN = _ALL | {"width", "weight_standardisation"}
_STEM = _ALL | {"width", "stem"}
_UNET = _ALL | {"width", "levels"}


def _of(
    dimensions: Literal[2, 3], keys: frozenset[str], width: int, source: str, *, dense: bool = False
) -> Architecture:
    return Architecture(dimensions=dimensions, dense=dense, keys=keys, width=width, source=source)


_RESNET = "He and others (2016), “Deep residual learning for image recognition”"
_RESNET_3D = f"{_RESNET}, in three dimensions as Hara and others (2018)"
_DENSENET = "Huang and others (2017), “Densely connected convolutional networks”"

CATALOGUE: Mapping[str, Architecture] = {
    "small-cnn": _of(2, _SMALL_CNN, 16, "ours"),
    "small-cnn-3d": _of(3, _SMALL_CNN, 16, "ours"),
    "scattering": _of(
        2,
        frozenset({"scales", "angles", "dropout"}),
        16,
        "Oyallon and Mallat (2015), Tramèr and Boneh (2021)",
    ),
    "resnet-18": _of(2, _STEM, 64, _RESNET),
    "resnet-34": _of(2, _STEM, 64, _RESNET),
    "resnet-50": _of(2, _STEM, 64, _RESNET),
    "resnet-18-3d": _of(3, _STEM, 64, _RESNET_3D),
    "resnet-34-3d": _of(3, _STEM, 64, _RESNET_3D),
    "resnet-50-3d": _of(3, _STEM, 64, _RESNET_3D),
    "densenet-121": _of(2, _STEM, 64, _DENSENET),
    "densenet-121-3d": _of(3, _STEM, 64, _DENSENET),
    "vgg-11": _of(
        2,
        _ALL | {"width"},
        64,
        "Simonyan and Zisserman (2015), configuration A, without its two wide linear layers",
    ),
    "unet": _of(2, _UNET, 16, "Ronneberger and others (2015), “U-Net”", dense=True),
    "unet-3d": _of(3, _UNET, 16, "Çiçek and others (2016), “3D U-Net”", dense=True),
    "res-unet": _of(
        2, _UNET, 16, "Zhang and others (2018), “Road extraction by deep residual U-Net”", dense=True
    ),
    "res-unet-3d": _of(3, _UNET, 16, "the same in three dimensions", dense=True),
}
"""By the name in ``model.architecture``."""

OWN_KEYS = tuple(sorted({key for one in CATALOGUE.values() for key in one.keys}))
"""Of ``[model]``, those that not every architecture has."""


def having(key: str) -> tuple[str, ...]:
    """Names of the architectures that have this key."""
    return tuple(name for name, one in CATALOGUE.items() if key in one.keys)


def in_quotes(names: Iterable[str]) -> str:
    """Names as they stand in a study, one after the other."""
    return ", ".join(f'"{name}"' for name in names)


def num_blocks(architecture: str, *, levels: int) -> int:
    """How many blocks a network has, of which a study may train the last ones."""
    if CATALOGUE[architecture].dense:
        return 2 * levels - 1
    if "stem" in CATALOGUE[architecture].keys:
        return 5
    return {"vgg-11": 8, "scattering": 0}.get(architecture, 4)


def smallest_side(architecture: str, *, scales: int, levels: int, stem: str) -> int:
    """Fewest rows, columns and slices of an image: with fewer nothing would be left where the network is narrowest.

    Args:
        architecture: its name.
        scales, levels, stem: of ``[model]``.
    """
    if architecture == "scattering":
        return int(2**scales)
    if CATALOGUE[architecture].dense:
        return int(2**levels)
    if "stem" in CATALOGUE[architecture].keys:
        return 32 if stem == "7x7" else 8
    return 32 if architecture == "vgg-11" else 8
