"""Reference of kernels.maglev."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rota.arguments import as_table_size
from rota.reference.hash_picker import HashPicker, Key
from rota.reference.murmur3 import digest, key_hash

T = TypeVar("T")


class Maglev(HashPicker[T]):
    """A key's instance is the same in every process, and shares are even to a slot or two."""

    def __init__(
        self,
        instances: Iterable[T],
        weights: Any = None,
        *,
        table_size: int = 65537,
        get_key: Callable[[Any, Any], Key] | None = None,
        load_factor: float | None = None,
        replicas: int | None = None,
        name: Callable[[Any], str | bytes] | None = None,
    ) -> None:
        self._size = as_table_size(table_size)
        super().__init__(instances, weights, get_key, load_factor, replicas, name)

    def _check(self, total: int, n_live: int) -> None:
        if n_live > self._size:
            raise ValueError(f"instances must number at most the {self._size} slots, got {n_live}")

    def _follow(self) -> None:
        size = self._size
        weights: list[int] = self._roster.weights.tolist()
        live = sorted(
            (own, i) for i, own in enumerate(self._roster.names) if own is not None and weights[i]
        )
        table = [-1] * size if live else []
        permutations = [_permutation(own, size) for own, _ in live]
        credit = [0] * len(live)
        most, left = max(weights, default=0), len(table)
        while left:
            for k, (_, i) in enumerate(live):
                credit[k] += weights[i]
                if credit[k] >= most and left:
                    credit[k] -= most
                    table[next(slot for slot in permutations[k] if table[slot] < 0)] = i
                    left -= 1
        self._table = table

    def _place(self, key: Key) -> int:
        return key_hash(key)

    def _walk(self, place: int) -> Iterator[int]:
        table = self._table
        first = place * self._size >> 64
        for k in range(len(table)):
            yield table[(first + k) % self._size]

    def table_of_indices(self) -> NDArray[np.int32]:
        """Return the owner of each slot: int32 array, shape (table_size,), a copy."""
        return np.array(self._table, np.int32)


def _permutation(own: bytes, size: int) -> Iterator[int]:
    low, high = digest(own)
    skip = high % (size - 1) + 1
    return ((low % size + j * skip) % size for j in range(size))
