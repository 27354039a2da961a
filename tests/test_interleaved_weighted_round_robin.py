"""InterleavedWeightedRoundRobin: recorded sequences, then exact properties."""

import copy
import pickle
from collections import Counter
from math import gcd

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


def test_passes_in_parts(kernels, reference):
    """More instances than a run has room for, 1,024: a pass is made piece by piece."""
    rng = np.random.default_rng(5)
    for n in (511, 512, 513, 1023, 1024, 1025, 5000):
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


# -- changes: each rule of Kitex's two queues -----------------------------------------------


def picked(picker, n):
    return "".join(picker.pick_many(n))


def test_changes_before_the_first_pick_are_in_the_first_round(impl):
    picker = impl.InterleavedWeightedRoundRobin(list("abc"), [2, 1, 1], start=1)
    picker.set_weight(1, 3)
    assert picked(picker, 6) == "bcabab"


def test_a_new_weight_counts_from_the_next_round(impl):
    picker = impl.InterleavedWeightedRoundRobin(list("abc"), [3, 1, 2], start=0)
    assert picked(picker, 2) == "ab"
    picker.set_weight(0, 1)  # a is in current, with two turns to come
    picker.set_weight(1, 2)  # b waits
    assert picked(picker, 4) == "caca"
    assert picked(picker, 5) == "bcabc"


def test_a_new_weight_after_the_last_turn_counts_in_the_next_round(impl):
    """In the middle of a run whose picks have not been moved yet."""
    picker = impl.InterleavedWeightedRoundRobin(list("abcd"), [1, 1, 1, 1], start=0)
    assert picked(picker, 4 * 10 + 2) == "abcd" * 10 + "ab"
    picker.set_weight(0, 2)  # has had its turn
    picker.set_weight(2, 2)  # has not
    assert picked(picker, 2) == "cd"
    assert picked(picker, 6) == "abcdac"


def test_a_round_keeps_its_divisor(impl):
    picker = impl.InterleavedWeightedRoundRobin(list("ab"), [20, 40], start=0)
    assert picked(picker, 1) == "a"
    picker.set_weight(0, 25)
    assert picked(picker, 2) == "bb"  # by 20 still
    assert Counter(picker.pick_many(13)) == {"a": 5, "b": 8}  # by 5


def test_the_divisor_rises_when_who_kept_it_low_has_gone(impl):
    for change in ("drain", "remove", "weight"):
        picker = impl.InterleavedWeightedRoundRobin(list("abc"), [100, 200, 1], start=0)
        assert Counter(picker.pick_many(301)) == {"a": 100, "b": 200, "c": 1}
        if change == "drain":
            picker.set_weight(2, 0)
        elif change == "remove":
            picker.remove(2)
        else:
            picker.set_weight(2, 300)
        share = {"a": 1, "b": 2, **({"c": 3} if change == "weight" else {})}
        for _ in range(3):
            assert Counter(picker.pick_many(sum(share.values()))) == share


def test_drained_in_the_middle_of_its_burst(impl):
    for n_picks in (5, 80, 500):
        for drain in ("set_weight", "remove"):
            picker = impl.InterleavedWeightedRoundRobin(list("abc"), [10_000, 1, 1], start=0)
            assert picked(picker, 3 + n_picks) == "abc" + "a" * n_picks
            if drain == "remove":
                picker.remove(0)
            else:
                picker.set_weight(0, 0)
            assert picked(picker, 6) == "bcbcbc"


def test_drained_while_it_waits(impl):
    picker = impl.InterleavedWeightedRoundRobin(list("abc"), [2, 1, 1], start=0)
    assert picked(picker, 3) == "abc"
    picker.set_weight(1, 0)
    assert picked(picker, 1) == "a"
    assert picked(picker, 3) == "caa"


def test_who_has_weight_again_waits_for_the_round(impl):
    picker = impl.InterleavedWeightedRoundRobin(list("abc"), [3, 3, 3], start=0)
    picker.set_weight(2, 4)
    assert picked(picker, 4) == "abca"
    picker.set_weight(1, 0)
    picker.set_weight(1, 2)
    assert picked(picker, 4) == "cacc"
    assert picked(picker, 9) == "bacbacacc"


