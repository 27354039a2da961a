"""What could make a balanced client send twice, lose its way, or keep what it should let go."""

import asyncio
import os
import time
import warnings

import httpx
import pytest

from rota import ConsistentHash
from rota.clients import call_options
from rota.clients.balancing import as_balancer
from rota.clients.httpx import AsyncClient, Client, DeadlineError, NoInstance, Timeouts
from rota.clients.members import Members
from rota.discovery import Change, Instance, MemoryRegistry, Result, StaticResolver
from rota.loadbalance import BalancerFactory
from rota.retry import RetryPolicy, connect_failure
from rota.selector import engine
from tests.http_servers import fleet


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    with fleet(2, tmp_path_factory.mktemp("servers")) as members:
        yield members


@pytest.fixture
def resolver(servers):
    for each in servers:
        each.forget()
    return StaticResolver({"orders": [each.address for each in servers]})


class Broken(httpx.SyncByteStream):
    """A body that fails after a part of it has gone out, and may be begun again."""

    def __init__(self, error):
        self.error = error
        self.n_begun = 0

    def __iter__(self):
        self.n_begun += 1
        yield b"part"
        raise self.error


class AsyncBroken(httpx.AsyncByteStream):
    """The same for asyncio."""

    def __init__(self, error):
        self.error = error
        self.n_begun = 0

    async def __aiter__(self):
        self.n_begun += 1
        yield b"part"
        raise self.error


BODY_ERRORS = [
    httpx.ConnectError("of where the body comes from"),
    ConnectionRefusedError(),
    KeyError("mine"),
    RuntimeError("mine"),
]


@pytest.mark.parametrize("error", BODY_ERRORS, ids=repr)
@pytest.mark.parametrize("may_repeat", [None, True])
def test_a_body_that_fails_is_sent_once_and_its_error_is_raised(resolver, error, may_repeat):
    body = Broken(error)
    with Client("orders", resolver) as client, call_options(idempotent=may_repeat):
        with pytest.raises(type(error)) as raised:
            client.post("/", content=body)
        assert client.get("/").status_code == 200
        (row,) = client.stats()
    assert raised.value is error  # as of plain httpx: no NoInstance, which would be sent again
    assert body.n_begun == 1
    assert (row.n_calls, row.n_failures, row.n_in_flight) == (2, 0, 0)


@pytest.mark.parametrize("error", BODY_ERRORS, ids=repr)
def test_a_body_that_fails_is_sent_once_by_asyncio(resolver, error):
    body = AsyncBroken(error)

    async def main():
        async with AsyncClient("orders", resolver) as client:
            with pytest.raises(type(error)) as raised:
                await client.post("/", content=body)
            (row,) = client.stats()
        assert raised.value is error
        assert (row.n_calls, row.n_failures, row.n_in_flight) == (1, 0, 0)

    asyncio.run(main())
    assert body.n_begun == 1


def test_what_a_key_function_raises_is_no_lack_of_instances(resolver):
    options = {"balancer": engine(ConsistentHash), "key": lambda request: {}["user"]}
    with Client("orders", resolver, **options) as client, pytest.raises(KeyError) as raised:
        client.get("/")
    assert not connect_failure(raised.value)


@pytest.mark.parametrize(
    "address", ["nobody:http", "a..b:80", "127.0.0.1:0", "127.0.0.1:99999", "[]:1"]
)
def test_an_address_that_is_none_is_passed_over(servers, address):
    instances = [Instance(address), Instance(servers[0].address)]
    resolver = StaticResolver({"orders": instances})
    with Client("orders", resolver) as client:
        assert [client.post("/").status_code for _ in range(4)] == [200] * 4


def test_a_closed_transport_blames_nobody(resolver):
    with Client("orders", resolver) as client:
        client.get("/")
        client._balanced.close()
        with pytest.raises(RuntimeError, match="closed"):
            client.get("/")
        (row,) = client.stats()
        assert row.n_failures == 0


@pytest.mark.parametrize("said", ["orders", "*", "http://orders", ".example.com,orders"])
def test_no_proxy_does_not_lead_past_the_balancer(resolver, monkeypatch, said):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", said)

    async def main():
        async with AsyncClient("orders", resolver) as client:
            return await client.get("/")

    with Client("orders", resolver) as client:
        assert client.get("/").extensions["instance"].service == "orders"
    assert asyncio.run(main()).extensions["instance"].service == "orders"


def test_another_port_of_the_origin_is_another_host(resolver, servers):
    port = int(servers[1].address.rpartition(":")[2])
    with Client("orders", resolver, origin="http://127.0.0.1:9") as client:
        assert client.get("/").extensions["instance"]
        answer = client.get(f"http://127.0.0.1:{port}/")
        assert "instance" not in answer.extensions
    with Client("orders", resolver, origin="http://127.0.0.1") as client:
        assert client.get("http://127.0.0.1:80/").extensions["instance"]
        answer = client.get(f"http://127.0.0.1:{port}/")
        assert answer.json()["by"] == "s1"
        assert "instance" not in answer.extensions


def until(is_so):
    """Wait for something."""
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def place(client):
    """Make a call; return the address of this end of its connection."""
    stream = client.get("/").extensions["network_stream"]
    return stream.get_extra_info("client_addr")


