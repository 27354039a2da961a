"""The balanced clients of httpx, with real servers: processes that are killed and frozen.

Each test with `way` is one of threads and one of asyncio: see `Threads` and `Loop`.
"""

import asyncio
import gc
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

import rota
from rota.clients import call_options, cookie, header
from rota.clients.balancing import as_balancer
from rota.clients.httpx import (
    AsyncBalancedTransport,
    AsyncClient,
    BalancedTransport,
    Client,
    DeadlineError,
    NoInstance,
)
from rota.discovery import Instance, StaticResolver
from rota.discovery.memory import MemoryRegistry
from rota.loadbalance import AsyncBalancerFactory, BalancerFactory, WeightedRoundRobinBalancer
from rota.outcome import outcome_of
from rota.retry import DeadlineExceeded, RetryBudget, RetryPolicy, any_failure
from rota.selector import (
    NoAvailableInstance,
    Peer,
    engine,
    global_selector,
    p2c,
    set_global_selector,
    version,
    where,
    wrr,
)
from tests.http_servers import certificates, fleet
from tests.servers import free_ports

NAME = "discovery:///orders"

# Reading the certificates of all authorities takes longer than a test.
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


# ---- what runs a test


class Threads:
    """The clients for threads."""

    client_type = Client
    plain_type = httpx.Client
    transport_type = BalancedTransport
    factory_type = BalancerFactory

    def __init__(self):
        self._opened = []
        self._loads = []

    def run(self, result):
        """Return what a method of a client gave."""
        return result

    def client(self, discovery, endpoint=NAME, **options):
        """Return a client, which is closed after the test."""
        return self.keep(self.client_type(endpoint, discovery, **_cheap(options)))

    def plain(self, **options):
        """Return a client of httpx itself, which is closed after the test."""
        return self.keep(self.plain_type(**_cheap(options)))

    def keep(self, closable):
        """Have something closed after the test."""
        self._opened.append(closable)
        return closable

    def close(self, closable):
        """Close a client, a transport or an answer."""
        closable.close()

    def send(self, client, method, url, **options):
        """Return an answer, whose body is still to be read."""
        return client.send(client.build_request(method, url, **options), stream=True)

    def read(self, response):
        """Return the body of an answer."""
        return response.read()

    def parts(self, response):
        """Return an iterator over the parts of a body."""
        return response.iter_raw()

    def next(self, parts):
        """Return the next part."""
        return next(parts)

    def generator(self, *parts):
        """Return a body that is read while it is sent."""
        return (part for part in parts)

    def sleep(self, seconds):
        """Let time pass."""
        time.sleep(seconds)

    def until(self, condition, seconds=20.0):
        """Return when a condition holds; fail when that takes too long."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end
            self.sleep(0.005)

    def load(self, client):
        """Return what makes many requests."""
        self._loads.append(ThreadLoad(client))
        return self._loads[-1]

    def close_all(self):
        """Close all that is open."""
        for load in self._loads:  # also of a test that has failed
            if not load.is_ending:
                load.end()
        while self._opened:
            self.close(self._opened.pop())

    def end(self):
        """Leave nothing."""
        self.close_all()


class Loop(Threads):
    """The clients for asyncio, on a loop that runs while something is waited for."""

    client_type = AsyncClient
    plain_type = httpx.AsyncClient
    transport_type = AsyncBalancedTransport
    factory_type = AsyncBalancerFactory

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()

    def run(self, result):
        return self.loop.run_until_complete(result)

    def close(self, closable):
        self.run(getattr(closable, "aclose", getattr(closable, "close", None))())

    def send(self, client, method, url, **options):
        return self.run(client.send(client.build_request(method, url, **options), stream=True))

    def read(self, response):
        return self.run(response.aread())

    def parts(self, response):
        return response.aiter_raw()

    def next(self, parts):
        return self.run(anext(parts))

    async def generator(self, *parts):
        for part in parts:
            yield part

    def sleep(self, seconds):
        self.run(asyncio.sleep(seconds))

    def load(self, client):
        self._loads.append(TaskLoad(client, self.loop))
        return self._loads[-1]

    def end(self):
        try:
            self.close_all()
            self.run(self.loop.shutdown_asyncgens())
        finally:
            self.loop.close()


def _cheap(options):
    return {"verify": PLAIN, "trust_env": False} | options


@pytest.fixture(params=[Threads, Loop], ids=["threads", "asyncio"])
def way(request):
    """How a test calls: with `Client`, or with `AsyncClient`."""
    found = request.param()
    yield found
    found.end()


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


def registry(members, weights=(1, 1, 1), **more):
    """Return a registry in which these are the service."""
    found = MemoryRegistry()
    for member, weight in zip(members, weights):  # noqa: B905
        found.publish("orders", Instance(member.address, weight, **more))
    return found


def retrying(n, **more):
    """Return a policy of n attempts, which no budget ends."""
    more = {"retry_on": any_failure, "budget": None, "pause": 0.001} | more
    return RetryPolicy(max_attempts=n, **more)


def n_requests(members):
    """Return how many requests each server has read."""
    return [len(member.requests()) for member in members]


def n_in_flight(client):
    """Return the requests that go on: as the client counts them, and as its picker does."""
    (row,) = client.stats()
    return row.n_in_flight, sum(each.load or 0 for each in row.instances)


def connections_to(member):
    """Return how many sockets of this process are connected to a server."""
    n = 0
    port = int(member.address.rpartition(":")[2])
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as copy:
                    n += copy.getpeername()[1:2] == (port,)
    return n


class Recorder:
    """A builder of selectors that remembers whom they chose, and how that ended."""

    def __init__(self, inner=None):
        self.inner = wrr(start=0) if inner is None else inner
        self.n_begun = 0
        self.ends = []  # the error of each, in the order of ends

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


class Load:
    """Requests at some rate, each with an id of its own; and what became of them."""

    rate = 200.0

    def __init__(self, client):
        self.client = client
        self.n_sent = Counter()  # by method
        self.lost = []  # (method, id, error, the instance it went to last)
        self.is_ending = False
        self._lock = threading.Lock()

    def next(self, methods):
        """Return (method, id) of the next request."""
        with self._lock:
            n = sum(self.n_sent.values())
            method = methods[n % len(methods)]
            self.n_sent[method] += 1
            return method, n

    def ended(self, method, n, response, peer):
        """Check an answer."""
        assert response.status_code == 200
        said = response.json()
        assert said["target"] == f"/?id={n}"
        assert said["method"] == method


class ThreadLoad(Load):
    """Requests of eight threads."""

    n_threads = 8

    def start(self, *methods):
        self._threads = ThreadPoolExecutor(self.n_threads)
        self._running = [
            self._threads.submit(self._some, methods, k / self.rate) for k in range(self.n_threads)
        ]

    def _some(self, methods, wait):
        due = time.monotonic() + wait
        while not self.is_ending:
            time.sleep(max(0.0, due - time.monotonic()))
            due += self.n_threads / self.rate
            method, n = self.next(methods)
            with Peer() as peer:
                try:
                    response = self.client.request(method, "/", params={"id": n})
                except httpx.HTTPError as error:
                    self.lost.append((method, n, error, peer.node))
                else:
                    self.ended(method, n, response, peer)

    def sleep(self, seconds):
        time.sleep(seconds)

    def do(self, function):
        """Call what blocks, while requests fly."""
        function()

    def end(self):
        self.is_ending = True
        for each in self._running:
            each.result()
        self._threads.shutdown()


class TaskLoad(Load):
    """Requests of a task each."""

    def __init__(self, client, loop):
        super().__init__(client)
        self._loop = loop
        self._tasks = []

    def start(self, *methods):
        self._running = self._loop.create_task(self._all(methods))

    async def _all(self, methods):
        due = time.monotonic()
        while not self.is_ending:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += 1 / self.rate
            self._tasks.append(self._loop.create_task(self._one(*self.next(methods))))
        await asyncio.gather(*self._tasks)

    async def _one(self, method, n):
        with Peer() as peer:
            try:
                response = await self.client.request(method, "/", params={"id": n})
            except httpx.HTTPError as error:
                self.lost.append((method, n, error, peer.node))
            else:
                self.ended(method, n, response, peer)

    def sleep(self, seconds):
        self._loop.run_until_complete(asyncio.sleep(seconds))

    def do(self, function):
        self._loop.run_until_complete(asyncio.to_thread(function))

    def end(self):
        self.is_ending = True
        self._loop.run_until_complete(self._running)


# ---- whose turn it is


def test_weights_are_exact_over_kept_connections(way, servers):
    client = way.client(registry(servers, (5, 1, 1)))
    for _ in range(70):
        response = way.run(client.get("/orders/7", params={"x": "y/"}))
        assert response.status_code == 200
    assert n_requests(servers) == [50, 10, 10]
    assert [connections_to(member) for member in servers] == [1, 1, 1]
    for member in servers:
        assert {request["target"] for request in member.requests()} == {"/orders/7?x=y%2F"}
        assert {request["host"] for request in member.requests()} == {"orders"}


def test_weights_are_exact_for_concurrent_requests(way, servers):
    client = way.client(registry(servers, (5, 1, 1)))
    load = way.load(client)
    load.start("GET", "POST")
    while sum(load.n_sent.values()) < 100:
        load.sleep(0.01)
    load.end()
    assert load.lost == []
    n = sum(load.n_sent.values())
    shares = n_requests(servers)
    assert sum(shares) == n
    for share, weight in zip(shares, (5, 1, 1), strict=True):
        assert n // 7 * weight <= share <= (n // 7 + 1) * weight


@pytest.mark.parametrize(
    "balancer",
    [None, p2c(), wrr("kratos"), engine(rota.LeastRequest), rota.PeakEwma],
    ids=str,
)
def test_any_selector(way, servers, balancer):
    client = way.client(registry(servers), balancer=balancer)
    for _ in range(12):
        assert way.run(client.get("/")).status_code == 200
    assert sum(n_requests(servers)) == 12
    assert n_in_flight(client) == (0, 0)


def test_a_balancer_of_kitex(way, servers):
    client = way.client(registry(servers, (5, 1, 1)), balancer=WeightedRoundRobinBalancer())
    for _ in range(14):
        with Peer() as peer:
            response = way.run(client.get("/"))
        assert response.extensions["instance"] is peer.node
    assert n_requests(servers) == [10, 2, 2]


class FirstPicker:
    """Of Kitex' kind, and one's own: the first that is there."""

    def __init__(self, instances, heard):
        self.instances, self._heard = instances, heard

    def next(self, ctx=None, request=None):
        return self.instances[0] if self.instances else None


class HearingPicker(FirstPicker):
    """One that hears how calls end."""

    def select(self):
        if not self.instances:
            return None
        return self.instances[0], lambda info=None, *, err=None: self._heard.append(info)


class OwnBalancer:
    """Of Kitex' kind, and one's own."""

    name = "own"

    def __init__(self, picker):
        self.picker, self.heard = picker, []

    def get_picker(self, result):
        return self.picker(result.instances, self.heard)


@pytest.mark.parametrize("picker", [FirstPicker, HearingPicker])
def test_a_balancer_of_ones_own(way, servers, picker):
    balancer = OwnBalancer(picker)
    client = way.client(registry(servers), balancer=balancer)
    for n in range(4):
        response = way.send(client, "GET", "/")
        assert len(balancer.heard) == (n if picker is HearingPicker else 0)
        way.read(response)
        way.close(response)
    assert n_requests(servers) == [4, 0, 0]
    if picker is HearingPicker:
        assert [info.err for info in balancer.heard] == [None] * 4
        assert balancer.heard[0].reply_metadata["content-type"] == "application/json"


def test_a_selector_of_ones_own_hears_once(way, servers):
    recorder = Recorder()
    client = way.client(registry(servers), balancer=recorder)
    for _ in range(6):
        response = way.send(client, "GET", "/")
        assert recorder.n_open == 1
        way.read(response)
        assert recorder.n_open == 0
        way.close(response)
    assert recorder.outcomes == ["SUCCESS"] * 6


def test_the_global_selector_is_asked(way, servers):
    recorder, before = Recorder(), global_selector()
    set_global_selector(recorder)
    try:
        client = way.client(registry(servers))
    finally:
        set_global_selector(before)
    way.run(client.get("/"))
    assert recorder.n_begun == 1


@pytest.mark.parametrize(
    ("key", "headers"),
    [
        (header("x-user"), lambda n: {"X-User": f"u{n}"}),
        (cookie("session"), lambda n: {"Cookie": f"a=b; session=u{n}"}),
        (
            lambda request: request.url.path + request.headers["X-User"],
            lambda n: {"X-User": f"{n}"},
        ),
    ],
    ids=["header", "cookie", "callable"],
)
def test_a_key_goes_to_one_instance(way, servers, key, headers):
    client = way.client(registry(servers), balancer=engine(rota.ConsistentHash), key=key)
    seen = {n: set() for n in range(20)}
    for _ in range(3):
        for n in range(20):
            seen[n].add(way.run(client.get("/", headers=headers(n))).json()["by"])
    assert all(len(names) == 1 for names in seen.values())
    assert len(set.union(*seen.values())) == 3


def test_without_a_key_it_goes_anywhere(way, servers):
    client = way.client(registry(servers), balancer=rota.ConsistentHash, key=header("x-user"))
    for _ in range(60):
        way.run(client.get("/"))
    assert all(n_requests(servers))  # one is left out once in 10**10 times


def test_keys_of_cookie_jars_and_of_call_options(way, servers):
    client = way.client(
        registry(servers),
        balancer=rota.ConsistentHash,
        key=cookie("session"),
        cookies={"session": "me"},
    )
    mine = {way.run(client.get("/")).json()["by"] for _ in range(6)}
    yours = {}
    for name in range(20):
        with call_options(key=f"u{name}"):
            yours[name] = {way.run(client.get("/")).json()["by"] for _ in range(3)}
    assert len(mine) == 1
    assert all(len(each) == 1 for each in yours.values())
    assert len(set.union(*yours.values())) == 3


def test_filters(way, servers):
    found = MemoryRegistry()
    for member, name in zip(servers, ("v1", "v1", "v2"), strict=True):
        found.publish("orders", Instance(member.address, 1, version=name))
    client = way.client(found, filters=[version("v1")])
    for _ in range(4):
        way.run(client.get("/"))
    assert n_requests(servers) == [2, 2, 0]
    with call_options(filters=[where(lambda node: node.address == servers[1].address)]):
        for _ in range(4):
            way.run(client.get("/"))
    assert n_requests(servers) == [2, 6, 0]
    with call_options(filters=[version("v2")]), pytest.raises(NoInstance):
        way.run(client.get("/"))


def test_who_answered(way, servers):
    client = way.client(registry(servers))
    addresses = {member.name: member.address for member in servers}
    for _ in range(4):
        with Peer() as peer:
            response = way.run(client.get("/?status=503&at=s0"))
        by = response.json()["by"]
        assert by in ("s1", "s2")
        assert response.extensions["instance"] is peer.node
        assert peer.node.address == addresses[by]
    response = way.run(client.get(f"http://{servers[0].address}/"))
    assert "instance" not in response.extensions


def test_what_is_counted(way, servers):
    client = way.client(registry(servers), policy=retrying(2))
    for _ in range(3):
        way.run(client.get("/"))
    way.run(client.get("/?status=503"))
    (row,) = client.stats()
    assert (row.service, row.n_calls, row.n_failures) == ("orders", 5, 2)
    assert (row.n_in_flight, row.n_instances) == (0, 3)
    assert sorted(each.n_calls for each in row.instances) == [1, 2, 2]


# ---- what stays the origin's


def test_urls(way, servers):
    client = way.client(registry(servers))
    for url in ("/a/b?c=d%2Fe", "discovery:///orders/a/b?c=d%2Fe", "http://orders/a/b?c=d%2Fe"):
        for given in (url, httpx.URL(url)):
            response = way.run(client.get(given))
            assert response.json()["target"] == "/a/b?c=d%2Fe"
            assert response.json()["host"] == "orders"
            assert str(response.url) == "http://orders/a/b?c=d%2Fe"
            assert "instance" in response.extensions
    assert way.run(client.get("discovery:///orders")).json()["target"] == "/"
    assert way.run(client.get("discovery:///orders?a=b")).json()["target"] == "/?a=b"
    assert sum(n_requests(servers)) == 8


def test_urls_of_another_service(way, servers):
    client = way.client(registry(servers))
    with pytest.raises(ValueError, match="'discovery:///users/7'"):
        way.run(client.get("discovery:///users/7"))
    with pytest.raises(ValueError, match="endpoint must be"):
        way.run(client.get("discovery:///"))
    assert n_requests(servers) == [0, 0, 0]


def test_an_origin_of_ones_own(way, servers):
    client = way.client(registry(servers), origin="http://shop.example:8080")
    response = way.run(client.get("/x"))
    assert response.json()["host"] == "shop.example:8080"
    assert str(response.url) == "http://shop.example:8080/x"
    response = way.run(client.get("discovery:///orders/x"))
    assert response.json()["host"] == "shop.example:8080"


def test_a_header_host_of_ones_own(way, servers):
    client = way.client(registry(servers))
    assert way.run(client.get("/", headers={"Host": "other"})).json()["host"] == "other"


def test_mounted_in_a_client_of_httpx(way, servers):
    transport = way.transport_type(registry(servers[1:]), NAME)
    client = way.plain(mounts={"http://orders.svc": transport})
    for _ in range(4):
        response = way.run(client.get("http://orders.svc/x"))
        assert response.json()["host"] == "orders.svc"
    assert n_requests(servers) == [0, 2, 2]
    response = way.run(client.get(f"http://{servers[0].address}/y"))
    assert response.json()["by"] == "s0"


def test_cookies(way, servers):
    client = way.client(registry(servers))
    response = way.run(client.get("/?set_cookie=a%3Db"))
    assert response.cookies["a"] == "b"
    for _ in range(3):  # whoever answers
        assert way.run(client.get("/")).json()["headers"]["cookie"] == "a=b"
    response = way.run(client.get(f"http://{servers[0].address}/"))
    assert "cookie" not in response.json()["headers"]


def test_redirects(way, servers):
    client = way.client(registry(servers[1:]), follow_redirects=True)
    response = way.run(client.get("/?status=302&location=/there"))
    assert str(response.url) == "http://orders/there"
    assert [each.status_code for each in response.history] == [302]
    assert "instance" in response.extensions
    response = way.run(client.get("/?status=302&location=http%3A%2F%2Forders%2Fthere"))
    assert response.json()["by"] in ("s1", "s2")
    outside = f"http://{servers[0].address}/outside"
    response = way.run(client.get("/", params={"status": 302, "location": outside}))
    assert str(response.url) == outside
    assert response.json()["by"] == "s0"
    assert "instance" not in response.extensions
    response = way.run(client.post("/?status=307&location=/there", content=b"again"))
    assert response.json()["body"] == "again"
    assert n_in_flight(client)[0] == 0


def test_other_hosts_go_straight(way, servers):
    client = way.client(registry(servers[1:]))
    for _ in range(4):
        way.run(client.get(f"http://{servers[0].address}/"))
    with pytest.raises(httpx.ConnectError) as caught:
        way.run(client.get(f"http://127.0.0.1:{free_ports(1)[0]}/"))
    assert not isinstance(caught.value, NoInstance)
    assert n_requests(servers) == [4, 0, 0]


def test_a_scheme_that_is_none_of_http(way, servers):
    transport = way.transport_type(registry(servers), NAME)
    client = way.plain(mounts={"all://": transport})
    with pytest.raises(httpx.UnsupportedProtocol):
        way.run(client.get("ftp://orders/"))


@pytest.mark.parametrize("name", ["orders", "shop.example"])
def test_tls_is_with_the_origin(way, tmp_path, name):
    ca, certificate = certificates(tmp_path, name)
    context = ssl.create_default_context(cafile=ca)
    with fleet(2, tmp_path, certificate=certificate) as members:
        client = way.client(registry(members), origin=f"https://{name}", verify=context)
        for _ in range(4):
            said = way.run(client.get("/")).json()
            assert (said["sni"], said["host"]) == (name, name)
        assert n_requests(members) == [2, 2]
        client = way.client(registry(members), origin="https://other", verify=context)
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            way.run(client.get("/"))
        assert n_requests(members) == [2, 2]
        said = way.run(client.get("/", extensions={"sni_hostname": name})).json()
        assert (said["sni"], said["host"]) == (name, "other")
        way.close_all()  # before the servers end


# httpcore leaves a unix socket that could not connect to the collection of garbage.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket")
def test_unix_sockets(way, tmp_path):
    with fleet(2, tmp_path, network="unix") as members:
        client = way.client(registry(members, network="unix"))
        for n in range(6):
            response = way.run(client.post("/x", content=f"{n}"))
            assert (response.json()["host"], response.json()["body"]) == ("orders", f"{n}")
            assert response.extensions["instance"].network == "unix"
        assert n_requests(members) == [3, 3]
        members[0].kill()
        for _ in range(4):
            assert way.run(client.get("/")).json()["by"] == "s1"
        gc.collect()


class Six(ThreadingHTTPServer):
    """A server on ::1."""

    address_family = socket.AF_INET6
    daemon_threads = True


class Hosted(BaseHTTPRequestHandler):
    """Answers with the header Host."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = self.headers["Host"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        """Say nothing."""


def test_ipv6(way):
    try:
        server = Six(("::1", 0), Hosted)
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            address = f"[::1]:{server.server_address[1]}"
            client = way.client(StaticResolver({"orders": [address]}))
            response = way.run(client.get("/"))
            assert response.text == "orders"
            assert response.extensions["instance"].address == address
            way.close(client)
        finally:
            server.shutdown()
            thread.join()


# ---- trying again


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_refused_answer_is_followed_by_another_instance(way, servers, status):
    recorder = Recorder()
    client = way.client(registry(servers), balancer=recorder, policy=retrying(3))
    for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"):
        response = way.run(client.request(method, f"/?status={status}&at=s0,s1"))
        assert response.status_code == 200
        assert response.extensions["instance"].address == servers[2].address
    assert recorder.outcomes.count("SUCCESS") == 6
    assert recorder.outcomes.count("FAILURE") == len(recorder.ends) - 6 > 0
    n_before = sum(n_requests(servers))
    for method in ("POST", "PATCH"):
        response = way.run(client.request(method, f"/?status={status}"))
        assert response.status_code == status
        assert response.json()["method"] == method
    assert way.run(client.get("/?status=500")).status_code == 500
    assert way.run(client.get("/?status=404")).status_code == 404
    assert sum(n_requests(servers)) == n_before + 4
    assert recorder.n_open == 0


def test_statuses_of_ones_own(way, servers):
    client = way.client(registry(servers), retry_statuses=[500], policy=retrying(3))
    assert way.run(client.get("/?status=500&at=s0,s1")).json()["by"] == "s2"
    n_before = sum(n_requests(servers))
    assert way.run(client.get("/?status=503")).status_code == 503
    assert sum(n_requests(servers)) == n_before + 1
    client = way.client(registry(servers), retry_statuses=(), policy=retrying(3))
    assert way.run(client.get("/?status=503")).status_code == 503
    assert sum(n_requests(servers)) == n_before + 2


def test_the_last_answer_is_the_callers(way, servers):
    recorder = Recorder()
    client = way.client(registry(servers), balancer=recorder, policy=retrying(3))
    response = way.send(client, "GET", "/?status=503&chunks=3&pause=0.05")
    assert response.status_code == 503
    assert recorder.outcomes == ["FAILURE"] * 3
    # Those before it were let go, unread: their connections are closed.
    assert sum(map(connections_to, servers)) == 1
    assert n_in_flight(client)[0] == 1
    assert way.read(response) == b"x" * 3072
    assert n_in_flight(client)[0] == 0
    assert len(recorder.ends) == 3
    assert n_requests(servers) == [1, 1, 1]


def test_connections_of_refused_answers_do_not_leak(way, servers):
    client = way.client(registry(servers), policy=retrying(6))
    for n in range(60):
        body = ("", "&size=1000000", "&chunks=2", "&break=1")[n % 4]
        response = way.run(client.get(f"/?status=503&at=s0,s1{body}"))
        assert response.json()["by"] == "s2"
        assert all(connections_to(member) <= 1 for member in servers)
    assert n_in_flight(client) == (0, 0)


def test_retry_after_is_heard(way, servers):
    client = way.client(registry(servers), policy=retrying(3))
    while not servers[0].requests():
        response = way.run(client.get("/?status=503&retry_after=60&at=s0"))
        assert response.status_code == 200
    for method in ("GET", "POST") * 15:
        assert way.run(client.request(method, "/")).status_code == 200
    assert n_requests(servers)[0] == 1
    # It is tried where nobody else is left.
    response = way.run(client.get("/?status=503&at=s1,s2"))
    assert response.json()["by"] == "s0"


def test_retry_after_of_any_method_and_status(way, servers):
    client = way.client(registry(servers[:2]), policy=retrying(3))
    while not servers[0].requests():
        way.run(client.post("/?status=500&retry_after=60&at=s0"))
    for _ in range(10):
        way.run(client.post("/"))
    assert n_requests(servers)[0] == 1


def test_retry_after_ends(way, servers):
    client = way.client(registry(servers[:2]), policy=retrying(3))
    while not servers[0].requests():
        way.run(client.get("/?status=503&retry_after=1&at=s0"))
    way.until(lambda: way.run(client.get("/")).json()["by"] == "s0")


def test_all_want_to_be_left_alone(way, servers):
    client = way.client(registry(servers), policy=retrying(9))
    response = way.run(client.get("/?status=503&retry_after=60"))
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "60"
    assert response.json()["by"] in ("s0", "s1", "s2")
    assert n_requests(servers) == [1, 1, 1]
    assert way.run(client.get("/")).status_code == 200  # better than nobody
    assert n_in_flight(client)[0] == 0


def test_an_unreachable_instance_is_passed_over_by_any_request(way, servers):
    found = registry(servers[:1])
    found.publish("orders", Instance(f"127.0.0.1:{free_ports(1)[0]}", 1))
    recorder = Recorder()
    client = way.client(found, balancer=recorder)
    for n in range(10):
        assert way.run(client.post("/", content=f"{n}")).json()["body"] == f"{n}"
    for _ in range(4):
        response = way.run(client.post("/", content=way.generator(b"in ", b"parts")))
        assert response.json()["body"] == "in parts"
    for _ in range(4):
        response = way.run(client.post("/", files={"f": b"content"}))
        assert "content" in response.json()["body"]
    assert n_requests(servers) == [18, 0, 0]
    assert recorder.outcomes.count("SUCCESS") == 18
    assert recorder.outcomes.count("FAILURE") >= 9


def test_nobody_can_be_reached(way):
    found = StaticResolver({"orders": [f"127.0.0.1:{port}" for port in free_ports(2)]})
    recorder = Recorder()
    client = way.client(found, balancer=recorder, policy=retrying(4))
    for method in ("GET", "POST"):
        with pytest.raises(httpx.ConnectError) as caught:
            way.run(client.request(method, "/x"))
        assert not isinstance(caught.value, NoInstance)
        assert caught.value.request.url == "http://orders/x"
    assert recorder.outcomes == ["FAILURE"] * 8
    assert n_in_flight(client)[0] == 0


def test_a_broken_connection(way, servers):
    recorder = Recorder()
    client = way.client(registry(servers), balancer=recorder, policy=retrying(3))

    def n_attempts(method, **options):
        before = sum(n_requests(servers))
        with pytest.raises(httpx.TransportError) as caught:
            way.run(client.request(method, "/?reset=1", **options))
        assert not isinstance(caught.value, (httpx.ConnectError, httpx.TimeoutException))
        assert caught.value.request.url == "http://orders/?reset=1"
        assert recorder.n_open == 0
        return sum(n_requests(servers)) - before

    assert n_attempts("GET") == 3
    assert n_attempts("PUT", content=b"x") == 3
    assert n_attempts("POST", content=b"x") == 1
    assert n_attempts("PUT", content=way.generator(b"x")) == 1
    with call_options(idempotent=False):
        assert n_attempts("GET") == 1
    with call_options(idempotent=True):
        assert n_attempts("POST", content=b"x") == 3
        assert n_attempts("POST", json={"a": "b"}) == 3
        assert n_attempts("POST", content=way.generator(b"x")) == 1  # it is gone
    for _ in range(6):
        assert way.run(client.get("/?reset=1&at=s0,s1")).json()["by"] == "s2"
    for member in servers:
        for request in member.requests():
            if request["method"] in ("PUT", "POST"):
                assert request["body"] in ("x", '{"a":"b"}')


def test_a_refused_answer_to_a_body_that_cannot_be_sent_again(way, servers):
    client = way.client(registry(servers), policy=retrying(3))
    for _ in range(3):
        response = way.run(client.put("/?status=503", content=way.generator(b"in ", b"parts")))
        assert response.status_code == 503
        assert response.json()["body"] == "in parts"
    assert sum(n_requests(servers)) == 3


def test_call_options_say_what_may_be_made_twice(way, servers):
    client = way.client(registry(servers), policy=retrying(3))
    with call_options(idempotent=True):
        for n in range(6):
            response = way.run(client.post("/?status=503&at=s0,s1", content=f"{n}"))
            assert (response.json()["by"], response.json()["body"]) == ("s2", f"{n}")
    with call_options(idempotent=False):
        assert way.run(client.get("/?status=503")).status_code == 503
    assert n_requests(servers)[2] >= 6
    posts = [r for member in servers for r in member.requests() if r["method"] == "GET"]
    assert len(posts) == 1


def test_big_bodies_are_sent_whole_again(way, servers):
    big = "0123456789" * 100_000
    client = way.client(registry(servers), policy=retrying(3))
    for _ in range(3):
        response = way.run(client.put("/?status=503&at=s0,s1", content=big))
        assert response.json()["body"] == big


def test_the_budget_bounds_retries(way, servers):
    budget = RetryBudget(percent=0, per_second=0.1, ttl=20)  # 2
    client = way.client(registry(servers), policy=retrying(3, budget=budget))
    for _ in range(10):
        response = way.run(client.get("/?status=503"))
        assert response.status_code == 503
        assert response.json()["target"] == "/?status=503"
    assert sum(n_requests(servers)) == 12
    with pytest.raises(httpx.TransportError):
        way.run(client.get("/?reset=1"))
    assert sum(n_requests(servers)) == 13
    (row,) = client.stats()
    assert (row.budget.n_calls, row.budget.n_retries, row.budget.balance) == (11, 2, 0)
    assert row.n_in_flight == 0


def test_each_attempt_has_the_timeout(way, servers):
    client = way.client(registry(servers), policy=retrying(3), timeout=httpx.Timeout(5, read=0.15))
    for _ in range(3):
        assert way.run(client.get("/?wait=9&at=s0,s1")).json()["by"] == "s2"
    n_before = sum(n_requests(servers))
    with pytest.raises(httpx.ReadTimeout):
        way.run(client.post("/?wait=9"))
    assert sum(n_requests(servers)) == n_before + 1


def test_the_deadline_ends_all_attempts(way, servers):
    recorder = Recorder()
    policy = retrying(9, deadline=0.3)
    client = way.client(registry(servers), balancer=recorder, policy=policy, timeout=60)
    begin = time.monotonic()
    for method in ("GET", "POST"):
        with pytest.raises(httpx.TimeoutException) as caught:
            way.run(client.request(method, "/?wait=50"))
        assert caught.value.request.url == "http://orders/?wait=50"
    assert time.monotonic() - begin < 20  # of a hundred
    assert set(recorder.outcomes) == {"FAILURE"}
    assert n_in_flight(client)[0] == 0
    # What comes in time is as without one, also after refused answers.
    assert way.run(client.get("/")).status_code == 200


def test_a_deadline_that_has_passed_is_told_of(way, servers):
    client = way.client(registry(servers), policy=retrying(9, deadline=0.2), timeout=60)
    for method in ("GET", "POST"):
        with pytest.raises(DeadlineError) as caught:
            way.run(client.request(method, "/?wait=50"))
        assert isinstance(caught.value, httpx.TimeoutException)
        assert isinstance(caught.value, DeadlineExceeded)


def test_the_deadline_is_not_of_the_body(way, servers):
    client = way.client(registry(servers), policy=retrying(9, deadline=0.5), timeout=30)
    response = way.run(client.get("/?chunks=8&pause=0.12"))
    assert len(response.content) == 8192


def test_a_deadline_that_is_far_changes_nothing(way, servers):
    client = way.client(registry(servers), policy=retrying(3, deadline=100.0))
    assert way.run(client.get("/?status=503&at=s0,s1")).json()["by"] == "s2"
    assert way.run(client.get("/?status=503")).status_code == 503
    with pytest.raises(httpx.ReadTimeout):
        way.run(client.post("/?wait=9", timeout=0.2))


def test_nobody_is_there(way):
    found = MemoryRegistry()
    client = way.client(found)
    with pytest.raises(NoInstance) as caught:
        way.run(client.get("/x"))
    assert isinstance(caught.value, httpx.ConnectError)
    assert isinstance(caught.value, NoAvailableInstance)
    assert caught.value.request.url == "http://orders/x"
    found.publish("orders", Instance("127.0.0.1:1", 0))  # drained
    with pytest.raises(NoInstance):
        way.run(client.post("/x", content=b"x"))
    client = way.client(found, balancer=WeightedRoundRobinBalancer())
    with pytest.raises(NoInstance):
        way.run(client.get("/"))
    assert n_in_flight(client)[0] == 0


def test_a_service_that_is_not_known(way):
    client = way.client(StaticResolver({"users": ["127.0.0.1:1"]}))
    said = "orders: 'orders' is not among the 1 services"
    with pytest.raises(NoInstance, match=said) as caught:
        way.run(client.get("/"))
    assert isinstance(caught.value.__cause__, LookupError)


class Slow(StaticResolver):
    """Takes its time."""

    async def resolve(self, target):
        await asyncio.sleep(60)


def test_looking_for_a_service_is_a_part_of_connecting(way):
    client = way.client(Slow({}), timeout=httpx.Timeout(60, connect=0.05))
    with pytest.raises(NoInstance):
        way.run(client.get("/"))


def test_an_address_of_no_use(way):
    client = way.client(StaticResolver({"orders": ["localhost:none"]}))
    for method in ("GET", "POST"):
        with pytest.raises((ValueError, httpx.ConnectError), match="'localhost:none'"):
            way.run(client.request(method, "/"))


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
        ("GET", "chunks=3&pause=0.02", "SUCCESS"),
        ("GET", "chunks=3&pause=0.02&status=500", "FAILURE"),
        ("GET", "size=3000000", "SUCCESS"),
        ("GET", "close=1", "SUCCESS"),
        ("POST", "size=100000", "SUCCESS"),
        ("GET", "break=1&size=100000", "FAILURE"),
    ],
)
def test_a_request_ends_with_its_body(way, servers, method, query, outcome):
    recorder = Recorder(engine(rota.LeastRequest))
    client = way.client(registry(servers), balancer=recorder)
    for _ in range(2):
        response = way.send(client, method, f"/?{query}")
        assert recorder.n_open == 1
        assert n_in_flight(client)[0] == 1
        if "break" in query:
            with pytest.raises(httpx.RemoteProtocolError):
                way.read(response)
        else:
            way.read(response)
        assert recorder.n_open == 0
        assert n_in_flight(client)[0] == 0
        way.close(response)
    assert recorder.outcomes == [outcome] * 2


@pytest.mark.parametrize("picker", [rota.LeastRequest, rota.PeakEwma])
def test_an_unread_body_is_load(way, servers, picker):
    client = way.client(registry(servers), balancer=picker)
    responses = [way.send(client, "GET", "/?chunks=2") for _ in range(9)]
    assert n_in_flight(client) == (9, 9)
    if picker is rota.LeastRequest:
        assert max(each.load for each in client.stats()[0].instances) <= 6
    for n, response in enumerate(responses):
        assert n_in_flight(client) == (9 - n, 9 - n)
        if n % 3 == 0:
            way.read(response)
        way.close(response)
        way.close(response)
    assert n_in_flight(client) == (0, 0)


@pytest.mark.parametrize("balancer", [None, rota.LeastRequest], ids=str)
def test_a_body_that_is_left(way, servers, balancer):
    recorder = Recorder(None if balancer is None else engine(balancer))
    client = way.client(registry(servers), balancer=recorder)
    response = way.send(client, "GET", "/?chunks=200&pause=0.05")
    parts = way.parts(response)
    assert way.next(parts) == b"x" * 1024
    assert recorder.n_open == 1
    way.close(response)
    assert recorder.outcomes == ["CANCELLED"]
    assert n_in_flight(client)[0] == 0
    assert sum(map(connections_to, servers)) == 0
    way.close(response)
    assert len(recorder.ends) == 1


def test_a_body_that_stops(way, servers):
    recorder = Recorder()
    timeout = httpx.Timeout(5, read=0.15)
    client = way.client(registry(servers), balancer=recorder, timeout=timeout)
    with pytest.raises(httpx.ReadTimeout):
        way.run(client.get("/?chunks=2&pause=5"))
    assert recorder.outcomes == ["FAILURE"]
    assert sum(n_requests(servers)) == 1  # the answer had begun: it is the caller's
    assert n_in_flight(client)[0] == 0


def test_an_answer_that_is_forgotten(way, servers):
    client = way.client(registry(servers), balancer=rota.LeastRequest)
    for begin in (False, True):
        response = way.send(client, "GET", "/?size=3000000")
        if begin:
            parts = way.parts(response)
            way.next(parts)
            assert n_in_flight(client) == (1, 1)
            del parts  # nobody can read it any more
        else:
            assert n_in_flight(client) == (1, 1)
        del response
        gc.collect()
        way.until(lambda: n_in_flight(client) == (0, 0))
    assert way.run(client.get("/")).status_code == 200


def test_the_end_is_told_by_any_thread(servers):
    recorder = Recorder()
    with Client(NAME, registry(servers), balancer=recorder, **_cheap({})) as client:
        responses = [
            client.send(client.build_request("GET", "/?chunks=3"), stream=True) for _ in range(6)
        ]
        with ThreadPoolExecutor(3) as threads:
            for each in [threads.submit(response.read) for response in responses]:
                assert len(each.result()) == 3072
    assert recorder.outcomes == ["SUCCESS"] * 6


# ---- cancelled


QUERIES = [
    ("GET", "/?wait=0.01&close=1"),
    ("POST", "/?wait=0.01&status=503"),
    ("PUT", "/?chunks=3&pause=0.01"),
    ("GET", "/?reset=1"),
]


@pytest.mark.parametrize(("method", "url"), QUERIES)
def test_cancelled_anywhere(servers, method, url):
    async def one(client):
        content = None if method == "GET" else b"x" * 100_000
        with suppress(httpx.HTTPError), call_options(idempotent=True):
            await client.request(method, url, content=content)

    async def main():
        recorder = Recorder(engine(rota.LeastRequest))
        policy = retrying(3)
        options = _cheap({"balancer": recorder, "policy": policy})
        async with AsyncClient(NAME, registry(servers), **options) as client:
            await client.get("/")  # so that it is not discovery that is cancelled
            n_cancelled = n_ended = 0
            for k in range(300):
                task = asyncio.ensure_future(one(client))
                for _ in range(k):
                    await asyncio.sleep(0 if k % 2 else 0.0001)
                task.cancel()
                await asyncio.wait([task])
                n_cancelled += task.cancelled()
                n_ended += not task.cancelled()
                assert recorder.n_open == 0
                assert n_in_flight(client)[0] == 0
                if n_ended >= 10:
                    break
            assert n_cancelled >= 10
            for _ in range(6):
                assert (await client.get("/")).status_code == 200
        assert sum(map(connections_to, servers)) == 0

    asyncio.run(main())


def test_cancelled_when_the_answer_is_there(servers):
    async def main():
        recorder = Recorder(engine(rota.LeastRequest))
        policy = retrying(3, deadline=10.0)  # so that each attempt is a task of its own
        options = _cheap({"balancer": recorder, "policy": policy})
        async with AsyncClient(NAME, registry(servers), **options) as client:
            await client.get("/")
            there = asyncio.all_tasks()
            for _ in range(5):
                task = asyncio.ensure_future(client.get("/"))
                while not (tasks := asyncio.all_tasks() - there - {task}):
                    await asyncio.sleep(0)
                for attempt in tasks:
                    attempt.add_done_callback(lambda _, task=task: task.cancel())
                await asyncio.wait([task])
                # Nobody has the answer: it is closed, and not left to the collection of garbage.
                assert n_in_flight(client)[0] == 0
                assert recorder.n_open == 0
            assert max(map(connections_to, servers)) <= 1

    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


def test_cancelled_while_a_service_is_looked_for(servers):
    class Late(StaticResolver):
        async def resolve(self, service):
            await asyncio.sleep(0.005)
            return super().resolve(service)

    async def main():
        for k in range(30):
            found = Late({"orders": [servers[0].address]})
            async with AsyncClient(NAME, found, **_cheap({})) as client:
                task = asyncio.ensure_future(client.get("/"))
                for _ in range(k):
                    await asyncio.sleep(0 if k % 2 else 0.001)
                task.cancel()
                await asyncio.wait([task])
                assert (await client.get("/")).status_code == 200
                assert n_in_flight(client) == (0, 0)

    asyncio.run(main())


def test_cancelled_while_a_body_is_read(servers):
    async def main():
        recorder = Recorder()
        options = _cheap({"balancer": recorder})
        async with AsyncClient(NAME, registry(servers), **options) as client:
            request = client.build_request("GET", "/?chunks=200&pause=0.05")
            response = await client.send(request, stream=True)
            reading = asyncio.ensure_future(response.aread())
            await asyncio.sleep(0.1)
            assert recorder.n_open == 1
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert recorder.outcomes == ["CANCELLED"]
            await response.aclose()
            assert sum(map(connections_to, servers)) == 0
        assert len(recorder.ends) == 1

    asyncio.run(main())


# ---- instances that die, freeze, leave and join


def ids_of(member, method):
    """Return the ids of the requests of a method that a server has read."""
    return [
        int(request["target"].removeprefix("/?id="))
        for request in member.requests()
        if request["method"] == method
    ]


def test_one_of_three_is_killed(way, tmp_path):
    with fleet(3, tmp_path) as members:
        client = way.client(registry(members))
        load = way.load(client)
        load.start("GET", "POST")
        load.sleep(0.5)
        load.do(members[1].kill)
        load.sleep(1.0)
        load.end()
        assert load.n_sent["GET"] > 20
        assert {method for method, *_ in load.lost} <= {"POST"}
        # Lost are those that the killed one may have read, and they were not made elsewhere.
        assert {node.address for *_, node in load.lost} <= {members[1].address}
        lost = {n for _, n, _, _ in load.lost}
        assert len(lost) < 20
        made = [ids_of(member, "POST") for member in members]
        everywhere = [*made[0], *made[1], *made[2]]
        assert len(everywhere) == len(set(everywhere))
        assert lost.isdisjoint(made[0] + made[2])
        assert len(set(everywhere) | lost) == load.n_sent["POST"]
        assert n_in_flight(client)[0] == 0
        way.close_all()


def test_a_rolling_restart(way, tmp_path):
    with fleet(3, tmp_path) as members:
        client = way.client(registry(members))
        load = way.load(client)
        load.start("GET", "PUT")
        for member in members:
            load.sleep(0.3)
            load.do(member.restart)
        load.sleep(0.5)
        load.end()
        assert load.lost == []
        assert load.n_sent["GET"] > 20
        n_before = n_requests(members)
        for _ in range(6):
            way.run(client.get("/"))
        assert [after - n for after, n in zip(n_requests(members), n_before, strict=True)] == [
            2
        ] * 3
        way.close_all()


def test_a_frozen_instance_is_avoided(way, tmp_path):
    def n_calls():
        (row,) = client.stats()
        calls = {each.instance: each.n_calls for each in row.instances}
        return calls.get(members[2].address, 0), row.n_calls

    with fleet(3, tmp_path) as members:
        timeout = httpx.Timeout(5, connect=0.5, read=0.5)
        client = way.client(registry(members), balancer=p2c(), timeout=timeout)
        load = way.load(client)
        load.start("GET")
        way.until(lambda: n_calls()[0] >= 10)
        members[2].freeze()
        try:
            # Until it is known there, and then for a while.
            way.until(lambda: client.stats()[0].n_failures > 0)
            load.sleep(0.6)
            before, n_before = n_calls()
            way.until(lambda: n_calls()[1] >= n_before + 100)
            after, n_after = n_calls()
            load.end()
        finally:
            members[2].thaw()
        assert load.lost == []
        assert after - before <= 0.1 * (n_after - n_before)
        way.close_all()


def test_instances_leave_and_join(way, servers):
    found = registry(servers)
    client = way.client(found)
    load = way.load(client)
    load.start("GET", "POST")
    end = time.monotonic() + 1.2
    while time.monotonic() < end:
        for member in servers[1:]:
            found.withdraw("orders", member.address)
            load.sleep(0.11)  # a change is made 0.1 seconds after the one before
            found.publish("orders", Instance(member.address, 1))
            load.sleep(0.11)
    load.end()
    assert load.lost == []
    for method in ("GET", "POST"):
        assert sum(len(ids_of(member, method)) for member in servers) == load.n_sent[method]
    assert all(n_requests(servers))
    way.until(lambda: client.stats()[0].n_instances == 3)
    for _ in range(6):
        way.run(client.get("/?id=0"))
    assert all(connections_to(member) >= 1 for member in servers)


def test_connections_of_an_instance_that_has_left(way, servers):
    found = registry(servers)
    client = way.client(found)
    for _ in range(3):
        way.run(client.get("/"))
    assert [connections_to(member) for member in servers] == [1, 1, 1]
    found.withdraw("orders", servers[2].address)
    way.until(lambda: connections_to(servers[2]) == 0)
    # One with a body under way: that goes on, and all are closed when it has ended.
    while True:
        response = way.send(client, "GET", "/?chunks=40&pause=0.01")
        if response.extensions["instance"].address == servers[1].address:
            break
        way.close(response)
    found.withdraw("orders", servers[1].address)
    way.until(lambda: client.stats()[0].n_instances == 1)
    assert connections_to(servers[1]) >= 1
    for _ in range(4):
        assert way.run(client.get("/")).json()["by"] == "s0"
    assert way.read(response) == b"x" * 1024 * 40
    way.until(lambda: connections_to(servers[1]) == 0)
    # And one that comes back is a new one.
    found.publish("orders", Instance(servers[1].address, 1))
    way.until(lambda: way.run(client.get("/")).json()["by"] == "s1")
    assert connections_to(servers[1]) == 1


# ---- what is left


def held():
    """Return what this process has open."""
    gc.collect()
    return len(os.listdir("/dev/fd")), threading.active_count()


def test_thousands_of_requests_of_threads_leave_nothing(servers):
    with Client(NAME, registry(servers), **_cheap({"policy": retrying(3)})) as client:

        def some(n):
            for k in range(n):
                client.get("/?status=503&at=s0" if k % 50 == 0 else "/")

        def at_once(n):
            for each in [threads.submit(some, n // 4) for _ in range(4)]:
                each.result()

        with ThreadPoolExecutor(4) as threads:
            at_once(500)
            before = held()
            tracemalloc.start()
            try:
                at_once(40)
                gc.collect()
                n_bytes = tracemalloc.get_traced_memory()[0]
                at_once(200)
                gc.collect()
                grown = tracemalloc.get_traced_memory()[0] - n_bytes
            finally:
                tracemalloc.stop()
            assert grown < 100_000  # 500 bytes of each
            at_once(4000)
            # Each thread may have had a connection to each server.
            assert held()[0] <= before[0] + 4 * 3
            assert held()[1] == before[1]
        assert n_in_flight(client) == (0, 0)
    assert sum(map(connections_to, servers)) == 0
    assert sum(n_requests(servers)) >= 4700


def test_thousands_of_requests_of_tasks_leave_nothing(servers):
    async def main():
        async with AsyncClient(
            NAME, registry(servers), **_cheap({"policy": retrying(3)})
        ) as client:

            async def some(n):
                for k in range(n):
                    await client.get("/?status=503&at=s0" if k % 50 == 0 else "/")

            async def at_once(n):
                await asyncio.gather(*(some(n // 4) for _ in range(4)))

            await at_once(500)
            before = (*held(), len(asyncio.all_tasks()))
            tracemalloc.start()
            try:
                await at_once(40)
                gc.collect()
                n_bytes = tracemalloc.get_traced_memory()[0]
                await at_once(200)
                gc.collect()
                grown = tracemalloc.get_traced_memory()[0] - n_bytes
            finally:
                tracemalloc.stop()
            assert grown < 100_000  # 500 bytes of each
            await at_once(2000)
            assert held()[0] <= before[0] + 4 * 3
            assert (held()[1], len(asyncio.all_tasks())) == before[1:]
            assert n_in_flight(client) == (0, 0)
        assert sum(map(connections_to, servers)) == 0
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert sum(n_requests(servers)) >= 2700


def n_discovery_threads():
    return sum(thread.name.startswith("rota-discovery") for thread in threading.enumerate())


def test_a_closed_client_has_nothing(way, servers):
    n_threads = n_discovery_threads()
    client = way.client(registry(servers))
    for _ in range(3):
        way.run(client.get("/"))
    assert n_discovery_threads() == n_threads + isinstance(client, Client)
    way.close(client)
    way.close(client)
    assert sum(map(connections_to, servers)) == 0
    way.until(lambda: n_discovery_threads() == n_threads)
    if isinstance(way, Loop):
        way.sleep(0)
        assert not asyncio.all_tasks(way.loop)
    with pytest.raises(RuntimeError, match="closed"):
        way.run(client.get("/"))
    assert client.stats()[0].n_calls == 3


def test_a_closed_transport_refuses(way, servers):
    transport = way.transport_type(registry(servers), NAME)
    client = way.plain(mounts={"http://orders": transport})
    assert way.run(client.get("http://orders/")).status_code == 200
    way.close(transport)
    with pytest.raises(RuntimeError, match="closed"):
        way.run(client.get("http://orders/"))
    unused = way.transport_type(registry(servers), NAME)
    way.close(unused)
    other = way.plain(mounts={"http://orders": unused})
    with pytest.raises(RuntimeError, match="closed"):
        way.run(other.get("http://orders/"))


def test_an_answer_is_closed_with_its_client(way, servers):
    recorder = Recorder()
    client = way.client(registry(servers), balancer=recorder)
    response = way.send(client, "GET", "/?chunks=100&pause=0.05")
    way.close(client)
    assert sum(map(connections_to, servers)) == 0
    with suppress(httpx.HTTPError, RuntimeError):
        way.read(response)
    with suppress(httpx.HTTPError, RuntimeError):
        way.close(response)
    assert len(recorder.ends) == 1


def test_a_shared_factory_stays(way, servers):
    factory = way.keep(way.factory_type(registry(servers), WeightedRoundRobinBalancer()))
    one, other = way.client(factory), way.client(factory)
    for client in (one, other, one, other, one, other):  # they take turns
        way.run(client.get("/"))
    assert n_requests(servers) == [2, 2, 2]
    way.close(one)
    with pytest.raises(RuntimeError, match="closed"):
        way.run(one.get("/"))
    for _ in range(3):
        assert way.run(other.get("/")).status_code == 200
    assert factory.followed(NAME) is not None
    (row,) = other.stats()
    assert row.n_calls == 6


def test_clients_of_one_factory_share_what_they_learn(way, servers):
    balancer = as_balancer(rota.LeastRequest)
    factory = way.keep(way.factory_type(registry(servers), balancer))
    one, other = way.client(factory), way.client(factory)
    responses = [way.send(client, "GET", "/?chunks=2") for client in (one, other)]
    picker = factory.followed(NAME).get_picker().picker
    assert sum(picker.loads) == 2
    assert (n_in_flight(one)[0], n_in_flight(other)[0]) == (1, 1)
    way.read(responses[0])
    assert sum(picker.loads) == 1
    way.close(responses[1])
    assert sum(picker.loads) == 0


def test_a_closed_factory_is_told_of(way, servers):
    factory = way.factory_type(registry(servers), WeightedRoundRobinBalancer())
    client = way.client(factory)
    way.run(client.get("/"))
    way.close(factory)
    with pytest.raises(RuntimeError, match="closed"):
        way.run(client.get("/"))


class Hooked:
    """Counts the hooks that are in a factory."""

    n_hooks = 0

    def add_rebalance_hook(self, hook):
        return self._added(super().add_rebalance_hook(hook))

    def add_delete_hook(self, hook):
        return self._added(super().add_delete_hook(hook))

    def _added(self, remove):
        self.n_hooks += 1

        def removed():
            self.n_hooks -= 1
            remove()

        return removed


# What is forgotten open closes its sockets by itself, and says so.
@pytest.mark.filterwarnings("ignore:Exception ignored in")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_forgotten_client_leaves_nothing(way, servers):
    class Factory(Hooked, way.factory_type):
        pass

    n_threads = n_discovery_threads()
    factory = way.keep(Factory(registry(servers), WeightedRoundRobinBalancer()))
    for discovery in (factory, registry(servers)):
        client = way.client_type(NAME, discovery, **_cheap({}))
        way.run(client.get("/"))
        forgotten = weakref.ref(client)
        del client
        gc.collect()
        assert forgotten() is None
        way.sleep(0.01)
    assert factory.n_hooks == 0
    gc.collect()
    way.until(lambda: n_discovery_threads() == n_threads + isinstance(factory, BalancerFactory))
    way.close(factory)
    way.until(lambda: n_discovery_threads() == n_threads)


FORKED = """
import os, signal, sys, threading, traceback
from rota.clients.httpx import Client
from rota.discovery import StaticResolver

