"""Reference of kernels.interleaved_weighted_round_robin: Kitex's two queues."""

from collections import deque
from collections.abc import Iterable
from math import gcd
from typing import Any, TypeVar

from rota.reference.picker import Picker

T = TypeVar("T")


class InterleavedWeightedRoundRobin(Picker[T]):
    """Instances in proportion to their weights, one pass over the list after another."""

    def __init__(
        self,
        instances: Iterable[T],
        weights: Any = None,
        *,
        seed: int | None = None,
        start: int | None = None,
    ) -> None:
        super().__init__(instances, weights, seed)
        self._rotate(start)
        self._begin()

    def _begin(self) -> None:
        indices = range(len(self._weight))
        rotated = [*indices[self._start :], *indices[: self._start]]
        self._current: deque[int] = deque()
        self._next = deque(i for i in rotated if self._weight[i])
        self._remainder = list(self._weight)
        self._divisor = 0  # of the round; there is none yet

    def _draw(self) -> int:
        if not self._current:
            self._current, self._next = self._next, self._current
            if not self._current:
                return -1
            self._divisor = gcd(*self._weight)  # those of weight 0 make no difference
        i = self._current.popleft()
        self._remainder[i] -= self._divisor
        if self._remainder[i] > 0:
            self._current.append(i)
        else:
            self._remainder[i] = self._weight[i]
            self._next.append(i)
        return i

    def _appear(self, i: int) -> None:
        if i == len(self._remainder):
            self._remainder.append(0)

    def _reweigh(self, i: int, old: int) -> None:
        weight = self._weight[i]
        queue = self._current if i in self._current else self._next
        if old == 0:
            self._next.append(i)
        elif weight == 0:
            queue.remove(i)
        if queue is self._next:
            self._remainder[i] = weight
