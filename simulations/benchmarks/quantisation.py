"""What eight bits do to a model's file, its speed and its metrics, beside the float32 file that it is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from client.evaluation import patient_scores
from client.patients import PatientSet
from client.prediction.onnx_export import quantisation
from client.prediction.onnx_export.check import Images, OnnxModel, check, edge_inputs
from client.prediction.onnx_export.graph import described, onnx_bytes
from client.roles import Role
from client.training import Machine
from shared_models.model_file import TrainedModel, read_model
from simulations.benchmarks.demo import NAME, demo
from simulations.benchmarks.rounds import SILENT
from simulations.benchmarks.table import Benchmark, Row, rows_of
from simulations.benchmarks.timing import converted, interleaved
from simulations.hospital_data import load_hospitals, pooled
from simulations.runner import Options, run_scenario

NUM_CALIBRATION, BATCH = 128, 16
FLOAT = "float32"


class _Asked(nn.Module):
    """An ONNX file in the place of a network: gives its logits."""

    def __init__(self, file: OnnxModel) -> None:
        super().__init__()
        self._file = file

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        return torch.from_numpy(self._file(images.numpy())[0])


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """A model of a run of the scenario, its validation patients, and training images to calibrate with."""

    trained: TrainedModel
    validation: PatientSet
    machine: Machine
    images: list[Images]


def measure(quick: bool) -> tuple[Row, ...]:
    """Return sizes, times and metrics of the files that one trained model gives."""
    with TemporaryDirectory() as name:
        run = _run(Path(name) / "run", quick=quick)
        trained = run.trained
        files = _files(trained, run.images)
        case = f"{NAME}: {trained.study.model.architecture}, {trained.image.rows}×{trained.image.columns}"
        sizes = {name: [len(data)] for name, data in files.items()}
        return (
            *rows_of(f"{case}: size", "bytes", sizes, baseline=FLOAT),
            *_times(f"{case}: time of an image", trained, files, run.images, quick=quick),
            *_judged(case, run, files),
        )


def _run(out: Path, *, quick: bool) -> _Run:
    scenario = demo(quick=quick)
    run_scenario(scenario, Options(engine="local", compare=False, out=out), SILENT)
    hospitals = load_hospitals(tuple(sorted((out / "work" / "sites").rglob("site.toml"))))
    training = pooled([sets[Role.TRAIN] for sets in hospitals.patients.values()])
    chosen = np.linspace(0, len(training.images) - 1, NUM_CALIBRATION).astype(int)
    return _Run(
        read_model(out / "model.safetensors"),
        pooled([sets[Role.VALIDATION] for sets in hospitals.patients.values()]),
        hospitals.machine,
        [training.images[int(number)].numpy() for number in chosen],
    )


def _files(trained: TrainedModel, images: list[Images]) -> dict[str, bytes]:
    data = onnx_bytes(trained)
    check(trained, data, edge_inputs(trained.image.shape))
    return {
        FLOAT: data,
        "int8 dynamic": described(quantisation.dynamic(data), trained, precision="int8-dynamic"),
        "int8 static": described(quantisation.static(data, images), trained, precision="int8-static"),
    }


def _times(
    case: str, trained: TrainedModel, files: Mapping[str, bytes], images: list[Images], *, quick: bool
) -> tuple[Row, ...]:
    """On one thread, in batches."""
    batch = np.stack(images[:BATCH])
    asked = {name: OnnxModel(data, threads=1) for name, data in files.items()}
    samples = interleaved(
        {
            **{name: partial(file, batch) for name, file in asked.items()},
            "torch": partial(_forward, trained, batch),
        },
        repetitions=2 if quick else 21,
        calls=1 if quick else 10,
    )
    return rows_of(case, "ms", converted(samples, lambda seconds: 1e3 * seconds / BATCH), baseline=FLOAT)


def _forward(trained: TrainedModel, batch: Images) -> Tensor:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            logits: Tensor = trained.model(torch.from_numpy(batch))
            return logits
    finally:
        torch.set_num_threads(threads)


def _judged(case: str, run: _Run, files: Mapping[str, bytes]) -> tuple[Row, ...]:
    """Metrics on validation patients, with exact sums."""
    task, validation = run.trained.task.finely_binned(), run.validation
    scores, metrics = {}, {}
    for name, data in files.items():
        found, labels = patient_scores(_Asked(OnnxModel(data)), validation, task=task, machine=run.machine)
        scores[name], metrics[name] = found, task.metrics(task.statistics(found, labels))
    rows: list[Row] = []
    for metric, words in (("auroc", "AUROC"), ("loss", "loss"), ("accuracy", "accuracy")):
        values = {name: [float(of[metric] or 0.0)] for name, of in metrics.items()}
        rows += rows_of(f"{case}: {words}, {len(validation)} validation patients", "", values, baseline=FLOAT)
    same = {
        name: [float(np.mean((found >= 0.5) == (scores[FLOAT] >= 0.5)))] for name, found in scores.items()
    }
    return (*rows, *rows_of(f"{case}: patients on the same side of ½", "share", same, baseline=FLOAT))


BENCHMARK = Benchmark(
    name="quantisation",
    title="a model of the demo as ONNX, in float32 and in eight bits",
    method=(
        "ONNX Runtime on one thread, batches of 16 images, variants in turn; metrics on the validation patients of all "
        "hospitals; calibration on 128 training images"
    ),
    measure=measure,
)
