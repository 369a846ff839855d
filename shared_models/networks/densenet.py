"""DenseNet-121, with GroupNorm in place of batch normalisation."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_models.networks.layers import (
    Dimensions,
    convolution,
    group_norm,
    max_pooled,
    mean_over_places,
    mean_pooled,
)
from shared_models.networks.network import Classifier, centred

BLOCKS = (6, 12, 24, 16)
"""Layers of the four dense blocks."""
_BOTTLENECK = 4


class DenseLayer(nn.Module):
    """What it makes goes on beside what it got.

    Args:
        dimensions: of an image.
        before: channels that come in.
        growth: channels that come in addition.
    """

    def __init__(self, dimensions: Dimensions, before: int, growth: int) -> None:
        super().__init__()
        self.norm1 = group_norm(before)
        self.conv1 = convolution(dimensions, before, _BOTTLENECK * growth, 1)
        self.norm2 = group_norm(_BOTTLENECK * growth)
        self.conv2 = convolution(dimensions, _BOTTLENECK * growth, growth, 3)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, before, ...) to (batch, before + growth, ...)."""
        inner = self.conv1(F.relu(self.norm1(features)))
        return torch.cat((features, self.conv2(F.relu(self.norm2(inner)))), 1)


class Transition(nn.Module):
    """Halves the channels and the image between two dense blocks."""

    def __init__(self, dimensions: Dimensions, before: int) -> None:
        super().__init__()
        self.norm = group_norm(before)
        self.conv = convolution(dimensions, before, before // 2, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, before, ...) to (batch, before / 2, ...) of half the size."""
        return mean_pooled(self.conv(F.relu(self.norm(features))))


class DenseNet121(Classifier):
    """A DenseNet of 121 layers.

    Args:
        dimensions: 2 for images, 3 for volumes.
        channels: of an image.
        width: channels of the first convolution, a multiple of 8; 64 as published. Each layer adds half as many.
        stem: ``7x7`` halves the image twice before the first block, ``3x3`` keeps its size.
        num_outputs: of the head.
        dropout: see `Network`.
    """

    def __init__(
        self,
        *,
        dimensions: Dimensions,
        channels: int,
        width: int,
        stem: Literal["7x7", "3x3"],
        num_outputs: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dropout=dropout)
        self._halves = stem == "7x7"
        size, stride = (7, 2) if self._halves else (3, 1)
        self.conv0 = convolution(dimensions, channels, width, size, stride=stride)
        self.norm0 = group_norm(width)
        self.stages = nn.ModuleList()
        before, growth = width, width // 2
        for stage, number in enumerate(BLOCKS):
            layers: list[nn.Module] = []
            if stage:
                layers.append(Transition(dimensions, before))
                before //= 2
            for _ in range(number):
                layers.append(DenseLayer(dimensions, before, growth))
                before += growth
            self.stages.append(nn.Sequential(*layers))
        self.norm5 = group_norm(before)
        self.head = nn.Linear(before, num_outputs)
        self.blocks = (
            (self.conv0, self.norm0),
            *((stage,) for stage in self.stages[:-1]),
            (self.stages[-1], self.norm5),
        )

    def features(self, images: Tensor) -> Tensor:
        """Map images, shape (batch, channels, ...) in [0, 1], to (batch, channels of the last block)."""
        features = F.relu(self.norm0(self.conv0(centred(images))))
        if self._halves:
            features = max_pooled(features, 3, stride=2, padding=1)
        for stage in self.stages:
            features = stage(features)
        return mean_over_places(self.maps(F.relu(self.norm5(features))))
