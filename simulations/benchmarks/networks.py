"""The networks that a training step is measured with: the usual shapes, with GroupNorm, and nothing in place."""

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """The basic block of a ResNet: two 3×3 convolutions beside a shortcut.

    Args:
        before: channels that come in.
        after: channels that go out.
        stride: of the first convolution.
        groups: of the normalisation.
        in_place: relu in place, as it is often written; Opacus' hooks do not bear it.
    """

    def __init__(self, before: int, after: int, stride: int, *, groups: int, in_place: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, after) for _ in range(2))
        self.relus = nn.ModuleList(nn.ReLU(in_place) for _ in range(2))
        self.shortcut: nn.Module = nn.Identity()
        if before != after or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.GroupNorm(groups, after)
            )

    def forward(self, images: Tensor) -> Tensor:
        """Map (rows, before, ...) to (rows, after, ...)."""
        inner = self.relus[0](self.norms[0](self.first(images)))
        total: Tensor = self.relus[1](self.norms[1](self.second(inner)) + self.shortcut(images))
        return total


def resnet18(*, channels: int, width: int = 64, groups: int = 8, in_place: bool = False) -> nn.Sequential:
    """Return a ResNet-18 with one output; 11.2 million weights at width 64."""
    layers: list[nn.Module] = [*_stem(channels, width, groups)]
    before = width
    for stage in range(4):
        after = width * 2**stage
        for block in range(2):
            stride = 2 if stage and not block else 1
            layers.append(Residual(before, after, stride, groups=groups, in_place=in_place))
            before = after
    return nn.Sequential(*layers, *_head(before, 2))


class Dense(nn.Module):
    """A layer of a DenseNet: what it makes goes on beside what it got."""

    def __init__(self, before: int, growth: int, *, groups: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            *(nn.GroupNorm(groups, before), nn.ReLU(), nn.Conv2d(before, 4 * growth, 1, bias=False)),
            *(nn.GroupNorm(groups, 4 * growth), nn.ReLU()),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map (rows, before, ...) to (rows, before + growth, ...)."""
        return torch.cat((images, self.inner(images)), 1)


def densenet121(*, channels: int, growth: int = 32, groups: int = 8) -> nn.Sequential:
    """Return a DenseNet-121 with one output; 7 million weights at growth 32."""
    width = 2 * growth
    layers: list[nn.Module] = [*_stem(channels, width, groups)]
    for stage, number in enumerate((6, 12, 24, 16)):
        if stage:
            layers += [nn.GroupNorm(groups, width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False)]
            layers += [nn.AvgPool2d(2)]
            width //= 2
        for _ in range(number):
            layers.append(Dense(width, growth, groups=groups))
            width += growth
    return nn.Sequential(*layers, nn.GroupNorm(groups, width), nn.ReLU(), *_head(width, 2))


class UNet(nn.Module):
    """A U-Net of three levels in two dimensions, and the mean of its map as the one output.

    Args:
        channels: of the image, whose rows and columns are multiples of 4.
        width: channels of the finest level; twice and four times as many below.
    """

    def __init__(self, *, channels: int, width: int = 16) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        self.down = nn.ModuleList(
            _twice(before, after) for before, after in zip((channels, *widths), widths, strict=False)
        )
        self.up = nn.ModuleList(_twice(3 * after, after) for after in reversed(widths[:-1]))
        self.last = nn.Conv2d(width, 1, 1)
        self.pool, self.upsample = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)

    def forward(self, images: Tensor) -> Tensor:
        """Map (rows, channels, ...) to (rows, 1)."""
        beside: list[Tensor] = []
        features = images
        for depth, layer in enumerate(self.down):
            features = layer(features if not depth else self.pool(features))
            beside.append(features)
        beside.pop()
        for layer in self.up:
            features = layer(torch.cat((beside.pop(), self.upsample(features)), 1))
        maps: Tensor = self.last(features)
        return maps.mean(dim=(2, 3))


def volume_cnn(*, channels: int, width: int = 8) -> nn.Sequential:
    """Return a small CNN for volumes with one output."""
    layers: list[nn.Module] = []
    before = channels
    for after in (width, 2 * width, 4 * width):
        layers += [nn.Conv3d(before, after, 3, padding=1), nn.GroupNorm(4, after), nn.ReLU(), nn.MaxPool3d(2)]
        before = after
    return nn.Sequential(*layers, *_head(before, 3))


def _stem(channels: int, width: int, groups: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, 7, 2, padding=3, bias=False)
    return [convolution, nn.GroupNorm(groups, width), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]


def _twice(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1), nn.GroupNorm(4, after), nn.ReLU()]
    return nn.Sequential(*layers)


def _head(width: int, dims: int) -> list[nn.Module]:
    pool = nn.AdaptiveAvgPool2d(1) if dims == 2 else nn.AdaptiveAvgPool3d(1)
    return [pool, nn.Flatten(), nn.Linear(width, 1)]
