"""Calls of a `Channel` that go on by themselves: futures, and streams of responses.

Nobody waits for them, so what happens next is done where it is known: on the thread of grpcio
that brings the end of an attempt. `Run` is the call; `BalancedCall` is what its caller has of it,
and is not held by it, so that a call that is let go of is cancelled.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextvars import Context, copy_context
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import grpc

from rota.clients.dialing import Arguments
from rota.clients.grpc.calls import Attempts, Use, left_of
from rota.clients.grpc.errors import (
    CANCELLED_DETAILS,
    CallError,
    ChannelClosed,
    DeadlineError,
    NoInstance,
)
from rota.clients.grpc.subchannels import Method
from rota.discovery import Instance
from rota.retry import DeadlineExceeded
from rota.retry.candidates import Done
from rota.selector import NoAvailableInstance

if TYPE_CHECKING:
    from rota.clients.grpc.channel import Channel

logger = logging.getLogger(__name__)

_NOTHING: Any = object()


class Requests:
    """The requests of a call, for one attempt after another. Any number of threads may use it.

    grpcio takes the first request before it is connected, and the second once the first is on its
    way. So the first is kept until the second is asked for.

    Parameters
    ----------
    iterator : iterable of requests
    """

    def __init__(self, iterator: Any) -> None:
        self._source = iter(iterator)
        self._lock = threading.RLock()
        self._first: Any = _NOTHING
        self._is_empty = False
        self._is_sent = False

    def view(self) -> Iterator[Any]:
        """Return an iterator for an attempt."""
        return _View(self)

    def may_repeat(self, error: Any) -> bool:
        """Whether no request was lost to an attempt that ended with this error."""
        return not self._is_sent and getattr(error, "unsent", False) is True

    def first(self) -> Any:
        """Return the first request. It may block, as the source does."""
        with self._lock:
            if self._is_empty:
                raise StopIteration
            if self._first is _NOTHING:
                try:
                    self._first = next(self._source)
                except StopIteration:
                    self._is_empty = True
                    raise
            return self._first

    def later(self) -> Any:
        """Return the next request after the first."""
        with self._lock:
            self._is_sent = True
            self._first = None
            return next(self._source)


class _View:
    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._is_begun = False

    def __iter__(self) -> "_View":
        return self

    def __next__(self) -> Any:
        if self._is_begun:
            return self._requests.later()
        self._is_begun = True
        return self._requests.first()


class Attempt:
    """An attempt of a call that goes on."""

    __slots__ = ("call", "is_committed", "is_over", "use")

    def __init__(self, call: Any, use: Use) -> None:
        self.call = call
        self.use = use
        self.is_committed = False  # something of it was given to the caller
        self.is_over = False


class Run:
    """A call that goes on by itself.

    Parameters
    ----------
    channel : Channel
    method : Method
    request, timeout, metadata, credentials, wait_for_ready, compression
        As of the multicallables of grpcio.

    Attributes
    ----------
    attempt : Attempt or None
        The one that is under way, or the last one; None before the first and between two.
    final : grpc.Call or None
        What the call has come to, once it is over.
    """

    def __init__(
        self,
        channel: "Channel",
        method: Method,
        request: Any,
        timeout: float | None,
        metadata: Any,
        credentials: Any,
        wait_for_ready: bool | None,
        compression: Any,
    ) -> None:
        self._channel = channel
        self._method = method
        self._requests = Requests(request) if method.takes_stream else None
        self._request = request
        self._metadata = None if metadata is None else tuple(metadata)
        self._credentials = credentials
        self._is_waiting = wait_for_ready
        self._compression = compression
        self._condition = threading.Condition()
        self._callbacks: list[Callable[[], object]] = []
        self._arguments: Arguments
        self._attempts: Attempts | None = None
        self._context: Context
        self._is_cancelled = False
        self._n_attempts = 0
        self.end = channel.end_of(timeout)
        self.attempt: Attempt | None = None
        self.final: Any = None

    def begin(self) -> "BalancedCall":
        """Begin; return what the caller has of it. Does not block.

        Raises
        ------
        ValueError, TypeError
            The channel is closed; something said of this call is of no use.
        """
        channel = self._channel
        service = channel.followed()
        self._arguments = channel.arguments_of(self._method, self._request, self._metadata)
        self._context = copy_context()
        call = BalancedCall(self)
        if service is None:
            self._spawn(self._find)
        else:
            self._attempts = channel.attempts_of(
                service, self._arguments, self.end, self._is_waiting
            )
            self._advance()
        return call

    # -- what the caller asks -------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> Any:
        """Return what the call has come to, once it is over; None where it is not in time."""
        with self._condition:
            self._condition.wait_for(lambda: self.final is not None, timeout)
            return self.final

    def current(self) -> Attempt | None:
        """Return the attempt that is under way; None where the call ended without one."""
        with self._condition:
            self._condition.wait_for(lambda: self.attempt is not None or self.final is not None)
            return self.attempt

    def commit(self, attempt: Attempt) -> bool:
        """Whether something that came of an attempt may be given to the caller.

        Not where another attempt has followed. From then on none will.
        """
        if attempt.is_committed:
            return True
        with self._condition:
            # Where it has ended, others are deciding whether another follows.
            self._condition.wait_for(lambda: self._is_settled(attempt) or not attempt.call.done())
            if self.attempt is not attempt:
                return False
            attempt.is_committed = True
            return True

    def is_last(self, attempt: Attempt) -> bool:
        """Whether no other attempt follows one that has ended."""
        with self._condition:
            self._condition.wait_for(lambda: self._is_settled(attempt))
            return self.attempt is attempt

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Have it called when the call is over; False where it is."""
        with self._condition:
            if self.final is not None:
                return False
            self._callbacks.append(callback)
            return True

    def cancel(self, details: str = CANCELLED_DETAILS) -> bool:
        """Cancel the call; False where it is over."""
        with self._condition:
            if self.final is not None:
                return False
            self._is_cancelled = True
            attempt = self.attempt
        if attempt is None:
            self._finish(CallError(grpc.StatusCode.CANCELLED, details))
        else:
            attempt.call.cancel()
            self._settle(attempt)
        return True

    # -- how it goes on -------------------------------------------------------------------

    def _spawn(self, function: Callable[[], None], seconds: float = 0.0) -> None:
        # Rare: the first calls of all, and pauses.
        timer = threading.Timer(seconds, self._context.copy().run, (self._guarded, function))
        timer.daemon = True
        timer.name = "rota-grpc-call"
        timer.start()

    def _guarded(self, function: Callable[[], None]) -> None:
        """Where nobody waits, an error is what the call comes to."""
        try:
            function()
        except Exception as error:
            self._finish(self._as_end(error))

    def _as_end(self, error: Exception) -> Any:
        """Return an error as what the call comes to."""
        if isinstance(error, grpc.RpcError):
            return error
        failure: CallError = ChannelClosed()
        if not self._channel.is_closed:
            said = f"{type(error).__name__}: {error}"
            failure = CallError(grpc.StatusCode.UNKNOWN, said)
        failure.__cause__ = error
        return failure

    def _find(self) -> None:
        channel = self._channel
        service = channel.find(self.end, self._is_waiting)
        self._attempts = channel.attempts_of(service, self._arguments, self.end, self._is_waiting)
        self._advance()

    def _advance(self) -> None:
        """Make attempts, until one is under way or there is a pause."""
        attempts = self._attempts
        assert attempts is not None
        while self.final is None:
            try:
                step = attempts.next()
                if isinstance(step, float):
                    self._spawn(self._advance, step)
                    return
                attempt = self._start(*step)
            except NoAvailableInstance as error:
                self._fail(NoInstance(f"{self._channel.endpoint}: {error}"), error)
                return
            except DeadlineExceeded as error:
                self._fail(DeadlineError(str(error)), error)
                return
            except grpc.RpcError as error:
                self._finish(error)
                return
            with self._condition:
                self.attempt = attempt
                is_late = self.final is not None
                self._condition.notify_all()
            if is_late:  # cancelled meanwhile
                attempt.call.cancel()
            if attempt.call.add_callback(partial(self._end, attempt)):
                return
            if not self._settle(attempt):
                return

    def _start(self, instance: Instance, done: Done) -> Attempt:
        method, requests = self._method, self._requests
        use, function, metadata = self._channel.begin(
            method, instance, done, self._metadata, self._n_attempts
        )
        self._n_attempts += 1
        try:
            if method.kind.endswith("unary"):
                function = function.future
            call = function(
                self._request if requests is None else requests.view(),
                left_of(self.end),
                metadata,
                self._credentials,
                False if self._is_waiting else self._is_waiting,
                self._compression,
            )
        except BaseException as error:
            use.tell(error)
            raise
        return Attempt(call, use)

    def _end(self, attempt: Attempt) -> None:
        if self._settle(attempt):
            self._context.copy().run(self._guarded, self._advance)

    def _settle(self, attempt: Attempt) -> bool:
        """Take notice of the end of an attempt, once; return whether another is to follow."""
        call = attempt.call
        is_well = call.code() is grpc.StatusCode.OK
        goes_on = False
        failure: Exception | None = None  # of a policy, or a balancer
        with self._condition:
            if attempt.is_over:
                return False
            attempt.is_over = True
            if not is_well:
                try:
                    goes_on = self._goes_on(attempt)
                except Exception as error:
                    failure = error
        # Before anybody knows of it: the balancer has heard when a caller has the result.
        try:
            if is_well:
                attempt.use.tell_well(call)
            else:
                attempt.use.tell(call, call.trailing_metadata(), attempt.is_committed)
        except Exception as error:
            failure = error
        if failure is None and not goes_on:
            self._finish(call)
            return False
        with self._condition:
            self.attempt = None
            self._condition.notify_all()
            is_cancelled = self._is_cancelled
        if failure is not None:
            self._finish(self._as_end(failure))
        elif is_cancelled:  # while it was being told
            self._finish(CallError(grpc.StatusCode.CANCELLED, CANCELLED_DETAILS))
        return self.final is None

    def _goes_on(self, attempt: Attempt) -> bool:
        """Whether another attempt follows one that has failed."""
        error, requests = attempt.call, self._requests
        assert self._attempts is not None
        may_repeat = self._channel.may_repeat(error, attempt.use)
        if requests is not None:
            may_repeat &= requests.may_repeat(error)
        return (
            may_repeat
            and not attempt.is_committed
            and not self._is_cancelled
            and self._attempts.goes_on(error)
        )

    def _is_settled(self, attempt: Attempt) -> bool:
        return self.attempt is not attempt or self.final is not None

    def _fail(self, error: CallError, cause: Exception) -> None:
        error.__cause__ = cause
        self._finish(error)

    def _finish(self, final: Any) -> None:
        with self._condition:
            if self.final is not None:
                return
            self.final = final
            callbacks, self._callbacks = self._callbacks, []
            self._condition.notify_all()
        if self._attempts is not None:
            self._attempts.forget()
        for callback in callbacks:
            try:
                callback()
            except Exception:  # noqa: PERF203
                logger.exception("%r failed at the end of a call", callback)


