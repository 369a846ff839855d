"""The layers that networks are built of, in two and three dimensions; all treat each image by itself."""

from collections.abc import Mapping
from math import gcd
from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

Dimensions: TypeAlias = Literal[2, 3]

_CONVOLUTIONS: Mapping[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_MAX_POOLS = {2: F.max_pool2d, 3: F.max_pool3d}
_MEAN_POOLS = {2: F.avg_pool2d, 3: F.avg_pool3d}
_GROUPS, _CHANNELS = 8, 4


def convolution(
    dimensions: Dimensions, before: int, after: int, size: int, *, stride: int = 1, bias: bool = False
) -> nn.Module:
    """Return a convolution that keeps the size of the image, but for the *stride*."""
    return _CONVOLUTIONS[dimensions](before, after, size, stride, padding=size // 2, bias=bias)


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a GroupNorm with scale and shift, of eight groups, or fewer so that each has four channels at least.

    A group of one channel at one place would always have variance 0, and rounding would be all that is left of it.
    """
    return nn.GroupNorm(gcd(_GROUPS, max(1, channels // _CHANNELS)), channels)


def max_pooled(features: Tensor, size: int = 2, *, stride: int | None = None, padding: int = 0) -> Tensor:
    """Pool (batch, channels, ...) by maximum."""
    return _MAX_POOLS[features.dim() - 2](features, size, stride, padding)


def mean_pooled(features: Tensor) -> Tensor:
    """Pool (batch, channels, ...) by mean, two by two."""
    return _MEAN_POOLS[features.dim() - 2](features, 2)


def mean_over_places(features: Tensor) -> Tensor:
    """Map (batch, channels, ...) to (batch, channels)."""
    return features.mean(dim=tuple(range(2, features.dim())))
