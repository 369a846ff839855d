"""``predict``: from DICOM files to tables of predictions, beside the model alone on tensors that are there already."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from client.device import choose_device, prepare_torch
from client.prediction.inputs import inputs_of
from client.prediction.predictor import MOST_AT_A_TIME, Predictor
from client.prediction.reading import Reading
from client.prediction.tables import Tables
from client.site_file import Compute
from server.checkpoint import Progress
from server.model_file import write_model
from server.result import build_result
from shared_models.architectures import outline
from shared_models.manifest import flatten
from shared_models.model_file import TrainedModel, read_model
from shared_models.study import Model, Study
from simulations.benchmarks.ingest import clock_and_processor, one_hospital_of_all
from simulations.benchmarks.memory import can_measure_resident, resident_peaks_mib
from simulations.benchmarks.table import Benchmark, Row, rows_of
from simulations.preparation.sources import PhantomSource
from simulations.scenario import read_scenario

BARE = "the model alone, prepared tensors"
NUM_SCANNERS = 6
NETWORKS = {"resnet-18": (224, 64), "small-cnn": (32, 8)}
"""Rows and columns of images, and width."""
MEMORY_SIDE = 128
"""Of images where memory is looked at: 10,000 of them would be 625 MiB."""

Planes = Sequence[npt.NDArray[np.float32]]


def measure(quick: bool) -> tuple[Row, ...]:
    """Images per second end to end and of the bare model, by network; peak memory by stretch of images."""
    size, num_files, repetitions = (64, 40, 1) if quick else (512, 1000, 2)
    few, many = (40, 80) if quick else (1000, 10_000)
    names = ("small-cnn",) if quick else tuple(NETWORKS)
    rows: tuple[Row, ...] = ()
    with tempfile.TemporaryDirectory(prefix="collegium-bench-") as name:
        folder = Path(name)
        source = PhantomSource(num_hospitals=NUM_SCANNERS, patients_per_hospital=(4,), image_size=size)
        images = one_hospital_of_all(source, folder / "site", num_files).images.folder
        for network in names:
            rows += _rates(network, images, folder, size=size, repetitions=repetitions)
        if can_measure_resident():
            small = source.model_copy(update={"image_size": 64})
            rows += _memory(
                one_hospital_of_all(small, folder / "small", few).images.folder, folder, few, many
            )
    return rows


def _rates(network: str, images: Path, folder: Path, *, size: int, repetitions: int) -> tuple[Row, ...]:
    model = _model(network, folder / f"{network}.safetensors")
    num_files = sum(1 for _ in images.rglob("*.dcm"))
    planes = [
        one.prepared for one in _predictor(model).readings(inputs_of([images])) if isinstance(one, Reading)
    ]
    if len(planes) != num_files:
        raise RuntimeError(f"{len(planes)} of {num_files} files are read; the comparison would not be fair")
    readers = len(os.sched_getaffinity(0))
    variants: dict[str, Callable[[], object]] = {
        BARE: partial(_bare, model, planes),
        f"predict, {readers} readers": partial(_predict, model, images, folder / "out"),
    }
    clock, processor = clock_and_processor(variants, repetitions)
    side = NETWORKS[network][0]
    case = f"{network} of {side}×{side}, {num_files} files of {size}×{size}"
    return tuple(
        row
        for words, seconds in ((case, clock), (f"{network}, by processor time", processor))
        for row in rows_of(
            words,
            "images/s",
            {name: [num_files / value for value in values] for name, values in seconds.items()},
            baseline=BARE,
        )
    )


def _memory(images: Path, folder: Path, few: int, many: int) -> tuple[Row, ...]:
    path, linked = folder / "memory.safetensors", folder / "links"
    _model("small-cnn", path, side=MEMORY_SIDE)
    linked.mkdir()
    sources = sorted(images.rglob("*.dcm"))
    for place in range(many):
        (linked / f"{place:06d}.dcm").hardlink_to(sources[place % len(sources)])
    peaks = resident_peaks_mib(partial(_prepared, path, linked, folder / "out-memory", few), module=__name__)
    first = f"the first {few:,} images"
    samples = {first: peaks[:1], f"each further {few:,} of {many:,}": peaks[1:]}
    case = f"peak memory beside the decoding processes, small-cnn of {MEMORY_SIDE}×{MEMORY_SIDE}"
    return rows_of(case, "MiB", samples, baseline=first)


def _prepared(path: Path, images: Path, out: Path, stretch: int) -> Iterator[int]:
    """In a process of its own: a model that was asked once already."""
    model = read_model(path)
    list(_predictor(model).readings(inputs_of([images])[:MOST_AT_A_TIME]))
    return (number for number in _predicted(model, images, out) if number % stretch == 0)


def _predictor(model: TrainedModel) -> Predictor:
    compute = Compute()
    prepare_torch(compute)
    return Predictor([model], device=choose_device(compute))


def _predict(model: TrainedModel, images: Path, out: Path) -> None:
    for _ in _predicted(model, images, out):
        pass


def _predicted(model: TrainedModel, images: Path, out: Path) -> Iterator[int]:
    """As the command does it, tables included; yields the number of files so far."""
    predictor = _predictor(model)
    with Tables(out, predictor.ensemble, identifiers=False, overrides=(), now=datetime.now(UTC)) as tables:
        for number, found in enumerate(predictor.readings(inputs_of([images])), start=1):
            if isinstance(found, Reading):
                tables.write(found)
            yield number
        tables.finish()


def _bare(model: TrainedModel, planes: Planes) -> None:
    """The same batches, from tensors that are there."""
    device = choose_device(Compute())
    network = model.model.to(device)
    with torch.no_grad():
        for first in range(0, len(planes), MOST_AT_A_TIME):
            batch = torch.from_numpy(np.stack(planes[first : first + MOST_AT_A_TIME])).to(device)
            model.task.scores(network(batch).double()).cpu().numpy()


def _model(network: str, path: Path, *, side: int | None = None) -> TrainedModel:
    """A model file of the demo's study with another network and size of images; its weights are the seed's."""
    study = _study(network, side or NETWORKS[network][0])
    progress = Progress(run_id="benchmark", study_hash=study.hash)
    result = build_result(study, progress, engine="local", refusals={})
    write_model(path, study, flatten(outline(study)), result)
    return read_model(path)


def _study(network: str, side: int) -> Study:
    study = read_scenario("demo").study
    return study.model_copy(
        update={
            "image": study.image.model_copy(update={"rows": side, "columns": side}),
            "model": Model(architecture=network, width=NETWORKS[network][1]),
        }
    )


BENCHMARK = Benchmark(
    name="predict",
    title="from DICOM files to tables of predictions",
    method="client.prediction: files are read, checked, decoded and prepared in as many processes as there are cores, "
    f"asked in batches of {MOST_AT_A_TIME}, and written to predictions.csv and predictions.json; beside it the model "
    "alone in the same batches, from tensors that are there; both in turn, in one run; files of six scanners in five "
    "transfer syntaxes, in the page cache; processor time, of all processes, says what reading costs where a machine "
    "has other work too; higher is better, of memory lower",
    measure=measure,
)
