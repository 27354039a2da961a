"""Reference of kernels.fair_round_robin: earliest eligible virtual deadline first, over all.

Virtual time is `_now` / total, in units of 2**-64; i began to wait at `_key[i]` / weight.
"""

from collections.abc import Iterable
from fractions import Fraction
from typing import Any, TypeVar

from rota.reference.picker import Picker

T = TypeVar("T")

ONE = 2**64  # a pick


class FairRoundRobin(Picker[T]):
    """Instances in proportion to their weights, each less than one pick from its exact share."""

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
        self._now = 0
        self._key = [0] * len(self._weight)  # without weight: the lag it left with
        self._total = sum(self._weight)

    def _draw(self) -> int:
        weight, key, now, total = self._weight, self._key, self._now, self._total
        live = [i for i in self._order if weight[i]]
        if not live:
            return -1
        eligible = [i for i in live if key[i] * total <= now * weight[i]]
        if eligible:
            best = eligible[0]
            for i in eligible:
                one, other = (key[i] + ONE) * weight[best], (key[best] + ONE) * weight[i]
                if one < other or (one == other and weight[i] > weight[best]):
                    best = i
        else:
            # Only what changes have rounded can bring this about: who is eligible first.
            best = live[0]
            for i in live:
                one, other = key[i] * weight[best], key[best] * weight[i]
                if one < other or (one == other and weight[i] > weight[best]):
                    best = i
        key[best] += ONE
        self._now += ONE
        return best

    def _appear(self, i: int) -> None:
        self._order.append(i)
        self._key += [0] * (i + 1 - len(self._key))

    def _reweigh(self, i: int, old: int) -> None:
        before, new = self._total, self._weight[i]
        lag = self._now * old // before - self._key[i] if old else self._key[i]
        if not old:
            if before:
                self._now -= lag  # the others had it meanwhile
            else:
                lag = 0
        self._total = total = before - old + new
        self._now = self._now * total // before if before else 0
        if new:
            self._key[i] = self._now * new // total - lag
        else:
            self._key[i] = lag
            if total:
                self._now += lag  # to the others, in proportion to their weights

    def _vanish(self, i: int) -> None:
        self._order.remove(i)
        self._key[i] = 0

    def _reorder(self, order: list[int]) -> None:
        first = self._start % len(order)
        self._order = order[first:] + order[:first]

    @property
    def lags(self) -> list[Fraction]:
        """How many picks each instance is owed (negative: ahead), exactly, by index."""
        return [
            Fraction(self._now * weight - key * self._total, self._total * ONE)
            if weight
            else Fraction(key, ONE)
            for weight, key in zip(self._weight, self._key, strict=True)
        ]
