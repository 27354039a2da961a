"""Reference of kernels.least_request."""

from collections.abc import Iterable
from typing import Any, TypeVar

from rota.reference.two_choices import TwoChoices

T = TypeVar("T")

FULL_SCAN = 8


class LeastRequest(TwoChoices[T]):
    """Two instances at random, and of them the one with fewer requests in flight for its weight."""

    def __init__(
        self, instances: Iterable[T], weights: Any = None, *, seed: int | None = None
    ) -> None:
        super().__init__(instances, weights, seed)

    def _is_less(self, one: int, other: int) -> bool:
        """Whether one more request is less of a load for `one` than for `other`."""
        return (self._loads[one].in_flight + 1) * self._weight[other] < (
            self._loads[other].in_flight + 1
        ) * self._weight[one]

    def _prefer(self, first: int) -> int:
        if not self._loads[first].in_flight:
            return first
        if self._n_live > FULL_SCAN:
            second = self._second(first)
            return second if self._is_less(second, first) else first
        best, offset = first, self._random.below(self._n_live)
        order = [*self._in_order()]
        for i in order[offset:] + order[:offset]:
            if self._is_less(i, best):
                best = i
        return best
