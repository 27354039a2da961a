"""Balanced channels for threads.

    channel = insecure_channel("discovery:///orders", resolver, balancer=p2c())

Calls that block are made here, on the caller's thread; those that go on by themselves, futures
and streams, by `running.py`.
"""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import Any

import grpc

from rota.clients.grpc.balanced import CLOSED, Balanced
from rota.clients.grpc.calls import Attempts, Headers, Use, left_of
from rota.clients.grpc.errors import ChannelClosed, DeadlineError, NoInstance
from rota.clients.grpc.running import BalancedCall, Requests, Run
from rota.clients.grpc.subchannels import (
    SHUTDOWN,
    TRANSIENT_FAILURE,
    Method,
    Subchannel,
    check_channel,
)
from rota.clients.options import NO_OPTIONS, KeyOf, current
from rota.clients.telemetry import Telemetry
from rota.discovery import Instance
from rota.discovery.resolver import Resolver
from rota.loadbalance import BalancerFactory
from rota.loadbalance.services import ServiceBalancer
from rota.outcome import unheard
from rota.retry import DeadlineExceeded, RetryPolicy
from rota.selector import DoneInfo, NoAvailableInstance
from rota.selector.filters import NodeFilter

logger = logging.getLogger(__name__)

# Seconds between two looks at the state of a channel that is watched.
LOOK = 0.05

# Seconds between two searches for a service that a call waits for.
SEARCH = 0.1


