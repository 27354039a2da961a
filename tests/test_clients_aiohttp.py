"""The balanced client of aiohttp, with real servers: processes that are killed and frozen."""

import asyncio
import gc
import os
import ssl
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rota
from rota.clients import call_options, cookie, header
from rota.clients.aiohttp import (
    BalancedMiddleware,
    ConnectionBroken,
    DeadlineError,
    NoInstance,
    client_session,
    instance_of,
)
from rota.clients.http import origin_of
from rota.discovery import Instance
from rota.discovery.memory import MemoryRegistry
from rota.loadbalance import AsyncBalancerFactory, WeightedRoundRobinBalancer
from rota.outcome import outcome_of
from rota.retry import DeadlineExceeded, RetryPolicy, any_failure
from rota.selector import NoAvailableInstance, Peer, p2c, where, wrr
from tests.http_servers import certificates, fleet
from tests.servers import free_ports

NAME = "discovery:///orders"


@pytest.fixture(scope="module")
def trio(tmp_path_factory):
    """Three servers, which a test leaves as it found them."""
    with fleet(3, tmp_path_factory.mktemp("trio")) as members:
        yield members


@pytest.fixture
def servers(trio):
    """The three servers, without memory of what was before."""
    for member in trio:
        member.forget()
    return trio


def registry(members, weights=(1, 1, 1)):
    """Return a registry in which these are the service."""
    found = MemoryRegistry()
    found.publish("orders", *(Instance(m.address, w) for m, w in zip(members, weights)))  # noqa: B905
    return found


def retrying(n, **more):
    """Return a policy of n attempts, which no budget ends."""
    more = {"retry_on": any_failure, "budget": None, "pause": 0.001} | more
    return RetryPolicy(max_attempts=n, **more)


def n_requests(members):
    """Return how many requests each server has read."""
    return [len(member.requests()) for member in members]


