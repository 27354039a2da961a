"""From a name in a real etcd to a live picker, through whatever happens to etcd.

Stated: after etcd is back, a picker has what etcd has within `CONVERGED` seconds.
"""

import asyncio
import gc
import json
import os
import random
import threading
import time
from contextlib import contextmanager

import pytest

from rota import (
    AsyncBalancerFactory,
    BalancerFactory,
    Instance,
    UpdatePolicy,
    WeightedRoundRobinBalancer,
)
from rota.discovery.etcd import EtcdRegistry, EtcdResolver
from tests.etcd_server import cluster, etcd, wait_for

CONVERGED = 60.0  # the deadline here; on a machine of its own it takes less than 5 s

PREFIX = "kitex/registry-etcd/users/"


@pytest.fixture(scope="module")
def member(tmp_path_factory):
    """One etcd, which the tests hurt and mend."""
    with etcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running


@pytest.fixture(autouse=True)
def no_entries(request):
    """Begin with no services, where the test is of that one etcd."""
    if "member" in request.fixturenames:
        request.getfixturevalue("member").delete_all("kitex/")


def value(address, weight=1):
    return json.dumps({"network": "tcp", "address": address, "weight": weight})


def fill(member, *names):
    for name in names:
        member.put(PREFIX + name, value(name))


def open_files():
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def followed(endpoints, **options):
    """Give the live balancer of users; at the end nothing of it must be left."""
    gc.collect()
    threads, files = set(threading.enumerate()), open_files()
    resolver = EtcdResolver(endpoints, heartbeat=0.3, timeout=2)
    with BalancerFactory(resolver, WeightedRoundRobinBalancer(), **options) as factory:
        yield factory.get("users")
    wait_for(lambda: set(threading.enumerate()) <= threads, "no thread is left")
    gc.collect()
    wait_for(lambda: open_files() <= files, "no file or socket is left")


def served(users):
    """Return whom the picker gives by its weight; by the picker's own memory, not by chance."""
    picker = users.get_picker()
    return {
        instance.address: int(weight)
        for instance, weight in zip(picker.instances, picker.weights, strict=True)
        if instance is not None
    }


def converges(users, wanted):
    wait_for(lambda: served(users) == wanted, f"the picker has {wanted}", CONVERGED)


class Traffic:
    """Picks all the time; `n_nobody` of the picks have given nobody."""

    def __init__(self, users):
        self._users = users
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.n_picks = self.n_nobody = 0

    def _run(self):
        while not self._is_over.is_set():
            self.n_nobody += self._users.get_picker().next() is None
            self.n_picks += 1
            time.sleep(0.0005)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *rest):
        self._is_over.set()
        self._thread.join()
        assert self.n_picks > 0
        assert self.n_nobody == 0


def test_killed_and_restarted(member):
    fill(member, "a", "b")
    with followed(member.url) as users, Traffic(users):
        for k in range(3):
            member.kill()
            time.sleep(0.3)
            assert served(users) == {"a": 1, "b": 1} | {f"n{i}": 1 for i in range(k)}
            member.start()
            member.put(PREFIX + f"n{k}", value(f"n{k}"))
            converges(users, {"a": 1, "b": 1} | {f"n{i}": 1 for i in range(k + 1)})
            assert users.age < CONVERGED


def test_silent_and_back(member):
    fill(member, "a", "b")
    with followed(member.url) as users, Traffic(users):
        member.freeze()
        try:
            wait_for(lambda: users.age > 1, "its age shows that nothing is heard")
            assert served(users) == {"a": 1, "b": 1}
        finally:
            member.thaw()
        fill(member, "c")
        converges(users, {"a": 1, "b": 1, "c": 1})


def test_compacted_past_what_was_watched(member):
    fill(member, "a", "b")
    with followed(member.url) as users, Traffic(users):
        member.freeze()
        member.thaw()
        member.kill()
        member.start()
        for k in range(50):
            member.put(PREFIX + "a", value("a", k + 2))
        member.delete(PREFIX + "b")
        fill(member, "c")
        member.compact()
        converges(users, {"a": 51, "c": 1})


def test_garbage_costs_nobody_else(member, caplog):
    fill(member, "a", "b")
    with followed(member.url) as users, Traffic(users):
        garbage = [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"address": 5}', b'{"address": ""}']
        garbage += [b'{"address": "x", "weight": "many"}', b'{"address": "x", "weight": 1e400}']
        garbage += [b'{"address": "x", "weight": ' + b"9" * 400 + b"}", b"[" * 100_000]
        for k, said in enumerate(garbage):
            member.put(f"{PREFIX}garbage-{k}", said)
        fill(member, "c")
        converges(users, {"a": 1, "b": 1, "c": 1})
        time.sleep(1)
        told = [r for r in caplog.records if "garbage" in r.getMessage()]
        for k in range(len(garbage)):
            assert sum(f"garbage-{k} " in r.getMessage() for r in told) == 1, k
        member.put(PREFIX + "garbage-0", value("d", 3))  # mended
        converges(users, {"a": 1, "b": 1, "c": 1, "d": 3})


