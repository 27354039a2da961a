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

from rota.reference.peak_ewma import (
    LEAST_RTT,
    MOST_RTT,
    NOISE,
    PATIENCE,
    RISE,
    SMOOTHING,
    UNKNOWN,
)

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
        self.decay = options["decay"]
        self.picker = impl.PeakEwma(range(n), weights, seed=seed, clock=clock, **options)
        self.doors = [self.picker.among([i]) for i in range(n)]

    def call(self, i, rtt, error=None):
        """End a call to i; return its average after that."""
        self.doors[i].acquire().done(rtt, error)
        return self.picker.latencies[i]

    def settle(self, *latencies):
        """Have averages, and what is typical, be those of many calls."""
        for k in range(60):
            self.clock.now += 1e6 if k < 2 else 0.0  # what was before is forgotten
            for i, rtt in enumerate(latencies):
                self.call(i, rtt)

    def keys(self):
        """Return the keys that are compared, by index; the instances' own; and the typical one."""
        if self.impl.name == "reference":
            loads, shared = self.picker._loads, self.picker._averages
            keys, typical = [load.key for load in loads], shared.typical_key
        else:
            keys, costs, _, _, shared = self.picker.__reduce__()[1][4][2][3:]
            keys, shared = map(as_doubles, (keys, shared[1:]))
            keys = [key if cost else -math.inf for key, cost in zip(keys, costs, strict=True)]
            rate = 1.0 / (self.decay * math.log(2))
            typical = shared[0] + shared[1] * rate
        return [max(key, typical) for key in keys], keys, typical


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


def test_what_was_slow_twice_is_a_peak_and_falls_with_time_only(impl, clock):
    known = Known(impl, 1, clock)
    assert math.isnan(known.picker.latencies[0])
    assert known.call(0, 0.5) == 0.5
    assert known.call(0, 2.0) == 0.5  # one slow answer is chance
    average = 0.5
    for _ in range(4):
        average += (2.0 - average) * RISE  # part of the way, each time that it is slow again
        assert known.call(0, 2.0) == pytest.approx(average, rel=1e-12)
    assert known.call(0, 0.001) == pytest.approx(average, rel=1e-12)
    assert known.call(0, 2.0) == pytest.approx(average, rel=1e-12)
    assert [known.call(0, 0.001) for _ in range(100)] == [pytest.approx(average, rel=1e-12)] * 100
    clock.now += 3
    w = math.exp(-3 / DECAY)
    average = average * w + 0.5 * (1 - w)
    assert known.call(0, 0.5) == pytest.approx(average, rel=2e-6)
    assert known.call(0, 0.5) == pytest.approx(average, rel=2e-6)
    clock.now += 1e6
    assert known.call(0, 0.25) == 0.25


def test_a_slow_answer_counts_as_any_other_for_the_time_that_has_passed(impl, clock):
    known = Known(impl, 1, clock)
    known.call(0, 1.0)
    clock.now += DECAY
    w = math.exp(-1)
    assert known.call(0, 3.0) == pytest.approx(w + 3.0 * (1 - w), rel=2e-6)


def test_the_first_call_counts_in_part(impl, clock):
    """Of an instance that comes when others are known: it may be chance, too."""
    known = Known(impl, 3, clock)
    assert known.call(0, 0.5) == 0.5
    assert known.call(1, 4.0) == pytest.approx(0.5 + 3.5 * RISE, rel=1e-5)
    typical = math.log2(0.5) + (math.log2(0.5 + 3.5 * RISE) - math.log2(0.5)) * SMOOTHING
    assert known.call(2, 0.001) == pytest.approx(2**typical * (1 - RISE) + 0.001 * RISE, rel=1e-5)


