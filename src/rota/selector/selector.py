"""The selector: Kratos' way from a request to an instance, and back with what became of it."""

import threading
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from rota.discovery import Instance
from rota.identity import identity_of
from rota.kernels import load
from rota.selector.balancer import BalancerBuilder
from rota.selector.engine import Engine
from rota.selector.errors import NoAvailableInstance
from rota.selector.filters import Index, Indexed, NodeFilter
from rota.selector.fleet import Done, Fleet, Group, NodeFleet, PickerFleet, Selected
from rota.selector.node import Direct, WeightedNodeBuilder, initial_weight
from rota.selector.peer import peer

# Groups of filtered instances that a selector keeps; the one made first goes first.
MOST_GROUPS = 1024


class Rebalancer(Protocol):
    """What discovery tells of changes: Kratos' interface."""

    def apply(self, nodes: Iterable[Instance]) -> None:
        """Go over to these instances."""
        ...


if TYPE_CHECKING:
    from rota.kernels.selection import Selection
else:
    Selection = load("selection").Selection


class Selector(Selection):
    """Selects the instance that a request goes to, and learns from how it ended.

    Parameters
    ----------
    balancer : BalancerBuilder
        `Engine(picker)` for a picker of the engine, or one of Kratos' kind.
    node : WeightedNodeBuilder
        Makes the nodes that the balancer decides between. The default, `Direct()`, goes by
        the weights that discovery gives: then a picker of the engine needs no nodes at all.

    Notes
    -----
    Any number of threads, and of asyncio tasks, may share it.

    What is known of an instance is kept by its identity (network, address), whatever lists
    are applied. Each set of filtered instances keeps its own order: filters that take turns
    starve nobody.
    """

    def __init__(self, balancer: BalancerBuilder, node: WeightedNodeBuilder | None = None) -> None:
        node = Direct() if node is None else node
        for name, builder in (("balancer", balancer), ("node", node)):
            if not callable(getattr(builder, "build", None)):
                raise TypeError(f"{name} must have a method build, got {builder!r}")
        self._lock = threading.RLock()
        self._name = f"{balancer!r}, {node!r}"
        self._fleet: Fleet
        if isinstance(balancer, Engine) and type(node) is Direct:
            self._fleet = PickerFleet(balancer)
        else:
            self._fleet = NodeFleet(balancer, node)
        self._nodes: tuple[Instance, ...] = ()
        self._index = Index(())
        self._is_keyed = self._fleet.is_keyed
        self._select = self._fleet.select
        self._groups = {}
        self._version = object()
        self._peers = peer

    # -- what there is --------------------------------------------------------------------

    @property
    def nodes(self) -> tuple[Instance, ...]:
        """The instances applied last."""
        return self._nodes

    @property
    def picker(self) -> Any:
        """The picker of the engine that all instances are in; None where there is none."""
        return self._fleet.picker

    def __repr__(self) -> str:
        return f"Selector({len(self._nodes)} instances, {self._name})"

    def apply(self, nodes: Iterable[Instance]) -> None:
        """Go over to these instances; who stays keeps all that is known of it. O(n).

        Applying what is equal to the list of before does nothing.

        Raises
        ------
        TypeError, ValueError
            Not instances, or weights of 2**63 and more in all; nothing has changed.
        """
        instances = tuple(nodes)
        for k, instance in enumerate(instances):
            if not isinstance(instance, Instance):
                raise TypeError(f"nodes must be Instances, got nodes[{k}] = {instance!r}")
        with self._lock:
            if instances == self._nodes:
                return
            self._fleet.apply(instances)
            self._nodes = instances
            self._index = Index(instances)
            self._version = object()

    # -- selecting ------------------------------------------------------------------------

    def acquire(
        self,
        *,
        filters: Sequence[NodeFilter] = (),
        exclude: Iterable[Instance] = (),
        key: Any = None,
    ) -> "Acquired":
        """Return a context manager, sync and async, that selects an instance and gives it.

        When it is left it reports by itself how the call ended: well, with the exception it
        is left by, or cancelled. The arguments and errors are those of `select`.
        """
        return Acquired(self, filters, exclude, key)

    def _find(
        self, filters: Sequence[NodeFilter], exclude: Iterable[Instance], key: Any
    ) -> Selected | None:
        is_keyed = self._is_keyed
        if is_keyed is (key is None):
            raise TypeError(f"key must be {'given' if is_keyed else 'None'}, got {key!r}")
        group = self._group(filters) if filters else self._fleet
        arguments = (key,) if is_keyed else ()
        if not exclude:
            return group.select(*arguments)
        excluded = {identity_of(node) for node in exclude}
        selected, is_sure = self._fleet.try_without(excluded, group, arguments)
        return selected if is_sure else self._select_rest(excluded, as_chain(filters))

    def _group(self, filters: Sequence[NodeFilter]) -> Group:
        """Return the group of those that pass the filters."""
        chain = as_chain(filters)
        is_pure = all(getattr(each, "is_pure", False) for each in chain)
        while True:
            with self._lock:
                version, index = self._version, self._index
            places = passing(chain, index)  # runs anything
            same: Any = chain if is_pure else tuple([identity_of(index.nodes[k]) for k in places])
            with self._lock:
                if version is not self._version:
                    continue
                known = self._groups.pop(same, None)
                if known is None:
                    group = self._fleet.group(places)
                else:
                    group = known[1]
                    if known[0] is not version:
                        group.follow(places)
                self._groups[same] = (version, group, group.select)
                if len(self._groups) > MOST_GROUPS:
                    del self._groups[next(iter(self._groups))]
                return group

    def _select_rest(self, excluded: set[Any], chain: tuple[NodeFilter, ...]) -> Selected | None:
        """Select one that passes the filters and is not excluded: O(n)."""
        while True:
            with self._lock:
                version, index = self._version, self._index
            places = [
                k for k in passing(chain, index) if identity_of(index.nodes[k]) not in excluded
            ]
            with self._lock:
                if version is self._version:
                    return self._fleet.select_of(places)

    def _refuse(
        self, filters: Sequence[NodeFilter], exclude: Iterable[Instance]
    ) -> NoAvailableInstance:
        """Return the error that says why nobody is left."""
        index = self._index
        words = f"no instance is available: {len(index.nodes)} applied"
        chain = as_chain(filters)
        for n_filters, each in enumerate(chain, 1):
            words += f"; {each!r} left {len(passing(chain[:n_filters], index))}"
        if exclude:
            words += f"; excluded: {', '.join(str(getattr(n, 'address', n)) for n in exclude)}"
        n_drained = sum(initial_weight(index.nodes[k]) <= 0 for k in passing(chain, index))
        return NoAvailableInstance(words + (f"; {n_drained} without weight" if n_drained else ""))


