"""The integer vector: exact sums, no overflow, the mean that FedAvg wants; flattening a model and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import make_study
from torch import nn

from server.aggregation import RunningSum
from shared_models.architectures import build_model
from shared_models.manifest import Manifest, flatten, named_arrays, unflatten
from shared_models.vector import VectorLayout, from_bytes, to_bytes


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


@given(site_vectors)
def test_the_sum_gives_the_weighted_mean_and_the_exact_statistics(sites) -> None:
    vectors = layout()
    total = RunningSum(vectors)
    for update, weight, statistics in sites:
        encoded = vectors.encode(update=np.array(update), weight=weight, statistics=np.array(statistics))
        total.add(to_bytes(encoded))
    weights = np.array([weight for _, weight, _ in sites])
    expected = np.average([update for update, _, _ in sites], axis=0, weights=weights)
    mean, weight_sum, statistics = vectors.decode_sum(
        np.sum(
            [vectors.encode(update=np.array(u), weight=w, statistics=np.array(s)) for u, w, s in sites],
            axis=0,
            dtype=np.uint32,
        )
    )
    assert weight_sum == weights.sum()
    grid = len(sites) * 0.5 / (vectors.scale * weights.sum() / vectors.max_weight)
    np.testing.assert_allclose(mean, expected, atol=grid * 1.001 + 1e-15)
    np.testing.assert_array_equal(statistics, np.sum([s for _, _, s in sites], axis=0))
    np.testing.assert_array_equal(total.mean()[0], mean)


def test_as_many_sites_as_allowed_at_the_bound_do_not_overflow() -> None:
    vectors = layout(sites=7)
    total = RunningSum(vectors)
    for _ in range(7):
        encoded = vectors.encode(
            update=np.array([2.0, -2.0, 1e30]), weight=1000, statistics=np.array([2**62, -(2**62)])
        )
        total.add(to_bytes(encoded))
    mean, statistics = total.mean()
    np.testing.assert_allclose(mean, [2.0, -2.0, 2.0], rtol=1e-6)
    assert statistics.tolist() == [7 * vectors.largest, -7 * vectors.largest]
    assert 7 * vectors.largest < 2**31


def test_one_vector_more_than_allowed_is_refused_and_the_sum_stays() -> None:
    vectors = layout(sites=2)
    total = RunningSum(vectors)
    payload = to_bytes(vectors.encode(update=np.ones(3), weight=1, statistics=np.ones(2, dtype=np.int64)))
    total.add(payload)
    total.add(payload)
    with pytest.raises(ValueError, match="at most 2 sites"):
        total.add(payload)
    assert total.num_vectors == 2
    assert total.mean()[1].tolist() == [2, 2]


def test_a_vector_of_another_length_is_refused_and_the_sum_stays() -> None:
    total = RunningSum(layout())
    with pytest.raises(ValueError, match="has 20 bytes"):
        total.add(bytes(20))
    assert total.num_vectors == 0


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


def test_bytes_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="has 8 bytes"):
        from_bytes(bytes(8), length=3)


def test_a_model_flattens_and_unflattens_to_the_same_weights() -> None:
    model, other = build_model(make_study()), build_model(make_study({"seed = 1": "seed = 2"}))
    assert not np.array_equal(flatten(model), flatten(other))
    unflatten(flatten(model), other)
    np.testing.assert_array_equal(flatten(model), flatten(other))
    manifest = Manifest.of(model)
    assert (
        sum(array.size for array in named_arrays(flatten(model), manifest).values()) == manifest.num_weights
    )


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
