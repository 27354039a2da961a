"""Watches and registrations while etcd is killed, frozen, emptied, cut off and without a leader.

They are to be right again within CONVERGES seconds after etcd is; the deadline is more generous,
for machines that have other things to do.
"""

import asyncio
import random
import time
from contextlib import suppress

import pytest

from rota import Instance, diff
from rota.discovery.etcd import EtcdRegistry, EtcdResolver
from tests.etcd_server import KITEX, cluster, etcd, kitex, wait_for, wire
from tests.etcd_watches import addresses, run, watching

CONVERGES = 5.0
DEADLINE = 6 * CONVERGES

# Shorter than anybody would have them, so that the tests are.
HURRY = {"heartbeat": 0.3, "timeout": 1.0}


def key(address, service="users"):
    return f"{KITEX}/{service}/{address}"


def said(caplog, text):
    """Return how often the log says this."""
    return sum(text in record.getMessage() for record in caplog.records)


async def put(server, address, weight=10):
    """Write an instance, on another thread: watches go on meanwhile."""
    await asyncio.to_thread(server.put, key(address), kitex(address, weight))


async def insist(function, *arguments):
    """Call a function on another thread until it succeeds: a cluster may be busy voting."""

    def called():
        with suppress(OSError, RuntimeError):
            function(*arguments)
            return True
        return False

    await asyncio.to_thread(wait_for, called, f"{function} succeeds")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    with etcd(tmp_path_factory.mktemp("one")) as server:
        yield server


@pytest.fixture
def server(one):
    """A member alone, which runs, and is empty."""
    one.delete_all(KITEX)
    yield one
    one.revive()


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("three")) as members:
        yield members


@pytest.fixture
def members(three):
    """A cluster of three, which run, and are empty."""
    for member in three:
        member.patience = 1.0  # what was sent to a leader that is gone is answered by nobody
    asyncio.run(insist(three[0].delete_all, KITEX))
    yield three
    for member in three:
        member.revive(waits=False)
    for member in three:
        member.wait()


def test_killed_and_restarted(server, caplog):
    caplog.set_level("INFO")

    async def main():
        registry = EtcdRegistry(server.url, ttl=2, timeout=1)
        async with (
            watching(EtcdResolver(server.url, **HURRY), "users") as watched,
            registry.registered("users", Instance("r:1")) as registration,
        ):
            await put(server, "a:1")
            a = (await watched.shows("a:1", "r:1")).instances[0]
            await watched.confirms()
            for i in range(2):
                caplog.clear()
                server.kill()
                n = len(watched.results)
                await asyncio.sleep(0.5)
                assert len(watched.results) == n  # nobody knows
                await asyncio.to_thread(server.start)
                await put(server, f"b{i}:1")
                want = ["a:1", *(f"b{k}:1" for k in range(i + 1)), "r:1"]
                result = await watched.shows(*want, seconds=DEADLINE)
                assert result.instances[0] is a
                await watched.confirms()
                assert said(caplog, "users: etcd is lost") == 1
                assert said(caplog, "users: etcd is back") == 1
            await registration.update(Instance("r:1", 3))
            await watched.until(lambda result: result.instances[-1].weight == 3)

    run(main())


def test_down_when_it_begins(server, caplog):
    async def main():
        server.kill()
        registry = EtcdRegistry(server.url, ttl=2)
        async with watching(EtcdResolver(server.url, **HURRY), "users") as watched:
            await asyncio.sleep(0.5)
            assert watched.results == []
            assert said(caplog, "etcd is lost") == 1
            server.launch()
            # Whoever registers meanwhile waits for it.
            async with registry.registered("users", Instance("r:1")):
                await watched.shows("r:1", seconds=DEADLINE)

    run(main())


def test_a_process_that_dies_is_gone_when_its_lease_is(server):
    async def main():
        async with watching(EtcdResolver(server.url), "users") as watched:
            await put(server, "a:1")
            lease = int(server.ask("lease/grant", TTL="1")["ID"])
            server.put(key("b:1"), kitex("b:1"), lease)
            await watched.shows("a:1", "b:1")
            await watched.shows("a:1")

    run(main())


def test_compacted_while_it_is_cut_off(server, caplog):
    caplog.set_level("INFO")

    async def main():
        with wire(server) as cable:
            async with watching(EtcdResolver(cable.url), "users") as watched:
                await put(server, "a:1")
                await put(server, "b:1")
                a = (await watched.shows("a:1", "b:1")).instances[0]
                cable.cut()
                await put(server, "c:1")
                server.delete(key("b:1"))
                server.compact()
                cable.mend()
                result = await watched.shows("a:1", "c:1", seconds=DEADLINE)
                assert result.instances[0] is a
                assert said(caplog, "compacted") == 1
                await put(server, "d:1")
                await watched.shows("a:1", "c:1", "d:1")

    run(main())