class Channel(Balanced, grpc.Channel):
    """A `grpc.Channel` to a service: each call goes to the instance whose turn it is.

    Any number of threads may share it. Made by `insecure_channel` and `secure_channel`, with the
    parameters of `rota.clients.grpc.balanced.Balanced`.

    Notes
    -----
    A call is tried again on another instance where it was never sent, whatever it is. Where its
    method is idempotent it is tried again also after the errors that the policy says, as long as
    no message of an answer was given to the caller, and, where it has many requests, none was
    taken. Its `timeout` is for all attempts together.
    """

    _kind = BalancerFactory

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._watch = Watch(self)

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

    def subscribe(
        self,
        callback: Callable[[grpc.ChannelConnectivity], object],
        try_to_connect: bool | None = False,
    ) -> None:
        """Have `callback(state)` called with the state of now, and of each change.

        READY is who has one instance that is; then CONNECTING, IDLE and TRANSIENT_FAILURE. A
        thread looks at it every 0.05 s while somebody is subscribed.
        """
        self._watch.add(callback, bool(try_to_connect))

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], object]) -> None:
        """Call it no more."""
        self._watch.remove(callback)

    def state(self, try_to_connect: bool) -> grpc.ChannelConnectivity:
        """Return the state of now; `try_to_connect` finds the service, which may block."""
        service = None
        if not self.is_closed:
            service = self._dialer.factory.followed(self.endpoint)
            if service is None and try_to_connect:
                try:
                    service = self.held = self._dialer.factory.get(self.endpoint)
                except Exception as error:
                    logger.debug("%s was not found: %r", self.endpoint, error)
                    return SHUTDOWN if self.is_closed else TRANSIENT_FAILURE
        try:
            return self.state_of(service, try_to_connect)
        except RuntimeError:
            if self.is_closed:  # meanwhile
                return SHUTDOWN
            raise

    # -- its end --------------------------------------------------------------------------

    def close(self) -> None:
        """End all calls, close all subchannels, and what follows discovery where it is its own."""
        self.is_closed = True
        self.held = None
        self._watch.clear()
        for subchannel in self._dialer.close():
            subchannel.channel.close()
        if self._dialer.is_owner:
            self._dialer.factory.close()

    def __enter__(self) -> "Channel":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- calls ----------------------------------------------------------------------------

    def followed(self) -> ServiceBalancer | None:
        """Return the service where it is known already.

        Raises
        ------
        ValueError
            The channel is closed.
        """
        if self.is_closed:
            raise ValueError(CLOSED)
        found: ServiceBalancer | None = self._dialer.factory.followed(self.endpoint)
        return found

    def find(self, end: float | None, wait_for_ready: bool | None) -> ServiceBalancer:
        """Return the service, which is looked for where it is not known. Blocks.

        Raises
        ------
        NoInstance
            It was not found, and the call does not wait.
        DeadlineError
            Not in time.
        ValueError
            The channel is closed.
        ChannelClosed
            It was closed meanwhile.
        """
        service = self.followed()
        while service is None:
            try:
                service = self._dialer.factory.get(self.endpoint, left_of(end))
            except Exception as error:  # noqa: PERF203
                if self.is_closed:
                    raise ChannelClosed from error
                if end is not None and end <= monotonic():
                    raise DeadlineError(f"{self.endpoint} was not found in time") from error
                if not wait_for_ready:
                    raise as_rpc_error(error, self.endpoint) from error
                time.sleep(SEARCH if end is None else max(0.0, min(SEARCH, end - monotonic())))
        return service

    def call(
        self,
        method: Method,
        request: Any,
        timeout: float | None,
        metadata: Any,
        credentials: Any,
        wait_for_ready: bool | None,
        compression: Any,
    ) -> tuple[Any, Any]:
        """Call a method with one response; return that, and the call that brought it. Blocks."""
        end = self.end_of(timeout)
        metadata = None if metadata is None else tuple(metadata)
        service = self.find(end, wait_for_ready)
        arguments = self.arguments_of(method, request, metadata)
        attempts = self.attempts_of(service, arguments, end, wait_for_ready)
        try:
            options = (credentials, wait_for_ready, compression)
            return self._go_on(method, request, end, metadata, options, attempts, 0)
        finally:
            attempts.forget()

    def call_again(
        self,
        method: Method,
        request: Any,
        end: float | None,
        metadata: Any,
        options: tuple[Any, ...],
        use: Use,
        error: grpc.RpcError,
    ) -> Any:
        """Return the response of a call whose first attempt has failed with an error, or raise."""
        may_repeat = self.may_repeat(error, use)
        use.tell(error, error.trailing_metadata())
        if not may_repeat:
            raise error
        arguments = self.arguments_of(method, request, metadata)
        first = use.member.instance
        attempts = self.attempts_of(self.find(end, None), arguments, end, None, first)
        try:
            if not attempts.goes_on(error):
                raise error
            return self._go_on(method, request, end, metadata, options, attempts, 1)[0]
        finally:
            attempts.forget()

    def _go_on(
        self,
        method: Method,
        request: Any,
        end: float | None,
        metadata: Any,
        options: tuple[Any, ...],
        attempts: Attempts,
        n_attempts: int,
    ) -> tuple[Any, Any]:
        credentials, wait_for_ready, compression = options
        if wait_for_ready:
            wait_for_ready = False  # for any of them, not for one
        requests = Requests(request) if method.takes_stream else None
        while True:
            try:
                step = attempts.next()
                if isinstance(step, float):
                    time.sleep(step)
                    continue
                use, function, sent = self.begin(method, *step, metadata, n_attempts)
            except (NoAvailableInstance, DeadlineExceeded) as error:
                raise as_rpc_error(error, self.endpoint) from error
            except RuntimeError as error:
                if self.is_closed:
                    raise ChannelClosed from error
                raise
            n_attempts += 1
            try:
                response, call = function.with_call(
                    request if requests is None else requests.view(),
                    left_of(end),
                    sent,
                    credentials,
                    wait_for_ready,
                    compression,
                )
            except grpc.RpcError as error:
                may_repeat = self.may_repeat(error, use)
                use.tell(error, error.trailing_metadata())
                if requests is not None:
                    may_repeat &= requests.may_repeat(error)
                if not may_repeat or not attempts.goes_on(error):
                    raise
            except BaseException as error:
                use.tell(error)
                raise
            else:
                use.tell_well(call)
                return response, call

    # -- subchannels ----------------------------------------------------------------------

    def _make(self, instance: Instance, target: str) -> Subchannel:
        channel: grpc.Channel
        if self._credentials is None:
            channel = grpc.insecure_channel(target, self._options, self._compression)
        else:
            channel = grpc.secure_channel(
                target, self._credentials, self._options, self._compression
            )
        return Subchannel(instance, channel, check_channel(channel))

    def _close_later(self, subchannel: Subchannel) -> None:
        # Closing waits for the thread that brings the ends of calls, and may be asked for there.
        with suppress(RuntimeError):  # at the interpreter's end: no more threads
            threading.Thread(
                target=subchannel.channel.close, name="rota-grpc-close", daemon=True
            ).start()


