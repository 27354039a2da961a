"""What the load-aware pickers share: loads, leases, views, and that a lease ends exactly once."""

import asyncio
import copy
import ctypes
import gc
import math
import pickle
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test

from tests.test_changes import Changes

LOADED = ("LeastRequest", "PeakEwma")
N_LIVE = 3  # of the pickers of most tests here


class Time:
    """A clock that goes by hand; the very same one for all copies, as a function is."""

    now = 0.0


def clock():
    return Time.now


@pytest.fixture(autouse=True)
def _midnight():
    Time.now = 0.0


@pytest.fixture(params=LOADED)
def loaded_name(request):
    """The class name of each picker that knows of loads."""
    return request.param


def making(impl, name):
    """Return what makes such a picker, of the clock by hand where it wants one."""
    made = getattr(impl, name)
    return partial(made, clock=clock) if name == "PeakEwma" else made


@pytest.fixture
def make(impl, loaded_name):
    """Each such picker class of each implementation."""
    return making(impl, loaded_name)


@pytest.fixture
def picker(make):
    return make(["a", "b", "c"], [1, 2, 3], seed=1)


def loads_of(picker):
    assert picker.loads.dtype == np.int64
    return picker.loads.tolist()


def latencies_of(picker):
    """Return the latencies; those of a picker that measures none are never known."""
    return getattr(picker, "latencies", np.full(len(picker.instances), math.nan))


def known(picker):
    return [None if math.isnan(seconds) else seconds for seconds in latencies_of(picker)]


def teach(picker, *seconds):
    """Let the instances have these latencies, by index, where latencies are known; None: none."""
    missing = {i for i, latency in enumerate(seconds) if latency is not None}
    while missing and hasattr(picker, "latencies"):
        leases = [picker.acquire() for _ in range(20)]
        for lease in leases:
            if lease.index in missing:
                missing.remove(lease.index)
                lease.done(seconds[lease.index])
            lease.release()


# -- the kernel and its twin, step by step --------------------------------------------------

RTT = st.one_of(st.floats(0, 100), st.sampled_from([0, 1e-12, 1e300, 5, True, 0.001]))
ERRORS = [OSError(), TimeoutError(), asyncio.CancelledError(), ValueError("odd"), None]
TICK = st.one_of(st.floats(0, 5), st.floats(-10, 2000), st.sampled_from([-1e6, 1e9]))
MOST_VIEWS, MOST_LEASES = 3, 40


class Leases(Changes):
    """The changes of `Changes`, and calls: what is in flight, how they ended, and views."""

    def __init__(self):
        super().__init__()
        Time.now = 1000.0
        self.views, self.leases = [], []

    def pickers(self):
        return [(self.one, self.other), *self.views]

    def draw_pickers(self, data):
        return data.draw(
            st.sampled_from(range(1 + len(self.views))).map(self.pickers().__getitem__)
        )

    def draw_leases(self, data):
        return self.leases[data.draw(st.integers(0, len(self.leases) - 1))]

    @rule(seconds=TICK)
    def tick(self, seconds):
        Time.now += seconds

    @precondition(lambda self: len(self.leases) < MOST_LEASES)
    @rule(data=st.data(), n=st.integers(1, 8))
    def acquire(self, data, n):
        pickers = self.draw_pickers(data)
        for _ in range(n):
            one, other = (picker.acquire() for picker in pickers)
            self.take(one, other)

    @precondition(lambda self: len(self.leases) < MOST_LEASES)
    @rule(data=st.data())
    def select(self, data):
        one, other = (picker.select() for picker in self.draw_pickers(data))
        assert (one is None) == (other is None)
        if one is not None:
            assert one[0] is one[1].instance
            assert other[0] is other[1].instance
            self.take(one[1], other[1])

    def take(self, one, other):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one.index, one.instance) == (other.index, other.instance)
            self.leases.append((one, other))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), rtt=RTT, error=st.sampled_from(ERRORS), n=st.integers(1, 3))
    def done(self, data, rtt, error, n):
        for _ in range(n):
            for lease in self.draw_leases(data):
                lease.done(rtt, error)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), error=st.sampled_from(ERRORS), is_info=st.booleans())
    def call(self, data, error, is_info):
        for lease in self.draw_leases(data):
            if is_info:
                lease(SimpleNamespace(err=error))
            else:
                lease(err=error)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data):
        for lease in self.draw_leases(data):
            lease.release()

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), seconds=st.floats(0, 3), error=st.sampled_from(ERRORS))
    def go_through_with(self, data, seconds, error):
        leases, began = self.draw_leases(data), Time.now
        for lease in leases:
            Time.now = began
            with suppress(BaseException), lease as instance:
                assert instance is lease.instance
                Time.now += seconds
                if error is not None:
                    raise error

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def drop(self, data):
        self.leases.remove(self.draw_leases(data))

    @precondition(lambda self: self.present() and len(self.views) < MOST_VIEWS)
    @rule(data=st.data())
    def among(self, data):
        members = data.draw(st.lists(st.sampled_from(self.present()), unique=True))
        self.views.append(self.both(lambda picker: picker.among(members)))

    @precondition(lambda self: self.views)
    @rule(data=st.data(), n=st.integers(0, 100))
    def pick_among(self, data, n):
        one, other = self.draw_pickers(data)
        assert one.pick_many(n) == other.pick_many(n)

    @precondition(lambda self: self.views)
    @rule(data=st.data(), is_dropped=st.booleans())
    def copy_or_drop_a_view(self, data, is_dropped):
        k = data.draw(st.integers(0, len(self.views) - 1))
        one, other = self.views.pop(k)
        if not is_dropped:  # from now on a picker by itself
            self.views.append((copy.copy(one), pickle.loads(pickle.dumps(other))))

    @invariant()
    def same_loads(self):
        for one, other in self.pickers():
            assert loads_of(one) == loads_of(other)
            np.testing.assert_array_equal(latencies_of(one), latencies_of(other))

    def teardown(self):
        if hasattr(self, "one"):
            self.leases.clear()
            for pickers in self.pickers():
                for picker in pickers:
                    assert not picker.loads.any()


