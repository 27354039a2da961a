"""What OpenTelemetry hears of the attempts of balanced clients, from its real SDK."""

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import CancelledError
from enum import Enum

import aiohttp
import httpx
import pytest
import yarl
from opentelemetry import baggage, context, trace
from opentelemetry.context import _SUPPRESS_HTTP_INSTRUMENTATION_KEY, _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

import rota
from rota import Instance, WeightedRoundRobin
from rota.clients import telemetry as module
from rota.clients.aiohttp import client_session
from rota.clients.httpx import AsyncClient, Client
from rota.clients.telemetry import BUCKETS, Telemetry, as_telemetry, redacted, type_of
from rota.discovery import StaticResolver
from rota.retry import RetryPolicy, any_failure
from rota.selector import engine
from tests.scripted_server import closed_port, serving


class Observed:
    """Telemetry with the SDK behind it, and what it has heard."""

    def __init__(self, *, traces=True, measures=True, sampler=None):
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.telemetry = Telemetry(self.tracers if traces else None, self.meters)
        if not measures:
            self.telemetry = Telemetry(self.tracers)

    @property
    def spans(self):
        return self.exporter.get_finished_spans()

    def points(self, name="http.client.request.duration"):
        data = self.reader.get_metrics_data()
        metrics = [] if data is None else data.resource_metrics[0].scope_metrics[0].metrics
        return [point for m in metrics if m.name == name for point in m.data.data_points]


@pytest.fixture
def observed():
    made = Observed()
    yield made
    made.tracers.shutdown()
    made.meters.shutdown()


@pytest.fixture
def server():
    with serving() as made:
        yield made


def in_order():
    return engine(WeightedRoundRobin, start=0)


def client_of(observed, *ports, kind=Client, **options):
    instances = [Instance(f"127.0.0.1:{port}") for port in ports]
    policy = RetryPolicy(retry_on=any_failure, budget=None, pause=0.001, max_pause=0.01)
    options = {"balancer": in_order(), "policy": policy, **options}
    resolver = StaticResolver({"orders": instances})
    return kind("orders", resolver, telemetry=observed.telemetry, **options)


INSTANCE = Instance("10.0.0.1:8080")


def begin(observed, method="GET", url="http://orders/7", instance=INSTANCE, n=0, headers=None):
    headers = {} if headers is None else headers
    return observed.telemetry.http_attempt(method, httpx.URL(url), instance, n, headers)


def rpc(observed, method="/shop.Orders/Get", n=0, metadata=None):
    metadata = [] if metadata is None else metadata
    return observed.telemetry.rpc_attempt(method, "orders", INSTANCE, n, metadata)


# -- HTTP ---------------------------------------------------------------------------------


def test_span_of_an_attempt(observed, server):
    """It has what the conventions want of a client's span, and ends with the body."""
    with client_of(observed, server.port) as client:
        with client.stream("GET", "/7?page=1") as response:
            assert observed.spans == ()
            response.read()
        (span,) = observed.spans
    assert (span.name, span.kind) == ("GET", SpanKind.CLIENT)
    assert dict(span.attributes) == {
        "http.request.method": "GET",
        "server.address": "orders",
        "server.port": 80,
        "url.full": "http://orders/7?page=1",
        "network.peer.address": "127.0.0.1",
        "network.peer.port": server.port,
        "network.protocol.version": "1.1",
        "http.response.status_code": 200,
    }
    assert span.status.status_code is StatusCode.UNSET
    scope = span.instrumentation_scope
    assert (scope.name, scope.version) == ("rota", rota.__version__)
    assert scope.schema_url == module.SCHEMA


def test_duration_of_an_attempt(observed, server):
    """The histogram has the span's duration, low cardinality, and the advised buckets."""
    with client_of(observed, server.port) as client:
        client.get("/7")
    (point,) = observed.points()
    (span,) = observed.spans
    assert dict(point.attributes) == {
        "http.request.method": "GET",
        "server.address": "orders",
        "server.port": 80,
        "network.protocol.version": "1.1",
        "http.response.status_code": 200,
    }
    assert point.count == 1
    assert round(point.sum * 1e9) == span.end_time - span.start_time
    assert point.explicit_bounds == BUCKETS
    assert [each.span_id for each in point.exemplars] == [span.context.span_id]


