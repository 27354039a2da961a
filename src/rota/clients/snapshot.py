"""What balanced clients, factories, budgets and pickers have counted, as plain rows.

Nothing is counted for this: kernels and clients count for their own ends, and it is read here when
somebody asks. `rota.clients.prometheus` and `rota.clients.telemetry` show it.
"""

import logging
import math
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from rota.clients.members import Members
from rota.discovery import Instance
from rota.discovery.resolver import SCHEME
from rota.loadbalance.factory import Factory
from rota.loadbalance.services import ServiceBalancer
from rota.retry import RetryBudget

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InstanceStats:
    """One instance, as a client or a picker knows it.

    Attributes
    ----------
    instance : str
        Its address; with the network before it where that is not "tcp".
    n_calls, n_failures : int
        Attempts begun, and those that failed (see `rota.outcome`), since it was first called. Of
        a bare picker 0.
    n_in_flight : int
        The client's attempts that go on. Of a bare picker 0.
    weight : int or None
        None: it has left, or the picker has no weights.
    load : int or None
        Requests in flight as the picker counts them, of all its users; None: it does not.
    latency : float or None
        The picker's average, seconds; None: it has none, or knows nothing.
    """

    instance: str
    n_calls: int = 0
    n_failures: int = 0
    n_in_flight: int = 0
    weight: int | None = None
    load: int | None = None
    latency: float | None = None


@dataclass(frozen=True, slots=True)
class BudgetStats:
    """What a `RetryBudget` has counted, and how many retries it would let through now."""

    n_calls: int
    n_retries: int
    n_refused: int
    balance: int


@dataclass(frozen=True, slots=True)
class ServiceStats:
    """One service, as a client knows it.

    Attributes
    ----------
    service : str
    n_calls, n_failures : int
        Of all attempts since the client was made; they never decrease.
    n_in_flight : int
    n_instances : int or None
        That are believed to be there; None: nobody has asked yet, or the client is closed.
    age : float or None
        Seconds since discovery has spoken last.
    budget : BudgetStats or None
    instances : tuple of InstanceStats
        Those that are there, and those that have left with calls going on.
    """

    service: str
    n_calls: int
    n_failures: int
    n_in_flight: int
    n_instances: int | None
    age: float | None
    budget: BudgetStats | None
    instances: tuple[InstanceStats, ...]


def service_stats(
    endpoint: str,
    members: "Members[Any]",
    held: ServiceBalancer | None,
    budget: RetryBudget | None,
) -> ServiceStats:
    """Return what a client knows of a service. O(instances); any thread.

    Parameters
    ----------
    endpoint : str
    members : Members
        Of this service alone.
    held : ServiceBalancer or None
        What the client's factory has given for the endpoint.
    budget : RetryBudget or None
        That of the client's policy.
    """
    rows = {} if held is None else _rows_of_service(held)
    n_in_flight = 0
    for member in members.now():
        row = rows.setdefault(name_of(member.instance), _Row())
        row.n_calls += member.n_calls
        row.n_failures += member.n_failures
        row.n_in_flight += len(member.users)
        n_in_flight += len(member.users)
    return ServiceStats(
        endpoint.removeprefix(SCHEME).strip("/"),  # any that the resolver takes
        members.n_calls,
        members.n_failures,
        n_in_flight,
        None if held is None else len(held.instances),
        None if held is None else held.age,
        None if budget is None else budget_stats(budget),
        tuple([row.stats(instance) for instance, row in rows.items()]),
    )


def picker_stats(picker: Any) -> tuple[InstanceStats, ...]:
    """Return what a picker, or a selector, knows of each of its instances. O(instances)."""
    return tuple([row.stats(instance) for instance, row in _rows_of(picker).items()])


def budget_stats(budget: RetryBudget) -> BudgetStats:
    """Return what a budget has counted."""
    return BudgetStats(budget.n_calls, budget.n_retries, budget.n_refused, budget.balance)


def name_of(instance: Any) -> str:
    """Return what an instance is called: of an `Instance` its address, of all else its `str`."""
    if not isinstance(instance, Instance):
        return str(instance)
    if instance.network == "tcp":
        return instance.address
    return f"{instance.network}://{instance.address}"


class _Row:
    """An `InstanceStats` that is still added to: an instance may be in a list twice."""

    __slots__ = ("latency", "load", "n_calls", "n_failures", "n_in_flight", "weight")

    def __init__(self) -> None:
        self.n_calls = self.n_failures = self.n_in_flight = 0
        self.weight: int | None = None
        self.load: int | None = None
        self.latency: float | None = None

    def stats(self, instance: str) -> InstanceStats:
        return InstanceStats(
            instance,
            self.n_calls,
            self.n_failures,
            self.n_in_flight,
            self.weight,
            self.load,
            self.latency,
        )


Rows = dict[str, _Row]


