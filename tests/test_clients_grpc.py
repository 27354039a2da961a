"""Balanced channels of gRPC, against real servers: see `grpc_servers`."""

import asyncio
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from rota import (
    BalancerFactory,
    ConsistentHash,
    Instance,
    MemoryRegistry,
    NoAvailableInstance,
    RetryPolicy,
    RoundRobin,
    WeightedRoundRobinBalancer,
)
from rota.clients import call_options, header
from rota.clients.grpc import DeadlineError, NoInstance, aio, insecure_channel
from rota.outcome import Outcome, outcome_of
from rota.retry import DeadlineExceeded
from rota.selector import Peer, p2c, version, wrr
from tests.grpc_servers import Server, fleet, free_port, method

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
    with insecure_channel(NAME, registry, balancer=wrr()) as channel:
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
        async with aio.insecure_channel(NAME, registry, balancer=wrr()) as channel:
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
    with insecure_channel(NAME, registry, balancer=wrr()) as channel:
        stub = EchoStub(channel)
        found = Counter(who(stub.Unary(b"x")) for _ in range(70))
        assert found == {"a": 50, "b": 10, "c": 10}
        found = Counter(who(next(stub.Many(b"n=1"))) for _ in range(70))
        assert found == {"a": 50, "b": 10, "c": 10}

    async def main():
        async with aio.insecure_channel(NAME, registry, balancer=wrr()) as channel:
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
        async with aio.insecure_channel(NAME, registry, balancer=wrr()) as channel:
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
        with insecure_channel(NAME, registry, balancer=wrr(), options=SOON) as channel:
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
                NAME, registry, balancer=wrr(), options=SOON
            ) as channel:
                stub = EchoStub(channel)
                assert {who(await stub.Unary(b"x")) for _ in range(6)} == {"a", "b"}
                servers[0].kill()
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
            NAME, registry, balancer=wrr(), idempotent=[method("Many")], options=SOON
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
            insecure_channel(NAME, registry, balancer=wrr(), policy=policy) as channel,
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
                insecure_channel(NAME, registry, balancer=wrr(), policy=policy) as channel,
                call_options(idempotent=True),
            ):
                stub = EchoStub(channel)
                with pytest.raises(grpc.RpcError):
                    stub.Unary(f"id={said} fail=UNAVAILABLE pushback={said}".encode())
                with pytest.raises(grpc.RpcError):
                    list(stub.Many(f"id={said} fail=UNAVAILABLE n=1 pushback={said}".encode()))
            assert count(servers, f"id={said} ") == 2

        async def main():
            channel = aio.insecure_channel(NAME, registry, balancer=wrr(), policy=policy)
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
        insecure_channel(NAME, registry, balancer=wrr(), policy=policy) as channel,
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
        async with aio.insecure_channel(NAME, registry, balancer=wrr(), policy=policy) as channel:
            stub = EchoStub(channel)
            with call_options(idempotent=True):
                call = stub.Unary(b"fail=UNAVAILABLE sleep=0.05", timeout=0.5)
            with pytest.raises(grpc.aio.AioRpcError):
                await call
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.Unary(b"sleep=5", timeout=0.05)
            assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    asyncio.run(main())


def test_nothing_is_repeated_once_a_message_was_given(tmp_path):
    registry = MemoryRegistry()
    with fleet(tmp_path, 2) as servers:
        publish(registry, servers)
        with (
            insecure_channel(NAME, registry, balancer=wrr()) as channel,
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
            async with aio.insecure_channel(NAME, registry, balancer=wrr()) as channel:
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
            insecure_channel(NAME, registry, balancer=wrr()) as channel,
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
            async with aio.insecure_channel(NAME, registry, balancer=wrr()) as channel:
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
    with insecure_channel("discovery:///nobody", registry, balancer=wrr()) as channel:
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
        async with aio.insecure_channel("discovery:///nobody", registry, balancer=wrr()) as channel:
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
        from rota.discovery import Result

        if self.instances is None:
            raise ConnectionError("the registry is away")
        return Result(True, "t", tuple(self.instances))

    def diff(self, key, previous, current):
        from rota.discovery import diff

        return diff(key, previous, current)


def test_the_registry_fails(three):
    resolver = Broken()
    with insecure_channel(NAME, resolver, balancer=wrr()) as channel:
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
    with insecure_channel(NAME, registry, balancer=wrr(), options=SOON) as channel:
        stub = EchoStub(channel)
        with pytest.raises(DeadlineExceeded) as raised:  # nobody is there at all
            stub.Unary(b"x", wait_for_ready=True, timeout=0.2)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        with ThreadPoolExecutor() as pool:
            waiting = [
                pool.submit(stub.Unary, b"x", wait_for_ready=True, timeout=DEADLINE),
                pool.submit(lambda: next(iter(stub.Many(b"n=1", wait_for_ready=True)))),
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
                    options = {"balancer": wrr(), "options": SOON}
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
        with insecure_channel(NAME, registry, balancer=wrr(), options=SOON) as channel:
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
            options = {"balancer": wrr(), "options": SOON}
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


def test_who_comes_and_goes(three):
    """Calls under way go on with who has left; then the subchannel is closed."""
    registry = MemoryRegistry()
    publish(registry, three[:2])
    with insecure_channel(NAME, registry, balancer=wrr()) as channel:
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


def wait_for_one(queue):
    until(lambda: queue)
    return queue.pop(0)


def test_close(registry):
    channel = insecure_channel(NAME, registry, balancer=wrr())
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
        channel = aio.insecure_channel(NAME, registry, balancer=wrr())
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


def count_in_flight(channel):
    return sum(len(member.users) for member in channel.members.now())