def test_a_kernel_and_its_twin_go_through_the_same(kernels, reference, loaded_name):
    class Machine(Leases):
        name = loaded_name
        kernel = staticmethod(making(kernels, loaded_name))
        twin = staticmethod(making(reference, loaded_name))

    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=150, stateful_step_count=40, deadline=None, print_blob=True),
    )


@pytest.mark.parametrize("n", [2, 5, 8, 9, 100])
def test_long_histories_are_alike_on_both(kernels, reference, loaded_name, n):
    rng = random.Random(n)
    weights = [rng.randrange(1, 9) for _ in range(n)]
    pair = [making(impl, loaded_name)(range(n), weights, seed=n) for impl in (kernels, reference)]
    leases = []
    for step in range(3000):
        Time.now += rng.expovariate(50)
        if step % 500 == 0:
            i, weight = rng.randrange(n), rng.choice([1, 3, 10**6])
            for picker in pair:
                picker.set_weight(i, weight)
        leases.append([picker.acquire() for picker in pair])
        assert leases[-1][0].index == leases[-1][1].index
        while len(leases) > rng.randrange(3 * n):
            rtt = rng.lognormvariate(-4, 1) * (1 + leases[0][0].index % 3)
            error = rng.choice([None] * 9 + [OSError(), asyncio.CancelledError()])
            for lease in leases.pop(rng.randrange(len(leases))):
                lease.done(rtt, error)
    assert loads_of(pair[0]) == loads_of(pair[1])
    np.testing.assert_array_equal(latencies_of(pair[0]), latencies_of(pair[1]))


# -- what is in flight ----------------------------------------------------------------------


def test_a_lease_counts_until_it_ends(picker):
    lease = picker.acquire()
    assert picker.instances[lease.index] == lease.instance
    counted = [int(i == lease.index) for i in range(N_LIVE)]
    assert loads_of(picker) == counted
    picker.pick_many(100)  # counts nothing
    assert loads_of(picker) == counted
    lease.done(0.1)
    assert loads_of(picker) == [0] * N_LIVE


def test_the_first_report_counts(picker):
    """All others do nothing, of whatever kind they are."""
    reports = [
        lambda lease: lease.done(0.5),
        lambda lease: lease.done(7, OSError()),
        lambda lease: lease(),
        lambda lease: lease(OSError()),
        lambda lease: lease(err=OSError()),
        lambda lease: lease.release(),
        lambda lease: lease.__exit__(None, None, None),
    ]
    for first in reports:
        kept = picker.acquire()
        _, done = picker.select()
        first(done)
        before = known(picker)
        Time.now += 1
        for other in reports:
            other(done)
            assert done.__enter__() is done.instance
        assert loads_of(picker) == [int(i == kept.index) for i in range(N_LIVE)]
        assert known(picker) == before
        del kept


def test_a_lease_that_is_dropped_is_released(picker):
    before = known(picker)
    lease = picker.acquire()
    _, done = picker.select()
    assert picker.loads.sum() == 2
    del lease, done, _
    assert loads_of(picker) == [0] * N_LIVE
    assert known(picker) == before


def test_an_exception_ends_the_lease(picker):
    with suppress(RuntimeError), picker.acquire():
        assert picker.loads.sum() == 1
        raise RuntimeError
    assert loads_of(picker) == [0] * N_LIVE


