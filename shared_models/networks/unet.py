"""U-Nets, plain and residual, in two and three dimensions: logits for each pixel or voxel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_models.networks.layers import Dimensions, convolution, group_norm, max_pooled
from shared_models.networks.network import DenseNetwork, centred
from shared_models.networks.resnet import BasicBlock


class DoubleConvolution(nn.Module):
    """Two convolutions of three, each with GroupNorm."""

    def __init__(self, dimensions: Dimensions, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = convolution(dimensions, before, after, 3)
        self.norm1 = group_norm(after)
        self.conv2 = convolution(dimensions, after, after, 3)
        self.norm2 = group_norm(after)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, before, ...) to (batch, after, ...)."""
        inner = F.relu(self.norm1(self.conv1(features)))
        return F.relu(self.norm2(self.conv2(inner)))


class UNet(DenseNetwork):
    """A way down, a way up, and connections between the levels of the same size.

    On the way up what comes from below is brought to half its channels by a convolution of one, where the image is
    small, and then enlarged by repeating each pixel, to the size of the level above, whatever that is. A transposed
    convolution has four or eight times as many weights, needs even sizes, and is no quicker under clipping.

    Args:
        residual: blocks with shortcuts, of which the first one of each level halves the image by its stride; else
            double convolutions and max-pooling.
        dimensions: 2 for images, 3 for volumes.
        channels: of an image.
        width: channels of the finest level, a multiple of 8; twice as many in each further one.
        levels: how many there are; each halves the image.
        num_outputs: of the head, a convolution of one.
        dropout: see `Network`.
    """

    def __init__(
        self,
        *,
        residual: bool,
        dimensions: Dimensions,
        channels: int,
        width: int,
        levels: int,
        num_outputs: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dropout=dropout)
        self._pools = not residual
        widths = [width * 2**level for level in range(levels)]

        def block(before: int, after: int, stride: int) -> nn.Module:
            if residual:
                return BasicBlock(dimensions, before, after, stride)
            return DoubleConvolution(dimensions, before, after)

        self.down = nn.ModuleList(
            block(before, after, 2 if level else 1)
            for level, (before, after) in enumerate(zip([channels, *widths], widths, strict=False))
        )
        finer = widths[-2::-1]
        self.narrow = nn.ModuleList(
            convolution(dimensions, 2 * after, after, 1, bias=True) for after in finer
        )
        self.up = nn.ModuleList(block(2 * after, after, 1) for after in finer)
        self.head = convolution(dimensions, width, num_outputs, 1, bias=True)
        self.blocks = (
            *((layer,) for layer in self.down),
            *zip(self.narrow, self.up, strict=True),
        )

    def features(self, images: Tensor) -> Tensor:
        """Map images, shape (batch, channels, ...) in [0, 1], to (batch, width, ...) of the same size."""
        beside: list[Tensor] = []
        features = centred(images)
        for level, layer in enumerate(self.down):
            features = layer(max_pooled(features) if level and self._pools else features)
            beside.append(features)
        beside.pop()
        for narrow, layer in zip(self.narrow, self.up, strict=True):
            above = beside.pop()
            features = layer(torch.cat((above, _enlarged(narrow(features), above)), 1))
        return features


def _enlarged(features: Tensor, to: Tensor) -> Tensor:
    return F.interpolate(features, size=to.shape[2:], mode="nearest")
