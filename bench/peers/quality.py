"""What picks are worth: the same questions to all peers, answered from the picks themselves."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rota
from bench import simulation
from bench.cases import keys
from bench.peers.measure import inputs, wanted
from bench.peers.processes import Peer, RefusedError

SCHEDULERS = (
    "round_robin",
    "weighted_round_robin",
    "interleaved_weighted_round_robin",
    "random",
    "weighted_random",
)
SIZES = (10, 100, 1_000)
MOST_PICKS = 200_000
KEYS = 50_000
POINTS = ("murmur3", "nginx", "libketama", "ring_hash")
LARGEST = {"pymemcache": 10}  # of these picks
REQUESTS = 100_000
SEED = 1
# Whose picks are those of another of rota's systems, or none.
SAME_PICKS = ("rota C", "rota batch", "rota fill", "rota reference", "empty method")
SAME_ORDER = {
    "round_robin": rota.RoundRobin,
    "weighted_round_robin": rota.WeightedRoundRobin,
    "interleaved_weighted_round_robin": rota.InterleavedWeightedRoundRobin,
}

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Schedule:
    """How evenly a scheduler shares out `picks` picks; a whole period, or MOST_PICKS.

    `deviation` is the most that any instance was ahead of or behind its exact share at any time,
    in picks; `run` the most picks in a row that went to one; `exact` whether each instance has
    exactly its share at the end. `order` says how the picks compare with rota's.
    """

    algorithm: str
    n: int
    system: str
    picks: int
    deviation: float
    run: int
    exact: bool
    order: str


@dataclass(frozen=True)
class Hash:
    """How evenly `KEYS` keys lie, and who moves when one instance comes.

    `most` and `deviation` are the keys of the instance that has most, and the standard
    deviation, over the mean. `moved` is the share of the keys that another instance has
    afterwards, over 1 / (n + 1), the least possible; `astray` the share of the keys that went
    from one old instance to another.
    """

    n: int
    system: str
    most: float
    deviation: float
    moved: float
    astray: float
    order: str


@dataclass(frozen=True)
class Load:
    """A load-aware policy on the bad day of bench/simulation.py; latencies in ms, shares of all."""

    system: str
    policy: str
    p50: float
    p99: float
    p99_9: float
    errors: float
    failing: float
    slow: float


def deviation(picks: Indices, weights: Sequence[int]) -> float:
    """Return max |picks of i so far - t * w_i / W| over all i and t, O(picks log picks)."""
    share = np.array(weights) / sum(weights)
    order = np.argsort(picks, kind="stable")
    owner, when = picks[order], order + 1
    counts = np.bincount(picks, minlength=len(weights))
    first = np.concatenate(([0], counts.cumsum()[:-1]))
    so_far = np.arange(len(picks)) - first[owner] + 1
    # An instance is furthest ahead at a pick of its own, furthest behind just before one, or
    # at the end.
    ahead = so_far - when * share[owner]
    behind = (when - 1) * share[owner] - (so_far - 1)
    last = np.abs(counts - len(picks) * share)
    return float(max(ahead.max(), behind.max(), last.max()))


def longest_run(picks: Indices) -> int:
    """Return the most picks in a row of one instance."""
    ends = np.flatnonzero(np.diff(picks, append=-2))
    return int(np.diff(ends, prepend=-1).max())


def order_of(algorithm: str, weights: Sequence[int], picks: Indices) -> str:
    """Return how a period of picks compares with rota's, from whatever instance it begins at."""
    make = SAME_ORDER.get(algorithm)
    if make is None:
        return "random"
    n, ours = len(weights), np.empty(len(picks), np.int32)
    for start in range(n):
        make(range(n), weights, start=start).fill(ours)
        for shift in (0, 1):  # Kitex serves the last of a cycle first, or the second
            if (np.roll(ours, -shift) == picks).all():
                turned = f", list turned by {start}" if start else ""
                return "rota's" + turned + (f", cycle by {shift}" if shift else "")
    return "its own"


