"""From a name to a live picker: Kitex's lbcache, on threads and on asyncio."""

import asyncio
import contextlib
import contextvars
import gc
import json
import logging
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

import rota
from rota import (
    AsyncBalancerFactory,
    BalancerFactory,
    Change,
    EventBus,
    Instance,
    Result,
    UpdatePolicy,
    WeightedRandomBalancer,
    WeightedRoundRobinBalancer,
    diff,
)
from rota.discovery import SynthesizedResolver
from rota.loadbalance import ServiceBalancer, dump
from rota.loadbalance.factory import _lock
from rota.loadbalance.following import Followed
from rota.selector import p2c
from tests.virtual_time import run

AT_ONCE = UpdatePolicy(empty_grace=0, debounce=0)


class Source:
    """A resolver whose answers the test decides: it is polled."""

    def __init__(self, name="source"):
        self.name = name
        self.services = {}
        self.n_resolved = {}
        self.error = None
        self.delay = 0.0

    def put(self, desc, *instances):
        self.services[desc] = tuple(
            Instance(each) if isinstance(each, str) else each for each in instances
        )

    def target(self, endpoint):
        return endpoint.removeprefix("discovery:///")

    async def resolve(self, desc):
        self.n_resolved[desc] = self.n_resolved.get(desc, 0) + 1
        await asyncio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        return Result(True, desc, self.services[desc])

    def diff(self, cache_key, prev, next):
        return diff(cache_key, prev, next)


class Pushing(Source):
    """A resolver whose source pushes."""

    def __init__(self):
        super().__init__("pushing")
        self.queues = {}
        self.n_watches = 0

    async def watch(self, desc):
        self.n_watches += 1
        queue = self.queues[desc] = asyncio.Queue()
        try:
            yield Result(True, desc, self.services[desc])
            while True:
                said = await queue.get()
                if isinstance(said, Exception):
                    raise said
                yield said
        finally:
            del self.queues[desc]

    def push(self, desc, *instances):
        self.put(desc, *instances)
        self.queues[desc].put_nowait(Result(True, desc, self.services[desc]))


class Blocking:
    """A resolver that blocks its thread."""

    name = "blocking"

    def __init__(self):
        self.instances = (Instance("a"), Instance("b"))
        self.n_resolved = 0
        self.gate = threading.Event()
        self.gate.set()

    def target(self, endpoint):
        return endpoint

    def resolve(self, desc):
        self.n_resolved += 1
        assert self.gate.wait(60)
        return Result(True, desc, self.instances)

    def diff(self, cache_key, prev, next):
        return diff(cache_key, prev, next)


class Recorder:
    """A balancer that writes down what it is told, and caches as it is told."""

    name = "recorder"

    def __init__(self):
        self.told = []
        self.pickers = {}

    def get_picker(self, result):
        return self.pickers.setdefault(result.cache_key, rota.RoundRobin(result.instances))

    def rebalance(self, change):
        self.told.append(("rebalance", change))
        self.pickers[change.result.cache_key] = rota.RoundRobin(change.result.instances)

    def delete(self, change):
        self.told.append(("delete", change))
        self.pickers.pop(change.result.cache_key, None)


def addresses(holder):
    return sorted(instance.address for instance in holder.instances)


def picked(holder, n=100):
    picker = holder.get_picker()
    return {getattr(picker.next(), "address", None) for _ in range(n)}


