"""Nothing leaks: 10**7 picks, 10**4 pickers made and dropped, 5,000 rounds of changes,
4,000 of calls in flight, and what selectors do leave memory flat.

Measured by tracemalloc, which sees every allocation of the kernels (they use Python's
allocator) and of numpy. In a process of its own, so that nothing else allocates.
"""

import subprocess
import sys

import pytest

PRELUDE = """
import copy, gc, pickle, tracemalloc
import numpy as np
from rota.kernels.{stem} import {name} as Made

def used():
    gc.collect()
    return tracemalloc.get_traced_memory()[0]

instances = [object() for _ in range(100)]
weights = list(range(100))
out = np.empty(10_000, np.int32)
tracemalloc.start()
"""

PICKS = """
picker = Made(instances, weights, seed=1)
def pick(n):
    for _ in range(n // 10):
        picker.pick(); picker.next(); picker.next(None, None); picker.pick_index(); next(picker)
        picker.pick(); picker.pick(); picker.pick(); picker.pick(); picker.pick()
    for _ in range(n // 100_000):
        picker.pick_many(1000); picker.fill(out); picker.attempts().next(); list(picker.attempts())
        picker.weights, picker.instances, repr(picker), getattr(picker, "current_weights", 0)
pick(200_000)
before = used()
pick(10_000_000)
print(used() - before)
"""

BUILDS = """
def build(n):
    for i in range(n):
        picker = Made(instances, weights, seed=i)
        picker.pick_many(10)
        attempts = picker.attempts()
        attempts.next(), attempts.next()
        for bad in ([1], [-1] * 100, ["x"] * 100):
            try:
                Made(instances, bad)
            except (TypeError, ValueError):
                pass
        try:
            picker.fill(instances)
        except TypeError:
            pass
        if i % 4 == 0:
            pickle.loads(pickle.dumps(Made(range(5), range(5), seed=1))).pick()
            copy.copy(picker).pick()
            try:
                picker._restore((0, [], "x", False))
            except (TypeError, ValueError):
                pass
build(2_000)  # until the caches of pickle and numpy are full
before = used()
build(10_000)
print(used() - before)
"""

CHANGES = """
def change(n):
    picker = Made(instances, weights, seed=1)
    for i in range(n):
        picker.set_weight(i % 50, i % 7)
        picker.remove(99)
        picker.pick_many(3)
        picker.add(instances[99], i % 5)
        attempts = picker.attempts()
        attempts.next(), attempts.next()
        picker.replace(3, instances[3])
        for bad in (lambda: picker.set_weight(200, 1), lambda: picker.add(None, -1)):
            try:
                bad()
            except ValueError:
                pass
        attempts.next()
        if i % 16 == 0:
            picker.update(instances[i % 32:], weights[i % 32:])
            picker.update(instances, weights)
            copy.copy(picker).remove(7)
change(1_000)  # until the caches of numpy are full
before = used()
change(5_000)
print(used() - before)
"""

LEASES = """
import asyncio
def call(n):
    picker = Made(instances, weights, seed=1)
    errors = [OSError(), ValueError("x"), asyncio.CancelledError(), None]
    for i in range(n):
        leases = [picker.acquire() for _ in range(9)]
        leases[0].done(0.01), leases[0].done(0.01), leases[1].done(0.01, errors[i % 4])
        leases[2](), leases[3].release()
        try:
            with leases[4] as instance:
                raise errors[0]
        except OSError:
            errors[0].__traceback__ = errors[0].__context__ = None
        instance, done = picker.select()
        done(err=errors[i % 4])
        picker.loads, getattr(picker, "latencies", 0)
        for bad in (
            lambda: leases[5].done(-1), lambda: leases[5].done("x"), lambda: copy.copy(leases[5]),
            lambda: picker.among([500]), lambda: picker.among(["x"]),
        ):
            try:
                bad()
            except (TypeError, ValueError):
                pass
        view = picker.among(range(50, 60))
        leases += [view.acquire() for _ in range(3)]
        try:
            view.add(5)
        except TypeError:
            pass
        if i % 8 == 0:  # loads that only leases hold, and only views
            picker.remove(99)
            picker.update(instances[i % 32:], weights[i % 32:])
            picker.update(instances, weights)
            copy.copy(picker).acquire(), copy.copy(view).acquire()
        if i % 16 == 0:
            cycle = [picker.acquire(), picker]
            cycle.append(cycle)
            pickle.loads(pickle.dumps(Made(range(5), range(5), seed=1))).acquire()
call(1_000)  # until the caches of pickle and numpy are full
before = used()
call(4_000)
print(used() - before)
"""

