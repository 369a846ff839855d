"""Writes DICOM results of readings into a folder of the hospital's own, one reading after the other."""

import csv
import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom import dcmwrite

from client.dicom_file import Unusable
from client.prediction.dicom_results.model_identity import ModelIdentity
from client.prediction.dicom_results.numbering import Kind, Numbering
from client.prediction.dicom_results.references import Sources, describing, same_study
from client.prediction.dicom_results.source_images import read_source
from client.prediction.reading import Reading
from client.private_file import create_private_file
from client.quiet_libraries import silence
from shared_models.configuration import ConfigurationError
from shared_models.model_file import TrainedModel
from shared_models.tasks.segmentation import Segmentation

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from client.prediction.dicom_results.secondary_capture import Picture

INDEX = "files.csv"


class NotWritten(Exception):
    """A reading has no DICOM results. The message says in one sentence why, without anything that names a patient."""


class DicomResults:
    """The results of one call.

    Args:
        folder: made where it is not there, for its owner only; it may not hold results yet.
        models: that were asked, at least one.
        kinds: what to write. A reading has a picture only where one is given.

    Raises:
        ConfigurationError: highdicom is not installed, the folder holds results, or masks are wanted of a model that
            makes none.
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, models: Sequence[TrainedModel], kinds: Collection[Kind]) -> None:
        _check_installed()
        if Kind.SEGMENTATION in kinds and not isinstance(models[0].task, Segmentation):
            raise ConfigurationError(
                f"{models[0].name}: is a model of {models[0].study.task.kind}, which makes no masks; leave out the "
                f'DICOM result "{Kind.SEGMENTATION.word}"'
            )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigurationError(f"{folder}: is not empty; name another folder for DICOM results")
        self._folder, self._kinds = folder, frozenset(kinds)
        self._identity = ModelIdentity.of(models)
        self._numbering = Numbering(self._identity)
        self._rows: list[tuple[str, str, str]] = []
        self._number = 0

    @property
    def files(self) -> list[Path]:
        """All that were written so far."""
        return [self._folder / name for name, _, _ in self._rows]

    def write(self, reading: Reading, overlay: "Picture | None" = None) -> list[Path]:
        """Write the results of a reading; return their files.

        Args:
            reading: what the model says.
            overlay: RGB, uint8, shape (rows, columns, 3).

        Raises:
            NotWritten: its source lacks what results need; nothing was written for this reading.
            OSError: the folder cannot be written.
        """
        objects = self._objects(reading, overlay)
        self._number += 1
        written = []
        for kind, content in objects:
            path = self._folder / f"{self._number:06d}-{kind.word}.dcm"
            if not create_private_file(path, content):
                raise FileExistsError(f"{path}: is there already")
            self._rows.append((path.name, kind.word, _cell(reading.name)))
            written.append(path)
        return written

    def finish(self) -> None:
        """Write ``files.csv``: which file is of which input. Raises OSError."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(("file", "kind", "input"))
        table.writerows(self._rows)
        create_private_file(self._folder / INDEX, text.getvalue().encode())

    def _objects(self, reading: Reading, overlay: "Picture | None") -> list[tuple[Kind, bytes]]:
        from client.prediction.dicom_results.secondary_capture import check_picture

        if overlay is not None:
            check_picture(overlay)
        sources = _sources(reading)
        kinds = [kind for kind in Kind if kind in self._kinds]
        return [
            (kind, self._encoded(kind, reading, sources, overlay))
            for kind in kinds
            if kind is not Kind.PICTURE or overlay is not None
        ]

    def _encoded(self, kind: Kind, reading: Reading, sources: Sources, overlay: "Picture | None") -> bytes:
        """One result as a file holds it. Raises NotWritten."""
        buffer = io.BytesIO()
        try:
            made = self._made(kind, reading, sources, overlay)
            with describing():
                dcmwrite(buffer, made, enforce_file_format=True)
        except Unusable as trouble:
            raise NotWritten(f"No {kind.word} was written. {trouble}") from None
        return buffer.getvalue()

    def _made(self, kind: Kind, reading: Reading, sources: Sources, overlay: "Picture | None") -> "Dataset":
        from client.prediction.dicom_results.measurement_report import measurement_report
        from client.prediction.dicom_results.secondary_capture import secondary_capture
        from client.prediction.dicom_results.segmentation import segmentation

        place = self._numbering.place(str(sources.first.StudyInstanceUID), kind)
        if kind is Kind.SEGMENTATION:
            return segmentation(reading, sources, self._identity, place)
        if overlay is not None and kind is Kind.PICTURE:
            return secondary_capture(reading, overlay, sources, self._identity, place)
        return measurement_report(reading, sources, self._identity, place)


def _cell(name: str) -> str:
    """A path, so that no spreadsheet takes it for a formula."""
    return f"./{name}" if name[:1] in ("=", "+", "-", "@") else name


def _sources(reading: Reading) -> Sources:
    """What results take from the reading's files. Raises NotWritten."""
    try:
        images = tuple(read_source(path) for path in reading.files)
    except Unusable as trouble:
        raise NotWritten(f"No DICOM results were written. {trouble}") from None
    if not same_study(images):
        raise NotWritten("No DICOM results were written. Its files are of several series.")
    return Sources(images=images, frame=reading.frame)


def _check_installed() -> None:
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            "DICOM results need highdicom, which is not installed; run: pip install 'collegium[results]'"
        ) from error
    silence("highdicom")  # its log lines quote UIDs and names
