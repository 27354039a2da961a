"""The instances of a selector, all of them or some: what a request is selected from.

    PickerFleet    instances straight in a picker of the engine: nothing but that is touched
    NodeFleet      any nodes and any balancer, as Kratos has them

A fleet keeps what was learned of an instance for as long as one of its identity is applied. A
group is some of a fleet's instances; it keeps its own order, or schedule, of them.
"""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import CancelledError
from functools import partial
from typing import Any, Protocol

from rota.discovery import Instance
from rota.identity import identity_of
from rota.outcome import unheard
from rota.pickers import WeightedRandom
from rota.selector.balancer import Balancer, BalancerBuilder
from rota.selector.engine import Engine, indices_of, takes_key
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
    size : int
    """

    picker: Any
    size: int

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
    minds_order : bool
        Whether the order in which filters return instances may make a difference.
    picker : picker of the engine, or None
    select : as of a Group
    """

    is_keyed: bool
    minds_order: bool
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
        self, excluded: Collection[Any], group: "Group | Fleet", arguments: tuple[Any, ...]
    ) -> tuple[Selected | None, bool]:
        """Select one of a group whose identity is not among those excluded, in O(1).

        Returns (what was selected, whether that is the answer).
        """
        ...

    def rest(self, places: Sequence[int]) -> Select:
        """Return what selects one of those at these places, this once. O(size)."""
        ...


class PickerFleet:
    """Instances in a picker of the engine."""

    minds_order = False

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
        if self.picker.instances or not instances:
            self.picker.update(instances, weights)
        else:
            # Made anew: where it begins is drawn from the list, or all would begin with the first.
            self.picker = self.engine.make(instances, weights)
            self.select = self.picker.select
        self.indices = indices_of(instances, self.picker)
        self.instances, self.weights = instances, weights

    def group(self, places: Sequence[int]) -> Group:
        """Return the group of those at these places of the list applied last. O(size)."""
        return (SharedGroup if hasattr(self.picker, "among") else OwnGroup)(self, places)

    def try_without(
        self, excluded: Collection[Any], group: "Group | Fleet", arguments: tuple[Any, ...]
    ) -> tuple[Selected | None, bool]:
        """Select one of a group whose identity is not among those excluded.

        By a key it is the next on the ring that is not excluded; nothing is in flight then.
        """
        if self.is_keyed:
            n = len(excluded) + 1  # one of these is it, unless several have one identity
            while True:
                found = group.picker.pick_n(*arguments, n)
                for instance in found:
                    if identity_of(instance) not in excluded:
                        return (instance, unheard), True
                if len(found) < n:
                    return None, True
                n *= 2
        for _ in range(MOST_REPEATS):
            selected = group.select()
            if selected is None or identity_of(selected[0]) not in excluded:
                return selected, True
            call_off(selected[1])
        return None, False

    def rest(self, places: Sequence[int]) -> Select:
        """Return what selects one of those at these places: by load, or by weight. O(size)."""
        if hasattr(self.picker, "among"):
            return SharedGroup(self, places).select
        instances = [self.instances[k] for k in places]
        select: Select = WeightedRandom(instances, [self.weights[k] for k in places]).select
        return select


def call_off(done: Done) -> None:
    """End a call that was not made."""
    if done is not unheard:
        release = getattr(done, "release", None)  # of the leases of rota's pickers
        if release is None:
            done(err=CancelledError())
        else:
            release()


class SharedGroup:
    """A group of a picker that learns: what is learned is the whole fleet's."""

    def __init__(self, fleet: PickerFleet, places: Sequence[int]) -> None:
        self._fleet = fleet
        self.follow(places)

    def follow(self, places: Sequence[int]) -> None:
        """Be of those at these places of the list applied last. O(size)."""
        self.size = len(places)
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
        self.size = len(places)
        return [instances[k] for k in places], [weights[k] for k in places]

    def follow(self, places: Sequence[int]) -> None:
        """Be of those at these places of the list applied last. O(size)."""
        self.picker.update(*self._members(places))


