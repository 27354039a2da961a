"""What all pickers share: the contract, on every picker of both implementations."""

import array
import copy
import gc
import operator
import pickle
import random
import sys
import weakref
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

WEIGHTS = [5, 0, 1, 7, 3]
NAMES = ["a", "b", "c", "d", "e"]


# -- the doors give one sequence ------------------------------------------------------------


def test_every_door_gives_the_same_sequence(make):
    expected = make(range(5), WEIGHTS, seed=3).pick_many(60)
    picker = make(range(5), WEIGHTS, seed=3)
    got = []
    out = np.empty(3, np.int32)
    for _ in range(6):
        got += [picker.pick(), picker.next(), picker.next(None, None), next(picker)]
        got += [picker.pick_index(), *picker.pick_many(2)]
        picker.fill(out)
        got += out.tolist()
    assert got == expected
    picker = make(range(5), WEIGHTS, seed=3)
    assert [picker.next(ctx="c", request=object()) for _ in range(60)] == expected
    picker = make(range(5), WEIGHTS, seed=3)
    assert list(islice(picker, 60)) == expected
    assert iter(picker) is picker


def test_indices_are_of_the_instances(make):
    one, other = make(NAMES, WEIGHTS, seed=8), make(NAMES, WEIGHTS, seed=8)
    for _ in range(50):
        assert one.pick() is NAMES[other.pick_index()]


def test_a_seed_fixes_everything_and_none_does_not(make):
    seeded = [make(range(50), seed=5).pick_many(20) for _ in range(2)]
    assert seeded[0] == seeded[1]
    assert len({tuple(make(range(50)).pick_many(20)) for _ in range(20)}) > 1


