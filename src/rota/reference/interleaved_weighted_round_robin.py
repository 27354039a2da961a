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
        self._divisor = gcd(*self._weight)
        self._remainder = list(self._weight)
        self._queue = deque(self._live_from_start())
        self._next_queue: deque[int] = deque()

    def _draw(self) -> int:
        if not self._queue:
            self._queue, self._next_queue = self._next_queue, self._queue
            if not self._queue:
                return -1
        i = self._queue.popleft()
        self._remainder[i] -= self._divisor
        if self._remainder[i] > 0:
            self._queue.append(i)
        else:
            self._remainder[i] = self._weight[i]
            self._next_queue.append(i)
        return i
