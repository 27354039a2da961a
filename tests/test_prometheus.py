"""What Prometheus and OpenTelemetry are shown of clients, factories, budgets and pickers."""

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import weakref

import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rota import (
    BalancerFactory,
    Change,
    ConsistentHash,
    Instance,
    LeastRequest,
    MemoryRegistry,
    PeakEwma,
    Result,
    RetryBudget,
    WeightedRoundRobin,
    WeightedRoundRobinBalancer,
)
from rota.clients import snapshot
from rota.clients.aiohttp import client_session
from rota.clients.httpx import AsyncClient, Client
from rota.clients.members import Members
from rota.clients.prometheus import RotaCollector
from rota.clients.snapshot import InstanceStats, picker_stats
from rota.clients.telemetry import Instruments
from rota.discovery import StaticResolver
from rota.retry import RetryPolicy, any_failure
from rota.selector import engine, p2c
from tests.scripted_server import closed_port, serving


@pytest.fixture
def server():
    with serving() as made:
        yield made


def scraped(collector):
    """Return what Prometheus' own parser reads: {name: {labels: value}}."""
    registry = CollectorRegistry()
    registry.register(collector)
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            values = found.setdefault(sample.name, {})
            assert labels not in values, "a sample twice"
            values[labels] = sample.value
    return found


def client_of(*ports, kind=Client, **options):
    resolver = StaticResolver({"orders": [f"127.0.0.1:{port}" for port in ports]})
    return kind("orders", resolver, telemetry=False, **options)


# -- clients ------------------------------------------------------------------------------


def test_client(server):
    """Calls, failures, what goes on; weights, loads and latencies of its picker; its budget."""
    dead = closed_port()
    a, b = f"127.0.0.1:{server.port}", f"127.0.0.1:{dead}"
    policy = RetryPolicy(retry_on=any_failure, pause=0.001, max_pause=0.01)
    with client_of(server.port, dead, balancer=p2c(seed=1), policy=policy) as client:
        collector = RotaCollector(client)
        for _ in range(20):
            client.get("/7")
        with client.stream("GET", "/long"):
            found = scraped(collector)
            (row,) = client.stats()
        after = scraped(collector)
    calls = found["rota_client_requests_total"]
    assert calls[(a, "Client", "orders")] == 21
    assert calls[(b, "Client", "orders")] >= 1
    failures = found["rota_client_failures_total"]
    assert failures[(a, "Client", "orders")] == 0
    assert failures[(b, "Client", "orders")] == calls[(b, "Client", "orders")]
    for name in ("rota_client_in_flight", "rota_picker_in_flight"):
        assert found[name] == {(a, "Client", "orders"): 1, (b, "Client", "orders"): 0}
        assert after[name] == {(a, "Client", "orders"): 0, (b, "Client", "orders"): 0}
    assert set(found["rota_picker_weight"].values()) == {100}
    assert 0 < found["rota_picker_latency_seconds"][(a, "Client", "orders")] < 10
    assert found["rota_client_instances"] == {("Client", "orders"): 2}
    assert found["rota_client_discovery_age_seconds"][("Client", "orders")] >= 0
    assert found["rota_retry_budget_calls_total"] == {("Client",): 21}
    assert found["rota_retry_budget_retries_total"] == {("Client",): 0}
    assert found["rota_retry_budget_refused_total"] == {("Client",): 0}
    assert found["rota_retry_budget_balance"][("Client",)] > 0
    assert row.service == "orders"
    assert row.n_calls == sum(calls.values())
    assert row.n_failures == sum(failures.values())
    assert (row.n_in_flight, row.n_instances) == (1, 2)


def test_async_client(server):
    """The same on asyncio; read on another thread."""

    async def main():
        async with client_of(server.port, kind=AsyncClient) as client:
            collector = RotaCollector(client)
            await client.get("/7")
            return await asyncio.to_thread(scraped, collector)

    found = asyncio.run(main())
    assert found["rota_client_requests_total"] == {
        (f"127.0.0.1:{server.port}", "AsyncClient", "orders"): 1
    }


