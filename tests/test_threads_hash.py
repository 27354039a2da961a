"""One hash picker for all threads: picks, leases and changes at once, each of them whole."""

import threading
from collections import Counter

import numpy as np
import pytest

from tests.threads import N_THREADS, run_threads

STAY = [f"10.0.0.{i}:80" for i in range(6)]
KEYS = [f"user:{i}" for i in range(64)]


class Changer:
    """Changes a picker: instances of its own come, gain and lose weight, and go for good."""

    def __init__(self, picker, k, n_rounds):
        self.picker, self.k, self.n_rounds = picker, k, n_rounds
        self.gone = {}  # names that left, and which of them in order

    def __call__(self):
        for i in range(self.n_rounds):
            names = [f"{self.k}-{i}-{j}" for j in range(3)]
            own = [self.picker.add(name, 1 + j) for j, name in enumerate(names)]
            self.picker.set_weight(own[0], 7)
            self.picker.set_weight(self.k % len(STAY), 1 + i % 5)
            self.picker.set_weight(own[2], 0)
            for index, name in zip(own, names, strict=True):
                self.picker.remove(index)
                self.gone[name] = len(self.gone)


class Watched:
    """What a door gives is an instance that had not left before it was asked."""

    def __init__(self, changers):
        self.changers = {str(changer.k): changer for changer in changers}

    def __call__(self, door, *arguments):
        before = {k: len(changer.gone) for k, changer in self.changers.items()}
        given = door(*arguments)
        for name in given if isinstance(given, list) else [given]:
            if name not in STAY:
                k = name.partition("-")[0]
                assert self.changers[k].gone.get(name, before[k]) >= before[k]
        return given


@pytest.fixture
def n_rounds(impl):
    return 100 if impl.name == "kernels" else 5


@pytest.mark.parametrize("load_factor", [None, 1.25])
def test_picks_beside_changes(make_hash, n_rounds, load_factor):
    picker = make_hash(STAY, load_factor=load_factor)
    changers = [Changer(picker, k, n_rounds) for k in range(2)]
    watched, busy = Watched(changers), threading.Event()

    def pick(door):
        while not busy.is_set():
            for key in KEYS:
                watched(door, key)

    def pick_many():
        while not busy.is_set():
            assert len(watched(picker.pick_many, KEYS)) == len(KEYS)

    def replicas(door):
        while not busy.is_set():
            for key in KEYS:
                found = watched(door, key)
                assert len(found) == len(set(found)) >= 1

    def change():
        try:
            run_threads(*changers)
        finally:
            busy.set()

    run_threads(
        change,
        lambda: pick(picker.pick),
        lambda: pick(lambda key: picker.next(None, key)),
        lambda: pick(lambda key: picker.acquire(key).instance),
        pick_many,
        lambda: replicas(lambda key: picker.pick_n(key, 4)),
        lambda: replicas(lambda key: list(picker.attempts(None, key))),
    )
    assert [len(changer.gone) for changer in changers] == [3 * n_rounds] * 2
    weights = picker.weights[: len(STAY)].tolist()
    assert picker.instances[: len(STAY)] == tuple(STAY)
    assert set(picker.instances[len(STAY) :]) <= {None}
    assert picker.loads.sum() == 0
    fresh = make_hash(STAY, weights, load_factor=load_factor)
    assert picker.pick_many(KEYS) == fresh.pick_many(KEYS)


def test_indices_beside_changes(make_hash, n_rounds):
    """Fills of whole arrays go on while the ring grows and shrinks under them."""
    picker = make_hash(STAY)
    changers = [Changer(picker, k, n_rounds) for k in range(2)]
    busy = threading.Event()
    places = np.random.default_rng(1).integers(2**64, size=5_000, dtype=np.uint64)

    def fill():
        out = np.empty(len(places), np.int32)
        while not busy.is_set():
            picker.indices(places, out)
            # Each changer has three at a time, and the index of one who left is used again.
            assert 0 <= out.min() <= out.max() < len(STAY) + 3 * len(changers)
            assert picker.pick_index(int(places[0])) is not None
            assert len(picker.loads) >= len(STAY)

    def change():
        try:
            run_threads(*changers)
        finally:
            busy.set()

    run_threads(change, *[fill] * 3)


def test_leases_are_counted_exactly(make_hash, n_rounds):
    """Whatever comes and goes meanwhile, the loads are the leases not released."""
    picker = make_hash(STAY, load_factor=1.25)
    changers = [Changer(picker, k, n_rounds) for k in range(2)]
    held = [[] for _ in range(6)]

    def lease(k):
        def body():
            for i in range(20 * n_rounds):
                taken = picker.acquire(KEYS[(k + i) % len(KEYS)])
                if i % 10 == k:
                    held[k].append(taken)
                else:
                    taken.release()

        return body

    run_threads(*changers, *[lease(k) for k in range(6)])
    leases = [taken for own in held for taken in own]
    assert len(leases) == 6 * 2 * n_rounds
    expected = Counter(taken.instance for taken in leases if taken.instance in STAY)
    loads = picker.loads.tolist()
    assert {name: loads[i] for i, name in enumerate(STAY)} == {n: expected[n] for n in STAY}
    assert sum(loads[len(STAY) :]) == 0
    run_threads(*[lambda own=own: [taken.release() for taken in own] for own in held])
    assert picker.loads.sum() == 0


def test_a_lease_that_all_threads_release_ends_once(make_hash, n_rounds):
    picker = make_hash(STAY)
    leases = [picker.acquire(key) for key in KEYS * n_rounds]
    kept = [picker.acquire(key) for key in KEYS]

    def release():
        for taken in leases:
            taken.release()

    run_threads(*[release] * N_THREADS)
    assert picker.loads.sum() == len(kept)


def test_lists_of_instances_replace_each_other_beside_picks(make_hash, n_rounds):
    """Three lists in turn, with one member in common: somebody always has weight."""
    picker = make_hash(STAY)
    lists = [STAY, [STAY[0], *(f"b{i}" for i in range(40))], [STAY[0], "c"]]
    known = {name for names in lists for name in names}
    busy = threading.Event()

    def pick():
        while not busy.is_set():
            assert {picker.pick(key) for key in KEYS} <= known
            assert set(picker.pick_many(KEYS)) <= known
            assert set(picker.pick_n(KEYS[0], 3)) <= known

    def change():
        try:
            for i in range(n_rounds):
                picker.update(lists[i % 3], range(1, len(lists[i % 3]) + 1))
        finally:
            busy.set()

    run_threads(change, *[pick] * (N_THREADS - 1))
