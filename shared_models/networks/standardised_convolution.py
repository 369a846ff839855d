"""A convolution whose weights are standardised before each use."""

import torch
from torch import Tensor, nn


class StandardisedConv2d(nn.Conv2d):
    """Each filter's weights, over input channels and kernel, are brought to mean 0 and variance 1.

    What is trained, and travels, are the weights before that. The gradient by them is another than that by the
    standardised ones, in norm too; clipping sees it, because this layer is no `nn.Conv2d` to `privacy.ghost`, which
    therefore differentiates its whole forward for each image.

    Source: Qiao and others (2019), "Micro-batch training with batch-channel normalization and weight standardization",
    with the small constant below the root, so that a filter of equal weights has a gradient.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Map images, shape (batch, in channels, rows, columns), as `nn.Conv2d` does with the standardised weights."""
        outputs: Tensor = self._conv_forward(images, _standardised(self.weight), self.bias)
        return outputs


class StandardisedConv3d(nn.Conv3d):
    """The same in three dimensions."""

    def forward(self, images: Tensor) -> Tensor:
        """Map volumes, shape (batch, in channels, depth, rows, columns), with the standardised weights."""
        outputs: Tensor = self._conv_forward(images, _standardised(self.weight), self.bias)
        return outputs


def _standardised(weight: Tensor) -> Tensor:
    variance, mean = torch.var_mean(weight, dim=tuple(range(1, weight.dim())), correction=0, keepdim=True)
    return (weight - mean) * torch.rsqrt(variance + _SMALL)


_SMALL = 1e-5
