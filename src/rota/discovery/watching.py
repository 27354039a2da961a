"""What resolvers that watch have in common: bells that any thread may ring, objects that stay."""

import asyncio
import threading
from collections.abc import Iterable
from contextlib import suppress
from operator import is_

from rota.discovery.result import Result

# Seconds, after which a watch says again that it knows of nothing new.
FRESH = 2.0


class Bell:
    """Wakes the one coroutine that waits for it; rung from any thread. Made on its event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()

    @property
    def is_of_use(self) -> bool:
        """Whether its loop has not been closed."""
        return not self._loop.is_closed()

    def ring(self) -> bool:
        """Have `wait` return, soon. False: the loop was closed, nobody waits."""
        try:
            self._loop.call_soon_threadsafe(self._rung.set)
        except RuntimeError:
            if self.is_of_use:
                raise
            return False
        return True

    async def wait(self, timeout: float) -> None:
        """Return when it has been rung since `wait` returned last, or after so many seconds."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._rung.wait(), timeout)
        self._rung.clear()


class Bells:
    """The bells of those who watch, by the service they watch. For any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bells: dict[str, set[Bell]] = {}

    def hang(self, service: str) -> Bell:
        """Return a new bell, for the event loop that runs here."""
        bell = Bell()
        with self._lock:
            self._bells.setdefault(service, set()).add(bell)
        return bell

    def take(self, service: str, bell: Bell) -> None:
        """Take a bell down again."""
        with self._lock:
            bells = self._bells.get(service, set())
            bells.discard(bell)
            if not bells:
                self._bells.pop(service, None)

    def ring(self, services: Iterable[str]) -> None:
        """Ring all bells of these services; those of closed loops are taken down."""
        with self._lock:
            hanging = [(name, bell) for name in services for bell in self._bells.get(name, ())]
        for name, bell in hanging:
            if not bell.ring():
                self.take(name, bell)

    def prune(self) -> None:
        """Take down those whose loop was closed over them."""
        with self._lock:
            hanging = [(service, bell) for service, bells in self._bells.items() for bell in bells]
        for service, bell in hanging:
            if not bell.is_of_use:
                self.take(service, bell)

    def __bool__(self) -> bool:
        """Whether there are any."""
        with self._lock:
            return bool(self._bells)


def kept(prev: Result | None, next: Result) -> Result:
    """Return `next` with the instances of `prev` where equal; `prev` itself where all are. O(n)."""
    if prev is None:
        return next
    known = {instance.identity: instance for instance in prev.instances}
    instances = tuple(
        [
            was if (was := known.get(now.identity)) is not None and was == now else now
            for now in next.instances
        ]
    )
    if (prev.cacheable, prev.cache_key, len(prev.instances)) == (
        next.cacheable,
        next.cache_key,
        len(instances),
    ) and all(map(is_, prev.instances, instances)):
        return prev
    return Result(next.cacheable, next.cache_key, instances)
