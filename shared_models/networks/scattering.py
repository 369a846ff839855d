"""Fixed wavelet features with a linear head: few weights to train, on features that need no patients.

Sources: Bruna and Mallat (2013), "Invariant scattering convolution networks"; Oyallon and Mallat (2015), "Deep
roto-translation scattering for object classification"; Tramèr and Boneh (2021), "Differentially private learning needs
better features (or much more data)", for the use under differential privacy.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from shared_models.networks.network import Classifier
from shared_models.networks.wavelets import filter_bank

FEATURE_NORM = 4.0
"""Against the bias, which sees 1."""
_ROOM_PROCESSOR = 2**20
_ROOM_CUDA = 2**26
"""Complex numbers at a time, for all paths of the second order from one scale to another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scattering:
    """The scattering transform of orders 0, 1 and 2, without parameters.

    With wavelets ψ and a low-pass φ (`shared_models.networks.wavelets`) an image x has the paths

        x ∗ φ,    |x ∗ ψ_jl| ∗ φ,    ||x ∗ ψ_jl| ∗ ψ_km| ∗ φ  with k > j,

    each sampled at every 2ᴶ-th pixel in both directions, beginning with the first. Around the image 2ᴶ pixels or a few
    more are filled by reflection, so that any size will do.

    Attributes:
        rows, columns: of an image.
        scales: J, at least 1.
        angles: L, at least 4.
    """

    rows: int
    columns: int
    scales: int
    angles: int

    @property
    def paths_by_order(self) -> list[int]:
        """1, J·L and J(J−1)/2·L²."""
        first = self.scales * self.angles
        return [1, first, first * (self.scales - 1) * self.angles // 2]

    @property
    def num_paths(self) -> int:
        """Of all orders together."""
        return sum(self.paths_by_order)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of each path."""
        step = 2**self.scales
        return -(-self.rows // step), -(-self.columns // step)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the coefficients, in the type and on the device of *images*.

        Args:
            images: shape (n, rows, columns), floating point.

        Returns:
            shape (n, num_paths, *grid); order 0, then order 1 by scale and angle, then order 2 by first scale, second
            scale, first angle, second angle.

        Raises:
            ValueError: the images have another shape.
        """
        if images.shape[1:] != (self.rows, self.columns):
            raise ValueError(
                f"images have shape {tuple(images.shape)}, must be (n, {self.rows}, {self.columns})"
            )
        filters = _filters(self, images.device, images.dtype)
        height, width = filters.wavelets.shape[-2:]
        room = _ROOM_CUDA if images.device.type == "cuda" else _ROOM_PROCESSOR
        together = max(1, room // (height * width * self.angles**2))
        return torch.cat([self._of_few(part, filters) for part in torch.split(images, together)])

    def _of_few(self, images: Tensor, filters: "_Filters") -> Tensor:
        padded = images[:, filters.from_rows][:, :, filters.from_columns]
        paths: dict[int, list[Tensor]] = {0: [filters.smoothed(padded[:, None])], 1: [], 2: []}
        for order, amplitudes in _amplitudes(padded, filters.wavelets):
            paths[order].append(filters.smoothed(amplitudes))
        return torch.cat([part for order in paths.values() for part in order], 1)


def _amplitudes(images: Tensor, wavelets: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield |x ∗ ψ| with order 1 and ||x ∗ ψ| ∗ ψ| with order 2, shape (n, paths, height, width)."""
    spectrum = torch.fft.fft2(images)
    for scale, these in enumerate(wavelets):
        amplitudes = torch.fft.ifft2(spectrum[:, None] * these).abs()
        yield 1, amplitudes
        if scale + 1 < len(wavelets):
            inner = torch.fft.fft2(amplitudes)[:, :, None]
            for coarser in wavelets[scale + 1 :]:
                yield 2, torch.fft.ifft2(inner * coarser).abs().flatten(1, 2)


@dataclass(frozen=True, slots=True, eq=False)
class _Filters:
    """What a transform multiplies with: wavelets by frequency; sampled low-pass, and padding, by pixel."""

    wavelets: Tensor
    low_rows: Tensor
    low_columns: Tensor
    from_rows: Tensor
    from_columns: Tensor

    def smoothed(self, amplitudes: Tensor) -> Tensor:
        """Low-pass (n, paths, height, width) and sample: (n, paths, *grid)."""
        return self.low_rows @ amplitudes @ self.low_columns.t()


@lru_cache(maxsize=8)
def _filters(of: Scattering, device: torch.device, dtype: torch.dtype) -> _Filters:
    """The same wherever it is computed, to rounding; so it need not travel."""
    step = 2**of.scales
    height, width = ((size + 2) * step for size in of.grid)
    bank = filter_bank(height, width, scales=of.scales, angles=of.angles)

    def tensor(values: NDArray[np.generic]) -> Tensor:
        found = torch.from_numpy(np.ascontiguousarray(values))
        return found.to(device, dtype if found.is_floating_point() else found.dtype)

    return _Filters(
        wavelets=tensor(bank.wavelets),
        low_rows=tensor(_sampled(bank.low_pass_rows, step)),
        low_columns=tensor(_sampled(bank.low_pass_columns, step)),
        from_rows=tensor(_reflected(of.rows, step, height)),
        from_columns=tensor(_reflected(of.columns, step, width)),
    )


def _sampled(transfer: NDArray[np.float64], step: int) -> NDArray[np.float64]:
    """A filter of one axis as a matrix from all its pixels to every *step*-th one, without those of the padding."""
    in_space = np.fft.ifft(transfer).real
    pixels = np.arange(len(transfer))
    matrix: NDArray[np.float64] = in_space[(pixels[step:-step:step, None] - pixels) % len(transfer)]
    return matrix


def _reflected(size: int, before: int, padded: int) -> NDArray[np.int64]:
    """Where each pixel of the padded axis comes from; the border pixels are not repeated."""
    period = max(1, 2 * (size - 1))
    places = np.abs(np.arange(-before, padded - before)) % period
    folded: NDArray[np.int64] = np.minimum(places, period - places).astype(np.int64)
    return folded


class ScatteringClassifier(Classifier):
    """Scattering coefficients of each channel, normalised for each image by itself, and a linear head.

    The coefficients of one order, all channels and positions together, are brought to mean 0 and to the same
    L2 norm as those of each other order: GroupNorm with a group for each order, without scale and shift,
    divided by the root of the group's size. The features of an image have an L2 norm of at most
    `FEATURE_NORM`, whatever its size, and a patient's gradient one of at most √(1 + FEATURE_NORM²) times the
    weight in the loss: that is what a clipping bound should be compared with. Nothing depends on other
    images. Only the head has weights; the filters are computed where they are needed and are neither weights
    nor buffers.

    Args:
        channels: of the image, 1 or 3.
        rows, columns: of the image.
        scales: of the wavelets.
        angles: of the wavelets.
        num_outputs: of the head.
        dropout: see `Network`.
    """

    has_maps = False

    def __init__(
        self,
        *,
        channels: int,
        rows: int,
        columns: int,
        scales: int,
        angles: int,
        num_outputs: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dropout=dropout)
        self._scattering = Scattering(rows=rows, columns=columns, scales=scales, angles=angles)
        height, width = self._scattering.grid
        self.head = nn.Linear(channels * self._scattering.num_paths * height * width, num_outputs)
        self.blocks = ()

    def features(self, images: Tensor) -> Tensor:
        """Map images, shape (batch, channels, rows, columns) in [0, 1], to shape (batch, paths and positions)."""
        with torch.autocast(images.device.type, enabled=False):
            paths = self._scattering(images.flatten(0, 1))
            paths = paths.view(*images.shape[:2], *paths.shape[1:])
            orders = [one.flatten(1) for one in torch.split(paths, self._scattering.paths_by_order, dim=2)]
            there = [one for one in orders if one.shape[1]]
            of_each = FEATURE_NORM / math.sqrt(len(there))
            return torch.cat(
                [F.layer_norm(one, one.shape[1:]) * (of_each / math.sqrt(one.shape[1])) for one in there], 1
            )