def owners_of(names: Sequence[str], owners: Indices) -> str:
    """Return which of rota's rings, by `points`, has these owners of `keys(KEYS)`."""
    for points in POINTS:
        ring = rota.ConsistentHash(names, points=points)
        if all(ring.pick_index(key) == i for key, i in zip(keys(KEYS), owners, strict=True)):
            return f"rota's, points = {points}"
    return "its own"


def answers(
    algorithm: str, n: int, commands: dict[str, list[str]], given: dict[str, Any]
) -> Iterator[tuple[str, Peer]]:
    """Yield the systems that have an algorithm, each made, one after another."""
    for peer, system in wanted(algorithm, n, list(commands)):
        if system in SAME_PICKS or n > LARGEST.get(system, n):
            continue
        with Peer(commands[peer]) as asked:
            try:
                asked.ask("make", system=system, algorithm=algorithm, **given)
                yield system, asked
            except RefusedError:
                continue


def schedules(commands: dict[str, list[str]]) -> Iterator[Schedule]:
    """Yield what all schedulers do."""
    for algorithm in SCHEDULERS:
        for n in SIZES:
            given = inputs(algorithm, n)
            weights = given["weights"]
            period = sum(weights) // gcd(*weights)
            is_random = algorithm not in SAME_ORDER
            count = MOST_PICKS if is_random else min(period, MOST_PICKS)
            for system, peer in answers(algorithm, n, commands, given):
                picks = np.array(peer.ask("picks", count=count)["picks"], np.int64)
                had = np.bincount(picks, minlength=n)
                yield Schedule(
                    algorithm, n, system, count, deviation(picks, weights), longest_run(picks),
                    bool((had * sum(weights) == count * np.array(weights)).all()),
                    order_of(algorithm, weights, picks),
                )  # fmt: skip


def hashes(commands: dict[str, list[str]]) -> Iterator[Hash]:
    """Yield what all rings do."""
    for n in SIZES:
        given = inputs("consistent_hash", n) | {"keys": keys(KEYS)}
        names = [f"10.{i >> 16 & 255}.{i >> 8 & 255}.{i & 255}:8888" for i in range(n)]
        for system, peer in answers("consistent_hash", n, commands, given):
            moved = peer.ask("moved")
            before, after = np.array(moved["before"]), np.array(moved["added"])
            counts = np.bincount(before, minlength=n)
            yield Hash(
                n, system, float(counts.max() / counts.mean()),
                float(counts.std() / counts.mean()),
                float((before != after).mean() * (n + 1)),
                float(((before != after) & (after != n)).mean()),
                owners_of(names, before),
            )  # fmt: skip


def loads(commands: dict[str, list[str]]) -> Iterator[Load]:
    """Yield what becomes of a bad day, with one client."""
    scenario = simulation.bad_day(REQUESTS, 1)
    for name, policy in simulation.POLICIES.items():
        outcome = simulation.run(scenario, policy, SEED)
        yield _load("rota", name, scenario, outcome)
    requests = simulation.drawn(scenario, SEED)
    n = len(scenario.backends)
    for system, peer in answers("p2c", n, commands, inputs("p2c", n)):
        try:
            said = peer.ask(
                "simulate",
                backends=[
                    {"mean": one.mean, "slots": one.slots, "failing": one.failing}
                    for one in scenario.backends
                ],
                gaps=requests.gap,
                work=requests.work,
                luck=requests.luck,
                refusal=simulation.REFUSAL,
            )
        except RefusedError:
            continue
        outcome = simulation.Outcome(
            np.cumsum(requests.gap), np.array(said["chosen"]), np.array(said["latency"]),
            np.array(said["failed"], bool),
        )  # fmt: skip
        yield _load(system, "p2c", scenario, outcome)


def _load(
    system: str, policy: str, scenario: simulation.Scenario, outcome: simulation.Outcome
) -> Load:
    found = simulation.summary(scenario, outcome)
    return Load(
        system, policy, found.p50, found.p99, found.p99_9, found.errors, found.failing, found.slow
    )
