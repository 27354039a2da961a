"""Balanced channels of gRPC, against real servers: see `grpc_servers`."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from rota import (
    BalancerFactory,
    ConsistentHash,
    Instance,
    LeastRequest,
    MemoryRegistry,
    NoAvailableInstance,
    RetryPolicy,
    RoundRobin,
    WeightedRoundRobinBalancer,
)
from rota.clients import call_options, header
from rota.clients.balancing import SelectorBalancer
from rota.clients.grpc import DeadlineError, NoInstance, aio, insecure_channel, secure_channel
from rota.clients.grpc.subchannels import DEFAULT_OPTIONS, Subchannel, as_options
from rota.clients.telemetry import Telemetry
from rota.discovery import Change, Result
from rota.outcome import Outcome, outcome_of
from rota.retry import DeadlineExceeded, connect_failure
from rota.selector import Peer, p2c, version, wrr
from tests.grpc_servers import SERVICE, Server, fleet, free_port, method
from tests.servers import program

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
READY = grpc.ChannelConnectivity.READY

NAME = "discovery:///echo"

# A connection that was refused is tried again soon.
SOON = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100)]

DEADLINE = 30  # for what should come at once


class EchoStub:
    """As protoc's plugin writes it."""

    def __init__(self, channel):
        self.Unary = channel.unary_unary(
            method("Unary"),
            request_serializer=None,
            response_deserializer=None,
            _registered_method=True,
        )
        self.Many = channel.unary_stream(
            method("Many"),
            request_serializer=None,
            response_deserializer=None,
            _registered_method=True,
        )
        self.Gather = channel.stream_unary(
            method("Gather"),
            request_serializer=None,
            response_deserializer=None,
            _registered_method=True,
        )
        self.Chat = channel.stream_stream(
            method("Chat"),
            request_serializer=None,
            response_deserializer=None,
            _registered_method=True,
        )


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three servers, a, b and c, which stay up."""
    with fleet(tmp_path_factory.mktemp("three"), 3) as servers:
        yield servers


@pytest.fixture
def registry(three):
    """Where they are published, with equal weights."""
    registry = MemoryRegistry()
    publish(registry, three)
    return registry


def publish(registry, servers, weights=None):
    weights = weights or [1] * len(servers)
    instances = [
        Instance(server.address, weight, version=server.name)
        for server, weight in zip(servers, weights, strict=True)
    ]
    registry.publish("echo", *instances)
    known = {instance.address for instance in registry.resolve("echo").instances}
    registry.withdraw("echo", *known.difference(server.address for server in servers))


def who(response):
    """The name of the server that has answered."""
    return response.split()[0].decode()


def until(condition):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


async def until_async(condition):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.01)


def count(servers, words):
    """How often any of the servers received a request with these words."""
    return sum(line.count(words) for server in servers for line in server.received())


# -- calls -----------------------------------------------------------------------------------------


def test_kinds_of_calls(registry):
    with insecure_channel(NAME, registry, balancer=wrr(start=0)) as channel:
        assert isinstance(channel, grpc.Channel)
        stub = EchoStub(channel)
        assert who(stub.Unary(b"x")) in "abc"
        response, call = stub.Unary.with_call(b"x", timeout=DEADLINE)
        assert call.code() is grpc.StatusCode.OK
        assert dict(call.trailing_metadata())["trailer"] == who(response)
        future = stub.Unary.future(b"x", timeout=DEADLINE)
        assert who(future.result()) == dict(future.initial_metadata())["server"]
        assert future.code() is grpc.StatusCode.OK
        assert future.exception() is None
        many = stub.Many(b"n=5", timeout=DEADLINE)
        name = dict(many.initial_metadata())["server"]
        assert list(many) == [f"{name} {k}".encode() for k in range(5)]
        assert many.code() is grpc.StatusCode.OK
        assert dict(many.trailing_metadata())["trailer"] == name
        assert stub.Gather(iter([b"1", b"2"])).split()[1:] == [b"1", b"2"]
        response, call = stub.Gather.with_call(iter([b"1"]))
        assert dict(call.trailing_metadata())["trailer"] == who(response)
        assert stub.Gather.future(iter([])).result(DEADLINE) in (b"a", b"b", b"c")
        chat = stub.Chat(iter([b"1", b"2"]), timeout=DEADLINE)
        assert [message.split()[1] for message in chat] == [b"1", b"2"]
        assert chat.done()
        assert chat.time_remaining() > 0


def test_kinds_of_calls_asyncio(registry):
    async def main():
        async with aio.insecure_channel(NAME, registry, balancer=wrr(start=0)) as channel:
            assert isinstance(channel, grpc.aio.Channel)
            stub = EchoStub(channel)
            call = stub.Unary(b"x", timeout=DEADLINE)
            assert isinstance(call, grpc.aio.UnaryUnaryCall)
            assert not call.done()
            name = who(await call)
            assert await call == await call
            assert call.done()
            assert not call.cancelled()
            assert not call.cancel()
            assert await call.code() is grpc.StatusCode.OK
            assert (await call.initial_metadata())["server"] == name
            assert (await call.trailing_metadata())["trailer"] == name
            assert await call.details() == ""
            assert call.time_remaining() > 0
            many = stub.Many(b"n=5")
            assert isinstance(many, grpc.aio.UnaryStreamCall)
            assert len([message async for message in many]) == 5
            many = stub.Many(b"n=2")
            assert (await many.read()).endswith(b"0")
            assert (await many.read()).endswith(b"1")
            assert await many.read() is grpc.aio.EOF
            assert await many.read() is grpc.aio.EOF
            with pytest.raises(grpc.aio.UsageError):
                many.__aiter__()
            assert (await stub.Gather(iter([b"1", b"2"]))).split()[1:] == [b"1", b"2"]

            async def requests():
                yield b"3"
                yield b"4"

            assert (await stub.Gather(requests())).split()[1:] == [b"3", b"4"]
            gather = stub.Gather()
            assert isinstance(gather, grpc.aio.StreamUnaryCall)
            await gather.write(b"5")
            await gather.done_writing()
            assert (await gather).split()[1:] == [b"5"]
            assert len([message async for message in stub.Chat(requests())]) == 2
            chat = stub.Chat()
            assert isinstance(chat, grpc.aio.StreamStreamCall)
            for word in (b"6", b"7"):
                await chat.write(word)
                assert (await chat.read()).endswith(word)
            await chat.done_writing()
            assert await chat.read() is grpc.aio.EOF
            assert await chat.code() is grpc.StatusCode.OK
            with pytest.raises(asyncio.InvalidStateError):
                await chat.write(b"8")

    asyncio.run(main())


def test_weights(three):
    registry = MemoryRegistry()
    publish(registry, three, [5, 1, 1])
    with insecure_channel(NAME, registry, balancer=wrr(start=0)) as channel:
        stub = EchoStub(channel)
        found = Counter(who(stub.Unary(b"x")) for _ in range(70))
        assert found == {"a": 50, "b": 10, "c": 10}
        found = Counter(who(next(stub.Many(b"n=1"))) for _ in range(70))
        assert found == {"a": 50, "b": 10, "c": 10}

    async def main():
        async with aio.insecure_channel(NAME, registry, balancer=wrr(start=0)) as channel:
            stub = EchoStub(channel)
            found = Counter([who(await stub.Unary(b"x")) for _ in range(70)])
            assert found == {"a": 50, "b": 10, "c": 10}

    asyncio.run(main())


def test_filters_and_peer(registry):
    with insecure_channel(NAME, registry, balancer=p2c(), filters=[version("b")]) as channel:
        stub = EchoStub(channel)
        with Peer() as peer:
            assert {who(stub.Unary(b"x")) for _ in range(10)} == {"b"}
            assert peer.node.version == "b"
        with call_options(filters=[version("c")]), pytest.raises(NoInstance, match="left 0"):
            stub.Unary(b"x")
    with insecure_channel(NAME, registry) as channel, call_options(filters=[version("c")]):
        stub = EchoStub(channel)
        assert who(stub.Unary(b"x")) == "c"
        assert who(stub.Unary.future(b"x").result()) == "c"
        assert {who(message) for message in stub.Many(b"n=3")} == {"c"}

    async def main():
        async with aio.insecure_channel(NAME, registry, balancer=wrr(start=0)) as channel:
            stub = EchoStub(channel)
            with Peer() as peer:
                assert who(await stub.Unary(b"x")) == peer.node.version
            with call_options(filters=[version("a")]):
                call = stub.Unary(b"x")
            assert who(await call) == "a"

    asyncio.run(main())


def test_consistent_hash(registry):
    with insecure_channel(NAME, registry, balancer=ConsistentHash, key=header("X-User")) as channel:
        stub = EchoStub(channel)
        owners = {}
        for user in map(str, range(20)):
            metadata = [("other", "1"), ("x-user", user)]
            found = {who(stub.Unary(b"x", metadata=metadata)) for _ in range(3)}
            found.add(who(next(stub.Many(b"n=1", metadata=metadata))))
            assert len(found) == 1
            owners[user] = found.pop()
        assert set(owners.values()) == set("abc")
        assert {who(stub.Unary(b"x")) for _ in range(60)} == set("abc")  # at random
        with call_options(key="7"):
            assert who(stub.Unary(b"x")) == owners["7"]
    seen = []
    with insecure_channel(
        NAME,
        registry,
        balancer=ConsistentHash,
        key=lambda request: seen.append((request.method, request.request)) or "1",
    ) as channel:
        EchoStub(channel).Unary(b"x")
    assert seen == [(method("Unary"), b"x")]


def test_balancers_of_all_kinds(registry):
    with BalancerFactory(registry, WeightedRoundRobinBalancer()) as factory:
        channels = [insecure_channel(NAME, factory) for _ in range(2)]
        found = Counter(who(EchoStub(channels[k % 2]).Unary(b"x")) for k in range(12))
        assert found == {"a": 4, "b": 4, "c": 4}  # they share the picker
        for channel in channels:
            channel.close()
        assert factory.get(NAME).instances
        with (
            insecure_channel(NAME, factory) as channel,
            call_options(filters=[version("a")]),
            pytest.raises(TypeError, match="filters"),
        ):
            EchoStub(channel).Unary(b"x")
    with insecure_channel(NAME, registry, balancer=RoundRobin) as channel:
        assert Counter(who(EchoStub(channel).Unary(b"x")) for _ in range(12)) == dict.fromkeys(
            "abc", 4
        )


# -- retries ---------------------------------------------------------------------------------------


def test_who_refuses_is_passed_over(tmp_path):
    """Also calls that may be made once only: nobody has seen them."""
    registry = MemoryRegistry()
    with fleet(tmp_path, 2) as servers:
        publish(registry, servers)
        servers[0].kill()
        with insecure_channel(NAME, registry, balancer=wrr(start=0), options=SOON) as channel:
            stub = EchoStub(channel)
            assert {who(stub.Unary(b"x")) for _ in range(10)} == {"b"}
            assert who(stub.Unary.future(b"x").result()) == "b"
            assert {who(next(stub.Many(b"n=1"))) for _ in range(4)} == {"b"}
            for _ in range(4):
                assert stub.Gather(iter([b"1", b"2"])) == b"b 1 2"
                assert stub.Gather.future(iter([b"1", b"2"])).result() == b"b 1 2"
                assert list(stub.Chat(iter([b"1", b"2"]))) == [b"b 1", b"b 2"]
            servers[0].start()
            until(lambda: who(stub.Unary(b"x")) == "a")

        async def main():
            async with aio.insecure_channel(
                NAME, registry, balancer=wrr(start=0), options=SOON
            ) as channel:
                stub = EchoStub(channel)
                assert {who(await stub.Unary(b"x")) for _ in range(6)} == {"a", "b"}
                servers[0].kill()
                with call_options(idempotent=True):  # until grpcio knows that it is gone
                    assert {who(await stub.Unary(b"x")) for _ in range(10)} == {"b"}
                assert {who(await stub.Unary(b"x")) for _ in range(10)} == {"b"}
                assert {who(await stub.Many(b"n=1").read()) for _ in range(4)} == {"b"}
                for _ in range(4):
                    assert await stub.Gather(iter([b"1", b"2"])) == b"b 1 2"
                    assert [m async for m in stub.Chat(iter([b"1", b"2"]))] == [b"b 1", b"b 2"]

        asyncio.run(main())


def test_what_a_server_has_seen(tmp_path):
    """A call that may be made once only is not made again."""
    registry = MemoryRegistry()
    with fleet(tmp_path, 2) as servers:
        publish(registry, servers)
        with insecure_channel(
            NAME, registry, balancer=wrr(start=0), idempotent=[method("Many")], options=SOON
        ) as channel:
            stub = EchoStub(channel)
            for k in range(4):
                with pytest.raises(grpc.RpcError) as raised:
                    stub.Unary(b"id=%d fail=UNAVAILABLE" % k)
                assert raised.value.code() is UNAVAILABLE
                assert count(servers, f"id={k} ") == 1
            # A server that passes on what it heard itself of another one.
            words = (
                b"words=failed_to_connect_to_all_addresses;_last_error:_UNKNOWN:_ipv4:1.2.3.4:5:_x"
            )
            for k in range(4, 8):
                with pytest.raises(grpc.RpcError, match="failed to connect to all"):
                    stub.Unary(b"id=%d fail=UNAVAILABLE " % k + words)
                assert count(servers, f"id={k} ") == 1
            # One that may be made twice, by the channel's word or by the context's.
            for _ in range(2):
                assert {who(m) for m in stub.Many(b"id=8 fail=UNAVAILABLE n=1 on=a")} == {"b"}
            assert count(servers[:1], "id=8 ") > 0
            with call_options(idempotent=True):
                for k in range(9, 13):
                    assert who(stub.Unary(b"id=%d fail=UNAVAILABLE on=a" % k)) == "b"
                    assert count(servers[1:], f"id={k} ") == 1
                assert stub.Unary.future(b"id=13 fail=UNAVAILABLE on=b").result().startswith(b"a ")
            assert count(servers[:1], "fail=UNAVAILABLE on=a") > 2
            with call_options(idempotent=True), pytest.raises(grpc.RpcError):
                stub.Unary(b"id=99 fail=INVALID_ARGUMENT")
            assert count(servers, "id=99 ") == 1
            # One that is being stopped says CANCELLED, and the caller has cancelled nothing.
            with pytest.raises(grpc.RpcError) as raised:
                stub.Unary(b"id=60 fail=CANCELLED")
            assert raised.value.code() is grpc.StatusCode.CANCELLED
            assert count(servers, "id=60 ") == 1
            with call_options(idempotent=True):
                for _ in range(2):
                    assert who(stub.Unary(b"id=61 fail=CANCELLED on=a")) == "b"
                    assert who(stub.Unary.future(b"id=61 fail=CANCELLED on=b").result()) == "a"
            # It dies in the middle.
            until(lambda: who(stub.Unary(b"x")) == "b")  # a is next
            with pytest.raises(grpc.RpcError):
                stub.Unary(b"id=50 die=1 on=a")
            assert count(servers[:1], "id=50 ") == 1


def test_pushback(tmp_path):
    """grpc-retry-pushback-ms: leave me alone for so long; negative: no retry."""
    registry = MemoryRegistry()
    policy = RetryPolicy(retry_on=lambda error: True, max_pause=0.05)
    with fleet(tmp_path, 2) as servers:
        publish(registry, servers)
        with (
            insecure_channel(NAME, registry, balancer=wrr(start=0), policy=policy) as channel,
            call_options(idempotent=True),
        ):
            stub = EchoStub(channel)
            assert who(stub.Unary(b"id=1 fail=UNAVAILABLE pushback=20000 on=a")) == "b"
            assert {who(stub.Unary(b"x")) for _ in range(6)} == {"b"}  # a is left alone
            with pytest.raises(grpc.RpcError) as raised:  # and b too: nobody is waited for
                stub.Unary(b"id=2 fail=UNAVAILABLE pushback=30000")
            assert raised.value.retry_after in (20.0, 30.0)
            assert count(servers, "id=2 ") == 2
        for said in ("-1", "soon"):
            with (
                insecure_channel(NAME, registry, balancer=wrr(start=0), policy=policy) as channel,
                call_options(idempotent=True),
            ):
                stub = EchoStub(channel)
                with pytest.raises(grpc.RpcError):
                    stub.Unary(f"id={said} fail=UNAVAILABLE pushback={said}".encode())
                with pytest.raises(grpc.RpcError):
                    list(stub.Many(f"id={said} fail=UNAVAILABLE n=1 pushback={said}".encode()))
            assert count(servers, f"id={said} ") == 2

        async def main():
            channel = aio.insecure_channel(NAME, registry, balancer=wrr(start=0), policy=policy)
            async with channel:
                with call_options(idempotent=True):
                    call = EchoStub(channel).Unary(b"id=4 fail=UNAVAILABLE pushback=-1")
                with pytest.raises(grpc.aio.AioRpcError):
                    await call
            assert count(servers, "id=4 ") == 1

        asyncio.run(main())


def test_timeout_is_of_all_attempts(registry, three):
    policy = RetryPolicy(retry_on=lambda error: True, pause=0.01, max_pause=0.01, max_attempts=1000)
    with (
        insecure_channel(NAME, registry, balancer=wrr(start=0), policy=policy) as channel,
        call_options(idempotent=True),
    ):
        stub = EchoStub(channel)
        stub.Unary(b"x")
        began = time.monotonic()
        with pytest.raises(grpc.RpcError):
            stub.Unary(b"fail=UNAVAILABLE sleep=0.05", timeout=0.5)
        with pytest.raises(grpc.RpcError):
            stub.Unary.future(b"fail=UNAVAILABLE sleep=0.05", timeout=0.5).result()
        assert time.monotonic() - began < DEADLINE
        assert (
            outcome_of(stub.Unary.future(b"sleep=5", timeout=0.05).exception()) is Outcome.FAILURE
        )

    async def main():
        async with aio.insecure_channel(
            NAME, registry, balancer=wrr(start=0), policy=policy
        ) as channel:
            stub = EchoStub(channel)
            with call_options(idempotent=True):
                call = stub.Unary(b"fail=UNAVAILABLE sleep=0.05", timeout=0.5)
            with pytest.raises(grpc.aio.AioRpcError):
                await call
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.Unary(b"sleep=5", timeout=0.05)
            assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    asyncio.run(main())


def test_no_call_begins_after_its_deadline(registry, three):
    words = b"id=too-late n=1"
    with insecure_channel(NAME, registry) as channel:
        stub = EchoStub(channel)
        for _ in range(2):
            for make in (
                lambda: stub.Unary(words, timeout=-0.1),
                lambda: stub.Unary.future(words, timeout=-0.1).result(),
                lambda: next(stub.Many(words, timeout=-0.1)),
                lambda: stub.Gather(iter([words]), timeout=-0.1),
            ):
                with pytest.raises(grpc.RpcError) as raised:
                    make()
                assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            stub.Unary(b"x")

    async def main():
        async with aio.insecure_channel(NAME, registry) as channel:
            stub = EchoStub(channel)
            for _ in range(2):
                for call in (stub.Unary(words, timeout=-0.1), stub.Many(words, timeout=-0.1)):
                    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                await stub.Unary(b"x")

    asyncio.run(main())
    assert count(three, "too-late") == 0


def test_nothing_is_repeated_once_a_message_was_given(tmp_path):
    registry = MemoryRegistry()
    with fleet(tmp_path, 2) as servers:
        publish(registry, servers)
        with (
            insecure_channel(NAME, registry, balancer=wrr(start=0)) as channel,
            call_options(idempotent=True),
        ):
            stub = EchoStub(channel)
            stream = stub.Many(b"id=1 n=4 fail=UNAVAILABLE")
            assert next(stream).endswith(b" 0")
            with pytest.raises(grpc.RpcError):
                list(stream)
            assert stream.code() is UNAVAILABLE
            assert count(servers, "id=1 ") == 1
            # No request of a stream is sent to two servers.
            for k in range(2):
                with pytest.raises(grpc.RpcError):
                    stub.Gather(iter([b"id=%d" % (10 + k), b"fail=UNAVAILABLE", b"more"]))
                assert count(servers, f"id={10 + k}") == 1

        async def main():
            async with aio.insecure_channel(NAME, registry, balancer=wrr(start=0)) as channel:
                stub = EchoStub(channel)
                with call_options(idempotent=True):
                    stream = stub.Many(b"id=2 n=4 fail=UNAVAILABLE")
                    gather = stub.Gather(iter([b"id=3 ", b"fail=UNAVAILABLE"]))
                with pytest.raises(grpc.aio.AioRpcError):
                    [message async for message in stream]
                with pytest.raises(grpc.aio.AioRpcError):
                    await gather
                assert count(servers, "id=2 ") == count(servers, "id=3 ") == 1

        asyncio.run(main())


def test_a_stream_that_fails_before_its_first_message_goes_on_elsewhere(tmp_path):
    registry = MemoryRegistry()
    with fleet(tmp_path, 2) as servers:
        publish(registry, servers)
        with (
            insecure_channel(NAME, registry, balancer=wrr(start=0)) as channel,
            call_options(idempotent=True),
        ):
            stub = EchoStub(channel)
            for _ in range(2):
                stream = stub.Many(b"id=1 n=1 fail=UNAVAILABLE on=a")
                assert list(stream) == [b"b 0"]
                assert stream.code() is grpc.StatusCode.OK
                stream = stub.Many(b"id=1 n=1 fail=UNAVAILABLE on=b")
                assert list(stream) == [b"a 0"]

        async def main():
            async with aio.insecure_channel(NAME, registry, balancer=wrr(start=0)) as channel:
                stub = EchoStub(channel)
                for name, other in ("ab", "ba", "ab"):
                    with call_options(idempotent=True):
                        stream = stub.Many(f"id=2 n=1 fail=UNAVAILABLE on={name}".encode())
                    assert [who(message) async for message in stream] == [other]
                    assert await stream.code() is grpc.StatusCode.OK

        asyncio.run(main())


# -- nobody there ----------------------------------------------------------------------------------


def test_nobody(three):
    registry = MemoryRegistry()
    with insecure_channel("discovery:///nobody", registry, balancer=wrr(start=0)) as channel:
        stub = EchoStub(channel)
        for make in (
            stub.Unary,
            stub.Unary.with_call,
            lambda request: stub.Unary.future(request).result(),
        ):
            with pytest.raises(NoAvailableInstance) as raised:
                make(b"x")
            error = raised.value
            assert isinstance(error, grpc.RpcError)
            assert isinstance(error, grpc.Call)
            assert error.code() is UNAVAILABLE
            assert "nobody" in error.details()
            assert outcome_of(error) is Outcome.FAILURE
        stream = stub.Many(b"x")
        with pytest.raises(NoInstance):
            next(stream)
        assert stream.code() is UNAVAILABLE
        assert stream.initial_metadata() == stream.trailing_metadata() == ()
        assert stream.done()
        assert not stream.cancel()

    async def main():
        async with aio.insecure_channel(
            "discovery:///nobody", registry, balancer=wrr(start=0)
        ) as channel:
            stub = EchoStub(channel)
            call = stub.Unary(b"x")
            with pytest.raises(NoAvailableInstance) as raised:
                await call
            assert isinstance(raised.value, grpc.aio.AioRpcError)
            assert raised.value.code() is await call.code() is UNAVAILABLE
            assert "nobody" in await call.details()
            stream = stub.Many(b"x")
            with pytest.raises(aio.NoInstance):
                await stream.read()
            with pytest.raises(aio.NoInstance):
                await stub.Chat().write(b"x")

    asyncio.run(main())


class Broken:
    """A resolver that fails, until it is mended."""

    name = "broken"

    def __init__(self):
        self.instances = None

    def target(self, endpoint):
        return "t"

    def resolve(self, target):
        if self.instances is None:
            raise ConnectionError("the registry is away")
        return Result(True, "t", tuple(self.instances))

    def diff(self, key, previous, current):
        from rota.discovery import diff

        return diff(key, previous, current)


def test_the_registry_fails(three):
    resolver = Broken()
    with insecure_channel(NAME, resolver, balancer=wrr(start=0)) as channel:
        with pytest.raises(NoInstance, match="the registry is away") as raised:
            EchoStub(channel).Unary(b"x")
        assert isinstance(raised.value.__cause__, ConnectionError)
        with pytest.raises(DeadlineError):
            EchoStub(channel).Unary(b"x", wait_for_ready=True, timeout=0.3)
        waiting = EchoStub(channel).Unary.future(b"x", wait_for_ready=True, timeout=DEADLINE)
        resolver.instances = [Instance(three[0].address)]
        assert who(waiting.result()) == "a"


def test_wait_for_ready(tmp_path):
    registry = MemoryRegistry()
    address = f"127.0.0.1:{free_port()}"
    with insecure_channel(NAME, registry, balancer=wrr(start=0), options=SOON) as channel:
        stub = EchoStub(channel)
        with pytest.raises(DeadlineExceeded) as raised:  # nobody is there at all
            stub.Unary(b"x", wait_for_ready=True, timeout=0.2)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        with ThreadPoolExecutor() as pool:
            waiting = [
                pool.submit(stub.Unary, b"x", wait_for_ready=True, timeout=DEADLINE),
                pool.submit(lambda: next(stub.Many(b"n=1", wait_for_ready=True))),
                pool.submit(lambda: stub.Gather(iter([b"x"]), wait_for_ready=True)),
            ]
            future = stub.Unary.future(b"x", wait_for_ready=True)
            # Of two instances one is refused for good: any of them will do.
            registry.publish("echo", Instance(f"127.0.0.1:{free_port()}"), Instance(address))
            until(lambda: len(channel.members.now()) == 2)
            assert not future.done()
            server = Server("a", tmp_path, address)
            try:
                assert {who(each.result(DEADLINE)) for each in waiting} == {"a"}
                assert who(future.result(DEADLINE)) == "a"

                async def main():
                    registry.withdraw("echo", address)  # the other one is left
                    options = {"balancer": wrr(start=0), "options": SOON}
                    async with aio.insecure_channel(NAME, registry, **options) as channel:
                        stub = EchoStub(channel)
                        with pytest.raises(DeadlineExceeded):
                            await stub.Unary(b"x", wait_for_ready=True, timeout=0.2)
                        calls = [stub.Unary(b"x", wait_for_ready=True) for _ in range(3)]
                        stream = stub.Many(b"x", wait_for_ready=True)
                        await asyncio.sleep(0.05)
                        registry.publish("echo", Instance(address))
                        assert {who(await call) for call in calls} == {"a"}
                        assert who(await stream.read()) == "a"

                asyncio.run(main())
            finally:
                server.kill()


# -- the state of a channel ------------------------------------------------------------------------


def test_state(tmp_path):
    registry = MemoryRegistry()
    with fleet(tmp_path, 1) as servers:
        publish(registry, servers)
        with insecure_channel(NAME, registry, balancer=wrr(start=0), options=SOON) as channel:
            seen = []
            channel.subscribe(seen.append)
            until(lambda: seen == [grpc.ChannelConnectivity.IDLE])
            grpc.channel_ready_future(channel).result(DEADLINE)
            until(lambda: seen[-1] is READY)
            servers[0].kill()
            with pytest.raises(grpc.RpcError):
                EchoStub(channel).Unary(b"x")
            until(lambda: seen[-1] is grpc.ChannelConnectivity.TRANSIENT_FAILURE)
            channel.unsubscribe(seen.append)
            n_seen = len(seen)
            servers[0].start()
            grpc.channel_ready_future(channel).result(DEADLINE)
            assert len(seen) == n_seen
        servers[0].kill()

        async def main():
            options = {"balancer": wrr(start=0), "options": SOON}
            async with aio.insecure_channel(NAME, registry, **options) as channel:
                state = channel.get_state()
                assert state is grpc.ChannelConnectivity.IDLE
                failed = grpc.ChannelConnectivity.TRANSIENT_FAILURE
                while (state := channel.get_state(try_to_connect=True)) is not failed:
                    await channel.wait_for_state_change(state)
                servers[0].start()
                await asyncio.wait_for(channel.channel_ready(), DEADLINE)
                assert channel.get_state() is READY
            assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
            with pytest.raises(grpc.aio.UsageError):
                await channel.channel_ready()

        asyncio.run(main())


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_closed_while_it_connects():
    registry = MemoryRegistry()
    registry.publish("echo", *(Instance(f"127.0.0.1:{port}") for port in range(1, 100)))
    with insecure_channel(NAME, registry, balancer=wrr()) as channel:
        channel.subscribe(lambda state: None, try_to_connect=True)
        (watch,) = (each for each in threading.enumerate() if each.name == "rota-grpc-state")
        until(lambda: channel.members.now())
    watch.join(DEADLINE)
    assert not watch.is_alive()


def test_who_comes_and_goes(three):
    """Calls under way go on with who has left; then the subchannel is closed."""
    registry = MemoryRegistry()
    publish(registry, three[:2])
    with insecure_channel(NAME, registry, balancer=wrr(start=0)) as channel:
        stub = EchoStub(channel)
        talks = []
        for _ in range(2):
            queue = [b"hello"]
            talks.append((queue, stub.Chat(iter(lambda queue=queue: wait_for_one(queue), None))))
        assert {who(next(talk)) for _, talk in talks} == {"a", "b"}
        publish(registry, three[1:])
        until(lambda: {who(stub.Unary(b"x")) for _ in range(4)} == {"b", "c"})
        assert len(channel.members.now()) == 3
        for queue, talk in talks:
            queue.append(b"still there?")
            assert next(talk).endswith(b"there?")
            queue.append(None)
            assert list(talk) == []
        until(lambda: len(channel.members.now()) == 2)
        assert sum(member.n_calls for member in channel.members.now()) > 0
        assert not any(member.users for member in channel.members.now())


def test_who_comes_and_goes_asyncio(three):
    async def main():
        registry = MemoryRegistry()
        publish(registry, three[:2])
        async with aio.insecure_channel(NAME, registry, balancer=wrr()) as channel:
            stub = EchoStub(channel)
            talks = [stub.Chat(), stub.Chat()]
            for talk in talks:
                await talk.write(b"hello")
            assert {who(await talk.read()) for talk in talks} == {"a", "b"}
            left = {each.instance.version: each.connection for each in channel.members.now()}["a"]
            publish(registry, three[1:])
            await until_async(lambda: channel.held.instances[-1].version == "c")
            for talk in talks:
                await talk.write(b"still there?")
                assert (await talk.read()).endswith(b"there?")
                assert left.look() is READY
            for talk in talks:
                await talk.done_writing()
                assert await talk.read() is grpc.aio.EOF
            await until_async(lambda: left.look() is grpc.ChannelConnectivity.SHUTDOWN)

    asyncio.run(main())


def wait_for_one(queue):
    until(lambda: queue)
    return queue.pop(0)


def test_close(registry):
    channel = insecure_channel(NAME, registry, balancer=wrr(start=0))
    stub = EchoStub(channel)
    stub.Unary(b"x")
    future = stub.Unary.future(b"sleep=20")
    stream = stub.Chat(iter(lambda: time.sleep(0.01) or b"x", None))
    next(stream)
    channel.close()
    with pytest.raises(grpc.RpcError):
        future.result()
    assert future.code() is grpc.StatusCode.CANCELLED
    with pytest.raises(grpc.RpcError):
        list(stream)
    for make in (stub.Unary, stub.Unary.future, stub.Many):
        with pytest.raises(ValueError, match="closed"):
            make(b"x")
    channel.close()

    async def main():
        channel = aio.insecure_channel(NAME, registry, balancer=wrr(start=0))
        stub = EchoStub(channel)
        short, long = stub.Unary(b"sleep=0.2"), stub.Unary(b"sleep=20")
        while count_in_flight(channel) != 2:
            await asyncio.sleep(0.01)
        await channel.close(grace=1)
        assert who(await short) in "abc"
        with pytest.raises(asyncio.CancelledError):
            await long
        assert await long.code() is grpc.StatusCode.CANCELLED
        with pytest.raises(grpc.aio.UsageError):
            stub.Unary(b"x")
        await channel.close()

    asyncio.run(main())


def test_calls_that_a_close_ends(registry):
    """CANCELLED, as of grpcio: those that wait for an instance, a round or the service."""
    down = MemoryRegistry()
    down.publish("echo", Instance(f"127.0.0.1:{free_port()}"))
    policy = RetryPolicy(retry_on=lambda error: True, pause=0.5, max_attempts=1000)
    for resolver, request in ((down, b"x"), (registry, b"n=1 fail=UNAVAILABLE"), (Broken(), b"x")):
        balancer = Listening()
        with (
            BalancerFactory(resolver, balancer) as factory,  # which others go on with
            ThreadPoolExecutor() as pool,
        ):
            channel = insecure_channel(NAME, factory, policy=policy, idempotent=lambda name: True)
            stub = EchoStub(channel)
            options = {"wait_for_ready": resolver is not registry}
            calls = [
                pool.submit(stub.Unary, request, **options),
                pool.submit(stub.Unary.future(request, **options).result),
                pool.submit(next, stub.Many(request, **options)),
            ]
            time.sleep(0.2)
            channel.close()
            for call in calls:
                error = call.exception(DEADLINE)
                assert isinstance(error, grpc.RpcError)
                assert error.code() is grpc.StatusCode.CANCELLED
                assert error.details() == "Channel closed!"
            assert len(balancer.heard) == balancer.n_picked


def test_closed_as_a_call_begins(registry):
    """The channel is closed when a call has just seen that it is not, as another thread may."""

    def closing(channel):
        yield "a", "b"
        channel.close()

    for is_owner in (True, False):
        balancer = ListeningSelector()
        with BalancerFactory(registry, SelectorBalancer(balancer)) as factory:
            options = {"balancer": balancer} if is_owner else {}
            with insecure_channel(NAME, registry if is_owner else factory, **options) as channel:
                stub = EchoStub(channel)
                while len(channel.members.now()) < 3 or channel.rest.suspects:
                    stub.Unary(b"x")
                with pytest.raises(ValueError, match="closed"):
                    stub.Unary(b"x", metadata=closing(channel))
        assert len(balancer.heard) == balancer.n_picked


def count_in_flight(channel):
    return sum(len(member.users) for member in channel.members.now())


# -- what a balancer hears -------------------------------------------------------------------------


class Listening:
    """A balancer that takes turns, and keeps what it hears of each call."""

    name = "listening"

    def __init__(self):
        self.heard = []
        self.n_picked = 0

    def get_picker(self, result):
        self.instances = result.instances
        return self

    def next(self, ctx=None, request=None):
        raise AssertionError("it has a select")

    def select(self):
        instance = self.instances[self.n_picked % len(self.instances)]
        index = self.n_picked
        self.n_picked += 1
        return instance, lambda info=None, err=None: self.heard.append((index, info))

    @property
    def infos(self):
        return [info for _, info in self.heard]

    def check(self, n):
        """Whether it has heard of n calls, of each once."""
        assert self.n_picked == n
        assert sorted(index for index, _ in self.heard) == list(range(n))


class ListeningSelector(Listening):
    """The same as a selector: most calls then take the shortest way."""

    get_picker = None
    instances = ()

    def build(self):
        return self

    def apply(self, instances):
        self.instances = instances

    def select(self, *, filters=(), exclude=(), key=None):
        if all(instance in exclude for instance in self.instances):
            raise NoAvailableInstance("all were tried")
        while True:
            instance, done = super().select()
            if instance not in exclude:
                return instance, done
            done()


LISTENING = pytest.mark.parametrize("kind", [Listening, ListeningSelector])


async def warm_up(channel, stub):
    """Call until all are known to be connected: then calls may take the shortest way."""
    while len(channel.members.now()) < 3 or channel.rest.suspects:
        await stub.Unary(b"x")


@LISTENING
def test_done_comes_once_at_the_end(registry, kind):
    balancer = kind()
    with insecure_channel(NAME, registry, balancer=balancer) as channel:
        stub = EchoStub(channel)
        name = who(stub.Unary(b"x"))
        info = balancer.infos[-1]
        assert info.err is None
        assert info.reply_metadata["Trailer"] == name
        assert info.bytes_sent
        assert info.bytes_received
        with pytest.raises(grpc.RpcError) as raised:
            stub.Unary(b"fail=NOT_FOUND")
        assert balancer.infos[-1].err is raised.value
        assert outcome_of(balancer.infos[-1].err) is Outcome.SUCCESS
        assert balancer.infos[-1].bytes_received
        with pytest.raises(grpc.RpcError):
            stub.Unary(b"sleep=5", timeout=0.05)
        assert not balancer.infos[-1].bytes_received
        assert stub.Unary.future(b"x").result()
        balancer.check(4)
        stream = stub.Many(b"n=3")
        for _ in range(3):
            next(stream)
        with pytest.raises(StopIteration):
            next(stream)
        assert stream.code() is grpc.StatusCode.OK
        balancer.check(5)
        assert balancer.infos[-1].reply_metadata["trailer"] in "abc"
        # Still under way, then cancelled; cancelled again.
        stream = stub.Chat(iter(lambda: time.sleep(0.01) or b"x", None))
        next(stream)
        assert len(balancer.heard) == 5
        assert stream.cancel()
        assert not stream.cancel()
        balancer.check(6)
        assert outcome_of(balancer.infos[-1].err) is Outcome.CANCELLED
        assert stream.cancelled()
        with pytest.raises(grpc.RpcError):
            next(stream)
        future = stub.Unary.future(b"sleep=5")
        assert future.cancel()
        with pytest.raises(grpc.FutureCancelledError):
            future.result()
        balancer.check(7)
        # Let go.
        stream = stub.Chat(iter(lambda: time.sleep(0.01) or b"x", None))
        next(stream)
        del stream
        gc.collect()
        until(lambda: len(balancer.heard) == 8)
        balancer.check(8)
        assert outcome_of(balancer.infos[-1].err) is Outcome.CANCELLED
        until(lambda: count_in_flight(channel) == 0)


def test_errors_of_policies_and_balancers_end_a_call(registry):
    """Nobody waits forever for a call that goes on by itself, and the balancer hears of it."""

    def opinion(error):
        raise LookupError("no opinion")

    class Raising(Listening):
        def select(self):
            instance, done = super().select()

            def hear(info=None, err=None):
                done(info)
                raise LookupError("no ears")

            return instance, hear

    for balancer, policy, request, said in (
        (Listening(), RetryPolicy(retry_on=opinion), b"n=1 fail=UNAVAILABLE", "no opinion"),
        (Raising(), None, b"n=1 fail=UNAVAILABLE", "no ears"),
        (Raising(), None, b"n=1", "no ears"),
    ):
        with (
            insecure_channel(NAME, registry, balancer=balancer, policy=policy) as channel,
            call_options(idempotent=True),
        ):
            stub = EchoStub(channel)
            future = stub.Unary.future(request)
            assert said in future.exception(DEADLINE).details()
            assert isinstance(future.exception().__cause__, LookupError)
            assert future.code() is grpc.StatusCode.UNKNOWN
            stream = stub.Many(request)
            with suppress(grpc.RpcError):
                list(stream)
            assert said in stream.details()
            with pytest.raises(grpc.RpcError, match=said):
                next(stream)
            with pytest.raises(LookupError, match=said):
                stub.Unary(request)
            balancer.check(3)
            assert count_in_flight(channel) == 0


def test_rounds_without_a_pause(registry):
    """The next thread that goes on with a call may begin before the last one has left it."""
    policy = RetryPolicy(retry_on=lambda error: True, pause=0, max_attempts=30, budget=None)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with (
            insecure_channel(NAME, registry, balancer=wrr(), policy=policy) as channel,
            call_options(idempotent=True),
        ):
            stub = EchoStub(channel)
            futures = [stub.Unary.future(b"fail=UNAVAILABLE") for _ in range(20)]
            for future in futures:
                assert future.exception(DEADLINE).code() is UNAVAILABLE
            assert count_in_flight(channel) == 0
    finally:
        sys.setswitchinterval(interval)


def test_cancelled_between_two_attempts(registry):
    """When the first has failed, and its end is still being told."""

    class Cancelling(Listening):
        call = None

        def select(self):
            instance, done = super().select()

            def hear(info=None, err=None):
                done(info)
                if self.call is not None:
                    assert self.call.cancel()

            return instance, hear

    balancer = Cancelling()
    with (
        insecure_channel(NAME, registry, balancer=balancer) as channel,
        call_options(idempotent=True),
    ):
        stub = EchoStub(channel)
        stub.Unary(b"x")
        balancer.call = future = stub.Unary.future(b"sleep=0.1 fail=UNAVAILABLE")
        with pytest.raises(grpc.FutureCancelledError):
            future.result(DEADLINE)
        balancer.check(2)
        balancer.call = stream = stub.Many(b"sleep=0.1 n=1 fail=UNAVAILABLE")
        with pytest.raises(grpc.RpcError) as raised:
            next(stream)
        assert raised.value.code() is stream.code() is grpc.StatusCode.CANCELLED
        assert stream.cancelled()
        balancer.check(3)


@LISTENING
def test_done_comes_once_at_the_end_asyncio(registry, kind):
    async def main():
        balancer = kind()
        async with aio.insecure_channel(NAME, registry, balancer=balancer) as channel:
            stub = EchoStub(channel)
            name = who(await stub.Unary(b"x"))
            assert balancer.infos[-1].err is None
            assert balancer.infos[-1].reply_metadata["trailer"] == name
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Unary(b"fail=NOT_FOUND")
            assert outcome_of(balancer.infos[-1].err) is Outcome.SUCCESS
            call = stub.Unary(b"x")  # nobody awaits it
            await until_async(lambda: len(balancer.heard) == 3)
            assert call.done()
            stream = stub.Many(b"n=3")
            assert len([message async for message in stream]) == 3
            balancer.check(4)
            stream = stub.Chat()
            await stream.write(b"x")
            await stream.read()
            assert len(balancer.heard) == 4
            assert stream.cancel()
            assert not stream.cancel()
            await until_async(lambda: len(balancer.heard) == 5)
            assert stream.cancelled()
            assert outcome_of(balancer.infos[-1].err) is Outcome.CANCELLED
            with pytest.raises(asyncio.CancelledError):
                await stream.read()
            stream = stub.Chat()
            await stream.write(b"x")
            del stream
            gc.collect()
            await until_async(lambda: len(balancer.heard) == 6)
            balancer.check(6)
            await until_async(lambda: count_in_flight(channel) == 0)

    asyncio.run(main())


@LISTENING
@pytest.mark.parametrize("steps", range(12))
def test_cancelled_at_any_moment(registry, steps, kind):
    """Wherever a task is cancelled its call ends, and the balancer hears of it, once."""

    async def main():
        balancer = kind()
        async with aio.insecure_channel(NAME, registry, balancer=balancer) as channel:
            stub = EchoStub(channel)

            async def requests():
                yield b"1"
                await asyncio.sleep(0.001)
                yield b"2"

            async def chat():
                stream = stub.Chat()
                await stream.write(b"x")
                await stream.read()
                await stream.done_writing()
                await stream.read()

            async def read():
                async for _ in stub.Many(b"n=5"):
                    await asyncio.sleep(0)

            for warm in range(2):
                if warm:
                    await warm_up(channel, stub)
                for make in (
                    lambda: asyncio.wait_for(stub.Unary(b"sleep=0.02"), None),
                    lambda: asyncio.wait_for(stub.Gather(requests()), None),
                    read,
                    chat,
                ):
                    task = asyncio.ensure_future(make())
                    for _ in range(steps):
                        await asyncio.sleep(0.0005 if steps > 6 else 0)
                    task.cancel()
                    await asyncio.wait((task,))
            await until_async(lambda: len(balancer.heard) == balancer.n_picked)
            balancer.check(balancer.n_picked)
            await until_async(lambda: count_in_flight(channel) == 0)

    asyncio.run(main())


def test_an_iteration_that_is_left_ends_its_call_asyncio(registry):
    """Without any help of the garbage collector: it may not come for long."""

    async def main():
        balancer = Listening()
        async with aio.insecure_channel(NAME, registry, balancer=balancer) as channel:
            stub = EchoStub(channel)
            gc.disable()
            try:
                async for _ in stub.Many(b"n=1000000"):
                    break
                await until_async(lambda: balancer.heard)
            finally:
                gc.enable()
            balancer.check(1)
            assert outcome_of(balancer.infos[0].err) is Outcome.CANCELLED
            assert count_in_flight(channel) == 0
            stream = stub.Many(b"n=3")
            async for _ in stream:
                break
            assert [who(message) async for message in stream] == ["b", "b"]
            assert [message async for message in stream] == []

    asyncio.run(main())


def test_reads_after_the_end_asyncio(registry, three):
    """A read says each time how a stream has ended, as that of grpcio does."""

    async def main(channel):
        stub = EchoStub(channel)
        stream = stub.Many(b"n=2 fail=NOT_FOUND")
        assert (await stream.read()).endswith(b"0")
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stream.read()
            assert raised.value.code() is grpc.StatusCode.NOT_FOUND
            assert raised.value.details() == "as-asked"
        stream = stub.Chat()
        await stream.write(b"x")
        await stream.read()
        reading = asyncio.ensure_future(stream.read())
        await asyncio.sleep(0.02)
        reading.cancel()
        for each in (reading, stream.read(), stream.read()):
            with pytest.raises(asyncio.CancelledError):
                await each
        assert stream.cancelled()
        for request in (b"n=1 fail=CANCELLED", b"n=2 fail=CANCELLED"):
            stream = stub.Many(request)
            with pytest.raises(grpc.aio.AioRpcError):
                [message async for message in stream]
            assert stream.cancelled()
            assert stream.done()
        for _ in range(2):
            call = stub.Unary(b"fail=CANCELLED")
            with pytest.raises(grpc.aio.AioRpcError):
                await call
            assert call.cancelled()
        await channel.close()

    async def both():
        await main(grpc.aio.insecure_channel(three[0].address))
        await main(aio.insecure_channel(NAME, registry))

    asyncio.run(both())


def test_a_server_that_cancels_is_unavailable(registry):
    """Where no time is left for another round: an error of the channel's own kind."""
    policy = RetryPolicy(retry_on=lambda error: True, pause=1)

    async def main():
        async with aio.insecure_channel(NAME, registry, policy=policy) as channel:
            stub = EchoStub(channel)
            for _ in range(2):
                with call_options(idempotent=True):
                    call = stub.Unary(b"fail=CANCELLED", timeout=0.3)
                with pytest.raises(grpc.aio.AioRpcError, match="as-asked") as raised:
                    await call
                assert raised.value.code() is await call.code() is UNAVAILABLE
                assert raised.value.__cause__.code() is grpc.StatusCode.CANCELLED

    asyncio.run(main())
    with insecure_channel(NAME, registry, policy=policy) as channel, call_options(idempotent=True):
        stub = EchoStub(channel)
        for _ in range(2):
            with pytest.raises(grpc.RpcError, match="as-asked") as raised:
                stub.Unary(b"fail=CANCELLED", timeout=0.3)
            assert raised.value.code() is UNAVAILABLE
        with pytest.raises(grpc.RpcError) as raised:
            stub.Unary(b"fail=CANCELLED pushback=30000")
        assert raised.value.code() is UNAVAILABLE  # not waited for: that is too long


