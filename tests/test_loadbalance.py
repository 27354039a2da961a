"""Kitex's balancers: recorded edges, caching, single flight, the event bus, users' own."""

import logging
import random
import sys
import threading
from collections import Counter
from math import gcd

import pytest

import rota
from rota import (
    Change,
    Event,
    EventBus,
    Instance,
    InterleavedWeightedRoundRobinBalancer,
    LoadBalancer,
    MemoryRegistry,
    Picker,
    Rebalancer,
    Result,
    WeightedRandomBalancer,
    WeightedRoundRobinBalancer,
)
from rota.loadbalance import WeightedBalancer
from rota.pickers import SplitMix64

BALANCERS = {
    "weight_round_robin": WeightedRoundRobinBalancer,
    "interleaved_weighted_round_robin": InterleavedWeightedRoundRobinBalancer,
    "weight_random": WeightedRandomBalancer,
    "weight_random_with_alias_method": WeightedRandomBalancer,
}


@pytest.fixture(params=[*BALANCERS.values()][:3], ids=lambda cls: cls.name)
def balancer(request):
    return request.param()


def instances_of(*weights):
    return tuple(Instance(f"10.0.0.{i}:80", weight) for i, weight in enumerate(weights))


def cached(*weights, key="s"):
    return Result(True, key, instances_of(*weights))


def test_kitex_edges(vectors):
    """Zero, negative, equal and no weights: who picks, and (rotation 0) in which order."""
    cases = vectors("kitex_balancer_edges")["cases"]
    assert {case["balancer"] for case in cases} == set(BALANCERS)
    for case in cases:
        balancer = BALANCERS[case["balancer"]]()
        assert case["balancer"].startswith(balancer.name)
        instances = instances_of(*case["weights"])
        picker = balancer.get_picker(Result(True, "s", instances))
        index = {instance: i for i, instance in enumerate(instances)} | {None: -1}
        if case["picker"] == "DummyPicker":
            assert [index[picker.next()] for _ in range(10)] == [-1] * 10
            continue
        live = [i for i, weight in enumerate(case["weights"]) if weight > 0]
        picks = [index[picker.next()] for _ in range(100 * len(live))]
        assert set(picks) == set(live)
        if case["picker"] == "RoundRobinPicker":
            # The schedule of equal weights is a plain round robin.
            first = live.index(picks[0])
            assert picks == (live[first:] + live[:first]) * 100, case
        else:
            assert case["picker"] == "randomPicker"
            assert isinstance(picker, rota.WeightedRandom)
        if "picks" in case:
            # Ours begins with a rotation of its own, Kitex's recorded one with element 1.
            picks = rota.RoundRobin(live, start=1).pick_many(len(case["picks"]))
            assert picks == case["picks"], case


