"""Reference of kernels.round_robin."""

from collections.abc import Iterable
from typing import Any, TypeVar

from rota.reference.picker import Picker

T = TypeVar("T")


class RoundRobin(Picker[T]):
    """Every instance in turn, whatever its weight; those of weight 0 are left out."""

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
        self._position = 0

    def _draw(self) -> int:
        if not self._order:
            return -1
        i = self._order[self._position]
        self._position = (self._position + 1) % len(self._order)
        return i
