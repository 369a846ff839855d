"""Readings with their maps, for the page, as pictures and as DICOM results: each map is made once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from client.prediction.explanations.attribution import Attribution
from client.prediction.explanations.explainer import Explainer
from client.prediction.explanations.picture import picture_png
from client.prediction.reading import Reading, Unread
from client.private_file import private_bytes


class ExplainedWriter(Protocol):
    """Takes readings with their maps."""

    def write(self, reading: Reading, attributions: Sequence[Attribution] = ()) -> None:
        """Take one reading."""
        ...

    def left_out(self, unread: Unread) -> None:
        """Take an input that gave no reading."""
        ...

    def finish(self) -> None:
        """Write what is left to be written."""
        ...


class Pictures:
    """Writes each reading as PNG, ``N-METHOD.png``, or ``N-contours.png`` of segmentation; N counts readings from 1.

    Args:
        folder: where; it is made with mode 0700, files have 0600.
        structures: names, in their order; of segmentation.
    """

    def __init__(self, folder: Path, *, structures: Sequence[str] = ()) -> None:
        self._folder, self._structures, self._number = folder, tuple(structures), 0
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, reading: Reading, attributions: Sequence[Attribution] = ()) -> None:
        """Take a reading with its maps. Raises OSError."""
        self._number += 1
        for one in attributions:
            private_bytes(self._path(one.method.value), picture_png(reading, one))
        if reading.mask is not None:
            private_bytes(self._path("contours"), picture_png(reading, structures=self._structures))

    def left_out(self, unread: Unread) -> None:
        """There is no picture of it."""

    def finish(self) -> None:
        """Nothing is left to be written."""

    def _path(self, what: str) -> Path:
        return self._folder / f"{self._number:05d}-{what}.png"


class Explained:
    """A writer of readings that makes their maps, and gives both to others.

    Args:
        explainers: one for each map; none of segmentation, whose contours need none.
        writers: that take them.
    """

    def __init__(self, explainers: Sequence[Explainer], writers: Sequence[ExplainedWriter]) -> None:
        self._explainers, self._writers = tuple(explainers), tuple(writers)

    def write(self, reading: Reading) -> None:
        """Take one reading. Raises OSError."""
        attributions = [explain(reading) for explain in self._explainers]
        for writer in self._writers:
            writer.write(reading, attributions)

    def left_out(self, unread: Unread) -> None:
        """Take an input that gave no reading. Raises OSError."""
        for writer in self._writers:
            writer.left_out(unread)

    def finish(self) -> None:
        """Write what is left to be written. Raises OSError."""
        for writer in self._writers:
            writer.finish()
