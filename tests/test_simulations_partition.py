"""Every patient goes to exactly one hospital, in the proportions asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.preparation.partition import (
    PartitionError,
    Shares,
    assign,
    assign_with_minimum,
    dirichlet_shares,
    drawn_quantity_shares,
    iid_shares,
    missing_label_shares,
    quantity_shares,
)

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def all_shares(draw: st.DrawFn) -> Shares:
    num_hospitals, num_labels = draw(st.integers(1, 9)), draw(st.integers(2, 4))
    generator = np.random.default_rng(draw(SEEDS))
    alpha = draw(st.floats(1e-3, 1e3))
    return draw(
        st.sampled_from(
            [
                iid_shares(num_hospitals, num_labels),
                quantity_shares(list(range(1, num_hospitals + 1)), num_labels),
                drawn_quantity_shares(num_hospitals, num_labels, alpha, generator),
                dirichlet_shares(num_hospitals, num_labels, alpha, generator),
                missing_label_shares([None] + [h % num_labels for h in range(num_hospitals)], num_labels),
            ]
        )
    )


@given(shares=all_shares(), num_patients=st.integers(0, 300), seed=SEEDS)
def test_every_stratum_is_split_as_the_shares_say_to_within_one_patient(
    shares: Shares, num_patients: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, shares.shape[1], num_patients)
    roles = generator.integers(0, 3, num_patients)
    hospitals = assign(labels, roles, shares, generator)
    assert hospitals.shape == (num_patients,)
    for role in range(3):
        for label in range(shares.shape[1]):
            stratum = hospitals[(labels == label) & (roles == role)]
            counts = np.bincount(stratum, minlength=len(shares))
            assert counts.sum() == len(stratum)
            assert np.all(np.abs(counts - shares[:, label] * len(stratum)) < 1.0 + 1e-6)


@given(shares=all_shares())
def test_shares_of_every_label_sum_to_one(shares: Shares) -> None:
    np.testing.assert_allclose(shares.sum(axis=0), 1.0)
    assert np.all(shares >= 0)


@given(seed=SEEDS)
def test_the_same_seed_gives_the_same_partition(seed: int) -> None:
    labels, roles = np.arange(100) % 2, np.arange(100) % 3
    first, second = (
        assign(labels, roles, dirichlet_shares(4, 2, 0.5, generator), generator)
        for generator in (np.random.default_rng(seed), np.random.default_rng(seed))
    )
    np.testing.assert_array_equal(first, second)


def test_a_label_named_missing_is_absent_there_and_even_elsewhere() -> None:
    shares = missing_label_shares([1, None, 0, None], 2)
    np.testing.assert_allclose(shares, [[1 / 3, 0], [1 / 3, 1 / 3], [0, 1 / 3], [1 / 3, 1 / 3]])


def test_a_label_missing_everywhere_is_refused() -> None:
    with pytest.raises(PartitionError, match="label number 1 is missing at every hospital"):
        missing_label_shares([1, 1], 2)


def test_small_alpha_makes_mixes_more_uneven_than_large_alpha() -> None:
    generator = np.random.default_rng(0)
    uneven, even = (
        np.mean([dirichlet_shares(5, 2, alpha, generator).std() for _ in range(50)]) for alpha in (0.1, 100.0)
    )
    assert uneven > 5 * even


def test_shares_are_drawn_again_until_every_hospital_has_the_minimum() -> None:
    generator = np.random.default_rng(1)
    labels, roles = np.arange(400) % 2, np.zeros(400, np.int64)
    hospitals = assign_with_minimum(
        labels, roles, lambda: dirichlet_shares(4, 2, 0.5, generator), generator, min_patients=30
    )
    assert np.bincount(hospitals).min() >= 30


def test_a_minimum_that_cannot_be_met_is_told_with_numbers() -> None:
    with pytest.raises(PartitionError, match="gets 2 of 10 patients, fewer than min_patients = 3"):
        assign_with_minimum(
            np.zeros(10, np.int64),
            np.zeros(10, np.int64),
            lambda: iid_shares(4, 1),
            np.random.default_rng(0),
            min_patients=3,
        )


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(PartitionError, match="must be positive"):
        quantity_shares([1.0, 0.0], 2)
