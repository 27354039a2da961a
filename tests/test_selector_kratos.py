"""Kratos' nodes and balancers: as recorded, as its own tests say, and with its flaws."""

import asyncio
import errno
import heapq
import math
import random
import re
from collections import Counter
from dataclasses import FrozenInstanceError
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rota import Instance
from rota.fork import _reseed, unseeded
from rota.outcome import Outcome, outcome_of
from rota.pickers import SplitMix64
from rota.selector import (
    Balancer,
    BalancerBuilder,
    BuilderOf,
    Direct,
    DoneInfo,
    Ewma,
    KratosP2C,
    KratosRandom,
    KratosWRR,
    NoAvailableInstance,
    WeightedNode,
    initial_weight,
    kratos_failure,
    transport_failure,
)
from tests.threads import N_THREADS, run_threads

MS = 1_000_000
T0 = 1_700_000_000 * 10**9


class Clock:
    """A clock that is set by hand, in nanoseconds since its start."""

    def __init__(self, start=T0):
        self.start = start
        self.t = 0

    def __call__(self):
        return self.start + self.t


class StatusError(Exception):
    def __init__(self, code):
        super().__init__(code)
        self.code = code


def wrapping(inner):
    try:
        raise RuntimeError("call failed") from inner
    except RuntimeError as error:
        return error


# The kinds of errors in the recordings, with what Python has in their place.
ERRORS = {
    "none": lambda: None,
    "deadline": TimeoutError,
    "wrapped-deadline": lambda: wrapping(TimeoutError()),
    "canceled": asyncio.CancelledError,
    "wrapped-canceled": lambda: wrapping(asyncio.CancelledError()),
    "net-errclosed": lambda: OSError(errno.EBADF, "closed"),
    "net-timeout": lambda: TimeoutError(errno.ETIMEDOUT, "timed out"),
    "net-operror": ConnectionRefusedError,
    "wrapped-net": lambda: wrapping(ConnectionResetError()),
    "kratos-503": lambda: StatusError(503),
    "kratos-504": lambda: StatusError(504),
    "kratos-500": lambda: StatusError(500),
    "kratos-429": lambda: StatusError(429),
    "kratos-499": lambda: StatusError(499),
    "wrapped-503": lambda: wrapping(StatusError(503)),
    "plain": lambda: RuntimeError("plain"),
    "eof": EOFError,
}

HANDLERS = {"none": None, "any-error": lambda error: True, "never": lambda error: False}


def with_handler(handler):
    """Kratos' failures and those of its ErrHandler besides."""
    if handler is None:
        return kratos_failure
    return lambda error: kratos_failure(error) or handler(error)


def text_to_weight(text):
    """Read a weight as Go's ParseInt does: None for what is no int64 in decimal."""
    if text is None or not re.fullmatch("[+-]?[0-9]+", text):
        return None
    weight = int(text)
    return weight if -(2**63) <= weight < 2**63 else None


def nodes_of(*weights, builder=None):
    builder = builder or Direct()
    return [builder.build(Instance(f"127.0.0.{i}:80", w)) for i, w in enumerate(weights)]


def picks_of(balancer, nodes, n):
    """Indices of n picks, each of whose calls ends at once."""
    found = []
    for _ in range(n):
        node, done = balancer.pick(nodes)
        done(DoneInfo())
        found.append(nodes.index(node))
    return found


# -- recorded -------------------------------------------------------------------------------


def offset(time, clock):
    return None if time is None else time - clock.start


def test_recorded_ewma(vectors):
    recorded = vectors("kratos_ewma")
    assert int(recorded["t0_unix_nano"]) == T0
    n_steps, kinds = 0, set()
    # Neither the clock's start nor its sign matters.
    for start in (T0, 0, -(10**18)):
        for script in recorded["scripts"]:
            clock = Clock(start)
            is_failure = with_handler(HANDLERS[script["err_handler"]])
            builder, calls = Ewma(is_failure=is_failure, clock=clock), {}
            for step in script["steps"]:
                where = script["name"], script["err_handler"], step
                if step["op"] == "build":
                    node = builder.build(Instance("a:80", 10))
                elif step["op"] == "advance":
                    clock.t += step["ns"]
                elif step["op"] == "pick":
                    calls[step["id"]] = node.pick()
                else:
                    kinds.add(step["err"])
                    calls.pop(step["id"])(DoneInfo(ERRORS[step["err"]]()))
                assert clock.t == step["t"]
                assert node.fresh_weight() == step["uncached_weight"], where
                assert node.weight() == step["weight"], where
                for name, field in (
                    ("lag", "lag"),
                    ("success", "success"),
                    ("in_flight", "inflight"),
                    ("requests", "reqs"),
                    ("n_slots_used", "slots_used"),
                ):
                    assert getattr(node, name) == step[field], (where, name)
                for name in ("stamp", "last_pick"):
                    assert offset(getattr(node, name), clock) == step[name], (where, name)
                n_steps += 1
    assert n_steps == 3 * 789
    assert kinds == set(ERRORS)


