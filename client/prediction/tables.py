"""``predictions.csv``, ``predictions_by_patient.csv`` and ``predictions.json``, written line by line; masks as PNG.

Everything lies in a folder of mode 0700, in files of mode 0600: these are the hospital's own images. The files name
images by their paths; identifiers from the images are in them only where they were asked for.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Self

from PIL import Image as Pillow

from client.dicom_file import IDENTIFIER_KEYWORDS
from client.prediction.ensemble import Ensemble
from client.prediction.patient_readings import PatientReading, PatientReadings
from client.prediction.reading import PointReading, Reading, Unread
from client.prediction.structure_sizes import Size, sizes_of, unit_of
from client.private_file import private_text, replace_private_file
from shared_models.model_card import ModelCard
from shared_models.model_file import TrainedModel
from shared_models.tasks.segmentation import Segmentation
from shared_models.visible_text import visible

CSV_NAME = "predictions.csv"
PATIENTS_NAME = "predictions_by_patient.csv"
JSON_NAME = "predictions.json"
MASKS_NAME = "masks"
SCHEMA = 1
_FORMULA = ("=", "+", "-", "@")
"""What a spreadsheet begins to compute at."""


class Tables:
    """Takes readings and inputs that gave none, and writes the files into *folder*; a context manager.

    What a call before wrote is replaced when `finish` is called; its masks are removed at once.

    Args:
        folder: made with mode 0700 where it is not there.
        ensemble: what was asked.
        identifiers: whether `client.dicom_file.IDENTIFIER_KEYWORDS` have columns.
        overrides: codes that were given with ``--override``.
        now: UTC.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        ensemble: Ensemble,
        *,
        identifiers: bool,
        overrides: Sequence[str],
        now: datetime,
    ) -> None:
        self.folder = folder
        self._ensemble, self._identifiers, self._overrides, self._now = ensemble, identifiers, overrides, now
        self._names = ensemble.names
        self._marks = isinstance(ensemble.task, Segmentation)
        self._unit = unit_of(len(ensemble.image.shape) - 1)
        self._points = _points(ensemble)
        self._patients = PatientReadings(ensemble.task)
        self._unread = list[Unread]()
        self._num_read = self._num_masks = 0
        self._open, self._finished = ExitStack(), False

    def __enter__(self) -> Self:
        folder = self.folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for mask in (folder / MASKS_NAME).glob("[0-9]*.png"):
            mask.unlink()
        self._csv = csv.DictWriter(
            self._open.enter_context(private_text(folder / CSV_NAME)), self._columns(), lineterminator="\n"
        )
        self._csv.writeheader()
        self._json = self._open.enter_context(private_text(folder / JSON_NAME))
        head = {
            "schema": SCHEMA,
            "made": self._now.isoformat(timespec="seconds"),
            "models": [_model(one) for one in self._ensemble.models],
            "versions": {name: version(name) for name in ("collegium", "torch", "pydicom", "numpy")},
            "overrides": list(self._overrides),
        }
        self._json.write(_dumped(head)[:-1] + ',\n"readings": [')
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Without `finish` nothing of it stays."""
        if kind is not None:
            self._open.__exit__(kind, *rest)  # type: ignore[arg-type]
        elif not self._finished:
            raise RuntimeError("the tables were left before they were finished")

    def write(self, reading: Reading) -> None:
        """Write the line of one reading, and its mask."""
        sizes = sizes_of(reading, self._names)
        mask = self._mask(reading)
        self._csv.writerow(self._row(reading, sizes, mask))
        self._json.write(",\n" if self._num_read else "\n")
        self._json.write(_dumped(self._values(reading, sizes, mask)))
        self._num_read += 1
        self._patients.add(reading)

    def left_out(self, unread: Unread) -> None:
        """Take an input that gave no reading."""
        self._unread.append(unread)

    def finish(self) -> None:
        """Put all files into their places."""
        patients = self._patients.patients()
        rest = {
            "by_patient": [_patient_values(one) for one in patients],
            "unread": [{**asdict(one), "name": visible(one.name)} for one in self._unread],
            "num_read": self._num_read,
            "num_left_out": dict(Counter(one.code for one in self._unread)),
        }
        self._json.write("\n],\n" + _dumped(rest)[1:] + "\n")
        self._open.close()
        self._finished = True
        replace_private_file(self.folder / PATIENTS_NAME, self._patients_csv(patients).encode())

    def _mask(self, reading: Reading) -> str:
        """Write the mask of a plane image; return its name, or nothing. A volume's is written as DICOM only."""
        if reading.mask is None or reading.mask.ndim != 2:
            return ""
        self._num_masks += 1
        name, content = f"{MASKS_NAME}/{self._num_masks:06d}.png", io.BytesIO()
        Pillow.fromarray(reading.mask).save(content, "PNG")
        replace_private_file(self.folder / name, content.getvalue())
        return name

    def _columns(self) -> list[str]:
        several = len(self._ensemble.models) > 1
        columns = ["name", "patient", "frame", *(IDENTIFIER_KEYWORDS if self._identifiers else ())]
        columns += [f"probability/{name}" for name in self._names]
        columns += [_point_column(output, point) for output, point in self._points]
        if several:
            columns += [
                f"{what}/{name}" for name in self._names for what in ("deviation", "lowest", "highest")
            ]
        elif not self._marks:
            columns += [f"statement/{name}" for name in self._names]
        if self._marks:
            columns += [f"{what}/{name}" for name in self._names for what in ("points", self._unit)]
            columns += ["mask"]
        return [*columns, "overrides"]

    def _row(self, reading: Reading, sizes: Mapping[str, Size], mask: str) -> dict[str, object]:
        row: dict[str, object] = {
            "name": _cell(reading.name),
            "patient": reading.patient or "",
            "frame": "" if reading.frame is None else reading.frame + 1,
            "overrides": " ".join(reading.overrides),
        }
        if self._identifiers:
            row |= {key: _cell(reading.identifiers.get(key, ""), before="'") for key in IDENTIFIER_KEYWORDS}
        row |= {f"probability/{name}": repr(value) for name, value in reading.probabilities.items()}
        row |= _point_cells(reading.points)
        for name, spread in reading.spreads.items():
            row |= {
                f"deviation/{name}": repr(spread.deviation),
                f"lowest/{name}": repr(spread.low),
                f"highest/{name}": repr(spread.high),
            }
        row |= {f"statement/{name}": sentence for name, sentence in reading.statements.items()}
        for name, size in sizes.items():
            row[f"points/{name}"] = size.num_points
            row[f"{self._unit}/{name}"] = "" if size.amount is None else repr(size.amount)
        return row | ({"mask": mask} if self._marks else {})

    def _values(self, reading: Reading, sizes: Mapping[str, Size], mask: str) -> dict[str, object]:
        values: dict[str, object] = {
            "name": visible(reading.name),
            "patient": reading.patient or None,
            "frame": None if reading.frame is None else reading.frame + 1,
            "num_files": len(reading.files),
            "probabilities": dict(reading.probabilities),
            "points": [asdict(one) for one in reading.points],
            "statements": dict(reading.statements),
            "overrides": list(reading.overrides),
        }
        if reading.spreads:
            values["spreads"] = {name: asdict(one) for name, one in reading.spreads.items()}
        if sizes:
            values["structures"] = {
                name: {"points": one.num_points, self._unit: one.amount} for name, one in sizes.items()
            }
            values["mask"] = mask or None
        if self._identifiers:
            values["identifiers"] = {
                key: visible(reading.identifiers.get(key, "")) for key in IDENTIFIER_KEYWORDS
            }
        return values

    def _patients_csv(self, patients: Sequence[PatientReading]) -> str:
        columns = ["patient", "num_images", *(f"probability/{name}" for name in self._names)]
        columns += [_point_column(output, point) for output, point in self._points]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for one in patients:
            probabilities = {f"probability/{name}": repr(value) for name, value in one.probabilities.items()}
            writer.writerow(
                {"patient": one.patient, "num_images": one.num_images}
                | probabilities
                | _point_cells(one.points)
            )
        return text.getvalue()


