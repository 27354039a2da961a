"""What could make a balanced client send twice, lose its way, or keep what it should let go."""

import asyncio

import httpx
import pytest

from rota import ConsistentHash
from rota.clients import call_options
from rota.clients.httpx import AsyncClient, Client
from rota.discovery import Instance, StaticResolver
from rota.retry import connect_failure
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
