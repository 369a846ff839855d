"""Per-patient gradients, clipped to a bound and summed."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from privacy.ghost.errors import UnsupportedModelError
from privacy.ghost.matrices import Norms
from privacy.ghost.patients import Rows
from privacy.ghost.sums import GhostClipping

__all__ = ["ClippedGradientSum", "LossPerPatient", "Norms", "UnsupportedModelError", "check_supported"]

LossPerPatient: TypeAlias = Callable[[Tensor, Tensor], Tensor]
_BATCH_NORMS = nn.modules.batchnorm._BatchNorm
_INSTANCE_NORMS = nn.modules.instancenorm._InstanceNorm


def check_supported(model: nn.Module, *, image_shape: Sequence[int] | None = None) -> None:
    """Put *model* into training mode and check that each patient's gradient depends on that patient alone.

    Args:
        model: on any device.
        image_shape: (channels, ...) of an image. If it is given two made-up images are tried, which finds what the
            list of layers does not tell: layers that are called twice, weights used elsewhere, rows that mix.

    Raises:
        UnsupportedModelError: the model mixes patients, or a weight's per-patient gradient is not to be had.
    """
    model.train()
    for name, module in model.named_modules():
        # Frozen ones too: their statistics are those of the batch.
        if isinstance(module, _BATCH_NORMS) and not isinstance(module, _INSTANCE_NORMS):
            raise _refused(f"{name} is a {type(module).__name__}, which mixes the patients of a batch")
        if isinstance(module, _INSTANCE_NORMS) and module.track_running_stats:
            raise _refused(f"{name} is an {type(module).__name__} that keeps statistics over patients")
    if problems := ModuleValidator.validate(model, strict=False):
        raise _refused(str(problems[0]))
    clipping = GhostClipping(model)
    if image_shape is not None:
        _try_out(model, clipping, image_shape)


def _refused(problem: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the model cannot be trained with differential privacy: {problem}; use GroupNorm instead of batch "
        "normalisation"
    )


def _try_out(model: nn.Module, clipping: GhostClipping, image_shape: Sequence[int]) -> None:
    """Take the first of two made-up images with two different companions: neither what the model says of it nor its
    gradient may change by more than rounding."""
    device = clipping.parameters[0].device
    seen: list[list[Tensor]] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        image, near, far = torch.rand(3, *image_shape, generator=torch.Generator().manual_seed(0)).to(device)
        for companion in (near, 100.0 * far - 50.0):
            both = torch.stack([image, companion])
            torch.manual_seed(0)  # of dropout
            with torch.no_grad():
                outputs = model(both)[0]
            torch.manual_seed(0)
            seen.append([outputs, *_gradient_of_first(model, clipping, both)])
    if any(_apart(one, other) for one, other in zip(*seen, strict=True)):
        raise UnsupportedModelError(
            "the model cannot be trained with differential privacy: what it learns of one image depends on another "
            "image of the batch; use layers that treat each image by itself"
        )


def _gradient_of_first(model: nn.Module, clipping: GhostClipping, images: Tensor) -> list[Tensor]:
    """The clipped sum where only the first image has a loss, its outputs."""
    only_first = torch.zeros(len(images), device=images.device)
    only_first[0] = 1.0
    clipped = clipping.clipped(
        lambda: model(images).flatten(1).sum(1) * only_first, Rows.of(len(images), None), max_grad_norm=1.0
    )
    return [part for part in clipped.parts if part is not None]


def _apart(one: Tensor, other: Tensor) -> bool:
    """Whether two results differ by more than the rounding of the same computation beside other numbers."""
    return bool((one - other).abs().max() > 1e-3 * torch.maximum(one.abs().max(), other.abs().max()))


class ClippedGradientSum:
    """Sums gradients of patients, each clipped to ``max_grad_norm``.

    *Guarantee*: a patient contributes at most ``max_grad_norm`` in L2 norm, rounding included; `privacy.ghost.rounding`
    says what of that is proved. Besides, the rounding of the others' sum, which is float32 within a physical batch, is
    another with that patient than without. A patient whose gradient is not finite contributes zero.

    ===========================  ==========================================
    case                         contribution
    ===========================  ==========================================
    norm ≤ max_grad_norm         the gradient as it is
    norm > max_grad_norm         scaled to norm max_grad_norm
    several rows                 the mean of their gradients, clipped once
    NaN or infinity anywhere     zero, for the whole patient
    no patient at all            the sum stays as it is
    ===========================  ==========================================

    Clipping is to 2⁻¹⁸ less than ``max_grad_norm``, which is the margin for rounding.

    Args:
        model: the model to differentiate; between calls it is as it was.
        max_grad_norm: the bound C.
        norms: how norms are computed; anything but the default is for tests.

    Raises:
        UnsupportedModelError: the model mixes patients, for instance by batch normalisation.
    """

    def __init__(self, model: nn.Module, *, max_grad_norm: float, norms: Norms = Norms.CHEAPEST) -> None:
        check_supported(model)
        self._model = model
        self._clipping = GhostClipping(model, norms=norms)
        self._max_grad_norm = max_grad_norm
        self._sum: list[Tensor | None] = [None] * len(self._clipping.parameters)

    def add(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        loss: LossPerPatient,
        mixed_precision: bool = False,
        patient: Tensor | None = None,
    ) -> None:
        """Add the patients of one physical batch.

        Args:
            images: shape (rows, channels, ...), at least one.
            labels: shape (rows, ...).
            loss: maps logits and labels to one loss per row, shape (rows,).
            mixed_precision: forward and backward in bfloat16 where the device has it; norms are float32 and sums
                float64 in any case.
            patient: int64, shape (rows,), the patient of each row, numbered from 0; None if each row is a patient. All
                rows of a patient must be in one batch: it is the mean of their gradients that is clipped.

        Raises:
            UnsupportedModelError: the model does something in this pass that `check_supported` has not seen.
        """

        rows = Rows.of(len(images), patient)

        def losses() -> Tensor:
            with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=mixed_precision):
                logits = self._model(images)
            return rows.averaged(loss(logits.float(), labels))

        clipped = self._clipping.clipped(losses, rows, max_grad_norm=self._max_grad_norm)
        for number, part in enumerate(clipped.parts):
            total = self._sum[number]
            if part is not None:
                self._sum[number] = part.contiguous() if total is None else total.double().add_(part)

    def take(self) -> list[Tensor]:
        """Return the sum, contiguous, one tensor a parameter, and begin anew.

        Float64; float32 where it is that of a single physical batch, which is float32 anyway.
        """
        weights = self._clipping.parameters
        taken, self._sum = self._sum, [None] * len(weights)
        return [
            torch.zeros_like(weight, dtype=torch.float32, memory_format=torch.contiguous_format)
            if part is None
            else part
            for part, weight in zip(taken, weights, strict=True)
        ]

    def close(self) -> None:
        """Nothing stays attached to the model between calls."""