def test_session_of_aiohttp(server):
    """A session is aiohttp's own: its connector says what there is to show."""

    async def main():
        resolver = StaticResolver({"orders": [f"127.0.0.1:{server.port}"]})
        async with client_session("orders", resolver, telemetry=False) as session:
            collector = RotaCollector(session.connector)
            async with session.get("/7") as response:
                await response.read()
            return scraped(collector)

    found = asyncio.run(main())
    assert found["rota_client_requests_total"] == {
        (f"127.0.0.1:{server.port}", "BalancedConnector", "orders"): 1
    }


class Fleet(StaticResolver):
    """Takes endpoints of its own."""

    def target(self, endpoint):
        return endpoint.removeprefix("fleet:///")


def test_endpoints_of_a_resolver_of_ones_own(server):
    resolver = Fleet({"orders": [f"127.0.0.1:{server.port}"]})
    origin = "http://orders"
    with Client("fleet:///orders", resolver, origin=origin, telemetry=False) as client:
        client.get("/7")
        (row,) = client.stats()
    assert (row.service, row.n_calls) == ("fleet:///orders", 1)


def test_before_and_after(server):
    """A client that has not called yet, or is closed, has nothing but its sums."""
    client = client_of(server.port)
    collector = RotaCollector(client)
    (before,) = client.stats()
    assert (before.n_calls, before.n_instances, before.age, before.instances) == (0, None, None, ())
    client.get("/7")
    client.close()
    (after,) = client.stats()
    assert (after.n_calls, after.n_instances, after.instances) == (1, None, ())
    assert "rota_client_requests_total" not in scraped(collector)


def test_factory_closed_before_its_client(server):
    """Its picker is not there any more: what was counted is."""
    resolver = StaticResolver({"orders": [f"127.0.0.1:{server.port}"]})
    factory = BalancerFactory(resolver, WeightedRoundRobinBalancer())
    with Client("orders", factory, telemetry=False) as client:
        client.get("/7")
        factory.close()
        (row,) = client.stats()
        assert row.n_calls == 1


def test_without_instances(server):
    """There is one sample for each service, which never decreases."""
    registry = MemoryRegistry()
    registry.publish("orders", Instance(f"127.0.0.1:{server.port}"))
    with Client("orders", registry, telemetry=False) as client:
        collector = RotaCollector(client, PeakEwma(["a"]), instances=False)
        client.get("/7")
        found = scraped(collector)
        assert found["rota_client_requests_total"] == {("", "Client", "orders"): 1}
        assert found["rota_client_in_flight"] == {("", "Client", "orders"): 0}
        assert not any(name.startswith("rota_picker") for name in found)
        members = client._balanced._dialer.members
        gone = Result(True, "orders", ())
        members.follow(Change(gone, removed=(Instance(f"127.0.0.1:{server.port}"),)))
        assert members.now() == []
        assert scraped(collector)["rota_client_requests_total"] == {("", "Client", "orders"): 1}


def test_one_that_left_and_came_back():
    """The old calls of an instance and the new ones are one sample."""
    members = Members(lambda instance: None, lambda connection: None)
    instance, users = Instance("a:1"), [object(), object()]
    old = members.take(instance, users[0])
    members.follow(Change(Result(True, "s", ()), removed=(instance,)))
    members.follow(Change(Result(True, "s", (instance,)), added=(instance,)))
    members.take(instance, users[1])
    row = snapshot.service_stats("s", members, None, None)
    assert row.instances == (InstanceStats("a:1", 2, 0, 2),)
    members.release(old, users[0], failed=True)
    row = snapshot.service_stats("s", members, None, None)
    assert (row.n_calls, row.n_failures, row.n_in_flight) == (2, 1, 1)
    assert row.instances == (InstanceStats("a:1", 1, 0, 1),)


@pytest.mark.parametrize("balancer", [WeightedRoundRobinBalancer(), p2c("kratos")])
def test_balancers_without_loads(server, balancer):
    """Whoever knows no loads shows weights."""
    with client_of(server.port, balancer=balancer) as client:
        client.get("/7")
        found = scraped(RotaCollector(client))
    assert ("rota_picker_weight" in found) is isinstance(balancer, WeightedRoundRobinBalancer)
    assert "rota_picker_in_flight" not in found
    assert sum(found["rota_client_requests_total"].values()) == 1