def test_a_newcomer_waits_for_the_round_behind_those_who_wait(impl):
    picker = impl.InterleavedWeightedRoundRobin(list("ab"), [2, 1], start=0)
    assert picked(picker, 2) == "ab"
    assert picker.add("c", 1) == 2
    assert picked(picker, 1) == "a"
    assert picked(picker, 4) == "bcaa"


def test_nobody_left_in_current(impl):
    """The next round begins with the next pick, not before: it has the weights of then."""
    picker = impl.InterleavedWeightedRoundRobin(list("ab"), [4, 4], start=0)
    assert picked(picker, 2) == "ab"
    picker.set_weight(0, 2)
    assert picked(picker, 3) == "abb"
    picker.set_weight(0, 0)
    picker.set_weight(1, 0)
    assert picker.pick() is None
    picker.set_weight(1, 7)
    picker.set_weight(0, 14)
    assert picked(picker, 6) == "baabaa"


def test_an_update_in_another_order_keeps_the_queues(impl):
    picker = impl.InterleavedWeightedRoundRobin(list("abcd"), [2, 2, 2, 2], start=0)
    assert picked(picker, 2) == "ab"
    picker.update(list("dcba"), [2, 2, 2, 2])
    assert picked(picker, 6) == "cdabcd"
    picker.update(list("xdb"), [1, 1, 1])
    assert picked(picker, 6) == "bdxbdx"


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.integers(0, 12).map(lambda w: 5 * w), min_size=1, max_size=30),
    changes=st.lists(
        st.tuples(st.integers(0, 29), st.integers(0, 12).map(lambda w: 5 * w), st.integers(0, 90)),
        max_size=15,
    ),
)
def test_whole_rounds_after_changes_are_exact(impl, weights, changes):
    """Wherever the changes fell: from the round after the next on, all are as they are now."""
    picker = impl.InterleavedWeightedRoundRobin(range(len(weights)), weights, start=3)
    for index, weight, n_picks in changes:
        picker.set_weight(index % len(weights), weight)
        picker.pick_many(n_picks)
    now = picker.weights.tolist()
    divisor = gcd(*now)
    if not divisor:
        assert picker.pick() is None
        return
    share = {i: weight // divisor for i, weight in enumerate(now) if weight}
    # The round under way takes no more picks than it has turns; where it ends is not known.
    round_length = sum(share.values())
    picker.pick_many(12 * len(weights) + round_length)
    picks = [picker.pick_many(round_length) for _ in range(3)]
    assert picks[0] == picks[1] == picks[2]
    assert Counter(picks[0]) == share


def test_long_chains_of_changes(kernels, reference):
    """The same instances come and go for ever: the gaps they leave must not fill the queues."""
    rng = np.random.default_rng(11)
    for n in (1, 2, 9, 100):
        one = kernels.InterleavedWeightedRoundRobin(range(n), [3] * n, start=0)
        other = reference.InterleavedWeightedRoundRobin(range(n), [3] * n, start=0)
        for k in range(3000):
            i, weight = int(rng.integers(n)), int(rng.integers(1, 4))
            for picker in (one, other):
                picker.set_weight(i, 0)
                picker.set_weight(i, weight)
            if k % 50 == 0:
                n_picks = int(rng.integers(2 * n))
                assert one.pick_many(n_picks) == other.pick_many(n_picks)
        assert one.pick_many(5 * n) == other.pick_many(5 * n)


def test_all_come_and_go_while_none_is_picked(kernels, reference):
    n = 300
    one = kernels.InterleavedWeightedRoundRobin(range(n), [2] * n, start=0)
    other = reference.InterleavedWeightedRoundRobin(range(n), [2] * n, start=0)
    for step in (1, 7, 11, 299):
        for picker in (one, other):
            picker.pick_many(n + n // 2)
            for weight in (0, 3, 0, 1):
                for k in range(n):
                    picker.set_weight(k * step % n, weight)
        assert one.pick_many(3 * n) == other.pick_many(3 * n)


def test_grows_from_nothing(kernels, reference):
    one = kernels.InterleavedWeightedRoundRobin([], start=0)
    other = reference.InterleavedWeightedRoundRobin([], start=0)
    for k in range(500):
        for picker in (one, other):
            assert picker.add(k, k % 5) == k
        assert one.pick_many(k % 7) == other.pick_many(k % 7)
    assert one.pick_many(3000) == other.pick_many(3000)


def test_a_copy_goes_on_and_leaves_the_picker_alone(impl):
    for n_picks in (0, 1, 9, 40, 700):
        picker = impl.InterleavedWeightedRoundRobin(range(6), [60, 3, 0, 9, 9, 30], start=2)
        same = impl.InterleavedWeightedRoundRobin(range(6), [60, 3, 0, 9, 9, 30], start=2)
        for each in (picker, same):
            each.pick_many(n_picks)
            each.set_weight(2, 6)
            each.set_weight(0, 61)
            each.pick_many(2)
        copies = [copy.copy(picker), pickle.loads(pickle.dumps(picker))]
        for n_more in (0, 1, 35, 400):
            picks = same.pick_many(n_more)
            same.set_weight(3, n_more)
            for each in (picker, *copies):
                assert each.pick_many(n_more) == picks
                copy.copy(each)
                each.set_weight(3, n_more)


def test_a_copy_of_whole_rounds_in_the_middle_of_one(impl):
    """A short round is repeated as it stands; what was picked of it is counted once."""
    for n_picks in (1, 4, 7, 8, 100, 1024, 5000):
        picker = impl.InterleavedWeightedRoundRobin(list("abc"), [1, 2, 5], start=0)
        same = impl.InterleavedWeightedRoundRobin(list("abc"), [1, 2, 5], start=0)
        for each in (picker, same):
            each.pick_many(2000 + n_picks)
        for n_more in (1, 5, 3000):
            copies = [copy.copy(picker), pickle.loads(pickle.dumps(picker))]
            picks = same.pick_many(n_more)
            for each in (picker, *copies):
                assert each.pick_many(n_more) == picks
        for each in (picker, same, *copies):
            each.set_weight(0, 0)
        assert picker.pick_many(50) == copies[0].pick_many(50) == same.pick_many(50)


def test_state_must_be_a_round_and_two_queues(kernels):
    picker = kernels.InterleavedWeightedRoundRobin(range(3), [4, 2, 0], start=0)
    assert picker.pick_many(2) == [0, 1]
    good = (2, [0], [2], [1])
    bad = [
        None,
        (),
        list(good),
        good[:3],
        (*good, []),
        ("a", *good[1:]),
        (0, *good[1:]),
        (-1, *good[1:]),
        (2**63, *good[1:]),
        (2**80, *good[1:]),
        (2, [0], [3], [1]),  # no multiple of the divisor
        (2, [0], [0], [1]),
        (2, [0], [-2], [1]),
        (2, [0], [2**63], [1]),
        (2, [0], ["a"], [1]),
        (2, [0], [], [1]),
        (2, [0], [2, 2], [1]),
        (2, [0], 2, [1]),
        (2, [0], [2], [0]),  # twice
        (2, [0, 0], [2, 2], [1]),
        (2, [0], [2], []),  # not all
        (2, [0], [2], [1, 2]),  # who has no weight
        (2, [0], [2], [3]),
        (2, [0], [2], [-1]),
        (2, [0], [2], ["b"]),
        (2, None, [2], [1]),
        (2, [0], [2], None),
    ]
    for state in bad:
        with pytest.raises((ValueError, TypeError, OverflowError)):
            picker._restore((0, [], state, False))
    assert picker.pick_many(4) == [0, 1, 0, 0]
    picker._restore((0, [], good, False))
    assert picker.pick_many(4) == [0, 1, 0, 0]
    picker._restore((0, [], (0, [], [], [0, 1]), False))
    assert picker.pick_many(3) == [0, 1, 0]


def test_changes_of_a_long_list(kernels, reference):
    rng = np.random.default_rng(3)
    n = 5000
    weights = rng.integers(0, 4, n)
    one = kernels.InterleavedWeightedRoundRobin(range(n), weights, start=4000)
    other = reference.InterleavedWeightedRoundRobin(range(n), weights, start=4000)
    for _ in range(8):
        low = int(rng.integers(n))
        for i in range(low, min(n, low + 1500)):  # a wide gap
            one.set_weight(i, 0)
            other.set_weight(i, 0)
        for i in rng.integers(0, n, 300).tolist():
            weight = int(rng.integers(0, 5))
            for picker in (one, other):
                picker.set_weight(i, weight)
            n_picks = int(rng.integers(0, 30))
            assert one.pick_many(n_picks) == other.pick_many(n_picks)
        assert one.pick_many(4000) == other.pick_many(4000)
