"""What privacy costs in accuracy: one scenario's study under every mode and several epsilons, side by side.

Whoever designs a study asks this before anybody trains. The code is that of the hospitals: each trains by
`client.local_round.training_vector`, and `server.round_loop.next_model` makes the next model of the sum. Masks cancel
in that sum exactly and are left out. Where one party has all patients, that is a federation of one.

Figures are exact ones of all hospitals' patients together, which only a simulation can know.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from pydantic import Field

from client.budget import noised_count, training_cost
from client.features import with_features
from client.local_round import OpenRun, training_vector
from client.patients import PatientSet
from client.roles import Role
from client.training import Machine
from privacy.randomness import CryptographicGenerator
from server.aggregation import GlobalModel
from server.checkpoint import write_atomically
from server.round_loop import next_model
from shared_models.architectures import build_model
from shared_models.configuration import ConfigurationError, Frozen
from shared_models.manifest import FloatVector, flatten
from shared_models.networks.network import Network
from shared_models.study import Study
from shared_models.tasks.registry import task_of
from shared_models.tasks.task import Metrics
from shared_models.vector import IntVector
from simulations.hospital_data import exact_metrics, load_hospitals, pooled
from simulations.workers import in_processes

Mode: TypeAlias = Literal["none", "curator", "curator-overshoot", "distributed", "local"]
On: TypeAlias = Literal["validation", "test"]
MODES: tuple[Mode, ...] = ("none", "curator", "curator-overshoot", "distributed", "local")
WORDS: Mapping[Mode, str] = {
    "none": "no privacy, one party with all patients",
    "curator": "trusted curator: one party with all patients",
    "curator-overshoot": "curator with the noise of the distributed mode",
    "distributed": "distributed: the hospitals share the noise",
    "local": "local: each hospital adds all of the noise",
}


class Setting(Frozen):
    """Values of ``[training]`` and ``[privacy]`` that replace the scenario's, for the modes and epsilons named.

    Empty ``modes`` or ``epsilons`` mean all.
    """

    modes: tuple[Mode, ...] = Field(default=(), strict=False)
    epsilons: tuple[float, ...] = Field(default=(), strict=False)
    num_rounds: int | None = None
    sample_rate: float | None = None
    learning_rate: float | None = None
    positive_weight: float | None = None
    ema_decay: float | None = None
    max_grad_norm: float | None = None

    def fits(self, mode: Mode, epsilon: float | None) -> bool:
        """Whether the setting is for this mode and epsilon."""
        return mode in (self.modes or (mode,)) and (
            epsilon is None or epsilon in (self.epsilons or (epsilon,))
        )

    @property
    def values(self) -> dict[str, float]:
        """What it replaces, by key."""
        return self.model_dump(exclude={"modes", "epsilons"}, exclude_none=True)


class Settings(Frozen):
    """A file of settings; of those that fit the later ones win."""

    setting: tuple[Setting, ...] = Field(default=(), strict=False)


_KEPT: dict[str, list[PatientSet]] = {}
"""Features of one set of patients, in this process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One model to train.

    Attributes:
        mode: who trains, with which noise.
        epsilon: None with mode none.
        seed: of the initial weights.
        values: of the setting.
        on: whose patients it is evaluated on.
    """

    mode: Mode
    epsilon: float | None
    seed: int
    values: tuple[tuple[str, float], ...]
    on: On

    @property
    def key(self) -> str:
        """What tells this job from all others, in words."""
        return json.dumps([self.mode, self.epsilon, self.seed, self.values, self.on])


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A job, and the metrics of its model: on the patients of all hospitals, and on those of each."""

    job: Job
    metrics: Metrics
    by_hospital: Mapping[str, Metrics]
    noise_multiplier: float | None
    seconds: float


def study_of(base: Study, job: Job) -> Study:
    """The scenario's study as *job* wants it.

    Raises:
        ConfigurationError: the scenario's study is not of mode distributed.
        ValueError: the values do not fit together.
    """
    if base.privacy.mode != "distributed":
        raise ConfigurationError(
            'the scenario\'s study must have privacy.mode = "distributed": the other modes are made of it'
        )
    study = base.model_dump()
    for key, value in job.values:
        study["privacy" if key == "max_grad_norm" else "training"][key] = value
    study["model"]["seed"] = job.seed
    study["evaluation"] |= {"validation_rounds": (), "unnoised": True, "epsilon": None}
    if job.mode == "none":
        study["privacy"] = {"mode": "none"}
    else:
        study["privacy"]["epsilon"] = job.epsilon
        study["privacy"]["mode"] = "local" if job.mode == "local" else "distributed"
    if job.mode in ("none", "local"):
        study["training"]["optimizer"] = "sgd"
    return Study.model_validate(study)


