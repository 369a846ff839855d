"""What a promise costs in noise, before anybody trains: arithmetic on figures of a study, no data.

The noise is told on the *mean gradient* of one step over all training patients of all sites, in units of the clipping
bound C, so that three ways to add it can be compared at the same epsilon, sample rate and number of steps:

- a *trusted curator*, who has all patients and adds the noise once: the least that the promise needs;
- *distributed*: each site adds a share, sized for the fewest honest sites that a sum can hold (`overshoot`);
- *local*: each site adds all of it to its own mean, and the means are averaged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from privacy.accounting import PrivacyTargetError, TrainingCost


@dataclass(frozen=True, slots=True, kw_only=True)
class Sites:
    """Those who train together.

    Attributes:
        sizes: training patients of each site, each at least 1.
        least: fewest vectors in a sum that can be opened, t_s.
        num_colluding: sites that may work together with the server, c.
        equal_weights: whether sites count the same in a mean of their updates; else by their patients.

    Raises:
        ValueError: a size below 1, or not num_colluding < least ≤ number of sites.
    """

    sizes: tuple[int, ...]
    least: int
    num_colluding: int
    equal_weights: bool

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes are {self.sizes}; every site has 1 training patient at least")
        if not 0 <= self.num_colluding < self.least <= len(self.sizes):
            raise ValueError(
                f"num_colluding = {self.num_colluding}, least = {self.least} and {len(self.sizes)} sites; wanted is "
                "0 ≤ num_colluding < least ≤ sites"
            )

    @property
    def num_patients(self) -> int:
        """Training patients of all sites, N."""
        return sum(self.sizes)

    @property
    def can_share_noise(self) -> bool:
        """Whether the distributed mode is allowed: with c = 0 a curious site knows a share of too few."""
        return self.num_colluding >= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Noise on the mean gradient of a step, in units of the clipping bound C.

    Attributes:
        deviation: standard deviation in each weight.
        norm: root of the mean square of its L2 norm over all weights: deviation · √d. The mean gradient's is at most 1.
    """

    deviation: float
    norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseByMode:
    """The same promise in three ways; ``distributed`` with all sites in the sum, None where it is not allowed."""

    curator: Noise
    distributed: Noise | None
    local: Noise


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCost:
    """What one epsilon asks for.

    Attributes:
        epsilon: the target, for the whole run.
        cost: with the noise multiplier that reaches it; None where none does.
        pld_epsilon: of the run, by privacy loss distributions: the figure that is claimed.
        rdp_epsilon: of the same run, by Rényi differential privacy: the cross-check, and larger.
        noise: on the mean gradient of a step.
    """

    epsilon: float
    cost: TrainingCost | None
    pld_epsilon: float | None
    rdp_epsilon: float | None
    noise: NoiseByMode | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overshoot:
    """Noise of a sum of ``num_sites`` vectors over what the promise needs, in distributed mode."""

    num_sites: int
    factor: float


def planned_costs(
    epsilons: Sequence[float],
    *,
    delta: float,
    sample_rate: float,
    num_steps: int,
    num_weights: int,
    sites: Sites,
) -> tuple[PlannedCost, ...]:
    """Return what each of *epsilons* asks for, in their order.

    Args:
        epsilons: targets for the whole run, each above 0.
        delta: of the promise.
        sample_rate: probability with which a patient is in a step, q.
        num_steps: steps of the whole run, all attempts counted, T.
        num_weights: that are trained, d.
        sites: who trains.
    """
    return tuple(
        _planned(
            epsilon,
            delta=delta,
            sample_rate=sample_rate,
            num_steps=num_steps,
            num_weights=num_weights,
            sites=sites,
        )
        for epsilon in epsilons
    )


