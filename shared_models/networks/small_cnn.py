"""A small convolutional network, ready for per-patient gradients: GroupNorm, nothing in place."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from shared_models.networks.layers import max_pooled, mean_over_places
from shared_models.networks.network import Classifier, centred
from shared_models.networks.standardised_convolution import StandardisedConv2d, StandardisedConv3d

_CONVOLUTIONS = {
    (2, False): nn.Conv2d,
    (2, True): StandardisedConv2d,
    (3, False): nn.Conv3d,
    (3, True): StandardisedConv3d,
}


class SmallCNN(Classifier):
    """Four 3×3 convolutions with GroupNorm, three of them followed by 2×2 pooling, and a linear head.

    In three dimensions the convolutions are 3×3×3 and the pooling is 2×2×2.

    Args:
        channels: of the image, 1 or 3.
        width: channels of the first convolution, a multiple of 8; the later ones have 2, 4 and 4 times as many.
        num_outputs: of the head.
        weight_standardisation: of the convolutions.
        dimensions: 2 for images, 3 for volumes.
        dropout: see `Network`.
    """

    def __init__(
        self,
        *,
        channels: int,
        width: int,
        num_outputs: int,
        weight_standardisation: bool = False,
        dimensions: Literal[2, 3] = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dropout=dropout)
        convolution = _CONVOLUTIONS[dimensions, weight_standardisation]
        widths = (channels, width, 2 * width, 4 * width, 4 * width)
        self.convolutions = nn.ModuleList(
            convolution(before, after, kernel_size=3, padding=1)
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, after) for after in widths[1:])
        self.head = nn.Linear(widths[-1], num_outputs)
        self.blocks = tuple(zip(self.convolutions, self.norms, strict=True))

    def features(self, images: Tensor) -> Tensor:
        """Map images, shape (batch, channels, rows, columns) in [0, 1], or volumes, to shape (batch, 4 · width)."""
        features = centred(images)
        for depth, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            features = F.relu(norm(convolution(features)))
            if depth < len(self.norms) - 1:
                features = max_pooled(features)
        return mean_over_places(self.maps(features))
