"""Calls of a channel for asyncio.

`Run` is the call, with a task of its own that makes its attempts; the calls are what their callers
have of it. They are not held by it, so that one that is let go of is cancelled.
"""

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator
from contextvars import Context
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

import grpc

from rota.clients.dialing import Arguments
from rota.clients.grpc.calls import Attempts, Use, judge, left_of, now
from rota.clients.grpc.errors import CANCELLED_DETAILS
from rota.clients.grpc.subchannels import Method, Subchannel, Suspects
from rota.clients.members import Member
from rota.discovery import Instance
from rota.outcome import unheard
from rota.retry import DeadlineExceeded
from rota.retry.candidates import Done
from rota.selector import NoAvailableInstance

if TYPE_CHECKING:
    from rota.clients.grpc.aio import Channel

logger = logging.getLogger(__name__)

EOF = grpc.aio.EOF

_NOTHING: Any = object()

# As grpcio says it.
_MIXED = "The iterator and read/write APIs may not be mixed on a single RPC."
_BY_CALLER = (CANCELLED_DETAILS, "Cancelled upon garbage collection!")
_FINISHED = "RPC already finished."


class NoInstance(grpc.aio.AioRpcError, NoAvailableInstance):
    """UNAVAILABLE: nobody is there to call, or the service was not found."""

    code = grpc.aio.AioRpcError.code  # not an HTTP status

    def __init__(self, details: str) -> None:
        metadata = grpc.aio.Metadata()
        grpc.aio.AioRpcError.__init__(
            self, grpc.StatusCode.UNAVAILABLE, metadata, metadata, details, details
        )

    def __reduce__(self) -> Any:
        return type(self), (self.details(),)


class DeadlineError(grpc.aio.AioRpcError, DeadlineExceeded):
    """DEADLINE_EXCEEDED, before an attempt or between two."""

    def __init__(self, details: str) -> None:
        metadata = grpc.aio.Metadata()
        super().__init__(grpc.StatusCode.DEADLINE_EXCEEDED, metadata, metadata, details, details)

    def __reduce__(self) -> Any:
        return type(self), (self.details(),)


def as_rpc_error(error: Exception, endpoint: str) -> Exception:
    """Return an error of discovery, or of the call as a whole, as one of gRPC."""
    if isinstance(error, DeadlineExceeded):
        return DeadlineError(str(error))
    if isinstance(error, (grpc.RpcError, TypeError, ValueError)):
        return error
    return NoInstance(f"{endpoint}: {str(error) or type(error).__name__}")