def until(condition, seconds=30):
    """Wait for a condition that another thread brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


# -- from a name to a picker ------------------------------------------------------------------


def test_a_name_becomes_a_picker():
    source = Source()
    source.put("users", Instance("a", 5), Instance("b", 1))
    with BalancerFactory(source, WeightedRoundRobinBalancer(seed=1)) as factory:
        users = factory.get("discovery:///users")
        assert isinstance(users, ServiceBalancer)
        assert users.target == "users"
        assert users is factory.get("users")
        assert [i.address for i in users.get_picker().pick_many(6)].count("a") == 5
        assert users.result == Result(True, "source:users", source.services["users"])
        assert repr(users) == "ServiceBalancer('users', 2 instances)"
        assert "1 services" in repr(factory)
        assert 0 <= users.age < 60
        assert factory.ages().keys() == {"users"}


def test_the_key_has_the_resolvers_name():
    """Two resolvers may have a service of one name, and share a balancer."""

    async def main():
        sources = Source("here"), Source("there")
        for source in sources:
            source.put("users", source.name)
        balancer = WeightedRoundRobinBalancer()
        here, there = (AsyncBalancerFactory(source, balancer) for source in sources)
        assert picked(await here.get("users")) == {"here"}
        assert picked(await there.get("users")) == {"there"}

    run(main())


def test_an_error_is_told_and_nothing_is_kept():
    source = Source()
    source.put("users", "a")
    source.error = ConnectionError("no registry")
    with BalancerFactory(source, WeightedRoundRobinBalancer()) as factory:
        for _ in range(2):
            with pytest.raises(ConnectionError, match="no registry"):
                factory.get("users")
        assert factory.dump() == {}
        assert source.n_resolved == {"users": 2}
        source.error = None
        assert picked(factory.get("users")) == {"a"}


def test_what_is_no_result_is_refused():
    with (
        BalancerFactory(
            SynthesizedResolver(lambda desc: ["a"], name="odd"), WeightedRoundRobinBalancer()
        ) as factory,
        pytest.raises(TypeError, match=r"odd must resolve to a Result, got \['a'\]"),
    ):
        factory.get("users")


def test_results_that_may_not_be_cached_get_a_picker_each_time():
    async def main():
        resolver = SynthesizedResolver(lambda desc: Result(False, "", [Instance("a")]))
        factory = AsyncBalancerFactory(resolver, WeightedRoundRobinBalancer())
        users = await factory.get("users")
        assert users.get_picker() is not users.get_picker()
        assert picked(users) == {"a"}
        await factory.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((None, WeightedRoundRobinBalancer()), TypeError, "resolver must have a name"),
        ((Source(), None), TypeError, "balancer must have a name and get_picker, got None"),
        ((Source(), p2c()), TypeError, r"rota.clients.SelectorBalancer\(builder\)"),
    ],
)
def test_parts_of_another_kind_are_refused(arguments, error, text):
    for kind in (BalancerFactory, AsyncBalancerFactory):
        with pytest.raises(error, match=text):
            kind(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"refresh": 0}, ValueError, "refresh must be in"),
        ({"expire": "x"}, TypeError, "expire must be a number of seconds, got 'x'"),
        ({"updates": 3}, TypeError, "updates must be an UpdatePolicy or None, got 3"),
        ({"bus": 3}, TypeError, "bus must be an EventBus or None, got 3"),
    ],
)
def test_options_of_no_use_are_refused(options, error, text):
    for kind in (BalancerFactory, AsyncBalancerFactory):
        with pytest.raises(error, match=text):
            kind(Source(), WeightedRoundRobinBalancer(), **options)


def test_hooks_must_be_callable():
    factory = BalancerFactory(Source(), WeightedRoundRobinBalancer())
    for add in (factory.add_rebalance_hook, factory.add_delete_hook):
        with pytest.raises(TypeError, match="hook must be callable, got 3"):
            add(3)


# -- once, whoever asks ------------------------------------------------------------------------


def test_32_threads_at_once_resolve_a_service_once():
    source = Blocking()
    source.gate.clear()
    balancer = WeightedRoundRobinBalancer()
    with BalancerFactory(source, balancer) as factory, ThreadPoolExecutor(32) as executor:
        calls = [executor.submit(factory.get, "users") for _ in range(32)]
        until(lambda: source.n_resolved)
        time.sleep(0.05)
        source.gate.set()
        holders = {call.result(60) for call in calls}
        assert len(holders) == 1
        assert source.n_resolved == 1


def test_1000_tasks_at_once_resolve_each_service_once():
    async def main():
        source = Source()
        source.delay = 1
        for k in range(10):
            source.put(f"s{k}", "a")
        async with AsyncBalancerFactory(source, WeightedRoundRobinBalancer()) as factory:
            holders = await asyncio.gather(*[factory.get(f"s{k % 10}") for k in range(1000)])
            assert len(set(holders)) == 10
            assert source.n_resolved == {f"s{k}": 1 for k in range(10)}

    run(main())


def test_one_error_is_everybodys():
    async def main():
        source = Source()
        source.error = ConnectionError("no registry")
        source.delay = 1
        factory = AsyncBalancerFactory(source, WeightedRoundRobinBalancer())
        answers = await asyncio.gather(
            *[factory.get("users") for _ in range(100)], return_exceptions=True
        )
        assert {str(answer) for answer in answers} == {"no registry"}
        assert source.n_resolved == {"users": 1}

    run(main())


def test_who_gives_up_waiting_leaves_it_to_the_others():
    async def main():
        source = Source()
        source.put("users", "a")
        source.delay = 10
        factory = AsyncBalancerFactory(source, WeightedRoundRobinBalancer())
        first = asyncio.create_task(factory.get("users"))
        second = asyncio.create_task(factory.get("users"))
        await asyncio.sleep(1)
        first.cancel()
        assert picked(await second) == {"a"}
        assert first.cancelled()
        assert source.n_resolved == {"users": 1}

    run(main())


def test_a_timeout_is_the_callers_alone():
    source = Blocking()
    source.gate.clear()
    with BalancerFactory(source, WeightedRoundRobinBalancer()) as factory:
        # Python 3.10 has several of that name.
        with pytest.raises(Exception) as caught:  # noqa: PT011
            factory.get("users", timeout=0.01)
        assert type(caught.value).__name__ == "TimeoutError"
        source.gate.set()
        assert picked(factory.get("users")) == {"a", "b"}


# -- following ---------------------------------------------------------------------------------


def test_a_service_is_looked_at_every_refresh():
    async def main():
        source = Source()
        source.put("users", "a")
        factory = AsyncBalancerFactory(source, WeightedRoundRobinBalancer(), refresh=5)
        users = await factory.get("users")
        picker = users.get_picker()
        source.put("users", "a", "b")
        await asyncio.sleep(4.4)
        assert addresses(users) == ["a"]
        await asyncio.sleep(1.2)
        assert addresses(users) == ["a", "b"]
        assert picked(users) == {"a", "b"}
        assert users.get_picker() is picker  # changed in place
        before = source.n_resolved["users"]
        await asyncio.sleep(1000)
        # Spread, so that clients that started together do not ask together for ever.
        assert 180 <= source.n_resolved["users"] - before <= 222

    run(main())


def test_refresh_looks_now():
    source = Source()
    source.put("users", "a")
    source.put("orders", "x")
    with BalancerFactory(source, WeightedRoundRobinBalancer(), updates=AT_ONCE) as factory:
        users, orders = factory.get("users"), factory.get("orders")
        source.put("users", "b")
        source.put("orders", "y")
        factory.refresh("users")
        assert picked(users) == {"b"}
        assert picked(orders) == {"x"}
        factory.refresh()
        assert picked(orders) == {"y"}
        with pytest.raises(LookupError, match="endpoint must be of a service that is followed"):
            factory.refresh("nobody")
        source.error = ConnectionError("no registry")
        with pytest.raises(ConnectionError):
            factory.refresh()
        assert picked(users) == {"b"}


def test_what_is_pushed_is_there_at_once():
    async def main():
        source = Pushing()
        source.put("users", "a")
        factory = AsyncBalancerFactory(source, WeightedRoundRobinBalancer(), updates=AT_ONCE)
        users = await factory.get("users")
        await asyncio.sleep(0)
        await asyncio.sleep(1)
        source.push("users", "a", "b")
        await asyncio.sleep(0.001)
        assert picked(users) == {"a", "b"}
        await asyncio.sleep(1000)
        assert source.n_resolved == {"users": 1}  # there is no need to ask
        await factory.close()
        assert source.queues == {}

    run(main())


def test_a_watch_that_breaks_is_begun_anew_later_each_time(caplog):
    async def main():
        source = Pushing()
        source.put("users", "a")
        factory = AsyncBalancerFactory(source, WeightedRoundRobinBalancer(), refresh=5)
        users = await factory.get("users")
        await asyncio.sleep(1)
        source.put("users", "b")
        source.queues["users"].put_nowait(ConnectionError("gone"))
        await asyncio.sleep(0.2)
        assert source.n_watches == 2
        assert picked(users) == {"b"}
        watch, source.watch = source.watch, None

        def broken(desc):
            source.n_watches += 1
            raise ConnectionError("gone for good")

        source.watch = broken
        source.queues["users"].put_nowait(ConnectionError("gone"))
        await asyncio.sleep(1000)
        assert 170 <= source.n_watches <= 240
        assert picked(users) == {"b"}
        assert users.age < 60  # of real time
        source.watch = watch
        source.put("users", "c")
        await asyncio.sleep(10)
        assert picked(users) == {"c"}

    with caplog.at_level(logging.INFO, "rota"):
        run(main())
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "pushing: users cannot be found, its 1 instances are kept: ConnectionError: gone",
        "pushing: users is found again",
        "pushing: users cannot be found, its 1 instances are kept: ConnectionError: gone",
        "pushing: users is found again",
    ]


def test_errors_keep_the_last_list_and_are_told_once(caplog):
    async def main():
        source = Source()
        source.put("users", "a")
        factory = AsyncBalancerFactory(source, WeightedRoundRobinBalancer(), refresh=5)
        users = await factory.get("users")
        source.error = ConnectionError("no registry")
        await asyncio.sleep(1000)
        assert picked(users) == {"a"}
        source.error = None
        source.put("users", "b")
        await asyncio.sleep(10)
        assert picked(users) == {"b"}

    with caplog.at_level(logging.INFO, "rota"):
        run(main())
    assert [record.getMessage() for record in caplog.records] == [
        "source: users cannot be found, its 1 instances are kept: ConnectionError: no registry",
        "source: users is found again",
    ]


def test_age_says_how_long_discovery_has_been_silent():
    source = Blocking()
    with BalancerFactory(source, WeightedRoundRobinBalancer(), refresh=0.01) as factory:
        users = factory.get("users")
        until(lambda: source.n_resolved > 3)
        source.gate.clear()
        until(lambda: users.age > 0.2)
        assert factory.ages()["users"] > 0.2
        source.gate.set()
        until(lambda: users.age < 0.2)


def test_one_slow_service_delays_no_other():
    """Kitex's ticker waits for all (K12)."""

    async def main():
        source = Source()
        source.put("slow", "a")
        source.put("fast", "a")
        resolve = source.resolve

        async def resolve_slowly(desc):
            if desc == "slow" and source.n_resolved.get("slow"):
                await asyncio.sleep(1e6)
            return await resolve(desc)

        source.resolve = resolve_slowly
        factory = AsyncBalancerFactory(source, WeightedRoundRobinBalancer(), refresh=5)
        held = [await factory.get("slow"), await factory.get("fast")]
        await asyncio.sleep(100)
        assert source.n_resolved["slow"] == 1
        assert source.n_resolved["fast"] >= 18
        del held

    run(main())


