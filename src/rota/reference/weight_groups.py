"""Reference of kernels.weight_groups: each queue is sorted anew after every step."""

from rota.arguments import as_count, as_weight


class Queues:
    """The queues alone, of n members 0 .. n - 1 that have no weight at first."""

    def __init__(self, n: int) -> None:
        self._weight = [0] * as_count(n)
        self._key = [0] * n

    def _queue(self, weight: int) -> list[int]:
        members = [i for i, own in enumerate(self._weight) if own and own == weight]
        return sorted(members, key=lambda i: (self._key[i], i))

    def _check(self, i: int, is_member: bool) -> None:
        if not 0 <= i < len(self._weight) or (self._weight[i] > 0) != is_member:
            raise ValueError(f"i must be {'in' if is_member else 'out of'} the queues, got {i}")

    def enter(self, i: int, weight: int, key: int) -> None:
        """Put i, which is in no queue, into that of its weight."""
        wanted = as_weight(weight)
        if wanted == 0:
            raise ValueError("weight must be >= 1, got 0")
        self._check(i, False)
        self._weight[i] = wanted
        self._key[i] = key

    def withdraw(self, i: int, /) -> int:
        """Take i out of its queue; return its key."""
        self._check(i, True)
        self._weight[i] = 0
        return self._key[i]

    def leader(self, weight: int, /) -> int | None:
        """Return who comes first of a weight, None where nobody has it."""
        queue = self._queue(as_weight(weight))
        return queue[0] if queue else None

    def pick_of(self, weight: int, most: int) -> list[int]:
        """Pick who comes first of a weight, and of those that follow with the same key."""
        queue = self._queue(as_weight(weight))
        first = [i for i in queue if self._key[i] == self._key[queue[0]]][: as_count(most)]
        for i in first:
            self._key[i] += 1
        return first
