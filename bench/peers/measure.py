"""Asks the peers in turn how long operations take, and forms ratios.

All systems of a group (an algorithm and a number of instances) run at the same time, each in a
process of its own and all on one processor, where one works while the others wait. An operation
is timed in rounds: in each round each system once, in random order, so often that one timing
takes SECONDS. What the empty loop takes, timed in the same round, is taken off. Against rota's
time of the same round a system's gives a ratio; the median of the ratios and their quartiles
are what is reported. Each timing waits for a quiet moment, and counts if it was one to its end
(quiet.py), or longer than such moments are.

Before the rounds everything is warm: whole periods of a schedule have been picked (or for
LONGEST_WARM_UP seconds: then it is said), and the operation has been done to find out how often
it fits into SECONDS.
"""

import itertools
import random
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from bench.cases import keys, weights
from bench.peers.processes import Peer, RefusedError
from bench.peers.quiet import Probe

SECONDS = 0.001  # one timing
LONGEST_OPERATION = 1.0  # seconds for all rounds of an operation
LONGEST_WAIT = 2.0  # for the fewest of them, where somebody disturbs
LONGEST_AGAIN = 6.0  # the same, of a pick, where there were not the fewest
LONGEST_PAUSE = 0.02  # for a quiet moment
LONGEST_MOMENT = 0.1  # that is quiet
MOST_ROUNDS = 31
FEWEST_ROUNDS = 5
LONGEST_WARM_UP = 40.0
SLOWEST_CALIBRATED = 0.05  # seconds: what takes longer is timed one at a time
LONGEST_BUILD = 3.0  # seconds: what takes longer to be made is not asked to change

SIZES = (10, 100, 1_000, 10_000, 100_000)
ALGORITHMS = (
    "round_robin",
    "weighted_round_robin",
    "interleaved_weighted_round_robin",
    "random",
    "weighted_random",
    "consistent_hash",
    "p2c",
)
OPERATIONS = ("pick", "call", "filtered", "batch", "build", "change", "change_1000", "refresh")
EVEN = ("round_robin", "random", "p2c")
KEYS = 1_024
DISTURBED = "disturbed"  # too few moments were quiet: all count
# Whose picks are others until a period has been gone through: they keep it, or meet its memory.
WITH_PERIOD = ("rota", "rota C", "rota selector", "rota batch", "rota fill", "kitex", "pingora")

# By peer, what systems it has of each algorithm.
SYSTEMS: dict[str, dict[str, Sequence[str]]] = {
    "python": {
        "round_robin": (
            *("rota", "rota C", "rota batch", "rota fill", "rota reference"),
            *("empty method", "itertools.cycle", "roundrobin"),
        ),
        "weighted_round_robin": (
            *("rota", "rota C", "rota selector", "rota batch", "rota fill", "rota reference"),
            *("empty method", "roundrobin"),
        ),
        "interleaved_weighted_round_robin": (
            *("rota", "rota C", "rota batch", "rota fill", "rota reference", "empty method"),
        ),
        "random": (
            *("rota", "rota C", "rota selector", "rota batch", "rota fill", "rota reference"),
            *("empty method", "random", "numpy"),
        ),
        "weighted_random": (
            *("rota", "rota C", "rota selector", "rota batch", "rota fill", "rota reference"),
            *("empty method", "random", "numpy"),
        ),
        "consistent_hash": (
            *("rota", "rota C", "rota batch", "rota reference"),
            *("empty method", "uhashring", "pymemcache"),
        ),
        "p2c": ("rota", "rota selector", "rota reference"),
    },
    "go": {
        "round_robin": ("kitex",),
        "weighted_round_robin": ("kitex", "kratos"),
        "interleaved_weighted_round_robin": ("kitex",),
        "random": ("kitex", "kratos"),
        "weighted_random": ("kitex", "kitex alias"),
        "consistent_hash": ("kitex",),
        "p2c": ("kratos",),
    },
    "rust": {
        "round_robin": ("pingora",),
        "weighted_round_robin": ("pingora",),
        "random": ("pingora",),
        "weighted_random": ("pingora",),
        "consistent_hash": ("pingora", "pingora ketama"),
    },
}
# The most instances with which these end in reasonable time.
LARGEST = {
    ("weighted_round_robin", "rota reference"): 1_000,
    ("weighted_round_robin", "roundrobin"): 10_000,
    ("weighted_round_robin", "kratos"): 10_000,
    ("random", "rota reference"): 1_000,
    ("weighted_random", "rota reference"): 1_000,
    ("consistent_hash", "rota reference"): 100,
    ("consistent_hash", "uhashring"): 1_000,
    ("consistent_hash", "pymemcache"): 1_000,
    ("p2c", "rota reference"): 1_000,
}