addresses = sys.argv[2:]
client = Client("orders", StaticResolver({"orders": addresses}), timeout=10)

def check(name, n):
    for k in range(n):
        answer = client.get(f"/{name}/{k}").json()["target"]
        assert answer == f"/{name}/{k}", answer

check("parent", len(addresses))
is_ending = False

def be_busy(name):
    k = 0
    while not is_ending:
        client.get("/busy")

threads = [threading.Thread(target=be_busy, args=(f"t{n}",)) for n in range(int(sys.argv[1]))]
for thread in threads:
    thread.start()
status = 0
for n in range(5):
    child = os.fork()
    if not child:
        signal.alarm(10)
        try:
            check(f"child{n}", 100)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    try:
        check(f"parent{n}", 100)
    finally:
        status = status or os.waitpid(child, 0)[1]
        is_ending = is_ending or status != 0
    if status:
        break
is_ending = True
for thread in threads:
    thread.join()
client.close()
print("status", status)
"""


def run_python(code, *arguments):
    """Run a program of Python; return its CompletedProcess."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("n_threads", [0, 3])
def test_the_child_of_a_fork(servers, n_threads):
    done = run_python(FORKED, str(n_threads), *(member.address for member in servers))
    assert (done.stdout, done.returncode) == ("status 0\n", 0), done.stderr