def test_who_leaves_one_service_of_a_factory_may_be_in_another(servers):
    registry = MemoryRegistry()
    instances = [Instance(each.address) for each in servers]
    registry.publish("orders", *instances)
    registry.publish("users", *instances)
    with (
        BalancerFactory(registry, as_balancer(None)) as factory,
        Client("orders", factory) as orders,
        Client("users", factory) as users,
    ):
        kept = {place(orders) for _ in range(2)}
        users.get("/")
        registry.withdraw("users", instances[0].address)
        until(lambda: factory.n_changes == 1)
        assert {place(orders) for _ in range(4)} == kept
        registry.withdraw("orders", instances[0].address)
        until(lambda: factory.n_changes == 2)
        (left,) = orders._balanced._dialer.members.now()
        assert left.instance == instances[1]


def test_nobody_is_late_for_ever(monkeypatch):
    closed = []
    members = Members(lambda instance: object(), closed.append)
    instance = Instance("127.0.0.1:80")
    members.follow(Change(Result(True, "orders"), removed=(instance,)))
    late = members.take(instance, 1)
    members.release(late, 1)
    assert closed == [late.connection]
    monkeypatch.setattr("rota.clients.members.LATE", 0.0)
    member = members.take(instance, 1)
    members.release(member, 1)
    assert closed == [late.connection]
    assert members.take(instance, 2) is member


def test_a_call_that_connects_while_all_is_closed_is_closed_after():
    closed = []
    members = Members(lambda instance: object(), closed.append)
    busy = members.take(Instance("127.0.0.1:80"), 1)
    idle = members.take(Instance("127.0.0.1:81"), 1)
    members.release(idle, 1)
    assert set(members.close()) == {busy.connection, idle.connection}
    assert closed == []
    members.release(busy, 1)
    assert closed == [busy.connection]
    assert members.close() == [] == members.now()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_has_connections_of_its_own(resolver):
    with Client("orders", resolver) as client:
        parents = {place(client) for _ in range(2)}
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, from 3.12 on
            child = os.fork()
        if not child:
            try:
                shared = parents & {place(client) for _ in range(2)}
                os.write(writing, b"shared" if shared else b"own")
            finally:
                os._exit(0)
        os.close(writing)
        with open(reading, "rb") as said:
            assert said.read() == b"own"
        os.waitpid(child, 0)
        assert {place(client) for _ in range(2)} == parents


def test_what_is_left_is_asked_for_as_each_wait_begins(monkeypatch):
    now = 100.0
    monkeypatch.setattr("rota.clients.httpx.monotonic", lambda: now)
    timeouts = Timeouts({"connect": 5.0, "read": None, "write": 0.25}, 102.0)
    assert dict(timeouts) == {"connect": 2.0, "read": 2.0, "write": 0.25, "pool": 2.0}
    assert timeouts.get("read") == 2.0
    now = 101.9
    assert timeouts.get("read") == pytest.approx(0.1)
    assert timeouts.get("write") == pytest.approx(0.1)
    assert timeouts.get("other") is None
    now = 200.0
    assert 0 < timeouts.get("read") < 0.01  # 0 would be none at all
    timeouts.end = None
    assert timeouts.get("read") == 2.0


def test_no_wait_for_an_answer_goes_on_after_the_deadline(servers, resolver):
    def body():
        time.sleep(0.4)
        yield b"slow"

    policy = RetryPolicy(deadline=0.3)
    with Client("orders", resolver, policy=policy, timeout=None) as client:
        client._balanced._dialer.factory.get("orders")
        with pytest.raises(httpx.TimeoutException):
            client.post("/?wait=60", content=body())
        # The body of an answer is no part of the call.
        with client.stream("GET", "/?chunks=3&pause=0.2") as answer:
            time.sleep(0.4)
            assert len(answer.read()) == 3 * 1024


class Stuck:
    """A resolver that does not answer."""

    name = "stuck"

    def target(self, endpoint):
        return endpoint

    async def resolve(self, target):
        await asyncio.sleep(60)

    def diff(self, key, previous, result):
        raise AssertionError


def test_looking_for_a_service_ends_at_the_deadline():
    policy = RetryPolicy(deadline=0.2)

    async def main():
        async with AsyncClient("orders", Stuck(), policy=policy, timeout=None) as client:
            with pytest.raises(DeadlineError):
                await client.get("/")

    asyncio.run(main())
    with (
        Client("orders", Stuck(), policy=policy, timeout=None) as client,
        pytest.raises(DeadlineError),
    ):
        client.get("/")
    with Client("orders", Stuck(), timeout=0.1) as client, pytest.raises(NoInstance):
        client.get("/")


@pytest.mark.parametrize("deadline", [None, 20.0])
def test_an_answer_that_comes_as_the_call_is_cancelled_is_let_go(resolver, deadline):
    async def main():
        policy = RetryPolicy(deadline=deadline)
        loop = asyncio.get_running_loop()
        limits = httpx.Limits(max_connections=1)

        async def trace(event, details):
            if event == "http11.receive_response_headers.complete":
                loop.call_soon(task.cancel)

        async with AsyncClient("orders", resolver, policy=policy, limits=limits) as client:
            for _ in range(4):
                request = client.build_request("GET", "/?size=1000000")
                request.extensions["trace"] = trace
                task = asyncio.ensure_future(client.send(request))
                with pytest.raises(asyncio.CancelledError):
                    await task
                (row,) = client.stats()
                assert row.n_in_flight == 0
            assert (await client.get("/")).status_code == 200  # there is a connection for it

    asyncio.run(main())


def test_closing_goes_on_where_who_waits_for_it_is_cancelled(resolver):
    async def main():
        client = AsyncClient("orders", resolver)
        for _ in range(2):
            await client.get("/")
        pools = [each.connection.pool for each in client._balanced._dialer.members.now()]
        assert len(pools) == 2
        closing = asyncio.ensure_future(client._balanced.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await client.aclose()
        assert [pool.connections for pool in pools] == [[], []]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