# -- factories, budgets, pickers ----------------------------------------------------------


def test_factory():
    """Services, how many instances they have, how old that is, and changes."""
    registry = MemoryRegistry()
    registry.publish("users", Instance("a:1"), Instance("b:1"))
    with BalancerFactory(registry, WeightedRoundRobinBalancer()) as factory:
        collector = RotaCollector(factory)
        factory.get("users")
        found = scraped(collector)
        assert found["rota_factory_instances"] == {("BalancerFactory", "users"): 2}
        assert found["rota_factory_discovery_age_seconds"][("BalancerFactory", "users")] >= 0
        assert found["rota_factory_changes_total"] == {("BalancerFactory",): 0}
        registry.publish("users", Instance("c:1"))
        factory.refresh("users")
        found = scraped(collector)
        assert found["rota_factory_instances"] == {("BalancerFactory", "users"): 3}
        assert found["rota_factory_changes_total"] == {("BalancerFactory",): 1}
        assert found["rota_factory_deletions_total"] == {("BalancerFactory",): 0}
    assert scraped(collector)["rota_factory_deletions_total"] == {("BalancerFactory",): 1}


def test_budget():
    """What it has let through, and not."""
    budget = RetryBudget(percent=0.5, per_second=0)
    budget.deposit()
    budget.deposit()
    assert budget.withdraw()
    assert not budget.withdraw()
    collector = RotaCollector()
    assert collector.add(budget, "reads") == "reads"
    found = scraped(collector)
    assert found == {
        "rota_retry_budget_calls_total": {("reads",): 2},
        "rota_retry_budget_retries_total": {("reads",): 1},
        "rota_retry_budget_refused_total": {("reads",): 1},
        "rota_retry_budget_balance": {("reads",): 0},
    }


def test_picker():
    """Loads and latencies, where they are known, by index; who has left is not there."""
    now = 0.0
    picker = PeakEwma(["a", "b", "c"], [1, 2, 3], seed=1, clock=lambda: now)
    index = picker.acquire_index()
    picker.done(index, 0.25)
    held = picker.acquire_index()
    picker.remove(({0, 1, 2} - {index, held}).pop())
    rows = {row.instance: row for row in picker_stats(picker)}
    assert set(rows) == {instance for instance in picker.instances if instance is not None}
    done, going = rows["abc"[index]], rows["abc"[held]]
    assert done.latency == 0.25
    assert going.load == 1
    assert done.weight == index + 1
    if index != held:
        assert going.latency is None


def test_pickers_and_selectors():
    """All kinds of them are shown."""
    selector = engine(LeastRequest).build()
    selector.apply([Instance("a:1", 3), Instance("/b", network="unix")])
    ring, turns = ConsistentHash(["c"]), WeightedRoundRobin(["d", "d"], [1, 4])
    found = scraped(RotaCollector(selector, ring, turns))["rota_picker_weight"]
    assert found == {
        ("a:1", "Selector", ""): 3,
        ("unix:///b", "Selector", ""): 100,
        ("c", "ConsistentHash", ""): 1,
        ("d", "WeightedRoundRobin", ""): 5,
    }


def test_names_that_want_escaping():
    """Labels may be anything."""
    picker = WeightedRoundRobin(['a"\\\n', "ü"])
    found = scraped(RotaCollector(picker))["rota_picker_weight"]
    assert {labels[0] for labels in found} == {'a"\\\n', "ü"}


# -- sources ------------------------------------------------------------------------------


def test_names():
    """They are those of the types, numbered; or given."""
    a, b, c = (RetryBudget() for _ in range(3))
    collector = RotaCollector(a, b)
    assert collector.add(c) == "RetryBudget#3"
    with pytest.raises(ValueError, match="name must be one that is not taken, got 'RetryBudget#2'"):
        collector.add(c, "RetryBudget#2")
    with pytest.raises(ValueError, match="name must be one that is not taken, got ''"):
        collector.add(c, "")
    with pytest.raises(TypeError, match="name must be a str or None, got 7"):
        collector.add(c, 7)
    collector.discard("RetryBudget")
    collector.discard("nobody")
    assert set(scraped(collector)["rota_retry_budget_calls_total"]) == {
        ("RetryBudget#2",),
        ("RetryBudget#3",),
    }