@dataclass(frozen=True)
class Row:
    """What one operation of one system takes.

    `ns` is of one operation (for `batch` of one pick), net of the loop, the median of `rounds`
    timings; `quartiles` of these. `ratio` is of this to rota's in the same rounds, with its
    quartiles, where rota has the operation. `bytes` of `memory` is all that is held.
    """

    algorithm: str
    n: int
    operation: str
    system: str
    ns: float | None = None
    quartiles: tuple[float, float] | None = None
    ratio: float | None = None
    ratio_quartiles: tuple[float, float] | None = None
    rounds: int = 0
    bytes: int | None = None
    note: str = ""


def inputs(algorithm: str, n: int) -> dict[str, Any]:
    """Return the weights and keys of a group; those of the benches of the originals."""
    if algorithm == "consistent_hash":
        return {"weights": [1] * n, "keys": keys(KEYS)}
    return {"weights": [1] * n if algorithm in EVEN else weights(n), "keys": []}


def wanted(algorithm: str, n: int, peers: Sequence[str]) -> list[tuple[str, str]]:
    """Return (peer, system) of all that take part in a group."""
    return [
        (peer, system)
        for peer in peers
        for system in SYSTEMS[peer].get(algorithm, ())
        if n <= LARGEST.get((algorithm, system), n)
    ]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the quartiles."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def rival_of(system: str, operation: str) -> str:
    """Return which of rota's systems another is compared with: the one of its shape."""
    if operation == "batch":
        return "rota batch"
    return "rota selector" if system == "kratos" or operation == "filtered" else "rota"


def against(row: Row, pairs: Sequence[tuple[float, float]]) -> Row:
    """Return the row with its ratio, of pairs (its time, rota's time in the same round)."""
    ratios = [theirs / own for theirs, own in pairs if own > 0]
    if not ratios:
        return row
    return replace(row, ratio=statistics.median(ratios), ratio_quartiles=spread(ratios))


def is_enough(rounds: Sequence[dict[str, float]], systems: Iterable[str]) -> bool:
    """Return whether there are times enough of every system."""
    return all(sum(system in one for one in rounds) >= FEWEST_ROUNDS for system in systems)


