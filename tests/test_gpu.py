"""On a CUDA device: what is computed there is what the processor computes, and what the accountant assumes.

Gradients are compared with plain autograd in float64 on the processor. Where there is no such device, what is of CUDA
itself is skipped, and the rest runs on the processor: it shows little there, but keeps up with the code that it calls.
"""

import copy
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from exact_gradients import TASK, exact_sum, norm_of, random_images
from ghost_models import LAYERS, MODELS, clipped, exact, images_of, made
from studies import make_study
from torch import Tensor, nn

from client.device import DeviceError, choose_device, has_bfloat16, prepare_torch
from client.local_round import OpenRun, training_vector
from client.patients import PatientSet
from client.roles import Role
from client.site_file import Compute
from client.training import GradientSum, Machine, PlainGradientSum, PrivateGradientSum, train
from privacy.accounting import TrainingCost
from privacy.clipping import ClippedGradientSum, Norms
from privacy.noise import noised_sum
from privacy.randomness import CryptographicGenerator
from shared_models.architectures import build_model
from shared_models.layouts import training_layout
from shared_models.manifest import flatten
from shared_models.study import Study

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PROCESSOR = torch.device("cpu")
STUDY = make_study(
    {
        "width = 8": "width = 16",
        "rows = 16": "rows = 32",
        "columns = 16": "columns = 32",
        "learning_rate = 0.1": 'learning_rate = 0.1\naugmentation = { flip = ["columns"] }',
    },
    private=True,
)

ROUNDING = 1e-5
"""Of a patient's clipped gradient in float32, relative to it, 4e-6 of it margin. With TF32 2e-4 at least."""
ROUNDING_BFLOAT16 = 0.03
"""Of a clipped sum in mixed precision, in units of the bound and a patient. On an H200 0.007."""


@pytest.fixture(autouse=True)
def as_a_site_prepares_torch() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    prepare_torch(Compute())
    yield
    matmul.allow_tf32, cudnn.allow_tf32, deterministic = before
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def generator(number: int = 0) -> CryptographicGenerator:
    return CryptographicGenerator(number.to_bytes(32, "big"))


def machine_of(device: torch.device, *, physical_batch: int = 8, mixed_precision: bool = False) -> Machine:
    return Machine(device=device, physical_batch=physical_batch, mixed_precision=mixed_precision)


def patients_of(num: int, *, seed: int = 0) -> PatientSet:
    """Two images a patient."""
    images, labels = random_images(seed, 2 * num, study=STUDY)
    return PatientSet(
        pseudonyms=tuple(f"{number:04d}" for number in range(num)),
        images=images,
        labels=labels.long(),
        first_image=np.arange(0, 2 * num + 1, 2),
    )


def clipped_on_device(
    images: Tensor, labels: Tensor, bound: float, *, mixed_precision: bool = False
) -> list[Tensor]:
    summed = ClippedGradientSum(build_model(STUDY).to(DEVICE), max_grad_norm=bound)
    summed.add(images.to(DEVICE), labels.to(DEVICE), loss=TASK.loss, mixed_precision=mixed_precision)
    return summed.take()


def distance(some: list[Tensor], others: list[Tensor]) -> float:
    return norm_of([one.cpu() - other.cpu() for one, other in zip(some, others, strict=True)])


def relative_error(got: Tensor, exact: Tensor) -> float:
    return float(torch.linalg.vector_norm(got.cpu().double() - exact) / torch.linalg.vector_norm(exact))


# The device


@needs_cuda
def test_auto_takes_a_cuda_device_and_a_named_one_is_taken() -> None:
    assert choose_device(Compute()).type == "cuda"
    assert choose_device(Compute(device="cuda")) == torch.device("cuda")
    assert choose_device(Compute(device="cuda:0")) == torch.device("cuda", 0)
    assert choose_device(Compute(device="cpu")) == PROCESSOR


@needs_cuda
def test_a_device_number_that_is_not_there_is_told_with_how_many_there_are() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(DeviceError, match=rf"compute\.device = cuda:{count}: torch sees {count} CUDA device"):
        choose_device(Compute(device=f"cuda:{count}"))


@needs_cuda
def test_mixed_precision_is_used_only_where_the_device_computes_in_bfloat16_itself() -> None:
    own = torch.cuda.get_device_capability() >= (8, 0)
    assert Machine.of(Compute(mixed_precision=True)).mixed_precision is own
    assert Machine.of(Compute(mixed_precision=False)).mixed_precision is False


