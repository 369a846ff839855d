"""Features of images that training does not change, computed once for a run instead of in each step."""

import torch
from torch import nn

from client.patients import PatientSet
from client.training import Machine, images_at_a_time
from shared_models.manifest import trainable_weights
from shared_models.networks.network import Network
from shared_models.study import Training

MOST_BYTES = 4 * 2**30
"""Where the features of all images would take more memory, they are computed in each step."""


def with_features(
    model: Network, patients: PatientSet, *, training: Training, machine: Machine
) -> PatientSet:
    """Return the patients with the features of their images, where only the model's head is trained.

    Without any where other weights are trained too, where images or features are altered at random, or where they would
    take more than `MOST_BYTES`. What is trained is the same to rounding.

    Args:
        model: on ``machine.device``.
        patients: with images.
        training: the study's.
        machine: what computes.
    """
    trained = set(trainable_weights(model).values())
    if (
        training.augmentation.alters
        or model.dropout.p
        or not len(patients)
        or trained - set(model.head.parameters())
    ):
        return patients
    images = patients.images
    if _features(model, images[:1], machine).numel() * len(images) * 4 > MOST_BYTES:
        return patients
    num = images_at_a_time(images.shape)
    parts = [_features(model, images[first : first + num], machine) for first in range(0, len(images), num)]
    return patients.seen_as(torch.cat(parts))


def trained_part(model: nn.Module, patients: PatientSet) -> nn.Module:
    """Return the head for patients with features, and the whole model for others; the weights are the same."""
    if patients.features is None:
        return model
    if not isinstance(model, Network):
        raise TypeError("features of patients belong to a shared network")
    return model.head


def _features(model: Network, images: torch.Tensor, machine: Machine) -> torch.Tensor:
    with torch.no_grad():
        return model.features(images.to(machine.device)).float().cpu()
