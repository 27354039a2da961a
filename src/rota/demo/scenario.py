"""What happens to one balancer: traffic, and a fleet that changes in the middle of it."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from rota.demo.fleet import Fleet
from rota.demo.measure import Cost, measure
from rota.demo.traffic import CLIENTS, Client, Tally, Tickets
from rota.discovery import Instance, MemoryRegistry
from rota.events import Event, EventBus
from rota.loadbalance import LoadBalancer, Picker, Rebalancer, connect

SERVICE = "demo"

# (weight, seconds that a request takes)
PLANS = ((5, 0.0), (4, 0.0005), (3, 0.001), (2, 0.0015), (1, 0.002))
KILLED = 1
REWEIGHTED, NEW_WEIGHT = 4, 4
ADDED = (3, 0.001)

LAG = 0.05  # seconds from the first failure until discovery knows
PATIENCE = 1.0  # seconds to wait for that failure: a balancer may never pick the dead server
TICK = 0.1  # seconds between two reports of progress


@dataclass(frozen=True, slots=True)
class Played:
    """What came of one balancer's traffic.

    Parameters
    ----------
    before, after : dict of str to int
        The weight at each address, in the two phases in which nothing changes.
    tally : Tally
    seconds : float
        From the first request to the last answer.
    cost : Cost
        Of the balancer's own picker over the five instances it had last.
    """

    before: dict[str, int]
    after: dict[str, int]
    tally: Tally
    seconds: float
    cost: Cost


def play(balancer: LoadBalancer, n_requests: int, report: Callable[[int], object]) -> Played:
    """Send `n_requests` through `balancer` to a fresh fleet; `report` gets the count so far.

    When `during` begins one server is killed; once clients have met that, discovery
    withdraws it, publishes a new server, and publishes one with another weight.
    """
    bus = EventBus()
    registry = MemoryRegistry(bus)
    # A balancer that keeps no pickers need not be told of changes.
    disconnect = connect(bus, balancer) if isinstance(balancer, Rebalancer) else None
    try:
        with Fleet() as fleet:
            instances = fleet.start(*PLANS)
            registry.publish(SERVICE, *instances)
            _settle(bus)
            before = _weights(registry)
            failed = threading.Event()
            tickets = Tickets(n_requests, lambda: fleet.kill(instances[KILLED].address))

            def get_picker() -> Picker[Instance]:
                return balancer.get_picker(registry.resolve(SERVICE))

            began = time.perf_counter()
            with ThreadPoolExecutor(CLIENTS) as executor:
                try:
                    running = [
                        executor.submit(Client(get_picker, failed.set).run, tickets)
                        for _ in range(CLIENTS)
                    ]
                    while not tickets.during.wait(TICK):
                        report(tickets.n_taken)
                    if failed.wait(PATIENCE):
                        time.sleep(LAG)
                    _change(registry, fleet, instances)
                    _settle(bus)
                    tickets.open_after()
                    while wait(running, TICK).not_done:
                        report(tickets.n_taken)
                finally:
                    tickets.stop()
            seconds = time.perf_counter() - began
            tally = sum((future.result() for future in running), Tally())
        report(n_requests)
        cost = measure(get_picker())
        return Played(before, _weights(registry), tally, seconds, cost)
    finally:
        registry.delete(SERVICE)
        _settle(bus)
        if disconnect is not None:
            disconnect()


def _change(registry: MemoryRegistry, fleet: Fleet, instances: list[Instance]) -> None:
    registry.withdraw(SERVICE, instances[KILLED].address)
    registry.publish(SERVICE, *fleet.start(ADDED))
    registry.publish(SERVICE, replace(instances[REWEIGHTED], weight=NEW_WEIGHT))


def _settle(bus: EventBus) -> None:
    """Return when the bus has delivered all that was dispatched so far."""
    bus.dispatch_and_wait(Event("demo_settled"))


def _weights(registry: MemoryRegistry) -> dict[str, int]:
    return {i.address: i.weight or 0 for i in registry.resolve(SERVICE).instances}
