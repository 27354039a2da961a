"""A balanced client of aiohttp: each request goes to the instance whose turn it is.

    async with client_session("discovery:///orders", resolver, balancer=p2c()) as session:
        await session.get("/orders/7")

A `BalancedMiddleware` does the work, and may be among the middlewares of any session, for any
origin. The connections are those of the session's connector.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from functools import partial
from typing import Any

from rota.clients.dialing import Dialer
from rota.clients.http import (
    IDEMPOTENT,
    RETRY_STATUSES,
    Ending,
    StatusError,
    as_statuses,
    failure_of,
    origin_of,
    split_address,
)
from rota.clients.options import KeyOf
from rota.clients.snapshot import ServiceStats, service_stats
from rota.clients.telemetry import HttpAttempt, Telemetry, as_telemetry
from rota.discovery import Instance
from rota.discovery.resolver import Resolver
from rota.loadbalance import AsyncBalancerFactory
from rota.loadbalance.services import ServiceBalancer
from rota.outcome import Outcome, outcome_of, unheard
from rota.retry import DeadlineExceeded, RetryPolicy
from rota.retry.calling import make_call_async
from rota.retry.candidates import Done
from rota.selector import DoneInfo, NoAvailableInstance
from rota.selector.filters import NodeFilter

try:
    import aiohttp
    from aiohttp import ClientHandlerType, ClientMiddlewareType
    from aiohttp.http import HttpProcessingError
    from yarl import URL
except ImportError as error:
    raise ImportError(
        "rota.clients.aiohttp needs aiohttp 3.12 or later: pip install 'rota[aiohttp]'"
    ) from error

__all__ = [
    "BalancedConnector",
    "BalancedMiddleware",
    "ConnectionBroken",
    "DeadlineError",
    "NoInstance",
    "client_session",
    "instance_of",
]

logger = logging.getLogger(__name__)

# Of `BalancedMiddleware`, by keyword.
OWN_OPTIONS = ("balancer", "filters", "key", "policy", "retry_statuses", "telemetry")

# Of `client_session`'s own.
TAKEN = ("base_url", "connector", "connector_owner", "loop")

SECURE = frozenset({"https", "wss"})

INSTANCE = "_rota_instance"


class NoInstance(aiohttp.ClientConnectionError, NoAvailableInstance):
    """Nobody is there to send a request to, or the service was not found."""


class DeadlineError(aiohttp.ServerTimeoutError, DeadlineExceeded):
    """The deadline of the policy has passed."""


class ConnectionBroken(aiohttp.ServerConnectionError, ConnectionError):
    """There was a connection and no answer: it is not known what has become of the request.

    In the place of aiohttp's ServerDisconnectedError and ClientOSError, which is its cause. After
    those a session begins idempotent requests anew, once, by itself: with all attempts, beyond
    any budget, and where `call_options` says that the request may not be made twice. Also where
    what came was no HTTP.
    """


class TotalPassed(BaseException):
    """The total of the request's ClientTimeout has passed; no attempt may follow.

    Not an Exception, since a policy may have these followed. Its cause is what aiohttp raised.
    """


class Connection:
    """Where an instance is: (host, port), by whether TLS is spoken there."""

    __slots__ = ("plain", "secure")

    def __init__(self, instance: Instance) -> None:
        host, port = split_address(instance, "http")
        host = URL.build(scheme="http", host=host).raw_host or host
        self.plain = host, port
        self.secure = host, split_address(instance, "https")[1]


Landed = tuple[Done, Callable[[bool], None], StatusError | None, HttpAttempt | None]


class Sending:
    """One request, on its way through attempts.

    Attributes
    ----------
    n_attempts : int
    refused : StatusError or None
        Of the last attempt, whose answer is to be released, or given to the caller.
    response : aiohttp.ClientResponse or None
        The answer that is the caller's, until it is given.
    landed : tuple or None
        Of that answer: the balancer's `done`, what releases the member, its error, and what is
        told to OpenTelemetry.
    """

    __slots__ = ("landed", "n_attempts", "refused", "response")

    def __init__(self) -> None:
        self.n_attempts = 0
        self.refused: StatusError | None = None
        self.response: aiohttp.ClientResponse | None = None
        self.landed: Landed | None = None

    def give_up(self) -> aiohttp.ClientResponse:
        """Return the answer that was refused; it is no more this one's."""
        assert self.refused is not None
        error, self.refused = self.refused, None
        error.__traceback__ = None  # its frames hold us
        response: aiohttp.ClientResponse = error.response
        return response

    def take(self) -> tuple[aiohttp.ClientResponse, Landed]:
        """Return the answer; it is no more this one's."""
        assert self.response is not None
        assert self.landed is not None
        response, self.response = self.response, None
        return response, self.landed

    def let_go(self) -> None:
        """Let go of the answers that nobody gets, and of their connections."""
        if self.refused is not None:
            self.give_up().release()
        if self.response is not None:
            # Cancelled as it came: the balancer has heard that.
            response, (_, release, _, told) = self.take()
            response.close()
            release(False)
            if told is not None:
                told.end(CancelledError())