HASH = """
from rota.kernels.hash_picker import Lease
names = [f"n{i}" for i in range(20)]
small = dict(virtual_factor=8) if Made.__name__ == "ConsistentHash" else dict(table_size=101)
places, few = np.zeros(50, np.uint64), np.empty(50, np.int32)
def work(n):
    for i in range(n):
        picker = Made(names, range(20), load_factor=1.25, **small)
        for bad in (dict(weights=[1]), dict(weights=None, load_factor=0)):
            try:
                Made(names, **bad)
            except ValueError:
                pass
        for key in ("k", b"k", 5, memoryview(b"k"), None, "\\ud800", 2**70):
            try:
                picker.pick(key), picker.pick_many([key] * 3), picker.pick_n(key, 3)
                picker.next(None, key), list(picker.attempts(None, key))
                with picker.acquire(key):
                    picker.acquire(key)
            except (TypeError, ValueError, UnicodeError):
                pass
        picker.indices(places, few)
        index = picker.add(f"m{i}", 3)
        picker.set_weight(index, 9), picker.remove(index), picker.update(names[i % 9:])
        for change in (lambda: picker.add("n19"), lambda: picker.set_weight(99, 1)):
            try:
                change()
            except ValueError:
                pass
        getattr(picker, "arcs", picker.weights.copy)(), repr(picker), picker.loads
        if i % 4 == 0:
            pickle.loads(pickle.dumps(picker)).pick("k")
            copy.copy(picker).pick("k")
work(300)  # until the caches of pickle and numpy are full
before = used()
work(2_000)
print(used() - before)
"""

SELECTORS = """
import asyncio
from rota import Instance, NoAvailableInstance
from rota.selector import (
    Builder, BuilderOf, DoneInfo, Engine, Ewma, KratosP2C, Peer, metadata, selector, subset,
    version, where,
)
selector.MOST_GROUPS = 8  # soon there are as many as there may be
is_keyed = hasattr(Made, "pick_n")
key = {"key": "k"} if is_keyed else {}
options = {"table_size": 101} if Made.__name__ == "Maglev" else {} if is_keyed else {"seed": 1}
def list_of(k):
    return [Instance(f"{i}:80", 1 + (i + k) % 3, version=str(i % 2)) for i in range(k % 4, 12)]
lists = [list_of(k) for k in range(7)]
builders = [Builder(Engine(Made, **options))]
if not is_keyed:
    builders += [Builder(Engine(Made, **options), Ewma()), Builder(BuilderOf(KratosP2C), Ewma())]
async def call(made, i):
    async with made.acquire(exclude=lists[0][:1], **key):
        if i % 2:
            raise OSError
def select(made, i):
    chains = [(), (version("1"),), [version("1")], (where(lambda node: node.weight != i % 4),),
              (metadata("zone", str(i)),), (subset({"a": str(i)}, fallback="any"),)]
    for chain in chains:
        for exclude in ((), lists[i % 7][:2], made.nodes):
            try:
                with Peer():
                    node, done = made.select(filters=chain, exclude=exclude, **key)
                    made.select(filters=chain, exclude=exclude, **key)  # forgotten
                done(DoneInfo(OSError() if i % 3 else None)), done()
            except NoAvailableInstance:
                pass
    try:
        asyncio.run(call(made, i)) if i % 10 == 0 else None
        with made.acquire(filters=chains[1], **key):
            raise OSError
    except OSError:
        pass
    for bad in ({"filters": "x"}, {"filters": ([],)}, {"exclude": "x"}, {"key": 1.5}):
        try:
            made.select(**bad)
        except TypeError:
            pass
def work(n):
    kept = [builder.build() for builder in builders]
    for i in range(n):
        for made in (*kept, builders[i % len(builders)].build()):
            made.apply(lists[i % 7])
            select(made, i)
            try:
                made.apply([*lists[0], "x"])
            except TypeError:
                pass
            repr(made), made.nodes, made.picker
work(100)  # until the caches are full
before = used()
work(600)
print(used() - before)
"""


def grown(program, stem, name):
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE.format(stem=stem, name=name) + program],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def stem_of(name, kernels):
    return getattr(kernels, name).__module__.rsplit(".", 1)[1]


def test_picks_leave_memory_flat(kernels, picker_name):
    # One leaked object in 1,000 picks would be hundreds of kilobytes.
    assert grown(PICKS, stem_of(picker_name, kernels), picker_name) < 4096


def test_building_and_dropping_leaves_memory_flat(kernels, picker_name):
    # One leaked object in ten pickers would be 50 kilobytes and more; the caches of pickle
    # and numpy still grow by some.
    assert grown(BUILDS, stem_of(picker_name, kernels), picker_name) < 32_768


def test_changes_leave_memory_flat(kernels, picker_name):
    # One leaked object in a round would be 80 kilobytes and more.
    assert grown(CHANGES, stem_of(picker_name, kernels), picker_name) < 32_768


@pytest.mark.parametrize("name", ["LeastRequest", "PeakEwma"])
def test_leases_and_views_leave_memory_flat(kernels, name):
    # One leaked load, lease or view in a round would be 160 kilobytes and more.
    assert grown(LEASES, stem_of(name, kernels), name) < 32_768


def test_hash_pickers_leave_memory_flat(kernels, hash_picker_name):
    # One leaked object in a round would be 100 kilobytes and more.
    assert grown(HASH, stem_of(hash_picker_name, kernels), hash_picker_name) < 32_768


@pytest.mark.parametrize(
    "name", ["WeightedRoundRobin", "WeightedRandom", "LeastRequest", "PeakEwma", "ConsistentHash"]
)
def test_selectors_leave_memory_flat(kernels, name):
    # One leaked object for each selector in a round would be 60 kilobytes and more; CPython's
    # cache of attributes still grows by some.
    assert grown(SELECTORS, stem_of(name, kernels), name) < 32_768
