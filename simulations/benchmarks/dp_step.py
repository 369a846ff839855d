"""``dp-step``: one training step of the small CNN, without privacy, with ours, and with Opacus' own optimizers.

On the processor, and where torch sees a CUDA device on that one too.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import Tensor

from client.device import has_bfloat16, prepare_torch
from client.patients import PatientSet
from client.site_file import Compute
from client.training import GradientSum, Machine, PlainGradientSum, PrivateGradientSum, train
from privacy.randomness import CryptographicGenerator
from shared_models.architectures import SmallCNN
from shared_models.study import Training
from shared_models.tasks import BinaryClassification
from simulations.benchmarks.memory import can_measure_resident, cuda_peak_mib, resident_peak_mib
from simulations.benchmarks.table import Benchmark, Row, rows_of
from simulations.benchmarks.timing import Samples, converted, interleaved

Step = Callable[[], None]

BASELINE = "without privacy"
BATCH = 64
TASK = BinaryClassification(num_bins=20, positive_weight=1.0)
STEP = Training(num_rounds=1, local_steps=1, sample_rate=1.0, learning_rate=0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Which images the CNN of width 16 gets."""

    name: str
    channels: int
    size: int


CASES = (
    Case(name="28×28 grey", channels=1, size=28),
    Case(name="64×64 colour", channels=3, size=64),
)
CUDA_CASES = (*CASES, Case(name="224×224 grey", channels=1, size=224))
PROCESSOR = torch.device("cpu")


def measure(quick: bool) -> tuple[Row, ...]:
    """Milliseconds of a step, and memory where the system can tell; on CUDA as well where there is a device."""
    rows = on_processor(quick)
    return rows + on_cuda(torch.device("cuda"), quick) if torch.cuda.is_available() else rows


def on_processor(quick: bool) -> tuple[Row, ...]:
    """The rows of the processor, with one torch thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows: list[Row] = []
        for case in CASES[:1] if quick else CASES:
            steps = {name: build(case, BATCH, PROCESSOR) for name, build in VARIANTS.items()}
            seconds = interleaved(steps, repetitions=3 if quick else 11, calls=1 if quick else 2)
            rows += _time_rows(case.name, seconds)
            if can_measure_resident() and not quick:
                rows += _memory_rows(case.name, _memory(case, 3))
        return tuple(rows)
    finally:
        torch.set_num_threads(before)


def on_cuda(device: torch.device, quick: bool) -> tuple[Row, ...]:
    """The rows of a CUDA device, with the settings of a site: deterministic algorithms where there are, no TF32.

    The host waits for the device after each step, so that a step's time is the device's too.
    """
    prepare_torch(Compute())
    rows: list[Row] = []
    for case in CUDA_CASES[:1] if quick else CUDA_CASES:
        name = f"{case.name}, CUDA"
        steps = {variant: build(case, BATCH, device) for variant, build in cuda_variants(device).items()}
        waited = {variant: partial(_and_wait, step, device) for variant, step in steps.items()}
        rows += _time_rows(name, interleaved(waited, repetitions=3 if quick else 11, calls=1 if quick else 5))
        peaks: Samples = {variant: (cuda_peak_mib(step, device),) for variant, step in steps.items()}
        rows += _memory_rows(name, peaks)
    return tuple(rows)


def _and_wait(step: Step, device: torch.device) -> None:
    step()
    torch.cuda.synchronize(device)


def _time_rows(case: str, seconds: Samples) -> tuple[Row, ...]:
    milliseconds = converted(seconds, lambda value: 1000.0 * value)
    return rows_of(f"{case}: time of a step", "ms", milliseconds, baseline=BASELINE)


def _memory_rows(case: str, mebibytes: Samples) -> tuple[Row, ...]:
    return rows_of(f"{case}: peak memory", "MiB", mebibytes, baseline=BASELINE)


def plain_step(case: Case, batch: int, device: torch.device, *, mixed_precision: bool = False) -> Step:
    """The product's step with mode none."""
    model = _model(case).to(device)
    machine = Machine(device=device, physical_batch=batch, mixed_precision=mixed_precision)
    gradient = PlainGradientSum(model, TASK, mixed_precision=mixed_precision)
    return _product_step(model, gradient, case, machine)


def private_step(case: Case, batch: int, device: torch.device, *, mixed_precision: bool = False) -> Step:
    """The product's step of DP-SGD."""
    model = _model(case).to(device)
    machine = Machine(device=device, physical_batch=batch, mixed_precision=mixed_precision)
    gradient = PrivateGradientSum(
        model,
        TASK,
        max_grad_norm=1.0,
        noise_multiplier=1.0,
        generator=CryptographicGenerator.from_operating_system(),
        mixed_precision=mixed_precision,
    )
    return _product_step(model, gradient, case, machine)


