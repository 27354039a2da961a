"""Live pickers follow discovery: always right, in place where they can, at the cost of a change."""

import logging
import random
import sys
import threading
from collections import Counter
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rota
from rota import (
    Change,
    ConsistentHashBalancer,
    ConsistentHashOptions,
    Event,
    EventBus,
    Instance,
    InterleavedWeightedRoundRobinBalancer,
    MemoryRegistry,
    Result,
    WeightedRandomBalancer,
    WeightedRoundRobinBalancer,
    diff,
)
from rota.loadbalance import CachingBalancer, LivePicker, WeightedBalancer

KEYS = [f"user:{i}" for i in range(100)]


class ListPicker:
    """The interface of a live picker and nothing else; counts its calls."""

    def __init__(self, instances, weights, *, seed=None):
        self.calls = Counter()
        self.slots, self.weights = list(instances), list(weights)
        self.check()

    def check(self, more=0):
        if sum(self.weights) + more >= 2**63:
            raise ValueError("weights must sum to less than 2**63")

    def present(self, index):
        if self.slots[index] is None:
            raise ValueError("index")
        return index

    def next(self, ctx=None, request=None):
        live = [i for i, weight in zip(self.slots, self.weights, strict=True) if weight]
        return random.choice(live) if live else None

    def add(self, instance, weight=1):
        self.calls["add"] += 1
        self.check(weight)
        if None in self.slots:
            i = next(i for i, slot in enumerate(self.slots) if slot is None)
            self.slots[i], self.weights[i] = instance, weight
            return i
        self.slots.append(instance)
        self.weights.append(weight)
        return len(self.slots) - 1

    def remove(self, index):
        self.calls["remove"] += 1
        self.slots[self.present(index)] = None
        self.weights[index] = 0

    def set_weight(self, index, weight):
        self.calls["set_weight"] += 1
        self.check(weight - self.weights[self.present(index)])
        self.weights[index] = weight

    def replace(self, index, instance):
        self.calls["replace"] += 1
        self.slots[self.present(index)] = instance

    def update(self, instances, weights=None):
        self.calls["update"] += 1
        fresh = ListPicker(instances, weights)
        self.slots, self.weights = fresh.slots, fresh.weights

    @property
    def instances(self):
        self.calls["instances"] += 1
        return tuple(self.slots)

    def __len__(self):
        return sum(slot is not None for slot in self.slots)


class ListBalancer(WeightedBalancer):
    name = "list"
    schedule = ListPicker


def consistent():
    options = ConsistentHashOptions(lambda ctx, request: request, virtual_factor=3)
    return ConsistentHashBalancer(options)


MAKERS = {
    "list": ListBalancer,
    "consist": consistent,
    "weight_round_robin": WeightedRoundRobinBalancer,
    "interleaved_weighted_round_robin": InterleavedWeightedRoundRobinBalancer,
    "weight_random": WeightedRandomBalancer,
}


@pytest.fixture(params=MAKERS.values(), ids=MAKERS.keys())
def make_balancer(request):
    return request.param


@pytest.fixture(params=MAKERS)
def in_place(request):
    """A balancer of pickers that are certain to be changed in place."""
    return MAKERS[request.param]()


def test_every_picker_of_ours_is_changed_in_place(make_balancer):
    balancer = make_balancer()
    first = result_of(*instances_of(1, 2, 3))
    picker = balancer.get_picker(first)
    assert isinstance(picker, LivePicker)
    balancer.rebalance(step(first, *instances_of(1, 5, 3, 4)))
    assert balancer.get_picker(first) is picker
    assert sorted(weights_of(picker).values()) == [1, 3, 4, 5]


def instances_of(*weights):
    return tuple(Instance(f"10.0.0.{i}:80", weight) for i, weight in enumerate(weights))


def result_of(*instances):
    return Result(True, "s", instances)


def step(before, *instances):
    return diff("s", before, result_of(*instances))


