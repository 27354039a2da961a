"""Services in etcd: what the gateway says, layouts, a resolver, a registry; on a real etcd."""

import asyncio
import gc
import http.server
import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from base64 import b64encode
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rota import Instance, Result
from rota.discovery.described import Skipped
from rota.discovery.etcd import (
    EtcdError,
    EtcdRegistry,
    EtcdResolver,
    EtcdUnavailable,
    KitexLayout,
    KratosLayout,
)
from rota.discovery.etcd.client import EtcdClient, settings_of, within
from rota.discovery.etcd.messages import (
    Entry,
    Header,
    Lines,
    Listing,
    OddAnswer,
    listing_of,
    notice_of,
    object_of,
)
from rota.discovery.etcd.table import Table
from rota.discovery.resolver import WatchingResolver
from tests.etcd_server import KITEX, etcd, kitex, wait_for
from tests.etcd_watches import addresses, nothing_left, run, watching
from tests.servers import free_ports, program


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with etcd(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture(autouse=True)
def empty(request):
    """The server of the module has no services and no leases when a test begins."""
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        for prefix in ("kitex", "/microservices"):
            server.delete_all(prefix)


# What the gateway says.


@given(lines=st.lists(st.binary(min_size=1)), data=st.data())
def test_lines_are_lines_however_they_are_cut(lines, data):
    is_whole = data.draw(st.booleans())
    stream = b"\n".join(lines) + b"\n" * is_whole
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    parser, got = Lines(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += parser.feed(stream[start:end])
    want = [line for line in stream.split(b"\n") if line.strip()]
    if is_whole:
        assert got == want
    assert got + parser.end() == want
    assert parser.end() == []


def test_a_line_that_does_not_end_is_given_up(monkeypatch):
    monkeypatch.setattr("rota.discovery.etcd.messages.MOST_BYTES", 100)
    parser = Lines()
    assert parser.feed(b"x" * 60 + b"\n" + b"y" * 60) == [b"x" * 60]
    with pytest.raises(OddAnswer, match="100 bytes"):
        parser.feed(b"y" * 60)


def test_thousands_of_events_in_one_line():
    event = {"kv": {"key": "YQ==", "mod_revision": "7", "value": "Yg=="}}
    line = json.dumps({"result": {"events": [event] * 5000}}).encode() + b"\n"
    parser = Lines()
    cut = [parser.feed(line[i : i + 100]) for i in range(0, len(line), 100)]
    (whole,) = [line for lines in cut for line in lines]
    notice = notice_of(object_of(whole))
    assert len(notice.events) == 5000
    assert notice.events[0].entry == Entry(b"a", b"b", 7, 0)


ODD = st.sampled_from([None, True, 3, -1, 1.5, "7", "x", "YQ==", "", [], [3], {}, {"a": 1}, 10**30])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("key", "value", "mod_revision", "lease", "version"), ODD),
)


@given(
    said=st.fixed_dictionaries(
        {},
        optional={
            "header": ODD | st.fixed_dictionaries({"revision": ODD | st.just("7")}),
            "kvs": ODD | st.lists(ENTRIES, max_size=3),
            "count": ODD,
            "result": ODD
            | st.fixed_dictionaries(
                {},
                optional={
                    "events": ODD
                    | st.lists(
                        st.fixed_dictionaries({}, optional={"type": ODD, "kv": ENTRIES}),
                        max_size=3,
                    ),
                    "created": ODD,
                    "canceled": ODD,
                    "compact_revision": ODD,
                    "cancel_reason": ODD,
                },
            ),
        },
    )
)
def test_odd_answers_are_named(said):
    for parse in (listing_of, notice_of):
        with suppress(OddAnswer):
            parse(said)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"header": {"revision": "1e3"}}, "revision"),
        ({"header": {"revision": True}}, "revision"),
        ({"header": {"revision": "\u0663"}}, "revision"),
        ({"header": []}, "header"),
        ({"header": {}}, "revision"),
        ({"header": {"revision": "3"}, "kvs": {}}, "kvs"),
        ({"header": {"revision": "3"}, "kvs": [3]}, "kvs"),
        ({"header": {"revision": "3"}, "kvs": [{"key": "?", "mod_revision": "1"}]}, "key"),
        ({"header": {"revision": "3"}, "kvs": [{"key": "YQ==", "mod_revision": "0"}]}, "revision"),
        ({"header": {"revision": "3"}, "kvs": [{"mod_revision": "2"}]}, "key"),
    ],
)
def test_a_list_that_is_none(said, name):
    with pytest.raises(OddAnswer, match=name):
        listing_of(said)


@pytest.mark.parametrize("line", [b"", b"null", b"[1]", b"\xff", b"[" * 100_000, b'{"a":'])
def test_a_line_that_is_no_object(line):
    with pytest.raises(OddAnswer):
        object_of(line)


# Arguments.


@pytest.mark.parametrize(
    ("endpoints", "error"),
    [
        ([], ValueError),
        ("", ValueError),
        (b"http://a:1", TypeError),
        ([3], TypeError),
        (None, TypeError),
        ("ftp://a:1", ValueError),
        ("http://", ValueError),
        ("http://a:b", ValueError),
        ("http://a:0", ValueError),
        ("http://a:99999", ValueError),
        ("http://a:1/v3", ValueError),
        ("http://root:pw@a:1", ValueError),
        ("http://[::1:2379", ValueError),
        (["http://a:1", "unix:///run/etcd"], ValueError),
    ],
)
def test_bad_endpoints_are_refused(endpoints, error):
    with pytest.raises(error, match="endpoints"):
        EtcdResolver(endpoints)
    with pytest.raises(error, match="endpoints"):
        EtcdRegistry(endpoints)


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"layout": KitexLayout}, TypeError, "layout"),
        ({"layout": "kitex"}, TypeError, "layout"),
        ({"timeout": 0}, ValueError, "timeout"),
        ({"timeout": "5"}, TypeError, "timeout"),
        ({"user": "root"}, ValueError, "password"),
        ({"user": "root", "password": b"x"}, TypeError, "password"),
        ({"user": 3, "password": "x"}, TypeError, "user"),
        ({"ssl": True}, TypeError, "ssl"),
        ({"ssl": ssl.create_default_context()}, ValueError, "https"),
    ],
)
def test_bad_options_are_refused(options, error, name):
    for make in (EtcdResolver, EtcdRegistry):
        with pytest.raises(error, match=name):
            make("http://a:1", **options)