def test_leases_that_run_out_are_not_believed_at_once(member):
    """All of them at once, as after a partition: held back, and in the end believed."""
    leases = [int(member.ask("lease/grant", TTL="600")["ID"]) for _ in range(3)]
    for k, lease in enumerate(leases):
        member.put(f"{PREFIX}h{k}", value(f"h{k}"), lease)
    policy = UpdatePolicy(empty_grace=3)
    with followed(member.url, updates=policy) as users:
        with Traffic(users):
            member.ask("lease/revoke", ID=str(leases[0]))
            converges(users, {"h1": 1, "h2": 1})
            for lease in leases[1:]:
                member.ask("lease/revoke", ID=str(lease))
            time.sleep(1)
            held = served(users)
            assert held
            assert set(held) <= {"h1", "h2"}
            fill(member, "x")  # somebody registers again, within the grace
            converges(users, {"x": 1})
        member.delete(PREFIX + "x")
        converges(users, {})
        assert users.get_picker().next() is None
        fill(member, "y")
        converges(users, {"y": 1})


def test_a_registry_that_dies_and_its_instances(member):
    """Registered by rota: through a restart it stays, and goes when it is closed."""
    with EtcdRegistry(member.url, ttl=2) as registry:
        registrations = [registry.register("users", Instance(f"r{k}", 3)) for k in range(5)]
        with followed(member.url) as users, Traffic(users):
            converges(users, {f"r{k}": 3 for k in range(5)})
            member.kill()
            time.sleep(2.5)  # longer than the lease
            member.start()
            time.sleep(2.5)
            converges(users, {f"r{k}": 3 for k in range(5)})
            registrations[0].update(Instance("r0", 9))
            registrations[4].close()
            converges(users, {"r0": 9, "r1": 3, "r2": 3, "r3": 3})


def test_a_thousand_instances_churning(member):
    random_ = random.Random(6)
    wanted = {}
    for k in range(0, 1000, 100):
        names = [f"h{j}" for j in range(k, k + 100)]
        member.txn({PREFIX + name: value(name) for name in names}, [])
        wanted |= dict.fromkeys(names, 1)
    with followed(member.url) as users, Traffic(users):
        assert served(users) == wanted
        for step in range(100):
            puts, gone = {}, []
            for name in random_.sample(sorted(wanted), 20):
                if random_.random() < 0.3:
                    gone.append(PREFIX + name)
                    del wanted[name]
                else:
                    wanted[name] = random_.randrange(1, 9)
                    puts[PREFIX + name] = value(name, wanted[name])
            for k in range(random_.randrange(10)):
                name = f"new{step}-{k}"
                wanted[name] = 2
                puts[PREFIX + name] = value(name, 2)
            member.txn(puts, gone)
            if step == 50:
                member.kill()
                member.start()
        converges(users, wanted)
        assert users.get_picker().next().address in wanted


def test_the_leader_of_three_is_killed(tmp_path):
    with cluster(tmp_path) as members:
        fill(members[0], "a", "b")
        with followed([each.url for each in members]) as users, Traffic(users):
            leader = next(each for each in members if each.is_leader())
            leader.kill()
            alive = [each for each in members if each is not leader]
            wait_for(lambda: any(is_leading(each) for each in alive), "another leads")
            fill(alive[0], "c")
            converges(users, {"a": 1, "b": 1, "c": 1})
            # The two that are left lose their majority, and get it back.
            alive[1].kill()
            time.sleep(0.5)
            assert served(users) == {"a": 1, "b": 1, "c": 1}
            leader.start()
            alive[0].delete(PREFIX + "a")
            converges(users, {"b": 1, "c": 1})


def is_leading(member):
    try:
        return member.is_leader()
    except (OSError, RuntimeError):
        return False


def test_services_on_a_loop_leave_nothing(member):
    names = [f"s{k}" for k in range(30)]
    for name in names:
        member.put(f"kitex/registry-etcd/{name}/a", value("a"))

    async def main():
        resolver = EtcdResolver(member.url, heartbeat=0.3, timeout=2)
        files, n_tasks = open_files(), len(asyncio.all_tasks())
        threads = threading.active_count()
        factory = AsyncBalancerFactory(resolver, WeightedRoundRobinBalancer())
        held = await asyncio.gather(*[factory.get(name) for name in names * 10])
        assert len(set(held)) == len(names)
        for name in names:
            member.put(f"kitex/registry-etcd/{name}/b", value("b"))
        end = time.monotonic() + CONVERGED
        while not all(len(users.instances) == 2 for users in held):
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        await factory.close()
        end = time.monotonic() + CONVERGED
        while (
            open_files() > files
            or len(asyncio.all_tasks()) > n_tasks
            or threading.active_count() > threads
        ):
            assert time.monotonic() < end
            await asyncio.sleep(0.01)

    asyncio.run(main())
