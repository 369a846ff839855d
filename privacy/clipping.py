"""Per-patient gradients, clipped to a bound and summed."""

import warnings
from collections.abc import Callable
from typing import TypeAlias

import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn

LossPerPatient: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class UnsupportedModelError(ValueError):
    """A layer of the model mixes patients or cannot give per-patient gradients."""


def check_supported(model: nn.Module) -> None:
    """Put *model* into training mode and raise UnsupportedModelError if it mixes patients."""
    model.train()
    if problems := ModuleValidator.validate(model, strict=False):
        raise UnsupportedModelError(
            f"the model cannot be trained with differential privacy: {problems[0]}; use GroupNorm instead of "
            "batch normalisation"
        )


class ClippedGradientSum:
    """Sums gradients of patients, each clipped to ``max_grad_norm``.

    *Guarantee*: adding or removing one patient changes the sum by at most ``max_grad_norm`` in L2 norm, up to
    rounding in float64. A patient whose gradient is not finite contributes zero.

    ===========================  ==========================================
    case                         contribution
    ===========================  ==========================================
    norm ≤ max_grad_norm         the gradient as it is
    norm > max_grad_norm         scaled to norm max_grad_norm
    NaN or infinity anywhere     zero, for the whole patient
    no patient at all            the sum stays as it is
    ===========================  ==========================================

    Per-sample gradients are Opacus' (`GradSampleModule`); clipping and summing are here, because Opacus'
    optimizer multiplies non-finite gradients by zero (which is NaN) and sums in the gradients' own precision.

    Args:
        model: the model to differentiate; hooks are attached to it until `close`.
        max_grad_norm: the bound C.

    Raises:
        UnsupportedModelError: the model mixes patients, for instance by batch normalisation.
    """

    def __init__(self, model: nn.Module, *, max_grad_norm: float) -> None:
        check_supported(model)
        self._model = GradSampleModule(model, loss_reduction="sum")
        self._max_grad_norm = max_grad_norm
        self._parameters = [weight for weight in self._model.parameters() if weight.requires_grad]
        self.sum = [torch.zeros_like(weight, dtype=torch.float64) for weight in self._parameters]

    def add(
        self, images: Tensor, labels: Tensor, *, loss: LossPerPatient, mixed_precision: bool = False
    ) -> None:
        """Add the patients of one physical batch, one image each.

        Args:
            images: shape (patients, channels, rows, columns), at least one.
            labels: shape (patients,).
            loss: maps logits and labels to one loss per patient, shape (patients,).
            mixed_precision: forward and backward in bfloat16 where the device has it; norms and sums are
                float32 and float64 in any case.
        """
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=mixed_precision):
            logits = self._model(images)
        with warnings.catch_warnings():
            # The images need no gradient, which torch remarks for the first layer's full backward hook.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            loss(logits.float(), labels).sum().backward()  # type: ignore[no-untyped-call]
        samples = [weight.grad_sample.detach().float().flatten(1) for weight in self._parameters]
        parts = [torch.linalg.vector_norm(sample, dim=1, dtype=torch.float64) for sample in samples]
        norms = torch.linalg.vector_norm(torch.stack(parts), dim=0)
        finite = norms.isfinite()
        factors = torch.where(finite, self._max_grad_norm / norms.clamp(min=self._max_grad_norm), 0.0)
        all_finite = bool(finite.all())
        for total, sample in zip(self.sum, samples, strict=True):
            rows = sample.double() if all_finite else torch.where(finite[:, None], sample.double(), 0.0)
            total.add_((factors @ rows).view_as(total))
        self._model.zero_grad(set_to_none=True)

    def take(self) -> list[Tensor]:
        """Return the sum, float64, one tensor a parameter, and begin anew."""
        taken = self.sum
        self.sum = [torch.zeros_like(part) for part in taken]
        return taken

    def close(self) -> None:
        """Take the hooks off the model again."""
        self._model.to_standard_module()
