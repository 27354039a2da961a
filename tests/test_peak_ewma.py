"""PeakEwma: its numbers, decay without a clock, what a call teaches, and who is picked then.

The constants of the algorithm are read from the twin's module.
"""

import asyncio
import gc
import math
import random
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rota.reference.peak_ewma import LEAST_RTT, MOST_TIMEOUTS, NOISE

DECAY, TIMEOUT = 10.0, 1.0
FAILED, CANCELLED = OSError(), asyncio.CancelledError()


class Clock:
    """Goes by hand."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


class Known:
    """A picker of which single instances can be told how a call to them ended."""

    def __init__(self, impl, n, clock, weights=None, seed=1, **options):
        self.clock, self.impl = clock, impl
        options = {"decay": DECAY, "timeout": TIMEOUT} | options
        self.picker = impl.PeakEwma(range(n), weights, seed=seed, clock=clock, **options)
        self.doors = [self.picker.among([i]) for i in range(n)]

    def call(self, i, rtt, error=None):
        """End a call to i; return its average after that."""
        self.doors[i].acquire().done(rtt, error)
        return self.picker.latencies[i]

    def keys(self):
        """Return the keys that are compared, by index."""
        if self.impl.name == "reference":
            return [self.picker._key(load) for load in self.picker._loads]
        keys, costs, _, shared = self.picker.__reduce__()[1][4][2][3:]
        keys, costs, (cold,) = map(as_doubles, (keys, costs, shared[2:3]))
        return [key if cost else cold for key, cost in zip(keys, costs, strict=True)]


def as_doubles(bits):
    return struct.unpack(f"{len(bits)}d", struct.pack(f"{len(bits)}q", *bits))


# -- the numbers ----------------------------------------------------------------------------


@given(x=st.floats(2.0**-1022, 1.7e308))
@settings(max_examples=2_000, deadline=None)
def test_log2(kernels, reference, x):
    one, other = (impl.peak_ewma.log2(x) for impl in (kernels, reference))
    assert one == other
    assert one == pytest.approx(math.log2(x), abs=1e-7, rel=0)


@given(y=st.one_of(st.floats(-1100, 0), st.floats(-3, 0), st.integers(-1001, 0).map(float)))
@settings(max_examples=2_000, deadline=None)
def test_exp2(kernels, reference, y):
    one, other = (impl.peak_ewma.exp2(y) for impl in (kernels, reference))
    assert one == other
    assert one == (pytest.approx(2.0**y, rel=1e-6, abs=0) if y >= -1000 else 0.0)


def test_numbers_on_a_grid(kernels, reference):
    """Through whole octaves, where errors are largest and pieces meet."""
    for x in np.concatenate([np.linspace(0.5, 4, 20_001), 2.0 ** np.arange(-1022, 1024)]).tolist():
        found = kernels.peak_ewma.log2(x)
        assert found == reference.peak_ewma.log2(x)
        assert abs(found - math.log2(x)) <= 1e-7
    before = 0.0
    for y in np.concatenate([np.arange(-1001.0, -4), np.linspace(-4, 0, 20_001)]).tolist():
        found = kernels.peak_ewma.exp2(y)
        assert found == reference.peak_ewma.exp2(y)
        assert before <= found <= 1  # it never falls
        assert abs(found - 2.0**y) <= 1e-6 * 2.0**y or y < -1000
        before = found


def test_whole_numbers_are_exact(impl):
    for k in range(-1022, 1024):
        assert impl.peak_ewma.log2(2.0**k) == k
    for k in range(-1000, 1):
        assert impl.peak_ewma.exp2(float(k)) == 2.0**k
    assert impl.peak_ewma.exp2(-1e300) == impl.peak_ewma.exp2(-math.inf) == 0


# -- what a call teaches --------------------------------------------------------------------


def test_a_peak_counts_at_once_and_falls_with_time_only(impl, clock):
    known = Known(impl, 2, clock)
    assert math.isnan(known.picker.latencies[0])
    assert known.call(0, 0.5) == 0.5
    assert known.call(0, 2.0) == 2.0
    assert [known.call(0, 0.001) for _ in range(100)] == [2.0] * 100
    clock.now += 3
    w = math.exp(-3 / DECAY)
    average = 2.0 * w + 0.5 * (1 - w)
    assert known.call(0, 0.5) == pytest.approx(average, rel=2e-6)
    assert known.call(0, 0.5) == pytest.approx(average, rel=2e-6)
    assert known.call(0, average * 1.01) == average * 1.01
    clock.now += 1e6
    assert known.call(0, 0.25) == 0.25
    assert math.isnan(known.picker.latencies[1])


def test_a_peak_is_measured_against_what_is_left_of_the_average(impl, clock):
    known = Known(impl, 1, clock)
    known.call(0, 2.0)
    clock.now += DECAY
    assert known.call(0, 1.0) == 1.0  # 2 / e is less
    clock.now += DECAY
    w = math.exp(-1)
    assert known.call(0, 0.2) == pytest.approx(w + 0.2 * (1 - w), rel=2e-6)


def test_a_failure_counts_as_slow(impl, clock):
    known = Known(impl, 1, clock)
    assert known.call(0, 0.001, FAILED) == TIMEOUT
    doubled = [known.call(0, 0.001, FAILED) for _ in range(12)]
    bound = MOST_TIMEOUTS * TIMEOUT
    assert doubled == [min(2.0**k * TIMEOUT, bound) for k in range(1, 13)]
    assert known.call(0, 3 * bound, FAILED) == 3 * bound  # so long it took
    assert known.call(0, 0.001, FAILED) == 3 * bound  # and nobody gets better by failing
    clock.now += DECAY
    assert known.call(0, 0.001, FAILED) == pytest.approx(max(bound, 3 * bound / math.e), rel=2e-6)
    clock.now += 1e6
    assert known.call(0, 0.001, FAILED) == TIMEOUT
    clock.now += 1e6
    assert known.call(0, 0.001) == 0.001


def test_who_was_slow_does_not_gain_by_failing(impl, clock):
    known = Known(impl, 1, clock)
    slow = 100 * MOST_TIMEOUTS * TIMEOUT
    known.call(0, slow)
    assert known.call(0, 0.001, FAILED) == slow


def test_a_cancelled_call_only_raises(impl, clock):
    known = Known(impl, 1, clock)
    known.call(0, 5.0, CANCELLED)
    assert math.isnan(known.picker.latencies[0])  # of who is not known it says nothing
    known.call(0, 1.0)
    assert known.call(0, 0.001, CANCELLED) == 1.0
    clock.now += 2
    assert known.call(0, 0.001, CANCELLED) == pytest.approx(math.exp(-2 / DECAY), rel=2e-6)
    assert known.call(0, 7.0, CANCELLED) == 7.0


def test_cancelled_calls_do_not_slow_the_decay(impl, clock):
    known = Known(impl, 1, clock)
    known.call(0, 1.0)
    for _ in range(200):
        clock.now += DECAY / 100
        found = known.call(0, 0.0, CANCELLED)
    assert found == pytest.approx(math.exp(-2), rel=1e-4)


def test_the_time_of_a_call_may_be_nothing(impl, clock):
    known = Known(impl, 2, clock)
    assert known.call(0, 0.0) == LEAST_RTT
    assert known.call(1, 1e308) == 1e308
    assert known.call(1, 1.7e308, FAILED) == 1.7e308
    assert set(known.picker.pick_many(100)) == {0}


def test_select_and_with_take_the_time(impl, clock):
    picker = impl.PeakEwma(["a"], timeout=TIMEOUT, clock=clock)
    _, done = picker.select()
    clock.now += 0.5
    done()
    assert picker.latencies.tolist() == [0.5]
    clock.now += 1e6
    with picker.acquire():
        clock.now += 0.25
    assert picker.latencies.tolist() == [0.25]
    with pytest.raises(OSError), picker.acquire():  # noqa: PT011
        raise OSError
    assert picker.latencies.tolist() == [TIMEOUT]
    _, done = picker.select()
    clock.now -= 5  # it took no time, at least
    done()
    assert picker.latencies.tolist() == [TIMEOUT]


def test_a_lease_that_took_no_time_teaches_nothing(impl, clock):
    """One of `acquire` that is called like Kratos' done, or released."""
    picker = impl.PeakEwma(["a"], clock=clock)
    picker.acquire()()
    picker.acquire().release()
    assert np.isnan(picker.latencies).all()


