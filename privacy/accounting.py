"""What a run costs a patient, and the noise that a target needs. All figures are Google's dp-accounting's.

Privacy loss distributions (PLD) give a run's statement, Rényi differential privacy (RDP) the running sum over
a site's lifetime, because later runs are chosen after the results of earlier ones.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import dp_accounting as dp
from dp_accounting import pld, rdp
from dp_accounting.pld import privacy_loss_mechanism

COUNT_STANDARD_DEVIATION = 30.0
"""Noise on a site's number of training patients, in patients; released once a run."""

_ORDERS = (2, *(tenths / 10 for tenths in range(30, 110)), *range(11, 65), 96, 128, 256, 512, 1024)
"""Rényi orders of a run's cross-check; at broken ones below 3 dp-accounting's series do not always converge."""

_COARSE = 1e-3
"""Discretisation of the privacy loss while searching: an upper bound on epsilon, and fast."""


class PrivacyTargetError(ValueError):
    """No noise reaches the target epsilon and delta."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCost:
    """Everything computed from training patients that leaves a site in one run.

    ``num_steps`` DP-SGD steps on Poisson samples with rate ``sample_rate`` and noise multiplier
    ``noise_multiplier``, and one noised patient count.
    """

    sample_rate: float
    noise_multiplier: float
    num_steps: int

    @classmethod
    def for_target(cls, *, epsilon: float, delta: float, sample_rate: float, num_steps: int) -> Self:
        """Return the cost with the smallest noise multiplier (to 0.1 %) that stays within the target.

        Raises:
            PrivacyTargetError: the noised count alone is above the target, or no noise multiplier up to 10,000
                reaches it.
        """
        multiplier = _calibrated(epsilon, delta, sample_rate, num_steps)
        return cls(sample_rate=sample_rate, noise_multiplier=multiplier, num_steps=num_steps)

    def after(self, num_steps: int) -> Self:
        """The same with another number of steps."""
        return replace(self, num_steps=num_steps)

    @property
    def event(self) -> dp.DpEvent:
        """As dp-accounting's event, neighbouring data sets differing by one patient added or removed."""
        return self._event(noise=1.0)

    def _event(self, *, noise: float) -> dp.DpEvent:
        """The same with so many times the noise."""
        step = dp.PoissonSampledDpEvent(self.sample_rate, dp.GaussianDpEvent(noise * self.noise_multiplier))
        count = dp.GaussianDpEvent(noise * COUNT_STANDARD_DEVIATION)
        if self.num_steps == 0:
            return count
        return dp.ComposedDpEvent([dp.SelfComposedDpEvent(step, self.num_steps), count])

    def epsilon(self, delta: float) -> float:
        """Epsilon of the run at *delta*, by privacy loss distributions."""
        return _pld_epsilon(self, delta)

    def rdp_epsilon(self, delta: float) -> float:
        """Epsilon of the same run at *delta*, by Rényi differential privacy: an upper bound, computed another way.

        The cross-check of `epsilon`, and larger. The lifetime sum of runs is composed so as well, but at one order that
        the cap fixes (`lifetime_epsilon`), and is larger again.

        Source: Mironov (2017), "Rényi differential privacy", at the best of many orders from 2 on.
        """
        return _rdp_epsilon(self, delta)

    def epsilon_at_two_sites(self, delta: float, *, one_sum: bool) -> float:
        """Epsilon at *delta* of a patient who trains at two sites, and is sampled at each by itself.

        Args:
            delta: the study's.
            one_sum: whether both contributions are in one sum with the noise of one (``distributed``), rather than in
                two with all of the noise each (``local``).

        In one sum the noise N(0, σ²) is that of two releases with N(0, σ²/2) each, of which the sum is post-processing:
        so twice as many steps with σ/√2 bound it. Simply adding up epsilons and deltas would not: one such sum is moved
        by 2C.
        """
        return _epsilon_at_two_sites(self, delta, one_sum=one_sum)


@lru_cache(maxsize=64)
def _epsilon_at_two_sites(cost: TrainingCost, delta: float, *, one_sum: bool) -> float:
    at_one = cost._event(noise=0.5**0.5 if one_sum else 1.0)
    accountant = pld.PLDAccountant(value_discretization_interval=1e-4)
    accountant.compose(at_one, 2)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=512)
def _pld_epsilon(cost: TrainingCost, delta: float, interval: float = 1e-4) -> float:
    accountant = pld.PLDAccountant(value_discretization_interval=interval)
    accountant.compose(cost.event)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=512)
