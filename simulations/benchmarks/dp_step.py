"""``dp-step``: one training step of several networks, without privacy, with ours, and with what Opacus offers.

On the processor, and where torch sees a CUDA device on that one too.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleExpandedWeights, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import Tensor, nn

from client.device import has_bfloat16, prepare_torch
from client.patients import PatientSet
from client.site_file import Compute
from client.training import GradientSum, Machine, PlainGradientSum, PrivateGradientSum, train
from privacy.clipping import ClippedGradientSum
from privacy.randomness import CryptographicGenerator
from shared_models.networks.small_cnn import SmallCNN
from shared_models.study import Training
from shared_models.tasks.binary import BinaryClassification
from simulations.benchmarks.memory import can_measure_resident, cuda_peak_mib, resident_peak_mib
from simulations.benchmarks.networks import densenet121, resnet18, unet, volume_cnn
from simulations.benchmarks.table import Benchmark, Row, rows_of
from simulations.benchmarks.timing import Samples, converted, interleaved

Step = Callable[[], None]

BASELINE = "without privacy"
TASK = BinaryClassification(num_bins=20, positive_weight=1.0)
STEP = Training(num_rounds=1, local_steps=1, sample_rate=1.0, learning_rate=0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Which network gets which images, and how many patients a step has.

    Attributes:
        name: in the table.
        network: builds the model.
        shape: of an image.
        batch: patients.
        calls: steps in a row for one sample of time.
    """

    name: str
    network: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int = 64
    calls: int = 1


def small_cnn(channels: int) -> SmallCNN:
    """Return the registered CNN at width 16."""
    return SmallCNN(channels=channels, width=16, num_outputs=1)


CASES = (
    Case(name="small CNN, 28×28 grey", network=partial(small_cnn, 1), shape=(1, 28, 28), calls=2),
    Case(name="small CNN, 64×64 colour", network=partial(small_cnn, 3), shape=(3, 64, 64)),
    Case(name="ResNet-18, 28×28 grey", network=resnet18(1), shape=(1, 28, 28), batch=32),
    Case(name="ResNet-18, 64×64 colour", network=resnet18(3), shape=(3, 64, 64), batch=32),
    Case(
        name="DenseNet-121, 64×64 colour",
        network=densenet121(3),
        shape=(3, 64, 64),
        batch=16,
    ),
    Case(name="U-Net, 64×64 grey", network=partial(unet, 1), shape=(1, 64, 64), batch=16),
    Case(name="3-D CNN, 24×24×24", network=partial(volume_cnn, 1), shape=(1, 24, 24, 24), batch=16),
)
CUDA_CASES = (
    *CASES,
    Case(name="small CNN, 224×224 grey", network=partial(small_cnn, 1), shape=(1, 224, 224)),
)
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
            steps = _that_work({name: build(case, case.batch, PROCESSOR) for name, build in VARIANTS.items()})
            seconds = interleaved(steps, repetitions=3 if quick else 11, calls=1 if quick else case.calls)
            rows += _time_rows(case.name, seconds)
            if can_measure_resident() and not quick:
                rows += _memory_rows(case.name, _memory(case, tuple(steps), 3 if case.calls > 1 else 1))
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
        built = {variant: build(case, case.batch, device) for variant, build in cuda_variants(device).items()}
        steps = _that_work(built)
        waited = {variant: partial(_and_wait, step, device) for variant, step in steps.items()}
        rows += _time_rows(name, interleaved(waited, repetitions=3 if quick else 11, calls=1 if quick else 5))
        peaks: Samples = {variant: (cuda_peak_mib(step, device),) for variant, step in steps.items()}
        rows += _memory_rows(name, peaks)
    return tuple(rows)


def _that_work(steps: dict[str, Step]) -> dict[str, Step]:
    """Take each step once, and leave out what of Opacus breaks at the network (ExpandedWeights at a DenseNet)."""
    works = {}
    for name, step in steps.items():
        try:
            step()
        except RuntimeError:
            if not name.startswith("Opacus"):
                raise
        else:
            works[name] = step
    return works


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
    model = case.network().to(device)
    machine = Machine(device=device, physical_batch=batch, mixed_precision=mixed_precision)
    gradient = PlainGradientSum(model, TASK, mixed_precision=mixed_precision)
    return _product_step(model, gradient, case, machine)