def test_its_own_clock_goes(impl):
    picker = impl.PeakEwma(["a", "b"])
    for _ in range(50):
        with picker.acquire():
            sum(range(1_000))
        picker.select()[1]()
        picker.acquire().done(0.001)
    assert (picker.latencies >= LEAST_RTT).all()


@pytest.mark.parametrize("error", [None, FAILED, CANCELLED, ValueError("what is this")])
def test_errors_are_classified(impl, clock, error):
    asked = []

    def classify(given):
        asked.append(given)
        return 2

    known = Known(impl, 1, clock, classify=classify)
    known.call(0, 1.0)
    known.call(0, 0.5, error)
    assert asked == ([] if error is None else [error])
    assert known.picker.latencies[0] == 1.0


# -- decay without a clock ------------------------------------------------------------------


class Finagle:
    """The textbook: each average with its own stamp, decayed whenever it is looked at."""

    def __init__(self, n):
        self.cost, self.stamp = [None] * n, [0.0] * n

    def at(self, i, now):
        return self.cost[i] * math.exp(-(now - self.stamp[i]) / DECAY)

    def call(self, i, rtt, error, now):
        if self.cost[i] is None and error is CANCELLED:
            return
        left = 0.0 if self.cost[i] is None else self.at(i, now)
        rtt = max(rtt, LEAST_RTT)
        if error is CANCELLED:
            left = max(left, rtt)
        elif error is FAILED:
            left = max(rtt, TIMEOUT, left, min(2 * left, MOST_TIMEOUTS * TIMEOUT))
        elif rtt > left:
            left = rtt
        else:
            left += rtt * (1 - math.exp(-(now - self.stamp[i]) / DECAY))
        self.cost[i], self.stamp[i] = left, now


