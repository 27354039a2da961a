"""The cases of all benches: defined once, for pytest-benchmark and for the table of ratios.

A case is a statement as its users would write it, with the objects it names. Whose it is:

    kernel            rota, compiled
    twin              rota.reference, plain Python
    itertools.cycle   over the instances; with weights, over one period of the schedule
    random.choices    with cum_weights, summed up beforehand
    numpy.choice      numpy.random.Generator.choice with p, made beforehand
    numpy.copyto      a copy of as many int32, the least any fill can cost
    floor             the empty method of floor.pyx

and for keys

    mmh3.digest       mmh3_x64_128_utupledigest, of bytes
    mmh3.hash64       with its default arguments
    bisect            a sorted list of points (mmh3.hash64), 160 for each instance
    uhashring         its HashRing as it comes, or with hash_fn="ketama"
    drop-in           rota.compat.uhashring.HashRing, likewise
    rendezvous        pymemcache's RendezvousHash

which appear where they are installed.

All run on the same instances and weights, rota's pickers on the same seed. Compiled pickers
have walked whole periods before a case begins, so that tables are filled and first cycles are
over; a cycle has gone round once. Twins, and a weighted round robin (fair or smooth) too long
for a table, start as they are.
Rings pick for keys that change with every pick.

Pickers that know of loads are busy: there have been two calls for each instance, up to 20,000,
and every second one is still in flight; latencies differ as they do.

Pickers that change have had one change and one pick for each instance before a case begins:
what changes leave behind is there. Indices and weights come from lists made beforehand, so
long that no near cache holds what they touch, and of lengths that hardly ever give an index
the weight it has already.
"""

import gc
import hashlib
import itertools
import pickle
import random
import re
import time
import tracemalloc
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from math import gcd
from pathlib import Path
from tempfile import TemporaryDirectory
from timeit import Timer
from typing import Any

import mmh3
import numpy as np

from bench.extension import compiled, loaded
from rota import (
    ConsistentHashBalancer,
    ConsistentHashOptions,
    Instance,
    InterleavedWeightedRoundRobinBalancer,
    Result,
    WeightedRandomBalancer,
    WeightedRoundRobinBalancer,
    diff,
    moved,
)
from rota.kernels.murmur3 import key_hash
from rota.kernels.splitmix64 import SplitMix64
from rota.reference.murmur3 import key_hash as key_hash_twin
from rota.reference.splitmix64 import GAMMA, MASK, mix
from rota.reference.splitmix64 import SplitMix64 as SplitMix64Twin
from rota.selector import engine, metadata, version, where