def test_each_attempt_is_a_span(observed, server):
    """Resent requests are counted; each has its own context in its own headers."""
    server.statuses += [503, 200]
    with client_of(observed, closed_port(), server.port) as client:
        request = client.build_request("GET", "/7")
        with observed.tracers.get_tracer("app").start_as_current_span("work") as parent:
            assert client.send(request).status_code == 200
    told = [span for span in observed.spans if span.name == "GET"]
    refused, unavailable, well = told[0], told[1], told[-1]
    assert refused.attributes["error.type"] == "httpx.ConnectError"
    assert refused.status.status_code is StatusCode.ERROR
    assert "http.request.resend_count" not in refused.attributes
    assert unavailable.attributes["http.response.status_code"] == 503
    assert unavailable.attributes["error.type"] == "503"
    assert unavailable.attributes["http.request.resend_count"] == 1
    assert unavailable.status.status_code is StatusCode.ERROR
    assert unavailable.status.description is None
    assert well.attributes["http.request.resend_count"] == len(told) - 1
    assert "error.type" not in well.attributes
    sent = [headers["traceparent"].split("-") for _, headers in server.heard]
    assert [each[2] for each in sent] == [
        format(span.context.span_id, "016x") for span in (unavailable, well)
    ]
    trace_id = parent.get_span_context().trace_id
    assert {each[1] for each in sent} == {format(trace_id, "032x")}
    assert {span.parent.span_id for span in (refused, unavailable, well)} == {
        parent.get_span_context().span_id
    }
    assert "traceparent" not in request.headers
    counts = {p.attributes.get("error.type"): p.count for p in observed.points()}
    assert counts[None] == counts["503"] == 1
    assert counts["httpx.ConnectError"] >= 1


def test_asyncio(observed, server):
    """The same on asyncio."""
    server.statuses += [503, 404]

    async def main():
        client = client_of(observed, server.port, kind=AsyncClient)
        async with client, client.stream("GET", "/7") as response:
            assert len(observed.spans) == 1
            await response.aread()

    asyncio.run(main())
    unavailable, missing = observed.spans
    assert unavailable.attributes["http.response.status_code"] == 503
    assert missing.attributes["http.response.status_code"] == 404
    assert missing.attributes["error.type"] == "404"
    assert missing.attributes["http.request.resend_count"] == 1
    assert [headers["traceparent"].split("-")[2] for _, headers in server.heard] == [
        format(span.context.span_id, "016x") for span in observed.spans
    ]


def test_aiohttp(observed, server):
    """The same of aiohttp's client."""
    server.statuses += [503, 404]

    async def main():
        async with client_of(observed, server.port, kind=client_session) as session:
            async with session.get("/7") as response:
                await response.read()
            with pytest.raises(aiohttp.ClientError):
                async with session.get("/broken") as response:
                    await response.read()

    asyncio.run(main())
    unavailable, missing, broken = observed.spans
    assert unavailable.attributes["http.response.status_code"] == 503
    assert missing.attributes["http.response.status_code"] == 404
    assert missing.attributes["http.request.resend_count"] == 1
    assert missing.attributes["server.address"] == "orders"
    assert missing.attributes["network.peer.port"] == server.port
    assert missing.attributes["network.protocol.version"] == "1.1"
    assert broken.attributes["http.response.status_code"] == 200
    assert broken.status.status_code is StatusCode.ERROR
    assert [headers["traceparent"].split("-")[2] for _, headers in server.heard] == [
        format(span.context.span_id, "016x") for span in observed.spans
    ]


def test_broken_body(observed, server):
    """An answer that breaks off is an error, whatever its status said."""
    with client_of(observed, server.port) as client, pytest.raises(httpx.RemoteProtocolError):
        client.get("/broken")
    (span,) = observed.spans
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["error.type"] == "httpx.RemoteProtocolError"
    assert span.status.status_code is StatusCode.ERROR


def test_body_left_unread(observed, server):
    """Whoever closes an answer in the middle has met no error."""
    with client_of(observed, server.port) as client, client.stream("GET", "/long"):
        pass
    (span,) = observed.spans
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in span.attributes