def train_jobs(
    site_files: Sequence[Path], jobs: Sequence[Job], *, done: Path, num_workers: int
) -> Iterator[Trained]:
    """Train the jobs that are not in the folder *done* yet, put each there, and yield all of them.

    Args:
        site_files: the ``site.toml`` of each virtual hospital, with its ``study.toml`` beside it.
        jobs: what to train.
        done: a folder, made where it is missing.
        num_workers: how many processes share the work.
    """
    results = done / "trained.json"
    known = _read(results)
    yield from (known[job.key] for job in jobs if job.key in known)
    missing = [job for job in jobs if job.key not in known]
    for _, trained in in_processes(partial(_train, tuple(site_files)), missing, num_workers=num_workers):
        known[trained.job.key] = trained
        _write(results, known)
        yield trained


def _read(path: Path) -> dict[str, Trained]:
    if not path.exists():
        return {}
    found = {}
    for entry in json.loads(path.read_text(encoding="utf-8")):
        job = Job(**{**entry["job"], "values": tuple((key, value) for key, value in entry["job"]["values"])})
        found[job.key] = Trained(**{**entry, "job": job})
    return found


def _write(path: Path, trained: Mapping[str, Trained]) -> None:
    entries = [
        {
            "job": {name: getattr(one.job, name) for name in Job.__slots__},
            "metrics": one.metrics,
            "by_hospital": one.by_hospital,
            "noise_multiplier": one.noise_multiplier,
            "seconds": one.seconds,
        }
        for one in trained.values()
    ]
    write_atomically(path, json.dumps(entries, indent=1).encode())


def _train(site_files: tuple[Path, ...], job: Job) -> Trained:
    begun = time.perf_counter()
    there = load_hospitals(site_files)
    study = study_of(there.study, job)
    weights, multiplier = trained_weights(
        study, job.mode, there.patients, there.machine, initial=there.weights
    )
    role = Role.TEST if job.on == "test" else Role.VALIDATION
    sets = {name: own[role] for name, own in there.patients.items()}
    exact = exact_metrics(study, weights, sets, there.machine, initial=there.weights)
    return Trained(
        job=job,
        metrics=exact.overall,
        by_hospital=exact.by_site,
        noise_multiplier=multiplier,
        seconds=time.perf_counter() - begun,
    )


def trained_weights(
    study: Study,
    mode: Mode,
    patients: Mapping[str, Mapping[Role, PatientSet]],
    machine: Machine,
    *,
    initial: Path | None = None,
) -> tuple[FloatVector, float | None]:
    """Train *study* to its end.

    Args:
        study: of privacy mode none, local or distributed, as *mode* wants it.
        mode: who trains.
        patients: of each hospital, by role.
        machine: what trains.
        initial: the folder of initial weights, where the study names a file.

    Returns:
        The weights that a run keeps, and the noise multiplier that its promise needs.
    """
    if study.training.heeds_validations:
        raise ConfigurationError(
            'training.schedule = "plateau" and training.early_stopping wait for validations, which modes are compared '
            "without: leave them out"
        )
    cost = training_cost(study)
    own = [sets[Role.TRAIN] for sets in patients.values()]
    if mode in ("none", "curator", "curator-overshoot"):
        own, factor = [pooled(own)], (study.num_noise_shares if mode == "curator" else len(patients)) ** 0.5
    else:
        factor = 1.0
    generator = CryptographicGenerator.from_operating_system()
    model = build_model(study, initial).to(
        machine.device
    )  # one for all: it holds what its weights are set to
    own = _features_kept(model, own, study, machine)
    runs = [
        OpenRun(
            run_id="modes",
            study=study,
            task=task_of(study),
            model=model,
            patients={Role.TRAIN: part},
            num_patients=len(part)
            if cost is None
            else noised_count(len(part), study=study, generator=generator),
            cost=None if cost is None else replace(cost, noise_multiplier=factor * cost.noise_multiplier),
            evaluation_deviation=None,
            machine=machine,
        )
        for part in own
    ]
    state = GlobalModel.begin(flatten(runs[0].model))
    for number in range(1, study.training.num_rounds + 1):
        vectors = [training_vector(run, number, state.weights, generator=generator).vector for run in runs]
        state, _ = next_model(study, number, state, summed(vectors))
    return state.average, None if cost is None else cost.noise_multiplier


def _features_kept(
    model: Network, parts: Sequence[PatientSet], study: Study, machine: Machine
) -> list[PatientSet]:
    """The patients with features: those of the last call, where nothing but the head may differ."""
    trunk = [weight for name, weight in model.named_parameters() if not name.startswith("head.")]
    told = [
        study.model.model_copy(update={"seed": 0}).model_dump(),
        study.image.model_dump(),
        study.training.augmentation.model_dump(),
    ]
    digest = hashlib.sha256(json.dumps(told).encode())
    for part in parts:
        digest.update("\n".join(part.pseudonyms).encode())
    for weight in trunk:
        digest.update(weight.detach().cpu().numpy().tobytes())
    key = digest.hexdigest()
    if key not in _KEPT:
        _KEPT.clear()
        _KEPT[key] = [with_features(model, part, training=study.training, machine=machine) for part in parts]
    return _KEPT[key]


def summed(vectors: Sequence[IntVector]) -> IntVector:
    """The sum modulo 2^32, as secure aggregation opens it."""
    total: IntVector = np.sum(np.stack(vectors), axis=0, dtype=np.uint32)
    return total