async def until(condition, seconds=20.0):
    """Return when a condition holds; fail when that takes too long."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.005)


class Recorder:
    """A builder of selectors that remembers whom they chose, and how that ended."""

    def __init__(self, inner=None):
        self.inner = wrr(start=0) if inner is None else inner
        self.n_begun = 0
        self.ends = []

    def build(self):
        return _Recording(self, self.inner.build())

    @property
    def n_open(self):
        return self.n_begun - len(self.ends)

    @property
    def outcomes(self):
        return [outcome_of(error).name for error in self.ends]


class _Recording:
    def __init__(self, recorder, selector):
        self._recorder, self._selector = recorder, selector

    def apply(self, nodes):
        self._selector.apply(nodes)

    def select(self, **options):
        instance, done = self._selector.select(**options)
        self._recorder.n_begun += 1

        def heard(info=None, *, err=None):
            self._recorder.ends.append(err if info is None else info.err)
            done(info, err=err)

        return instance, heard


@asynccontextmanager
async def session_of(members, **options):
    """Give a session for these servers."""
    weights = options.pop("weights", (1, 1, 1))
    async with client_session(NAME, registry(members, weights), **options) as session:
        yield session


# ---- whose turn it is


def test_weights_are_exact_for_requests_over_kept_connections(servers):
    async def main():
        async with session_of(servers, weights=(5, 1, 1)) as session:
            for _ in range(70):
                async with session.get("/orders/7?x=%20y") as response:
                    assert response.status == 200
                    await response.read()

    asyncio.run(main())
    assert n_requests(servers) == [50, 10, 10]
    for member in servers:
        requests = member.requests()
        assert len({request["peer"] for request in requests}) == 1  # one connection
        assert {request["target"] for request in requests} == {"/orders/7?x=%20y"}
        assert {request["host"] for request in requests} == {"orders"}


def test_weights_are_exact_for_concurrent_requests(servers):
    async def main():
        async with session_of(servers, weights=(5, 1, 1), limit=20) as session:

            async def one():
                async with session.get("/") as response:
                    await response.read()

            await asyncio.gather(*(one() for _ in range(210)))

    asyncio.run(main())
    assert n_requests(servers) == [150, 30, 30]


@pytest.mark.parametrize("balancer", [None, p2c(), rota.PeakEwma, WeightedRoundRobinBalancer()])
def test_any_balancer(servers, balancer):
    async def main():
        async with session_of(servers, balancer=balancer) as session:
            for _ in range(12):
                async with session.get("/") as response:
                    assert response.status == 200

    asyncio.run(main())
    assert sum(n_requests(servers)) == 12


@pytest.mark.parametrize(
    ("key", "headers"),
    [
        (header("x-user"), lambda n: {"X-User": f"u{n}"}),
        (cookie("session"), lambda n: {"Cookie": f"a=b; session=u{n}"}),
        (
            lambda request: request.url.raw_path + request.headers["X-User"],
            lambda n: {"X-User": f"u{n}"},
        ),
    ],
    ids=["header", "cookie", "callable"],
)
def test_a_key_goes_to_one_instance(servers, key, headers):
    async def main():
        async with session_of(servers, balancer=rota.ConsistentHash, key=key) as session:
            for _ in range(3):
                for n in range(20):
                    async with session.get("/", headers=headers(n)) as response:
                        seen[n].add((await response.json())["by"])
            async with session.get("/", headers={"X-User": ""}) as response:
                assert response.status == 200

    seen = {n: set() for n in range(20)}
    asyncio.run(main())
    assert all(len(names) == 1 for names in seen.values())
    assert len(set.union(*seen.values())) == 3


def test_keys_of_the_cookie_jar_and_of_call_options(servers):
    async def main():
        async with session_of(
            servers, balancer=rota.ConsistentHash, key=cookie("session"), cookies={"session": "me"}
        ) as session:
            for _ in range(6):
                async with session.get("/") as response:
                    mine.add((await response.json())["by"])
            with call_options(key="you"):
                for _ in range(6):
                    async with session.get("/") as response:
                        yours.add((await response.json())["by"])

    mine, yours = set(), set()
    asyncio.run(main())
    assert len(mine) == len(yours) == 1


def test_filters(servers):
    second = servers[1].address

    async def main():
        async with session_of(servers) as session:
            with call_options(filters=[where(lambda node: node.address == second)]):
                for _ in range(5):
                    async with session.get("/") as response:
                        assert response.status == 200

    asyncio.run(main())
    assert n_requests(servers) == [0, 5, 0]


def test_who_answered(servers):
    async def main():
        async with session_of(servers) as session:
            for _ in range(3):
                with Peer() as peer:
                    async with session.get("/?status=503&at=s0") as response:
                        by = (await response.json())["by"]
                assert by in ("s1", "s2")
                assert instance_of(response) is peer.node
                assert peer.node.address == {m.name: m.address for m in servers}[by]
            async with session.get(f"http://{servers[0].address}/") as response:
                assert instance_of(response) is None

    asyncio.run(main())


# ---- what stays the origin's


def test_the_origin_is_what_is_seen(servers):
    async def main():
        async with session_of(servers) as session:
            async with session.get("/a?set_cookie=a%3Db#part") as response:
                assert str(response.url) == "http://orders/a?set_cookie=a%3Db"
                assert (
                    str(response.request_info.real_url) == "http://orders/a?set_cookie=a%3Db#part"
                )
                assert response.request_info.url.authority == instance_of(response).address
                assert response.host == "orders"
            assert {c["domain"] for c in session.cookie_jar} == {"orders"}
            for _ in range(3):
                async with session.get("/") as response:
                    assert (await response.json())["headers"]["cookie"] == "a=b"
            with pytest.raises(aiohttp.ClientResponseError, match="url='http://orders/"):
                async with session.get("/?status=404") as response:
                    response.raise_for_status()

    asyncio.run(main())


def test_redirects(servers):
    outside = f"http://{servers[0].address}/outside"

    async def main():
        async with session_of(servers[1:]) as session:
            async with session.get("/?status=302&location=/there") as response:
                assert str(response.url) == "http://orders/there"
                assert [r.status for r in response.history] == [302]
                assert (await response.json())["by"] in ("s1", "s2")
            async with session.get(f"/?status=302&location={outside}") as response:
                assert str(response.url) == outside
                assert (await response.json())["by"] == "s0"
                assert instance_of(response) is None
            async with session.post("/?status=307&location=/there", data=b"again") as response:
                assert (await response.json())["body"] == "again"

    asyncio.run(main())


def test_other_origins_go_straight_on(servers):
    async def main():
        async with session_of(servers[1:]) as session:
            for _ in range(4):
                async with session.get(f"http://{servers[0].address}/") as response:
                    assert response.status == 200
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get(f"http://orders:{free_ports(1)[0]}/")

    asyncio.run(main())
    assert n_requests(servers) == [4, 0, 0]


def test_a_mounted_origin(servers):
    async def main():
        middleware = BalancedMiddleware(
            registry(servers), NAME, origin="http://shop.example:8080/", policy=retrying(3)
        )
        async with aiohttp.ClientSession() as session:
            for _ in range(3):
                async with session.get(
                    "http://SHOP.example:8080/x", middlewares=[middleware]
                ) as response:
                    assert (await response.json())["host"] == "shop.example:8080"
        await middleware.close()

    asyncio.run(main())
    assert n_requests(servers) == [1, 1, 1]


@pytest.mark.parametrize("name", ["orders", "shop.example"])
def test_tls_is_with_the_origin(tmp_path, name):
    ca, certificate = certificates(tmp_path, name)
    context = ssl.create_default_context(cafile=ca)

    async def main(members):
        async with session_of(members, origin=f"https://{name}", ssl=context) as session:
            for _ in range(4):
                async with session.get("/") as response:
                    said = await response.json()
                    assert (said["sni"], said["host"]) == (name, name)
            async with session.ws_connect("/ws") as ws:
                await ws.send_str("hello")
                assert (await ws.receive()).data == "hello"
        async with session_of(members, origin="https://other", ssl=context) as session:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await session.get("/")
            async with session.get("/", server_hostname=name) as response:
                said = await response.json()
                assert (said["sni"], said["host"]) == (name, "other")

    with fleet(2, tmp_path, certificate=certificate) as members:
        asyncio.run(main(members))
        assert sum(n_requests(members)) == 6


# ---- trying again


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_refused_answer_is_followed_by_another_instance(servers, status):
    async def main():
        recorder = Recorder()
        async with session_of(servers, balancer=recorder, policy=retrying(3)) as session:
            for _ in range(6):
                async with session.get(f"/?status={status}&at=s0,s1") as response:
                    assert response.status == 200
                    assert (await response.json())["by"] == "s2"
            # One that may not be made twice, and a status that no other server would mend.
            async with session.post(f"/?status={status}") as response:
                assert response.status == status
            async with session.get("/?status=500") as response:
                assert response.status == 500
        assert recorder.n_open == 0
        assert recorder.outcomes.count("SUCCESS") == 6

    asyncio.run(main())
    assert sum(n_requests(servers)) == n_requests(servers)[2] + sum(n_requests(servers)[:2])
    assert n_requests(servers)[2] >= 6


def test_the_last_answer_is_the_callers(servers):
    async def main():
        recorder = Recorder()
        async with (
            session_of(servers, balancer=recorder, policy=retrying(3)) as session,
            session.get("/?status=503&chunks=3&pause=0.4") as response,
        ):
            assert response.status == 503
            assert not response.content.is_eof()
            assert recorder.outcomes == ["FAILURE"] * 3
            # Those before it were let go, unread: their connections are closed.
            assert len(session.connector._acquired) == 1
            assert await response.read() == b"x" * 3072

    asyncio.run(main())
    assert n_requests(servers) == [1, 1, 1]


def test_retry_after_is_heard(servers):
    async def main():
        async with session_of(servers, policy=retrying(3)) as session:
            while not servers[0].requests():
                async with session.get("/?status=503&retry_after=60&at=s0") as response:
                    assert response.status == 200
            for _ in range(30):
                async with session.get("/") as response:
                    assert response.status == 200

    asyncio.run(main())
    assert n_requests(servers)[0] == 1


def test_an_unreachable_instance_is_passed_over_by_any_request(servers):
    nowhere = Instance(f"127.0.0.1:{free_ports(1)[0]}")

    async def main():
        found = registry(servers[:1])
        found.publish("orders", nowhere)
        async with client_session(NAME, found) as session:
            for n in range(10):
                async with session.post("/", data=f"{n}") as response:
                    assert (await response.json())["body"] == f"{n}"

            async def upload():
                yield b"in "
                yield b"parts"

            for _ in range(4):
                async with session.post("/", data=upload()) as response:
                    assert (await response.json())["body"] == "in parts"

    asyncio.run(main())
    assert n_requests(servers) == [14, 0, 0]


def test_a_broken_connection(servers):
    async def main():
        async with session_of(servers, policy=retrying(3)) as session:
            for _ in range(6):
                async with session.get("/?reset=1&at=s0,s1") as response:
                    assert (await response.json())["by"] == "s2"

            async def refused(method, **options):
                before = sum(n_requests(servers))
                with pytest.raises(ConnectionBroken) as caught:
                    await session.request(method, "/?reset=1", **options)
                assert isinstance(caught.value, aiohttp.ServerConnectionError)
                assert isinstance(
                    caught.value.__cause__, (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)
                )
                return sum(n_requests(servers)) - before

            # aiohttp's own repetition of what has met a broken connection is not among these.
            assert await refused("GET") == 3
            assert await refused("PUT", data=b"x") == 3
            assert await refused("POST", data=b"x") == 1
            with call_options(idempotent=False):
                assert await refused("GET") == 1
            with call_options(idempotent=True):
                assert await refused("POST", data=b"x") == 3
                assert await refused("POST", json={"a": "b"}) == 3
                assert await refused("POST", data={"a": "b"}) == 3

                async def once():
                    yield b"x"

                assert await refused("PUT", data=once()) == 1

    asyncio.run(main())
    for member in servers:
        for request in member.requests():
            if request["method"] in ("PUT", "POST"):
                assert request["body"] in ("x", '{"a": "b"}', "a=b")


def test_bodies_are_sent_whole_again(servers):
    big = "0123456789" * 100_000

    async def main():
        async with session_of(servers, policy=retrying(3)) as session:
            for _ in range(3):
                async with session.put("/?status=503&at=s0,s1", data=big) as response:
                    assert (await response.json())["body"] == big
                async with session.put(
                    "/?status=503&at=s0,s1", data=b"expected", expect100=True
                ) as response:
                    said = await response.json()
                    assert said["body"] == "expected"
                    assert said["headers"]["expect"] == "100-continue"
                async with session.put(
                    "/?reset=1&at=s0,s1", data=big.encode(), compress="gzip"
                ) as response:
                    assert response.status == 200

    asyncio.run(main())


def test_the_budget_bounds_retries(servers):
    budget = rota.RetryBudget(percent=0, per_second=0.1, ttl=20)  # 2

    async def main():
        async with session_of(servers, policy=retrying(3, budget=budget)) as session:
            for _ in range(10):
                async with session.get("/?status=503") as response:
                    assert response.status == 503

    asyncio.run(main())
    assert sum(n_requests(servers)) == 12


def test_timeouts(servers):
    async def main():
        quick = aiohttp.ClientTimeout(total=20, sock_read=0.15)
        async with session_of(servers, policy=retrying(3), timeout=quick) as session:
            for _ in range(3):  # each attempt has its own
                async with session.get("/?wait=10&at=s0,s1") as response:
                    assert (await response.json())["by"] == "s2"
            with pytest.raises(aiohttp.SocketTimeoutError):
                await session.post("/?wait=10")
        assert sum(n_requests(servers)) >= 4
        recorder = Recorder()
        whole = aiohttp.ClientTimeout(total=0.3, sock_read=0.2)
        async with session_of(
            servers, balancer=recorder, policy=retrying(9), timeout=whole
        ) as session:
            with pytest.raises(asyncio.TimeoutError):
                await session.get("/?wait=10")
            assert len(recorder.ends) == 2
            assert recorder.n_open == 0
        policy = retrying(9, deadline=0.3)
        async with session_of(servers, balancer=recorder, policy=policy) as session:
            with pytest.raises(asyncio.TimeoutError) as caught:
                await session.get("/?wait=10")
            assert isinstance(caught.value, DeadlineError)
            assert isinstance(caught.value, aiohttp.ServerTimeoutError)
            assert isinstance(caught.value, DeadlineExceeded)
            assert recorder.n_open == 0
            async with session.get("/?chunks=2&pause=0.5") as response:  # of the headers alone
                assert len(await response.read()) == 2048

    asyncio.run(main())


def test_nobody_is_there():
    async def main():
        found = MemoryRegistry()
        async with client_session(NAME, found) as session:
            for error in (NoInstance, aiohttp.ClientConnectionError, NoAvailableInstance):
                with pytest.raises(error, match="orders: no instance is available"):
                    await session.get("/")
            found.publish("orders", Instance("127.0.0.1:1", 0))
            with pytest.raises(NoInstance):
                await session.get("/")

    asyncio.run(main())


class Slow(MemoryRegistry):
    """Takes its time."""

    async def resolve(self, target):
        await asyncio.sleep(60)


def test_the_deadline_holds_while_a_service_is_looked_for():
    async def main():
        async with client_session(NAME, Slow(), policy=retrying(2, deadline=0.05)) as session:
            with pytest.raises(DeadlineError):
                await session.get("/")

    asyncio.run(main())


# ---- when a request has ended


@pytest.mark.parametrize(
    ("method", "query", "outcome"),
    [
        ("GET", "", "SUCCESS"),
        ("HEAD", "size=5000", "SUCCESS"),
        ("GET", "status=204", "SUCCESS"),
        ("GET", "status=304", "SUCCESS"),
        ("GET", "status=404", "SUCCESS"),
        ("GET", "status=500", "FAILURE"),
        ("GET", "chunks=3&pause=0.05", "SUCCESS"),
        ("GET", "chunks=3&pause=0.05&status=500", "FAILURE"),
        ("GET", "size=3000000", "SUCCESS"),
        ("GET", "close=1", "SUCCESS"),
        ("POST", "size=100000", "SUCCESS"),
        ("GET", "break=1&size=100000", "FAILURE"),
        ("GET", "break=1", "FAILURE"),
    ],
)
def test_a_request_ends_with_its_body(servers, method, query, outcome):
    async def main():
        recorder = Recorder()
        async with session_of(servers, balancer=recorder) as session:
            for _ in range(2):
                response = await session.request(method, f"/?{query}")
                assert recorder.n_open == (not response.closed)
                try:
                    await response.read()
                except aiohttp.ClientPayloadError:
                    assert outcome == "FAILURE"
                assert recorder.n_open == 0
                response.release()
                response.close()
            assert recorder.outcomes == [outcome] * 2

    asyncio.run(main())


@pytest.mark.parametrize("end", ["release", "close", "with", "cancel", "parts"])
def test_a_body_that_is_left(servers, end):
    async def main():
        recorder = Recorder()
        async with session_of(servers, balancer=recorder) as session:
            response = await session.get("/?chunks=200&pause=0.05")
            assert recorder.n_open == 1
            if end in ("release", "close"):
                getattr(response, end)()
            elif end == "with":
                async with response:
                    pass
            elif end == "parts":
                async with response:
                    async for _ in response.content.iter_chunked(100):
                        break
            else:
                reading = asyncio.ensure_future(response.read())
                await asyncio.sleep(0.1)
                assert recorder.n_open == 1
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
            assert recorder.outcomes == ["CANCELLED"]
            response.close()
            assert len(recorder.ends) == 1

    asyncio.run(main())


def test_a_body_that_stops(servers):
    async def main():
        recorder = Recorder()
        timeout = aiohttp.ClientTimeout(sock_read=0.1)
        async with session_of(servers, balancer=recorder, timeout=timeout) as session:
            with pytest.raises(aiohttp.SocketTimeoutError):
                async with session.get("/?chunks=2&pause=5") as response:
                    await response.read()
            assert recorder.outcomes == ["FAILURE"]

    asyncio.run(main())


def test_an_answer_that_nobody_reads(servers):
    async def main():
        recorder = Recorder()
        async with session_of(servers, balancer=recorder) as session:
            # It ends when all of it has come, read or not, forgotten or not.
            response = await session.get("/?chunks=3&pause=0.05")
            assert recorder.n_open == 1
            await until(lambda: recorder.n_open == 0)
            assert await response.read() == b"x" * 3072
            await session.get("/?chunks=3&pause=0.05")
            gc.collect()
            await until(lambda: recorder.n_open == 0)
            assert recorder.outcomes == ["SUCCESS"] * 2
            # One that is more than aiohttp takes in unread: with its connection.
            await session.get("/?size=3000000")
            gc.collect()
            assert recorder.n_open == 1
        gc.collect()
        await until(lambda: recorder.n_open == 0)
        assert recorder.outcomes[2] == "CANCELLED"

    asyncio.run(main())


def test_a_websocket_is_under_way_until_it_is_closed(servers):
    async def main():
        recorder = Recorder()
        async with session_of(servers, balancer=recorder) as session:
            async with session.ws_connect("/ws") as ws:
                for n in range(3):
                    await ws.send_str("x" * (100 * n))
                    assert len((await ws.receive()).data) == 100 * n
                assert recorder.n_open == 1
            assert recorder.outcomes == ["SUCCESS"]
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await session.ws_connect("/?status=404")
            assert recorder.outcomes == ["SUCCESS"] * 2
            async with session.ws_connect("ws://orders/ws") as ws:
                await ws.send_bytes(b"again")
                assert (await ws.receive()).data == b"again"
            assert recorder.n_open == 0

    asyncio.run(main())
    assert sum(n_requests(servers)) == 3


@pytest.mark.parametrize("deadline", [None, 10.0])
def test_cancelled_anywhere(servers, deadline):
    async def one(session, query):
        with suppress(aiohttp.ClientError), call_options(idempotent=True):
            async with session.post(query, data=b"x" * 100_000) as response:
                await response.read()

    async def main():
        recorder = Recorder()
        policy = retrying(3, deadline=deadline)
        middleware = BalancedMiddleware(registry(servers), NAME, balancer=recorder, policy=policy)
        async with aiohttp.ClientSession("http://orders/", middlewares=[middleware]) as session:
            for n in range(60):
                query = ("wait=0.01&status=503", "chunks=3&pause=0.01", "reset=1")[n % 3]
                task = asyncio.ensure_future(one(session, f"/?{query}"))
                for _ in range(n):
                    await asyncio.sleep(0 if n < 30 else 0.001)
                task.cancel()
                await asyncio.wait([task])
                assert recorder.n_open == 0
            assert all(not member.users for member in middleware._dialer.members.now())
        await middleware.close()

    asyncio.run(main())


# ---- instances that die, freeze, leave and join


class Load:
    """Requests of all kinds at some rate, each with an id of its own; what became of them."""

    def __init__(self, session):
        self._session = session
        self.sent = Counter()
        self.lost = []  # (method, error, the instance it went to last)
        self._tasks = set()

    async def _one(self, method, n):
        with Peer() as peer:
            try:
                async with self._session.request(
                    method, f"/?id={n}", data=None if method == "GET" else f"{n}"
                ) as response:
                    assert response.status == 200
                    await response.read()
            except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                self.lost.append((method, error, peer.node))

    async def run(self, seconds, rate=200.0, methods=("GET", "POST", "PUT")):
        """Make requests for so many seconds, and wait for them."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        while (now := loop.time()) < begin + seconds:
            while sum(self.sent.values()) < (now - begin) * rate:
                n = sum(self.sent.values())
                method = methods[n % len(methods)]
                self.sent[method] += 1
                task = asyncio.ensure_future(self._one(method, n))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(0.002)
        await asyncio.gather(*self._tasks)


