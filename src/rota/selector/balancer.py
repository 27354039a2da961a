"""What decides between nodes: Kratos' interface.

These are protocols: a class of the user's own with these methods works wherever rota's do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rota.selector.node import DoneFunc, WeightedNode


@runtime_checkable
class Balancer(Protocol):
    """Picks one of several nodes."""

    def pick(self, nodes: Sequence[WeightedNode]) -> tuple[WeightedNode, DoneFunc]:
        """Return a node that it has picked, and what to call when the call has ended.

        Raises
        ------
        NoAvailableInstance
            There are no nodes.
        """
        ...


@runtime_checkable
class BalancerBuilder(Protocol):
    """Makes balancers: each selector has its own."""

    def build(self) -> Balancer:
        """Return a new balancer."""
        ...


@dataclass(frozen=True, slots=True)
class BuilderOf:
    """The builder of any balancer: `BuilderOf(KratosWRR)`, `BuilderOf(partial(KratosP2C, 7))`.

    Parameters
    ----------
    make : callable () -> Balancer
        A class, or a function.
    """

    make: Callable[[], Balancer]

    def build(self) -> Balancer:
        """Return a new balancer."""
        return self.make()
