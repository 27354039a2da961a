"""Ratios to the floor and to what people use today, against the bars. Run by ci/bench.

All that is compared is timed side by side in one process. In each round each case is
timed once, in random order, each in a loop of its own (timeit's: `for _ in repeat(None, k)`,
GC off); the time of an empty loop in the same round is taken off, for keys that of the loop
over the same keys; a ratio is formed in every round, and its median over the rounds is
judged. k is such that one timing takes 0.2 ms, so slow cases are called fewer times.

Against the floor, or itself with fewer instances, a ratio is a cost, rota / floor; against
anything else it is how many times as fast rota is, other / rota. Against nothing it is no
ratio but a time or a size, with its unit.

The worst of many calls is not found that way: each call is timed alone, and what else the
machine does in between would be the worst. So the same calls are made several times over,
each time by a picker that was made alike, and of each call the least time counts: call
number k does the same work every time, an interruption hits another one.
"""

import argparse
import gc
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from timeit import Timer

import numpy as np
from rich.console import Console
from rich.table import Table

import rota
from bench.cases import (
    AT_RANDOM,
    BALANCERS,
    CHANGE_SIZES,
    CLASSES,
    COLD_KEYS,
    HASHES,
    LOADED,
    NOTHING,
    NUMBERS,
    RING_SIZES,
    RINGS,
    SELECTOR_SIZES,
    SELECTORS,
    SIZES,
    WAYS_ALONE,
    WITH_TABLE,
    Case,
    balanced,
    bytes_per_instance,
    bytes_per_point,
    call_case,
    calls_alone,
    case,
    change_case,
    diffed,
    floor,
    floor_of_keys,
    floor_of_one,
    grid,
    list_case,
    made_at_rest,
    nothing_alone,
    rebalanced,
    ring_case,
    ring_grid,
    select_case,
    select_grid,
    servers,
    set_weight_alone,
    table_bytes,
    weights,
)

STEMS = (
    *CLASSES,
    "two_choices",
    "picker",
    "splitmix64",
    "murmur3",
    "hash_picker",
    *RINGS,
    "balancers",
    "selection",
)
SECONDS = 0.0002  # one timing
LONGEST_GROUP = 4.0  # seconds, after which there are no more rounds
LONGEST_RING_GROUP = 2.0
LONGEST_CHANGE_GROUP = 1.0
FEWEST_ROUNDS = 9
SLOW = 0.05  # seconds: what takes longer is not calibrated
SMALL = (10, 100, 1_000)
OUT = (10_000, 1_000_000)  # elements of the arrays to fill
UNITS = {"us": 1e3, "ms": 1e6}  # in ns
FEWER = "n = 10"  # what a change of a large ring is compared to
FEW = "n = 100"  # what a change that a picker or a balancer makes is compared to
CALLS = 1_000_000  # timed alone, of which the worst is looked for
REPEATS = 3  # of the same calls, of which the least counts
RESTS = 31  # times that a change after rest is timed

