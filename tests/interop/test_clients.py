"""Balanced clients of rota call servers of Kratos, found through Kratos' own registry."""

import asyncio
from collections import Counter

import grpc
import httpx
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from rota.clients import call_options
from rota.clients.grpc import aio, insecure_channel
from rota.clients.httpx import AsyncClient, Client
from rota.discovery.etcd import EtcdResolver, KratosLayout
from rota.selector import p2c, version, wrr
from tests.interop.conftest import FLEET
from tests.interop.originals import kratos

DIAL = f"discovery:///{FLEET}"


def test_httpx_shares_requests_exactly_by_the_weights_of_the_registry(etcd, fleet):
    resolver = EtcdResolver(etcd.url, layout=KratosLayout("http"))
    with Client(DIAL, resolver, balancer=wrr()) as client:
        answers = [client.get(f"/helloworld/{i}").json() for i in range(80)]
    assert [each["message"] for each in answers] == [f"Hello {i}" for i in range(80)]
    assert Counter(each["id"] for each in answers) == {"a": 50, "b": 10, "c": 20}


def test_httpx_filters_by_version(etcd, fleet):
    resolver = EtcdResolver(etcd.url, layout=KratosLayout("http"))
    with Client(DIAL, resolver, filters=[version("2")], balancer=p2c()) as client:
        answers = [client.post(f"/helloworld/{i}", json={}).json() for i in range(10)]
    assert {each["version"] for each in answers} == {"2"}


def test_httpx_on_asyncio(etcd, fleet):
    async def main():
        resolver = EtcdResolver(etcd.url, layout=KratosLayout("http"))
        async with AsyncClient(DIAL, resolver, balancer=p2c()) as client:
            answers = await asyncio.gather(*(client.get("/helloworld/x") for _ in range(50)))
            return {answer.json()["id"] for answer in answers}

    assert asyncio.run(main()) == {"a", "b", "c"}


def test_httpx_goes_round_an_instance_that_fails(etcd, tmp_path):
    """Kratos' own 503, of a server that always fails, is never seen by who may ask again."""
    resolver = EtcdResolver(etcd.url, layout=KratosLayout("http"))
    with (
        kratos(etcd, tmp_path, "half-ill", "well"),
        kratos(etcd, tmp_path, "half-ill", "ill", always="fail-503"),
        Client("discovery:///half-ill", resolver) as client,
    ):
        answers = [client.get("/helloworld/x") for _ in range(20)]
        assert {answer.status_code for answer in answers} == {200}
        post = [client.post("/helloworld/x", json={}).status_code for _ in range(20)]
        assert 503 in post  # it has reached the server: once is enough


def test_httpx_loses_nothing_when_a_server_is_killed(etcd, tmp_path):
    resolver = EtcdResolver(etcd.url, layout=KratosLayout("http"))
    with (
        kratos(etcd, tmp_path, "killed", "one", ttl=600) as one,
        kratos(etcd, tmp_path, "killed", "two"),
        Client("discovery:///killed", resolver, balancer=p2c()) as client,
    ):
        assert {client.get("/helloworld/x").json()["id"] for _ in range(40)} == {"one", "two"}
        one.kill()
        for _ in range(100):
            assert client.get("/helloworld/x").json()["id"] == "two"
            assert client.post("/helloworld/x", json={}).status_code == 200
        with pytest.raises(httpx.ConnectError):  # though etcd still says that it is there
            httpx.get(f"http://{one.said['http']}/helloworld/x")


def hello_request(name):
    """Return a HelloRequest: `string name = 1`."""
    return b"\n" + bytes([len(name)]) + name.encode()


def hello_reply(message):
    """Return the message of a HelloReply: `string message = 1`."""
    assert message[:1] == b"\n"
    return message[2 : 2 + message[1]].decode()


def say_hello(channel):
    """Return the multicallable that a stub of helloworld.Greeter would have."""
    return channel.unary_unary(
        "/helloworld.Greeter/SayHello", hello_request, hello_reply, _registered_method=True
    )


def test_grpc_shares_calls_exactly_by_the_weights_of_the_registry(etcd, fleet):
    resolver = EtcdResolver(etcd.url, layout=KratosLayout("grpc"))
    with insecure_channel(DIAL, resolver, balancer=wrr()) as channel:
        hello, ids = say_hello(channel), Counter()
        for i in range(80):
            answer, call = hello.with_call(str(i), timeout=10)
            assert answer == f"Hello {i}"
            ids[dict(call.initial_metadata())["x-id"]] += 1
    assert ids == {"a": 50, "b": 10, "c": 20}


def test_grpc_filters_by_version_and_takes_any_stub(etcd, fleet):
    resolver = EtcdResolver(etcd.url, layout=KratosLayout("grpc"))
    with insecure_channel(DIAL, resolver, filters=[version("2")], balancer=p2c()) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
        answer = HealthStub(channel).Check(HealthCheckRequest(), timeout=10)
        assert answer.status == HealthCheckResponse.SERVING
        for _ in range(10):
            _, call = say_hello(channel).with_call("x", timeout=10)
            assert dict(call.initial_metadata())["x-version"] == "2"


def test_grpc_on_asyncio(etcd, fleet):
    async def main():
        resolver = EtcdResolver(etcd.url, layout=KratosLayout("grpc"))
        async with aio.insecure_channel(DIAL, resolver, balancer=p2c()) as channel:
            hello = say_hello(channel)
            calls = [hello("x", timeout=10) for _ in range(50)]
            assert set(await asyncio.gather(*calls)) == {"Hello x"}
            return {dict(await call.initial_metadata())["x-id"] for call in calls}

    assert asyncio.run(main()) == {"a", "b", "c"}


def test_grpc_goes_round_an_instance_that_fails(etcd, tmp_path):
    resolver = EtcdResolver(etcd.url, layout=KratosLayout("grpc"))
    with (
        kratos(etcd, tmp_path, "half-ill-grpc", "well"),
        kratos(etcd, tmp_path, "half-ill-grpc", "ill", always="fail-503"),
        insecure_channel("discovery:///half-ill-grpc", resolver) as channel,
    ):
        hello = say_hello(channel)
        with call_options(idempotent=True):
            assert {hello("x", timeout=10) for _ in range(20)} == {"Hello x"}
        codes = Counter()
        for _ in range(20):
            try:
                codes[hello.with_call("x", timeout=10)[1].code().name] += 1
            except grpc.RpcError as error:  # noqa: PERF203
                codes[error.code().name] += 1
        assert codes == {"OK": 10, "UNAVAILABLE": 10}  # they have reached it: once is enough
