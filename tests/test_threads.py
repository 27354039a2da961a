"""One picker for all threads: no pick is lost, none comes twice, every call is counted back."""

import asyncio
import random
import threading
from collections import Counter

import numpy as np
import pytest

from tests.conftest import AT_RANDOM
from tests.threads import N_THREADS, run_threads


def test_picks_of_many_threads_are_the_sequence(impl, picker_name):
    """The multiset of all threads' picks is that of one thread's."""
    make = getattr(impl, picker_name)
    weights = [5, 1, 0, 7, 30, 2]
    picker, alone = make(range(6), weights, seed=1), make(range(6), weights, seed=1)
    counts = [Counter() for _ in range(N_THREADS)]
    n_picks = 20_000 if impl.name == "kernels" else 2_000

    def body(k):
        def pick():
            doors = (picker.pick, picker.next, picker.pick_index, picker.__next__)
            door = doors[k % 4]
            counts[k].update(door() for _ in range(n_picks))

        return pick

    run_threads(*[body(k) for k in range(N_THREADS)])
    assert sum(counts, Counter()) == Counter(alone.pick_many(N_THREADS * n_picks))
    assert picker.pick_many(100) == alone.pick_many(100)


def test_fills_without_the_gil_reserve_their_range(kernels, picker_name):
    """Long fills, which let the GIL go, beside single picks: together, the sequence."""
    make = getattr(kernels, picker_name)
    weights = [5, 1, 0, 7, 30, 2]
    picker, alone = make(range(6), weights, seed=1), make(range(6), weights, seed=1)
    n_fills, size, n_picks = 20, 50_000, 100_000
    totals = [np.zeros(6, np.int64) for _ in range(5)]

    def filling(k):
        def body():
            out = np.empty(size, np.int32)
            for _ in range(n_fills):
                picker.fill(out)
                totals[k] += np.bincount(out, minlength=6)

        return body

    def picking():
        for _ in range(n_picks):
            totals[4][picker.pick()] += 1

    run_threads(*[filling(k) for k in range(4)], picking)
    expected = np.empty(4 * n_fills * size + n_picks, np.int32)
    alone.fill(expected)
    np.testing.assert_array_equal(sum(totals), np.bincount(expected, minlength=6))
    assert picker.pick_many(100) == alone.pick_many(100)


def test_attempts_of_many_threads(impl, picker_name):
    picker = getattr(impl, picker_name)(range(50), range(50))

    def body():
        for _ in range(20):
            assert sorted(picker.attempts()) == list(range(1, 50))

    run_threads(*[body] * N_THREADS)


# -- picks beside changes -------------------------------------------------------------------

STAY = 6


class Comings:
    """Instances of one thread's own, which it adds, weighs and removes; who left, in order."""

    def __init__(self, picker, name, n_rounds):
        self.picker, self.name, self.n_rounds = picker, name, n_rounds
        self.n_gone = 0

    def __call__(self):
        for k in range(self.n_rounds):
            one = self.picker.add((self.name, 2 * k), 3)
            other = self.picker.add((self.name, 2 * k + 1), 1 + k % 5)
            self.picker.set_weight(one, 1 + k % 7)
            self.picker.set_weight(other, 0)
            self.picker.set_weight(k % STAY, 5)  # as it is: no change
            self.picker.remove(one)
            self.n_gone = 2 * k + 1
            self.picker.remove(other)
            self.n_gone = 2 * k + 2


