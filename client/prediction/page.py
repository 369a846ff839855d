"""The viewer: a folder that a browser opens without any network, with every reading, its image and the model's card.

==================  ================================================================================================
``index.html``      the page, with its script; a policy in it forbids every request but for files
``list.js``         what is said of each input
``images/N.js``     the image of one reading with its maps and mask, loaded when it is looked at
==================  ================================================================================================

A page from a file may not read other files but scripts: that is why data are scripts.
"""

import json
import os
import zlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from client.pages import render
from client.prediction.explanations.attribution import Attribution
from client.prediction.explanations.colours import (
    MOST_OPAQUE,
    colour_table,
    scale_end,
    structure_colour,
)
from client.prediction.explanations.slices import chosen_slice, num_slices
from client.prediction.reading import Reading, Unread
from client.private_file import private_bytes, replace_private_file
from shared_models.model_card import NOT_A_DEVICE, CardMetric, ModelCard
from shared_models.model_file import TrainedModel
from shared_models.visible_text import visible

PAGE_NAME = "index.html"
CARD_NAME = "card.html"
MOST_COLUMNS = 3
"""Outputs that have a column of their own in the list; of more the highest is shown."""
_SCRIPT = Path(__file__).with_name("viewer.js")


@dataclass(frozen=True, slots=True, kw_only=True)
class _ShownModel:
    name: str
    digest: str
    card: ModelCard
    headline: tuple[tuple[str, CardMetric], ...]


class Page:
    """Writes the viewer, reading by reading; the page itself comes last.

    Guarantees: however many readings there are, no image of them is kept in memory. Files have mode 0600, folders
    that are made 0700. Nothing that a file is called, or a card says, can become markup or script.

    Args:
        folder: of the page; ``card.html`` in it, if it is there at the end, is linked.
        models: that the readings are of.
        now: UTC.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, models: Sequence[TrainedModel], *, now: datetime) -> None:
        self._folder, self._models, self._now = folder, tuple(models), now
        self._images = folder / "images"
        self._images.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in self._images.glob("*.js"):
            old.unlink()
        self._num_readings, self._num_unread = 0, 0
        first = models[0]
        self._structures = first.study.task.finding_names if first.task.dense else ()
        self._outputs = self._structures or first.card.outputs
        self._listed = folder / ".list.js.part"
        self._list = _private_text(self._listed)
        self._tell("begin", self._terms(first))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave no half a list where it was not finished."""
        self._list.close()
        self._listed.unlink(missing_ok=True)

    def write(self, reading: Reading, attributions: Sequence[Attribution] = ()) -> None:
        """Take a reading with its maps. Raises OSError."""
        self._num_readings += 1
        number = self._num_readings
        self._tell("entry", _entry(reading, number, self._outputs))
        text = f"collegium.received({number},{_json(_image(reading, attributions))});\n"
        private_bytes(self._images / f"{number}.js", text.encode("ascii"))

    def left_out(self, unread: Unread) -> None:
        """Take an input that gave no reading. Raises OSError."""
        self._num_unread += 1
        entry = {
            "name": visible(unread.name),
            "code": unread.code,
            "sentence": unread.sentence,
            "overridable": unread.can_be_overridden,
            "numFiles": unread.num_files,
        }
        self._tell("entry", entry)

    def finish(self) -> None:
        """Write the list and the page. Raises OSError."""
        self._list.write("collegium.end();\n")
        self._list.close()
        self._listed.replace(self._folder / "list.js")
        script = _SCRIPT.read_text(encoding="utf-8")
        columns = _columns(self._outputs)
        page = render(
            "prediction/page.html.jinja",
            not_a_device=NOT_A_DEVICE,
            intended_use=self._models[0].card.intended_use,
            title=_title(self._models),
            now=self._now,
            num_readings=self._num_readings,
            num_unread=self._num_unread,
            columns=[(key, _heading(key, self._outputs)) for key in columns],
            last_column="remarks" if self._structures else "reaches" if columns != ("highest",) else "says",
            figures_heading="Structures" if self._structures else "Probabilities",
            structures=self._structures,
            models=[_shown(model) for model in self._models],
            card_page=CARD_NAME if (self._folder / CARD_NAME).exists() else None,
            script=Markup(script),  # noqa: S704 - our own file
            script_hash=b64encode(sha256(script.encode()).digest()).decode("ascii"),
        )
        replace_private_file(self._folder / PAGE_NAME, page.encode("utf-8"))

    def _tell(self, what: str, *values: object) -> None:
        self._list.write(f"collegium.{what}({','.join(map(_json, values))});\n")

    def _terms(self, first: TrainedModel) -> dict[str, object]:
        return {
            "outputs": list(self._outputs),
            "columns": list(_columns(self._outputs)),
            "ensemble": len(self._models) > 1,
            "structures": list(self._structures),
            "structureColours": [structure_colour(number) for number in range(1, len(self._structures) + 1)],
            "colours": colour_table().tolist(),
            "mostOpaque": MOST_OPAQUE,
            "grey": _grey(first),
        }