def test_recorded_p2c(vectors):
    recorded = vectors("kratos_p2c")
    assert recorded["force_pick_ns"] == 3 * 10**9
    n_forced = 0
    for script in recorded["scripts"]:
        clock, draws, calls = Clock(), [], {}
        nodes = nodes_of(*[10] * script["nodes"], builder=Ewma(clock=clock))

        def draw(n, draws=draws):
            drawn = draws.pop(0)
            assert 0 <= drawn < n
            return drawn

        balancer = KratosP2C(draw=draw)
        for step in script["steps"]:
            clock.t = step["t"]
            if step["op"] == "done":
                node, done = calls.pop(step["id"])
                assert node is nodes[step["node"]]
                done(DoneInfo(ERRORS[step["err"]]()))
                state = (node.lag, node.success, node.in_flight)
                assert state == (step["lag"], step["success"], step["inflight"]), step
                continue
            if "draws" in step:
                draws += step["draws"]
                a, b = nodes[step["a"]], nodes[step["b"]]
                assert (a.weight(), b.weight()) == (step["weight_a"], step["weight_b"]), step
                preferred = b if b.weight() > a.weight() else a
                assert preferred is nodes[step["preferred"]]
                other = a if preferred is b else b
                elapsed = step["other_elapsed"]
                assert other.pick_elapsed() == (math.inf if elapsed is None else elapsed / 1e9)
                n_forced += step["forced"]
                assert (step["pick"] == nodes.index(other)) == step["forced"]
            calls[step["id"]] = node, _ = balancer.pick(nodes)
            assert node is nodes[step["pick"]], step
            assert draws == []
    assert n_forced == 9


def test_recorded_wrr_sequences(vectors):
    for case in vectors("kratos_wrr")["sequences"]:
        nodes = nodes_of(*case["weights"])
        assert picks_of(KratosWRR(), nodes, len(case["picks"])) == case["picks"], case["name"]


def select(balancer, nodes):
    try:
        return balancer.pick(nodes)[0].raw.address
    except NoAvailableInstance:
        return "ErrNoAvailable"


def test_recorded_wrr_scenarios(vectors):
    n_picks = 0
    for scenario in vectors("kratos_wrr")["scenarios"]:
        balancer, nodes = KratosWRR(), []
        for op in scenario["ops"]:
            if op["op"] == "apply":
                nodes = [
                    Direct().build(
                        Instance(
                            node["addr"], text_to_weight(node["weight"]), version=node["version"]
                        )
                    )
                    for node in op["nodes"]
                ]
                continue
            version = op["version"]
            candidates = [node for node in nodes if version in ("", node.raw.version)]
            found = [select(balancer, candidates) for _ in range(op["count"])]
            assert found == op["picks"], (scenario["name"], op)
            n_picks += len(found)
    assert n_picks == 95


# -- nodes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Direct, Ewma])
def test_when_a_node_was_picked(make):
    clock = Clock()
    node = make(clock=clock).build(Instance("a:80", 10))
    assert node.raw == Instance("a:80", 10)
    assert node.last_pick is None
    assert node.pick_elapsed() == math.inf
    done = node.pick()
    clock.t += 10 * MS
    done(DoneInfo())
    assert node.pick_elapsed() == 0.01
    node.pick()
    assert node.pick_elapsed() == 0.0


def test_direct_weights():
    for weight, expected in ((10, 10.0), (None, 100.0), (0, 0.0), (-2, -2.0)):
        instance = Instance("a:80", weight)
        node = Direct().build(instance)
        assert isinstance(node, WeightedNode)
        assert node.weight() == initial_weight(instance) == expected
        assert isinstance(node.weight(), float)
        node.pick()(DoneInfo(TimeoutError()))
        assert node.weight() == expected