def test_a_cancelled_task_ends_its_lease(picker):
    async def call():
        with picker.acquire():
            await asyncio.sleep(60)

    async def scenario():
        tasks = [asyncio.create_task(call()) for _ in range(10)]
        await asyncio.sleep(0)
        assert picker.loads.sum() == 10
        for task in tasks[:5]:
            task.cancel()
        await asyncio.gather(*tasks[:5], return_exceptions=True)
        assert picker.loads.sum() == 5
        for task in tasks[5:]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())
    assert loads_of(picker) == [0] * N_LIVE
    assert known(picker) == [None] * N_LIVE  # who was cancelled while nothing was known


def test_a_generator_that_is_dropped_ends_its_lease(picker):
    def stream():
        with picker.acquire() as instance:
            yield instance
            yield instance

    streams = [stream() for _ in range(5)]
    assert all(next(each) in "abc" for each in streams)
    assert picker.loads.sum() == 5
    del streams
    assert loads_of(picker) == [0] * N_LIVE


def test_a_lease_in_a_cycle_is_released_when_that_is_collected(picker):
    class Call:
        pass

    for _ in range(10):
        call = Call()
        call.lease, call.itself = picker.acquire(), call
    del call
    gc.collect()
    assert loads_of(picker) == [0] * N_LIVE


def test_an_instance_may_hold_its_own_lease(make):
    class Server:
        pass

    servers = [Server(), Server()]
    picker = make(servers)
    for _ in range(10):
        lease = picker.acquire()
        lease.instance.last = lease
    del lease
    assert 1 <= picker.loads.sum() <= 2
    del servers
    watched = [id(server) for server in picker.instances]
    del picker
    gc.collect()
    assert not any(isinstance(x, Server) and id(x) in watched for x in gc.get_objects())


def test_a_lease_outlives_its_picker(make):
    lease = make(["a"]).acquire()
    gc.collect()
    assert (lease.instance, lease.index) == ("a", 0)
    lease.done(0.5)
    _, done = make(["a"]).select()
    gc.collect()
    done()


def test_leases_end_in_any_thread(picker):
    leases = [picker.acquire() for _ in range(400)]
    ends = [lambda lease: lease.done(0.1), lambda lease: lease(), lambda lease: lease.release()]
    with ThreadPoolExecutor(8) as pool:
        # Each of them is ended by several threads at once.
        futures = [
            pool.submit(end, lease)
            for k, lease in enumerate(leases)
            for end in ends[k % 3 :] + ends
        ]
    assert [future.result() for future in futures] == [None] * len(futures)
    assert loads_of(picker) == [0] * N_LIVE


def test_nobody_is_no_lease(make):
    for picker in (make([]), make(["a", "b"], [0, 0])):
        assert picker.acquire() is None
        assert picker.select() is None
        assert loads_of(picker) == [0] * len(picker)
        assert picker.among(range(len(picker))).acquire() is None


def test_leases_cannot_be_copied(picker):
    lease = picker.acquire()
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="lease cannot be copied"):
            way(lease)
    assert picker.loads.sum() == 1


def test_a_lease_made_by_hand_is_of_no_use_and_no_harm(kernels):
    made = kernels.two_choices.Lease
    for lease in (made(), made.__new__(made)):
        lease.done(0.5)
        lease.done(0.5, OSError())
        lease.release()
        lease()
        lease(OSError())
        with lease as instance:
            assert instance is None
        assert (lease.index, lease.instance) == (0, None)
        with pytest.raises(TypeError, match="rtt"):
            lease.done("1")


def test_a_twin_that_could_not_be_made_goes_quietly(reference):
    made = reference.two_choices.Lease
    made.__new__(made).release()
    with pytest.raises(TypeError):
        made()
    gc.collect()  # an error in __del__ would be one of the test's


