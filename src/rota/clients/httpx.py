"""Balanced clients of httpx: each request goes to the instance whose turn it is.

    client = Client("discovery:///orders", resolver, balancer=p2c())
    client.get("/orders/7")

A `BalancedTransport` does the work, and may be mounted in any client of httpx, for any origin. It
has a pool of connections for each instance, of httpcore, as httpx' own transports do.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from rota.clients.dialing import Arguments, Dialer
from rota.clients.http import (
    IDEMPOTENT,
    PORTS,
    RETRY_STATUSES,
    Ending,
    StatusError,
    as_statuses,
    failure_of,
    origin_of,
    split_address,
    split_target,
)
from rota.clients.options import KeyOf
from rota.clients.snapshot import ServiceStats, service_stats
from rota.clients.telemetry import HttpAttempt, Telemetry, as_telemetry
from rota.discovery import Instance
from rota.discovery.resolver import Resolver, service_of
from rota.loadbalance import AsyncBalancerFactory, BalancerFactory
from rota.loadbalance.services import ServiceBalancer
from rota.outcome import Outcome, outcome_of, unheard
from rota.retry import DeadlineExceeded, RetryPolicy
from rota.retry.calling import make_call, make_call_async
from rota.retry.candidates import Done
from rota.selector import NoAvailableInstance
from rota.selector.filters import NodeFilter

try:
    import httpcore
    import httpx
except ImportError as error:
    raise ImportError("rota.clients.httpx needs httpx: pip install 'rota[httpx]'") from error

__all__ = [
    "AsyncBalancedTransport",
    "AsyncClient",
    "BalancedTransport",
    "Client",
    "DeadlineError",
    "NoInstance",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUTS = ("connect", "read", "write", "pool")

# Of `Transport`, by keyword: those of rota, and those that a client of httpx has too.
OWN_OPTIONS = ("balancer", "filters", "key", "policy", "retry_statuses", "telemetry")
SHARED_OPTIONS = ("verify", "cert", "http1", "http2", "limits")

# As of httpx itself.
LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20)

# Errors of discovery that are raised as they are: somebody has made a mistake.
UNWRAPPED = (httpx.HTTPError, TypeError, ValueError, RuntimeError)

LEAST_TIMEOUT = 0.001  # seconds; httpx takes 0 for none


class NoInstance(httpx.ConnectError, NoAvailableInstance):
    """Nobody is there to send a request to, or the service was not found."""


class DeadlineError(httpx.TimeoutException, DeadlineExceeded):
    """The deadline of the policy has passed."""


class Connection:
    """What requests to one instance go through.

    Attributes
    ----------
    pool : httpcore.ConnectionPool or httpcore.AsyncConnectionPool
    places : dict of bytes to (bytes, int)
        The host and the port of the instance, by scheme.
    """

    __slots__ = ("places", "pool")

    def __init__(self, instance: Instance, pool: Any) -> None:
        self.pool = pool
        self.places: dict[bytes, tuple[bytes, int]] = {}
        for scheme, port in PORTS.items():
            place = ("localhost", port)  # of a unix socket nobody asks
            if instance.network != "unix":
                place = split_address(instance, scheme)
            self.places[scheme.encode()] = place[0].encode("idna"), place[1]


class Transport:
    """What the transports for threads and for asyncio have in common.

    Parameters
    ----------
    discovery : Resolver or factory
        A resolver gets a factory of the transport's own, which is closed with it. A
        `BalancerFactory` (of an async transport an `AsyncBalancerFactory`) may be shared, and
        brings its own balancer.
    endpoint : str
        The service that the requests are for, as the resolver takes it: "discovery:///name".
    balancer : LoadBalancer, SelectorBuilder, type of picker, or None
        Who decides: one of `rota.loadbalance`, a builder of `rota.selector` as `p2c()`, a type
        of picker as `rota.PeakEwma`, or a class of your own like these. None:
        `rota.selector.global_selector()`.
    filters : sequence of NodeFilter
        For all requests; selectors only.
    key : callable (httpx.Request) -> str, bytes, int or None
        What a request is about, for a selector that goes by a key: `rota.clients.header("x-user")`,
        `rota.clients.cookie("session")`, or any function. Of None it goes to anybody.
    policy : RetryPolicy or None
        None: `RetryPolicy(retry_on=any_failure)`, with a budget.
    retry_statuses : iterable of int
        Answers that count as an error of the attempt.
    verify, cert, http1, http2, limits
        As of `httpx.HTTPTransport`. Limits are for each instance.
    telemetry : bool or Telemetry
        Whether OpenTelemetry hears of each attempt: see `rota.clients.telemetry`.

    Raises
    ------
    TypeError, ValueError
        An argument of no use.
    """

    _kind: type[Any]  # of factory
    _pool: type[Any]

    def __init__(
        self,
        discovery: Resolver | BalancerFactory | AsyncBalancerFactory,
        endpoint: str,
        *,
        balancer: Any = None,
        filters: Sequence[NodeFilter] = (),
        key: KeyOf | None = None,
        policy: RetryPolicy | None = None,
        retry_statuses: Iterable[int] = RETRY_STATUSES,
        verify: "ssl.SSLContext | str | bool" = True,
        cert: Any = None,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = LIMITS,
        telemetry: "bool | Telemetry" = True,
    ) -> None:
        if not isinstance(limits, httpx.Limits):
            raise TypeError(f"limits must be httpx.Limits, got {limits!r}")
        self._endpoint = endpoint
        self._retry_statuses = as_statuses(retry_statuses)
        self._telemetry = as_telemetry(telemetry)
        self._options = {
            "max_connections": limits.max_connections,
            "max_keepalive_connections": limits.max_keepalive_connections,
            "keepalive_expiry": limits.keepalive_expiry,
            "http1": http1,
            "http2": http2,
            "ssl_context": httpx.create_ssl_context(verify=verify, cert=cert),
        }
        self._held: ServiceBalancer | None = None
        self._dialer: Dialer[Any, Connection] = Dialer(
            self._kind,
            discovery,
            balancer=balancer,
            filters=filters,
            key=key,
            policy=policy,
            connect=self._connect,
            close=self._let_go,
        )
        self._deadline = self._dialer.deadline

    def stats(self) -> list[ServiceStats]:
        """Return what has been counted: one row, of the service. O(instances); any thread."""
        dialer = self._dialer
        return [service_stats(self._endpoint, dialer.members, self._held, dialer.budget)]

    def _connect(self, instance: Instance) -> Connection:
        path = instance.address if instance.network == "unix" else None
        try:
            return Connection(instance, self._pool(**self._options, uds=path))
        except ValueError as error:  # an address that is none: others may have one
            raise httpx.ConnectError(str(error)) from error

    def _let_go(self, connection: Connection) -> None:
        raise NotImplementedError

    def _arguments(self, request: httpx.Request) -> Arguments:
        # A body that is read as it is sent cannot be sent again.
        is_whole = isinstance(request.stream, httpx.ByteStream)
        return self._dialer.arguments(request, is_whole and request.method in IDEMPOTENT, is_whole)

    def _begin(
        self, sending: "Sending", instance: Instance
    ) -> tuple[Any, httpcore.Request, Callable[[bool], None], HttpAttempt | None]:
        """Begin an attempt; return a pool, what to send there, what ends it, and who hears."""
        try:
            member = self._dialer.begin(instance, sending)
        except httpx.ConnectError:
            raise
        except Exception as error:
            raise sending.end_with(error) from error
        release = partial(self._dialer.members.release, member, sending)
        try:
            headers = sending.request.headers.raw
            told = None
            telemetry = self._telemetry
            if telemetry is not None and telemetry.is_heard():
                told = sending.told(telemetry, instance, headers)
            sending.n_attempts += 1
            return member.connection.pool, sending.to(member.connection, headers), release, told
        except Exception as error:
            release(False)
            raise sending.end_with(error) from error
        except BaseException:
            release(False)
            raise

    def _failed(
        self,
        sending: "Sending",
        error: Exception,
        release: Callable[[bool], None],
        told: HttpAttempt | None,
    ) -> Exception:
        """End an attempt that was not answered; return what is to be raised."""
        mapped = _from_httpcore(error)
        release(mapped is not None and outcome_of(error) is Outcome.FAILURE)
        if told is not None:
            told.end(mapped or error)
        return sending.end_with(error) if mapped is None else mapped

    def _land(
        self,
        sending: "Sending",
        instance: Instance,
        answer: httpcore.Response,
        body: Callable[..., "Body | AsyncBody"],
        done: Done,
        release: Callable[[bool], None],
        told: HttpAttempt | None,
    ) -> httpx.Response:
        """Return the answer of an attempt, or raise the error that it is."""
        status = answer.status
        sending.answered()
        is_refused = status in self._retry_statuses
        stream = body(unheard if is_refused else done, release, told)
        stream.inner = answer.stream
        response = httpx.Response(
            status, headers=answer.headers, stream=stream, extensions=answer.extensions
        )
        stream.headers = response.headers
        response.extensions["instance"] = instance
        if told is not None:
            told.answered(status, _version_of(response))
        if status >= 400:
            error = failure_of(status, response.headers.get("Retry-After"), response)
            stream.error = error
            if error is not None and error.retry_after:
                self._dialer.rest.leave_alone(instance, error.retry_after)
            if error is not None and is_refused:
                sending.refused = error
                raise error
        return response


def _version_of(response: httpx.Response) -> str | None:
    """Return the version of HTTP of an answer, as "1.1" or "2"."""
    said = response.extensions.get("http_version")  # b"HTTP/1.1"
    return None if said is None else said.decode("ascii", "replace").rpartition("/")[2]


def _no_instance(error: Exception, endpoint: str, request: httpx.Request) -> NoInstance:
    """Return an error of discovery as one of httpx."""
    return NoInstance(f"{endpoint}: {str(error) or type(error).__name__}", request=request)


def _unfound(error: Exception, endpoint: str, sending: "Sending") -> httpx.TransportError:
    """Return why a service was not found, as an error of httpx."""
    if sending.is_late():
        return DeadlineError("the deadline passed before there was an instance to try")
    return _no_instance(error, endpoint, sending.request)


def _from_httpcore(error: BaseException) -> Exception | None:
    """Return an error of httpcore as httpx has it; None for any other."""
    for kind in type(error).__mro__:
        if kind.__module__.partition(".")[0] == "httpcore":
            named = getattr(httpx, kind.__name__, None)
            if named is not None:
                found: Exception = named(str(error))
                return found
    return None


class Timeouts(dict[str, float]):
    """The timeouts of an attempt under a deadline, in seconds by httpcore's names.

    What is left is asked for anew as each wait begins: the connect, the sending, the answer. The
    body of an answer is read when the call is over; each wait for a part of it may take as long
    as there was left when the attempt began.
    """

    __slots__ = ("end",)

    def __init__(self, said: dict[str, float | None], end: float) -> None:
        self.end: float | None = end
        left = _left(end)
        super().__init__(
            (name, left if (timeout := said.get(name)) is None else min(timeout, left))
            for name in TIMEOUTS
        )

    def get(self, name: str, default: Any = None) -> Any:
        """Return how long a wait that begins now may take."""
        timeout = super().get(name, default)
        return timeout if self.end is None or timeout is None else min(timeout, _left(self.end))


def _left(end: float) -> float:
    return max(end - monotonic(), LEAST_TIMEOUT)


class Sending:
    """One request, on its way through attempts.

    Attributes
    ----------
    request : httpx.Request
    n_attempts : int
        Begun until now.
    refused : StatusError or None
        Of the last attempt, whose answer is to be closed, or given to the caller.
    landed : httpx.Response or None
        The answer of an attempt that was a task, until it is the caller's.
    own : Exception or None
        What was raised on the way and says nothing of the instance: by the body that is sent, by
        a function of the caller's. It ends the call, since a server may have seen a part of it.
    """

    __slots__ = ("_end", "_timeouts", "landed", "n_attempts", "own", "refused", "request")

    def __init__(self, request: httpx.Request, deadline: float | None) -> None:
        self.request = request
        self._end = None if deadline is None else monotonic() + deadline
        self._timeouts: Timeouts | None = None  # of the last attempt
        self.refused: StatusError | None = None
        self.own: Exception | None = None
        self.landed: httpx.Response | None = None
        self.n_attempts = 0

    def answered(self) -> None:
        """Note that an answer has come: its body is no part of the call."""
        if self._timeouts is not None:
            self._timeouts.end = None

    def find_timeout(self) -> float | None:
        """Return for how long the service may be looked for: that is a part of connecting."""
        timeout: float | None = self.request.extensions.get("timeout", {}).get("connect")
        if self._end is None:
            return timeout
        left = _left(self._end)
        return left if timeout is None else min(timeout, left)

    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return self._end is not None and monotonic() >= self._end - LEAST_TIMEOUT

    def told(
        self, telemetry: Telemetry, instance: Instance, headers: list[tuple[bytes, bytes]]
    ) -> HttpAttempt | None:
        """Begin an attempt for whoever observes them, with its headers; None: nobody does."""
        request, n_before = self.request, self.n_attempts
        context: dict[str, str] = {}
        attempt = telemetry.http_attempt(request.method, request.url, instance, n_before, context)
        if context:
            names = {name.lower().encode() for name in context}
            headers[:] = [pair for pair in headers if pair[0].lower() not in names]
            headers += [(name.encode(), value.encode()) for name, value in context.items()]
        return attempt

    def to(self, connection: Connection, headers: list[tuple[bytes, bytes]]) -> httpcore.Request:
        """Return the request as it goes to an instance."""
        request = self.request
        url, extensions = request.url, request.extensions
        scheme = url.raw_scheme
        place = connection.places.get(scheme)
        if place is None:
            raise httpx.UnsupportedProtocol(f"url must be of http or https, got {str(url)!r}")
        if scheme == b"https" and "sni_hostname" not in extensions:
            extensions = {**extensions, "sni_hostname": url.host}
        if self._end is not None:
            self._timeouts = Timeouts(extensions.get("timeout", {}), self._end)
            extensions = {**extensions, "timeout": self._timeouts}
        return httpcore.Request(
            request.method,
            httpcore.URL(scheme=scheme, host=place[0], port=place[1], target=url.raw_path),
            headers=headers,
            content=request.stream,
            extensions=extensions,
        )

    def end_with(self, error: Exception) -> CancelledError:
        """Have the call end with an error that is not the instance's; returns what to raise."""
        self.own = error
        return CancelledError("not sent to its end")

    def take_own(self) -> Exception:
        """Return the error that the call ends with; it is no more this one's."""
        assert self.own is not None
        error, self.own = self.own, None
        return error

    def give_up(self) -> httpx.Response:
        """Return the answer that was refused; it is no more this one's."""
        assert self.refused is not None
        error, self.refused = self.refused, None
        error.__traceback__ = None  # its frames hold us
        response: httpx.Response = error.response
        return response


