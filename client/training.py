"""The training loop of one round at one hospital."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.augmentation import altered
from client.device import choose_device, has_bfloat16
from client.patients import PatientSet
from client.site_file import Compute
from privacy.clipping import ClippedGradientSum
from privacy.noise import noised_sum
from privacy.randomness import CryptographicGenerator
from privacy.sampling import pick_images, pick_several_images, sample_patients
from shared_models.manifest import trainable_weights
from shared_models.optimizers import optimizer_of
from shared_models.study import Training
from shared_models.tasks.task import Task

_VALUES_AT_A_TIME = 2**23
"""Of all images together: the first layer makes some tens of values of each."""


class GradientSum(Protocol):
    """Collects the gradient of one step over its physical batches."""

    def add(self, images: Tensor, labels: Tensor, patient: Tensor | None) -> None:
        """Add the patients of one physical batch, each with the mean gradient over the patient's rows.

        Args:
            images: shape (rows, ...).
            labels: float, shape (rows, *label_shape of the task), or masks of shape (rows, 1, ...).
            patient: int64, shape (rows,), the patient of each row, numbered from 0; None if each row is a patient.
        """
        ...

    def take(self) -> list[Tensor]:
        """Return the sum over patients, one tensor a parameter, and begin anew."""
        ...

    def close(self) -> None:
        """Leave the model as it was found."""
        ...


class PlainGradientSum:
    """The sum of the patients' gradients as they are: no privacy."""

    def __init__(self, model: nn.Module, task: Task, *, mixed_precision: bool) -> None:
        self._model, self._task, self._mixed_precision = model, task, mixed_precision

    def add(self, images: Tensor, labels: Tensor, patient: Tensor | None) -> None:
        """Add the patients of one physical batch, each with the mean gradient over the patient's rows."""
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self._mixed_precision):
            logits = self._model(images)
        losses = self._task.loss(logits.float(), labels)
        if patient is not None:
            losses = losses / torch.bincount(patient)[patient]
        losses.sum().backward()  # type: ignore[no-untyped-call]

    def take(self) -> list[Tensor]:
        """Return the sum over patients, one tensor a parameter, and begin anew."""
        weights = trainable_weights(self._model).values()
        taken = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        self._model.zero_grad(set_to_none=True)
        return taken

    def close(self) -> None:
        """Nothing was attached to the model."""


class ClippedSamples:
    """The sum of clipped gradients, without noise. It must not leave before noise is added."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        *,
        clipping_bound: float,
        mixed_precision: bool,
    ) -> None:
        self._clipped = ClippedGradientSum(model, max_grad_norm=clipping_bound)
        self._task, self._mixed_precision = task, mixed_precision

    def add(self, images: Tensor, labels: Tensor, patient: Tensor | None) -> None:
        """Add the patients of one physical batch, each with the mean gradient over the patient's rows."""
        self._clipped.add(
            images,
            labels,
            loss=self._task.loss,
            mixed_precision=self._mixed_precision,
            patient=patient,
        )

    def take(self) -> list[Tensor]:
        """Return the sum over patients, one tensor a parameter, as `ClippedGradientSum.take`, and begin anew."""
        return self._clipped.take()

    def close(self) -> None:
        """Leave the model as it was found."""
        self._clipped.close()