def _rows_of_service(held: ServiceBalancer) -> Rows:
    result = held.result
    rows: Rows = {}
    if result.cacheable:  # else there is a new picker for each request
        try:
            picker = held.get_picker()
        except RuntimeError:  # the factory is closed
            return rows
        rows = _rows_of(picker)
    for instance in result.instances:  # also of a picker that does not say whom it has
        name = name_of(instance)
        if name not in rows:
            row = rows[name] = _Row()
            row.weight = instance.weight
    return rows


def _rows_of(picker: Any) -> Rows:
    if hasattr(picker, "nodes"):  # a selector
        if picker.picker is None:
            return _weighed(picker.nodes)
        picker = picker.picker
    rows: Rows = {}
    instances = getattr(picker, "instances", ())
    columns = [_column(picker, name, len(instances)) for name in ("weights", "loads", "latencies")]
    for instance, weight, load, latency in zip(instances, *columns):  # noqa: B905  it may grow
        if instance is None:
            continue
        row = rows.setdefault(name_of(instance), _Row())
        if weight is not None:
            row.weight = (row.weight or 0) + weight
        if load is not None:
            row.load = (row.load or 0) + load
        if latency is not None and not math.isnan(latency):
            row.latency = latency
    return rows


def _weighed(instances: Iterable[Instance]) -> Rows:
    rows: Rows = {}
    for instance in instances:
        row = rows.setdefault(name_of(instance), _Row())
        row.weight = instance.weight
    return rows


def _column(picker: Any, name: str, n: int) -> list[Any]:
    values = getattr(picker, name, None)
    return [None] * n if values is None else list(map(_plain, values))


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


# -- as metrics ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: the labels of its samples begin with "name", that of the source."""

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    description: str
    labels: tuple[str, ...]


_OF_INSTANCE = ("name", "service", "instance")
_OF_SERVICE = ("name", "service")
_OF_SOURCE = ("name",)

REQUESTS = Metric(
    "client.requests", "counter", "{request}", "Attempts begun, retries too.", _OF_INSTANCE
)
FAILURES = Metric("client.failures", "counter", "{request}", "Attempts that failed.", _OF_INSTANCE)
IN_FLIGHT = Metric("client.in_flight", "gauge", "{request}", "Attempts that go on.", _OF_INSTANCE)
INSTANCES = Metric(
    "client.instances", "gauge", "{instance}", "Instances that discovery has found.", _OF_SERVICE
)
AGE = Metric(
    "client.discovery.age", "gauge", "s", "Time since discovery has spoken last.", _OF_SERVICE
)
WEIGHT = Metric("picker.weight", "gauge", "1", "Weights of instances.", _OF_INSTANCE)
LOAD = Metric(
    "picker.in_flight", "gauge", "{request}", "Requests in flight, by the picker.", _OF_INSTANCE
)
LATENCY = Metric(
    "picker.latency", "gauge", "s", "Average latencies that the picker goes by.", _OF_INSTANCE
)
BUDGET_CALLS = Metric(
    "retry.budget.calls", "counter", "{request}", "Calls that retries are a share of.", _OF_SOURCE
)
BUDGET_RETRIES = Metric(
    "retry.budget.retries", "counter", "{request}", "Retries let through.", _OF_SOURCE
)
BUDGET_REFUSED = Metric(
    "retry.budget.refused", "counter", "{request}", "Retries refused.", _OF_SOURCE
)
BUDGET_BALANCE = Metric(
    "retry.budget.balance", "gauge", "{request}", "Retries that would be let through.", _OF_SOURCE
)
FACTORY_INSTANCES = Metric(
    "factory.instances", "gauge", "{instance}", "Instances that are believed in.", _OF_SERVICE
)
FACTORY_AGE = Metric(
    "factory.discovery.age", "gauge", "s", "Time since discovery has spoken last.", _OF_SERVICE
)
FACTORY_CHANGES = Metric(
    "factory.changes", "counter", "{change}", "Changes of services that were made.", _OF_SOURCE
)
FACTORY_DELETIONS = Metric(
    "factory.deletions", "counter", "{service}", "Services that were forgotten.", _OF_SOURCE
)

METRICS = (
    *(REQUESTS, FAILURES, IN_FLIGHT, INSTANCES, AGE),
    *(WEIGHT, LOAD, LATENCY),
    *(BUDGET_CALLS, BUDGET_RETRIES, BUDGET_REFUSED, BUDGET_BALANCE),
    *(FACTORY_INSTANCES, FACTORY_AGE, FACTORY_CHANGES, FACTORY_DELETIONS),
)

Sample = tuple[tuple[str, ...], float]
Samples = dict[Metric, list[Sample]]

# Of samples of whole services, where there are none of instances.
OF_ALL = ""


