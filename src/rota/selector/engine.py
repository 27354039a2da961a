"""The pickers of the engine as Kratos' balancers.

Where the nodes are rota's own `Direct` ones a selector goes to the picker itself, and there
are no nodes. What is here is for all other nodes: those whose weights change by themselves.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from rota.arguments import MAX_WEIGHT_SUM
from rota.selector.errors import NoAvailableInstance
from rota.selector.ewma import LEAST_SUCCESS, EwmaNode
from rota.selector.node import DoneFunc, DoneInfo, WeightedNode

# Weights of nodes are any numbers; those of pickers are integers: so many units make 1.
UNITS = 65536


class Engine:
    """Makes balancers of a picker of the engine: `Engine(rota.LeastRequest)`.

    Parameters
    ----------
    picker : type of picker
        Called with instances, weights and the options: one of rota's, or any like them.
    options : keyword arguments of it

    Raises
    ------
    TypeError
        Not callable.
    """

    __slots__ = ("options", "picker")

    def __init__(self, picker: Callable[..., Any], **options: Any) -> None:
        if not callable(picker):
            raise TypeError(f"picker must be a type of picker, got {picker!r}")
        self.picker = picker
        self.options = options

    def make(self, instances: Sequence[Any], weights: Sequence[int]) -> Any:
        """Return a picker of these."""
        return self.picker(instances, weights, **self.options)

    def build(self) -> "NodesBalancer":
        """Return a balancer of nodes, whatever they are.

        Raises
        ------
        TypeError
            The picker goes by a key; nodes with weights of their own have none.
        """
        if takes_key(self.make([], [])):
            raise TypeError(f"{self!r} goes by a key: it balances instances, not nodes")
        return NodesBalancer(self.make)

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"Engine({getattr(self.picker, '__name__', self.picker)}{options})"


def takes_key(picker: Any) -> bool:
    """Whether a picker picks by a key: those that hash do."""
    return hasattr(picker, "pick_n")


class NodesBalancer:
    """A picker of the engine over nodes, with their weights of now at every pick: O(n).

    Parameters
    ----------
    make : callable (nodes, weights) -> picker
    """

    def __init__(self, make: Callable[[Sequence[Any], Sequence[int]], Any]) -> None:
        self._lock = threading.RLock()  # nodes may run anything
        self._make = make
        self._picker = make([], [])
        self._nodes: Sequence[WeightedNode] = ()
        self._indices: list[int] = []  # in the picker, by place in the nodes
        self._weights: list[int] = []

    def pick(self, nodes: Sequence[WeightedNode]) -> tuple[WeightedNode, DoneFunc]:
        """Return a node that it has picked, and what to call when the call has ended.

        Raises
        ------
        NoAvailableInstance
            There are no nodes, or none with weight.
        """
        weights = as_units([weight_of(node) for node in nodes])
        with self._lock:
            self._follow(nodes, weights)
            picked = self._picker.select()
        if picked is None:
            raise NoAvailableInstance(
                f"no instance is available: {len(nodes)} left, all without weight"
            )
        node, end = picked
        done = node.pick()

        def both(info: DoneInfo) -> None:
            try:
                end(info)
            finally:
                done(info)

        return node, both

    def _follow(self, nodes: Sequence[WeightedNode], weights: list[int]) -> None:
        if nodes is self._nodes and isinstance(nodes, tuple):
            for k, (old, new) in enumerate(zip(self._weights, weights, strict=True)):
                if old != new:
                    self._picker.set_weight(self._indices[k], new)
                    self._weights[k] = new
        else:
            self._nodes = ()  # until all is done
            self._picker.update(nodes, weights)
            self._indices = indices_of(nodes, self._picker)
            self._nodes, self._weights = nodes, weights


def indices_of(wanted: Sequence[Any], picker: Any) -> list[int]:
    """Return the index in the picker of each object of the list that it was updated to. O(n)."""
    places: dict[int, list[int]] = {}
    for i, instance in enumerate(picker.instances):
        places.setdefault(id(instance), []).append(i)
    for found in places.values():
        found.reverse()
    return [places[id(each)].pop() for each in wanted]


def weight_of(node: WeightedNode) -> float:
    """Return a node's weight of now; of an `EwmaNode` its `trial_weight` at least."""
    if isinstance(node, EwmaNode) and node.success < LEAST_SUCCESS:
        return node.trial_weight()
    return node.weight()


def as_units(weights: Sequence[float]) -> list[int]:
    """Return weights as integers, in units of 2**-16; 0 for what is not above 0, or no number.

    What is above 0 has one unit at least: it is not drained.
    """
    most = MAX_WEIGHT_SUM // max(len(weights), 1)
    return [
        (max(round(weight * UNITS), 1) if weight * UNITS < most else most) if weight > 0 else 0
        for weight in weights
    ]
