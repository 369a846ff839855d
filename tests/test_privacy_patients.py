"""What one patient contributes to a step: the mean over some images and copies, clipped once, never in two batches."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dicom_files import Hospital
from exact_gradients import exact_sum, norm_of, random_images
from ghost_models import distance
from numpy.typing import NDArray
from studies import make_study
from torch import Tensor

from client.global_step import clipped_sum
from client.local_round import gradient_sum
from client.patients import PatientSet
from client.policy import policy_refusals
from client.site_file import Compute, SiteFile
from client.training import Machine, add_sample, train
from privacy.accounting import TrainingCost
from privacy.clipping import ClippedGradientSum, Norms
from privacy.ghost import convolution, layers
from privacy.ghost.convolution import ConvolutionLayer
from privacy.ghost.matrices import takes_samples
from privacy.randomness import CryptographicGenerator
from privacy.sampling import pick_several_images
from shared_models.architectures import build_model
from shared_models.augmentation import Augmentation
from shared_models.configuration import ConfigurationError
from shared_models.manifest import flatten
from shared_models.networks.standardised_convolution import StandardisedConv2d
from shared_models.study import Study, Training
from shared_models.tasks.registry import task_of

ROUNDING = 1e-5
"""Of a clipped sum, in units of the bound and a patient."""
SCATTERING = {'architecture = "small-cnn"\nwidth = 8': 'architecture = "scattering"\nangles = 4'}
VOLUMES = {
    'architecture = "small-cnn"': 'architecture = "small-cnn-3d"',
    'modalities = ["CR"]': 'modalities = ["MR"]',
    "rows = 16\ncolumns = 16": "rows = 8\ncolumns = 9\ndepth = 10\nspacing = 2.0\nslice_spacing = 3.0\n"
    'intensity = "percentiles"',
}
STANDARDISED = {"width = 8": "width = 8\nweight_standardisation = true"}
ARCHITECTURES = {
    "small-cnn": {},
    "small-cnn, colour": {"channels = 1": "channels = 3"},
    "small-cnn, last block": {"width = 8": 'width = 8\ntrainable = "last-block"'},
    "small-cnn, head": {"width = 8": 'width = 8\ntrainable = "head"'},
    "small-cnn, standardised weights": STANDARDISED,
    "small-cnn-3d": VOLUMES,
    "small-cnn-3d, last block": {**VOLUMES, "width = 8": 'width = 8\ntrainable = "last-block"'},
    "small-cnn-3d, standardised weights": {**VOLUMES, **STANDARDISED},
    "scattering": SCATTERING,
    "scattering, colour": {**SCATTERING, "channels = 1": "channels = 3"},
}
EACH = pytest.mark.parametrize("name", ARCHITECTURES)
MACHINE = Machine(device=torch.device("cpu"), physical_batch=8, mixed_precision=False)


def generator(number: int = 0) -> CryptographicGenerator:
    return CryptographicGenerator(number.to_bytes(32, "big"))


def study_with(*lines: str) -> Study:
    return make_study({"sample_rate = 0.5": "\n".join(["sample_rate = 0.5", *lines])})


# Exact


def ours(
    images: Tensor, labels: Tensor, bound: float, study: Study, patient: Tensor | None, norms: Norms
) -> list[Tensor]:
    summed = ClippedGradientSum(build_model(study), max_grad_norm=bound, norms=norms)
    summed.add(images, labels, loss=task_of(study).loss, patient=patient)
    return summed.take()


def middle_bound(images: Tensor, labels: Tensor, study: Study, patient: Tensor) -> float:
    """A bound that clips some patients and leaves others."""
    norms = []
    for one in patient.unique():
        rows = patient == one
        alone = exact_sum(images[rows], labels[rows], 1e30, study=study, patient=patient[rows])
        norms.append(norm_of(alone))
    return sorted(norms)[len(norms) // 2]


def owners(counts: Sequence[int], seed: int) -> Tensor:
    """Who each row belongs to, in any order."""
    owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return owner[torch.randperm(len(owner), generator=torch.Generator().manual_seed(seed))]


@pytest.mark.slow
@pytest.mark.parametrize("norms", list(Norms))
@EACH
def test_each_architectures_clipped_sum_equals_exact_autograd_of_each_patients_mean(
    name: str, norms: Norms
) -> None:
    study, patient = make_study(ARCHITECTURES[name]), owners([1, 4, 2, 1, 3], 5)
    images, labels = random_images(4, len(patient), study=study)
    images[patient == 2] *= 1e6
    images[patient == 3] = 0.0
    middle = middle_bound(images, labels, study, patient)
    for bound in (1e-3, middle, 1e6):
        want = exact_sum(images, labels, bound, study=study, patient=patient)
        error = distance(ours(images, labels, bound, study, patient, norms), want)
        assert error <= ROUNDING * min(5 * bound, norm_of(want) + bound)


@pytest.mark.slow
@EACH
def test_patients_with_1_and_with_200_images_contribute_alike(name: str) -> None:
    study, patient = make_study(ARCHITECTURES[name]), owners([1, 200, 1], 6)
    images, labels = random_images(7, len(patient), study=study)
    middle = middle_bound(images, labels, study, patient)
    for bound in (1e-3, middle, 1e6):
        want = exact_sum(images, labels, bound, study=study, patient=patient)
        error = distance(ours(images, labels, bound, study, patient, Norms.CHEAPEST), want)
        assert error <= ROUNDING * min(3 * bound, norm_of(want) + bound)
    alone = ours(
        images[patient == 1], labels[patient == 1], 1e-3, study, torch.zeros(200).long(), Norms.CHEAPEST
    )
    assert 0.9999e-3 < norm_of(alone) <= 1e-3


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("norms", list(Norms))
@EACH
def test_one_broken_image_takes_the_whole_patient_out_and_nobody_else(
    name: str, norms: Norms, broken: float
) -> None:
    study, patient = make_study(ARCHITECTURES[name]), owners([2, 3, 1], 8)
    images, labels = random_images(9, len(patient), study=study)
    others = patient != 1
    want = exact_sum(images[others], labels[others], 0.01, study=study, patient=patient[others])
    first = int((patient == 1).nonzero()[0])
    images[first] = broken
    got = ours(images, labels, 0.01, study, patient, norms)
    assert all(bool(part.isfinite().all()) for part in got)
    assert distance(got, want) <= ROUNDING * 0.02


@pytest.mark.slow
@pytest.mark.parametrize("norms", list(Norms))
@EACH
def test_no_patient_contributes_more_than_the_bound_however_many_images(name: str, norms: Norms) -> None:
    study, bound = make_study(ARCHITECTURES[name]), 1e-4
    for seed, (num, scale) in enumerate(itertools.product((1, 2, 5), (0.1, 1.0, 1e3))):
        images, labels = random_images(seed, num, scale, study=study)
        patient = torch.zeros(num, dtype=torch.int64)
        contribution = norm_of(ours(images, labels, bound, study, patient, norms))
        assert 0.999 * bound < contribution <= bound


def test_the_gradient_by_standardised_weights_is_not_the_one_to_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a ghost norm of an ordinary convolution would give; the tests above would see it."""
    study, bound = make_study(STANDARDISED), 1e6
    images, labels = random_images(3, 4, study=study)
    want = exact_sum(images, labels, bound, study=study)
    monkeypatch.setitem(layers._LAYERS, StandardisedConv2d, ConvolutionLayer)
    monkeypatch.setitem(convolution._FUNCTIONS, StandardisedConv2d, F.conv2d)
    wrong = ours(images, labels, bound, study, None, Norms.CHEAPEST)
    assert distance(wrong, want) > 0.5 * norm_of(want)


