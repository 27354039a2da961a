"""Check and time the service in this folder; it and rota are installed.

usage: check.py [picks of each picker]

Wrong picks end it with an error; a time beyond its bar is only said.
"""

import copy
import ctypes
import importlib
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from dispatch import native, native_cpp, service

import rota
from rota.kernels import picker as kernel

DOORS = (service, native, native_cpp)
PICKS = 100_000_000
ROUNDS = 100
INSTANCES = [f"10.0.0.{i}:80" for i in range(10)]
WEIGHTS = [5, 1, 1, 0, 4, 2, 3, 1, 2, 1]  # 20 in all
# In ns, for the fastest of the rounds: whoever else uses the machine only makes them slower.
BARS = {"RoundRobin": 2.0, "WeightedRandom": 4.0}
AT_RANDOM = ("WeightedRandom", "LeastRequest", "PeakEwma")


def pickers() -> dict[str, rota.Picker]:
    """Return a picker of each kind, the same at each call."""
    return {
        "RoundRobin": rota.RoundRobin(INSTANCES, start=0),
        "WeightedRoundRobin": rota.WeightedRoundRobin(INSTANCES, WEIGHTS, start=0),
        "InterleavedWeightedRoundRobin": rota.InterleavedWeightedRoundRobin(
            INSTANCES, WEIGHTS, start=0
        ),
        "WeightedRandom": rota.WeightedRandom(INSTANCES, WEIGHTS, seed=1),
        "LeastRequest": rota.LeastRequest(INSTANCES, WEIGHTS, seed=1),
        "PeakEwma": rota.PeakEwma(INSTANCES, WEIGHTS, seed=1),
    }


def expected(name: str, n: int) -> list[float]:
    """Return how many of n picks each index should get."""
    weights = [1] * len(INSTANCES) if name == "RoundRobin" else WEIGHTS
    return [n * weight / sum(weights) for weight in weights]


def check_counts(n: int) -> None:
    """Count n picks of each picker: exact, or for random within 5 standard deviations."""
    assert n % sum(WEIGHTS) == 0
    for name, picker in pickers().items():
        *counts, to_nobody = service.count_picks(picker, n)
        assert to_nobody == 0
        wanted = expected(name, n)
        if name not in AT_RANDOM:
            assert counts == wanted, (name, counts)
            continue
        assert sum(counts) == n
        for count, mean in zip(counts, wanted, strict=True):
            assert abs(count - mean) <= 5 * (mean * (1 - mean / n)) ** 0.5, (name, counts)


def check_sequences(n: int) -> None:
    """Every door gives the picks that Python gets, and Python goes on from there."""
    for name in pickers():
        picks = pickers()[name].pick_many(2 * n)
        indices = [INSTANCES.index(instance) for instance in picks[:n]]
        counts = Counter(indices)
        for door in DOORS:
            picker = pickers()[name]
            assert door.first_picks(picker, n) == picks[:n], (name, door)
            assert picker.pick_many(n) == picks[n:], (name, door)
            assert door.count_picks(pickers()[name], n) == [*(counts[i] for i in range(10)), 0]
            assert door.sum_of_picks(pickers()[name], n) == sum(indices)
        assert service.sum_of_fills(pickers()[name], n) == sum(indices)
    for nobody in (rota.RoundRobin([]), rota.WeightedRandom(["a", "b"], [0, 0])):
        for door in DOORS:
            assert door.first_picks(nobody, 3) == [None] * 3
            assert door.count_picks(nobody, 3) == [0] * len(nobody) + [3]


def check_threads(n: int) -> None:
    """Threads without the GIL, each with a copy of its own: each copy goes on exactly."""
    picker = pickers()["WeightedRoundRobin"]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(door.count_picks, copy.copy(picker), n) for door in DOORS]
    assert all(run.result()[:-1] == expected("WeightedRoundRobin", n) for run in runs)


def check_calls(n: int) -> None:
    """Calls that C counts are shared out as those that Python counts, and are counted back."""
    for name in ("LeastRequest", "PeakEwma"):
        picker, twin = pickers()[name], pickers()[name]
        counts, calls = Counter(), deque()
        for _ in range(n):
            if len(calls) == 1024:
                calls.popleft().release()
            calls.append(twin.acquire())
            counts[calls[-1].index] += 1
        assert service.count_calls(picker, n) == [counts[i] for i in range(10)], name
        assert not picker.loads.any()
        calls.clear()
        assert picker.pick_many(1000) == twin.pick_many(1000)
        assert service.count_calls(type(picker)([]), 3) == []
        assert_raises(TypeError, service.count_calls, rota.RoundRobin([]), 1)


