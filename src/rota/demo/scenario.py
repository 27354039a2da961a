"""What happens to one balancer: traffic, and a fleet that changes in the middle of it."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from rota.demo.fleet import Fleet
from rota.demo.measure import Cost, measure
from rota.demo.registries import Registry
from rota.demo.traffic import CLIENTS, Client, Tally, Tickets
from rota.discovery import Instance
from rota.loadbalance import BalancerFactory, LoadBalancer, ServiceBalancer

SERVICE = "demo"

# (weight, seconds that a request takes)
PLANS = ((5, 0.0), (4, 0.0005), (3, 0.001), (2, 0.0015), (1, 0.002))
KILLED = 1
REWEIGHTED, NEW_WEIGHT = 4, 4
ADDED = (3, 0.001)

LAG = 0.05  # seconds from the first failure until discovery knows
PATIENCE = 1.0  # seconds to wait for that failure: a balancer may never pick the dead server
TICK = 0.1  # seconds between two reports of progress

MOST_LAG = 60.0  # seconds until what was published is found: more is an error
GLANCE = 0.005  # seconds between two looks for it


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


def play(
    balancer: LoadBalancer,
    registry: Registry,
    n_requests: int,
    report: Callable[[int], object],
) -> Played:
    """Send `n_requests` through `balancer` to a fresh fleet; `report` gets the count so far.

    When `during` begins one server is killed; once clients have met that, it is withdrawn from
    the registry, a new server is published, and one with another weight.
    """
    with Fleet() as fleet, BalancerFactory(registry.resolver, balancer) as factory:
        instances = fleet.start(*PLANS)
        try:
            registry.publish(SERVICE, *instances)
            service = factory.get(SERVICE)
            before = _found(service, instances)
            failed = threading.Event()
            tickets = Tickets(n_requests, lambda: fleet.kill(instances[KILLED].address))
            began = time.perf_counter()
            with ThreadPoolExecutor(CLIENTS) as executor:
                try:
                    running = [
                        executor.submit(Client(service.get_picker, failed.set).run, tickets)
                        for _ in range(CLIENTS)
                    ]
                    while not tickets.during.wait(TICK):
                        report(tickets.n_taken)
                    if failed.wait(PATIENCE):
                        time.sleep(LAG)
                    instances = _change(registry, fleet, instances)
                    after = _found(service, instances)
                    tickets.open_after()
                    while wait(running, TICK).not_done:
                        report(tickets.n_taken)
                finally:
                    tickets.stop()
            seconds = time.perf_counter() - began
            tally = sum((future.result() for future in running), Tally())
            report(n_requests)
            return Played(before, after, tally, seconds, measure(service.get_picker()))
        finally:
            for instance in instances:
                registry.withdraw(SERVICE, instance.address)


def _change(registry: Registry, fleet: Fleet, instances: list[Instance]) -> list[Instance]:
    """Publish what changes; return who is there then."""
    registry.withdraw(SERVICE, instances[KILLED].address)
    added = fleet.start(ADDED)
    registry.publish(SERVICE, *added)
    reweighted = replace(instances[REWEIGHTED], weight=NEW_WEIGHT)
    registry.publish(SERVICE, reweighted)
    return [
        reweighted if k == REWEIGHTED else instance
        for k, instance in enumerate(instances)
        if k != KILLED
    ] + added


def _found(service: ServiceBalancer, instances: list[Instance]) -> dict[str, int]:
    """Return the weights by address, once the balancer has been told of them."""
    wanted = {instance.address: instance.weight or 0 for instance in instances}
    end = time.monotonic() + MOST_LAG
    while {instance.address: instance.weight for instance in service.instances} != wanted:
        if time.monotonic() > end:
            raise RuntimeError(f"{service.instances!r} were found, and published {instances!r}")
        time.sleep(GLANCE)
    return wanted
