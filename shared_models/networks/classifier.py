"""What all shared networks have in common."""

from collections.abc import Sequence

from torch import Tensor, nn


class Classifier(nn.Module):
    """A network in two parts: features of each image by itself, and a head that makes logits of them.

    Attributes:
        head: maps features to logits, shape (batch, num_outputs).
        last_block: the layers before the head that are trained with it where only the last block is.
    """

    head: nn.Module
    last_block: Sequence[nn.Module]

    def features(self, images: Tensor) -> Tensor:
        """Map images, shape (batch, channels, rows, columns) in [0, 1], or volumes, to what the head sees."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Map images, shape (batch, channels, ...) in [0, 1], to logits, shape (batch, num_outputs)."""
        logits: Tensor = self.head(self.features(images))
        return logits
