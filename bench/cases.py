"""The cases of all benches: defined once, for pytest-benchmark and for the table of ratios.

A case is a statement as its users would write it, with the objects it names. Whose it is:

    kernel            rota, compiled
    twin              rota.reference, plain Python
    itertools.cycle   over the instances; with weights, over one period of the schedule
    random.choices    with cum_weights, summed up beforehand
    numpy.choice      numpy.random.Generator.choice with p, made beforehand
    numpy.copyto      a copy of as many int32, the least any fill can cost
    floor             the empty method of floor.pyx

All run on the same instances and weights. Compiled pickers have walked whole periods
before a case begins, so that tables are filled and first cycles are over; a cycle has
gone round once. Twins, and a weighted round robin too long for a table, start as they are.
"""

import gc
import itertools
import random
import re
import shutil
import tracemalloc
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from math import gcd
from pathlib import Path
from tempfile import TemporaryDirectory
from timeit import Timer
from typing import Any

import numpy as np

from rota import Instance, Result, WeightedRoundRobinBalancer
from rota.kernels.splitmix64 import SplitMix64
from rota.reference.splitmix64 import GAMMA, MASK, mix
from rota.reference.splitmix64 import SplitMix64 as SplitMix64Twin

CLASSES = {
    "round_robin": "RoundRobin",
    "weighted_round_robin": "WeightedRoundRobin",
    "interleaved_weighted_round_robin": "InterleavedWeightedRoundRobin",
    "weighted_random": "WeightedRandom",
}
SIZES = (10, 100, 1_000, 10_000, 1_000_000)
PICKS = 1_000  # of one pick_many, and of one timing under pytest-benchmark
ELEMENTS = 10_000  # of one fill, unless a case says otherwise
LARGEST_TWIN = {  # instances of the largest twin that ends in reasonable time
    "weighted_round_robin": 1_000,  # O(n) a pick
    "weighted_random": 10_000,  # seconds to build
}
LONGEST_SCHEDULE = 10_000  # instances of the largest schedule (50 n picks) that is cycled
LONGEST_TABLE = 65_536  # picks of the longest period that weighted round robin keeps
SHORTEST_RUN = 64  # a shorter period is kept several times over

STATEMENTS = {
    "pick": {
        "kernel": "p.pick()",
        "twin": "p.pick()",
        "itertools.cycle": "next(p)",
        "random.choices": "random.choices(servers, cum_weights=p)[0]",
    },
    "pick_worst": {"kernel": "p.pick()", "twin": "p.pick()"},
    "next": {
        "kernel": "p.next(ctx, request)",
        "twin": "p.next(ctx, request)",
        "itertools.cycle": "next(p)",
        "random.choices": "random.choices(servers, cum_weights=p)[0]",
    },
    "iter": {"kernel": "next(p)", "twin": "next(p)"},
    "attempts": {"kernel": "p.attempts().next()", "twin": "p.attempts().next()"},
    "all_attempts": {"kernel": "list(p.attempts())", "twin": "list(p.attempts())"},
    "pick_many": {
        "kernel": f"p.pick_many({PICKS})",
        "twin": f"p.pick_many({PICKS})",
        "itertools.cycle": f"list(itertools.islice(p, {PICKS}))",
        "random.choices": f"random.choices(servers, cum_weights=p, k={PICKS})",
    },
    "fill": {
        "kernel": "p.fill(out)",
        "twin": "p.fill(out)",
        "numpy.copyto": "np.copyto(out, source)",
        "numpy.choice": "rng.choice(n, elements, p=p)",
    },
    "build": {
        "kernel": "make(servers, weights)",
        "twin": "make(servers, weights)",
        "itertools.cycle": "make(servers, weights)",
        "random.choices": "make(servers, weights)",
    },
}


@dataclass(frozen=True)
class Case:
    """A statement and the objects it names.

    Parameters
    ----------
    statement : str
    names : dict
        Locals of the loop, so that no statement pays for a global.
    units : int
        Picks, elements or instances that one statement makes.
    """

    statement: str
    names: dict[str, Any]
    units: int = 1

    def timer(self) -> Timer:
        """Return a loop of its own code, in which CPython specialises the call for this case."""
        used = set(re.findall(r"\w+", self.statement)) & self.names.keys()
        setup = "; ".join(f"{name} = names[{name!r}]" for name in sorted(used))
        return Timer(self.statement, setup, globals={"names": self.names})


