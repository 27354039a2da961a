"""FairRoundRobin: its promise, exactly; recorded sequences; what changes may do to it."""

import pickle
from collections import Counter
from fractions import Fraction
from math import gcd

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

# The smooth order leaves somebody 1.398 picks from its share (found by search).
SIXTEEN = [280, 280, 492, 8, 13, 1, 25, 1, 1, 1, 3, 25, 27, 10, 25, 27]

weights_of_all_sizes = st.one_of(
    st.lists(st.integers(0, 6), max_size=12),
    st.lists(st.integers(0, 1000), max_size=12),
    st.lists(st.sampled_from([0, 1, 1, 1, 2, 2, 30]), max_size=80),
    st.lists(st.integers(0, 40).map(lambda w: 21 * w), max_size=6),
    st.lists(st.integers(0, 2**57), max_size=8),
    st.lists(st.integers(0, (2**63 - 1) // 4), max_size=4),
    st.lists(st.integers(1, 6).map(lambda w: w * 2**55), max_size=6),
)


def farthest(picks, weights):
    """Return by how much anybody is ever off its share, in picks, exactly."""
    total = sum(weights)
    counts = [0] * len(weights)
    worst = 0
    for t, i in enumerate(picks, 1):
        counts[i] += 1
        worst = max(worst, *(abs(t * w - c * total) for w, c in zip(weights, counts, strict=True)))
    return Fraction(worst, total)


# -- the promise ----------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(weights=st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any))
def test_less_than_one_pick_off_for_a_whole_period(kernels, weights):
    total = sum(weights)
    period = total // gcd(*weights)
    picks = kernels.FairRoundRobin(range(len(weights)), weights).pick_many(period)
    assert farthest(picks, weights) < 1
    assert Counter(picks) == {i: w * period // total for i, w in enumerate(weights) if w}


@settings(max_examples=200, deadline=None)
@given(weights=weights_of_all_sizes.filter(any), start=st.integers(0, 100))
def test_less_than_one_pick_off_whatever_the_weights(kernels, weights, start):
    picks = kernels.FairRoundRobin(range(len(weights)), weights, start=start).pick_many(500)
    assert farthest(picks, weights) < 1


def test_all_small_weights(impl):
    """Every vector up to n = 4 and weights of 5, and every order of it: all the ties there are."""
    for n in range(1, 5):
        for code in range(5**n):
            weights = [1 + code // 5**k % 5 for k in range(n)]
            period = sum(weights) // gcd(*weights)
            picks = impl.FairRoundRobin(range(n), weights, start=0).pick_many(period)
            assert farthest(picks, weights) < 1, weights
            assert all(picks.count(i) * sum(weights) == w * period for i, w in enumerate(weights))


def test_where_the_smooth_order_is_further_off(impl):
    period = sum(SIXTEEN)
    smooth = impl.WeightedRoundRobin(range(16), SIXTEEN, start=0).pick_many(period)
    assert round(float(farthest(smooth, SIXTEEN)), 3) == 1.398
    fair = impl.FairRoundRobin(range(16), SIXTEEN, start=0).pick_many(period)
    assert farthest(fair, SIXTEEN) < 1


@pytest.mark.parametrize("weights", [[2**62, 2**61, 2**60, 2**59 - 1], [2**63 - 2, 1], [2**62]])
def test_very_large_weights(impl, weights):
    picks = impl.FairRoundRobin(range(len(weights)), weights).pick_many(3000)
    assert farthest(picks, weights) < 1


def test_ties_go_to_the_heaviest_and_then_to_the_first_in_the_rotated_list(impl):
    assert impl.FairRoundRobin(range(5), start=3).pick_many(7) == [3, 4, 0, 1, 2, 3, 4]
    # All windows end with the period; at the ninth pick, two of them have begun.
    assert impl.FairRoundRobin(range(3), [3, 3, 4], start=0).pick_many(10)[8:] == [2, 1]


def test_recorded_sequences(impl, vectors):
    recorded = vectors("fair_round_robin")
    for case in recorded["cases"]:
        weights = case["weights"]
        picker = impl.FairRoundRobin(range(len(weights)), weights, start=case["start"])
        assert picker.pick_many(len(case["picks"])) == case["picks"], case["name"]
    changes = recorded["changes"]
    picker = impl.FairRoundRobin(range(5), changes["weights"], start=changes["start"])
    for step in changes["steps"]:
        picker.set_weight(step["index"], step["weight"])
        assert picker.pick_many(len(step["picks"])) == step["picks"]


# -- the kernel -------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(weights=weights_of_all_sizes, start=st.integers(0, 100), n_picks=st.integers(0, 300))
def test_kernel_equals_reference(kernels, reference, weights, start, n_picks):
    n = len(weights)
    one = kernels.FairRoundRobin(range(n), weights, start=start)
    other = reference.FairRoundRobin(range(n), weights, start=start)
    assert one.pick_many(n_picks) == other.pick_many(n_picks)
    assert one.lags == other.lags
    assert sum(one.lags) == 0


@settings(max_examples=150, deadline=None)
@given(
    divisor=st.sampled_from([1, 3, 21, 10**6 + 3, 2**40 - 1]),
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    steps=st.lists(
        st.tuples(st.integers(0, 500), st.booleans(), st.integers(0, 4), st.integers(0, 10**6)),
        max_size=6,
    ),
)
def test_changes_after_many_laps_equal_the_reference(kernels, reference, divisor, weights, steps):
    """A cycle forgets how often it went round; what a change rounds does not."""
    n, weights = len(weights), [divisor * w for w in weights]
    one = kernels.FairRoundRobin(range(n), weights, start=0)
    other = reference.FairRoundRobin(range(n), weights, start=0)
    for count, is_filled, index, weight in steps:
        if is_filled:
            out, wanted = np.empty((2, count), np.int32)
            one.fill(out)
            other.fill(wanted)
            assert out.tolist() == wanted.tolist()
        else:
            assert one.pick_many(count) == other.pick_many(count)
            one = pickle.loads(pickle.dumps(one))
        one.set_weight(index % n, weight)
        other.set_weight(index % n, weight)
        assert one.lags == other.lags


def test_longest_table_and_beyond(kernels):
    """The period of 65,536 is kept, that of 65,537 is not."""
    for period in (65_535, 65_536, 65_537):
        weights = [1, 2, 5, 100, 1000, 7, 3]
        weights.append(period - sum(weights))
        picker = kernels.FairRoundRobin(range(8), weights, start=0)
        first, second = np.empty(period, np.int32), np.empty(period, np.int32)
        picker.fill(first)
        picker.fill(second)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(np.bincount(first), weights)
        assert picker.lags == [0] * 8


def test_ten_thousand_instances(kernels):
    """Stretches of one weight, without a table; lags from counts in numpy."""
    rng = np.random.default_rng(3)
    weights = rng.integers(1, 101, 10_000)
    total = int(weights.sum())
    picker = kernels.FairRoundRobin(range(10_000), weights)
    out = np.empty(1000, np.int32)
    counts = np.zeros(10_000, np.int64)
    for t in range(1000, 600_000, 1000):
        picker.fill(out)
        counts += np.bincount(out, minlength=10_000)
        assert np.abs(t * weights - counts * total).max() < total


# -- changes ----------------------------------------------------------------------------------


def test_lags_are_kept(impl):
    picker = impl.FairRoundRobin(list("abcd"), [1, 2, 3, 4], start=0)
    picker.pick_many(3)
    before = picker.lags
    assert before == [Fraction(3, 10), Fraction(-4, 10), Fraction(-1, 10), Fraction(2, 10)]
    picker.set_weight(1, 7)
    assert all(abs(a - b) < Fraction(1, 2**62) for a, b in zip(picker.lags, before, strict=True))
    assert picker.add("e", 5) == 4
    assert abs(picker.lags[4]) < Fraction(1, 2**62)


def test_who_is_drained_keeps_its_lag_and_the_others_take_it_over(impl):
    picker = impl.FairRoundRobin(list("abc"), [1, 1, 2], start=0)
    assert picker.pick() == "c"
    assert picker.lags == [Fraction(1, 4), Fraction(1, 4), Fraction(-1, 2)]
    picker.set_weight(0, 0)
    # a's quarter: a third of it to b, two to c.
    wanted = [Fraction(1, 4), Fraction(1, 3), Fraction(-1, 3)]
    assert all(abs(a - b) < Fraction(1, 2**62) for a, b in zip(picker.lags, wanted, strict=True))
    picker.set_weight(0, 1)
    wanted = [Fraction(1, 4), Fraction(1, 4), Fraction(-1, 2)]
    assert all(abs(a - b) < Fraction(1, 2**62) for a, b in zip(picker.lags, wanted, strict=True))
    picker.remove(0)
    assert picker.add("d", 1) == 0
    assert abs(picker.lags[0]) < Fraction(1, 2**62)


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(st.integers(0, 50), min_size=2, max_size=8),
    changes=st.lists(
        st.tuples(st.integers(0, 7), st.integers(0, 500), st.integers(0, 60)), max_size=12
    ),
)
def test_what_holds_after_a_change(kernels, weights, changes):
    """The bounds at the top of the kernel; rounding has 2**-60 picks here."""
    picker = kernels.FairRoundRobin(range(len(weights)), weights)
    tiny = Fraction(1, 2**60)
    for index, weight, count in changes:
        picker.set_weight(index % len(weights), weight)
        weights[index % len(weights)] = weight
        total = sum(weights)
        live = [i for i, w in enumerate(weights) if w]
        began = picker.lags
        assert abs(sum(began[i] for i in live)) < tiny
        ahead = sum(max(-began[i], 0) for i in live)
        healed = max((-began[i] * total / weights[i] for i in live), default=0)
        least = min([-1, *(began[i] for i in live)])
        for t in range(1, count + 1):
            picker.pick()
            lags = picker.lags
            for i in live:
                assert lags[i] > least - tiny
                others = ahead - max(-began[i], 0)
                assert lags[i] < 1 + Fraction(weights[i], total) * others + tiny
                assert t < healed or lags[i] < 1 + tiny


def test_churn_leaves_no_trace(impl):
    """Who goes while it is owed the most leaves nobody owing: not after 1,000 of them."""
    picker = impl.FairRoundRobin(range(8), [5] * 4 + [1] * 4)
    for _ in range(1000):
        picker.pick_many(3)
        lags = picker.lags
        i = lags.index(max(lags))
        weight = int(picker.weights[i])
        picker.remove(i)
        assert picker.add("new", weight) == i
        assert all(-3 < lag < 3 for lag in lags)
    assert abs(sum(picker.lags)) < Fraction(1, 2**50)


def test_state_must_be_of_a_schedule(kernels):
    picker = kernels.FairRoundRobin(range(3), [5, 1, 1], start=0)
    expected = kernels.FairRoundRobin(range(3), [5, 1, 1], start=0).pick_many(9)
    for state in (
        (7, [0, 0, 0], [0, 1, 2]),
        (-1, [0, 0, 0], [0, 1, 2]),
        ("0", [0, 0, 0], [0, 1, 2]),
        (0, [0, 0], [0, 1, 2]),
        (0, [0, 0.5, 0], [0, 1, 2]),
        (0, [0, 0, 2**100], [0, 1, 2]),
        (0, [0, 0, 0], [0, 1, 1]),
        (0, [0, 0, 0], [0, 1]),
        None,
    ):
        with pytest.raises((ValueError, TypeError)):
            picker._restore((0, [], state, False))
    assert picker.pick_many(9) == expected
