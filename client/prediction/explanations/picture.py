"""One reading as a picture that stands by itself: overlay, slices beside it, legend, what was overridden."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from client.prediction.explanations.attribution import Attribution
from client.prediction.explanations.colours import colour_table, scale_end, structure_colour
from client.prediction.explanations.overlay import Picture, coloured, outlined, slice_of
from client.prediction.explanations.slices import chosen_slice, grey_or_colour, neighbours, num_slices
from client.prediction.reading import Reading
from shared_models.model_card import NOT_A_DEVICE

WIDTH = 640
"""Pixels, of the whole picture."""
MOST_NEIGHBOURS = 5
_MARGIN, _GAP, _LINE = 16, 8, 20
_PAPER, _INK, _WARNING = (255, 255, 255), (17, 24, 39), (153, 27, 27)
_INNER = WIDTH - 2 * _MARGIN


@dataclass(frozen=True, slots=True)
class _Text:
    """A line below the image. *colour* fills a square before it, where it explains one."""

    words: str
    ink: tuple[int, int, int] = _INK
    colour: tuple[int, int, int] | None = None


def picture(
    reading: Reading, attribution: Attribution | None = None, *, structures: Sequence[str] = ()
) -> Picture:
    """Return the picture: RGB, uint8, shape (rows, `WIDTH`, 3).

    It names no file and nobody.

    Args:
        reading: of classification or segmentation.
        attribution: its map, if there is one.
        structures: names, in their order; of segmentation.
    """
    number = chosen_slice(reading, attribution)
    parts = [_enlarged(reading, attribution, number, _INNER)]
    if (of := num_slices(reading)) > 1:
        parts.append(_strip(reading, attribution, neighbours(number, of, most=MOST_NEIGHBOURS), number))
    if attribution is not None:
        parts.append(_scale())
    parts.append(_written(_lines(reading, attribution, structures, number)))
    height = sum(len(part) for part in parts) + _GAP * (len(parts) - 1) + 2 * _MARGIN
    page = np.full((height, WIDTH, 3), _PAPER, dtype=np.uint8)
    top = _MARGIN
    for part in parts:
        page[top : top + len(part), _MARGIN : _MARGIN + part.shape[1]] = part
        top += len(part) + _GAP
    return page


def picture_png(
    reading: Reading, attribution: Attribution | None = None, *, structures: Sequence[str] = ()
) -> bytes:
    """Return the same as PNG."""
    stream = BytesIO()
    Pillow.fromarray(picture(reading, attribution, structures=structures)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _enlarged(reading: Reading, attribution: Attribution | None, number: int, width: int) -> Picture:
    """One slice with what lies over it, so wide; the image bicubic, the map bilinear, the mask by repeating pixels."""
    base = grey_or_colour(reading, number)
    size = (width, max(1, round(width * base.shape[0] / base.shape[1])))
    enlarged: Picture = np.asarray(Pillow.fromarray(base).resize(size, Pillow.Resampling.BICUBIC))
    if attribution is not None:
        values = Pillow.fromarray(slice_of(attribution.values, number))
        larger = np.asarray(values.resize(size, Pillow.Resampling.BILINEAR), dtype=np.float32)
        enlarged = coloured(enlarged, larger, scale_end(attribution))
    if reading.mask is not None:
        mask = Pillow.fromarray(slice_of(reading.mask, number))
        enlarged = outlined(enlarged, np.asarray(mask.resize(size, Pillow.Resampling.NEAREST)))
    return enlarged


def _strip(reading: Reading, attribution: Attribution | None, numbers: Sequence[int], shown: int) -> Picture:
    """Slices side by side, the one that is shown large framed."""
    width = (_INNER - _GAP * (MOST_NEIGHBOURS - 1)) // MOST_NEIGHBOURS
    small = [_enlarged(reading, attribution, number, width) for number in numbers]
    strip = np.full((len(small[0]), _INNER, 3), _PAPER, dtype=np.uint8)
    for place, (number, one) in enumerate(zip(numbers, small, strict=True)):
        left = place * (width + _GAP)
        there = strip[:, left : left + width]
        there[:] = one
        if number == shown:
            for side in (there[:3], there[-3:], there[:, :3], there[:, -3:]):
                side[:] = _WARNING
    return strip


def _scale() -> Picture:
    """The colours of the map from 0 to the scale's end."""
    places = np.round(np.linspace(0, 255, _INNER)).astype(np.uint8)
    return np.repeat(colour_table()[places][None], 14, axis=0)


def _lines(
    reading: Reading, attribution: Attribution | None, structures: Sequence[str], number: int
) -> list[_Text]:
    lines = []
    if attribution is not None:
        chance = reading.probabilities[attribution.output]
        lines += [
            _Text(
                f"{attribution.method.heading} of “{attribution.output}”, whose probability is {chance:.3f}."
            ),
            _Text(
                f"Left end of the colours: 0. Right end: {scale_end(attribution):.2f} log odds. Largest value of this "
                f"map: {attribution.largest:.2f}."
            ),
            _Text(f"A value is the {attribution.method.words}."),
        ]
    if reading.mask is not None:
        found = set(np.unique(reading.mask))
        lines += [
            _Text(
                f"{name}{'' if place in found else ': nothing was found'}",
                colour=structure_colour(place),
            )
            for place, name in enumerate(structures, start=1)
        ]
    if num_slices(reading) > 1:
        lines.append(_Text(f"Slice {number + 1} of {num_slices(reading)}; below it some around it."))
    lines += [_Text(f"Overridden: {sentence}", ink=_WARNING) for sentence in reading.overrides]
    return [*lines, _Text(f"{NOT_A_DEVICE}. The image is the one that entered the model.")]


def _written(lines: Sequence[_Text]) -> Picture:
    rows = [(text, first, words) for text in lines for first, words in _wrapped(text)]
    paper = Pillow.new("RGB", (_INNER, _LINE * len(rows)), _PAPER)
    draw = ImageDraw.Draw(paper)
    for place, (text, first, words) in enumerate(rows):
        left, top = 0, place * _LINE
        if text.colour is not None:
            left = _LINE
            if first:
                draw.rectangle((0, top + 3, 13, top + 16), fill=text.colour, outline=_INK)
        draw.text((left, top + 1), words, fill=text.ink, font=_font())
    return np.asarray(paper)


def _wrapped(text: _Text) -> list[tuple[bool, str]]:
    """Its words in lines that fit; whether a line is its first."""
    room = _INNER - (_LINE if text.colour is not None else 0)
    lines = [""]
    for word in text.words.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and _font().getlength(longer) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return [(place == 0, line) for place, line in enumerate(lines)]


@cache
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has letters of most scripts."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 14)