CALL = st.tuples(
    st.integers(0, 3),
    st.one_of(st.floats(0, 10), st.sampled_from([1e-3, 0.1])),
    st.sampled_from([None, None, None, FAILED, CANCELLED]),
    st.one_of(st.just(0.0), st.floats(0, 1), st.floats(0, 30)),
)


@settings(max_examples=300, deadline=None)
@given(calls=st.lists(CALL, max_size=40), later=st.floats(0, 100))
def test_keys_are_in_the_order_of_averages_that_decay(kernels, reference, calls, later):
    """At any later time; no key has changed meanwhile."""
    for impl in (kernels, reference):
        clock, model = Clock(), Finagle(4)
        known = Known(impl, 4, clock)
        for i, rtt, error, gap in calls:
            clock.now += gap
            known.call(i, rtt, error)
            model.call(i, rtt, error, clock.now)
        there = [i for i in range(4) if model.cost[i] is not None]
        keys = known.keys()
        for i in range(4):
            latency = known.picker.latencies[i]
            if i in there:
                assert latency == pytest.approx(model.cost[i], rel=1e-4)
            else:
                assert math.isnan(latency)
        for now in (clock.now, clock.now + later):
            for i in there:
                for j in there:
                    ratio = math.log2(model.at(i, now) / model.at(j, now))
                    assert keys[i] - keys[j] == pytest.approx(ratio, abs=2e-4)


def test_a_clock_that_goes_back_stands_still(impl, clock):
    """Or who is reported next would look better than all others, for as long."""
    clock.now = 1e7
    known = Known(impl, 2, clock)
    known.call(0, 1.0)
    known.call(1, 0.01)
    before = known.keys()
    clock.now -= 1e6
    assert known.call(0, 0.5) == 1.0
    assert known.keys() == before
    assert set(known.picker.pick_many(100)) == {1}
    clock.now += 1e6 + DECAY
    assert known.call(0, 0.1) == pytest.approx(0.1 * (1 - 1 / math.e) + 1 / math.e, rel=2e-6)


def test_after_years(impl, clock):
    """Stamps grow, and differences of keys stay as good."""
    known = Known(impl, 2, clock)
    for _ in range(10):
        clock.now += 3e8
        known.call(0, 0.02)
        known.call(1, 0.01)
        keys = known.keys()
        assert keys[0] - keys[1] == pytest.approx(1, abs=1e-5)