def ids_of(members, method):
    """Return the ids of the requests of this method that any server has read, with repetitions."""
    return [
        request["target"]
        for member in members
        for request in member.requests()
        if request["method"] == method
    ]


def test_a_server_is_killed(tmp_path):
    async def main(members):
        async with session_of(members) as session:
            load = Load(session)
            running = asyncio.ensure_future(load.run(2.0))
            await asyncio.sleep(0.7)
            await asyncio.to_thread(members[1].kill)
            await running
        return load

    with fleet(3, tmp_path) as members:
        load = asyncio.run(main(members))
        assert sum(load.sent.values()) > 100
        # No request that may be made twice was lost, and none was made twice that may not.
        assert {method for method, _, _ in load.lost} <= {"POST"}
        assert {node.address for _, _, node in load.lost} <= {members[1].address}
        posts = ids_of(members, "POST")
        assert len(posts) == len(set(posts))
        assert len(posts) >= load.sent["POST"] - len(load.lost)


def test_a_rolling_restart(tmp_path):
    async def main(members):
        async with session_of(members) as session:
            load = Load(session)
            running = asyncio.ensure_future(load.run(2.5, rate=150.0, methods=("GET", "PUT")))
            for member in members:
                await asyncio.sleep(0.2)
                await asyncio.to_thread(member.restart)
            await running
        return load

    with fleet(3, tmp_path) as members:
        load = asyncio.run(main(members))
        assert sum(load.sent.values()) > 100
        assert load.lost == []
        assert all(n > 0 for n in n_requests(members))


