"""One image as the model sees it: levels, then colour, aspect and size as the study says."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from pydicom.dataset import FileDataset

from client.dicom_file import Unusable, integer_of, text_of
from client.dicom_image import GREY, PALETTE, decode
from client.frames import chosen_frame
from client.intensity import grey_levels
from client.orientation import transposed, upright
from client.palette import palette_of
from client.pixel_size import height_over_width, spacing_of
from client.reasons import Reason
from shared_models.study import Image

Plane = npt.NDArray[np.float32]

PREPARATION = 1
"""Raised with every change that gives an image other values, so that none prepared before is used."""


def prepare(
    dataset: FileDataset,
    image: Image,
    seen: Callable[[npt.NDArray[np.generic]], None] = lambda stored: None,
) -> Plane:
    """Turn one image into the array that enters the model.

    Guarantees: depends on this image and the study alone; the same bits on every run and for every number of
    threads; always finite.

    Args:
        dataset: what `client.dicom_image.read_image` returned.
        image: what the study wants.
        seen: gets the stored values, as they were decoded.

    Returns:
        float32 of shape (channels, rows, columns) in [0, 1]; what is padded is 0. `intensity` concerns grey
        images; colour is scaled by its number of bits, since the standard gives windows to grey images only.

    Raises:
        Unusable: the pixel data cannot be decoded, an attribute of their presentation cannot be used, or the header
            does not say what the study needs to know (Hounsfield units, spacing, orientation).

    Source:
        DICOM PS3.3 sections C.7.6.3 (Image Pixel), C.11.1 and C.11.2 (lookup tables).
    """
    ratio, spacing = height_over_width(dataset), spacing_of(dataset)
    if image.spacing is not None and spacing is None:
        raise Unusable(Reason.NO_SPACING)
    swap = image.orientation == "standard" and transposed(dataset)
    if swap:
        ratio, spacing = 1.0 / ratio, spacing and spacing[::-1]
    stored = decode(dataset, chosen_frame(dataset, image))
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise Unusable(Reason.UNSUPPORTED_PIXELS, "It holds values that are no numbers.")
    seen(stored)
    with np.errstate(all="ignore"):  # absurd attributes may overflow; the result is checked below
        if text_of(dataset, "PhotometricInterpretation") in GREY:
            planes = _single(grey_levels(stored, dataset, image))[np.newaxis]
        else:
            planes = _colour_levels(stored, dataset)
    del stored
    if image.orientation == "standard":
        planes = upright(planes, dataset)
    if image.spacing is not None and spacing is not None:
        prepared = np.stack([resampled(plane, spacing, image.spacing, image) for plane in planes])
    else:
        prepared = np.stack([fit(plane, image, ratio) for plane in planes])
    return np.clip(prepared, 0.0, 1.0)


def fit(
    plane: Plane,
    image: Image,
    ratio: float = 1.0,
    resampling: Pillow.Resampling = Pillow.Resampling.BILINEAR,
) -> Plane:
    """Bring a plane to the study's rows and columns.

    *Pad* keeps the whole plane and fills with 0, *crop* cuts the centre to the study's aspect, *stretch*
    changes the aspect. Where a margin is odd, its larger part lies at the bottom or right.

    Pillow resizes: its antialiasing triangle filter runs in plain C in double precision on one thread and gives
    the same bits wherever it runs; torch's picks its kernel by processor and number of threads. The triangle
    filter has no negative weights, so values stay inside their range.

    Args:
        plane: float32 of any shape (height, width).
        image: rows, columns and aspect.
        ratio: height of a pixel over its width; pixels of the result are square.
        resampling: the filter; a mask takes the nearest pixel.

    Returns:
        float32 (rows, columns).
    """
    height, width = plane.shape
    tall = height * ratio  # in widths of a pixel
    if image.aspect == "stretch":
        return _resized(plane, image.rows, image.columns, resampling)
    wider = width * image.rows > tall * image.columns
    if image.aspect == "crop":
        cut_rows = height if wider else max(1, min(height, round(width * image.rows / image.columns / ratio)))
        cut_columns = max(1, min(width, round(tall * image.columns / image.rows))) if wider else width
        top, left = (height - cut_rows) // 2, (width - cut_columns) // 2
        cut = plane[top : top + cut_rows, left : left + cut_columns]
        return _resized(cut, image.rows, image.columns, resampling)
    rows = max(1, round(tall * image.columns / width)) if wider else image.rows
    columns = image.columns if wider else max(1, round(width * image.rows / tall))
    return _padded(_resized(plane, rows, columns, resampling), image)


def resampled(
    plane: Plane,
    spacing: tuple[float, float],
    wanted: float,
    image: Image,
    resampling: Pillow.Resampling = Pillow.Resampling.BILINEAR,
) -> Plane:
    """Bring a plane to the study's size of pixels, then its middle to the study's rows and columns.

    What is larger is cut, what is smaller is padded with 0; nothing is scaled. Nothing larger than the study's size
    is ever made, whatever the spacing claims.

    Args:
        plane: float32 of any shape (height, width).
        spacing: mm between its rows and between its columns.
        wanted: mm between rows and columns of the result.
        image: rows and columns.
        resampling: the filter; a mask takes the nearest pixel.

    Returns:
        float32 (rows, columns).
    """
    sizes, margins = [], []
    for number, own, most in zip(plane.shape, spacing, (image.rows, image.columns), strict=True):
        extent = most * wanted / own  # of the whole result, in pixels of the plane
        margins.append(max(0.0, (number - extent) / 2))
        sizes.append(most if extent <= number else max(1, min(most, round(number * own / wanted))))
    (height, width), (top, left) = plane.shape, margins
    if plane.shape == tuple(sizes) and not any(margins):
        return _padded(plane, image)
    made = Pillow.fromarray(np.ascontiguousarray(plane)).resize(
        (sizes[1], sizes[0]), resampling, box=(left, top, width - left, height - top)
    )
    return _padded(np.asarray(made, dtype=np.float32), image)


def _padded(plane: Plane, image: Image) -> Plane:
    """The plane in the middle of the study's size, with 0 around it."""
    (rows, columns), padded = plane.shape, np.zeros((image.rows, image.columns), dtype=np.float32)
    top, left = (image.rows - rows) // 2, (image.columns - columns) // 2
    padded[top : top + rows, left : left + columns] = plane
    return padded


def _resized(plane: Plane, rows: int, columns: int, resampling: Pillow.Resampling) -> Plane:
    if plane.shape == (rows, columns):
        return plane
    resized = Pillow.fromarray(np.ascontiguousarray(plane)).resize((columns, rows), resampling)
    return np.asarray(resized, dtype=np.float32)


def _single(levels: npt.NDArray[np.float64]) -> Plane:
    """As float32. Raises Unusable where a level is not finite."""
    if not np.isfinite(levels).all():
        raise Unusable(Reason.BAD_ATTRIBUTE, "Rescaling or window gives values that are not finite.")
    return levels.astype(np.float32)


def _colour_levels(stored: npt.NDArray[np.generic], dataset: FileDataset) -> Plane:
    """(3, rows, columns) in [0, 1] of an RGB or palette image."""
    if text_of(dataset, "PhotometricInterpretation") == PALETTE:
        return np.stack([_single(table.apply(stored) / table.highest) for table in palette_of(dataset)])
    highest = 2.0 ** integer_of(dataset, "BitsStored", low=1, high=32) - 1
    samples = (stored[..., colour].astype(np.float64) for colour in range(3))
    return np.stack([_single(np.clip(sample / highest, 0.0, 1.0)) for sample in samples])