def _planned(
    epsilon: float, *, delta: float, sample_rate: float, num_steps: int, num_weights: int, sites: Sites
) -> PlannedCost:
    try:
        cost = TrainingCost.for_target(
            epsilon=epsilon, delta=delta, sample_rate=sample_rate, num_steps=num_steps
        )
    except PrivacyTargetError:
        return PlannedCost(epsilon=epsilon, cost=None, pld_epsilon=None, rdp_epsilon=None, noise=None)
    return PlannedCost(
        epsilon=epsilon,
        cost=cost,
        pld_epsilon=cost.epsilon(delta),
        rdp_epsilon=cost.rdp_epsilon(delta),
        noise=noise_by_mode(cost, sites, num_weights=num_weights),
    )


def noise_by_mode(cost: TrainingCost, sites: Sites, *, num_weights: int) -> NoiseByMode:
    """Return the noise on the mean gradient of one step, with all sites in the sum."""
    step = {"noise_multiplier": cost.noise_multiplier, "sample_rate": cost.sample_rate}
    curator = curator_deviation(**step, num_patients=sites.num_patients)
    distributed = None
    if sites.can_share_noise:
        factor = overshoot(len(sites.sizes), least=sites.least, num_colluding=sites.num_colluding)
        distributed = noise(factor * curator, num_weights=num_weights)
    local = local_deviation(**step, sizes=sites.sizes, equal_weights=sites.equal_weights)
    return NoiseByMode(
        curator=noise(curator, num_weights=num_weights),
        distributed=distributed,
        local=noise(local, num_weights=num_weights),
    )


def noise(deviation: float, *, num_weights: int) -> Noise:
    """Independent Gaussian noise of *deviation* on each of *num_weights* weights: its mean square norm is d·σ²."""
    return Noise(deviation=deviation, norm=deviation * math.sqrt(num_weights))


def curator_deviation(*, noise_multiplier: float, sample_rate: float, num_patients: int) -> float:
    """Noise on the mean gradient of a trusted curator: σ C / (q N), in units of C.

    Source: Abadi and others (2016), "Deep learning with differential privacy", algorithm 1, with the sum divided by the
    expected number of patients in a step.
    """
    return noise_multiplier / (sample_rate * num_patients)


def local_deviation(
    *, noise_multiplier: float, sample_rate: float, sizes: Sequence[int], equal_weights: bool
) -> float:
    """Noise on the weighted mean of the sites' own mean gradients, each with all of the noise, in units of C.

    Site i adds σ C / (q N_i) to its mean. Weighted by patients, N_i / N, the mean has σ C √n / (q N), whatever the
    sizes; weighted equally it has σ C √(Σ 1/N_i²) / (q n), which is the same for equal sites and more for others.
    """
    num_patients, num_sites = sum(sizes), len(sizes)
    shares = [1.0 / num_sites if equal_weights else size / num_patients for size in sizes]
    square = sum((share / size) ** 2 for share, size in zip(shares, sizes, strict=True))
    return noise_multiplier / sample_rate * math.sqrt(square)


def overshoot(num_sites: int, *, least: int, num_colluding: int) -> float:
    """Noise of a sum of *num_sites* vectors over the promised noise σ C: √(|U| / (t_s − c)).

    Each site adds noise of variance (σ C)² / (t_s − c), so that the honest sites of the smallest sum, t_s − c of them,
    carry σ C by themselves, whoever vanishes. What the others add comes on top.

    Source: Dwork and others (2006), "Our data, ourselves: privacy via distributed noise generation", for noise in
    shares of which those of the honest suffice.

    Raises:
        ValueError: fewer sites than *least*, or not 1 ≤ *num_colluding* < *least*.
    """
    if not 1 <= num_colluding < least <= num_sites:
        raise ValueError(
            f"{num_sites} sites, least = {least}, num_colluding = {num_colluding}; wanted is "
            "1 ≤ num_colluding < least ≤ sites"
        )
    return math.sqrt(num_sites / (least - num_colluding))


def overshoots(*, num_sites: int, least: int, num_colluding: int) -> tuple[Overshoot, ...]:
    """Return the overshoot for every number of sites that a sum of up to *num_sites* can hold."""
    return tuple(
        Overshoot(num_sites=number, factor=overshoot(number, least=least, num_colluding=num_colluding))
        for number in range(least, num_sites + 1)
    )
