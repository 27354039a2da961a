"""Reference of kernels.weighted_random: the same exact alias table, in Python's integers."""

from collections.abc import Iterable
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


class WeightedRandom(Picker[T]):
    """Every pick is independent; an instance comes with the probability exactly w / W."""

    def __init__(
        self, instances: Iterable[T], weights: Any = None, *, seed: int | None = None
    ) -> None:
        super().__init__(instances, weights, seed)
        self._stream = self._random
        self._random = SplitMix64(self._stream.state ^ MASK)
        self._total = sum(self._weight)
        self._log2_columns = max(len(self._weight) - 1, 0).bit_length()
        self._share: list[int] = []
        self._alias: list[int] = []
        if self._n_live:
            self._share, self._alias = _vose(self._weight, 1 << self._log2_columns)

    def _draw(self) -> int:
        return self._locate(self._stream.next()) if self._n_live else -1

    def _locate(self, bits: int) -> int:
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

    def index_of(self, bits: int, /) -> int | None:
        """Return the index that the 64-bit draw `bits` selects; None when nothing has weight."""
        drawn = as_uint64("bits", bits)
        return self._locate(drawn) if self._n_live else None

    def alias_table(self) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
        """Return (share, alias), the integers that picks are made of; see `alias_table`."""
        return np.array(self._share, np.uint64), np.array(self._alias, np.int32)
