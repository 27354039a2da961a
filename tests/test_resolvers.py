"""Resolvers without a source outside: static, of callables, and the registry in memory."""

import asyncio
import gc
import os
import subprocess
import sys

import pytest

from rota import Change, EventBus, Instance, Result, diff
from rota.discovery import (
    FileResolver,
    MemoryRegistry,
    Resolver,
    StaticResolver,
    SynthesizedResolver,
    WatchingResolver,
)
from rota.discovery.watching import kept
from tests.threads import run_threads
from tests.watches import addresses, changed, following, until, watching

STATIC = {"users": ["a:1", Instance("b:1", 5, tags={"zone": "z"})], "empty": ()}


def test_all_have_the_interface(tmp_path):
    watching = [MemoryRegistry(), FileResolver(tmp_path / "services.json")]
    plain = [StaticResolver(STATIC), SynthesizedResolver(lambda desc: Result())]
    for resolver in watching + plain:
        assert isinstance(resolver, Resolver)
        assert isinstance(resolver, WatchingResolver) == (resolver in watching)
        a, b = Result(True, "k", [Instance("a:1")]), Result(True, "k", [Instance("b:1")])
        assert resolver.diff("other", a, b) == diff("other", a, b)


def test_no_two_have_one_name_but_those_that_find_the_same(tmp_path):
    def made():
        return [MemoryRegistry(), StaticResolver(STATIC), SynthesizedResolver(lambda desc: 1)]

    names = set()
    for _ in range(20):
        names |= {resolver.name for resolver in made()}
        gc.collect()  # a name is not that of one who is gone, either
    assert len(names) == 60
    assert FileResolver(tmp_path / "a").name == FileResolver(tmp_path / "a").name
    assert FileResolver(tmp_path / "a").name != FileResolver(tmp_path / "b").name


@pytest.mark.parametrize("kind", ["static", "memory", "file"])
def test_targets(kind, tmp_path):
    resolver = {
        "static": StaticResolver(STATIC),
        "memory": MemoryRegistry(),
        "file": FileResolver(tmp_path / "services.json"),
    }[kind]
    assert resolver.target("users") == "users"
    assert resolver.target("discovery:///users") == "users"
    for bad, error in ((5, TypeError), ("", ValueError), ("http://users", ValueError)):
        with pytest.raises(error, match="endpoint"):
            resolver.target(bad)


def test_static_services():
    resolver = StaticResolver(STATIC)
    users = resolver.resolve("users")
    assert users == Result(
        True, "users", [Instance("a:1", service="users"), Instance("b:1", 5, tags={"zone": "z"})]
    )
    assert resolver.resolve("users") is users
    assert resolver.resolve("empty") == Result(True, "empty")
    with pytest.raises(LookupError, match="'other' is not among the 2 services: 'empty', 'users'"):
        resolver.resolve("other")
    with pytest.raises(LookupError, match="0 services: none"):
        StaticResolver({}).resolve("users")


def test_static_services_do_not_follow_what_they_were_made_of():
    services = {"users": ["a:1"]}
    resolver = StaticResolver(services)
    services["users"].append("b:1")
    services["other"] = ["c:1"]
    assert addresses(resolver.resolve("users")) == ["a:1"]
    with pytest.raises(LookupError):
        resolver.resolve("other")
    assert addresses(StaticResolver({"users": iter(["a:1"])}).resolve("users")) == ["a:1"]


@pytest.mark.parametrize(
    ("services", "error", "name"),
    [
        (["a:1"], TypeError, "services"),
        (None, TypeError, "services"),
        ({"users": "a:1"}, TypeError, "services .*'a:1'"),
        ({"users": b"a:1"}, TypeError, "services"),
        ({"users": 5}, TypeError, "services"),
        ({"users": [5]}, TypeError, "services .* 5 for 'users'"),
        ({"users": [""]}, ValueError, "address"),
        ({"": ["a:1"]}, ValueError, "endpoint"),
        ({5: ["a:1"]}, TypeError, "endpoint"),
        ({"discovery:///users": ["a:1"]}, ValueError, "services"),
    ],
)
def test_bad_services_are_refused(services, error, name):
    with pytest.raises(error, match=name):
        StaticResolver(services)


def test_synthesized_of_a_function_alone():
    resolver = SynthesizedResolver(lambda desc: Result(True, desc, [Instance("a:1")]))
    assert resolver.target("users") == "users"
    assert resolver.target(5) == "5"
    assert addresses(resolver.resolve("users")) == ["a:1"]
    assert resolver.name == resolver.name
    prev = Result(True, "k", [Instance("b:1")])
    change = resolver.diff("k", prev, resolver.resolve("k"))
    assert (change.added, change.removed) == ((Instance("a:1"),), (Instance("b:1"),))
    assert change.previous is prev


def test_synthesized_of_all_four():
    names = iter(["one", "two"])
    never = Change(Result())
    resolver = SynthesizedResolver(
        lambda desc: Result(True, desc),
        target=lambda endpoint: endpoint["service"],
        diff=lambda cache_key, prev, next: never,
        name=lambda: next(names),
    )
    assert resolver.target({"service": "users"}) == "users"
    assert resolver.diff("k", Result(), Result(True, "k", [Instance("a:1")])) is never
    assert [resolver.name, resolver.name] == ["one", "two"]
    assert SynthesizedResolver(lambda desc: Result(), name="mine").name == "mine"


