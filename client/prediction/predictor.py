"""From files to readings: prepared in processes of their own, asked in batches, given on one after the other."""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from client.decoding import DecodingWorker
from client.decoding_limits import Limits
from client.prediction.ensemble import Answer, Ensemble
from client.prediction.inputs import Input
from client.prediction.plane_images import plane_images
from client.prediction.reading import PointReading, Reading, Unread
from client.prediction.refusals import Terms
from client.prediction.series_volumes import series_volumes
from client.prediction.taken import Found, Taken
from client.reading_pool import Reader, ReadingPool, reading_pool
from client.reasons import Reason
from client.scan import AHEAD_BYTES, Progress
from client.training import images_at_a_time
from shared_models.model_file import TrainedModel

MOST_AT_A_TIME = 32
"""Images in a batch: more are no faster on a processor, and would wait for each other."""
NOT_FINITE = "not-finite"


class Predictor:
    """Asks one model, or several, about files.

    Args:
        models: at least one, alike.
        device: where they compute.
        overrides: reasons for which an input is not refused.
        num_readers: processes that read files; 0: as many as there are cores.
        make_reader: makes what reads files; if None, a process of its own with the limits of the study's images.

    Raises:
        ModelFileError: the models cannot be asked together.
    """

    def __init__(
        self,
        models: Sequence[TrainedModel],
        *,
        device: torch.device,
        overrides: Collection[Reason] = (),
        num_readers: int = 0,
        make_reader: Callable[[], Reader] | None = None,
    ) -> None:
        self.ensemble = Ensemble(models, device)
        self._card = models[0].card if len(models) == 1 else None
        self._terms = Terms.of(models[0].study, overrides)
        self._image = models[0].image
        self._num_readers = num_readers or len(os.sched_getaffinity(0))
        self._make_reader = make_reader or partial(DecodingWorker, Limits.of(self._image))
        self._patients: dict[str, int] = {}

    def readings(
        self, inputs: Sequence[Input], progress: Progress = lambda done, total: None
    ) -> Iterator[Reading | Unread]:
        """Yield what is said of each input, in their order.

        Guarantees: what enters the model is what `client.ingestion` would have prepared, to the bit. However many files
        there are, no more than a few batches of them are in memory, as long as nobody keeps the readings. What is wrong
        with a file costs that file, or its series, only.

        Args:
            inputs: the files.
            progress: called with files done and files in all.

        Raises:
            DecoderDoesNotStart: no file can be read.
        """
        shape = self._image.shape
        size = min(MOST_AT_A_TIME, images_at_a_time((1, *shape)))
        room = max(1, AHEAD_BYTES // (4 * int(np.prod(shape))))
        with reading_pool(
            self._make_reader,
            self._readers_for(len(inputs)),
            ahead=min(2 * size + 2 * self._num_readers, room),
        ) as pool:
            waiting, num_taken = list[Found](), 0
            for found in self._found(inputs, pool, progress):
                waiting.append(found)
                num_taken += isinstance(found, Taken)
                if num_taken == size or len(waiting) == 8 * size:
                    yield from self._read(waiting)
                    waiting, num_taken = [], 0
            yield from self._read(waiting)

    def _readers_for(self, num_inputs: int) -> int:
        """No more processes than there are files."""
        return max(1, min(self._num_readers, num_inputs))

    def _found(self, inputs: Sequence[Input], pool: ReadingPool, progress: Progress) -> Iterator[Found]:
        if self._image.depth is not None:
            yield from series_volumes(
                inputs, self._terms, pool, progress=lambda done: progress(done, len(inputs))
            )
            return
        channels = self._image.channels
        for done, found in enumerate(plane_images(inputs, self._terms, pool, channels=channels), start=1):
            yield found
            progress(done, len(inputs))

    def _read(self, waiting: Sequence[Found]) -> Iterator[Reading | Unread]:
        """Ask the models about all images that wait, and give on everything in its order."""
        planes = [found.plane for found in waiting if isinstance(found, Taken)]
        answers = iter(self.ensemble.answers(planes) if planes else [])
        for found in waiting:
            yield self._reading(found, next(answers)) if isinstance(found, Taken) else found

    def _reading(self, taken: Taken, answer: Answer) -> Reading | Unread:
        names = self.ensemble.names
        values = answer.probabilities
        if not np.isfinite(values).all():
            return Unread(
                name=taken.name,
                code=NOT_FINITE,
                sentence="What the model says of it is no finite number.",
                num_files=len(taken.files),
            )
        probabilities = {name: float(value) for name, value in zip(names, values, strict=True)}
        return Reading(
            name=taken.name,
            files=taken.files,
            frame=taken.frame,
            patient=self._patient(taken),
            identifiers=taken.identifiers,
            prepared=taken.plane,
            spacing=taken.spacing,
            probabilities=probabilities,
            points=self._points(probabilities),
            statements={} if taken.overrides else self._statements(probabilities),
            mask=answer.mask,
            overrides=taken.overrides,
            spreads=dict(zip(names, answer.spreads, strict=True)) if answer.spreads else {},
        )

    def _patient(self, taken: Taken) -> int:
        """A number for each Patient ID, from 1; 0 where there is none."""
        patient = taken.identifiers["PatientID"]
        return self._patients.setdefault(patient, len(self._patients) + 1) if patient else 0

    def _points(self, probabilities: dict[str, float]) -> tuple[PointReading, ...]:
        if self._card is None:
            return ()
        return tuple(
            PointReading(
                output=output, name=point.name, threshold=point.threshold, reached=score >= point.threshold
            )
            for output, score in probabilities.items()
            for point in self._card.points(output)
            if point.threshold is not None
        )

    def _statements(self, probabilities: dict[str, float]) -> dict[str, str]:
        """Of an input for which the model was not trained the test says nothing, nor of several models' mean."""
        if self._card is None:
            return {}
        found = {output: self._card.statement(output, score) for output, score in probabilities.items()}
        return {output: sentence for output, sentence in found.items() if sentence is not None}