class PrivateGradientSum:
    """The sum of clipped patients' gradients with Gaussian noise: one step of DP-SGD.

    *Guarantee*: each `take` is one Gaussian mechanism with the given noise multiplier on the patients added since
    the last one; with Poisson-sampled patients it is the step that `privacy.accounting.TrainingCost` counts.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        *,
        max_grad_norm: float,
        noise_multiplier: float,
        generator: CryptographicGenerator,
        mixed_precision: bool,
    ) -> None:
        self._clipped = ClippedSamples(
            model, task, clipping_bound=max_grad_norm, mixed_precision=mixed_precision
        )
        self._standard_deviation = noise_multiplier * max_grad_norm
        self._generator = generator

    def add(self, images: Tensor, labels: Tensor, patient: Tensor | None) -> None:
        """Add the patients of one physical batch, each with the mean gradient over the patient's rows."""
        self._clipped.add(images, labels, patient)

    def take(self) -> list[Tensor]:
        """Return the noised sum over patients, one tensor a parameter, and begin anew."""
        return noised_sum(
            self._clipped.take(), standard_deviation=self._standard_deviation, generator=self._generator
        )

    def close(self) -> None:
        """Take the hooks off the model again."""
        self._clipped.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What trains: device, rows in one physical batch, bfloat16 or not."""

    device: torch.device
    physical_batch: int
    mixed_precision: bool

    @classmethod
    def of(cls, compute: Compute) -> Self:
        """Return what ``site.toml`` names; mixed precision only where the device has bfloat16.

        Raises:
            DeviceError: the device is not there.
        """
        device = choose_device(compute)
        return cls(
            device=device,
            physical_batch=compute.physical_batch,
            mixed_precision=compute.mixed_precision and has_bfloat16(device),
        )

    def patients_at_a_time(self, training: Training) -> int:
        """So many patients, each with as many rows as the study allows, fit into a physical batch.

        Raises:
            ValueError: not even one does.
        """
        if training.rows_per_patient > self.physical_batch:
            raise ValueError(
                f"physical_batch is {self.physical_batch}; must be {training.rows_per_patient} at least, the rows of "
                "one patient, who may not be split"
            )
        return self.physical_batch // training.rows_per_patient


def images_at_a_time(shape: Sequence[int]) -> int:
    """So many images go through a network at once where nothing is trained: 256, and fewer where they are large.

    Args:
        shape: (num_images, channels, ...).
    """
    return max(1, min(256, _VALUES_AT_A_TIME // math.prod(shape[1:])))


def train(
    model: nn.Module,
    patients: PatientSet,
    gradient: GradientSum,
    *,
    training: Training,
    learning_rate: float,
    num_patients: int,
    machine: Machine,
    generator: CryptographicGenerator,
    voxel: Sequence[float] | None = None,
) -> None:
    """Take ``training.local_steps`` steps from the model's weights, changing them in place.

    The optimizer begins anew: nothing that it remembers stays at the site between rounds.

    Args:
        model: on ``machine.device``.
        patients: the training patients of the site.
        gradient: collects the gradient; with differential privacy it clips and adds noise.
        training: the study's.
        learning_rate: of this round.
        num_patients: divides the sum, together with the sample rate; under differential privacy it is the
            noised count, never the true one.
        machine: what trains.
        generator: draws the sample, the image of each patient and its alterations.
        voxel: size of a voxel, see `altered`.
    """
    weights = list(trainable_weights(model).values())
    optimizer = optimizer_of(weights, training, learning_rate=learning_rate)
    model.train()
    for _ in range(training.local_steps):
        with seeded(model, generator):
            add_sample(
                gradient, patients, training=training, machine=machine, generator=generator, voxel=voxel
            )

        divisor = training.sample_rate * num_patients
        for weight, part in zip(weights, gradient.take(), strict=True):
            weight.grad = part.div_(divisor).to(weight.dtype)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@contextmanager
def seeded(model: nn.Module, generator: CryptographicGenerator) -> Iterator[None]:
    """Have the dropout of *model*, where there is any, draw from *generator* within the block, and from nothing else.

    Masks are drawn for each image by itself and know nothing of what the images show: with or without a patient the
    others' masks come from the same distribution.
    """
    if not any(isinstance(layer, nn.Dropout) and layer.p > 0.0 for layer in model.modules()):
        yield
        return
    devices = {weight.device for weight in model.parameters() if weight.device.type == "cuda"}
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(generator.words(1)[0]) & (2**63 - 1))
        yield


def add_sample(
    gradient: GradientSum,
    patients: PatientSet,
    *,
    training: Training,
    machine: Machine,
    generator: CryptographicGenerator,
    voxel: Sequence[float] | None = None,
) -> None:
    """Sample the patients of one step, and add their images to *gradient* in physical batches.

    All rows of a patient are in one physical batch. How many batches there are depends on the number of sampled
    patients only, not on how many images they have.

    Raises:
        ValueError: a physical batch has no room for the rows of one patient.
    """
    sampled = sample_patients(len(patients), sample_rate=training.sample_rate, generator=generator)
    at_a_time = machine.patients_at_a_time(training)
    positions, owner = _rows(sampled, patients, training, generator)

    for first in range(0, len(np.unique(owner)), at_a_time):
        begin, end = np.searchsorted(owner, (first, first + at_a_time))
        images, labels = _to_device(patients, torch.from_numpy(positions[begin:end]), machine.device)
        images, moved = altered(
            images,
            training.augmentation,
            generator=generator,
            voxel=voxel,
            masks=None if patients.masks is None else labels,
        )
        labels = labels if moved is None else moved
        patient = None
        if training.rows_per_patient > 1:
            patient = torch.from_numpy(owner[begin:end] - first).to(machine.device)
        gradient.add(images, labels, patient)


def _rows(
    sampled: NDArray[np.int64], patients: PatientSet, training: Training, generator: CryptographicGenerator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The image of each row, and the place of its patient in *sampled*, increasing; a row for each copy."""
    first_image, most = patients.first_image, training.images_per_patient
    if most == 1:
        positions = pick_images(sampled, first_image=first_image, generator=generator)
        owner = np.arange(len(positions))
    else:
        positions, owner = pick_several_images(
            sampled, first_image=first_image, most=most, generator=generator
        )
    return np.repeat(positions, training.augmentations), np.repeat(owner, training.augmentations)


def _to_device(patients: PatientSet, positions: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    images, labels = patients.inputs[positions], patients.targets[positions].float()
    if device.type == "cuda":
        images, labels = images.pin_memory(), labels.pin_memory()
    return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
