"""What the federation's validations decide: when the learning rate is reduced, when a run ends, which model is kept.

All of it follows from the losses in the order of validations, which stand in the checkpoint: a server that is started
again decides the same. Under differential privacy the losses carry the noise of the evaluation, and what follows from
them costs nobody anything more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from server.checkpoint import RoundRecord
from shared_models.study import Study, Training
from shared_models.tasks.registry import task_of
from shared_models.tasks.task import Task


@dataclass(frozen=True, slots=True)
class Course:
    """The validations of a run so far.

    Attributes:
        losses: (round whose model was validated, loss), in order; the loss is None where it is not known, which is no
            better than any other.
    """

    losses: tuple[tuple[int, float | None], ...] = ()

    @classmethod
    def of(cls, study: Study, rounds: Sequence[RoundRecord]) -> Self:
        """Read it from the records of a run."""
        task = task_of(study)
        return cls(
            tuple(
                (record.round, _loss(task, record.validation))
                for record in rounds
                if record.validation is not None
            )
        )

    def and_then(self, number: int, loss: float | None) -> "Course":
        """The course with one validation more, of the model of round *number*."""
        return Course((*self.losses, (number, loss)))

    @property
    def best_round(self) -> int | None:
        """The round whose model has the lowest loss, the first of several; None before any is known."""
        known = [(loss, number) for number, loss in self.losses if loss is not None]
        return min(known)[1] if known else None

    def reductions(self, training: Training) -> int:
        """How often the learning rate was reduced so far, with ``schedule = "plateau"``."""
        if training.schedule != "plateau":
            return 0
        best, waiting, reduced = float("inf"), 0, 0
        for _, loss in self.losses:
            if loss is not None and loss < best:
                best, waiting = loss, 0
                continue
            waiting += 1
            if waiting == training.plateau_patience:
                waiting, reduced = 0, reduced + 1
        return reduced

    def ends(self, training: Training) -> bool:
        """Whether so many validations in a row were no better than the best one that the run ends."""
        if training.early_stopping is None:
            return False
        numbers = [number for number, _ in self.losses]
        since = numbers[::-1].index(self.best_round) if self.best_round in numbers else len(numbers)
        return since >= training.early_stopping


def _loss(task: Task, statistics: tuple[int, ...]) -> float | None:
    return task.metrics(np.array(statistics, dtype=np.int64), cut=False)["loss"]
