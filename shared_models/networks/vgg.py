"""VGG-11, with GroupNorm, and a linear head on the mean over places."""

import torch.nn.functional as F
from torch import Tensor, nn

from shared_models.networks.layers import convolution, group_norm, max_pooled, mean_over_places
from shared_models.networks.network import Classifier, centred

_WIDTHS = (1, 2, 4, 4, 8, 8, 8, 8)
_POOLED_AFTER = (0, 1, 3, 5, 7)


class VGG11(Classifier):
    """Eight 3×3 convolutions with GroupNorm and five 2×2 poolings.

    The two linear layers of 4,096 that the published network has behind them are 119 of its 133 million weights, and
    are left out: noise is added to each weight.

    Args:
        channels: of an image.
        width: channels of the first convolution, a multiple of 8; 64 as published.
        num_outputs: of the head.
        dropout: see `Network`.
    """

    def __init__(self, *, channels: int, width: int, num_outputs: int, dropout: float = 0.0) -> None:
        super().__init__(dropout=dropout)
        widths = (channels, *(width * times for times in _WIDTHS))
        self.convolutions = nn.ModuleList(
            convolution(2, before, after, 3, bias=True)
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.norms = nn.ModuleList(group_norm(after) for after in widths[1:])
        self.head = nn.Linear(widths[-1], num_outputs)
        self.blocks = tuple(zip(self.convolutions, self.norms, strict=True))

    def features(self, images: Tensor) -> Tensor:
        """Map images, shape (batch, channels, rows, columns) in [0, 1], to (batch, 8 · width)."""
        features = centred(images)
        for number, (layer, norm) in enumerate(self.blocks):
            features = F.relu(norm(layer(features)))
            if number in _POOLED_AFTER:
                features = max_pooled(features)
        return mean_over_places(self.maps(features))
