"""What all shared networks have in common."""

from collections.abc import Sequence

from torch import Tensor, nn


class Network(nn.Module):
    """A network in two parts: features of each image by itself, and a head that makes logits of them.

    *Guarantee*: what it says of an image depends on that image alone, in training too; there are no statistics over a
    batch, no buffers, and no weight that is used twice.

    Args:
        dropout: probability with which each number that the head sees is put to zero in training, drawn for each
            image by itself.

    Attributes:
        head: maps features to logits.
        blocks: the other layers in groups, from the image to the head; a study may train the last ones only.
    """

    head: nn.Module
    blocks: Sequence[Sequence[nn.Module]]

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def features(self, images: Tensor) -> Tensor:
        """Map images, shape (batch, channels, rows, columns) in [0, 1], or volumes, to what the head sees."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Map images, shape (batch, channels, ...) in [0, 1], to logits."""
        logits: Tensor = self.head(self.dropout(self.features(images)))
        return logits


class Classifier(Network):
    """A network whose logits have the shape (batch, num_outputs).

    Attributes:
        maps: changes nothing. What passes through it are the last maps, shape (batch, channels, ...), whose mean over
            places is what the head sees: Grad-CAM looks at them. Networks without such maps do not call it.
    """

    has_maps = True

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__(dropout=dropout)
        self.maps = nn.Identity()


class DenseNetwork(Network):
    """A network whose logits have the shape (batch, num_outputs, ...): one vector for each pixel or voxel."""


def centred(images: Tensor) -> Tensor:
    """Bring [0, 1] to [−2, 2]: about what published networks see, whose images have mean 0 and variance 1."""
    return (images - 0.5) * 4.0