def test_answer_let_go(observed, server):
    """One that nobody closes ends when it is let go, and is told with the next attempt."""
    with client_of(observed, server.port) as client:
        request = client.build_request("GET", "/long")
        response = client.send(request, stream=True)
        connection = response.stream
        del response
        gc.collect()
        assert observed.spans == ()
        del connection
        gc.collect()
        assert observed.spans == ()
        client.get("/7")
        abandoned, after = observed.spans
    assert abandoned.attributes["url.full"] == "http://orders/long"
    assert abandoned.status.status_code is StatusCode.UNSET
    assert abandoned.end_time <= after.end_time


def test_end_counts_once(observed):
    """The first word is the last."""
    attempt = begin(observed)
    attempt.answered(200)
    attempt.end()
    attempt.end(ValueError())
    attempt.abandon()
    assert attempt.is_ended
    begin(observed).end()
    first, _ = observed.spans
    assert "error.type" not in first.attributes
    assert sum(point.count for point in observed.points()) == 2


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (None, None),
        (CancelledError(), None),
        (asyncio.CancelledError(), None),
        (KeyboardInterrupt(), None),
        (TimeoutError("late"), "TimeoutError"),
        (httpx.ReadTimeout("late"), "httpx.ReadTimeout"),
    ],
)
def test_errors_without_a_status(observed, error, kind):
    """Errors have their type, cancellations none."""
    begin(observed).end(error)
    (span,) = observed.spans
    assert span.attributes.get("error.type") == kind
    assert (span.status.status_code is StatusCode.ERROR) is (kind is not None)
    assert "http.response.status_code" not in span.attributes


def test_unknown_method(observed):
    """What is no method is `_OTHER`, and the original is kept on the span alone."""
    begin(observed, method="BREW").end()
    (span,) = observed.spans
    assert span.name == "HTTP"
    assert span.attributes["http.request.method"] == "_OTHER"
    assert span.attributes["http.request.method_original"] == "BREW"
    (point,) = observed.points()
    assert "http.request.method_original" not in point.attributes


@pytest.mark.parametrize(
    ("instance", "address", "port"),
    [
        (Instance("10.0.0.1:8080"), "10.0.0.1", 8080),
        (Instance("[::1]:8080"), "::1", 8080),
        (Instance("[::1]"), "::1", None),
        (Instance("10.0.0.1"), "10.0.0.1", None),
        (Instance("/run/orders.sock", network="unix"), "/run/orders.sock", None),
    ],
)
def test_peer(observed, instance, address, port):
    """The peer is the instance."""
    begin(observed, instance=instance).end()
    (span,) = observed.spans
    assert span.attributes["network.peer.address"] == address
    assert span.attributes.get("network.peer.port") == port


@pytest.mark.parametrize(
    ("url", "port"),
    [("http://orders/", 80), ("https://orders/", 443), ("https://orders:8443/", 8443)],
)
@pytest.mark.parametrize("kind", [httpx.URL, yarl.URL])
def test_server(observed, url, port, kind):
    """The server is the service, whatever library the URL is of."""
    observed.telemetry.http_attempt("GET", kind(url), INSTANCE, 0, {}).end()
    (span,) = observed.spans
    assert (span.attributes["server.address"], span.attributes["server.port"]) == ("orders", port)
    assert span.attributes["url.full"] == url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://a:b@orders/@x", "http://REDACTED:REDACTED@orders/@x"),
        ("http://a@orders", "http://REDACTED:REDACTED@orders"),
        ("http://orders/?mail=a@b", "http://orders/?mail=a@b"),
        ("http://orders?x=//a@b", "http://orders?x=//a@b"),
        ("http://o/?sig=1&x=2&Signature=3#f", "http://o/?sig=REDACTED&x=2&Signature=REDACTED#f"),
        ("http://o/?X-Amz-Credential=1/2&sigh=3", "http://o/?X-Amz-Credential=REDACTED&sigh=3"),
        ("http://o/sig=1", "http://o/sig=1"),
    ],
)
def test_redacted(url, shown):
    """Nothing that opens doors is told."""
    assert redacted(url) == shown


def test_type_of():
    """Python's own errors have no module."""
    assert type_of(ValueError()) == "ValueError"
    assert type_of(httpx.ReadTimeout("")) == "httpx.ReadTimeout"


def test_unsampled(server):
    """A span that nobody samples is sent along all the same, and measured."""
    observed = Observed(sampler=ALWAYS_OFF)
    with client_of(observed, server.port) as client:
        client.get("/7")
    assert observed.spans == ()
    ((_, headers),) = server.heard
    assert not int(headers["traceparent"].split("-")[3], 16) & trace.TraceFlags.SAMPLED
    assert [point.count for point in observed.points()] == [1]