class Acquired:
    """One request, from the selection to the report. A context manager that gives the instance.

    Used once; made by `Selector.acquire`.
    """

    __slots__ = ("_arguments", "_done", "_selector")

    def __init__(self, selector: Selector, filters: Any, exclude: Any, key: Any) -> None:
        self._selector = selector
        self._arguments = filters, exclude, key
        self._done: Done | None = None

    def __enter__(self) -> Instance:
        if self._done is not None:
            raise RuntimeError("an acquired request is of one with statement")
        filters, exclude, key = self._arguments
        selected: Selected
        selected = self._selector.select(filters=filters, exclude=exclude, key=key)
        node, self._done = selected
        return node

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._done is not None
        self._done(err=error)

    async def __aenter__(self) -> Instance:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)


def as_chain(filters: Any) -> tuple[NodeFilter, ...]:
    """Return filters as a tuple.

    Raises
    ------
    TypeError
        Not a sequence of callables.
    """
    try:
        chain = tuple(filters)
    except TypeError:
        raise TypeError(f"filters must be a sequence of filters, got {filters!r}") from None
    for k, each in enumerate(chain):
        if not callable(each):
            raise TypeError(f"filters must be callable, got filters[{k}] = {each!r}")
    return chain


def passing(chain: Sequence[NodeFilter], index: Index) -> list[int]:
    """Return the places of the instances that pass all filters.

    Raises
    ------
    ValueError
        A filter returned what it was not given.
    """
    places: list[int] | None = None
    for each in chain:
        if isinstance(each, Indexed):
            places = each.places(index, places)
            continue
        if places is None:
            places = list(range(len(index.nodes)))
        left: dict[int, list[int]] = {}
        for k in reversed(places):
            left.setdefault(id(index.nodes[k]), []).append(k)
        found = []
        for node in each([index.nodes[k] for k in places]):
            if not left.get(id(node)):
                raise ValueError(f"filters must return some of their nodes, {each!r} gave {node!r}")
            found.append(left[id(node)].pop())
        places = found
    return list(range(len(index.nodes))) if places is None else places
