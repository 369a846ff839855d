"""The plan's figures against formulae of their own, published ones, and noise that is really drawn."""

import math

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting import pld, rdp
from hypothesis import given
from hypothesis import strategies as st

from privacy.accounting import TrainingCost
from privacy.planning import (
    Sites,
    curator_deviation,
    local_deviation,
    overshoot,
    overshoots,
    planned_costs,
)

TEN = Sites(sizes=(500,) * 10, least=7, num_colluding=1, equal_weights=True)


@pytest.mark.parametrize(
    ("num_sites", "least", "colluding", "expected"),
    [(10, 7, 1, 1.29), (10, 7, 3, 1.58), (3, 2, 1, 1.73)],
)
def test_the_overshoot_is_that_of_the_design(num_sites, least, colluding, expected) -> None:
    assert overshoot(num_sites, least=least, num_colluding=colluding) == pytest.approx(expected, abs=5e-3)


def test_the_overshoot_is_told_for_every_possible_sum_and_is_least_where_most_vanished() -> None:
    found = overshoots(num_sites=10, least=7, num_colluding=1)
    assert [one.num_sites for one in found] == [7, 8, 9, 10]
    assert [one.factor**2 * 6 for one in found] == pytest.approx([7, 8, 9, 10])


@given(least=st.integers(2, 50), more=st.integers(0, 50), data=st.data())
def test_honest_survivors_of_the_smallest_sum_carry_the_noise_by_themselves(least, more, data) -> None:
    colluding = data.draw(st.integers(1, least - 1))
    share = 1 / (least - colluding)
    assert math.isclose((least - colluding) * share, 1.0)
    total = (least + more) * share
    assert overshoot(least + more, least=least, num_colluding=colluding) == pytest.approx(math.sqrt(total))


@pytest.mark.parametrize(("num_sites", "least", "colluding"), [(6, 7, 1), (10, 7, 0), (10, 7, 7)])
def test_an_overshoot_that_no_protocol_allows_is_refused(num_sites, least, colluding) -> None:
    with pytest.raises(ValueError, match="wanted is"):
        overshoot(num_sites, least=least, num_colluding=colluding)


def test_noise_that_is_drawn_has_the_deviations_that_are_planned() -> None:
    """Sites of unequal sizes draw noise as the three modes say; the mean gradient's noise is measured."""
    sizes, sigma, rate, least, colluding, draws = (100, 400, 250, 250), 3.0, 0.2, 3, 1, 200_000
    generator = np.random.default_rng(5)
    normal = generator.standard_normal((len(sizes), draws))
    share = sigma / math.sqrt(least - colluding)
    means = np.array([sigma * one / (rate * size) for one, size in zip(normal, sizes, strict=True)])
    weights = np.array(sizes) / sum(sizes)
    step = {"noise_multiplier": sigma, "sample_rate": rate}
    curator = curator_deviation(**step, num_patients=sum(sizes))
    factor = overshoot(len(sizes), least=least, num_colluding=colluding)
    for measured, planned in [
        (sigma * normal[0] / (rate * sum(sizes)), curator),
        ((share * normal).sum(axis=0) / (rate * sum(sizes)), factor * curator),
        (weights @ means, local_deviation(**step, sizes=sizes, equal_weights=False)),
        (means.mean(axis=0), local_deviation(**step, sizes=sizes, equal_weights=True)),
    ]:
        assert measured.std() == pytest.approx(planned, rel=0.01)


@pytest.mark.slow
def test_equal_sites_in_local_mode_have_the_root_of_their_number_times_the_curators_noise() -> None:
    (planned,) = planned_costs(
        [3.0], delta=1e-4, sample_rate=0.1, num_steps=50, num_weights=10_000, sites=TEN
    )
    assert planned.noise is not None
    assert planned.cost is not None
    assert planned.noise.curator.deviation == pytest.approx(planned.cost.noise_multiplier / (0.1 * 5_000))
    assert planned.noise.local.deviation == pytest.approx(math.sqrt(10) * planned.noise.curator.deviation)
    assert planned.noise.distributed is not None
    ratio = planned.noise.distributed.deviation / planned.noise.curator.deviation
    assert ratio == pytest.approx(1.29, abs=5e-3)
    assert planned.noise.local.norm == pytest.approx(100 * planned.noise.local.deviation)