def test_a_frozen_server_is_avoided(tmp_path):
    async def main(members):
        timeout = aiohttp.ClientTimeout(total=10, sock_read=0.4)
        async with session_of(members, balancer=p2c(), timeout=timeout, limit=0) as session:
            load = Load(session)
            await load.run(0.5, methods=("GET",))
            n_before = sum(load.sent.values())
            members[2].freeze()
            try:
                await load.run(2.5, methods=("GET",))
            finally:
                members[2].thaw()
            n_frozen = sum(load.sent.values()) - n_before
            assert load.lost == []
            assert n_frozen > 100
            before = len(members[2].requests())
            await load.run(0.5, methods=("GET",))
            return n_frozen, before - n_before / 3

    with fleet(3, tmp_path) as members:
        n_sent, n_met = asyncio.run(main(members))
        assert n_met < n_sent * 0.2


def test_instances_leave_and_join(servers):
    async def main():
        found = registry(servers)
        async with client_session(NAME, found) as session:
            load = Load(session)
            running = asyncio.ensure_future(load.run(1.5))
            while not running.done():
                for member in servers[1:]:
                    found.withdraw("orders", member.address)
                    await asyncio.sleep(0.03)
                    found.publish("orders", Instance(member.address, 1))
                    await asyncio.sleep(0.03)
            await running
            assert load.lost == []
            service = session._middlewares[-1]._held
            await until(lambda: len(service.instances) == 3)
            found.withdraw("orders", servers[1].address)
            await until(lambda: len(service.instances) == 2)
            before = n_requests(servers)[1]
            for _ in range(20):
                async with session.get("/?late=1") as response:
                    assert response.status == 200
            assert n_requests(servers)[1] == before
            for method, n in load.sent.items():
                assert len(ids_of(servers, method)) == n + (20 if method == "GET" else 0)

    asyncio.run(main())


