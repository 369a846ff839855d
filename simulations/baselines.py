"""What every user asks: does the federation help? Each hospital alone, and one model on the pooled data.

And what everybody asks who was not in it: how good is the model at a hospital that had no part in its training? One
model on the pooled data of all hospitals but one, tested on that one, for each of them.

Same model, same number of steps, same sample rate, same privacy setting, same optimizer at the server: each is a
federation of one, which heeds its own validation patients where the study heeds the federation's. The only code that
trains outside the federation. It sees all hospitals' patients at once and therefore exists in simulations only.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from client.budget import noised_count, training_cost
from client.features import trained_part, with_features
from client.global_step import clipped_sum, noise_share
from client.local_round import gradient_sum
from client.patients import PatientSet
from client.roles import Role
from client.site_file import read_site
from client.training import Machine, train
from privacy.accounting import TrainingCost
from privacy.randomness import CryptographicGenerator
from server.aggregation import GlobalModel
from server.course import Course
from server.result import BaselineMetrics
from shared_models.architectures import build_model
from shared_models.layouts import training_layout
from shared_models.manifest import flatten, unflatten
from shared_models.study import Study, read_study
from shared_models.tasks.registry import task_of
from shared_models.tasks.task import Task
from simulations.hospital_data import exact_metrics, load_hospitals, pooled
from simulations.kept_baselines import Keeper, Kept
from simulations.workers import in_processes

POOLED = "pooled"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineJob:
    """One model to train: on the sites named in ``train_on``, tested on the patients of all.

    ``name`` is a site's, `POOLED`, or with ``left_out`` the site's that is not in ``train_on``. How far it is, and its
    figures in the end, are kept in the folder ``keep_in``, so that the same job goes on there.
    """

    name: str
    left_out: bool
    train_on: tuple[str, ...]
    site_files: tuple[Path, ...]
    seed: int
    keep_in: Path | None = None

    @property
    def label(self) -> str:
        """Whom the randomness of its training is of: another one for each job."""
        return f"without {self.name}" if self.left_out else self.name


def baseline_jobs(
    site_files: Sequence[Path],
    *,
    seed: int,
    compare: bool,
    leave_one_out: bool,
    pooled: bool = False,
    keep_in: Path | None = None,
) -> tuple[BaselineJob, ...]:
    """What is to be trained.

    Args:
        site_files: the ``site.toml`` of each virtual hospital; its study is trained.
        seed: of the scenario.
        compare: each site alone, and all of them pooled.
        leave_one_out: all but one pooled, for each.
        pooled: all of them pooled.
        keep_in: folder for what is kept of each, see `simulations.kept_baselines`; None to keep nothing.
    """
    names = tuple(read_site(path).name for path in site_files)
    chosen: list[tuple[str, bool, tuple[str, ...]]] = []
    if compare or pooled:
        chosen.append((POOLED, False, names))
    if compare:
        chosen += [(name, False, (name,)) for name in names]
    if leave_one_out:
        chosen += [(name, True, tuple(other for other in names if other != name)) for name in names]
    return tuple(
        BaselineJob(
            name=name,
            left_out=left_out,
            train_on=train_on,
            site_files=tuple(site_files),
            seed=seed,
            keep_in=keep_in,
        )
        for name, left_out, train_on in chosen
    )


def run_baselines(
    jobs: Sequence[BaselineJob], *, num_workers: int
) -> Iterator[tuple[BaselineJob, BaselineMetrics]]:
    """Train what *jobs* say with so many processes, and yield each with its metrics as it is done."""
    for _, done in in_processes(_train_baseline, jobs, num_workers=num_workers):
        yield done


def _keeper(job: BaselineJob, study: Study) -> Keeper:
    kind = "left-out" if job.left_out else "pooled" if job.name == POOLED else "alone"
    return Keeper(job.keep_in, kind=kind, name=job.name, study_hash=study.hash)


def kept_figures(job: BaselineJob, study: Study) -> BaselineMetrics | None:
    """The figures of a model that was trained already, in this run."""
    return _keeper(job, study).figures()


def _train_baseline(job: BaselineJob) -> tuple[BaselineJob, BaselineMetrics]:
    keeper = _keeper(job, read_study(job.site_files[0].with_name("study.toml")))
    if (figures := keeper.figures()) is not None:
        return job, figures
    there = load_hospitals(job.site_files)
    study, machine = there.study, there.machine
    begun = time.perf_counter()
    cost = training_cost(study)
    model = build_model(study, there.weights).to(machine.device)
    own = pooled([there.patients[name][Role.TRAIN] for name in job.train_on])
    training_set = with_features(model, own, training=study.training, machine=machine)
    so_far = keeper.training() or _begun(job, model, training_set, study)
    begun -= so_far.seconds
    task, validation = task_of(study), {name: there.patients[name][Role.VALIDATION] for name in job.train_on}
    learner = _Learner(
        study, task, trained_part(model, training_set), training_set, so_far.num_patients, cost, machine
    )
    state, course, num_rounds = so_far.state, so_far.course, so_far.num_rounds
    for number in range(num_rounds + 1, study.training.num_rounds + 1):
        if course.ends(study.training):
            break
        generator = _generator(study, f"{job.seed}|{job.label}|{number}")
        unflatten(state.weights, model)
        before, reductions = state, course.reductions(study.training)
        state, num_rounds = learner.round(state, number, generator, reductions), number
        if number - 1 in study.evaluation.validation_rounds and study.training.heeds_validations:
            validated = exact_metrics(study, before.average, validation, machine, initial=there.weights)
            course = course.and_then(number - 1, validated.overall["loss"])
            if study.training.early_stopping is not None and course.best_round == number - 1:
                state = replace(state, best=before.average)
        keeper.keep(
            replace(
                so_far,
                state=state,
                course=course,
                num_rounds=num_rounds,
                seconds=time.perf_counter() - begun,
            )
        )
    tested = {name: sets[Role.TEST] for name, sets in there.patients.items()}
    exact = exact_metrics(study, state.kept, tested, machine, initial=there.weights)
    epsilon = None
    if cost is not None and study.privacy.delta is not None:
        epsilon = cost.after(num_rounds * study.training.local_steps).epsilon(study.privacy.delta)
    figures = BaselineMetrics(
        auroc=exact.overall.get("auroc"),
        accuracy=exact.overall.get("accuracy"),
        auroc_within_sites=exact.auroc_within_sites,
        metrics=dict(exact.overall),
        own=dict(exact.by_site[job.name]) if job.name != POOLED else None,
        by_site={name: dict(metrics) for name, metrics in exact.by_site.items()},
        epsilon=epsilon,
        seconds=time.perf_counter() - begun,
    )
    keeper.finish(figures)
    return job, figures


def _begun(job: BaselineJob, model: nn.Module, training_set: PatientSet, study: Study) -> Kept:
    """Before the first round. How many patients there are is drawn once, where the study has privacy."""
    num_patients = len(training_set)
    if study.privacy.mode != "none":
        num_patients = noised_count(
            num_patients, study=study, generator=_generator(study, f"{job.seed}|{job.label}")
        )
    return Kept(
        state=GlobalModel.begin(flatten(model)),
        course=Course(),
        num_rounds=0,
        num_patients=num_patients,
        seconds=0.0,
    )


@dataclass(frozen=True, slots=True)
class _Learner:
    """One who has all the patients: a federation of one, who adds all of the noise."""

    study: Study
    task: Task
    model: nn.Module
    patients: PatientSet
    num_patients: int
    cost: TrainingCost | None
    machine: Machine

    def round(
        self, state: GlobalModel, number: int, generator: CryptographicGenerator, reductions: int
    ) -> GlobalModel:
        """The model after round *number*; the model's weights are those of *state*."""
        if self.cost is not None and self.study.privacy.mode == "distributed":
            return self._one_step(state, number, self.cost, generator, reductions)
        return self._local_steps(state, number, generator, reductions)

    def _one_step(
        self,
        state: GlobalModel,
        number: int,
        cost: TrainingCost,
        generator: CryptographicGenerator,
        reductions: int,
    ) -> GlobalModel:
        training = self.study.training
        layout = training_layout(self.study, number, num_weights=len(state.weights))
        share = replace(noise_share(self.study, cost, layout), num_shares=1)
        summed = clipped_sum(
            self.model,
            self.patients,
            task=self.task,
            training=training,
            clipping_bound=share.clipping_bound,
            machine=self.machine,
            generator=generator,
            voxel=self.study.image.voxel,
        )
        noised = share.added_to(summed, generator) / share.scale
        return state.stepped(
            noised / (training.sample_rate * self.num_patients),
            training=training,
            number=number,
            reductions=reductions,
        )

    def _local_steps(
        self, state: GlobalModel, number: int, generator: CryptographicGenerator, reductions: int
    ) -> GlobalModel:
        training = self.study.training
        gradient = gradient_sum(
            self.study, self.task, self.model, cost=self.cost, machine=self.machine, generator=generator
        )
        train(
            self.model,
            self.patients,
            gradient,
            training=training,
            learning_rate=self.study.learning_rate_at_sites(number, reductions=reductions),
            num_patients=self.num_patients,
            machine=self.machine,
            generator=generator,
            voxel=self.study.image.voxel,
        )
        gradient.close()
        update = flatten(self.model).astype(np.float64) - state.weights
        return state.after_update(update, study=self.study, number=number, reductions=reductions)


def _generator(study: Study, text: str) -> CryptographicGenerator:
    if study.privacy.mode != "none":
        return CryptographicGenerator.from_operating_system()
    return CryptographicGenerator(hashlib.sha256(text.encode()).digest())