@given(sizes=st.lists(st.integers(0, 10_000), max_size=8), seed=st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_fills_of_any_length_continue_the_sequence(kernels, sizes, seed):
    """Also those of 4,096 and more, which copy without the GIL."""
    for name in ("RoundRobin", "WeightedRoundRobin", "InterleavedWeightedRoundRobin"):
        make = getattr(kernels, name)
        one, other = make(range(5), WEIGHTS, seed=seed), make(range(5), WEIGHTS, seed=seed)
        for size in sizes:
            out = np.full(size + 2, -7, np.int32)
            one.fill(out[1:-1])
            assert out[1:-1].tolist() == other.pick_many(size)
            assert out[0] == out[-1] == -7


def test_fill_takes_any_buffer_of_int32(make):
    picker = make(range(5), WEIGHTS, seed=3)
    expected = picker.pick_many(10)
    for out in (array.array("i", [0] * 10), memoryview(np.zeros(10, np.int32))):
        make(range(5), WEIGHTS, seed=3).fill(out)
        assert list(out) == expected
    make(range(5), WEIGHTS, seed=3).fill(np.empty(0, np.int32))


# -- nothing to pick ------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [[], [0], [0, 0, 0]])
def test_nothing_with_weight_gives_none(make, weights):
    picker = make(range(len(weights)), weights)
    out = np.zeros(5, np.int32)
    picker.fill(out)
    assert out.tolist() == [-1] * 5
    assert picker.pick() is None
    assert picker.next() is None
    assert picker.pick_index() is None
    assert picker.pick_many(3) == [None] * 3
    assert list(picker) == []
    assert list(picker.attempts()) == []
    assert picker.attempts().next() is None
    assert len(picker) == len(weights)
    assert copy.copy(picker).pick() is None


def test_one_instance(make):
    picker = make(["only"], [2**62])
    assert picker.pick_many(200) == ["only"] * 200
    assert list(picker.attempts()) == ["only"]


def test_zero_weight_is_never_picked(make):
    picker = make(range(6), [0, 3, 0, 0, 1, 0])
    assert set(picker.pick_many(500)) == {1, 4}
    assert set(picker.attempts()) == {1, 4}


# -- attempts -------------------------------------------------------------------------------


def test_attempts_are_distinct_and_complete(make):
    rng = random.Random(2)
    for _ in range(50):
        n = rng.randrange(1, 40)
        weights = [rng.choice([0, 1, 1, 10, 10**6]) for _ in range(n)]
        attempts = make(range(n), weights).attempts("ctx", "request")
        tried = list(attempts)
        assert sorted(tried) == [i for i in range(n) if weights[i]]
        assert attempts.next() is None
        assert list(attempts) == []


def test_the_first_attempt_is_one_pick(make):
    one, other = make(range(5), WEIGHTS, seed=4), make(range(5), WEIGHTS, seed=4)
    for _ in range(30):
        assert one.attempts().next() == other.pick()
    assert one.pick_many(10) == other.pick_many(10)


def test_attempts_equal_the_reference(kernels, reference, picker_name):
    rng = random.Random(6)
    for _ in range(200):
        n = rng.randrange(1, 30)
        weights = [rng.choice([0, 1, 2, 10**9]) for _ in range(n)]
        seed = rng.getrandbits(64)
        one = getattr(kernels, picker_name)(range(n), weights, seed=seed)
        other = getattr(reference, picker_name)(range(n), weights, seed=seed)
        for _ in range(4):
            assert list(one.attempts()) == list(other.attempts())
            assert one.pick_many(3) == other.pick_many(3)


def test_retries_spread_by_weight(impl):
    """When the heavy one is down, the next attempts go to the others by their weights."""
    # 4,000 requests; second attempts are 1:3 between c and d: 5 standard deviations = 137.
    picker = impl.WeightedRandom(["a", "b", "c", "d"], [10**9, 0, 1, 3], seed=5)
    seconds = []
    for _ in range(4000):
        attempts = picker.attempts()
        if attempts.next() == "a":
            seconds.append(attempts.next())
    assert len(seconds) > 3990
    assert abs(seconds.count("d") - len(seconds) * 3 / 4) < 137


def test_attempts_of_something_else_are_refused(impl):
    with pytest.raises(TypeError, match="picker"):
        impl.picker.Attempts("not a picker")


# -- views and copies -----------------------------------------------------------------------


def test_instances_and_weights(make):
    picker = make(NAMES, WEIGHTS)
    assert picker.instances == tuple(NAMES)
    assert picker.weights.dtype == np.int64
    assert picker.weights.shape == (5,)
    assert picker.weights.tolist() == WEIGHTS
    assert len(picker) == 5
    assert repr(picker) == f"{type(picker).__name__}(5 instances, total weight 16)"


def test_weights_cannot_be_written_through_the_view(make):
    view = make(NAMES, WEIGHTS).weights
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 9
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.flags.writeable = True


def test_weights_are_copied(make):
    weights = np.array(WEIGHTS)
    picker = make(NAMES, weights, seed=1)
    weights[:] = 0
    assert picker.weights.tolist() == WEIGHTS
    assert picker.pick_many(50) == make(NAMES, WEIGHTS, seed=1).pick_many(50)


def test_a_view_outlives_its_picker(make):
    view = make(NAMES, WEIGHTS).weights
    gc.collect()
    assert view.tolist() == WEIGHTS


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))]
)
@pytest.mark.parametrize("n_picks", [0, 1, 9, 64, 200])
@pytest.mark.parametrize(
    "weights", [WEIGHTS, [1] * 5, [2**40, 1, 1, 0, 9], [2**60, 2**59, 1, 5, 0]]
)
def test_a_duplicate_goes_on_from_the_same_point(make, duplicate, n_picks, weights):
    picker = make(NAMES, weights, seed=2)
    picker.pick_many(n_picks)
    other = duplicate(picker)
    assert type(other) is type(picker)
    assert other.instances == picker.instances
    first = picker.pick_many(150)
    assert other.pick_many(150) == first  # and did not share its state
    assert other.weights.tolist() == weights


# -- bad arguments --------------------------------------------------------------------------


class Unhashable(list):
    __hash__ = None


def test_instances_may_be_anything(make):
    things = [Unhashable([1]), {}, None, float("nan"), object]
    picker = make(things, seed=1)
    assert all(any(pick is thing for thing in things) for pick in picker.pick_many(50))
    assert make(iter("ab"), [1, 1]).instances == ("a", "b")