# -- the cold -------------------------------------------------------------------------------


def test_who_is_not_known_is_as_the_others(impl, clock):
    known = Known(impl, 4, clock, weights=[1, 2, 3, 4])
    for i in (0, 1):
        known.call(i, 20.0)
    assert len(set(known.keys())) == 1
    draws = impl.WeightedRandom(range(4), [1, 2, 3, 4], seed=1)
    assert known.picker.pick_many(200) == draws.pick_many(200)


def test_the_cold_are_as_the_average_of_all(impl, clock):
    known = Known(impl, 12, clock)
    rng = random.Random(1)
    for _ in range(2_000):
        i = rng.randrange(10)
        known.call(i, 0.01 * (1 + i))
    keys = known.keys()
    assert min(keys[:10]) < keys[10] == keys[11] < max(keys[:10])


def test_before_any_success_who_has_failed_is_no_better(impl):
    for timeout in (1e-3, 1.0, 60.0):
        known = Known(impl, 4, Clock(), timeout=timeout)
        known.call(0, 1e-4, FAILED)
        keys = known.keys()
        assert keys[0] >= keys[1] == keys[2] == keys[3]
        for _ in range(20):
            known.call(0, 1e-4, FAILED)
        assert set(known.picker.pick_many(200)) == {1, 2, 3}


def test_who_comes_is_cold(impl, clock):
    known = Known(impl, 2, clock)
    for i in (0, 1):
        known.call(i, 0.5)
    picker = known.picker
    picker.add("new")
    assert np.isnan(picker.latencies[2])
    picker.remove(0)
    picker.add("newer")
    assert np.isnan(picker.latencies[0])
    assert set(picker.pick_many(200)) == {"newer", 1, "new"}


# -- who is picked --------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    latencies=st.tuples(*[st.floats(1e-4, 10)] * 2),
    weights=st.tuples(*[st.integers(1, 100)] * 2),
    loads=st.tuples(*[st.integers(0, 400)] * 2),
)
def test_the_one_that_should_answer_sooner(kernels, reference, latencies, weights, loads):
    """average * (in flight + 1) / weight, less what is noise; at rest weight alone is nothing."""

    def gain(first, second):
        """What the second is better by, as the page says it."""
        apart = math.log2(latencies[first] / latencies[second])
        apart = math.copysign(max(abs(apart) - NOISE, 0.0), apart)
        busy = [math.log2((loads[i] + 1) / weights[i]) for i in (first, second)]
        more = busy[0] - busy[1]
        return apart + (min(more, 0.0) if loads[first] == 0 else more)

    gains = [gain(0, 1), gain(1, 0)]
    if min(map(abs, gains)) < 1e-5:
        return  # too close to be said; the kernel and its twin agree all the same
    expected = {i if gains[i] < 0 else 1 - i for i in (0, 1)}
    for impl in (kernels, reference):
        known = Known(impl, 2, Clock(), weights)
        for i in (0, 1):
            known.call(i, latencies[i])
        leases = [known.doors[i].acquire() for i in (0, 1) for _ in range(loads[i])]
        found = set(known.picker.pick_many(3_000))
        assert found == expected
        del leases


LATENCIES = {
    "even": lambda rng: 0.01,
    "uniform": lambda rng: rng.uniform(0.005, 0.015),
    "exponential": lambda rng: rng.expovariate(100),
    "lognormal": lambda rng: rng.lognormvariate(-4.6, 0.5),
    "heavy": lambda rng: rng.lognormvariate(-4.6, 1.0),
    "hiccups": lambda rng: 0.5 if rng.random() < 0.01 else rng.uniform(0.005, 0.015),
}


def shares_one_at_a_time(impl, n, n_calls, call, seed, gap=0.0):
    """Return the shares of calls that follow one another; `call(rng, i)` gives (rtt, error)."""
    clock, rng = Clock(), random.Random(seed)
    picker = impl.PeakEwma(range(n), seed=seed, clock=clock, decay=DECAY, timeout=TIMEOUT)
    counts = np.zeros(n)
    for _ in range(n_calls):
        lease = picker.acquire()
        rtt, error = call(rng, lease.index)
        clock.now += rtt
        lease.done(rtt, error)
        clock.now += gap
        counts[lease.index] += 1
    return counts / n_calls