class BalancedCall(grpc.Call, grpc.Future):
    """A call to whichever instance answers: as of grpcio, an iterator of responses, and a future.

    Let go of, it is cancelled.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def __iter__(self) -> "BalancedCall":
        return self

    def __next__(self) -> Any:
        run = self._run
        while True:
            attempt = run.current()
            if attempt is None:
                raise run.final
            try:
                message = next(attempt.call)
            except grpc.RpcError:
                if run.is_last(attempt):
                    raise
                continue
            if run.commit(attempt):
                return message

    def next(self) -> Any:
        """Return the next response."""
        return self.__next__()

    def is_active(self) -> bool:
        """Whether it goes on."""
        return self._run.final is None

    def time_remaining(self) -> float | None:
        """Return the seconds until its deadline, None where there is none."""
        end = self._run.end
        return None if end is None else max(0.0, end - monotonic())

    def cancel(self) -> bool:
        """Cancel it; False where it is over."""
        return self._run.cancel()

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Have `callback()` called when it is over; False where it is."""
        return self._run.add_callback(callback)

    def initial_metadata(self) -> Any:
        """Return the initial metadata; waits for it."""
        run = self._run
        while True:
            attempt = run.current()
            if attempt is None:
                return run.wait().initial_metadata()
            metadata = attempt.call.initial_metadata()
            if run.commit(attempt):
                return metadata

    def trailing_metadata(self) -> Any:
        """Return the trailing metadata, once it is over."""
        return self._run.wait().trailing_metadata()

    def code(self) -> grpc.StatusCode:
        """Return the status, once it is over."""
        return self._run.wait().code()

    def details(self) -> Any:
        """Return what was said with the status, once it is over."""
        return self._run.wait().details()

    def debug_error_string(self) -> Any:
        """Return what grpcio says of the end, once it is over."""
        return self._run.wait().debug_error_string()

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        final = self._run.final
        return final is not None and bool(final.cancelled())

    def running(self) -> bool:
        """Whether it goes on."""
        return self._run.final is None

    def done(self) -> bool:
        """Whether it is over."""
        return self._run.final is not None

    def result(self, timeout: float | None = None) -> Any:
        """Return the response, or raise the error; waits `timeout` seconds at the most.

        Raises
        ------
        grpc.FutureTimeoutError, grpc.FutureCancelledError, grpc.RpcError
        """
        return self._final(timeout).result()

    def exception(self, timeout: float | None = None) -> Any:
        """Return the error, None where it has ended well. Raises as `result` does."""
        return self._final(timeout).exception()

    def traceback(self, timeout: float | None = None) -> Any:
        """Return the traceback of the error. Raises as `result` does."""
        return self._final(timeout).traceback()

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Have `fn(call)` called when it is over, or now where it is."""
        if not self._run.add_callback(partial(fn, self)):
            fn(self)

    def _final(self, timeout: float | None) -> Any:
        final = self._run.wait(timeout)
        if final is None:
            raise grpc.FutureTimeoutError
        return final

    def __repr__(self) -> str:
        final = self._run.final
        return f"<BalancedCall: {'going on' if final is None else repr(final)}>"

    def __del__(self) -> None:
        run = getattr(self, "_run", None)
        if run is not None and run.final is None:
            run.cancel("Cancelled upon garbage collection!")