def as_rpc_error(error: Exception, endpoint: str) -> Exception:
    """Return an error of discovery, or of the call as a whole, as one of gRPC."""
    if isinstance(error, DeadlineExceeded):
        return DeadlineError(str(error))
    if isinstance(error, (grpc.RpcError, TypeError, ValueError)):
        return error
    return NoInstance(f"{endpoint}: {str(error) or type(error).__name__}")


class Watch:
    """Tells those who subscribed of the state of a channel, on a thread of its own.

    Parameters
    ----------
    channel : Channel
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = weakref.ref(channel)
        self._lock = threading.RLock()
        self._callbacks: list[list[Any]] = []  # callback, the state that it was told
        self._is_connecting = False
        self._thread: threading.Thread | None = None

    def add(self, callback: Any, try_to_connect: bool) -> None:
        """Tell it of the state."""
        with self._lock:
            self._callbacks.append([callback, None])
            self._is_connecting |= try_to_connect
            # A thread of the parent is none of a forked child's.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="rota-grpc-state", daemon=True
                )
                self._thread.start()

    def remove(self, callback: Any) -> None:
        """Tell it no more."""
        with self._lock:
            for entry in self._callbacks:
                if entry[0] == callback:
                    self._callbacks.remove(entry)
                    return

    def clear(self) -> None:
        """Tell nobody any more."""
        with self._lock:
            self._callbacks.clear()

    def _run(self) -> None:
        while True:
            channel = self._channel()
            with self._lock:
                if channel is None or not self._callbacks:
                    self._thread = None
                    self._is_connecting = False
                    return
                entries = list(self._callbacks)
                is_connecting = self._is_connecting
            state = channel.state(is_connecting)
            del channel
            for entry in entries:
                if entry[1] is not state:
                    entry[1] = state
                    try:
                        entry[0](state)
                    except Exception:
                        logger.exception("%r failed on the state of a channel", entry[0])
            del entries
            time.sleep(LOOK)


class UnaryUnary(grpc.UnaryUnaryMultiCallable):
    """Calls a method of one request and one response."""

    def __init__(self, channel: Channel, method: Method) -> None:
        self._channel = channel
        self._method = method

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        """Return the response."""
        # Most calls, with few calls of Python's own: each of these costs some 2 us while a server
        # is waited for in between.
        channel, method = self._channel, self._method
        service, rest, telemetry = channel.held, channel.rest, channel.telemetry
        if (
            channel.plain is None
            or service is None
            or wait_for_ready
            or current.get() is not NO_OPTIONS
            or rest.suspects
            or rest.until
            or channel.is_closed
            or (telemetry is not None and telemetry.is_heard())
        ):
            options = (credentials, wait_for_ready, compression)
            return channel.call(method, request, timeout, metadata, *options)[0]
        began = monotonic()
        if metadata is not None:
            metadata = tuple(metadata)
        try:
            picker: Any = service.get_picker()
            instance, done = picker.select(filters=channel.plain)
        except NoAvailableInstance as error:
            raise as_rpc_error(error, channel.endpoint) from error
        except RuntimeError as error:
            if channel.is_closed:  # meanwhile
                raise ValueError(CLOSED) from error
            raise
        if method.is_idempotent and channel.budget is not None:
            channel.budget.deposit()
        is_quiet = done is unheard or hasattr(done, "release")  # it does not ask for metadata
        user = object()
        try:
            member = channel.members.take(instance, user)
        except BaseException as error:
            done(err=error)
            if channel.is_closed:
                raise ValueError(CLOSED) from error
            raise
        try:
            function = method.callables.get(member.connection) or method.on(member.connection)
            if is_quiet:
                response = function(
                    request, timeout, metadata, credentials, wait_for_ready, compression
                )
            else:
                response, call = function.with_call(
                    request, timeout, metadata, credentials, wait_for_ready, compression
                )
        except BaseException as error:
            use = Use(channel.members, done)
            use.member, use.user = member, user
            if not isinstance(error, grpc.RpcError):
                use.tell(error)
                raise
            options = (credentials, wait_for_ready, compression)
            end = None if timeout is None else began + timeout
            return channel.call_again(method, request, end, metadata, options, use, error)
        channel.members.release(member, user)
        if not is_quiet:
            done(DoneInfo(None, Headers(call.trailing_metadata()), True, True))
        elif done is not unheard:
            done()
        return response

    def with_call(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> tuple[Any, Any]:
        """Return the response, and the call that brought it."""
        arguments = (timeout, metadata, credentials, wait_for_ready, compression)
        return self._channel.call(self._method, request, *arguments)

    def future(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> BalancedCall:
        """Return the call, which goes on by itself."""
        arguments = (timeout, metadata, credentials, wait_for_ready, compression)
        return Run(self._channel, self._method, request, *arguments).begin()


class UnaryStream(grpc.UnaryStreamMultiCallable):
    """Calls a method of one request and many responses."""

    def __init__(self, channel: Channel, method: Method) -> None:
        self._channel = channel
        self._method = method

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> BalancedCall:
        """Return the call, an iterator of the responses, which goes on by itself."""
        arguments = (timeout, metadata, credentials, wait_for_ready, compression)
        return Run(self._channel, self._method, request, *arguments).begin()


class StreamUnary(grpc.StreamUnaryMultiCallable):
    """Calls a method of many requests and one response."""

    def __init__(self, channel: Channel, method: Method) -> None:
        self._channel = channel
        self._method = method

    def __call__(
        self,
        request_iterator: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        """Return the response."""
        arguments = (timeout, metadata, credentials, wait_for_ready, compression)
        return self._channel.call(self._method, request_iterator, *arguments)[0]

    def with_call(
        self,
        request_iterator: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> tuple[Any, Any]:
        """Return the response, and the call that brought it."""
        arguments = (timeout, metadata, credentials, wait_for_ready, compression)
        return self._channel.call(self._method, request_iterator, *arguments)

    def future(
        self,
        request_iterator: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> BalancedCall:
        """Return the call, which goes on by itself."""
        arguments = (timeout, metadata, credentials, wait_for_ready, compression)
        return Run(self._channel, self._method, request_iterator, *arguments).begin()


class StreamStream(grpc.StreamStreamMultiCallable):
    """Calls a method of many requests and many responses."""

    def __init__(self, channel: Channel, method: Method) -> None:
        self._channel = channel
        self._method = method

    def __call__(
        self,
        request_iterator: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> BalancedCall:
        """Return the call, an iterator of the responses, which goes on by itself."""
        arguments = (timeout, metadata, credentials, wait_for_ready, compression)
        return Run(self._channel, self._method, request_iterator, *arguments).begin()


def insecure_channel(
    endpoint: str,
    discovery: Resolver | BalancerFactory,
    *,
    balancer: Any = None,
    filters: Sequence[NodeFilter] = (),
    key: KeyOf | None = None,
    policy: RetryPolicy | None = None,
    idempotent: Any = (),
    options: Any = None,
    compression: grpc.Compression | None = None,
    authority: str | None = None,
    telemetry: bool | Telemetry = True,
) -> Channel:
    """Return a balanced `grpc.Channel` to a service, without TLS.

    Parameters
    ----------
    endpoint : str
        "discovery:///name", or "name".
    discovery : Resolver or BalancerFactory
        A resolver gets a factory of the channel's own, which is closed with it.
    balancer, filters, key, policy, idempotent, options, compression, authority, telemetry
        See `rota.clients.grpc.balanced.Balanced`.

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
        telemetry=telemetry,
    )


def secure_channel(
    endpoint: str,
    discovery: Resolver | BalancerFactory,
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
    telemetry: bool | Telemetry = True,
) -> Channel:
    """Return a balanced `grpc.Channel` to a service, with TLS.

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
        telemetry=telemetry,
    )
