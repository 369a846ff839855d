"""The networks that a training step is measured with: those of the catalogue, and a small one for volumes."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from shared_models.networks.densenet import DenseNet121
from shared_models.networks.resnet import ResNet
from shared_models.networks.unet import UNet


class MeanOfMap(nn.Module):
    """A network that gives a map, and the mean of its map as the one output."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map (rows, channels, ...) to (rows, 1)."""
        maps: Tensor = self.network(images)
        return maps.flatten(2).mean(-1)


def resnet18(channels: int) -> Callable[[], nn.Module]:
    """A ResNet-18 with one output; 11.2 million weights."""
    return partial(ResNet, layers=18, dimensions=2, channels=channels, width=64, stem="7x7", num_outputs=1)


def densenet121(channels: int) -> Callable[[], nn.Module]:
    """A DenseNet-121 with one output; 7 million weights."""
    return partial(DenseNet121, dimensions=2, channels=channels, width=64, stem="7x7", num_outputs=1)


def unet(channels: int) -> MeanOfMap:
    """Return a U-Net of three levels in two dimensions, and the mean of its map as the one output."""
    return MeanOfMap(UNet(residual=False, dimensions=2, channels=channels, width=16, levels=3, num_outputs=1))


def volume_cnn(channels: int, width: int = 8) -> nn.Sequential:
    """Return a CNN of three convolutions for volumes with one output."""
    layers: list[nn.Module] = []
    before = channels
    for after in (width, 2 * width, 4 * width):
        layers += [nn.Conv3d(before, after, 3, padding=1), nn.GroupNorm(4, after), nn.ReLU(), nn.MaxPool3d(2)]
        before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(before, 1))
