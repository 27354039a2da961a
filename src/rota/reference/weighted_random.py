"""Reference of kernels.weighted_random: the same exact draws, in Python's integers.

By an alias table; after a change by the cumulative weights for as many picks as it takes the
kernel to make its table again.
"""

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rota.arguments import as_uint64, as_weights
from rota.reference.picker import Picker
from rota.reference.splitmix64 import MASK, SplitMix64

T = TypeVar("T")


def _vose(weight: list[int], n_columns: int) -> tuple[list[int], list[int]]:
    total = sum(weight)
    mass = [w * n_columns for w in weight] + [0] * (n_columns - len(weight))
    share, alias = [total] * n_columns, list(range(n_columns))
    small = [c for c in range(n_columns) if mass[c] < total]
    large = [c for c in range(n_columns) if mass[c] >= total]
    while small and large:
        s, g = small.pop(), large[-1]
        share[s], alias[s] = mass[s], g
        mass[g] -= total - mass[s]
        if mass[g] < total:
            small.append(large.pop())
    return share, alias


def alias_table(
    weights: Any, n_columns: int | None = None
) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Return the exact alias table of `weights` on `n_columns` columns (default: n of them)."""
    n = len(weights)
    weight = as_weights(weights, n).tolist()
    if sum(weight) == 0:
        raise ValueError("weights must have a sum >= 1, got 0")
    columns = n if n_columns is None else as_uint64("n_columns", n_columns)
    if not n <= columns < 2**31:
        raise ValueError(f"n_columns must be in [{n}, 2**31), got {columns}")
    share, alias = _vose(weight, columns)
    return np.array(share, np.uint64), np.array(alias, np.int32)


class Draws(Picker[T]):
    """Weighted random draws: those of WeightedRandom, and the first choice of others."""

    def _begin(self) -> None:
        self._stream = self._random
        self._random = SplitMix64(self._stream.state ^ MASK)
        self._start_over()
        self._n_left = 0

    def _start_over(self) -> None:
        """Forget what was made of other weights."""
        self._total = sum(self._weight)
        self._log2_columns = max(len(self._weight) - 1, 0).bit_length()
        self._n_left = 2 * max((1 << self._log2_columns) // 8, 1)  # draws not by the table
        self._sums: list[int] = []
        self._share: list[int] = []
        self._alias: list[int] = []

    def _appear(self, i: int) -> None:
        self._start_over()

    def _reweigh(self, i: int, old: int) -> None:
        self._start_over()

    def _draw(self) -> int:
        if not self._n_live:
            return -1
        i = self._locate(self._stream.next())
        self._n_left = max(self._n_left - 1, 0)
        return i

    def _locate(self, bits: int) -> int:
        return self._by_sums(bits) if self._n_left else self._by_table(bits)

    def _by_sums(self, bits: int) -> int:
        if not self._sums:
            self._sums = list(accumulate(self._weight))
        product = bits * self._total
        r = product >> 64
        if product & MASK < 2**64 % self._total:
            r = SplitMix64(bits).below(self._total)
        return bisect_right(self._sums, r)

    def _make_table(self) -> None:
        if not self._share:
            self._share, self._alias = _vose(self._weight, 1 << self._log2_columns)

    def _by_table(self, bits: int) -> int:
        self._make_table()
        k = self._log2_columns
        column = bits >> (64 - k)
        share, total = self._share[column], self._total
        # The digits of the draw below the column's, as a fraction of 2**n_bits, against
        # share / total. More digits are needed while the fraction could still be either.
        n_bits = 64 - k
        fraction = bits & ((1 << n_bits) - 1)
        more = SplitMix64(bits)
        while True:
            if (fraction + 1) * total <= share << n_bits:
                return column
            if fraction * total >= share << n_bits:
                return self._alias[column]
            fraction = fraction << 64 | more.next()
            n_bits += 64


class WeightedRandom(Draws[T]):
    """Every pick is independent; an instance comes with the probability exactly w / W."""

    def __init__(
        self, instances: Iterable[T], weights: Any = None, *, seed: int | None = None
    ) -> None:
        super().__init__(instances, weights, seed)
        self._begin()

    def index_of(self, bits: int, /) -> int | None:
        """Return the index that the 64-bit draw `bits` selects; None when nothing has weight."""
        drawn = as_uint64("bits", bits)
        with self._lock:
            return self._locate(drawn) if self._n_live else None

    def alias_table(self) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
        """Return (share, alias), the integers that picks are made of; see `alias_table`."""
        with self._lock:
            if self._n_live and not self._n_left:
                self._make_table()
            return np.array(self._share, np.uint64), np.array(self._alias, np.int32)