def test_a_failure_counts_as_slow(impl, clock):
    known = Known(impl, 2, clock)
    known.call(1, 0.5)
    bound = 0.5 * 2.0**PATIENCE
    assert known.call(0, 0.001, FAILED) == TIMEOUT
    doubled = [known.call(0, 0.001, FAILED) for _ in range(12)]
    expected = [min(2.0**k * TIMEOUT, bound) for k in range(1, 13)]
    assert doubled == pytest.approx(expected, rel=1e-5)
    assert known.call(0, 3 * bound, FAILED) == 3 * bound  # so long it took
    assert known.call(0, 0.001, FAILED) == 3 * bound  # and nobody gets better by failing
    clock.now += 1e6
    assert known.call(0, 0.001, FAILED) == pytest.approx(bound, rel=1e-5)  # twice what it was
    assert known.call(0, 2 * MOST_RTT, FAILED) == MOST_RTT


def test_a_slow_answer_after_a_failure_is_the_second(impl, clock):
    known = Known(impl, 1, clock)
    known.call(0, 0.001)
    known.call(0, 0.001, FAILED)
    assert known.call(0, 3.0) == pytest.approx(TIMEOUT)  # no more than it was
    assert known.call(0, 3.0) == pytest.approx(TIMEOUT + (3.0 - TIMEOUT) * RISE)


def test_who_was_slow_does_not_gain_by_failing(impl, clock):
    known = Known(impl, 1, clock)
    known.call(0, 1e6)
    assert known.call(0, 0.001, FAILED) >= 1e6


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
    for _ in range(100):
        known.call(1, 1e308)
    assert known.call(1, 1.7e308) == pytest.approx(MOST_RTT)
    assert known.call(1, 1.7e308, FAILED) == MOST_RTT
    for _ in range(400):
        known.call(0, 0.0)  # which is typical then
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


class Textbook:
    """Each average with its own stamp, decayed by exp whenever it is looked at."""

    def __init__(self, n):
        self.cost, self.stamp, self.last = [None] * n, [0.0] * n, [0.0] * n
        self.typical = None

    def at(self, i, now):
        return self.cost[i] * math.exp(-(now - self.stamp[i]) / DECAY)

    def call(self, i, rtt, error, now):
        if self.cost[i] is None and error is CANCELLED:
            return
        old = self.cost[i] or 0.0
        left = self.at(i, now) if old else 0.0
        rtt = max(rtt, LEAST_RTT)
        if error is CANCELLED:
            left = max(left, rtt)
        elif error is FAILED:
            typical = TIMEOUT * 2**UNKNOWN if self.typical is None else 2**self.typical
            left = max(rtt, TIMEOUT, left, min(2 * old, typical * 2**PATIENCE))
            self.last[i] = left
        elif old:
            share = 1 - math.exp(-(now - self.stamp[i]) / DECAY)
            peak = min(rtt, self.last[i])
            left = max(left + rtt * share, left + (peak - left) * RISE)
            self.last[i] = rtt
        else:
            left = rtt if self.typical is None else 2**self.typical
            left += (rtt - left) * RISE
            self.last[i] = rtt
        self.cost[i], self.stamp[i] = left, now
        if error is None:
            height = math.log2(left)
            before = height if self.typical is None else self.typical
            self.typical = before + (height - before) * SMOOTHING


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
        clock, model = Clock(), Textbook(4)
        known = Known(impl, 4, clock)
        for i, rtt, error, gap in calls:
            clock.now += gap
            known.call(i, rtt, error)
            model.call(i, rtt, error, clock.now)
        there = [i for i in range(4) if model.cost[i] is not None]
        _, keys, _ = known.keys()
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
    known.call(0, 0.01)
    for _ in range(20):
        known.call(1, 1.0)
    for _ in range(100):
        known.call(0, 0.01)
    before = known.keys()[1]
    slow = known.picker.latencies[1]
    clock.now -= 1e6
    assert known.call(1, 0.5) == slow
    assert known.keys()[1] == before
    assert set(known.picker.pick_many(100)) == {0}
    clock.now += 1e6 + DECAY
    assert known.call(1, 0.1) == pytest.approx(0.1 * (1 - 1 / math.e) + slow / math.e, rel=2e-6)


def test_after_years(impl, clock):
    """Stamps grow, and differences of keys stay as good."""
    known = Known(impl, 2, clock)
    known.call(0, 0.02)
    known.call(1, 0.01)
    for _ in range(10):
        clock.now += 3e8
        known.call(0, 0.02)
        known.call(1, 0.01)
        _, keys, _ = known.keys()
        assert keys[0] - keys[1] == pytest.approx(1, abs=1e-5)