LEFT_OPEN = """
import asyncio, sys
from rota.clients.httpx import AsyncClient, Client
from rota.discovery import StaticResolver

resolver = StaticResolver({"orders": sys.argv[1:]})
client = Client("orders", resolver)
print(client.get("/").status_code)
response = client.send(client.build_request("GET", "/?chunks=500&pause=1"), stream=True)

async def main():
    global left
    left = AsyncClient("orders", resolver)
    print((await left.get("/")).status_code)

asyncio.run(main())
"""


def test_what_is_left_open_keeps_no_program_running(servers):
    done = run_python(LEFT_OPEN, *(member.address for member in servers))
    assert (done.stdout, done.returncode) == ("200\n200\n", 0), done.stderr


# ---- how it is made


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"origin": "orders"}, ValueError, "origin must be 'https://host', got 'orders'"),
        ({"origin": "ftp://orders"}, ValueError, "origin.*'ftp://orders'"),
        ({"origin": "http://orders/path"}, ValueError, "origin.*'http://orders/path'"),
        ({"origin": "http://me@orders"}, ValueError, "origin.*'http://me@orders'"),
        ({"origin": "http://a b"}, ValueError, "origin.*'http://a b'"),
        ({"origin": 1}, ValueError, "origin.*1"),
        ({"endpoint": "discovery:///a/b"}, ValueError, "origin must be given.*'a/b'"),
        ({"endpoint": "discovery:///"}, ValueError, "endpoint.*'discovery:///'"),
        ({"endpoint": "dns:///orders"}, ValueError, "endpoint.*'dns:///orders'"),
        ({"endpoint": 7}, TypeError, "endpoint.*7"),
        ({"discovery": None}, TypeError, "discovery must be a Resolver or a factory, got None"),
        ({"discovery": "orders"}, TypeError, "discovery.*'orders'"),
        ({"key": 1}, TypeError, "key must be a callable of a request, got 1"),
        ({"key": header("a"), "balancer": wrr(start=0)}, TypeError, "key is for selectors"),
        ({"policy": 1}, TypeError, "policy must be a RetryPolicy or None, got 1"),
        ({"balancer": 1}, TypeError, "balancer.*1"),
        ({"balancer": int}, TypeError, "balancer must be a type of picker, got <class 'int'>"),
        ({"filters": 1}, TypeError, "filters"),
        ({"filters": [1]}, TypeError, "filters.*1"),
        (
            {"filters": [version("v1")], "balancer": WeightedRoundRobinBalancer()},
            TypeError,
            "filters are for selectors",
        ),
        ({"retry_statuses": [200]}, ValueError, "retry_statuses.*200"),
        ({"retry_statuses": "503"}, TypeError, "retry_statuses.*'503'"),
        ({"retry_statuses": [True]}, TypeError, "retry_statuses.*True"),
        ({"telemetry": 1}, TypeError, "telemetry.*1"),
        ({"base_url": "http://a/"}, TypeError, "base_url is the client's own"),
        ({"no_such": 1}, TypeError, "no_such"),
    ],
    ids=str,
)
def test_arguments_of_no_use(way, options, kind, said):
    options = {"discovery": MemoryRegistry(), **options}
    with pytest.raises(kind, match=said):
        way.client(**options)


