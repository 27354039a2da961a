"""Reference of kernels.picker: all that a picker does but the order itself."""

import copy
import threading
from collections.abc import Iterable, Iterator, MutableSequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from rota.arguments import (
    as_count,
    as_instances,
    as_int32_out,
    as_seed,
    as_start,
    as_weights,
)
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
        self._instances: tuple[T, ...] = held
        self._weights = checked
        self._weight: list[int] = checked.tolist()
        self._n_live = sum(weight > 0 for weight in self._weight)
        self._start = 0

    def _rotate(self, start: int | None) -> None:
        n = len(self._instances)
        if start is not None:
            self._start = as_start(start, n)
        elif n:
            self._start = self._random.below(n)

    def _live_from_start(self) -> list[int]:
        n = len(self._instances)
        rotated = (*range(self._start, n), *range(self._start))
        return [i for i in rotated if self._weight[i] > 0]

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

    def __iter__(self) -> "Self":
        return self

    def __next__(self) -> T:
        with self._lock:
            i = self._draw()
        if i < 0:
            raise StopIteration
        return self._instances[i]

    def pick_index(self) -> int | None:
        """Return the index of the next instance, or None when nothing has weight."""
        with self._lock:
            i = self._draw()
        return None if i < 0 else i

    def pick_many(self, n: int, /) -> list[T | None]:
        """Return the next n picks as a list: [pick() for _ in range(n)], O(n)."""
        return [self.pick() for _ in range(as_count(n))]

    def fill(self, out: "MutableSequence[int] | NDArray[np.int32] | memoryview[int]", /) -> None:
        """Write the indices of the next len(out) picks to `out`; -1 where there is none."""
        view = as_int32_out(out)
        with self._lock:
            for k in range(len(view)):
                view[k] = self._draw()

    def attempts(self, ctx: object = None, request: object = None) -> "Attempts[T]":
        """Return an iterator over distinct instances in the order to try them."""
        return Attempts(self)

    @property
    def instances(self) -> tuple[T, ...]:
        """The instances, a tuple."""
        return self._instances

    @property
    def weights(self) -> NDArray[np.int64]:
        """The weights: int64 array of shape (n,), a read-only view of the picker's own memory."""
        # Not every numpy is typed as a buffer.
        return np.asarray(memoryview(self._weights).toreadonly())  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._instances)

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {
                **copy.deepcopy({**self.__dict__, "_lock": None, "_instances": ()}),
                "_instances": self._instances,
            }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def __repr__(self) -> str:
        n, total = len(self._instances), sum(self._weight)
        return f"{type(self).__name__}({n} instances, total weight {total})"


class Attempts(Generic[T]):
    """The instances to try for one request, each at most once. For one thread."""

    def __init__(self, picker: Picker[T]) -> None:
        if not isinstance(picker, Picker):
            raise TypeError(f"picker must be a Picker, got {picker!r}")
        self._picker = picker
        self._tried: set[int] = set()

    def next(self) -> T | None:
        """Return the next instance to try, or None when none is left."""
        i = self._next_index()
        return None if i < 0 else self._picker._instances[i]

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        i = self._next_index()
        if i < 0:
            raise StopIteration
        return self._picker._instances[i]

    def _next_index(self) -> int:
        picker, tried = self._picker, self._tried
        if len(tried) >= picker._n_live:
            return -1
        with picker._lock:
            for _ in range(MOST_REPEATS):
                i = picker._draw()
                if i not in tried:
                    break
            else:
                left = [i for i, weight in enumerate(picker._weight) if weight and i not in tried]
                drawn = picker._random.below(sum(picker._weight[i] for i in left))
                for i in left:
                    drawn -= picker._weight[i]
                    if drawn < 0:
                        break
        tried.add(i)
        return i
