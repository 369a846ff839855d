"""Layers and small networks that clipping is tried on, and each patient's gradient by plain autograd in float64."""

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privacy.ghost.matrices import Norms
from privacy.ghost.patients import Rows
from privacy.ghost.sums import GhostClipping


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose weight is standardised before each use."""

    def forward(self, images: Tensor) -> Tensor:
        weight = self.weight
        mean, deviation = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(images, (weight - mean) / (deviation + 1e-5), self.bias)


class Residual(nn.Module):
    """The basic block of a ResNet, with GroupNorm; relu in place, as it is usually written."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(4, after), nn.GroupNorm(4, after)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Identity()
            if before == after and stride == 1
            else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.GroupNorm(4, after))
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        inner = self.norm2(self.second(self.relu(self.norm1(self.first(images)))))
        return self.relu(inner + self.shortcut(images))


def resnet(width: int = 8, blocks: tuple[int, ...] = (2, 2, 2, 2), *, channels: int = 1) -> nn.Module:
    """A ResNet with GroupNorm; with four times two blocks a ResNet-18."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 7, 2, padding=3, bias=False),
        nn.GroupNorm(4, width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, padding=1),
    ]
    before = width
    for stage, number in enumerate(blocks):
        after = width * 2**stage
        for block in range(number):
            layers.append(Residual(before, after, 2 if stage and not block else 1))
            before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1))


class Dense(nn.Module):
    """A layer of a DenseNet: what it sees goes on beside what it makes."""

    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.GroupNorm(2, before), nn.ReLU(), nn.Conv2d(before, 4 * growth, 1, bias=False),
            nn.GroupNorm(2, 4 * growth), nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat((images, self.inner(images)), 1)


def densenet(blocks: tuple[int, ...] = (6, 12, 24, 16), growth: int = 2, *, channels: int = 1) -> nn.Module:
    """A DenseNet with GroupNorm; with these blocks a DenseNet-121."""
    width = 2 * growth
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 7, 2, padding=3, bias=False),
        nn.GroupNorm(2, width),
    ]
    layers += [nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    for stage, number in enumerate(blocks):
        for _ in range(number):
            layers.append(Dense(width, growth))
            width += growth
        if stage < len(blocks) - 1:
            layers += [nn.GroupNorm(2, width), nn.ReLU(), nn.Conv2d(width, width // 4 * 2, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
            width = width // 4 * 2
    return nn.Sequential(
        *layers, nn.GroupNorm(2, width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1)
    )


class UNet(nn.Module):
    """Two levels with a skip connection; the way up is a transposed convolution."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.GroupNorm(2, width), nn.PReLU())
        self.bottom = nn.Sequential(
            nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 3, padding=1), nn.GroupNorm(2, 2 * width), nn.PReLU()
        )
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.last = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.GroupNorm(2, width),
            nn.PReLU(),
            nn.Conv2d(width, 1, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        fine = self.down(images)
        return self.last(torch.cat((fine, self.up(self.bottom(fine))), 1))


def volume_cnn(width: int = 4) -> nn.Module:
    """A small CNN for volumes."""
    return nn.Sequential(
        nn.Conv3d(1, width, 3, padding=1), nn.GroupNorm(2, width), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(width, 2 * width, 3, padding=1), nn.GroupNorm(2, 2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2 * width, 1),
    )  # fmt: skip


def made(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The module with weights that *seed* fixes; scales and shifts are moved away from one and zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        for weight in model.parameters():
            weight.data.add_(0.1 * torch.randn(weight.shape))
    return model.train()


def images_of(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Numbers around zero."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def hard_patients(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Images of one batch, and the patient of each: a usual one, one all zero, one of a million times as much, one
    with a NaN in one of its two, one with 200 images, among which the others' are scattered."""
    owner = torch.tensor([0, 1, 2, 3, 3] + 200 * [4])
    images = images_of((len(owner), *shape), seed=7)
    images[1], images[2] = 0.0, images[2] * 1e6
    images[4].flatten()[0] = float("nan")
    order = torch.randperm(len(owner), generator=torch.Generator().manual_seed(7))
    return images[order], owner[order]


def hard_patients_error(model: nn.Module, shape: tuple[int, ...], *, precision: torch.dtype) -> float:
    """How far the clipped sum of `hard_patients` is from autograd's, in units of the bound and a patient, at worst of
    a bound that clips each, one that clips some, and one that clips the largest only.

    Both go through the same batch in the same *precision*: among 200 images there is one with a value so near the kink
    of a ReLU or of a maximum that rounding decides to which side it falls, and with it the gradient. What clipping adds
    to that is what is asked for here.
    """
    model = copy.deepcopy(model).to(precision)
    images, owner = hard_patients(shape)
    images = images.to(precision)
    whole = [patient for patient in range(int(owner.max()) + 1) if images[owner == patient].isfinite().all()]
    losses = losses_of(model(images.nan_to_num()))
    weights = list(model.parameters())
    gradients = [
        [
            torch.zeros_like(weight).double() if part is None else part.double()
            for weight, part in zip(
                weights,
                torch.autograd.grad(
                    losses[owner == patient].sum(), weights, retain_graph=True, allow_unused=True
                ),
                strict=True,
            )
        ]
        for patient in whole
    ]
    sizes = sorted(size for size in map(norm_of, gradients) if size > 0)
    errors = []
    for bound in (sizes[0] / 10.0, sizes[len(sizes) // 2] / 2.0, sizes[-1] / 2.0):
        want = [
            sum(
                part * (bound / max(bound, norm_of(gradient)))
                for part, gradient in zip(parts, gradients, strict=True)
            )
            for parts in zip(*gradients, strict=True)
        ]
        errors.append(distance(clipped(model, images, bound, patient=owner), want) / bound)
    return max(errors) / (int(owner.max()) + 1)


def losses_of(outputs: Tensor) -> Tensor:
    """A loss for each row, not linear in the outputs; the same formula in any precision."""
    flat = outputs.flatten(1)
    weights = torch.linspace(-1.0, 2.0, flat.shape[1], dtype=flat.dtype, device=flat.device)
    return (F.softplus(flat - 0.3) * weights).sum(1)


def clipped(
    model: nn.Module,
    images: Tensor,
    bound: float,
    *,
    norms: Norms = Norms.CHEAPEST,
    patient: Tensor | None = None,
) -> list[Tensor]:
    """The clipped sum of ours, float64 on the processor."""
    ghost = GhostClipping(model, norms=norms)
    found = ghost.clipped(
        lambda: losses_of(model(images)), Rows.of(len(images), patient), max_grad_norm=bound
    )
    return [
        torch.zeros_like(weight).double().cpu() if part is None else part.double().cpu()
        for weight, part in zip(ghost.parameters, found.parts, strict=True)
    ]


def exact(model: nn.Module, images: Tensor, bound: float, *, patient: Tensor | None = None) -> list[Tensor]:
    """The patients' gradients by plain autograd in float64, clipped and summed; one that is not finite is left out."""
    model = copy.deepcopy(model).double().cpu()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    total = [torch.zeros_like(weight) for weight in weights]
    owner = torch.arange(len(images)) if patient is None else patient
    for number in range(int(owner.max()) + 1):
        rows = images[owner == number].double().cpu()
        if not len(rows):
            continue
        found = torch.autograd.grad(losses_of(model(rows)).sum(), weights, allow_unused=True)
        parts = [
            torch.zeros_like(weight) if part is None else part
            for weight, part in zip(weights, found, strict=True)
        ]
        norm = norm_of(parts)
        if math.isfinite(norm):
            for into, part in zip(total, parts, strict=True):
                into.add_(part * (bound / max(bound, norm)))
    return total


def norm_of(parts: list[Tensor]) -> float:
    """The L2 norm of all parts together, in float64."""
    return float(torch.sqrt(sum((part.double() ** 2).sum() for part in parts)))


def distance(some: list[Tensor], others: list[Tensor]) -> float:
    """The L2 norm of the difference, in float64."""
    return norm_of([one.double() - other for one, other in zip(some, others, strict=True)])


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(3, 4, 5, padding=2), (3, 11)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 3, padding=1), (2, 4, 5, 3)),
    "conv of one position": (lambda: nn.Conv2d(3, 4, 5), (3, 5, 5)),
    "strided conv with a rest": (lambda: nn.Conv2d(3, 4, 3, stride=2), (3, 8, 9)),
    "uneven stride, padding, dilation": (
        lambda: nn.Conv2d(2, 4, (3, 2), stride=(1, 3), padding=(2, 0), dilation=(2, 1)), (2, 9, 10)
    ),
    "dilated conv1d": (lambda: nn.Conv1d(8, 2, 3, padding=4, dilation=4), (8, 12)),
    "grouped conv": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 6)),
    "depthwise conv": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4, stride=2), (4, 6, 6)),
    "grouped conv3d without bias": (lambda: nn.Conv3d(4, 4, 2, stride=2, groups=2, bias=False), (4, 4, 5, 4)),
    "many channels": (lambda: nn.Conv2d(16, 8, 3, padding=1), (16, 4, 4)),
    "1×1 conv": (lambda: nn.Conv2d(5, 3, 1), (5, 4, 4)),
    "conv with padding same": (lambda: nn.Conv2d(2, 3, (4, 3), padding="same"), (2, 6, 6)),
    "conv with padding reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 6, 5)),
    "conv with padding circular": (lambda: nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), (2, 7)),
    "transposed conv1d": (lambda: nn.ConvTranspose1d(4, 3, 4, stride=2, padding=1), (4, 6)),
    "transposed conv2d": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 4, 5)
    ),
    "transposed conv3d": (lambda: nn.ConvTranspose3d(3, 2, 2, stride=2), (3, 2, 3, 2)),
    "linear": (lambda: nn.Linear(6, 5), (6,)),
    "linear with positions": (lambda: nn.Linear(6, 5), (3, 4, 6)),
    "group norm": (lambda: nn.GroupNorm(2, 6), (6, 4, 3)),
    "group norm without positions": (lambda: nn.GroupNorm(2, 6), (6,)),
    "layer norm": (lambda: nn.LayerNorm(7), (5, 7)),
    "layer norm without positions or bias": (lambda: nn.LayerNorm((3, 7), bias=False), (3, 7)),
    "instance norm, by Opacus' formula": (lambda: nn.InstanceNorm2d(3, affine=True), (3, 5, 5)),
    "PReLU, by torch.func": (lambda: nn.PReLU(4), (4, 3, 3)),
    "standardised weights, by torch.func": (lambda: StandardisedConv2d(3, 4, 3, padding=1), (3, 6, 6)),
}  # fmt: skip

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-18": (resnet, (1, 28, 28)),
    "DenseNet-121": (densenet, (1, 32, 32)),
    "U-Net": (UNet, (1, 12, 12)),
    "3-D CNN": (volume_cnn, (1, 6, 8, 6)),
}
