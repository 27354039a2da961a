"""WeightedRoundRobin: recorded sequences, nginx's current weights, then exact properties."""

from collections import Counter
from math import gcd

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def test_kitex_smooth_sequences(impl, vectors):
    for case in vectors("kitex_smooth_wrr")["cases"]:
        weights, period = case["weights"], case["vcapacity"]
        picker = impl.WeightedRoundRobin(range(len(weights)), weights, start=case["offset"])
        assert picker.pick_many(len(case["smooth_sequence"])) == case["smooth_sequence"]
        # Kitex begins one pick later.
        picker = impl.WeightedRoundRobin(range(len(weights)), weights, start=case["offset"])
        picker.pick()
        assert picker.pick_many(len(case["picks"])) == case["picks"], case["name"]
        assert period == sum(weights) // gcd(*weights)


def test_kitex_current_weights(impl, vectors):
    n_traces = 0
    for case in vectors("kitex_smooth_wrr")["cases"]:
        weights = case["weights"]
        picker = impl.WeightedRoundRobin(range(len(weights)), weights, start=case["offset"])
        for step in case.get("trace") or ():
            assert picker.pick() == step["selected"]
            assert picker.current_weights == step["current"], case["name"]
            n_traces += 1
    assert n_traces > 50


def test_kratos_sequences(impl, vectors):
    for case in vectors("kratos_wrr")["sequences"]:
        weights = case["weights"]
        picker = impl.WeightedRoundRobin(range(len(weights)), weights, start=0)
        assert picker.pick_many(len(case["picks"])) == case["picks"], case["name"]


def test_worked_example(impl):
    picker = impl.WeightedRoundRobin(["a", "b", "c"], [3, 3, 4], start=0)
    assert "".join(picker.pick_many(20)) == "cabcabcabc" * 2


def test_exact_shares_in_every_period(impl):
    weights = [20, 40, 0, 60, 80]
    picker = impl.WeightedRoundRobin(range(5), weights)
    for _ in range(5):
        assert Counter(picker.pick_many(10)) == {0: 1, 1: 2, 3: 3, 4: 4}


def test_longest_table_and_beyond(kernels):
    """The period of 65,536 is kept, that of 65,537 is not; both are nginx's order."""
    for period in (65_535, 65_536, 65_537):
        weights = [1, 2, 5, 100, 1000, 7, 3]
        weights.append(period - sum(weights))
        picker = kernels.WeightedRoundRobin(range(8), weights, start=0)
        first, second = np.empty(period, np.int32), np.empty(period, np.int32)
        picker.fill(first)
        picker.fill(second)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(np.bincount(first), weights)
        assert picker.current_weights == [0] * 8


def test_ten_thousand_instances_equal_nginx(kernels):
    """Stretches of one weight, without a table, against nginx's loop in numpy."""
    rng = np.random.default_rng(3)
    weights = rng.integers(1, 101, 10_000)
    picker = kernels.WeightedRoundRobin(range(10_000), weights, start=0)
    current = np.zeros(10_000, np.int64)
    for got in picker.pick_many(3000):
        current += weights
        best = int(current.argmax())
        current[best] -= weights.sum()
        assert got == best
    assert picker.current_weights == current.tolist()


def test_how_long_a_stretch_is(kernels):
    """Some 87 picks of one weight after another, says the kernel of this case."""
    stream = kernels.splitmix64.SplitMix64(1)
    weights = np.array([1 + stream.below(100) for _ in range(10_000)])
    out = np.empty(400_000, np.int32)
    kernels.WeightedRoundRobin(range(10_000), weights, start=0).fill(out)
    n_stretches = np.count_nonzero(np.diff(weights[out])) + 1
    assert 80 < len(out) / n_stretches < 95


weights_of_all_sizes = st.one_of(
    st.lists(st.integers(0, 6), max_size=12),
    st.lists(st.integers(0, 1000), max_size=12),
    st.lists(st.sampled_from([0, 1, 1, 1, 2, 2, 30]), max_size=80),
    st.lists(st.integers(0, 2**57), max_size=8),
    st.lists(st.integers(0, (2**63 - 1) // 4), max_size=4),
    st.lists(st.integers(1, 6).map(lambda w: w * 2**55), max_size=6),
)


@settings(max_examples=400, deadline=None)
@given(weights=weights_of_all_sizes, start=st.integers(0, 100), n_picks=st.integers(0, 300))
def test_kernel_equals_reference(kernels, reference, weights, start, n_picks):
    n = len(weights)
    one = kernels.WeightedRoundRobin(range(n), weights, start=start)
    other = reference.WeightedRoundRobin(range(n), weights, start=start)
    assert one.pick_many(n_picks) == other.pick_many(n_picks)
    assert one.current_weights == other.current_weights
    assert sum(one.current_weights) == 0


def test_state_must_be_of_a_schedule(kernels):
    picker = kernels.WeightedRoundRobin(range(3), [5, 1, 1], start=0)
    for state in ([0, 0], [1, 0, 0], [7, -3, -4], [0, "a", 0], [10**40, -(10**40), 0], None):
        with pytest.raises((ValueError, TypeError)):
            picker._restore((0, state))
    assert picker.pick_many(7) == [0, 0, 1, 0, 2, 0, 0]
    with pytest.raises(ValueError, match="state"):
        kernels.WeightedRoundRobin(range(3), [2, 1, 0])._restore((0, [3, 2, -5]))
