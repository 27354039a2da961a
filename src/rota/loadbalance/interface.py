"""What a balancer and a picker are: Kitex's interfaces.

They are protocols: a class of the user's own with these methods works wherever rota's do.
"""

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar, runtime_checkable

from rota.discovery import Change, Instance, Result

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@runtime_checkable
class Picker(Protocol[T_co]):
    """Says who is next."""

    def next(self, ctx: object = None, request: object = None) -> T_co | None:
        """Return the instance for this request, None when there is none."""
        ...


@runtime_checkable
class LivePicker(Protocol[T]):
    """A picker that can be changed: rota's are.

    An index is an instance's for as long as that stays. Each method raises, and has changed
    nothing, where an argument is of no use.
    """

    def next(self, ctx: object = None, request: object = None) -> T | None:
        """Return the instance for this request, None when there is none."""
        ...

    def add(self, instance: T, weight: int = 1) -> int:
        """Take an instance in; return its index."""
        ...

    def remove(self, index: int, /) -> None:
        """Let the instance at `index` go."""
        ...

    def set_weight(self, index: int, weight: int) -> None:
        """Give the instance at `index` another weight."""
        ...

    def replace(self, index: int, instance: T) -> None:
        """Put another object in the place of the instance at `index`; all else stays."""
        ...

    def update(self, instances: Iterable[T], weights: Any = None) -> None:
        """Go over to these instances and weights; who stays keeps its index."""
        ...

    @property
    def instances(self) -> tuple[T | None, ...]:
        """The instances by index; None where one has left."""
        ...

    def __len__(self) -> int:
        """Return how many are present."""
        ...


@runtime_checkable
class LoadBalancer(Protocol):
    """Makes pickers of what discovery found."""

    @property
    def name(self) -> str:
        """The balancer's name, unique in the process."""
        ...

    def get_picker(self, result: Result) -> Picker[Instance]:
        """Return a picker over the result's instances."""
        ...


@runtime_checkable
class Rebalancer(Protocol):
    """A balancer that keeps pickers, and so must be told of changes."""

    def rebalance(self, change: Change) -> None:
        """Make picks follow `change.result` from now on."""
        ...

    def delete(self, change: Change) -> None:
        """Forget the picker of `change.result`'s key."""
        ...
