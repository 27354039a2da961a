"""The instances of a selector, all of them or some: what a request is selected from.

    PickerFleet    instances straight in a picker of the engine: nothing but that is touched
    NodeFleet      any nodes and any balancer, as Kratos has them

A fleet keeps what was learned of an instance for as long as one of its identity is applied. A
group is some of a fleet's instances; it keeps its own order, or schedule, of them.
"""

import threading
from collections.abc import Callable, Container, Sequence
from concurrent.futures import CancelledError
from typing import Any, Protocol

from rota.arguments import MAX_INSTANCES
from rota.discovery import Instance
from rota.identity import identity_of
from rota.outcome import unheard
from rota.pickers import WeightedRandom
from rota.selector.balancer import Balancer, BalancerBuilder
from rota.selector.engine import Engine, takes_key
from rota.selector.node import (
    DoneFunc,
    DoneInfo,
    WeightedNode,
    WeightedNodeBuilder,
    initial_weight,
)

# An excluded instance is selected in vain so often before the others are looked for.
MOST_REPEATS = 8

Done = Any  # callable (info=None, *, err=None)
Selected = tuple[Instance, Done]
Select = Callable[..., Selected | None]


class Group(Protocol):
    """Some of the instances, to select one from.

    Attributes
    ----------
    select : callable () -> (instance, done), or None where there is none with weight
        With the key as its argument where the fleet is keyed. O(1).
    picker : picker of the engine, or None
    """

    picker: Any

    @property
    def select(self) -> Select: ...

    def follow(self, places: Sequence[int]) -> None:
        """Be of those at these places of the list applied last. O(size)."""
        ...


class Fleet(Protocol):
    """All instances.

    Attributes
    ----------
    is_keyed : bool
        Whether a request is selected by its key.
    picker : picker of the engine, or None
    select : as of a Group
    """

    is_keyed: bool
    picker: Any

    @property
    def select(self) -> Select: ...

    def apply(self, instances: Sequence[Instance]) -> None:
        """Go over to these instances. O(n)."""
        ...

    def group(self, places: Sequence[int]) -> Group:
        """Return the group of those at these places of the list applied last. O(size)."""
        ...

    def try_without(
        self, excluded: Container[Any], group: "Group | Fleet", arguments: tuple[Any, ...]
    ) -> tuple[Selected | None, bool]:
        """Select one of a group whose identity is not among those excluded, in O(1).

        Returns (what was selected, whether that is the answer).
        """
        ...

    def select_of(self, places: Sequence[int]) -> Selected | None:
        """Select one of those at these places, this once. O(size)."""
        ...


class PickerFleet:
    """Instances in a picker of the engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.instances: Sequence[Instance] = ()
        self.weights: list[int] = []
        self.picker = engine.make([], [])
        self.indices: list[int] = []  # in the picker, by place in the list
        self.is_keyed = takes_key(self.picker)
        self.select: Select = self.picker.select

    def apply(self, instances: Sequence[Instance]) -> None:
        """Go over to these instances: O(n), and the cost of the changes."""
        weights = [max(initial_weight(instance), 0) for instance in instances]
        self.picker.update(instances, weights)
        places: dict[int, list[int]] = {}
        for i, instance in enumerate(self.picker.instances):
            if instance is not None:
                places.setdefault(id(instance), []).append(i)
        for found in places.values():
            found.reverse()
        self.indices = [places[id(instance)].pop() for instance in instances]
        self.instances, self.weights = instances, weights

    def group(self, places: Sequence[int]) -> Group:
        """Return the group of those at these places of the list applied last. O(size)."""
        return (SharedGroup if hasattr(self.picker, "among") else OwnGroup)(self, places)

    def try_without(
        self, excluded: Container[Any], group: "Group | Fleet", arguments: tuple[Any, ...]
    ) -> tuple[Selected | None, bool]:
        """Select one of a group whose identity is not among those excluded.

        By a key it is the next on the ring that is not excluded; nothing is in flight then.
        """
        if self.is_keyed:
            for instance in group.picker.pick_n(*arguments, MAX_INSTANCES):
                if identity_of(instance) not in excluded:
                    return (instance, unheard), True
            return None, True
        for _ in range(MOST_REPEATS):
            selected = group.select()
            if selected is None or identity_of(selected[0]) not in excluded:
                return selected, True
            if selected[1] is not unheard:
                selected[1].release()
        return None, False

    def select_of(self, places: Sequence[int]) -> Selected | None:
        """Select one of those at these places, this once: by load, or by weight. O(size)."""
        if hasattr(self.picker, "among"):
            return SharedGroup(self, places).select()
        instances = [self.instances[k] for k in places]
        return WeightedRandom(instances, [self.weights[k] for k in places]).select()


class SharedGroup:
    """A group of a picker that learns: what is learned is the whole fleet's."""

    def __init__(self, fleet: PickerFleet, places: Sequence[int]) -> None:
        self._fleet = fleet
        self.follow(places)

    def follow(self, places: Sequence[int]) -> None:
        """Be of those at these places of the list applied last. O(size)."""
        indices = self._fleet.indices
        self.picker = self._fleet.picker.among([indices[k] for k in places])
        self.select: Select = self.picker.select