class BalancedMiddleware:
    """Sends each request for a service to the instance whose turn it is; others go straight on.

    One of the `middlewares` of an `aiohttp.ClientSession`, or of one request. For the one event
    loop that it is used on; any number of tasks and sessions may share it. Close it at the end.

    Parameters
    ----------
    discovery : Resolver or AsyncBalancerFactory
        A resolver gets a factory of the middleware's own, which is closed with it. A factory may
        be shared, and brings its own balancer.
    endpoint : str
        The service that the requests are for, as the resolver takes it: "discovery:///name".
    origin : str or None
        The requests that are balanced, by host and port, and what the servers take themselves
        for: the scheme, the header Host, and the name in their certificates. None: "http://name".
    balancer : LoadBalancer, SelectorBuilder, type of picker, or None
        Who decides: one of `rota.loadbalance`, a builder of `rota.selector` as `p2c()`, a type
        of picker as `rota.PeakEwma`, or a class of your own like these. None:
        `rota.selector.global_selector()`.
    filters : sequence of NodeFilter
        For all requests; selectors only.
    key : callable (aiohttp.ClientRequest) -> str, bytes, int or None
        What a request is about, for a selector that goes by a key: `rota.clients.header("x-user")`,
        `rota.clients.cookie("session")`, or any function. Of None it goes to anybody.
    policy : RetryPolicy or None
        None: `RetryPolicy(retry_on=any_failure)`, with a budget.
    retry_statuses : iterable of int
        Answers that count as an error of the attempt.
    telemetry : bool or Telemetry
        What is told to OpenTelemetry: False: nothing.

    Raises
    ------
    TypeError, ValueError
        An argument of no use.

    Notes
    -----
    A request is tried again on another instance where no connection could be made; and, where it
    may be made twice, also where the connection broke, an answer did not come in time, or had a
    status of `retry_statuses`; as the policy allows it. It may be made twice where its method is
    idempotent (RFC 9110), or as `call_options` says, and its body, if it has one, is in memory:
    bytes, str, JSON, or a form that is no multipart. Where all attempts were answered like that
    the last answer is what comes back.

    The total of a ClientTimeout is for the request with all its attempts, the others are for each
    attempt.
    """

    def __init__(
        self,
        discovery: Resolver | AsyncBalancerFactory,
        endpoint: str,
        *,
        origin: str | None = None,
        balancer: Any = None,
        filters: Sequence[NodeFilter] = (),
        key: KeyOf | None = None,
        policy: RetryPolicy | None = None,
        retry_statuses: Iterable[int] = RETRY_STATUSES,
        telemetry: bool | Telemetry = True,
    ) -> None:
        self.origin = _as_url(endpoint, origin)
        self._host = self.origin.raw_host
        self._port = self.origin.port
        self._endpoint = endpoint
        self._retry_statuses = as_statuses(retry_statuses)
        self._telemetry = as_telemetry(telemetry)
        self._held: ServiceBalancer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # where it was found
        self._dialer: Dialer[AsyncBalancerFactory, Connection] = Dialer(
            AsyncBalancerFactory,
            discovery,
            balancer=balancer,
            filters=filters,
            key=key,
            policy=policy,
            connect=_connect,
            close=_let_go,
        )
        self._deadline = self._dialer.deadline

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send a request; return the answer, whose body is still to be read.

        Raises
        ------
        NoInstance
            Nobody is there; an aiohttp.ClientConnectionError.
        DeadlineError
            The deadline of the policy has passed; an aiohttp.ServerTimeoutError.
        ConnectionBroken
            The connection of the last attempt broke; an aiohttp.ServerConnectionError.
        aiohttp.ClientError
            Of the last attempt.
        RuntimeError
            The middleware is closed.
        """
        url = request.url
        if url.raw_host != self._host or url.port != self._port:
            return await handler(request)
        service = self._held
        if service is None or self._loop is not asyncio.get_running_loop():
            service = await self._find()
        is_secure = url.scheme in SECURE
        if is_secure and request.server_hostname is None:
            request.server_hostname = self._host
        sending, telemetry = Sending(), self._telemetry

        async def attempt(instance: Instance, done: Done) -> None:
            sending.n_attempts += 1
            if sending.n_attempts > 1:
                sending.let_go()
                if "Expect" in request.headers:
                    request.update_expect_continue()  # to be waited for again
            user = object()
            member = self._dialer.begin(instance, user)
            release = partial(self._dialer.members.release, member, user)
            told = None
            try:
                if telemetry is not None and telemetry.is_heard():
                    n_before = sending.n_attempts - 1
                    told = telemetry.http_attempt(
                        request.method, url, instance, n_before, request.headers
                    )
                host, port = member.connection.secure if is_secure else member.connection.plain
                request.url = URL.build(
                    scheme=url.scheme,
                    host=host,
                    port=port,
                    path=url.raw_path,
                    query_string=url.raw_query_string,
                    encoded=True,
                )
                response = await handler(request)
            except BaseException as error:
                release(outcome_of(error) is Outcome.FAILURE)
                if told is not None:
                    told.end(error)
                _raise_unlike(error)
                raise
            finally:
                request.url = url
            setattr(response, INSTANCE, instance)
            if told is not None:
                told.answered(response.status, _version_of(response))
            failure = None
            if response.status >= 400:
                failure = self._failure_of(instance, response)
                if failure is not None and failure.status in self._retry_statuses:
                    sending.refused = failure
                    _follow(response, _ending(response, unheard, release, failure, told))
                    raise failure
            sending.response, sending.landed = response, (done, release, failure, told)

        body = request.body
        arguments = self._dialer.arguments(
            request,
            request.method in IDEMPOTENT,
            not body or isinstance(body, (bytes, aiohttp.BytesPayload)),
        )
        try:
            await make_call_async(service.get_picker, attempt, *arguments)
            response, (done, release, failure, told) = sending.take()
        except StatusError as error:
            if error is not sending.refused:
                raise
            return sending.give_up()
        except TotalPassed as error:
            raise _cause_of(error) from None
        except Exception as error:
            raised = _as_aiohttp(error, self._endpoint)
            if raised is error:
                raise
            raise raised from error
        finally:
            sending.let_go()
        # Not before: cancelled as an answer comes, the balancer is told so.
        if failure is None and response.connection is None:  # the body has come already
            if told is not None:
                told.end()
            release(False)
            done(DoneInfo(None, response.headers, True, True))
        else:
            _follow(response, _ending(response, done, release, failure, told))
        return response

    def stats(self) -> list[ServiceStats]:
        """Return what has been counted: one row, of the service. O(instances); any thread."""
        dialer = self._dialer
        return [service_stats(self._endpoint, dialer.members, self._held, dialer.budget)]

    async def close(self) -> None:
        """Let go of the service, and of discovery where the middleware follows it by itself.

        Requests that are under way go on; new ones raise RuntimeError. The connections are the
        session's.
        """
        self._held = None
        self._dialer.close()
        if self._dialer.is_owner:
            await self._dialer.factory.close()

    async def _find(self) -> ServiceBalancer:
        factory = self._dialer.factory
        try:
            finding = factory.get(self._endpoint)
            service = await asyncio.wait_for(finding, self._deadline)
        except (TypeError, ValueError, RuntimeError):
            raise
        except Exception as error:
            if self._deadline is not None and isinstance(error, asyncio.TimeoutError):
                raise DeadlineError("the deadline passed before the service was found") from error
            raise NoInstance(f"{self._endpoint}: {str(error) or type(error).__name__}") from error
        self._held, self._loop = service, asyncio.get_running_loop()
        return service

    def _failure_of(
        self, instance: Instance, response: aiohttp.ClientResponse
    ) -> StatusError | None:
        """Return the error that an answer is; who asked to be left alone is from now on."""
        error = failure_of(response.status, response.headers.get("Retry-After"), response)
        if error is not None and error.retry_after:
            self._dialer.rest.leave_alone(instance, error.retry_after)
        return error


def _raise_unlike(error: BaseException) -> None:
    """Raise something else for what aiohttp raises that says more, or less, than it is."""
    if isinstance(error, asyncio.TimeoutError) and not isinstance(error, aiohttp.ClientError):
        raise TotalPassed from error
    if isinstance(error, aiohttp.ClientResponseError) and isinstance(
        error.__cause__, HttpProcessingError
    ):
        raise ConnectionBroken(str(error)) from error  # its status is not the server's


def _version_of(response: aiohttp.ClientResponse) -> str | None:
    """Return the version of HTTP of an answer, as "1.1"."""
    version = response.version
    return None if version is None else f"{version.major}.{version.minor}"


def _cause_of(error: BaseException) -> BaseException:
    assert error.__cause__ is not None
    return error.__cause__


def _ending(
    response: aiohttp.ClientResponse,
    done: Done,
    release: Callable[[bool], None],
    failure: StatusError | None,
    told: HttpAttempt | None,
) -> Ending:
    ending = Ending(done, release, told)
    ending.error, ending.headers = failure, response.headers
    return ending


def _follow(response: aiohttp.ClientResponse, ending: Ending) -> None:
    """Tell how an answer ends, when it does."""
    connection = response.connection
    if connection is None:
        ending.tell()
    else:
        connection.add_callback(partial(_end, response.content, ending))


def _end(content: aiohttp.StreamReader, ending: Ending) -> None:
    """Tell how a body ended, when its connection is let go."""
    error = content.exception()
    if error is not None and type(error) is not aiohttp.ClientConnectionError:
        # What aiohttp raises of a body that is cut short has 400 for a status.
        ending.tell(error if isinstance(error, OSError) else ConnectionBroken(str(error)))
    elif content.is_eof():
        ending.tell()
    else:
        ending.tell(CancelledError())  # somebody closed it unread


def _connect(instance: Instance) -> Connection:
    if instance.network == "unix":
        raise ValueError(
            "network must be tcp: a connector of aiohttp is for all instances, and one for unix "
            f"sockets knows one path; got {instance!r}"
        )
    return Connection(instance)


def _let_go(connection: Connection) -> None:
    """Keep the connections: a connector closes those that are idle by itself."""


def _as_aiohttp(error: Exception, endpoint: str) -> Exception:
    """Return the error of a request as one of aiohttp, which a session does not go on from."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return error
    if isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        return ConnectionBroken(str(error) or type(error).__name__)
    if isinstance(error, DeadlineExceeded):
        return DeadlineError(str(error))
    if isinstance(error, NoAvailableInstance):
        return NoInstance(f"{endpoint}: {error}")
    return error