@pytest.mark.parametrize(
    ("instances", "error"),
    [("abc", TypeError), (b"abc", TypeError), (5, TypeError), (None, TypeError)],
)
def test_bad_instances_are_refused(make, instances, error):
    with pytest.raises(error, match="instances"):
        make(instances)


@pytest.mark.parametrize(
    ("weights", "error"),
    [
        ([1, 2], ValueError),
        ([1, 2, 3, 4], ValueError),
        ([[1, 2, 3]], ValueError),
        (np.ones((3, 1)), ValueError),
        ([1, [2, 3], 4], ValueError),
        ([1, -5, 3], ValueError),
        ([1, -(2**70), 3], ValueError),
        ([1, float("nan"), 3], ValueError),
        ([1, float("inf"), 3], ValueError),
        ([1, 1.5, 3], ValueError),
        ([1, 2**63, 3], ValueError),
        ([1, 2**100, 3], ValueError),
        ([1, 1e300, 3], ValueError),
        ([2**62, 2**62, 0], ValueError),
        (np.array([1, 2**63, 3], np.uint64), ValueError),
        (5, ValueError),
        ("abc", TypeError),
        (b"abc", TypeError),
        (["1", "2", "3"], TypeError),
        ([1, None, 3], TypeError),
        ([1, 2j, 3], TypeError),
        (np.array([1, 2, 3], "m8[ns]"), TypeError),
        (np.array([1, 2, 3], "M8[ns]"), TypeError),
        ({1, 2, 3}, TypeError),
        (object(), TypeError),
    ],
)
def test_bad_weights_are_refused(make, weights, error):
    with pytest.raises(error, match="weights"):
        make(range(3), weights)


@pytest.mark.parametrize(
    "weights",
    [
        (1, 2, 3),
        np.array([1, 2, 3], np.uint8),
        np.array([1.0, 2.0, 3.0]),
        array.array("q", [1, 2, 3]),
        np.array([3, 2, 1])[::-1],
        [1, np.int32(2), 3.0],
        np.array([1, 2, 3], object),
        np.array([1, 2, 3], ">i8"),
    ],
)
def test_weights_may_be_anything_whole(make, weights):
    assert make(range(3), weights).weights.tolist() == [1, 2, 3]
    assert make(range(2), [True, False]).pick_many(5) == [0] * 5
    # Not rounded to a float on the way.
    assert make(range(3), [2**53 + 1, 1.0, 1]).weights.tolist() == [2**53 + 1, 1, 1]


@pytest.mark.parametrize(
    ("seed", "error"), [(-1, ValueError), (2**64, ValueError), (1.5, TypeError), ("1", TypeError)]
)
def test_bad_seeds_are_refused(make, seed, error):
    with pytest.raises(error, match="seed"):
        make(range(3), seed=seed)


@pytest.mark.parametrize("start", [1.5, "1", [1]])
def test_bad_starts_are_refused(impl, start):
    for name in ("RoundRobin", "WeightedRoundRobin", "InterleavedWeightedRoundRobin"):
        for instances in ((), range(3)):
            with pytest.raises(TypeError, match="start"):
                getattr(impl, name)(instances, start=start)


@pytest.mark.parametrize(
    ("n", "error"), [(-1, ValueError), (2**80, ValueError), (1.5, TypeError), (None, TypeError)]
)
def test_bad_counts_are_refused(make, n, error):
    with pytest.raises(error, match="n must"):
        make(range(3)).pick_many(n)


def read_only():
    out = np.zeros(3, np.int32)
    out.flags.writeable = False
    return out


