"""What clipping is compared with: each patient's gradient by plain autograd in float64, on the processor."""

import math

import torch
from studies import make_study
from torch import Tensor

from shared_models.architectures import build_model
from shared_models.manifest import trainable_weights
from shared_models.study import Study
from shared_models.tasks import task_of

STUDY = make_study(private=True)
TASK = task_of(STUDY)


def random_images(seed: int, num: int, scale: float = 1.0, *, study: Study = STUDY) -> tuple[Tensor, Tensor]:
    """Images of the study's shape and labels, one image a patient."""
    random = torch.Generator().manual_seed(seed)
    return torch.rand((num, *study.image.shape), generator=random) * scale, (torch.arange(num) % 2).float()


def exact_sum(
    images: Tensor,
    labels: Tensor,
    bound: float,
    *,
    study: Study = STUDY,
    patient: Tensor | None = None,
) -> list[Tensor]:
    """The patients' mean gradients, clipped and summed; a patient whose gradient is not finite is left out.

    Each row is a patient, or belongs to the one that *patient* names.
    """
    model = build_model(study).double()
    weights = list(trainable_weights(model).values())
    total = [torch.zeros_like(weight) for weight in weights]
    owner = torch.arange(len(images)) if patient is None else patient
    for one in owner.unique():
        rows = owner == one
        losses = TASK.loss(model(images[rows].double()), labels[rows].double())
        gradients = torch.autograd.grad(losses.mean(), weights)
        norm = norm_of(list(gradients))
        if not math.isfinite(norm):
            continue
        for part, gradient in zip(total, gradients, strict=True):
            part.add_(gradient * (bound / max(bound, norm)))
    return total


def norm_of(parts: list[Tensor]) -> float:
    """The L2 norm of all parts together, computed on the processor in float64."""
    return float(torch.sqrt(sum((part.double().cpu() ** 2).sum() for part in parts)))