def _private_text(path: Path) -> TextIO:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    return os.fdopen(descriptor, "w", encoding="ascii")


def _json(values: object) -> str:
    """Of ASCII only, and without the signs that could end a script."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e")


def _columns(outputs: Sequence[str]) -> tuple[str, ...]:
    if len(outputs) > MOST_COLUMNS:
        return ("highest",)
    return tuple(str(number) for number in range(len(outputs)))


def _heading(key: str, outputs: Sequence[str]) -> str:
    return "highest" if key == "highest" else outputs[int(key)]


def _title(models: Sequence[TrainedModel]) -> str:
    title = visible(models[0].study.title)
    return title if len(models) == 1 else f"{len(models)} models: {title}"


def _grey(first: TrainedModel) -> dict[str, object]:
    """What 0 and 1 of a prepared image are: Hounsfield units where the study says which, else shares."""
    image = first.image
    if image.window_center is not None and image.window_width is not None:
        low = image.window_center - image.window_width / 2.0
        return {"low": low, "high": low + image.window_width, "unit": " HU"}
    return {"low": 0.0, "high": 100.0, "unit": " %"}


def _entry(reading: Reading, number: int, outputs: Sequence[str]) -> dict[str, object]:
    return {
        "id": number,
        "name": visible(reading.name),
        "frame": reading.frame,
        "probabilities": [reading.probabilities[name] for name in outputs],
        "points": [
            {
                "output": point.output,
                "name": point.name,
                "threshold": point.threshold,
                "reached": point.reached,
            }
            for point in reading.points
        ],
        "statements": dict(reading.statements),
        "overrides": list(reading.overrides),
        "spreads": {
            name: {"deviation": spread.deviation, "low": spread.low, "high": spread.high}
            for name, spread in reading.spreads.items()
        },
    }


def _image(reading: Reading, attributions: Sequence[Attribution]) -> dict[str, object]:
    prepared = np.clip(reading.prepared, 0.0, 1.0)
    if len(prepared) == 1:
        pixels: npt.NDArray[Any] = np.round(prepared * 65535.0).astype("<u2")
    else:
        pixels = np.round(prepared * 255.0).astype(np.uint8)
    return {
        "channels": len(prepared),
        "depth": num_slices(reading),
        "rows": prepared.shape[-2],
        "columns": prepared.shape[-1],
        "first": chosen_slice(reading, attributions[0] if attributions else None),
        "pixels": _packed(pixels),
        "mask": None if reading.mask is None else _packed(reading.mask),
        "maps": [
            {
                "heading": one.method.heading,
                "words": one.method.words,
                "output": one.output,
                "largest": one.largest,
                "end": scale_end(one),
                "values": _packed(
                    np.round(np.clip(one.values / scale_end(one), 0.0, 1.0) * 255.0).astype(np.uint8)
                ),
            }
            for one in attributions
        ],
    }


def _packed(values: npt.NDArray[np.generic]) -> str:
    """Deflated, in letters."""
    return b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 1)).decode("ascii")


def _shown(model: TrainedModel) -> _ShownModel:
    return _ShownModel(
        name=visible(model.name),
        digest=model.digest,
        card=model.card,
        headline=tuple(
            (heading, model.card.test[name])
            for name, heading in model.task.headings
            if name in model.card.test
        ),
    )