def test_measures_alone(server):
    """Without traces there is the histogram, and what the context has goes along."""
    observed = Observed(traces=False)
    with client_of(observed, server.port) as client:
        client.get("/7")
        token = context.attach(baggage.set_baggage("tenant", "7"))
        client.get("/7")
        context.detach(token)
    assert [point.count for point in observed.points()] == [2]
    assert [headers["baggage"] for _, headers in server.heard] == [None, "tenant=7"]
    assert observed.spans == ()


def test_traces_alone(observed, server):
    """Without a meter there are spans."""
    observed = Observed(measures=False)
    with client_of(observed, server.port) as client:
        client.get("/7")
    assert len(observed.spans) == 1
    assert observed.points() == []


@pytest.mark.parametrize(
    ("key", "is_of_rpc"),
    [
        ("suppress_instrumentation", True),
        (_SUPPRESS_INSTRUMENTATION_KEY, True),
        ("suppress_http_instrumentation", False),
        (_SUPPRESS_HTTP_INSTRUMENTATION_KEY, False),
    ],
)
def test_suppressed(observed, key, is_of_rpc):
    """A context that is to have no instrumentation has none."""
    headers, metadata = {}, []
    token = context.attach(context.set_value(key, True))
    try:
        assert begin(observed, headers=headers) is None
        assert (rpc(observed, metadata=metadata) is None) is is_of_rpc
    finally:
        context.detach(token)
    assert headers == {}
    assert begin(observed) is not None


# -- RPC ----------------------------------------------------------------------------------


class Code(Enum):
    UNAVAILABLE = 14
    NOT_FOUND = 5


class RpcError(Exception):
    """As grpc's errors are."""

    def __init__(self, code, details=None):
        self._code, self._details = code, details

    def code(self):
        return self._code

    def details(self):
        return self._details


def test_rpc(observed):
    """The span of an RPC; its metadata carry the context."""
    metadata = [("traceparent", "old"), ("x", "1")]
    rpc(observed, n=2, metadata=metadata).end()
    (span,) = observed.spans
    assert (span.name, span.kind) == ("shop.Orders/Get", SpanKind.CLIENT)
    assert dict(span.attributes) == {
        "rpc.system.name": "grpc",
        "rpc.method": "shop.Orders/Get",
        "rpc.status_code": "OK",
        "server.address": "orders",
        "network.peer.address": "10.0.0.1",
        "network.peer.port": 8080,
        "previous-rpc-attempts": 2,
    }
    assert span.status.status_code is StatusCode.UNSET
    (x, parent) = metadata
    assert x == ("x", "1")
    assert parent[0] == "traceparent"
    assert parent[1].split("-")[2] == format(span.context.span_id, "016x")
    (point,) = observed.points("rpc.client.call.duration")
    assert dict(point.attributes) == {
        "rpc.system.name": "grpc",
        "rpc.method": "shop.Orders/Get",
        "rpc.status_code": "OK",
    }
    assert point.explicit_bounds == BUCKETS


@pytest.mark.parametrize(
    ("error", "status", "kind", "description"),
    [
        (RpcError(Code.UNAVAILABLE, "gone"), "UNAVAILABLE", "UNAVAILABLE", "gone"),
        (RpcError(Code.NOT_FOUND), "NOT_FOUND", "NOT_FOUND", None),
        (asyncio.CancelledError(), "CANCELLED", "CANCELLED", None),
        (ValueError("odd"), None, "ValueError", None),
    ],
)
def test_rpc_errors(observed, error, status, kind, description):
    """All statuses but OK are errors of a client."""
    rpc(observed).end(error)
    (span,) = observed.spans
    assert span.attributes.get("rpc.status_code") == status
    assert span.attributes["error.type"] == kind
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == description


def test_rpc_of_old(observed, monkeypatch):
    """`rpc/dup` has the names of before as well."""
    monkeypatch.setattr(module, "IS_DOUBLE_RPC", True)
    rpc(observed).end(asyncio.CancelledError())
    (span,) = observed.spans
    assert span.attributes["rpc.system"] == span.attributes["rpc.system.name"] == "grpc"
    assert span.attributes["rpc.service"] == "shop.Orders"
    assert span.attributes["rpc.method"] == "shop.Orders/Get"
    assert span.attributes["rpc.grpc.status_code"] == 1
    assert span.attributes["rpc.response.status_code"] == "CANCELLED"


