"""A mask of the model's grid on the pixels of its source: what preparation did (`client.preparation`), backwards.

Each pixel of the source takes the value of the point of the grid in whose cell its middle lies. Where the model saw
nothing, since it was cropped away, there is 0.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydicom.dataset import FileDataset
from scipy import ndimage

from client.orientation import transposed, upright
from client.pixel_size import height_over_width, spacing_of
from client.prediction.reading import Mask
from client.volume import Slice, Volume, stacked
from shared_models.study import Image

Places = npt.NDArray[np.intp]


def on_plane(mask: Mask, header: FileDataset, image: Image) -> Mask:
    """Return the mask of a plane image on its stored pixels.

    Args:
        mask: uint8, shape (rows, columns) of the study.
        header: of the source, or of the frame that was taken.
        image: how it was prepared.

    Returns:
        uint8, shape (Rows, Columns) of the source.

    Raises:
        Unusable: the header does not say how the image lies.
    """
    shape = int(header.Rows), int(header.Columns)
    ratio, spacing = height_over_width(header), spacing_of(header)
    stored = np.indices(shape, dtype=np.float32)  # of each pixel its row and its column; both exact
    if image.orientation == "standard":
        if transposed(header):
            ratio, spacing = 1.0 / ratio, spacing and spacing[::-1]
        stored = upright(stored, header)
    height, width = stored.shape[1:]
    if image.spacing is not None and spacing is not None:
        down, across = _cut_or_padded((height, width), spacing, image.spacing, image)
    else:
        down, across = _fitted((height, width), image, ratio)
    placed = np.where((down < 0)[:, None] | (across < 0), 0, mask[down][:, across])
    rows, columns = stored.astype(np.intp)
    found = np.zeros(shape, dtype=np.uint8)
    found[rows, columns] = placed
    return found


def on_slices(mask: Mask, slices: Sequence[Slice], shape: tuple[int, int], image: Image) -> Mask:
    """Return the mask of a volume on the stored pixels of each of its slices.

    Args:
        mask: uint8, shape (depth, rows, columns) of the study.
        slices: where each lies, in any order; their values are not looked at.
        shape: rows and columns of each.
        image: how the volume was prepared; it has a depth.

    Returns:
        uint8, shape (slices, *shape), in the order of *slices*.

    Raises:
        Unusable: they make no volume.
    """
    if image.voxel is None:
        raise ValueError("the study's images are no volumes")
    point = np.zeros((1, 1), dtype=np.float32)
    stack = stacked(
        [
            Slice(values=point, position=one.position, across=one.across, down=one.down, spacing=one.spacing)
            for one in slices
        ]
    )
    size = len(stack.values), *shape
    whole = Volume(values=np.broadcast_to(np.float32(0.0), size), origin=stack.origin, steps=stack.steps)
    voxel, half = np.array(image.voxel), (np.array(mask.shape) - 1) / 2.0
    found = np.zeros((len(slices), *shape), dtype=np.uint8)
    for number, one in enumerate(slices):
        steps = np.zeros((3, 3))  # from pixels to points of the grid, whose axes run towards z, y and x
        steps[:, 1] = (one.down * one.spacing[0])[::-1] / voxel
        steps[:, 2] = (one.across * one.spacing[1])[::-1] / voxel
        ndimage.affine_transform(
            mask,
            steps,
            (one.position - whole.middle)[::-1] / voxel + half,
            output_shape=(1, *shape),
            output=found[number : number + 1],
            order=0,
            mode="grid-constant",
        )
    return found


def _fitted(size: tuple[int, int], image: Image, ratio: float) -> tuple[Places, Places]:
    """For each row and each column its place on the grid; see `client.preparation.fit`."""
    height, width = size
    tall = height * ratio
    if image.aspect == "stretch":
        return _places(height, (0, height), image.rows, image.rows), _places(
            width, (0, width), image.columns, image.columns
        )
    wider = width * image.rows > tall * image.columns
    if image.aspect == "crop":
        rows = height if wider else max(1, min(height, round(width * image.rows / image.columns / ratio)))
        columns = max(1, min(width, round(tall * image.columns / image.rows))) if wider else width
        top, left = (height - rows) // 2, (width - columns) // 2
        return _places(height, (top, top + rows), image.rows, image.rows), _places(
            width, (left, left + columns), image.columns, image.columns
        )
    rows = max(1, round(tall * image.columns / width)) if wider else image.rows
    columns = image.columns if wider else max(1, round(width * image.rows / tall))
    return _places(height, (0, height), rows, image.rows), _places(width, (0, width), columns, image.columns)


def _cut_or_padded(
    size: tuple[int, int], spacing: tuple[float, float], wanted: float, image: Image
) -> tuple[Places, Places]:
    """The same for `client.preparation.resampled`."""
    found = []
    for number, own, most in zip(size, spacing, (image.rows, image.columns), strict=True):
        extent = most * wanted / own
        margin = max(0.0, (number - extent) / 2)
        filled = most if extent <= number else max(1, min(most, round(number * own / wanted)))
        found.append(_places(number, (margin, number - margin), filled, most))
    return found[0], found[1]


def _places(number: int, seen: tuple[float, float], filled: int, most: int) -> Places:
    """Of each of *number* pixels the place in whose cell its middle lies; -1 of those that were not seen.

    Args:
        number: of pixels along an axis.
        seen: from where to where they were taken, in pixels.
        filled: so many places they fill.
        most: of all places, in whose middle those are.
    """
    begin, end = seen
    places = np.floor((np.arange(number) + 0.5 - begin) * filled / (end - begin)).astype(np.intp)
    seen_there = (places >= 0) & (places < filled)
    return np.where(seen_there, places + (most - filled) // 2, -1)
