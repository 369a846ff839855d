"""One site's share of the noise on a sum over sites: a rounded Gaussian on the grid of integers.

*Guarantee* (`NoiseShare`): let at least ``num_shares`` sites that keep to the protocol be in a sum of integer vectors,
each of which is the rounded sum of its patients' clipped gradients and a rounded Gaussian of its own. Then the sum is
the Gaussian mechanism with noise multiplier ``noise_multiplier`` on the patients of these sites, whatever the others
add, up to the error below.

1. A patient changes the float sum of one site by at most C − √d/s in L2 norm, with d weights and s grid points per unit
   (`NoiseShare.clipping_bound`). Rounding moves each entry by less than one point more, so that the integer sum changes
   by at most s·C.
2. The probability that a rounded Gaussian is j is the density at j of that Gaussian plus a uniform number from
   [−1/2, 1/2]. By Poisson's summation formula the sum of k of them has, but for an error below k·e^(−π²τ²/2) with
   standard deviation τ in grid points, the density at the integers of a Gaussian of deviation √k·τ plus k uniform
   numbers: it is that Gaussian plus k − 1 uniform numbers, rounded. Rounding after an integer was added is the same as
   before: what leaves is a function of the Gaussian mechanism's output and of numbers that know no patient. With
   `LEAST_DEVIATION` the error is below 10⁻¹³⁰.

Noise of all sites that are in the sum beyond ``num_shares`` comes on top, and is not counted.

Source: Canonne, Kamath, Steinke (2020) for discrete noise, and Kairouz, Liu, Steinke (2021) for sums of it, which are
not themselves discrete Gaussians; the argument above needs neither.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.noise import noised_counts
from privacy.noise_blocks import Block, blocks_of, for_each
from privacy.randomness import PIECE, CryptographicGenerator

LEAST_DEVIATION = 8.0
"""Of a share, in grid points: what step 2 of the argument rests on."""
MOST_ROUNDING = 0.1
"""Of the clipping bound that may be given up for rounding."""


class GridError(ValueError):
    """The grid is too coarse for the model. The message says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseShare:
    """The noise of one site on its sum of clipped gradients.

    Attributes:
        max_grad_norm: the bound C on what one patient adds to a sum, L2.
        noise_multiplier: standard deviation of the noise of ``num_shares`` sites together, in units of C.
        num_shares: honest sites in every sum, at the least.
        num_weights: entries of the gradient, d.
        scale: grid points per unit, s.

    Raises:
        GridError: rounding would take more than a tenth of the bound, or the noise has too few points.
    """

    max_grad_norm: float
    noise_multiplier: float
    num_shares: int
    num_weights: int
    scale: float

    def __post_init__(self) -> None:
        lost = math.sqrt(self.num_weights) / (self.scale * self.max_grad_norm)
        if lost > MOST_ROUNDING:
            raise GridError(
                f"with {self.num_weights} weights, rounding to the grid of the sum would take {lost:.0%} of "
                "max_grad_norm: lower aggregation.num_sites_max, or train fewer weights"
            )
        if self.deviation < LEAST_DEVIATION:
            raise GridError(
                f"a site's share of the noise is {self.deviation:.1f} points of the grid, at least "
                f"{LEAST_DEVIATION:g} are needed: lower aggregation.num_sites_max"
            )

    @property
    def clipping_bound(self) -> float:
        """What a patient's gradient is clipped to, so that with rounding it stays within ``max_grad_norm``."""
        return self.max_grad_norm - math.sqrt(self.num_weights) / self.scale

    @property
    def deviation(self) -> float:
        """Standard deviation of this site's noise on each entry, in grid points."""
        return self.noise_multiplier * self.max_grad_norm * self.scale / math.sqrt(self.num_shares)

    def on_grid(self, gradient: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return *gradient*, shape (num_weights,), rounded to the grid, without noise."""
        return np.rint(gradient * self.scale).astype(np.int64)

    def added_to(self, gradient: NDArray[np.float64], generator: CryptographicGenerator) -> NDArray[np.int64]:
        """Return the sum of clipped gradients, float64, shape (num_weights,), on the grid with this site's noise."""
        units = np.ones(1, dtype=np.int64)
        points = np.empty(len(gradient), dtype=np.int64)

        def add(block: Block) -> None:  # in pieces: what is in between is never in memory as a whole
            for begin in range(block.begin, block.end, PIECE):
                here = slice(begin, min(begin + PIECE, block.end))
                points[here] = noised_counts(
                    self.on_grid(gradient[here]),
                    units=units,
                    standard_deviation=self.deviation,
                    generator=block.generator,
                )

        for_each(blocks_of(len(gradient), generator), add)
        return points
