"""What the pickers that see load make of a bad day. Run by python -m bench.simulation.

A discrete-event simulation, deterministic from a seed: nothing is measured here but what the
picks lead to. 20 backends have 4 workers each and one queue, first come, first served. 17
serve in 10 ms on average, two in 100 ms, one refuses every call at once. Service times are
exponential and so are the gaps between requests; the rate is 70 % of what the 19 that serve
can do together. Every client has a picker of its own, which learns from that client's calls
only. What happened before a quarter of the requests had come does not count.

All policies get the same requests at the same times with the same work in them, also the
omniscient one, which has no picker: it knows every queue and every speed, and joins where the
request is expected to end first. Round robin sends the slow two more than they can do, so
its queues, and its p99, grow for as long as the run lasts.

Two smaller runs with one picker follow: two equal backends called one at a time, which must
share although their latencies are noise; and five of which one gets ten times as slow and
well again, called by eight callers that each wait for the answer.

A bar that does not hold is said; it is no failure.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rota

MEAN = 0.010  # seconds to serve a request
SLOWER = 10.0
LOAD = 0.7
REFUSAL = 0.0001  # seconds until a caller knows that it was refused
WARM_UP = 0.25  # of the requests
CLIENTS = (1, 20)

OMNISCIENT_BAR = 2.0  # at most: p99 / the omniscient policy's
ROUND_ROBIN_BAR = 5.0  # at least: round robin's p99 / p99
FAILING_BAR = 0.02  # at most: share of the backend that refuses
SHARE_BAR = 0.05  # at most: distance from one half, of one of two equal backends
AWAY_BAR = 0.05  # at most: share of one of five, from a second after it got slow
BACK_BAR = 5.0  # at most: seconds until a backend that is well again has half its share

SHARE_SEEDS = 20
SHARE_CALLS = (1_000, 3_000)
SHARE_MEANS = (0.001, 0.010)
TURN_SEEDS = 5
TURN_RATES = (100, 500)
TURN_CALLERS = 8
SLOW_AT, WELL_AT, TURN_END = 20.0, 30.0, 50.0

Work = Callable[[np.random.Generator, int], NDArray[np.float64]]


def exponential(random: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Return n service times of mean 1."""
    return random.exponential(size=n)


def lognormal(sigma: float) -> Work:
    """Return what draws service times of mean 1 whose logarithm has this deviation."""
    return lambda random, n: random.lognormal(-sigma * sigma / 2, sigma, n)


def spiky(chance: float, height: float) -> Work:
    """Return what draws times near 1, of which a few are so many times as long."""
    return lambda random, n: np.where(
        random.random(n) < chance, height, random.uniform(0.8, 1.2, n)
    )


NOISES: dict[str, Work] = {
    "constant": lambda random, n: np.ones(n),
    "lognormal 0.2": lognormal(0.2),
    "lognormal 0.5": lognormal(0.5),
    "exponential": exponential,
    "lognormal 1.0": lognormal(1.0),
    "1 % ten times": spiky(0.01, 10.0),
    "0.3 % thirty times": spiky(0.003, 30.0),
}


@dataclass(frozen=True)
class Backend:
    """A server with some workers and one queue."""

    mean: float = MEAN
    slots: int = 4
    weight: int = 1
    failing: float = 0.0  # how many of its calls it refuses

    @property
    def capacity(self) -> float:
        """Requests per second that it can serve; none where it refuses them all."""
        return 0.0 if self.failing >= 1 else self.slots / self.mean


@dataclass(frozen=True)
class Scenario:
    """Who is called, by how many, and how often.

    Requests come on their own, at `load`; with `callers` they come from so many callers, each
    of which waits for its answer, then for `think` seconds on average.
    """

    backends: Sequence[Backend]
    requests: int
    clients: int = 1
    load: float = LOAD
    callers: int = 0
    think: float = 0.0
    work: Work = exponential
    changes: Sequence[tuple[float, int, float]] = ()  # (when, which backend, mean from then on)


