"""Residual networks, with GroupNorm in place of batch normalisation.

Weights have the names that torchvision gives them, `conv1.weight`, `layer2.0.downsample.0.weight` and so on, where
``bn`` is a GroupNorm: scale and shift of a published network fit, its running statistics have no place.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from shared_models.networks.layers import (
    Dimensions,
    convolution,
    group_norm,
    max_pooled,
    mean_over_places,
)
from shared_models.networks.network import Classifier, centred

Stem = Literal["7x7", "3x3"]
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""In each of the four stages, by the number of layers."""


class BasicBlock(nn.Module):
    """Two convolutions of three beside a shortcut.

    Args:
        dimensions: of an image.
        before: channels that come in.
        width: channels of the convolutions, and that go out.
        stride: of the first convolution and the shortcut.
    """

    expansion = 1

    def __init__(self, dimensions: Dimensions, before: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = convolution(dimensions, before, width, 3, stride=stride)
        self.bn1 = group_norm(width)
        self.conv2 = convolution(dimensions, width, width, 3)
        self.bn2 = group_norm(width)
        self.downsample = _shortcut(dimensions, before, width, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, before, ...) to (batch, width, ...)."""
        inner = F.relu(self.bn1(self.conv1(features)))
        return F.relu(self.bn2(self.conv2(inner)) + self.downsample(features))


class Bottleneck(nn.Module):
    """Three convolutions, the middle one of three, beside a shortcut; four times *width* go out."""

    expansion = 4

    def __init__(self, dimensions: Dimensions, before: int, width: int, stride: int = 1) -> None:
        super().__init__()
        after = self.expansion * width
        self.conv1 = convolution(dimensions, before, width, 1)
        self.bn1 = group_norm(width)
        self.conv2 = convolution(dimensions, width, width, 3, stride=stride)
        self.bn2 = group_norm(width)
        self.conv3 = convolution(dimensions, width, after, 1)
        self.bn3 = group_norm(after)
        self.downsample = _shortcut(dimensions, before, after, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, before, ...) to (batch, 4 · width, ...)."""
        inner = F.relu(self.bn1(self.conv1(features)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        return F.relu(self.bn3(self.conv3(inner)) + self.downsample(features))


def _shortcut(dimensions: Dimensions, before: int, after: int, stride: int) -> nn.Module:
    if before == after and stride == 1:
        return nn.Identity()
    return nn.Sequential(convolution(dimensions, before, after, 1, stride=stride), group_norm(after))


class ResNet(Classifier):
    """A ResNet of 18, 34 or 50 layers.

    Args:
        layers: 18 and 34 have basic blocks, 50 has bottlenecks.
        dimensions: 2 for images, 3 for volumes.
        channels: of an image.
        width: channels of the first stage, a multiple of 8; 64 as published.
        stem: ``7x7`` halves the image twice before the first stage, ``3x3`` keeps its size.
        num_outputs: of the head.
        dropout: see `Network`.
    """

    def __init__(
        self,
        *,
        layers: Literal[18, 34, 50],
        dimensions: Dimensions,
        channels: int,
        width: int,
        stem: Stem,
        num_outputs: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dropout=dropout)
        self._halves = stem == "7x7"
        size, stride = (7, 2) if self._halves else (3, 1)
        self.conv1 = convolution(dimensions, channels, width, size, stride=stride)
        self.bn1 = group_norm(width)
        kind = Bottleneck if layers == 50 else BasicBlock
        before, stages = width, []
        for stage, number in enumerate(BLOCKS[layers]):
            blocks: list[nn.Module] = []
            for block in range(number):
                blocks.append(kind(dimensions, before, width * 2**stage, 2 if stage and not block else 1))
                before = kind.expansion * width * 2**stage
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.head = nn.Linear(before, num_outputs)
        self.blocks = ((self.conv1, self.bn1), *((stage,) for stage in stages))

    def features(self, images: Tensor) -> Tensor:
        """Map images, shape (batch, channels, ...) in [0, 1], to (batch, channels of the last stage)."""
        features = F.relu(self.bn1(self.conv1(centred(images))))
        if self._halves:
            features = max_pooled(features, 3, stride=2, padding=1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
        return mean_over_places(self.maps(features))