def test_ewma_by_default():
    """With the machine's own clock: what does not depend on how fast it is."""
    node = Ewma().build(Instance("a:80", 10))
    assert isinstance(node, WeightedNode)
    assert node.weight() == 100.0
    done = node.pick()
    assert node.in_flight == 2
    assert 0 <= node.pick_elapsed() < math.inf
    done(DoneInfo())
    assert (node.in_flight, node.success, node.n_slots_used) == (1, 1000, 0)


def test_ewma_of_one_done_of_two():
    clock = Clock()
    node = Ewma(clock=clock).build(Instance("a:80", 10))
    assert node.weight() == 100.0
    done, _ = node.pick(), node.pick()
    clock.t += 15 * MS
    done(DoneInfo())
    assert 70 < node.weight() < 1200
    assert node.pick_elapsed() == 0.015


@pytest.mark.parametrize(
    ("is_failure", "errors"),
    [
        (transport_failure, [None, *[TimeoutError()] * 4]),
        (
            with_handler(lambda error: True),
            [None, asyncio.CancelledError(), OSError(), TimeoutError(), asyncio.CancelledError()],
        ),
    ],
)
def test_ewma_of_errors(is_failure, errors):
    clock = Clock()
    node = Ewma(is_failure=is_failure, clock=clock).build(Instance("a:80", 10))
    for error in errors:
        done = node.pick()
        clock.t += 20 * MS
        done(DoneInfo(error))
    assert 1000 < node.weight() < 2000


def test_ewma_calls_as_slow_as_the_average_are_not_slow():
    clock = Clock()
    node = Ewma(clock=clock).build(Instance("a:80"))
    done = node.pick()
    clock.t = 10 * MS
    done(DoneInfo())
    node.pick()
    clock.t = 20 * MS
    node.pick()
    node.pick()
    clock.t = 30 * MS
    assert node.lag == 10 * MS
    # One of three is slower, which is not more than half: the average stands.
    assert node.fresh_weight() == 1000 * 10_000 / (math.isqrt(15 * MS) * 4)
    node.pick()
    clock.t += 1
    # Three of four are, with a mean of 13 ms and a bit.
    assert node.fresh_weight() == 1000 * 10_000 / (math.isqrt(18_333_334) * 5)


def test_done_counts_once():
    clock = Clock()
    node = Ewma(clock=clock).build(Instance("a:80"))
    done, other = node.pick(), node.pick()
    clock.t += MS
    done(DoneInfo())
    clock.t += MS
    done(DoneInfo(TimeoutError()))
    assert (node.in_flight, node.n_slots_used, node.lag, node.success) == (2, 1, MS, 1000)
    assert node.stamp == T0 + MS
    other(DoneInfo())
    assert (node.in_flight, node.n_slots_used) == (1, 0)


def test_a_judgement_that_fails():
    """The call has ended nonetheless, and badly; the error is whose who asked for it."""

    def is_failure(error):
        raise KeyError(error)

    node = Ewma(is_failure=is_failure).build(Instance("a:80"))
    done = node.pick()
    with pytest.raises(KeyError):
        done(DoneInfo(ValueError()))
    assert (node.in_flight, node.n_slots_used, node.success) == (1, 0, 0)


def test_ewma_of_many_threads():
    node = Ewma().build(Instance("a:80"))
    n_calls = 2000

    def body():
        calls = []
        for k in range(n_calls):
            calls.append(node.pick())
            assert node.weight() > 0
            if k % 3 == 2:
                for done in calls:
                    done(DoneInfo())
                calls.clear()
        for done in calls:
            done(DoneInfo())

    run_threads(*[body] * N_THREADS)
    assert node.requests == N_THREADS * n_calls
    assert (node.in_flight, node.n_slots_used, node.success) == (1, 0, 1000)


