"""One round of a study, made by the code that hospitals run, and opened as the server opens it.

`Release` is what the checks drive: patients in, the opened sum out, in units in which a patient of one step moves it by
at most ``max_grad_norm``. What differs between the modes of privacy stands in an `Opening`: how the sum is read, and
what noise the study claims for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.budget import training_cost
from client.local_round import OpenRun, training_vector
from client.patients import PatientSet
from client.roles import Role
from client.training import Machine
from privacy.accounting import TrainingCost
from privacy.noise_share import LEAST_DEVIATION
from privacy.randomness import CryptographicGenerator
from shared_models.augmentation import Augmentation
from shared_models.layouts import training_layout
from shared_models.manifest import Manifest, flatten, unflatten
from shared_models.study import Study, Training
from shared_models.tasks.registry import task_of
from shared_models.vector import IntVector

Doubles = NDArray[np.float64]
_QUIET = 1e-8
"""Noise multiplier of checks that look at what noise hides: what patients contribute, and who is sampled."""
_NUM_PATIENTS, _ROUND = 1000, 1


class Opening(Protocol):
    """What a mode of privacy makes of a round."""

    @property
    def num_honest(self) -> int:
        """Fewest hospitals whose sum the promise is about."""
        ...

    def gradient_sum(self, total: IntVector, *, num_weights: int) -> Doubles:
        """Read the sum of the vectors of some hospitals as a sum of clipped gradients, shape (num_weights,)."""
        ...

    def standard_deviation(self, num_sites: int) -> float:
        """Of the noise that the study claims for each entry of that sum over so many hospitals."""
        ...

    def update_deviation(self, counts: Sequence[int]) -> float:
        """Of the noise on each weight of the next global model, from hospitals with these noised counts."""
        ...

    def rounding(self, num_weights: int) -> float:
        """Most by which rounding to the grid moves a hospital's sum, in clipping bounds (L2)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOpening:
    """``privacy.mode = "local"``: a hospital sends the change of its weights after some steps, each with all noise.

    With momentum m, of s steps the t-th enters the change with weight 1 + m + … + m^(s − t), and the sum of gradients
    that is read here is that weighted sum over steps.
    """

    study: Study
    noise_multiplier: float

    @property
    def num_honest(self) -> int:
        """Each hospital's own vector is private."""
        return 1

    def gradient_sum(self, total: IntVector, *, num_weights: int) -> Doubles:
        """Read the mean change of weights as a sum over hospitals, patients and steps."""
        mean, weight, _ = training_layout(self.study, _ROUND, num_weights=num_weights).decode_sum(total)
        patients, training = made_up_count(self.study), self.study.training
        num_sites = weight / (patients if self.study.aggregation.weights == "patients" else 1)
        return -mean * num_sites * training.sample_rate * patients / training.learning_rate

    def standard_deviation(self, num_sites: int) -> float:
        """σ C for each step of each hospital."""
        steps = sum(weight**2 for weight in step_weights(self.study.training))
        return self.noise_multiplier * clipping_bound(self.study) * math.sqrt(num_sites * steps)

    def update_deviation(self, counts: Sequence[int]) -> float:
        """Each change of weights is divided by its hospital's count, and weighted in the mean."""
        training, most = self.study.training, self.study.aggregation.max_patients
        weights = [1 if most is None else min(count, most) for count in counts]
        shares = [
            weight / sum(weights) / (training.sample_rate * count)
            for weight, count in zip(weights, counts, strict=True)
        ]
        return training.learning_rate * self.standard_deviation(1) * math.hypot(*shares)

    def rounding(self, num_weights: int) -> float:
        """Next to nothing: `Release.of` chooses the learning rate for that."""
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributedOpening:
    """``privacy.mode = "distributed"``: a hospital sends its sum of gradients on a grid, with a share of the noise."""

    study: Study
    noise_multiplier: float

    @property
    def num_honest(self) -> int:
        """Sums with so many hospitals that keep to the protocol are private."""
        return _num_honest(self.study)

    def gradient_sum(self, total: IntVector, *, num_weights: int) -> Doubles:
        """Read it as the server does."""
        return training_layout(self.study, _ROUND, num_weights=num_weights).decode_gradient(total)[0]

    def standard_deviation(self, num_sites: int) -> float:
        """A share of σ C each, and of rounding to the grid."""
        share = self.noise_multiplier**2 / self.num_honest + 1.0 / 12.0 / points_per_bound(self.study) ** 2
        return clipping_bound(self.study) * math.sqrt(num_sites * share)

    def update_deviation(self, counts: Sequence[int]) -> float:
        """The server divides the sum by the sampled share of all patients."""
        most = self.study.aggregation.max_patients
        patients = sum(count if most is None else min(count, most) for count in counts)
        training = self.study.training
        return (
            training.learning_rate * self.standard_deviation(len(counts)) / (training.sample_rate * patients)
        )

    def rounding(self, num_weights: int) -> float:
        """Half a point for each entry."""
        return 0.5 * math.sqrt(num_weights) / points_per_bound(self.study)


def opening_of(study: Study, cost: TrainingCost | None) -> Opening:
    """That of the study's mode, with the noise of *cost*; None is no noise."""
    multiplier = 0.0 if cost is None else cost.noise_multiplier
    if study.privacy.mode == "distributed":
        return DistributedOpening(study=study, noise_multiplier=multiplier)
    return LocalOpening(study=study, noise_multiplier=multiplier)