def test_kitex_balancer_sequences_up_to_rotation(vectors):
    for name, balancer_class in (
        ("kitex_smooth_wrr", WeightedRoundRobinBalancer),
        ("kitex_interleaved_wrr", InterleavedWeightedRoundRobinBalancer),
    ):
        for case in vectors(name)["cases"]:
            weights = case["weights"]
            instances = instances_of(*weights)
            picker = balancer_class().get_picker(Result(True, "s", instances))
            index = {instance: i for i, instance in enumerate(instances)}
            period = sum(weights) // gcd(*weights) if len(set(weights)) > 1 else len(weights)
            picks = [index[picker.next()] for _ in range(period)]
            assert sorted(Counter(picks).items()) == [
                (i, w * period // sum(weights)) for i, w in enumerate(weights)
            ]


def test_shares_follow_weights(balancer):
    instances = instances_of(10, 20, 50)
    counts = Counter(
        balancer.get_picker(Result(True, "", instances)).next().weight for _ in range(100_000)
    )
    # Random: 5 standard deviations at the most; the schedules are within a cycle.
    assert all(abs(counts[w] - 100_000 * w / 80) < 800 for w in (10, 20, 50))


def test_never_dry(balancer):
    picker = balancer.get_picker(cached(10, 20, 50, 100, 200, 500))
    assert all(picker.next() is not None for _ in range(1000))


def test_the_default_weight_is_ten(balancer):
    assert balancer.get_picker(cached(None, 10, None)).weights.tolist() == [10, 10, 10]
    counts = Counter(
        i.weight for i in balancer.get_picker(cached(None, 30, key="t")).pick_many(40_000)
    )
    assert abs(counts[30] - 30_000) < 500


def test_dropped_weights_are_told_once(balancer, caplog):
    result = cached(0, 5, -3, 7)
    with caplog.at_level(logging.WARNING, logger="rota.loadbalance"):
        for _ in range(5):
            picker = balancer.get_picker(result)
            assert {i.weight for i in picker.pick_many(100)} == {5, 7}
    assert [record.getMessage() for record in caplog.records] == [
        f"{balancer.name}: 2 of 4 instances have a weight of 0 or less and get no requests: "
        "10.0.0.0:80, 10.0.0.2:80"
    ]


def test_dropped_weights_are_told_once_for_uncached_results_too(balancer, caplog):
    for _ in range(5):
        balancer.get_picker(Result(False, "", instances_of(0, 5, 7)))
    assert len(caplog.records) == 1
    balancer.get_picker(Result(False, "", instances_of(0, 0, 7)))
    assert len(caplog.records) == 2


@pytest.mark.parametrize("weights", [(), (0,), (-1, 0)])
def test_nobody_left_gives_none(balancer, weights):
    for result in (cached(*weights), Result(False, "", instances_of(*weights))):
        picker = balancer.get_picker(result)
        assert picker.next() is None
        assert list(rota.attempts(picker)) == []


# -- caching --------------------------------------------------------------------------------


def test_one_picker_for_each_key(balancer):
    one = balancer.get_picker(cached(1, 2))
    assert balancer.get_picker(cached(3, 4)) is one  # the key counts
    assert balancer.get_picker(cached(1, 2, key="t")) is not one
    uncached = Result(False, "s", instances_of(1, 2))
    assert balancer.get_picker(uncached) is not balancer.get_picker(uncached)


def test_rebalance_replaces_and_delete_drops(balancer):
    before = balancer.get_picker(cached(1, 2))
    balancer.rebalance(Change(cached(1, 2, 9)))
    after = balancer.get_picker(cached(1, 2))
    assert {i.address for i in after.pick_many(500)} == {i.address for i in instances_of(1, 2, 9)}
    assert after is balancer.get_picker(cached())
    balancer.delete(Change(cached()))
    dropped = balancer.get_picker(cached(4))
    assert dropped not in (before, after)
    assert dropped.next() == instances_of(4)[0]
    balancer.delete(Change(cached(key="unknown")))


def test_changes_of_what_may_not_be_cached_are_ignored(balancer):
    one = balancer.get_picker(cached(1, 2))
    for change in (Change(Result(False, "s", instances_of(9))), Change(Result(False, "s"))):
        balancer.rebalance(change)
        balancer.delete(change)
    assert balancer.get_picker(cached(1, 2)) is one


def test_a_bad_change_changes_nothing(balancer):
    one = balancer.get_picker(cached(1, 2))
    with pytest.raises(ValueError, match="weights"):
        balancer.rebalance(Change(cached(2**62, 2**62 + 1)))
    assert balancer.get_picker(cached(1, 2)) is one


def test_a_result_that_may_not_be_cached_starves_nobody(balancer):
    """Kitex's smooth balancer serves 0 of 5,000 requests by the heaviest here."""
    result = Result(False, "", instances_of(3, 1, 1))
    counts = Counter(balancer.get_picker(result).next().address for _ in range(5000))
    # 5 standard deviations of 5,000 draws at 3/5: 173; at 1/5: 141.
    for instance in result.instances:
        assert abs(counts[instance.address] - 1000 * instance.weight) < 175
    equal = Result(False, "", instances_of(7, 7, 7))
    counts = Counter(balancer.get_picker(equal).next().address for _ in range(3000))
    assert all(abs(count - 1000) < 130 for count in counts.values())
    assert len(counts) == 3


def test_a_seeded_balancer_repeats_itself_but_not_its_pickers():
    for cls in list(BALANCERS.values())[:3]:
        result = Result(False, "", instances_of(3, 1, 1))

        def picks(balancer, result=result):
            return [balancer.get_picker(result).next().address for _ in range(300)]

        one = picks(cls(seed=7))
        assert one == picks(cls(seed=7))
        assert len(set(one)) == 3
        with pytest.raises(ValueError, match="seed"):
            cls(seed=-1)


class Slow(WeightedBalancer):
    """Counts what it builds, and can be held up in the middle of it."""

    name = "slow"

    def __init__(self):
        super().__init__()
        self.n_built = 0
        self.started, self.go_on = threading.Event(), threading.Event()

    def get_picker(self, result):
        SLOW.balancer = self
        return super().get_picker(result)

    @staticmethod
    def schedule(instances, weights, *, seed):
        self = getattr(SLOW, "balancer", None)
        if self is None:  # a change, on a thread that has asked for no picker
            return rota.WeightedRoundRobin(instances, weights, seed=seed)
        self.n_built += 1
        self.started.set()
        assert self.go_on.wait(60)
        return rota.WeightedRoundRobin(instances, weights, seed=seed)


SLOW = threading.local()


def test_single_flight():
    balancer = Slow()
    pickers, barrier = [], threading.Barrier(33)

    def get():
        barrier.wait()
        pickers.append(balancer.get_picker(cached(1, 2, 3)))

    threads = [threading.Thread(target=get) for _ in range(32)]
    for thread in threads:
        thread.start()
    barrier.wait()
    assert balancer.started.wait(60)
    balancer.go_on.set()
    for thread in threads:
        thread.join()
    assert balancer.n_built == 1
    assert len(pickers) == 32
    assert len(set(map(id, pickers))) == 1
    assert balancer._flights == {}


def test_a_change_while_a_picker_is_made_wins():
    balancer = Slow()
    got = []
    thread = threading.Thread(target=lambda: got.append(balancer.get_picker(cached(1, 2))))
    thread.start()
    assert balancer.started.wait(60)
    newer = cached(5, 5, 5)
    balancer.rebalance(Change(newer))  # not held up: it makes its own
    balancer.go_on.set()
    thread.join()
    assert got[0] is balancer.get_picker(cached(1, 2))
    assert {i.weight for i in got[0].pick_many(9)} == {5}


def test_a_delete_while_a_picker_is_made_leaves_nothing_behind():
    balancer = Slow()
    got = []
    thread = threading.Thread(target=lambda: got.append(balancer.get_picker(cached(1, 2))))
    thread.start()
    assert balancer.started.wait(60)
    balancer.delete(Change(cached()))
    balancer.go_on.set()
    thread.join()
    assert got[0].next() is not None
    assert balancer._pickers == {}
    assert balancer._flights == {}


def test_many_threads_many_keys_one_picker_each():
    balancer = WeightedRoundRobinBalancer()
    got, barrier = [[] for _ in range(200)], threading.Barrier(6)

    def get():
        for k in range(200):
            barrier.wait()
            got[k].append(balancer.get_picker(cached(1, 2, key=str(k))))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=get) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert [len(set(map(id, pickers))) for pickers in got] == [1] * 200
    assert balancer._flights == {}


