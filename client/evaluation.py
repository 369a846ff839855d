"""Evaluating a model on a site's patients, as statistics that add up over patients and sites."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.patients import PatientSet
from client.training import Machine, images_at_a_time
from shared_models.tasks.patients import by_patient
from shared_models.tasks.task import Task

Doubles = NDArray[np.float64]


def patient_scores(
    model: nn.Module, patients: PatientSet, *, task: Task, machine: Machine
) -> tuple[Doubles, NDArray[np.int64]]:
    """Return (score, label) of each patient, as `shared_models.tasks.patients.by_patient` makes them of the images'.

    Each patient counts once, whatever the number of images.

    Returns:
        float64 in [0, 1] and int64, both with a row for each patient.
    """
    scores = image_scores(model, patients, task=task, machine=machine)
    return by_patient(scores, patients.labels.numpy(), patients.first_image)


def image_scores(model: nn.Module, patients: PatientSet, *, task: Task, machine: Machine) -> Doubles:
    """Return the task's probabilities of each image, float64, shape (num_images,) or (num_images, num_outputs)."""
    model.eval()
    scores = [task.scores(torch.zeros(0, task.num_outputs, dtype=torch.float64)).numpy()]
    num = images_at_a_time(patients.images.shape)
    with torch.no_grad():
        for first in range(0, len(patients.images), num):
            batch = patients.images[first : first + num].to(machine.device, non_blocking=True)
            with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=machine.mixed_precision):
                logits = model(batch)
            scores.append(task.scores(logits.double()).cpu().numpy())
    return np.concatenate(scores)