class Body(Ending, httpx.SyncByteStream):
    """The body of an answer, which tells when it ends. For threads."""

    inner: Any  # of httpcore

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self.inner
        except BaseException as error:
            mapped = _from_httpcore(error)
            if mapped is not None:
                self.tell(mapped)
                raise mapped from error
            self.tell(error)
            raise
        self.tell()

    def close(self) -> None:
        """Let the connection go, whatever is left of the body."""
        try:
            self.inner.close()
        finally:
            self.tell(CancelledError())


class AsyncBody(Ending, httpx.AsyncByteStream):
    """The body of an answer, which tells when it ends. For asyncio."""

    inner: Any  # of httpcore

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self.inner:
                yield part
        except BaseException as error:
            mapped = _from_httpcore(error)
            if mapped is not None:
                self.tell(mapped)
                raise mapped from error
            self.tell(error)
            raise
        self.tell()

    async def aclose(self) -> None:
        """Let the connection go, whatever is left of the body."""
        try:
            await self.inner.aclose()
        finally:
            self.tell(CancelledError())


class BalancedTransport(Transport, httpx.BaseTransport):
    """Sends each request to the instance whose turn it is. For threads.

    Any number of threads may share it. Made with the parameters of `Transport`.

    Notes
    -----
    A request is tried again on another instance where no connection could be made; and, where it
    may be made twice, also where the connection broke, an answer did not come in time, or had a
    status of `retry_statuses`; as the policy allows it. It may be made twice where its method is
    idempotent (RFC 9110) and its body is not read while it is sent, or as `call_options` says.
    Where all attempts were answered like that the last answer is what comes back.

    The URL keeps its host: in the header Host, for the server's name in TLS, and for the
    certificate. Only the connection is the instance's.

    The answer's `extensions["instance"]` says who gave it, and so does `rota.selector.Peer`.
    """

    _kind = BalancerFactory
    _pool = httpcore.ConnectionPool

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; return the answer, whose body is still to be read.

        Raises
        ------
        NoInstance
            Nobody is there; an httpx.ConnectError.
        DeadlineError
            The deadline of the policy has passed.
        httpx.TransportError
            Of the last attempt.
        RuntimeError
            The transport is closed.
        """
        sending = Sending(request, self._deadline)

        def attempt(instance: Instance, done: Done) -> httpx.Response:
            if sending.refused is not None:
                sending.give_up().close()
            pool, sent, release, told = self._begin(sending, instance)
            try:
                answer = pool.handle_request(sent)
            except Exception as error:
                raise self._failed(sending, error, release, told) from error
            except BaseException as error:
                release(False)
                if told is not None:
                    told.end(error)
                raise
            return self._land(sending, instance, answer, Body, done, release, told)

        arguments = self._arguments(request)
        try:
            service = self._held
            if service is None:
                self._held = service = self._find(sending)
            return make_call(service.get_picker, attempt, *arguments)
        except StatusError as error:
            if error is not sending.refused:
                raise
            return sending.give_up()
        except httpx.TimeoutException as error:
            if sending.is_late():  # it was cut to what was left
                raise DeadlineError(str(error), request=request) from error
            raise
        except CancelledError:
            if sending.own is None:
                raise
        except DeadlineExceeded as error:
            raise DeadlineError(str(error), request=request) from error
        except NoAvailableInstance as error:
            raise _no_instance(error, self._endpoint, request) from error
        finally:
            if sending.refused is not None:
                sending.give_up().close()
        raise sending.take_own()

    def _find(self, sending: "Sending") -> ServiceBalancer:
        factory: BalancerFactory = self._dialer.factory
        try:
            return factory.get(self._endpoint, sending.find_timeout())
        except UNWRAPPED:
            raise
        except Exception as error:
            raise _unfound(error, self._endpoint, sending) from error

    def close(self) -> None:
        """Close all connections, and what follows discovery where it is the transport's own."""
        self._held = None
        for connection in self._dialer.close():
            connection.pool.close()
        if self._dialer.is_owner:
            self._dialer.factory.close()

    def _let_go(self, connection: Connection) -> None:
        connection.pool.close()


