"""Balanced channels for asyncio.

async with aio.insecure_channel("discovery:///orders", resolver, balancer=p2c()) as channel:
    reply = await OrdersStub(channel).Get(request)
"""

import asyncio
import logging
from collections.abc import Sequence
from contextvars import copy_context
from time import monotonic
from types import TracebackType
from typing import Any
from weakref import WeakSet

import grpc

from rota.clients.grpc.aio_calls import (
    BalancedCall,
    DeadlineError,
    NoInstance,
    Run,
    StreamStreamCall,
    StreamUnaryCall,
    UnaryStreamCall,
    UnaryUnaryCall,
    as_rpc_error,
)
from rota.clients.grpc.balanced import Balanced
from rota.clients.grpc.calls import POLL, left_of
from rota.clients.grpc.subchannels import (
    SHUTDOWN,
    TRANSIENT_FAILURE,
    Method,
    Subchannel,
)
from rota.clients.options import NO_OPTIONS, KeyOf, current
from rota.clients.telemetry import Telemetry
from rota.discovery import Instance
from rota.discovery.resolver import Resolver
from rota.loadbalance import AsyncBalancerFactory
from rota.loadbalance.services import ServiceBalancer
from rota.retry import RetryPolicy
from rota.selector import NoAvailableInstance
from rota.selector.filters import NodeFilter

__all__ = ["Channel", "DeadlineError", "NoInstance", "insecure_channel", "secure_channel"]

logger = logging.getLogger(__name__)

# Seconds between two searches for a service that a call waits for.
SEARCH = 0.1

_INTERCEPTORS = (
    grpc.aio.UnaryUnaryClientInterceptor,
    grpc.aio.UnaryStreamClientInterceptor,
    grpc.aio.StreamUnaryClientInterceptor,
    grpc.aio.StreamStreamClientInterceptor,
)