def held(picker):
    """Who is in a picker, as a multiset: all but the network, which discovery ignores."""
    return Counter(
        (i.address, i.weight, i.version, i.hash_key, tuple(sorted(i.tags.items())), int(weight))
        for i, weight in zip(picker.instances, picker.weights, strict=True)
        if i is not None
    )


def weights_of(picker):
    pairs = zip(picker.instances, picker.weights, strict=True)
    return {i.address: int(weight) for i, weight in pairs if i is not None}


def owners(picker):
    return [i and i.address for i in map(picker.pick, KEYS)]


def begun(balancer, *weights):
    """Return the picker of a first result that was changed once, and its last result.

    The first change of a picker is compared as a whole.
    """
    first = result_of(*instances_of(*weights))
    picker = balancer.get_picker(first)
    change = step(first, *first.instances)
    balancer.rebalance(change)
    if isinstance(picker, ListPicker):
        picker.calls.clear()
    return picker, change.result


# -- always right ---------------------------------------------------------------------------

COPIES = st.builds(
    Instance,
    st.sampled_from([f"10.0.0.{i}:80" for i in range(6)]),
    st.sampled_from([None, 0, -2, 1, 3, 10]),
    network=st.sampled_from(["tcp", "tcp", "unix"]),
    tags=st.sampled_from([{}, {"zone": "a"}]),
    hash_key=st.sampled_from([None, None, "db-0", "db-1"]),
)
UNIQUE = st.lists(COPIES, max_size=6, unique_by=lambda i: i.address)
# What becomes of the event that tells of a result.
FATES = st.sampled_from(["told", "told", "told", "lost", "twice", "by hand", "deleted", "late"])


@pytest.mark.parametrize("name", MAKERS)
@settings(deadline=None, max_examples=120)
@given(
    steps=st.lists(st.tuples(st.one_of(UNIQUE, st.lists(COPIES, max_size=6)), FATES), max_size=8)
)
def test_a_picker_has_what_the_latest_result_has(name, steps):
    """Whatever happens to the events on the way; two of one address or name among them."""
    logging.disable(logging.WARNING)
    try:
        balancer = MAKERS[name]()
        before = told = result_of()
        balancer.get_picker(before)
        older = None
        for instances, fate in steps:
            now = result_of(*instances)
            change = diff("s", before, now)
            before = now
            if fate == "lost":
                continue
            if fate == "deleted":
                balancer.delete(change)
                balancer.get_picker(now)
            elif fate == "by hand":
                # It says what it is to lead to, and nothing of what has changed.
                balancer.rebalance(Change(now))
            else:
                if fate == "late" and older is not None:
                    balancer.rebalance(older)
                balancer.rebalance(change)
                if fate == "twice":
                    balancer.rebalance(change)
            older, told = change, now
            picker = balancer.get_picker(told)
            fresh = MAKERS[name]().get_picker(told)
            assert held(picker) == held(fresh)
            if name == "consist":
                assert owners(picker) == owners(fresh)
    finally:
        logging.disable(logging.NOTSET)


def test_an_event_was_lost(in_place):
    """As many as before, but others: counting alone would not tell."""
    _, first = begun(in_place, 1, 2)
    a, b = first.instances
    c, d = Instance("c:1", 3), Instance("d:1", 4)
    second = step(first, a, c)  # b left, c came: never told
    in_place.rebalance(step(second.result, a, c, d))
    picker = in_place.get_picker(first)
    assert weights_of(picker) == {a.address: 1, "c:1": 3, "d:1": 4}
    assert b not in picker.instances


def test_an_event_comes_twice(in_place):
    picker, first = begun(in_place, 1, 2)
    change = step(first, first.instances[0], Instance("c:1", 3))
    for _ in range(3):
        in_place.rebalance(change)
        assert weights_of(picker) == {"10.0.0.0:80": 1, "c:1": 3}
    if isinstance(picker, ListPicker):
        assert picker.calls == {"add": 1, "remove": 1, "instances": 3}