class Run:
    """A call, in the context of who makes it.

    The first attempt of most calls is made without a task: see `UnaryUnary` of `aio.py`.

    Parameters
    ----------
    channel : Channel
    method : Method
    request, timeout, metadata, credentials, wait_for_ready, compression
        As of the multicallables of grpcio.

    Attributes
    ----------
    task : asyncio.Task or None
        It ends when it is certain that no attempt follows: with the response, or where there are
        many with the first; where there are many requests and responses once it is connected.
        None: `call` is the first attempt.
    call : grpc.aio.Call or None
        Of the attempt that is under way, or the last; None before the first and between two.
    error : Exception or None
        What the call has come to.
    response : object
        The only one, of a task.
    first : object
        The first of many, until it is taken.
    is_committed : bool
        Something of `call` was given to the caller: no other attempt will follow.
    is_connected : bool
        Requests may be written.
    """

    # Most stay as they are.
    task: "asyncio.Task[None] | None" = None
    call: Any = None
    error: Exception | None = None
    response: Any = None
    first: Any = _NOTHING
    messages: Any = None
    is_committed = False
    is_connected = False
    _is_cancelled = False
    _n_attempts = 0
    _waiter: "asyncio.Future[None] | None" = None
    _has_one_response = True
    # Of a first attempt without a task.
    context: Context
    member: Member[Subchannel]
    done: Done

    channel: "Channel"
    method: Method
    request: Any
    metadata: Any
    options: tuple[Any, ...]  # credentials, wait_for_ready, compression
    end: float | None

    def start(
        self,
        channel: "Channel",
        method: Method,
        request: Any,
        timeout: float | None,
        metadata: Any,
        *options: Any,
    ) -> None:
        """Begin, with a task."""
        self.channel = channel
        self.method = method
        self.request = request
        self.metadata = None if metadata is None else tuple(metadata)
        self.options = options
        self.end = channel.end_of(timeout)
        self._has_one_response = method.kind.endswith("unary")
        arguments = channel.arguments_of(method, request, self.metadata)
        self.task = asyncio.get_running_loop().create_task(self._go(arguments))

    def land(self, call: Any) -> None:
        """Take notice of the end of the first attempt, where that was made without a task."""
        coroutine = call.code()
        try:
            coroutine.send(None)
        except StopIteration as stop:
            code = stop.value
        channel, done = self.channel, self.done
        if code is grpc.StatusCode.OK and (done is unheard or hasattr(done, "release")):
            channel.members.release(self.member, self)  # as `Use.tell_well` does it
            if done is not unheard:
                done()
            return
        use = self.use_of_first()
        if code is grpc.StatusCode.OK:
            use.tell_well(call)
            return
        error = _error_of(call, code)
        may_repeat = channel.may_repeat(error, use)
        use.tell(error, error.trailing_metadata())
        if may_repeat and not self.is_committed and error.details() not in _BY_CALLER:
            self.call = None
            loop = asyncio.get_running_loop()
            go = self._go_on(error, use.member.instance)
            self.task = self.context.run(loop.create_task, go)
            channel.runs.add(self)
        else:
            self.error = error

    def use_of_first(self) -> Use:
        """Return who tells the end of the first attempt, where that was made without a task."""
        use = Use(self.channel.members, self.done)
        use.member, use.user = self.member, self
        return use

    # -- what the caller asks -------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether the call is over."""
        task = self.task
        if self._is_cancelled:
            return True
        if task is None:
            return bool(self.call.done())
        if not task.done():
            return False
        if self._has_one_response or self.error is not None or task.cancelled():
            return True
        return bool(self.call.done())

    @property
    def is_cancelled(self) -> bool:
        """Whether the call was cancelled."""
        task = self.task
        if self._is_cancelled or (task is not None and task.done() and task.cancelled()):
            return True
        if self.error is not None:
            error = self.error
            return isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.CANCELLED
        is_the_calls = task is None or task.done()
        return is_the_calls and self.call is not None and bool(self.call.cancelled())

    def cancel(self) -> bool:
        """Cancel the call; False where it is over."""
        if self.is_over:
            return False
        task = self.task
        if task is None or task.done():
            return bool(self.call.cancel())
        self._is_cancelled = True
        task.cancel()
        return True

    @property
    def is_settled(self) -> bool:
        """Whether it is certain that no attempt follows."""
        return bool(self.call.done()) if self.task is None else self.task.done()

    async def settle(self) -> None:
        """Return when it is certain that no attempt follows, however the call ends."""
        if self.task is None:
            await self.call.code()
        if self.task is not None and not self.task.done():
            await asyncio.wait((self.task,))

    async def some_call(self) -> Any:
        """Return the call of an attempt that is under way, or the last; None without one."""
        while self.call is None and not self.is_settled:
            await self._change()
        return self.call

    async def connect(self) -> None:
        """Return when requests may be written, or no attempt follows."""
        while not self.is_connected and not self.is_settled:
            await self._change()

    def check(self) -> None:
        """Raise what has ended the call, or its task, if anything has.

        Raises
        ------
        asyncio.CancelledError
        Exception
        """
        if self._is_cancelled or (self.task is not None and self.task.cancelled()):
            raise asyncio.CancelledError
        if self.error is not None:
            raise self.error

    async def read(self) -> Any:
        """Return the next response, EOF where there is none."""
        try:
            await self.settle()
        except asyncio.CancelledError:
            self.cancel()
            raise
        self.check()
        first = self.first
        if first is not _NOTHING:
            self.first = _NOTHING
            return first
        response = await _next(self.messages)
        if response is EOF:  # of an error an iterator tells once
            code = await self.call.code()
            if code is not grpc.StatusCode.OK:
                error = _error_of(self.call, code)
                raise asyncio.CancelledError if error.details() in _BY_CALLER else error
        return response

    # -- how it goes on -------------------------------------------------------------------

    async def _go(self, arguments: Arguments) -> None:
        channel, attempts = self.channel, None
        try:
            service = channel.followed()
            if service is None:
                service = await channel.find(self.end, self.options[1])
            attempts = channel.attempts_of(service, arguments, self.end, self.options[1])
            await self._try_all(attempts)
        except Exception as error:
            self.error = error  # nobody may ever await it
        finally:
            if attempts is not None:
                attempts.forget()

    async def _go_on(self, error: grpc.aio.AioRpcError, instance: Instance) -> None:
        """Go on after the first attempt, of this instance, has failed."""
        channel, attempts = self.channel, None
        try:
            arguments = channel.arguments_of(self.method, self.request, self.metadata)
            service = channel.followed()
            if service is None:
                service = await channel.find(self.end, None)
            attempts = channel.attempts_of(service, arguments, self.end, None, instance)
            if not attempts.goes_on(error):
                raise error
            self._n_attempts = 1
            await self._try_all(attempts)
        except Exception as last:
            self.error = last
        finally:
            if attempts is not None:
                attempts.forget()

    async def _try_all(self, attempts: Attempts) -> None:
        while True:
            try:
                step = attempts.next()
            except (NoAvailableInstance, DeadlineExceeded) as error:
                raise as_rpc_error(error, self.channel.endpoint) from error
            if isinstance(step, float):
                await asyncio.sleep(step)
            elif await self._try(attempts, *step):
                return

    async def _try(self, attempts: Attempts, instance: Instance, done: Done) -> bool:
        """Make an attempt; return whether it is the last, raise where it has failed and is."""
        method, rest = self.method, self.channel.rest
        use, function, metadata = self.channel.begin(
            method, instance, done, self.metadata, self._n_attempts
        )
        self._n_attempts += 1
        credentials, wait_for_ready, compression = self.options
        try:
            call = function(
                None if method.takes_stream else self.request,
                timeout=left_of(self.end),
                metadata=metadata,
                credentials=credentials,
                wait_for_ready=False if wait_for_ready else wait_for_ready,
                compression=compression,
            )
        except BaseException as error:
            use.tell(error)
            raise
        self.call = call
        self._wake()
        try:
            if method.takes_stream:
                await call.wait_for_connection()
                self.is_connected = True
                self._wake()
                if self.request is not None:
                    pump = asyncio.ensure_future(_pump(self.request, call))
                    call.add_done_callback(lambda call: pump.cancel())
            if self._has_one_response:
                self.response = await call
                use.tell_well(call)
                return True
            self.messages = call.__aiter__()
            if not method.takes_stream:
                self.first = await _next(self.messages)
        except grpc.aio.AioRpcError as error:
            may_repeat = self.channel.may_repeat(error, use)
            use.tell(error, error.trailing_metadata())
            if (
                may_repeat
                and not self.is_committed
                and not self.is_connected
                and attempts.goes_on(error)
            ):
                self.call = None
                return False
            raise
        except BaseException as error:
            call.cancel()
            use.tell(error)
            raise
        call.add_done_callback(partial(_end, use, rest))
        return True

    async def _change(self) -> None:
        """Return when something has changed."""
        waiter = self._waiter
        if waiter is None:
            waiter = self._waiter = asyncio.get_running_loop().create_future()
        assert self.task is not None
        await asyncio.wait((self.task, waiter), return_when=asyncio.FIRST_COMPLETED)

    def _wake(self) -> None:
        if self._waiter is not None:
            self._waiter.set_result(None)
            self._waiter = None