# At most: rota / floor.
PICK_BAR = {
    "round_robin": 1.5,
    "weighted_round_robin": 1.5,
    "fair_round_robin": 1.5,
    "interleaved_weighted_round_robin": 1.8,
    "weighted_random": 1.5,
}
CALL_BAR = {"peak_ewma": 8.0}  # acquire_index + done(index, rtt)
LARGE_PICK_BAR = 2.5  # n = 10,000
SET_WEIGHT_BAR = 10.0  # with the pick after it, n = 10,000
SET_WEIGHT_GROWTH_BAR = 4.0  # likewise, n = 1,000,000 / n = 100
BALANCER_BAR = 8.0
RING_PICK_BAR = {100: 3.0, 10_000: 6.0}  # pick(str), by instances of 160 points
CHANGE_GROWTH_BAR = 8.0  # an instance comes or goes: n = 10,000 / n = 10
# At least: other / rota.
TWIN_BAR = {
    "round_robin": (5.0, SMALL),
    "interleaved_weighted_round_robin": (8.0, SMALL),
    "weighted_round_robin": (40.0, (100,)),
    "fair_round_robin": (40.0, (100,)),
    "weighted_random": (15.0, SMALL),
    "least_request": (20.0, SMALL),
    "peak_ewma": (20.0, SMALL),
}
CALL_TWIN_BAR = 20.0  # acquire + done(rtt)
CHOICES_BAR = 60.0  # n = 100
NUMPY_CHOICE_BAR = 20.0
COPY_BAR = 0.25
COPIED = ("round_robin", "weighted_round_robin")  # of which a fill is a copy of a period
RING_BARS = {  # pick(str), by whom it is compared to and how many instances
    **{("twin", n): 8.0 for n in RING_SIZES},
    ("uhashring", 100): 25.0,
    ("uhashring ketama", 100): 25.0,
    ("rendezvous", 10): 200.0,
}
DROP_IN_BAR = 8.0  # n = 100
ADD_NODE_BAR = 1_000.0  # n = 1,000, uhashring
# At most.
WORST_BAR = 50.0  # us, a single pick or set_weight, n = 10,000
MEMORY_BAR = 64.0  # bytes an instance
POINT_BAR = 40.0  # bytes a point
CHANGE_BAR = 100.0  # us, an instance comes or goes, n = 10,000
BUILD_BAR = 250.0  # ms, n = 10,000
DIFF_BAR = 100.0  # ms, n = 100,000, equal copies
# One instance changes: n = 10,000 / n = 100.
REBALANCE_BAR = {
    "consist": 2.0,
    "weight_round_robin": 2.0,
    "interleaved_weighted_round_robin": 2.0,
    "weight_random": 2.0,
}
SELECT_TWIN_BAR = {"p2c": 20.0}  # select and done: twin / rota
SELECT_GROWTH_BAR = 1.5  # likewise: n = 10,000 / n = 10


@dataclass(frozen=True)
class Row:
    """One line of the table; times in ns, for one pick, element or instance.

    Without a `unit` the value is a ratio.
    """

    stem: str
    what: str
    n: int | None
    ns: float | None
    against: str
    against_ns: float | None
    value: float
    quartiles: tuple[float, float] | None
    bar: float | None
    at_most: bool
    rounds: int | None
    unit: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the bar holds; None where there is none."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar


@dataclass(frozen=True)
class Group:
    """Cases that are timed in the same rounds, and which of them are compared.

    Parameters
    ----------
    cases : dict of Case
    pairs : list of (what, rota's case, against, bar or None)
        Against a case, or, to judge the time itself, one of UNITS.
    seconds : float
        After which there are no more rounds.
    """

    stem: str
    n: int | None
    cases: dict[str, Case]
    pairs: list[tuple[str, str, str, float | None]]
    seconds: float = LONGEST_GROUP
    fewest_rounds: int = FEWEST_ROUNDS