def test_an_empty_list_is_held_back_and_then_believed():
    """Kitex believes it at once, and fails every request (K11)."""

    async def main():
        source = Source()
        source.put("users", "a", "b")
        factory = AsyncBalancerFactory(source, WeightedRoundRobinBalancer(), refresh=5)
        users = await factory.get("users")
        source.put("users")
        await asyncio.sleep(30)
        assert picked(users) == {"a", "b"}
        await asyncio.sleep(10)  # 30 s after it was first said, and no later
        assert picked(users) == {None}
        source.put("users", "c")
        await asyncio.sleep(6)
        assert picked(users) == {"c"}

    run(main())


def test_tags_are_an_update():
    """Kitex's diff does not look at them (K10)."""

    async def main():
        source = Source()
        source.put("users", Instance("a", tags={"zone": "1"}))
        balancer = Recorder()
        factory = AsyncBalancerFactory(source, balancer, refresh=5)
        users = await factory.get("users")
        source.put("users", Instance("a", tags={"zone": "2"}))
        await asyncio.sleep(6)
        ((what, change),) = balancer.told
        assert what == "rebalance"
        assert change.updated == users.instances
        assert users.get_picker().next().tags == {"zone": "2"}

    run(main())


def test_bursts_are_gathered():
    async def main():
        source = Pushing()
        source.put("users", "a")
        balancer = Recorder()
        factory = AsyncBalancerFactory(source, balancer, updates=UpdatePolicy(debounce=0.1))
        users = await factory.get("users")
        await asyncio.sleep(1)
        for k in range(1000):
            source.push("users", "a", f"b{k}")
            await asyncio.sleep(0.00015)
        await asyncio.sleep(1)
        assert addresses(users) == ["a", "b999"]
        assert len(balancer.told) == 3  # the first, and two for 0.1 s each

    run(main())


def test_steps_bring_out_no_more_than_a_share():
    async def main():
        source = Source()
        source.put("users", *"abcdefghij")
        policy = UpdatePolicy(max_removed=0.5, step=2)
        factory = AsyncBalancerFactory(
            source, WeightedRoundRobinBalancer(), refresh=5, updates=policy
        )
        users = await factory.get("users")
        source.put("users", "a")
        await factory.refresh("users")
        sizes = []
        for _ in range(5):
            sizes.append(len(picked(users)))
            await asyncio.sleep(2.001)
        assert sizes == [5, 3, 2, 1, 1]

    run(main())


def test_a_change_that_failed_is_made_later():
    class Failing(Recorder):
        is_failing = True

        def rebalance(self, change):
            if self.is_failing:
                raise RuntimeError("not now")
            super().rebalance(change)

    async def main():
        source = Pushing()
        source.put("users", "a")
        balancer = Failing()
        factory = AsyncBalancerFactory(source, balancer, refresh=5, updates=AT_ONCE)
        users = await factory.get("users")
        assert picked(users) == {"a"}
        await asyncio.sleep(1)
        source.push("users", "b")
        await asyncio.sleep(1)
        assert addresses(users) == ["a"]  # what the picker has
        balancer.is_failing = False
        await asyncio.sleep(5)
        assert picked(users) == {"b"}
        ((_, change),) = balancer.told
        assert change == Change(users.result, added=(Instance("b"),), removed=(Instance("a"),))

    run(main())