class AsyncBalancedTransport(Transport, httpx.AsyncBaseTransport):
    """Sends each request to the instance whose turn it is: `BalancedTransport` for asyncio.

    For the one event loop that it is used on. `discovery` is a Resolver or an
    `AsyncBalancerFactory`.
    """

    _kind = AsyncBalancerFactory
    _pool = httpcore.AsyncConnectionPool

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closings: set[asyncio.Task[None]] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; return the answer, whose body is still to be read.

        What it raises is what `BalancedTransport.handle_request` does.
        """
        sending = Sending(request, self._deadline)
        loop = asyncio.get_running_loop()

        async def attempt(instance: Instance, done: Done) -> httpx.Response:
            if sending.refused is not None:
                await sending.give_up().aclose()
            pool, sent, release, told = self._begin(sending, instance)
            try:
                answer = await pool.handle_async_request(sent)
            except Exception as error:
                raise self._failed(sending, error, release, told) from error
            except BaseException as error:
                release(False)
                if told is not None:
                    told.end(error)
                raise
            response = self._land(sending, instance, answer, AsyncBody, done, release, told)
            if self._deadline is not None:
                sending.landed = response
            return response

        arguments = self._arguments(request)
        try:
            service = self._held
            if service is None or self._loop is not loop:
                self._held = service = await self._find(sending)
                self._loop = loop
            answer = await make_call_async(service.get_picker, attempt, *arguments)
            sending.landed = None
            return answer
        except asyncio.CancelledError:
            if sending.landed is not None:  # between the attempt's task and us
                landed, sending.landed = sending.landed, None
                assert isinstance(landed.stream, AsyncBody)
                landed.stream.hush()
                await landed.aclose()
            raise
        except StatusError as error:
            if error is not sending.refused:
                raise
            return sending.give_up()
        except httpx.TimeoutException as error:
            if sending.is_late():  # it was cut to what was left
                raise DeadlineError(str(error), request=request) from error
            raise
        except CancelledError:
            if sending.own is None:
                raise
        except DeadlineExceeded as error:
            raise DeadlineError(str(error), request=request) from error
        except NoAvailableInstance as error:
            raise _no_instance(error, self._endpoint, request) from error
        finally:
            if sending.refused is not None:
                await sending.give_up().aclose()
        raise sending.take_own()

    async def _find(self, sending: "Sending") -> ServiceBalancer:
        factory: AsyncBalancerFactory = self._dialer.factory
        try:
            if factory.followed(self._endpoint) is not None:  # nothing is waited for
                return await factory.get(self._endpoint)
            return await asyncio.wait_for(factory.get(self._endpoint), sending.find_timeout())
        except UNWRAPPED:
            raise
        except Exception as error:
            raise _unfound(error, self._endpoint, sending) from error

    async def aclose(self) -> None:
        """Close all connections, and what follows discovery where it is the transport's own."""
        self._held = None
        for connection in self._dialer.close():
            self._close_soon(connection)  # whoever is cancelled here leaves none of them open
        if self._dialer.is_owner:
            await self._dialer.factory.close()
        await asyncio.sleep(0)  # those that were let go just now are being closed after it
        if self._closings:
            await asyncio.wait(self._closings)

    def _let_go(self, connection: Connection) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            # Whoever lets go last may be a thread that collects garbage.
            loop.call_soon_threadsafe(self._close_soon, connection)

    def _close_soon(self, connection: Connection) -> None:
        closing = asyncio.ensure_future(connection.pool.aclose())
        self._closings.add(closing)
        closing.add_done_callback(self._closings.discard)


