"""What is kept of a model that is trained outside the federation, so that a stopped run loses minutes and not hours.

::

    FOLDER/pooled/pooled.safetensors          the model as it was some rounds ago; while it is trained
    FOLDER/alone/HOSPITAL.json                its figures, once it is trained
    FOLDER/left-out/HOSPITAL.json
"""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from server.aggregation import GlobalModel
from server.checkpoint import CheckpointError, read_model_state, write_atomically, write_model_state
from server.course import Course
from server.result import BaselineMetrics

log = logging.getLogger("collegium.simulation")

SECONDS_BETWEEN = 60.0
"""A stop loses so much work at most, and a round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A model on its way.

    Attributes:
        state: after the last round.
        course: of its validations so far.
        num_rounds: that were made.
        num_patients: what it was begun with; drawn once, under differential privacy.
        seconds: that were spent on it.
    """

    state: GlobalModel
    course: Course
    num_rounds: int
    num_patients: int
    seconds: float


class Keeper:
    """Keeps one model's training in files, or nothing where there is no *folder*.

    Args:
        folder: made where it is missing.
        kind: alone, pooled or left-out.
        name: of the hospital; for pooled the same word again.
        study_hash: what is of another study counts as not there.
    """

    def __init__(self, folder: Path | None, *, kind: str, name: str, study_hash: str) -> None:
        self._figures = None if folder is None else folder / kind / f"{name}.json"
        self._state = None if folder is None else folder / kind / f"{name}.safetensors"
        self._study_hash = study_hash
        self._written = time.monotonic()

    def figures(self) -> BaselineMetrics | None:
        """The figures of a model that is trained already."""
        if self._figures is None or not self._figures.exists():
            return None
        try:
            kept = json.loads(self._figures.read_text(encoding="utf-8"))
            figures = BaselineMetrics.model_validate(kept["figures"], strict=False)
            return figures if kept["study_hash"] == self._study_hash else None
        except (KeyError, TypeError, ValueError):
            return None

    def training(self) -> Kept | None:
        """How far the model is; None where it is to be begun."""
        if self._state is None or not self._state.exists():
            return None
        try:
            state, metadata = read_model_state(self._state)
            if metadata["study_hash"] != self._study_hash:
                return None
            return Kept(
                state=state,
                course=Course(tuple((number, loss) for number, loss in json.loads(metadata["losses"]))),
                num_rounds=int(metadata["num_rounds"]),
                num_patients=int(metadata["num_patients"]),
                seconds=float(metadata["seconds"]),
            )
        except (CheckpointError, KeyError, ValueError):
            return None

    def keep(self, training: Kept) -> None:
        """Write how far the model is, where the last time is long ago."""
        if self._state is None or time.monotonic() - self._written < SECONDS_BETWEEN:
            return
        about = {
            "study_hash": self._study_hash,
            "losses": json.dumps(training.course.losses),
            "num_rounds": str(training.num_rounds),
            "num_patients": str(training.num_patients),
            "seconds": str(training.seconds),
        }
        try:
            write_model_state(self._state, training.state, about)
        except OSError as error:
            log.warning("%s: was not written (%s); a stop would cost more", self._state, error.strerror)
        self._written = time.monotonic()

    def finish(self, figures: BaselineMetrics) -> None:
        """Write the figures; the model itself is not kept."""
        if self._figures is None or self._state is None:
            return
        text = json.dumps({"study_hash": self._study_hash, "figures": figures.model_dump()}, indent=1)
        write_atomically(self._figures, text.encode())
        self._state.unlink(missing_ok=True)