@given(
    sizes=st.lists(st.integers(1, 10_000), min_size=2, max_size=20).map(tuple), equal_weights=st.booleans()
)
def test_no_way_to_weigh_sites_has_less_noise_than_the_curator(sizes, equal_weights) -> None:
    local = local_deviation(noise_multiplier=2.0, sample_rate=0.5, sizes=sizes, equal_weights=equal_weights)
    least = math.sqrt(len(sizes)) * curator_deviation(
        noise_multiplier=2.0, sample_rate=0.5, num_patients=sum(sizes)
    )
    assert local >= least * (1 - 1e-12)
    if not equal_weights:
        assert local == pytest.approx(least)


@pytest.mark.slow
def test_both_epsilons_are_dp_accountings_for_the_steps_and_the_count() -> None:
    (planned,) = planned_costs(
        [3.0], delta=9.1e-5, sample_rate=512 / 4708, num_steps=300, num_weights=7, sites=TEN
    )
    assert planned.cost is not None
    step = dp.PoissonSampledDpEvent(512 / 4708, dp.GaussianDpEvent(planned.cost.noise_multiplier))
    event = dp.ComposedDpEvent([dp.SelfComposedDpEvent(step, 300), dp.GaussianDpEvent(30.0)])
    by_pld = pld.PLDAccountant(value_discretization_interval=1e-4)
    by_pld.compose(event)
    assert planned.pld_epsilon == pytest.approx(by_pld.get_epsilon(9.1e-5), rel=1e-6)
    orders = [order / 10 for order in range(20, 200)]
    by_rdp = rdp.RdpAccountant(orders=orders)
    by_rdp.compose(event)
    assert planned.rdp_epsilon == pytest.approx(by_rdp.get_epsilon(9.1e-5), rel=5e-3)
    assert planned.cost.noise_multiplier == pytest.approx(2.48, abs=0.01), "the published sigma"
    assert planned.pld_epsilon == pytest.approx(3.00, abs=5e-3)
    assert planned.rdp_epsilon == pytest.approx(3.32, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1.0, 3.0, 8.0])
def test_the_cross_check_is_never_below_the_claim(epsilon: float) -> None:
    cost = TrainingCost.for_target(epsilon=epsilon, delta=1e-5, sample_rate=0.2, num_steps=100)
    assert cost.epsilon(1e-5) <= cost.rdp_epsilon(1e-5) < 1.35 * cost.epsilon(1e-5)


@pytest.mark.slow
def test_an_epsilon_that_no_noise_reaches_is_a_row_without_figures() -> None:
    rows = planned_costs([0.001, 3.0], delta=1e-4, sample_rate=0.1, num_steps=5, num_weights=7, sites=TEN)
    assert [row.epsilon for row in rows] == [0.001, 3.0]
    assert (rows[0].cost, rows[0].pld_epsilon, rows[0].rdp_epsilon, rows[0].noise) == (None,) * 4
    assert rows[1].noise is not None


def test_where_nobody_may_collude_there_is_no_distributed_figure() -> None:
    sites = Sites(sizes=(100, 100, 100), least=2, num_colluding=0, equal_weights=True)
    (planned,) = planned_costs([3.0], delta=1e-4, sample_rate=0.1, num_steps=5, num_weights=7, sites=sites)
    assert planned.noise is not None
    assert planned.noise.distributed is None


@pytest.mark.parametrize(
    "wrong", [{"sizes": (5, 0)}, {"sizes": ()}, {"least": 11}, {"num_colluding": 7}, {"num_colluding": -1}]
)
def test_sites_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    fields = {"sizes": TEN.sizes, "least": 7, "num_colluding": 1, "equal_weights": True, **wrong}
    with pytest.raises(ValueError, match=r"sizes|wanted is"):
        Sites(**fields)  # type: ignore[arg-type]