@dataclass(frozen=True)
class Outcome:
    """What became of the requests, in the order in which they were sent."""

    sent: NDArray[np.float64]
    backend: NDArray[np.int64]
    latency: NDArray[np.float64]
    failed: NDArray[np.bool_]


class Cluster:
    """The backends as they are: what only the omniscient policy sees, and the time."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self.backends = backends
        self.mean = [backend.mean for backend in backends]
        self.n_inside = [0] * len(backends)  # waiting or being served
        # A request is served once the first worker is free, in the order of arrival, so
        # queues need not be kept: when each worker will be free says it all.
        self.free_at = [[0.0] * backend.slots for backend in backends]
        self.now = 0.0

    def clock(self) -> float:
        """Return the simulated time in seconds."""
        return self.now

    def serve(self, i: int, work: float) -> float:
        """Return when a request that comes to i now will have been served."""
        self.n_inside[i] += 1
        workers = self.free_at[i]
        end = max(workers[0], self.now) + self.mean[i] * work
        heapreplace(workers, end)
        return end

    def expected(self, i: int) -> float:
        """Return how long a request that comes to i now is expected to take."""
        backend, mean, n = self.backends[i], self.mean[i], self.n_inside[i]
        return mean + max(n - backend.slots + 1, 0) * mean / backend.slots


class Omniscient:
    """Joins the backend that is expected to answer first, never one that refuses all."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.able = [i for i, backend in enumerate(cluster.backends) if backend.failing < 1]

    def pick_index(self) -> int:
        """Return the index of the best backend of all, O(n)."""
        return min(self.able, key=self.cluster.expected)


Policy = Callable[[Cluster, int], Any]  # (cluster, seed) to a picker


def parts(cluster: Cluster) -> tuple[range, list[int]]:
    """Return the instances and weights of a picker."""
    return range(len(cluster.backends)), [backend.weight for backend in cluster.backends]


def peak_ewma(cluster: Cluster, seed: int) -> Any:
    """Return a PeakEwma as it comes, on simulated time."""
    return rota.PeakEwma(*parts(cluster), seed=seed, clock=cluster.clock)


POLICIES: dict[str, Policy] = {
    "omniscient": lambda cluster, seed: Omniscient(cluster),
    "round robin": lambda cluster, seed: rota.RoundRobin(*parts(cluster), seed=seed),
    "random": lambda cluster, seed: rota.WeightedRandom(*parts(cluster), seed=seed),
    "least request": lambda cluster, seed: rota.LeastRequest(*parts(cluster), seed=seed),
    "peak EWMA": peak_ewma,
}


@dataclass(frozen=True)
class Requests:
    """What comes, whoever balances it; a list each, one number a request.

    Seconds after the one before, which client sends it, the work in it (the mean is 1), and the
    luck: where that is below a backend's `failing`, it is refused.
    """

    gap: list[float]
    client: list[int]
    work: list[float]
    luck: list[float]


def drawn(scenario: Scenario, seed: int) -> Requests:
    """Return the requests of a scenario."""
    n = scenario.requests
    random = np.random.default_rng(seed)
    rate = scenario.load * sum(backend.capacity for backend in scenario.backends)
    mean_gap = scenario.think if scenario.callers else 1 / rate
    return Requests(
        random.exponential(mean_gap, n).tolist(),
        random.integers(scenario.clients, size=n).tolist(),
        scenario.work(random, n).tolist(),
        random.random(n).tolist(),
    )


