"""Masks as labels of segmentation: read, checked against their image, and prepared on the same grid.

A mask comes from DICOM SEG, from NIfTI-1 (`client.nifti`) for a volume, or from a grey PNG for a plane image. Reading
one is work for the process that decodes (`client.decoding`): its file may be hostile.

==================  =============================================================================
of the image        of its mask
==================  =============================================================================
sorted into a stack frames by where they lie, voxels of NIfTI turned to the axes of the stack
resampled, linear   the voxel in which each place of the grid lies; outside of the image 0
turned, padded, cut as the image
==================  =============================================================================

An empty mask is a mask: nothing of what is looked for is there.
"""

import itertools
from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from pydicom.dataset import FileDataset

from client.dicom_file import Unusable
from client.nifti import read_nifti
from client.orientation import transposed, upright
from client.pixel_size import height_over_width, spacing_of
from client.preparation import Plane, fit, resampled
from client.reasons import Reason
from client.segmentation import segmented_plane, segmented_volume
from client.structures import WHOLE, Classes, MaskValues, classes_of
from client.volume import Volume, Voxels, nearest
from shared_models.study import Image

_OFF = 0.1
"""Of a voxel: so far the corners of mask and volume may lie apart."""


def volume_mask(
    path: Path,
    of: Volume,
    image: Image,
    *,
    instances: Collection[str] = (),
    structures: MaskValues = WHOLE,
) -> Classes:
    """Return the mask of a volume on the study's grid.

    Args:
        path: NIfTI-1 where its name ends on ``.nii`` or ``.nii.gz``, else DICOM SEG.
        of: the volume, as `client.series.read_series` gave it.
        image: what the study wants; it has a depth.
        instances: SOPInstanceUIDs of the volume's files; for SEG.
        structures: the study's.

    Returns:
        uint8 of ``image.shape``.

    Raises:
        Unusable: with the problem.
    """
    if image.depth is None or image.spacing is None or image.slice_spacing is None:
        raise ValueError("the study's images are no volumes")
    if path.name.lower().endswith((".nii", ".nii.gz")):
        mask = Volume(values=on_voxels(read_nifti(path, structures), of), origin=of.origin, steps=of.steps)
    else:
        mask = segmented_volume(path, of, instances=instances, structures=structures)
    placed = nearest(
        mask,
        spacing=(image.slice_spacing, image.spacing, image.spacing),
        shape=(image.depth, image.rows, image.columns),
        outside=0.0,
    )
    return placed.astype(np.uint8)[np.newaxis]


def on_voxels(mask: Volume, of: Volume) -> Voxels:
    """Return the values of a mask in the order of a volume's voxels, which must be its own.

    Raises:
        Unusable: they have other sizes, or lie elsewhere.
    """
    to_voxel = np.linalg.inv(of.steps)
    turn = to_voxel @ mask.steps  # how far a step along each axis of the mask goes along those of the volume
    axes = np.abs(turn).argmax(axis=0)
    if sorted(axes) != [0, 1, 2]:
        raise Unusable(Reason.MASK_ELSEWHERE, "Its axes are not those of its image.")
    order = [int(np.flatnonzero(axes == axis)[0]) for axis in range(3)]
    backwards = [axis for axis in range(3) if turn[axis, order[axis]] < 0.0]
    values = np.flip(mask.values.transpose(order), tuple(backwards))
    if values.shape != of.values.shape:
        raise Unusable(Reason.MASK_OTHER_SIZE, f"{values.shape} voxels; the image has {of.values.shape}.")
    sizes = np.array(mask.values.shape) - 1.0
    corners = [
        to_voxel @ (mask.origin + mask.steps @ (np.array(corner) * sizes) - of.origin)
        for corner in itertools.product((0, 1), repeat=3)
    ]
    ends = np.array(of.values.shape) - 1.0
    off = max(float(np.minimum(np.abs(corner), np.abs(corner - ends)).max()) for corner in corners)
    if off > _OFF:
        raise Unusable(Reason.MASK_ELSEWHERE, f"Its corners lie {off:.2g} voxels beside those of its image.")
    return np.ascontiguousarray(values)


def plane_mask(path: Path, header: FileDataset, image: Image, *, structures: MaskValues = WHOLE) -> Classes:
    """Return the mask of a plane image on the study's pixels.

    Args:
        path: PNG where its name ends on ``.png``, else DICOM SEG.
        header: of the image.
        image: what the study wants.
        structures: the study's.

    Returns:
        uint8 of shape (1, rows, columns).

    Raises:
        Unusable: with the problem.
        Unusable: the image's own header does not say how it lies.
    """
    shape = int(header.Rows), int(header.Columns)
    if path.name.lower().endswith(".png"):
        classes = classes_of(_read_png(path, shape), structures)
    else:
        classes = segmented_plane(path, shape, instance=str(header.SOPInstanceUID), structures=structures)
    plane: Plane = classes.astype(np.float32)
    ratio, spacing = height_over_width(header), spacing_of(header)
    if image.orientation == "standard":
        if transposed(header):
            ratio, spacing = 1.0 / ratio, spacing and spacing[::-1]
        plane = upright(plane[np.newaxis], header)[0]
    if image.spacing is not None and spacing is not None:
        placed = resampled(plane, spacing, image.spacing, image, Pillow.Resampling.NEAREST)
    else:
        placed = fit(plane, image, ratio, Pillow.Resampling.NEAREST)
    return placed.astype(np.uint8)[np.newaxis]


def _read_png(path: Path, shape: tuple[int, int]) -> npt.NDArray[np.generic]:
    """The values of a grey PNG of this size, whose pixels are looked at only where the size is right."""
    try:
        with Pillow.open(path, formats=["PNG"]) as picture:
            if picture.size != shape[::-1]:
                columns, rows = picture.size
                raise Unusable(
                    Reason.MASK_OTHER_SIZE,
                    f"{rows} × {columns} pixels; the image has {shape[0]} × {shape[1]}.",
                )
            if picture.mode not in ("1", "L", "I;16", "I"):
                raise Unusable(Reason.MASK_UNSUPPORTED, f"Its pixels are {picture.mode}, not grey.")
            return np.array(picture)
    except (
        OSError,
        ValueError,
        SyntaxError,
        Pillow.DecompressionBombError,
        Pillow.DecompressionBombWarning,
    ) as error:
        raise Unusable(Reason.MASK_UNREADABLE, f"({type(error).__name__})") from None
