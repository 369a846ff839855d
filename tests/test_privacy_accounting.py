"""Accounting equals independent computations, and the ledger forgets nothing."""

import math
from dataclasses import replace

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from journals import ledger_in
from scipy.stats import norm

from privacy.accounting import (
    COUNT_STANDARD_DEVIATION,
    EvaluationCost,
    PrivacyTargetError,
    RunCost,
    TrainingCost,
    filter_order,
    gaussian_delta,
    gaussian_standard_deviation,
    lifetime_epsilon,
)
from privacy.ledger import AlreadySpentError, LedgerError, LedgerRun


def cost(num_steps: int = 100, *, multiplier: float = 1.5, rate: float = 0.1) -> TrainingCost:
    return TrainingCost(sample_rate=rate, noise_multiplier=multiplier, num_steps=num_steps)


@pytest.mark.slow
def test_epsilon_equals_an_independent_computation_with_dp_accounting() -> None:
    accountant = pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(1.5)), 100)
    accountant.compose(dp.GaussianDpEvent(COUNT_STANDARD_DEVIATION))
    assert cost().epsilon(1e-4) == pytest.approx(accountant.get_epsilon(1e-4), rel=1e-9)


def test_gaussian_releases_equal_the_analytic_formula_and_the_accountant() -> None:
    """Balle and Wang (2018), theorem 8: delta of the Gaussian mechanism at epsilon."""
    deviation, epsilon = 2.0, 1.5

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    one = gaussian_delta(standard_deviation=deviation, num_releases=1, epsilon=epsilon)
    exact = phi(0.5 / deviation - epsilon * deviation) - math.exp(epsilon) * phi(
        -0.5 / deviation - epsilon * deviation
    )
    assert one == pytest.approx(exact, rel=1e-9)
    accountant = pld.PLDAccountant()
    accountant.compose(dp.GaussianDpEvent(deviation), 3)
    three = gaussian_delta(standard_deviation=deviation, num_releases=3, epsilon=epsilon)
    assert three == pytest.approx(accountant.get_delta(epsilon), rel=1e-3)


@pytest.mark.slow
def test_a_patient_at_two_sites_moves_one_sum_by_twice_the_bound() -> None:
    """With everybody in each step it is one Gaussian, of exactly known delta; adding up falls short of that."""
    delta, whole = 9e-5, TrainingCost.for_target(epsilon=3.0, delta=9e-5, sample_rate=1.0, num_steps=10)
    found = whole.epsilon_at_two_sites(delta, one_sum=True)
    moved = math.sqrt(10 * (2 / whole.noise_multiplier) ** 2 + (2 / COUNT_STANDARD_DEVIATION) ** 2)
    exact = gaussian_delta(standard_deviation=1 / moved, num_releases=1, epsilon=found)
    assert exact == pytest.approx(delta, rel=0.01)
    assert found > 6.8
    assert gaussian_delta(standard_deviation=1 / moved, num_releases=1, epsilon=6.0) > 2 * delta
    two_sums = whole.epsilon_at_two_sites(delta, one_sum=False)
    apart = math.sqrt(2) * moved / 2
    exact = gaussian_delta(standard_deviation=1 / apart, num_releases=1, epsilon=two_sums)
    assert exact == pytest.approx(delta, rel=0.01)


@pytest.mark.parametrize("sample_rate", [0.05, 0.3, 0.9])
def test_the_loss_of_a_patient_at_two_sites_covers_the_exact_one_of_a_sampled_step(
    sample_rate: float,
) -> None:
    """One step; sampled at neither, at one, or at both of the sites: a mixture of three Gaussians, by quadrature."""
    cost, sigma = TrainingCost(sample_rate=sample_rate, noise_multiplier=1.5, num_steps=1), 1.5
    epsilon = cost.epsilon_at_two_sites(1e-4, one_sum=True)
    grid = np.linspace(-30.0, 32.0, 200_001)
    shares = (1 - sample_rate) ** 2, 2 * sample_rate * (1 - sample_rate), sample_rate**2
    there = sum(share * norm.pdf(grid, place, sigma) for place, share in enumerate(shares))
    gone = norm.pdf(grid, 0.0, sigma)
    for one, other in ((there, gone), (gone, there)):
        exact = np.trapezoid(np.maximum(one - math.exp(epsilon) * other, 0.0), grid)
        assert exact <= 1e-4


