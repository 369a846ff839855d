"""The registry of shared CNNs. All are ready for per-patient gradients: GroupNorm, nothing in place."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_models.study import Study


class SmallCNN(nn.Module):
    """Four 3×3 convolutions with GroupNorm, three of them followed by 2×2 pooling, and a linear head.

    Args:
        channels: of the image, 1 or 3.
        width: channels of the first convolution, a multiple of 8; the later ones have 2, 4 and 4 times as many.
        num_outputs: of the head.
    """

    def __init__(self, *, channels: int, width: int, num_outputs: int) -> None:
        super().__init__()
        widths = (channels, width, 2 * width, 4 * width, 4 * width)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, padding=1)
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, after) for after in widths[1:])
        self.head = nn.Linear(widths[-1], num_outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, shape (batch, channels, rows, columns) in [0, 1], to logits, shape (batch, num_outputs)."""
        features = (images - 0.5) * 4.0
        for depth, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            features = F.relu(norm(convolution(features)))
            if depth < len(self.norms) - 1:
                features = F.max_pool2d(features, 2)
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def _small_cnn(study: Study, num_outputs: int) -> nn.Module:
    return SmallCNN(channels=study.image.channels, width=study.model.width, num_outputs=num_outputs)


_REGISTRY: Mapping[str, Callable[[Study, int], nn.Module]] = {"small-cnn": _small_cnn}


def build_model(study: Study, *, num_outputs: int = 1) -> nn.Module:
    """Return the study's model with its initial weights, which the study's seed fixes.

    The global random state of torch is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.model.seed)
        return _REGISTRY[study.model.architecture](study, num_outputs)
