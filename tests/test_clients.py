"""What balanced clients share: members, options of calls, what decides, and names in URLs."""

import asyncio
import gc
import os
import threading
import weakref
from concurrent.futures import CancelledError
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rota
from rota.clients import call_options, cookie, header
from rota.clients.balancing import SelectorBalancer, as_balancer
from rota.clients.dialing import Dialer
from rota.clients.http import (
    RETRY_STATUSES,
    Ending,
    StatusError,
    as_statuses,
    failure_of,
    origin_of,
    split_address,
    split_target,
)
from rota.clients.members import Members
from rota.clients.options import NO_OPTIONS, current
from rota.discovery import Change, Instance, Result, StaticResolver, diff
from rota.discovery.memory import MemoryRegistry
from rota.loadbalance import (
    AsyncBalancerFactory,
    BalancerFactory,
    LoadBalancer,
    WeightedRoundRobinBalancer,
)
from rota.outcome import Outcome, outcome_of
from rota.retry import RetryBudget, RetryPolicy, any_failure
from rota.selector import (
    Builder,
    BuilderOf,
    Peer,
    engine,
    global_selector,
    p2c,
    set_global_selector,
    version,
    where,
    wrr,
)

ONE, TWO, THREE = (Instance(f"127.0.0.1:{port}", 1) for port in (1, 2, 3))


# ---- members


class Connections:
    """Connections that are instances' addresses, and know which of them are closed."""

    def __init__(self):
        self.made, self.closed = [], []
        self.members = Members(self.connect, self.closed.append)

    def connect(self, instance):
        self.made.append(instance.address)
        return instance.address


def change(previous, now):
    """Return what a factory tells of."""
    return diff("orders", Result(True, "orders", tuple(previous)), Result(True, "orders", now))


def test_an_instance_has_one_connection():
    found = Connections()
    members = found.members
    users = [object() for _ in range(3)]
    taken = [members.take(ONE, user) for user in users]
    assert found.made == [ONE.address]
    assert taken[0] is taken[1] is taken[2]
    assert (taken[0].instance, taken[0].connection) == (ONE, ONE.address)
    assert taken[0].users == set(users)
    # Known by its identity, whatever else discovery says of it.
    again = members.take(Instance(ONE.address, 7, version="v2"), users[0])
    assert again is taken[0]
    assert members.take(Instance(ONE.address, network="unix"), users[0]) is not taken[0]
    assert members.n_calls == 5


def test_a_use_ends_once():
    found = Connections()
    user, other = object(), object()
    member = found.members.take(ONE, user)
    found.members.take(ONE, other)
    found.members.release(member, user, True)
    found.members.release(member, user, True)
    found.members.release(member, user)
    assert (member.n_calls, member.n_failures, member.users) == (2, 1, {other})
    found.members.release(member, other)
    assert (found.members.n_calls, found.members.n_failures) == (2, 1)
    assert found.closed == []


def test_who_leaves_is_closed_after_the_last_use():
    found = Connections()
    user, other = object(), object()
    busy = found.members.take(ONE, user)
    idle = found.members.take(TWO, user)
    found.members.release(idle, user)
    found.members.take(ONE, other)
    found.members.follow(change([ONE, TWO, THREE], (THREE,)))
    assert found.closed == [TWO.address]
    assert found.members.now() == [busy]
    found.members.release(busy, user)
    assert found.closed == [TWO.address]
    found.members.release(busy, other, True)
    found.members.release(busy, other)
    assert found.closed == [TWO.address, ONE.address]
    assert found.members.now() == []
    assert (found.members.n_calls, found.members.n_failures) == (3, 1)


def test_who_comes_back_is_another():
    found = Connections()
    user = object()
    old = found.members.take(ONE, user)
    found.members.follow(change([ONE], ()))
    found.members.follow(change([], (ONE,)))
    new = found.members.take(ONE, user)
    assert new is not old
    assert found.made == [ONE.address] * 2
    found.members.release(old, user)
    assert found.closed == [ONE.address]
    found.members.release(new, user)
    assert found.members.take(ONE, user) is new
    assert found.closed == [ONE.address]


def test_who_was_picked_before_it_left_is_closed_again():
    found = Connections()
    user = object()
    found.members.follow(change([ONE], ()))
    for n in range(1, 4):
        late = found.members.take(ONE, user)
        found.members.release(late, user)
        assert found.closed == [ONE.address] * n
    assert found.members.now() == []


