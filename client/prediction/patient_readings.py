"""From readings of images to one of each patient, by the task's own rule."""

from array import array
from dataclasses import dataclass

import numpy as np

from client.prediction.reading import PointReading, Reading
from shared_models.model_card import ModelCard
from shared_models.tasks.segmentation import Segmentation
from shared_models.tasks.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientReading:
    """One patient: the number of `Reading.patient`, how many images or series; the rest as of a `Reading`."""

    patient: int
    num_images: int
    probabilities: dict[str, float]
    points: tuple[PointReading, ...]
    statements: dict[str, str]
    overrides: tuple[str, ...]


class PatientReadings:
    """Takes readings and keeps of each the probabilities only.

    A patient's probability is the mean over all images, as it is in the study's evaluation; of segmentation, the
    highest.

    Args:
        task: the study's.
        card: of the one model; None where several were asked.
    """

    def __init__(self, task: Task, card: ModelCard | None) -> None:
        self._task, self._card = task, card
        self._overrides: dict[int, tuple[str, ...]] = {}
        self._names: tuple[str, ...] = ()
        self._owners, self._scores = array("q"), array("d")
        self._thresholds: dict[tuple[str, str], float] = {}

    def add(self, reading: Reading) -> None:
        """Take a reading; one whose file names no patient has no part."""
        if not reading.patient:
            return
        self._names = tuple(reading.probabilities)
        self._owners.append(reading.patient)
        self._scores.extend(reading.probabilities.values())
        if reading.overrides:
            before = self._overrides.get(reading.patient, ())
            self._overrides[reading.patient] = tuple(dict.fromkeys((*before, *reading.overrides)))
        self._thresholds.update({(point.output, point.name): point.threshold for point in reading.points})

    def patients(self) -> list[PatientReading]:
        """One of each patient, in the order of their numbers."""
        if not self._owners:
            return []
        owners = np.array(self._owners, dtype=np.int64)
        order = np.argsort(owners, kind="stable")
        numbers, first = np.unique(owners[order], return_index=True)
        first_image = np.append(first, len(owners))
        scores = np.array(self._scores, dtype=np.float64).reshape(len(owners), -1)[order]
        if isinstance(self._task, Segmentation):
            values = np.maximum.reduceat(scores, first, axis=0)
        else:
            kept = scores if self._task.num_outputs > 1 else scores[:, 0]
            labels = np.zeros((len(owners), *self._task.label_shape), dtype=np.int64)
            values = self._task.by_patient(kept, labels, first_image)[0].reshape(len(numbers), -1)
        return [
            self._patient(int(number), int(num_images), own)
            for number, num_images, own in zip(numbers, np.diff(first_image), values.tolist(), strict=True)
        ]

    def _patient(self, number: int, num_images: int, values: list[float]) -> PatientReading:
        probabilities = dict(zip(self._names, values, strict=True))
        overrides = self._overrides.get(number, ())
        return PatientReading(
            patient=number,
            num_images=num_images,
            probabilities=probabilities,
            points=tuple(
                PointReading(
                    output=output, name=name, threshold=threshold, reached=probabilities[output] >= threshold
                )
                for (output, name), threshold in self._thresholds.items()
            ),
            statements={} if overrides or self._card is None else self._card.statements(probabilities),
            overrides=overrides,
        )
