"""The patients of all virtual hospitals in one process, which only a simulation has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.device import prepare_torch
from client.evaluation import patient_scores
from client.ingestion import ingest
from client.patients import PatientSet
from client.roles import Role
from client.secret import SiteSecret
from client.site_file import read_site
from client.stored_images import joined
from client.training import Machine
from shared_models.architectures import build_model
from shared_models.manifest import FloatVector, unflatten
from shared_models.study import Study, read_study
from shared_models.tasks.registry import task_of
from shared_models.tasks.task import Metrics
from simulations.within_sites import auroc_within


@dataclass(frozen=True, slots=True)
class HospitalData:
    """A study, what computes, the patients of each hospital by role, and the folder of initial weights."""

    study: Study
    machine: Machine
    patients: Mapping[str, Mapping[Role, PatientSet]]
    weights: Path


@lru_cache(maxsize=1)
def load_hospitals(site_files: tuple[Path, ...]) -> HospitalData:
    """Read the data of the hospitals with these ``site.toml``, each with its ``study.toml`` beside it."""
    patients = {}
    for path in site_files:
        site = read_site(path)
        study = read_study(path.with_name("study.toml"))
        patients[site.name] = dict(ingest(site, study, SiteSecret.load(site.state)).patients)
    prepare_torch(site.compute)
    return HospitalData(study, Machine.of(site.compute), patients, site.weights)


def pooled(parts: Sequence[PatientSet]) -> PatientSet:
    """All patients together; one who occurs at two hospitals counts twice, as in the federation."""
    lengths = np.concatenate([np.diff(part.first_image) for part in parts])
    return PatientSet(
        pseudonyms=tuple(f"{number}:{name}" for number, part in enumerate(parts) for name in part.pseudonyms),
        images=joined([part.images for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        first_image=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        masks=joined(masks) if (masks := [part.masks for part in parts if part.masks is not None]) else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactMetrics:
    """Of a model on the patients of all hospitals together, on those of each, and AUROC within hospitals."""

    overall: Metrics
    by_site: dict[str, Metrics]
    auroc_within_sites: float | None


def exact_metrics(
    study: Study,
    weights: FloatVector,
    patients: Mapping[str, PatientSet],
    machine: Machine,
    *,
    initial: Path | None = None,
) -> ExactMetrics:
    """Return what the model does on the patients of all hospitals.

    *initial* is the folder of initial weights, which those have that are not trained.
    """
    model, task = build_model(study, initial).to(machine.device), task_of(study).finely_binned()
    unflatten(weights, model)
    counts = {
        name: task.statistics(*patient_scores(model, part, task=task, machine=machine))
        for name, part in patients.items()
    }
    total: NDArray[np.int64] = np.sum(list(counts.values()), axis=0)
    return ExactMetrics(
        overall=task.metrics(total),
        by_site={name: task.metrics(own) for name, own in counts.items()},
        auroc_within_sites=auroc_within([task.pairs(own) for own in counts.values()]),
    )
