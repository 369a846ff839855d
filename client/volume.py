"""A series of slices as one volume in the patient's millimetres, and that volume on the study's grid.

Source: DICOM PS3.3 section C.7.6.2.1.1 (Image Plane Module: the equation that maps a pixel to the patient).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from client.dicom_file import Unusable
from client.reasons import Reason

Voxels = npt.NDArray[np.float32]
Millimetres = npt.NDArray[np.float64]

_SAME = 1e-3
"""Of direction cosines, and of spacings relative to each other: what scanners round."""
_SAME_PLACE = 0.01
"""Of the usual distance between slices: two that are closer lie at one place."""
_ROUNDING = 1e-6
"""Of a voxel."""
_LEAST, _MOST = 0.01, 100.0
"""mm between pixels, and between slices: beyond these a grid has no values, or takes hours."""
_REGULAR = 0.05
"""Of the usual distance between slices: so much may one differ, or lie beside the line of the others."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slice:
    """One slice and where it lies, in the patient's system: x to the left, y to the back, z to the head.

    Attributes:
        values: float32, shape (rows, columns).
        position: of the middle of the first pixel, mm, shape (3,): Image Position (Patient) (0020,0032).
        across: unit vector in which columns count up, shape (3,): the first half of Image Orientation (Patient).
        down: unit vector in which rows count up, shape (3,): its second half.
        spacing: mm between rows, and between columns: Pixel Spacing (0028,0030).
    """

    values: Voxels
    position: Millimetres
    across: Millimetres
    down: Millimetres
    spacing: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Volume:
    """Slices in their order, evenly apart.

    Attributes:
        values: float32, shape (slices, rows, columns).
        origin: of the middle of voxel (0, 0, 0), mm, shape (3,).
        steps: shape (3, 3); column k is the way in mm from a voxel to the next of axis k: slice, row, column. The first
            need not stand upright on the others: a gantry can be tilted.
        num_dropped: slices that were there twice, to the pixel.
    """

    values: Voxels
    origin: Millimetres
    steps: Millimetres
    num_dropped: int = 0

    @property
    def middle(self) -> Millimetres:
        """The middle of the volume, mm, shape (3,)."""
        half: Millimetres = (np.array(self.values.shape) - 1) / 2.0
        return self.origin + self.steps @ half


def stacked(slices: Sequence[Slice]) -> Volume:
    """Put the slices of a series together, in whatever order they come.

    Raises:
        Unusable: fewer than two, of different sizes, spacings or orientations, two different ones at one place, not
            evenly apart, so that one is missing, or closer or wider apart than any device makes them.
    """
    _check_alike(slices)
    first = slices[0]
    normal = np.cross(first.across, first.down)
    depths = np.array([one.position @ normal for one in slices])
    order = np.argsort(depths, kind="stable")
    usual = _usual_distance(depths[order])
    kept = _without_copies([slices[place] for place in order], normal, usual)
    first = kept[0]  # not the one that came first: directions differ in what was rounded
    positions = np.stack([one.position for one in kept])
    if len(kept) < 2:
        raise Unusable(Reason.NO_VOLUME, "All slices lie at one place.")
    step = (positions[-1] - positions[0]) / (len(kept) - 1)
    if not all(_LEAST <= distance <= _MOST for distance in (*first.spacing, np.linalg.norm(step))):
        raise Unusable(Reason.NO_VOLUME, f"Pixels or slices are not {_LEAST:g} to {_MOST:g} mm apart.")
    _check_regular(positions, step, normal)
    rows, columns = first.spacing
    return Volume(
        values=np.stack([one.values for one in kept]),
        origin=positions[0],
        steps=np.stack([step, first.down * rows, first.across * columns], axis=1),
        num_dropped=len(slices) - len(kept),
    )


def resampled(
    volume: Volume, *, spacing: tuple[float, float, float], shape: tuple[int, int, int], outside: float
) -> Voxels:
    """Return the middle of a volume on a grid along the patient's axes, by linear interpolation.

    Axis 0 counts towards the head, axis 1 to the back, axis 2 to the patient's left. Where the grid is coarser than the
    volume, the volume is smoothed first, so that nothing small is seen or missed by chance.

    Args:
        volume: at least two voxels along each axis.
        spacing: of the grid, mm along each of its axes.
        shape: of the grid.
        outside: the value where the volume has none.

    Returns:
        float32 of *shape*.
    """
    from scipy import ndimage  # only volumes need it, and it takes a third of a reader's start

    matrix, offset = _grid_in_voxels(volume, spacing, shape)
    placed: Voxels = ndimage.affine_transform(
        _smoothed(volume.values, matrix),
        matrix,
        offset,
        output_shape=shape,
        output=np.float32,
        order=1,
        mode="nearest",
    )
    placed[_beyond(matrix, offset, shape, volume.values.shape)] = outside
    return placed