def _as_url(endpoint: str, origin: str | None) -> URL:
    found = origin_of(endpoint, origin)
    try:
        return URL(found)
    except ValueError as error:
        raise ValueError(f"origin must be 'https://host', got {found!r}") from error


def instance_of(response: aiohttp.ClientResponse) -> Instance | None:
    """Return the instance that gave an answer; None where it was not balanced."""
    found: Instance | None = getattr(response, INSTANCE, None)
    return found


class BalancedConnector(aiohttp.TCPConnector):
    """A TCPConnector that closes a middleware with itself, so that a session does.

    It is also what shows a session: `RotaCollector(session.connector)`.

    Parameters
    ----------
    balanced : BalancedMiddleware
    options
        Those of `aiohttp.TCPConnector`.
    """

    def __init__(self, balanced: BalancedMiddleware, **options: Any) -> None:
        super().__init__(**options)
        self._balanced = balanced

    def stats(self) -> list[ServiceStats]:
        """Return what the middleware has counted: one row, of the service. O(instances)."""
        return self._balanced.stats()

    async def close(self, **options: Any) -> None:
        """Close all connections, and the middleware."""
        try:
            await super().close(**options)
        finally:
            await self._balanced.close()


def client_session(
    endpoint: str,
    discovery: Resolver | AsyncBalancerFactory,
    *,
    origin: str | None = None,
    middlewares: Sequence[ClientMiddlewareType] = (),
    **options: Any,
) -> aiohttp.ClientSession:
    """Return a session of aiohttp for one service: requests go to the instance whose turn it is.

    URLs are relative to the origin: "/orders/7". Those of other hosts, where redirects may lead,
    go there as ever. Closed, the session closes all that it has.

    Parameters
    ----------
    endpoint, discovery, origin
        As of `BalancedMiddleware`.
    middlewares : sequence of middlewares
        They see a request once, before it is balanced.
    options
        Those of `BalancedMiddleware`, of `aiohttp.TCPConnector`, and of `aiohttp.ClientSession`
        but `base_url` and `connector`.

    Raises
    ------
    TypeError, ValueError
        An argument of no use.
    RuntimeError
        No event loop is running.
    """
    for name in TAKEN:
        if name in options:
            raise TypeError(f"{name} is the session's own, got {options[name]!r}")
    own = _taken(options, OWN_OPTIONS)
    connecting = _taken(options, inspect.signature(aiohttp.TCPConnector.__init__).parameters)
    asyncio.get_running_loop()
    balanced = BalancedMiddleware(discovery, endpoint, origin=origin, **own)
    return aiohttp.ClientSession(
        balanced.origin / "",
        connector=BalancedConnector(balanced, **connecting),
        middlewares=(*middlewares, balanced),
        **options,
    )


def _taken(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Take these out of some options, and return them."""
    return {name: options.pop(name) for name in names if name in options}