def test_two_rounds_cost_more_than_one() -> None:
    assert cost(10).epsilon(1e-5) < cost(20).epsilon(1e-5)


@pytest.mark.thorough
@settings(max_examples=10, deadline=None)
@given(st.integers(1, 200), st.floats(0.8, 4.0))
def test_epsilon_grows_with_steps_and_falls_with_noise(num_steps: int, multiplier: float) -> None:
    base = cost(num_steps, multiplier=multiplier).epsilon(1e-4)
    assert cost(2 * num_steps, multiplier=multiplier).epsilon(1e-4) > base
    assert cost(num_steps, multiplier=1.5 * multiplier).epsilon(1e-4) < base


@pytest.mark.thorough
@pytest.mark.parametrize("epsilon", [1.0, 3.0, 8.0])
def test_the_noise_found_for_a_target_stays_within_it_and_is_not_wasteful(epsilon: float) -> None:
    found = TrainingCost.for_target(epsilon=epsilon, delta=1e-4, sample_rate=0.1, num_steps=200)
    assert found.epsilon(1e-4) <= epsilon
    less = cost(200, multiplier=found.noise_multiplier * 0.99)
    assert less.epsilon(1e-4) > epsilon


def test_a_target_that_the_noised_count_alone_exceeds_is_refused() -> None:
    with pytest.raises(PrivacyTargetError, match="raise epsilon"):
        TrainingCost.for_target(epsilon=0.001, delta=1e-9, sample_rate=0.1, num_steps=10)


@pytest.mark.parametrize("epsilon", [0.1, 2.0, 8.0, 100.0])
def test_evaluation_noise_stays_within_its_target_and_is_not_wasteful(epsilon: float) -> None:
    deviation = gaussian_standard_deviation(epsilon=epsilon, delta=1e-4, num_releases=5)
    assert gaussian_delta(standard_deviation=deviation, num_releases=5, epsilon=epsilon) <= 1e-4
    assert gaussian_delta(standard_deviation=0.99 * deviation, num_releases=5, epsilon=epsilon) > 1e-4


@pytest.mark.slow
def test_the_lifetime_sum_is_zero_without_runs_and_grows_with_each() -> None:
    small, large = (
        RunCost(training=cost(), evaluation=EvaluationCost(standard_deviation=deviation, num_releases=3))
        for deviation in (100.0, 0.5)
    )
    sums = [
        lifetime_epsilon(runs, cap=5.0, delta=1e-5)
        for runs in [(), (small,), (small, small), (small, large), (large, large)]
    ]
    assert sums[0] == 0.0
    assert sums == sorted(set(sums))
    assert sums[1] > cost().epsilon(1e-5)


def test_a_run_counts_with_the_dearer_of_training_and_evaluation_never_with_their_sum() -> None:
    evaluation = EvaluationCost(standard_deviation=3.0, num_releases=2)
    run = RunCost(training=cost(200), evaluation=evaluation)
    order = filter_order(cap=5.0, delta=1e-5)
    divergences = []
    for event in (cost(200).event, evaluation.event):
        accountant = rdp.RdpAccountant(orders=[order])
        accountant.compose(event)
        divergences.append(accountant.rdp[0])
    expected = rdp.compute_epsilon([order], [3 * max(divergences)], 1e-5)[0]
    assert lifetime_epsilon((run,) * 3, cap=5.0, delta=1e-5) == pytest.approx(expected, rel=1e-12)


# The ledger


