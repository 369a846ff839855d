"""One image as the model sees it: levels, then colour, aspect and size as the study says."""

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from pydicom.dataset import FileDataset

from client.dicom_file import Unusable, guarded, integer_of, text_of
from client.dicom_image import GREY, PALETTE, decode
from client.intensity import Levels, grey_levels, read_table
from client.reasons import Reason
from shared_models.study import Image

Plane = npt.NDArray[np.float32]


def prepare(dataset: FileDataset, image: Image) -> Plane:
    """Turn one image into the array that enters the model.

    Guarantees: depends on this image and the study alone; the same bits on every run and for every number of
    threads; always finite.

    Args:
        dataset: an image that passed `client.dicom_image.check_image`, with its pixel data.
        image: what the study wants.

    Returns:
        float32 of shape (channels, rows, columns) in [0, 1]; what is padded is 0. `intensity` concerns grey
        images; colour is scaled by its number of bits, since the standard gives windows to grey images only.

    Raises:
        Unusable: the pixel data cannot be decoded, or an attribute of their presentation cannot be used.

    Source:
        DICOM PS3.3 sections C.7.6.3 (Image Pixel), C.11.1 and C.11.2 (lookup tables).
    """
    stored = decode(dataset)
    with np.errstate(all="ignore"):  # absurd attributes may overflow; the result is checked below
        if text_of(dataset, "PhotometricInterpretation") in GREY:
            planes = grey_levels(stored, dataset, image)[np.newaxis]
        else:
            planes = np.moveaxis(_colour_levels(stored, dataset), -1, 0)
    if not np.isfinite(planes).all():
        raise Unusable(Reason.BAD_ATTRIBUTE, "Rescaling or window gives values that are not finite.")
    prepared = np.stack([fit(plane.astype(np.float32), image) for plane in planes])
    return np.clip(prepared, 0.0, 1.0)


def fit(plane: Plane, image: Image) -> Plane:
    """Bring a plane to the study's rows and columns.

    *Pad* keeps the whole plane and fills with 0, *crop* cuts the centre to the study's aspect, *stretch*
    changes the aspect; pixels are taken as square. Where a margin is odd, its larger part lies at the bottom or right.

    Pillow resizes: its antialiasing triangle filter runs in plain C in double precision on one thread and gives
    the same bits wherever it runs; torch's picks its kernel by processor and number of threads. The triangle
    filter has no negative weights, so values stay inside their range.

    Args:
        plane: float32 of any shape (height, width).
        image: rows, columns and aspect.

    Returns:
        float32 (rows, columns).
    """
    height, width = plane.shape
    if image.aspect == "stretch":
        return _resized(plane, image.rows, image.columns)
    wider = width * image.rows > height * image.columns
    if image.aspect == "crop":
        cut_rows = height if wider else max(1, round(width * image.rows / image.columns))
        cut_columns = max(1, round(height * image.columns / image.rows)) if wider else width
        top, left = (height - cut_rows) // 2, (width - cut_columns) // 2
        return _resized(plane[top : top + cut_rows, left : left + cut_columns], image.rows, image.columns)
    rows = max(1, round(height * image.columns / width)) if wider else image.rows
    columns = image.columns if wider else max(1, round(width * image.rows / height))
    padded = np.zeros((image.rows, image.columns), dtype=np.float32)
    top, left = (image.rows - rows) // 2, (image.columns - columns) // 2
    padded[top : top + rows, left : left + columns] = _resized(plane, rows, columns)
    return padded


def _resized(plane: Plane, rows: int, columns: int) -> Plane:
    if plane.shape == (rows, columns):
        return plane
    resized = Pillow.fromarray(np.ascontiguousarray(plane)).resize(
        (columns, rows), Pillow.Resampling.BILINEAR
    )
    return np.asarray(resized, dtype=np.float32)


def _colour_levels(stored: npt.NDArray[np.generic], dataset: FileDataset) -> Levels:
    """(rows, columns, 3) in [0, 1] of an RGB or palette image."""
    if text_of(dataset, "PhotometricInterpretation") != PALETTE:
        bits = integer_of(dataset, "BitsStored", low=1, high=32)
        return np.clip(stored.astype(np.float64) / (2.0**bits - 1), 0.0, 1.0)
    with guarded(Reason.BAD_ATTRIBUTE):
        little_endian = bool(dataset.original_encoding[1])
        tables = [
            read_table(
                dataset[f"{colour}PaletteColorLookupTableDescriptor"].value,
                dataset[f"{colour}PaletteColorLookupTableData"].value,
                little_endian=little_endian,
            )
            for colour in ("Red", "Green", "Blue")
        ]
    return np.stack([table.apply(stored) / table.highest for table in tables], axis=-1)
