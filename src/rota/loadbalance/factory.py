"""From a name to a live picker: a resolver and a balancer, and all services that are asked for.

After Kitex's lbcache. `BalancerFactory` is for threads, and follows discovery on a thread of
its own; `AsyncBalancerFactory` is for asyncio, and follows it on the loop that it is used on.
"""

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rota.arguments import as_duration
from rota.background import LoopThread
from rota.discovery import Result
from rota.discovery.resolver import Resolver
from rota.discovery.stabilizer import UpdatePolicy
from rota.events import EventBus, EventQueue
from rota.loadbalance.interface import LoadBalancer
from rota.loadbalance.services import Held, Hook, ServiceBalancer, Services, described

if TYPE_CHECKING:
    from typing_extensions import Self

Dump = dict[str, list[dict[str, Any]]]

_factories: "weakref.WeakSet[Factory]" = weakref.WeakSet()
_all_services: "weakref.WeakSet[Services]" = weakref.WeakSet()
_loops: "weakref.WeakSet[LoopThread]" = weakref.WeakSet()
_shared: "weakref.WeakValueDictionary[str, BalancerFactory]" = weakref.WeakValueDictionary()
_lock = threading.RLock()  # for all of these; a finalizer may close a factory anywhere


class Factory:
    """What both factories share.

    Parameters
    ----------
    resolver : Resolver
        Finds the instances. Watched where it has a `watch`; else asked every `refresh` seconds.
    balancer : LoadBalancer
        Makes the pickers; told of changes where it is a Rebalancer.
    refresh : float
        Seconds between two looks, 10 % more or less at random.
    expire : float
        A service that nobody holds is forgotten once it was not used for so many seconds,
        and for twice as many at the most.
    updates : UpdatePolicy or None
        What is believed of discovery. None: `UpdatePolicy()`.
    bus : EventBus or None
        Where events go: `discovery_change` and `discovery_delete`, with the `Change`.

    Raises
    ------
    TypeError, ValueError
        Something of another kind; seconds out of [1e-6, 1e9].

    Attributes
    ----------
    name : str
        What tells it from others: see `factory_name`.
    balancer : LoadBalancer
    """

    def __init__(
        self,
        resolver: Resolver,
        balancer: LoadBalancer,
        *,
        refresh: float = 5.0,
        expire: float = 15.0,
        updates: UpdatePolicy | None = None,
        bus: EventBus | None = None,
    ) -> None:
        if not isinstance(resolver, Resolver):
            raise TypeError(
                f"resolver must have a name, target, resolve and diff, got {resolver!r}"
            )
        if not isinstance(balancer, LoadBalancer):
            raise TypeError(
                f"balancer must have a name and get_picker, got {balancer!r}; of a builder of "
                "selectors: rota.clients.SelectorBalancer(builder)"
            )
        updates = UpdatePolicy() if updates is None else updates
        if not isinstance(updates, UpdatePolicy):
            raise TypeError(f"updates must be an UpdatePolicy or None, got {updates!r}")
        if bus is not None and not isinstance(bus, EventBus):
            raise TypeError(f"bus must be an EventBus or None, got {bus!r}")
        refresh, expire = as_duration("refresh", refresh), as_duration("expire", expire)
        self.name = factory_name(resolver, balancer, refresh, expire)
        self.balancer = balancer
        self._target = resolver.target
        self._held = Held()
        self._services = Services(resolver, balancer, refresh, expire, updates, bus, self._held)
        self._set_up()
        with _lock:
            _factories.add(self)
            _all_services.add(self._services)

    def _set_up(self) -> None:
        """Get ready to run."""

    @property
    def events(self) -> EventQueue:
        """The last 200 changes and deletions; `extra` is a dictionary for `json.dumps`.

        It has the "key", and of "added", "updated" and "removed" the addresses and weights of
        the first 100, and how many there were: "n_added" and so on.
        """
        return self._services.events

    @property
    def n_changes(self) -> int:
        """Changes that were made, of all services."""
        return self._services.n_changes

    @property
    def n_deletions(self) -> int:
        """Services that were forgotten."""
        return self._services.n_deletions

    def followed(self, endpoint: Any) -> ServiceBalancer | None:
        """Return the live balancer of a service that was used of late, else None. O(1)."""
        holder = self._held.get(self._target(endpoint))
        if holder is not None:
            holder.use()
        return holder

    def add_rebalance_hook(self, hook: Hook) -> Callable[[], None]:
        """Have `hook(change)` called before each change is made; returns what ends that.

        It is called where discovery is followed and must not block. What it raises is logged.
        """
        return _added(self._services.rebalance_hooks, hook)

    def add_delete_hook(self, hook: Hook) -> Callable[[], None]:
        """Have `hook(change)` called before each service is forgotten; returns what ends that."""
        return _added(self._services.delete_hooks, hook)

    def dump(self) -> Dump:
        """Return the instances of all services that are followed, by target, as Kitex does."""
        return {
            target: [described(instance) for instance in result.instances]
            for target, (result, _) in self._services.results().items()
        }

    def results(self) -> dict[str, Result]:
        """Return what is believed of each service that is followed, by target."""
        return {target: result for target, (result, _) in self._services.results().items()}

    def ages(self) -> dict[str, float]:
        """Return for each target for how many seconds discovery has been silent."""
        now = time.monotonic()
        results = self._services.results()
        return {target: max(0.0, now - confirmed) for target, (_, confirmed) in results.items()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self._services.results())} services)"


