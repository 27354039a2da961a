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
        self._order = self._live_from_start()
        self._current = [0] * len(self._weight)
        self._total = sum(self._weight)

    def _draw(self) -> int:
        if not self._order:
            return -1
        weight, current = self._weight, self._current
        best = -1
        for i in self._order:
            current[i] += weight[i]
            if best < 0 or current[i] > current[best]:
                best = i
        current[best] -= self._total
        return best

    @property
    def current_weights(self) -> list[int]:
        """nginx's current weights after the last pick, a list of n integers that sum to 0."""
        return list(self._current)
