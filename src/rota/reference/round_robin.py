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
        self._begin()

    def _begin(self) -> None:
        self._order = self._present()
        self._position = sum(i < self._start for i in self._order)  # in the order
        self._wrap()

    def _wrap(self) -> None:
        if self._position >= len(self._order):
            self._position = 0

    def _draw(self) -> int:
        for _ in self._order:
            i = self._order[self._position]
            self._position += 1
            self._wrap()
            if self._weight[i]:
                return i
        return -1

    def _appear(self, i: int) -> None:
        self._order.append(i)

    def _vanish(self, i: int) -> None:
        place = self._order.index(i)
        del self._order[place]
        self._position -= place < self._position
        self._wrap()

    def _reorder(self, order: list[int]) -> None:
        following = self._order[self._position]
        self._order = order
        self._position = order.index(following)
