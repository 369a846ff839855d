"""Shares of noise: rounding stays within the bound, and shares add up to the noise that is claimed."""

import math

import numpy as np
import pytest
from scipy import stats

from privacy.noise_share import LEAST_DEVIATION, GridError, NoiseShare
from privacy.randomness import CryptographicGenerator

KEY = bytes(range(32))


def share(**changes: float) -> NoiseShare:
    values = {
        "max_grad_norm": 0.5,
        "noise_multiplier": 2.0,
        "num_shares": 4,
        "num_weights": 1000,
        "scale": 1e5,
    }
    return NoiseShare(**{**values, **changes})  # type: ignore[arg-type]


def test_one_patient_changes_the_integer_sum_by_at_most_the_bound() -> None:
    """The worst case: every entry of the sum lies where one patient pushes the rounding by a whole point."""
    one = share(num_weights=10_000, scale=1e4)
    rng = np.random.default_rng(1)
    worst = 0.0
    for _ in range(200):
        others = rng.integers(-1000, 1000, one.num_weights) + 0.5 - 1e-9
        direction = rng.uniform(0.0, 1.0, one.num_weights)
        patient = direction / np.linalg.norm(direction) * one.clipping_bound
        before = one.on_grid(others / one.scale)
        after = one.on_grid(others / one.scale + patient)
        worst = max(worst, float(np.linalg.norm((after - before).astype(np.float64))))
    assert worst <= one.scale * one.max_grad_norm
    assert worst > one.scale * one.clipping_bound, "the margin is needed"


def test_shares_of_the_honest_sites_add_up_to_the_noise_of_the_run() -> None:
    one = share(num_weights=50_000)
    total = sum(
        one.added_to(np.zeros(one.num_weights), CryptographicGenerator(bytes([number]) * 32))
        for number in range(4)
    )
    claimed = one.noise_multiplier * one.max_grad_norm * one.scale
    statistic = float((np.asarray(total, dtype=np.float64) ** 2).sum()) / claimed**2
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], one.num_weights)
    assert low < statistic < high
    for wrong in (0.9, 1.1):
        assert not low < statistic / wrong**2 < high, "the test sees a deviation that is a tenth off"


def test_the_sum_of_rounded_shares_has_the_distribution_that_the_argument_claims() -> None:
    """Against the exact convolution of rounded Gaussians: total variation below the stated error."""
    deviation, shares = LEAST_DEVIATION, 3
    points = np.arange(-150, 151)
    one = np.diff(stats.norm.cdf(np.append(points - 0.5, points[-1] + 0.5), scale=deviation))
    exact = one
    for _ in range(shares - 1):
        exact = np.convolve(exact, one, mode="same")
    fine = 65  # a Gaussian and two uniform numbers, rounded: the density integrated on a fine grid
    grid = (np.arange(-150 * fine, 150 * fine + 1)) / fine
    density = stats.norm.pdf(grid, scale=deviation * math.sqrt(shares)) / fine
    box = np.ones(fine) / fine
    for _ in range(shares):
        density = np.convolve(density, box, mode="same")
    claimed = density[::fine] * fine
    assert np.abs(exact - claimed).sum() < 2e-4  # of the fine grid; the formula's own error is far below
    assert math.exp(-(math.pi**2) * deviation**2 / 2) < 1e-130


def test_no_message_and_no_global_seed_decides_the_noise() -> None:
    one = share()
    draws = [
        one.added_to(np.zeros(one.num_weights), CryptographicGenerator.from_operating_system())
        for _ in range(2)
    ]
    assert (draws[0] != draws[1]).mean() > 0.99
    again = [one.added_to(np.zeros(one.num_weights), CryptographicGenerator(KEY)) for _ in range(2)]
    np.testing.assert_array_equal(again[0], again[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"num_weights": 10**9}, "train fewer weights"), ({"noise_multiplier": 1e-4}, "at least 8 are needed")],
)
def test_a_grid_that_is_too_coarse_is_refused(changes: dict[str, float], words: str) -> None:
    with pytest.raises(GridError, match=words):
        share(**changes)
