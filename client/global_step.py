"""One hospital's part of a step that all hospitals make together: the sum of its patients' clipped gradients."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.patients import PatientSet
from client.training import Machine, add_sample
from privacy.accounting import TrainingCost
from privacy.clipping import ClippedGradientSum
from privacy.noise_share import NoiseShare
from privacy.randomness import CryptographicGenerator
from shared_models.study import Study, Training
from shared_models.tasks import BinaryClassification
from shared_models.vector import VectorLayout


class ClippedSamples:
    """The sum of clipped gradients, without noise. It must not leave before `NoiseShare.added_to` has added some."""

    def __init__(
        self,
        model: nn.Module,
        task: BinaryClassification,
        *,
        clipping_bound: float,
        mixed_precision: bool,
    ) -> None:
        self._clipped = ClippedGradientSum(model, max_grad_norm=clipping_bound)
        self._task, self._mixed_precision = task, mixed_precision

    def add(self, images: Tensor, labels: Tensor, patient: Tensor | None) -> None:
        """Add the patients of one physical batch, each with the mean gradient over the patient's rows."""
        self._clipped.add(
            images,
            labels,
            loss=self._task.loss,
            mixed_precision=self._mixed_precision,
            patient=patient,
        )

    def take(self) -> list[Tensor]:
        """Return the sum over patients, one tensor a parameter, as `ClippedGradientSum.take`, and begin anew."""
        return self._clipped.take()

    def close(self) -> None:
        """Leave the model as it was found."""
        self._clipped.close()


def noise_share(study: Study, cost: TrainingCost, layout: VectorLayout) -> NoiseShare:
    """Return what each site adds to its sum under ``privacy.mode = "distributed"``.

    Raises:
        GridError: the grid of the sum is too coarse for the model.
    """
    if study.privacy.max_grad_norm is None:
        raise RuntimeError("a study with privacy has max_grad_norm")
    return NoiseShare(
        max_grad_norm=study.privacy.max_grad_norm,
        noise_multiplier=cost.noise_multiplier,
        num_shares=study.num_noise_shares,
        num_weights=layout.num_weights,
        scale=layout.scale,
    )


def clipped_sum(
    model: nn.Module,
    patients: PatientSet,
    *,
    task: BinaryClassification,
    training: Training,
    clipping_bound: float,
    machine: Machine,
    generator: CryptographicGenerator,
) -> NDArray[np.float64]:
    """Sample patients, and return the sum of their clipped gradients at the model's weights.

    Args:
        model: on ``machine.device``; its weights stay as they are.
        patients: the training patients.
        task: the study's.
        training: the study's.
        clipping_bound: what one patient adds at most, L2.
        machine: what computes.
        generator: draws the sample, the image of each patient and the flips.

    Returns:
        float64, shape (num_weights,).
    """
    gradient = ClippedSamples(
        model, task, clipping_bound=clipping_bound, mixed_precision=machine.mixed_precision
    )
    model.train()
    try:
        add_sample(gradient, patients, training=training, machine=machine, generator=generator)
        return torch.cat([part.flatten() for part in gradient.take()]).cpu().double().numpy()
    finally:
        gradient.close()
