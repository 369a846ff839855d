"""Images altered at random before a step, each by itself, and their masks by the same geometry.

An image's alterations are drawn for that image alone, and depend on no other image. Under differential privacy this is
part of what a patient contributes, which is clipped afterwards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from privacy.randomness import CryptographicGenerator
from shared_models.augmentation import AXES, Augmentation

Doubles = NDArray[np.float64]


def altered(
    images: Tensor,
    augmentation: Augmentation,
    *,
    generator: CryptographicGenerator,
    voxel: Sequence[float] | None = None,
    masks: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the images, and their masks, altered as the study allows. What comes in stays as it is.

    Beyond the border of an image all is 0: black, and in masks the background.

    Args:
        images: float32, shape (n, channels, rows, columns) or (n, channels, slices, rows, columns), in [0, 1].
        augmentation: the study's.
        generator: draws for each image in turn, so that how many come at a time changes nothing but the noise.
        voxel: size of a voxel along each axis of an image; None where it is the same along all.
        masks: shape (n, *sizes) or (n, any, *sizes), any type; moved as their images, with the nearest pixel's value.

    Returns:
        images in [0, 1], and masks of the type that came in.
    """
    if not augmentation.alters or not len(images):
        return images, masks
    dims = images.dim() - 2
    drawn = _Drawn.of(len(images), dims, augmentation, generator)
    for axis, mirrored in enumerate(drawn.mirrored.T, start=1):
        if mirrored.any():
            images = _mirrored(images, mirrored, -axis)
            masks = None if masks is None else _mirrored(masks, mirrored, -axis)
    if augmentation.moves:
        grid = _grid(drawn, images, voxel or (1.0,) * dims)
        images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        masks = None if masks is None else _moved(masks, grid)
    if augmentation.changes_levels:
        images = _relevelled(images, drawn)
    return images, masks


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """What was drawn for each of n images, float64 but *mirrored*.

    Attributes:
        mirrored: shape (n, dims), from the last axis to the first.
        linear: shape (n, dims, dims), the map from a place in the altered image to one in the image, about the middle,
            axes from the last to the first.
        shift: shape (n, dims), in shares of the image.
        levels: shape (n, 4): what is added, and factors of contrast, of the exponent, and of the noise.
        seed: of the noise.
    """

    mirrored: NDArray[np.bool_]
    linear: Doubles
    shift: Doubles
    levels: Doubles
    seed: int | None

    @classmethod
    def of(
        cls, num: int, dims: int, augmentation: Augmentation, generator: CryptographicGenerator
    ) -> "_Drawn":
        planes = dims * (dims - 1) // 2
        uniform = generator.uniform(num * (2 * dims + 2 * planes + dims + 4)).reshape(num, -1)
        flips, angles, shears, shifts, scales, levels = np.split(
            uniform, np.cumsum([dims, planes, planes, dims, dims]), axis=1
        )
        allowed = np.array([axis in augmentation.flip for axis in AXES[:dims]])
        turned = _rotations(_symmetric(angles) * math.radians(augmentation.rotation), dims)
        sheared = _shears(np.tan(_symmetric(shears) * math.radians(augmentation.shear)), dims)
        scaled = _factors(scales[:, :1], augmentation.scale)[..., None]
        noisy = augmentation.noise > 0.0
        return cls(
            mirrored=(flips < 0.5) & allowed,
            linear=turned @ sheared * scaled,
            shift=_symmetric(shifts) * augmentation.shift,
            levels=np.column_stack(
                (
                    _symmetric(levels[:, 0]) * augmentation.brightness,
                    _factors(levels[:, 1], augmentation.contrast),
                    _factors(levels[:, 2], augmentation.gamma),
                    levels[:, 3] * augmentation.noise,
                )
            ),
            seed=int(generator.words(1)[0]) & (2**63 - 1) if noisy else None,
        )


def _symmetric(uniform: Doubles) -> Doubles:
    return 2.0 * uniform - 1.0


def _factors(uniform: Doubles, largest: float) -> Doubles:
    """Between 1 / (1 + largest) and 1 + largest; its logarithm is uniform."""
    factors: Doubles = np.exp(_symmetric(uniform) * math.log1p(largest))
    return factors


def _pairs(dims: int) -> list[tuple[int, int]]:
    return [(first, second) for first in range(dims) for second in range(first + 1, dims)]


def _rotations(angles: Doubles, dims: int) -> Doubles:
    """One rotation in each plane, one after the other: (n, planes) to (n, dims, dims)."""
    total = np.broadcast_to(np.eye(dims), (len(angles), dims, dims))
    for (first, second), angle in zip(_pairs(dims), angles.T, strict=True):
        one = np.broadcast_to(np.eye(dims), total.shape).copy()
        one[:, first, first] = one[:, second, second] = np.cos(angle)
        one[:, first, second], one[:, second, first] = -np.sin(angle), np.sin(angle)
        total = total @ one
    return total


def _shears(slopes: Doubles, dims: int) -> Doubles:
    total = np.broadcast_to(np.eye(dims), (len(slopes), dims, dims)).copy()
    for (first, second), slope in zip(_pairs(dims), slopes.T, strict=True):
        total[:, first, second] = slope
    return total


def _grid(drawn: _Drawn, images: Tensor, voxel: Sequence[float]) -> Tensor:
    """Where each pixel comes from, in torch's coordinates, in which an image reaches from −1 to 1 along each axis."""
    extent = np.array([size * step for size, step in zip(images.shape[2:], voxel, strict=True)])[::-1]
    linear = drawn.linear * extent[None, None, :] / extent[None, :, None]
    theta = np.concatenate((linear, 2.0 * drawn.shift[:, :, None]), axis=2)
    matrices = torch.from_numpy(theta).to(images.device, images.dtype)
    return F.affine_grid(matrices, [len(images), 1, *images.shape[2:]], align_corners=False)


def _moved(masks: Tensor, grid: Tensor) -> Tensor:
    values = masks.to(grid.dtype).reshape(len(masks), -1, *grid.shape[1:-1])
    moved = F.grid_sample(values, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return moved.reshape(masks.shape).to(masks.dtype)


def _mirrored(values: Tensor, which: NDArray[np.bool_], axis: int) -> Tensor:
    chosen = torch.from_numpy(np.ascontiguousarray(which)).to(values.device)
    return torch.where(_each(chosen, values), values.flip(axis), values)


def _relevelled(images: Tensor, drawn: _Drawn) -> Tensor:
    levels = torch.from_numpy(drawn.levels).to(images.device, images.dtype)
    added, contrast, gamma, noise = (_each(one, images) for one in levels.unbind(1))
    images = ((images.clamp(0.0, 1.0) ** gamma - 0.5) * contrast + 0.5) + added
    if drawn.seed is not None:
        source = torch.Generator(images.device).manual_seed(drawn.seed)
        images = images + noise * torch.randn(
            images.shape, generator=source, device=images.device, dtype=images.dtype
        )
    return images.clamp(0.0, 1.0)


def _each(values: Tensor, images: Tensor) -> Tensor:
    """A value for each image, to be spread over its pixels."""
    return values.view(-1, *(1,) * (images.dim() - 1))
