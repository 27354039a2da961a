"""The Go originals, as they are published, and rota: each finds, reads and calls the other's."""

import asyncio
import json
import socket
import threading
import urllib.error
import urllib.request
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rota import Instance, NoAvailableInstance, RetryPolicy, call
from rota.discovery.etcd import EtcdRegistry, EtcdResolver, KitexLayout, KratosLayout
from rota.retry import any_failure
from rota.selector import subset, version, wrr
from tests.etcd_server import KITEX
from tests.etcd_watches import Watched, run
from tests.interop.conftest import FLEET, SERVERS
from tests.interop.originals import kitex, kitex_finds, kratos, kratos_calls, kratos_finds

SERVICE = "/microservices"


def found(etcd, name, layout):
    """Return the instances that rota finds, by their addresses."""
    resolver = EtcdResolver(etcd.url, layout=layout)
    result = asyncio.run(resolver.resolve(name))
    return {instance.address: instance for instance in result.instances}


def selector_of(etcd, name, builder=None):
    """Return a selector of the instances of a service of Kratos that have HTTP."""
    selector = (builder or wrr()).build()
    selector.apply(list(found(etcd, name, KratosLayout("http")).values()))
    return selector


def ask(address, path, body=None):
    """Return what a server of Kratos answers; its errors are urllib's."""
    headers = {"Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{address}{path}", data, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def shares(selector, n, *filters):
    """Return who has answered how many of n requests, one after another."""
    counts = Counter()
    for i in range(n):
        with selector.acquire(filters=filters) as node:
            answer = ask(node.address, f"/helloworld/{i}")
        assert answer["message"] == f"Hello {i}"
        assert answer["version"] == node.version
        counts[answer["id"]] += 1
    return counts


# What the originals write is read.


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_servers_of_kratos_are_found(etcd, fleet, scheme):
    assert found(etcd, FLEET, KratosLayout(scheme)) == {
        fleet[name].said[scheme]: Instance(
            fleet[name].said[scheme],
            int(metadata["weight"]),
            scheme=scheme,
            service=FLEET,
            version=version,
            tags=metadata,
        )
        for name, (version, metadata) in SERVERS.items()
    }


def test_a_server_of_kratos_without_weight_or_version(etcd, tmp_path):
    with kratos(etcd, tmp_path, "plain", "one") as server:
        (instance,) = found(etcd, "plain", KratosLayout("http")).values()
    assert instance == Instance(server.said["http"], scheme="http", service="plain")


def test_registrations_of_kitex_are_found(etcd, tmp_path):
    with (
        kitex(etcd, tmp_path / "one", "echo", 7, {"zone": "ost", "name": "ö=/\u2028"}) as one,
        kitex(etcd, tmp_path / "two", "echo") as two,
        kitex(etcd, tmp_path / "three", "echo", 0) as three,  # one that was not said, to Kitex
    ):
        instances = found(etcd, "echo", KitexLayout())
        assert instances == {
            one.said["address"]: Instance(
                one.said["address"], 7, service="echo", tags={"zone": "ost", "name": "ö=/\u2028"}
            ),
            two.said["address"]: Instance(two.said["address"], 10, service="echo"),
            three.said["address"]: Instance(three.said["address"], None, service="echo"),
        }
        for address in instances:
            host, _, port = address.partition(":")
            with socket.create_connection((host, int(port)), timeout=30) as connection:
                assert connection.makefile().readline() == f"{address}\n"


# What is found is called.


def test_weights_are_shared_out_exactly(etcd, fleet):
    selector = selector_of(etcd, FLEET)
    assert shares(selector, 40) == {"a": 25, "b": 5, "c": 10}


def test_filters_lead_only_to_their_servers(etcd, fleet):
    selector = selector_of(etcd, FLEET)
    for _ in range(3):  # by turns: each has an order of its own
        assert shares(selector, 6, version("1")) == {"a": 5, "b": 1}
        assert shares(selector, 2, version("2")) == {"c": 2}
        assert shares(selector, 2, subset({"zone": "west"})) == {"b": 2}
    with pytest.raises(NoAvailableInstance):
        selector.select(filters=(version("3"),))


def test_a_request_with_a_body(etcd, fleet):
    answer = ask(fleet["a"].said["http"], "/helloworld/bob", {"greeting": "Moin"})
    assert answer == {"message": "Moin bob", "id": "a", "version": "1"}


def test_an_error_of_kratos_is_retried_elsewhere(etcd, tmp_path):
    with (
        kratos(etcd, tmp_path, "shaky", "bad", metadata={"weight": "100"}, always="fail-503"),
        kratos(etcd, tmp_path, "shaky", "good", metadata={"weight": "1"}),
    ):
        selector = selector_of(etcd, "shaky", wrr(start=0))
        tried = []

        def send(node):
            tried.append(node.address)
            return ask(node.address, "/helloworld/bob")

        with pytest.raises(urllib.error.HTTPError) as caught:
            call(selector, send, RetryPolicy(max_attempts=1))
        with caught.value as error:
            said = json.load(error)
        assert (said["code"], said["reason"]) == (503, "HELLO_FAILED")
        answer = call(selector, send, RetryPolicy(retry_on=any_failure))
    assert answer["id"] == "good"
    assert len(tried) == 3


# The originals come and go.


@pytest.mark.parametrize("original", ["kratos", "kitex"])
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_who_ends_is_gone(etcd, tmp_path, original, end):
    """Stopped, it takes itself away: its lease would last. Killed, it goes with its lease."""
    name = f"{end}-{original}"
    ttl = 600 if end == "stop" else 2
    layout = KratosLayout("grpc") if original == "kratos" else KitexLayout()

    @contextmanager
    def started(which, ttl):
        if original == "kratos":
            with kratos(etcd, tmp_path, name, which, ttl=ttl) as server:
                yield server, server.said["grpc"]
        else:
            with kitex(etcd, tmp_path / which, name, ttl=ttl) as instance:
                yield instance, instance.said["address"]

    async def main():
        watched = Watched()
        follow = asyncio.ensure_future(watched.follow(EtcdResolver(etcd.url, layout=layout), name))
        with ExitStack() as stack:
            _, stays = await asyncio.to_thread(stack.enter_context, started("stays", 600))
            leaves, address = await asyncio.to_thread(stack.enter_context, started("leaves", ttl))
            await watched.until(lambda result: len(result.instances) == 2)
            await asyncio.to_thread(getattr(leaves, end))
            await watched.until(lambda result: len(result.instances) == 1)
            assert [instance.address for instance in watched.result.instances] == [stays]
            assert address != stays
            follow.cancel()
            await asyncio.wait({follow})

    run(main())


# What rota writes is read by the originals.


class Python(BaseHTTPRequestHandler):
    """Answers as Kratos' helloworld, for a client of Kratos."""

    def do_GET(self):
        body = json.dumps({"path": self.path, "id": self.server.name}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def python_server(name):
    """Run a server of Python's; gives its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Python) as server:
        server.name = name
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_kratos_finds_what_rota_registers(etcd):
    layout = KratosLayout("http", endpoints=["grpc://127.0.0.1:9"])
    tags = {"zone": "ost", "name": "ö<&>\u2028"}
    one = Instance("127.0.0.1:8", 5, version="2", tags=tags, hash_key="one")
    two = Instance("[::1]:8")
    with EtcdRegistry(etcd.url, layout=layout) as registry:
        made = registry.register("python", one)
        registry.register("python", two)
        assert kratos_finds(etcd, "python") == [
            {
                "id": "[::1]:8",
                "name": "python",
                "version": "",
                "metadata": {},
                "endpoints": ["http://[::1]:8", "grpc://127.0.0.1:9"],
            },
            {
                "id": "one",
                "name": "python",
                "version": "2",
                "metadata": {**tags, "weight": "5"},
                "endpoints": ["http://127.0.0.1:8", "grpc://127.0.0.1:9"],
            },
        ]
        made.close()
        assert [entry["id"] for entry in kratos_finds(etcd, "python")] == ["[::1]:8"]
    assert kratos_finds(etcd, "python") == []


def test_a_client_of_kratos_calls_what_rota_registers(etcd):
    layout = KratosLayout("http")
    with (
        python_server("one") as one,
        python_server("two") as two,
        python_server("three") as three,
        EtcdRegistry(etcd.url, layout=layout) as registry,
    ):
        registry.register("callee", Instance(one, 3, version="1"))
        registry.register("callee", Instance(two, 1, version="1"))
        registry.register("callee", Instance(three, 4, version="2"))
        answers = kratos_calls(etcd, "callee", "/hello?x=1", 16)
        assert {answer["path"] for answer in answers} == {"/hello?x=1"}
        counts = Counter(answer["id"] for answer in answers)
        assert counts == {"one": 6, "two": 2, "three": 8}
        counts = Counter(answer["id"] for answer in kratos_calls(etcd, "callee", "/", 8, "1"))
        assert counts == {"one": 6, "two": 2}


def test_a_client_of_kratos_calls_its_own_servers_and_pythons(etcd, tmp_path):
    with (
        kratos(etcd, tmp_path, "mixed", "go", metadata={"weight": "1"}),
        python_server("python") as address,
        EtcdRegistry(etcd.url, layout=KratosLayout("http")) as registry,
    ):
        registry.register("mixed", Instance(address, 2))
        answers = kratos_calls(etcd, "mixed", "/helloworld/bob", 6)
    assert Counter(answer["id"] for answer in answers) == {"go": 2, "python": 4}


def test_kitex_finds_what_rota_registers(etcd, tmp_path):
    with (
        EtcdRegistry(etcd.url) as registry,
        kitex(etcd, tmp_path, "both", 3) as other,
    ):
        tags = {"zone": "ost", "name": "ö<&>\u2028"}
        one = registry.register("both", Instance("127.0.0.1:8", 5, version="2", tags=tags))
        registry.register("both", Instance("[::1]:9"))
        registry.register("both", Instance("/run/both", network="unix"))
        instances = {entry["address"]: entry for entry in kitex_finds(etcd, "both", *tags, "none")}
        assert instances == {
            "127.0.0.1:8": {
                "network": "tcp", "address": "127.0.0.1:8", "weight": 5, "tags": tags,
            },
            "[::1]:9": {"network": "tcp", "address": "[::1]:9", "weight": 10, "tags": {}},
            "/run/both": {"network": "unix", "address": "/run/both", "weight": 10, "tags": {}},
            other.said["address"]: {
                "network": "tcp", "address": other.said["address"], "weight": 3, "tags": {},
            },
        }  # fmt: skip
        one.update(Instance("127.0.0.1:8", 6, version="2"))
        entries = {entry["address"]: entry for entry in kitex_finds(etcd, "both")}
        assert entries["127.0.0.1:8"]["weight"] == 6
        one.close()
        assert "127.0.0.1:8" not in {entry["address"] for entry in kitex_finds(etcd, "both")}


def test_rota_writes_a_server_of_kratos_as_kratos_does(etcd, tmp_path):
    with kratos(etcd, tmp_path, "same", "one", "1", {"weight": "5", "zone": "ost"}) as server:
        (theirs,) = etcd.entries(f"{SERVICE}/same/").values()
        (instance,) = found(etcd, "same", KratosLayout("http")).values()
    layout = KratosLayout("http", endpoints=[f"grpc://{server.said['grpc']}"])
    instance = replace(instance, hash_key="one")  # what rota writes as the id
    key, ours = layout.write("same", instance)
    assert key == f"{SERVICE}/same/one"
    assert json.loads(ours) == json.loads(theirs) | {"hash_key": "one"}


def test_rota_writes_an_instance_of_kitex_as_kitex_does(etcd, tmp_path):
    with kitex(etcd, tmp_path, "same", 5, {"zone": "ost"}):
        ((key, theirs),) = etcd.entries(f"{KITEX}/same/").items()
        (instance,) = found(etcd, "same", KitexLayout()).values()
    ours = KitexLayout().write("same", instance)
    assert ours == (key, theirs.encode())