def test_a_balancer_that_keeps_nothing_gets_each_result():
    class Plain:
        name = "plain"

        def get_picker(self, result):
            return rota.RoundRobin(result.instances)

    async def main():
        source = Source()
        source.put("users", "a")
        factory = AsyncBalancerFactory(source, Plain(), refresh=5)
        users = await factory.get("users")
        assert picked(users) == {"a"}
        source.put("users", "b")
        await asyncio.sleep(6)
        assert picked(users) == {"b"}

    run(main())


def test_changes_begin_where_the_picker_is(monkeypatch):
    """So that they cost what has changed, however often nothing has."""
    wholes = []
    go_over = Followed.go_over
    monkeypatch.setattr(
        Followed, "go_over", lambda self, *rest: wholes.append(1) or go_over(self, *rest)
    )

    async def main():
        source = Source()
        instances = [Instance(f"h{k}", k % 7 + 1) for k in range(1000)]
        source.put("users", *instances)
        factory = AsyncBalancerFactory(source, WeightedRoundRobinBalancer(), refresh=5)
        users = await factory.get("users")
        users.get_picker()
        for k in range(20):
            # Equal ones made anew, as from a registry that is read again.
            instances = [Instance(i.address, i.weight) for i in instances]
            if k % 3 == 0:
                instances[k] = Instance(f"h{k}", 9)
            source.put("users", *instances)
            await asyncio.sleep(6)
        assert list(users.get_picker().weights) == [i.weight for i in users.instances]
        assert [users.instances[k].weight for k in (0, 3, 18)] == [9, 9, 9]

    run(main())
    assert len(wholes) == 1  # the first, of a picker that was only just made


# -- hooks and events --------------------------------------------------------------------------


def test_hooks_fire_before_the_change_and_before_the_end():
    """Kitex's delete hooks never do (K7)."""

    async def main():
        source = Source()
        source.put("users", "a")
        balancer = Recorder()
        factory = AsyncBalancerFactory(source, balancer, refresh=5)
        told = []
        ends = [
            factory.add_rebalance_hook(lambda c: told.append(("r", c, len(balancer.told)))),
            factory.add_delete_hook(lambda c: told.append(("d", c, len(balancer.told)))),
        ]
        held = await factory.get("users")
        source.put("users", "b")
        await asyncio.sleep(6)
        ((what, change, n_told),) = told
        assert (what, n_told) == ("r", 0)
        assert balancer.told == [("rebalance", change)]
        del held
        await asyncio.sleep(31)  # 15 s unused, and looked at every 15 s
        what, change, n_told = told[-1]
        assert (what, n_told) == ("d", 1)
        assert change.result == Result(True, "source:users")
        assert change.removed == (Instance("b"),)
        assert balancer.told[-1] == ("delete", change)
        assert len(told) == 2
        for end in ends:
            end()
        await factory.get("users")
        await factory.close()
        assert len(told) == 2
        assert len(balancer.told) == 3

    run(main())


def test_a_hook_that_fails_hinders_nobody(caplog):
    async def main():
        source = Source()
        source.put("users", "a")
        balancer = Recorder()
        factory = AsyncBalancerFactory(source, balancer, refresh=5)
        factory.add_rebalance_hook(lambda change: 1 / 0)
        factory.add_delete_hook(lambda change: 1 / 0)
        users = await factory.get("users")
        source.put("users", "b")
        await asyncio.sleep(6)
        assert picked(users) == {"b"}
        await factory.close()
        assert [what for what, _ in balancer.told] == ["rebalance", "delete"]

    run(main())
    assert [r.exc_info[0] for r in caplog.records] == [ZeroDivisionError] * 2


def test_events_go_to_the_queue_and_the_bus():
    bus = EventBus()
    heard = []
    for name in ("discovery_change", "discovery_delete"):
        bus.watch(name, heard.append)
    source = Source()
    source.put("users", "a")
    other = WeightedRandomBalancer()
    rota.connect(bus, other)
    with BalancerFactory(source, WeightedRoundRobinBalancer(), updates=AT_ONCE, bus=bus) as factory:
        users = factory.get("users")
        picker = other.get_picker(users.result)
        for k in range(300):
            source.put("users", "a", Instance("b", k + 1))
            factory.refresh()
        until(lambda: len(heard) == 300)
        assert all(isinstance(event.extra, Change) for event in heard)
        assert other.get_picker(users.result) is picker
        assert list(picker.weights) == [10, 300]
        assert len(factory.events) == 200
        newest = factory.events.dump()[0]
        assert newest.name == "discovery_change"
        assert newest.detail == "source:users"
        assert newest.extra == {
            "key": "source:users",
            "added": [],
            "updated": [{"address": "tcp://b", "weight": 300}],
            "removed": [],
            "n_added": 0,
            "n_updated": 1,
            "n_removed": 0,
        }
    until(lambda: len(heard) == 301)
    assert heard[-1].name == "discovery_delete"
    assert factory.events.dump()[0].name == "discovery_delete"


def test_events_of_large_changes_name_some():
    source = Source()
    source.put("users", "a")
    with BalancerFactory(source, WeightedRoundRobinBalancer(), updates=AT_ONCE) as factory:
        factory.get("users")
        source.put("users", "a", *[f"b{k}" for k in range(1000)])
        factory.refresh()
        extra = factory.events.dump()[0].extra
        assert (len(extra["added"]), extra["n_added"]) == (100, 1000)
        json.dumps(extra)


def test_dump_has_every_factory():
    """Kitex's has those alone that are shared (K16)."""
    source = Source()
    source.put("users", Instance("a", 3), Instance("/run/b", network="unix"))
    with (
        BalancerFactory(source, Recorder()) as one,
        BalancerFactory(source, Recorder()) as two,
    ):
        one.get("users")
        assert one.name == "source|recorder|{5s 15s}"
        instances = [
            {"address": "tcp://a", "weight": 3},
            {"address": "unix:///run/b", "weight": None},
        ]
        assert one.dump() == {"users": instances}
        found = dump()
        dumps = [found[name] for name in (one.name, f"{one.name}#2")]
        assert {} in dumps
        assert {"users": instances} in dumps
        del two


# -- the end -----------------------------------------------------------------------------------


