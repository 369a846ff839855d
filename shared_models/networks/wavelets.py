"""The Morlet filter bank of the scattering transform on a torus, in the frequency domain.

Definitions and constants are those of Kymatio (Andreux and others 2020), after Bruna and Mallat (2013), section 2.1.
In space, with r_θ = (cos θ, sin θ), the wavelet of scale j and angle θ is

    ψ(u) = ζ / (2π σ²) · exp(−(u∥² + ζ² u⊥²) / 2σ²) · (exp(i ξ r_θ·u) − κ),    σ = 0.8 · 2ʲ, ξ = ¾π / 2ʲ, ζ = 4 / L,

where u∥ and u⊥ are the parts of u along r_θ and across, L is the number of angles, θ = πl / L, and κ makes the mean
zero. The low-pass φ is the Gaussian with σ = 0.8 · 2ᴶ⁻¹, J being the number of scales. Both are sampled on whole
pixels, so that the transforms below are sums over all shifts of the frequency by 2π (Poisson); they are real.

All filters are divided by one constant where that is needed to keep the Littlewood-Paley sum
|φ̂(ω)|² + ½ Σ (|ψ̂(ω)|² + |ψ̂(−ω)|²) at most 1, so that no difference between images ever grows. With J = 2 it is that
by itself; with J = 4 and L = 8 the constant is 1.02.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Transfer = NDArray[np.float64]
"""What a filter multiplies each frequency with."""


@dataclass(frozen=True, slots=True, eq=False)
class FilterBank:
    """Filters on a torus of rows × columns pixels.

    Attributes:
        wavelets: shape (scales, angles, rows, columns).
        low_pass_rows, low_pass_columns: the low-pass is their outer product; shapes (rows,) and (columns,).
    """

    wavelets: Transfer
    low_pass_rows: Transfer
    low_pass_columns: Transfer

    @property
    def low_pass(self) -> Transfer:
        """Shape (rows, columns)."""
        return np.outer(self.low_pass_rows, self.low_pass_columns)

    def littlewood_paley(self) -> Transfer:
        """Return |φ̂(ω)|² + ½ Σ (|ψ̂(ω)|² + |ψ̂(−ω)|²), shape (rows, columns)."""
        power = (self.wavelets**2).sum((0, 1))
        mirrored = np.roll(power[::-1, ::-1], (1, 1), (0, 1))
        total: Transfer = self.low_pass**2 + (power + mirrored) / 2.0
        return total


def filter_bank(rows: int, columns: int, *, scales: int, angles: int) -> FilterBank:
    """Return the filters for images of rows × columns pixels, whose borders meet."""
    frequencies = _frequencies(rows), _frequencies(columns)
    wavelets = np.stack(
        [
            [
                _wavelet(frequencies, scale, math.pi * number / angles, 4.0 / angles)
                for number in range(angles)
            ]
            for scale in range(scales)
        ]
    )
    along = [_periodic(one, 0.8 * 2.0 ** (scales - 1)) for one in frequencies]
    bank = FilterBank(wavelets, along[0], along[1])
    excess = math.sqrt(max(1.0, float(bank.littlewood_paley().max())))
    return FilterBank(wavelets / excess, along[0] / excess, along[1])


def _frequencies(size: int) -> Transfer:
    return np.asarray(2.0 * math.pi * np.fft.fftfreq(size), dtype=np.float64)


def _wavelet(frequencies: tuple[Transfer, Transfer], scale: int, angle: float, slant: float) -> Transfer:
    deviation, peak = 0.8 * 2.0**scale, 0.75 * math.pi / 2.0**scale
    centre = (peak * math.cos(angle), peak * math.sin(angle))
    wave = _bump(frequencies, centre, deviation, angle, slant)
    still = _bump(frequencies, (0.0, 0.0), deviation, angle, slant)
    balanced: Transfer = wave - wave[0, 0] / still[0, 0] * still
    return balanced


def _bump(
    frequencies: tuple[Transfer, Transfer],
    centre: tuple[float, float],
    deviation: float,
    angle: float,
    slant: float,
) -> Transfer:
    """The transform of a slanted Gaussian times a wave of frequency *centre*, shape (rows, columns)."""
    total = np.zeros((len(frequencies[0]), len(frequencies[1])))
    for down in _SHIFTS:
        for right in _SHIFTS:
            first = (frequencies[0] - centre[0] + down)[:, None]
            second = (frequencies[1] - centre[1] + right)[None, :]
            along = first * math.cos(angle) + second * math.sin(angle)
            across = (second * math.cos(angle) - first * math.sin(angle)) / slant
            total += np.exp(-(deviation**2) * (along**2 + across**2) / 2.0)
    return total


def _periodic(frequencies: Transfer, deviation: float) -> Transfer:
    """The transform of a Gaussian on whole pixels of one axis."""
    total: Transfer = sum(
        (np.exp(-((deviation * (frequencies + shift)) ** 2) / 2.0) for shift in _SHIFTS),
        start=np.zeros_like(frequencies),
    )
    return total


_SHIFTS = tuple(2.0 * math.pi * number for number in range(-2, 3))
"""Beyond these the Gaussians are below 10⁻²⁰ from four angles on."""