def test_bad_times_are_refused():
    with pytest.raises(ValueError, match="heartbeat"):
        EtcdResolver("http://a:1", heartbeat=0)
    for ttl, error in ((0, ValueError), (1.5, TypeError), (True, TypeError), (10**10, ValueError)):
        with pytest.raises(error, match="ttl"):
            EtcdRegistry("http://a:1", ttl=ttl)


def test_a_resolver_is_known_by_what_it_finds():
    one = EtcdResolver(["a:1", "http://b:2/"])
    assert one.name == EtcdResolver(["http://b:2", "http://a:1", "a:1"], heartbeat=1).name
    others = [
        EtcdResolver("a:1"),
        EtcdResolver(["a:1", "b:2"], layout=KitexLayout("other")),
        EtcdResolver(["a:1", "b:2"], layout=KratosLayout("http")),
        EtcdResolver(["a:1", "b:2"], layout=KratosLayout("grpc")),
        EtcdResolver(["a:1", "b:2"], user="root", password="geheim"),
        EtcdResolver(["a:1", "b:2"], ssl=ssl.create_default_context()),
    ]
    assert len({one.name, *(other.name for other in others)}) == 7
    assert not any("geheim" in other.name for other in others)
    assert isinstance(one, WatchingResolver)
    assert "geheim" not in repr(settings_of("a:1", "root", "geheim", None, 5))


def test_targets():
    resolver = EtcdResolver("a:1")
    assert resolver.target("discovery:///users") == "users"
    assert resolver.target("users") == "users"
    for bad in ("", "http://users", "a/b"):
        with pytest.raises(ValueError, match=r"endpoint|service"):
            resolver.target(bad)
    assert EtcdResolver("a:1", layout=KratosLayout("http")).target("a/b") == "a/b"