def test_a_factory_of_the_other_kind(way):
    other = AsyncBalancerFactory if way.factory_type is BalancerFactory else BalancerFactory
    factory = other(MemoryRegistry(), WeightedRoundRobinBalancer())
    with pytest.raises(TypeError, match=f"discovery must be a {way.factory_type.__name__}"):
        way.client(factory)
    factory = way.keep(way.factory_type(MemoryRegistry(), WeightedRoundRobinBalancer()))
    with pytest.raises(TypeError, match="balancer is the factory's"):
        way.client(factory, balancer=p2c())


def test_call_options_that_the_balancer_cannot_heed(way, servers):
    client = way.client(registry(servers), balancer=WeightedRoundRobinBalancer())
    for options in ({"key": "a"}, {"filters": [version("v1")]}):
        with call_options(**options), pytest.raises(TypeError, match="filters and key"):
            way.run(client.get("/"))
    assert way.run(client.get("/")).status_code == 200


def test_without_httpx():
    missing = "import sys; sys.modules['httpx'] = None\nimport rota, rota.clients\n"
    assert run_python(missing + "rota.clients.header('a'); print('in')").stdout == "in\n"
    done = run_python(missing + "import rota.clients.httpx")
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said == "ImportError: rota.clients.httpx needs httpx: pip install 'rota[httpx]'"


def test_importing_rota_imports_no_client():
    done = run_python("import sys, rota, rota.clients; print('httpx' in sys.modules)")
    assert done.stdout == "False\n"
