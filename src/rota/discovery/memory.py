"""Discovery inside one process: no server, no file, changes pushed."""

import os
import threading
import weakref
from collections.abc import AsyncGenerator
from typing import Any

from rota.discovery.instance import Instance
from rota.discovery.resolver import numbered, service_of
from rota.discovery.result import Change, Result, diff
from rota.discovery.watching import FRESH, Bells
from rota.events import DISCOVERY_CHANGE, DISCOVERY_DELETE, Event, EventBus


class MemoryRegistry:
    """Services and their copies in a dictionary; every change goes out on `bus`, and to watches.

    Parameters
    ----------
    bus : EventBus or None
        None: there are only watches.

    Notes
    -----
    Any number of threads may publish and resolve. Changes of one service go out in the
    order in which they were made.
    """

    def __init__(self, bus: EventBus | None = None) -> None:
        self._bus = bus
        self._name = numbered("memory")
        self._bells = Bells()
        self._lock = threading.Lock()
        self._services: dict[str, dict[str, Instance]] = {}
        # What a service was resolved to is what its next change is compared with: balancers
        # know by that object that they have missed nothing.
        self._results: dict[str, Result] = {}
        _registries.add(self)

    @property
    def name(self) -> str:
        """The registry's name, which no other has."""
        return self._name

    def target(self, endpoint: Any) -> str:
        """Return the service of an endpoint: "name", or "discovery:///name"."""
        return service_of(endpoint)

    def diff(self, cache_key: str, prev: Result, next: Result) -> Change:
        """Return what changed from `prev` to `next`."""
        return diff(cache_key, prev, next)

    def publish(self, service: str, *instances: Instance) -> Change:
        """Add copies of a service, or replace those of the same address; O(copies)."""
        for instance in instances:
            if not isinstance(instance, Instance):
                raise TypeError(f"instances must be Instance objects, got {instance!r}")
        with self._lock:
            known = self._services.get(service, {})
            return self._replace(service, known | {i.address: i for i in instances})

    def withdraw(self, service: str, *addresses: str) -> Change:
        """Take copies of a service away; unknown addresses are ignored. O(copies)."""
        with self._lock:
            known = self._services.get(service, {})
            if not known:
                return Change(Result(True, service))
            return self._replace(service, {a: i for a, i in known.items() if a not in addresses})

    def resolve(self, service: str) -> Result:
        """Return the copies of a service, O(1); no instances for one that is not known."""
        with self._lock:
            return self._result(service)

    def delete(self, service: str) -> None:
        """Forget a service, and tell balancers to do so."""
        with self._lock:
            known = self._services.pop(service, None)
            if known is not None:
                change = Change(Result(True, service), removed=tuple(known.values()))
                self._results.pop(service, None)
                self._tell(DISCOVERY_DELETE, change)

    async def watch(self, service: str) -> AsyncGenerator[Result, None]:
        """Go through the copies of a service: now, and after each change.

        Of several changes in a row maybe only the last is seen. Every few seconds without one
        the same object again. A service that was deleted, or is not known, has no copies.
        """
        bell = self._bells.hang(service)
        try:
            last = self.resolve(service)
            while True:
                yield last
                await bell.wait(FRESH)
                result = self.resolve(service)
                if result is not last and result.instances != last.instances:
                    last = result
        finally:
            self._bells.take(service, bell)

    def _result(self, service: str) -> Result:
        return self._results.get(service) or Result(True, service)

    def _replace(self, service: str, copies: dict[str, Instance]) -> Change:
        # Under the lock, so that changes are dispatched in the order they were made.
        now = Result(True, service, tuple(copies.values()))
        change = diff(service, self._result(service), now)
        self._services[service] = copies
        self._results[service] = now
        if change:
            self._tell(DISCOVERY_CHANGE, change)
        return change

    def _tell(self, what: str, change: Change) -> None:
        service = change.result.cache_key
        if self._bus is not None:
            self._bus.dispatch(Event(what, detail=service, extra=change))
        self._bells.ring((service,))

    def _begin_anew(self) -> None:
        # In a forked child: locks may be held by, and watches be of, who is not there.
        self._lock = threading.Lock()
        self._bells = Bells()


_registries: "weakref.WeakSet[MemoryRegistry]" = weakref.WeakSet()


def _in_child() -> None:
    for registry in list(_registries):
        registry._begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