def test_what_is_not_used_is_forgotten_after_one_to_two_intervals():
    async def main():
        source = Source()
        source.put("users", "a")
        balancer = Recorder()
        factory = AsyncBalancerFactory(source, balancer, expire=15)
        await factory.get("users")
        await asyncio.sleep(15.1)
        assert factory.dump() != {}
        await asyncio.sleep(15)
        assert factory.dump() == {}
        assert balancer.pickers == {}
        n_resolved = source.n_resolved["users"]
        await asyncio.sleep(100)
        assert source.n_resolved["users"] == n_resolved
        # Asked for again, it is resolved again.
        await factory.get("users")
        assert source.n_resolved["users"] == n_resolved + 1

    run(main())


def test_what_is_used_or_held_is_not_forgotten():
    async def main():
        source = Source()
        for name in ("asked", "held"):
            source.put(name, "a")
        factory = AsyncBalancerFactory(source, WeightedRoundRobinBalancer(), expire=15)
        held = await factory.get("held")
        for _ in range(20):
            await factory.get("asked")
            await asyncio.sleep(10)
        assert factory.dump().keys() == {"asked", "held"}
        source.put("held", "b")
        await asyncio.sleep(6)
        assert picked(held) == {"b"}
        assert await factory.get("held") is held

    run(main())


def test_after_close_nothing_is_given():
    source = Source()
    source.put("users", "a")
    balancer = Recorder()
    factory = BalancerFactory(source, balancer)
    users = factory.get("users")
    users.get_picker()
    factory.close()
    factory.close()
    with pytest.raises(RuntimeError, match="the factory of 'users' is closed"):
        users.get_picker()
    with pytest.raises(RuntimeError, match="closed"):
        factory.get("users")
    with pytest.raises(RuntimeError, match="closed"):
        factory.refresh()
    assert balancer.pickers == {}
    assert factory.dump() == {}


def test_after_close_nothing_is_given_on_a_loop():
    async def main():
        source = Source()
        source.put("users", "a")
        factory = AsyncBalancerFactory(source, Recorder())
        users = await factory.get("users")
        await factory.close()
        await factory.close()
        assert len(asyncio.all_tasks()) == 1
        with pytest.raises(RuntimeError, match="the factory of 'users' is closed"):
            users.get_picker()
        for call in (factory.get("users"), factory.refresh()):
            with pytest.raises(RuntimeError, match="the factory is closed"):
                await call

    run(main())


def test_closed_while_it_is_waited_for():
    source = Blocking()
    source.gate.clear()
    factory = BalancerFactory(source, WeightedRoundRobinBalancer())
    with ThreadPoolExecutor(4) as executor:
        calls = [executor.submit(factory.get, "users") for _ in range(4)]
        until(lambda: source.n_resolved)
        factory.close()
        for call in calls:
            with pytest.raises(RuntimeError, match="closed"):
                call.result(60)
    source.gate.set()


def test_calls_and_the_end_at_once():
    """Each call has an answer: a picker, or that it is closed."""
    for _ in range(30):
        source = Source()
        source.put("users", "a")
        factory = BalancerFactory(source, WeightedRoundRobinBalancer())
        answers = []

        def call(factory=factory, answers=answers):
            try:
                answers.append(factory.get("users", 30))
            except RuntimeError as error:
                answers.append("closed" in str(error))

        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        factory.close()
        for thread in threads:
            thread.join(60)
        assert len(answers) == 8
        assert all(answers)


def n_open_files():
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def test_neither_closed_nor_forgotten_factories_leave_anything():
    def use(kind):
        source = kind()
        if kind is Source:
            source.put("users", "a")
        factory = BalancerFactory(source, WeightedRoundRobinBalancer(), refresh=0.01)
        factory.get("users").get_picker()
        return factory

    use(Source).close()
    gc.collect()
    threads, files = set(threading.enumerate()), n_open_files()
    for k in range(20):
        factory = use(Source if k % 2 else Blocking)
        if k % 3:
            factory.close()
        alive = weakref.ref(factory)
        del factory
        assert alive() is None  # at once: there are no cycles
    until(lambda: set(threading.enumerate()) <= threads)
    until(lambda: n_open_files() <= files)


def test_what_is_held_keeps_following_without_its_factory():
    source = Source()
    source.put("users", "a")
    factory = BalancerFactory(source, WeightedRoundRobinBalancer(), refresh=0.01, updates=AT_ONCE)
    users = [factory.get("users")]
    del factory
    gc.collect()
    source.put("users", "b")
    until(lambda: picked(users[0]) == {"b"})
    before = {thread.name for thread in threading.enumerate()}
    assert "rota-discovery" in before
    users.clear()
    until(lambda: "rota-discovery" not in {thread.name for thread in threading.enumerate()})


def test_a_loop_that_ends_takes_all_with_it():
    source = Source()
    source.put("users", "a")
    balancer = Recorder()
    factory = AsyncBalancerFactory(source, balancer)

    async def main():
        users = await factory.get("users")
        users.get_picker()
        return users

    users = asyncio.run(main())
    assert balancer.pickers == {}
    with pytest.raises(RuntimeError, match="closed"):
        users.get_picker()

    async def again():
        return picked(await factory.get("users"))

    assert asyncio.run(again()) == {"a"}  # there may be another loop after it


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_is_closed_over_its_tasks(caplog):
    source = Source()
    source.put("users", "a")
    factory = AsyncBalancerFactory(source, WeightedRoundRobinBalancer(), refresh=0.01)
    loop = asyncio.new_event_loop()
    users = loop.run_until_complete(factory.get("users"))
    loop.close()
    source.put("users", "b")

    async def again():
        assert await factory.get("users") is users
        while picked(users) != {"b"}:
            await asyncio.sleep(0.01)
        await factory.close()

    asyncio.run(asyncio.wait_for(again(), 60))