def test_ten_thousand_requests_leave_nothing(servers):
    def n_files():
        return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    async def main():
        n_before = n_files()
        recorder = Recorder()
        middleware = BalancedMiddleware(registry(servers), NAME, balancer=recorder)
        async with aiohttp.ClientSession(
            "http://orders/",
            middlewares=[middleware],
            connector=aiohttp.TCPConnector(limit=8),
        ) as session:

            async def some(n):
                for k in range(n):
                    query = "/?status=503&at=s0" if k % 50 == 0 else "/?size=10"
                    async with session.get(query) as response:
                        await response.read()

            await asyncio.gather(*(some(250) for _ in range(8)))
            recorder.ends.clear()
            recorder.n_begun = 0
            n_held = len(asyncio.all_tasks()), threading.active_count()
            tracemalloc.start()
            try:
                sizes = []
                for _ in range(3):
                    await asyncio.gather(*(some(125) for _ in range(8)))
                    recorder.ends.clear()
                    gc.collect()
                    sizes.append(tracemalloc.get_traced_memory()[0])
            finally:
                tracemalloc.stop()
            assert sizes[-1] - sizes[0] < 100_000  # 2,000 requests: 50 bytes of each
            await asyncio.gather(*(some(700) for _ in range(8)))
            assert (len(asyncio.all_tasks()), threading.active_count()) == n_held
            assert n_files() <= n_before + 3 * 8
            assert all(not member.users for member in middleware._dialer.members.now())
        await middleware.close()
        await until(lambda: n_files() == n_before)

    asyncio.run(main())
    assert sum(n_requests(servers)) >= 10_000


