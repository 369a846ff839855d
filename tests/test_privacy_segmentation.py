"""Differential privacy of segmentation: each patient's gradient is that patient's alone, and is clipped exactly."""

import copy
import math

import numpy as np
import pytest
import torch
from dicom_files import make_image
from ghost_models import distance, norm_of
from mask_sites import LESION, ORGANS, mask_study, square
from series_files import volume_image
from torch import Tensor

from client.local_round import OpenRun, evaluate_role, gradient_sum
from client.patients import PatientSet
from client.roles import Role
from client.training import Machine, add_sample
from privacy.accounting import TrainingCost
from privacy.clipping import ClippedGradientSum, check_supported
from privacy.ghost.matrices import Norms
from privacy.randomness import CryptographicGenerator
from shared_models.architectures import build_model
from shared_models.manifest import trainable_weights
from shared_models.study import Model, Study
from shared_models.tasks.registry import task_of

VOLUME = volume_image(depth=8, rows=8, columns=9)
STUDIES = {
    "one structure": mask_study(LESION),
    "two structures": mask_study(ORGANS),
    "one structure in volumes": mask_study(LESION, image=VOLUME),
    "two structures in volumes, residual": mask_study(
        ORGANS, image=VOLUME, model=Model(architecture="res-unet-3d", width=8, levels=2).model_dump()
    ),
}
EACH = pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
MACHINE = Machine(device=torch.device("cpu"), physical_batch=8, mixed_precision=False)
ROUNDING = 1e-5


def generator(number: int = 0) -> CryptographicGenerator:
    return CryptographicGenerator(number.to_bytes(32, "big"))