# Precision: no TF32


def products() -> tuple[float, float]:
    """Relative errors of a matrix product and of a convolution in float32 on the device."""
    random = torch.Generator().manual_seed(1)
    left, right = (torch.randn(512, 512, generator=random, dtype=torch.float64) for _ in range(2))
    images = torch.randn(16, 64, 32, 32, generator=random, dtype=torch.float64)
    kernels = torch.randn(64, 64, 3, 3, generator=random, dtype=torch.float64)

    def on_device(values: Tensor) -> Tensor:
        return values.float().to(DEVICE)

    product = on_device(left) @ on_device(right)
    convolution = nn.functional.conv2d(on_device(images), on_device(kernels))
    return (
        relative_error(product, left.float().double() @ right.float().double()),
        relative_error(convolution, nn.functional.conv2d(images.float().double(), kernels.float().double())),
    )


@needs_cuda
def test_products_and_convolutions_are_float32_after_prepare_torch_whatever_was_set_before() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    prepare_torch(Compute())
    assert max(products()) < 2e-6


@pytest.mark.skipif(not has_bfloat16(DEVICE), reason="devices without bfloat16 have no TF32 either")
def test_with_tf32_the_same_products_would_be_found_out() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    assert min(products()) > 1e-4


# Clipping


@pytest.mark.parametrize("bound", [1e-3, 0.3, 100.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
def test_each_patients_clipped_gradient_equals_exact_autograd(bound: float, scale: float) -> None:
    images, labels = random_images(1, 4, scale, study=STUDY)
    for patient in range(len(images)):
        alone = images[patient : patient + 1], labels[patient : patient + 1]
        exact = exact_sum(*alone, bound, study=STUDY)
        assert distance(clipped_on_device(*alone, bound), exact) <= ROUNDING * max(norm_of(exact), 1e-3)


def test_the_clipped_sum_of_a_batch_equals_exact_autograd() -> None:
    images, labels = random_images(2, 24, study=STUDY)
    error = distance(clipped_on_device(images, labels, 0.3), exact_sum(images, labels, 0.3, study=STUDY))
    assert error <= ROUNDING * 0.3 * len(images)


@pytest.mark.parametrize("norms", Norms)
@pytest.mark.parametrize("name", [*LAYERS, *MODELS])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_each_layers_and_models_clipped_sum_equals_exact_autograd(name: str, norms: Norms) -> None:
    make, shape = {**LAYERS, **MODELS}[name]
    model, images = made(make), images_of((4, *shape))
    images[1], images[2] = 0.0, images[2] * 1e6
    bound = norm_of(exact(model, images[:1], 1e30)) / 2
    for patient in (None, torch.tensor([0, 1, 1, 2])):
        owner = None if patient is None else patient.to(DEVICE)
        want = exact(model, images, bound, patient=patient)
        got = clipped(copy.deepcopy(model).to(DEVICE), images.to(DEVICE), bound, norms=norms, patient=owner)
        assert distance(got, want) <= ROUNDING * bound * len(images)


@pytest.mark.skipif(not has_bfloat16(DEVICE), reason="devices without bfloat16 have no TF32 either")
def test_with_tf32_the_clipped_sum_would_be_found_out() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    images, labels = random_images(2, 24, study=STUDY)
    error = distance(clipped_on_device(images, labels, 0.3), exact_sum(images, labels, 0.3, study=STUDY))
    assert error > ROUNDING * 0.3 * len(images)


@pytest.mark.parametrize("mixed_precision", [False, True])
@pytest.mark.parametrize("scale", [0.01, 1.0, 1e4])
def test_no_patient_moves_the_sum_by_more_than_the_bound(scale: float, mixed_precision: bool) -> None:
    """Clipped sums are float32 whatever the passes are in, and the margin for their rounding is enough."""
    bound = 1e-3
    for seed in range(4):
        images, labels = random_images(seed, 1, scale, study=STUDY)
        summed = clipped_on_device(images, labels, bound, mixed_precision=mixed_precision)
        assert all(part.dtype == torch.float32 and part.device.type == DEVICE.type for part in summed)
        assert 0.999 * bound < norm_of(summed) <= bound


@pytest.mark.parametrize("mixed_precision", [False, True])
def test_a_patient_with_a_nan_image_contributes_zero_and_the_others_are_as_without(
    mixed_precision: bool,
) -> None:
    images, labels = random_images(3, 5, study=STUDY)
    broken = images.clone()
    broken[2, 0, 3, 3] = float("nan")
    kept = [0, 1, 3, 4]
    got = clipped_on_device(broken, labels, 1.0, mixed_precision=mixed_precision)
    assert all(bool(part.isfinite().all()) for part in got)
    rounding = ROUNDING_BFLOAT16 if mixed_precision else ROUNDING
    assert distance(got, exact_sum(images[kept], labels[kept], 1.0, study=STUDY)) <= rounding * len(kept)
    alone = clipped_on_device(broken[2:3], labels[2:3], 1.0, mixed_precision=mixed_precision)
    assert norm_of(alone) == 0.0


# Mixed precision

needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(DEVICE), reason="the device has no bfloat16")


@needs_bfloat16
def test_mixed_precision_is_near_exact_autograd_and_really_in_bfloat16() -> None:
    images, labels = random_images(4, 16, study=STUDY)
    exact = exact_sum(images, labels, 0.3, study=STUDY)
    error = distance(clipped_on_device(images, labels, 0.3, mixed_precision=True), exact)
    assert 1e-4 * 0.3 * len(images) < error <= ROUNDING_BFLOAT16 * 0.3 * len(images)


@needs_bfloat16
def test_small_gradients_survive_bfloat16_without_a_gradient_scaler() -> None:
    """Bfloat16 has the exponents of float32; in float16 gradients of this size would be zero."""
    images, labels = random_images(5, 4, study=STUDY)

    def gradients(factor: float) -> list[Tensor]:
        summed = ClippedGradientSum(build_model(STUDY).to(DEVICE), max_grad_norm=1e6)
        summed.add(
            images.to(DEVICE),
            labels.to(DEVICE),
            loss=lambda logits, truth: factor * TASK.loss(logits, truth),
            mixed_precision=True,
        )
        return summed.take()

    small, usual = gradients(2.0**-60), gradients(1.0)
    assert norm_of(usual) > 1e-3
    assert distance([2.0**60 * part for part in small], usual) <= 0.01 * norm_of(usual)


# Noise


def test_noise_on_the_device_is_the_processors_but_for_the_last_bits_and_stays_float64() -> None:
    parts = [torch.ones(300, 100, dtype=torch.float64), torch.ones(20_000, dtype=torch.float64)]
    sent = [part.to(DEVICE) for part in parts]
    here = noised_sum(parts, standard_deviation=2.0, generator=generator(1))
    there = noised_sum(sent, standard_deviation=2.0, generator=generator(1))
    assert all(part.device.type == DEVICE.type and part.dtype == torch.float64 for part in there)
    assert all(
        torch.allclose(one, other.cpu(), rtol=1e-14, atol=1e-14)
        for one, other in zip(here, there, strict=True)
    )


def test_a_steps_noise_has_the_claimed_variance_and_no_seed_of_torch_fixes_it() -> None:
    """Without patients what is taken is the noise alone."""
    model, taken = build_model(STUDY).to(DEVICE), []
    gradient = PrivateGradientSum(
        model,
        TASK,
        max_grad_norm=0.5,
        noise_multiplier=3.0,
        generator=CryptographicGenerator.from_operating_system(),
        mixed_precision=False,
    )
    for _ in range(2):
        torch.manual_seed(1)
        torch.cuda.manual_seed_all(1)
        taken.append(torch.cat([part.flatten() for part in gradient.take()]))
    gradient.close()
    assert not torch.equal(*taken)
    ratio = float(torch.cat(taken).square().mean()) / 1.5**2
    assert abs(ratio - 1) < 5 * math.sqrt(2 / (2 * taken[0].numel()))


# Training


class Recording:
    """A gradient sum that keeps the batches it was given, and gives zero."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.batches: list[tuple[Tensor, Tensor]] = []

    def add(self, images: Tensor, labels: Tensor, patient: Tensor | None = None) -> None:
        self.batches.append((images, labels))

    def take(self) -> list[Tensor]:
        return [torch.zeros_like(weight) for weight in self._model.parameters()]

    def close(self) -> None:
        pass


def trained(
    model: nn.Module,
    gradient: GradientSum,
    machine: Machine,
    *,
    patients: PatientSet,
    key: int,
    **changes: object,
) -> None:
    """Train as the study says, with *changes*."""
    training = STUDY.training.model_copy(update=changes)
    train(
        model,
        patients,
        gradient,
        training=training,
        learning_rate=training.learning_rate,
        num_patients=len(patients),
        machine=machine,
        generator=generator(key),
    )


def test_the_batches_that_arrive_on_the_device_are_those_of_the_processor() -> None:
    """Pinned and copied while the host goes on: no batch is overwritten by a later one; flips are the same."""
    recorded, patients = [], patients_of(60)
    assert STUDY.training.augmentation.flip
    for device in (PROCESSOR, DEVICE):
        recording = Recording(build_model(STUDY).to(device))
        trained(recording._model, recording, machine_of(device), patients=patients, local_steps=20, key=3)
        recorded.append(recording.batches)
    here, there = recorded
    assert len(here) == len(there) > 60
    assert all(images.device.type == labels.device.type == DEVICE.type for images, labels in there)
    for (images, labels), (arrived, arrived_labels) in zip(here, there, strict=True):
        assert torch.equal(images, arrived.cpu())
        assert torch.equal(labels, arrived_labels.cpu())


def private_sum(model: nn.Module, machine: Machine, *, key: int = 5) -> PrivateGradientSum:
    return PrivateGradientSum(
        model,
        TASK,
        max_grad_norm=1.0,
        noise_multiplier=1.0,
        generator=generator(key),
        mixed_precision=machine.mixed_precision,
    )


def plain_sum(model: nn.Module, machine: Machine) -> PlainGradientSum:
    return PlainGradientSum(model, TASK, mixed_precision=machine.mixed_precision)


@pytest.mark.parametrize("make_sum", [private_sum, plain_sum])
def test_some_steps_on_the_device_end_where_those_of_the_processor_do(make_sum) -> None:  # type: ignore[no-untyped-def]
    weights = []
    for device in (PROCESSOR, DEVICE):
        model, machine = build_model(STUDY).to(device), machine_of(device)
        gradient = make_sum(model, machine)
        trained(model, gradient, machine, patients=patients_of(40), local_steps=5, key=6)
        gradient.close()
        weights.append(flatten(model))
    moved = np.linalg.norm(weights[0] - flatten(build_model(STUDY)))
    assert moved > 0.01
    assert np.linalg.norm(weights[0] - weights[1]) <= 1e-5 * moved


def open_run(study: Study, machine: Machine) -> OpenRun:
    return OpenRun(
        run_id="run",
        study=study,
        task=TASK,
        model=build_model(study).to(machine.device),
        patients={role: patients_of(30, seed=number) for number, role in enumerate(Role)},
        num_patients=30,
        cost=TrainingCost(sample_rate=study.training.sample_rate, noise_multiplier=1.0, num_steps=6),
        evaluation_deviation=2.0,
        machine=machine,
    )


def test_a_rounds_vector_on_the_device_is_the_processors_within_rounding_and_repeats_itself() -> None:
    """Evaluation, training and encoding; the same keys, so that only rounding differs."""
    rounds = []
    for device in (PROCESSOR, DEVICE, DEVICE):
        run = open_run(STUDY, machine_of(device))
        weights = flatten(run.model)
        layout = training_layout(STUDY, 2, num_weights=len(weights))
        local = training_vector(run, 2, weights, generator=generator(8))
        rounds.append((local.vector, *layout.decode_sum(local.vector)))
    (_, update, weight, counts), (vector, there, *rest), (again, *_) = rounds
    assert np.array_equal(vector, again)
    assert np.linalg.norm(there - update) <= 1e-5 * np.linalg.norm(update)
    assert rest[0] == weight
    assert np.abs(rest[1] - counts).max() <= 1


# Memory


@needs_cuda
@pytest.mark.parametrize("mixed_precision", [False, True])
def test_peak_memory_does_not_grow_from_step_to_step_and_nothing_is_left(mixed_precision: bool) -> None:
    patients, peaks, kept = patients_of(64), [], []
    machine = machine_of(DEVICE, physical_batch=16, mixed_precision=mixed_precision)
    model = build_model(STUDY).to(DEVICE)
    gradient = private_sum(model, machine)
    begun = torch.cuda.memory_allocated()
    for _ in range(6):
        torch.cuda.reset_peak_memory_stats()
        whole = {"local_steps": 1, "sample_rate": 1.0, "momentum": 0.0}
        trained(model, gradient, machine, patients=patients, key=9, **whole)
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated())
        kept.append(torch.cuda.memory_allocated())
    assert max(peaks[1:]) <= peaks[0]
    assert kept[-1] == kept[0]
    assert kept[-1] - begun < 2**20