def test_changes_by_hand_may_overlap():
    """Added again, removed twice, updated but not there: what counts is how things stand."""
    balancer = ListBalancer()
    picker, first = begun(balancer, 1, 2)
    a, b = first.instances
    c = Instance("c:1", 3)
    balancer.rebalance(Change(result_of(a, b, c), added=[c]))
    heavier = Instance("c:1", 7)
    balancer.rebalance(Change(result_of(a, b, heavier), added=[b, heavier]))
    balancer.rebalance(Change(result_of(a, heavier), removed=[b, Instance("unknown:1")]))
    balancer.rebalance(Change(result_of(a, heavier), removed=[b]))
    again = Instance("c:1", 5)
    balancer.rebalance(Change(result_of(a, again), added=[again], removed=[heavier]))
    assert picker.calls == {"add": 1, "set_weight": 2, "replace": 2, "remove": 1}
    d = Instance("d:1", 4)
    balancer.rebalance(Change(result_of(a, again, d), updated=[d]))
    assert weights_of(picker) == {a.address: 1, "c:1": 5, "d:1": 4}


@pytest.mark.parametrize(
    "change",
    [
        Change(result_of(*instances_of(4, 5))),
        Change(result_of(*instances_of(4, 5)), added=[Instance("other:1")]),
        Change(result_of(*instances_of(4, 5)), removed=[instances_of(1)[0]]),
    ],
    ids=["says nothing", "adds another", "removes who is there"],
)
def test_a_change_by_hand_that_is_wrong(in_place, change):
    picker, _ = begun(in_place, 1, 2)
    in_place.rebalance(change)
    assert weights_of(picker) == {"10.0.0.0:80": 4, "10.0.0.1:80": 5}
    assert in_place.get_picker(change.result) is picker


def test_two_of_one_address():
    balancer = ListBalancer()
    picker, first = begun(balancer, 1)
    (tcp,) = first.instances
    unix = Instance(tcp.address, 2, network="unix")
    other = Instance("b:1", 3)
    results = [(tcp, unix), (tcp, unix, other), (tcp, other, tcp), (tcp, other), (unix,), (tcp,)]
    for instances in results:
        change = step(first, *instances)
        first = change.result
        balancer.rebalance(change)
        assert held(picker) == held(ListPicker(instances, [i.weight for i in instances]))


def test_somebody_else_has_changed_the_picker():
    balancer = ListBalancer()
    picker, first = begun(balancer, 1, 2)
    picker.add(Instance("intruder:1"))
    more = (*first.instances, Instance("c:1", 3))
    balancer.rebalance(step(first, *more))
    assert weights_of(picker) == {"10.0.0.0:80": 1, "10.0.0.1:80": 2, "c:1": 3}


# -- in place -------------------------------------------------------------------------------


def test_rotas_ring_is_a_live_picker():
    assert isinstance(consistent().get_picker(result_of()), LivePicker)
    assert isinstance(ListPicker([], []), LivePicker)


def test_who_stays_keeps_its_place(in_place):
    picker, first = begun(in_place, 1, 2, 3)
    a, b, c = first.instances
    change = step(first, c, Instance("d:1", 4), Instance(a.address, 9, version="2"))
    in_place.rebalance(change)
    assert in_place.get_picker(first) is picker
    _, d, newer = change.result.instances
    assert [i for i in picker.instances if i] == [newer, c, d]
    assert picker.instances[0] is newer
    assert picker.instances[2] is c
    in_place.rebalance(step(change.result, c, b))
    assert {i for i in picker.instances if i} == {b, c}
    assert picker.instances[2] is c


def test_a_copy_that_changed_otherwise_is_given_from_now_on(in_place):
    picker, first = begun(in_place, 1)
    newer = Instance(first.instances[0].address, 1, tags={"zone": "b"})
    in_place.rebalance(step(first, newer))
    assert picker.next(None, "k") is newer
    if isinstance(picker, ListPicker):
        assert picker.calls == {"replace": 1}