@pytest.mark.parametrize(
    ("out", "error"),
    [
        ([0, 0], TypeError),
        (None, TypeError),
        (5, TypeError),
        (np.zeros(3, np.int64), TypeError),
        (np.zeros(3, np.uint32), TypeError),
        (np.zeros(3, np.float32), TypeError),
        (bytearray(12), TypeError),
        (np.zeros((3, 3), np.int32), ValueError),
        (np.zeros(6, np.int32)[::2], ValueError),
        (np.zeros((), np.int32), ValueError),
        (read_only(), ValueError),
    ],
)
def test_bad_outs_are_refused_and_cost_no_pick(make, out, error):
    one, other = make(range(5), WEIGHTS, seed=1), make(range(5), WEIGHTS, seed=1)
    with pytest.raises(error, match="out must"):
        one.fill(out)
    assert one.pick_many(20) == other.pick_many(20)


def test_errors_have_the_same_words_on_both(kernels, reference, picker_name):
    calls = [
        lambda make: make(5),
        lambda make: make(range(3), [1]),
        lambda make: make(range(3), [1, -1, 2]),
        lambda make: make(range(3), seed=-1),
        lambda make: make(5, seed=-1),
        lambda make: make(range(3)).pick_many(-1),
        lambda make: make(range(3)).fill(np.zeros(3)),
    ]
    for call in calls:
        words = []
        for implementation in (kernels, reference):
            with pytest.raises((TypeError, ValueError)) as caught:
                call(getattr(implementation, picker_name))
            words.append((caught.type, str(caught.value)))
        assert words[0] == words[1]


def test_new_without_init(make, impl):
    """No half-made picker: the kernels are made whole in __new__, or not at all."""
    if impl.name == "reference":
        with pytest.raises(AttributeError):
            make.__new__(make).pick()
        return
    with pytest.raises(TypeError):
        make.__new__(make)
    picker = make.__new__(make, range(3))
    assert picker.pick() in range(3)
    base = impl.picker.Picker()
    assert (base.next(), base.pick_index(), len(base), base.instances) == (None, None, 0, ())
    assert list(base.attempts()) == []
    assert base.weights.shape == (0,)
    base.fill(np.zeros(3, np.int32))


def test_an_iterator_that_fails_leaves_its_own_error(make):
    def failing():
        yield 1
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        make(failing())


# -- memory and garbage ---------------------------------------------------------------------


class Thing:
    pass


def test_instances_are_counted_right(make):
    thing = Thing()
    before = sys.getrefcount(thing)
    picker = make([thing, thing], [2, 1])
    picks = picker.pick_many(100)
    picks += [picker.pick() for _ in range(100)]
    picks += [picker.next() for _ in range(100)]
    picks += list(islice(picker, 100))
    picks += list(picker.attempts())
    assert sys.getrefcount(thing) == before + 2 + 402
    del picks, picker
    gc.collect()
    assert sys.getrefcount(thing) == before


def test_none_is_counted_right(make):
    picker = make([])
    before = sys.getrefcount(None)
    for _ in range(10_000):
        picker.pick()
        picker.next()
        picker.pick_index()
        picker.attempts().next()
    picker.pick_many(10_000)
    assert abs(sys.getrefcount(None) - before) < 100


def test_a_picker_in_a_cycle_is_collected(make):
    things = [Thing(), Thing()]
    picker = make(things)
    things[0].picker = picker
    things[1].attempts = picker.attempts()
    things[1].attempts.next()
    watched = weakref.ref(things[0]), weakref.ref(picker)
    del things, picker
    gc.collect()
    assert [reference() for reference in watched] == [None, None]


def test_a_picker_may_go_while_it_is_iterated(make):
    picker = make([Thing() for _ in range(3)])
    attempts, stream = picker.attempts(), iter(picker)
    del picker
    gc.collect()
    assert isinstance(attempts.next(), Thing)
    assert isinstance(next(stream), Thing)
    assert len(list(attempts)) == 2


def test_generic_aliases(make):
    assert operator.getitem(make, int) is not None


def test_a_million_instances(kernels, picker_name):
    weights = np.random.default_rng(1).integers(0, 101, 1_000_000)
    picker = getattr(kernels, picker_name)(range(1_000_000), weights)
    out = np.empty(100_000, np.int32)
    picker.fill(out)
    assert (weights[out] > 0).all()
    assert len(picker) == 1_000_000
    assert picker.attempts().next() is not None