def check_rings(n: int) -> None:
    """The owners of keys, hashed in C, are those that Python finds."""
    foreign = rota.ConsistentHash(INSTANCES, WEIGHTS, points="nginx", load_factor=1.25)
    for ring in (
        rota.ConsistentHash(INSTANCES, WEIGHTS),
        rota.Maglev(INSTANCES, WEIGHTS),
        rota.ConsistentHash([]),
        foreign,
    ):
        for door in (native, native_cpp):
            for key in ("user:42", b"user:42", 42, ""):
                assert door.owner(ring, key) == ring.pick(key), (ring, key)
        if ring is foreign:
            continue  # its keys are not hashed by MurmurHash3
        counts = Counter(ring.pick_index(user) for user in range(n))
        for door in DOORS:
            wanted = [counts[i] for i in range(len(ring.instances))]
            assert door.count_users(ring, n) == wanted, (ring, door)


def check_refusals() -> None:
    """What is no picker is refused, and so is a table that will not do."""
    ring = rota.ConsistentHash(INSTANCES)
    for door in DOORS:
        for function, thing in (
            (door.count_picks, ring),
            (door.count_picks, None),
            (door.first_picks, "RoundRobin"),
            (door.count_users, pickers()["RoundRobin"]),
        ):
            assert_raises(TypeError, function, thing, 1)
    for door in (native, native_cpp):
        assert_raises(TypeError, door.owner, ring, 1.5)
        assert_raises(ValueError, door.owner, ring, 2**64)
        assert_raises(ImportError, import_again, door, capsule(2, 1 << 20))
        assert_raises(ImportError, import_again, door, capsule(1, 8))
        assert_raises(ValueError, import_again, door, capsule(1, 1 << 20, b"another"))


KEPT: list[object] = []


def capsule(version: int, size: int, name: bytes = b"rota.kernels.picker._C_API") -> object:
    """Return a capsule of the head of a table."""
    table = (ctypes.c_uint32 * 2)(version, size)
    KEPT.extend((table, name))  # the capsule has but their addresses
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(ctypes.addressof(table), name, None)


def import_again(door: ModuleType, table: object) -> None:
    """Import an extension where rota has another table, and then as it was."""
    real, kernel._C_API = kernel._C_API, table
    try:
        del sys.modules[door.__name__]
        importlib.import_module(door.__name__)
    finally:
        kernel._C_API = real
        importlib.import_module(door.__name__)


def assert_raises(kind: type[Exception], function: Callable, *arguments: object) -> None:
    """Call, and want this exception."""
    try:
        function(*arguments)
    except kind:
        return
    raise AssertionError(f"{function} of {arguments} did not raise {kind.__name__}")


def ns(function: Callable, picker: rota.Picker, n: int) -> float:
    """Return the time of a pick, in a loop of n."""
    begin = time.perf_counter()
    function(picker, n)
    return (time.perf_counter() - begin) / n * 1e9


def print_times(n: int) -> None:
    """Time n picks of each picker in each way beside as many empty calls, round about."""
    loops = {
        "Cython": service.sum_of_picks,
        "C": native.sum_of_picks,
        "C++": native_cpp.sum_of_picks,
        "Cython, in blocks": service.sum_of_fills,
    }
    print(f"{'ns a pick, without the GIL, in the fastest round':54}{'x an empty call':>16}")
    for name, picker in pickers().items():
        rounds = [
            [ns(loop, picker, n // ROUNDS) for loop in (service.sum_of_nothing, *loops.values())]
            for _ in range(ROUNDS)
        ]
        empty, *fastest = map(min, zip(*rounds, strict=True))
        for way, took in zip(loops, fastest, strict=True):
            bar = BARS.get(name)
            verdict = "" if bar is None else f"{bar:g} ns {'holds' if took <= bar else 'MISSED'}"
            print(f"{name:31}{way:18}{took:5.2f}{took / empty:16.2f}   {verdict}")


def main() -> None:
    """Check, then time."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else PICKS
    here = Path(__file__).parent
    assert here not in Path(service.__file__).parents, "the service of this folder, not installed"
    assert rota.IMPLEMENTATION == "compiled"
    check_sequences(10_000)
    check_calls(20_000)
    check_rings(20_000)
    check_refusals()
    check_threads(n // 10)
    check_counts(n)
    print(
        f"picks from Cython, C and C++ of rota {rota.__version__} are right: {n:,} of each picker"
    )
    print_times(n)


if __name__ == "__main__":
    main()