class SlowNode:
    """Kratos' node as it reads, 200 slots and all; no call's `done` is called twice."""

    def __init__(self):
        self.slots = [None] * 200
        self.lag, self.success, self.in_flight, self.requests, self.stamp = 0, 1000, 1, 0, None
        self.remembered = None

    def begin(self, now):
        self.in_flight += 1
        self.requests += 1
        slot = self.requests % 200
        if self.slots[slot] is None:
            self.slots[slot] = now
            return slot, now
        return None, now

    def end(self, call, now, is_failed):
        slot, start = call
        if slot is not None:
            self.slots[slot] = None
        self.in_flight -= 1
        idle = 0 if self.stamp is None or now < self.stamp else now - self.stamp
        self.stamp = now
        w = 0.0 if self.lag == 0 else math.exp(-float(idle) / 6e8)
        sample, success = float(max(now - start, 0)), 0.0 if is_failed else 1000.0
        self.lag = math.floor(float(self.lag) * w + sample * (1.0 - w))
        self.success = math.floor(float(self.success) * w + success * (1.0 - w))

    def fresh_weight(self, now):
        lags = [now - start for start in self.slots if start is not None]
        total, n_slow = 0, 0
        for lag in lags:
            if lag > self.lag:
                total, n_slow = total + lag, n_slow + 1
        lag = self.lag
        if n_slow >= len(lags) // 2 + 1:
            lag = max(lag, total // n_slow)
        per_call = 100_000 if self.lag == 0 else math.floor(math.sqrt(float(lag + 5_000_000)))
        return float(self.success * 10_000) / float(per_call * self.in_flight)

    def weight(self, now):
        if self.remembered is None or now - self.remembered[1] > 5_000_000:
            self.remembered = (self.fresh_weight(now), now)
        return self.remembered[0]


STEPS = st.one_of(
    st.tuples(st.just("advance"), st.integers(-(10**7), 10**9)),
    st.tuples(st.just("advance"), st.sampled_from([1, 5_000_000, 5_000_001, 10**18])),
    st.tuples(st.just("pick"), st.integers(1, 230)),
    st.tuples(st.just("done"), st.integers(1, 230), st.randoms(use_true_random=False)),
    st.tuples(st.just("weight")),
)


@given(steps=st.lists(STEPS, max_size=30))
def test_ewma_is_the_slow_model(steps):
    clock = Clock(0)
    node = Ewma(is_failure=lambda error: True, clock=clock).build(Instance("a:80"))
    model, calls = SlowNode(), []
    for op, *arguments in steps:
        if op == "advance":
            clock.t += arguments[0]
        elif op == "pick":
            calls += [(node.pick(), model.begin(clock.t)) for _ in range(arguments[0])]
        elif op == "done":
            n_calls, chance = arguments
            for _ in range(min(n_calls, len(calls))):
                done, call = calls.pop(chance.randrange(len(calls)))
                is_failed = chance.random() < 0.3
                done(DoneInfo(ValueError() if is_failed else None))
                model.end(call, clock.t, is_failed)
        else:
            assert node.weight() == model.weight(clock.t)
        assert node.fresh_weight() == model.fresh_weight(clock.t)
        for name in ("lag", "success", "in_flight", "requests", "stamp"):
            assert getattr(node, name) == getattr(model, name), name
        assert node.n_slots_used == 200 - model.slots.count(None)


# -- which errors are failures --------------------------------------------------------------


def test_the_two_judgements_differ_in_wrapped_cancellations():
    differ = {
        kind
        for kind, make in ERRORS.items()
        if kind != "none" and kratos_failure(make()) != transport_failure(make())
    }
    assert differ == {"wrapped-canceled"}
    assert transport_failure(wrapping(asyncio.CancelledError()))


class Code:
    def __init__(self, name):
        self.name = name


def test_failures_by_rpc_status():
    for judgement in (kratos_failure, transport_failure):
        for name, expected in (
            ("UNAVAILABLE", True),
            ("DEADLINE_EXCEEDED", True),
            ("CANCELLED", False),
            ("INTERNAL", False),
            ("RESOURCE_EXHAUSTED", False),
            ("NOT_FOUND", False),
        ):
            error = Exception()
            error.code = lambda name=name: Code(name)
            assert judgement(error) is expected
            assert judgement(wrapping(error)) is expected


class AnswerError(OSError):
    """As urllib's HTTPError: an error of the network by its type, and an answer."""

    def __init__(self, code):
        super().__init__(code)
        self.code = code


def test_an_answer_is_no_error_of_the_network():
    for judgement in (kratos_failure, transport_failure):
        assert not judgement(AnswerError(404))
        assert not judgement(AnswerError(500))
        assert judgement(AnswerError(503))
        assert judgement(SystemExit(404))
        assert not judgement(ValueError())


def test_what_is_deeper_than_an_answer():
    error = StatusError(404)
    error.__cause__ = ConnectionResetError()
    assert kratos_failure(error)
    assert not transport_failure(error)
    # The first status counts, not any.
    error.__cause__ = StatusError(503)
    assert not kratos_failure(error)
    assert not transport_failure(error)


def test_a_judgement_of_ones_own():
    node = Ewma(is_failure=lambda error: outcome_of(error) is Outcome.FAILURE).build(
        Instance("a:80")
    )
    node.pick()(DoneInfo(StatusError(404)))
    assert node.success == 1000
    node = Ewma(is_failure=lambda error: outcome_of(error) is Outcome.FAILURE).build(
        Instance("a:80")
    )
    node.pick()(DoneInfo(StatusError(500)))
    assert node.success == 0


# -- balancers ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [KratosWRR, KratosP2C, KratosRandom])
def test_what_every_balancer_does(make):
    balancer = make()
    assert isinstance(balancer, Balancer)
    builder = BuilderOf(make)
    assert isinstance(builder, BalancerBuilder)
    assert isinstance(builder.build(), make)
    assert builder.build() is not builder.build()
    for nothing in ([], ()):
        with pytest.raises(NoAvailableInstance, match="no instance is available") as caught:
            balancer.pick(nothing)
        assert (caught.value.code, caught.value.reason) == (503, "no_available_node")
    clock = Clock()
    (node,) = nodes = nodes_of(10, builder=Direct(clock))
    clock.t = 5
    picked, done = balancer.pick(nodes)
    assert picked is node
    assert node.last_pick == T0 + 5
    done(DoneInfo())


def test_wrr_weights():
    assert Counter(picks_of(KratosWRR(), nodes_of(10, 20), 90)) == {0: 30, 1: 60}


class LiveNode:
    """A node of the user's own, whose weight is set by hand."""

    def __init__(self, address, weight):
        self.raw, self.live = Instance(address), weight

    def weight(self):
        return self.live

    def pick(self):
        return lambda info: None

    def pick_elapsed(self):
        return 0.0


def test_wrr_follows_live_weights():
    one, other = nodes = [LiveNode("a", 1.5), LiveNode("b", 0.5)]
    assert isinstance(one, WeightedNode)
    balancer = KratosWRR()
    assert picks_of(balancer, nodes, 4) == [0, 0, 1, 0]
    one.live, other.live = 0.0, 1.0
    assert picks_of(balancer, nodes, 3) == [1, 1, 1]


def test_wrr_forgets_who_has_left():
    a, b, c, d = nodes_of(1, 2, 3, 4)
    balancer = KratosWRR()
    assert picks_of(balancer, [a, b, c], 4) == [2, 1, 0, 2]  # current weights -2, 2 and 0
    assert picks_of(balancer, [b, d], 1) == [0]  # -2 and 4
    # a and c begin with 0; b and d go on with what they have. With -2, a would have come later.
    assert picks_of(balancer, [a, b, c, d], 5) == [3, 2, 3, 1, 0]


def test_wrr_keeps_who_stays_without_a_change():
    a, b, c = nodes_of(5, 1, 1)
    balancer, alone = KratosWRR(), KratosWRR()
    for _ in range(3):
        # Another order, and other nodes of the same addresses, are no change.
        expected = [picked for picked, _ in (alone.pick([a, b, c]) for _ in range(6))]
        found = [
            balancer.pick(nodes)[0].raw
            for nodes in [[a, b, c], nodes_of(5, 1, 1), [a, b, c]]
            for _ in range(2)
        ]
        assert found == [node.raw for node in expected]


def test_wrr_flaw_filters_starve_nodes():
    """Two filters in turn: each time the other's current weights are forgotten."""
    nodes, balancer = nodes_of(*[1] * 6), KratosWRR()
    counts = Counter()
    for _ in range(500):
        counts.update(balancer.pick(group)[0].raw.address for group in (nodes[:3], nodes[3:]))
    assert counts == {nodes[0].raw.address: 500, nodes[3].raw.address: 500}


def test_wrr_flaw_a_doubled_address_hides_who_left():
    a, b = nodes_of(1, 3)
    balancer = KratosWRR()
    assert balancer.pick([a, b])[0] is b  # a has 1, b -1
    balancer.pick([a, a])  # a has 1 + 1 + 1 - 2
    assert picks_of(balancer, [a, b], 2) == [0, 1]  # forgotten, b would have been first
    balancer = KratosWRR()
    balancer.pick([a, b])
    balancer.pick([a])
    assert picks_of(balancer, [a, b], 2) == [1, 0]


def test_wrr_of_many_threads():
    nodes, balancer = nodes_of(5, 1, 1), KratosWRR()
    counts = [Counter() for _ in range(N_THREADS)]

    def body(k):
        return lambda: counts[k].update(picks_of(balancer, nodes, 700))

    run_threads(*[body(k) for k in range(N_THREADS)])
    n = N_THREADS * 100
    assert sum(counts, Counter()) == {0: 5 * n, 1: n, 2: n}


def test_p2c_draws_two_that_differ():
    """Each ordered pair from one pair of draws."""
    nodes = nodes_of(*[1] * 5)
    pairs = set()
    for x in range(5):
        for y in range(4):
            bounds, draws = [], iter([x, y])

            def draw(n, bounds=bounds, draws=draws):
                bounds.append(n)
                return next(draws)

            asked = []
            spies = [Spy(node, asked) for node in nodes]
            KratosP2C(draw=draw).pick(spies)
            assert bounds == [5, 4]
            first, second = sorted(asked, key=lambda spy: spies.index(spy) != x)
            assert first is spies[x]
            pairs.add((spies.index(first), spies.index(second)))
    assert pairs == {(i, j) for i in range(5) for j in range(5) if i != j}


class Spy:
    """A node that tells when it is asked for its weight."""

    def __init__(self, node, asked):
        self.raw, self._asked = node.raw, asked

    def weight(self):
        self._asked.append(self)
        return 1.0

    def pick(self):
        return lambda info: None

    def pick_elapsed(self):
        return 0.0


def scripted(*draws):
    stream = iter(draws)
    return lambda n: next(stream)


def test_p2c_takes_the_greater_weight():
    heavy, light = nodes = [LiveNode("a", 2.0), LiveNode("b", 1.0)]
    assert KratosP2C(draw=scripted(0, 0)).pick(nodes)[0] is heavy
    assert KratosP2C(draw=scripted(1, 0)).pick(nodes)[0] is heavy
    light.live = 2.0  # of equals, the one drawn first
    assert KratosP2C(draw=scripted(0, 0)).pick(nodes)[0] is heavy
    assert KratosP2C(draw=scripted(1, 0)).pick(nodes)[0] is light


def test_p2c_takes_who_was_not_picked_for_three_seconds():
    nodes = [LiveNode("a", 2.0), LiveNode("b", 1.0)]
    for elapsed, expected in ((3.0, 0), (3.000000001, 1), (math.inf, 1)):
        nodes[1].pick_elapsed = lambda elapsed=elapsed: elapsed
        assert nodes.index(KratosP2C(draw=scripted(0, 0)).pick(nodes)[0]) == expected


def test_p2c_forces_one_pick_at_a_time():
    """A pick during a forced one is none; afterwards they are again, also after an error."""
    nodes = [LiveNode("a", 2.0), LiveNode("b", 1.0)]
    balancer = KratosP2C(draw=lambda n: 0)
    within = []

    def pick():
        within.append(balancer.pick(nodes)[0])
        return lambda info: None

    def fail():
        raise MemoryError

    nodes[1].pick_elapsed = lambda: math.inf
    nodes[1].pick = pick
    assert balancer.pick(nodes)[0] is nodes[1]
    assert within == [nodes[0]]
    nodes[1].pick = fail
    with pytest.raises(MemoryError):
        balancer.pick(nodes)
    nodes[1].pick = lambda: None
    assert balancer.pick(nodes)[0] is nodes[1]


def simulate(balancer, nodes, clock, arrivals, latency, error=lambda node: None):
    """Let calls begin at `arrivals`, each ending after its node's latency; count by node."""
    counts, calls = Counter(), []

    def end_until(t):
        while calls and calls[0][0] <= t:
            clock.t, _, done, node = heapq.heappop(calls)
            done(DoneInfo(error(node)))

    for k, t in enumerate(arrivals):
        end_until(t)
        clock.t = t
        node, done = balancer.pick(nodes)
        counts[nodes.index(node)] += 1
        heapq.heappush(calls, (t + latency(node), k, done, node))
    end_until(math.inf)
    assert [node.in_flight for node in nodes] == [1] * len(nodes)
    return counts


def test_p2c_spreads_calls_that_are_many_at_a_time():
    """9000 calls of 10 ms each within half a second."""
    clock, chance = Clock(), random.Random(5)
    nodes = nodes_of(10, 10, 10, builder=Ewma(clock=clock))
    arrivals = sorted(chance.randrange(500) * MS for _ in range(9000))
    counts = simulate(KratosP2C(7), nodes, clock, arrivals, lambda node: 10 * MS)
    assert all(1500 < counts[i] < 4500 for i in range(3))


def test_p2c_flaw_the_winner_takes_all():
    """Of two nodes a hair apart, one call after another: but for every three seconds, one."""
    clock = Clock()
    nodes = nodes_of(1, 100, builder=Ewma(clock=clock))
    arrivals = [k * 12 * MS for k in range(1500)]
    latencies = {nodes[0]: 10 * MS, nodes[1]: 10 * MS + MS // 10}
    counts = simulate(KratosP2C(7), nodes, clock, arrivals, latencies.get)
    # Within 18 seconds; two is what the first forced picks of new nodes may add.
    assert 1 <= counts[1] <= 6 + 2


def test_p2c_flaw_who_fails_at_once_draws_the_traffic():
    clock = Clock()
    nodes = nodes_of(1, 1, 1, 1, builder=Ewma(clock=clock))

    def latency(node):
        return MS // 10 if node is nodes[0] else 10 * MS

    def error(node):
        return StatusError(500) if node is nodes[0] else None

    arrivals = [k * 12 * MS for k in range(1500)]
    counts = simulate(KratosP2C(7), nodes, clock, arrivals, latency, error)
    # Half of all pairs that can be drawn have it.
    assert counts[0] > 700


def test_random_ignores_weights():
    counts = Counter(picks_of(KratosRandom(3), nodes_of(10, 20), 1000))
    assert 400 < counts[0] < 600
    counts = Counter(picks_of(KratosRandom(3), nodes_of(0, 20), 1000))
    assert 400 < counts[0] < 600


def fifty_picks(balancer):
    """Of new nodes, at one moment."""
    return picks_of(balancer, nodes_of(*[1] * 50, builder=Direct(Clock())), 50)


@pytest.mark.parametrize("make", [KratosP2C, KratosRandom])
def test_draws(make):
    expected = fifty_picks(make(9))
    assert fifty_picks(make(9)) == expected
    assert fifty_picks(make(draw=SplitMix64(9).below)) == expected
    assert fifty_picks(BuilderOf(partial(make, 9)).build()) == expected
    assert fifty_picks(make(10)) != expected
    for seed, error in ((-1, ValueError), (2**64, ValueError), ("9", TypeError)):
        with pytest.raises(error, match="seed"):
            make(seed)
    with pytest.raises(ValueError, match="seed must be None where draw is given, got 9"):
        make(9, draw=SplitMix64(9).below)


@pytest.mark.parametrize("make", [KratosP2C, KratosRandom])
def test_forked_children_draw_others(make):
    seeded, drawing, parent = make(9), make(draw=SplitMix64(9).below), make()
    assert parent in unseeded
    assert seeded not in unseeded
    assert drawing not in unseeded
    stream = SplitMix64(4)
    parent._draw = stream.below
    _reseed()  # as in a child
    fifty_picks(parent)
    assert stream.next() == SplitMix64(4).next()
    assert fifty_picks(seeded) == fifty_picks(drawing)


@pytest.mark.parametrize("make", [KratosP2C, KratosRandom])
def test_draws_of_many_threads(make):
    """A draw that is no good for several threads is used by one at a time."""
    nodes = nodes_of(*[1] * 5)
    busy, n_draws = [], 0

    def draw(n):
        nonlocal n_draws
        busy.append(n)
        assert len(busy) == 1
        n_draws += 1
        busy.pop()
        return n_draws % n

    balancer = make(draw=draw)
    run_threads(*[lambda: picks_of(balancer, nodes, 500)] * N_THREADS)
    assert n_draws == N_THREADS * 500 * (2 if make is KratosP2C else 1)


def test_values():
    info = DoneInfo()
    assert info == DoneInfo(None, None, False, False)
    for value, name in ((info, "err"), (Direct(), "clock"), (Ewma(), "clock")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, None)
    error = NoAvailableInstance("all are drained")
    assert isinstance(error, LookupError)
    assert str(error) == "all are drained"