def test_a_connection_that_falls_silent(server):
    """As with a router that has forgotten it: nobody says that it is closed."""

    async def main():
        with wire(server) as cable:
            registry = EtcdRegistry(cable.url, ttl=2, timeout=1)
            async with (
                watching(EtcdResolver(cable.url, **HURRY), "users") as watched,
                registry.registered("users", Instance("r:1")),
            ):
                await watched.shows("r:1")
                cable.hush()
                await put(server, "a:1")
                await watched.shows("a:1", "r:1", seconds=DEADLINE)
                before = watched.result.instances[1]
                server.delete(key("r:1"))
                await watched.until(lambda r: r.instances[1:] and r.instances[1] is not before)
                await watched.shows("a:1", "r:1", seconds=DEADLINE)

    run(main())


def test_frozen(server, caplog):
    async def main():
        registry = EtcdRegistry(server.url, ttl=2, timeout=1)
        async with (
            watching(EtcdResolver(server.url, **HURRY), "users") as watched,
            registry.registered("users", Instance("r:1")),
        ):
            await watched.shows("r:1")
            server.freeze()
            while not said(caplog, "users: etcd is lost"):
                await asyncio.sleep(0.05)
            assert addresses(watched.result) == ["r:1"]
            server.thaw()
            await put(server, "a:1")
            await watched.shows("a:1", "r:1", seconds=DEADLINE)

    run(main())


@pytest.mark.parametrize("later", [0, 10], ids=["goes back", "goes beyond"])
def test_its_data_are_lost(tmp_path, later, caplog):
    """Its revision begins anew; and may be beyond the one of before when we see it again."""

    async def main(server, cable):
        registry = EtcdRegistry(server.url, ttl=2, timeout=1)
        async with watching(EtcdResolver(cable.url, **HURRY), "users") as watched:
            async with registry.registered("users", Instance("r:1")) as registration:
                for address in ("a:1", "b:1", "c:1"):
                    await put(server, address)
                await watched.shows("a:1", "b:1", "c:1", "r:1")
                last = server.put("other", "")
                await watched.confirms()
                cable.cut()
                server.kill()
                server.wipe()
                await asyncio.to_thread(server.start)
                for address in ("a:1", "d:1", "e:1"):  # as many as before
                    await put(server, address, 3)
                while later and server.put("other", "") < last + later:
                    pass
                while later and registration.key not in server.entries(KITEX):
                    await asyncio.sleep(0.02)
                cable.mend()
                result = await watched.shows("a:1", "d:1", "e:1", "r:1", seconds=DEADLINE)
                assert result.instances[0].weight == 3
                await put(server, "f:1")
                await watched.shows("a:1", "d:1", "e:1", "f:1", "r:1")
            await watched.shows("a:1", "d:1", "e:1", "f:1")

    async def wired(server):
        with wire(server) as cable:
            await main(server, cable)

    with etcd(tmp_path / "etcd") as server:
        run(wired(server))
    assert said(caplog, "etcd has lost what it had") == 1


def test_values_of_nonsense(server, caplog):
    """Whatever is written there: the others are found, and each is named once."""
    rng = random.Random(1)
    nonsense = [rng.randbytes(rng.randrange(40)) for _ in range(20)] + [
        b"[" * 10_000, b"{}", b'{"address": 7}', b'{"address": "x:1", "weight": "y"}',
        b'{"address": "\\ud800"}', b'{"address": "x:1", "weight": 1e999}', b"x" * 1_000_000,
    ]  # fmt: skip

    async def main():
        resolver = EtcdResolver(server.url, **HURRY)
        async with watching(resolver, "users") as watched:
            await put(server, "a:1")
            for i, value in enumerate(nonsense):
                server.put(key(f"n{i}"), value)
            server.put(f"{KITEX}/users/".encode() + b"\xff\xfe", kitex("y:1"))
            await put(server, "z:1")
            await watched.shows("a:1", "z:1")
            assert addresses(await resolver.resolve("users")) == ["a:1", "z:1"]
            assert said(caplog, "is skipped") == len(nonsense) + 1
            server.put(key("n3"), kitex("n3:1"))
            await watched.shows("a:1", "n3:1", "z:1")
            server.put(key("z:1"), "nonsense")
            await watched.shows("a:1", "n3:1")

    run(main())


def written(server, puts, deletions):
    """Whether this could be written; else it may be, and may be written again."""
    with suppress(OSError, RuntimeError):  # killed, or voting
        server.txn(puts, deletions)
        return True
    return False


def churn(server, rng, known, n_txns, service="users"):
    """Add, take away and reweigh instances, many at a time; `known` says who is there."""
    for _ in range(n_txns):
        puts, deletions = {}, []
        for address in rng.sample([f"{i:04d}:80" for i in range(1000)], rng.randrange(1, 60)):
            if address in known and rng.random() < 0.3:
                deletions.append(key(address, service))
                known.discard(address)
            else:
                known.add(address)
                puts[key(address, service)] = kitex(address, rng.randrange(-1, 9))
        while not written(server, puts, deletions):
            time.sleep(0.02)