def test_closed_members_take_nobody():
    found = Connections()
    user = object()
    kept = found.members.take(ONE, user)
    left = found.members.take(TWO, user)
    found.members.follow(change([ONE, TWO], (ONE,)))
    assert sorted(found.members.close()) == [ONE.address, TWO.address]
    with pytest.raises(RuntimeError, match="closed"):
        found.members.take(THREE, user)
    with pytest.raises(RuntimeError, match="closed"):
        found.members.take(ONE, user)
    assert found.closed == []  # they were given to who closed
    found.members.release(kept, user)
    found.members.release(left, user)
    assert found.closed == [ONE.address, TWO.address]  # again: they may have been connecting
    assert found.members.close() == []


def test_a_connection_that_cannot_be_made():
    def connect(instance):
        raise ValueError("no")

    members = Members(connect, pytest.fail)
    with pytest.raises(ValueError, match="no"):
        members.take(ONE, object())
    assert (members.n_calls, members.now()) == (0, [])


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("take"), st.integers(0, 2)),
            st.tuples(st.just("release"), st.integers(0, 9)),
            st.tuples(st.just("set"), st.sets(st.integers(0, 2))),
        ),
        max_size=40,
    )
)
def test_connections_are_closed_once_and_never_in_use(steps):
    instances = (ONE, TWO, THREE)
    is_closed = {}

    def connect(instance):
        connection = object()
        is_closed[connection] = False
        return connection

    def close(connection):
        assert not is_closed[connection]
        is_closed[connection] = True

    members = Members(connect, close)
    there, uses, n_taken = set(), [], 0
    for step, what in steps:
        if step == "take":
            uses.append((members.take(instances[what], user := object()), user))
            n_taken += 1
        elif step == "release" and uses:
            members.release(*uses.pop(what % len(uses)))
        elif step == "set":
            now = tuple(instances[k] for k in sorted(what))
            members.follow(change([instances[k] for k in sorted(there)], now))
            there = what
        for member, user in uses:
            assert not is_closed[member.connection]
            assert user in member.users
    for use in uses:
        members.release(*use)
    assert members.n_calls == n_taken
    left = members.close()
    assert all(is_closed[connection] != (connection in left) for connection in is_closed)


def test_members_are_reached_without_a_use():
    found = Connections()
    member = found.members.reach(ONE)
    assert found.members.reach(ONE) is found.members.take(ONE, object()) is member
    assert found.members.n_calls == 1
    found.members.follow(change([ONE, TWO], ()))
    assert found.members.reach(TWO) is None
    assert found.made == [ONE.address]
    found.members.close()
    with pytest.raises(RuntimeError, match="closed"):
        found.members.reach(THREE)


def test_members_of_many_threads():
    found = Connections()
    n_threads, n_rounds = 4, 300

    def use(k):
        for n in range(n_rounds):
            user = object()
            member = found.members.take((ONE, TWO, THREE)[(n + k) % 3], user)
            found.members.release(member, user, n % 10 == 0)

    def come_and_go():
        for _ in range(n_rounds):
            found.members.follow(change([ONE, TWO, THREE], (ONE,)))
            found.members.follow(change([ONE], (ONE, TWO, THREE)))

    threads = [threading.Thread(target=use, args=(k,)) for k in range(n_threads)]
    threads.append(threading.Thread(target=come_and_go))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.members.n_calls == n_threads * n_rounds
    assert found.members.n_failures == n_threads * n_rounds // 10
    left = found.members.close()
    assert sorted([*found.closed, *left]) == sorted(found.made)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_child_of_a_fork_has_connections_of_its_own():
    found = Connections()
    found.members.take(ONE, object())
    is_held, is_done = threading.Event(), threading.Event()

    def hold():
        with found.members._lock:
            is_held.set()
            is_done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait(30)
    child = os.fork()
    if not child:
        import signal

        signal.alarm(10)
        found.members.take(ONE, object())  # though the lock was another thread's
        os._exit(0 if found.made == [ONE.address] * 2 and not found.closed else 1)
    is_done.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


# ---- options of calls


def test_call_options_nest_and_end():
    first, second = version("v1"), version("v2")
    assert current.get() is NO_OPTIONS
    with call_options(filters=[first], key="a"):
        with call_options(filters=(second,), idempotent=False):
            said = current.get()
            assert (said.filters, said.key, said.idempotent) == ((first, second), "a", False)
            with call_options(key=0, idempotent=True):
                said = current.get()
                assert (said.filters, said.key, said.idempotent) == ((first, second), 0, True)
        said = current.get()
        assert (said.filters, said.key, said.idempotent) == ((first,), "a", None)
        with pytest.raises(KeyError), call_options(key="b"):
            raise KeyError
        assert current.get() is said
    assert current.get() is NO_OPTIONS