@pytest.mark.parametrize("wrong", [None, 7, "a", httpx.Client, PeakEwma, object(), ["a"]])
def test_wrong_sources(wrong):
    """What nothing can be read of is refused."""
    with pytest.raises(TypeError, match="source must be"):
        RotaCollector(wrong)


def test_held_weakly(server):
    """Whoever is let go is shown no more, and its name is free."""
    client, budget = client_of(server.port), RetryBudget()
    collector = RotaCollector(client, budget)
    client.get("/7")
    client.close()
    reference = weakref.ref(client)
    del client, budget
    gc.collect()
    assert reference() is None
    assert scraped(collector) == {}
    budget = RetryBudget()
    assert collector.add(budget) == "RetryBudget"


class Broken:
    def stats(self):
        raise OSError("broken")


def test_one_that_fails(caplog):
    """It is logged, and hides none of the others."""
    broken, budget = Broken(), RetryBudget()
    found = scraped(RotaCollector(broken, budget))
    assert found["rota_retry_budget_calls_total"] == {("RetryBudget",): 0}
    assert "could not be read" in caplog.text


def test_describe():
    """A registry learns all names without reading anything, so two collectors clash at once."""
    registry, broken = CollectorRegistry(), Broken()
    collector = RotaCollector(broken)
    registry.register(collector)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(RotaCollector())
    registry.unregister(collector)
    assert generate_latest(registry) == b""


def test_read_while_it_changes():
    """A picker that grows and shrinks under a scrape is read all the same."""
    picker = LeastRequest(["a"])
    is_over = threading.Event()

    def change():
        while not is_over.is_set():
            indices = [picker.add(f"i{k}") for k in range(50)]
            for index in indices:
                picker.remove(index)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(200):
            assert "a" in {row.instance for row in picker_stats(picker)}
    finally:
        is_over.set()
        thread.join()


# -- OpenTelemetry ------------------------------------------------------------------------


def collected(reader):
    data = reader.get_metrics_data()
    return {
        metric.name: {
            tuple(value for _, value in sorted(point.attributes.items())): point.value
            for point in metric.data.data_points
        }
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
    }


def test_instruments(server):
    """The same numbers as observable instruments, read once for each collection."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    try:
        with client_of(server.port) as client:
            instruments = Instruments(client, meter_provider=provider)
            n_read = 0

            def stats():
                nonlocal n_read
                n_read += 1
                return type(client).stats(client)

            client.stats = stats
            for n in (1, 2):
                client.get("/7")
                found = collected(reader)
                labels = (f"127.0.0.1:{server.port}", "Client", "orders")
                assert found["rota.client.requests"] == {labels: n}
                assert found["rota.client.in_flight"] == {labels: 0}
                assert found["rota.client.instances"] == {("Client", "orders"): 1}
                assert n_read == n
            budget = RetryBudget()
            instruments.add(budget, "reads")
            assert collected(reader)["rota.retry.budget.calls"][("reads",)] == 0
    finally:
        provider.shutdown()


# -- without the packages -----------------------------------------------------------------


def test_without_packages():
    """A client counts all the same, and an import says what is missing."""
    code = """
        import sys
        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("opentelemetry", "prometheus_client"):
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Missing())
        from rota.clients.httpx import Client
        from rota.clients.telemetry import Instruments
        from rota.discovery import StaticResolver
        with Client("orders", StaticResolver({"orders": ["127.0.0.1:1"]})) as client:
            print(client.stats()[0].n_calls)
        for attempt in (lambda: __import__("rota.clients.prometheus"), Instruments):
            try:
                attempt()
            except ImportError as error:
                print(error)
        """
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == [
        "0",
        "rota.clients.prometheus needs prometheus-client: pip install 'rota[prometheus]'",
        "telemetry needs opentelemetry-api 1.30 or later: pip install 'rota[otel]'",
    ]