class BalancerFactory(Factory):
    """Gives the live balancer of a service by its name. For threads.

    Made with the parameters of `Factory`. Discovery is followed on one daemon thread, which is
    started by the first `get`, and ends when the factory is closed; or forgotten, with all it
    gave. In a forked child it goes on by itself. Any number of threads may use it.
    """

    def _set_up(self) -> None:
        self._n_users = 1
        self._loop = LoopThread("rota-discovery")
        with _lock:
            _loops.add(self._loop)

    @classmethod
    def shared(cls, resolver: Resolver, balancer: LoadBalancer, **options: Any) -> "Self":
        """Return the factory of these names and options that is there, or else a new one.

        Resolvers of one name count as the same, and balancers too, as in Kitex. The last who
        calls `close` closes it.
        """
        made = cls(resolver, balancer, **options)
        key = repr((made.name, sorted(options.items(), key=lambda item: item[0])))
        with _lock:
            there = _shared.get(key)
            if there is None or type(there) is not cls or not there._n_users:
                _shared[key] = made
                return made
            there._n_users += 1
            return there

    def get(self, endpoint: Any, timeout: float | None = None) -> ServiceBalancer:
        """Return the live balancer of a service: O(1) where it is followed, else it is resolved.

        Raises
        ------
        RuntimeError
            The factory is closed; or the service is not followed yet, and this was called
            from within a hook or resolver, on the factory's own thread.
        TimeoutError
            It was not resolved within `timeout` seconds; `concurrent.futures.TimeoutError`.
        Exception
            Whatever the resolver raises. Then nothing is kept.
        """
        target = self._target(endpoint)
        holder = self._held.get(target)
        if holder is not None:
            holder.use()
            return holder
        return self._loop.run(self._services.get(target, self._loop), timeout)

    def refresh(self, endpoint: Any = None, timeout: float | None = None) -> None:
        """Resolve a service, or all that are followed, again now. Errors as those of `get`.

        Raises
        ------
        LookupError
            The service is not followed.
        """
        target = None if endpoint is None else self._target(endpoint)
        self._loop.run(self._services.refresh(target), timeout)

    def close(self) -> None:
        """Forget all services, and end the thread. May be called more than once."""
        with _lock:
            self._n_users = max(0, self._n_users - 1)
            if self._n_users:
                return
        self._held.clear()
        self._loop.close()

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Life:
    """While it lives the tasks of an `AsyncBalancerFactory` run."""

    __slots__ = ("__weakref__",)


class AsyncBalancerFactory(Factory):
    """Gives the live balancer of a service by its name. For asyncio.

    Made with the parameters of `Factory`. Discovery is followed by tasks on the loop on which
    the first `get` was awaited; they end with it, or when the factory is closed; or forgotten,
    with all it gave. A resolver that blocks is called on threads.
    """

    def _set_up(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._life: _Life | None = None
        self._process = os.getpid()
        self._is_closed = False

    async def get(self, endpoint: Any) -> ServiceBalancer:
        """Return the live balancer of a service: O(1) where it is followed, else it is resolved.

        Raises
        ------
        RuntimeError
            The factory is closed, or used on another loop.
        Exception
            Whatever the resolver raises. Then nothing is kept.
        """
        target = self._target(endpoint)
        holder = self._held.get(target)
        if holder is not None and self._loop is asyncio.get_running_loop():
            holder.use()
            return holder
        return await self._services.get(target, self._begun())

    async def refresh(self, endpoint: Any = None) -> None:
        """Resolve a service, or all that are followed, again now. Errors as those of `get`.

        Raises
        ------
        LookupError
            The service is not followed.
        """
        self._begun()
        await self._services.refresh(None if endpoint is None else self._target(endpoint))

    async def close(self) -> None:
        """Forget all services; returns when everything has ended. May be called more than once."""
        self._is_closed = True
        self._held.clear()
        if self._loop is asyncio.get_running_loop():
            await self._services.close()

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _begun(self) -> _Life:
        if self._is_closed:
            raise RuntimeError("the factory is closed")
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            is_parents = self._process != os.getpid()
            if self._loop is not None and not self._loop.is_closed() and not is_parents:
                raise RuntimeError("the factory is used on another loop")
            self._services.resume()  # the loop may have been closed over their tasks
            self._process = os.getpid()
            self._loop, self._life = loop, _Life()
            keeper = self._services.start()
            end = weakref.finalize(self._life, _cancel, loop, weakref.ref(keeper))
            end.atexit = False
        assert self._life is not None
        return self._life


def dump() -> dict[str, Dump]:
    """Return what all factories of this process follow, by their names.

    Of several of one name the second has "#2" behind it, and so on.
    """
    dumps: dict[str, Dump] = {}
    with _lock:
        factories = list(_factories)
    for factory in factories:
        name, n = factory.name, 1
        while name in dumps:
            n += 1
            name = f"{factory.name}#{n}"
        dumps[name] = factory.dump()
    return dumps


def factory_name(resolver: Resolver, balancer: LoadBalancer, refresh: float, expire: float) -> str:
    """Return the key that Kitex shares factories by: resolver|balancer|{refresh expire}."""
    return f"{resolver.name}|{balancer.name}|{{{refresh:g}s {expire:g}s}}"


def _added(hooks: dict[object, Hook], hook: Hook) -> Callable[[], None]:
    """Add a hook; return what removes it, and may be called more than once."""
    if not callable(hook):
        raise TypeError(f"hook must be callable, got {hook!r}")
    key = object()
    hooks[key] = hook

    def remove() -> None:
        hooks.pop(key, None)

    return remove


def _cancel(loop: asyncio.AbstractEventLoop, reference: "weakref.ref[asyncio.Task[None]]") -> None:
    keeper = reference()
    if keeper is not None and not loop.is_closed():
        loop.call_soon_threadsafe(keeper.cancel)


def _resume() -> None:
    global _lock
    _lock = threading.RLock()  # another thread of the parent may have held it
    for loop in list(_loops):
        loop.renew_lock()
    for services in list(_all_services):
        services.resume()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_resume)