def test_a_ring_name_outlives_an_address():
    balancer = consistent()
    copies = [Instance(f"10.0.0.{i}:80", hash_key=f"db-{i}") for i in range(3)]
    first = result_of(*copies)
    picker = balancer.get_picker(first)
    balancer.rebalance(step(first, *copies))
    before = [picker.pick_index(key) for key in KEYS]
    elsewhere = Instance("10.9.9.9:80", hash_key="db-1")
    change = step(first, copies[0], elsewhere, copies[2])
    balancer.rebalance(change)
    assert picker.instances == (copies[0], elsewhere, copies[2])
    assert [picker.pick_index(key) for key in KEYS] == before
    # Two change names: nobody's place says who is who any more.
    swapped = [
        Instance(copies[0].address, hash_key="db-2"),
        elsewhere,
        Instance(copies[2].address, hash_key="db-0"),
    ]
    balancer.rebalance(step(change.result, *swapped))
    assert {picker.index_of(i.hash_key) for i in swapped} == {0, 1, 2}
    assert set(picker.instances) == set(swapped)


def test_two_of_one_ring_name_follow_the_rule(caplog):
    balancer = consistent()
    a, b = (Instance(f"{x}:1", 5, hash_key="db") for x in "ab")
    first = result_of(a)
    picker = balancer.get_picker(first)
    balancer.rebalance(step(first, a))
    both = step(first, b, a)
    balancer.rebalance(both)
    assert [i for i in picker.instances if i] == [b]  # the first of the list
    assert "1 of 2 instances have the ring name of another" in caplog.text
    drained = step(both.result, Instance("b:1", 0, hash_key="db"), a)
    balancer.rebalance(drained)
    assert [i for i in picker.instances if i] == [a]  # the first with weight
    assert picker.weights.tolist() == [5]
    balancer.rebalance(step(drained.result, a))
    assert [i for i in picker.instances if i] == [a]


def test_the_drained_keep_their_place_and_are_told_of_once(in_place, caplog):
    picker, first = begun(in_place, 1, 2, 3)
    drained = step(first, *instances_of(1, 0, 3))
    for _ in range(3):
        in_place.rebalance(drained)
        assert weights_of(picker) == {"10.0.0.0:80": 1, "10.0.0.1:80": 0, "10.0.0.2:80": 3}
    both = step(drained.result, *instances_of(-5, -2, 3))
    in_place.rebalance(both)
    in_place.rebalance(step(both.result, *instances_of(-5, 2, 3)))  # fewer are no news
    rest = "of 3 instances have a weight of 0 or less and get no requests"
    assert [record.getMessage() for record in caplog.records] == [
        f"{in_place.name}: 1 {rest}: 10.0.0.1:80",
        f"{in_place.name}: 2 {rest}: 10.0.0.1:80, 10.0.0.0:80",
    ]
    assert weights_of(picker) == {"10.0.0.0:80": 0, "10.0.0.1:80": 2, "10.0.0.2:80": 3}
    assert [i.address for i in picker.instances] == [i.address for i in first.instances]


# -- all or nothing -------------------------------------------------------------------------


def test_a_change_that_fails_leaves_the_picker_as_it_was(make_balancer):
    balancer = make_balancer()
    _, first = begun(balancer, 1, 2, 3)
    picker = balancer.get_picker(first)
    before = held(picker)
    a, b, c = first.instances
    newer = Instance(a.address, 7, version="2")
    heavy = Instance(c.address, 2**62), Instance("e:1", 2**62)
    change = step(first, newer, Instance("d:1", 4), *heavy)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"weights|points"):
            balancer.rebalance(change)
        assert balancer.get_picker(first) is picker
        assert held(picker) == before
        assert {i for i in picker.instances if i} == {a, b, c}
    balancer.rebalance(step(first, newer, b, c))
    assert weights_of(balancer.get_picker(first)) == {a.address: 7, b.address: 2, c.address: 3}