# -- on and off ---------------------------------------------------------------------------


def test_as_telemetry(observed):
    """Clients share one, unless told otherwise."""
    assert as_telemetry(False) is None
    assert as_telemetry(True) is as_telemetry(True) is not None
    assert as_telemetry(observed.telemetry) is observed.telemetry
    for wrong in (None, 1, "on", observed.tracers):
        with pytest.raises(TypeError, match="telemetry must be True, False or a Telemetry, got"):
            as_telemetry(wrong)


def test_switched_off(server):
    """`telemetry=False`: not even the context goes along."""
    observed = Observed()
    tracer = observed.tracers.get_tracer("app")
    resolver = StaticResolver({"orders": [f"127.0.0.1:{server.port}"]})
    client = Client("orders", resolver, telemetry=False)
    with client, tracer.start_as_current_span("work"):
        client.get("/7")
    ((_, headers),) = server.heard
    assert headers["traceparent"] is None


def test_without_an_sdk(server):
    """Until the program has set a provider nothing is begun, and nothing is sent along."""
    telemetry, headers, metadata = Telemetry(), {}, []
    url = httpx.URL("http://orders/")
    came = trace.NonRecordingSpan(trace.SpanContext(1, 2, True, trace.TraceFlags(1)))
    with trace.use_span(came):
        assert telemetry.http_attempt("GET", url, INSTANCE, 0, headers) is None
        assert telemetry.rpc_attempt("/S/M", "orders", INSTANCE, 0, metadata) is None
    assert not headers
    assert not metadata


def run(code, **environment):
    """Run a program of its own."""
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_providers_that_come_later():
    """Those of the program are used from when it has set them."""
    printed = run(
        """
        import time, httpx
        from opentelemetry import metrics, trace
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from rota import Instance
        from rota.clients.telemetry import as_telemetry
        def begin():
            return as_telemetry(True).http_attempt(
                "GET", httpx.URL("http://a"), Instance("b:1"), 0, {})
        print(begin())
        trace.set_tracer_provider(TracerProvider())
        while (attempt := begin()) is None:
            time.sleep(0.001)
        attempt.end()
        reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider([reader]))
        while reader.get_metrics_data() is None:
            begin().end()
        print("measured")
        """
    )
    assert printed == "None\nmeasured"


WITHOUT = """
    import sys
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "opentelemetry":
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Missing())
    """


def test_without_opentelemetry(server):
    """All works without the package; who asks for it by name is told what to install."""
    printed = run(
        WITHOUT
        + f"""
    from rota.clients.httpx import Client
    from rota.clients.telemetry import Telemetry, as_telemetry
    from rota.discovery import StaticResolver
    assert as_telemetry(True) is None
    with Client("orders", StaticResolver({{"orders": ["127.0.0.1:{server.port}"]}})) as client:
        print(client.get("/7").status_code)
    try:
        Telemetry()
    except ImportError as error:
        print(error)
    """
    )
    needed = "telemetry needs opentelemetry-api 1.30 or later: pip install 'rota[otel]'"
    assert printed == f"200\n{needed}"


def test_environment():
    """The variables of OpenTelemetry are obeyed."""
    printed = run(
        """
        from rota.clients import telemetry
        print(sorted(telemetry.KNOWN_METHODS), telemetry.IS_DOUBLE_RPC)
        """,
        OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS="GET,BREW",
        OTEL_SEMCONV_STABILITY_OPT_IN="http, rpc/dup",
    )
    assert printed == "['BREW', 'GET'] True"


def test_many_threads(observed):
    """Attempts of many threads, some abandoned, are all told once."""

    def work():
        for k in range(100):
            attempt = begin(observed)
            attempt.answered(200)
            (attempt.abandon if k % 2 else attempt.end)()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    begin(observed).end()
    assert len(observed.spans) == 401
    assert sum(point.count for point in observed.points()) == 401


def test_abandoned_within_the_sdk(observed):
    """A finalizer that runs with the SDK's locks held takes none of them."""
    attempt = begin(observed)
    with observed.exporter._lock:  # as where garbage is collected in the middle of an export
        attempt.abandon()
    begin(observed).end()
    assert len(observed.spans) == 2