class Server:
    """An instance."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


@cache
def servers(n: int) -> list[Server]:
    """Return n distinct instances."""
    return [Server(i) for i in range(n)]


@cache
def weights(n: int) -> list[int]:
    """Return n weights in [1, 100]: 1 + SplitMix64(42 + i).next() % 100."""
    return [1 + mix((42 + i + GAMMA) & MASK) % 100 for i in range(n)]


def worst_weights(stem: str, n: int) -> list[int]:
    """Return the weights that cost a pick most.

    Weighted round robin: all differ and the period is too long for a table, so every pick
    compares n groups. Interleaved: one instance is so heavy that a pass is one pick.
    """
    if stem == "weighted_round_robin":
        return list(range(LONGEST_TABLE, LONGEST_TABLE + n))
    return [1] * (n - 1) + [1_000_000]


def period(stem: str, given: Sequence[int]) -> int:
    """Return after how many picks the order of a round robin begins again."""
    return len(given) if stem == "round_robin" else sum(given) // gcd(*given)


def table_bytes(stem: str, given: Sequence[int]) -> int:
    """Return the bytes of weighted round robin's period table, at most 256 KiB; 0 elsewhere."""
    turns = period(stem, given)
    if stem != "weighted_round_robin" or turns > LONGEST_TABLE:
        return 0
    return -(-SHORTEST_RUN // turns) * turns * 4


def maker(stem: str, who: str) -> Callable[[list[Server], list[int]], Any]:
    """Return what makes a picker, or what people keep in its place, of (servers, weights)."""
    if who == "kernel":
        return getattr(import_module(f"rota.kernels.{stem}"), CLASSES[stem])
    if who == "twin":
        return getattr(import_module(f"rota.reference.{stem}"), CLASSES[stem])
    if who == "random.choices":
        return lambda servers, weights: list(itertools.accumulate(weights))
    if who == "numpy.choice":
        return lambda servers, weights: np.array(weights) / sum(weights)
    if who == "itertools.cycle" and stem == "round_robin":
        return lambda servers, weights: itertools.cycle(servers)
    if who == "itertools.cycle":
        kernel = maker(stem, "kernel")
        return lambda servers, weights: itertools.cycle(
            kernel(servers, weights).pick_many(period(stem, weights))
        )
    return lambda servers, weights: None


def walk(stem: str, who: str, made: Any, given: Sequence[int]) -> None:
    """Go through one whole period, after which the tables are filled; without one, nowhere."""
    picks = period(stem, given)
    if who == "itertools.cycle":
        deque(itertools.islice(made, picks + 1), 0)  # one more: now it lets go of its source
    elif who == "kernel" and (stem != "weighted_round_robin" or table_bytes(stem, given)):
        out = np.empty(min(picks, 1_000_000), np.int32)
        for _ in range(-(-picks // len(out))):
            made.fill(out)


def case(stem: str, measure: str, n: int, who: str = "kernel", *, elements: int = ELEMENTS) -> Case:
    """Make a case, ready to run.

    Parameters
    ----------
    stem, measure, who : str
        Keys of CLASSES and of STATEMENTS.
    n : int
        Instances.
    elements : int
        Of the array to fill.
    """
    given = worst_weights(stem, n) if measure in ("pick_worst", "all_attempts") else weights(n)
    make = maker(stem, who)
    names: dict[str, Any] = {"make": make, "servers": servers(n), "weights": given}
    if measure != "build":
        made = make(servers(n), given)
        walk(stem, who, made, given)
        names = {"p": made, "servers": servers(n), "ctx": object(), "request": object()}
    if measure == "fill":
        names |= {
            "n": n,
            "elements": elements,
            "out": np.zeros(elements, np.int32),
            "source": np.arange(elements, dtype=np.int32),
            "rng": np.random.default_rng(42),
        }
    statement = STATEMENTS[measure][who]
    names |= {"random": random, "itertools": itertools, "np": np}
    units = {"pick_many": PICKS, "fill": elements, "build": n, "all_attempts": n}.get(measure, 1)
    return Case(statement, names, units)


def rivals(stem: str, measure: str) -> list[str]:
    """Return whom the kernel is measured beside: its twin and what people use today."""
    random_only = {"random.choices", "numpy.choice"}
    return [
        who
        for who in STATEMENTS[measure]
        if who in ("kernel", "twin") or (who in random_only) == (stem == "weighted_random")
    ]


def grid(
    stem: str, measure: str, *, largest: int = SIZES[-1], twin: int | None = None
) -> list[tuple[int, str]]:
    """Return every (n, who) of a measure that ends in reasonable time.

    `largest` is the largest n at all, `twin` that of the twin if not LARGEST_TWIN.
    """
    limits = {"twin": twin or LARGEST_TWIN.get(stem, largest)}
    if stem != "round_robin":
        limits["itertools.cycle"] = LONGEST_SCHEDULE
    return [
        (n, who)
        for n in SIZES
        for who in rivals(stem, measure)
        if n <= min(largest, limits.get(who, largest))
    ]


def title(value: object) -> str:
    """Return one part of a case's id: "n=100", or who it is."""
    return f"n={value}" if isinstance(value, int) else str(value)


def bytes_per_instance(stem: str, n: int, who: str = "kernel") -> float:
    """Return the bytes an instance costs, the instances themselves and their list apart.

    By tracemalloc, which sees what kernels and numpy allocate too: what is left after
    building from a list and walking a period, over n. The small fixed part is included.
    """
    make, listed, given = maker(stem, who), servers(n), weights(n)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    made = make(listed, given)
    walk(stem, who, made, given)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / n


@cache
def floor_class() -> Any:
    """Compile floor.pyx as the kernels are compiled and return its class, once a session."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    with TemporaryDirectory() as folder:
        source = shutil.copy(Path(__file__).with_name("floor.pyx"), folder)
        options = {"extra_compile_args": ["-O3", "-g0"]}
        extensions = cythonize(
            [Extension("floor", [source], **options)],
            compiler_directives={
                "language_level": "3",
                "binding": False,
                "always_allow_keywords": False,
            },
            quiet=True,
        )
        command = build_ext(Distribution({"ext_modules": extensions}))
        command.build_lib = command.build_temp = folder
        command.ensure_finalized()
        command.run()
        spec = spec_from_file_location("floor", command.get_ext_fullpath("floor"))
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    return module.Floor


def floor() -> Case:
    """Return the floor: a method without arguments that returns an object it holds."""
    return Case("p.no_argument()", {"p": floor_class()(servers(1)[0])})


def floor_of_one() -> Case:
    """Return the floor of a method with one argument."""
    return Case("p.one_argument(request)", {"p": floor_class()(servers(1)[0]), "request": object()})


def balanced(n: int) -> Case:
    """Return a pick by way of a balancer's cached picker; Kitex's default balancer."""
    copies = [Instance(f"server-{i}:80", weight) for i, weight in enumerate(weights(n))]
    result = Result(True, "service", tuple(copies))
    balancer = WeightedRoundRobinBalancer(seed=42)
    walk("weighted_round_robin", "kernel", balancer.get_picker(result), weights(n))
    return Case("balancer.get_picker(result).pick()", {"balancer": balancer, "result": result})


NUMBERS = {
    "kernel": Case("r.next()", {"r": SplitMix64(42)}),
    "twin": Case("r.next()", {"r": SplitMix64Twin(42)}),
    "random.getrandbits": Case("random.getrandbits(64)", {"random": random}),
}


def run(benchmark: Any, timed: Case, repeats: int = PICKS) -> None:
    """Benchmark `repeats` of a statement, so that microseconds read as ns for 1,000 picks."""
    benchmark.extra_info.update(statement=timed.statement, units=repeats * timed.units)
    benchmark(timed.timer().timeit, repeats)
