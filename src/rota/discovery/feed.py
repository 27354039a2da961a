"""One target, followed: from what a resolver says of it to changes that are safe to make."""

import asyncio
import inspect
import logging
import random
import time
from collections.abc import Callable
from typing import Any

from rota.background import in_thread
from rota.discovery.resolver import Resolver
from rota.discovery.result import Change, Result
from rota.discovery.stabilizer import Stabilizer, UpdatePolicy

logger = logging.getLogger(__name__)

# Of an interval, on both sides: clients that started together do not ask together for ever.
JITTER = 0.1

LEAST_PAUSE = 0.1  # seconds before a watch that broke is begun anew; doubled each time


async def resolve(resolver: Resolver, desc: str) -> Result:
    """Return what a resolver says now, whether it blocks or is awaited.

    Raises
    ------
    TypeError
        It gave no Result.
    """
    found: Any
    if inspect.iscoroutinefunction(resolver.resolve):
        found = await resolver.resolve(desc)
    else:
        found = await in_thread(resolver.resolve, desc)
        if inspect.isawaitable(found):
            found = await found
    if not isinstance(found, Result):
        raise TypeError(f"{resolver.name} must resolve to a Result, got {found!r}")
    return found


class Feed:
    """Follows one target on an event loop, where all of this is called.

    Parameters
    ----------
    resolver : Resolver
        Watched where it has a `watch`; else asked again and again.
    desc : str
        The description of the target.
    first : Result
        What it was resolved to.
    policy : UpdatePolicy
    refresh : float
        Seconds between two looks, 10 % more or less at random.
    on_change : callable (Change) -> None
        Makes a change. Where it fails the change is made, together with what has come since,
        when discovery speaks next, and after `refresh` seconds at the latest.
    on_delete : callable (Result) -> None
        Told of the last result of a key that pickers were cached by, and are no more: the
        resolver has another name or key by now, or its results may not be cached.

    Attributes
    ----------
    result : Result
        What is believed, under the key that pickers are cached by: the resolver's name and
        the key it gave. The last change has led there.
    confirmed : float
        When discovery has spoken last, by `time.monotonic`.
    """

    def __init__(
        self,
        resolver: Resolver,
        desc: str,
        first: Result,
        policy: UpdatePolicy,
        refresh: float,
        on_change: Callable[[Change], object],
        on_delete: Callable[[Result], object],
    ) -> None:
        self.result = self._named(resolver, first)
        self.confirmed = time.monotonic()
        self._resolver = resolver
        self._desc = desc
        self._refresh = refresh
        self._on_change = on_change
        self._on_delete = on_delete
        self._stabilizer = Stabilizer(first, policy)
        self._wanted = self.result  # what `result` is to become
        self._said = first
        self._n_asked = 0
        self._newest = 0  # of those asked for or pushed, the last that was heard
        self._timer: asyncio.TimerHandle | None = None
        self._is_lost = False
        self._is_closed = False

    async def run(self) -> None:
        """Follow the target until it is closed, and cancelled after that."""
        is_watched = callable(getattr(self._resolver, "watch", None))
        while not self._is_closed:
            try:
                await (self._watch() if is_watched else self._poll())
            except asyncio.CancelledError as error:  # noqa: PERF203
                # It may be the resolver's own affair. Where a whole event loop ends, `close`
                # comes soon, and another cancellation.
                if not self._is_closed:
                    await asyncio.sleep(_jittered(self._refresh))
                    self._lose(error)

    def close(self) -> None:
        """Make no more changes, whatever is heard."""
        self._is_closed = True
        self._set_timer(None)

    async def refresh(self) -> None:
        """Ask now, and make what has changed, as far as it is believed."""
        self._n_asked += 1
        number = self._n_asked
        said = await resolve(self._resolver, self._desc)
        if number > self._newest:  # else what is newer has overtaken it
            self._newest = number
            self._hear(said)

    async def _poll(self) -> None:
        while not self._is_closed:
            await asyncio.sleep(_jittered(self._refresh))
            try:
                await self.refresh()
            except Exception as error:
                self._lose(error)

    async def _watch(self) -> None:
        resolver: Any = self._resolver
        pause = LEAST_PAUSE
        while True:
            error: Exception = RuntimeError("the watch has ended")
            try:
                results = resolver.watch(self._desc)
                try:
                    async for said in results:
                        if said is not self._said:
                            self._newest = self._n_asked
                        self._hear(said)
                        if self._is_closed:
                            return
                        pause = LEAST_PAUSE
                finally:
                    if hasattr(results, "aclose"):  # as generators have
                        await results.aclose()
            except Exception as raised:
                error = raised
            if self._is_closed:  # a watch may swallow a cancellation, and so may `resolve`
                return
            self._lose(error)
            await asyncio.sleep(_jittered(min(pause, self._refresh)))
            pause *= 2

    def _hear(self, said: Result) -> None:
        if not isinstance(said, Result):
            raise TypeError(f"{self._resolver.name} must give Results, got {said!r}")
        if self._is_closed:
            return
        self.confirmed = time.monotonic()
        if self._is_lost:
            self._is_lost = False
            logger.info("%s: %s is found again", self._resolver.name, self._desc)
        if said is not self._said:
            self._said = said
            self._stabilizer.offer(said, asyncio.get_running_loop().time())
        self._settle()

    def _lose(self, error: BaseException) -> None:
        if not self._is_lost and not self._is_closed:
            self._is_lost = True
            n = len(self.result.instances)
            logger.warning(
                "%s: %s cannot be found, its %d instances are kept: %s: %s",
                self._resolver.name, self._desc, n, type(error).__name__, error,
            )  # fmt: skip

    def _settle(self) -> None:
        """Make what is believed by now, and see to it that the rest is looked at in time."""
        now = asyncio.get_running_loop().time()
        believed = self._stabilizer.release(now)
        if believed is not None:
            self._wanted = self._named(self._resolver, believed)
        due = self._stabilizer.due()
        if self._wanted is not self.result and not self._make(self._wanted):
            retry = now + self._refresh
            due = retry if due is None else min(due, retry)
        self._set_timer(due)

    def _make(self, wanted: Result) -> bool:
        try:
            change = self._resolver.diff(wanted.cache_key, self.result, wanted)
            if not isinstance(change, Change):
                raise TypeError(f"{self._resolver.name} must diff to a Change, got {change!r}")
            was = self.result
            is_same_key = (wanted.cacheable, wanted.cache_key) == (was.cacheable, was.cache_key)
            if not change and is_same_key:
                # The list of before stays, for changes to begin with what the picker was told.
                self._wanted = self.result
                return True
            self._on_change(change)
        except (Exception, asyncio.CancelledError):  # of something else that was cancelled
            logger.exception("%s: a change of %s failed", self._resolver.name, self._desc)
            return False
        self.result = wanted
        if was.cacheable and not is_same_key:
            self._on_delete(was)
        return True

    def _set_timer(self, due: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if due is not None:
            self._timer = asyncio.get_running_loop().call_at(due, self._settle)

    @staticmethod
    def _named(resolver: Resolver, result: Result) -> Result:
        key = f"{resolver.name}:{result.cache_key}"
        return Result(result.cacheable, key, result.instances)


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(1 - JITTER, 1 + JITTER)