# ---- how it is made, and ended


def test_a_session_closes_all_that_it_has(servers):
    async def main():
        session = client_session(NAME, registry(servers), keepalive_timeout=1.0)
        middleware = session._middlewares[-1]
        async with session.get("/") as response:
            await response.read()
        assert len(asyncio.all_tasks()) > 1  # discovery is followed
        await session.close()
        await session.close()
        await until(lambda: len(asyncio.all_tasks()) == 1)
        with pytest.raises(RuntimeError, match="closed"):
            async with aiohttp.ClientSession("http://orders/", middlewares=[middleware]) as other:
                await other.get("/")

    asyncio.run(main())


def test_a_shared_factory_stays(servers):
    async def main():
        async with AsyncBalancerFactory(registry(servers), WeightedRoundRobinBalancer()) as factory:
            for _ in range(2):
                async with client_session(NAME, factory) as session:
                    for _ in range(3):
                        async with session.get("/") as response:
                            assert response.status == 200
            assert factory.followed(NAME) is not None
            with pytest.raises(TypeError, match="balancer is the factory's"):
                client_session(NAME, factory, balancer=p2c())

    asyncio.run(main())
    assert n_requests(servers) == [2, 2, 2]


def test_a_middleware_is_used_on_one_loop_after_another(servers):
    async def main():
        async with aiohttp.ClientSession("http://orders/", middlewares=[middleware]) as session:
            for _ in range(3):
                async with session.get("/") as response:
                    await response.read()

    middleware = BalancedMiddleware(registry(servers), NAME)
    for _ in range(3):
        asyncio.run(main())
    asyncio.run(middleware.close())
    assert sum(n_requests(servers)) == 9