def test_synthesized_of_a_coroutine_function():
    async def resolve(desc):
        await asyncio.sleep(0)
        return Result(True, desc, [Instance("a:1")])

    async def main():
        return await SynthesizedResolver(resolve).resolve("users")

    assert addresses(asyncio.run(main())) == ["a:1"]


@pytest.mark.parametrize("what", ["resolve", "target", "diff", "name"])
def test_synthesized_of_something_else_is_refused(what):
    with pytest.raises(TypeError, match=what):
        SynthesizedResolver(**{"resolve": lambda desc: Result(), what: 5})
    with pytest.raises(TypeError, match="resolve"):
        SynthesizedResolver(None)


def test_what_is_equal_is_kept():
    a, b, c = Instance("a:1", tags={"x": "1"}), Instance("b:1", 5), Instance("c:1")
    prev = Result(True, "k", [a, b])
    again = Result(True, "k", [Instance("a:1", tags={"x": "1"}), Instance("b:1", 5)])
    assert kept(None, again) is again
    assert kept(prev, again) is prev
    found = kept(prev, Result(True, "k", [c, Instance("b:1", 5), Instance("a:1")]))
    assert found.instances == (c, b, Instance("a:1"))
    assert found.instances[1] is b
    assert found.instances[2] is not a
    assert kept(prev, Result(True, "k", [b, a])).instances == (b, a)
    assert kept(prev, Result(True, "other", [a, b])) == Result(True, "other", [a, b])
    assert kept(prev, Result(True, "k", [a])).instances == (a,)
    assert kept(prev, Result(True, "k")) == Result(True, "k")


def test_a_watch_of_the_registry():
    registry = MemoryRegistry()

    async def main():
        async with watching(registry, "users") as watch:
            nobody = await following(watch)
            assert nobody == Result(True, "users")
            registry.publish("users", Instance("a:1"))
            one = await changed(watch, nobody)
            assert one is registry.resolve("users")
            registry.publish("users", Instance("b:1"), Instance("a:1", 5))
            two = await changed(watch, one)
            assert two.instances == (Instance("a:1", 5), Instance("b:1"))
            assert two.instances is registry.resolve("users").instances
            registry.delete("users")
            assert await changed(watch, two) == Result(True, "users")
        assert not registry._bells

    asyncio.run(main())


def test_a_watch_begins_with_what_is_there():
    registry = MemoryRegistry(EventBus())
    registry.publish("users", Instance("a:1"))

    async def main():
        async with watching(registry, "users") as watch:
            assert await following(watch) is registry.resolve("users")

    asyncio.run(main())


def test_the_same_object_says_that_nothing_has_changed(monkeypatch):
    monkeypatch.setattr("rota.discovery.memory.FRESH", 0.02)
    registry = MemoryRegistry()
    registry.publish("users", Instance("a:1"))

    async def main():
        async with watching(registry, "users") as watch, watching(registry, "none") as none:
            last, nobody = await following(watch), await following(none)
            for _ in range(3):
                assert await following(watch) is last
                assert await following(none) is nobody
            registry.publish("users", Instance("a:1"))  # as before
            registry.publish("none", Instance("a:1"))
            registry.delete("none")
            for _ in range(3):
                assert await following(watch) is last
                assert (await following(none)).instances == ()

    asyncio.run(main())


def test_a_slow_watcher_sees_the_last_of_several_changes():
    registry = MemoryRegistry()

    async def main():
        async with watching(registry, "users") as watch:
            last = await following(watch)
            for i in range(100):
                registry.publish("users", Instance(f"a:{i}"))
            assert len((await changed(watch, last)).instances) == 100

    asyncio.run(main())


def test_watches_on_many_loops_see_what_many_threads_publish():
    registry = MemoryRegistry()
    n = 40

    async def follow():
        async with watching(registry, "users") as watch:
            last = await following(watch)
            while len(last.instances) < 2 * n:
                result = await changed(watch, last)
                assert set(addresses(last)) < set(addresses(result))
                last = result

    def publish(k):
        for i in range(n):
            registry.publish("users", Instance(f"{k}:{i}"))
            registry.publish("other", Instance(f"{k}:{i}"))

    run_threads(*[lambda: asyncio.run(follow())] * 4, lambda: publish("a"), lambda: publish("b"))
    assert not registry._bells


@pytest.mark.parametrize("how", ["closed", "cancelled", "forgotten", "loop closed"])
def test_nothing_is_left_of_a_watch(how):
    registry = MemoryRegistry()

    async def main():
        watch = registry.watch("users")
        await following(watch)
        assert registry._bells
        if how == "closed":
            await watch.aclose()
        elif how == "cancelled":
            task = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif how == "forgotten":
            del watch
            gc.collect()
            await until(lambda: not registry._bells)
        else:
            return watch
        assert not registry._bells
        return None

    loop = asyncio.new_event_loop()
    watch = loop.run_until_complete(main())
    loop.close()
    registry.publish("users", Instance("a:1"))  # what was closed is no hindrance
    assert not registry._bells
    if watch is not None:
        gc.collect()
        with pytest.raises(StopIteration):  # nothing it would wait for
            watch.aclose().send(None)


FORK = """
import os, sys
from rota import Instance, MemoryRegistry
registry = MemoryRegistry()
registry._lock.acquire()  # as another thread may hold it
child = os.fork()
if child == 0:
    registry.publish("s", Instance("a:1"))
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_may_publish_in_memory():
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)
