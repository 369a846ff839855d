"""The integer vector: exact sums, no overflow, the mean that FedAvg wants; flattening a model and back."""

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import make_study
from torch import nn

from shared_models.architectures import build_model
from shared_models.layouts import final_layout, training_layout
from shared_models.manifest import Manifest, flatten, unflatten
from shared_models.tasks.registry import task_of
from shared_models.vector import IntVector, VectorLayout


def layout(
    num_weights: int = 3, num_statistics: int = 2, *, sites: int = 5, max_weight: int = 1000
) -> VectorLayout:
    return VectorLayout(
        num_weights=num_weights,
        num_statistics=num_statistics,
        num_sites_max=sites,
        update_bound=2.0,
        max_weight=max_weight,
    )


site_vectors = st.lists(
    st.tuples(
        st.lists(st.floats(-2, 2), min_size=3, max_size=3),
        st.integers(1, 1000),
        st.lists(st.integers(-(10**6), 10**6), min_size=2, max_size=2),
    ),
    min_size=1,
    max_size=5,
)


def summed(vectors: VectorLayout, sites: Iterable[tuple[Sequence[float], int, Sequence[int]]]) -> IntVector:
    """What secure aggregation opens: the sum modulo 2^32."""
    total = np.zeros(vectors.length, dtype=np.uint32)
    for update, weight, statistics in sites:
        total += vectors.encode(
            update=np.array(update), weight=weight, statistics=np.array(statistics, dtype=np.int64)
        )
    return total


@given(site_vectors)
def test_the_sum_gives_the_weighted_mean_and_the_exact_statistics(sites) -> None:
    vectors = layout()
    weights = np.array([weight for _, weight, _ in sites])
    expected = np.average([update for update, _, _ in sites], axis=0, weights=weights)
    mean, weight_sum, statistics = vectors.decode_sum(summed(vectors, sites))
    assert weight_sum == weights.sum()
    grid = len(sites) * 0.5 / (vectors.scale * weights.sum() / vectors.max_weight)
    np.testing.assert_allclose(mean, expected, atol=grid * 1.001 + 1e-15)
    np.testing.assert_array_equal(statistics, np.sum([s for _, _, s in sites], axis=0))


@given(site_vectors, st.randoms(use_true_random=False))
def test_the_sum_is_the_same_in_whatever_order_vectors_arrive(sites, random) -> None:
    shuffled = list(sites)
    random.shuffle(shuffled)
    np.testing.assert_array_equal(summed(layout(), sites), summed(layout(), shuffled))


def test_as_many_sites_as_allowed_at_the_bound_do_not_overflow() -> None:
    vectors = layout(sites=7)
    total = summed(vectors, [([2.0, -2.0, 1e30], 1000, [2**62, -(2**62)])] * 7)
    mean, weight, statistics = vectors.decode_sum(total)
    np.testing.assert_allclose(mean, [2.0, -2.0, 2.0], rtol=1e-6)
    assert weight == 7000
    assert statistics.tolist() == [7 * vectors.largest, -7 * vectors.largest]
    assert 7 * vectors.largest < 2**31


def test_a_layout_without_weights_carries_statistics_only() -> None:
    vectors = layout(0, 2)
    assert vectors.length == 2
    total = vectors.encode(update=None, weight=1, statistics=np.array([3, -4]))
    mean, weight, statistics = vectors.decode_sum(total)
    assert (mean.size, weight, statistics.tolist()) == (0, 0, [3, -4])


@pytest.mark.parametrize("length", [0, 5, 7])
def test_a_sum_of_another_length_is_refused(length: int) -> None:
    assert layout().length == 6
    with pytest.raises(ValueError, match="the layout says"):
        layout().decode_sum(np.ones(length, dtype=np.uint32))


def test_entries_that_are_not_finite_count_as_zero() -> None:
    vectors = layout()
    encoded = vectors.encode(
        update=np.array([np.nan, np.inf, -np.inf]), weight=1000, statistics=np.zeros(2, dtype=np.int64)
    )
    assert encoded[:3].tolist() == [0, 0, 0]


def test_weights_that_could_overflow_are_refused_before_any_round() -> None:
    with pytest.raises(ValueError, match="does not stay below"):
        layout(sites=1000, max_weight=10_000_000)


def test_a_sum_without_any_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="total weight is 0"):
        layout().decode_sum(np.zeros(6, dtype=np.uint32))


def test_a_model_flattens_and_unflattens_to_the_same_weights() -> None:
    model, other = build_model(make_study()), build_model(make_study({"seed = 1": "seed = 2"}))
    assert not np.array_equal(flatten(model), flatten(other))
    unflatten(flatten(model), other)
    np.testing.assert_array_equal(flatten(model), flatten(other))
    assert flatten(model).shape == (Manifest.of(model).num_weights,)


def test_a_vector_that_does_not_fit_the_model_is_refused() -> None:
    model = build_model(make_study())
    before = flatten(model)
    with pytest.raises(ValueError, match="the model needs"):
        unflatten(np.zeros(3, dtype=np.float32), model)
    np.testing.assert_array_equal(flatten(model), before)


def test_manifests_of_different_models_differ() -> None:
    narrow, wide = build_model(make_study()), build_model(make_study({"width = 8": "width = 16"}))
    assert Manifest.of(narrow).hash != Manifest.of(wide).hash


def test_a_model_with_running_statistics_is_no_shared_model() -> None:
    with pytest.raises(ValueError, match="must have no buffers"):
        Manifest.of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))


def test_the_initial_weights_are_fixed_by_the_study_and_leave_the_global_random_state() -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = flatten(build_model(make_study()))
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(first, flatten(build_model(make_study())))


def test_site_and_server_derive_the_same_vectors_from_the_study() -> None:
    """Statistics travel in the round after the one that is validated; those of the last in the final test."""
    last, other = make_study(), make_study({"validation_rounds = [1, 3]": "validation_rounds = [1, 2]"})
    size = task_of(last).num_statistics
    assert [training_layout(last, number, num_weights=9).num_statistics for number in (1, 2, 3)] == [
        0,
        size,
        0,
    ]
    assert [training_layout(other, number, num_weights=9).num_statistics for number in (1, 2, 3)] == [
        0,
        size,
        size,
    ]
    assert (final_layout(last).length, final_layout(other).length) == (2 * size, size)
    assert training_layout(last, 1, num_weights=9).length == 10