def test_other_middlewares_see_a_request_once(servers):
    seen = []

    async def outer(request, handler):
        seen.append(str(request.url))
        request.headers["X-Token"] = "secret"
        return await handler(request)

    async def main():
        async with (
            session_of(servers, middlewares=[outer], policy=retrying(3)) as session,
            session.get("/?status=503") as response,
        ):
            assert (await response.json())["headers"]["x-token"] == "secret"

    asyncio.run(main())
    assert seen == ["http://orders/?status=503"]
    assert n_requests(servers) == [1, 1, 1]


def test_a_unix_socket_is_refused(tmp_path):
    async def main():
        found = MemoryRegistry()
        found.publish("orders", Instance(str(tmp_path / "s"), network="unix"))
        async with client_session(NAME, found) as session:
            with pytest.raises(ValueError, match="network must be tcp"):
                await session.post("/")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"origin": "orders"}, ValueError, "origin must be 'https://host', got 'orders'"),
        ({"origin": "ftp://orders"}, ValueError, "origin"),
        ({"origin": "http://orders/path"}, ValueError, "origin"),
        ({"origin": "http://me@orders"}, ValueError, "origin"),
        ({"origin": "http://a b"}, ValueError, "origin"),
        ({"origin": 1}, ValueError, "origin"),
        ({"key": 1}, TypeError, "key must be a callable"),
        ({"key": header("a"), "balancer": wrr(start=0)}, TypeError, "key is for selectors"),
        ({"policy": 1}, TypeError, "policy"),
        ({"balancer": 1}, TypeError, "balancer"),
        ({"retry_statuses": [200]}, ValueError, "retry_statuses"),
        ({"retry_statuses": "503"}, TypeError, "retry_statuses"),
        ({"base_url": "http://a/"}, TypeError, "base_url is the session's own"),
        ({"connector": None}, TypeError, "connector is the session's own"),
        ({"no_such": 1}, TypeError, "no_such"),
    ],
    ids=str,
)
def test_arguments_of_no_use(options, kind, said):
    async def main():
        with pytest.raises(kind, match=said):
            client_session(NAME, MemoryRegistry(), **options)

    asyncio.run(main())


def test_discovery_of_another_kind():
    for discovery in (None, "orders", rota.RoundRobin(["a"])):
        with pytest.raises(TypeError, match="discovery"):
            BalancedMiddleware(discovery, NAME)
    with pytest.raises(ValueError, match="origin must be given"):
        BalancedMiddleware(MemoryRegistry(), "discovery:///a/b")


def test_a_session_is_made_on_a_loop():
    with pytest.raises(RuntimeError, match="no running event loop"):
        client_session(NAME, MemoryRegistry())


HOSTS = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,5})?", fullmatch=True)


@given(HOSTS, st.sampled_from(["http", "https", "HTTPS"]), st.integers(1, 65535))
def test_an_origin_is_what_it_says(host, scheme, port):
    assert origin_of(host, None) == f"http://{host}"
    assert origin_of("any", f"{scheme}://{host}:{port}/") == f"{scheme.lower()}://{host}:{port}"


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


@pytest.mark.parametrize(
    "missing",
    ["import sys; sys.modules['aiohttp'] = None", "import aiohttp; del aiohttp.ClientHandlerType"],
)
def test_without_aiohttp(missing):
    code = f"{missing}\nimport rota.clients.aiohttp"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "pip install 'rota[aiohttp]'" in done.stderr