def _end(use: Use, rest: Suspects, call: Any) -> None:
    """Tell how a call with many responses has ended."""
    code = now(call.code())
    if code is grpc.StatusCode.OK:
        use.tell_well(call)
        return
    error = _error_of(call, code)
    judge(error, use, rest)
    use.tell(error, error.trailing_metadata(), True)


def _error_of(call: Any, code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    """Return the error of a call that is over."""
    metadata = now(call.trailing_metadata())
    if metadata is None:
        metadata = grpc.aio.Metadata()
    initial = now(call.initial_metadata()) if code is not grpc.StatusCode.CANCELLED else None
    return grpc.aio.AioRpcError(
        code, initial, metadata, now(call.details()), now(call.debug_error_string())
    )


async def _next(messages: AsyncIterator[Any]) -> Any:
    try:
        return await messages.__anext__()
    except StopAsyncIteration:
        return EOF


async def _pump(requests: Any, call: Any) -> None:
    """Send the requests of an iterator."""
    try:
        if isinstance(requests, AsyncIterable):
            async for request in requests:
                await call.write(request)
        else:
            for request in requests:
                await call.write(request)
        await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
        logger.debug("the call has ended before its requests: %r", error)
    except Exception:
        logger.debug("the iterator of requests failed", exc_info=True)
        call.cancel()  # as grpcio does


class BalancedCall(grpc.aio.Call):
    """A call to whichever instance answers. Let go of, it is cancelled."""

    _run: Run

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._run.is_cancelled

    def done(self) -> bool:
        """Whether it is over."""
        return self._run.is_over

    def time_remaining(self) -> float | None:
        """Return the seconds until its deadline, None where there is none."""
        end = self._run.end
        return None if end is None else max(0.0, end - monotonic())

    def cancel(self) -> bool:
        """Cancel it; False where it is over."""
        return self._run.cancel()

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Have `callback(call)` called when it is over, or now where it is."""
        run = self._run
        if run.task is not None and not run.task.done():
            run.task.add_done_callback(lambda task: self.add_done_callback(callback))
        elif run.is_over:
            callback(self)
        else:  # where that was not the last attempt there is a task then
            run.call.add_done_callback(lambda call: self.add_done_callback(callback))

    async def initial_metadata(self) -> Any:
        """Return the initial metadata; waits for it."""
        found = await self._ask("initial_metadata")
        return grpc.aio.Metadata() if found is None else found

    async def trailing_metadata(self) -> Any:
        """Return the trailing metadata, once it is over."""
        return await self._last("trailing_metadata", grpc.aio.Metadata())

    async def code(self) -> grpc.StatusCode:
        """Return the status, once it is over."""
        code: grpc.StatusCode = await self._last("code", grpc.StatusCode.CANCELLED)
        return code

    async def details(self) -> Any:
        """Return what was said with the status, once it is over."""
        return await self._last("details", CANCELLED_DETAILS)

    async def debug_error_string(self) -> Any:
        """Return what grpcio says of the end, once it is over."""
        return await self._last("debug_error_string", CANCELLED_DETAILS)

    async def wait_for_connection(self) -> None:
        """Return when it is connected.

        Raises
        ------
        grpc.aio.AioRpcError
            It has ended with an error.
        """
        await self._ask("wait_for_connection")
        if self._run.is_settled:
            self._run.check()

    async def _ask(self, name: str) -> Any:
        """Return what a method of the attempt that counts gives; None where there is none."""
        run = self._run
        while True:
            call = await run.some_call()
            if call is None:
                return None
            try:
                found = await getattr(call, name)()
            except grpc.aio.AioRpcError:
                await run.settle()
                if run.call is call:
                    raise
                continue
            if call.done():
                await run.settle()  # it may be followed by another
            if run.call is call:
                run.is_committed = True
                return found

    async def _last(self, name: str, cancelled: Any) -> Any:
        run = self._run
        await run.settle()
        if run.error is not None:
            if isinstance(run.error, grpc.RpcError):
                return getattr(run.error, name)()
            raise run.error
        if run.task is not None and run.task.cancelled():
            return cancelled
        return await getattr(run.call, name)()

    def __repr__(self) -> str:
        run = self._run
        state = run.call if run.error is None else run.error
        return f"<{type(self).__name__}: {'no attempt yet' if state is None else repr(state)}>"


class _OneResponse(BalancedCall):
    def __await__(self) -> Generator[Any, None, Any]:
        run = self._run
        if run.task is None:
            try:
                return (yield from run.call.__await__())
            except grpc.aio.AioRpcError:
                if run.error is not None:
                    raise run.error from None
        task = run.task
        assert task is not None
        if not task.done():
            yield from task.__await__()
        run.check()
        return run.response


class _Stream(BalancedCall):
    """A call that goes on for as long as somebody has it."""

    def __del__(self) -> None:
        run = self._run
        if run.task is None or run.is_over:
            return
        loop = run.task.get_loop()
        if not loop.is_closed():
            # Whoever lets go last may be a thread that collects garbage.
            loop.call_soon_threadsafe(run.cancel)


class _ManyResponses(_Stream):
    # Weak, since it holds this: a call that is left in the middle ends at once, not when garbage is
    # collected.
    _iterator: "ref[AsyncIterator[Any]] | None" = None
    _is_read = False

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._is_read:
            raise grpc.aio.UsageError(_MIXED)
        iterator = None if self._iterator is None else self._iterator()
        if iterator is None:
            iterator = self._responses()
            self._iterator = ref(iterator)
        return iterator

    async def read(self) -> Any:
        """Return the next response, `grpc.aio.EOF` where there is none."""
        if self._iterator is not None:
            raise grpc.aio.UsageError(_MIXED)
        self._is_read = True
        return await self._run.read()

    async def _responses(self) -> AsyncIterator[Any]:
        while (response := await self._run.read()) is not EOF:
            yield response


class _ManyRequests(_Stream):
    async def write(self, request: Any) -> None:
        """Send a request."""
        await self._begin_write()
        run = self._run
        if run.is_over:
            if run.error is not None and not self.cancelled():
                raise run.error
            raise asyncio.InvalidStateError(_FINISHED)
        await run.call.write(request)

    async def done_writing(self) -> None:
        """Say that no requests follow. May be called more than once."""
        await self._begin_write()
        if not self._run.is_over:
            await self._run.call.done_writing()

    async def _begin_write(self) -> None:
        run = self._run
        if run.request is not None:
            raise grpc.aio.UsageError(_MIXED)
        try:
            await run.connect()
        except asyncio.CancelledError:
            run.cancel()
            raise


class UnaryUnaryCall(_OneResponse, grpc.aio.UnaryUnaryCall):
    """A call of one request and one response."""


class UnaryStreamCall(_ManyResponses, grpc.aio.UnaryStreamCall):
    """A call of one request and many responses."""


class StreamUnaryCall(_OneResponse, _ManyRequests, grpc.aio.StreamUnaryCall):
    """A call of many requests and one response."""


class StreamStreamCall(_ManyResponses, _ManyRequests, grpc.aio.StreamStreamCall):
    """A call of many requests and many responses."""