def _points(ensemble: Ensemble) -> list[tuple[str, str]]:
    """Output and name of each operating point that readings have."""
    if len(ensemble.models) > 1:
        return []
    card: ModelCard = ensemble.models[0].card
    return [(output, point.name) for output in ensemble.names for point in card.points(output)]


def _point_column(output: str, point: str) -> str:
    return f"point/{output}/{point}"


def _point_cells(points: Sequence[PointReading]) -> dict[str, object]:
    return {_point_column(one.output, one.name): int(one.reached) for one in points}


def _cell(text: str, *, before: str = "./") -> str:
    """Text from elsewhere, so that no spreadsheet takes it for a formula; a path with ``./`` is the same path."""
    shown = visible(text)
    return before + shown if shown.startswith(_FORMULA) else shown


def _model(model: TrainedModel) -> dict[str, object]:
    card = model.card
    return {
        "file": visible(model.name),
        "digest": model.digest,
        "study": card.study.name,
        "study_hash": card.study_hash,
        "run_id": visible(card.run_id),
        "intended_use": visible(card.intended_use),
    }


def _patient_values(one: PatientReading) -> dict[str, object]:
    return {
        "patient": one.patient,
        "num_images": one.num_images,
        "probabilities": one.probabilities,
        "points": [asdict(point) for point in one.points],
    }


def _dumped(values: Mapping[str, object]) -> str:
    return json.dumps(values, allow_nan=False)