def some_images(study: Study, num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images, and masks with whatever structures; the last mask is empty."""
    random = torch.Generator().manual_seed(seed)
    images = torch.rand((num, *study.image.shape), generator=random)
    classes = len(study.task.mask_values) + 1
    masks = torch.randint(0, classes, (num, 1, *study.image.shape[1:]), generator=random).float()
    masks[-1] = 0.0
    return images, masks


def exact(study: Study, images: Tensor, masks: Tensor, patient: Tensor, bound: float) -> list[Tensor]:
    """Each patient's mean gradient by plain autograd in float64, clipped and summed."""
    model, task = copy.deepcopy(build_model(study)).double(), task_of(study)
    weights = list(trainable_weights(model).values())
    total = [torch.zeros_like(weight) for weight in weights]
    for one in patient.unique():
        rows = patient == one
        losses = task.loss(model(images[rows].double()), masks[rows].double())
        gradients = torch.autograd.grad(losses.mean(), weights)
        scale = bound / max(bound, norm_of(list(gradients)))
        for part, gradient in zip(total, gradients, strict=True):
            part.add_(gradient * scale)
    return total


@pytest.mark.slow
@pytest.mark.parametrize("norms", list(Norms))
@EACH
def test_the_clipped_sum_equals_exact_autograd_of_each_patients_mean(study: Study, norms: Norms) -> None:
    patient = torch.tensor([0, 1, 1, 2, 1, 3])
    images, masks = some_images(study, len(patient), 3)
    images[patient == 3] *= 1e3
    alone = [
        norm_of(exact(study, images[patient == one], masks[patient == one], patient[patient == one], 1e30))
        for one in range(4)
    ]
    for bound in (1e-3, sorted(alone)[1], 1e6):
        summed = ClippedGradientSum(build_model(study), max_grad_norm=bound, norms=norms)
        summed.add(images, masks, loss=task_of(study).loss, patient=patient)
        want = exact(study, images, masks, patient, bound)
        assert distance(summed.take(), want) <= ROUNDING * min(4 * bound, norm_of(want) + bound)


@EACH
def test_no_image_of_a_batch_has_a_part_in_what_is_said_of_another(study: Study) -> None:
    check_supported(build_model(study), image_shape=study.image.shape)


@EACH
def test_a_patient_whose_image_is_broken_contributes_nothing_and_the_others_as_before(study: Study) -> None:
    images, masks = some_images(study, 3, 5)
    want = exact(study, images[[0, 2]], masks[[0, 2]], torch.arange(2), 0.01)
    images[1] = math.nan
    summed = ClippedGradientSum(build_model(study), max_grad_norm=0.01)
    summed.add(images, masks, loss=task_of(study).loss)
    assert distance(summed.take(), want) <= ROUNDING * 0.02


def patients_of(study: Study, num: int) -> PatientSet:
    images, masks = some_images(study, num, 7)
    present = torch.stack(
        [(masks == number + 1).flatten(1).any(1) for number in range(len(study.task.mask_values))], dim=1
    )
    return PatientSet(
        pseudonyms=tuple(f"{number:03d}" for number in range(num)),
        images=images,
        labels=present.long(),
        masks=masks,
        first_image=np.arange(num + 1, dtype=np.int64),
    )


@pytest.mark.slow
@EACH
def test_a_step_of_training_clips_and_adds_noise_to_what_masks_say(study: Study) -> None:
    patients = patients_of(study, 6)
    private = study.model_copy(
        update={
            "privacy": study.privacy.model_copy(
                update={
                    "mode": "local",
                    "epsilon": 5.0,
                    "delta": 1e-4,
                    "num_patients": 50,
                    "max_grad_norm": 1e-3,
                }
            ),
            "training": study.training.model_copy(update={"sample_rate": 1.0}),
        }
    )
    cost = TrainingCost.for_target(epsilon=5.0, delta=1e-4, sample_rate=1.0, num_steps=1)

    def step(patients: PatientSet) -> list[Tensor]:
        summed = gradient_sum(
            private, task_of(study), build_model(study), cost=cost, machine=MACHINE, generator=generator(1)
        )
        add_sample(summed, patients, training=private.training, machine=MACHINE, generator=generator(2))
        return summed.take()

    difference = [a - b for a, b in zip(step(patients), step(patients.without(["003"])), strict=True)]
    assert norm_of(difference) <= 1e-3 * (1 + 1e-3), "the noise is the same in both"
    assert norm_of(step(patients)) > 0.5 * cost.noise_multiplier * 1e-3


@pytest.mark.slow
@EACH
def test_evaluation_sums_have_noise_in_proportion_to_what_one_patient_changes(study: Study) -> None:
    patients, task = patients_of(study, 5), task_of(study)

    def released(deviation: float | None, number: int) -> np.ndarray:
        run = OpenRun(
            run_id="test",
            study=study,
            task=task,
            model=build_model(study),
            patients={Role.TEST: patients},
            num_patients=5,
            cost=None,
            evaluation_deviation=deviation,
            machine=MACHINE,
        )
        return evaluate_role(run, Role.TEST, generator=generator(number)).statistics

    noise = np.stack([released(3.0, number) - released(None, number) for number in range(30)])
    spread = np.sqrt(np.mean((noise / task.noise_units) ** 2))
    assert spread == pytest.approx(3.0 * task.l2_sensitivity, rel=0.1)


def test_a_mask_moves_with_its_image_in_training() -> None:
    """A model that sees the image through its brightness alone: image and mask are the same picture."""
    study = mask_study(image=make_image())
    study = study.model_copy(
        update={
            "training": study.training.model_copy(
                update={
                    "sample_rate": 1.0,
                    "augmentation": study.training.augmentation.model_copy(
                        update={"flip": ("columns", "rows")}
                    ),
                }
            )
        }
    )
    masks = torch.stack([torch.from_numpy(square(number)) for number in range(8)])[:, None].float() / 255
    patients = PatientSet(
        pseudonyms=tuple(map(str, range(8))),
        images=masks.clone(),
        labels=torch.ones(8, 1).long(),
        masks=masks,
        first_image=np.arange(9, dtype=np.int64),
    )
    seen: list[tuple[Tensor, Tensor]] = []

    class Watching:
        def add(self, images: Tensor, labels: Tensor, patient: Tensor | None) -> None:
            seen.append((images, labels))

        def take(self) -> list[Tensor]:
            return []

        def close(self) -> None:
            pass

    add_sample(Watching(), patients, training=study.training, machine=MACHINE, generator=generator(4))
    images, labels = seen[0]
    assert torch.equal(images, labels)
    assert not torch.equal(images, masks), "some were mirrored"
