"""Reference of kernels.weighted_round_robin: nginx's loop over all instances."""

from collections.abc import Iterable
from typing import Any, TypeVar

from rota.reference.picker import Picker

T = TypeVar("T")


class WeightedRoundRobin(Picker[T]):
    """Instances in proportion to their weights, spread as evenly as nginx spreads them."""

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
        present = self._present()
        first = sum(i < self._start for i in present)
        self._order = present[first:] + present[:first]
        self._current = [0] * len(self._weight)

    def _draw(self) -> int:
        weight, current = self._weight, self._current
        best = -1
        for i in self._order:
            if weight[i]:
                current[i] += weight[i]
                if best < 0 or current[i] > current[best]:
                    best = i
        if best >= 0:
            current[best] -= sum(weight)
        return best

    def _appear(self, i: int) -> None:
        self._order.append(i)
        self._current += [0] * (i + 1 - len(self._current))

    def _vanish(self, i: int) -> None:
        self._order.remove(i)
        self._current[i] = 0

    def _reorder(self, order: list[int]) -> None:
        first = self._start % len(order)
        self._order = order[first:] + order[:first]

    @property
    def current_weights(self) -> list[int]:
        """nginx's current weights after the last pick, a list of n integers, by index."""
        return list(self._current)