def test_call_options_are_of_a_thread_and_of_a_task():
    seen = {}

    async def main():
        with call_options(key="task"):
            child = asyncio.ensure_future(note("child"))
        await child
        await note("after")

    async def note(name):
        await asyncio.sleep(0)
        seen[name] = current.get().key

    asyncio.run(main())
    with call_options(key="thread"):
        thread = threading.Thread(target=lambda: seen.setdefault("other", current.get().key))
        thread.start()
        thread.join()
    assert seen == {"child": "task", "after": None, "other": None}


@pytest.mark.parametrize("filters", [[1], 1, "v1", [version("v1"), None]])
def test_filters_that_are_none(filters):
    with pytest.raises(TypeError, match="filters"), call_options(filters=filters):
        pytest.fail("it was entered")
    assert current.get() is NO_OPTIONS


def test_the_key_of_a_call_is_no_function():
    with pytest.raises(TypeError, match="key must be the key"), call_options(key=header("x-user")):
        pytest.fail("it was entered")
    assert current.get() is NO_OPTIONS


def request(**headers):
    return SimpleNamespace(headers=headers)


def test_keys_of_headers():
    key = header("x-user")
    assert key(SimpleNamespace(headers={"x-user": "u7"})) == "u7"
    assert key(SimpleNamespace(headers={})) is None


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("session=u7", "u7"),
        ("a=b; session=u7; c=d", "u7"),
        ('session="u 7"', "u 7"),
        ("session=", ""),
        ("sessions=u7", None),
        ("", None),
        ("a=b", None),
        ("no cookie at all", None),
    ],
)
def test_keys_of_cookies(said, found):
    assert cookie("session")(request(Cookie=said)) == found


@given(st.text())
def test_no_header_cookie_is_an_error(said):
    found = cookie("session")(request(Cookie=said))
    assert found is None or isinstance(found, str)
    assert cookie("session")(request()) is None


@pytest.mark.parametrize("make", [header, cookie])
@pytest.mark.parametrize("name", ["", None, 7, b"x"])
def test_names_of_no_use(make, name):
    with pytest.raises(ValueError, match=f"name must be .*{name!r}"):
        make(name)


# ---- what decides


@pytest.mark.parametrize(
    "balancer", [p2c(), wrr("kratos"), engine(rota.ConsistentHash), rota.PeakEwma], ids=str
)
def test_selectors_as_balancers(balancer):
    found = as_balancer(balancer)
    assert isinstance(found, SelectorBalancer)
    assert isinstance(found, LoadBalancer)
    assert found.is_keyed == ("ConsistentHash" in found.name)
    result = Result(True, "orders", (ONE, TWO))
    selector = found.get_picker(result)
    assert found.get_picker(result) is selector
    key = {"key": "a"} if found.is_keyed else {}
    assert selector.select(**key)[0] in (ONE, TWO)


def test_a_selector_keeps_what_it_has_learned():
    found = as_balancer(rota.LeastRequest)
    before = Result(True, "orders", (ONE, TWO))
    selector = found.get_picker(before)
    _, done = selector.select()
    now = Result(True, "orders", (ONE, TWO, THREE))
    found.rebalance(diff("orders", before, now))
    assert found.get_picker(now) is selector
    assert selector.nodes == (ONE, TWO, THREE)
    assert sum(selector.picker.loads) == 1
    done()
    assert sum(selector.picker.loads) == 0
    found.delete(Change(now, removed=now.instances))
    assert found.get_picker(Result(True, "orders", (ONE,))) is not selector


def test_balancers_of_kitex_are_taken_as_they_are():
    balancer = WeightedRoundRobinBalancer()
    assert as_balancer(balancer) is balancer


def test_none_is_the_global_selector_of_now():
    before = global_selector()
    set_global_selector(p2c())
    try:
        found = as_balancer(None)
    finally:
        set_global_selector(before)
    assert "PeakEwma" in found.name
    assert "PeakEwma" not in as_balancer(None).name


@pytest.mark.parametrize("balancer", [1, "p2c", int, object(), rota.PeakEwma([])])
def test_balancers_that_are_none(balancer):
    with pytest.raises(TypeError, match="balancer must be"):
        as_balancer(balancer)


