"""The selector: Kratos' vectors and tests, its flaws mended, and every balancer over any node."""

import asyncio
import contextlib
import gc
import itertools
import random
import threading
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rota
from rota import ConsistentHash, Instance, Maglev, WeightedRandom, WeightedRoundRobin
from rota.outcome import Outcome
from rota.pickers import (
    FairRoundRobin,
    InterleavedWeightedRoundRobin,
    LeastRequest,
    PeakEwma,
    RoundRobin,
)
from rota.selector import (
    Balancer,
    Builder,
    BuilderOf,
    Direct,
    DirectNode,
    DoneInfo,
    Engine,
    Ewma,
    KratosP2C,
    NoAvailableInstance,
    Peer,
    Selector,
    WeightedNode,
    engine,
    global_selector,
    metadata,
    p2c,
    peer,
    set_global_selector,
    subset,
    version,
    where,
    wrr,
)
from rota.selector import random as at_random
from rota.selector import selector as module
from tests.conftest import AT_RANDOM, PICKERS
from tests.test_selector_kratos import ERRORS, HANDLERS, Clock, text_to_weight, with_handler
from tests.threads import N_THREADS, run_threads

NAMES = tuple(PICKERS.values())
LEARNING = ("LeastRequest", "PeakEwma")
V1, V2 = version("1"), version("2")


def copies(*weights, first=0, **fields):
    """Instances 10.0.0.`first`, ... with these weights."""
    return [Instance(f"10.0.0.{i}:80", w, **fields) for i, w in enumerate(weights, first)]


def builder_of(name, **options):
    """The builder of selectors by one of the engine's pickers, from a seed; no time passes."""
    if name == "PeakEwma":
        options = {"clock": lambda: 0.0} | options
    return engine(getattr(rota, name), seed=7, **options)


def applied(builder, nodes):
    selector = builder.build()
    selector.apply(nodes)
    return selector


def called(selector, n=1, **arguments):
    """Select n times, end each call at once, and return the addresses."""
    found = []
    for _ in range(n):
        node, done = selector.select(**arguments)
        done()
        found.append(node.address)
    return found


def assert_shares(counts, weights, name=None):
    """Shares are by weight: exact but for one pick of a round robin, else by chi-square."""
    n, total = sum(counts.values()), sum(weights.values())
    assert counts.keys() <= weights.keys()
    if name is not None and name not in AT_RANDOM:
        for who, weight in weights.items():
            assert abs(counts[who] - n * weight / total) <= len(weights), (who, counts)
        return
    expected = {who: n * weight / total for who, weight in weights.items()}
    chi2 = sum((counts[who] - e) ** 2 / e for who, e in expected.items())
    # The mean of chi-square is its degrees of freedom; this far out is one in 10**6 and less.
    freedom = len(weights) - 1
    assert chi2 < freedom + 6 * (2 * freedom) ** 0.5 + 20, (counts, weights)


# -- parts of the user's own ----------------------------------------------------------------


class OwnNode:
    """A weighted node with Kratos' four methods and nothing else: it cannot be replaced."""

    def __init__(self, raw):
        self.raw = raw
        self.n_picked = 0
        self.reports = []

    def weight(self):
        return float(self.raw.weight or 0)

    def pick(self):
        self.n_picked += 1
        return self.reports.append

    def pick_elapsed(self):
        return 0.0


class LastingNode(OwnNode):
    """One that can be."""

    def replace(self, instance):
        self.raw = instance


class OwnNodes:
    """A builder of nodes, that keeps all it has built."""

    def __init__(self, make=OwnNode):
        self.make = make
        self.built = []

    def build(self, instance):
        self.built.append(self.make(instance))
        return self.built[-1]