class OwnGroup:
    """A group with a picker of its own, which keeps its place in the order."""

    def __init__(self, fleet: PickerFleet, places: Sequence[int]) -> None:
        self._fleet = fleet
        self.picker = fleet.engine.make(*self._members(places))
        self.select: Select = self.picker.select

    def _members(self, places: Sequence[int]) -> tuple[list[Instance], list[int]]:
        instances, weights = self._fleet.instances, self._fleet.weights
        return [instances[k] for k in places], [weights[k] for k in places]

    def follow(self, places: Sequence[int]) -> None:
        """Be of those at these places of the list applied last. O(size)."""
        self.picker.update(*self._members(places))


class NodeFleet:
    """Instances in nodes, between which a balancer decides.

    Nodes are kept by their instances' identity. One whose instance has changed is given the
    new one (`replace`) where it can take it, and is made anew where it cannot.
    """

    is_keyed = False
    picker = None

    def __init__(self, builder: BalancerBuilder, node_builder: WeightedNodeBuilder) -> None:
        self.builder = builder
        self.balancer = builder.build()
        self.nodes: tuple[WeightedNode, ...] = ()
        self._node_builder = node_builder

    def apply(self, instances: Sequence[Instance]) -> None:
        """Go over to these instances. O(n)."""
        known: dict[Any, list[WeightedNode]] = {}
        for node in reversed(self.nodes):
            known.setdefault(identity_of(node.raw), []).append(node)
        nodes: list[WeightedNode] = []
        changed: list[tuple[Any, Instance]] = []
        for instance in instances:
            found = known.get(identity_of(instance))
            kept = found.pop() if found else None
            if kept is not None and kept.raw != instance:
                if hasattr(kept, "replace"):
                    changed.append((kept, instance))
                else:
                    kept = None
            nodes.append(self._node_builder.build(instance) if kept is None else kept)
        for node, instance in changed:  # nothing fails from here on
            node.replace(instance)
        self.nodes = tuple(nodes)

    def select(self) -> Selected | None:
        """Return an instance and `done`; None where there is none to pick."""
        return select_node(self.balancer, self.nodes)

    def group(self, places: Sequence[int]) -> Group:
        """Return the group of those at these places of the list applied last. O(size)."""
        return NodeGroup(self, places)

    def try_without(
        self, excluded: Container[Any], group: "Group | Fleet", arguments: tuple[Any, ...]
    ) -> tuple[Selected | None, bool]:
        """Leave it to `select_of`: a balancer of nodes is not asked in vain."""
        return None, False

    def select_of(self, places: Sequence[int]) -> Selected | None:
        """Select one of those at these places, this once. O(size)."""
        return NodeGroup(self, places).select()


class NodeGroup:
    """A group of nodes. A balancer of the engine is the group's own; any other is for all."""

    picker = None

    def __init__(self, fleet: NodeFleet, places: Sequence[int]) -> None:
        self._fleet = fleet
        is_own = isinstance(fleet.builder, Engine)
        self._balancer = fleet.builder.build() if is_own else fleet.balancer
        self.follow(places)

    def follow(self, places: Sequence[int]) -> None:
        """Be of those at these places of the list applied last. O(size)."""
        nodes = self._fleet.nodes
        self._nodes = tuple([nodes[k] for k in places])

    def select(self) -> Selected | None:
        """Return an instance and `done`; None where there is none to pick."""
        return select_node(self._balancer, self._nodes)


def select_node(balancer: Balancer, nodes: Sequence[WeightedNode]) -> Selected | None:
    """Have a balancer pick one of the nodes; its errors are its own."""
    if not nodes:
        return None
    node, done = balancer.pick(nodes)
    return node.raw, Once(done)


class Once:
    """The `done` of a node: reports once, and as cancelled where nobody says anything.

    Parameters
    ----------
    done : callable (DoneInfo)
    """

    __slots__ = ("_done", "_lock")

    def __init__(self, done: DoneFunc) -> None:
        self._lock = threading.Lock()
        self._done: DoneFunc | None = done

    def __call__(self, info: Any = None, *, err: BaseException | None = None) -> None:
        """Say how the call has ended; the first report counts, others do nothing.

        Parameters
        ----------
        info : DoneInfo, exception or None
        err : exception or None
            The error, where there is no more to say.
        """
        with self._lock:
            done, self._done = self._done, None
        if done is not None:
            done(info if isinstance(info, DoneInfo) else DoneInfo(err if info is None else info))

    def __del__(self) -> None:
        self(err=CancelledError())
