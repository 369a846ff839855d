"""Model files as a run writes them, of studies that nobody trained: weights from a seed, counts of a test made up."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from client.prediction.inputs import inputs_of
from client.prediction.predictor import Predictor
from client.prediction.reading import Reading, Unread
from server.checkpoint import Progress, RoundRecord
from server.model_file import write_model
from server.result import build_result
from shared_models.architectures import outline
from shared_models.manifest import flatten
from shared_models.model_file import TrainedModel, read_model
from shared_models.study import Study
from shared_models.tasks.registry import task_of
from simulations.benchmarks.ingest import ReaderInThisProcess

CPU = torch.device("cpu")


def round_record(number: int, validation: tuple[int, ...] | None = None) -> RoundRecord:
    """A round in which all went well."""
    return RoundRecord(
        round=number,
        asked=("north", "south"),
        survivors=("north", "south"),
        burned=None,
        refusals={},
        seconds={},
        validation=validation,
    )


def counts_of(study: Study, *, seed: int = 0, most: int = 30) -> tuple[int, ...]:
    """Statistics as sums of a test give them, at random."""
    drawn = np.random.default_rng(seed).integers(0, most, task_of(study).num_statistics)
    return tuple(int(count) for count in drawn)


def model_file(
    path: Path, study: Study, *, seed: int = 0, test: Sequence[int] | None = None, tested: bool = True
) -> Path:
    """Write the study's model with weights drawn by *seed*, and the card of a run with these counts of its test."""
    network = outline(study)
    drawn = torch.Generator().manual_seed(seed)
    weights = flatten(network)
    weights = weights + 0.2 * torch.randn(weights.shape, generator=drawn).numpy()
    counts = tuple(test) if test is not None else counts_of(study)
    progress = Progress(
        run_id=f"{study.name}-1",
        study_hash=study.hash,
        rounds=(round_record(1, counts_of(study, seed=1)),),
        test=counts if tested else None,
        tested=("north", "south") if tested else (),
    )
    result = build_result(study, progress, engine="local", refusals={})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_model(path, study, weights.astype(np.float32), result)
    return path


def trained(folder: Path, study: Study, **options: object) -> TrainedModel:
    """The same, read."""
    return read_model(model_file(folder / "model.safetensors", study, **options))  # type: ignore[arg-type]


def read(
    models: TrainedModel | Sequence[TrainedModel], *given: Path, **options: object
) -> list[Reading | Unread]:
    """What one or several models say of files and folders, read in this process."""
    models = [models] if isinstance(models, TrainedModel) else list(models)
    predictor = Predictor(models, device=CPU, num_readers=1, make_reader=ReaderInThisProcess, **options)  # type: ignore[arg-type]
    return list(predictor.readings(inputs_of(given)))


def one(models: TrainedModel | Sequence[TrainedModel], *given: Path, **options: object) -> Reading:
    """The only reading."""
    (found,) = read(models, *given, **options)
    assert isinstance(found, Reading), found
    return found


def refused(models: TrainedModel | Sequence[TrainedModel], *given: Path, **options: object) -> Unread:
    """The only input, which was left out."""
    (found,) = read(models, *given, **options)
    assert isinstance(found, Unread), found
    return found