def run(scenario: Scenario, policy: Policy, seed: int) -> Outcome:
    """Send all requests, each where its client's picker says."""
    n, backends = scenario.requests, scenario.backends
    requests = drawn(scenario, seed)
    gap, client, work, luck = requests.gap, requests.client, requests.work, requests.luck

    cluster = Cluster(backends)
    pickers = [policy(cluster, seed * 1_000 + k) for k in range(scenario.clients)]
    learns = hasattr(pickers[0], "acquire")
    refused = ConnectionRefusedError("refused")
    changes = list(scenario.changes)[::-1]

    leases: list[Any] = [None] * n
    sent, latency = [0.0] * n, [0.0] * n
    chosen, failed = [-1] * n, [False] * n
    n_planned = scenario.callers or 1
    # Of equal times the event that was planned first comes first, as by `order`.
    order = count()
    events = [(gap[k], next(order), k, False) for k in range(n_planned)]
    heapify(events)
    while events:
        now, _, k, is_answer = heappop(events)
        while changes and changes[-1][0] <= now:
            _, i, mean = changes.pop()
            cluster.mean[i] = mean
        cluster.now = now
        if is_answer:
            i = chosen[k]
            latency[k] = now - sent[k]
            if not failed[k]:
                cluster.n_inside[i] -= 1
            if learns:
                leases[k].done(latency[k], refused if failed[k] else None)
                leases[k] = None
        else:
            sent[k] = now
            picker = pickers[client[k]]
            if learns:
                leases[k] = picker.acquire()
                chosen[k] = i = leases[k].index
            else:
                chosen[k] = i = picker.pick_index()
            failed[k] = luck[k] < backends[i].failing
            end = now + REFUSAL if failed[k] else cluster.serve(i, work[k])
            heappush(events, (end, next(order), k, True))
        # The next request: after the one before, or after the answer to it.
        if n_planned < n and is_answer == (scenario.callers > 0):
            heappush(events, (now + gap[n_planned], next(order), n_planned, False))
            n_planned += 1
    return Outcome(np.array(sent), np.array(chosen), np.array(latency), np.array(failed))


@dataclass(frozen=True)
class Summary:
    """A row of the table: latencies of successful requests in ms, shares of all."""

    p50: float
    p99: float
    p99_9: float
    errors: float
    failing: float
    slow: float


def summary(scenario: Scenario, outcome: Outcome) -> Summary:
    """Return what counts of the outcome, after the warm-up."""
    counts = np.arange(scenario.requests) >= WARM_UP * scenario.requests
    latencies = outcome.latency[counts & ~outcome.failed] * 1e3
    chosen = np.bincount(outcome.backend[counts], minlength=len(scenario.backends))
    share = chosen / chosen.sum()
    fast = min(backend.mean for backend in scenario.backends)
    return Summary(
        *np.percentile(latencies, (50, 99, 99.9)).tolist(),
        errors=float(outcome.failed[counts].mean()),
        failing=float(sum(share[i] for i, b in enumerate(scenario.backends) if b.failing >= 1)),
        slow=float(sum(share[i] for i, b in enumerate(scenario.backends) if b.mean > fast)),
    )


def bad_day(requests: int, clients: int) -> Scenario:
    """Return the scenario of 20 backends of which two are slow and one refuses."""
    backends = [Backend(failing=1.0)] + [Backend(mean=SLOWER * MEAN)] * 2 + [Backend()] * 17
    return Scenario(backends, requests, clients)


def share_of_first(policy: Policy, work: Work, mean: float, calls: int, seed: int) -> float:
    """Return the share of one of two equal backends that are called one at a time."""
    pair = (Backend(mean=mean), Backend(mean=mean))
    scenario = Scenario(pair, calls, callers=1, work=work)
    return float((run(scenario, policy, seed).backend == 0).mean())


def turn(rate: int, seed: int) -> tuple[float, float]:
    """Return what one of five gets when it is slow, and when it is back after that.

    That is its share from a second after it got slow, and the seconds from when it was well
    until a second begins in which it has half of its fair share.
    """
    changes = ((SLOW_AT, 0, SLOWER * MEAN), (WELL_AT, 0, MEAN))
    think = TURN_CALLERS / rate - MEAN
    scenario = Scenario(
        [Backend()] * 5, int(rate * TURN_END), callers=TURN_CALLERS, think=think, changes=changes
    )
    outcome = run(scenario, peak_ewma, seed)

    def share(begin: float, end: float) -> float:
        return float((outcome.backend[(outcome.sent >= begin) & (outcome.sent < end)] == 0).mean())

    starts = np.arange(WELL_AT, outcome.sent.max() - 1.0, 0.1)
    back = next((t - WELL_AT for t in starts if share(t, t + 1.0) >= 0.1), np.inf)
    return share(SLOW_AT + 1.0, WELL_AT), float(back)