class OwnBalancer:
    """The last of the nodes, whatever; keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def pick(self, nodes):
        self.asked.append([node.raw.address for node in nodes])
        return nodes[-1], nodes[-1].pick()


# -- as recorded ----------------------------------------------------------------------------


def address_of(selector, **arguments):
    try:
        return called(selector, **arguments)[0]
    except NoAvailableInstance:
        return "ErrNoAvailable"


def replayed(selector, scenario):
    """Return what a selector gives in a recorded scenario, and what Kratos gave."""
    for op in scenario["ops"]:
        if op["op"] == "apply":
            selector.apply(
                Instance(node["addr"], text_to_weight(node["weight"]), version=node["version"])
                for node in op["nodes"]
            )
            continue
        filters = (version(op["version"]),) if op["version"] else ()
        found = [address_of(selector, filters=filters) for _ in range(op["count"])]
        yield found, op["picks"]


def test_recorded_wrr_scenarios(vectors):
    n_picks = 0
    for scenario in vectors("kratos_wrr")["scenarios"]:
        for found, expected in replayed(wrr("kratos").build(), scenario):
            assert found == expected, scenario["name"]
            n_picks += len(found)
    assert n_picks == 95


def test_recorded_wrr_scenarios_mended(vectors):
    """Where Kratos is not flawed the order is its own."""
    differ = {}
    for scenario in vectors("kratos_wrr")["scenarios"]:
        for found, expected in replayed(wrr(start=0).build(), scenario):
            if found != expected:
                differ.setdefault(scenario["name"], []).append((found, expected))
    # All weights zero: drained is drained.
    assert differ.pop("zero-and-all-zero") == [(["ErrNoAvailable"] * 4, ["a"] * 4)]
    # Filters that alternate: each set goes on where it was, as if there were no other.
    assert differ.pop("filters-alternating-forget-the-others") == [
        (["a", "a", "c"], ["a", "c", "a"]),  # the first of v1
        (["a", "c", "d", "a", "a", "d", "b"], ["a", "d", "c", "a", "b", "d", "a"]),  # of all
        (["a", "c", "a", "a"], ["a", "a", "c", "a"]),  # the sixth of v1
        (["a", "c", "a", "a"], ["a", "a", "c", "a"]),
    ]
    # Two of one address have their own turns; here these come to the same.
    assert differ == {}


@pytest.mark.parametrize(
    "builder", [wrr("kratos"), wrr(start=0), Builder(Engine(WeightedRoundRobin, start=0), Ewma())]
)
def test_recorded_wrr_sequences(vectors, builder):
    for case in vectors("kratos_wrr")["sequences"]:
        nodes = [Instance(f"{i}", weight) for i, weight in enumerate(case["weights"])]
        if isinstance(builder.node, Ewma):  # any nodes do, that weigh as much
            builder = replace(builder, node=OwnNodes())
        found = called(applied(builder, nodes), len(case["picks"]))
        assert [int(address) for address in found] == case["picks"], case["name"]


class Recording:
    """A builder of nodes that keeps them."""

    def __init__(self, inner):
        self.inner = inner
        self.nodes = []

    def build(self, instance):
        self.nodes.append(self.inner.build(instance))
        return self.nodes[-1]


def test_recorded_ewma(vectors):
    """One node, of which all that a selector does is to pick it and to say how it was."""
    n_steps = 0
    for script in vectors("kratos_ewma")["scripts"]:
        clock, calls = Clock(), {}
        is_failure = with_handler(HANDLERS[script["err_handler"]])
        nodes = Recording(Ewma(is_failure=is_failure, clock=clock))
        selector = Builder(BuilderOf(OwnBalancer), nodes).build()
        for step in script["steps"]:
            if step["op"] == "build":
                selector.apply([Instance("a:80", 10)])
            elif step["op"] == "advance":
                clock.t += step["ns"]
            elif step["op"] == "pick":
                _, calls[step["id"]] = selector.select()
            else:
                calls.pop(step["id"])(DoneInfo(ERRORS[step["err"]]()))
            (node,) = nodes.nodes
            assert node.fresh_weight() == step["uncached_weight"], (script["name"], step)
            assert node.weight() == step["weight"]
            assert (node.lag, node.success) == (step["lag"], step["success"])
            assert (node.in_flight, node.requests) == (step["inflight"], step["reqs"])
            assert node.n_slots_used == step["slots_used"]
            n_steps += 1
        for done in calls.values():
            done()
    assert n_steps == 789


def test_recorded_p2c(vectors):
    for script in vectors("kratos_p2c")["scripts"]:
        clock, draws, calls = Clock(), [], {}
        nodes = Recording(Ewma(clock=clock))
        draw = partial(lambda draws, n: draws.pop(0), draws)
        selector = Builder(BuilderOf(partial(KratosP2C, draw=draw)), nodes).build()
        selector.apply(copies(*[10] * script["nodes"]))
        for step in script["steps"]:
            clock.t = step["t"]
            if step["op"] == "done":
                calls.pop(step["id"])(DoneInfo(ERRORS[step["err"]]()))
                node = nodes.nodes[step["node"]]
                state = (node.lag, node.success, node.in_flight)
                assert state == (step["lag"], step["success"], step["inflight"]), step
                continue
            draws += step.get("draws", ())
            node, calls[step["id"]] = selector.select()
            assert node is selector.nodes[step["pick"]], step
            assert draws == []
        for done in calls.values():
            done()


# -- as Kratos' own tests say ---------------------------------------------------------------


class AnyBalancer:
    """Any of the nodes, drawn."""

    chance = random.Random(5)

    def pick(self, nodes):
        node = self.chance.choice(nodes)
        return node, node.pick()


HELLO = [
    Instance(address, 10, scheme="http", service="hello", version=number, tags={"weight": "10"})
    for address, number in (("127.0.0.1:8080", "2"), ("127.0.0.1:9090", "1"))
]


@pytest.mark.parametrize("filters", [(V2,), [V2], (lambda nodes: [n for n in nodes if V2([n])],)])
def test_select(filters):
    selector = applied(Builder(BuilderOf(AnyBalancer), OwnNodes()), HELLO)
    node, done = selector.select(filters=filters)
    assert node is HELLO[0]
    assert (node.scheme, node.weight, node.service, node.tags) == (
        "http", 10, "hello", {"weight": "10"},
    )  # fmt: skip
    done(DoneInfo())
    with Peer() as caller:
        node, _ = selector.select()
        assert caller.node is node
    for nothing in ([], (), iter([])):
        selector.apply(HELLO)
        with pytest.raises(NoAvailableInstance):
            selector.select(filters=(version("3"),))
        selector.apply(nothing)
        for chain in ((), filters):
            with pytest.raises(NoAvailableInstance):
                selector.select(filters=chain)


@pytest.mark.parametrize("name", [*NAMES, "kratos wrr", "kratos p2c", "kratos random", "own"])
def test_never_applied(name):
    kratos = {"wrr": wrr, "p2c": p2c, "random": at_random}
    if name == "own":
        builder = Builder(BuilderOf(OwnBalancer), OwnNodes())
    elif name.startswith("kratos"):
        builder = kratos[name.split()[1]]("kratos")
    else:
        builder = builder_of(name)
    for arguments in ({}, {"filters": (V1,)}, {"exclude": HELLO}):
        with pytest.raises(NoAvailableInstance, match="0 applied"):
            builder.build().select(**arguments)


def test_errors_of_a_balancer_come_as_they_are():
    class Failing:
        def pick(self, nodes):
            raise error

    for error in (KeyError("mine"), NoAvailableInstance("mine"), KeyboardInterrupt()):
        selector = applied(Builder(BuilderOf(Failing), OwnNodes()), HELLO)
        for arguments in ({}, {"filters": (V1,)}, {"exclude": HELLO[:1]}):
            with pytest.raises(type(error)) as raised:
                selector.select(**arguments)
            assert raised.value is error


def test_errors_of_nodes_come_as_they_are():
    class Failing(OwnNode):
        def pick(self):
            raise KeyError("mine")

    for balancer in (BuilderOf(OwnBalancer), Engine(LeastRequest)):
        selector = applied(Builder(balancer, OwnNodes(Failing)), HELLO)
        with pytest.raises(KeyError, match="mine"):
            selector.select()


@pytest.mark.parametrize("mode", ["rota", "kratos"])
def test_wrr_by_weight(mode):
    counts = Counter(called(applied(wrr(mode), copies(10, 20)), 90))
    assert sorted(counts.values()) == [30, 60]


def test_random_by_weight():
    even = Counter(called(applied(at_random("kratos", seed=3), copies(10, 20)), 1000))
    assert all(400 < count < 600 for count in even.values())
    mended = Counter(called(applied(at_random(seed=3), copies(10, 20)), 3000))
    assert_shares(mended, {"10.0.0.0:80": 1, "10.0.0.1:80": 2})


@pytest.mark.parametrize("mode", ["rota", "kratos"])
def test_p2c_of_many_calls_at_a_time(mode):
    selector, chance = applied(p2c(mode, seed=3), copies(10, 10, 10)), random.Random(5)
    counts, calls = Counter(), []
    for _ in range(3000):
        node, done = selector.select()
        counts[node.address] += 1
        calls.append(done)
        if len(calls) > 300:
            calls.pop(chance.randrange(len(calls)))()
    assert all(500 < counts[node.address] < 1500 for node in selector.nodes)


def test_one_node():
    for builder in (wrr(), p2c(), at_random(), wrr("kratos"), p2c("kratos"), at_random("kratos")):
        assert called(applied(builder, copies(5)), 3) == ["10.0.0.0:80"] * 3


# -- filters that take turns (R1) -----------------------------------------------------------

FLEET = [
    *copies(5, 1, 1, version="1", tags={"zone": "a"}),
    *copies(1, 3, first=3, version="2", tags={"zone": "a"}),
    *copies(2, 7, first=5, version="2", tags={"zone": "b"}),
]
WAYS = {
    "version": lambda value: version(value),
    "subset": lambda value: subset({"version": value}),
    "where": lambda value: where(lambda node: node.version == value),
    "function": lambda value: lambda nodes: [n for n in nodes if n.version == value],
    # In any order, and never the same one twice running.
    "shuffled": lambda value: partial(shuffled, random.Random(3), value),
}


def shuffled(chance, value, nodes):
    found = [node for node in nodes if node.version == value]
    chance.shuffle(found)
    return found


def weights_of(nodes, name):
    return {node.address: 1 if name == "RoundRobin" else node.weight for node in nodes}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_two_filters_in_turn_starve_nobody(name, way):
    selector = applied(builder_of(name), FLEET)
    chains = {value: (WAYS[way](value),) for value in "12"}
    counts = {value: Counter() for value in "12"}
    for _ in range(1500):
        for value, chain in chains.items():
            counts[value].update(called(selector, filters=chain))
    for value in "12":
        members = [node for node in FLEET if node.version == value]
        assert_shares(counts[value], weights_of(members, name), name)


@pytest.mark.parametrize("name", NAMES)
def test_three_filters_in_turn_that_overlap(name):
    selector = applied(builder_of(name), FLEET)
    chains = [(V2,), (metadata("zone", "a"),), (V2, metadata("zone", "a"))]
    members = [FLEET[3:], FLEET[:5], FLEET[3:5]]
    counts = [Counter(), Counter(), Counter()]
    for k in range(4500):
        counts[k % 3].update(called(selector, filters=chains[k % 3]))
    for count, nodes in zip(counts, members, strict=True):
        assert_shares(count, weights_of(nodes, name), name)


def test_kratos_flaw_two_filters_in_turn():
    selector, counts = applied(wrr("kratos"), FLEET), Counter()
    for _ in range(1000):
        counts.update(called(selector, filters=(V1,)) + called(selector, filters=(V2,)))
    assert counts == {"10.0.0.0:80": 1000, "10.0.0.6:80": 1000}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in AT_RANDOM])
def test_each_set_is_a_sequence_of_its_own(name):
    """As if it were the only one, whatever is selected in between, and how it is asked for."""
    selector = applied(engine(getattr(rota, name), start=0), FLEET)
    alone = {
        value: applied(
            engine(getattr(rota, name), start=0), [n for n in FLEET if n.version == value]
        )
        for value in "12"
    }
    chance = random.Random(4)
    for k in range(300):
        value = chance.choice("12")
        chain = [version(value)] if k % 2 else (version(value),)
        called(selector)
        assert called(selector, filters=chain) == called(alone[value])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in AT_RANDOM])
def test_the_position_in_a_set_outlives_changes(name, way):
    """Other lists in which the set is the same: its order goes on as if nothing had been."""
    make = engine(getattr(rota, name), start=0)
    selector, alone = applied(make, FLEET), applied(make, FLEET[3:])
    chain, others = (WAYS[way]("2"),), copies(4, 4, first=20, version="1")
    for k in range(60):
        selector.apply([*FLEET, *others[: k % 3]] if k % 2 else [*FLEET[1:], others[0]])
        assert called(selector, filters=chain) == called(alone)


def test_filters_that_leave_all():
    """Are a set as well, with an order of its own."""
    selector = applied(wrr(start=0), copies(1, 1, 1, version="1"))
    chain = (V1,)
    assert called(selector, 3, filters=chain) == called(selector, 3)
    for k in range(6):
        assert called(selector, filters=chain) == called(selector) == [f"10.0.0.{k % 3}:80"]


# -- what is known, by identity -------------------------------------------------------------


def changed(nodes, **fields):
    return [replace(node, **fields) for node in nodes]


@pytest.mark.parametrize("name", LEARNING)
def test_loads_outlive_changes(name):
    selector = applied(builder_of(name), copies(1, 1, 1))
    calls = [selector.select() for _ in range(9)]
    held = Counter(node.address for node, _ in calls)
    lists = [
        copies(1, 1, 1),
        copies(2, 5, 1),
        copies(1, 1, 1)[::-1],
        changed(copies(1, 1, 1), tags={"zone": "b"}, version="2"),
        copies(1, 1, 1, 1)[::-1],
    ]
    for nodes in lists:
        selector.apply(nodes)
        loads = dict(zip(selector.picker.instances, selector.picker.loads, strict=True))
        assert {node.address: loads[node] for node in nodes} == {
            node.address: held[node.address] for node in nodes
        }
        # The groups' loads are the fleet's.
        called(selector, 5, filters=(where(lambda node: True),))
    gone = calls[0][0]
    selector.apply([node for node in lists[0] if node.address != gone.address])
    before = sum(selector.picker.loads)
    for node, done in calls:
        if node.address == gone.address:
            done()  # late, of one who has left
    assert sum(selector.picker.loads) == before
    selector.apply(copies(1, 1, 1))
    index = [node and node.address for node in selector.picker.instances].index(gone.address)
    assert selector.picker.loads[index] == 0  # it has come anew
    for _, done in calls:
        done()
    assert not any(selector.picker.loads)


def test_latencies_outlive_changes():
    now = [0.0]
    selector = applied(p2c(seed=1, clock=lambda: now[0]), copies(1, 1))
    for _ in range(20):
        node, done = selector.select()
        now[0] += 2.0 if node.address == "10.0.0.0:80" else 0.001
        done()
    known = dict(zip(selector.picker.instances, selector.picker.latencies, strict=True))
    for nodes in (copies(1, 1)[::-1], copies(3, 1), changed(copies(1, 1), version="2")):
        selector.apply(nodes)
        again = dict(zip(selector.picker.instances, selector.picker.latencies, strict=True))
        for node in nodes:
            assert again[node] == next(v for k, v in known.items() if k.address == node.address)
        slow = Counter(called(selector, 100, filters=(where(lambda node: True),)))
        assert slow["10.0.0.0:80"] < 20
    fresh = copies(1, first=1)
    selector.apply(fresh)
    selector.apply(copies(1, 1))
    latencies = dict(zip(selector.picker.instances, selector.picker.latencies, strict=True))
    assert latencies[copies(1)[0]] != latencies[copies(1)[0]]  # NaN: nothing is known


@pytest.mark.parametrize("make", [OwnNode, LastingNode])
def test_nodes_outlive_changes(make):
    nodes = OwnNodes(make)
    selector = applied(Builder(BuilderOf(OwnBalancer), nodes), copies(1, 2, 3))
    a, b, c = nodes.built
    _, done = selector.select()
    for same in (copies(1, 2, 3), iter(copies(1, 2, 3)), tuple(selector.nodes)):
        before = selector.nodes
        selector.apply(same)
        assert selector.nodes is before  # nothing has happened
    selector.apply(copies(1, 2, 3)[::-1])
    assert nodes.built == [a, b, c]  # nobody is made anew
    assert selector.select()[0].address == "10.0.0.0:80"
    selector.apply(changed(copies(1, 2, 7), version="9"))
    if make is LastingNode:
        assert nodes.built == [a, b, c]
        assert c.raw == Instance("10.0.0.2:80", 7, version="9")
    else:
        assert len(nodes.built) == 6
        assert c.raw.weight == 3
    assert selector.select(filters=(version("9"),))[0] == selector.nodes[-1]
    with pytest.raises(NoAvailableInstance):
        selector.select(filters=(version(""),))
    error = ValueError("late")
    done(err=error)
    done(err=error)
    assert c.reports.count(DoneInfo(error)) == 1
    selector.apply([])
    selector.apply(copies(1, 2, 3))
    assert nodes.built[-3:] != [a, b, c]


def test_ewma_outlives_changes():
    clock = Clock()
    nodes = Recording(Ewma(clock=clock))
    selector = applied(Builder(BuilderOf(partial(KratosP2C, 1)), nodes), copies(1, 1))
    done = [selector.select()[1] for _ in range(4)]
    clock.t += 10**7
    done.pop()()
    states = [(node.lag, node.in_flight, node.requests) for node in nodes.nodes]
    selector.apply(changed(copies(5, 7)[::-1], tags={"zone": "b"}))
    assert [(node.lag, node.in_flight, node.requests) for node in nodes.nodes] == states
    assert called(selector, filters=(metadata("zone", "b"),))
    for each in done:
        each()
    assert [node.in_flight for node in nodes.nodes] == [1, 1]


def test_who_is_selected_is_what_the_filter_saw():
    """Also where the node is given its next instance while it is being picked."""

    class Slow(OwnBalancer):
        def pick(self, nodes):
            selector.apply(changed(copies(1, 2), version="2"))
            return super().pick(nodes)

    selector = Builder(BuilderOf(Slow), OwnNodes(LastingNode)).build()
    for chain in ((V1,), (where(lambda node: node.version == "1"),), ()):
        for exclude in ((), copies(1)):
            selector.apply(copies(1, 2, version="1"))
            node, _ = selector.select(filters=chain, exclude=exclude)
            assert node.version == "1"
            assert selector.select(filters=(V2,))[0].version == "2"


def test_changed_weights_and_tags_are_obeyed_at_once():
    selector = applied(wrr(start=0), copies(1, 1, version="1"))
    chain = (V1,)
    assert Counter(called(selector, 10, filters=chain)) == {"10.0.0.0:80": 5, "10.0.0.1:80": 5}
    selector.apply(copies(4, 1, version="1"))
    assert Counter(called(selector, 10, filters=chain)) == {"10.0.0.0:80": 8, "10.0.0.1:80": 2}
    selector.apply([*copies(4, version="2"), *copies(1, first=1, version="1")])
    assert Counter(called(selector, 10, filters=chain)) == {"10.0.0.1:80": 10}
    selector.apply([*copies(4, version="2"), *copies(0, first=1, version="1")])
    with pytest.raises(NoAvailableInstance):
        selector.select(filters=chain)


COPIES = st.builds(
    Instance,
    st.sampled_from([f"10.0.0.{i}:80" for i in range(4)]),
    st.sampled_from([None, 0, -2, 1, 3]),
    network=st.sampled_from(["tcp", "tcp", "unix"]),
    version=st.sampled_from(["", "1"]),
)


@pytest.mark.parametrize("builder", [*NAMES, "kratos", "nodes"])
@settings(deadline=None, max_examples=60)
@given(lists=st.lists(st.lists(COPIES, max_size=5), max_size=5))
def test_any_lists(builder, lists):
    """Whatever is applied, two of one identity too: only who is there with weight is given."""
    if builder == "kratos":
        selector = wrr("kratos").build()
    elif builder == "nodes":
        selector = Builder(Engine(PeakEwma, seed=1), OwnNodes(LastingNode)).build()
    else:
        selector = builder_of(builder).build()
    open_calls = []
    for nodes in lists:
        selector.apply(nodes)
        assert list(selector.nodes) == nodes
        for chain, passed in (((), nodes), ((V1,), [n for n in nodes if n.version == "1"])):
            alive = [node for node in passed if builder == "kratos" or rota_weight(node, builder)]
            for exclude in ((), nodes[:1]):
                left = [n for n in alive if n.identity not in {e.identity for e in exclude}]
                for _ in range(3):
                    try:
                        node, done = selector.select(filters=chain, exclude=exclude)
                    except NoAvailableInstance:
                        assert not left
                        break
                    assert node in left
                    open_calls.append(done)
    for done in open_calls:
        done()
    if selector.picker is not None and builder in LEARNING:
        assert not any(selector.picker.loads)


def rota_weight(node, builder):
    if builder == "nodes":
        return max(node.weight or 0, 0)
    return node.weight is None or node.weight > 0


# -- changes that fail ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, "own", "ConsistentHash"])
def test_a_list_that_is_refused_changes_nothing(name):
    arguments = {"key": "k"} if name == "ConsistentHash" else {}
    if name == "own":
        builder = Builder(BuilderOf(OwnBalancer), OwnNodes())
    elif arguments:
        builder = engine(ConsistentHash)
    else:
        builder = builder_of(name)
    nodes = copies(1, 1, version="1")
    selector = applied(builder, nodes)
    called(selector, filters=(V1,), **arguments)
    bad = [([*nodes, "10.0.0.7:80"], TypeError, r"nodes must be Instances, got nodes\[2\] = '10")]
    if name != "own":
        bad.append((copies(2**62, 2**62), ValueError, "weights must"))
        bad.append((copies(2**70), ValueError, "weights"))
    if arguments:
        same = [Instance("a:1", hash_key="x"), Instance("b:1", hash_key="x")]
        bad.append((same, ValueError, "x"))
    before = selector.nodes
    for wrong, error, message in bad:
        with pytest.raises(error, match=message):
            selector.apply(wrong)
        assert selector.nodes is before
        for chain in ((), (V1,), (where(lambda node: True),)):
            found = called(selector, 20, filters=chain, **arguments)
            assert set(found) <= {node.address for node in nodes}
    for wrong in (None, 5):
        with pytest.raises(TypeError):
            selector.apply(wrong)


def test_a_node_that_cannot_be_made_changes_nothing():
    class Failing(OwnNodes):
        def build(self, instance):
            if instance.version == "bad":
                raise KeyError("bad")
            return super().build(instance)

    nodes = Failing(LastingNode)
    selector = applied(Builder(BuilderOf(OwnBalancer), nodes), copies(1, 2))
    with pytest.raises(KeyError):
        selector.apply([*copies(5, 6), Instance("c:1", version="bad")])
    assert [node.raw.weight for node in nodes.built[:2]] == [1, 2]
    assert [node.weight for node in selector.nodes] == [1, 2]


# -- the end of a call ----------------------------------------------------------------------


class Outcomes:
    """Classifies, and keeps what it was asked."""

    def __init__(self):
        self.errors = []

    def __call__(self, error):
        self.errors.append(error)
        return rota.outcome.outcome_of(error)


def learning(name="PeakEwma"):
    """A selector that learns, and what it has learned: (selector, errors, latencies known)."""
    outcomes = Outcomes()
    now = itertools.count()
    selector = applied(
        builder_of(name, classify=outcomes, clock=lambda: float(next(now))), copies(1)
    )
    return selector, outcomes.errors


def test_done_in_every_way():
    selector, errors = learning()
    error = ValueError("broken")
    for arguments, keywords, expected in (
        ((), {}, []),
        ((None,), {}, []),
        ((DoneInfo(),), {}, []),
        ((DoneInfo(error),), {}, [error]),
        ((error,), {}, [error]),
        ((), {"err": error}, [error]),
        ((), {"err": None}, []),
        ((DoneInfo(),), {"err": error}, []),  # the info says it all
    ):
        _, done = selector.select()
        assert selector.picker.loads.tolist() == [1]
        done(*arguments, **keywords)
        assert selector.picker.loads.tolist() == [0]
        assert errors == expected
        done(error)
        done(err=error)
        assert selector.picker.loads.tolist() == [0]
        assert errors == expected
        errors.clear()


def test_done_in_every_way_of_nodes():
    nodes = OwnNodes()
    selector = applied(Builder(BuilderOf(OwnBalancer), nodes), copies(1))
    error, info = ValueError("broken"), DoneInfo(None, {"a": "b"}, True, True)
    for arguments, keywords, expected in (
        ((), {}, DoneInfo()),
        ((info,), {}, info),
        ((error,), {}, DoneInfo(error)),
        ((), {"err": error}, DoneInfo(error)),
    ):
        _, done = selector.select()
        for _ in range(3):
            done(*arguments, **keywords)
        assert nodes.built[0].reports.pop() == expected
        assert nodes.built[0].reports == []


@pytest.mark.parametrize("name", NAMES)
def test_done_of_every_picker(name):
    selector = applied(builder_of(name), copies(1, 2))
    for chain in ((), (where(lambda node: True),)):
        _, done = selector.select(filters=chain)
        done(DoneInfo(ValueError()))
        done()
        done(err=ValueError())
    if name in LEARNING:
        assert not any(selector.picker.loads)


def test_done_that_is_forgotten():
    selector, errors = learning()
    selector.select()
    gc.collect()
    assert selector.picker.loads.tolist() == [0]
    assert errors == []  # nothing is known of it
    nodes = OwnNodes()
    selector = applied(Builder(BuilderOf(OwnBalancer), nodes), copies(1))
    selector.select()
    gc.collect()
    (report,) = nodes.built[0].reports
    assert rota.outcome.outcome_of(report.err) is Outcome.CANCELLED
    selector = applied(Builder(Engine(LeastRequest, seed=1), nodes), copies(1))
    selector.select()
    gc.collect()
    assert len(nodes.built[-1].reports) == 1


def test_done_by_two_threads_counts_once():
    for _ in range(50):
        nodes = OwnNodes()
        selector = applied(Builder(BuilderOf(OwnBalancer), nodes), copies(1))
        _, done = selector.select()
        run_threads(*[done] * 4)
        assert len(nodes.built[0].reports) == 1


# -- acquire --------------------------------------------------------------------------------


def test_acquire():
    selector, errors = learning()
    with selector.acquire() as node:
        assert node is selector.nodes[0]
        assert selector.picker.loads.tolist() == [1]
    assert selector.picker.loads.tolist() == [0]
    assert errors == []
    error = ValueError("broken")
    with pytest.raises(ValueError, match="broken"), selector.acquire(filters=(where(bool),)):
        raise error
    assert errors == [error]
    assert selector.picker.loads.tolist() == [0]
    with selector.acquire(exclude=copies(1, first=9)) as node:
        assert node is selector.nodes[0]
    for arguments in ({"filters": (V1,)}, {"exclude": selector.nodes}):
        with pytest.raises(NoAvailableInstance), selector.acquire(**arguments):
            raise AssertionError
    with pytest.raises(TypeError, match="key must be None, got 'k'"), selector.acquire(key="k"):
        raise AssertionError
    keyed = applied(engine(ConsistentHash), copies(1, 1))
    with keyed.acquire(key="k") as node:
        assert node is keyed.picker.pick("k")
        assert sum(keyed.picker.loads) == 1
    assert sum(keyed.picker.loads) == 0


def test_acquire_is_of_one_with():
    selector, _ = learning()
    once = selector.acquire()
    with once:
        with pytest.raises(RuntimeError, match="one with"), once:
            raise AssertionError
        assert selector.picker.loads.tolist() == [1]
    with pytest.raises(RuntimeError, match="one with"):
        once.__enter__()

    async def again():
        async with once:
            raise AssertionError

    with pytest.raises(RuntimeError, match="one with"):
        asyncio.run(again())
    selector.acquire()  # never used: nothing was selected
    assert selector.picker.loads.tolist() == [0]
    empty = selector.acquire(filters=(V1,))
    for _ in range(2):  # nothing was selected, so it may be tried again
        with pytest.raises(NoAvailableInstance):
            empty.__enter__()


@pytest.mark.parametrize("name", LEARNING)
def test_acquire_in_asyncio(name):
    outcomes = Outcomes()
    options = {"classify": outcomes} if name == "PeakEwma" else {}
    selector = applied(builder_of(name, **options), copies(1, 1))
    failure = ValueError("broken")

    async def call(seconds=0.0, error=None):
        async with selector.acquire() as node:
            assert sum(selector.picker.loads) > 0
            await asyncio.sleep(seconds)
            if error is not None:
                raise error
            return node

    async def main():
        assert await call() in selector.nodes
        with pytest.raises(ValueError, match="broken"):
            await call(error=failure)
        task = asyncio.ensure_future(call(60))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert sum(selector.picker.loads) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sum(selector.picker.loads) == 0
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(call(60), 0.01)
        assert sum(selector.picker.loads) == 0
        unstarted = asyncio.ensure_future(call())
        unstarted.cancel()
        await asyncio.gather(unstarted, return_exceptions=True)
        await asyncio.gather(*[call(0.001 * k) for k in range(20)])

    asyncio.run(main())
    assert not any(selector.picker.loads)
    if name == "PeakEwma":
        assert outcomes.errors[0] is failure
        kinds = [rota.outcome.outcome_of(error) for error in outcomes.errors]
        assert kinds == [Outcome.FAILURE, Outcome.CANCELLED, Outcome.CANCELLED]


def test_errors_are_learned_from():
    """Who fails is avoided, who is cancelled is not held against it."""
    selector = applied(p2c(seed=1), copies(1, 1, 1))
    counts = Counter()
    for _ in range(300):
        with contextlib.suppress(ConnectionError), selector.acquire() as node:
            counts[node.address] += 1
            if node.address == "10.0.0.0:80":
                raise ConnectionError
    assert counts["10.0.0.0:80"] < 30


# -- everything with everything -------------------------------------------------------------


@dataclass(frozen=True)
class ValueNode:
    """A node that is a value: equal nodes are equal, and it cannot be replaced."""

    raw: Instance

    def weight(self):
        return 2.0

    def pick(self):
        return lambda info: None

    def pick_elapsed(self):
        return 1.0


class UnhashableNode(ValueNode):
    """One that is equal to its like, and no key."""

    __hash__ = None


class Fewer:
    """A filter that takes the first half; in the reverse order; cannot be hashed."""

    __hash__ = None

    def __call__(self, nodes):
        return list(reversed(nodes[: (len(nodes) + 1) // 2]))


class Pure:
    """A filter that says it is pure, equal to its like."""

    is_pure = True

    def __init__(self, number):
        self.number = number
        self.n_asked = 0

    def __call__(self, nodes):
        self.n_asked += 1
        return (node for node in nodes if node.version == self.number)

    def __eq__(self, other):
        return isinstance(other, Pure) and self.number == other.number

    def __hash__(self):
        return hash(self.number)


class PureNoKey(Pure):
    __hash__ = None


MATRIX_FILTERS = {
    "none": (),
    "version": (V1,),
    "subset": (subset({"zone": "z"}, fallback="any"), V1),
    "where": (where(lambda node: node.weight != 5),),
    "function": (lambda nodes: [node for node in nodes if node.weight < 3],),
    "tuple": (lambda nodes: tuple(nodes[1:]),),
    "unhashable": (Fewer(),),
    "pure": (Pure("1"),),
    "pure, no key": (PureNoKey("1"),),
    "mixed": (V1, Fewer(), where(lambda node: True), Pure("1")),
}
MATRIX_NODES = {
    "direct": Direct,
    "direct, a clock": lambda: Direct(clock=lambda: 5),
    "ewma": Ewma,
    "own": OwnNodes,
    "lasting": lambda: OwnNodes(LastingNode),
    "values": lambda: OwnNodes(ValueNode),
    "unhashable": lambda: OwnNodes(UnhashableNode),
}
MATRIX_BALANCERS = {
    **{name: lambda name=name: Engine(getattr(rota, name), seed=5) for name in NAMES},
    "kratos wrr": lambda: wrr("kratos").balancer,
    "kratos p2c": lambda: p2c("kratos", seed=5).balancer,
    "kratos random": lambda: at_random("kratos", seed=5).balancer,
    "own": lambda: BuilderOf(OwnBalancer),
}


@pytest.mark.parametrize("balancer", MATRIX_BALANCERS)
@pytest.mark.parametrize("node", MATRIX_NODES)
@pytest.mark.parametrize("filters", MATRIX_FILTERS)
def test_everything_with_everything(balancer, node, filters):
    builder = Builder(MATRIX_BALANCERS[balancer](), MATRIX_NODES[node]())
    selector, chain = builder.build(), MATRIX_FILTERS[filters]
    first = [*copies(1, 2, version="1"), *copies(3, 5, first=2, version="2")]
    lists = [
        first,
        changed(first, weight=2)[::-1],
        [*first[:2], *copies(1, first=9, version="1")],
        [],
        first[:1],
    ]
    for nodes in lists:
        selector.apply(nodes)
        passed = nodes
        for each in chain:
            passed = list(each(passed))
        for exclude in ((), passed[:1], nodes):
            left = [one for one in passed if one not in exclude]
            calls = []
            for k in range(4):
                if not left:
                    with pytest.raises(NoAvailableInstance):
                        selector.select(filters=chain, exclude=exclude)
                    continue
                with Peer() as caller:
                    one, done = selector.select(filters=chain, exclude=exclude)
                assert caller.node is one
                assert any(one is each for each in left)
                calls.append(done)
                if k % 2:
                    calls.pop()(DoneInfo(ValueError() if k % 4 == 1 else None))
    calls = done = None
    gc.collect()
    if selector.picker is not None and hasattr(selector.picker, "loads"):
        assert not any(selector.picker.loads)


def test_what_is_the_users_own_is_asked_as_it_should_be():
    nodes = OwnNodes()
    selector = applied(Builder(BuilderOf(OwnBalancer), nodes), FLEET)
    made = selector._fleet.balancer
    assert isinstance(made, Balancer)
    assert isinstance(nodes.built[0], WeightedNode)
    called(selector)
    called(selector, filters=(V1,))
    # A balancer may go by the order that a filter gives.
    called(selector, filters=(lambda nodes: nodes[2::-1],))
    called(selector, filters=(lambda nodes: nodes[:3],))
    called(selector, exclude=FLEET[1:])
    addresses = [node.address for node in FLEET]
    assert made.asked == [addresses, addresses[:3], addresses[2::-1], addresses[:3], addresses[:1]]
    with pytest.raises(NoAvailableInstance):
        selector.select(filters=(version("3"),))
    assert len(made.asked) == 5  # of nobody there is nothing to pick
    assert sum(node.n_picked for node in nodes.built) == 5


def test_a_filter_sees_the_instances():
    for builder in (wrr(), Builder(BuilderOf(OwnBalancer), OwnNodes())):
        seen = []
        selector = applied(builder, FLEET)
        called(selector, filters=(V1, lambda nodes, seen=seen: seen.extend(nodes) or nodes))
        assert seen == FLEET[:3]
        assert all(one is other for one, other in zip(seen, FLEET, strict=False))


def test_a_filter_of_the_whole_must_not_change_it():
    """What it is given is its own to change."""
    selector = applied(wrr(start=0), copies(1, 1, 1))

    def clearing(nodes):
        last = nodes[-1:]
        nodes.clear()
        return last

    assert called(selector, 3, filters=(clearing,)) == ["10.0.0.2:80"] * 3
    assert len(set(called(selector, 3))) == 3


@pytest.mark.parametrize(
    "bad",
    [
        lambda nodes: [*nodes, nodes[0]],  # one twice
        lambda nodes: [nodes[0], nodes[0]],
        lambda nodes: [Instance("foreign:1")],
        lambda nodes: [replace(nodes[0])],  # equal, and another
        lambda nodes: [nodes[0].address],
    ],
)
@pytest.mark.parametrize("builder", [wrr(), wrr("kratos"), p2c()])
def test_filters_that_return_what_they_were_not_given(builder, bad):
    selector = applied(builder, copies(1, 1))
    with pytest.raises(ValueError, match=r"filters must return some of their nodes, .* gave"):
        selector.select(filters=(bad,))


def test_filters_that_return_nothing_of_use():
    selector = applied(wrr(), copies(1, 1))
    for bad in (lambda nodes: None, lambda nodes: 5):
        with pytest.raises(TypeError):
            selector.select(filters=(bad,))
    with pytest.raises(KeyError):
        selector.select(filters=(lambda nodes: {}["x"],))


def test_filters_twice_in_a_list():
    """Two places of one object are two members."""
    node = Instance("a:1", 1)
    selector = applied(wrr(), [node, node])
    assert selector.select(filters=(lambda nodes: nodes,))[0] is node
    assert selector.select(filters=(lambda nodes: [nodes[0], nodes[1]],))[0] is node
    assert selector.select(filters=(lambda nodes: nodes[1:],))[0] is node


def test_what_is_pure_is_asked_once_for_each_list():
    selector = applied(wrr(), FLEET)
    for chain in ((Pure("1"),), [Pure("1")], (V1, Pure("1"))):
        for nodes in (FLEET, FLEET[1:]):
            selector.apply(nodes)
            for exclude in ((), (), FLEET[:1]):
                called(selector, 2, filters=chain, exclude=exclude)
            equal = [Pure("1") if isinstance(each, Pure) else each for each in chain]
            called(selector, 2, filters=equal)
            assert equal[-1].n_asked == 0
        assert chain[-1].n_asked <= 2
    no_key = PureNoKey("1")
    called(selector, 4, filters=(no_key,))
    assert no_key.n_asked == 4  # nothing can be kept of it


# -- excluded -------------------------------------------------------------------------------

EVERY = {
    **{name: partial(builder_of, name) for name in NAMES},
    "kratos wrr": partial(wrr, "kratos"),
    "kratos p2c": partial(p2c, "kratos", seed=5),
    "kratos random": partial(at_random, "kratos", seed=5),
    "engine over nodes": lambda: Builder(Engine(WeightedRoundRobin, start=0), OwnNodes()),
    "own": lambda: Builder(BuilderOf(OwnBalancer), OwnNodes()),
}


@pytest.mark.parametrize("name", EVERY)
def test_exclude(name):
    selector = applied(EVERY[name](), FLEET)
    for chain, members in (((), FLEET), ((V2,), FLEET[3:]), ([where(bool)], FLEET)):
        for k in range(len(members) + 1):
            # By identity: of another weight, version and so on it is still that one.
            tried = [Instance(node.address, 99, version="old") for node in members[:k]]
            for exclude in (tried, tuple(tried), set(tried), iter(tried), dict.fromkeys(tried)):
                if k == len(members):
                    with pytest.raises(NoAvailableInstance, match=r"excluded: 10\.0\.0"):
                        selector.select(filters=chain, exclude=exclude)
                    continue
                (found,) = called(selector, filters=chain, exclude=exclude)
                assert found in {node.address for node in members[k:]}
    assert len(called(selector, 3, exclude=[])) == 3
    unix = [replace(node, network="unix") for node in FLEET]
    assert called(selector, exclude=unix)  # these are others


@pytest.mark.parametrize("name", NAMES)
def test_exclude_the_heaviest(name):
    """Who is left is found, however seldom it is drawn, and by its weight."""
    selector = applied(builder_of(name), copies(10_000, 1, 3))
    counts = Counter(called(selector, 2000, exclude=selector.nodes[:1]))
    assert counts.keys() == {"10.0.0.1:80", "10.0.0.2:80"}
    if name not in ("RoundRobin", "InterleavedWeightedRoundRobin"):
        assert 1300 < counts["10.0.0.2:80"] < 1700
    if name in LEARNING:
        assert not any(selector.picker.loads)


def test_exclude_leaves_nothing_in_flight():
    for name in LEARNING:
        selector = applied(builder_of(name), copies(100, 1, 1))
        held = [selector.select(exclude=selector.nodes[:1]) for _ in range(50)]
        loads = selector.picker.loads.tolist()
        assert loads[0] == 0
        assert sum(loads) == 50
        with pytest.raises(NoAvailableInstance):
            selector.select(exclude=selector.nodes)
        held.clear()
        assert not any(selector.picker.loads)


def test_exclude_of_nodes_by_the_engine_has_no_favourite():
    """A picker made for one request would always begin with the same."""
    builder = Builder(Engine(WeightedRoundRobin, start=0), OwnNodes())
    selector = applied(builder, copies(5, 2, 1, 1))
    counts = Counter(called(selector, 2000, exclude=selector.nodes[:1]))
    assert_shares(counts, {"10.0.0.1:80": 2, "10.0.0.2:80": 1, "10.0.0.3:80": 1})


def test_exclude_spares_the_drained():
    selector = applied(wrr(), copies(1, 0, -3))
    with pytest.raises(NoAvailableInstance, match="2 without weight"):
        selector.select(exclude=selector.nodes[:1])


# -- by key ---------------------------------------------------------------------------------

KEYS = [f"user:{i}" for i in range(50)]


@pytest.mark.parametrize(
    ("picker", "options"),
    [
        (ConsistentHash, {}),
        (ConsistentHash, {"load_factor": 1.25}),
        (Maglev, {"table_size": 1009}),
    ],
)
def test_by_key(picker, options):
    selector = applied(engine(picker, **options), FLEET)
    whole = picker(FLEET, [node.weight for node in FLEET], **options)
    part = picker(FLEET[3:], [node.weight for node in FLEET[3:]], **options)
    for key in KEYS:
        assert called(selector, key=key) == [whole.pick(key).address]
        for chain in ((V2,), [V2], (where(lambda node: node.version == "2"),)):
            assert called(selector, key=key, filters=chain) == [part.pick(key).address]
        order = whole.pick_n(key, len(FLEET))
        for k in range(1, len(FLEET)):
            tried = [replace(node, weight=1) for node in order[:k]]
            assert called(selector, key=key, exclude=tried) == [order[k].address]
        order = part.pick_n(key, len(FLEET))
        assert called(selector, key=key, filters=(V2,), exclude=order[:2]) == [order[2].address]
        with pytest.raises(NoAvailableInstance):
            selector.select(key=key, exclude=FLEET)
        with pytest.raises(NoAvailableInstance):
            selector.select(key=key, filters=(version("3"),))
    assert not any(selector.picker.loads)
    for arguments in ({}, {"filters": (V2,)}, {"exclude": FLEET[:1]}):
        with pytest.raises(TypeError, match="key must be given, got None"):
            selector.select(**arguments)
    with pytest.raises(TypeError):
        selector.select(key=1.5)


@pytest.mark.parametrize("name", EVERY)
def test_no_key_where_none_is_wanted(name):
    selector = applied(EVERY[name](), FLEET)
    for arguments in ({}, {"filters": (V2,)}, {"exclude": FLEET[:1]}):
        with pytest.raises(TypeError, match="key must be None, got 'k'"):
            selector.select(key="k", **arguments)


def test_bounded_loads():
    """The owner of a key that all want passes them on, and has them back."""
    selector = applied(engine(ConsistentHash, load_factor=1.25), copies(1, 1, 1, 1))
    calls = [selector.select(key="popular") for _ in range(40)]
    assert max(selector.picker.loads) <= 13
    for _, done in calls:
        done()
        done()
    assert not any(selector.picker.loads)
    owner = selector.picker.pick("popular")
    assert called(selector, 5, key="popular") == [owner.address] * 5


def test_keys_stay_where_they_are():
    selector = applied(engine(ConsistentHash), copies(*[1] * 5))
    owners = [called(selector, key=key) for key in KEYS]
    selector.apply(copies(*[1] * 5)[::-1])
    assert [called(selector, key=key) for key in KEYS] == owners
    selector.apply(copies(*[1] * 4))
    moved = [old for old, key in zip(owners, KEYS, strict=True) if called(selector, key=key) != old]
    assert all(old == ["10.0.0.4:80"] for old in moved)


def test_by_key_over_nodes():
    with pytest.raises(TypeError, match="goes by a key: it balances instances, not nodes"):
        Builder(Engine(ConsistentHash), Ewma()).build()


# -- what it says ---------------------------------------------------------------------------


def is_nobody(node):
    return False


def test_why_nobody_is_left():
    selector = applied(wrr(), [*FLEET, Instance("drained:1", 0, version="3")])
    chain = (version("2"), subset({"zone": "c"}))
    for filters, exclude, expected in (
        (chain, (), "8 applied; version == '2' left 4; subset {zone: 'c'}, else none left 0"),
        ((version("3"),), (), "8 applied; version == '3' left 1; 1 without weight"),
        (
            (V1,),
            FLEET[:3],
            "8 applied; version == '1' left 3; excluded: 10.0.0.0:80, 10.0.0.1:80, 10.0.0.2:80",
        ),
        ((where(bool), where(is_nobody)), (), "8 applied; where bool left 8; .*is_nobody left 0"),
    ):
        for made in (filters, list(filters)):
            given_exclude = iter(exclude) if exclude else exclude
            with pytest.raises(NoAvailableInstance, match=expected) as raised:
                selector.select(filters=made, exclude=given_exclude)
    error = raised.value
    assert (error.code, error.reason) == (503, "no_available_node")
    assert isinstance(error, LookupError)
    assert rota.outcome.outcome_of(error) is Outcome.FAILURE


def test_why_no_node_is_left():
    selector = applied(Builder(Engine(WeightedRoundRobin), OwnNodes()), copies(0, 0))
    with pytest.raises(NoAvailableInstance, match="2 left, all without weight"):
        selector.select()


def test_what_it_is():
    selector = applied(wrr(start=0), copies(1, 1))
    assert repr(selector) == (
        f"Selector(2 instances, Engine(WeightedRoundRobin, start=0), {Direct()!r})"
    )
    assert isinstance(selector, Selector)
    assert rota.Selector is Selector
    assert rota.NoAvailableInstance is NoAvailableInstance
    assert isinstance(selector.picker, WeightedRoundRobin)
    assert wrr("kratos").build().picker is None
    assert selector.nodes == tuple(copies(1, 1))


# -- one for all ----------------------------------------------------------------------------


@pytest.fixture
def kept_global():
    before = global_selector()
    yield before
    set_global_selector(before)


def test_the_global_selector(kept_global):
    assert isinstance(kept_global.build().picker, WeightedRoundRobin)
    assert kept_global.build() is not kept_global.build()
    own = Builder(BuilderOf(AnyBalancer), OwnNodes())
    set_global_selector(own)
    assert global_selector() is own
    for bad in (None, "wrr", wrr().build(), wrr):
        with pytest.raises(TypeError, match="builder must have a method build"):
            set_global_selector(bad)
    assert global_selector() is own


# -- peers ----------------------------------------------------------------------------------


def test_peers_nest():
    selector = applied(wrr(start=0), copies(1, 1, 1))
    called(selector)
    with Peer() as outer:
        assert outer.node is None
        first = selector.select()[0]
        with Peer() as inner:
            second = selector.select(filters=(where(bool),))[0]
            with outer:
                third = selector.select()[0]
            assert (outer.node, inner.node) == (third, second)
        assert outer.node is third
        with pytest.raises(NoAvailableInstance):
            selector.select(filters=(V1,))
        assert outer.node is third
    assert first is not third
    called(selector)
    assert outer.node is third
    assert peer.get() is None
    assert repr(inner) == f"Peer(node={second!r})"


def test_the_peer_is_told_by_acquire():
    selector = applied(p2c(), copies(1, 1, 1))
    with Peer() as caller, selector.acquire(exclude=selector.nodes[:1]) as node:
        assert caller.node is node


def test_peers_of_threads():
    selector = applied(at_random(), copies(*[1] * 50))

    def body():
        with Peer() as caller:
            for _ in range(500):
                assert selector.select()[0] is caller.node

    with Peer() as ours:
        node, _ = selector.select()
        run_threads(*[body] * N_THREADS)
        assert ours.node is node


def test_peers_of_tasks():
    selector = applied(at_random(), copies(*[1] * 50))

    async def own():
        with Peer() as caller:
            for _ in range(20):
                async with selector.acquire() as node:
                    await asyncio.sleep(0)
                    assert caller.node is node

    async def shared(caller):
        async with selector.acquire() as node:
            return node, caller.node is node

    async def main():
        with Peer() as caller:
            before = selector.select()[0]
            await asyncio.gather(*[own() for _ in range(20)])
            assert caller.node is before
            node, was_told = await asyncio.ensure_future(shared(caller))  # a task of ours
            assert was_told
            assert caller.node is node

    asyncio.run(main())


# -- threads --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["WeightedRoundRobin", "WeightedRandom", *LEARNING, "nodes"])
def test_threads_beside_changes(name):
    """Nobody is given whom a filter has not let pass since before the selection began."""
    if name == "nodes":
        nodes = Recording(Ewma())
        selector = Builder(Engine(WeightedRoundRobin), nodes).build()
    else:
        selector = builder_of(name).build()
    n_lists, n_selects = 60, 150
    # Of list k: four who stay, and one of version 1 that is version 2 in the next.
    stay = [*copies(3, 1, version="1"), *copies(1, 2, first=2, version="2")]
    lists = [
        [
            *stay,
            Instance(f"moves-{k}:80", 2, version="1"),
            Instance(f"moves-{k - 1}:80", 2, version="2"),
        ]
        for k in range(n_lists)
    ]
    n_applied = [0]
    selector.apply(lists[0])
    over = threading.Event()
    latest = {f"moves-{k}:80": k for k in range(-1, n_lists)}
    chains = [(V1,), (V2,), (where(lambda node: node.version == "1"),), [V1, Pure("1")], ()]

    def applying():
        try:
            for k in range(1, n_lists):
                selector.apply(lists[k])
                n_applied[0] = k
        finally:
            over.set()

    def selecting(number):
        def body():
            count = 0
            while count < n_selects or not over.is_set():
                which = (count + number) % len(chains)
                since = n_applied[0]
                exclude = stay[:1] if count % 5 == 0 else ()
                node, done = selector.select(filters=chains[which], exclude=exclude)
                until = n_applied[0]
                count += 1
                if count % 3:
                    done()
                assert not exclude or node.address != stay[0].address
                if which == 1:
                    assert node.version == "2"
                elif which != 4:
                    assert node.version == "1"
                k = latest.get(node.address)
                if k is not None:  # it is of version 1 in list k, and of 2 in the next
                    first = k if node.version == "1" else k + 1
                    assert since <= first <= until + 1, (since, node, until)

        return body

    run_threads(applying, *[selecting(number) for number in range(N_THREADS - 1)])
    gc.collect()
    if name in LEARNING:
        assert not any(selector.picker.loads)
    if name == "nodes":
        assert {node.in_flight for node in nodes.nodes} == {1}


@pytest.mark.parametrize("name", LEARNING)
def test_threads_that_take_turns_in_filters(name):
    selector = applied(builder_of(name), FLEET)

    def body():
        for k in range(400):
            with selector.acquire(filters=((V1,), (V2,), ())[k % 3]):
                pass

    run_threads(*[body] * N_THREADS)
    assert not any(selector.picker.loads)


def test_threads_share_one_order():
    """Exact round robin in each set, whoever asks."""
    selector = applied(wrr(), FLEET)
    counts = [Counter() for _ in range(N_THREADS)]

    def body(k):
        def run():
            for _ in range(350):
                for chain in ((V1,), (V2,), [where(lambda node: node.version == "1")]):
                    counts[k][type(chain), called(selector, filters=chain)[0]] += 1

        return run

    run_threads(*[body(k) for k in range(N_THREADS)])
    total = sum(counts, Counter())
    for kind, nodes in ((tuple, FLEET[:3]), (tuple, FLEET[3:]), (list, FLEET[:3])):
        n = sum(total[kind, node.address] for node in nodes)
        assert n == 350 * N_THREADS
        for node in nodes:
            share = n * node.weight / sum(each.weight for each in nodes)
            assert abs(total[kind, node.address] - share) <= 1


# -- groups are bounded ---------------------------------------------------------------------


def test_groups_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "MOST_GROUPS", 16)
    selector = applied(wrr(), copies(*[1] * 30))
    for k in range(100):
        with pytest.raises(NoAvailableInstance):
            selector.select(filters=(metadata("zone", str(k)),))
        assert called(
            selector, filters=(where(lambda node, k=k: int(node.address[7:-3]) != k % 30),)
        )
    assert len(selector._groups) == 16
    assert len(selector._sets) == 16
    # Any number of predicates that leave the same are one.
    selector = applied(wrr(start=0), copies(1, 1, 1))
    found = [called(selector, filters=(where(lambda node: True),))[0] for _ in range(6)]
    assert found == called(selector, 3) * 2
    assert len(selector._sets) == 1


def test_members_of_groups_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "MOST_MEMBERS", 100)
    selector = applied(wrr(), copies(*[1] * 30))
    for k in range(30):
        assert called(selector, filters=(where(lambda node, k=k: node != selector.nodes[k]),))
        assert sum(group.size for _, group, _ in selector._sets.values()) <= 100
    assert len(selector._sets) == 3
    monkeypatch.setattr(module, "MOST_MEMBERS", 10)
    assert called(selector, filters=(where(bool),))  # one is kept, however large
    assert len(selector._sets) == 1


def test_what_is_used_is_kept(monkeypatch):
    """Of sets that predicates leave the one not asked for longest goes first."""
    monkeypatch.setattr(module, "MOST_GROUPS", 4)
    selector, alone = applied(wrr(start=0), FLEET), applied(wrr(start=0), FLEET[3:])
    chain = [where(lambda node: node.version == "2")]
    for k in range(40):
        assert called(selector, filters=chain) == called(alone)
        called(selector, filters=(where(lambda node, k=k: node != FLEET[k % 7]),))


# -- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filters": "x"}, r"filters must be callable, got filters\[0\] = 'x'"),
        ({"filters": V1}, "filters must be a sequence of filters, got version == '1'"),
        ({"filters": where(bool)}, "filters must be a sequence of filters, got where"),
        ({"filters": {V1}}, "filters must be a sequence of filters"),
        ({"filters": iter([V1])}, "filters must be a sequence of filters"),
        ({"filters": None}, "filters must be a sequence of filters, got None"),
        ({"filters": (V1, "1")}, r"filters must be callable, got filters\[1\] = '1'"),
        ({"filters": [None]}, r"filters must be callable, got filters\[0\] = None"),
        ({"filters": (("tcp", "10.0.0.0:80"),)}, "filters must be callable"),
        ({"exclude": 5}, "exclude must be an iterable of Instances, got 5"),
        ({"exclude": FLEET[0]}, "exclude must be an iterable of Instances, got Instance"),
        ({"exclude": ["10.0.0.0:80"]}, "got '10.0.0.0:80' in it"),
        ({"exclude": "10.0.0.0:80"}, "got '1' in it"),
        ({"exclude": None}, "exclude must be an iterable of Instances, got None"),
    ],
)
def test_refused_arguments(name, arguments, message):
    selector = applied(EVERY[name](), FLEET)
    called(selector, filters=(where(lambda node: node.address == "10.0.0.0:80"),))
    for _ in range(2):
        with pytest.raises(TypeError, match=message):
            selector.select(**arguments)
        with pytest.raises(TypeError, match=message), selector.acquire(**arguments):
            raise AssertionError
    if "loads" in dir(selector.picker):
        assert not any(selector.picker.loads)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: wrr("x"), ValueError, "mode must be 'rota' or 'kratos', got 'x'"),
        (lambda: p2c(None), ValueError, "mode must be 'rota' or 'kratos', got None"),
        (lambda: at_random("Kratos"), ValueError, "mode must be .* got 'Kratos'"),
        (lambda: wrr("kratos", start=0), TypeError, "mode 'kratos' does not take start"),
        (lambda: wrr("kratos", seed=0), TypeError, "mode 'kratos' does not take seed"),
        (lambda: p2c("kratos", decay=1, seed=2), TypeError, "mode 'kratos' does not take decay"),
        (lambda: at_random("kratos", b=1, a=2), TypeError, "does not take a, b"),
        (lambda: wrr(no=1).build(), TypeError, "no"),
        (lambda: p2c(decay=-1).build(), ValueError, "decay"),
        (lambda: p2c("kratos", seed=-1).build(), ValueError, "seed"),
        (lambda: engine("wrr"), TypeError, "picker must be a type of picker, got 'wrr'"),
        (lambda: Selector(AnyBalancer()), TypeError, "balancer must have a method build, got"),
        (lambda: Selector(None), TypeError, "balancer must have a method build, got None"),
        (lambda: Selector(Engine(WeightedRandom), 5), TypeError, "node must have a method build"),
        (lambda: Builder(OwnBalancer()).build(), TypeError, "balancer must have a method build"),
    ],
    ids=str,
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


# -- the engine over nodes ------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_engine_follows_the_weights_of_nodes(name):
    nodes = OwnNodes(LiveNode)
    selector = applied(replace(builder_of(name), node=nodes), copies(1, 1, 1))
    for weights in ((1.5, 3.0, 0.0), (1e-9, 0.0, 2e-9), (2.0, 1.0, 1.0), (0.25, 0.25, 1e30)):
        for node, weight in zip(nodes.built, weights, strict=True):
            node.live = weight
        counts = Counter(called(selector, 600))
        for node, weight in zip(nodes.built, weights, strict=True):
            assert (counts[node.raw.address] > 0) == (weight > 0) or weight < max(weights) / 100
        if name != "RoundRobin" and max(weights) < 100:
            least = {n.raw.address: max(n.live, 2**-16) for n in nodes.built if n.live}
            # What an order owes from before the change is paid in it.
            assert_shares(counts, least, None if name in AT_RANDOM else "by turns")
    for node, weight in zip(nodes.built, (0.0, -1.0, float("nan")), strict=True):
        node.live = weight
    with pytest.raises(NoAvailableInstance):
        selector.select()


class LiveNode(OwnNode):
    """A node whose weight is set by hand."""

    live = 1.0

    def weight(self):
        return self.live


def test_an_ewma_node_that_has_failed_is_tried_again():
    """By Kratos' formula it weighs nothing after a first call that failed, and for ever."""
    clock = Clock()
    nodes = Recording(Ewma(clock=clock))
    selector = applied(Builder(Engine(WeightedRoundRobin), nodes), copies(1, 1))
    down, counts = {node.address for node in selector.nodes}, Counter()
    for k in range(1000):
        node, done = selector.select()
        counts[k // 200, node.address] += 1
        clock.t += 10**7
        done(err=TimeoutError() if node.address in down else None)
        if k == 199:
            assert [node.weight() for node in nodes.nodes] == [0, 0]
            down = {"10.0.0.0:80"}
        if k == 599:
            down = set()
    assert 80 < counts[0, "10.0.0.0:80"] < 120  # both fail: neither is left out
    assert 0 < counts[2, "10.0.0.0:80"] < 10  # one does: it is asked now and then
    assert counts[4, "10.0.0.0:80"] > 80  # and is found to be well


def test_a_judgement_that_fails_does_not_hide_the_call_from_the_node():
    nodes = OwnNodes()

    def classify(error):
        raise KeyError("mine")

    selector = applied(Builder(Engine(PeakEwma, classify=classify), nodes), copies(1))
    _, done = selector.select()
    with pytest.raises(KeyError):
        done(err=ValueError())
    assert len(nodes.built[0].reports) == 1


def test_direct_nodes_of_the_users_own_are_nodes():
    """A subclass of Direct is not taken for Direct: its nodes are made, and asked."""

    class Halved(DirectNode):
        def weight(self):
            return super().weight() / 2

    class Halves(Direct):
        __slots__ = ()

        def build(self, instance):
            return Halved(instance)

    selector = applied(Builder(Engine(WeightedRoundRobin, start=0), Halves()), copies(3, 1))
    assert selector.picker is None
    assert Counter(called(selector, 40)) == {"10.0.0.0:80": 30, "10.0.0.1:80": 10}


def test_selectors_do_not_all_begin_with_the_first():
    """Clients that call once each, and are many, share the load; `start` and `seed` are obeyed."""
    fleet = [Instance(f"10.0.0.{i}:80") for i in range(4)]

    def first(builder):
        selector = builder.build()
        selector.apply([])  # nobody is there yet
        selector.apply(fleet)
        return selector.select()[0]

    for picker in (RoundRobin, WeightedRoundRobin, FairRoundRobin, InterleavedWeightedRoundRobin):
        assert {first(engine(picker)) for _ in range(100)} == set(fleet)
        assert first(engine(picker, start=2)) is fleet[2]
        assert len({first(engine(picker, seed=7)) for _ in range(10)}) == 1
    selector = wrr(start=1).build()
    selector.apply(fleet)
    assert selector.select()[0] is fleet[1]
    selector.apply(fleet[:2])  # the order goes on
    assert selector.select()[0] is fleet[0]
