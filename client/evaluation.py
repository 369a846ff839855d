"""Evaluating a model on a site's patients, as statistics that add up over patients and sites."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.patients import PatientSet
from client.training import Machine, images_at_a_time
from shared_models.study import Evaluation
from shared_models.subgroups import groups_of
from shared_models.tasks.task import Task

Doubles = NDArray[np.float64]


def patient_scores(
    model: nn.Module, patients: PatientSet, *, task: Task, machine: Machine
) -> tuple[Doubles, NDArray[np.int64]]:
    """Return what the task keeps of each patient, as a score, and the label, as `Task.by_patient` makes them.

    Each patient counts once, whatever the number of images.

    Returns:
        float64 and int64, both with a row for each patient.
    """
    kept = kept_of_images(model, patients, task=task, machine=machine)
    return task.by_patient(kept, patients.labels.numpy(), patients.first_image)


def group_statistics(
    scores: Doubles,
    labels: NDArray[np.int64],
    groups: NDArray[np.int64] | None,
    *,
    task: Task,
    evaluation: Evaluation,
) -> NDArray[np.int64]:
    """Statistics of the patients of each group that the study names, one behind the other.

    Args:
        scores, labels: of each patient.
        groups: int64, shape (num_patients, num_attributes), as of `client.patients.PatientSet`.
        task: the study's.
        evaluation: names the groups.
    """
    if groups is None:
        raise RuntimeError("patients of a study with subgroups are put into them when they are read")
    parts = [np.zeros(0, dtype=np.int64)]
    for attribute, names in enumerate(groups_of(evaluation).values()):
        for place in range(len(names)):
            chosen = groups[:, attribute] == place
            parts.append(task.statistics(scores[chosen], labels[chosen]))
    return np.concatenate(parts)


def kept_of_images(model: nn.Module, patients: PatientSet, *, task: Task, machine: Machine) -> Doubles:
    """Return what the task keeps of each image, float64, shape (num_images,) or (num_images, numbers)."""
    model.eval()
    targets = patients.targets
    nothing = torch.zeros(0, task.num_outputs, *targets.shape[2:], dtype=torch.float64)
    kept = [task.kept(nothing, targets[:0].double()).numpy()]
    num = images_at_a_time(patients.images.shape)
    with torch.no_grad():
        for first in range(0, len(patients.images), num):
            batch = patients.images[first : first + num].to(machine.device, non_blocking=True)
            wanted = targets[first : first + num].to(machine.device, non_blocking=True)
            with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=machine.mixed_precision):
                logits = model(batch)
            kept.append(task.kept(logits.double(), wanted).cpu().numpy())
    return np.concatenate(kept)
