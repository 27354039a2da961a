"""Spans and durations of the attempts of balanced clients, for OpenTelemetry.

    telemetry = as_telemetry(True)        # None where opentelemetry-api is not installed
    attempt = telemetry.http_attempt("GET", url, instance, 0, headers)
    ...                                   # the request goes, with these headers
    if attempt is not None:
        attempt.answered(200, "1.1")
        attempt.end()                     # when the body has ended

Each attempt has a span of its own, whose context goes along in its headers or metadata, and is
counted in a histogram. What OpenTelemetry is to do with them the program says, by the providers
that it sets; until it has set any, an attempt is None, and nothing is done for it.

Sources: OpenTelemetry's semantic conventions, those of HTTP (stable) and of RPC (1.45.0); for
retries of RPC, gRPC's proposal A72.
"""

import inspect
import logging
import os
import re
from collections import deque
from collections.abc import MutableMapping
from concurrent.futures import CancelledError
from functools import partial
from time import monotonic, perf_counter_ns, time_ns
from typing import Any

from rota.clients.http import PORTS
from rota.clients.snapshot import METRICS, Metric, Samples, Sources
from rota.discovery import Instance
from rota.outcome import Outcome, outcome_of, rpc_status_of

logger = logging.getLogger(__name__)

IS_INSTALLED = False
try:
    from opentelemetry import context as contexts
    from opentelemetry import metrics, propagate, trace
    from opentelemetry.trace import SpanKind, StatusCode
except ImportError:
    pass
else:
    # Since 1.30. A program may have an older one for its own ends, and must not fail over it.
    _options = inspect.signature(metrics.Meter.create_histogram).parameters
    IS_INSTALLED = "explicit_bucket_boundaries_advisory" in _options
    if not IS_INSTALLED:
        logger.warning("rota is silent to OpenTelemetry: it needs opentelemetry-api 1.30 or later")

SCHEMA = "https://opentelemetry.io/schemas/1.45.0"

# Seconds, as both conventions want them.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

# Where no provider is set it is looked for again after so many seconds: a look takes 2 us.
LOOK = 0.1

# RFC 9110, RFC 5789, and the draft of QUERY. The variable replaces them.
_KNOWN_METHODS = "CONNECT,DELETE,GET,HEAD,OPTIONS,PATCH,POST,PUT,QUERY,TRACE"
KNOWN_METHODS = frozenset(
    os.environ.get("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS", _KNOWN_METHODS).split(",")
)

# Whether the names of RPC attributes before 1.38.0 are given as well.
IS_DOUBLE_RPC = "rpc/dup" in {
    each.strip() for each in os.environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", "").split(",")
}

_CREDENTIALS = re.compile(r"^([^/?#]*//)[^/?#]*@")
_SECRETS = re.compile(
    r"([?&](?:AWSAccessKeyId|Signature|sig|X-Goog-Signature"
    r"|X-Amz-(?:Signature|Credential|Security-Token))=)[^&#]*"
)

# The numbers of gRPC's statuses, by rank.
_GRPC_STATUSES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND"),
    *("ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"),
    *("ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
    "UNAUTHENTICATED",
)

# gRPC takes lists of (key, value), all others mappings.
Metadata = list[tuple[str, Any]]
Attributes = dict[str, Any]