class Sources:
    """What is shown, by names. Any number of threads may use it.

    Parameters
    ----------
    sources : balanced clients, factories, budgets, selectors or pickers
        Held weakly: who is let go is shown no more.
    instances : bool
        Whether there are samples of each instance. False: of services only, and none of pickers.

    Raises
    ------
    TypeError
        A source of another kind, or that cannot be held weakly.
    """

    def __init__(self, *sources: Any, instances: bool = True) -> None:
        self._is_by_instance = instances
        self._sources: dict[str, weakref.ref[Any]] = {}
        for source in sources:
            self.add(source)

    def add(self, source: Any, name: str | None = None) -> str:
        """Show a source; return its name.

        Parameters
        ----------
        source : as those of the class
        name : str or None
            Its label. None: the name of its type, with "#2" and so on where that is taken.

        Raises
        ------
        TypeError
            A source of another kind; a name that is no str.
        ValueError
            The name is taken, or empty.
        """
        if not _is_source(source):
            raise TypeError(
                "source must be a balanced client, a factory, a RetryBudget, a selector or a "
                f"picker, got {source!r}"
            )
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str or None, got {name!r}")
        reference = weakref.ref(source)
        taken = {taken: each for taken, each in list(self._sources.items()) if each() is not None}
        if name is None:
            kind = name = type(source).__name__
            n = 1
            while name in taken:
                n += 1
                name = f"{kind}#{n}"
        if not name or name in taken:
            raise ValueError(f"name must be one that is not taken, got {name!r}")
        self._sources[name] = reference
        return name

    def discard(self, name: str) -> None:
        """Show the source of this name no more, if there is one."""
        self._sources.pop(name, None)

    def samples(self) -> Samples:
        """Return what all sources have counted by now, of all metrics. O(instances).

        A source that fails is logged, and left out.
        """
        found: Samples = {metric: [] for metric in METRICS}
        for name, reference in list(self._sources.items()):
            source = reference()
            if source is None:
                self._drop(name, reference)
                continue
            try:
                samples = self._samples_of(name, source)
            except Exception:
                logger.exception("%r could not be read", source)
                continue
            for metric, value, *labels in samples:
                found[metric].append(((name, *labels), value))
        return found

    def _drop(self, name: str, reference: "weakref.ref[Any]") -> None:
        if self._sources.get(name) is reference:
            del self._sources[name]

    def _samples_of(self, name: str, source: Any) -> list[Any]:
        if isinstance(source, RetryBudget):
            return _of_budget(budget_stats(source))
        if isinstance(source, Factory):
            return _of_factory(source)
        if hasattr(source, "stats"):
            return [
                sample
                for stats in source.stats()
                for sample in _of_service(stats, self._is_by_instance)
            ]
        return _of_picker("", picker_stats(source)) if self._is_by_instance else []


def _is_source(source: Any) -> bool:
    if isinstance(source, type):
        return False
    if isinstance(source, (RetryBudget, Factory)) or callable(getattr(source, "stats", None)):
        return True
    is_picker = hasattr(source, "next") and hasattr(source, "instances")
    return is_picker or (hasattr(source, "select") and hasattr(source, "nodes"))


# Samples as (metric, value, *labels), the name left out.


def _of_budget(budget: BudgetStats) -> list[Any]:
    return [
        (BUDGET_CALLS, budget.n_calls),
        (BUDGET_RETRIES, budget.n_retries),
        (BUDGET_REFUSED, budget.n_refused),
        (BUDGET_BALANCE, budget.balance),
    ]


def _of_factory(factory: Factory) -> list[Any]:
    results, ages = factory.results(), factory.ages()
    return [
        (FACTORY_CHANGES, factory.n_changes),
        (FACTORY_DELETIONS, factory.n_deletions),
        *((FACTORY_INSTANCES, len(each.instances), target) for target, each in results.items()),
        *((FACTORY_AGE, age, target) for target, age in ages.items()),
    ]


def _of_service(stats: ServiceStats, is_by_instance: bool) -> list[Any]:
    service = stats.service
    found: list[Any] = []
    if stats.n_instances is not None:
        found.append((INSTANCES, stats.n_instances, service))
    if stats.age is not None:
        found.append((AGE, stats.age, service))
    if stats.budget is not None:
        found += _of_budget(stats.budget)
    rows: Iterable[Any] = stats.instances if is_by_instance else (stats,)
    for row in rows:
        instance = row.instance if is_by_instance else OF_ALL
        found += (
            (REQUESTS, row.n_calls, service, instance),
            (FAILURES, row.n_failures, service, instance),
            (IN_FLIGHT, row.n_in_flight, service, instance),
        )
    return found + (_of_picker(service, stats.instances) if is_by_instance else [])


def _of_picker(service: str, rows: Iterable[InstanceStats]) -> list[Any]:
    found: list[Any] = []
    for row in rows:
        if row.weight is not None:
            found.append((WEIGHT, row.weight, service, row.instance))
        if row.load is not None:
            found.append((LOAD, row.load, service, row.instance))
        if row.latency is not None:
            found.append((LATENCY, row.latency, service, row.instance))
    return found


__all__ = [
    "METRICS",
    "BudgetStats",
    "InstanceStats",
    "Metric",
    "Samples",
    "ServiceStats",
    "Sources",
    "budget_stats",
    "picker_stats",
    "service_stats",
]
