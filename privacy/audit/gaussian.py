"""Whether numbers are independent Gaussian noise with the claimed standard deviation."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Doubles = NDArray[np.float64]


def mean_square_interval(num: int, *, false_alarm: float) -> tuple[float, float]:
    """Where the mean of the squares of *num* independent standard normal numbers lies, by the chi-square distribution.

    Exact: it falls outside with probability *false_alarm*, half of it on each side.
    """
    tail = false_alarm / 2.0
    return float(stats.chi2.ppf(tail, num)) / num, float(stats.chi2.isf(tail, num)) / num


def kolmogorov_distance(samples: Doubles) -> float:
    """Largest distance between the empirical distribution of *samples*, shape (n,), and the standard normal one."""
    expected = special.ndtr(np.sort(samples))
    steps = np.arange(len(samples) + 1) / len(samples)
    return float(max(np.max(expected - steps[:-1]), np.max(steps[1:] - expected)))


def kolmogorov_bound(num: int, *, false_alarm: float) -> float:
    """Bound on `kolmogorov_distance` of *num* independent samples of the distribution itself.

    Source: Dvoretzky, Kiefer and Wolfowitz (1956) with the constant of Massart (1990).
    """
    return math.sqrt(math.log(2.0 / false_alarm) / (2.0 * num))


def correlation_bound(length: int, *, false_alarm: float) -> float:
    """Bound on the absolute correlation a·b / (‖a‖ ‖b‖) of two independent vectors of centred Gaussian noise.

    Exact: the square is beta distributed with 1/2 and (length − 1)/2. *false_alarm* is for one pair: divide it by the
    number of pairs that are looked at.
    """
    return math.sqrt(float(stats.beta.isf(false_alarm, 0.5, (length - 1) / 2.0)))


def normal_magnitudes(noise: Doubles) -> Doubles:
    """Map the absolute values of standard normal numbers to standard normal numbers, increasing.

    Two numbers of one length and two angles (Box and Muller) are not correlated, but their magnitudes are.
    """
    magnitudes: Doubles = -special.ndtri(2.0 * special.ndtr(-np.abs(noise)).clip(_SMALLEST, _LARGEST))
    return magnitudes


_SMALLEST, _LARGEST = 1e-300, 0.5 - 1e-16


def largest_correlation_between(vectors: Doubles) -> float:
    """Largest absolute correlation of two rows of *vectors*, shape (num, length), at every circular shift.

    A generator that was forked, or started again, shows as one row's noise in another, perhaps at another place.
    """
    spectra, length = _spectra(vectors), vectors.shape[1]
    largest = 0.0
    for row in range(len(spectra) - 1):
        products = np.fft.irfft(spectra[row + 1 :] * spectra[row].conj(), n=length, axis=1)
        largest = max(largest, float(np.abs(products).max()))
    return largest


def largest_correlation_within(vectors: Doubles) -> float:
    """Largest absolute correlation of rows with themselves at every circular shift but none, the mean over rows.

    Noise that begins again within a vector does so at the same place of each. Of n rows of independent noise it is
    about as large as that of one that is n times as long.
    """
    power = np.mean(np.abs(_spectra(vectors)) ** 2, axis=0)
    return float(np.abs(np.fft.irfft(power, n=vectors.shape[1])[1:]).max())


def _spectra(vectors: Doubles) -> NDArray[np.complex128]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True).clip(_SMALLEST)
    return np.fft.rfft(vectors / lengths, axis=1)