def _origin_of(endpoint: str, origin: str | None) -> httpx.URL:
    """Return what the URLs of a service begin with.

    Raises
    ------
    ValueError
        The service's name cannot be a host's, and no origin is given; or that is none.
    """
    try:
        return httpx.URL(origin_of(endpoint, origin))
    except httpx.InvalidURL as error:
        raise ValueError(f"origin must be 'https://host', got {origin!r}") from error


def _chosen(url: httpx.URL, origin: httpx.URL, balanced: T, others: T, matched: T) -> T:
    """Return which transport a URL is for: the balanced one has its origin, and nothing else.

    By its patterns alone httpx would have a host of NO_PROXY go before the origin, and take the
    origin for one of any port.
    """
    if (url.host, url.scheme, url.port) == (origin.host, origin.scheme, origin.port):
        return balanced
    return others if matched is balanced else matched


def _split_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a balanced transport, out of those of a client.

    What is the client's as well stays there: for where redirects may lead.

    Raises
    ------
    TypeError
        A base_url: that is the service's.
    """
    if "base_url" in options:
        raise TypeError(f"base_url is the client's own, see origin; got {options['base_url']!r}")
    own = {name: options.pop(name) for name in OWN_OPTIONS if name in options}
    return own | {name: options[name] for name in SHARED_OPTIONS if name in options}


def _at_origin(url: Any, origin: httpx.URL, endpoint: str) -> Any:
    """Return the URL of a request, where it is one of ``discovery:///`` with the origin's host.

    Raises
    ------
    ValueError
        It is of another service.
    """
    if not (url if type(url) is str else str(url)).startswith("discovery:"):
        return url
    service, raw_path = split_target(httpx.URL(url).raw_path)
    if service != service_of(endpoint):
        raise ValueError(f"url must be of {endpoint!r}, got {str(url)!r}")
    return origin.copy_with(raw_path=raw_path)


class Client(httpx.Client):
    """A client of httpx for one service: its requests go to the instance whose turn it is.

    Parameters
    ----------
    endpoint : str
        "discovery:///name", or "name".
    discovery : Resolver or BalancerFactory
    origin : str or None
        What the servers take themselves for: the scheme, the header Host, and the name in their
        certificates. None: "http://name".
    options
        Those of `BalancedTransport`, and all others of `httpx.Client` but `base_url`. URLs are
        relative to the origin, or begin with ``discovery:///name/``; those of other hosts, where
        redirects may lead, go there as ever.

    Raises
    ------
    TypeError, ValueError
        An argument of no use.
    """

    def __init__(
        self,
        endpoint: str,
        discovery: Resolver | BalancerFactory,
        *,
        origin: str | None = None,
        **options: Any,
    ) -> None:
        self._origin, self._endpoint = _origin_of(endpoint, origin), endpoint
        balanced = BalancedTransport(discovery, endpoint, **_split_options(options))
        mounts = {**(options.pop("mounts", None) or {}), str(self._origin).rstrip("/"): balanced}
        super().__init__(base_url=self._origin, mounts=mounts, **options)
        self._balanced = balanced

    def stats(self) -> list[ServiceStats]:
        """Return what has been counted: one row, of the service. O(instances); any thread."""
        return self._balanced.stats()

    def build_request(self, method: str, url: Any, **options: Any) -> httpx.Request:
        """Return a request, as of `httpx.Client`."""
        url = _at_origin(url, self._origin, self._endpoint)
        return super().build_request(method, url, **options)

    def _transport_for_url(self, url: httpx.URL) -> httpx.BaseTransport:
        matched = super()._transport_for_url(url)
        return _chosen(url, self._origin, self._balanced, self._transport, matched)


class AsyncClient(httpx.AsyncClient):
    """A client of httpx for one service, for asyncio. Its parameters are those of `Client`.

    `discovery` is a Resolver or an `AsyncBalancerFactory`.
    """

    def __init__(
        self,
        endpoint: str,
        discovery: Resolver | AsyncBalancerFactory,
        *,
        origin: str | None = None,
        **options: Any,
    ) -> None:
        self._origin, self._endpoint = _origin_of(endpoint, origin), endpoint
        balanced = AsyncBalancedTransport(discovery, endpoint, **_split_options(options))
        mounts = {**(options.pop("mounts", None) or {}), str(self._origin).rstrip("/"): balanced}
        super().__init__(base_url=self._origin, mounts=mounts, **options)
        self._balanced = balanced

    def stats(self) -> list[ServiceStats]:
        """Return what has been counted: one row, of the service. O(instances); any thread."""
        return self._balanced.stats()

    def build_request(self, method: str, url: Any, **options: Any) -> httpx.Request:
        """Return a request, as of `httpx.AsyncClient`."""
        url = _at_origin(url, self._origin, self._endpoint)
        return super().build_request(method, url, **options)

    def _transport_for_url(self, url: httpx.URL) -> httpx.AsyncBaseTransport:
        matched = super()._transport_for_url(url)
        return _chosen(url, self._origin, self._balanced, self._transport, matched)
