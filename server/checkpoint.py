"""The state of a run on disk: everything that the next round needs, replaced in one atomic step."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from server.aggregation import GlobalModel
from shared_models.configuration import Frozen


class CheckpointError(ValueError):
    """A checkpoint is damaged or belongs to another study."""


class RoundRecord(Frozen):
    """What the server knows of one round.

    Attributes:
        asked: sites that were asked to train; each of them has to count the round as spent.
        survivors: sites whose vector arrived; if the round is not burned, their sum is the round's.
        burned: why the round ended without a sum, and the global model stayed as it was; None where it did not.
        refusals: reason by site whose vector did not arrive.
        seconds: by phase.
        validation: summed statistics of the model that this round produced; None where not evaluated.
    """

    round: int
    asked: tuple[str, ...]
    survivors: tuple[str, ...]
    burned: str | None
    refusals: dict[str, str]
    seconds: dict[str, float]
    validation: tuple[int, ...] | None = None


class Progress(Frozen):
    """All of a run's state but the model.

    Attributes:
        test: summed statistics of the final test; None where it was not made.
        groups: of those groups of test patients that may be told of, by ``attribute/group``.
        tested: sites that are in them.
        test_burned: why the final test ended without a sum. It is not repeated.
        misbehaved: sites that sent something else than they had committed to; they are asked no more.
    """

    format: Literal[3] = 3
    run_id: str
    study_hash: str
    rounds: tuple[RoundRecord, ...] = ()
    test: tuple[int, ...] | None = None
    groups: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    tested: tuple[str, ...] = ()
    test_burned: str | None = None
    misbehaved: tuple[str, ...] = ()


def write_checkpoint(path: Path, progress: Progress, model: GlobalModel) -> None:
    """Replace the checkpoint at *path*, whole or not at all: written beside it, synced, renamed."""
    write_model_state(path, model, {"progress": progress.model_dump_json()})


def read_checkpoint(path: Path, *, study_hash: str) -> tuple[Progress, GlobalModel]:
    """Return what `write_checkpoint` wrote.

    Raises:
        CheckpointError: the file is missing, damaged or of another study.
    """
    model, metadata = read_model_state(path)
    try:
        progress = Progress.model_validate(json.loads(metadata["progress"]), strict=False)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: is not a usable checkpoint ({type(error).__name__})") from error
    if progress.study_hash != study_hash:
        raise CheckpointError(
            f"{path}: is of study {progress.study_hash[:12]}, asked for {study_hash[:12]}; "
            "a changed study is a new study: start a new run"
        )
    return progress, model


def write_model_state(path: Path, model: GlobalModel, metadata: Mapping[str, str]) -> None:
    """Replace the file at *path*, whole or not at all, by all vectors of *model* and this text."""
    vectors = {
        "weights": model.weights,
        "average": model.average,
        **({} if model.best is None else {"best": model.best}),
        **model.moments,
    }
    write_atomically(path, save(vectors, metadata={**metadata, "num_steps": str(model.num_steps)}))


def read_model_state(path: Path) -> tuple[GlobalModel, dict[str, str]]:
    """Return what `write_model_state` wrote.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            vectors = {name: np.asarray(file.get_tensor(name), dtype=np.float32) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata())
            model = GlobalModel(
                weights=vectors.pop("weights"),
                average=vectors.pop("average"),
                best=vectors.pop("best", None),
                moments=vectors,
                num_steps=int(metadata.pop("num_steps")),
            )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: is not a usable checkpoint ({type(error).__name__})") from error
    return model, metadata


def write_atomically(path: Path, content: bytes) -> None:
    """Write *content* to *path* so that a crash leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