class First:
    """A balancer of Kratos' kind."""

    def pick(self, nodes):
        return nodes[0], nodes[0].pick()


def test_balancers_of_ones_own_have_a_builder():
    with pytest.raises(TypeError, match="First'> without select, update; of a type of balancer"):
        as_balancer(First)
    with pytest.raises(TypeError, match=r"must build selectors, as .* built .*First object"):
        as_balancer(BuilderOf(First))
    found = as_balancer(Builder(BuilderOf(First)))
    assert found.get_picker(Result(True, "orders", (ONE, TWO))).select()[0] is ONE


# ---- dialing


def dialer(discovery=None, **options):
    """Return a dialer whose connections are addresses."""
    found = {
        "balancer": None,
        "filters": (),
        "key": None,
        "policy": None,
        "connect": lambda instance: instance.address,
        "close": lambda connection: None,
    }
    discovery = StaticResolver({"orders": [ONE, TWO]}) if discovery is None else discovery
    return Dialer(BalancerFactory, discovery, **{**found, **options})


def asked(found, request, is_idempotent=True, can_repeat=True):
    """Return what a call of this request is made with, by name."""
    names = ("policy", "ctx", "request", "filters", "key", "is_open", "rest")
    return dict(zip(names, found.arguments(request, is_idempotent, can_repeat), strict=True))


def test_who_may_be_tried_again():
    found = dialer()
    whole = asked(found, request())["policy"]
    cautious = asked(found, request(), False)["policy"]
    assert whole.retry_on is any_failure
    assert whole.may_follow(ConnectionResetError())
    assert whole.may_follow(ConnectionRefusedError())
    assert not cautious.may_follow(ConnectionResetError())
    assert cautious.may_follow(ConnectionRefusedError())
    assert isinstance(found.budget, RetryBudget)
    assert cautious.budget is None
    assert asked(found, request(), can_repeat=False)["policy"] is cautious
    with call_options(idempotent=True):
        assert asked(found, request(), False)["policy"] is whole
        assert asked(found, request(), False, can_repeat=False)["policy"] is cautious
    with call_options(idempotent=False):
        assert asked(found, request())["policy"] is cautious


def test_what_no_server_has_seen_is_retried_as_the_policy_allows():
    policy = RetryPolicy(retry_on=KeyError, max_attempts=9, deadline=7.0)
    cautious = asked(dialer(policy=policy), request(), False)["policy"]
    assert (cautious.max_attempts, cautious.deadline) == (9, 7.0)
    assert not cautious.may_follow(KeyError())
    assert not cautious.may_follow(ConnectionRefusedError())


def test_filters_and_keys_of_a_call():
    first, second = version("v1"), where(lambda node: True)
    found = dialer(filters=[first])
    assert asked(found, request())["filters"] == (first,)
    with call_options(filters=[second], key="unused"):
        arguments = asked(found, request())
    assert arguments["filters"] == (first, second)
    assert arguments["key"] is None
    assert asked(dialer(), request())["filters"] == ()

    found = dialer(balancer=rota.ConsistentHash, key=header("user"))
    assert asked(found, request(user="u7"))["key"] == "u7"
    with call_options(key=0):
        assert asked(found, request(user="u7"))["key"] == 0
    assert len({asked(found, request())["key"] for _ in range(20)}) == 20


def test_a_picker_is_handed_the_request():
    found = dialer(balancer=WeightedRoundRobinBalancer())
    sent = request()
    arguments = asked(found, sent)
    assert arguments["request"] is sent
    assert (arguments["filters"], arguments["key"]) == ((), None)
    for options in ({"key": 0}, {"filters": [version("v1")]}):
        with call_options(**options), pytest.raises(TypeError, match="filters and key are for"):
            asked(found, sent)
    with Peer() as peer:
        found.begin(TWO, object())
    assert peer.node is TWO


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"discovery": 7}, "discovery must be a Resolver or a factory, got 7"),
        ({"policy": 7}, "policy must be a RetryPolicy or None, got 7"),
        ({"key": "user"}, "key must be a callable of a request, got 'user'"),
        ({"key": header("a")}, "key is for selectors that go by one"),
        ({"filters": [7]}, "filters"),
        ({"balancer": 7}, "balancer must be"),
        (
            {"filters": [version("v1")], "balancer": WeightedRoundRobinBalancer()},
            "filters are for selectors",
        ),
    ],
    ids=str,
)
def test_arguments_of_no_use(options, said):
    with pytest.raises(TypeError, match=said):
        dialer(**options)