class Channel(Balanced, grpc.aio.Channel):
    """A `grpc.aio.Channel` to a service: each call goes to the instance whose turn it is.

    For the one event loop that it is used on. Made by `insecure_channel` and `secure_channel`,
    with the parameters of `rota.clients.grpc.balanced.Balanced`; calls are tried again as
    `rota.clients.grpc.Channel` does it. Interceptors see each attempt.
    """

    _kind = AsyncBalancerFactory

    def __init__(self, *arguments: Any, interceptors: Any = None, **options: Any) -> None:
        chain = () if interceptors is None else tuple(interceptors)
        for each in chain:
            if not isinstance(each, _INTERCEPTORS):
                raise TypeError(
                    f"interceptors must be client interceptors of grpc.aio, got {each!r}"
                )
        super().__init__(*arguments, **options)
        self.interceptors = chain
        self._loop: asyncio.AbstractEventLoop | None = None
        self.runs: WeakSet[Run] = WeakSet()  # that have a task
        self._closings: set[asyncio.Task[Any]] = set()
        # With a reference of its own: the loop has weak ones.
        self._search: asyncio.Task[None] | None = None

    # -- what stubs ask for ---------------------------------------------------------------

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> "UnaryUnary":
        """Return what calls a method of one request and one response."""
        arguments = (method, request_serializer, response_deserializer, _registered_method)
        return UnaryUnary(self, self.method_of("unary_unary", *arguments))

    def unary_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> "UnaryStream":
        """Return what calls a method of one request and many responses."""
        arguments = (method, request_serializer, response_deserializer, _registered_method)
        return UnaryStream(self, self.method_of("unary_stream", *arguments))

    def stream_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> "StreamUnary":
        """Return what calls a method of many requests and one response."""
        arguments = (method, request_serializer, response_deserializer, _registered_method)
        return StreamUnary(self, self.method_of("stream_unary", *arguments))

    def stream_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> "StreamStream":
        """Return what calls a method of many requests and many responses."""
        arguments = (method, request_serializer, response_deserializer, _registered_method)
        return StreamStream(self, self.method_of("stream_stream", *arguments))

    # -- state ----------------------------------------------------------------------------

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Return the state of now.

        READY is who has one instance that is; then CONNECTING, IDLE and TRANSIENT_FAILURE.
        `try_to_connect`, on the event loop, has the service be looked for.
        """
        if self.is_closed:
            return SHUTDOWN
        service = self._dialer.factory.followed(self.endpoint)
        if service is None:
            return self._search_state(try_to_connect)
        return self.state_of(service, try_to_connect)

    def _search_state(self, try_to_connect: bool) -> grpc.ChannelConnectivity:
        """Return the state of a channel whose service is not known yet."""
        search, state = self._search, grpc.ChannelConnectivity.IDLE
        if search is not None:
            state = grpc.ChannelConnectivity.CONNECTING
            if search.done():
                state, search = TRANSIENT_FAILURE, None
        if search is None and try_to_connect:
            self._search = asyncio.ensure_future(self._find_service())
            if state is grpc.ChannelConnectivity.IDLE:
                state = grpc.ChannelConnectivity.CONNECTING
        return state

    async def _find_service(self) -> None:
        try:
            self.held = await self._dialer.factory.get(self.endpoint)
        except Exception as error:
            logger.debug("%s was not found: %r", self.endpoint, error)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Return when the state is another one: it is looked at every 0.02 s."""
        await asyncio.sleep(0)  # who calls this in a loop lets others run
        while self.get_state() is last_observed_state:
            await asyncio.sleep(POLL)

    async def channel_ready(self) -> None:
        """Return when the channel is READY.

        Raises
        ------
        grpc.aio.UsageError
            It is closed.
        """
        while (state := self.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            if state is SHUTDOWN:
                raise grpc.aio.UsageError("Channel is closed.")
            await asyncio.sleep(POLL)

    # -- its end --------------------------------------------------------------------------

    async def close(self, grace: float | None = None) -> None:
        """End all calls after `grace` seconds, close all subchannels, and what follows discovery.

        The latter where it is the channel's own.
        """
        if grace is not None and grace < 0:
            raise ValueError(f"grace must be >= 0, got {grace}")
        self.is_closed = True
        self.held = None
        subchannels = self._dialer.close()
        runs = list(self.runs)
        for run in runs:
            if run.call is None:  # there will be nobody to try
                run.cancel()
        await asyncio.gather(*(each.channel.close(grace) for each in subchannels))
        for run in runs:
            run.cancel()
        if self._search is not None:
            self._search.cancel()
            self._search = None
        if self._closings:
            await asyncio.wait(self._closings)
        if self._dialer.is_owner:
            await self._dialer.factory.close()

    async def __aenter__(self) -> "Channel":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # -- calls ----------------------------------------------------------------------------

    def start(self, make: type[BalancedCall], method: Method, *arguments: Any) -> Any:
        """Begin a call, with a task; return what the caller has of it.

        Raises
        ------
        grpc.aio.UsageError
            The channel is closed.
        """
        if self.is_closed:
            raise grpc.aio.UsageError("Channel is closed.")
        call, run = make(), Run()
        call._run = run
        run.start(self, method, *arguments)
        self.runs.add(run)
        return call

    def followed(self) -> ServiceBalancer | None:
        """Return the service where it is known already."""
        found: ServiceBalancer | None = self._dialer.factory.followed(self.endpoint)
        return found

    async def find(self, end: float | None, wait_for_ready: bool | None) -> ServiceBalancer:
        """Return the service, which is looked for where it is not known.

        Raises
        ------
        NoInstance
            It was not found, and the call does not wait.
        DeadlineError
            Not in time.
        """
        while True:
            try:
                finding = self._dialer.factory.get(self.endpoint)
                found: ServiceBalancer = await asyncio.wait_for(finding, left_of(end))
                return found
            except Exception as error:
                if end is not None and end <= monotonic():
                    raise DeadlineError(f"{self.endpoint} was not found in time") from error
                if not wait_for_ready or self.is_closed:
                    raise as_rpc_error(error, self.endpoint) from error
            await asyncio.sleep(SEARCH if end is None else min(SEARCH, end - monotonic()))

    # -- subchannels ----------------------------------------------------------------------

    def _make(self, instance: Instance, target: str) -> Subchannel:
        channel: grpc.aio.Channel
        options, compression, chain = self._options, self._compression, self.interceptors
        self._loop = asyncio.get_running_loop()
        if self._credentials is None:
            channel = grpc.aio.insecure_channel(target, options, compression, chain)
        else:
            credentials = self._credentials
            channel = grpc.aio.secure_channel(target, credentials, options, compression, chain)
        return Subchannel(instance, channel, channel.get_state)

    def _close_later(self, subchannel: Subchannel) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            # Whoever lets go last may be a thread that collects garbage.
            loop.call_soon_threadsafe(self._close_soon, subchannel)

    def _close_soon(self, subchannel: Subchannel) -> None:
        closing = asyncio.ensure_future(subchannel.channel.close())
        self._closings.add(closing)
        closing.add_done_callback(self._closings.discard)


class UnaryUnary(grpc.aio.UnaryUnaryMultiCallable):
    """Calls a method of one request and one response."""

    def __init__(self, channel: Channel, method: Method) -> None:
        self._channel = channel
        self._method = method

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        """Return the call, to be awaited for its response."""
        # Most calls, with few calls of Python's own: each of these costs some 2 us while a server
        # is waited for in between. A task would cost 10 more.
        channel, method = self._channel, self._method
        service, rest, telemetry = channel.held, channel.rest, channel.telemetry
        if (
            channel.plain is None
            or service is None
            or wait_for_ready
            or channel.interceptors
            or current.get() is not NO_OPTIONS
            or rest.suspects
            or rest.until
            or channel.is_closed
            or (telemetry is not None and telemetry.is_heard())
        ):
            options = (credentials, wait_for_ready, compression)
            return channel.start(UnaryUnaryCall, method, request, timeout, metadata, *options)
        if metadata is not None:
            metadata = tuple(metadata)
        end = None if timeout is None else monotonic() + timeout
        picker: Any = service.get_picker()
        try:
            instance, done = picker.select(filters=channel.plain)
        except NoAvailableInstance:  # that is for who awaits it
            options = (credentials, wait_for_ready, compression)
            return channel.start(UnaryUnaryCall, method, request, timeout, metadata, *options)
        if method.is_idempotent and channel.budget is not None:
            channel.budget.deposit()
        run, call = Run(), UnaryUnaryCall()
        call._run = run
        try:
            member = channel.members.take(instance, run)
        except BaseException as error:
            done(err=error)
            raise
        run.channel, run.method, run.request, run.metadata = channel, method, request, metadata
        run.options = (credentials, wait_for_ready, compression)
        run.end, run.context = end, copy_context()
        run.member, run.done = member, done
        try:
            function = method.callables.get(member.connection) or method.on(member.connection)
            run.call = inner = function(
                request,
                timeout=timeout,
                metadata=metadata,
                credentials=credentials,
                wait_for_ready=wait_for_ready,
                compression=compression,
            )
        except BaseException as error:
            run.use_of_first().tell(error)
            raise
        inner.add_done_callback(run.land)
        return call


class UnaryStream(grpc.aio.UnaryStreamMultiCallable):
    """Calls a method of one request and many responses."""

    def __init__(self, channel: Channel, method: Method) -> None:
        self._channel = channel
        self._method = method

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        """Return the call, to be iterated over for its responses."""
        arguments = (timeout, metadata, credentials, wait_for_ready, compression)
        return self._channel.start(UnaryStreamCall, self._method, request, *arguments)


class StreamUnary(grpc.aio.StreamUnaryMultiCallable):
    """Calls a method of many requests and one response."""

    def __init__(self, channel: Channel, method: Method) -> None:
        self._channel = channel
        self._method = method

    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        """Return the call, to be awaited for its response; and to be written to, of no iterator."""
        arguments = (timeout, metadata, credentials, wait_for_ready, compression)
        return self._channel.start(StreamUnaryCall, self._method, request_iterator, *arguments)


class StreamStream(grpc.aio.StreamStreamMultiCallable):
    """Calls a method of many requests and many responses."""

    def __init__(self, channel: Channel, method: Method) -> None:
        self._channel = channel
        self._method = method

    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        """Return the call, to be iterated over; and to be written to, of no iterator."""
        arguments = (timeout, metadata, credentials, wait_for_ready, compression)
        return self._channel.start(StreamStreamCall, self._method, request_iterator, *arguments)


def insecure_channel(
    endpoint: str,
    discovery: Resolver | AsyncBalancerFactory,
    *,
    balancer: Any = None,
    filters: Sequence[NodeFilter] = (),
    key: KeyOf | None = None,
    policy: RetryPolicy | None = None,
    idempotent: Any = (),
    options: Any = None,
    compression: grpc.Compression | None = None,
    authority: str | None = None,
    interceptors: Any = None,
    telemetry: bool | Telemetry = True,
) -> Channel:
    """Return a balanced `grpc.aio.Channel` to a service, without TLS.

    Parameters
    ----------
    endpoint : str
        "discovery:///name", or "name".
    discovery : Resolver or AsyncBalancerFactory
        A resolver gets a factory of the channel's own, which is closed with it.
    balancer, filters, key, policy, idempotent, options, compression, authority, telemetry
        See `rota.clients.grpc.balanced.Balanced`.
    interceptors : sequence of interceptors of grpc.aio, or None
        They see each attempt.

    Raises
    ------
    TypeError, ValueError
        An argument of no use.
    """
    return Channel(
        endpoint,
        discovery,
        None,
        balancer=balancer,
        filters=filters,
        key=key,
        policy=policy,
        idempotent=idempotent,
        options=options,
        compression=compression,
        authority=authority,
        interceptors=interceptors,
        telemetry=telemetry,
    )


def secure_channel(
    endpoint: str,
    discovery: Resolver | AsyncBalancerFactory,
    credentials: grpc.ChannelCredentials,
    *,
    balancer: Any = None,
    filters: Sequence[NodeFilter] = (),
    key: KeyOf | None = None,
    policy: RetryPolicy | None = None,
    idempotent: Any = (),
    options: Any = None,
    compression: grpc.Compression | None = None,
    authority: str | None = None,
    interceptors: Any = None,
    telemetry: bool | Telemetry = True,
) -> Channel:
    """Return a balanced `grpc.aio.Channel` to a service, with TLS.

    As `insecure_channel`. The certificates of all instances are checked for one name: the
    service's, or `authority`.

    Parameters
    ----------
    credentials : grpc.ChannelCredentials

    Raises
    ------
    TypeError, ValueError
        An argument of no use.
    """
    if credentials is None:
        raise TypeError("credentials must be grpc.ChannelCredentials, got None")
    return Channel(
        endpoint,
        discovery,
        credentials,
        balancer=balancer,
        filters=filters,
        key=key,
        policy=policy,
        idempotent=idempotent,
        options=options,
        compression=compression,
        authority=authority,
        interceptors=interceptors,
        telemetry=telemetry,
    )