def private_step(case: Case, batch: int, device: torch.device, *, mixed_precision: bool = False) -> Step:
    """The product's step of DP-SGD."""
    model = case.network().to(device)
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
    model = GradSampleModule(case.network().to(device), force_functorch=functorch)
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


def clipped_step(case: Case, batch: int, device: torch.device) -> Step:
    """The product's step of DP-SGD without its noise, to tell the two apart."""
    model = case.network().to(device)
    machine = Machine(device=device, physical_batch=batch, mixed_precision=False)
    return _product_step(model, _Clipped(model), case, machine)


class _Clipped:
    """The clipped sum as it is."""

    def __init__(self, model: nn.Module) -> None:
        self._clipped = ClippedGradientSum(model, max_grad_norm=1.0)

    def add(self, images: Tensor, labels: Tensor, patient: Tensor | None) -> None:
        self._clipped.add(images, labels, loss=TASK.loss)

    def take(self) -> list[Tensor]:
        return self._clipped.take()

    def close(self) -> None:
        self._clipped.close()


def opacus_expanded_step(case: Case, batch: int, device: torch.device) -> Step:
    """The step of Opacus' mode ew: torch's ExpandedWeights give the per-patient gradients."""
    model = GradSampleModuleExpandedWeights(case.network().to(device))
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=STEP.learning_rate),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=batch,
    )
    patients = _patients(case, batch)

    def step() -> None:
        images, labels = _moved(patients, device)
        TASK.loss(model(images), labels).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def opacus_ghost_step(case: Case, batch: int, device: torch.device) -> Step:
    """The step of Opacus' mode ghost: norms in one backward pass, the clipped sum in a second one.

    Opacus has a formula for the norm of linear layers only; it takes that of a convolution from the per-patient
    gradients of that one layer, which it drops again.
    """
    model = GradSampleModuleFastGradientClipping(
        case.network().to(device), max_grad_norm=1.0, use_ghost_clipping=True
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
    return patients.images[:].to(device), patients.labels.float().to(device)


def _backward(loss: Tensor | DPTensorFastGradientClipping) -> None:
    with warnings.catch_warnings():
        # The images need no gradient, which torch remarks for the first layer's full backward hook.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        loss.backward()


VARIANTS: dict[str, Callable[[Case, int, torch.device], Step]] = {
    BASELINE: plain_step,
    "ours": private_step,
    "ours, before noise": clipped_step,
    "Opacus, hooks": opacus_step,
    "Opacus, ExpandedWeights": opacus_expanded_step,
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


def _product_step(model: nn.Module, gradient: GradientSum, case: Case, machine: Machine) -> Step:
    return partial(
        train,
        model,
        _patients(case, machine.physical_batch),
        gradient,
        training=STEP,
        learning_rate=STEP.learning_rate,
        num_patients=machine.physical_batch,
        machine=machine,
        generator=CryptographicGenerator.from_operating_system(),
    )


def _patients(case: Case, batch: int) -> PatientSet:
    """One image a patient; with sample rate 1 each step takes all of them."""
    return PatientSet(
        pseudonyms=tuple(f"{number:04d}" for number in range(batch)),
        images=torch.rand(batch, *case.shape),
        labels=torch.arange(batch) % 2,
        first_image=np.arange(batch + 1),
    )


def _memory(case: Case, variants: tuple[str, ...], repetitions: int) -> Samples:
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repetitions):
        for name, values in samples.items():
            values.append(resident_peak_mib(partial(_prepared, name, case), module=__name__))
    return {name: tuple(values) for name, values in samples.items()}


def _prepared(name: str, case: Case) -> Step:
    """A step in a process that has taken one of two patients before: kernels are loaded, memory is not warm."""
    torch.set_num_threads(1)
    VARIANTS[name](case, 2, PROCESSOR)()
    return VARIANTS[name](case, case.batch, PROCESSOR)


BENCHMARK = Benchmark(
    name="dp-step",
    title="one training step; 64 patients for the small CNN, 32 for ResNet-18, 16 for the others",
    method="client.training.train for one step (sampling included), against Opacus' GradSampleModule and DPOptimizer "
    "with a fixed batch; one torch thread, CPU, and where there is one a CUDA device. Peak memory: rise of resident "
    "memory in a new process, and of what torch has allocated on the CUDA device",
    measure=measure,
)