# -- the cold -------------------------------------------------------------------------------


def test_who_is_not_known_is_as_the_others(impl, clock):
    known = Known(impl, 4, clock, weights=[1, 2, 3, 4])
    known.settle(20.0, 20.0)
    assert known.keys()[0] == pytest.approx([known.keys()[2]] * 4, abs=1e-5)
    draws = impl.WeightedRandom(range(4), [1, 2, 3, 4], seed=1)
    assert known.picker.pick_many(200) == draws.pick_many(200)


def test_the_cold_are_as_the_average_of_all(impl, clock):
    known = Known(impl, 12, clock)
    rng = random.Random(1)
    for _ in range(2_000):
        i = rng.randrange(10)
        known.call(i, 0.01 * (1 + i))
    compared, keys, _ = known.keys()
    assert min(keys[:10]) < compared[10] == compared[11] < max(keys[:10])
    assert min(compared) == compared[10]  # nobody counts as better than typical


def test_before_any_success_who_has_failed_is_no_better(impl):
    for timeout in (1e-3, 1.0, 60.0):
        known = Known(impl, 4, Clock(), timeout=timeout)
        known.call(0, 1e-4, FAILED)
        keys, _, _ = known.keys()
        assert keys[0] > keys[1] + NOISE
        assert keys[1] == keys[2] == keys[3]
        assert set(known.picker.pick_many(200)) == {1, 2, 3}


def test_who_comes_is_cold(impl, clock):
    known = Known(impl, 2, clock)
    known.settle(0.5, 0.5)
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
        apart = keys[first] - keys[second]
        apart = 0.0 if abs(apart) <= NOISE else apart
        busy = [math.log2((loads[i] + 1) / weights[i]) for i in (first, second)]
        more = busy[0] - busy[1]
        return apart + (min(more, 0.0) if loads[first] == 0 else more)

    for impl in (kernels, reference):
        known = Known(impl, 2, Clock(), weights)
        known.settle(*latencies)
        keys, own, typical = known.keys()
        if abs(abs(keys[0] - keys[1]) - NOISE) < 1e-5:
            continue  # too close to be said
        gains = [gain(0, 1), gain(1, 0)]
        if min(map(abs, gains)) < 1e-5 and gains != [0.0, 0.0]:
            continue
        expected = {1 - i if gains[i] > 0 else i for i in (0, 1)}
        bad = {i for i in (0, 1) if own[i] > typical + NOISE - 1e-5}
        if expected & bad:
            continue  # a second look: with two it may go back and forth
        leases = [known.doors[i].acquire() for i in (0, 1) for _ in range(loads[i])]
        assert set(known.picker.pick_many(3_000)) == expected
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
    known.settle(0.01 * ratio, 0.01)
    for _ in range(200):
        known.call(1, 0.01)  # which is typical then
    due = decay * (math.log(ratio) - NOISE * math.log(2))
    began = clock.now
    tried = None
    while clock.now < began + 2 * due:
        clock.now += decay / 100
        lease = known.picker.acquire()
        lease.done(0.01)  # both are fast now
        if lease.index == 0 and tried is None:
            tried = clock.now - began
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


def test_golden_sequence(impl, clock):
    """Of a seed and these calls; written down once: it is a promise."""
    picker = impl.PeakEwma(list("abcdef"), [1, 2, 3, 4, 5, 6], seed=7, clock=clock, decay=5.0)
    leases, picks = [], ""
    for k in range(80):
        leases.append(picker.acquire())
        picks += leases[-1].instance
        clock.now += 0.01
        if len(leases) > 3:
            ended = leases.pop(0)
            error = FAILED if ended.instance == "f" else None
            ended.done(0.3 if ended.instance == "e" else 0.01 * (1 + k % 3), error)
    assert picks == (
        "dafededcbddcdbccddbccddbdacdbdaddcbbdabdbadddcbbddcbdcaddcabccdddcabcadcbdcccabc"
    )


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