ASYNC_FORK = """
import asyncio, os, sys
import rota
from rota.discovery import StaticResolver

factory = rota.AsyncBalancerFactory(
    StaticResolver({"users": ["a"], "orders": ["b"]}), rota.WeightedRoundRobinBalancer())

async def use():
    for name in ("users", "orders"):
        assert (await factory.get(name)).get_picker().next() is not None
    assert len(asyncio.all_tasks()) == 4
    await factory.close()
    assert len(asyncio.all_tasks()) == 1

async def main():
    users = await factory.get("users")
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(use())
        except BaseException as error:
            print(repr(error))
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    await use()

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_it_goes_on_on_a_loop_of_a_forked_child():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASYNC_FORK], capture_output=True, timeout=100
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("method", ["resolve", "watch"])
def test_the_context_of_who_asked_first_is_not_kept(method):
    class Request:
        pass

    request = contextvars.ContextVar("request")

    async def main():
        source = Pushing() if method == "watch" else Source()
        source.put("users", "a")
        factory = AsyncBalancerFactory(source, WeightedRoundRobinBalancer())

        async def ask():
            request.set(Request())
            return await factory.get("users"), weakref.ref(request.get())

        users, asked = await asyncio.create_task(ask())
        await asyncio.sleep(20)
        gc.collect()
        assert asked() is None
        assert picked(users) == {"a"}
        await factory.close()

    run(main())


def test_one_factory_is_of_one_loop():
    source = Source()
    source.put("users", "a")
    factory = AsyncBalancerFactory(source, WeightedRoundRobinBalancer())

    async def main():
        await factory.get("users")
        with ThreadPoolExecutor(1) as executor:
            call = executor.submit(lambda: asyncio.run(factory.get("users")))
            with pytest.raises(RuntimeError, match="the factory is used on another loop"):
                call.result(60)

    asyncio.run(main())


def test_forgotten_on_a_loop():
    async def main():
        source = Source()
        source.put("users", "a")
        factory = AsyncBalancerFactory(source, WeightedRoundRobinBalancer())
        users = await factory.get("users")
        assert len(asyncio.all_tasks()) == 3
        del factory
        await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == 3
        del users
        await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


END = """
import logging, sys, threading, time
logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of slow machines
import rota
from rota.discovery import SynthesizedResolver

def resolve(desc):
    if is_hanging:
        time.sleep(1000)
    return rota.Result(True, desc, [rota.Instance("a")])

is_hanging = False
resolver = SynthesizedResolver(resolve, name="r")
factory = rota.BalancerFactory(resolver, rota.WeightedRoundRobinBalancer(), refresh=0.01)
users = factory.get("users")
picker = users.get_picker()
is_hanging = True
time.sleep(0.1)
what = sys.argv[1]
if what == "closed":
    factory.close()
elif what == "forgotten":
    del factory, users
print("the end", picker.next().address)
"""


@pytest.mark.parametrize("what", ["closed", "forgotten", "neither"])
def test_nothing_keeps_the_interpreter_alive(what):
    """Not even a resolver that hangs."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", END, what],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "the end a\n", "")


# -- within itself, and in a child process -----------------------------------------------------


def test_a_hook_may_ask_for_what_is_there_and_close():
    source = Source()
    source.put("users", "a")
    factory = BalancerFactory(source, WeightedRoundRobinBalancer(), updates=AT_ONCE)
    users = factory.get("users")
    said = []

    def hook(change):
        said.append(factory.get("users"))
        try:
            factory.get("orders")
        except RuntimeError as error:
            said.append(str(error))
        factory.close()
        said.append("closed")

    factory.add_rebalance_hook(hook)
    source.put("users", "b")
    with contextlib.suppress(RuntimeError):  # closed in the middle of it
        factory.refresh("users")
    until(lambda: len(said) == 3)
    assert said == [users, "rota-discovery would wait for itself", "closed"]
    until(lambda: "rota-discovery" not in {thread.name for thread in threading.enumerate()})


