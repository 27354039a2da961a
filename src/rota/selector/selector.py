"""The selector: Kratos' way from a request to an instance, and back with what became of it."""

import threading
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from rota.discovery import Instance
from rota.kernels import load
from rota.selector.balancer import BalancerBuilder
from rota.selector.engine import Engine
from rota.selector.errors import NoAvailableInstance
from rota.selector.filters import Index, Indexed, NodeFilter, Where
from rota.selector.fleet import Done, Fleet, Group, NodeFleet, PickerFleet, Select, Selected
from rota.selector.node import Direct, WeightedNodeBuilder, initial_weight
from rota.selector.peer import peer

# Groups of filtered instances that a selector keeps, by filters and by who passes, and
# instances in these groups: those made first go first. Predicates may leave any set.
MOST_GROUPS = 1024
MOST_MEMBERS = 1_000_000

# Filters are asked again so often where other instances were applied meanwhile.
MOST_TURNS = 1000


Groups = dict[Any, tuple[object, Group, Select]]  # (version, group, its select)


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
        self._is_changing = False
        self._is_whole = True  # False: an error has left the fleet with other instances
        self._index = Index(())
        self._is_keyed = self._fleet.is_keyed
        self._select = self._fleet.select
        self._groups = {}  # of filters that are pure
        self._sets: Groups = {}  # of others, by the identities of those that passed
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

    @property
    def is_keyed(self) -> bool:
        """Whether it goes by a key: then every selection needs one."""
        return self._is_keyed

    def __repr__(self) -> str:
        return f"Selector({len(self._nodes)} instances, {self._name})"

    def apply(self, nodes: Iterable[Instance]) -> None:
        """Go over to these instances; who stays keeps all that is known of it. O(n).

        Applying what is equal to the list of before does nothing.

        Raises
        ------
        TypeError, ValueError
            Not instances, or weights of 2**63 and more in all; nothing has changed.
        RuntimeError
            Called from within itself: by a node that is built, or let go.
        """
        instances = tuple(nodes)
        for k, instance in enumerate(instances):
            if not isinstance(instance, Instance):
                raise TypeError(f"nodes must be Instances, got nodes[{k}] = {instance!r}")
        with self._lock:
            if self._is_changing:
                raise RuntimeError("instances cannot be applied from within apply")
            if self._is_whole and instances == self._nodes:
                return
            self._is_changing, self._is_whole = True, False
            try:
                self._fleet.apply(instances)
                self._select = self._fleet.select
                self._nodes = instances
                self._index = Index(instances)
                self._version = object()
                self._is_whole = True
            finally:
                self._is_changing = False

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
        chain, excluded = as_chain(filters), as_excluded(exclude)
        group = self._group(chain) if chain else self._fleet
        arguments = (key,) if is_keyed else ()
        selected: Selected | None
        if excluded:
            identities = {node.identity for node in excluded}
            selected, is_sure = self._fleet.try_without(identities, group, arguments)
            if not is_sure:
                selected = self._select_rest(identities, chain)
        else:
            selected = group.select(*arguments)
        if selected is None:
            raise self._refuse(chain, excluded)
        return selected

    def _group(self, chain: tuple[NodeFilter, ...]) -> Group:
        """Return the group of those that pass the filters."""
        is_pure = all(getattr(each, "is_pure", False) for each in chain) and is_key(chain)
        groups = self._groups if is_pure else self._sets
        for _ in range(MOST_TURNS):
            with self._lock:
                version, index = self._version, self._index
                if is_pure:
                    known = groups.get(chain)
                    if known is not None and known[0] is version:
                        return known[1]
            places = passing(chain, index)  # runs anything
            if not self._fleet.minds_order:
                places = sorted(places)  # another list: this one may be the index's
            same: Any = chain if is_pure else tuple([index.names[k] for k in places])
            with self._lock:
                if version is not self._version:
                    continue
                known = groups.pop(same, None)
                if known is None:
                    group = self._fleet.group(places)
                else:
                    group = known[1]
                    if known[0] is not version:
                        group.follow(places)
                groups[same] = (version, group, group.select)
                if known is None:
                    drop_oldest(groups)
                return group
        raise RuntimeError(f"filters must not apply other instances, got {chain!r}")

    def _select_rest(self, excluded: set[Any], chain: tuple[NodeFilter, ...]) -> Selected | None:
        """Select one that passes the filters and is not excluded: O(n)."""
        for _ in range(MOST_TURNS):
            with self._lock:
                version, index = self._version, self._index
            identities = index.identities
            places = [k for k in passing(chain, index) if identities[k] not in excluded]
            with self._lock:
                if version is not self._version:
                    continue
                select = self._fleet.rest(places)
            return select()  # may run a balancer of the user's own
        raise RuntimeError(f"filters must not apply other instances, got {chain!r}")

    def _refuse(
        self, filters: Sequence[NodeFilter], exclude: Iterable[Instance]
    ) -> NoAvailableInstance:
        """Return the error that says why nobody is left."""
        index, chain = self._index, tuple(filters)
        words = f"no instance is available: {len(index.nodes)} applied"
        places = list(range(len(index.nodes)))
        for each in chain:
            places = passing((each,), index, places)
            words += f"; {each!r} left {len(places)}"
        if exclude:
            words += f"; excluded: {', '.join(node.address for node in exclude)}"
        n_drained = sum(initial_weight(index.nodes[k]) <= 0 for k in places)
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
    if not isinstance(filters, Sequence):  # an iterator would be used up before we are done
        raise TypeError(f"filters must be a sequence of filters, got {filters!r}")
    chain = tuple(filters)
    for k, each in enumerate(chain):
        if not callable(each):
            raise TypeError(f"filters must be callable, got filters[{k}] = {each!r}")
    return chain