def calibrated(timer: Timer) -> tuple[int, int]:
    """Return how many statements take one timing's time, and how many to run before it.

    What was timed just before has filled the caches with its own; a slow statement fills
    them again by itself.
    """
    k = 1
    if timer.timeit(1) > SLOW:
        return 1, 0
    while (seconds := min(timer.repeat(3, k))) < SECONDS / 4:
        k *= 2
    repeats = max(1, round(k * SECONDS / seconds))
    return repeats, max(1, repeats // 5)


def warm_time(timer: Timer, repeats: int, before: int) -> float:
    """Return the seconds of a statement, after some untimed ones."""
    timer.timeit(before)
    return timer.timeit(repeats) / repeats


def timed(group: Group, most_rounds: int) -> list[Row]:
    """Time a group and return its rows."""
    units = {name: timed_case.units for name, timed_case in group.cases.items()}
    empty = {name: timed_case.net_of or NOTHING for name, timed_case in group.cases.items()}
    timers: dict[str | int, Timer] = {
        name: timed_case.timer() for name, timed_case in group.cases.items()
    }
    timers |= {id(loop): loop.timer() for loop in empty.values()}
    repeats = {name: calibrated(timer) for name, timer in timers.items()}
    names = list(timers)
    order = random.Random(42)
    rounds: list[dict[str, float]] = []
    end = time.perf_counter() + group.seconds
    while len(rounds) < most_rounds:
        if len(rounds) >= group.fewest_rounds and time.perf_counter() > end:
            break
        order.shuffle(names)
        spent = {name: warm_time(timers[name], *repeats[name]) for name in names}
        rounds.append(
            {
                name: (spent[name] - spent[id(empty[name])]) / units[name] * 1e9
                for name in group.cases
            }
        )
    return [row(group, pair, rounds) for pair in group.pairs]


def row(
    group: Group, pair: tuple[str, str, str, float | None], rounds: list[dict[str, float]]
) -> Row:
    """Compare two cases of a group round by round."""
    what, name, against, bar = pair
    unit = against if against in UNITS else ""
    is_cost = bool(unit) or against in ("floor", FEWER, FEW)
    if unit:
        ratios = [net[name] / UNITS[unit] for net in rounds]
    else:
        upper, lower = (name, against) if is_cost else (against, name)
        ratios = [net[upper] / net[lower] for net in rounds]
    low, median, high = statistics.quantiles(ratios, n=4)
    return Row(
        stem=group.stem,
        what=what,
        n=group.n,
        ns=statistics.median(net[name] for net in rounds),
        against="" if unit else against,
        against_ns=None if unit else statistics.median(net[against] for net in rounds),
        value=median,
        quartiles=(low, high),
        bar=bar,
        at_most=is_cost,
        rounds=len(rounds),
        unit=unit,
    )


def pick_group(stem: str, n: int) -> Group:
    """One pick beside the floor, its twin and what people use today."""
    whom = [who for size, who in grid(stem, "pick") if size == n]
    cases = {who: case(stem, "pick", n, who) for who in whom}
    bars = {"floor": LARGE_PICK_BAR if n == 10_000 and stem in PICK_BAR else None}
    if n <= 1_000:
        bars["floor"] = PICK_BAR.get(stem)
    least, judged_sizes = TWIN_BAR.get(stem, (None, ()))
    if n in judged_sizes:
        bars["twin"] = least
    if n == 100 and stem == "weighted_random":
        bars["random.choices"] = CHOICES_BAR
    pairs = [("pick()", "kernel", who, bars.get(who)) for who in ("floor", *whom[1:])]
    return Group(stem, n, cases | {"floor": floor()}, pairs)


def ways_group(stem: str, n: int) -> Group:
    """Return the other ways to pick, beside the floor."""
    ways = {
        "next": "next(ctx, request)",
        "iter": "next(picker)",
        "attempts": "attempts().next()",
        "pick_many": "pick_many, a pick",
    }
    cases = {measure: case(stem, measure, n) for measure in ways}
    pairs = [(what, measure, "floor", None) for measure, what in ways.items()]
    return Group(stem, n, cases | {"floor": floor()}, pairs)


def worst_group(stem: str, n: int) -> Group:
    """One pick with the weights that cost most, beside the floor and its twin."""
    whom = [who for size, who in grid(stem, "pick_worst") if size == n]
    cases = {who: case(stem, "pick_worst", n, who) for who in whom}
    pairs = [("pick(), worst weights", "kernel", who, None) for who in ("floor", *whom[1:])]
    return Group(stem, n, cases | {"floor": floor()}, pairs)


def fill_group(stem: str, n: int, elements: int) -> Group:
    """One fill beside numpy's."""
    against = "numpy.choice" if stem in AT_RANDOM else "numpy.copyto"
    bar = {"weighted_random": NUMPY_CHOICE_BAR} | dict.fromkeys(COPIED, COPY_BAR)
    cases = {who: case(stem, "fill", n, who, elements=elements) for who in ("kernel", against)}
    return Group(stem, n, cases, [(f"fill of {elements:,}", "kernel", against, bar.get(stem))])


def build_group(stem: str, n: int) -> Group:
    """The build, an instance, beside the twin's; beside the sums of random.choices without one."""
    against = "random.choices" if stem in AT_RANDOM and n > 10_000 else "twin"
    cases = {who: case(stem, "build", n, who) for who in ("kernel", against)}
    return Group(stem, n, cases, [("build, an instance", "kernel", against, None)])


def call_groups(stem: str, n: int) -> Iterator[Group]:
    """Yield what a call costs that is begun and ended: beside the floor, and beside its twin.

    Apart, for the twin in the same rounds would leave the caches to nobody else.
    """
    ways = {"acquire_done": "acquire + done(rtt)", "index_done": "acquire_index + done(index, rtt)"}
    cases = {measure: call_case(stem, measure, n) for measure in ways}
    bars = {"acquire_done": None, "index_done": CALL_BAR.get(stem)}
    pairs = [(what, measure, "floor", bars[measure]) for measure, what in ways.items()]
    yield Group(stem, n, cases | {"floor": floor()}, pairs)
    cases = {who: call_case(stem, "acquire_done", n, who) for who in ("kernel", "twin")}
    yield Group(stem, n, cases, [("acquire + done(rtt)", "kernel", "twin", CALL_TWIN_BAR)])


def two_choices_groups() -> Iterator[Group]:
    """Yield the other ways to begin and end a call, beside the floor."""
    n = 100
    ways = {
        "acquire_release": "acquire + release",
        "acquire_failed": "acquire + done(rtt, error)",
        "with": "with acquire()",
        "select": "select + done()",
        "among": "among(10 indices)",
    }
    for stem in LOADED:
        cases = {measure: call_case(stem, measure, n) for measure in ways}
        pairs = [
            (f"{what}, {CLASSES[stem]}", measure, "floor", None) for measure, what in ways.items()
        ]
        yield Group("two_choices", n, cases | {"floor": floor()}, pairs)


def change_groups(stem: str, sizes: Sequence[int]) -> Iterator[Group]:
    """Yield what changes in place cost, and the picks among them, at every size."""
    ways = {
        "change": "set_weight + pick()",
        "pick_at_rest": "pick() at rest",
        "pick_at_rest_again": "pick() at rest again",
        "pick_changed": "pick() after set_weight",
        "storm": "10 picks + set_weight, a pick",
        "remove_add": "remove + add",
    }
    few: dict[str, Case] = {}
    for n in CHANGE_SIZES:
        if n > sizes[-1]:
            continue
        cases = {measure: change_case(stem, measure, n) for measure in (*ways, "fill_changed")}
        few = few or cases
        bars = {"change": SET_WEIGHT_BAR} if n == 10_000 else {}
        pairs = [(what, measure, "floor", bars.get(measure)) for measure, what in ways.items()]
        pairs.append(("fill after set_weight", "fill_changed", "numpy.copyto", None))
        beside = {"floor": floor(), "numpy.copyto": case(stem, "fill", n, "numpy.copyto")}
        yield Group(stem, n, cases | beside, pairs, LONGEST_CHANGE_GROUP)
        if n == CHANGE_SIZES[-1]:
            for measure, bar in {"change": SET_WEIGHT_GROWTH_BAR, "pick_at_rest": None}.items():
                pair = {FEW: few[measure], "kernel": cases[measure]}
                pairs = [(ways[measure], "kernel", FEW, bar)]
                yield Group(stem, n, pair, pairs, LONGEST_CHANGE_GROUP)


def worst_rows(stem: str, n: int, count: int) -> Iterator[Row]:
    """Yield the worst of many picks, and of the changes among them; beside it that of no call.

    As many timings of nothing are made in between and treated alike; their median is the
    clock's own, and is taken off.
    """
    for way in WAYS_ALONE:
        runs, empty = [], []
        for _ in range(REPEATS):
            runs.append(calls_alone(stem, n, way, count))
            empty.append(nothing_alone(count))
        nothing = np.minimum.reduce(empty)
        clock = float(np.median(nothing))
        for call in runs[0]:
            least = np.minimum.reduce([run[call] for run in runs])
            shares = {"p99.99": 0.9999, "max": 1.0} if call == "pick()" else {"max": 1.0}
            for what, share in shares.items():
                is_judged = what == "max" and call in ("pick()", "set_weight")
                yield Row(
                    stem=stem,
                    what=f"{call} {way}, {what}",
                    n=n,
                    ns=float(np.median(least)) - clock,
                    against="no call",
                    against_ns=float(np.quantile(nothing[: len(least)], share)) - clock,
                    value=(float(np.quantile(least, share)) - clock) / UNITS["us"],
                    quartiles=None,
                    bar=WORST_BAR if is_judged else None,
                    at_most=True,
                    rounds=REPEATS,
                    unit="us",
                )


def first_change_row(stem: str, n: int) -> Row:
    """The first change after a period and a half at rest, of which a period table replays half."""
    spent = [set_weight_alone(made_at_rest(stem, n), n // 2, 101) for _ in range(RESTS)]
    clock = float(np.median(nothing_alone(CALLS // 10)))
    low, median, high = ((ns - clock) / UNITS["us"] for ns in statistics.quantiles(spent, n=4))
    return Row(
        stem=stem,
        what="first change after rest",
        n=n,
        ns=median * UNITS["us"],
        against="",
        against_ns=None,
        value=median,
        quartiles=(low, high),
        bar=None,
        at_most=True,
        rounds=RESTS,
        unit="us",
    )


def memory_row(stem: str, n: int) -> Row:
    """Bytes an instance, without the period table; of one that knows of loads, what that takes."""
    table = table_bytes(stem, weights(n))
    what = "B an instance" + (f", less {table:,}" if table else "")
    value = bytes_per_instance(stem, n) - table / n
    if stem in LOADED:
        what += ", less weighted random's"
        value -= bytes_per_instance("weighted_random", n)
    return Row(stem, what, n, None, "", None, value, None, MEMORY_BAR, True, None, "B")


def ring_pick_group(stem: str, n: int) -> Group:
    """One pick of a ring by key beside the floor, its twin and what people use today."""
    whom = [who for size, who in ring_grid(stem, "pick") if size == n]
    cases = {who: ring_case(stem, "pick", n, who) for who in whom}
    is_judged = stem == "ketama"
    pairs = [("pick(str)", "kernel", "floor", RING_PICK_BAR.get(n) if is_judged else None)]
    for who in whom[1:]:
        if not who.startswith("drop-in"):
            bar = RING_BARS.get((who, n)) if is_judged else None
            pairs.append(("pick(str)", "kernel", who, bar))
        else:
            bar = DROP_IN_BAR if n == 100 else None
            library = who.replace("drop-in", "uhashring")
            pairs.append((f"{who} get_node", who, library, bar))
    return Group(stem, n, cases | {"floor": floor_of_keys()}, pairs, LONGEST_RING_GROUP)


def ring_ways_group(stem: str, n: int) -> Group:
    """Return the other ways to look keys up, beside the floor."""
    ways = {"pick_many": "pick_many, a pick", "indices": "indices, a place"}
    cases = {measure: ring_case(stem, measure, n) for measure in ways}
    pairs = [(what, measure, "floor", None) for measure, what in ways.items()]
    return Group(stem, n, cases | {"floor": floor_of_keys()}, pairs, LONGEST_RING_GROUP)


def ring_cold_group(stem: str, n: int) -> Group:
    """Picks for so many keys that no near cache holds what they touch."""
    cases = {"kernel": ring_case(stem, "pick_cold", n), "floor": floor_of_keys(COLD_KEYS)}
    pairs = [(f"pick(str), {COLD_KEYS:,} keys", "kernel", "floor", None)]
    return Group(stem, n, cases, pairs, LONGEST_RING_GROUP)


def ring_change_groups(stem: str) -> Iterator[Group]:
    """Yield what instances that come, go or change cost, at every size."""
    cases: dict[int, dict[str, Case]] = {}
    for n in RING_SIZES:
        measures = ("add", "remove", "add_remove", "set_weight")
        cases[n] = {measure: ring_case(stem, measure, n) for measure in measures}
        bar = CHANGE_BAR if (stem, n) == ("ketama", 10_000) else None
        pairs = [
            ("add", "add", "us", bar),
            ("remove", "remove", "us", bar),
            ("add and remove", "add_remove", "us", None),
            ("set_weight, 1 to 2", "set_weight", "us", None),
        ]
        yield Group(stem, n, cases[n], pairs, LONGEST_RING_GROUP / 2)
    few, many = RING_SIZES[0], RING_SIZES[-1]
    bar = CHANGE_GROWTH_BAR if stem == "ketama" else None
    for measure in ("add", "remove"):
        pair = {FEWER: cases[few][measure], "kernel": cases[many][measure]}
        yield Group(stem, many, pair, [(measure, "kernel", FEWER, bar)], LONGEST_RING_GROUP / 2)
    for who, n in (("twin", 100), ("uhashring", 1_000)):
        for measure in ("add", "remove"):
            if (n, who) not in ring_grid(stem, measure):
                continue
            is_judged = (stem, who, measure) == ("ketama", "uhashring", "add")
            pair = {"kernel": cases[n][measure], who: ring_case(stem, measure, n, who)}
            pairs = [(measure, "kernel", who, ADD_NODE_BAR if is_judged else None)]
            yield Group(stem, n, pair, pairs, LONGEST_RING_GROUP / 2)


def ring_build_groups(stem: str) -> Iterator[Group]:
    """Yield the build: as it is, and where they are fast enough beside twin and uhashring."""
    for n in RING_SIZES:
        bar = BUILD_BAR if (stem, n) == ("ketama", 10_000) else None
        whom = ["kernel"]
        if n == 100:
            whom = [who for size, who in ring_grid(stem, "build") if size == n]
        cases = {who: ring_case(stem, "build", n, who) for who in whom}
        pairs = [("build", "kernel", "ms", bar)]
        pairs += [("build", "kernel", who, None) for who in whom[1:]]
        yield Group(stem, n, cases, pairs, LONGEST_RING_GROUP)


def ring_groups(stem: str) -> Iterator[Group]:
    """Yield what is timed of a ring."""
    for n in RING_SIZES:
        yield ring_pick_group(stem, n)
    for n in RING_SIZES:
        yield ring_ways_group(stem, n)
    yield ring_cold_group(stem, RING_SIZES[-1])
    yield from ring_build_groups(stem)
    yield from ring_change_groups(stem)
    if stem == "ketama":
        for n in (100, 10_000):
            cases = {"kernel": ring_case(stem, "moved", n)}
            pairs = [("moved(before, after)", "kernel", "ms", None)]
            yield Group(stem, n, cases, pairs, LONGEST_RING_GROUP, 2)


def hash_picker_groups() -> Iterator[Group]:
    """Yield the ways to pick that rings share, and pickling; the picker is a ketama."""
    n = 100
    ways = {
        "pick_n": "pick_n(key, 3)",
        "attempts": "attempts(None, key).next()",
        "next": "next(ctx, key)",
        "next_get_key": "next(ctx, key), get_key",
        "acquire": "acquire(key), release",
    }
    for measure, what in ways.items():
        cases = {who: ring_case("ketama", measure, n, who) for who in ("kernel", "twin")}
        cases["floor"] = floor_of_keys()
        pairs = [(what, "kernel", who, None) for who in ("floor", "twin")]
        yield Group("hash_picker", n, cases, pairs, LONGEST_RING_GROUP)
    cases = {who: ring_case("ketama", "pickle", n, who) for who in ("kernel", "twin")}
    pairs = [("pickle, there and back", "kernel", who, None) for who in ("ms", "twin")]
    yield Group("hash_picker", n, cases, pairs, LONGEST_RING_GROUP)


def balancer_groups() -> Iterator[Group]:
    """Yield what following discovery costs."""
    n, ways = 100_000, {"copies": "equal copies", "same": "the same", "weights": "other weights"}
    ways["others"] = "other addresses"
    for how, what in ways.items():
        bar = DIFF_BAR if how == "copies" else None
        pairs = [(f"diff, {what}", "kernel", "ms", bar)]
        yield Group("balancers", n, {"kernel": diffed(n, how)}, pairs, LONGEST_RING_GROUP)
    for name in BALANCERS:
        few, many = rebalanced(name, 100), rebalanced(name, 10_000)
        yield Group(
            "balancers", 100, {"kernel": few}, [(f"rebalance, {name}", "kernel", "us", None)]
        )
        pairs = [(f"rebalance, {name}", "kernel", FEW, REBALANCE_BAR.get(name))]
        yield Group("balancers", 10_000, {"kernel": many, FEW: few}, pairs, LONGEST_RING_GROUP)


def select_groups() -> Iterator[Group]:
    """Yield what requests through selectors cost, at every size and in every way."""
    ways = {"select": "select + done", "filtered": "select + done, a filter"}
    for name in SELECTORS:
        for measure, what in ways.items():
            made: dict[int, Case] = {}
            for n in SELECTOR_SIZES:
                whom = [who for size, who in select_grid(name, measure) if size == n]
                cases = {who: select_case(name, measure, n, who) for who in whom}
                made[n] = cases["kernel"]
                bars = {"twin": SELECT_TWIN_BAR.get(name)}
                pairs = [
                    (f"{name}: {what}", "kernel", who, bars.get(who))
                    for who in ("floor", *whom[1:])
                ]
                yield Group("selection", n, cases | {"floor": floor()}, pairs)
            # By themselves, as all growth is: where a twin has been through the caches in between,
            # p2c at n = 10,000 costs up to twice what it does at 10.
            few, many = SELECTOR_SIZES[0], SELECTOR_SIZES[-1]
            pairs = [(f"{name}: {what}", "kernel", FEWER, SELECT_GROWTH_BAR)]
            yield Group("selection", many, {FEWER: made[few], "kernel": made[many]}, pairs)
    others = ("filter made", "two filters", "predicate", "retry", "acquire")
    for n in (SELECTOR_SIZES[0], 1_000):
        cases = {measure: select_case("p2c", measure, n) for measure in others}
        pairs = [(f"p2c: {measure}", measure, "floor", None) for measure in others]
        yield Group("selection", n, cases | {"floor": floor()}, pairs)


def point_row(stem: str, n: int) -> Row:
    """Bytes a point of a ring, or a slot of a table."""
    what, bar = {"ketama": ("memory, a point", POINT_BAR), "maglev": ("memory, a slot", None)}[stem]
    return Row(stem, what, n, None, "", None, bytes_per_point(stem, n), None, bar, True, None, "B")


def groups(stem: str, sizes: Sequence[int]) -> Iterator[Group]:
    """Yield what is timed of one stem."""
    if stem == "picker":
        cases = {"balanced": balanced(100), "floor": floor()}
        pair = ("get_picker + pick()", "balanced", "floor", BALANCER_BAR)
        yield Group(stem, 100, cases, [pair])
        for n in CHANGE_SIZES[1:]:
            if n <= sizes[-1]:
                pair = {FEW: list_case(CHANGE_SIZES[0]), "kernel": list_case(n)}
                pairs = [("look-up in a list, at random", "kernel", FEW, None)]
                yield Group(stem, n, pair, pairs, LONGEST_CHANGE_GROUP)
        return
    if stem == "splitmix64":
        pairs = [("next()", "kernel", who, None) for who in NUMBERS if who != "kernel"]
        yield Group(stem, None, NUMBERS, pairs)
        return
    if stem == "murmur3":
        for kind, cases in HASHES.items():
            pairs = [
                (f"key_hash({kind})", "kernel", who, None)
                for who in ("floor", *cases)
                if who != "kernel"
            ]
            yield Group(stem, None, cases | {"floor": floor_of_one()}, pairs)
        return
    if stem == "balancers":
        yield from balancer_groups()
        return
    if stem == "hash_picker":
        yield from hash_picker_groups()
        return
    if stem == "two_choices":
        yield from two_choices_groups()
        return
    if stem in RINGS:
        yield from ring_groups(stem)
        return
    if stem == "selection":
        yield from select_groups()
        return
    for n in sizes:
        yield pick_group(stem, n)
    yield ways_group(stem, 100)
    if stem in LOADED:
        for n in (10, 100, 1_000, 10_000):
            yield from call_groups(stem, n)
    if stem in (*WITH_TABLE, "interleaved_weighted_round_robin"):
        for n in (100, 1_000, 10_000):
            yield worst_group(stem, n)
    for n in (100, 10_000) if stem in AT_RANDOM else SMALL:
        for elements in OUT:
            yield fill_group(stem, n, elements)
    for n in (100, 10_000, 1_000_000):
        if n in sizes:
            yield build_group(stem, n)
    yield from change_groups(stem, sizes)


def measured(
    stems: Sequence[str], sizes: Sequence[int], most_rounds: int, calls: int
) -> Iterator[Row]:
    """Yield every row of the table."""
    for stem in stems:
        for group in groups(stem, sizes):
            yield from timed(group, most_rounds)
        if stem in CLASSES:
            yield from worst_rows(stem, 10_000, calls)
            yield first_change_row(stem, 1_000)
            for n in sizes:
                if n >= 1_000:
                    yield memory_row(stem, n)
        if stem in RINGS:
            for n in (100, 10_000):
                yield point_row(stem, n)


def machine() -> dict[str, str]:
    """Return what the numbers depend on."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": platform.python_compiler(),
        "system": f"{platform.system()} {platform.machine()}",
        "numpy": np.__version__,
        "rota": f"{rota.__version__}, {rota.IMPLEMENTATION}",
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def digits(number: float | None) -> str:
    """Return three digits of a number, or all before the point."""
    if number is None:
        return ""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:#.3g}"


def table(rows: Sequence[Row], caption: str) -> Table:
    """Lay the rows out."""
    made = Table(title="rota: ratios and bars", caption=caption, caption_justify="left")
    made.add_column("", no_wrap=True)
    for header in ("n", "ns", "against", "its ns", "ratio", "quartiles", "bar", "holds", "rounds"):
        made.add_column(header, justify="right", no_wrap=True)
    for before, line in zip([None, *rows], rows, strict=False):
        if before is None or before.stem != line.stem:
            made.add_section()
            made.add_row(f"[bold]{line.stem.replace('_', ' ')}[/]")
        sign, unit = "<=" if line.at_most else ">=", f" {line.unit}".rstrip()
        made.add_row(
            f"  {line.what}",
            "" if line.n is None else f"{line.n:,}",
            digits(line.ns),
            line.against,
            digits(line.against_ns),
            digits(line.value) + unit,
            " - ".join(map(digits, line.quartiles)) if line.quartiles else "",
            "" if line.bar is None else f"{sign} {line.bar:g}{unit}",
            {None: "", True: "yes", False: "[bold red]no[/]"}[line.holds],
            "" if line.rounds is None else str(line.rounds),
        )
    return made


def main() -> None:
    """Measure, print the table, and write it as JSON where that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stems", nargs="+", choices=STEMS, default=STEMS, metavar="STEM")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, n up to 10,000")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
    arguments = parser.parse_args()
    if rota.IMPLEMENTATION != "compiled":
        sys.exit(f"rota must be compiled to be measured, got {rota.IMPLEMENTATION}")

    began = time.perf_counter()
    on = machine()  # with the load before we add to it
    most_rounds = 101 if arguments.quick else 301
    sizes = SIZES[:-1] if arguments.quick else SIZES
    calls = CALLS // 10 if arguments.quick else CALLS
    floor()
    servers(sizes[-1])
    gc.disable()
    rows = []
    with Console(stderr=True).status("") as status:
        for measured_row in measured(arguments.stems, sizes, most_rounds, calls):
            rows.append(measured_row)
            status.update(f"{measured_row.stem}: {measured_row.what}")

    judged = [line for line in rows if line.bar is not None]
    n_hold = sum(line.holds is True for line in judged)
    method = (
        "Medians over the rounds; ns net of the empty loop (over the same keys, where there are "
        "keys), for one pick, element or instance. Against the floor, or itself with fewer: "
        "rota / floor. Against others: other / rota. Against nothing: no ratio but a time or "
        "size, with its unit. "
        f"All side by side in one process, GC off, up to {most_rounds} rounds and "
        f"{LONGEST_GROUP:g} s a group (rings: {LONGEST_RING_GROUP:g} s), {SECONDS * 1e3:g} ms a "
        "timing. Warmed up: whole periods walked, tables filled, a fifth of each timing run before "
        "it. Pickers that change have had a change and a pick for each instance, up to 32,768; "
        "at rest again: then two periods more, up to 1,000,000 picks. Weights are random in 1 to "
        "100. Those that know of loads have as many calls in flight as instances, up to 10,000. "
        "10 picks to a change in a storm, or in a turnover (remove, 5 picks, add, 5 picks), "
        f"10,000 in a lull. The worst of {calls:,} calls: each timed alone, the least of {REPEATS} "
        "repeats of the same calls, net of the clock; ns is their median, and beside the worst is "
        "what the same gives for no call. Memory by tracemalloc, from a list, after a period; less "
        "the period table (at most 256 KiB), where there is one."
    )
    console = Console()
    console.width = max(console.width, 176)
    console.print(table(rows, method))
    console.print(", ".join(f"{key}: {value}" for key, value in on.items()), highlight=False)
    console.print(f"{time.perf_counter() - began:.0f} s", highlight=False)
    console.print(f"{n_hold} of {len(judged)} bars hold", highlight=False)
    if arguments.json:
        listed = [asdict(line) | {"holds": line.holds} for line in rows]
        report = {"machine": on, "method": method, "rows": listed}
        report |= {"n_bars": len(judged), "n_hold": n_hold}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
