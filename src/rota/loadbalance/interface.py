"""What a balancer and a picker are: Kitex's interfaces.

They are protocols: a class of the user's own with these methods works wherever rota's do.
"""

from typing import Protocol, TypeVar, runtime_checkable

from rota.discovery import Change, Instance, Result

T_co = TypeVar("T_co", covariant=True)


@runtime_checkable
class Picker(Protocol[T_co]):
    """Says who is next."""

    def next(self, ctx: object = None, request: object = None) -> T_co | None:
        """Return the instance for this request, None when there is none."""
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