def test_too_much_only_in_between_is_no_failure():
    balancer = ListBalancer()
    picker, first = begun(balancer, 2**62, 1)
    heir = Instance("heir:1", 2**62)
    balancer.rebalance(step(first, heir, first.instances[1]))
    assert weights_of(picker) == {"heir:1": 2**62, "10.0.0.1:80": 1}


class Refusing(ListPicker):
    """Fails at one step of a change, after others have succeeded."""

    refused = None

    def remove(self, index):
        if self.slots[index].address == self.refused:
            self.refused = None
            raise OSError("no")
        super().remove(index)


def test_steps_that_were_made_are_taken_back():
    class Balancer(ListBalancer):
        schedule = Refusing

    balancer = Balancer()
    picker, first = begun(balancer, 1, 2, 3)
    picker.refused = "10.0.0.2:80"
    a, b, c = first.instances
    in_between = []
    picker.update = lambda instances, weights: in_between.append(weights_of(picker))
    change = step(first, Instance(a.address, 9), Instance("d:1", 4))
    balancer.rebalance(change)  # removes b and then c, refused
    assert in_between == [{a.address: 1, b.address: 2, c.address: 3}]


def test_nobody_picks_while_nobody_is_there():
    """All of one list leave as all of another come, and weight goes from one to the other."""

    class Watching(ListPicker):
        seen = None

        def note(self):
            if self.seen is not None:
                self.seen.append(self.next())

        def remove(self, index):
            super().remove(index)
            self.note()

        def set_weight(self, index, weight):
            super().set_weight(index, weight)
            self.note()

    class Balancer(ListBalancer):
        schedule = Watching

    balancer = Balancer()
    picker, first = begun(balancer, 10, 0)
    picker.seen = []
    change = step(first, *instances_of(0, 10))
    balancer.rebalance(change)
    balancer.rebalance(step(change.result, Instance("c:1"), Instance("d:1")))
    assert len(picker.seen) == 4
    assert None not in picker.seen


# -- what it costs --------------------------------------------------------------------------


LAYER = "loadbalance"


def lines_run(call):
    """Return how many lines of the balancers a call runs: what pickers do is their affair."""
    n_lines = 0

    def count(frame, event, argument):
        nonlocal n_lines
        if LAYER not in frame.f_code.co_filename:
            return None
        n_lines += event == "line"
        return count

    tracer = sys.gettrace()
    sys.settrace(count)
    try:
        call()
    finally:
        sys.settrace(tracer)
    return n_lines


