"""``dp-step``: one training step of the small CNN, without privacy, with ours, and with Opacus' own optimizer."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer

from client.patients import PatientSet
from client.training import GradientSum, Machine, PlainGradientSum, PrivateGradientSum, train
from privacy.randomness import CryptographicGenerator
from shared_models.architectures import SmallCNN
from shared_models.study import Training
from shared_models.tasks import BinaryClassification
from simulations.benchmarks.memory import can_measure_resident, resident_peak_mib
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


def measure(quick: bool) -> tuple[Row, ...]:
    """Milliseconds of a step, and memory where the system can tell."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(quick)
    finally:
        torch.set_num_threads(before)


def _measure(quick: bool) -> tuple[Row, ...]:
    rows: list[Row] = []
    for case in CASES[:1] if quick else CASES:
        steps = {name: build(case, BATCH) for name, build in VARIANTS.items()}
        seconds = interleaved(steps, repetitions=3 if quick else 11, calls=1 if quick else 2)
        milliseconds = converted(seconds, lambda value: 1000.0 * value)
        rows += rows_of(f"{case.name}: time of a step", "ms", milliseconds, baseline=BASELINE)
        if can_measure_resident() and not quick:
            rows += rows_of(f"{case.name}: peak memory", "MiB", _memory(case, 5), baseline=BASELINE)
    return tuple(rows)


def plain_step(case: Case, batch: int) -> Step:
    """The product's step with mode none."""
    model = _model(case)
    return _product_step(model, PlainGradientSum(model, TASK, mixed_precision=False), case, batch)


def private_step(case: Case, batch: int) -> Step:
    """The product's step of DP-SGD."""
    model = _model(case)
    gradient = PrivateGradientSum(
        model,
        TASK,
        max_grad_norm=1.0,
        noise_multiplier=1.0,
        generator=CryptographicGenerator.from_operating_system(),
        mixed_precision=False,
    )
    return _product_step(model, gradient, case, batch)


def opacus_step(case: Case, batch: int) -> Step:
    """The step as Opacus' own examples take it, with its default noise from torch's generator."""
    model = GradSampleModule(_model(case))
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=STEP.learning_rate),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=batch,
    )
    patients = _patients(case, batch)

    def step() -> None:
        loss = TASK.loss(model(patients.images), patients.labels.float()).mean()
        with warnings.catch_warnings():
            # The images need no gradient, which torch remarks for the first layer's full backward hook.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


VARIANTS: dict[str, Callable[[Case, int], Step]] = {
    BASELINE: plain_step,
    "ours": private_step,
    "Opacus DPOptimizer": opacus_step,
}


def _product_step(model: SmallCNN, gradient: GradientSum, case: Case, batch: int) -> Step:
    machine = Machine(device=torch.device("cpu"), physical_batch=batch, mixed_precision=False)
    return partial(
        train,
        model,
        _patients(case, batch),
        gradient,
        training=STEP,
        num_patients=batch,
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
    VARIANTS[name](case, 2)()
    return VARIANTS[name](case, BATCH)


BENCHMARK = Benchmark(
    name="dp-step",
    title="one training step of the small CNN (width 16), batch of 64 patients",
    method="client.training.train for one step (sampling included), against Opacus' GradSampleModule and DPOptimizer "
    "with a fixed batch; one torch thread, CPU. Peak memory: rise of resident memory in a new process",
    measure=measure,
)
