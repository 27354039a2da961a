"""LeastRequest: a textbook model, shares in flight, the longest queue, and exact comparisons."""

import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rota.reference.least_request import FULL_SCAN
from rota.reference.splitmix64 import MASK, SplitMix64


def put_in_flight(picker, loads):
    """Return leases that make the loads these, by index."""
    doors = [picker.among([i]) for i in range(len(loads))]
    leases = [door.acquire() for door, load in zip(doors, loads, strict=True) for _ in range(load)]
    assert picker.loads.tolist() == list(loads)
    return leases


class Textbook:
    """The rule, from nothing: a list of what is in flight, exact fractions, and the draws."""

    def __init__(self, weights, draws, seed):
        self.weights, self.draws = weights, draws
        self.in_flight = [0] * len(weights)
        self.random = SplitMix64(seed ^ MASK)

    def load(self, i):
        return Fraction(self.in_flight[i] + 1, self.weights[i])

    def pick(self):
        n, first = len(self.weights), self.draws.pick_index()
        if n == 1 or self.in_flight[first] == 0:
            return first
        if n > FULL_SCAN:
            others = [i for i in range(n) if i != first]
            second = others[self.random.below(n - 1)]
            return second if self.load(second) < self.load(first) else first
        start = self.random.below(n)
        scan = [first] + [(start + k) % n for k in range(n)]
        return min(scan, key=self.load)  # of equals the one that comes first


@settings(max_examples=100, deadline=None)
@given(
    weights=st.one_of(
        st.lists(st.integers(1, 5), min_size=1, max_size=30),
        st.lists(st.integers(2**58 - 9, 2**58), min_size=1, max_size=30),
    ),
    seed=st.integers(0, 2**60),
    most=st.integers(0, 60),
)
def test_the_textbook(kernels, reference, weights, seed, most):
    for impl in (kernels, reference):
        n, rng = len(weights), random.Random(seed)
        model = Textbook(weights, impl.WeightedRandom(range(n), weights, seed=seed), seed)
        picker = impl.LeastRequest(range(n), weights, seed=seed)
        leases = []
        for _ in range(200):
            leases.append(picker.acquire())
            i = model.pick()
            assert leases[-1].index == i
            model.in_flight[i] += 1
            while len(leases) > most:
                lease = leases.pop(rng.randrange(len(leases)))
                model.in_flight[lease.index] -= 1
                lease.done(rng.random(), rng.choice([None, OSError()]))  # makes no difference
            assert picker.loads.tolist() == model.in_flight


def test_sequence_is_fixed_for_ever(impl):
    for n, sequence in GOLDEN.items():
        picker = impl.LeastRequest(range(n), [5, 1, 1, 0, 3] + [2] * (n - 5), seed=42)
        found, leases = [], []
        for k in range(30):
            leases.append(picker.acquire())
            found.append(leases[-1].index)
            if k % 3 == 2:
                leases.pop(0).done(0.5)
        assert found == sequence


GOLDEN = {
    5: [0, 1, 2, 0, 4, 0, 1, 0, 4, 0, 0, 2, 4, 0, 0, 4, 4, 0, 0, 0, 4, 1, 0, 0, 0, 2, 4, 4, 1, 0],
    20: [
        6,
        4,
        7,
        11,
        1,
        13,
        5,
        10,
        9,
        18,
        0,
        14,
        15,
        17,
        4,
        12,
        0,
        4,
        0,
        5,
        18,
        2,
        19,
        5,
        9,
        7,
        6,
        10,
        13,
        13,
    ],
}


# -- under load -----------------------------------------------------------------------------


def in_flight_on_average(picker, n_in_flight, n_calls=20_000, seed=1):
    """Return the mean loads while so many are in flight, each as likely to end as the others."""
    rng, leases = random.Random(seed), [picker.acquire() for _ in range(n_in_flight)]
    total = np.zeros(len(picker))
    for _ in range(n_calls):
        k = rng.randrange(n_in_flight)
        leases[k].release()
        leases[k] = picker.acquire()
        total += picker.loads
    return total / n_calls


