"""From the event bus to the balancer."""

from collections.abc import Callable

from rota.discovery import Change
from rota.events import DISCOVERY_CHANGE, DISCOVERY_DELETE, Event, EventBus
from rota.loadbalance.interface import Rebalancer


def connect(bus: EventBus, balancer: Rebalancer) -> Callable[[], None]:
    """Have `balancer` follow discovery's changes on `bus`; returns the way to end that.

    Parameters
    ----------
    bus : EventBus
    balancer : Rebalancer
        Any object with `rebalance(change)` and `delete(change)`.

    Returns
    -------
    callable
        Ends it; may be called more than once.

    Raises
    ------
    TypeError
        `balancer` has no such methods: it keeps no pickers and need not be told.
    """
    if not isinstance(balancer, Rebalancer):
        raise TypeError(f"balancer must have rebalance and delete, got {balancer!r}")

    def rebalance(event: Event) -> None:
        if isinstance(event.extra, Change):
            balancer.rebalance(event.extra)

    def delete(event: Event) -> None:
        if isinstance(event.extra, Change):
            balancer.delete(event.extra)

    bus.watch(DISCOVERY_CHANGE, rebalance)
    bus.watch(DISCOVERY_DELETE, delete)

    def disconnect() -> None:
        bus.unwatch(DISCOVERY_CHANGE, rebalance)
        bus.unwatch(DISCOVERY_DELETE, delete)

    return disconnect