def test_factories():
    with BalancerFactory(MemoryRegistry(), as_balancer(p2c())) as factory:
        found = dialer(factory, filters=[version("v1")])
        assert found.factory is factory
        assert not found.is_owner
        with pytest.raises(TypeError, match="balancer is the factory's, got"):
            dialer(factory, balancer=p2c())
    other = AsyncBalancerFactory(MemoryRegistry(), as_balancer(p2c()))
    with pytest.raises(TypeError, match="discovery must be a BalancerFactory, got"):
        dialer(other)


def test_a_shared_factory_tells_of_changes_until_the_end():
    registry = MemoryRegistry()
    registry.publish("orders", ONE, TWO)
    is_told = threading.Event()
    with BalancerFactory(registry, as_balancer(p2c())) as factory:
        factory.get("orders")
        closed, kept = [], []
        found = dialer(factory, close=closed.append)
        other = dialer(factory, close=kept.append)
        factory.add_rebalance_hook(lambda change: is_told.set())
        for each in (found, other):
            for instance in (ONE, TWO):
                user = object()
                each.members.release(each.begin(instance, user), user)
        assert sorted(other.close()) == [ONE.address, TWO.address]
        registry.withdraw("orders", TWO.address)
        assert is_told.wait(30)
        assert (closed, kept) == ([TWO.address], [])
        with pytest.raises(RuntimeError, match="closed"):
            other.begin(ONE, object())


def test_who_is_in_another_service_keeps_the_connection():
    registry = MemoryRegistry()
    registry.publish("orders", ONE, TWO)
    registry.publish("users", TWO, THREE)
    with BalancerFactory(registry, as_balancer(p2c())) as factory:
        factory.get("orders")
        factory.get("users")
        closed, is_told = [], threading.Event()
        found = dialer(factory, close=closed.append)
        factory.add_rebalance_hook(lambda change: is_told.set())
        for instance in (ONE, TWO, THREE):
            user = object()
            found.members.release(found.begin(instance, user), user)
        registry.withdraw("orders", TWO.address)
        assert is_told.wait(30)
        is_told.clear()
        assert closed == []
        registry.withdraw("users", TWO.address)
        assert is_told.wait(30)
        assert closed == [TWO.address]


def test_a_forgotten_dialer_is_let_go_by_its_factory():
    removed = []

    class Factory(BalancerFactory):
        def add_rebalance_hook(self, hook):
            remove = super().add_rebalance_hook(hook)
            return lambda: (removed.append(hook), remove())

    with Factory(MemoryRegistry(), as_balancer(p2c())) as factory:
        found = dialer(factory)
        members = weakref.ref(found.members)
        del found
        gc.collect()
        assert members() is None
        assert len(removed) == 1


# ---- statuses


def test_statuses_that_are_failures():
    for status in range(100, 600):
        error = failure_of(status, "7")
        assert (error is not None) == (status in (408, 429) or status >= 500)
        if error is not None:
            assert isinstance(error, StatusError)
            assert (error.status, error.retry_after) == (status, 7.0)
            assert outcome_of(error) is Outcome.FAILURE
            assert any_failure(error)


@pytest.mark.parametrize("said", [None, "", "soon", "-1", "1.5"])
def test_a_retry_after_that_says_nothing(said):
    assert failure_of(503, said).retry_after is None


def test_statuses_to_retry():
    assert as_statuses(RETRY_STATUSES) == {429, 502, 503, 504}
    assert as_statuses(()) == frozenset()
    assert as_statuses(status for status in (500, 408)) == {408, 500}


@pytest.mark.parametrize(
    ("statuses", "kind"),
    [
        (503, TypeError),
        (None, TypeError),
        ("503", TypeError),
        (b"503", TypeError),
        ([True], TypeError),
        ([503.0], TypeError),
        ([200], ValueError),
        ([404], ValueError),
        ([99], ValueError),
        ([600], ValueError),
        ([-503], ValueError),
    ],
)
def test_statuses_of_no_use(statuses, kind):
    with pytest.raises(kind, match="retry_statuses must be"):
        as_statuses(statuses)


# ---- names in URLs