def test_standardised_weights_have_mean_0_and_variance_1_and_a_filter_of_equal_ones_a_gradient() -> None:
    layer = StandardisedConv2d(2, 3, 3)
    with torch.no_grad():
        layer.weight.mul_(7.0).add_(5.0)
        layer.weight[2] = 4.0
    places = torch.eye(18).view(18, 2, 3, 3)
    weight = (layer(places) - layer.bias[:, None, None]).flatten(1).t()
    assert torch.allclose(weight.mean(1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(weight[:2].var(1, correction=0), torch.ones(2), atol=1e-4)
    layer(places).square().sum().backward()
    assert layer.weight.grad is not None
    assert bool(layer.weight.grad.isfinite().all())


def test_copies_of_one_image_count_as_the_image() -> None:
    study = make_study()
    images, labels = random_images(3, 2, study=study)
    once = ours(images, labels, 0.5, study, None, Norms.CHEAPEST)
    patient = torch.tensor([0, 1, 1, 1, 1])
    copies = ours(images[patient], labels[patient], 0.5, study, patient, Norms.CHEAPEST)
    assert distance(copies, once) <= ROUNDING * 0.5 * 2


def test_gram_matrices_are_not_chosen_where_many_images_of_a_patient_make_them_large() -> None:
    sizes = {"num_positions": 16, "num_inputs": 576, "num_outputs": 64}
    assert not takes_samples(Norms.CHEAPEST, **sizes)
    assert takes_samples(Norms.CHEAPEST, **sizes, num_rows=50)


# Which images


FIRST_IMAGE = np.array([0, 1, 4, 204, 209], dtype=np.int64)
"""Patients with 1, 3, 200 and 5 images."""


@pytest.mark.parametrize("most", [2, 3, 5, 200, 1000])
def test_a_patient_gets_as_many_distinct_images_as_there_are_and_the_study_allows(most: int) -> None:
    sampled = np.array([0, 2, 3])
    for number in range(20):
        positions, owner = pick_several_images(
            sampled, first_image=FIRST_IMAGE, most=most, generator=generator(number)
        )
        counts = [1, min(200, most), min(5, most)]
        np.testing.assert_array_equal(owner, np.repeat([0, 1, 2], counts))
        assert len(np.unique(positions)) == len(positions)
        assert (positions >= FIRST_IMAGE[sampled[owner]]).all()
        assert (positions < FIRST_IMAGE[sampled[owner] + 1]).all()


def test_every_choice_of_two_images_of_five_is_equally_likely() -> None:
    draw, seen = generator(1), np.zeros((5, 5))
    for _ in range(4000):
        positions, _ = pick_several_images(np.array([3]), first_image=FIRST_IMAGE, most=2, generator=draw)
        one, other = sorted(positions - 204)
        seen[one, other] += 1
    chosen = seen[np.triu_indices(5, 1)]
    assert chosen.sum() == 4000
    assert np.abs(chosen / 4000 - 0.1).max() < 5 * math.sqrt(0.1 * 0.9 / 4000)


def test_nobody_sampled_has_no_images() -> None:
    nobody = np.zeros(0, dtype=np.int64)
    positions, owner = pick_several_images(nobody, first_image=FIRST_IMAGE, most=3, generator=generator())
    assert len(positions) == len(owner) == 0


# Physical batches


def patients(counts: Sequence[int], *, rows: int = 16) -> PatientSet:
    made = torch.Generator().manual_seed(11)
    num = sum(counts)
    return PatientSet(
        pseudonyms=tuple(str(number) for number in range(len(counts))),
        images=torch.rand(num, 1, rows, rows, generator=made),
        labels=torch.randint(0, 2, (num,), generator=made),
        first_image=np.cumsum([0, *counts], dtype=np.int64),
    )


class Watching:
    """Keeps the images and owners of each physical batch."""

    def __init__(self) -> None:
        self.batches: list[tuple[Tensor, Tensor | None]] = []

    def add(self, images: Tensor, labels: Tensor, patient: Tensor | None) -> None:
        assert len(images) == len(labels)
        self.batches.append((images, patient))

    def take(self) -> list[Tensor]:
        return []

    def close(self) -> None:
        pass


def batches(
    own: PatientSet, training: Training, *, physical_batch: int, number: int = 0
) -> list[tuple[Tensor, Tensor | None]]:
    seen = Watching()
    machine = replace(MACHINE, physical_batch=physical_batch)
    add_sample(seen, own, training=training, machine=machine, generator=generator(number))
    return seen.batches


def training_with(**values: object) -> Training:
    return Training.model_validate(
        {"num_rounds": 1, "local_steps": 1, "sample_rate": 1.0, "learning_rate": 0.1, **values}
    )


def whose(images: Tensor, own: PatientSet) -> NDArray[np.int64]:
    """Which patient each row is of, mirrored or not."""
    known = own.images.flatten(1)
    found = [
        int(
            np.flatnonzero(
                ((known == row.flatten()).all(1) | (known == row.flip(-1).flatten()).all(1)).numpy()
            )[0]
        )
        for row in images
    ]
    return np.searchsorted(own.first_image, found, side="right") - 1


@pytest.mark.parametrize(
    ("most", "copies", "physical_batch"),
    [(1, 4, 4), (1, 4, 11), (3, 1, 3), (3, 1, 8), (5, 2, 10), (2, 2, 64)],
)
def test_a_patient_never_straddles_two_physical_batches(most: int, copies: int, physical_batch: int) -> None:
    counts = [1, 7, 2, 3, 1, 1, 5, 2, 9, 1, 4]
    own = patients(counts)
    training = training_with(
        images_per_patient=most, augmentations=copies, augmentation=Augmentation(flip=("columns",))
    )
    done: list[int] = []
    for images, patient in batches(own, training, physical_batch=physical_batch):
        assert patient is not None
        assert len(images) <= physical_batch
        owner = whose(images, own)
        here = np.unique(owner)
        np.testing.assert_array_equal(patient.numpy(), np.searchsorted(here, owner))
        done += here.tolist()
        for one in here:
            assert (owner == one).sum() == copies * min(most, counts[one])
    assert done == list(range(len(counts))), "each patient in one batch, and no other"


def test_the_number_of_physical_batches_depends_on_how_many_patients_are_sampled_only() -> None:
    """The time of a step then tells no more than without several images."""
    training = training_with(images_per_patient=4)
    few, many = patients([1] * 11), patients([1, 30] * 5 + [30])
    assert len(batches(few, training, physical_batch=9)) == 6
    assert len(batches(many, training, physical_batch=9)) == 6
    assert batches(few, training_with(images_per_patient=4, sample_rate=1e-9), physical_batch=9) == []


def test_rows_of_a_patient_that_do_not_fit_are_refused_at_the_site_and_in_the_loop(
    hospital_file: SiteFile,
) -> None:
    study = study_with('augmentation = { flip = ["columns"] }', "images_per_patient = 5", "augmentations = 4")
    for batch, refused in ((19, True), (20, False)):
        file = hospital_file.model_copy(update={"compute": Compute(physical_batch=batch)})
        said = [words for words in policy_refusals(file, study) if "physical_batch" in words]
        assert bool(said) is refused
    tight = hospital_file.model_copy(update={"compute": Compute(physical_batch=19)})
    (words,) = [words for words in policy_refusals(tight, study) if "physical_batch" in words]
    assert words == (
        "compute.physical_batch = 19, and in the study a patient has up to 20 images in a step, copies included "
        "(training.images_per_patient × training.augmentations), which must be in memory together; set "
        "compute.physical_batch to 20 at least"
    )
    with pytest.raises(ValueError, match="physical_batch is 19; must be 20 at least"):
        batches(patients([1, 2]), study.training, physical_batch=19)


@pytest.fixture
def hospital_file(tmp_path: Path) -> SiteFile:
    return Hospital(tmp_path / "hospital").site()


def test_copies_are_mirrored_independently_of_each_other() -> None:
    own = patients([1])
    training = training_with(augmentations=8, augmentation=Augmentation(flip=("columns",)))
    mirrored = np.zeros(8)
    pairs = 0.0
    for number in range(400):
        ((images, _),) = batches(own, training, physical_batch=8, number=number)
        flips = np.array([not torch.equal(row, own.images[0]) for row in images])
        mirrored += flips
        pairs += float(flips[0] == flips[1])
    assert np.abs(mirrored / 400 - 0.5).max() < 5 * 0.5 / 20
    assert abs(pairs / 400 - 0.5) < 5 * 0.5 / 20


def test_copies_without_anything_that_alters_them_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"augmentations = 2 needs \[training.augmentation\]"):
        study_with("augmentations = 2")


# The step


@pytest.mark.parametrize("physical_batch", [3, 7, 100])
@EACH
def test_a_global_step_with_everybody_is_the_exact_sum_of_clipped_means(
    name: str, physical_batch: int
) -> None:
    """Every image of every patient, through the code that sites run."""
    study = make_study(ARCHITECTURES[name], private=True)
    counts = [1, 3, 2, 1]
    images, labels = random_images(2, sum(counts), study=study)
    own = PatientSet(
        pseudonyms=tuple("abcd"),
        images=images,
        labels=labels.long(),
        first_image=np.cumsum([0, *counts], dtype=np.int64),
    )
    patient = torch.arange(4).repeat_interleave(torch.tensor(counts))
    bound = middle_bound(images, labels, study, patient)
    summed = clipped_sum(
        build_model(study),
        own,
        task=task_of(study),
        training=training_with(images_per_patient=3),
        clipping_bound=bound,
        machine=replace(MACHINE, physical_batch=physical_batch),
        generator=generator(),
    )
    want = exact_sum(images, labels, bound, study=study, patient=patient)
    exact = torch.cat([part.flatten() for part in want]).numpy()
    assert np.linalg.norm(summed - exact) <= ROUNDING * bound * 4


@pytest.mark.parametrize("private", [True, False])
def test_without_clipping_and_noise_both_modes_take_the_same_step(private: bool) -> None:
    """Mode none weighs images as private training does."""
    study = make_study(private=private)
    own = patients([1, 4, 2, 6, 3])
    training = training_with(
        images_per_patient=4, augmentations=2, augmentation=Augmentation(flip=("columns",))
    )
    steps = []
    for key in range(2):
        model = build_model(study)
        before = flatten(model)
        cost = TrainingCost(sample_rate=1.0, noise_multiplier=1e-9, num_steps=1) if private and key else None
        loose = study.model_copy(
            update={"privacy": study.privacy.model_copy(update={"max_grad_norm": 1e3, "mode": "local"})}
        )
        gradient = gradient_sum(
            loose if cost else study,
            task_of(study),
            model,
            cost=cost,
            machine=MACHINE,
            generator=generator(4),
        )
        train(
            model,
            own,
            gradient,
            training=training,
            learning_rate=0.1,
            num_patients=5,
            machine=replace(MACHINE, physical_batch=8 if key else 64),
            generator=generator(3),
        )
        steps.append(flatten(model) - before)
    assert np.linalg.norm(steps[0]) > 1e-4
    np.testing.assert_allclose(steps[1], steps[0], rtol=0, atol=2e-6 * np.abs(steps[0]).max() + 1e-7)