def test_load_is_that_of_streams_too(registry):
    """A picker that goes by requests in flight sees a stream until it ends."""
    with insecure_channel(NAME, registry, balancer=LeastRequest) as channel:
        stub = EchoStub(channel)
        streams = [stub.Chat(iter(lambda: time.sleep(0.01) or b"x", None)) for _ in range(9)]
        for stream in streams:
            next(stream)
        members = channel.members.now()
        assert sum(len(member.users) for member in members) == 9
        assert {len(member.users) for member in members} <= {2, 3, 4}
        for stream in streams:
            stream.cancel()
        assert count_in_flight(channel) == 0


# -- what else grpcio can do -----------------------------------------------------------------------


def test_health_and_reflection(registry):
    """Generated stubs of grpcio's own services."""
    with insecure_channel(NAME, registry, balancer=wrr(start=0)) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        assert health.Check(request).status == health_pb2.HealthCheckResponse.SERVING
        watch = health.Watch(request)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = reflection.ServerReflectionInfo(iter([request]))
        names = [service.name for service in answer.list_services_response.service]
        assert SERVICE in names

    async def main():
        async with aio.insecure_channel(NAME, registry, balancer=wrr(start=0)) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service=SERVICE)
            answer = await health.Check(request)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            watch = health.Watch(request)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING

    asyncio.run(main())


