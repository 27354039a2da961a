"""InterleavedWeightedRoundRobin: recorded sequences, then exact properties."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def test_kitex_sequences(impl, vectors):
    for case in vectors("kitex_interleaved_wrr")["cases"]:
        weights = case["weights"]
        picker = impl.InterleavedWeightedRoundRobin(
            range(len(weights)), weights, start=case["offset"]
        )
        assert picker.pick_many(len(case["picks"])) == case["picks"], case["name"]


def test_worked_example(impl):
    picker = impl.InterleavedWeightedRoundRobin(["a", "b", "c"], [3, 3, 4], start=0)
    assert "".join(picker.pick_many(20)) == "abcabcabcc" * 2


def test_later_cycles_go_lightest_first(impl):
    picker = impl.InterleavedWeightedRoundRobin(["a", "b", "c"], [4, 1, 2], start=0)
    assert "".join(picker.pick_many(7)) == "abcacaa"
    for _ in range(3):
        assert "".join(picker.pick_many(7)) == "bcacaaa"


def test_exact_shares_in_every_cycle(impl):
    picker = impl.InterleavedWeightedRoundRobin(range(5), [20, 40, 0, 60, 80])
    for _ in range(5):
        assert Counter(picker.pick_many(10)) == {0: 1, 1: 2, 3: 3, 4: 4}


def test_first_cycle_in_parts(kernels, reference):
    """More instances than a part of 1,024: the passes are made piece by piece."""
    rng = np.random.default_rng(5)
    for n in (1023, 1024, 1025, 5000):
        weights = rng.integers(0, 5, n)
        one = kernels.InterleavedWeightedRoundRobin(range(n), weights, start=17)
        other = reference.InterleavedWeightedRoundRobin(range(n), weights, start=17)
        for _ in range(7):
            assert one.pick_many(n // 2) == other.pick_many(n // 2)


@settings(max_examples=400, deadline=None)
@given(
    weights=st.one_of(
        st.lists(st.integers(0, 6), max_size=40),
        st.lists(st.integers(0, 100), max_size=12),
        st.lists(st.integers(0, (2**63 - 1) // 4), max_size=4),
        st.lists(st.integers(1, 6).map(lambda w: w * 2**55), max_size=6),
    ),
    start=st.integers(0, 100),
    n_picks=st.integers(0, 400),
)
def test_kernel_equals_reference(kernels, reference, weights, start, n_picks):
    n = len(weights)
    one = kernels.InterleavedWeightedRoundRobin(range(n), weights, start=start)
    other = reference.InterleavedWeightedRoundRobin(range(n), weights, start=start)
    assert one.pick_many(n_picks) == other.pick_many(n_picks)


def test_state_must_be_of_a_cycle(kernels):
    picker = kernels.InterleavedWeightedRoundRobin(range(3), [5, 1, 1], start=0)
    bad = [(True, 0, 0), (False, 6, 0), (False, 1, 4), (True, 5, 2), (True, 1, -1), (1,), None]
    for state in [*bad, (True, "a", 0), (True, 2**80, 0), (np.array([1, 2]), 1, 3), ("x", 1, 0)]:
        with pytest.raises((ValueError, TypeError, OverflowError)):
            picker._restore((0, state))
    assert picker.pick_many(7) == [0, 1, 2, 0, 0, 0, 0]
