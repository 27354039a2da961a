"""Reference of kernels.two_choices: loads, leases, and the first and second choice."""

import copy
import math
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from rota.arguments import as_seconds
from rota.fork import unseeded
from rota.reference.weighted_random import Draws

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")


class Load:
    """What is known of one instance's load."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.key = -math.inf
        self.cost = self.stamp = self.log2_weight = self.last_rtt = 0.0


class TwoChoices(Draws[T]):
    """The base of the load-aware pickers. A subclass gives `_prefer` and `_observe`."""

    def __init__(self, instances: Iterable[T], weights: Any, seed: int | None) -> None:
        super().__init__(instances, weights, seed)
        self._loads = [Load() for _ in self._weight]
        self._live = [i for i, weight in enumerate(self._weight) if weight]
        self._place = {i: place for place, i in enumerate(self._live)}
        self._is_view = False
        self._begin()

    def _prefer(self, first: int) -> int:
        """Return the index to pick, where `first` was drawn by weight; n_live >= 2."""
        raise NotImplementedError(f"{type(self).__name__} prefers nobody")

    def _observe(self, load: Load, rtt: float, now: float, error: object) -> None:
        """Learn from a call that ended now."""

    def _now(self) -> float:
        """Return the time, seconds; 0 for a picker that wants no times."""
        return 0.0

    def _options(self) -> dict[str, Any]:
        """Return the keyword arguments, besides the seed, that make this picker again."""
        return {}

    def _join(self, whole: Any) -> None:
        """Share what a picker among those of `whole` shares with it, besides the loads."""

    def _draw(self) -> int:
        first = super()._draw()
        return self._prefer(first) if self._n_live >= 2 else first

    def _second(self, first: int) -> int:
        """Draw one of the others."""
        place = self._random.below(self._n_live - 1)
        if self._n_live == len(self._weight):
            return place + (place >= first)
        return self._live[place + (place >= self._place[first])]

    def _in_order(self) -> Sequence[int]:
        """Return those with weight; in order where that is everybody."""
        n = len(self._weight)
        return range(n) if self._n_live == n else self._live

    def acquire(self) -> "Lease[T] | None":
        """Pick, and count one more in flight there, until the lease is released."""
        with self._lock:
            i = self._draw()
            if i < 0:
                return None
            self._loads[i].in_flight += 1
            return Lease(self, i, self._loads[i], self._instances[i], None)

    def select(self) -> "tuple[T, Lease[T]] | None":
        """Return (instance, done): Kratos' interface; None when nothing has weight."""
        start = self._now()
        lease = self.acquire()
        if lease is None:
            return None
        lease._start = start
        return lease.instance, lease

    def acquire_index(self) -> int | None:
        """Pick, and count one more in flight there: the index, or None. For `done`."""
        with self._lock:
            i = self._draw()
            if i < 0:
                return None
            self._loads[i].in_flight += 1
            return i

    def done(self, index: int, rtt: float, error: object = None) -> None:
        """Say how a call that `acquire_index` began has ended."""
        seconds = as_seconds("rtt", rtt)
        with self._lock:
            load = self._loads[self._index(index)]
            if load.in_flight:
                load.in_flight -= 1
        self._observe(load, seconds, self._now(), error)

    def among(self, indices: Iterable[int]) -> "Self":
        """Return a picker of these instances only, which shares their loads with this one."""
        with self._lock:
            members = [self._index(i) for i in indices]
            version = -1
            while version != self._version:  # making it may run anything
                version = self._version
                instances = [self._instances[self._index(i)] for i in members]
                weights = [self._weight[i] for i in members]
                seed = None if self in unseeded else self._random.next()
                options = self._options()
                options.pop("clock", None)  # one that changes this picker would go on for ever
                picker = type(self)(instances, weights, seed=seed, **options)
            picker._loads = [self._loads[i] for i in members]
            picker._lock = self._lock  # which is that of the loads
            picker._is_view = True
            picker._join(self)
            return picker

    @property
    def loads(self) -> NDArray[np.int64]:
        """Requests in flight by index: int64 array, a copy."""
        with self._lock:
            return np.array([load.in_flight for load in self._loads], np.int64)

    def _prepare(self) -> None:
        if self._is_view:
            raise TypeError("a picker among others cannot be changed: change the whole")

    def _appear(self, i: int) -> None:
        super()._appear(i)
        self._loads[i : i + 1] = [Load()]

    def _reweigh(self, i: int, old: int) -> None:
        super()._reweigh(i, old)
        if not old:
            self._place[i] = len(self._live)
            self._live.append(i)
        elif not self._weight[i]:
            place, last = self._place.pop(i), self._live.pop()
            if last != i:
                self._live[place], self._place[last] = last, place

    def _vanish(self, i: int) -> None:
        self._loads[i] = Load()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_is_view"] = False
        state["_loads"] = [copy.copy(load) for load in state["_loads"]]  # one for each index
        for load in state["_loads"]:
            load.in_flight = 0  # the leases are the original's
        return state


class Lease(Generic[T]):
    """One request in flight: reports how it ended, once; `done` of Kratos when called.

    Let go without a report it is released.
    """

    _is_open = False  # nor is one that could not be made

    def __init__(
        self, picker: TwoChoices[T], index: int, load: Load, instance: T, start: float | None
    ) -> None:
        self.index = index
        self.instance = instance
        self._picker = picker
        self._load = load
        self._start = start
        self._is_open = True

    def done(self, rtt: float, error: object = None) -> None:
        """Say how the call has ended; the first report counts, others do nothing."""
        seconds = as_seconds("rtt", rtt)
        if self._close():
            self._picker._observe(self._load, seconds, self._picker._now(), error)

    def release(self) -> None:
        """End the call without saying how."""
        self._close()

    def _close(self) -> bool:
        if not self._is_open:
            return False
        with self._picker._lock:
            was_open, self._is_open = self._is_open, False
            if was_open and self._load.in_flight:
                self._load.in_flight -= 1
            return was_open

    def __del__(self) -> None:
        self._close()

    def __call__(self, info: Any = None, *, err: object = None) -> None:
        """Say how the call has ended, Kratos' way; the time is taken here."""
        if self._close() and self._start is not None:
            now = self._picker._now()
            if isinstance(info, BaseException):
                err = info
            elif info is not None:
                err = getattr(info, "err", info)
            self._picker._observe(self._load, max(now - self._start, 0.0), now, err)

    def __enter__(self) -> T:
        if self._is_open:
            self._start = self._picker._now()
        return self.instance

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self(err=error)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a lease cannot be copied: it ends once")
