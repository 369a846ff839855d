"""One round at one hospital: the only place where spending, training, noise and masking meet.

*Joint guarantee* (neighbours differ by one patient with all images). Under ``privacy.mode = "local"`` the following
leaves a site over a whole run, and nothing else:

1. per round, the difference of weights after ``local_steps`` steps of DP-SGD, which depends on training patients
   through `privacy.accounting.TrainingCost.event` only;
2. the weight in the mean, which is a study constant or the noised patient count of the same event;
3. in the rounds that the study names and in the final test, statistics of validation or test patients: with noise
   for ``evaluation.epsilon`` in all of them together, or exact where the study says ``unnoised``.

Under ``privacy.mode = "distributed"`` 1. is one step a round, which the sites make together: per round, the sum of the
clipped gradients of a Poisson sample, with this site's share of the noise. The guarantee for training patients is then
about the *sum* over the sites of a round set, of which ``study.num_noise_shares`` at least keep to the protocol
(`privacy.noise_share`); it rests on secure aggregation. 2. and 3. are as above, with all of the noise at each site.

A patient has one role, so 1–2 concern other patients than 3: a training patient loses at most ``privacy.epsilon``,
a validation or test patient at most ``evaluation.epsilon``, each at ``privacy.delta``. The charge is on disk before
training begins. All of it leaves in one masked vector, of which the server learns the sum over sites only
(docs/secure-aggregation.md); under ``local`` the guarantee does not rest on that. Known not to be covered: the time
that a reply takes, and whether a site answers at all.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from client.evaluation import group_statistics, patient_scores
from client.features import trained_part
from client.global_step import clipped_sum, noise_share
from client.patients import PatientSet
from client.roles import Role
from client.training import GradientSum, Machine, PlainGradientSum, PrivateGradientSum, train
from privacy.accounting import TrainingCost
from privacy.noise import noised_counts
from privacy.randomness import CryptographicGenerator
from shared_models.layouts import final_layout, training_layout
from shared_models.manifest import FloatVector, flatten, unflatten
from shared_models.study import Study
from shared_models.subgroups import num_groups, test_sensitivity
from shared_models.tasks.task import Metrics, Task
from shared_models.vector import IntVector, VectorLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRun:
    """What a site holds in memory of a run that it takes part in.

    Attributes:
        patients: by role.
        num_patients: the noised count of training patients (exact without privacy): weight and divisor.
        cost: what the whole run may cost a training patient; None without privacy.
        evaluation_deviation: noise on evaluation statistics in units of one patient; None where unnoised.
    """

    run_id: str
    study: Study
    task: Task
    model: nn.Module
    patients: Mapping[Role, PatientSet]
    num_patients: int
    cost: TrainingCost | None
    evaluation_deviation: float | None
    machine: Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """Statistics as they may leave; exact, finely binned ones and their metrics, which stay at the site."""

    statistics: NDArray[np.int64]
    exact: NDArray[np.int64]
    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalVector:
    """What the site's patients contribute to a round. Nothing of it leaves before it is masked.

    ``validated`` and ``tested`` hold what was evaluated; None where the round does not evaluate it.
    """

    vector: IntVector
    validated: Evaluated | None
    tested: Evaluated | None
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRound:
    """The outcome: ``message`` leaves, everything else stays at the site."""

    message: bytes
    validation: Metrics | None
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTest:
    """The outcome of the final test: ``message`` leaves, everything else stays at the site."""

    message: bytes
    validation: Metrics | None
    tested: Evaluated


Spend = Callable[[], OpenRun]
"""Charges a round, durably, and returns the run with the patients who are in it."""

Encode = Callable[[NDArray[np.int64]], IntVector]
"""Puts what was trained and these statistics into one vector."""

Mask = Callable[[IntVector], bytes]
"""Turns a vector into the message that may leave: `client.secure_session.SecureSession.mask`."""


def local_round(
    run: OpenRun,
    number: int,
    weights: FloatVector,
    *,
    average: FloatVector | None,
    spend: Spend,
    generator: CryptographicGenerator,
    mask: Mask,
    reductions: int = 0,
) -> LocalRound:
    """Spend, train from *weights*, mask, and return the message of round *number*.

    Args:
        run: which is open.
        number: of the round.
        weights: of the incoming model.
        average: the weights to validate, where they are others.
        spend: charges the round, and says with which patients.
        generator: of sampling and noise.
        mask: turns the vector into what may leave.
        reductions: of the learning rate so far.

    Raises:
        AlreadySpentError: the round was begun before; nothing was trained or drawn.
        ValueError: *weights* or *average* do not fit the model; nothing was spent.
    """
    for given in (weights, average):
        if given is not None:
            unflatten(given, run.model)

    run = spend()

    local = training_vector(run, number, weights, average=average, generator=generator, reductions=reductions)

    begun = time.perf_counter()
    message = mask(local.vector)
    seconds = {**local.seconds, "mask": time.perf_counter() - begun}
    validation = None if local.validated is None else local.validated.metrics
    return LocalRound(message=message, validation=validation, seconds=seconds)


def local_test(
    run: OpenRun, weights: FloatVector, *, spend: Spend, generator: CryptographicGenerator, mask: Mask
) -> LocalTest:
    """Evaluate the final model, mask the statistics, and return their message. Charged as the round after the last.

    Raises:
        AlreadySpentError: the test was made before; nothing was evaluated or drawn.
        ValueError: *weights* do not fit the model; nothing was spent.
    """
    unflatten(weights, run.model)

    run = spend()

    local = final_vector(run, generator=generator)
    if local.tested is None:
        raise RuntimeError("the final test evaluates test patients")
    return LocalTest(
        message=mask(local.vector),
        validation=None if local.validated is None else local.validated.metrics,
        tested=local.tested,
    )


def training_vector(
    run: OpenRun,
    number: int,
    weights: FloatVector,
    *,
    average: FloatVector | None = None,
    generator: CryptographicGenerator,
    reductions: int = 0,
) -> LocalVector:
    """Validate *average*, or *weights*, train from *weights*, and return what comes of it as one vector."""
    begun = time.perf_counter()
    validated = None
    if number - 1 in run.study.evaluation.validation_rounds:
        unflatten(weights if average is None else average, run.model)
        validated = evaluate_role(run, Role.VALIDATION, generator=generator)
    unflatten(weights, run.model)

    evaluated = time.perf_counter()
    layout = training_layout(run.study, number, num_weights=len(weights))
    if run.study.privacy.mode == "distributed":
        contribution = _gradient(run, layout, generator)
    else:
        rate = run.study.learning_rate_at_sites(number, reductions=reductions)
        contribution = _update(run, rate, layout, weights, generator)

    trained = time.perf_counter()
    statistics = np.zeros(0, dtype=np.int64) if validated is None else validated.statistics
    vector = contribution(statistics)
    seconds = {
        "evaluate": evaluated - begun,
        "train": trained - evaluated,
        "encode": time.perf_counter() - trained,
    }
    return LocalVector(vector=vector, validated=validated, tested=None, seconds=seconds)


def _update(
    run: OpenRun,
    learning_rate: float,
    layout: VectorLayout,
    weights: FloatVector,
    generator: CryptographicGenerator,
) -> Encode:
    """Train with noise in each step; what leaves is the difference of weights."""
    patients = run.patients[Role.TRAIN]
    model = trained_part(run.model, patients)
    gradient = gradient_sum(
        run.study, run.task, model, cost=run.cost, machine=run.machine, generator=generator
    )
    try:
        train(
            model,
            patients,
            gradient,
            training=run.study.training,
            learning_rate=learning_rate,
            num_patients=run.num_patients,
            machine=run.machine,
            generator=generator,
            voxel=run.study.image.voxel,
        )
    finally:
        gradient.close()

    def encode(statistics: NDArray[np.int64]) -> IntVector:
        update = flatten(run.model).astype(np.float64) - weights.astype(np.float64)
        return layout.encode(update=update, weight=_weight(run), statistics=statistics)

    return encode


def _gradient(run: OpenRun, layout: VectorLayout, generator: CryptographicGenerator) -> Encode:
    """Sum the clipped gradients of one sample; what leaves is this sum with a share of the noise."""
    if run.cost is None:
        raise RuntimeError("a study with privacy has a cost")
    share = noise_share(run.study, run.cost, layout)
    patients = run.patients[Role.TRAIN]
    summed = clipped_sum(
        trained_part(run.model, patients),
        patients,
        task=run.task,
        training=run.study.training,
        clipping_bound=share.clipping_bound,
        machine=run.machine,
        generator=generator,
        voxel=run.study.image.voxel,
    )

    def encode(statistics: NDArray[np.int64]) -> IntVector:
        gradient = share.added_to(summed, generator)
        return layout.encode_gradient(gradient=gradient, weight=_weight(run), statistics=statistics)

    return encode


def final_vector(run: OpenRun, *, generator: CryptographicGenerator) -> LocalVector:
    """Final test, and the validation of the last round where the study names it, of the run's model as it is."""
    begun, validated, parts = time.perf_counter(), None, []
    if run.study.training.num_rounds in run.study.evaluation.validation_rounds:
        validated = evaluate_role(run, Role.VALIDATION, generator=generator)
        parts.append(validated.statistics)
    tested = evaluate_role(run, Role.TEST, generator=generator)
    parts.append(tested.statistics)
    vector = final_layout(run.study).encode(update=None, weight=1, statistics=np.concatenate(parts))
    seconds = {"evaluate": time.perf_counter() - begun}
    return LocalVector(vector=vector, validated=validated, tested=tested, seconds=seconds)