FORK = """
import os, sys, threading, time
import rota
from rota.discovery import SynthesizedResolver

names = ["a"]
def resolve(desc):
    return rota.Result(True, desc, [rota.Instance(name) for name in names])

def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)

resolver = SynthesizedResolver(resolve, name="r")
factory = rota.BalancerFactory(
    resolver, rota.WeightedRoundRobinBalancer(), refresh=0.02,
    updates=rota.UpdatePolicy(debounce=0))
users = factory.get("users")
users.get_picker()
for what in ("holder", "factory", "nothing"):
    child = os.fork()
    if child == 0:
        assert [t.name for t in threading.enumerate()] == ["MainThread"]
        names[:] = ["child"]
        if what == "holder":
            assert users.get_picker().next() is not None
            until(lambda: users.get_picker().next().address == "child")
        elif what == "factory":
            assert factory.get("users") is users
            until(lambda: users.get_picker().next().address == "child")
            assert factory.get("orders").get_picker().next().address == "child"
            factory.close()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0, what
names[:] = ["parent"]
until(lambda: users.get_picker().next().address == "parent")
factory.close()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_it_goes_on_in_a_forked_child():
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_pickers_while_everything_changes():
    """Whoever asks always gets somebody, and in the end those who are there."""
    source = Blocking()
    source.instances = tuple(Instance(f"h{k}") for k in range(5))
    is_over = threading.Event()
    with BalancerFactory(
        source, WeightedRoundRobinBalancer(), refresh=0.001, updates=UpdatePolicy(debounce=0)
    ) as factory:
        users = factory.get("users")

        def pick():
            n = 0
            while not is_over.is_set():
                assert factory.get("users").get_picker().next() is not None
                assert users.get_picker().next() is not None
                n += 1
            return n

        with ThreadPoolExecutor(4) as executor:
            calls = [executor.submit(pick) for _ in range(4)]
            for k in range(200):
                names = {f"h{(k + j) % 9}" for j in range(5)} if k % 10 else ()
                source.instances = tuple(Instance(name) for name in sorted(names))
                time.sleep(0.002)
            source.instances = (Instance("last"),)
            until(lambda: addresses(users) == ["last"])
            is_over.set()
            assert all(call.result(60) for call in calls)
        assert picked(users) == {"last"}


# -- resolvers that are not as they should be -------------------------------------------------


class Iterating:
    """A watch that is no generator: it has no `aclose`."""

    n_given = 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        self.n_given += 1
        if self.n_given > 1:
            await asyncio.sleep(1e6)
        return Result(True, "users", [Instance("a")])


async def failing_at_its_end(desc):
    try:
        yield Result(True, desc, [Instance("a")])
        await asyncio.sleep(1e6)
    finally:
        raise ConnectionError("cannot be closed")


async def failing_when_cancelled(desc):
    try:
        await asyncio.sleep(1e6)
    except asyncio.CancelledError:
        raise ConnectionError("was cancelled") from None


@pytest.mark.parametrize("is_closed", [True, False])
@pytest.mark.parametrize(
    ("method", "function"),
    [
        ("watch", lambda desc: Iterating()),
        ("watch", failing_at_its_end),
        ("resolve", failing_when_cancelled),
    ],
)
def test_what_swallows_cancellations_ends_all_the_same(method, function, is_closed, caplog):
    async def main():
        source = Source()
        source.put("users", "a")
        factory = AsyncBalancerFactory(source, WeightedRoundRobinBalancer(), refresh=5)
        users = await factory.get("users")
        setattr(source, method, function)
        if method == "watch":  # it is looked for when the service is opened
            source.put("orders", "a")
            users = await factory.get("orders")
        await asyncio.sleep(6)
        assert picked(users) == {"a"}
        if is_closed:
            await factory.close()
            assert len(asyncio.all_tasks()) == 1

    run(main())
    assert caplog.records == []


@pytest.mark.parametrize("method", ["resolve", "watch"])
def test_a_resolver_that_is_cancelled_by_itself_is_asked_again(method):
    async def main():
        source = Pushing() if method == "watch" else Source()
        source.put("users", "a")
        factory = AsyncBalancerFactory(source, WeightedRoundRobinBalancer(), refresh=5)
        users = await factory.get("users")
        await asyncio.sleep(1)

        def cancelled(desc):
            raise asyncio.CancelledError

        function = getattr(source, method)
        setattr(source, method, cancelled)
        if method == "watch":
            source.queues["users"].put_nowait(ConnectionError("gone"))
        await asyncio.sleep(20)
        setattr(source, method, function)
        source.put("users", "b")
        await asyncio.sleep(12)
        assert picked(users) == {"b"}
        await factory.close()

    run(main())


def test_a_resolver_that_exits_ends_its_thread_alone():
    source = Blocking()
    with BalancerFactory(source, WeightedRoundRobinBalancer(), refresh=0.01) as factory:
        users = factory.get("users")
        resolve, n = source.resolve, []

        def leave(desc):
            n.append(desc)
            sys.exit(3)

        source.resolve = leave
        until(lambda: len(n) > 3)
        with pytest.raises(RuntimeError, match="raised SystemExit"):
            factory.get("orders")
        source.resolve = resolve
        source.instances = (Instance("c"),)
        until(lambda: picked(users) == {"c"})


@pytest.mark.parametrize("is_pushed", [True, False])
def test_an_answer_that_was_overtaken_changes_nothing(is_pushed):
    async def main():
        source = Pushing() if is_pushed else Source()
        source.put("users", "a")
        factory = AsyncBalancerFactory(
            source, WeightedRoundRobinBalancer(), refresh=1e6, updates=AT_ONCE
        )
        users = await factory.get("users")
        await asyncio.sleep(1)

        async def resolve(desc):
            found = source.services[desc]
            await asyncio.sleep(delay)
            return Result(True, desc, found)

        source.resolve = resolve
        delay = 10
        looking = asyncio.create_task(factory.refresh("users"))
        await asyncio.sleep(1)
        if is_pushed:
            source.push("users", "b")
            await asyncio.sleep(1)
        else:
            source.put("users", "b")
            delay = 1
            await factory.refresh("users")
        await looking
        assert picked(users) == {"b"}
        source.put("users", "c")
        await factory.refresh("users")
        assert picked(users) == {"c"}

    run(main())


def test_an_answer_that_comes_after_the_end_changes_nothing():
    async def main():
        source = Source()
        source.put("users", "a")
        balancer = Recorder()
        factory = AsyncBalancerFactory(source, balancer, refresh=1000, expire=1)
        await factory.get("users")
        source.delay = 10
        source.put("users", "b")
        looking = asyncio.create_task(factory.refresh("users"))
        await asyncio.sleep(5)
        assert factory.dump() == {}
        await looking
        assert [what for what, _ in balancer.told] == ["delete"]
        assert balancer.pickers == {}

    run(main())


@pytest.mark.parametrize("n_steps", range(8))
def test_closed_while_a_task_waits(n_steps):
    """It is told, and not cancelled; nothing is left of what it waited for."""

    async def main():
        source = Source()
        source.put("users", "a")
        balancer = Recorder()
        factory = AsyncBalancerFactory(source, balancer)
        asked = asyncio.create_task(factory.get("users"))
        for _ in range(n_steps):
            await asyncio.sleep(0)
        await factory.close()
        with pytest.raises(RuntimeError, match="closed"):
            (await asked).get_picker()
        assert balancer.pickers == {}
        assert len(asyncio.all_tasks()) == 1

    run(main())


def test_a_resolver_that_is_cancelled_does_not_cancel_who_asks():
    async def main():
        source = Source()
        source.error = asyncio.CancelledError()
        async with AsyncBalancerFactory(source, WeightedRoundRobinBalancer()) as factory:
            source.put("users", "a")
            with pytest.raises(RuntimeError, match="'users' was not resolved"):
                await factory.get("users")

    run(main())


def test_a_service_is_not_opened_after_the_end():
    async def main():
        source = Source()

        async def resolve(desc):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1000)
            return Result(True, desc, [Instance("a")])

        source.resolve = resolve
        factory = AsyncBalancerFactory(source, WeightedRoundRobinBalancer())
        asked = asyncio.create_task(factory.get("users"))
        await asyncio.sleep(1)
        await factory.close()
        with pytest.raises(RuntimeError, match="closed"):
            await asked
        assert factory.dump() == {}
        assert len(asyncio.all_tasks()) == 1

    run(main())


def test_a_resolver_may_close():
    async def main():
        source = Source()

        async def resolve(desc):
            await factory.close()

        source.resolve = resolve
        factory = AsyncBalancerFactory(source, WeightedRoundRobinBalancer())
        with pytest.raises(RuntimeError, match="closed"):
            await factory.get("users")
        assert len(asyncio.all_tasks()) == 1

    run(main())


def test_a_service_that_cannot_be_closed_takes_no_other_with_it(caplog):
    async def main():
        source = Source()
        source.put("users", "a")
        source.services["odd"] = ("no instance",)
        balancer = Recorder()
        factory = AsyncBalancerFactory(source, balancer, refresh=1e6, expire=5)

        def cancelled(change):
            raise asyncio.CancelledError

        factory.add_delete_hook(cancelled)
        await factory.get("odd")
        users = await factory.get("users")
        await asyncio.sleep(20)
        assert factory.dump().keys() == {"users"}
        assert picked(users) == {"a"}
        await factory.close()
        assert factory.dump() == {}
        assert balancer.pickers == {}
        assert len(balancer.told) == 2

    run(main())
    assert len(caplog.records) == 3


def test_a_hook_is_removed_once():
    async def main():
        source = Source()
        source.put("users", "a")
        factory = AsyncBalancerFactory(source, Recorder())
        told = []
        ends = [factory.add_delete_hook(told.append) for _ in range(2)]
        for _ in range(3):
            ends[0]()
        await factory.get("users")
        await factory.close()
        assert len(told) == 1

    run(main())


def test_a_key_that_changes_leaves_no_picker():
    async def main():
        source = Source("n0")
        source.put("users", "a")
        is_cacheable = True

        async def resolve(desc):
            return Result(is_cacheable, desc, source.services[desc])

        source.resolve = resolve
        balancer = WeightedRoundRobinBalancer()
        factory = AsyncBalancerFactory(source, balancer, refresh=5)
        users = await factory.get("users")
        gone = []
        factory.add_delete_hook(lambda change: gone.append(change.result.cache_key))
        for k in range(1, 4):
            users.get_picker()
            source.name = f"n{k}"
            source.put("users", f"a{k}")
            await asyncio.sleep(6)
            assert picked(users) == {f"a{k}"}
            assert balancer._pickers.keys() == {f"n{k}:users"}
        assert gone == ["n0:users", "n1:users", "n2:users"]
        is_cacheable = False  # and nothing else
        await asyncio.sleep(6)
        assert users.get_picker() is not users.get_picker()
        assert balancer._pickers == {}
        is_cacheable = True
        await asyncio.sleep(6)
        assert users.get_picker() is users.get_picker()
        await factory.close()
        assert balancer._pickers == {}

    run(main())


def test_a_diff_that_gives_no_change_is_told_of(caplog):
    async def main():
        source = Source()
        source.put("users", "a")
        source.diff = lambda cache_key, prev, next: None
        factory = AsyncBalancerFactory(source, WeightedRoundRobinBalancer(), refresh=5)
        users = await factory.get("users")
        source.put("users", "b")
        await asyncio.sleep(6)
        assert picked(users) == {"a"}

    run(main())
    (record,) = caplog.records
    assert str(record.exc_info[1]) == "source must diff to a Change, got None"


# -- shared ------------------------------------------------------------------------------------


def test_shared_by_names_and_options():
    source = Source()
    source.put("users", "a")
    make = BalancerFactory.shared
    one = make(source, WeightedRoundRobinBalancer(), refresh=7)
    assert make(Source(), WeightedRoundRobinBalancer(), refresh=7) is one
    others = [
        make(source, WeightedRoundRobinBalancer()),
        make(source, WeightedRandomBalancer(), refresh=7),
        make(Source("other"), WeightedRoundRobinBalancer(), refresh=7),
        make(source, WeightedRoundRobinBalancer(), refresh=7, updates=AT_ONCE),
        BalancerFactory(source, WeightedRoundRobinBalancer(), refresh=7),
    ]
    assert len({id(each) for each in (one, *others)}) == 6
    users = one.get("users")
    one.close()  # there is another who has it
    assert picked(users) == {"a"}
    one.close()
    with pytest.raises(RuntimeError, match="closed"):
        users.get_picker()
    anew = make(source, WeightedRoundRobinBalancer(), refresh=7)
    assert anew is not one
    assert picked(anew.get("users")) == {"a"}
    for each in (anew, *others):
        each.close()


def test_who_asks_while_services_are_forgotten_leaves_nothing_behind():
    """In Kitex a picker that is asked for after its deletion is cached again (K8)."""
    source = Blocking()
    balancer = WeightedRoundRobinBalancer()
    names = [f"s{k}" for k in range(4)]
    is_over = threading.Event()
    with BalancerFactory(source, balancer, refresh=0.002, expire=0.002) as factory:

        def pick(k):
            n = 0
            while not is_over.is_set():
                assert factory.get(names[n % 4]).get_picker().next() is not None
                n += 1
                time.sleep(0.002 * (n * k % 3))
            return n

        with ThreadPoolExecutor(4) as executor:
            calls = [executor.submit(pick, k) for k in range(4)]
            time.sleep(1)
            is_over.set()
            assert all(call.result(60) for call in calls)
        until(lambda: factory.dump() == {})
        assert balancer._pickers == {}
        assert balancer._turns == {}
    deleted = [event for event in factory.events.dump() if event.name == "discovery_delete"]
    assert deleted


def test_a_finalizer_may_close_a_shared_factory_anywhere():
    factory = BalancerFactory.shared(Source("closed by chance"), WeightedRoundRobinBalancer())

    class Client:
        def __del__(self):
            factory.close()

    with _lock:
        Client()
    with pytest.raises(RuntimeError, match="closed"):
        factory.get("users")


LOCKED = """
import os, sys, threading
import rota
from rota.discovery import StaticResolver
from rota.loadbalance import factory as module

resolver = StaticResolver({"users": ["a"]})
balancer = rota.WeightedRoundRobinBalancer()
factory = rota.BalancerFactory(resolver, balancer)
found = rota.Result(True, "orders", [rota.Instance("a")])
balancer.get_picker(found)
balancer.rebalance(rota.Change(found))
held = threading.Event()

def hold():
    with module._lock, balancer._lock, balancer._turns["orders"].lock:
        held.set()
        threading.Event().wait(1000)

threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if child == 0:
    assert factory.get("users").get_picker().next().address == "a"
    factory.close()
    now = rota.Result(True, "orders", [rota.Instance("b")])
    balancer.rebalance(rota.diff("orders", found, now))
    assert balancer.get_picker(now).next().address == "b"
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_forked_while_locks_are_held():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOCKED], capture_output=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, b"")