def _rdp_epsilon(cost: TrainingCost, delta: float) -> float:
    accountant = rdp.RdpAccountant(orders=_ORDERS)
    accountant.compose(cost.event)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=64)
def _calibrated(epsilon: float, delta: float, sample_rate: float, num_steps: int) -> float:
    def coarse(multiplier: float) -> float:
        cost = TrainingCost(sample_rate=sample_rate, noise_multiplier=multiplier, num_steps=num_steps)
        return _pld_epsilon(cost, delta, _COARSE)

    unreachable = f"epsilon = {epsilon:g} at delta = {delta:g}"
    if coarse(1e4) > epsilon:
        raise PrivacyTargetError(
            f"{unreachable} cannot be reached: the noised patient count and the steps cost more even with a "
            "noise multiplier of 10,000; raise epsilon"
        )
    low, high = 0.1, 1.0
    while coarse(high) > epsilon:
        low, high = high, 2.0 * high
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if coarse(middle) > epsilon else (low, middle)
    return high


def gaussian_delta(*, standard_deviation: float, num_releases: int, epsilon: float) -> float:
    """Exact delta, at *epsilon*, of *num_releases* Gaussian releases of sensitivity 1.

    Together they are one release with the standard deviation divided by √num_releases.

    Source: Balle and Wang (2018), theorem 8, as dp-accounting has it.
    """
    loss = privacy_loss_mechanism.GaussianPrivacyLoss(standard_deviation / num_releases**0.5, sensitivity=1.0)
    return float(loss.get_delta_for_epsilon(epsilon))


@lru_cache(maxsize=64)
def gaussian_standard_deviation(*, epsilon: float, delta: float, num_releases: int) -> float:
    """Smallest standard deviation (to 0.1 %) at which *num_releases* of sensitivity 1 stay within the target."""

    def enough(deviation: float) -> bool:
        return (
            gaussian_delta(standard_deviation=deviation, num_releases=num_releases, epsilon=epsilon) <= delta
        )

    high = 1.0
    while not enough(high):
        high *= 2.0
    while enough(high / 2.0):
        high /= 2.0
    low = high / 2.0
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationCost:
    """``num_releases`` Gaussian releases of sensitivity 1 about validation, or about test, patients."""

    standard_deviation: float
    num_releases: int

    @classmethod
    def for_target(cls, *, epsilon: float, delta: float, num_releases: int) -> Self:
        """Return the cost with the smallest noise (to 0.1 %) that stays within the target."""
        deviation = gaussian_standard_deviation(epsilon=epsilon, delta=delta, num_releases=num_releases)
        return cls(standard_deviation=deviation, num_releases=num_releases)

    @property
    def event(self) -> dp.DpEvent:
        """As dp-accounting's event."""
        return dp.SelfComposedDpEvent(dp.GaussianDpEvent(self.standard_deviation), self.num_releases)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """What one run costs: a training patient, and a patient that it evaluates."""

    training: TrainingCost
    evaluation: EvaluationCost


def filter_order(*, cap: float, delta: float) -> int:
    """The one Rényi order of the filter, fixed by the cap alone, never by what was spent.

    The order at which Gaussian mechanisms that just reach the cap convert best, rounded up to a whole number.
    """
    slack = math.log(1.0 / delta)
    root = math.sqrt(slack + cap) - math.sqrt(slack)
    return max(2, math.ceil(1.0 + math.sqrt(slack) / root))


def lifetime_epsilon(costs: tuple[RunCost, ...], *, cap: float, delta: float) -> float:
    """Epsilon of several runs together at *delta*, by Rényi composition at one order; 0 where there are none.

    In a run a patient either trains or is evaluated. Whatever role a patient has in which run, the larger of both
    Rényi divergences, run by run, is an upper bound for that patient.

    Fully adaptive: later runs may be chosen after seeing earlier results, as long as the sum is kept below *cap*,
    fixed beforehand, which also fixes the order (Rényi filter).

    Source: Feldman and Zrnic (2021), "Individual privacy accounting via a Rényi filter".
    """
    if not costs:
        return 0.0
    order = filter_order(cap=cap, delta=delta)
    divergence = sum(
        max(_divergence(cost.training.event, order), _divergence(cost.evaluation.event, order))
        for cost in costs
    )
    return float(rdp.compute_epsilon([order], [divergence], delta)[0])


def _divergence(event: dp.DpEvent, order: int) -> float:
    """Rényi divergence of *event* at *order*."""
    accountant = rdp.RdpAccountant(orders=[order])
    accountant.compose(event)
    return float(accountant.rdp[0])