class NodeFleet:
    """Instances in nodes, between which a balancer decides.

    Nodes are kept by their instances' identity. One whose instance has changed is given the
    new one (`replace`, which must not fail) where it can take it, and is made anew where it
    cannot.
    """

    is_keyed = False
    picker = None

    def __init__(self, builder: BalancerBuilder, node_builder: WeightedNodeBuilder) -> None:
        self.builder = builder
        self.minds_order = not isinstance(builder, Engine)
        self.balancer = builder.build()
        self.nodes: Sequence[WeightedNode] = ()
        self.instances: Sequence[Instance] = ()
        self._members = Members((), ())
        self._node_builder = node_builder

    def apply(self, instances: Sequence[Instance]) -> None:
        """Go over to these instances. O(n)."""
        known: dict[Any, list[tuple[WeightedNode, Instance]]] = {}
        for node, instance in zip(reversed(self.nodes), reversed(self.instances), strict=True):
            known.setdefault(identity_of(instance), []).append((node, instance))
        nodes: list[WeightedNode] = []
        changed: list[tuple[Any, Instance]] = []
        for instance in instances:
            found = known.get(identity_of(instance))
            kept, before = found.pop() if found else (None, None)
            if kept is not None and before != instance:
                if hasattr(kept, "replace"):
                    changed.append((kept, instance))
                else:
                    kept = None
            nodes.append(self._node_builder.build(instance) if kept is None else kept)
        for node, instance in changed:  # nothing fails from here on
            node.replace(instance)
        self.nodes, self.instances = nodes, instances
        self._members = Members(nodes, instances)

    def select(self) -> Selected | None:
        """Return an instance and `done`; None where there is none to pick."""
        return self._members.select(self.balancer)

    def group(self, places: Sequence[int]) -> Group:
        """Return the group of those at these places of the list applied last. O(size)."""
        return NodeGroup(self, places)

    def try_without(
        self, excluded: Collection[Any], group: "Group | Fleet", arguments: tuple[Any, ...]
    ) -> tuple[Selected | None, bool]:
        """Leave it to `rest`: a balancer of nodes is not asked in vain."""
        return None, False

    def rest(self, places: Sequence[int]) -> Select:
        """Return what selects one of those at these places, this once. O(size)."""
        # A picker of the engine would always begin with the same: by weight, as PickerFleet.
        is_own = isinstance(self.builder, Engine)
        balancer = Engine(WeightedRandom).build() if is_own else self.balancer
        return partial(self.members(places).select, balancer)

    def members(self, places: Sequence[int]) -> "Members":
        """Return those at these places of the list applied last. O(size)."""
        nodes, instances = self.nodes, self.instances
        return Members([nodes[k] for k in places], [instances[k] for k in places])


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
        self.size = len(places)
        self._members = self._fleet.members(places)

    def select(self) -> Selected | None:
        """Return an instance and `done`; None where there is none to pick."""
        return self._members.select(self._balancer)


class Members:
    """Nodes, and which instances they were of when they were put together.

    A node may be given another instance at any time; who was selected from these is what it
    was when filters let it pass.
    """

    __slots__ = ("_instances", "nodes")

    def __init__(self, nodes: Sequence[WeightedNode], instances: Sequence[Instance]) -> None:
        self.nodes = tuple(nodes)
        self._instances = {id(n): i for n, i in zip(self.nodes, instances, strict=True)}

    def select(self, balancer: Balancer) -> Selected | None:
        """Have a balancer pick one, if there are any; its errors are its own."""
        if not self.nodes:
            return None
        node, done = balancer.pick(self.nodes)
        return self._instances.get(id(node)) or node.raw, Once(done)


class Once:
    """The `done` of a node: reports once, and as cancelled where nobody says anything.

    Parameters
    ----------
    done : callable (DoneInfo)
    """

    __slots__ = ("_left",)

    def __init__(self, done: DoneFunc) -> None:
        # A list, since `pop` is one step: a lock would keep a signal's handler waiting for ever
        # that reports in the middle of a report.
        self._left = [done]

    def __call__(self, info: Any = None, *, err: BaseException | None = None) -> None:
        """Say how the call has ended; the first report counts, others do nothing.

        Parameters
        ----------
        info : DoneInfo, exception or None
        err : exception or None
            The error, where there is no more to say.
        """
        try:
            done = self._left.pop()
        except IndexError:
            return
        done(info if isinstance(info, DoneInfo) else DoneInfo(err if info is None else info))

    def __del__(self) -> None:
        self(err=CancelledError())