class Tagging(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds a word to the metadata of each call."""

    def _tag(self, continuation, details, request):
        metadata = [*(details.metadata or ()), ("word", "tagged")]
        return continuation(details._replace(metadata=metadata), request)

    intercept_unary_unary = _tag
    intercept_unary_stream = _tag
    intercept_stream_unary = _tag
    intercept_stream_stream = _tag


def test_interceptors(registry):
    with insecure_channel(NAME, registry, balancer=wrr(start=0)) as channel:
        stub = EchoStub(grpc.intercept_channel(channel, Tagging()))
        assert stub.Unary(b"x").endswith(b" tagged")
        assert stub.Unary.future(b"x").result().endswith(b" tagged")
        assert len(list(stub.Many(b"n=2"))) == 2
        assert stub.Gather(iter([b"1"])).endswith(b"1")
        assert stub.Gather.future(iter([b"1"])).result().endswith(b"1")
        assert len(list(stub.Chat(iter([b"1"])))) == 1


class AioTagging(grpc.aio.UnaryUnaryClientInterceptor):
    """Adds a word to the metadata."""

    async def intercept_unary_unary(self, continuation, details, request):
        details.metadata.add("word", "tagged")
        return await continuation(details, request)


class AioCounting(
    grpc.aio.UnaryStreamClientInterceptor,
    grpc.aio.StreamUnaryClientInterceptor,
    grpc.aio.StreamStreamClientInterceptor,
):
    """Counts calls."""

    def __init__(self):
        self.n_calls = 0

    async def _count(self, continuation, details, request):
        self.n_calls += 1
        return await continuation(details, request)

    intercept_unary_stream = _count
    intercept_stream_unary = _count
    intercept_stream_stream = _count


def aio_interceptors():
    """Of grpc.aio one object is taken for one kind of calls only."""
    found = []
    for kind in AioCounting.__bases__:
        name = next(name for name in vars(kind) if name.startswith("intercept"))
        found.append(type("One", (kind,), {name: AioCounting._count, "n_calls": 0})())
    return found


def test_interceptors_asyncio(registry):
    async def main():
        counting = aio_interceptors()
        chain = [AioTagging(), *counting]
        async with aio.insecure_channel(
            NAME, registry, balancer=wrr(start=0), interceptors=chain
        ) as channel:
            stub = EchoStub(channel)
            for _ in range(2):
                assert (await stub.Unary(b"x", metadata=(("a", "b"),))).endswith(b" tagged")
                assert len([message async for message in stub.Many(b"n=2")]) == 2
                assert (await stub.Gather(iter([b"1"]))).endswith(b"1")
                chat = stub.Chat()
                await chat.write(b"1")
                assert (await chat.read()).endswith(b"1")
                await chat.done_writing()
                assert await chat.read() is grpc.aio.EOF
            assert [each.n_calls for each in counting] == [2, 2, 2]
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Unary(b"fail=NOT_FOUND")

    asyncio.run(main())
    with pytest.raises(TypeError, match="interceptors"):
        aio.insecure_channel(NAME, registry, interceptors=[Tagging()])


def test_metadata_and_compression(registry):
    with insecure_channel(NAME, registry, compression=grpc.Compression.Gzip) as channel:
        stub = EchoStub(channel)
        words = stub.Unary(b"x", metadata=(pair for pair in [("word", "hello")])).split()
        assert words[-1] == b"hello"
        big = b"word=" + b"y" * 100_000
        assert big in stub.Unary.with_call(big, compression=grpc.Compression.Deflate)[0]
        assert (
            stub.Unary.future(big, compression=grpc.Compression.Gzip).result()[2:].startswith(big)
        )

    async def main():
        async with aio.insecure_channel(NAME, registry) as channel:
            stub = EchoStub(channel)
            for metadata in (grpc.aio.Metadata(("word", "hello")), [("word", "hello")]):
                words = (await stub.Unary(b"x", metadata=metadata)).split()
                assert words[-1] == b"hello"
            assert big in await stub.Unary(big, compression=grpc.Compression.Gzip)

    asyncio.run(main())


@LISTENING
def test_errors_of_serializers(registry, kind):
    def fail(message):
        raise ValueError("not for bytes")

    balancer = kind()
    with insecure_channel(NAME, registry, balancer=balancer) as channel:
        for call in (
            channel.unary_unary(method("Unary"), fail),
            channel.unary_unary(method("Unary"), None, fail),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                call(b"x")
            assert raised.value.code() is grpc.StatusCode.INTERNAL
            assert call.future(b"x").code() is grpc.StatusCode.INTERNAL
        with pytest.raises(grpc.RpcError):
            list(channel.unary_stream(method("Many"), fail)(b"x"))
        balancer.check(5)
        assert count_in_flight(channel) == 0


def test_streams_both_ways(registry):
    """Many messages, and a cancellation in the middle."""
    with insecure_channel(NAME, registry, balancer=wrr(start=0)) as channel:
        stub = EchoStub(channel)
        n = 500
        found = list(stub.Chat(b"%d" % k for k in range(n)))
        assert [int(message.split()[1]) for message in found] == list(range(n))
        assert len(list(stub.Many(b"n=2000"))) == 2000
        stream = stub.Chat(b"%d" % k for k in range(10**9))
        for _ in range(50):
            next(stream)
        stream.cancel()
        assert stream.code() is grpc.StatusCode.CANCELLED

    async def main():
        async with aio.insecure_channel(NAME, registry, balancer=wrr(start=0)) as channel:
            stub = EchoStub(channel)
            found = [message async for message in stub.Chat(b"%d" % k for k in range(n))]
            assert [int(message.split()[1]) for message in found] == list(range(n))
            stream = stub.Many(b"n=300")
            first = await stream.read()
            await asyncio.sleep(0.2)  # the server has done its part
            rest = 1
            while await stream.read() is not grpc.aio.EOF:
                rest += 1
            assert first.endswith(b" 0")
            assert rest == 300

            async def forever():
                while True:
                    yield b"x"

            stream = stub.Chat(forever())
            assert await stream.__aiter__().__anext__()
            assert stream.cancel()
            assert await stream.code() is grpc.StatusCode.CANCELLED

    asyncio.run(main())


def test_threads_share_a_channel(registry):
    with insecure_channel(NAME, registry, balancer=p2c()) as channel:
        stub = EchoStub(channel)

        def work(k):
            for _ in range(20):
                assert who(stub.Unary(b"x", timeout=DEADLINE)) in "abc"
                assert len(list(stub.Many(b"n=2", timeout=DEADLINE))) == 2
            return stub.Unary.future(b"id=%d" % k).result(DEADLINE)

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(work, range(16)))
        assert [int(each.split()[1][3:]) for each in found] == list(range(16))
        assert count_in_flight(channel) == 0


def test_callbacks_of_calls(registry):
    with insecure_channel(NAME, registry, balancer=wrr(start=0)) as channel:
        stub = EchoStub(channel)
        seen = []
        future = stub.Unary.future(b"sleep=0.1")
        assert future.running()
        assert future.is_active()
        assert not future.done()
        with pytest.raises(grpc.FutureTimeoutError):
            future.result(0.01)
        future.add_done_callback(seen.append)
        assert future.add_callback(lambda: 1 / 0)  # logged
        assert future.add_callback(lambda: seen.append("called"))
        future.result()
        until(lambda: seen == [future, "called"])
        assert not future.add_callback(lambda: None)
        future.add_done_callback(seen.append)
        assert seen[-1] is future
        failed = stub.Unary.future(b"fail=NOT_FOUND")
        assert failed.exception().code() is failed.code() is grpc.StatusCode.NOT_FOUND
        assert failed.details() == "as-asked"
        assert failed.traceback() is not None
        assert "NOT_FOUND" in repr(failed)

    async def main():
        async with aio.insecure_channel(NAME, registry, balancer=wrr(start=0)) as channel:
            stub = EchoStub(channel)
            seen = []
            for _ in range(2):  # with a task, and without
                call = stub.Unary(b"x")
                call.add_done_callback(seen.append)
                await call
                await asyncio.sleep(0)
                assert seen.pop() is call
                call.add_done_callback(seen.append)
                assert seen.pop() is call
            stream = stub.Many(b"n=2")
            stream.add_done_callback(seen.append)
            await stream.wait_for_connection()
            assert (await stream.initial_metadata())["server"] in "abc"
            assert not stream.done()
            [message async for message in stream]
            await until_async(lambda: seen == [stream])

    asyncio.run(main())


# -- bad days --------------------------------------------------------------------------------------


class Traffic:
    """Calls all the time, by threads or tasks: each with an id of its own; and what became of them.

    Those of even ids may be made twice, the others may not.
    """

    def __init__(self):
        self.ids = iter(range(10**9))
        self.answered = []
        self.failed = {}
        self.is_ended = False

    def is_idempotent(self, k):
        return k % 2 == 0

    def run(self, stub, pause):
        while not self.is_ended:
            k = next(self.ids)
            try:
                with call_options(idempotent=self.is_idempotent(k)):
                    stub.Unary(b"id=%d; sleep=0.005" % k, timeout=DEADLINE)
            except grpc.RpcError as error:
                self.failed[k] = error
            else:
                self.answered.append(k)
            time.sleep(pause)

    async def run_async(self, stub, pause):
        while not self.is_ended:
            k = next(self.ids)
            try:
                with call_options(idempotent=self.is_idempotent(k)):
                    await stub.Unary(b"id=%d; sleep=0.005" % k, timeout=DEADLINE)
            except grpc.RpcError as error:
                self.failed[k] = error
            else:
                self.answered.append(k)
            await asyncio.sleep(pause)

    def check(self, servers):
        """Nothing that may be made twice is lost, nothing that may not is made twice."""
        lines = [line for server in servers for line in server.received()]
        n_times = Counter(
            int(line.split("id=")[1].split(";")[0]) for line in lines if "id=" in line
        )
        assert len(self.answered) > 100
        for k in self.answered:
            assert n_times[k] >= 1
        for k, n in n_times.items():
            assert n == 1 or self.is_idempotent(k), f"{k} was made {n} times"
        lost = {k: error for k, error in self.failed.items() if self.is_idempotent(k)}
        assert not lost, lost
        for k, error in self.failed.items():  # a server had them, or may have had
            assert error.code() in (UNAVAILABLE, grpc.StatusCode.CANCELLED)
            assert not connect_failure(error)
            assert n_times[k] <= 1


def go_wrong(tmp_path, what, balancer, n_workers=4, pause=0.01):
    """Do something to three servers while calls are made by threads, and by tasks."""
    registry = MemoryRegistry()
    with fleet(tmp_path, 3) as servers:
        publish(registry, servers)
        traffic = Traffic()
        options = {"balancer": balancer, "options": SOON}

        def work():
            with insecure_channel(NAME, registry, **options) as channel:
                stub = EchoStub(channel)
                with ThreadPoolExecutor(n_workers) as pool:
                    for _ in range(n_workers):
                        pool.submit(traffic.run, stub, pause)

        async def work_async():
            async with aio.insecure_channel(NAME, registry, **options) as channel:
                stub = EchoStub(channel)
                await asyncio.gather(*(traffic.run_async(stub, pause) for _ in range(n_workers)))

        threads = [
            threading.Thread(target=work),
            threading.Thread(target=lambda: asyncio.run(work_async())),
        ]
        for thread in threads:
            thread.start()
        try:
            until(lambda: len(traffic.answered) > 50)
            what(servers, registry, traffic)
            n = len(traffic.answered)
            until(lambda: len(traffic.answered) > n + 50)
        finally:
            traffic.is_ended = True
            for thread in threads:
                thread.join(DEADLINE)
        traffic.check(servers)


@pytest.mark.parametrize("balancer", [wrr, p2c])
def test_one_of_three_is_killed(tmp_path, balancer):
    def what(servers, registry, traffic):
        servers[0].kill()

    go_wrong(tmp_path, what, balancer())


@pytest.mark.parametrize("is_announced", [False, True])
def test_rolling_restart(tmp_path, is_announced):
    """A server that ends in peace refuses some calls; one that leaves the registry before, none."""

    def what(servers, registry, traffic):
        for server in servers:
            if is_announced:
                publish(registry, [each for each in servers if each is not server])
                until(lambda server=server: is_at_rest(server))
            server.stop()
            server.start()
            publish(registry, servers)
            n = len(server.received())
            until(lambda server=server, n=n: len(server.received()) > n)
        if is_announced:
            assert not traffic.failed

    go_wrong(tmp_path, what, wrr(start=0))


def is_at_rest(server):
    """Whether it receives nothing any more."""
    n = len(server.received())
    time.sleep(0.3)
    return len(server.received()) == n


def test_who_is_frozen_is_avoided(tmp_path):
    """Deadlines pass in it: p2c learns of that."""
    registry = MemoryRegistry()
    with fleet(tmp_path, 3) as servers:
        publish(registry, servers)
        with insecure_channel(
            NAME, registry, balancer=p2c(), idempotent=lambda name: True
        ) as channel:
            stub = EchoStub(channel)
            for _ in range(30):
                stub.Unary(b"x", timeout=DEADLINE)
            servers[0].freeze()
            try:
                codes = Counter(stub.Unary.future(b"x", timeout=0.2).code() for _ in range(100))
                assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED}
                assert codes[grpc.StatusCode.OK] > 80
            finally:
                servers[0].thaw()


def test_it_dies_in_the_middle(tmp_path):
    registry = MemoryRegistry()
    with fleet(tmp_path, 2) as servers:
        publish(registry, servers)
        with insecure_channel(NAME, registry, balancer=wrr(start=0), options=SOON) as channel:
            stub = EchoStub(channel)
            grpc.channel_ready_future(channel).result(DEADLINE)
            with call_options(idempotent=True):
                assert {who(stub.Unary(b"id=1; die=1 on=a")) for _ in range(3)} == {"b"}
            assert count(servers[:1], "id=1;") == 1
            with call_options(idempotent=True):
                future = stub.Unary.future(b"id=2; die=1 on=a")
            assert who(future.result(DEADLINE)) == "b"


# -- TLS, sockets, options -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A certificate for "echo", with its key."""
    directory = tmp_path_factory.mktemp("tls")
    key, certificate = directory / "key.pem", directory / "cert.pem"
    command = [
        program("openssl", "openssl"), "req", "-x509", "-newkey", "ec",
        "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=rota",
        "-addext", "subjectAltName=DNS:echo,DNS:echo.example.com",
        "-keyout", str(key), "-out", str(certificate),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return key, certificate


class Token(grpc.AuthMetadataPlugin):
    """Adds a word to the metadata, as call credentials do."""

    def __call__(self, context, callback):
        callback((("word", "token"),), None)


def test_tls(tmp_path, authority):
    key, certificate = authority
    registry = MemoryRegistry()
    trusting = grpc.ssl_channel_credentials(certificate.read_bytes())
    with fleet(tmp_path, 1, "--cert", str(certificate), "--key", str(key)) as servers:
        publish(registry, servers)
        token = grpc.metadata_call_credentials(Token())
        # The certificate is for the service's name, or for the one that is given.
        for given in (None, "echo.example.com", "echo.example.com:443"):
            with secure_channel(NAME, registry, trusting, authority=given) as channel:
                stub = EchoStub(channel)
                assert who(stub.Unary(b"x")) == "a"
                assert stub.Unary(b"x", credentials=token).endswith(b" token")
                assert stub.Unary.future(b"x", credentials=token).result().endswith(b" token")
                assert len(list(stub.Many(b"n=2", credentials=token))) == 2
        with secure_channel(NAME, registry, trusting, authority="other") as channel:
            with pytest.raises(grpc.RpcError) as raised:
                EchoStub(channel).Unary(b"x", timeout=2)
            assert raised.value.code() is UNAVAILABLE
            assert connect_failure(raised.value)
        with insecure_channel(NAME, registry) as channel, pytest.raises(grpc.RpcError):
            EchoStub(channel).Unary(b"x", timeout=2)

        async def main():
            both = grpc.composite_channel_credentials(trusting, token)
            async with aio.secure_channel(NAME, registry, both) as channel:
                assert (await EchoStub(channel).Unary(b"x")).endswith(b" token")
            async with aio.secure_channel(NAME, registry, trusting) as channel:
                stub = EchoStub(channel)
                for _ in range(2):
                    assert (await stub.Unary(b"x", credentials=token)).endswith(b" token")

        asyncio.run(main())
    for make in (secure_channel, aio.secure_channel):
        for credentials in (None, "x"):
            with pytest.raises(TypeError, match="credentials"):
                make(NAME, registry, credentials)


def test_unix_socket(tmp_path):
    path = str(tmp_path / "a socket")
    server = Server("a", tmp_path, f"unix:{path}")
    try:
        instances = [Instance(path, network="unix"), Instance(path + "2", network="unix")]
        registry = MemoryRegistry()
        registry.publish("echo", *instances)
        with insecure_channel(NAME, registry, balancer=wrr(start=0)) as channel:
            assert {who(EchoStub(channel).Unary(b"x")) for _ in range(4)} == {"a"}
    finally:
        server.kill()


def test_names_of_hosts(tmp_path):
    """Of one that refuses, and of one that is not known: others are tried."""
    with fleet(tmp_path, 1) as servers:
        port = servers[0].address.rpartition(":")[2]
        registry = MemoryRegistry()
        registry.publish(
            "echo",
            Instance(f"localhost:{port}"),
            Instance(f"localhost:{free_port()}"),
            Instance("no.such.host.invalid:80"),
            Instance(f"[::1]:{free_port()}"),
        )
        with insecure_channel(NAME, registry, balancer=wrr(start=0)) as channel:
            stub = EchoStub(channel)
            assert {who(stub.Unary(b"x", timeout=DEADLINE)) for _ in range(8)} == {"a"}
            assert {who(stub.Unary.future(b"x").result(DEADLINE)) for _ in range(4)} == {"a"}


def test_what_was_not_sent(three):
    """What grpcio says, and what another server says of its own troubles."""
    details = "failed to connect to all addresses; last error: UNKNOWN: {}: Connection refused"
    down = free_port()

    class Channel:
        state = grpc.ChannelConnectivity.TRANSIENT_FAILURE

    subchannels = {
        "ipv4:10.0.0.1:80": Instance("10.0.0.1:80"),
        "ipv6:%5B2001:db8::1%5D:80": Instance("[2001:0db8::0:1]:80"),
        "unix:/tmp/a%20b": Instance("/tmp/a b", network="unix"),
        "ipv4:10.9.9.9:443": Instance("orders.example.com:443"),
    }
    for name, instance in subchannels.items():
        subchannel = Subchannel(instance, None, lambda connect: Channel.state)
        assert subchannel.is_unsent(details.format(name))
        assert not subchannel.is_unsent(details.format("ipv4:10.0.0.2:81"))
        assert not subchannel.is_unsent(details.format("ipv4:110.0.0.1:8080"))
        assert not subchannel.is_unsent(f"Socket closed; {name}: x")
        assert not subchannel.is_unsent(None)
        Channel.state = READY
        assert not subchannel.is_unsent(details.format(name))
        Channel.state = grpc.ChannelConnectivity.IDLE
    registry = MemoryRegistry()
    registry.publish("echo", Instance(f"127.0.0.1:{down}"))
    policy = RetryPolicy(max_attempts=1)
    with insecure_channel(NAME, registry, policy=policy) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            EchoStub(channel).Unary(b"x")
        assert raised.value.unsent is True
        assert connect_failure(raised.value)


def test_what_is_of_no_use(registry):
    for make in (insecure_channel, aio.insecure_channel):
        for options, error in (
            ({"idempotent": "Get"}, TypeError),
            ({"idempotent": ["Get"]}, ValueError),
            ({"idempotent": 5}, TypeError),
            ({"options": [("a", 1, 2)]}, TypeError),
            ({"options": ["ab"]}, TypeError),
            ({"options": [("grpc.service_config_disable_resolution", 0)]}, ValueError),
            ({"options": [("SingleThreadedUnaryStream", 1)]}, ValueError),
            ({"options": [("grpc.service_config", RETRYING)]}, ValueError),
            ({"authority": ""}, ValueError),
            ({"authority": 5}, ValueError),
            ({"key": header("a"), "balancer": wrr(start=0)}, TypeError),
            ({"balancer": 5}, TypeError),
            ({"policy": 5}, TypeError),
            ({"telemetry": 5}, TypeError),
        ):
            with pytest.raises(error):
                make(NAME, registry, **options)
        with pytest.raises(ValueError, match="endpoint"):
            make("", registry)
        with pytest.raises(TypeError, match="discovery"):
            make(NAME, None)
    with insecure_channel(NAME, registry) as channel, pytest.raises(TypeError, match="method"):
        channel.unary_unary(b"/a/b")


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@LISTENING
def test_arguments_of_calls_that_are_of_no_use_asyncio(registry, kind):
    async def main():
        balancer = kind()
        async with aio.insecure_channel(NAME, registry, balancer=balancer) as channel:
            stub = EchoStub(channel)
            for _ in range(2):
                for options in ({"timeout": "x"}, {"metadata": 5}):
                    for make in (stub.Unary, stub.Many, stub.Gather, stub.Chat):
                        with pytest.raises(TypeError):
                            make(b"x", **options)
                    gc.collect()
                await warm_up(channel, stub)
            assert len(balancer.heard) == balancer.n_picked
            assert count_in_flight(channel) == 0

    asyncio.run(main())


RETRYING = '{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 3}}]}'


def test_options_go_before_the_defaults(registry):
    other = ("grpc.keepalive_time_ms", 1000), ("grpc.service_config", '{"methodConfig": []}')
    found = dict(as_options(other, NAME, None, True))
    assert found["grpc.keepalive_time_ms"] == 1000
    assert found["grpc.keepalive_timeout_ms"] == DEFAULT_OPTIONS["grpc.keepalive_timeout_ms"]
    assert found["grpc.default_authority"] == found["grpc.ssl_target_name_override"] == "echo"
    assert dict(as_options(None, "discovery:///a/b c", None, False))["grpc.default_authority"] == (
        "a%2Fb%20c"
    )
    with insecure_channel(NAME, registry, options=other) as channel:
        assert who(EchoStub(channel).Unary(b"x")) in "abc"


# -- what is left behind ---------------------------------------------------------------------------


def resources():
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts files in /proc")
def test_nothing_is_left_behind(registry):
    """10,000 calls, and channels that come and go."""

    def call(channel, n):
        stub = EchoStub(channel)
        for _ in range(n):
            stub.Unary(b"x")
        for _ in range(n // 10):
            stub.Unary.future(b"x").result()
            next(stub.Many(b"n=2"))
            with pytest.raises(grpc.RpcError):
                stub.Unary(b"fail=NOT_FOUND")

    async def call_async(channel, n):
        stub = EchoStub(channel)
        for _ in range(n // 50):
            await asyncio.gather(*(stub.Unary(b"x") for _ in range(50)))
        for _ in range(n // 50):
            await stub.Many(b"n=2").read()
            with pytest.raises(grpc.RpcError):
                await stub.Unary(b"fail=NOT_FOUND")

    async def main():
        async with aio.insecure_channel(NAME, registry, balancer=p2c()) as channel:
            await call_async(channel, 500)
            tasks, files = len(asyncio.all_tasks()), resources()
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            await call_async(channel, 5000)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            await until_async(lambda: len(asyncio.all_tasks()) <= tasks)
            assert resources() <= (files[0] + 2, files[1] + 2)
            assert grown < 500_000
            assert count_in_flight(channel) == 0

    with insecure_channel(NAME, registry, balancer=p2c()) as channel:
        call(channel, 300)
        first = resources()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        call(channel, 4000)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert grown < 500_000
        until(lambda: resources() <= first)
        assert count_in_flight(channel) == 0
    asyncio.run(main())
    first = resources()
    for _ in range(10):
        with insecure_channel(NAME, registry, balancer=p2c()) as channel:
            call(channel, 3)
        channel = insecure_channel(NAME, registry)  # forgotten
        next(EchoStub(channel).Many(b"n=2"))
        del channel
    until(lambda: resources() <= (first[0] + 2, first[1]))


def test_methods_are_made_once(registry):
    with insecure_channel(NAME, registry) as channel:
        stubs = [EchoStub(channel) for _ in range(20)]
        assert len({id(stub.Unary._method) for stub in stubs}) == 1
        stubs[0].Unary(b"x")
        assert len(stubs[0].Unary._method.callables) == 1
        del stubs
        gc.collect()
        assert len(channel._methods) == 0


def test_instances_leave_while_stubs_are_made(registry):
    is_ended = False

    def make_stubs(name):
        n_made = 0
        while not is_ended:
            n_made += 1
            _ = [channel.unary_unary(f"/{name}/{n_made}-{k}") for k in range(20)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with insecure_channel(NAME, registry) as channel, ThreadPoolExecutor() as pool:
            makers = [pool.submit(make_stubs, name) for name in "abc"]
            nobody = Result(True, "echo", ())
            kept = [channel.unary_unary(f"/kept/{k}") for k in range(1000)]
            instance = Instance(f"127.0.0.1:{free_port()}")
            try:
                for _ in range(25):
                    member = channel.members.take(instance, instance)
                    channel.members.follow(Change(nobody, removed=(instance,)))
                    channel.members.release(member, instance)
                    assert channel.members.now() == []
            finally:
                is_ended = True
            for each in makers:
                each.result(DEADLINE)
            assert len(channel._methods) >= len(kept)
    finally:
        sys.setswitchinterval(interval)


def test_stats_and_telemetry(registry):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with insecure_channel(
        NAME, registry, balancer=wrr(start=0), telemetry=Telemetry(provider)
    ) as channel:
        stub = EchoStub(channel)
        stub.Unary(b"x", metadata=[("word", "hello")])
        stub.Unary.future(b"x").result()
        list(stub.Many(b"n=1"))
        with pytest.raises(grpc.RpcError):
            stub.Unary(b"fail=NOT_FOUND")
        with call_options(idempotent=True), pytest.raises(grpc.RpcError):
            stub.Unary(b"fail=ABORTED")
        (row,) = channel.stats()
        assert row.service == "echo"
        assert row.n_instances == 3
        assert row.n_in_flight == 0
        n_attempts = row.n_calls
        assert n_attempts == 4 + 6
        assert row.n_failures == 6
        assert len(exporter.get_finished_spans()) == n_attempts
        names = {span.name for span in exporter.get_finished_spans()}
        assert names == {method("Unary")[1:], method("Many")[1:]}

    async def main():
        exporter.clear()
        async with aio.insecure_channel(NAME, registry, telemetry=Telemetry(provider)) as channel:
            stub = EchoStub(channel)
            await stub.Unary(b"x")
            [message async for message in stub.Many(b"n=1")]
            assert channel.stats()[0].n_calls == len(exporter.get_finished_spans()) == 2

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_child_is_not_held_up(registry, tmp_path):
    """What a forked child does with a channel is grpcio's affair, but no lock of rota's is held."""
    code = """
import os, sys, threading
import grpc
from rota import Instance, MemoryRegistry
from rota.clients.grpc import insecure_channel
registry = MemoryRegistry()
registry.publish("echo", Instance(sys.argv[1]))
channel = insecure_channel("echo", registry)
call = channel.unary_unary(sys.argv[2])
call(b"x")
held = threading.Event()

def hold():
    with channel.members._lock:
        held.set()
        threading.Event().wait()

threading.Thread(target=hold, daemon=True).start()
held.wait()
pid = os.fork()
if pid == 0:
    member = channel.members.take(registry.resolve("echo").instances[0], object())
    channel.state_of(None, False)
    os._exit(0 if member.connection is not None else 1)
os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    address = registry.resolve("echo").instances[0].address
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, address, method("Unary")],
        timeout=DEADLINE,
        env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "1"},
    )
    assert done.returncode == 0


def test_without_grpcio(tmp_path):
    (tmp_path / "grpc.py").write_text("raise ImportError('no grpc')")
    code = "import rota, rota.clients\nimport rota.clients.grpc"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert "pip install 'rota[grpc]'" in done.stderr