def opacus_step(case: Case, batch: int, device: torch.device, *, functorch: bool = False) -> Step:
    """The step as Opacus' own examples take it, with its default noise from torch's generator.

    *functorch*: per-patient gradients by torch.func instead of Opacus' formulas for each layer.
    """
    model = GradSampleModule(_model(case).to(device), force_functorch=functorch)
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=STEP.learning_rate),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=batch,
    )
    patients = _patients(case, batch)

    def step() -> None:
        images, labels = _moved(patients, device)
        _backward(TASK.loss(model(images), labels).mean())
        optimizer.step()
        optimizer.zero_grad()

    return step


def opacus_ghost_step(case: Case, batch: int, device: torch.device) -> Step:
    """The step of Opacus' mode ghost: norms in one backward pass, the clipped sum in a second one.

    Opacus has a formula for the norm of linear layers only; it takes that of a convolution from the per-patient
    gradients of that one layer, which it drops again.
    """
    model = GradSampleModuleFastGradientClipping(
        _model(case).to(device), max_grad_norm=1.0, use_ghost_clipping=True
    )
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(model.parameters(), lr=STEP.learning_rate),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=batch,
    )
    patients = _patients(case, batch)

    def step() -> None:
        images, labels = _moved(patients, device)
        _backward(DPTensorFastGradientClipping(model, optimizer, TASK.loss(model(images), labels)))
        optimizer.step()
        optimizer.zero_grad()

    return step


def _moved(patients: PatientSet, device: torch.device) -> tuple[Tensor, Tensor]:
    return patients.images.to(device), patients.labels.float().to(device)


def _backward(loss: Tensor | DPTensorFastGradientClipping) -> None:
    with warnings.catch_warnings():
        # The images need no gradient, which torch remarks for the first layer's full backward hook.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        loss.backward()


VARIANTS: dict[str, Callable[[Case, int, torch.device], Step]] = {
    BASELINE: plain_step,
    "ours": private_step,
    "Opacus DPOptimizer": opacus_step,
    "Opacus, functorch": partial(opacus_step, functorch=True),
    "Opacus, ghost": opacus_ghost_step,
}


def cuda_variants(device: torch.device) -> dict[str, Callable[[Case, int, torch.device], Step]]:
    """All variants, and in mixed precision those of the product where *device* has bfloat16."""
    if not has_bfloat16(device):
        return VARIANTS
    return {
        **VARIANTS,
        "without privacy, bfloat16": partial(plain_step, mixed_precision=True),
        "ours, bfloat16": partial(private_step, mixed_precision=True),
    }


def _product_step(model: SmallCNN, gradient: GradientSum, case: Case, machine: Machine) -> Step:
    return partial(
        train,
        model,
        _patients(case, machine.physical_batch),
        gradient,
        training=STEP,
        num_patients=machine.physical_batch,
        machine=machine,
        generator=CryptographicGenerator.from_operating_system(),
    )


def _model(case: Case) -> SmallCNN:
    return SmallCNN(channels=case.channels, width=16, num_outputs=1)


def _patients(case: Case, batch: int) -> PatientSet:
    """One image a patient; with sample rate 1 each step takes all of them."""
    return PatientSet(
        pseudonyms=tuple(f"{number:04d}" for number in range(batch)),
        images=torch.rand(batch, case.channels, case.size, case.size),
        labels=torch.arange(batch) % 2,
        first_image=np.arange(batch + 1),
    )


def _memory(case: Case, repetitions: int) -> Samples:
    samples: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(repetitions):
        for name, values in samples.items():
            values.append(resident_peak_mib(partial(_prepared, name, case), module=__name__))
    return {name: tuple(values) for name, values in samples.items()}


def _prepared(name: str, case: Case) -> Step:
    """A step in a process that has taken one of two patients before: kernels are loaded, memory is not warm."""
    torch.set_num_threads(1)
    VARIANTS[name](case, 2, PROCESSOR)()
    return VARIANTS[name](case, BATCH, PROCESSOR)


BENCHMARK = Benchmark(
    name="dp-step",
    title="one training step of the small CNN (width 16), batch of 64 patients",
    method="client.training.train for one step (sampling included), against Opacus' GradSampleModule and DPOptimizer "
    "with a fixed batch; one torch thread, CPU, and where there is one a CUDA device. Peak memory: rise of resident "
    "memory in a new process, and of what torch has allocated on the CUDA device",
    measure=measure,
)
