"""How the architectures of the catalogue are built."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import nn

from shared_models.catalogue import CATALOGUE
from shared_models.initial_weights import read_weights, take_over
from shared_models.networks.densenet import DenseNet121
from shared_models.networks.network import Network
from shared_models.networks.resnet import ResNet
from shared_models.networks.scattering import ScatteringClassifier
from shared_models.networks.small_cnn import SmallCNN
from shared_models.networks.unet import UNet
from shared_models.networks.vgg import VGG11
from shared_models.study import Image, Model, Study
from shared_models.tasks.registry import task_of

log = logging.getLogger("collegium.model")

Build: TypeAlias = Callable[[Model, Image, int], Network]
"""Makes a network of the table ``[model]``, for such images, with so many outputs."""


def _small_cnn(model: Model, image: Image, num_outputs: int) -> Network:
    return SmallCNN(
        channels=image.channels,
        width=model.width,
        num_outputs=num_outputs,
        weight_standardisation=model.weight_standardisation,
        dimensions=CATALOGUE[model.architecture].dimensions,
        dropout=model.dropout,
    )


def _scattering(model: Model, image: Image, num_outputs: int) -> Network:
    return ScatteringClassifier(
        channels=image.channels,
        rows=image.rows,
        columns=image.columns,
        scales=model.scales,
        angles=model.angles,
        num_outputs=num_outputs,
        dropout=model.dropout,
    )


def _resnet(layers: Literal[18, 34, 50]) -> Build:
    def build(model: Model, image: Image, num_outputs: int) -> Network:
        return ResNet(
            layers=layers,
            dimensions=CATALOGUE[model.architecture].dimensions,
            channels=image.channels,
            width=model.width,
            stem=model.stem,
            num_outputs=num_outputs,
            dropout=model.dropout,
        )

    return build


def _densenet(model: Model, image: Image, num_outputs: int) -> Network:
    return DenseNet121(
        dimensions=CATALOGUE[model.architecture].dimensions,
        channels=image.channels,
        width=model.width,
        stem=model.stem,
        num_outputs=num_outputs,
        dropout=model.dropout,
    )


def _vgg(model: Model, image: Image, num_outputs: int) -> Network:
    return VGG11(channels=image.channels, width=model.width, num_outputs=num_outputs, dropout=model.dropout)


def _unet(*, residual: bool) -> Build:
    def build(model: Model, image: Image, num_outputs: int) -> Network:
        return UNet(
            residual=residual,
            dimensions=CATALOGUE[model.architecture].dimensions,
            channels=image.channels,
            width=model.width,
            levels=model.levels,
            num_outputs=num_outputs,
            dropout=model.dropout,
        )

    return build


BUILDS: Mapping[str, Build] = {
    "small-cnn": _small_cnn,
    "small-cnn-3d": _small_cnn,
    "scattering": _scattering,
    "resnet-18": _resnet(18),
    "resnet-34": _resnet(34),
    "resnet-50": _resnet(50),
    "resnet-18-3d": _resnet(18),
    "resnet-34-3d": _resnet(34),
    "resnet-50-3d": _resnet(50),
    "densenet-121": _densenet,
    "densenet-121-3d": _densenet,
    "vgg-11": _vgg,
    "unet": _unet(residual=False),
    "unet-3d": _unet(residual=False),
    "res-unet": _unet(residual=True),
    "res-unet-3d": _unet(residual=True),
}
"""One for each name of the catalogue."""


def build_network(model: Model, image: Image, *, num_outputs: int) -> Network:
    """Return the network of ``[model]`` for such images, with the initial weights that its seed fixes.

    Weights that are not trained need no gradient. The global random state of torch is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(model.seed)
        network = BUILDS[model.architecture](model, image, num_outputs)
    if model.trainable != "all":
        network.requires_grad_(False)
        for module in (*_last_blocks(network, model), network.head):
            module.requires_grad_(True)
    return network


def build_model(study: Study, weights: Path | None = None) -> Network:
    """Return the study's model with its initial weights.

    Args:
        study: with as many outputs as its task asks for.
        weights: the folder that has the file of initial weights; only studies that name one want it.

    Raises:
        WeightsError: the study names a file which is not there, is another one, or does not fit.
    """
    network = outline(study)
    if (named := study.model.weights) is not None:
        taken = take_over(network, read_weights(named, weights), file=named.file)
        log.info("initial weights of %s: %s", study.name, taken.sentence)
    return network


def outline(study: Study) -> Network:
    """Return the study's model as its seed makes it, whatever file of weights the study names.

    For those who ask for names, shapes and numbers of weights, or try the training on made-up images.
    """
    return build_network(study.model, study.image, num_outputs=task_of(study).num_outputs)


def _last_blocks(network: Network, model: Model) -> list[nn.Module]:
    """The modules of the blocks that are trained beside the head."""
    if model.trainable == "head":
        return []
    return [module for block in network.blocks[-model.last_blocks :] for module in block]