def a_run(run_id: str = "run-1") -> LedgerRun:
    return LedgerRun(
        run_id=run_id,
        study_hash="0" * 64,
        sample_rate=0.1,
        noise_multiplier=1.5,
        delta=1e-4,
        noised_count=217,
        evaluation_deviation=4.0,
        num_evaluations=2,
    )


def test_what_was_spent_is_there_after_a_restart(tmp_path) -> None:
    first = ledger_in(tmp_path)
    first.open_run(a_run())
    first.begin_round("run-1", 1, num_steps=10)
    first.begin_round("run-1", 2, num_steps=10)
    again = ledger_in(tmp_path)
    assert again.run("run-1") == a_run()
    assert again.training_cost("run-1") == cost(20)
    assert [entry.round for entry in again.rounds("run-1")] == [1, 2]


def test_a_round_is_never_begun_twice_nor_an_earlier_one(tmp_path) -> None:
    ledger = ledger_in(tmp_path)
    ledger.open_run(a_run())
    ledger.begin_round("run-1", 3, num_steps=10)
    for number in (3, 2):
        with pytest.raises(AlreadySpentError, match="round 3 was begun already"):
            ledger.begin_round("run-1", number, num_steps=10)
    assert ledger.training_cost("run-1") == cost(10)


def test_a_round_of_an_unknown_run_is_refused(tmp_path) -> None:
    ledger = ledger_in(tmp_path)
    with pytest.raises(LedgerError, match="is not in the ledger"):
        ledger.begin_round("nobody", 1, num_steps=10)
    with pytest.raises(LedgerError, match="is not in the ledger"):
        ledger.training_cost("nobody")


def test_a_run_is_entered_once(tmp_path) -> None:
    ledger = ledger_in(tmp_path)
    ledger.open_run(a_run())
    with pytest.raises(LedgerError, match="already"):
        ledger.open_run(a_run())
    assert len(ledger.runs()) == 1


def test_the_lifetime_counts_training_and_evaluation_of_all_other_runs(tmp_path) -> None:
    ledger = ledger_in(tmp_path)
    for run_id in ("run-1", "run-2"):
        ledger.open_run(a_run(run_id))
        ledger.begin_round(run_id, 1, num_steps=10)
    one = RunCost(training=cost(10), evaluation=EvaluationCost(standard_deviation=4.0, num_releases=2))
    assert ledger.lifetime_epsilon(cap=5.0, delta=1e-5, without="run-2") == lifetime_epsilon(
        (one,), cap=5.0, delta=1e-5
    )
    assert ledger.lifetime_epsilon(cap=5.0, delta=1e-5) == lifetime_epsilon((one, one), cap=5.0, delta=1e-5)
    planned = ledger.lifetime_epsilon(cap=5.0, delta=1e-5, without="run-2", planned=one)
    assert planned == ledger.lifetime_epsilon(cap=5.0, delta=1e-5)


@pytest.mark.parametrize(
    "missing", [{"noise_multiplier": None, "delta": None}, {"evaluation_deviation": None}]
)
def test_a_run_without_noise_somewhere_makes_the_lifetime_epsilon_infinite(tmp_path, missing) -> None:
    ledger = ledger_in(tmp_path)
    ledger.open_run(replace(a_run(), **missing))
    assert ledger.lifetime_epsilon(cap=5.0, delta=1e-5) == math.inf


def test_the_filters_order_is_fixed_by_the_cap_and_converts_gaussians_well() -> None:
    for cap in (0.5, 1.0, 3.0, 8.0, 20.0):
        order = filter_order(cap=cap, delta=1e-5)
        orders = {filter_order(cap=cap, delta=1e-5) for _ in range(3)}
        assert orders == {order}
        spent = EvaluationCost(standard_deviation=4.0, num_releases=1)
        run = RunCost(training=cost(0), evaluation=spent)
        at_one_order = lifetime_epsilon((run,) * 3, cap=cap, delta=1e-5)
        accountant = rdp.RdpAccountant()
        for _ in range(3):
            accountant.compose(spent.event)
        assert at_one_order >= accountant.get_epsilon(1e-5) - 1e-9
