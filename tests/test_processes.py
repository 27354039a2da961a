"""Forked children, and interpreters within the interpreter."""

import os
import subprocess
import sys
import textwrap

import pytest

from rota.fork import _reseed

FORK = """
import copy, os, pickle, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from rota.{implementation}.{stem} import {name} as Made

def picks_of_children(picker, n):
    found = []
    for _ in range(n):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(write, bytes(picker.pick_many(40)))
            os._exit(0)
        found.append(os.read(read, 100))
        os.waitpid(pid, 0)
    return found

weights = [1 + i % 7 for i in range(60)]
unseeded, seeded = Made(range(60), weights), Made(range(60), weights, seed=3)
for picker in (unseeded, seeded):
    picker.pick_many(17)
    picker.remove(5)
    picker.set_weight(6, 0)
    picker.pick_many(10)
children = picks_of_children(copy.copy(unseeded), 2)
children += picks_of_children(pickle.loads(pickle.dumps(unseeded)), 2)
children += picks_of_children(unseeded, 2)
print(len({{*children, bytes(unseeded.pick_many(40))}}))
print(any(5 in picks or 6 in picks for picks in children))
children = picks_of_children(seeded, 3)
print(len({{*children, bytes(seeded.pick_many(40))}}))
counts = unseeded.pick_many(10_000)  # nobody is missed by chance: 8 * exp(-42)
print(sorted(set(range(60)) - set(counts)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_forked_children(impl, picker_name):
    """Without a seed, children and parent go ways of their own; with one, they go the same."""
    stem = getattr(impl, picker_name).__module__.rsplit(".", 1)[1]
    program = FORK.format(implementation=impl.name, stem=stem, name=picker_name)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    different, any_of_the_dead, same, never = done.stdout.split("\n")[:4]
    # Seven rotations or streams out of sixty and more: that they all coincide has a chance
    # of less than 60**-3; two or three may.
    assert int(different) >= 4
    assert any_of_the_dead == "False"
    assert same == "1"
    assert never == "[5, 6]"


BESIDE_A_FILL = """
import os, threading
import numpy as np
from rota.kernels.{stem} import {name} as Made

picker, out = Made(range(50_000)), np.zeros(50_000_000, np.int32)
picker.fill(out[:200_000])
thread = threading.Thread(target=picker.fill, args=(out,))
out[-1] = -7
thread.start()
pid = os.fork()
if pid == 0:
    picker.pick_many(10)
    picker.set_weight(3, 0)
    os._exit(0 if 3 not in picker.pick_many(60_000) else 1)
status = os.waitpid(pid, 0)[1]
thread.join()
assert status == 0, status
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_fork_beside_a_fill(kernels, picker_name):
    """In the child nobody will ever be done with the table that is read in the parent."""
    stem = getattr(kernels, picker_name).__module__.rsplit(".", 1)[1]
    program = BESIDE_A_FILL.format(stem=stem, name=picker_name)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


IN_FLIGHT = """
import os
from rota.{implementation}.{stem} import {name} as Made

for seed in (None, 3):
    picker = Made(range(6), range(6), seed=seed)
    view = picker.among([1, 2, 5])
    leases = [door.acquire() for door in [picker, view] * 20]
    pid = os.fork()
    for k, lease in enumerate(leases):  # in both: each has a count of its own
        lease.done(0.01, OSError() if k % 9 == 0 else None) if k % 2 else lease.release()
    del lease, leases
    for _ in range(1000):
        for door in (picker, view):
            door.acquire().done(0.01)
    picker.remove(1)
    picker.set_weight(picker.add("x"), 9)
    right = set(view.pick_many(500)) <= {{1, 2, 5}}
    right = right and not picker.loads.any() and not view.loads.any()
    if pid == 0:
        os._exit(0 if right else 1)
    assert right
    assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.parametrize("name", ["LeastRequest", "PeakEwma"])
def test_a_fork_with_calls_in_flight(impl, name):
    """Both go on with what was in flight, and with what they learned by then."""
    stem = getattr(impl, name).__module__.rsplit(".", 1)[1]
    program = IN_FLIGHT.format(implementation=impl.name, stem=stem, name=name)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "RoundRobin",
        "WeightedRoundRobin",
        "FairRoundRobin",
        "InterleavedWeightedRoundRobin",
    ],
)
def test_a_fork_while_a_picker_is_made(impl, name):
    """It begins anew only what has begun."""

    class Start:
        def __index__(self):
            _reseed()
            return 3

    picker = getattr(impl, name)(range(100), range(100), start=Start())
    assert 0 not in picker.pick_many(300)


INTERPRETER = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
import rota
assert rota.RoundRobin("ab".split() + ["c"]).pick() is not None
one = interpreters.create()
code = '''
try:
    import rota
except ImportError as error:
    print("refused:", type(error).__name__, error)
else:
    picker = rota.RoundRobin(["a", "b"], start=0)
    print("works:", picker.pick_many(3), rota.IMPLEMENTATION)
'''
result = interpreters.run_string(one, code)
interpreters.destroy(one)
if result is not None:
    print("failed:", result)
"""


def test_another_interpreter_works_or_refuses_clearly():
    """The kernels (and numpy) serve one interpreter of a process; another is told so."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(INTERPRETER)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout.strip()
    assert said.startswith(("works: ['a', 'b', 'a']", "refused: ImportError")), said
