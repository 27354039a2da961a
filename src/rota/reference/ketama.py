"""Reference of kernels.ketama: a sorted list of points, made anew with every change."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rota.reference.hash_picker import HashPicker, Key
from rota.reference.murmur3 import key_bytes
from rota.ring import rule

T = TypeVar("T")


class ConsistentHash(HashPicker[T]):
    """A key belongs to the first point at or after its place, on a ring of many points."""

    def __init__(
        self,
        instances: Iterable[T],
        weights: Any = None,
        *,
        virtual_factor: int = 160,
        weighted: bool = True,
        points: str = "murmur3",
        get_key: Callable[[Any, Any], Key] | None = None,
        load_factor: float | None = None,
        replicas: int | None = None,
        name: Callable[[Any], str | bytes] | None = None,
    ) -> None:
        self._rule = rule(points, virtual_factor, weighted)
        self._is_own = points == "murmur3"
        super().__init__(instances, weights, get_key, load_factor, replicas, name)

    def _check(self, total: int, n_live: int) -> None:
        self._rule.check(total, n_live)

    def _follow(self) -> None:
        roster = self._roster
        counts = self._rule.counts(roster.weights.tolist(), roster.names)
        self._ring = sorted(
            # On one place by name; the fleets that others' rings are of go by their lists.
            (place, own if self._is_own else b"", i, own)
            for i, (own, count) in enumerate(zip(roster.names, counts, strict=True))
            if own is not None
            for place in self._rule.places(own, 0, count).tolist()
        )
        self._places = [point[0] for point in self._ring]

    def _place(self, key: Key) -> int:
        return self._rule.place(key_bytes(key))

    def _walk(self, place: int) -> Iterator[int]:
        ring = self._ring
        first = bisect_left(self._places, place)
        for k in range(len(ring)):
            yield ring[(first + k) % len(ring)][2]

    def arcs(self) -> tuple[NDArray[np.uint64], list[bytes]]:
        """Return the places of all points, ascending, and the name of the owner of each."""
        return np.array(self._places, np.uint64), [point[3] for point in self._ring]