@pytest.mark.parametrize("n", [2, 8])
def test_few_instances_share_by_weight_closely(kernels, n):
    picker = kernels.LeastRequest(range(n), [1, 3] * (n // 2), seed=1)
    means = in_flight_on_average(picker, 20 * n)
    assert means[::2].mean() == pytest.approx(10, abs=1)
    assert means[1::2].mean() == pytest.approx(30, abs=1)


@pytest.mark.parametrize("n", [10, 100])
def test_many_instances_share_by_weight(kernels, n):
    picker = kernels.LeastRequest(range(n), [1, 3] * (n // 2), seed=1)
    means = in_flight_on_average(picker, 20 * n)
    ratio = means[1::2].sum() / means[::2].sum()
    assert 2.7 < ratio < 3.3


@pytest.mark.parametrize("n", [2, 8, 9, 100])
def test_equal_loads_are_a_matter_of_chance(impl, n):
    """Where all are as busy the first draw stands, and that is weighted random's."""
    picker, draws = impl.LeastRequest(range(n), seed=n), impl.WeightedRandom(range(n), seed=n)
    leases = put_in_flight(picker, [2] * n)
    assert picker.pick_many(200) == draws.pick_many(200)
    del leases


@pytest.mark.parametrize("n", [2, 3, FULL_SCAN])
def test_of_a_few_the_least_loaded_is_found(impl, n):
    rng = random.Random(n)
    for _ in range(30):
        picker = impl.LeastRequest(range(n), seed=rng.randrange(2**64))
        loads = [rng.randrange(4) for _ in range(n)]
        leases = put_in_flight(picker, loads)
        least = {i for i in range(n) if loads[i] == min(loads)}
        assert set(picker.pick_many(50 * n)) == least  # one is missed once in exp(50)
        del leases


def test_equals_among_the_least_share(kernels):
    """Wherever a scan begins: nobody is the first to be found because of their place."""
    picker = kernels.LeastRequest(range(8), seed=1)
    leases = put_in_flight(picker, [5, 1, 1, 5, 5, 5, 5, 1])
    counts = np.bincount(picker.pick_many(80_000), minlength=8)
    assert set(counts.nonzero()[0].tolist()) == {1, 2, 7}
    # Each is drawn first in an eighth, and found first from the places up to it: 1 in 5 of
    # the others' 5 eighths for index 2, up to 5 places for 7, and 2 (8 and 0) for 1.
    expected = 80_000 / 8 * (1 + 5 * np.array([2, 1, 5]) / 8)
    assert abs(counts[[1, 2, 7]] / expected - 1).max() < 0.05
    del leases


def test_many_are_not_all_compared(kernels):
    n = FULL_SCAN + 1
    picker = kernels.LeastRequest(range(n), seed=1)
    leases = put_in_flight(picker, [1] + [2] * (n - 1))
    counts = np.bincount(picker.pick_many(90_000), minlength=n)
    # Found where it is one of two of nine.
    assert counts[0] / 90_000 == pytest.approx(2 / 9, rel=0.05)
    del leases


@pytest.mark.parametrize("n", [100, 1_000, 10_000])
def test_the_longest_queue_is_short(kernels, n):
    """As many in flight as instances: log2(log2(n)) and a bit, where random has far more."""
    picker, draws = kernels.LeastRequest(range(n), seed=3), kernels.WeightedRandom(range(n), seed=3)
    leases = [picker.acquire() for _ in range(n)]
    longest = picker.loads.max()
    at_random = np.bincount(draws.pick_many(n), minlength=n).max()
    assert longest <= 4
    assert at_random >= longest + 1
    assert at_random >= {100: 4, 1_000: 5, 10_000: 6}[n]
    del leases


# -- exact ----------------------------------------------------------------------------------


def test_weights_that_no_float_tells_apart(impl):
    for heavy, light in ((2**62, 2**62 - 1), (2**62 - 1, 2**62 - 2)):
        picker = impl.LeastRequest(["heavy", "light"], [heavy, light], seed=1)
        for each in (0, 1, 7, 100):
            leases = put_in_flight(picker, [each, each])
            assert set(picker.pick_many(100)) == ({"heavy", "light"} if each == 0 else {"heavy"})
            del leases
        leases = put_in_flight(picker, [8, 7])
        assert set(picker.pick_many(100)) == {"light"}
        del leases


def test_weights_that_no_float_tells_apart_of_many(impl):
    """Of any two the heavier: the lightest is never picked."""
    n = 12
    picker = impl.LeastRequest(range(n), [2**59 - i for i in range(n)], seed=1)
    leases = put_in_flight(picker, [1] * n)
    assert set(picker.pick_many(1_000)) == set(range(n - 1))
    del leases


def test_the_limit_of_weights(impl):
    picker = impl.LeastRequest(["a", "b"], [2**63 - 2, 1], seed=1)
    leases = put_in_flight(picker, [1000, 0])
    assert set(picker.pick_many(100)) == {"a"}
    del leases
    leases = put_in_flight(picker, [0, 1000])
    assert set(picker.pick_many(100)) == {"a"}
    del leases


def test_an_idle_first_draw_stands(impl):
    """However heavy and idle the others are: at rest picks are shared out by weight."""
    picker = impl.LeastRequest(range(2), [1, 1000], seed=1)
    draws = impl.WeightedRandom(range(2), [1, 1000], seed=1)
    assert picker.pick_many(5_000) == draws.pick_many(5_000)


def test_who_is_drained_is_not_compared(impl):
    picker = impl.LeastRequest(range(4), seed=1)
    leases = put_in_flight(picker, [0, 3, 3, 3])
    picker.set_weight(0, 0)
    assert set(picker.pick_many(100)) == {1, 2, 3}
    picker.set_weight(0, 1)
    assert set(picker.pick_many(100)) == {0}
    del leases


def test_golden_sequence(impl):
    """Of a seed and these calls; written down once: it is a promise."""
    picker = impl.LeastRequest(list("abcdefghijkl"), range(1, 13), seed=7)
    leases, picks = [], ""
    for k in range(60):
        leases.append(picker.acquire())
        picks += leases[-1].instance
        if k % 3 == 2:
            leases.pop(k % len(leases)).release()
    assert picks == "ghljfighcgillkkhlfjjeihdllbglhefgehjjldiklghhjfkkkjfgckdljji"