def test_aiohttp_is_asked_for_and_only_here():
    code = """
import sys
import rota
assert "aiohttp" not in sys.modules
sys.modules["aiohttp"] = None
try:
    from rota.discovery.etcd import EtcdResolver
except ImportError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "rota[etcd]"' in said.stdout


# Layouts.


def test_kitex_entries(vectors):
    layout = KitexLayout()
    for case in vectors("etcd_layouts")["kitex"]:
        value = case["value"].encode()
        if not case["address"]:
            with pytest.raises(ValueError, match="address"):
                layout.read(value, "users")
            continue
        said = json.loads(value)["weight"]
        instance = layout.read(value, "users")
        assert instance == Instance(
            case["address"],
            said if said > 0 else None,
            network=case["network"] or "tcp",
            service="users",
            tags=case["tags"] or {},
        )
        assert layout.prefix("users") + instance.address == case["key"]
        key, written = layout.write("users", instance)
        assert key == case["key"]
        assert layout.read(written, "users") == instance


def test_kratos_entries(vectors):
    n_found = 0
    for case in vectors("etcd_layouts")["kratos"]:
        for wanted, address in case["addresses_before"].items():
            for scheme, secure in ((wanted, False), (wanted.removesuffix("s"), wanted[-1] == "s")):
                layout = KratosLayout(scheme, secure=secure)
                value = json.loads(case["value"])
                instance = layout.read(case["value"].encode(), "users")
                assert case["key"].startswith(layout.prefix(value["name"]))
                if not address or value["name"] != "users":
                    assert instance is None
                    continue
                n_found += 1
                metadata = value["metadata"] or {}
                weight = {"30": 30, "0": 0}.get(metadata.get("weight"))
                assert instance == Instance(
                    address,
                    weight,
                    scheme=wanted,
                    service="users",
                    version=value["version"],
                    tags=metadata,
                )
    assert n_found == 14


def test_what_is_written_is_what_the_originals_read(vectors):
    layouts = {
        "kitex": [KitexLayout()],
        "kratos": [
            KratosLayout("http"),
            KratosLayout("grpc", secure=True, endpoints=["http://10.0.0.2:80"]),
        ],
    }
    for case in vectors("etcd_layouts")["read_by_go"]:
        instance = Instance(**case["instance"])
        said = case["go"]
        assert not said["err"]
        if case["layout"] == "kitex":
            info = said["info"]
            assert (info["Network"], info["Address"]) == instance.identity
            assert (info["Weight"], info["Tags"] or {}) == (instance.weight or 10, instance.tags)
        else:
            assert instance.address in said["addresses"].values()
            assert said["instance"]["name"] == "users"
            assert said["instance"]["version"] == instance.version
        written = [layout.write("users", instance) for layout in layouts[case["layout"]]]
        assert (case["key"], case["value"].encode()) in written


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
INSTANCES = st.builds(
    Instance,
    st.from_regex(r"\A[a-z0-9.]{1,8}:[1-9][0-9]{0,3}\Z"),
    st.none() | st.integers(1, 2**32),
    scheme=st.sampled_from(["", "http", "grpc", "https"]),
    service=WORDS,
    version=WORDS,
    tags=st.dictionaries(WORDS.filter(lambda word: word != "weight"), WORDS, max_size=3),
    hash_key=st.none() | WORDS.filter(bool),
)


@given(INSTANCES)
def test_kitex_reads_what_it_writes(instance):
    layout = KitexLayout("p")
    key, value = layout.write("users", instance)
    assert key == f"p/users/{instance.address}"
    again = layout.read(value, "users")
    assert again == Instance(
        instance.address,
        instance.weight,
        scheme=instance.scheme,
        service=instance.service or "users",
        version=instance.version,
        tags=instance.tags,
        hash_key=instance.hash_key,
    )


@given(INSTANCES, st.integers(-5, 5))
def test_kratos_reads_what_it_writes(instance, weight):
    layout = KratosLayout(instance.scheme or "http")
    instance = Instance(
        instance.address,
        weight,
        scheme=instance.scheme,
        version=instance.version,
        tags=instance.tags,
        hash_key=instance.hash_key,
    )
    key, value = layout.write("users", instance)
    assert key == f"/microservices/users/{instance.hash_key or instance.address}"
    again = layout.read(value, "users")
    assert (again.address, again.weight, again.scheme, again.version, again.hash_key) == (
        instance.address,
        weight,
        instance.scheme or "http",
        instance.version,
        instance.hash_key,
    )
    assert again.tags == {**instance.tags, "weight": str(weight)}
    assert layout.read(value, "other") is None


NOT_READ = [
    b"",
    b"nonsense",
    b"null",
    b"[]",
    b"3",
    b"\xff",
    b"{}",
    b"[" * 100_000,
    b'{"address": 5}',
    b'{"address": ""}',
    b'{"address": "a:1", "weight": "5"}',
    b'{"address": "a:1", "weight": 1.5}',
    b'{"address": "a:1", "weight": true}',
    b'{"address": "a:1", "weight": 99999999999999999999}',
    b'{"address": "a:1", "tags": ["x"]}',
    b'{"address": "a:1", "tags": {"x": {}}}',
    b'{"address": "a:1", "network": 7}',
    b'{"address": "\\ud800:1"}',
    b'{"address": "a:1", "tags": {"x": "\\udfff"}}',
]


@pytest.mark.parametrize("value", NOT_READ, ids=lambda value: repr(value[:40]))
def test_hostile_entries_are_refused(value):
    with pytest.raises((ValueError, TypeError)):
        KitexLayout().read(value, "users")
    with pytest.raises((ValueError, TypeError)):
        KratosLayout("http").read(value, "users")


@pytest.mark.parametrize(
    "more",
    [
        {"name": None},
        {"endpoints": "http://a:1"},
        {"endpoints": [3]},
        {"endpoints": ["http://"]},
        {"endpoints": ["http://[::1"]},
        {"metadata": ["x"]},
        {"version": 3},
        {"hash_key": 3},
    ],
)
def test_hostile_entries_of_kratos_are_refused(more):
    value = {"id": "1", "name": "users", "endpoints": ["http://a:1"]} | more
    with pytest.raises((ValueError, TypeError)):
        KratosLayout("http").read(json.dumps(value).encode(), "users")


@pytest.mark.parametrize("text", ["", "heavy", "1.5", "0x10", "1_0", " 5", "\u0663", "9" * 30])
def test_a_weight_of_kratos_that_is_none(text):
    value = {"name": "users", "endpoints": ["http://a:1"], "metadata": {"weight": text}}
    instance = KratosLayout("http").read(json.dumps(value).encode(), "users")
    assert (instance.weight, instance.tag("weight")) == (None, text)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_entries_are_instances_or_refused(value):
    for layout in (KitexLayout(), KratosLayout("http")):
        with suppress(ValueError, TypeError):
            assert isinstance(layout.read(value, "users"), Instance | None)


def test_what_is_not_written():
    kitex_layout, kratos = KitexLayout(), KratosLayout("http")
    for weight in (0, -1):
        with pytest.raises(ValueError, match="default"):
            kitex_layout.write("users", Instance("a:1", weight))
        assert kratos.read(kratos.write("users", Instance("a:1", weight))[1], "users").weight <= 0
    for layout in (kitex_layout, kratos):
        with pytest.raises(ValueError, match="service"):
            layout.write("", Instance("a:1"))
        with pytest.raises(TypeError, match="service"):
            layout.write(3, Instance("a:1"))
        with pytest.raises(TypeError, match="instance"):
            layout.write("users", "a:1")
        with pytest.raises(ValueError, match="weight"):
            layout.write("users", Instance("a:1", 2**32 + 1))
        with pytest.raises(ValueError, match="surrogates"):
            layout.write("users", Instance("a:1", tags={"x": "\ud800"}))
    with pytest.raises(ValueError, match="'/'"):
        kitex_layout.write("a/b", Instance("a:1"))
    with pytest.raises(ValueError, match="network"):
        kratos.write("users", Instance("/run/x", network="unix"))
    for bad in (Instance("a/b"), Instance("a:1?x"), Instance("[::1"), Instance("a", scheme="x y")):
        with pytest.raises(ValueError, match="URL"):
            kratos.write("users", bad)


def test_bad_layouts_are_refused():
    for bad, error in ((3, TypeError), ("", ValueError)):
        with pytest.raises(error, match="prefix"):
            KitexLayout(bad)
        with pytest.raises(error, match="namespace"):
            KratosLayout("http", bad)
        with pytest.raises(error, match="scheme"):
            KratosLayout(bad)
    with pytest.raises(ValueError, match="scheme"):
        KratosLayout("http://")
    with pytest.raises(TypeError, match="secure"):
        KratosLayout("http", secure="no")
    for bad, error in (("http://a:1", TypeError), ([3], TypeError), (["a:1"], ValueError)):
        with pytest.raises(error, match="endpoint"):
            KratosLayout("http", endpoints=bad)


# The table.


KEYS = st.sampled_from([f"p/users/{c}".encode() for c in "abcdef"] + [b"p/users/\xff"])
VALUES = st.sampled_from(
    [kitex(a, w).encode() for a in ("1:1", "2:1", "3:1") for w in (5, 7)]
    + [b'{"weight": 5, "address": "1:1"}', b"nonsense", b""]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(KEYS, VALUES | st.none()), max_size=30), st.data())
def test_a_table_is_what_the_entries_say(changes, data):
    """Against the rule as it reads; and who has not changed is the very same object."""
    layout = KitexLayout("p")
    logging.disable(logging.WARNING)
    try:
        table = Table(layout, "users", Skipped("test"))
        entries, shown, objects = {}, {}, {}
        for revision, (key, value) in enumerate(changes, 2):
            if value is None:
                entries.pop(key, None)
                table.delete(key)
            else:
                entries[key] = (value, revision)
                table.put(Entry(key, value, revision, 0))
            was_shown, were_objects, shown = shown, objects, {}
            for k in sorted(entries):
                with suppress(ValueError, TypeError):
                    k.decode()
                    instance = layout.read(entries[k][0], "users")
                    shown.setdefault(instance.address, (k, instance))
            result = table.result
            assert result == Result(True, "users", tuple(i for _, i in shown.values()))
            newest = max(entries, key=lambda k: entries[k][1], default=None)
            last = () if newest is None else (Entry(newest, b"", entries[newest][1], 0),)
            here = Listing(Header(revision, 2, 17), last, len(entries))
            assert table.is_as(here)
            assert not table.is_as(replace(here, count=len(entries) + 1))
            assert not table.is_as(replace(here, entries=(Entry(b"a", b"", revision + 1, 0),)))
            for one in last:
                assert not table.is_as(replace(here, entries=(replace(one, lease=7),)))
                assert not table.is_as(replace(here, entries=()))
            objects = {instance.address: instance for instance in result.instances}
            for address, of in shown.items():
                if was_shown.get(address) == of:
                    assert objects[address] is were_objects[address]
        fresh = Table(layout, "users", Skipped("test"))
        listed = [Entry(k, v, r, 0) for k, (v, r) in sorted(entries.items())]
        fresh.load(data.draw(st.permutations(listed)))
        assert fresh.result == table.result
        before = table.result
        table.load(listed)
        assert table.result is before
        table.load([])
        assert table.result == Result(True, "users", ())
        assert table.is_as(Listing(Header(99, 2, 17), (), 0))
    finally:
        logging.disable(logging.NOTSET)


def test_entries_that_are_skipped_are_named_once(caplog):
    table = Table(KitexLayout("p"), "users", Skipped("etcd"))

    def put(key, value):
        caplog.clear()
        table.put(Entry(key, value.encode(), 2, 0))
        return [record.getMessage() for record in caplog.records]

    assert put(b"a", kitex("1:1")) == []
    (said,) = put(b"b", "nonsense")
    assert "b is skipped" in said
    assert put(b"b", "nonsense") == []
    assert put(b"b", kitex("2:1")) == []
    (said,) = put(b"b", "nonsense")
    assert addresses(table.result) == ["1:1"]
    (said,) = put(b"c", kitex("1:1", 3))
    assert "c is skipped" in said
    assert "'1:1'" in said
    assert put(b"c", kitex("1:1", 4)) == []
    assert table.result.instances[0].weight == 10
    (said,) = put(b"Z", kitex("1:1", 7))  # before a
    assert "a is skipped" in said
    assert table.result.instances[0].weight == 7
    table.delete(b"Z")
    table.delete(b"a")
    assert table.result.instances[0].weight == 4
    (said,) = put(b"d", "x" * 100_000)
    assert len(said) < 1000


# The resolver.


def test_resolve(server):
    async def main():
        resolver = EtcdResolver(server.url)
        assert await resolver.resolve("users") == Result(True, "users", ())
        server.put(f"{KITEX}/users/b:1", kitex("b:1", 3, tags={"zone": "a"}))
        server.put(f"{KITEX}/users/a:1", kitex("a:1", 0))
        server.put(f"{KITEX}/users-admin/c:1", kitex("c:1"))
        server.put(f"{KITEX}/user/d:1", kitex("d:1"))
        result = await resolver.resolve("users")
        assert result == Result(
            True,
            "users",
            (
                Instance("a:1", service="users"),
                Instance("b:1", 3, service="users", tags={"zone": "a"}),
            ),
        )
        assert addresses(await resolver.resolve("user")) == ["d:1"]
        change = resolver.diff("k", await resolver.resolve("user"), result)
        assert change.added == result.instances
        with pytest.raises(ValueError, match="'/'"):
            await resolver.resolve("a/b")

    run(main())


def test_resolve_what_kratos_wrote(server, vectors):
    for case in vectors("etcd_layouts")["kratos"]:
        server.put(case["key"], case["value"])

    async def main():
        for scheme, secure, want in (
            ("http", False, ["10.0.0.1:8000", "10.0.0.3:8000"]),
            ("http", True, ["[fe80::1]:8000", "10.0.0.4:8000"]),
            ("grpc", False, ["10.0.0.1:9000"]),
        ):
            resolver = EtcdResolver(server.url, layout=KratosLayout(scheme, secure=secure))
            assert addresses(await resolver.resolve("users")) == want
        resolver = EtcdResolver(server.url, layout=KratosLayout("http"))
        assert addresses(await resolver.resolve("users-admin")) == ["10.0.0.9:8000"]

    run(main())


def test_a_watch_pushes(server):
    async def main():
        resolver = EtcdResolver(server.url, heartbeat=0.2)
        async with watching(resolver, "users") as watched:
            await watched.shows()
            server.put(f"{KITEX}/users/b:1", kitex("b:1"))
            b = (await watched.shows("b:1")).instances[0]
            server.put(f"{KITEX}/users/a:1", kitex("a:1"))
            result = await watched.shows("a:1", "b:1")
            assert result.instances[1] is b
            server.put(f"{KITEX}/users/a:1", kitex("a:1", 3))
            result = await watched.until(lambda r: r.instances[0].weight == 3)
            assert result.instances[1] is b
            server.put(f"{KITEX}/users-admin/c:1", kitex("c:1"))
            await watched.confirms()
            await watched.confirms()
            assert watched.result is result  # still true
            server.txn({f"{KITEX}/users/c:1": kitex("c:1")}, [f"{KITEX}/users/a:1"])
            result = await watched.shows("b:1", "c:1")
            assert not any(addresses(r) == ["b:1"] for r in watched.results[3:])
            server.put(f"{KITEX}/users/c:1", "nonsense")
            await watched.shows("b:1")
            server.put(f"{KITEX}/users/c:1", kitex("c:1"))
            await watched.shows("b:1", "c:1")
            server.delete_all(KITEX)
            await watched.shows()

    run(main())


def test_a_watch_of_a_list_as_long_as_it_likes(server):
    """Of many entries, which come at once, in messages of many events."""
    n, size = 2000, 100

    def write(weight):
        for start in range(0, n, size):
            server.txn(
                {
                    f"{KITEX}/users/{i:04d}:1": kitex(f"{i:04d}:1", weight, tags={"x": "y" * 200})
                    for i in range(start, start + size)
                },
                [],
            )

    async def main():
        resolver = EtcdResolver(server.url)
        async with watching(resolver, "users") as watched:
            await watched.shows()
            write(3)
            result = await watched.until(lambda r: len(r.instances) == n)
            write(4)
            await watched.until(lambda r: all(i.weight == 4 for i in r.instances))
            assert addresses(watched.result) == addresses(result)

    run(main())


def test_many_watches_end_without_a_trace(server):
    async def main():
        resolver = EtcdResolver(server.url)
        async with AsyncExitStack() as stack:
            watches = [
                await stack.enter_async_context(watching(resolver, f"s{i}")) for i in range(20)
            ]
            for watched in watches:
                await watched.shows()
        # One that is not gone through, one left behind in the middle.
        resolver.watch("users")
        watch = resolver.watch("users")
        await anext(watch)
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
        watch = resolver.watch("users")
        await anext(watch)
        await watch.aclose()
        with pytest.raises(ValueError, match="'/'"):
            await anext(resolver.watch("a/b"))

    run(main())


def test_a_layout_of_ones_own(server):
    class Plain:
        """Keys alone."""

        name = "plain"

        def prefix(self, service):
            return f"kitex-plain/{service}/"

        def read(self, value, service):
            return Instance(value.decode())

        def write(self, service, instance):
            return self.prefix(service) + instance.address, instance.address.encode()

    async def main():
        registry = EtcdRegistry(server.url, layout=Plain())
        async with registry.registered("users", Instance("a:1")):
            assert server.entries("kitex-plain") == {"kitex-plain/users/a:1": "a:1"}
            assert addresses(await EtcdResolver(server.url, layout=Plain()).resolve("users")) == [
                "a:1"
            ]

    run(main())


# Endpoints.


def test_the_next_endpoint_is_asked(server):
    dead = [f"http://127.0.0.1:{port}" for port in free_ports(3)]

    async def main():
        server.put(f"{KITEX}/users/a:1", kitex("a:1"))
        resolver = EtcdResolver([*dead, server.url])
        for _ in range(10):  # each begins elsewhere
            assert addresses(await resolver.resolve("users")) == ["a:1"]
            watch = resolver.watch("users")
            assert addresses(await anext(watch)) == ["a:1"]
            await watch.aclose()
        with pytest.raises(EtcdUnavailable) as caught:
            await EtcdResolver(dead).resolve("users")
        assert all(url in str(caught.value) for url in dead)
        assert isinstance(caught.value, ConnectionError)

    run(main())


def test_an_endpoint_that_says_nothing_costs_its_timeout(server):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoints = [f"127.0.0.1:{silent.getsockname()[1]}", server.url]

        async def main():
            resolver = EtcdResolver(endpoints, timeout=0.3)
            registry = EtcdRegistry(endpoints, timeout=0.3)
            for _ in range(4):  # each begins elsewhere
                async with registry.registered("users", Instance("a:1")):
                    assert addresses(await resolver.resolve("users")) == ["a:1"]
                    watch = resolver.watch("users")
                    assert addresses(await anext(watch)) == ["a:1"]
                    await watch.aclose()

        run(main())


def test_names_are_looked_up(server):
    async def main():
        server.put(f"{KITEX}/users/a:1", kitex("a:1"))
        resolver = EtcdResolver(server.url.replace("127.0.0.1", "localhost"))
        assert addresses(await resolver.resolve("users")) == ["a:1"]
        with pytest.raises(EtcdUnavailable, match=r"nowhere\.invalid"):
            await EtcdResolver("nowhere.invalid:2379").resolve("users")

    run(main())


@contextmanager
def speaking(*answers):
    """Give the URL of a server that says these (status, body) in turn, and the last for ever."""
    said = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = said.pop(0) if len(said) > 1 else said[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


LIST = {"header": {"revision": "5", "raft_term": "2", "cluster_id": "17"}}


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"", "not JSON"),
        (200, b"<html>", "not JSON"),
        (200, b"[]", "not a JSON object"),
        (200, b"{}", "revision"),
        (200, b'{"header": {"revision": "x"}}', "revision"),
        (200, json.dumps(LIST | {"kvs": [{"key": "%"}]}).encode(), "key"),
        (404, b"Not Found\n", "404"),
        (302, b"", "302"),
        (500, b"oops", "500"),
        (503, b'{"error": "etcdserver: no leader", "code": 14, "message": "no leader"}', "leader"),
        (400, b'{"code": "?", "message": []}', "400"),
        (200, b'{"error": {"grpc_code": 14, "message": "no leader"}}', "no leader"),
    ],
)
def test_what_is_no_etcd_is_named(status, body, said):
    async def main():
        with speaking((status, body)) as url:
            with pytest.raises(EtcdUnavailable, match=said) as caught:
                await EtcdResolver(url).resolve("users")
            assert url in str(caught.value)
            with pytest.raises(EtcdUnavailable, match=url):
                async with EtcdRegistry(url, timeout=0.1).registered("users", Instance("a:1")):
                    pass

    with nothing_left():
        asyncio.run(main())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n\n",
        b'{"result": {"events": []}}\n',
        b'{"result": {"created": true}}\n',
        b'{"result": {"created": true}}\n{"result": {"events": [{"type": "?"}]}}\n',
        b'{"result": {"created": true}}\n[]\n',
        b'{"result": {"created": true}}\n{"error": {"code": 7, "message": "go away"}}\n',
        b'{"result": {"created": true}}\n{"result": {"canceled": true, "cancel_reason": "so"}}\n',
        b'{"result": {"created": true}}\n{"result": {"canceled": true, "compact_revision": "9"}}\n',
    ],
)
def test_a_watch_goes_on_through_nonsense(body, caplog):
    """It lists, is told nonsense, lists again or watches again; and nothing is raised."""
    entry = {"key": b64encode(b"k").decode(), "mod_revision": "4"}
    entry["value"] = b64encode(kitex("a:1").encode()).decode()
    full = (200, json.dumps(LIST | {"kvs": [entry], "count": "1"}).encode())
    watch = (200, body)

    async def main():
        with speaking(full, *[watch] * 3, (500, b"")) as url:
            async with watching(EtcdResolver(url), "users") as watched:
                await watched.shows("a:1")
                await asyncio.sleep(0.3)
                assert addresses(watched.result) == ["a:1"]
        assert sum("etcd is lost" in r.getMessage() for r in caplog.records) == 1

    with nothing_left():
        asyncio.run(main())


def test_a_refusal_ends_a_watch():
    async def main():
        with speaking((400, b'{"code": 3, "message": "bad"}')) as url:
            with pytest.raises(EtcdError, match="bad") as caught:
                await anext(EtcdResolver(url).watch("users"))
            assert caught.value.code == 3
            assert not isinstance(caught.value, EtcdUnavailable)

    with nothing_left():
        asyncio.run(main())


def test_within_loses_nothing():
    async def forever():
        await asyncio.Event().wait()

    async def stubborn():
        try:
            await forever()
        except asyncio.CancelledError:
            return "done nevertheless"

    async def failing():
        raise KeyError("x")

    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await within(forever(), 0.01)
        assert await within(stubborn(), 0.01) == "done nevertheless"
        with pytest.raises(KeyError):
            await within(failing(), 5)
        task = asyncio.ensure_future(within(forever(), 60))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


# Users and certificates.


@pytest.fixture
def guarded(tmp_path):
    """An etcd that asks who is there; root may do everything, "reader" read what Kitex wrote."""
    with etcd(tmp_path / "etcd") as server:
        for user in ("root", "reader", "nobody"):
            server.ask("auth/user/add", name=user, password=f"{user}'s")
        first, end = (b64encode(key).decode() for key in (b"kitex", b"kitey"))
        server.ask("auth/role/add", name="root")
        server.ask("auth/role/add", name="reader")
        permission = {"permType": "READ", "key": first, "range_end": end}
        server.ask("auth/role/grant", name="reader", perm=permission)
        for user in ("root", "reader"):
            server.ask("auth/user/grant", user=user, role=user)
        server.put(f"{KITEX}/users/a:1", kitex("a:1"))
        server.ask("auth/enable")
        log_in(server)
        yield server


def log_in(server):
    server.token = None
    server.token = server.ask("auth/authenticate", name="root", password="root's")["token"]


def test_users(guarded):
    def resolver(user, password):
        return EtcdResolver(guarded.url, user=user, password=password)

    async def main():
        reader = resolver("reader", "reader's")
        assert addresses(await reader.resolve("users")) == ["a:1"]
        for bad in (
            EtcdResolver(guarded.url),
            resolver("reader", "wrong"),
            resolver("unknown", ""),
            resolver("nobody", "nobody's"),
        ):
            with pytest.raises(EtcdError) as caught:
                await bad.resolve("users")
            assert not isinstance(caught.value, EtcdUnavailable)
            with pytest.raises(EtcdError) as caught:
                await anext(bad.watch("users"))
            assert not isinstance(caught.value, EtcdUnavailable)
        registry = EtcdRegistry(guarded.url, user="reader", password="reader's")
        with pytest.raises(EtcdError, match="permission denied"):
            async with registry.registered("users", Instance("b:1")):
                pass
        registry = EtcdRegistry(guarded.url, user="root", password="root's", ttl=2)
        async with (
            watching(reader, "users") as watched,
            registry.registered("users", Instance("b:1")),
        ):
            await watched.shows("a:1", "b:1")
            # Tokens are of one run of etcd.
            guarded.kill()
            guarded.start()
            log_in(guarded)
            guarded.put(f"{KITEX}/users/c:1", kitex("c:1"))
            await watched.shows("a:1", "b:1", "c:1")
            before = watched.result.instances[1]
            guarded.delete(f"{KITEX}/users/b:1")
            await watched.until(lambda r: len(r.instances) == 3 and r.instances[1] is not before)
        assert f"{KITEX}/users/b:1" not in guarded.entries(KITEX)

    run(main())


def test_a_right_that_is_taken_away_ends_a_watch(guarded):
    async def main():
        resolver = EtcdResolver(guarded.url, user="reader", password="reader's")
        watch = resolver.watch("users")
        await anext(watch)
        guarded.ask("auth/user/revoke", name="reader", role="reader")
        guarded.kill()
        guarded.start()
        with pytest.raises(EtcdError, match="permission denied"):
            async for _ in watch:
                pass

    run(main())


def test_a_password_that_nobody_asks_for(server):
    async def main():
        server.put(f"{KITEX}/users/a:1", kitex("a:1"))
        resolver = EtcdResolver(server.url, user="root", password="x")
        assert addresses(await resolver.resolve("users")) == ["a:1"]

    run(main())


def test_certificates(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            program("openssl", "openssl"), "req", "-x509", "-newkey", "ec",
            "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", "/CN=etcd", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", str(key), "-out", str(certificate),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    trusting = ssl.create_default_context(cafile=str(certificate))
    options = [f"--cert-file={certificate}", f"--key-file={key}"]

    async def main(server):
        resolver = EtcdResolver(server.url, ssl=trusting)
        registry = EtcdRegistry([server.url.removeprefix("https://")], ssl=trusting)
        async with watching(resolver, "users") as watched:
            async with registry.registered("users", Instance("a:1")):
                await watched.shows("a:1")
            await watched.shows()
        with pytest.raises(EtcdUnavailable, match=r"(?i)certificate"):
            await EtcdResolver(server.url).resolve("users")

    with etcd(tmp_path / "etcd", options=options, scheme="https") as server:
        run(main(server))


# The registry.


def test_register(server):
    with nothing_left():
        with EtcdRegistry(server.url, ttl=5) as registry:
            one = registry.register("users", Instance("a:1", 5, tags={"zone": "a"}))
            assert one.key == f"{KITEX}/users/a:1"
            value = json.loads(server.entries(KITEX)[one.key])
            assert value == {
                "network": "tcp",
                "address": "a:1",
                "weight": 5,
                "tags": {"zone": "a"},
            }
            assert server.lease_of(one.key) in server.leases()
            changed = Instance("a:1", 7)
            one.update(changed)
            assert one.instance is changed
            assert json.loads(server.entries(KITEX)[one.key])["weight"] == 7
            assert len(server.leases()) == 1
            with registry.register("users", Instance("b:1")):
                assert len(server.entries(KITEX)) == 2
            assert list(server.entries(KITEX)) == [one.key]
            one.close()
            one.close()
            assert server.entries(KITEX) == {}
            with pytest.raises(RuntimeError, match="closed"):
                one.update(changed)
            registry.register("users", Instance("c:1"))
            last = registry.register("users", Instance("d:1"))
        assert server.entries(KITEX) == {}
        assert server.leases() == []
        registry.close()
        last.close()
        with pytest.raises(RuntimeError, match="closed"):
            last.update(Instance("d:1"))
        with pytest.raises(RuntimeError, match="closed"):
            registry.register("users", Instance("a:1"))


def test_register_on_asyncio(server):
    async def main():
        layout = KratosLayout("grpc")
        registry = EtcdRegistry(server.url, layout=layout)
        async with watching(EtcdResolver(server.url, layout=layout), "users") as watched:
            async with registry.registered("users", Instance("a:1", 5)) as one:
                assert (await watched.shows("a:1")).instances[0].weight == 5
                await one.update(Instance("a:1", 7, tags={"zone": "a"}))
                result = await watched.until(lambda r: r.instances[0].weight == 7)
                assert result.instances[0].tag("zone") == "a"
                await one.update(Instance("a:1", 0))  # drained
                await watched.until(lambda r: r.instances[0].weight == 0)
                assert server.lease_of(one.key) in server.leases()
            await watched.shows()
            with pytest.raises(RuntimeError, match="closed"):
                await one.update(Instance("a:1"))
            await one.close()
            with suppress(KeyError):
                async with registry.registered("users", Instance("b:1")):
                    await watched.shows("b:1")
                    raise KeyError
            await watched.shows()
        assert server.leases() == []
        registry.close()
        with pytest.raises(RuntimeError, match="closed"):
            async with registry.registered("users", Instance("a:1")):
                pass

    run(main())


def test_what_cannot_be_registered(server):
    with nothing_left(), EtcdRegistry(server.url) as registry:
        with pytest.raises(ValueError, match="default"):
            registry.register("users", Instance("a:1", 0))
        with pytest.raises(ValueError, match="'/'"):
            registry.register("a/b", Instance("a:1"))
        with pytest.raises(TypeError, match="instance"):
            registry.register("users", "a:1")
        with registry.register("users", Instance("a:1", 5)) as one:
            with pytest.raises(ValueError, match="b:1"):
                one.update(Instance("b:1"))
            with pytest.raises(ValueError, match="default"):
                one.update(Instance("a:1", 0))
            assert one.instance == Instance("a:1", 5)
            assert json.loads(server.entries(KITEX)[one.key])["weight"] == 5


def test_an_etcd_that_is_not_there():
    endpoints = [f"127.0.0.1:{port}" for port in free_ports(2)]
    with (
        nothing_left(),
        EtcdRegistry(endpoints, timeout=0.5) as registry,
        pytest.raises(EtcdUnavailable, match=r"users/a:1 is not written in 1 s: .*127"),
    ):
        registry.register("users", Instance("a:1"))


def test_what_is_deleted_is_written_again(server, caplog):
    with nothing_left(), EtcdRegistry(server.url, ttl=2) as registry:
        one = registry.register("users", Instance("a:1", 5))
        server.delete(one.key)
        wait_for(lambda: one.key in server.entries(KITEX), "it is written again")
        assert "was deleted" in caplog.text
        (lease,) = server.leases()
        server.ask("lease/revoke", ID=str(lease))
        wait_for(lambda: one.key in server.entries(KITEX), "it is registered anew")
        assert "lease has run out" in caplog.text
        assert server.lease_of(one.key) != lease
        one.update(Instance("a:1", 7))
        assert json.loads(server.entries(KITEX)[one.key])["weight"] == 7


def test_the_word_of_another_stands_while_it_lasts(server, caplog):
    """As that of the next process of the same address, which begins before this one ends."""
    with nothing_left(), EtcdRegistry(server.url, ttl=2) as registry:
        one = registry.register("users", Instance("a:1", 5))
        with EtcdRegistry(server.url, ttl=2) as other:
            two = other.register("users", Instance("a:1", 7))
            wait_for(lambda: "written by another" in caplog.text, "it is noticed")
            assert json.loads(server.entries(KITEX)[one.key])["weight"] == 7
            # To say something new is to speak up.
            one.update(Instance("a:1", 6))
            assert json.loads(server.entries(KITEX)[one.key])["weight"] == 6
            two.update(Instance("a:1", 8))
        wait_for(lambda: one.key in server.entries(KITEX), "it is written again")
        assert json.loads(server.entries(KITEX)[one.key])["weight"] == 6
        # The new one stays when the old one leaves.
        with EtcdRegistry(server.url) as other:
            two = other.register("users", Instance("a:1", 7))
            one.close()
            assert json.loads(server.entries(KITEX)[two.key])["weight"] == 7


def test_a_registry_that_is_forgotten_ends(server):
    with nothing_left():
        registry = EtcdRegistry(server.url)
        one = registry.register("users", Instance("a:1"))
        del registry
        gc.collect()
        one.update(Instance("a:1", 3))  # it is not, while there is a registration
        assert len(server.entries(KITEX)) == 1
        del one
        gc.collect()
        wait_for(lambda: not server.entries(KITEX), "it is taken away")


SCRIPT = """
import sys
from rota import Instance
from rota.discovery.etcd import EtcdRegistry
registry = EtcdRegistry(sys.argv[1], ttl=60)
registry.register("users", Instance("a:1"))
print("registered", flush=True)
sys.stdin.readline()
"""


def test_the_interpreter_ends(server):
    """It takes away what it has registered, and waits for nobody who does not answer."""
    command = [sys.executable, "-c", SCRIPT, server.url]
    for is_frozen in (False, True):
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout.readline() == b"registered\n", process.stderr.read()
            if is_frozen:
                server.freeze()
            try:
                _, said = process.communicate(b"\n", timeout=60)
            finally:
                server.thaw()
            assert process.returncode == 0, said
        if not is_frozen:
            assert said == b""
            assert server.entries(KITEX) == {}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_a_registry_of_its_own(server):
    with EtcdRegistry(server.url, ttl=5) as registry:
        one = registry.register("users", Instance("a:1"))
        child = os.fork()
        if child == 0:
            code = 1
            with suppress(BaseException):
                one.close()  # the parent's: nothing happens
                try:
                    one.update(Instance("a:1", 3))
                except RuntimeError:
                    two = registry.register("users", Instance("b:1"))
                    code = 0 if len(server.entries(KITEX)) == 2 else 2
                    two.close()
            os._exit(code)
        deadline = time.monotonic() + 60
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.02)
        assert list(server.entries(KITEX)) == [one.key]
        one.update(Instance("a:1", 4))
        assert json.loads(server.entries(KITEX)[one.key])["weight"] == 4


def test_many_threads_register(server):
    with nothing_left(), EtcdRegistry(server.url) as registry:
        failures = []

        def work(k):
            try:
                for i in range(5):
                    with registry.register("users", Instance(f"{k}:{i}", 5)) as one:
                        one.update(Instance(f"{k}:{i}", 6))
                registry.register("users", Instance(f"{k}:9", 7))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert {key[-3:] for key in server.entries(KITEX)} == {f"{k}:9" for k in range(8)}


@pytest.mark.parametrize("what", ["watch", "register"])
def test_cancelled_at_every_step(server, what):
    """Wherever it is when it is cancelled: it is, and nothing of it stays open."""
    resolver = EtcdResolver(server.url, heartbeat=0.05)
    registry = EtcdRegistry(server.url, ttl=2)

    async def watch():
        async for _ in resolver.watch("users"):
            pass

    async def register():
        async with registry.registered("users", Instance("a:1")):
            await asyncio.sleep(0.01)

    async def main():
        for n_steps in range(60):
            task = asyncio.ensure_future(watch() if what == "watch" else register())
            for _ in range(n_steps):
                await asyncio.sleep(0.0002 * (n_steps % 2))
            if task.done():
                task.result()
                break
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
            assert asyncio.all_tasks() == {asyncio.current_task()}
        gc.collect()  # what was not closed complains
        assert server.entries(KITEX) == {}

    run(main())


def test_a_client_is_of_use_while_it_is_open(server):
    async def main():
        client = EtcdClient(settings_of(server.url, None, None, None, 5.0))
        async with client:
            lease = await client.grant(60)
            assert await client.keep_alive(lease)
            await client.revoke(lease)
            await client.revoke(lease)  # there is none any more
            assert not await client.keep_alive(lease)
            with pytest.raises(EtcdError, match="lease not found"):
                await client.put("kitex/x", b"", lease)
        with pytest.raises(RuntimeError, match="closed"):
            await client.get("kitex/x")

    run(main())