def test_a_thousand_come_and_go(server):
    """Also while etcd is killed: the watch ends up with exactly what a fresh list says."""
    rng = random.Random(2)

    async def main():
        resolver = EtcdResolver(server.url, **HURRY)
        known = set()
        async with watching(resolver, "users") as watched:

            async def is_as_listed(seconds):
                fresh = await resolver.resolve("users")
                assert addresses(fresh) == sorted(known)
                await watched.until(lambda result: result == fresh, seconds)

            await asyncio.to_thread(churn, server, rng, known, 100)
            await is_as_listed(DEADLINE)
            before = watched.result
            await asyncio.to_thread(churn, server, rng, known, 1)
            await is_as_listed(DEADLINE)
            change = diff("users", before, watched.result)
            changed = set(map(id, (*change.added, *change.updated)))
            same = set(map(id, before.instances))
            assert all(id(i) in same or id(i) in changed for i in watched.result.instances)
            churning = asyncio.ensure_future(asyncio.to_thread(churn, server, rng, known, 150))
            while not churning.done():
                await asyncio.sleep(0.5)
                server.kill()
                await asyncio.to_thread(server.start)
            await churning
            await is_as_listed(DEADLINE)

    run(main())


def test_a_leader_dies(members):
    async def main():
        urls = [member.url for member in members]
        registry = EtcdRegistry(urls, ttl=2, timeout=1)
        async with (
            watching(EtcdResolver(urls, **HURRY), "users") as watched,
            registry.registered("users", Instance("r:1")),
        ):
            r = (await watched.shows("r:1")).instances[0]
            (leader,) = [member for member in members if member.is_leader()]
            leader.kill()
            other = members[members.index(leader) - 1]
            await insist(other.put, key("a:1"), kitex("a:1"))
            result = await watched.shows("a:1", "r:1", seconds=DEADLINE)
            assert result.instances[1] is r  # its lease has outlived the leader

    run(main())


def test_each_member_falls_silent(members):
    async def main():
        urls = [member.url for member in members]
        registry = EtcdRegistry(urls, ttl=2, timeout=1)
        async with (
            watching(EtcdResolver(urls, **HURRY), "users") as watched,
            registry.registered("users", Instance("r:1")),
        ):
            want = ["r:1"]
            for i, member in enumerate(members):
                await watched.shows(*want, seconds=DEADLINE)
                member.freeze()
                want.insert(i, f"a{i}:1")
                await insist(members[i - 1].put, key(f"a{i}:1"), kitex(f"a{i}:1"))
                await watched.shows(*want, seconds=DEADLINE)
                member.thaw()

    run(main())


def test_a_member_without_a_leader(members, caplog):
    """It answers, but knows of nothing new: who watches at it is told, and goes on."""
    alone, *others = members

    async def main():
        registry = EtcdRegistry(alone.url, ttl=2, timeout=1)
        async with (
            watching(EtcdResolver(alone.url, heartbeat=60.0), "users") as watched,
            registry.registered("users", Instance("r:1")) as registration,
        ):
            await watched.shows("r:1")
            for other in others:
                other.kill()
            while not said(caplog, "users: etcd is lost"):
                await asyncio.sleep(0.05)
            assert said(caplog, "no leader")
            with pytest.raises(ConnectionError, match="not written"):
                await registration.update(Instance("r:1", 3))
            assert addresses(watched.result) == ["r:1"]
            for other in others:
                other.launch()
            # What could not be written is, and there was no need to say it again.
            await watched.until(
                lambda result: [i.weight for i in result.instances] == [3], DEADLINE
            )
            await put(alone, "a:1")
            await watched.shows("a:1", "r:1", seconds=DEADLINE)

    run(main())


def test_a_cluster_that_is_killed_over_and_over(members):
    """A member at a time, for as long as instances come and go."""
    rng = random.Random(3)

    async def main():
        urls = [member.url for member in members]
        registry = EtcdRegistry(urls, ttl=2, timeout=1)
        resolver = EtcdResolver(urls, **HURRY)
        known = set()
        async with (
            watching(resolver, "users") as watched,
            watching(resolver, "others") as others,
            registry.registered("others", Instance("r:1")),
        ):
            await others.shows("r:1")
            for member in members:
                member.kill()
                writer = members[members.index(member) - 1]
                await asyncio.to_thread(churn, writer, rng, known, 40)
                await insist(member.revive)
            fresh = await resolver.resolve("users")
            assert addresses(fresh) == sorted(known)
            await watched.until(lambda result: result == fresh, DEADLINE)
            await others.shows("r:1", seconds=DEADLINE)

    run(main())