def test_a_picker_that_cannot_be_made_does_not_block_the_next():
    balancer = WeightedRoundRobinBalancer()
    for _ in range(2):
        with pytest.raises(ValueError, match="weights"):
            balancer.get_picker(cached(2**62, 2**62 + 1))
    assert balancer.get_picker(cached(1, 2)).next() is not None
    assert balancer._flights == {}


def test_threads_and_changes_together(balancer):
    """8 threads get and pick while the list changes; every pick is of some list."""
    lists = [instances_of(*weights) for weights in ((1, 2), (5, 0, 3), (4, 4, 4), (9,))]
    known = {instance for instances in lists for instance in instances}
    stop, errors = threading.Event(), []

    def pick():
        try:
            while not stop.is_set():
                picker = balancer.get_picker(Result(True, "s", lists[0]))
                for _ in range(100):
                    assert picker.next() in known
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=pick) for _ in range(8)]
    for thread in threads:
        thread.start()
    rng = random.Random(1)
    for _ in range(300):
        change = Change(Result(True, "s", rng.choice(lists)))
        (balancer.delete if rng.random() < 0.2 else balancer.rebalance)(change)
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []


# -- the event bus --------------------------------------------------------------------------


def test_a_connected_balancer_follows_discovery(balancer):
    bus = EventBus()
    registry = MemoryRegistry(bus)
    disconnect = rota.connect(bus, balancer)
    registry.publish("s", *instances_of(1, 2, 3))
    bus.dispatch_and_wait(Event("marker"))
    result = registry.resolve("s")

    def addresses():
        return {i.address[-4:] for i in balancer.get_picker(result).pick_many(200)}

    assert addresses() == {"0:80", "1:80", "2:80"}
    registry.withdraw("s", "10.0.0.1:80")
    bus.dispatch_and_wait(Event("marker"))
    assert addresses() == {"0:80", "2:80"}
    registry.delete("s")
    bus.dispatch_and_wait(Event("marker"))
    assert balancer._pickers == {}
    disconnect()
    disconnect()
    registry.publish("s", *instances_of(1, 2, 3))
    bus.dispatch_and_wait(Event("marker"))
    assert balancer._pickers == {}


