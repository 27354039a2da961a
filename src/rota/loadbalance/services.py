"""The services that a factory follows: the same on a thread of its own and on the caller's loop.

All of `Services` runs on one event loop. Each service has a feed, which runs for as long as it
is used or held: what somebody holds is a `ServiceBalancer`, and it is known here by a weak
reference only.
"""

import asyncio
import contextvars
import logging
import time
import weakref
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from rota.background import LoopThread
from rota.discovery import Change, Instance, Result
from rota.discovery.feed import Feed, resolve
from rota.discovery.resolver import Resolver
from rota.discovery.stabilizer import UpdatePolicy
from rota.events import DISCOVERY_CHANGE, DISCOVERY_DELETE, Event, EventBus, EventQueue
from rota.loadbalance.interface import LoadBalancer, Picker, Rebalancer

logger = logging.getLogger(__name__)

# Instances of each kind that an event of the queue names.
MOST_DESCRIBED = 100

Hook = Callable[[Change], object]

# What is not a coroutine is not cancelled by us: it has met something else that was.
FAILURES = (Exception, asyncio.CancelledError)
GetPicker = Callable[[Result], Picker[Instance]]


class ServiceBalancer:
    """A service that is followed: ask it for the picker of now, for each request.

    While it is held the service is followed. Made by the `get` of a factory.

    Attributes
    ----------
    target : str
        The description that the resolver made of the endpoint.
    """

    __slots__ = ("__weakref__", "_get_picker", "_service", "life", "target")

    def __init__(self, target: str, service: "Service", life: object) -> None:
        self.target = target
        self._service = service
        self.life = life  # what keeps the loop running
        self._get_picker: GetPicker = service.balancer.get_picker

    def get_picker(self) -> Picker[Instance]:
        """Return the picker over the instances of now. O(1) where the balancer keeps it.

        Raises
        ------
        RuntimeError
            The factory is closed.
        """
        service = self._service
        service.is_used = True
        return self._get_picker(service.feed.result)

    @property
    def result(self) -> Result:
        """What is believed of the service."""
        return self._service.feed.result

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The instances that are believed to be there."""
        return self._service.feed.result.instances

    @property
    def age(self) -> float:
        """Seconds since discovery has spoken last: how stale `result` may be."""
        return max(0.0, time.monotonic() - self._service.feed.confirmed)

    def __repr__(self) -> str:
        return f"ServiceBalancer({self.target!r}, {len(self.instances)} instances)"

    def use(self) -> None:
        """Keep the service from being forgotten for a while."""
        self._service.is_used = True

    def go_by(self, get_picker: "GetPicker") -> None:
        """Have another give the pickers."""
        self._get_picker = get_picker


class Service:
    """A service that is followed, as its factory sees it."""

    __slots__ = ("balancer", "feed", "holder", "is_used", "task")

    def __init__(self, balancer: LoadBalancer, feed: Feed) -> None:
        self.balancer = balancer
        self.feed = feed
        self.task: asyncio.Task[None] | None = None
        self.is_used = True
        self.holder: Callable[[], ServiceBalancer | None] = _nobody


def _nobody() -> None:
    return None


def _refuse(target: str, result: Result) -> Picker[Instance]:
    raise RuntimeError(f"the factory of {target!r} is closed")


class Held(dict[str, ServiceBalancer]):
    """What a factory itself holds: the services used of late."""

    __slots__ = ("__weakref__",)


class Services:
    """Opens, follows and closes services.

    Parameters
    ----------
    resolver : Resolver
    balancer : LoadBalancer
    refresh, expire : float
        Seconds.
    updates : UpdatePolicy
    bus : EventBus or None
    held : Held
        Taken from what has not been used for an interval of `expire`, and known by a weak
        reference.
    """

    def __init__(
        self,
        resolver: Resolver,
        balancer: LoadBalancer,
        refresh: float,
        expire: float,
        updates: UpdatePolicy,
        bus: EventBus | None,
        held: Held,
    ) -> None:
        self.resolver = resolver
        self.balancer = balancer
        self.events = EventQueue()
        self.n_changes = self.n_deletions = 0
        # By what no two have: any thread may add and remove.
        self.rebalance_hooks: dict[object, Hook] = {}
        self.delete_hooks: dict[object, Hook] = {}
        self._rebalancer = balancer if isinstance(balancer, Rebalancer) else None
        self._refresh = refresh
        self._expire = expire
        self._updates = updates
        self._bus = bus
        self._held = weakref.ref(held)
        self._services: dict[str, Service] = {}
        self._flights: dict[str, asyncio.Task[Service]] = {}
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> "asyncio.Task[None]":
        """Look after what is used no more, until cancelled: then all is closed."""
        if self._keeper is None or self._keeper.done():
            # A task that never began runs none of its own code when it is cancelled.
            self._keeper = _begun(self._keep())
            self._keeper.add_done_callback(
                lambda task: self._close_all(), context=contextvars.Context()
            )
            for service in self._services.values():
                if service.task is None:
                    service.task = _begun(service.feed.run())
        return self._keeper

    async def get(self, target: str, life: object) -> ServiceBalancer:
        """Return who holds the service; it is resolved once, whoever asks meanwhile."""
        self.start()
        service = self._services.get(target)
        if service is None:
            flight = self._flights.get(target)
            if flight is None:
                flight = asyncio.get_running_loop().create_task(self._open(target))
                self._flights[target] = flight
                flight.add_done_callback(lambda flight: self._land(target, flight))
            # Who gives up waiting leaves it to the others; and is not cancelled with it.
            await asyncio.wait((flight,))
            if flight.cancelled():
                raise RuntimeError(
                    f"{target!r} was not resolved: the factory is closed, or its resolver was "
                    "cancelled"
                )
            service = flight.result()
            if self._services.get(target) is not service:
                raise RuntimeError(f"the factory of {target!r} is closed")
        service.is_used = True
        holder = service.holder()
        if holder is None:
            holder = ServiceBalancer(target, service, life)
            service.holder = weakref.ref(holder)
        held = self._held()
        if held is not None:
            held[target] = holder
        return holder

    async def refresh(self, target: str | None) -> None:
        """Resolve one or all of the services again, now."""
        if target is not None:
            service = self._services.get(target)
            if service is None:
                raise LookupError(f"endpoint must be of a service that is followed, got {target!r}")
            await service.feed.refresh()
            return
        feeds = [service.feed for service in self._services.values()]
        answers = await asyncio.gather(*(feed.refresh() for feed in feeds), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    def results(self) -> dict[str, tuple[Result, float]]:
        """Return what is believed of each service, and when that was confirmed. Any thread."""
        services = list(self._services.items())
        return {target: (each.feed.result, each.feed.confirmed) for target, each in services}

    def resume(self) -> None:
        """Stand still, and go on when asked for something: in a forked child, on another loop."""
        self._flights.clear()
        self._keeper = None
        held = self._held()
        if held is not None:
            held.clear()  # whoever asks gets in touch with the loop
        for target, service in self._services.items():
            service.feed = self._feed(target, service.feed.result)
            service.task = None
            holder = service.holder()
            if holder is not None:
                holder.go_by(partial(self._wake, weakref.ref(holder)))

    def _wake(self, reference: "weakref.ref[ServiceBalancer]", result: Result) -> Picker[Instance]:
        holder = reference()
        if holder is not None:
            holder.go_by(self.balancer.get_picker)
            if isinstance(holder.life, LoopThread):
                holder.life.submit(self._begin())
        return self.balancer.get_picker(result)

    async def _begin(self) -> None:
        self.start()

    async def close(self) -> None:
        """Close all; returns when everything has ended."""
        tasks = {each.task for each in self._services.values()} | {*self._flights.values()}
        if self._keeper is not None:
            self._keeper.cancel()
            tasks.add(self._keeper)
        # A resolver may be who closes.
        waited = [task for task in tasks if task not in (None, asyncio.current_task())]
        await asyncio.gather(*waited, return_exceptions=True)

    async def _open(self, target: str) -> Service:
        first = await resolve(self.resolver, target)
        if self._keeper is None or self._keeper.done():  # the resolver has swallowed that
            raise RuntimeError(f"the factory of {target!r} is closed")
        service = Service(self.balancer, self._feed(target, first))
        service.task = _begun(service.feed.run())
        self._services[target] = service
        return service

    def _feed(self, target: str, first: Result) -> Feed:
        return Feed(
            self.resolver,
            target,
            first,
            self._updates,
            self._refresh,
            self._rebalance,
            self._delete,
        )

    def _land(self, target: str, flight: "asyncio.Task[Service]") -> None:
        self._flights.pop(target, None)
        if not flight.cancelled():
            flight.exception()  # seen, also where nobody waits any more

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._expire)
            held = self._held()
            for target, service in list(self._services.items()):
                if service.is_used:
                    service.is_used = False
                    continue
                if held is not None:
                    held.pop(target, None)
                if service.holder() is None:
                    self._close(target)
            del held

    def _close_all(self) -> None:
        for flight in self._flights.values():
            flight.cancel()
        for target in list(self._services):
            self._close(target)

    def _close(self, target: str) -> None:
        service = self._services.pop(target)
        service.feed.close()
        held = self._held()
        if held is not None:
            held.pop(target, None)  # asked for at the same time as the factory was closed
        if service.task is not None:
            service.task.cancel()
        holder = service.holder()
        if holder is not None:
            holder.go_by(partial(_refuse, target))
        self._delete(service.feed.result)

    def _rebalance(self, change: Change) -> None:
        for hook in list(self.rebalance_hooks.values()):
            _call(hook, change)
        if self._rebalancer is not None:
            self._rebalancer.rebalance(change)
        self.n_changes += 1
        self._tell(DISCOVERY_CHANGE, change)

    def _delete(self, result: Result) -> None:
        self.n_deletions += 1
        gone = Result(result.cacheable, result.cache_key)
        change = Change(gone, removed=result.instances, previous=result)
        for hook in list(self.delete_hooks.values()):
            _call(hook, change)
        # One that fails ends its service, and no other.
        try:
            if self._rebalancer is not None:
                self._rebalancer.delete(change)
        except FAILURES:
            logger.exception("%s failed to delete", self.balancer.name)
        try:
            self._tell(DISCOVERY_DELETE, change)
        except FAILURES:
            logger.exception("the end of %r could not be told", change.result.cache_key)

    def _tell(self, name: str, change: Change) -> None:
        key = change.result.cache_key
        # Of many the first: the queue keeps hundreds of these.
        kinds: dict[str, Any] = {}
        for kind in ("added", "updated", "removed"):
            instances = getattr(change, kind)
            kinds[kind] = [described(instance) for instance in instances[:MOST_DESCRIBED]]
            kinds[f"n_{kind}"] = len(instances)
        # Not the change itself: the queue would keep hundreds of lists alive.
        self.events.push(Event(name, detail=key, extra={"key": key, **kinds}))
        if self._bus is not None:
            self._bus.dispatch(Event(name, detail=key, extra=change))


def _begun(coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
    """Begin a task that outlives who asked first, whose context it must not keep."""
    return contextvars.Context().run(asyncio.get_running_loop().create_task, coroutine)


def described(instance: Instance) -> dict[str, Any]:
    """Return an instance as dumps show it, as Kitex's."""
    return {"address": f"{instance.network}://{instance.address}", "weight": instance.weight}


def _call(hook: Hook, change: Change) -> None:
    try:
        hook(change)
    except FAILURES:
        logger.exception("%r failed on a change of %r", hook, change.result.cache_key)