def as_excluded(exclude: Any) -> tuple[Instance, ...]:
    """Return who is excluded as a tuple.

    Raises
    ------
    TypeError
        Not Instances: an address would exclude nobody.
    """
    try:
        excluded = tuple(exclude)
    except TypeError:
        raise TypeError(f"exclude must be an iterable of Instances, got {exclude!r}") from None
    for node in excluded:
        if not isinstance(node, Instance):
            raise TypeError(f"exclude must be an iterable of Instances, got {node!r} in it")
    return excluded


def is_key(value: object) -> bool:
    """Whether a dictionary takes it as a key."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def drop_oldest(groups: Groups) -> None:
    """Drop the groups made first, while there are too many, or too many in them."""
    n_members = sum(group.size for _, group, _ in groups.values())
    while len(groups) > MOST_GROUPS or (n_members > MOST_MEMBERS and len(groups) > 1):
        n_members -= groups.pop(next(iter(groups)))[1].size


def passing(
    chain: Sequence[NodeFilter], index: Index, places: list[int] | None = None
) -> list[int]:
    """Return those of the places (None: all) whose instances pass all filters.

    Raises
    ------
    TypeError, ValueError
        A filter returned no nodes, or what it was not given.
    """
    for each in chain:
        if isinstance(each, (Indexed, Where)):
            places = each.places(index, places)
            continue
        if places is None:
            places = list(range(len(index.nodes)))
        left: dict[int, list[int]] = {}
        for k in reversed(places):
            left.setdefault(id(index.nodes[k]), []).append(k)
        found = []
        passed = each([index.nodes[k] for k in places])
        if not isinstance(passed, Iterable):
            raise TypeError(f"filters must return some of their nodes, {each!r} gave {passed!r}")
        for node in passed:
            if not left.get(id(node)):
                raise ValueError(f"filters must return some of their nodes, {each!r} gave {node!r}")
            found.append(left[id(node)].pop())
        places = found
    return list(range(len(index.nodes))) if places is None else places
