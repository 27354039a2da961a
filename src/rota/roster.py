"""Who is on a hash ring: instances, their names and weights, and how these change.

Both implementations of the hash pickers keep their instances here, so that they accept and
refuse the same changes with the same words.

An index stays with its instance for as long as that is on the ring. The index of one that
has left stands for nobody (None, weight 0) until a later `add` is given it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rota.arguments import as_index, as_instances, as_new_total, as_weight, as_weights

Check = Callable[[int, int], None]


def ring_name(instance: Any, name: Callable[[Any], str | bytes] | None) -> bytes:
    """Return the name of an instance on the ring, as bytes.

    `name(instance)` where given; else a str or bytes itself, and the `hash_key` or the
    `address` of anything that has them.

    Raises
    ------
    TypeError
        None of these gives a str or bytes.
    ValueError
        A str with a lone surrogate has no UTF-8.
    """
    found: Any
    if name is not None:
        found = name(instance)
    elif isinstance(instance, (str, bytes)):
        found = instance
    else:
        found = getattr(instance, "hash_key", None) or getattr(instance, "address", None)
    # Of a subclass of either, what it holds and not what it makes of that.
    if isinstance(found, str):
        return str.encode(found)
    if isinstance(found, bytes):
        return bytes(memoryview(found))
    raise TypeError(f"name must give the str that an instance is on the ring by, for {instance!r}")


class Roster:
    """Instances by index and by name.

    Parameters
    ----------
    instances, weights
        As every picker takes them. The names must differ.
    name : callable or None
        See `ring_name`.
    check : callable (sum of weights, instances with weight) -> None
        Raises ValueError for what would be too large.

    Raises
    ------
    TypeError, ValueError
        An argument is of no use; nothing has changed then. So do all methods.
    """

    def __init__(
        self,
        instances: Iterable[Any],
        weights: Any,
        name: Callable[[Any], str | bytes] | None,
        check: Check,
    ) -> None:
        held = as_instances(instances)
        self.weights: NDArray[np.int64] = as_weights(weights, len(held))
        self._name, self._check = name, check
        self.slots: list[Any] = list(held)
        self.names: list[bytes | None] = [ring_name(instance, name) for instance in held]
        self.by_name: dict[bytes | None, int] = {}
        for i, own in enumerate(self.names):
            if self.by_name.setdefault(own, i) != i:
                raise ValueError(
                    f"instances must have different names on the ring, got {own!r} "
                    f"at {self.by_name[own]} and {i}"
                )
        self._free: list[int] = []
        self.total = int(self.weights.sum())
        self.n_live = int(np.count_nonzero(self.weights))
        check(self.total, self.n_live)

    def __len__(self) -> int:
        return len(self.by_name)

    def set_weight(self, index: int, weight: int) -> int:
        """Give the instance at `index` another weight; return the index. O(1)."""
        i = self.present(index)
        new = as_weight(weight)
        self._admit(new - int(self.weights[i]), int(new > 0) - int(self.weights[i] > 0))
        self.weights[i] = new
        return i

    def replace(self, index: int, instance: Any) -> None:
        """Put another object of the same name in the place of the instance at `index`. O(1)."""
        i = self.present(index)
        own = ring_name(instance, self._name)
        if own != self.names[i]:
            raise ValueError(
                f"instance must have the name of whom it replaces, {self.names[i]!r}, got {own!r}"
            )
        self.slots[i] = instance

    def add(self, instance: Any, weight: int) -> int:
        """Take an instance in; return its index. O(1), amortised."""
        new, own = as_weight(weight), ring_name(instance, self._name)
        if own in self.by_name:
            raise ValueError(f"instance must not be on the ring yet, got {own!r} again")
        self._admit(new, int(new > 0))
        return self.take(instance, own, new)

    def take(self, instance: Any, own: bytes | None, weight: int) -> int:
        """Take in an instance that was checked before; return its index. O(1), amortised."""
        if self._free:
            i = self._free.pop()
            self.slots[i], self.names[i] = instance, own
        else:
            i = len(self.slots)
            self.slots.append(instance)
            self.names.append(own)
            if i == len(self._capacity()):
                self._grow()
            self.weights = self._capacity()[: i + 1]
        self.weights[i] = weight
        self.by_name[own] = i
        return i

    def drain(self, index: int) -> int:
        """Take the weight of an instance that leaves; return the index. `forget` it then."""
        i = index
        self.total -= int(self.weights[i])
        self.n_live -= int(self.weights[i] > 0)
        self.weights[i] = 0
        return i

    def forget(self, index: int) -> None:
        """Let a drained instance go; its index may be given out again."""
        del self.by_name[self.names[index]]
        self.slots[index] = self.names[index] = None
        self._free.append(index)

    def change(
        self, instances: Iterable[Any], weights: Any
    ) -> tuple[list[int], list[int], list[int]]:
        """Go over to `instances` but for those who leave, who are still there. O(n).

        Returns
        -------
        (changed, coming, leaving)
            Indices: of those who stay with another weight; of the new; of those to `drain`
            and `forget`.
        """
        wanted = Roster(instances, weights, self._name, self._check)
        # In a new array: whoever picks meanwhile has the old weights, all of them.
        capacity = self._capacity().copy()
        self.weights = capacity[: len(self.weights)]
        leaving = [i for own, i in self.by_name.items() if own not in wanted.by_name]
        self.weights[leaving] = 0
        changed, coming = [], []
        for own, instance, weight in zip(
            wanted.names, wanted.slots, wanted.weights.tolist(), strict=True
        ):
            i = self.by_name.get(own, -1)
            if i < 0:
                coming.append(self.take(instance, own, weight))
            else:
                self.slots[i] = instance
                if self.weights[i] != weight:
                    self.weights[i] = weight
                    changed.append(i)
        self.total, self.n_live = wanted.total, wanted.n_live
        return changed, coming, leaving

    def present(self, index: int) -> int:
        """Return the index of an instance that is on the ring."""
        i = as_index(index, len(self.slots))
        if self.names[i] is None:
            raise ValueError(f"index must be of an instance on the ring, got {i}, which has left")
        return i

    def _admit(self, more_weight: int, more_live: int) -> None:
        total, n_live = self.total + more_weight, self.n_live + more_live
        self._check(as_new_total(total), n_live)
        self.total, self.n_live = total, n_live

    def _capacity(self) -> NDArray[np.int64]:
        base = self.weights.base
        return self.weights if base is None else base

    def _grow(self) -> None:
        # Views that were handed out keep the old array, as it was.
        old = self._capacity()
        grown = np.zeros(max(2 * len(old), 8), np.int64)
        grown[: len(old)] = old
        self.weights = grown[: len(old)]