class Group:
    """The systems of one algorithm, with n instances each, as they run."""

    def __init__(
        self, algorithm: str, n: int, commands: dict[str, list[str]], probe: Probe
    ) -> None:
        self.algorithm, self.n, self.probe = algorithm, n, probe
        self.inputs = inputs(algorithm, n)
        self.order = random.Random(f"{algorithm} {n}")
        self.peers: dict[str, Peer] = {}
        self.notes: dict[str, str] = {}
        self.seconds_to_make: dict[str, float] = {}
        self._stack = ExitStack()
        for peer, system in wanted(algorithm, n, list(commands)):
            self._start(system, commands[peer])

    def _start(self, system: str, command: list[str]) -> None:
        peer = self._stack.enter_context(Peer(command))
        began = time.perf_counter()
        try:
            peer.ask("make", system=system, algorithm=self.algorithm, **self.inputs)
        except RefusedError as error:
            self.notes[system] = str(error)
            peer.close()
            return
        self.seconds_to_make[system] = time.perf_counter() - began
        self.peers[system] = peer
        self._warm(system)

    def _warm(self, system: str) -> None:
        """Go through a whole period, if that takes no longer than LONGEST_WARM_UP."""
        given = self.inputs["weights"]
        left = sum(given) // gcd(*given) + 1 if system in WITH_PERIOD else 0
        began = time.perf_counter()
        for operation in ("pick", "batch"):
            to_go, some = left, 1_000
            while to_go > 0:
                if time.perf_counter() - began > LONGEST_WARM_UP:
                    self.notes[system] = (
                        f"cold: {left - to_go:,} of the {left:,} picks of its first period "
                        f"took {LONGEST_WARM_UP:g} s, and the rounds go on from there"
                    )
                    return
                try:
                    self.peers[system].ask("time", operation=operation, count=some)
                except RefusedError:
                    break
                to_go -= some
                some = min(some * 2, 65_536 // 1_000 * 1_000)
            else:
                return

    def close(self) -> None:
        """End all peers."""
        self._stack.close()

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def timed(self, operation: str) -> Iterator[Row]:
        """Yield what an operation takes, of every system that has it."""
        counts: dict[str, int] = {}
        for system, peer in self.peers.items():
            is_warm = operation in ("pick", "call", "filtered", "batch")
            if not is_warm and self.seconds_to_make[system] > LONGEST_BUILD:
                continue
            try:
                counts[system] = self._calibrated(peer, operation)
            except RefusedError:
                continue
        if not counts:
            return
        rounds, is_quiet = self._rounds(operation, counts, LONGEST_WAIT)
        if not is_quiet and operation == "pick":
            rounds, is_quiet = self._rounds(operation, counts, LONGEST_AGAIN)
        disturbed = "" if is_quiet else DISTURBED
        for system in counts:
            values = [one[system] for one in rounds if system in one]
            row = Row(
                self.algorithm, self.n, operation, system, statistics.median(values),
                spread(values), rounds=len(values), note=self.notes.get(system, disturbed),
            )  # fmt: skip
            rival = rival_of(system, operation)
            pairs = [(one[system], one[rival]) for one in rounds if system in one and rival in one]
            yield against(row, pairs)

    def _rounds(
        self, operation: str, counts: dict[str, int], longest: float
    ) -> tuple[list[dict[str, float]], bool]:
        """Return the times by system, round by round, and whether all are of quiet moments."""
        quiet: list[dict[str, float]] = []
        disturbed: list[dict[str, float]] = []
        began = time.perf_counter()
        for k in itertools.count():
            spent = time.perf_counter() - began
            is_over = spent > longest
            if k >= MOST_ROUNDS or spent > LONGEST_OPERATION:
                is_over = is_over or is_enough(quiet, counts)
            if is_over and k >= FEWEST_ROUNDS:
                break
            found: tuple[dict[str, float], dict[str, float]] = ({}, {})
            for system in self.order.sample(list(counts), len(counts)):
                until = time.perf_counter() + LONGEST_PAUSE
                while not (is_quiet := self.probe.is_quiet()) and time.perf_counter() < until:
                    pass
                answer = self.peers[system].ask("time", operation=operation, count=counts[system])
                # What is longer than any quiet moment is disturbed evenly.
                is_long = answer["ns"] > LONGEST_MOMENT * 1e9
                is_quiet = is_long or (is_quiet and self.probe.is_quiet())
                ns = max(answer["ns"] - answer.get("empty_ns", 0), 0)
                found[not is_quiet][system] = ns / counts[system]
            quiet.append(found[0])
            disturbed.append(found[0] | found[1])
        if is_enough(quiet, counts):
            return quiet, True
        return disturbed, False

    def _calibrated(self, peer: Peer, operation: str) -> int:
        """Return how many operations take SECONDS; at least 1, for batches 1,000."""
        least = 1_000 if operation == "batch" else 1
        peer.ask("time", operation=operation, count=least)  # the first may make something
        count = least
        while True:
            spent = peer.ask("time", operation=operation, count=count)["ns"] / 1e9
            if spent >= SECONDS / 2 or (count == least and spent >= SLOWEST_CALIBRATED):
                break
            count *= 2 if spent > SECONDS / 10 else 10
        return max(round(count * SECONDS / spent / least) * least, least)

    def memory(self) -> Iterator[Row]:
        """Yield what every system holds."""
        for system, peer in self.peers.items():
            if system in ("rota C", "rota batch", "rota fill"):
                continue  # it is rota's
            try:
                held = peer.ask("memory")["bytes"]
            except RefusedError:
                continue
            yield Row(self.algorithm, self.n, "memory", system, bytes=held)


def measured(
    commands: dict[str, list[str]], algorithms: Sequence[str], sizes: Sequence[int]
) -> Iterator[Row]:
    """Yield every row."""
    with Probe(commands) as probe:
        for algorithm in algorithms:
            for n in sizes:
                with Group(algorithm, n, commands, probe) as group:
                    for system, note in group.notes.items():
                        if system not in group.peers:
                            yield Row(algorithm, n, "pick", system, note=note)
                    for operation in OPERATIONS:
                        yield from group.timed(operation)
                    yield from group.memory()