def changes(n, result):
    """Yield one change of each kind after another; the first makes room."""
    copies = list(result.instances)
    for edit in (
        lambda: copies.append(Instance("room:1", 5)),
        lambda: copies.append(Instance("new:1", 5)),
        lambda: copies.__setitem__(n // 2, Instance(copies[n // 2].address, 9)),
        lambda: copies.__setitem__(n // 2, Instance(copies[n // 2].address, 9, version="2")),
        lambda: copies.__setitem__(n // 2, Instance(copies[n // 2].address, 0)),
        lambda: copies.pop(0),
        lambda: None,
    ):
        edit()
        change = step(result, *copies)
        result = change.result
        yield change


def test_a_change_costs_what_has_changed(in_place):
    costs = {}
    for n in (10, 1000):
        balancer = MAKERS[in_place.name]()
        picker, first = begun(balancer, *[1 + i % 3 for i in range(n)])
        if isinstance(picker, ListPicker):
            picker.check = lambda more=0: None  # sums up all weights, in a comprehension
            picker.__class__ = CountingOnly
        costs[n] = [lines_run(partial(balancer.rebalance, change)) for change in changes(n, first)]
        del costs[n][0]
        if isinstance(picker, ListPicker):
            costs[n].append(picker.calls)
            assert picker.calls == {
                "add": 2, "set_weight": 2, "replace": 3, "remove": 1,
            }  # fmt: skip
    assert costs[10] == costs[1000]


class CountingOnly(ListPicker):
    """Knows how many it has."""

    def add(self, instance, weight=1):
        self.calls["add"] += 1
        self.slots.append(instance)
        self.weights.append(weight)
        return len(self.slots) - 1

    def __len__(self):
        return len(self.slots) - self.calls["remove"]


def test_the_registry_gives_what_changes_begin_with():
    """So a balancer that misses nothing never has to compare the whole."""
    bus = EventBus()
    registry, balancer = MemoryRegistry(bus), ListBalancer()
    rota.connect(bus, balancer)
    registry.publish("s", *instances_of(1, 2, 3))
    picker = balancer.get_picker(registry.resolve("s"))
    registry.publish("s", Instance("d:1"))
    bus.dispatch_and_wait(Event("marker"))
    picker = balancer.get_picker(registry.resolve("s"))
    registry.publish("s", Instance("e:1"))
    bus.dispatch_and_wait(Event("marker"))
    picker.calls.clear()
    registry.publish("s", Instance("d:1", 7))
    registry.withdraw("s", "10.0.0.0:80")
    bus.dispatch_and_wait(Event("marker"))
    assert picker.calls == {"set_weight": 1, "replace": 1, "remove": 1}
    assert registry.resolve("s") is registry.resolve("s")


# -- taking turns ---------------------------------------------------------------------------


def test_changes_of_one_key_take_turns(make_balancer):
    balancer = make_balancer()
    first = result_of(*instances_of(1, 2, 3))
    balancer.get_picker(first)
    errors, barrier = [], threading.Barrier(4)

    def change(k):
        rng = random.Random(k)
        before = first
        try:
            barrier.wait()
            for _ in range(60):
                addresses = rng.sample(range(12), rng.randrange(1, 9))
                now = [Instance(f"{a}:80", rng.randrange(1, 5)) for a in addresses]
                made = step(before, *now)
                before = made.result
                balancer.rebalance(made)
                if rng.random() < 0.1:
                    balancer.delete(made)
                assert balancer.get_picker(before).next(None, "k") is not None
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=change, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    last = result_of(*instances_of(4, 0, 6))
    balancer.rebalance(step(first, *last.instances))
    assert held(balancer.get_picker(last)) == held(make_balancer().get_picker(last))


def test_a_change_from_within_a_change_is_refused():
    balancer = ListBalancer()
    picker, first = begun(balancer, 1, 2)
    change = step(first, *first.instances, Instance("c:1", 3))
    refused = []

    def finalizer(more):
        if not refused:
            with pytest.raises(RuntimeError, match="within its own change") as raised:
                balancer.rebalance(step(first, Instance("d:1")))
            refused.append(raised)

    picker.check = finalizer
    balancer.rebalance(change)
    assert len(refused) == 1
    assert weights_of(picker) == {"10.0.0.0:80": 1, "10.0.0.1:80": 2, "c:1": 3}


def test_a_delete_during_a_change_leaves_nothing_behind():
    class Deleting(CachingBalancer):
        name = "deleting"

        def build(self, instances):
            if not deleted:
                deleted.append(self.delete(Change(result_of())))
            return rota.RoundRobin(instances)

    deleted = []
    balancer = Deleting()
    balancer.rebalance(Change(result_of(*instances_of(1))))
    assert deleted
    assert balancer._pickers == {}
    assert balancer._turns == {}


def test_a_balancer_that_only_caches_makes_a_picker_anew():
    class Plain(CachingBalancer):
        name = "plain"

        def build(self, instances):
            return ListPicker(instances, [1] * len(instances))

    balancer = Plain()
    picker, first = begun(balancer, 1, 2)
    after = balancer.get_picker(first)
    balancer.rebalance(step(first, *instances_of(1, 2, 3)))
    assert balancer.get_picker(first) is not after
    assert balancer.get_picker(first) is not picker
    assert len(balancer.get_picker(first)) == 3