def test_picks_beside_changes(impl, picker_name):
    """Nobody is picked who had left before the pick began, and in the end nothing is lost."""
    scale = 1 if impl.name == "kernels" else 20
    picker = getattr(impl, picker_name)([("stays", i) for i in range(STAY)], [5] * STAY, seed=1)
    comings = [Comings(picker, k, 4000 // scale) for k in range(3)]
    n_picks = 100_000 // scale
    counts = [Counter() for _ in range(5)]
    out_of_place = []

    def body(k):
        def pick():
            attempts_of = picker.attempts
            for step in range(n_picks):
                gone = [coming.n_gone for coming in comings]
                if k == 4 and step % 16 == 0:
                    given = list(attempts_of())
                    assert len(set(given)) >= STAY
                else:
                    given = [(picker.pick, picker.next, picker.__next__)[k % 3]()]
                for name, number in given:
                    counts[k][name] += 1
                    if name != "stays" and number < gone[name]:
                        out_of_place.append((name, number))

        return pick

    run_threads(*[body(k) for k in range(5)], *comings)
    assert out_of_place == []
    assert [counts[k].total() for k in range(4)] == [n_picks] * 4
    assert len(picker) == STAY
    assert picker.weights.sum() == 5 * STAY
    picker.pick_many(1000)  # whatever round it is in comes to its end
    if picker_name not in AT_RANDOM:
        assert Counter(picker.pick_many(600)) == {("stays", i): 100 for i in range(STAY)}
    assert set(picker.pick_many(600)) == {("stays", i) for i in range(STAY)}


def test_no_change_is_lost(impl, picker_name):
    """Threads that change weights of their own at once: each is the last one given."""
    scale = 1 if impl.name == "kernels" else 20
    n_each, n_rounds = 50 if scale == 1 else 6, 20_000 // scale
    picker = getattr(impl, picker_name)(range(N_THREADS * n_each), seed=1)
    last = np.ones(N_THREADS * n_each, np.int64)

    def changing(k):
        def body():
            for step in range(n_rounds):
                i = k * n_each + step * 7 % n_each
                last[i] = step * 31 % 1000
                picker.set_weight(i, int(last[i]))
                if step % 3 == 0:
                    picker.pick()

        return body

    run_threads(*[changing(k) for k in range(N_THREADS)])
    np.testing.assert_array_equal(picker.weights, last)
    out = np.empty(int(3 * last.sum()), np.int32)
    picker.fill(out)
    picks = np.bincount(out, minlength=len(last))
    assert ((picks > 0) <= (last > 0)).all()
    if picker_name == "WeightedRoundRobin":
        # Within H(n) < 7 picks of the share, wherever it begins; three periods.
        assert abs(picks - 3 * last).max() < 14


def test_fills_beside_changes(kernels, picker_name):
    """A fill without the GIL reads a table that no change writes to, nor frees."""
    make = getattr(kernels, picker_name)
    picker = make(range(1000), [1 + i % 3 for i in range(1000)], seed=1)
    done = threading.Event()
    n_fills = 30

    def filling():
        try:
            out = np.empty(300_000, np.int32)
            for _ in range(n_fills):
                out[:] = -7
                picker.fill(out)
                assert out.min() >= 0
                assert out.max() <= 1000  # 1000 comes and goes
        finally:
            done.set()

    def changing():
        step = 0
        while not done.is_set():
            picker.set_weight(step % 1000, 1 + step % 4)
            picker.remove(picker.add(step))
            if step % 50 == 0:
                picker.pick_many(4000)  # until there is a table again
            step += 1

    run_threads(filling, changing)


def test_updates_are_whole(impl, picker_name):
    """A batch of picks sees one list or the other, never some of both."""
    picker = getattr(impl, picker_name)([("a", i) for i in range(20)], seed=1)
    done = threading.Event()

    def updating():
        try:
            for step in range(400 if impl.name == "kernels" else 40):
                picker.update([("ab"[step % 2], i) for i in range(20)], range(1, 21))
        finally:
            done.set()

    def picking():
        while not done.is_set():
            assert len({name for name, _ in picker.pick_many(200)}) == 1

    run_threads(updating, picking, picking)


# -- calls in flight ------------------------------------------------------------------------

LOADED = ("LeastRequest", "PeakEwma")


@pytest.mark.parametrize("name", LOADED)
def test_calls_of_many_threads_beside_changes(impl, name):
    """Through the whole and its views, ended in every way: in the end nothing is in flight."""
    scale = 1 if impl.name == "kernels" else 20
    picker = getattr(impl, name)([("stays", i) for i in range(STAY)], [5] * STAY, seed=1)
    views = [picker.among(range(STAY)), picker.among([0, 1])]
    comings = [Comings(picker, k, 4000 // scale) for k in range(2)]
    n_calls = 40_000 // scale
    kept = [[] for _ in range(6)]

    def body(k):
        door, rng = [picker, *views][k % 3], random.Random(k)
        errors = [None, None, OSError(), asyncio.CancelledError()]
        ends = [
            lambda lease: lease.done(rng.random(), rng.choice(errors)),
            lambda lease: lease.release(),
            lambda lease: lease(),
            lambda lease: None,  # dropped
            kept[k].append,
        ]

        def call():
            for step in range(n_calls):
                if step % 8 == 0:
                    door.select()[1](err=errors[step % 4])
                with door.acquire() as (whose, _):
                    assert whose == "stays" or door is picker
                ends[step % 4 if step % 512 else 4](door.acquire())
                if step % 64 == 0:
                    assert (door.loads >= 0).all()
                    door.among([0]).acquire()

        return call

    def replacing():
        for step in range(4000 // scale):
            picker.replace(step % STAY, ("stays", step % STAY))

    run_threads(*[body(k) for k in range(6)], *comings, replacing)
    shared = sum(len(leases) for leases in kept)
    there = picker.loads[:STAY]
    assert sum(lease.instance[0] == "stays" for leases in kept for lease in leases) == there.sum()
    assert shared >= there.sum() > 0
    np.testing.assert_array_equal(there, views[0].loads)
    # One thread has begun them, and others end them.
    run_threads(*[lambda leases=leases: [lease.done(0.1) for lease in leases] for leases in kept])
    for each in (picker, *views):
        assert not each.loads.any()
    if name == "PeakEwma":
        assert np.isfinite(picker.latencies[:STAY]).all()


@pytest.mark.parametrize("name", LOADED)
def test_a_lease_ends_once_of_all_threads(impl, name):
    """Whoever comes first; the load of the other lease stays."""
    picker = getattr(impl, name)(["a"], seed=1)
    stays = picker.acquire()
    for _ in range(200 if impl.name == "kernels" else 20):
        lease = picker.acquire()
        run_threads(*[lease.release, lambda lease=lease: lease.done(0.1), lease] * 2)
        assert picker.loads.tolist() == [1]
    stays.release()
    assert picker.loads.tolist() == [0]


@pytest.mark.parametrize("name", LOADED)
def test_updates_beside_calls(impl, name):
    """Who leaves takes what is in flight along; who comes begins with nothing."""
    picker = getattr(impl, name)([("a", i) for i in range(20)], seed=1)
    done = threading.Event()

    def updating():
        try:
            for step in range(400 if impl.name == "kernels" else 40):
                picker.update([("ab"[step % 2], i) for i in range(20)], range(1, 21))
        finally:
            done.set()

    def calling():
        leases = []
        while not done.is_set():
            leases.append(picker.acquire())
            if len(leases) > 50:
                leases.pop(0).done(0.01)
            assert picker.loads.max() <= 102

    run_threads(updating, calling, calling)
    assert not picker.loads.any()
