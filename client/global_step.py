"""One hospital's part of a step that all hospitals make together: the sum of its patients' clipped gradients."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.budget import training_cost
from client.patients import PatientSet
from client.training import ClippedSamples, Machine, add_sample, seeded
from privacy.accounting import TrainingCost
from privacy.noise_share import NoiseShare
from privacy.randomness import CryptographicGenerator
from shared_models.architectures import outline
from shared_models.layouts import training_layout
from shared_models.manifest import Manifest
from shared_models.study import Study, Training
from shared_models.tasks.task import Task
from shared_models.vector import VectorLayout


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


def check_noise_share(study: Study, *, num_weights: int | None = None) -> None:
    """Check, before anybody trains, that the sites' shares of the noise fit on the grid of the sums.

    Args:
        study: of any mode; only distributed ones have shares.
        num_weights: of its model; None where it is not built yet.

    Raises:
        GridError: they do not; each round would fail.
        PrivacyTargetError: no noise reaches the study's epsilon, in any mode.
    """
    cost = training_cost(study)
    if cost is None or study.privacy.mode != "distributed":
        return
    if num_weights is None:
        num_weights = Manifest.of(outline(study)).num_weights
    noise_share(study, cost, training_layout(study, 1, num_weights=num_weights))


def clipped_sum(
    model: nn.Module,
    patients: PatientSet,
    *,
    task: Task,
    training: Training,
    clipping_bound: float,
    machine: Machine,
    generator: CryptographicGenerator,
    voxel: Sequence[float] | None = None,
) -> NDArray[np.float64]:
    """Sample patients, and return the sum of their clipped gradients at the model's weights.

    Args:
        model: on ``machine.device``; its weights stay as they are.
        patients: the training patients.
        task: the study's.
        training: the study's.
        clipping_bound: what one patient adds at most, L2.
        machine: what computes.
        generator: draws the sample, the image of each patient and its alterations.
        voxel: size of a voxel, see `client.augmentation`.

    Returns:
        float64, shape (num_weights,).
    """
    gradient = ClippedSamples(
        model, task, clipping_bound=clipping_bound, mixed_precision=machine.mixed_precision
    )
    model.train()
    try:
        with seeded(model, generator):
            add_sample(
                gradient, patients, training=training, machine=machine, generator=generator, voxel=voxel
            )
        return torch.cat([part.flatten() for part in gradient.take()]).cpu().double().numpy()
    finally:
        gradient.close()
