"""The operations whose instructions are counted. Run by guard.py, under callgrind.

    LD_PRELOAD=MARKS valgrind --tool=callgrind ... python -m bench.counted MARKS FOLDER

Each is a case of cases.py, called in timeit's loop: once through to warm up, and again between
the marks zero and dump (MARKS is callgrind.c, compiled). Dump i is named "operation i"; what
that is, and how many picks, elements or calls were made, is line i of FOLDER/operations.json.
"""

import ctypes
import gc
import json
import sys
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

from bench.cases import (
    CLASSES,
    HASHES,
    LOADED,
    NUMBERS,
    RINGS,
    SELECTORS,
    Case,
    balanced,
    case,
    md5_cases,
    queue_case,
    ring_case,
    select_case,
)

SIZES = (100, 10_000)
LEAST = 4_000  # units of an operation that are counted: several runs of each picker


def operations() -> Iterator[tuple[str, Case]]:
    """Yield name, case. A name begins with the stem of the kernel that it is there for."""
    for stem in CLASSES:
        ways = ["pick", "fill", "change"]
        if stem in LOADED:
            ways += ["acquire_done", "index_done", "acquire_failed"]
        for n in SIZES:
            for way in ways:
                yield f"{stem} {way} n={n}", case(stem, way, n)
    for n in SIZES:
        for way in ("acquire_release", "select", "among"):
            yield f"two_choices {way} n={n}", case("least_request", way, n)
        for way in ("pick_of", "withdraw_enter"):
            yield f"weight_groups {way} n={n}", queue_case(way, n)
        for way in ("pick_many", "next", "iter", "attempts"):
            yield f"picker {way} n={n}", case("weighted_round_robin", way, n)
        yield f"picker get_picker n={n}", balanced(n)
        for stem in RINGS:
            yield f"{stem} pick n={n}", ring_case(stem, "pick", n)
        for way in ("pick_many", "pick_n", "next", "acquire"):
            yield f"hash_picker {way} n={n}", ring_case("ketama", way, n)
        for name in SELECTORS:
            for way in ("select", "filtered"):
                yield f"selection {name} {way} n={n}", select_case(name, way, n)
    for kind, cases in HASHES.items():
        yield f"murmur3 key_hash {kind}", cases["kernel"]
    for way in ("key_word", "node"):
        yield f"md5 {way}", md5_cases(way)["kernel"]
    yield "splitmix64 next", NUMBERS["kernel"]


def main(marks: ctypes.CDLL, folder: Path) -> None:
    """Count every operation, and say in operations.json what was counted."""
    listed = list(operations())
    gc.disable()
    marks.begin()
    counted = []
    for name, operation in listed:
        repeats = -(-LEAST // operation.units)
        run, mark = operation.timer().inner, f"operation {len(counted)}".encode()
        run(repeat(None, repeats), time.perf_counter)
        marks.zero()
        run(repeat(None, repeats), time.perf_counter)
        marks.dump(mark)
        counted.append((name, repeats * operation.units))
    (folder / "operations.json").write_text(json.dumps(counted))


if __name__ == "__main__":
    main(ctypes.CDLL(sys.argv[1]), Path(sys.argv[2]))