CLASSES = {
    "round_robin": "RoundRobin",
    "weighted_round_robin": "WeightedRoundRobin",
    "fair_round_robin": "FairRoundRobin",
    "interleaved_weighted_round_robin": "InterleavedWeightedRoundRobin",
    "weighted_random": "WeightedRandom",
    "least_request": "LeastRequest",
    "peak_ewma": "PeakEwma",
}
LOADED = ("least_request", "peak_ewma")  # that know of loads
AT_RANDOM = ("weighted_random", *LOADED)
SIZES = (10, 100, 1_000, 10_000, 1_000_000)
PICKS = 1_000  # of one pick_many, and of one timing under pytest-benchmark
ELEMENTS = 10_000  # of one fill, unless a case says otherwise
LARGEST_TWIN = {  # instances of the largest twin that ends in reasonable time
    "weighted_round_robin": 1_000,  # O(n) a pick
    "fair_round_robin": 1_000,
    **dict.fromkeys(AT_RANDOM, 10_000),  # seconds to build
}
LONGEST_SCHEDULE = 10_000  # instances of the largest schedule (50 n picks) that is cycled
WITH_TABLE = ("weighted_round_robin", "fair_round_robin")  # that keep a period as it is walked
LONGEST_TABLE = 65_536  # picks of the longest period that these keep
SHORTEST_RUN = 64  # a shorter period is kept several times over
CHANGE_SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
CHANGES = 1_000  # of one statement, and of one timing under pytest-benchmark
INDICES, WEIGHTS = 32_768, 10_007  # of the lists that changes are taken from; no common divisor
STORM = 10  # picks to a change
LULL = 10_000
CALLS = 1_000  # of one statement, and of one timing under pytest-benchmark
MOST_BEGUN = 20_000
MEMBERS = 10  # of a picker among others
SEED = 42  # of all of rota's pickers

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
EACH_CHANGE = f"for i, w in itertools.islice(changes, {CHANGES}): "
CHANGE_STATEMENTS = {
    "pick_at_rest": "p.pick()",
    "pick_at_rest_again": "p.pick()",
    "change": EACH_CHANGE + "p.set_weight(i, w); p.pick()",
    "pick_changed": "p.pick()",
    "storm": f"for i, w in itertools.islice(changes, {CHANGES // STORM}): "
    + "p.set_weight(i, w); "
    + "; ".join(["p.pick()"] * STORM),
    # An index that was left is the next to be given out.
    "remove_add": EACH_CHANGE + "p.remove(i); p.add(servers[i], w)",
    "fill_changed": "p.fill(out)",
}
STATEMENTS |= {
    measure: dict.fromkeys(("kernel", "twin"), statement)
    for measure, statement in CHANGE_STATEMENTS.items()
}
CHANGE_UNDO = dict.fromkeys(
    ("pick_changed", "fill_changed"), "i, w = next(changes); p.set_weight(i, w)"
)
EACH_CALL = "for rtt in rtts: "
CALL_STATEMENTS = {
    "acquire_done": EACH_CALL + "p.acquire().done(rtt)",
    "index_done": EACH_CALL + "p.done(p.acquire_index(), rtt)",
    "acquire_failed": EACH_CALL + "p.acquire().done(rtt, error)",
    "acquire_release": EACH_CALL + "p.acquire().release()",
    "with": EACH_CALL + "\n with p.acquire(): pass",
    "select": EACH_CALL + "p.select()[1]()",
    "among": "p.among(members)",
}
STATEMENTS |= {
    measure: dict.fromkeys(("kernel", "twin"), statement)
    for measure, statement in CALL_STATEMENTS.items()
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
    undo : str
        What takes the statement back; not in the time.
    net_of : Case, or None
        Whose time is no part of this one's; None: an empty loop's.
    """

    statement: str
    names: dict[str, Any]
    units: int = 1
    undo: str = ""
    net_of: "Case | None" = None

    def timer(self) -> Timer:
        """Return a loop of its own code, in which CPython specialises the call for this case."""
        used = set(re.findall(r"\w+", f"{self.statement} {self.undo}")) & self.names.keys()
        setup = "; ".join(f"{name} = names[{name!r}]" for name in sorted(used))
        if not self.undo:
            return Timer(self.statement, setup, globals={"names": self.names})
        return UndoneTimer(self.statement, self.undo, {name: self.names[name] for name in used})


class UndoneTimer(Timer):
    """A loop that undoes each statement, outside of the time it returns."""

    def __init__(self, statement: str, undo: str, names: dict[str, Any]) -> None:
        super().__init__()
        scope: dict[str, Any] = {}
        exec(UNDONE_LOOP.format(names=", ".join(names), statement=statement, undo=undo), scope)
        self.inner = lambda repeats, clock: scope["loop"](repeats, clock, **names)


UNDONE_LOOP = """
def loop(_repeats, _clock, {names}):
    _spent = 0.0
    for _ in _repeats:
        _began = _clock()
        {statement}
        _spent += _clock() - _began
        {undo}
    return _spent
"""
NOTHING = Case("pass", {})
NOTHING_UNDONE = Case("pass", {}, undo="pass")


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


@cache
def objects(n: int) -> list[object]:
    """Return n distinct instances, as small as they can be."""
    return [object() for _ in range(n)]


@cache
def change_lists(n: int) -> tuple[list[int], list[int]]:
    """Return the indices and the weights that changes are made of."""
    numbers = random.Random(42)
    indices = [numbers.randrange(n) for _ in range(INDICES)]
    return indices, [numbers.randint(1, 100) for _ in range(WEIGHTS)]


def changes(n: int) -> Iterator[tuple[int, int]]:
    """Return random changes of n instances, (index, weight), without end."""
    indices, given = change_lists(n)
    return zip(itertools.cycle(indices), itertools.cycle(given), strict=False)


@cache
def change_loop(n: int, count: int = CHANGES) -> Case:
    """Return the loop over changes and nothing else."""
    named = {"changes": changes(n), "itertools": itertools}
    return Case(f"for i, w in itertools.islice(changes, {count}): pass", named, count)


def list_case(n: int) -> Case:
    """Return the look-up of an instance in a list, at the indices of changes.

    It is what a machine asks for one visit to a random instance.
    """
    named = {"changes": changes(n), "itertools": itertools, "servers": objects(n)}
    return Case(EACH_CHANGE + "servers[i]", named, CHANGES, net_of=change_loop(n))


def worst_weights(stem: str, n: int) -> list[int]:
    """Return the weights that cost a pick most.

    Weighted round robin, fair or smooth: all differ and the period is too long for a table,
    so every pick goes by n groups. Interleaved: one instance is so heavy that a pass is one pick.
    """
    if stem in WITH_TABLE:
        return list(range(LONGEST_TABLE, LONGEST_TABLE + n))
    return [1] * (n - 1) + [1_000_000]


def period(stem: str, given: Sequence[int]) -> int:
    """Return after how many picks the order of a round robin begins again."""
    return len(given) if stem == "round_robin" else int(sum(given)) // gcd(*given)


def table_bytes(stem: str, given: Sequence[int]) -> int:
    """Return the bytes of a period table, at most 256 KiB; 0 where there is none."""
    turns = period(stem, given)
    if stem not in WITH_TABLE or turns > LONGEST_TABLE:
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


def picker(stem: str, who: str, listed: Sequence[Any], given: Sequence[int]) -> Any:
    """Return a picker, always the same one, or what people keep in its place."""
    options = {"seed": SEED} if who in ("kernel", "twin") else {}
    return maker(stem, who)(listed, given, **options)


def walk(stem: str, who: str, made: Any, given: Sequence[int]) -> None:
    """Go through one whole period, after which the tables are filled; without one, nowhere."""
    picks = period(stem, given)
    if who == "itertools.cycle":
        deque(itertools.islice(made, picks + 1), 0)  # one more: now it lets go of its source
    elif who == "kernel" and stem in LOADED:
        made.fill(np.empty(min(picks, 1_000_000), np.int32))  # there is no period
    elif who == "kernel" and (stem not in WITH_TABLE or table_bytes(stem, given)):
        out = np.empty(min(picks, 1_000_000), np.int32)
        for _ in range(-(-picks // len(out))):
            made.fill(out)
        made.pick()  # one more: now a table is known to repeat


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
    if measure in CHANGE_STATEMENTS:
        return change_case(stem, measure, n, who)
    if measure in CALL_STATEMENTS:
        return call_case(stem, measure, n, who)
    given = worst_weights(stem, n) if measure in ("pick_worst", "all_attempts") else weights(n)
    make = maker(stem, who)
    names: dict[str, Any] = {"make": make, "servers": servers(n), "weights": given}
    if measure != "build":
        made = picker(stem, who, servers(n), given)
        walk(stem, who, made, given)
        names = {"p": made, "servers": servers(n), "ctx": object(), "request": object()}
        names["in_flight"] = in_flight(stem, who, made, n)
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


@cache
def latencies(count: int = CALLS) -> list[float]:
    """Return that many latencies, in seconds: lognormal about 10 ms."""
    numbers = random.Random(42)
    return [numbers.lognormvariate(-4.6, 0.5) for _ in range(count)]


@cache
def call_loop() -> Case:
    """Return the loop over the latencies and nothing else."""
    return Case(EACH_CALL + "pass", {"rtts": latencies()}, CALLS)


def in_flight(stem: str, who: str, made: Any, n: int) -> list[Any]:
    """Let a picker be busy, where it knows of that; return the calls in flight."""
    if stem not in LOADED or who not in ("kernel", "twin"):
        return []
    calls = [made.acquire() for _ in range(min(2 * n, MOST_BEGUN))]
    for call, rtt in zip(calls[::2], itertools.cycle(latencies()), strict=False):
        call.done(rtt)
    return calls[1::2]


def call_case(stem: str, measure: str, n: int, who: str = "kernel") -> Case:
    """Make a case of a picker that knows of loads, busy and ready to run.

    Parameters
    ----------
    stem, measure, who : str
        Of LOADED, keys of CALL_STATEMENTS and of STATEMENTS[measure].
    n : int
        Instances.
    """
    made, statement = picker(stem, who, servers(n), weights(n)), CALL_STATEMENTS[measure]
    walk(stem, who, made, weights(n))
    names = {"p": made, "in_flight": in_flight(stem, who, made, n), "rtts": latencies()}
    names |= {"error": ConnectionError(), "members": list(range(min(n, MEMBERS)))}
    if measure == "among":
        return Case(statement, names)
    return Case(statement, names, CALLS, net_of=call_loop())


def change_case(stem: str, measure: str, n: int, who: str = "kernel") -> Case:
    """Make a case of a picker that changes in place, ready to run.

    Parameters
    ----------
    stem, measure, who : str
        Keys of CLASSES, of CHANGE_STATEMENTS and of STATEMENTS[measure].
    n : int
        Instances.
    """
    made, coming = picker(stem, who, objects(n), weights(n)), changes(n)
    walk(stem, who, made, weights(n))
    calls = in_flight(stem, who, made, n)
    if measure != "pick_at_rest":
        for i, weight in itertools.islice(coming, min(n, INDICES)):
            made.set_weight(i, weight)
            made.pick()
    if measure == "pick_at_rest_again":  # two periods: in the first a table may be filled
        made.fill(np.empty(min(2 * period(stem, made.weights), 1_000_000), np.int32))
    statement, undo = CHANGE_STATEMENTS[measure], CHANGE_UNDO.get(measure, "")
    names = {"p": made, "servers": objects(n), "changes": coming, "itertools": itertools}
    names["in_flight"] = calls
    if measure == "fill_changed":
        names["out"] = np.zeros(ELEMENTS, np.int32)
    if statement.startswith("for"):
        loop = change_loop(n, CHANGES // STORM if measure == "storm" else CHANGES)
        return Case(statement, names, CHANGES, net_of=loop)
    units = ELEMENTS if measure == "fill_changed" else 1
    return Case(statement, names, units, undo, NOTHING_UNDONE if undo else None)


def made_at_rest(stem: str, n: int) -> Any:
    """Return a picker that has been at rest for half a period after a whole one.

    Always the same one: a pick, and a change, of a given number does the same work in each.
    """
    made = picker(stem, "kernel", objects(n), weights(n))
    walk(stem, "kernel", made, weights(n))
    made.fill(np.empty(period(stem, weights(n)) // 2, np.int32))
    return made


def set_weight_alone(p: Any, i: int, weight: int) -> int:
    """Return the ns of one change of weight."""
    began = time.perf_counter_ns()
    p.set_weight(i, weight)
    return time.perf_counter_ns() - began


class Watch:
    """The ns of each call of something, timed alone.

    There is room for all of them beforehand, so that nothing is timed while it is made.
    """

    def __init__(self, call: Callable[..., Any], most: int) -> None:
        self.call, self.spent, self.n = call, array("q", bytes(8 * most)), 0

    def one(self, *arguments: Any) -> None:
        """Time one call."""
        call, clock = self.call, time.perf_counter_ns
        began = clock()
        call(*arguments)
        self.spent[self.n] = clock() - began
        self.n += 1

    def several(self, count: int) -> None:
        """Time that many calls, which take no arguments."""
        call, clock, spent = self.call, time.perf_counter_ns, self.spent
        for k in range(self.n, self.n + count):
            began = clock()
            call()
            spent[k] = clock() - began
        self.n += count


WAYS_ALONE = ("at rest", "in a storm", "in a lull", "in a turnover")


def calls_alone(stem: str, n: int, way: str, count: int) -> dict[str, np.ndarray]:
    """Return the ns of each of `count` single picks, and of each change between them.

    `way`: "at rest"; "in a storm" or "in a lull" (STORM or LULL picks to a change of weight);
    "in a turnover" (STORM picks to an instance that goes, and comes again in the middle of them).
    """
    p, every = made_at_rest(stem, n), LULL if way == "in a lull" else STORM
    n_changes = 0 if way == "at rest" else count // every
    picks = Watch(p.pick, count)
    watches = {"pick()": picks}
    if way == "in a turnover":
        watches |= {"remove": Watch(p.remove, n_changes), "add": Watch(p.add, n_changes)}
        for i, w in itertools.islice(changes(n), n_changes):
            watches["remove"].one(i)
            picks.several(every // 2)
            watches["add"].one(objects(n)[i], w)
            picks.several(every - every // 2)
    elif n_changes:
        watches["set_weight"] = Watch(p.set_weight, n_changes)
        for i, w in itertools.islice(changes(n), n_changes):
            watches["set_weight"].one(i, w)
            picks.several(every)
    else:
        picks.several(count)
    return {call: np.array(watch.spent) for call, watch in watches.items()}


def nothing_alone(count: int) -> np.ndarray:
    """Return the ns of each of `count` timings of nothing."""
    clock, spent = time.perf_counter_ns, array("q", bytes(8 * count))
    for k in range(count):
        began = clock()
        spent[k] = clock() - began
    return np.array(spent)


def rivals(stem: str, measure: str) -> list[str]:
    """Return whom the kernel is measured beside: its twin and what people use today."""
    random_only = {"random.choices", "numpy.choice"}
    return [
        who
        for who in STATEMENTS[measure]
        if who in ("kernel", "twin") or (who in random_only) == (stem in AT_RANDOM)
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

    def walked() -> Any:
        made = make(listed, given)
        walk(stem, who, made, given)
        return made

    return bytes_held(walked) / n


def bytes_held(make: Callable[[], Any]) -> int:
    """Return the bytes that are left after `make()` while what it returns lives."""
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    made = make()
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del made
    return after - before


@cache
def floor_class() -> Any:
    """Compile floor.pyx as the kernels are compiled and return its class, once a session."""
    with TemporaryDirectory() as folder:
        return loaded(compiled(Path(__file__).with_name("floor.pyx"), Path(folder))).Floor


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
    balancer = WeightedRoundRobinBalancer(seed=SEED)
    walk("weighted_round_robin", "kernel", balancer.get_picker(result), weights(n))
    return Case("balancer.get_picker(result).pick()", {"balancer": balancer, "result": result})


def diffed(n: int, how: str) -> Case:
    """Return a comparison of two results of n instances.

    `how`: "copies" (equal ones, made anew, as a resolver makes them), "same" (the very
    objects), "weights" (all have changed) or "others" (no address in common).
    """
    before = [Instance(f"10.0.{i >> 8}.{i & 255}:80", 10, service="users") for i in range(n)]
    after = {
        "same": lambda: before,
        "copies": lambda: [Instance(str(i.address), 10, service="users") for i in before],
        "weights": lambda: [Instance(i.address, 5, service="users") for i in before],
        "others": lambda: [Instance("other." + i.address, 10) for i in before],
    }[how]()
    results = {"before": Result(True, "s", tuple(before)), "after": Result(True, "s", tuple(after))}
    return Case("diff('s', before, after)", results | {"diff": diff})


BALANCERS: dict[str, Callable[[], Any]] = {
    "consist": lambda: ConsistentHashBalancer(ConsistentHashOptions(own_key)),
    "weight_round_robin": WeightedRoundRobinBalancer,
    "interleaved_weighted_round_robin": InterleavedWeightedRoundRobinBalancer,
    "weight_random": WeightedRandomBalancer,
}


def rebalanced(name: str, n: int) -> Case:
    """Return a change of one of n instances, of its weight and back in turn."""
    lighter = [Instance(f"server-{i}:80", 1) for i in range(n)]
    heavier = [*lighter]
    heavier[n // 2] = Instance(lighter[n // 2].address, 2)
    one, other = Result(True, "s", tuple(lighter)), Result(True, "s", tuple(heavier))
    balancer = BALANCERS[name]()
    balancer.get_picker(one)
    there, back = diff("s", one, other), diff("s", other, one)
    balancer.rebalance(back)  # the first is compared as a whole
    changes = itertools.cycle([there, back])
    return Case("balancer.rebalance(next(changes))", {"balancer": balancer, "changes": changes})


NUMBERS = {
    "kernel": Case("r.next()", {"r": SplitMix64(42)}),
    "twin": Case("r.next()", {"r": SplitMix64Twin(42)}),
    "random.getrandbits": Case("random.getrandbits(64)", {"random": random}),
}


def queue_case(measure: str, n: int, who: str = "kernel") -> Case:
    """Return a case of one queue of n instances of one weight, by the door that tests use.

    `measure`: "pick_of" (one pick from a ring) or "withdraw_enter" (one member out of the middle
    and in again, out of order).
    """
    package = {"kernel": "kernels", "twin": "reference"}[who]
    queues = import_module(f"rota.{package}.weight_groups").Queues(n)
    for i in range(n):
        queues.enter(i, 1, 0 if measure == "pick_of" else i)
    if measure == "pick_of":
        return Case("p.pick_of(1, 1)", {"p": queues})
    return Case("p.enter(i, 1, p.withdraw(i))", {"p": queues, "i": n // 2})


# -- keys ---------------------------------------------------------------------------------

RINGS = {"ketama": "ConsistentHash", "maglev": "Maglev"}
RING_SIZES = (10, 100, 1_000, 10_000)
VIRTUAL_FACTOR = 160  # points of an instance
TABLE_SIZE = 65_537  # slots of Maglev
KEYS = 1_024
SLOW_KEYS = 64  # where a look-up takes as long as a hundred
COLD_KEYS = 262_144  # of which each is looked up in a line, or a slot, that is in no near cache
NEWCOMERS = 256  # instances that come and go
LARGEST_RIVAL = {  # instances of the largest that is made in a second or three
    "twin": 10_000,
    "bisect": 10_000,
    "uhashring": 1_000,
    "uhashring ketama": 100,
    "drop-in": 1_000,
    "drop-in ketama": 100,
    "rendezvous": 10,
}
MODULES = {
    "uhashring": "uhashring",
    "drop-in": "rota.compat.uhashring",
    "rendezvous": "pymemcache.client.rendezvous",
}

PICK_KEYS = "for key in keys: p.pick(key)"
GET_NODES = "for key in keys: p.get_node(key)"
RING_STATEMENTS = {
    "pick": {
        "kernel": PICK_KEYS,
        "twin": PICK_KEYS,
        "bisect": PICK_KEYS,
        "uhashring": GET_NODES,
        "uhashring ketama": GET_NODES,
        "drop-in": GET_NODES,
        "drop-in ketama": GET_NODES,
        "rendezvous": GET_NODES,
    },
    "pick_cold": {"kernel": PICK_KEYS, "bisect": PICK_KEYS},
    "pick_many": dict.fromkeys(("kernel", "twin"), "p.pick_many(keys)"),
    "indices": dict.fromkeys(("kernel", "twin"), "p.indices(hashes, out)"),
    "build": dict.fromkeys(
        ("kernel", "twin", "bisect", "uhashring", "uhashring ketama"), "make(servers)"
    ),
    "add": {
        "kernel": "i = p.add(next(newcomers))",
        "twin": "i = p.add(next(newcomers))",
        "uhashring": "i = next(newcomers); p.add_node(i)",
    },
    "remove": {
        "kernel": "i = next(order); p.remove(i)",
        "twin": "i = next(order); p.remove(i)",
        "uhashring": "i = next(order); p.remove_node(servers[i])",
    },
    "add_remove": dict.fromkeys(("kernel", "twin"), "p.remove(p.add(next(newcomers)))"),
    "set_weight": dict.fromkeys(("kernel", "twin"), "i = next(order); p.set_weight(i, 2)"),
    "moved": {"kernel": "moved(p, after)"},
    # What all hash pickers share.
    "pick_n": dict.fromkeys(("kernel", "twin"), "for key in keys: p.pick_n(key, 3)"),
    "attempts": dict.fromkeys(("kernel", "twin"), "for key in keys: p.attempts(None, key).next()"),
    "all_attempts": dict.fromkeys(("kernel", "twin"), "list(p.attempts(None, keys[0]))"),
    "next": dict.fromkeys(("kernel", "twin"), "for key in keys: p.next(ctx, key)"),
    "next_get_key": dict.fromkeys(("kernel", "twin"), "for key in keys: p.next(ctx, key)"),
    "acquire": dict.fromkeys(("kernel", "twin"), "for key in keys: p.acquire(key).release()"),
    "pickle": dict.fromkeys(("kernel", "twin"), "pickle.loads(pickle.dumps(p))"),
}
UNDO = {
    "add": {"kernel": "p.remove(i)", "twin": "p.remove(i)", "uhashring": "p.remove_node(i)"},
    # An index that has become free is the next to be given out.
    "remove": {
        "kernel": "p.add(servers[i])",
        "twin": "p.add(servers[i])",
        "uhashring": "p.add_node(servers[i])",
    },
    "set_weight": dict.fromkeys(("kernel", "twin"), "p.set_weight(i, 1)"),
}


def own_key(ctx: Any, request: Any) -> Any:
    """Return the key of a request: itself."""
    return request


OPTIONS = {"next_get_key": {"get_key": own_key}, "acquire": {"load_factor": 1.25}}


class BisectRing:
    """What one writes by hand. Its points are ConsistentHash's, and so are its picks."""

    def __init__(self, names: list[str]) -> None:
        points = sorted(
            (mmh3.hash64(f"{name}-{k}", signed=False)[0], name)
            for name in names
            for k in range(VIRTUAL_FACTOR)
        )
        self.places = [place for place, _ in points]
        self.owners = [name for _, name in points]

    def pick(self, key: str) -> str:
        """Return the owner of a key."""
        at = bisect_left(self.places, mmh3.hash64(key, signed=False)[0])
        return self.owners[at if at < len(self.places) else 0]


@cache
def names(n: int) -> list[str]:
    """Return the n instances of a ring, which are their own names."""
    return [f"server-{i}:80" for i in range(n)]


@cache
def keys(count: int = KEYS) -> list[str]:
    """Return that many of the keys with which the Go benches of Kitex's ring were run.

    Key i is "user:NNNNNN", 100000 + SplitMix64(7000 + i).next() % 900000.
    """
    return [f"user:{100_000 + mix((7_000 + i + GAMMA) & MASK) % 900_000}" for i in range(count)]


@cache
def key_loop(count: int = KEYS) -> Case:
    """Return the loop over the keys and nothing else."""
    return Case("for key in keys: pass", {"keys": keys(count)}, count)


def floor_of_keys(count: int = KEYS) -> Case:
    """Return the floor of a method with one argument, the keys one after another."""
    named = {"p": floor_class()(servers(1)[0]), "keys": keys(count)}
    return Case("for key in keys: p.one_argument(key)", named, count, net_of=key_loop(count))


def is_there(who: str) -> bool:
    """Return whether what `who` is made of can be imported."""
    try:
        import_module(MODULES.get(who.partition(" ")[0], "rota"))
    except ImportError:
        return False
    return True


def ring_maker(stem: str, who: str) -> Callable[..., Any]:
    """Return what makes a ring, or what people keep in its place, of a list of names."""
    if who in ("kernel", "twin"):
        package = {"kernel": "kernels", "twin": "reference"}[who]
        made = getattr(import_module(f"rota.{package}.{stem}"), RINGS[stem])
        if stem == "maglev":
            return partial(made, table_size=TABLE_SIZE)
        return partial(made, virtual_factor=VIRTUAL_FACTOR)
    if who == "bisect":
        return BisectRing
    library, _, mode = who.partition(" ")
    module = import_module(MODULES[library])
    if library == "rendezvous":
        return module.RendezvousHash
    return partial(module.HashRing, **({"hash_fn": mode} if mode else {}))


def ring_case(stem: str, measure: str, n: int, who: str = "kernel") -> Case:
    """Make a case of a ring, ready to run.

    Parameters
    ----------
    stem, measure, who : str
        Keys of RINGS and of RING_STATEMENTS.
    n : int
        Instances.
    """
    make, statement = ring_maker(stem, who), RING_STATEMENTS[measure][who]
    undo = UNDO.get(measure, {}).get(who, "")
    count = SLOW_KEYS if who == "rendezvous" else COLD_KEYS if measure == "pick_cold" else KEYS
    named: dict[str, Any] = {"make": make, "servers": names(n), "keys": keys(count)}
    named |= {"ctx": object(), "pickle": pickle, "moved": moved}
    if measure != "build":
        named["p"] = make(names(n).copy(), **OPTIONS.get(measure, {}))
    if measure in ("add", "remove", "add_remove", "set_weight"):
        order = random.Random(42).sample(range(n), n)
        newcomers = names(n + NEWCOMERS)[n:]
        named |= {"order": itertools.cycle(order), "newcomers": itertools.cycle(newcomers)}
    if measure == "indices":
        places = np.random.default_rng(42).integers(0, 2**64, ELEMENTS, np.uint64)
        named |= {"hashes": places, "out": np.empty(ELEMENTS, np.int32)}
    if measure == "moved":
        named["after"] = make(names(n + 1))
    if statement.startswith("for key"):
        return Case(statement, named, count, net_of=key_loop(count))
    units = {"pick_many": KEYS, "indices": ELEMENTS, "all_attempts": n}.get(measure, 1)
    return Case(statement, named, units, undo, NOTHING_UNDONE if undo else None)


def ring_grid(
    stem: str, measure: str, *, largest: int = RING_SIZES[-1], twin: int = LARGEST_RIVAL["twin"]
) -> list[tuple[int, str]]:
    """Return every (n, who) of a ring's measure that ends in reasonable time."""
    limits = LARGEST_RIVAL | {"kernel": largest, "twin": twin}
    return [
        (n, who)
        for n in RING_SIZES
        for who in RING_STATEMENTS[measure]
        if n <= min(largest, limits[who])
        and is_there(who)
        and not (stem == "maglev" and who.startswith("drop-in"))
    ]


def bytes_per_point(stem: str, n: int, who: str = "kernel") -> float:
    """Return the bytes that a point of a ring, or a slot of a table, costs.

    By tracemalloc: what is left after building from a list, the instances apart, over the
    number of points. What there is for each instance is included.
    """
    make, listed = ring_maker(stem, who), names(n)
    return bytes_held(lambda: make(listed)) / (
        n * VIRTUAL_FACTOR if stem == "ketama" else TABLE_SIZE
    )


def hash_cases(kind: str) -> dict[str, Case]:
    """Return the cases of one key's hash.

    `kind`: "str", "bytes", "int" (the former of 17 bytes), or "4 KiB".
    """
    text = "user:000000123456"
    key = {"str": text, "bytes": text.encode(), "int": 123_456_789_012, "4 KiB": bytes(4_096)}[kind]
    data = {"str": "key.encode()", "int": "key.to_bytes(8, 'little')"}.get(kind, "key")
    digest = mmh3.mmh3_x64_128_utupledigest
    return {
        "kernel": Case("key_hash(key)", {"key_hash": key_hash, "key": key}),
        "twin": Case("key_hash(key)", {"key_hash": key_hash_twin, "key": key}),
        "mmh3.digest": Case(f"digest({data}, 0)", {"digest": digest, "key": key}),
        "mmh3.hash64": Case(
            f"hash64({data if kind == 'int' else 'key'})", {"hash64": mmh3.hash64, "key": key}
        ),
    }


HASHES = {kind: hash_cases(kind) for kind in ("str", "bytes", "int", "4 KiB")}


def md5_cases(measure: str) -> dict[str, Case]:
    """Return the cases of one key among the places of MD5.

    `measure`: "key_word" (the hash) or "node" (the owner, of 16,000 places).
    """
    key, made = "user:123456", {}
    for who, package in (("kernel", "kernels"), ("twin", "reference")):
        module = import_module(f"rota.{package}.md5")
        if measure == "key_word":
            made[who] = Case("key_word(key)", {"key_word": module.key_word, "key": key})
            continue
        rng = np.random.default_rng(SEED)
        places = np.sort(rng.integers(0, 2**64, 16_000, np.uint64))
        found = module.Places(True)
        found.hold(places, rng.integers(0, 100, 16_000, np.int32), list(range(100)))
        made[who] = Case("p.node(key)", {"p": found, "key": key})
    if measure == "key_word":
        hashed = Case("md5(key.encode()).digest()[:4]", {"md5": hashlib.md5, "key": key})
        made["hashlib"] = hashed
    return made


def run(benchmark: Any, timed: Case, repeats: int = PICKS) -> None:
    """Benchmark `repeats` of a statement, so that microseconds read as ns for 1,000 picks.

    A statement that is undone is run once a round.
    """
    if timed.undo:
        scope = dict(timed.names)
        done, undone = (compile(text, "", "exec") for text in (timed.statement, timed.undo))
        exec(done, scope)
        benchmark.extra_info.update(statement=timed.statement, units=timed.units)
        benchmark.pedantic(exec, (done, scope), setup=lambda: exec(undone, scope), rounds=repeats)
        return
    benchmark.extra_info.update(statement=timed.statement, units=repeats * timed.units)
    benchmark(timed.timer().timeit, repeats)


# -- selectors ----------------------------------------------------------------------------

SELECTORS = {"p2c": "peak_ewma", "wrr": "weighted_round_robin", "random": "weighted_random"}
SELECTOR_SIZES = (10, 100, 1_000, 10_000)
SELECT_STATEMENTS = {
    "select": "node, done = p.select(); done()",
    "filtered": "node, done = p.select(filters=chain); done()",
    "filter made": "node, done = p.select(filters=(version('1'),)); done()",
    "two filters": "node, done = p.select(filters=chains); done()",
    "predicate": "node, done = p.select(filters=asked); done()",
    "retry": "node, done = p.select(exclude=tried); done()",
    "acquire": "with p.acquire() as node: pass",
}


def is_wanted(instance: Instance) -> bool:
    """Say what `version("1")` says."""
    return instance.version == "1"


def select_case(name: str, measure: str, n: int, who: str = "kernel") -> Case:
    """Return a request through a selector, from the selection to the report.

    Parameters
    ----------
    name, measure : str
        Keys of SELECTORS and of SELECT_STATEMENTS.
    n : int
        Instances, of which a filter lets every second one pass.
    who : str
        Whose picker it is; the selector is the kernel.
    """
    stem = SELECTORS[name]
    class_name = {"peak_ewma": "PeakEwma"} | CLASSES
    package = {"kernel": "kernels", "twin": "reference"}[who]
    chosen = getattr(import_module(f"rota.{package}.{stem}"), class_name[stem])
    selector = engine(chosen, seed=SEED).build()
    nodes = [
        Instance(f"server-{i}:80", weight, version=str(i % 2), tags={"zone": "a"})
        for i, weight in enumerate(weights(n))
    ]
    selector.apply(nodes)
    made = {
        "p": selector,
        "version": version,
        "chain": (version("1"),),
        "chains": (version("1"), metadata("zone", "a")),
        "asked": (where(is_wanted),),
        "tried": nodes[:1],
    }
    selected = Case(SELECT_STATEMENTS[measure], made)
    # A whole period, after which a table is filled; a filter has its own.
    n_turns = period(stem, weights(n)) if stem in WITH_TABLE and who == "kernel" else 0
    slow = 10 if measure in ("predicate", "retry") else LONGEST_TABLE
    selected.timer().timeit(min(n_turns, slow) + 1)
    return selected


def select_grid(name: str, measure: str) -> list[tuple[int, str]]:
    """Return every (n, who) of a measure that ends in reasonable time."""
    largest = LARGEST_TWIN.get(SELECTORS[name], SELECTOR_SIZES[-1])
    return [
        (n, who)
        for n in SELECTOR_SIZES
        for who in ("kernel", "twin")
        if who == "kernel" or n <= largest
    ]