def test_events_without_a_change_are_ignored(balancer):
    bus = EventBus()
    rota.connect(bus, balancer)
    bus.dispatch_and_wait(Event("discovery_change", extra="?"))
    bus.dispatch_and_wait(Event("discovery_delete"))
    assert balancer._pickers == {}


def test_only_rebalancers_can_be_connected():
    with pytest.raises(TypeError, match="balancer"):
        rota.connect(EventBus(), object())


# -- users' own -----------------------------------------------------------------------------


class FirstPicker:
    """A user's picker: `next` and nothing else."""

    def __init__(self, instances):
        self.instances = list(instances)

    def next(self, ctx=None, request=None):
        if not self.instances:
            return None
        self.instances.append(self.instances.pop(0))
        return self.instances[-1]


class OwnBalancer:
    """A user's balancer: not derived from anything of ours."""

    name = "own"

    def __init__(self):
        self.pickers = {}

    def get_picker(self, result):
        return self.pickers.setdefault(result.cache_key, FirstPicker(result.instances))

    def rebalance(self, change):
        self.pickers[change.result.cache_key] = FirstPicker(change.result.instances)

    def delete(self, change):
        self.pickers.pop(change.result.cache_key, None)


def test_a_users_balancer_and_picker_work_everywhere():
    balancer, bus = OwnBalancer(), EventBus()
    registry = MemoryRegistry(bus)
    assert isinstance(balancer, LoadBalancer)
    assert isinstance(balancer, Rebalancer)
    rota.connect(bus, balancer)
    registry.publish("s", *instances_of(1, 2, 3))
    bus.dispatch_and_wait(Event("marker"))
    picker = balancer.get_picker(registry.resolve("s"))
    assert isinstance(picker, Picker)
    assert sorted(i.weight for i in rota.attempts(picker)) == [1, 2, 3]
    attempts = rota.attempts(picker, "ctx", "request")
    assert [attempts.next() is None for _ in range(4)] == [False, False, False, True]
    registry.withdraw("s", *[i.address for i in instances_of(1, 2, 3)])
    bus.dispatch_and_wait(Event("marker"))
    assert list(rota.attempts(balancer.get_picker(registry.resolve("s")))) == []


def test_a_users_picker_in_our_balancer():
    class Own(WeightedBalancer):
        name = "own_schedule"

        @staticmethod
        def schedule(instances, weights, *, seed):
            return FirstPicker([who for who, w in zip(instances, weights, strict=True) if w])

    balancer = Own()
    picker = balancer.get_picker(cached(1, 2, 3))
    assert isinstance(picker, FirstPicker)
    # It has no way to be changed: another takes its place.
    balancer.rebalance(Change(cached(4, 0), added=instances_of(4, 0)))
    after = balancer.get_picker(cached())
    assert isinstance(after, FirstPicker)
    assert after is not picker
    assert after.instances == [*instances_of(4)]


@pytest.mark.parametrize(
    "balancer_class", [WeightedRoundRobinBalancer, InterleavedWeightedRoundRobinBalancer]
)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_equal_weights_are_served_in_turn(balancer_class, n):
    instances = instances_of(*[10] * n)
    picker = balancer_class(seed=5).get_picker(Result(True, "s", instances))
    own = SplitMix64(5).next()
    assert picker.pick_many(3 * n) == rota.RoundRobin(instances, seed=own).pick_many(3 * n)


def test_our_balancers_and_pickers_are_what_the_protocols_say(balancer):
    assert isinstance(balancer, LoadBalancer)
    assert isinstance(balancer, Rebalancer)
    assert isinstance(balancer.get_picker(cached(1, 2)), Picker)


def test_services_that_take_turns_are_told_of_once(caplog):
    """Not once a request, where results may not be cached."""
    balancer = WeightedRoundRobinBalancer()
    for _ in range(20):
        for name in ("a", "b", "c"):
            balancer.get_picker(Result(instances=[Instance(name, 0), Instance(name + "1", 1)]))
    assert len(caplog.records) == 3
