"""Which instance of a new list is which of those a picker has."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def identity_of(instance: Any) -> Any:
    """Return what an instance is known by: its `identity`, or itself, or its address in memory.

    The last is for what cannot be hashed.
    """
    identity = getattr(instance, "identity", instance)
    try:
        hash(identity)
    except TypeError:
        return ("id", id(instance))
    return identity


def match(
    indices: Iterable[int], known: Sequence[Any], wanted: Sequence[Any]
) -> tuple[NDArray[np.int32], list[int]]:
    """Find the instances of a new list among those known. O(n).

    Several of one identity are matched in their order.

    Parameters
    ----------
    indices, known
        Of the instances known, in ascending order.
    wanted
        The new list.

    Returns
    -------
    whose : int32 array, shape (len(wanted),)
        The index of each of the new list, -1 for who is new.
    leaving : list of int
        The indices of those who are not in the new list, ascending.
    """
    places: defaultdict[Any, list[int]] = defaultdict(list)
    for i, instance in zip(indices, known, strict=True):
        places[identity_of(instance)].append(i)
    for found in places.values():
        found.reverse()
    whose = np.full(len(wanted), -1, np.int32)
    for k, instance in enumerate(wanted):
        found = places.get(identity_of(instance), [])
        if found:
            whose[k] = found.pop()
    return whose, sorted(i for found in places.values() for i in found)
