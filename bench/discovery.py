"""How long it takes until a change of one instance has reached the live picker.

    python -m bench.discovery [n ...]

For services of n instances (100, 1,000 and 10,000) one weight is changed 50 times, each time
once everything is quiet, and the time from just before the change is published until the picker
has the new weight is taken: the median and the worst, in milliseconds, beside what the
registry itself takes to publish. Then what `rebalance` takes in the balancer, by itself, which
is to be the same for every n. Times are of this machine; the bar is 50 ms at n = 10,000.
etcd must be installed.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from rota import BalancerFactory, Instance, MemoryRegistry, WeightedRoundRobinBalancer, diff
from rota.demo.registries import ETCD, opened
from rota.discovery import FileRegistry, FileResolver, Result
from rota.discovery.etcd import KitexLayout
from rota.discovery.etcd.client import EtcdClient, settings_of

SIZES = (100, 1_000, 10_000)
N_CHANGES = 50
QUIET = 0.15  # seconds, more than changes are gathered for
GLANCE = 0.0002

SERVICE = "users"


def instances_of(n: int) -> list[Instance]:
    """Return n instances."""
    return [Instance(f"10.{k >> 16}.{k >> 8 & 255}.{k & 255}:80", 1 + k % 5) for k in range(n)]


@contextmanager
def memory() -> Iterator[tuple[Any, Any]]:
    """Give a registry and a resolver: within this process."""
    registry = MemoryRegistry()
    yield registry, registry


@contextmanager
def file() -> Iterator[tuple[Any, Any]]:
    """Give a registry and a resolver: a file, looked at 200 times a second."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "services.json"
        yield FileRegistry(path), FileResolver(path, poll=0.005)


class EtcdEntries:
    """Publishes to etcd as a registry would, without a lease for each."""

    def __init__(self, url: str) -> None:
        self._settings = settings_of(url, None, None, None, 60.0)
        self._layout = KitexLayout()

    def publish(self, service: str, *instances: Instance) -> None:
        """Write the instances."""
        asyncio.run(self._write([self._layout.write(service, each) for each in instances]))

    async def _write(self, entries: list[tuple[str, bytes]]) -> None:
        async with EtcdClient(self._settings) as client:
            for key, value in entries:
                await client.put(key, value, 0)


@contextmanager
def etcd() -> Iterator[tuple[Any, Any]]:
    """Give a registry and a resolver: an etcd of its own."""
    with opened(ETCD) as registry:
        yield EtcdEntries(registry.endpoints[0]), registry.resolver


def measure(source: Callable[[], Any], n: int) -> tuple[list[float], list[float]]:
    """Return the seconds until each change was in the picker, and until it was published."""
    instances = instances_of(n)
    with source() as (registry, resolver):
        registry.publish(SERVICE, *instances)
        with BalancerFactory(resolver, WeightedRoundRobinBalancer()) as factory:
            picker: Any = factory.get(SERVICE).get_picker()
            index = {instance.address: i for i, instance in enumerate(picker.instances)}
            until, published = [], []
            for k in range(-3, N_CHANGES):  # the first of all is of a picker only just made
                time.sleep(QUIET)
                weight, i = 100 + k, index[instances[k % n].address]
                began = time.perf_counter()
                registry.publish(SERVICE, replace(instances[k % n], weight=weight))
                ended = time.perf_counter()
                while picker.weights[i] != weight:
                    time.sleep(GLANCE)
                until.append(time.perf_counter() - began)
                published.append(ended - began)
    return until[3:], published[3:]


def rebalance(n: int) -> list[float]:
    """Return the seconds that the balancer takes for each change."""
    balancer = WeightedRoundRobinBalancer()
    now = Result(True, SERVICE, instances_of(n))
    balancer.get_picker(now)
    seconds = []
    for k in range(-3, N_CHANGES):
        instances = list(now.instances)
        instances[k % n] = replace(instances[k % n], weight=100 + k)
        change = diff(SERVICE, now, Result(True, SERVICE, instances))
        began = time.perf_counter()
        balancer.rebalance(change)
        seconds.append(time.perf_counter() - began)
        now = change.result
    return seconds[3:]


def main(sizes: list[int]) -> None:
    """Print a table."""
    print(f"{'':>10}{'n':>8}{'median ms':>12}{'worst ms':>12}{'published ms':>14}")
    for source in (memory, file, etcd):
        for n in sizes:
            until, published = measure(source, n)
            print(
                f"{source.__name__:>10}{n:>8}{median(until) * 1e3:>12.2f}{max(until) * 1e3:>12.2f}"
                f"{median(published) * 1e3:>14.2f}",
                flush=True,
            )
    for n in sizes:
        seconds = rebalance(n)
        print(
            f"{'rebalance':>10}{n:>8}{median(seconds) * 1e3:>12.4f}{max(seconds) * 1e3:>12.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or list(SIZES))