def evaluate_role(run: OpenRun, role: Role, *, generator: CryptographicGenerator) -> Evaluated:
    """Evaluate the model as it is on the patients of *role*; noised as the study says.

    Behind the statistics of all test patients stand those of each group that the study names.
    """
    scores, labels = patient_scores(run.model, run.patients[role], task=run.task, machine=run.machine)
    fine = run.task.finely_binned()
    exact, leaving = fine.statistics(scores, labels), run.task.statistics(scores, labels)
    units, sensitivity = run.task.noise_units, run.task.l2_sensitivity
    if role is Role.TEST and run.study.evaluation.subgroups:
        groups, evaluation = run.patients[role].groups, run.study.evaluation
        parts = group_statistics(scores, labels, groups, task=run.task, evaluation=evaluation)
        leaving = np.concatenate([leaving, parts])
        units, sensitivity = np.tile(units, 1 + num_groups(evaluation)), test_sensitivity(run.study)
    if run.evaluation_deviation is not None:
        leaving = noised_counts(
            leaving,
            units=units,
            standard_deviation=run.evaluation_deviation * sensitivity,
            generator=generator,
        )
    return Evaluated(statistics=leaving, exact=exact, metrics=fine.metrics(exact))


def _weight(run: OpenRun) -> int:
    return run.num_patients if run.study.aggregation.weights == "patients" else 1


def gradient_sum(
    study: Study,
    task: Task,
    model: nn.Module,
    *,
    cost: TrainingCost | None,
    machine: Machine,
    generator: CryptographicGenerator,
) -> GradientSum:
    """Return what collects the gradients of a round: clipped and noised where the study has privacy."""
    if cost is None:
        return PlainGradientSum(model, task, mixed_precision=machine.mixed_precision)
    if study.privacy.max_grad_norm is None:
        raise RuntimeError("a study with privacy has max_grad_norm")
    return PrivateGradientSum(
        model,
        task,
        max_grad_norm=study.privacy.max_grad_norm,
        noise_multiplier=cost.noise_multiplier,
        generator=generator,
        mixed_precision=machine.mixed_precision,
    )