@pytest.mark.parametrize("noise", LATENCIES)
def test_two_equal_instances_share_evenly(kernels, noise):
    """Though one of them always had the last slow answer."""
    draw = LATENCIES[noise]
    shares = [
        shares_one_at_a_time(kernels, 2, 60_000, lambda rng, i: (draw(rng), None), seed)[0]
        for seed in range(4)
    ]
    # A share goes by episodes of some decays, of which a run of ten minutes and more has tens.
    assert 0.45 < np.mean(shares) < 0.55, shares


@pytest.mark.parametrize("n", [2, 10])
def test_who_fails_fast_is_left(kernels, n):
    """From the first call on: the trap of whoever counts calls in flight only."""

    def call(rng, i):
        return (1e-4, FAILED) if i == 0 else (rng.lognormvariate(-4.6, 0.5), None)

    for seed in range(4):
        share = shares_one_at_a_time(kernels, n, 20_000, call, seed, gap=1e-3)[0]
        assert 0 < share < 0.02  # it is tried again, now and then


@pytest.mark.parametrize("n", [2, 10])
def test_who_is_slow_is_left(kernels, n):
    def call(rng, i):
        return rng.lognormvariate(-4.6, 0.5) * (20 if i == 0 else 1), None

    for seed in range(4):
        share = shares_one_at_a_time(kernels, n, 20_000, call, seed)[0]
        assert 0 < share < 0.02


@pytest.mark.parametrize("decay", [1.0, 10.0])
def test_who_was_slow_is_tried_again(impl, decay):
    """When its average has decayed to where the others' are, but for noise; then it is back."""
    clock, ratio = Clock(), 100.0
    known = Known(impl, 2, clock, decay=decay)
    known.call(0, 0.01 * ratio)
    known.call(1, 0.01)
    due = decay * (math.log(ratio) - NOISE * math.log(2))
    tried = None
    while clock.now < 2 * due:
        clock.now += decay / 100
        lease = known.picker.acquire()
        lease.done(0.01)  # both are fast now
        if lease.index == 0 and tried is None:
            tried = clock.now
    assert 0.9 * due < tried < 1.1 * due + decay / 5
    clock.now += 1  # and from then on by weight
    picks = known.picker.pick_many(1_000)
    assert 400 < picks.count(0) < 600


def test_a_slow_one_among_many_callers(kernels):
    """Twenty at once; one of ten instances is ten times as slow: it gets what it can bear."""
    rng, clock = random.Random(5), Clock()
    picker = kernels.PeakEwma(range(10), seed=5, clock=clock, decay=DECAY, timeout=TIMEOUT)
    counts, ends = np.zeros(10), []
    for _ in range(30_000):
        while len(ends) < 20:
            lease = picker.acquire()
            rtt = rng.lognormvariate(-4.6, 0.3) * (10 if lease.index == 0 else 1)
            ends.append((clock.now + rtt, rtt, lease))
            counts[lease.index] += 1
        ends.sort(key=lambda end: -end[0])
        clock.now, rtt, lease = ends.pop()
        lease.done(rtt)
    shares = counts / counts.sum()
    assert shares[0] < 0.02
    assert shares[1:].min() > 0.08


# -- memory ---------------------------------------------------------------------------------


def test_what_is_known_of_an_instance_takes_64_bytes_at_most(kernels):
    n, names = 10_000, [object() for _ in range(10_000)]

    def used(make):
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        picker = make(names)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before, picker

    tracemalloc.start()
    try:
        with_loads, _ = used(kernels.PeakEwma)
        without, _ = used(kernels.WeightedRandom)
    finally:
        tracemalloc.stop()
    assert (with_loads - without) / n <= 64


def test_leases_and_reports_take_no_more(kernels):
    picker = kernels.PeakEwma(range(1_000), seed=1)
    tracemalloc.start()
    try:
        for _ in range(2):
            for _ in range(5_000):
                picker.acquire().done(0.01)
            gc.collect()
            used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used < 4_096
