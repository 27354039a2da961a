"""One logical call, of as many attempts as it takes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from inspect import isawaitable
from types import CoroutineType
from typing import Any, TypeVar

from rota.loadbalance import Picker
from rota.retry.candidates import Done, Selecting, ask, candidates
from rota.retry.course import Course, DeadlineExceeded, begin, check, check_time
from rota.retry.policy import RetryPolicy
from rota.retry.rest import Rest
from rota.selector.errors import NoAvailableInstance

T = TypeVar("T")
R = TypeVar("R")

DEFAULT_POLICY = RetryPolicy()


def call(
    source: Picker[T] | Selecting[T] | Callable[[], Picker[T] | Selecting[T]],
    function: Callable[[T], R],
    policy: RetryPolicy = DEFAULT_POLICY,
    *,
    ctx: object = None,
    request: object = None,
    filters: Sequence[Any] = (),
    key: Any = None,
) -> R:
    """Call a function with an instance, and with another one where that fails; return its result.

    Parameters
    ----------
    source : picker, selector, or callable () -> either
        Where the instances come from. A callable is asked once for each round, so that a new
        round is of the instances of then.
    function : callable (instance) -> result
        One attempt. It should send one request to the instance and to nobody else, since its
        errors are taken for that instance's.
    policy : RetryPolicy
        The default retries what no server has seen, five times.
    ctx, request
        For a picker: handed to its `attempts`, or to `next`. By key it walks the replicas.
    filters, key
        For a selector, as for `Selector.select`.

    Raises
    ------
    NoAvailableInstance
        There was nobody to try.
    DeadlineExceeded
        The policy's deadline passed before there was somebody to try.
    TypeError
        An argument is of no use, or is for another kind of source; or `function` is a coroutine
        function: these are for `call_async`.
    Exception
        What the last attempt raised, as it was; its `__context__` goes on to the errors of the
        attempts before it, of up to 16.

    Notes
    -----
    In a round every instance is tried once. When all have been tried the next round begins,
    after a pause. A selector hears of each attempt how it ended, and so does a picker that goes
    by load.

    A deadline does not end an attempt that is under way: give the client that you call with a
    timeout.
    """
    check(function, policy)
    return make_call(source, function, policy, ctx, request, filters, key, False)


def open_call(
    source: Picker[T] | Selecting[T] | Callable[[], Picker[T] | Selecting[T]],
    function: Callable[[T, Done], R],
    policy: RetryPolicy = DEFAULT_POLICY,
    *,
    ctx: object = None,
    request: object = None,
    filters: Sequence[Any] = (),
    key: Any = None,
    rest: Rest | None = None,
) -> R:
    """Begin a call whose end is not its result: an answer that is still to be read, a stream.

    As `call`, but that `function` is called with (instance, done), and once it has returned a
    result the `done` is its: to be called, as that of a selector, when all has ended. An attempt
    that raises is reported here.

    Parameters
    ----------
    rest : Rest or None
        Whoever rests in there is tried after all others.
    """
    check(function, policy)
    return make_call(source, function, policy, ctx, request, filters, key, True, rest)


def make_call(
    source: Any,
    function: Callable[..., R],
    policy: RetryPolicy,
    ctx: object,
    request: object,
    filters: Sequence[Any],
    key: Any,
    is_open: bool,
    rest: Rest | None = None,
) -> R:
    """Make a call, all whose arguments are of use: `call`, or where it is open `open_call`."""
    end = begin(policy)
    course = None
    try:
        while True:
            found = ask(source)
            if end is not None:
                check_time(end, course)
            to_try = candidates(found, ctx, request, filters, key, course is None)
            if rest:
                to_try = rest.put_last(to_try)
            for instance, done in to_try:
                try:
                    result = function(instance, done) if is_open else function(instance)
                except BaseException as error:  # noqa: PERF203
                    done(err=error)
                    course = course or Course(policy, end)
                    if not course.goes_on(error):
                        raise
                else:
                    if not is_open:
                        done()
                    if isinstance(result, CoroutineType):  # nobody has run it: it was no attempt
                        result.close()
                        raise TypeError(f"function must return a result, got {result!r}")
                    return result
            if course is None:
                raise NoAvailableInstance(f"no instance is available: {found!r} gives none")
            time.sleep(course.pause())
    finally:
        if course is not None:
            course.forget()


async def call_async(
    source: Picker[T] | Selecting[T] | Callable[[], Any],
    function: Callable[[T], Awaitable[R]],
    policy: RetryPolicy = DEFAULT_POLICY,
    *,
    ctx: object = None,
    request: object = None,
    filters: Sequence[Any] = (),
    key: Any = None,
) -> R:
    """Await a function of an instance, and of another one where that fails: `call` for asyncio.

    A callable `source` may be a coroutine function too. What is different from `call`:

    - At the deadline an attempt that is under way is cancelled, and awaited until it has ended.
      Unless it returns a result all the same, its instance is reported to have failed, and
      DeadlineExceeded is raised, which is a TimeoutError (and on Python 3.10 an
      asyncio.TimeoutError too). Under a deadline an attempt runs as a task of its own: context
      variables that it sets are its own.
    - Cancelled, it is not retried; the attempt is reported as cancelled.
    """
    check(function, policy)
    return await make_call_async(source, function, policy, ctx, request, filters, key, False)


def open_call_async(
    source: Picker[T] | Selecting[T] | Callable[[], Any],
    function: Callable[[T, Done], Awaitable[R]],
    policy: RetryPolicy = DEFAULT_POLICY,
    *,
    ctx: object = None,
    request: object = None,
    filters: Sequence[Any] = (),
    key: Any = None,
    rest: Rest | None = None,
) -> Coroutine[Any, Any, R]:
    """Begin a call whose end is not its result: `open_call` for asyncio, as `call_async`.

    To be awaited.
    """
    check(function, policy)
    return make_call_async(source, function, policy, ctx, request, filters, key, True, rest)


async def make_call_async(
    source: Any,
    function: Callable[..., Awaitable[R]],
    policy: RetryPolicy,
    ctx: object,
    request: object,
    filters: Sequence[Any],
    key: Any,
    is_open: bool,
    rest: Rest | None = None,
) -> R:
    """Make a call, all whose arguments are of use, from asyncio."""
    end = begin(policy)
    course = None
    try:
        while True:
            found = ask(source)
            if not hasattr(found, "select") and isawaitable(found):  # which takes longer
                found = await _until(end, found)
            if end is not None:
                check_time(end, course)
            to_try = candidates(found, ctx, request, filters, key, course is None)
            if rest:
                to_try = rest.put_last(to_try)
            for instance, done in to_try:
                try:
                    attempt = function(instance, done) if is_open else function(instance)
                    result = await (attempt if end is None else _until(end, attempt))
                except BaseException as error:  # noqa: PERF203
                    done(err=error)
                    course = course or Course(policy, end)
                    if not course.goes_on(error):
                        raise
                else:
                    if not is_open:
                        done()
                    return result
            if course is None:
                raise NoAvailableInstance(f"no instance is available: {found!r} gives none")
            await asyncio.sleep(course.pause())
    finally:
        if course is not None:
            course.forget()


async def _until(end: float | None, awaitable: Awaitable[R]) -> R:
    """Await something; at a moment of `time.monotonic` cancel it and raise DeadlineExceeded."""
    if end is None:
        return await awaitable
    task = asyncio.ensure_future(awaitable)
    error = None
    try:
        is_late = False
        while not (task.done() or is_late):
            left = end - time.monotonic()
            is_late = left <= 0
            if is_late:
                task.cancel()
            await _settled(task, None if is_late else left)
        if is_late and (task.cancelled() or task.exception() is not None):
            if not task.cancelled():
                error = task.exception()
            raise DeadlineExceeded("the deadline passed in the middle of an attempt") from error
        return task.result()
    finally:
        del task, error  # their tracebacks have this frame


async def _settled(task: "asyncio.Future[Any]", timeout: float | None) -> None:
    """Wait until a task has ended, or for so many seconds; cancelled, end it first."""
    try:
        await asyncio.wait((task,), timeout=timeout)
    except asyncio.CancelledError:
        while not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):  # we are being cancelled already
                await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # what it raised then is for nobody, and asyncio is not to complain
        raise
    except BaseException:  # we are being closed, and cannot wait
        with suppress(RuntimeError):  # the loop may be closed as well
            task.cancel()
        raise