def step_weights(training: Training) -> tuple[float, ...]:
    """With what weight each step of a round enters the sum that is opened, first to last."""
    return tuple(
        sum(training.momentum**later for later in range(left)) for left in range(training.local_steps, 0, -1)
    )


def _least_noise(study: Study) -> float:
    if study.privacy.mode != "distributed":
        return _QUIET
    return 1.01 * LEAST_DEVIATION * math.sqrt(_num_honest(study)) / points_per_bound(study)


def _num_honest(study: Study) -> int:
    """The fewest in a sum, less those that may work against it: worked out here, and not asked of what is audited."""
    aggregation = study.aggregation
    return max(aggregation.threshold, aggregation.min_cohort) - aggregation.num_colluding


def points_per_bound(study: Study) -> float:
    """Points of the grid of sums in one clipping bound."""
    return training_layout(study, _ROUND, num_weights=1).scale * clipping_bound(study)


def clipping_bound(study: Study) -> float:
    """``privacy.max_grad_norm``, which a study with privacy has."""
    if study.privacy.max_grad_norm is None:
        raise RuntimeError("a study with privacy has max_grad_norm")
    return study.privacy.max_grad_norm


def made_up_count(study: Study) -> int:
    """The noised count of each made-up hospital: the largest that the study allows, for the finest grid."""
    return study.aggregation.max_patients or _NUM_PATIENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Rounds of a study at made-up hospitals.

    Attributes:
        study: as it is audited: see `of`.
        cost: whose noise the hospitals add; None for the same round without clipping and noise.
        room: the part of the range of updates that the sum of *reach* gradients takes, in units of weights.
        reach: largest absolute entry of a hospital's sum of gradients.
        physical_batch: images in memory at a time; more where a patient has more.
    """

    study: Study
    cost: TrainingCost | None
    room: float
    reach: float
    physical_batch: int = 64

    @classmethod
    def of(cls, study: Study, *, reach: float, largest_change: float = math.inf) -> Self:
        """Return rounds of *study* with all the noise that it claims.

        Left out is what comes after the noise, which can neither help nor harm a patient, and would only hide it:
        Adam, decay of weights, schedule, averaging, and cutting of updates. For the latter the learning rate is such
        that a sum of *reach* fits. There is no validation, which concerns other patients.

        Args:
            study: of a mode with privacy.
            reach: largest absolute entry of a hospital's sum of gradients.
            largest_change: most that a weight may change in a round, where that matters.
        """
        constant = {
            "optimizer": "sgd",
            "weight_decay": 0.0,
            "schedule": "constant",
            "warmup_rounds": 0,
            "ema_decay": 0.0,
            "early_stopping": None,
        }
        training = study.training.model_copy(update=constant)
        evaluation = study.evaluation.model_copy(update={"validation_rounds": ()})
        return cls(
            study=study.model_copy(update={"training": training, "evaluation": evaluation}),
            cost=training_cost(study),
            room=min(0.5 * study.aggregation.update_bound, largest_change),
            reach=reach,
        ).training()

    def training(self, **values: float | Augmentation) -> Self:
        """The same with other values of ``[training]``; the noise stays as it is."""
        training = self.study.training.model_copy(update=dict(values))
        rate = self.room / self.reach * training.sample_rate * made_up_count(self.study)
        training = training.model_copy(update={"learning_rate": rate})
        return replace(self, study=self.study.model_copy(update={"training": training}))

    def quiet(self) -> Self:
        """The same with next to no noise: as little as the grid of sums allows, where there is one."""
        if self.cost is None:
            raise RuntimeError("a round without privacy has no noise")
        return replace(self, cost=replace(self.cost, noise_multiplier=_least_noise(self.study)))

    def unprotected(self) -> Self:
        """The same with neither clipping nor noise, as under mode none."""
        privacy = self.study.privacy.model_copy(update={"mode": "none"})
        return replace(self, cost=None, study=self.study.model_copy(update={"privacy": privacy}))

    def in_batches_of(self, images: int) -> Self:
        """The same with so many images in memory at a time."""
        return replace(self, physical_batch=images)

    @property
    def opening(self) -> Opening:
        """How the sum is read, and its claimed noise."""
        return opening_of(self.study, self.cost)

    def site_vector(
        self, model: nn.Module, patients: PatientSet, generator: CryptographicGenerator
    ) -> IntVector:
        """What one hospital with these training patients sends, before it is masked; *model* stays as it is."""
        weights = flatten(model)
        run = OpenRun(
            run_id="audit",
            study=self.study,
            task=task_of(self.study),
            model=model,
            patients={Role.TRAIN: patients},
            num_patients=made_up_count(self.study),
            cost=self.cost,
            evaluation_deviation=None,
            machine=Machine(
                device=torch.device("cpu"),
                physical_batch=max(self.physical_batch, self.study.training.rows_per_patient),
                mixed_precision=False,
            ),
        )
        try:
            return training_vector(run, _ROUND, weights, generator=generator).vector
        finally:
            unflatten(weights, model)

    def opened(self, vectors: Sequence[IntVector], model: nn.Module) -> Doubles:
        """The sum of some hospitals' vectors, as a sum of gradients, float64, shape (num_weights,)."""
        total: IntVector = np.stack(vectors).sum(axis=0, dtype=np.uint32)
        return self.opening.gradient_sum(total, num_weights=Manifest.of(model).num_weights)

    def round(
        self, model: nn.Module, patients: Sequence[PatientSet], generator: CryptographicGenerator
    ) -> Doubles:
        """One round of hospitals with these patients, opened."""
        return self.opened([self.site_vector(model, own, generator) for own in patients], model)