def nearest(
    volume: Volume, *, spacing: tuple[float, float, float], shape: tuple[int, int, int], outside: float
) -> Voxels:
    """Return the same grid as `resampled`, each place with the value of the voxel in which it lies."""
    from scipy import ndimage  # only volumes need it, and it takes a third of a reader's start

    matrix, offset = _grid_in_voxels(volume, spacing, shape)
    placed: Voxels = ndimage.affine_transform(
        volume.values,
        matrix,
        offset,
        output_shape=shape,
        output=np.float32,
        order=0,
        mode="nearest",
    )
    placed[_beyond(matrix, offset, shape, volume.values.shape)] = outside
    return placed


def _grid_in_voxels(
    volume: Volume, spacing: tuple[float, float, float], shape: tuple[int, int, int]
) -> tuple[Millimetres, Millimetres]:
    """The linear map and the offset from places of the grid to indices of the volume."""
    grid = np.zeros((3, 3))
    for axis, millimetres in enumerate(spacing):
        grid[2 - axis, axis] = millimetres  # z, y, x
    half = (np.array(shape) - 1) / 2.0
    to_voxel = np.linalg.inv(volume.steps)
    return to_voxel @ grid, to_voxel @ (volume.middle - grid @ half - volume.origin)


def _beyond(
    matrix: Millimetres, offset: Millimetres, shape: tuple[int, int, int], size: tuple[int, ...]
) -> npt.NDArray[np.bool_]:
    """Where the grid lies outside all voxels, which reach half a voxel beyond their middles; bool of *shape*."""
    beyond = np.zeros(shape, dtype=np.bool_)
    indices = np.ogrid[tuple(slice(number) for number in shape)]
    for row, start, number in zip(matrix, offset, size, strict=True):
        place = start + sum(step * index for step, index in zip(row, indices, strict=True))
        beyond |= (place < -0.5 - _ROUNDING) | (place > number - 0.5 + _ROUNDING)
    return beyond


def _check_alike(slices: Sequence[Slice]) -> None:
    if len(slices) < 2:
        raise Unusable(Reason.NO_VOLUME, f"{len(slices)} slice.")
    first = slices[0]
    for one in slices:
        upright = abs(one.across @ one.down) < _SAME
        unit = all(abs(np.linalg.norm(direction) - 1.0) < _SAME for direction in (one.across, one.down))
        if not (upright and unit):
            raise Unusable(Reason.BAD_ATTRIBUTE, "Image Orientation (Patient) has no two directions.")
        if one.values.shape != first.values.shape:
            raise Unusable(Reason.NO_VOLUME, "Its slices have several sizes.")
        if not np.allclose(one.spacing, first.spacing, rtol=_SAME):
            raise Unusable(Reason.NO_VOLUME, "Its slices have several pixel spacings.")
        turned = max(np.abs(one.across - first.across).max(), np.abs(one.down - first.down).max())
        if turned > _SAME:
            raise Unusable(Reason.NO_VOLUME, "Its slices lie in several directions.")


def _usual_distance(depths: Millimetres) -> float:
    """The median distance of neighbours that are not at one place; 0 where there are none."""
    distances = np.diff(depths)
    apart = distances[distances > _SAME_PLACE * distances.max(initial=0.0)]
    return float(np.median(apart)) if len(apart) else 0.0


def _without_copies(ordered: Sequence[Slice], normal: Millimetres, usual: float) -> list[Slice]:
    kept = [ordered[0]]
    for one in ordered[1:]:
        if (one.position - kept[-1].position) @ normal > _SAME_PLACE * usual:
            kept.append(one)
        elif not np.array_equal(one.values, kept[-1].values, equal_nan=True):
            raise Unusable(
                Reason.NO_VOLUME,
                "Two different slices lie at one place: a series in time, or of two reconstructions.",
            )
    return kept


def _check_regular(positions: Millimetres, step: Millimetres, normal: Millimetres) -> None:
    depths = positions @ normal
    distances = np.diff(depths)
    usual = float(np.median(distances))
    if (widest := float(distances.max())) > (1.0 + _REGULAR) * usual:
        raise Unusable(
            Reason.MISSING_SLICE,
            f"A distance of {widest:.2f} mm between slices that are {usual:.2f} mm apart.",
        )
    line = positions[0] + np.arange(len(positions))[:, None] * step
    if np.linalg.norm(positions - line, axis=1).max() > _REGULAR * usual * max(1.0, len(positions) / 20.0):
        raise Unusable(Reason.NO_VOLUME, "Its slices are not evenly apart along one line.")


def _smoothed(values: Voxels, matrix: Millimetres) -> Voxels:
    """Gaussian, of half of what a step of the grid is longer than a voxel, along each axis of the volume.

    Source: the rule of ``skimage.transform.resize``.
    """
    voxels_a_step = np.linalg.norm(matrix, axis=1)
    deviations = np.maximum(0.0, (voxels_a_step - 1.0) / 2.0)
    if not deviations.any():
        return values
    from scipy import ndimage  # only volumes need it, and it takes a third of a reader's start

    found: Voxels = ndimage.gaussian_filter(values, deviations, mode="nearest")
    return found