class Telemetry:
    """Says what becomes of attempts, to OpenTelemetry. Any number of clients and threads share it.

    Parameters
    ----------
    tracer_provider, meter_provider : of OpenTelemetry's API, or None
        None: those that the program sets, whenever it does.

    Raises
    ------
    ImportError
        There is no opentelemetry-api.
    """

    def __init__(self, tracer_provider: Any = None, meter_provider: Any = None) -> None:
        _check_installed()
        self._tracer: Any = None
        self._http: Any = None  # histograms, both or none
        self._rpc: Any = None
        self._next_look = -LOOK
        # Whoever collects garbage may be within OpenTelemetry, with its locks held.
        self._abandoned: deque[tuple[Attempt, int]] = deque()  # and for how long they went on
        if tracer_provider is not None:
            self._trace_by(tracer_provider)
        if meter_provider is not None:
            self._measure_by(meter_provider)

    def http_attempt(
        self,
        method: str,
        url: Any,
        instance: Instance,
        n_resends: int,
        headers: MutableMapping[str, str],
    ) -> "HttpAttempt | None":
        """Begin an attempt of an HTTP request; None where nobody wants to know.

        Parameters
        ----------
        method : str
        url : httpx.URL, yarl.URL, or like them
            As the caller wrote it: with the host of the service, not the instance's.
        instance : Instance
        n_resends : int
            Attempts of this request before this one.
        headers : mutable mapping
            Of this attempt alone: the trace's context is put there.
        """
        if not self.is_heard():
            return None
        context = contexts.get_current()
        if _is_suppressed(context, is_http=True):
            return None
        known = method if method in KNOWN_METHODS else "_OTHER"
        port = url.port
        attributes: Attributes = {
            "http.request.method": known,
            "server.address": url.host,
            "server.port": PORTS.get(url.scheme) if port is None else port,
        }
        attempt = HttpAttempt(self._abandoned, self._http, attributes, context)
        if self._tracer is not None:
            more: Attributes = {**attributes, "url.full": redacted(str(url))}
            name = method
            if known is not method:
                name = "HTTP"
                more["http.request.method_original"] = method
            if n_resends:
                more["http.request.resend_count"] = n_resends
            attempt.open(self._tracer, name, more, instance)
        propagate.inject(headers, attempt.context)
        return attempt

    def rpc_attempt(
        self, method: str, service: str, instance: Instance, n_resends: int, metadata: Metadata
    ) -> "RpcAttempt | None":
        """Begin an attempt of a gRPC call; None where nobody wants to know.

        Parameters
        ----------
        method : str
            "/package.Service/Method", as stubs have it.
        service : str
            Whom the channel was made for, as discovery knows it.
        instance : Instance
        n_resends : int
            Attempts of this call before this one.
        metadata : list of (str, value)
            Of this attempt alone: the trace's context is put there.
        """
        if not self.is_heard():
            return None
        context = contexts.get_current()
        if _is_suppressed(context, is_http=False):
            return None
        name = method.lstrip("/")
        attributes: Attributes = {"rpc.system.name": "grpc", "rpc.method": name}
        if IS_DOUBLE_RPC:
            attributes["rpc.system"] = "grpc"
            attributes["rpc.service"] = name.rpartition("/")[0]
        attempt = RpcAttempt(self._abandoned, self._rpc, attributes, context)
        if self._tracer is not None:
            more: Attributes = {**attributes, "server.address": service}
            if n_resends:
                more["previous-rpc-attempts"] = n_resends
            attempt.open(self._tracer, name, more, instance)
        propagate.inject(metadata, attempt.context, setter=_METADATA)
        return attempt

    def is_heard(self) -> bool:
        """Whether the program has set a provider: looked for now and then, until it has both."""
        if self._abandoned:
            self._end_abandoned()
        if self._tracer is None or self._http is None:
            now = monotonic()
            if now >= self._next_look:
                self._next_look = now + LOOK
                self._look()
            return self._tracer is not None or self._http is not None
        return True

    def _look(self) -> None:
        """Take up the providers that were set. Those of the API itself do nothing."""
        if self._tracer is None:
            traces = trace.get_tracer_provider()
            if not isinstance(traces, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
                self._trace_by(traces)
        if self._http is None:
            measures = metrics.get_meter_provider()
            if not type(measures).__module__.startswith(metrics.__name__):
                self._measure_by(measures)

    def _trace_by(self, provider: Any) -> None:
        self._tracer = provider.get_tracer("rota", version(), schema_url=SCHEMA)

    def _measure_by(self, provider: Any) -> None:
        meter = provider.get_meter("rota", version(), schema_url=SCHEMA)
        self._rpc = _histogram(meter, "rpc.client.call.duration", "Duration of outgoing RPCs.")
        self._http = _histogram(
            meter, "http.client.request.duration", "Duration of HTTP client requests."
        )

    def _end_abandoned(self) -> None:
        while True:
            try:
                attempt, elapsed = self._abandoned.popleft()
            except IndexError:
                return
            attempt.finish(CancelledError(), elapsed)


class Attempt:
    """An attempt that has begun. Made by `Telemetry`; for one thread at a time.

    Attributes
    ----------
    context : of OpenTelemetry
        What the attempt is made in: its span is the current one there.
    is_ended : bool
    """

    __slots__ = (
        "_abandoned",
        "_attributes",
        "_began",
        "_histogram",
        "_span",
        "_started",
        "context",
        "is_ended",
    )

    def __init__(
        self,
        abandoned: "deque[tuple[Attempt, int]]",
        histogram: Any,
        attributes: Attributes,
        context: Any,
    ) -> None:
        self._abandoned = abandoned
        self._histogram = histogram
        self._attributes = attributes  # of the histogram
        self.context = context
        self._span: Any = None
        self.is_ended = False
        self._started = time_ns()
        self._began = perf_counter_ns()

    def open(self, tracer: Any, name: str, attributes: Attributes, instance: Instance) -> None:
        """Start its span."""
        if instance.network == "unix":
            attributes["network.peer.address"] = instance.address
        else:
            host, _, port = instance.address.rpartition(":")
            if host and port.isdecimal():
                attributes["network.peer.address"] = host.strip("[]")
                attributes["network.peer.port"] = int(port)
            else:
                attributes["network.peer.address"] = instance.address.strip("[]")
        self._span = tracer.start_span(
            name, self.context, SpanKind.CLIENT, attributes, start_time=self._started
        )
        self.context = trace.set_span_in_context(self._span, self.context)

    def end(self, error: BaseException | None = None) -> None:
        """Say that all of it has ended, with this error or well. The first word counts."""
        if not self.is_ended:
            self.is_ended = True
            self.finish(error, perf_counter_ns() - self._began)

    def abandon(self) -> None:
        """Say that it is cancelled, from a finalizer: that is told when the next one begins."""
        if not self.is_ended:
            self.is_ended = True
            self._abandoned.append((self, perf_counter_ns() - self._began))

    def finish(self, error: BaseException | None, elapsed: int) -> None:
        """Tell how it ended, after so many nanoseconds."""
        said: Attributes = {}
        description = self._judge(error, said)
        span = self._span
        if span is not None:
            if span.is_recording():
                span.set_attributes(said)
                if "error.type" in said:
                    span.set_status(StatusCode.ERROR, description)
            span.end(self._started + elapsed)
        if self._histogram is not None:
            self._attributes.update(said)
            self._histogram.record(elapsed / 1e9, self._attributes, self.context)

    def _judge(self, error: BaseException | None, said: Attributes) -> str | None:
        """Put what is to be said of the end; return the description of an error, if any."""
        raise NotImplementedError


class HttpAttempt(Attempt):
    """An attempt of an HTTP request."""

    __slots__ = ("_status", "_version")

    _status: int | None
    _version: str | None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._status = self._version = None

    def answered(self, status: int, version: str | None = None) -> None:
        """Note the status of the answer, and the version of HTTP: "1.1", "2"; None: unknown."""
        self._status = status
        self._version = version

    def _judge(self, error: BaseException | None, said: Attributes) -> str | None:
        status = self._status
        if self._version is not None:
            said["network.protocol.version"] = self._version
        if status is not None:
            said["http.response.status_code"] = status
            if status >= 400:
                said["error.type"] = str(status)
                return None
        if error is None or outcome_of(error) is Outcome.CANCELLED:
            return None  # whoever cancels has met no error
        said["error.type"] = type_of(error)
        return str(error) or None


class RpcAttempt(Attempt):
    """An attempt of a gRPC call. Its status is that of the error that it ends with, else OK."""

    __slots__ = ()

    def _judge(self, error: BaseException | None, said: Attributes) -> str | None:
        status = "OK"
        if error is not None:
            status = rpc_status_of(error) or ""
            if not status and outcome_of(error) is Outcome.CANCELLED:
                status = "CANCELLED"
        if status:
            said["rpc.status_code"] = status
            if IS_DOUBLE_RPC:
                said["rpc.response.status_code"] = status
                said["rpc.grpc.status_code"] = _GRPC_STATUSES.index(status)
        if error is None or status == "OK":
            return None
        said["error.type"] = status or type_of(error)
        details = getattr(error, "details", None)
        return str((details() if callable(details) else None) or "") or None


class Instruments(Sources):
    """Shows clients, factories, budgets, selectors and pickers as observable instruments.

    They are those of `rota.clients.prometheus`, and read once for each collection.

    Parameters
    ----------
    sources : balanced clients, factories, budgets, selectors or pickers
        Held weakly: who is let go is shown no more. `add` shows more, under names of your own.
    instances : bool
        Whether there are samples of each instance. False: of services only, and none of pickers.
    meter_provider : of OpenTelemetry's API, or None
        None: that of the program.

    Raises
    ------
    ImportError
        There is no opentelemetry-api.
    TypeError
        A source of another kind, or that cannot be held weakly.

    Notes
    -----
    OpenTelemetry holds instruments for as long as the provider lives. One object a provider.
    """

    def __init__(self, *sources: Any, instances: bool = True, meter_provider: Any = None) -> None:
        _check_installed()
        super().__init__(*sources, instances=instances)
        self._unread: Samples = {}
        provider = metrics.get_meter_provider() if meter_provider is None else meter_provider
        meter = provider.get_meter("rota", version())
        for metric in METRICS:
            if metric.kind == "counter":
                create = meter.create_observable_counter
            else:
                create = meter.create_observable_gauge
            create(
                f"rota.{metric.name}",
                callbacks=[partial(self._observe, metric)],
                unit=metric.unit,
                description=metric.description,
            )

    def _observe(self, metric: Metric, options: Any) -> "list[metrics.Observation]":
        names = [f"rota.{label}" for label in metric.labels]
        samples = self._unread.pop(metric, None)
        if samples is None:  # a metric that is asked for a second time: by the next collection
            read = self.samples()
            samples = read.pop(metric)
            self._unread = read
        return [
            metrics.Observation(value, dict(zip(names, labels, strict=True)))
            for labels, value in samples
        ]


def _is_suppressed(context: Any, is_http: bool) -> bool:
    return any(context.get(key) for key in _SUPPRESSIONS[: None if is_http else 2])


class _ListSetter:
    """Puts what is propagated into a list of (key, value)."""

    def set(self, carrier: Metadata, key: str, value: str) -> None:
        carrier[:] = [pair for pair in carrier if pair[0] != key]
        carrier.append((key, value))


_METADATA: Any = _ListSetter()

_default: Telemetry | None = None


def as_telemetry(telemetry: Any) -> Telemetry | None:
    """Return what a client says its attempts to; None: nothing.

    Parameters
    ----------
    telemetry : bool or Telemetry
        True: the one of all clients, where opentelemetry-api is installed.

    Raises
    ------
    TypeError
        It is none of these.
    """
    global _default
    if telemetry is True:
        if _default is None and IS_INSTALLED:
            _default = Telemetry()
        return _default
    if telemetry is False:
        return None
    if not isinstance(telemetry, Telemetry):
        raise TypeError(f"telemetry must be True, False or a Telemetry, got {telemetry!r}")
    return telemetry


def redacted(url: str) -> str:
    """Return a URL without what opens doors: user and password, and signatures in its query."""
    if "@" in url:
        url = _CREDENTIALS.sub(r"\1REDACTED:REDACTED@", url)
    return _SECRETS.sub(r"\1REDACTED", url) if "?" in url else url


def type_of(error: BaseException) -> str:
    """Return the name of an error's type, with its module but for those of Python itself."""
    kind = type(error)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def version() -> str:
    """Return rota's version."""
    import rota  # it may be in the middle of importing us

    return rota.__version__


def _check_installed() -> None:
    if not IS_INSTALLED:
        raise ImportError(
            "telemetry needs opentelemetry-api 1.30 or later: pip install 'rota[otel]'"
        )


def _histogram(meter: Any, name: str, description: str) -> Any:
    return meter.create_histogram(
        name, unit="s", description=description, explicit_bucket_boundaries_advisory=BUCKETS
    )


def _suppressions() -> tuple[str, ...]:
    """Return the keys by which a context says that there is to be no telemetry in it.

    They are those of opentelemetry-instrumentation, in both spellings; the last two are for HTTP.
    """
    names = ("suppress_instrumentation", "suppress_http_instrumentation")
    keys: list[str] = []
    for name in names:
        keys += [name, getattr(contexts, f"_{name.upper()}_KEY", name)]
    return tuple(keys)


_SUPPRESSIONS = _suppressions() if IS_INSTALLED else ()
