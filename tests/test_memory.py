"""Nothing leaks: 10**7 picks, and 10**4 pickers made and dropped, leave memory flat.

Measured by tracemalloc, which sees every allocation of the kernels (they use Python's
allocator) and of numpy. In a process of its own, so that nothing else allocates.
"""

import subprocess
import sys

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
                picker._restore((0, "x"))
            except (TypeError, ValueError):
                pass
build(2_000)  # until the caches of pickle and numpy are full
before = used()
build(10_000)
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
