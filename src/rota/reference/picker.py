"""Reference of kernels.picker: all that a picker does but the order itself.

An algorithm gives `_draw`, and for changes `_appear` (i is new, weight 0, last in the list),
`_reweigh` (i has another weight from now on), `_vanish` (i, whose weight is 0, has left),
`_reorder` (the list is in another order) and `_begin` (from nothing).
"""

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, MutableSequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from rota.arguments import (
    as_count,
    as_index,
    as_instances,
    as_int32_out,
    as_new_total,
    as_seed,
    as_start,
    as_weight,
    as_weights,
)
from rota.fork import unseeded
from rota.identity import match
from rota.outcome import unheard
from rota.reference.splitmix64 import SplitMix64

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

MOST_REPEATS = 16


class Picker(Generic[T]):
    """The base of every reference picker. A subclass gives `_draw`.

    Any number of threads may share it; a lock keeps the draws apart.
    """

    def __init__(self, instances: Iterable[T], weights: Any, seed: int | None) -> None:
        held = as_instances(instances)
        checked = as_weights(weights, len(held))
        self._lock = threading.RLock()
        self._random = SplitMix64(as_seed(seed))
        self._instances: list[Any] = list(held)  # None where one has left
        self._weights = checked
        self._weight: list[int] = checked.tolist()
        self._is_present = [True] * len(held)
        self._vacant: list[int] = []
        self._n_live = sum(weight > 0 for weight in self._weight)
        self._version = 0
        self._start = 0
        if seed is None:
            unseeded.add(self)

    def _rotate(self, start: int | None) -> None:
        n = len(self._instances)
        if start is not None:
            self._start = as_start(start, n)
        elif n:
            self._start = self._random.below(n)

    def _present(self) -> list[int]:
        return [i for i, is_present in enumerate(self._is_present) if is_present]

    def _begin(self) -> None:
        """Lay out the schedule from nothing."""

    def _appear(self, i: int) -> None:
        """Give i, whose weight is 0, the last place in the list."""

    def _reweigh(self, i: int, old: int) -> None:
        """Go on with i's weight of now; it was `old`."""

    def _vanish(self, i: int) -> None:
        """Take i, whose weight is 0, from the list."""

    def _reorder(self, order: list[int]) -> None:
        """Go on with the list in another order."""

    def _prepare(self) -> None:
        """Raise where the picker cannot be changed."""

    def _draw(self) -> int:
        """Return the index of the next instance, -1 when nothing has weight."""
        raise NotImplementedError(f"{type(self).__name__} gives no order")

    def pick(self) -> T | None:
        """Return the next instance, or None when nothing has weight."""
        with self._lock:
            i = self._draw()
            return None if i < 0 else self._instances[i]

    def next(self, ctx: object = None, request: object = None) -> T | None:
        """Return the next instance, or None: Kitex's Picker. Both arguments are ignored."""
        return self.pick()

    def select(self) -> tuple[T, Callable[..., object]] | None:
        """Return (instance, done): Kratos' interface; None when nothing has weight."""
        with self._lock:
            i = self._draw()
            return None if i < 0 else (self._instances[i], unheard)

    def __iter__(self) -> "Self":
        return self

    def __next__(self) -> T:
        with self._lock:
            i = self._draw()
            if i < 0:
                raise StopIteration
            instance: T = self._instances[i]
        return instance

    def pick_index(self) -> int | None:
        """Return the index of the next instance, or None when nothing has weight."""
        with self._lock:
            i = self._draw()
        return None if i < 0 else i

    def pick_many(self, n: int, /) -> list[T | None]:
        """Return the next n picks as a list: [pick() for _ in range(n)], O(n)."""
        count = as_count(n)
        with self._lock:  # one change is before or after all of them
            return [self.pick() for _ in range(count)]

    def fill(self, out: "MutableSequence[int] | NDArray[np.int32] | memoryview[int]", /) -> None:
        """Write the indices of the next len(out) picks to `out`; -1 where there is none."""
        view = as_int32_out(out)
        with self._lock:
            for k in range(len(view)):
                view[k] = self._draw()

    def attempts(self, ctx: object = None, request: object = None) -> "Attempts[T]":
        """Return an iterator over distinct instances in the order to try them."""
        return Attempts(self)

    def set_weight(self, index: int, weight: int) -> None:
        """Give the instance at `index` another weight; the very next pick obeys it."""
        wanted = as_weight(weight)
        with self._lock:
            self._give(self._index(index), wanted)

    def add(self, instance: T, weight: int = 1) -> int:
        """Take an instance in, last in the list; return its index. The next pick obeys it."""
        wanted = as_weight(weight)
        with self._lock:
            as_new_total(sum(self._weight) + wanted)
            return self._admit(instance, wanted)

    def remove(self, index: int, /) -> None:
        """Let the instance at `index` go; the index is for nobody until it is given out again."""
        with self._lock:
            self._dismiss(self._index(index))

    def replace(self, index: int, instance: T) -> None:
        """Put another object in the place of the instance at `index`."""
        with self._lock:
            self._prepare()
            self._instances[self._index(index)] = instance
            self._version += 1

    def update(self, instances: Iterable[T], weights: Any = None) -> None:
        """Go over to these instances and weights; who stays keeps index and state."""
        wanted = as_instances(instances)
        weight = as_weights(weights, len(wanted)).tolist()
        with self._lock:
            self._prepare()
            version = -1
            while version != self._version:  # comparing may run anything
                version, present = self._version, self._present()
                found, leaving = match(present, [self._instances[i] for i in present], wanted)
            whose = found.tolist()
            for i in leaving:
                self._dismiss(i)
            # Who loses weight first, as the kernels do.
            for i, new in zip(whose, weight, strict=True):
                if i >= 0 and new < self._weight[i]:
                    self._give(i, new)
            for k, (i, new) in enumerate(zip(whose, weight, strict=True)):
                if i >= 0:
                    self._give(i, new)
                    self._instances[i] = wanted[k]
                else:
                    whose[k] = self._admit(wanted[k], new)
            if whose:
                self._reorder(whose)

    def _index(self, index: int) -> int:
        i = as_index(index, len(self._instances))
        if not self._is_present[i]:
            raise ValueError(f"index must be of an instance that has not left, got {i}")
        return i

    def _give(self, i: int, weight: int) -> None:
        old = self._weight[i]
        if weight == old:
            return
        as_new_total(sum(self._weight) - old + weight)
        self._prepare()
        self._weight[i] = weight
        self._weights[i] = weight
        self._n_live += (weight > 0) - (old > 0)
        self._version += 1
        self._reweigh(i, old)

    def _admit(self, instance: T, weight: int) -> int:
        self._prepare()
        if self._vacant:
            i = self._vacant.pop()
            self._instances[i] = instance
            self._is_present[i] = True
        else:
            i = len(self._instances)
            self._instances.append(instance)
            self._is_present.append(True)
            self._weight.append(0)
            self._grow()
        self._version += 1
        self._appear(i)
        self._give(i, weight)
        return i

    def _grow(self) -> None:
        # Views that were handed out keep the old array, as it was.
        base = self._weights if self._weights.base is None else self._weights.base
        n = len(self._weights)
        if n == len(base):
            base = np.zeros(max(2 * n, 8), np.int64)
            base[:n] = self._weights
        self._weights = base[: n + 1]

    def _dismiss(self, i: int) -> None:
        self._prepare()
        self._give(i, 0)
        self._vanish(i)
        self._instances[i] = None
        self._is_present[i] = False
        self._vacant.append(i)
        self._version += 1

    def _reseed(self) -> None:
        """Begin anew from the operating system's entropy: in the child of a fork."""
        self._lock = threading.RLock()  # another thread of the parent may have held it
        self._random = SplitMix64(as_seed(None))
        self._start = self._random.below(len(self._instances)) if self._instances else 0
        self._begin()

    @property
    def instances(self) -> tuple[T | None, ...]:
        """The instances by index, a tuple; None where one has left."""
        return tuple(self._instances)

    @property
    def weights(self) -> NDArray[np.int64]:
        """The weights by index: int64 array, a read-only view of the picker's own memory.

        Live until the picker grows: from then on a view taken before keeps what it had.
        """
        # Not every numpy is typed as a buffer.
        return np.asarray(memoryview(self._weights).toreadonly())  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._instances) - len(self._vacant)

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {
                **copy.deepcopy({**self.__dict__, "_lock": None, "_instances": []}),
                "_instances": list(self._instances),
                "is_unseeded": self in unseeded,
            }

    def __setstate__(self, state: dict[str, Any]) -> None:
        is_unseeded = state.pop("is_unseeded")
        self.__dict__.update(state, _lock=threading.RLock())
        if is_unseeded:
            unseeded.add(self)  # a child of a fork goes its own way with a copy, too

    def __repr__(self) -> str:
        n, total = len(self), sum(self._weight)
        return f"{type(self).__name__}({n} instances, total weight {total})"


class Attempts(Generic[T]):
    """The instances to try for one request, each at most once. For one thread.

    The picker may change meanwhile: who comes is tried too, who is drained is not.
    """

    def __init__(self, picker: Picker[T]) -> None:
        if not isinstance(picker, Picker):
            raise TypeError(f"picker must be a Picker, got {picker!r}")
        self._picker = picker
        self._tried: list[tuple[int, T]] = []

    def next(self) -> T | None:
        """Return the next instance to try, or None when none is left."""
        return next(self, None)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        picker = self._picker
        with picker._lock:
            i = self._next_index()
            if i < 0:
                raise StopIteration
            instance: T = picker._instances[i]
        self._tried.append((i, instance))
        return instance

    def _next_index(self) -> int:
        picker = self._picker
        tried = {i for i, instance in self._tried if picker._instances[i] is instance}
        left = [i for i, weight in enumerate(picker._weight) if weight and i not in tried]
        if not left:
            return -1
        for _ in range(MOST_REPEATS):
            i = picker._draw()
            if i not in tried:
                return i
        drawn = picker._random.below(sum(picker._weight[i] for i in left))
        for i in left:
            drawn -= picker._weight[i]
            if drawn < 0:
                break
        return i
