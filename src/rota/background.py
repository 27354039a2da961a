"""Work behind the caller's back that keeps nothing alive: neither the interpreter nor its owner.

`LoopThread` is an asyncio loop on a daemon thread, for those who call without one.
`in_thread` awaits a function that blocks; its thread is a daemon too, unlike those of an
executor, for which the interpreter waits at its end.
"""

import asyncio
import atexit
import contextvars
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

T = TypeVar("T")

# What is waited for, and what it comes of.
Waited = dict["Future[Any]", Coroutine[Any, Any, Any]]

# For a loop to end its tasks, when it is closed.
PATIENCE = 5.0

# What stops the loops that run, by their threads: at the end of the interpreter these are
# waited for.
_alive: "dict[threading.Thread, weakref.finalize[..., Any]]" = {}

# Loops of the parent, in a forked child: closing one would take its files from the parent's
# selector, so they are kept as they are.
_left_behind: list[object] = []


class LoopThread:
    """An event loop on a daemon thread of its own, which is started when first needed.

    Closed or forgotten, it cancels its tasks and ends. In a forked child it begins anew, with
    no tasks. Any number of threads may use it.

    Parameters
    ----------
    name : str
        Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.RLock()  # a finalizer may close it in the middle of anything
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: weakref.finalize[..., Any] | None = None
        self._is_closed = False
        self._waited: Waited = {}

    @property
    def is_current(self) -> bool:
        """Whether the caller is on this thread."""
        return threading.current_thread() is self._thread

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Have a coroutine run there; returns at once.

        Raises
        ------
        RuntimeError
            Closed.
        """
        try:
            with self._lock:
                future = asyncio.run_coroutine_threadsafe(coroutine, self._running())
                self._waited[future] = coroutine
        except BaseException:
            coroutine.close()
            raise
        waited = self._waited
        future.add_done_callback(lambda future: waited.pop(future, None))
        return future

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Have a coroutine run there, and wait for what comes of it.

        Raises
        ------
        RuntimeError
            Closed; or called on this very thread, which would wait for itself.
        TimeoutError
            Nothing came within `timeout` seconds; the coroutine was cancelled.
        """
        if self.is_current:
            coroutine.close()
            raise RuntimeError(f"{self._name} would wait for itself")
        future = self.submit(coroutine)
        try:
            return future.result(timeout)
        except CancelledError:
            if self._is_closed:
                raise RuntimeError(f"{self._name} is closed") from None
            raise
        except BaseException:
            future.cancel()  # nobody waits any more: a timeout, or Ctrl-C
            raise

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Have a function called there, soon; nothing happens where the loop does not run."""
        loop = self._loop
        if loop is not None:
            _call_soon(loop, function, *arguments)

    def close(self) -> None:
        """Cancel its tasks, and wait until they have ended; 5 s at the most."""
        with self._lock:
            self._is_closed = True
            stop, thread = self._stop, self._thread
        if stop is not None and thread is not None:
            _stop(stop)
            _join(thread)

    def _running(self) -> asyncio.AbstractEventLoop:
        """Return the loop, which runs from now on. Called with the lock held."""
        if self._is_closed:
            raise RuntimeError(f"{self._name} is closed")
        if self._loop is None or self._thread is None or not self._thread.is_alive():
            if self._stop is not None:  # in a child process: the thread is not alive
                self._stop.detach()
                _left_behind.append(self._loop)
                self._stop = None
            loop, waited = asyncio.new_event_loop(), Waited()
            thread = threading.Thread(
                target=_run, args=(loop, waited), name=self._name, daemon=True
            )
            # Forgotten, it is not waited for: whoever collects garbage may hold a lock that a
            # task waits for.
            stop = weakref.finalize(self, _call_soon, loop, loop.stop)
            stop.atexit = False
            _alive[thread] = stop
            try:
                thread.start()
            except BaseException:
                del _alive[thread]
                stop.detach()
                loop.close()
                raise
            self._loop, self._waited, self._thread, self._stop = loop, waited, thread, stop
        return self._loop

    def renew_lock(self) -> None:
        """In the child of a fork: another thread of the parent may have held it."""
        self._lock = threading.RLock()


def _run(loop: asyncio.AbstractEventLoop, waited: Waited) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        while tasks := asyncio.all_tasks(loop):
            for task in tasks:
                task.cancel()
            loop.run_until_complete(_gathered(tasks))
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()
        # What came too late to be begun.
        for future, coroutine in list(waited.items()):
            future.cancel()
            coroutine.close()
        del _alive[threading.current_thread()]


async def _gathered(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


def _stop(stop: "weakref.finalize[..., Any]") -> None:
    """Stop a loop, once: a second time would stop it in the middle of ending its tasks."""
    # Not by calling it: at the end of the interpreter finalizers do nothing any more.
    found = stop.detach()
    if found is not None:
        _, call, arguments, _ = found
        call(*arguments)


def _join(thread: threading.Thread) -> None:
    if thread is not threading.current_thread():
        thread.join(PATIENCE)


@atexit.register
def _end_all() -> None:
    alive = [(thread, stop) for thread, stop in list(_alive.items()) if thread.is_alive()]
    for _, stop in alive:
        _stop(stop)
    for thread, _ in alive:
        _join(thread)


def _call_soon(
    loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any
) -> None:
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        if not loop.is_closed():
            raise


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function that may block on a daemon thread, and return what it returns.

    Cancelled, it lets the function run on: its result is for nobody. For SystemExit and
    KeyboardInterrupt, which would end the event loop, and StopIteration it raises RuntimeError.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def land(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = context.run(function, *arguments)
        except (StopIteration, SystemExit, KeyboardInterrupt) as stop:
            error = RuntimeError(f"{function!r} raised {type(stop).__name__}")
            error.__cause__ = stop
        except BaseException as raised:
            error = raised
        _call_soon(loop, land, result, error)

    context = contextvars.copy_context()
    name = getattr(function, "__qualname__", "function")
    threading.Thread(target=work, name=f"rota {name}", daemon=True).start()
    return await future
