"""Evaluating a model on a site's patients, as statistics that add up over patients and sites."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.patients import PatientSet
from client.training import Machine, images_at_a_time
from shared_models.tasks import BinaryClassification

Doubles = NDArray[np.float64]


def patient_scores(
    model: nn.Module, patients: PatientSet, *, task: BinaryClassification, machine: Machine
) -> tuple[Doubles, NDArray[np.int64]]:
    """Return (score, label) of each patient.

    A patient is positive where any image is. The score is the mean probability over the images that carry the
    patient's label, so that each patient counts once, whatever the number of images.

    Returns:
        float64 in [0, 1] and int64 0 or 1, both of shape (num_patients,).
    """
    scores, labels = image_scores(model, patients, task=task, machine=machine), patients.labels.numpy()
    owner = np.repeat(np.arange(len(patients)), np.diff(patients.first_image))
    patient_labels = np.zeros(len(patients), dtype=np.int64)
    np.maximum.at(patient_labels, owner, labels.astype(np.int64))
    counted = (labels == patient_labels[owner]).astype(np.float64)
    sums = np.bincount(owner, weights=scores * counted, minlength=len(patients))
    return sums / np.bincount(owner, weights=counted, minlength=len(patients)), patient_labels


def image_scores(
    model: nn.Module, patients: PatientSet, *, task: BinaryClassification, machine: Machine
) -> Doubles:
    """Return the probability of the positive class of each image, float64, shape (num_images,)."""
    model.eval()
    scores, num = [np.zeros(0)], images_at_a_time(patients.images.shape)
    with torch.no_grad():
        for first in range(0, len(patients.images), num):
            batch = patients.images[first : first + num].to(machine.device, non_blocking=True)
            with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=machine.mixed_precision):
                logits = model(batch)
            scores.append(task.scores(logits.double()).cpu().numpy())
    return np.concatenate(scores)