def print_bar(what: str, value: str, bar: str, holds: bool) -> None:
    """Print what was found beside what was promised."""
    print(f"  {what:<58}{value:>14}  {bar:<10}{'holds' if holds else 'does not hold'}")


def compare(requests: int, clients: int, seed: int) -> None:
    """Print all policies on the bad day, and the bars of PeakEwma."""
    scenario = bad_day(requests, clients)
    row = {}
    print(f"\n{clients} client{'s' * (clients > 1)}, {requests:,} requests, latencies in ms")
    headers = ("p50", "p99", "p99.9", "errors", "failing", "slow")
    print("  " + f"{'':<16}" + "".join(f"{header:>12}" for header in headers))
    for name, policy in POLICIES.items():
        row[name] = line = summary(scenario, run(scenario, policy, seed))
        print(
            f"  {name:<16}{line.p50:>12,.1f}{line.p99:>12,.1f}{line.p99_9:>12,.1f}"
            f"{line.errors:>12.2%}{line.failing:>12.2%}{line.slow:>12.2%}"
        )
    ours = row["peak EWMA"]
    ratio = ours.p99 / row["omniscient"].p99
    times = row["round robin"].p99 / ours.p99
    is_near, is_far = ratio <= OMNISCIENT_BAR, times >= ROUND_ROBIN_BAR
    print_bar("p99 / omniscient", f"{ratio:.2f}", f"<= {OMNISCIENT_BAR:g}", is_near)
    print_bar("round robin / p99", f"{times:,.0f}", f">= {ROUND_ROBIN_BAR:g}", is_far)
    is_rare = ours.failing < FAILING_BAR
    print_bar("share of who refuses", f"{ours.failing:.3%}", f"< {FAILING_BAR:.0%}", is_rare)


def shares(policy: Policy, work: Work, seed: int) -> tuple[float, float]:
    """Return the larger share at its worst, and how many of the runs are within the bar."""
    distance = [
        abs(share_of_first(policy, work, mean, calls, seed + k) - 0.5)
        for mean in SHARE_MEANS
        for calls in SHARE_CALLS
        for k in range(SHARE_SEEDS)
    ]
    return 0.5 + max(distance), float(np.mean([d <= SHARE_BAR for d in distance]))


def main() -> None:
    """Simulate and print: a table for each number of clients, and the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS, metavar="N")
    arguments = parser.parse_args()

    for clients in arguments.clients:
        compare(arguments.requests, clients, arguments.seed)

    runs = SHARE_SEEDS * len(SHARE_MEANS) * len(SHARE_CALLS)
    print(f"\nTwo equal backends called one at a time: share of one, worst of {runs} runs")
    coin, within = shares(POLICIES["random"], exponential, arguments.seed)
    print(f"  {f'a coin ({within:.0%} of the runs within the bar)':<58}{coin:>14.1%}")
    for noise, work in NOISES.items():
        worst, within = shares(peak_ewma, work, arguments.seed)
        what = f"{noise} ({within:.0%} of the runs within the bar)"
        is_even = worst <= 0.5 + SHARE_BAR
        print_bar(what, f"{worst:.1%}", f"<= {0.5 + SHARE_BAR:.0%}", is_even)

    print(f"\nOne of five gets {SLOWER:g} times as slow for {WELL_AT - SLOW_AT:g} s, ", end="")
    print(f"{TURN_CALLERS} callers: worst of {TURN_SEEDS} runs")
    for rate in TURN_RATES:
        turns = [turn(rate, arguments.seed + k) for k in range(TURN_SEEDS)]
        away, back = (max(values) for values in zip(*turns, strict=True))
        what = f"{rate} requests/s: share from a second after"
        print_bar(what, f"{away:.1%}", f"<= {AWAY_BAR:.0%}", away <= AWAY_BAR)
        what = f"{rate} requests/s: seconds until it is back"
        print_bar(what, f"{back:.1f}", f"<= {BACK_BAR:g}", back <= BACK_BAR)


if __name__ == "__main__":
    main()