@pytest.mark.parametrize(
    ("rtt", "kind"),
    [
        (-1, ValueError),
        (-1e-300, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        (-math.inf, ValueError),
        pytest.param(10**400, ValueError, id="huge"),
        ("1", TypeError),
        (b"1", TypeError),
        (None, TypeError),
        (1j, TypeError),
        ([1], TypeError),
    ],
)
def test_bad_times_are_refused_and_the_lease_is_open(picker, rtt, kind):
    for take in (picker.acquire, lambda: picker.select()[1]):
        lease = take()
        with pytest.raises(kind, match="rtt must be"):
            lease.done(rtt)
        assert picker.loads.sum() == 1
        lease.done(np.float32(0.5))
        assert picker.loads.sum() == 0
        with pytest.raises(kind, match="rtt must be"):  # also when it makes no difference
            lease.done(rtt)


def test_arguments_that_are_missing_or_too_many(picker):
    lease = picker.acquire()
    for call in (
        lambda: lease.done(),
        lambda: lease.done(1, None, 2),
        lambda: lease.release(1),
        lambda: lease(None, None),
        lambda: picker.acquire(1),
        lambda: picker.among(),
        lambda: picker.among(3),
    ):
        with pytest.raises(TypeError):
            call()
    assert picker.loads.sum() == 1
    lease.done(rtt=0.5, error=None)


# -- leaving and staying --------------------------------------------------------------------


def test_a_late_report_of_who_has_left(make):
    """It is of no consequence, and who comes in its place begins afresh."""
    picker = make(["a", "b"], [1, 1], seed=1)
    teach(picker, 5.0, 5.0)
    leases = [picker.acquire() for _ in range(20)]
    left = [lease for lease in leases if lease.index == 0]
    assert len(left) > 2
    picker.remove(0)
    n_there = len(leases) - len(left)
    assert loads_of(picker) == [0, n_there]
    left.pop().done(9.0, OSError())  # while nobody is there
    assert loads_of(picker) == [0, n_there]
    assert known(picker)[0] is None
    assert picker.add("c") == 0
    assert loads_of(picker) == [0, n_there]
    left.pop().done(9.0, OSError())
    del left
    del leases
    assert loads_of(picker) == [0, 0]
    assert known(picker)[0] is None
    assert picker.acquire() is not None


def test_a_late_report_after_an_update(make):
    picker = make(list("abcd"), seed=1)
    leases = [picker.acquire() for _ in range(40)]
    stayed = {lease.instance: loads_of(picker)[lease.index] for lease in leases}
    picker.update(["x", "c", "y", "b", "z"])
    index = {instance: i for i, instance in enumerate(picker.instances)}
    assert {x: loads_of(picker)[i] for x, i in index.items()} == {
        "b": stayed["b"], "c": stayed["c"], "x": 0, "y": 0, "z": 0
    }  # fmt: skip
    for lease in leases:
        lease.done(1.0)
    assert not picker.loads.any()
    assert all(known(picker)[index[x]] is None for x in "xyz")


def test_who_stays_keeps_loads_and_latencies(make):
    """By identity, however the list is ordered, and with other objects."""

    class Copy:
        def __init__(self, identity):
            self.identity = identity

    picker = make([Copy(x) for x in "abcd"], seed=1)
    teach(picker, 1.0, 2.0, 3.0, None)
    leases = [picker.acquire() for _ in range(60)]

    def state():
        listed = zip(picker.instances, loads_of(picker), known(picker), strict=True)
        return {x.identity: (load, latency) for x, load, latency in listed if x is not None}

    before = state()
    picker.update([Copy(x) for x in "dbca"], [4, 3, 2, 1])
    assert state() == before
    picker.update([Copy(x) for x in "ecb"], [1, 1, 1])
    now = state()
    assert {x: now[x] for x in "bc"} == {x: before[x] for x in "bc"}
    assert now["e"] == (0, None)
    picker.replace(1, Copy("b"))
    picker.set_weight(1, 0)
    picker.set_weight(1, 7)
    assert state()["b"] == before["b"]
    del leases


def test_growth_keeps_loads(make):
    picker = make(["a"], seed=1)
    leases = [picker.acquire() for _ in range(7)]
    for k in range(100):
        picker.add(k, 0)
    assert loads_of(picker) == [7] + [0] * 100
    del leases
    assert not picker.loads.any()


# -- views ----------------------------------------------------------------------------------


def test_a_view_shares_loads_both_ways(picker):
    view = picker.among([2, 0])
    assert view.instances == ("c", "a")
    assert view.weights.tolist() == [3, 1]
    seen = [view.acquire() for _ in range(50)]
    assert loads_of(picker) == [loads_of(view)[1], 0, loads_of(view)[0]]
    whole = [picker.acquire() for _ in range(50)]
    assert loads_of(picker)[0] == loads_of(view)[1]
    assert loads_of(picker)[2] == loads_of(view)[0]
    assert {lease.instance for lease in seen} == {"a", "c"}
    assert all(view.instances[lease.index] == lease.instance for lease in seen)
    del seen, whole
    assert not picker.loads.any()
    assert not view.loads.any()


def test_a_view_shares_latencies_both_ways(impl):
    picker = impl.PeakEwma(["a", "b", "c"], clock=clock)
    view = picker.among([2, 0])
    teach(view, 1.0, None)
    assert known(picker) == [None, None, 1.0]
    teach(picker, 2.0, None, None)
    assert known(view) == [1.0, known(picker)[0]]
    assert known(view)[1] > 1.0


@pytest.mark.parametrize("depth", [1, 2])
def test_a_view_refuses_changes(picker, depth):
    view = picker
    for _ in range(depth):
        view = view.among([1, 0])
    lease = view.acquire()
    kept = view.instances, view.weights.tolist(), loads_of(view), len(view)
    twin = copy.copy(view)
    for change in (
        lambda: view.set_weight(0, 9),
        lambda: view.set_weight(0, 0),
        lambda: view.add("x"),
        lambda: view.add("x", 0),
        lambda: view.remove(0),
        lambda: view.replace(0, "x"),
        lambda: view.update(view.instances, view.weights),
        lambda: view.update(["x"]),
        lambda: view.update([]),
        lambda: view.update(range(100)),
    ):
        with pytest.raises(TypeError, match="change the whole"):
            change()
        assert (view.instances, view.weights.tolist(), loads_of(view), len(view)) == kept
    lease.release()
    assert view.pick_many(100) == twin.pick_many(100)
    assert view.among([]).instances == ()


def test_a_copy_of_a_view_is_a_picker_by_itself(picker):
    view = picker.among([2, 0])
    lease = view.acquire()
    for other in (copy.copy(view), pickle.loads(pickle.dumps(view))):
        assert loads_of(other) == [0, 0]
        other.set_weight(0, 0)
        other.acquire().release()
        held = other.acquire()
        assert held.instance == "a"
        assert loads_of(view) == [int(lease.index == 0), int(lease.index == 1)]


def test_a_view_goes_on_when_the_whole_has_changed(make):
    picker = make(list("abcd"), seed=1)
    view = picker.among([1, 3])
    lease = view.acquire()
    picker.remove(1)
    picker.set_weight(3, 0)
    assert picker.add("e") == 1
    picker.update(["p", "q"])
    held = [view.acquire() for _ in range(20)]
    assert {each.instance for each in held} == {"b", "d"}
    assert sum(loads_of(view)) == 21
    assert not picker.loads.any()
    for each in held:
        each.done(0.1)
    assert sum(loads_of(view)) == 1
    del picker
    gc.collect()
    lease.done(0.1)
    assert loads_of(view) == [0, 0]
    assert set(view.pick_many(100)) == {"b", "d"}


def test_indices_of_nobody_are_refused(picker):
    picker.remove(1)
    for members, kind in (
        ([1], ValueError),
        ([3], ValueError),
        ([0, -1], ValueError),
        ([2**70], ValueError),
        (["a"], TypeError),
        ([1.0], TypeError),
        ([None], TypeError),
    ):
        with pytest.raises(kind, match="index"):
            picker.among(members)
    assert picker.among(iter([np.int64(2), True - 1])).instances == ("c", "a")


def test_views_of_a_picker_without_a_seed_have_none(make):
    picker = make(range(60))
    one, other = picker.among(range(60)), picker.among(range(60))
    assert one.pick_many(100) != other.pick_many(100)  # but once in 60**100


# -- copies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("n", [3, 12])
def test_a_copy_knows_what_was_known_and_has_nothing_in_flight(make, way, n):
    picker = make(range(n), range(1, n + 1), seed=5)
    picker.remove(0)
    teach(picker, None, 0.5, None, *([0.25] * (n - 3)))
    leases = [picker.acquire() for _ in range(30)]
    other = way(picker)
    assert not other.loads.any()
    assert known(other) == known(picker)
    assert picker.loads.sum() == 30
    for lease in leases:
        lease.release()
    rng, pair = random.Random(n), (picker, other)
    held = []
    for _ in range(300):
        held.append([each.acquire() for each in pair])
        assert held[-1][0].index == held[-1][1].index
        while len(held) > 6:
            Time.now += 0.1
            rtt = rng.random()
            for lease in held.pop(rng.randrange(7)):
                lease.done(rtt)
    assert known(other) == known(picker)
    assert loads_of(other) == loads_of(picker)


def test_time_does_not_pass_for_who_is_asleep(impl):
    """What was learned is as old after a pickle as it was before."""
    picker = impl.PeakEwma(["a", "b"], seed=1, clock=clock)
    teach(picker, 1.0, 1.0)
    asleep = pickle.dumps(picker)
    Time.now += 1e6
    other = pickle.loads(asleep)
    lease = other.acquire()
    lease.done(1e-3)
    assert known(other)[lease.index] == 1.0  # no time has passed in which it could fall
    lease = picker.acquire()
    lease.done(1e-3)
    assert known(picker)[lease.index] == pytest.approx(1e-3)


# -- at rest: by weight ---------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 8, 9, 100])
def test_at_rest_picks_are_those_of_weighted_random(impl, make, n):
    """While nothing is in flight and nothing known, by the very same draws."""
    weights = [1 + 37 * i % 10 for i in range(n)]
    picker, draws = make(range(n), weights, seed=n), impl.WeightedRandom(range(n), weights, seed=n)
    assert picker.pick_many(300) == draws.pick_many(300)
    for each in (picker, draws):
        each.set_weight(0, 77)
        each.add("x", 3)
        each.remove(0)
    assert picker.pick_many(300) == draws.pick_many(300)
    for _ in range(300):
        lease = picker.acquire()
        assert lease.instance == draws.pick()
        lease.release()


@pytest.mark.parametrize("n", [3, 100])
def test_at_rest_calls_are_shared_out_by_weight(kernels, loaded_name, n):
    # 2 * 10**5 calls, one at a time; the statistic is within 5 standard deviations of its
    # mean with a probability of more than 1 - 1e-5.
    weights = np.random.default_rng(n).integers(1, 101, n)
    picker = making(kernels, loaded_name)(range(n), weights, seed=7)
    counts = np.zeros(n)
    for _ in range(200_000):
        lease = picker.acquire()
        counts[lease.index] += 1
        lease.release()
    expected = weights * (counts.sum() / weights.sum())
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert abs(statistic - (n - 1)) < 5 * (2 * (n - 1)) ** 0.5


# -- clocks, errors and numbers of others ---------------------------------------------------


class Whims:
    """A clock that gives what it is told to, or raises it."""

    def __init__(self):
        self.value = 0.0

    def __call__(self):
        if isinstance(self.value, type):
            raise self.value
        return self.value


BAD_MOMENTS = [
    (math.nan, ValueError),
    (math.inf, ValueError),
    (-1e16, ValueError),
    pytest.param(10**400, ValueError, id="huge"),
    ("1", TypeError),
    (None, TypeError),
    (ZeroDivisionError, ZeroDivisionError),
]


@pytest.mark.parametrize(("value", "kind"), BAD_MOMENTS)
def test_a_clock_that_fails_leaves_nothing_behind(impl, value, kind):
    whims = Whims()
    picker = impl.PeakEwma(["a", "b"], seed=1, clock=whims)
    teach(picker, 1.0, 1.0)
    before = known(picker)
    _, select_done = picker.select()
    plain, in_with = picker.acquire(), picker.acquire()
    in_with.__enter__()
    whims.value = value
    with pytest.raises(kind):
        impl.PeakEwma(["a"], clock=whims)
    picker.among([0])  # does not ask it
    for ask in (picker.select, lambda: copy.copy(picker)):
        with pytest.raises(kind):
            ask()
    with pytest.raises(kind), picker.acquire():
        raise AssertionError("not here")
    assert picker.loads.sum() == 3
    # A call that has ended has ended, whatever the clock says of when that was.
    for n_left, end in enumerate([select_done, lambda: plain.done(9.0), in_with], -2):
        with pytest.raises(kind):
            end()
        assert picker.loads.sum() == -n_left
    assert known(picker) == before
    whims.value = 1.0
    picker.acquire().done(9.0)
    assert known(picker) != before


@pytest.mark.parametrize("value", [7, None, -1, 2**40, "FAILURE", ZeroDivisionError])
def test_a_classifier_that_fails_leaves_nothing_behind(impl, value):
    def classify(error):
        if isinstance(value, type):
            raise value
        return value

    picker = impl.PeakEwma(["a", "b"], seed=1, clock=clock, classify=classify)
    teach(picker, 1.0, 1.0)
    kind = value if isinstance(value, type) else ValueError
    with pytest.raises(kind):
        picker.acquire().done(9.0, OSError())
    with pytest.raises(kind), picker.acquire():
        raise OSError
    assert loads_of(picker) == [0, 0]
    assert known(picker) == [1.0, 1.0]


@pytest.mark.parametrize("name", ["clock", "classify"])
@pytest.mark.parametrize("value", [0, "", 5, "clock", ()])
def test_what_cannot_be_called_is_refused(impl, name, value):
    with pytest.raises(TypeError, match=f"{name} must be callable"):
        impl.PeakEwma(["a"], **{name: value})


@pytest.mark.parametrize("name", ["decay", "timeout"])
@pytest.mark.parametrize(
    ("value", "kind"),
    [(0, ValueError), (-1, ValueError), (1e10, ValueError), (math.nan, ValueError),
     pytest.param(10**400, ValueError, id="huge"), ("1", TypeError), (None, TypeError)],
)  # fmt: skip
def test_durations_of_no_use_are_refused(impl, name, value, kind):
    with pytest.raises(kind, match=name):
        impl.PeakEwma(["a"], **{name: value})


class Meddler:
    """Whenever it is asked anything, it changes the picker in every way there is."""

    def __init__(self):
        self.picker, self.n, self.is_busy, self.rng = None, 0, False, random.Random(3)
        self.held = []

    def meddle(self):
        picker, rng = self.picker, self.rng
        if picker is None or self.is_busy:
            return
        self.is_busy = True
        self.n += 1
        for k in range(rng.randrange(12)):
            picker.add(("added", self.n, k), 1 + k % 3)
        picker.remove(rng.choice(self.there()))
        picker.set_weight(rng.choice(self.there()), 0)
        self.held.append(picker.acquire())
        stay = rng.sample([picker.instances[i] for i in self.there()], min(8, len(picker)))
        new = ("new", self.n)
        picker.update([*stay, new])
        self.held.append(picker.among([picker.instances.index(new)]).acquire())
        while len(self.held) > 9:
            lease = self.held.pop(rng.randrange(9))
            if lease is not None:
                lease.done(rng.random())
        self.is_busy = False

    def there(self):
        return [i for i, x in enumerate(self.picker.instances) if x is not None]

    def __call__(self, *arguments):
        self.meddle()
        return Time.now if not arguments else 1  # a failure

    def __float__(self):
        self.meddle()
        return 0.5

    def __index__(self):
        self.meddle()
        return self.there()[0]

    @property
    def err(self):
        self.meddle()
        return OSError()


def test_who_is_asked_may_change_the_picker(impl, loaded_name):
    """A clock, a classifier, an error, a number: all that a report may run."""
    meddler = Meddler()
    options = {"clock": meddler, "classify": meddler} if loaded_name == "PeakEwma" else {}
    picker = getattr(impl, loaded_name)(range(10), seed=1, **options)
    meddler.picker = picker
    for k in range(150):
        leases = [picker.acquire() for _ in range(4)]
        if k % 3 == 0:
            leases[0].done(0.5, OSError())
        leases[1].done(meddler, meddler)
        with suppress(OSError), leases[2] as _:
            raise OSError
        picker.select()[1](meddler)
        leases[3](meddler)
        with suppress(ValueError):  # who was there may have left
            view = picker.among([meddler, meddler])
            view.acquire().done(meddler)
            assert None not in view.instances
        if k % 10 == 0:
            copied = copy.copy(picker)
            assert not copied.loads.any()
        del leases
    meddler.is_busy = True
    meddler.held.clear()
    assert meddler.n > 100
    assert not picker.loads.any()
    assert None not in picker.pick_many(500)


def test_garbage_may_end_leases_and_change_the_picker(kernels, loaded_name):
    """Before Python 3.12 any container that is made may collect, and so run a finalizer."""
    picker = making(kernels, loaded_name)(range(40), seed=1)
    meddler, thresholds = Meddler(), gc.get_threshold()
    meddler.picker = picker

    def collected(phase, info):
        meddler.meddle()

    gc.callbacks.append(collected)
    gc.set_threshold(1, 1, 1)
    try:
        for _ in range(150):
            leases = [picker.acquire() for _ in range(5)]
            picker.loads, latencies_of(picker)
            with suppress(ValueError):
                picker.among([0, 1]).acquire()
            copy.copy(picker).acquire()
            leases[0].done(0.5)
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(collected)
    meddler.held.clear()
    del leases
    gc.collect()
    assert not picker.loads.any()
    assert None not in picker.pick_many(500)


# -- without memory -------------------------------------------------------------------------


@pytest.fixture
def testcapi():
    """Python's own means to run out of memory."""
    if hasattr(sys, "_is_gil_enabled") and not sys._is_gil_enabled():
        pytest.skip("the allocator cannot be exchanged")
    return pytest.importorskip("_testcapi", reason="no _testcapi: memory cannot be made to fail")


def test_no_memory_with_calls_in_flight(kernels, loaded_name, testcapi):
    """Loads that leases hold are left to them, and there are others, or nothing has changed."""
    for change in (
        lambda picker: picker.remove(0),
        lambda picker: picker.update(["x", "y", "z"]),
        lambda picker: picker.update(["x", *range(1, 30)]),
        lambda picker: picker.among([0, 2, 3]),
        lambda picker: (picker.acquire(), picker.select()),
    ):
        for start in range(300):
            picker = making(kernels, loaded_name)(range(5), seed=1)
            leases = [picker.acquire() for _ in range(30)]
            kept = picker.instances, loads_of(picker)
            testcapi.set_nomemory(start)
            try:
                done = change(picker)
            except MemoryError:
                is_done = False
            else:
                is_done = True
            finally:
                testcapi.remove_mem_hooks()
            if not is_done:
                assert (picker.instances, loads_of(picker)) == kept
                done = change(picker)
            del leases, done
            assert not picker.loads.any()
            assert None not in picker.pick_many(100)
            if is_done:
                break
        else:
            raise AssertionError("it fails for ever")


# -- for C ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_c(kernels):
    """`two_choices_acquire` and `two_choices_release`, as `cimport` gets them."""
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    table = kernels.two_choices.__pyx_capi__

    def function(key, kind):
        return kind(pointer(table[key], name(table[key])))

    return SimpleNamespace(
        acquire=function(
            "two_choices_acquire", ctypes.PYFUNCTYPE(ctypes.c_int32, ctypes.py_object)
        ),
        release=function(
            "two_choices_release", ctypes.PYFUNCTYPE(None, ctypes.py_object, ctypes.c_int32)
        ),
    )


def test_acquire_and_release_of_c(in_c, kernels, loaded_name):
    picker, twin = (making(kernels, loaded_name)(range(5), [1, 2, 0, 1, 1], seed=1) for _ in "ab")
    acquired, leases = [], []
    for _ in range(100):
        acquired.append(in_c.acquire(picker))
        leases.append(twin.acquire())
        assert acquired[-1] == leases[-1].index
    assert loads_of(picker) == loads_of(twin)
    for i in acquired:
        in_c.release(picker, i)
    in_c.release(picker, 0)  # once too often does nothing
    for i in (-1, 5, 2**31 - 1, -(2**31)):
        in_c.release(picker, i)
    assert loads_of(picker) == [0] * 5
    assert in_c.acquire(making(kernels, loaded_name)([])) == -1
    assert in_c.acquire(kernels.two_choices.TwoChoices()) == -1


def test_c_may_release_who_has_left(in_c, kernels, loaded_name):
    """Also where a lease still holds the load, and nobody has the index."""
    picker = making(kernels, loaded_name)(range(2), seed=1)
    leases = [picker.acquire() for _ in range(20)]
    while in_c.acquire(picker) != 0:
        pass
    picker.remove(0)
    in_c.release(picker, 0)
    in_c.release(picker, 0)
    assert loads_of(picker)[0] == 0
    picker.add("x")
    in_c.release(picker, 0)
    assert loads_of(picker)[0] == 0
    del leases


def test_views_and_the_whole_from_many_threads(impl, loaded_name):
    """Loads are the same ones, whoever counts: none is lost."""
    picker = making(impl, loaded_name)(range(4), seed=1)
    doors = [picker, picker.among([0, 1]), picker.among([0, 2]), picker.among([0])]
    n_calls = 20_000 if impl.name == "kernels" else 2_000
    start = threading.Barrier(len(doors))

    def call(door):
        start.wait()
        for k in range(n_calls):
            lease = door.acquire()
            if k % 3:
                lease.done(0.001)

    with ThreadPoolExecutor(len(doors)) as pool:
        for future in [pool.submit(call, door) for door in doors]:
            future.result()
    assert [loads_of(door) for door in doors] == [[0] * len(door) for door in doors]


# -- by index -------------------------------------------------------------------------------


def made_on(impl, name, clock, *arguments):
    options = {"clock": clock} if name == "PeakEwma" else {}
    return getattr(impl, name)(*arguments, seed=1, **options)


@pytest.mark.parametrize("name", ["LeastRequest", "PeakEwma"])
def test_calls_by_index_are_those_of_leases(impl, name):
    now = [0.0]
    one, other = (made_on(impl, name, lambda: now[0], list("abcdef"), range(6)) for _ in range(2))
    rng, begun = random.Random(1), []
    for _ in range(400):
        index, lease = one.acquire_index(), other.acquire()
        assert index == lease.index
        begun.append((index, lease))
        now[0] += 0.01
        if len(begun) > 4:
            index, lease = begun.pop(rng.randrange(5))
            rtt, error = rng.expovariate(50), rng.choice([None, None, OSError()])
            one.done(index, rtt, error)
            lease.done(rtt, error)
        assert one.loads.tolist() == other.loads.tolist()
    if name == "PeakEwma":
        assert repr(one.latencies) == repr(other.latencies)


@pytest.mark.parametrize("name", ["LeastRequest", "PeakEwma"])
def test_calls_by_index_of_nobody_are_refused(impl, name):
    picker = made_on(impl, name, lambda: 1.0, ["a", "b"])
    index = picker.acquire_index()
    before = picker.loads.tolist()
    for bad in (2, -1, 2**70, -(2**70)):
        with pytest.raises(ValueError, match="index must be"):
            picker.done(bad, 0.1)
    for bad in (None, "0", 0.5):
        with pytest.raises(TypeError, match="index must be"):
            picker.done(bad, 0.1)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="rtt must be"):
            picker.done(index, bad)
    assert picker.loads.tolist() == before
    picker.done(np.int64(index), 0.1)
    picker.done(index, 0.1)  # once too often: nothing is below 0
    assert picker.loads.tolist() == [0, 0]
    picker.remove(index)
    with pytest.raises(ValueError, match="has not left"):
        picker.done(index, 0.1)
    assert made_on(impl, name, lambda: 1.0, []).acquire_index() is None
