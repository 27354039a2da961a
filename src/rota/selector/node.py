"""An instance, with what a selector has learned of it: Kratos' weighted nodes."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rota.discovery import Instance

# Of an instance without one.
DEFAULT_WEIGHT = 100

Clock = Callable[[], int]


@dataclass(frozen=True, slots=True)
class DoneInfo:
    """How a call ended.

    Parameters
    ----------
    err : BaseException or None
        The error it ended with.
    reply_metadata : mapping of str to str, or None
        What the server sent besides its answer: headers, or a trailer.
    bytes_sent, bytes_received : bool
        Whether any byte went out, and came in.
    """

    err: BaseException | None = None
    reply_metadata: Mapping[str, str] | None = None
    bytes_sent: bool = False
    bytes_received: bool = False


DoneFunc = Callable[[DoneInfo], None]


@runtime_checkable
class WeightedNode(Protocol):
    """An instance whose weight may change with what its calls tell."""

    @property
    def raw(self) -> Instance:
        """The instance."""
        ...

    def weight(self) -> float:
        """Return its weight of now."""
        ...

    def pick(self) -> DoneFunc:
        """Take notice of a call to it; return what to call when that has ended."""
        ...

    def pick_elapsed(self) -> float:
        """Return the seconds since the latest pick, inf where there was none."""
        ...


class WeightedNodeBuilder(Protocol):
    """Makes nodes of instances."""

    def build(self, instance: Instance) -> WeightedNode:
        """Return a new node."""
        ...


def initial_weight(instance: Instance) -> int:
    """Return the weight that discovery gave an instance, 100 where it gave none."""
    return DEFAULT_WEIGHT if instance.weight is None else instance.weight


class TimedNode:
    """What rota's nodes have in common: the instance, and when it was last picked.

    Attributes
    ----------
    last_pick : int or None
        What the clock said at the latest pick, in nanoseconds.
    """

    def __init__(self, instance: Instance, clock: Clock) -> None:
        self._raw = instance
        self._clock = clock
        self.last_pick: int | None = None

    @property
    def raw(self) -> Instance:
        """The instance."""
        return self._raw

    def replace(self, instance: Instance) -> None:
        """Be of another object of the same instance: what was learned stays."""
        self._raw = instance

    def pick_elapsed(self) -> float:
        """Return the seconds since the latest pick, inf where there was none."""
        last = self.last_pick
        return math.inf if last is None else (self._clock() - last) / 1e9


class DirectNode(TimedNode):
    """An instance with the weight that discovery gave it, whatever becomes of its calls.

    Parameters
    ----------
    instance : Instance
    clock : callable
        Returns nanoseconds.
    """

    def __init__(self, instance: Instance, clock: Clock = time.monotonic_ns) -> None:
        super().__init__(instance, clock)
        self._weight = float(initial_weight(instance))

    def replace(self, instance: Instance) -> None:
        """Be of another object of the same instance, with that one's weight."""
        super().replace(instance)
        self._weight = float(initial_weight(instance))

    def weight(self) -> float:
        """Return the instance's weight, 100 where it has none. O(1)."""
        return self._weight

    def pick(self) -> DoneFunc:
        """Store the time; the function returned does nothing. O(1)."""
        self.last_pick = self._clock()
        return _ignore


def _ignore(info: DoneInfo) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Direct:
    """Makes a `DirectNode` of each instance.

    Parameters
    ----------
    clock : callable
        Returns nanoseconds.
    """

    clock: Clock = time.monotonic_ns

    def build(self, instance: Instance) -> DirectNode:
        """Return a new node."""
        return DirectNode(instance, self.clock)