@pytest.mark.parametrize(
    ("path", "service", "rest"),
    [
        (b"/orders", "orders", b"/"),
        (b"/orders/", "orders", b"/"),
        (b"/orders/a/b?c=d/e", "orders", b"/a/b?c=d/e"),
        (b"/orders?a=b", "orders", b"/?a=b"),
        (b"/orders?a=b/c", "orders", b"/?a=b/c"),
        (b"/orders/a%2Fb", "orders", b"/a%2Fb"),
        (b"/shop%20one/x", "shop one", b"/x"),
        (b"orders/x", "orders", b"/x"),
    ],
)
def test_targets(path, service, rest):
    assert split_target(path) == (service, rest)


@pytest.mark.parametrize("path", [b"", b"/", b"//", b"/?a=b"])
def test_targets_without_a_service(path):
    with pytest.raises(ValueError, match="endpoint must be"):
        split_target(path)


NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,5})?", fullmatch=True)
PATHS = st.from_regex(r"(/[a-z0-9%2F.]{0,8}){1,4}(\?[a-z=&/]{0,9})?", fullmatch=True)


@given(NAMES, PATHS)
def test_a_target_is_split_where_it_was_joined(name, path):
    assert split_target(f"/{name}{path}".encode()) == (name, path.encode())


@given(NAMES, st.sampled_from(["http", "https", "HTTPS"]), st.integers(1, 65535))
def test_origins(name, scheme, port):
    assert origin_of(name, None) == f"http://{name}"
    assert origin_of(f"discovery:///{name}", None) == f"http://{name}"
    assert origin_of("any", f"{scheme}://{name}") == f"{scheme.lower()}://{name}"
    assert origin_of("any", f"{scheme}://{name}:{port}/") == f"{scheme.lower()}://{name}:{port}"


@given(st.text())
def test_an_origin_is_one_or_refused(text):
    try:
        origin = origin_of("any", text)
    except ValueError:
        return
    scheme, _, host = origin.partition("://")
    assert scheme in ("http", "https")
    assert host
    assert not set(host) & set("/?#@ \\")


@pytest.mark.parametrize("name", ["a/b", "a b", "a:80", "a?b", "a@b", "ä/ö"])
def test_services_that_are_no_hosts(name):
    with pytest.raises(ValueError, match="origin must be given for a service that is no host"):
        origin_of(name, None)
    assert origin_of(name, "http://orders") == "http://orders"


@pytest.mark.parametrize(
    ("address", "scheme", "found"),
    [
        ("10.0.0.1:8080", "http", ("10.0.0.1", 8080)),
        ("10.0.0.1", "http", ("10.0.0.1", 80)),
        ("orders.svc", "https", ("orders.svc", 443)),
        ("[::1]:8080", "http", ("::1", 8080)),
        ("[::1]", "https", ("::1", 443)),
        ("orders:1", "http", ("orders", 1)),
        ("orders:65535", "http", ("orders", 65535)),
    ],
)
def test_addresses(address, scheme, found):
    assert split_address(Instance(address), scheme) == found


@pytest.mark.parametrize(
    "address",
    [
        ":80",
        "orders:",
        "orders:0",
        "orders:65536",
        "orders:-1",
        "orders:x",
        "[]:1",
        "a:²",
        "http://a:1",
    ],
)
def test_addresses_that_are_none(address):
    with pytest.raises(ValueError, match="address must be 'host:port', got"):
        split_address(Instance(address), "http")


# ---- the end of an attempt


class Told:
    """What an ending has told."""

    def __init__(self, error=None):
        self.infos, self.failed = [], []
        self.ending = Ending(self.infos.append, self.failed.append)
        self.ending.error, self.ending.headers = error, {"a": "b"}


@pytest.mark.parametrize(
    ("status", "error", "failed"),
    [
        (None, None, False),
        (None, ConnectionResetError(), True),
        (None, CancelledError(), False),
        (None, GeneratorExit(), False),
        (503, None, True),
        (503, CancelledError(), True),
    ],
)
def test_an_attempt_ends_once(status, error, failed):
    refused = None if status is None else failure_of(status, None)
    told = Told(refused)
    told.ending.tell(error)
    told.ending.tell(KeyError())
    told.ending.tell()
    assert told.failed == [failed]
    (info,) = told.infos
    assert info.err is (refused or error)
    assert info.reply_metadata == {"a": "b"}
    infos = told.infos
    del told
    gc.collect()
    assert len(infos) == 1


def test_an_attempt_that_is_let_go_was_cancelled():
    told = Told()
    told.ending = None
    gc.collect()
    assert told.failed == [False]
    assert outcome_of(told.infos[0].err) is Outcome.CANCELLED
