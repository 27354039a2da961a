"""Reference of kernels.md5: hashlib and bisect."""

from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from hashlib import md5
from importlib import import_module
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rota.arguments import as_places

_WORD, _HIGH = Struct("<I"), Struct(">Q")


def _quickest() -> Callable[[bytes], Any]:
    # CPython's own MD5, where it is built in, makes its object faster than hashlib's. It is
    # private, and typed for no one.
    try:
        quickest: Callable[[bytes], Any] = import_module("_md5").md5
        return quickest
    except ImportError:
        return partial(md5, usedforsecurity=False)


_hash = _quickest()


def key_word(key: object, /) -> int:
    """Return the first word, little-endian, of the MD5 of str(key)."""
    word: int = _WORD.unpack_from(_hash(str(key).encode()).digest())[0]
    return word


def key_digest(key: object, /) -> int:
    """Return the MD5 of str(key) as an integer of 128 bits, big-endian."""
    return int.from_bytes(_hash(str(key).encode()).digest(), "big")


def label_digests(name: str, count: int) -> bytes:
    """Return the MD5 of "NAME-0", "NAME-1" and so on to count - 1, 16 bytes each. O(count)."""
    return b"".join([_hash(f"{name}-{k}".encode()).digest() for k in range(count)])


class Places:
    """Sorted places, and which of them a key belongs to: the first above its own.

    Parameters
    ----------
    wide : bool
        A key's place is the first 64 bits of its MD5, big-endian; otherwise its first
        word, little-endian, in the upper half.
    """

    def __init__(self, wide: bool) -> None:
        self._wide = wide
        self._places: list[int] = []
        self._owners: list[int] = []
        self._names: list[Any] = []

    def hold(self, places: NDArray[np.uint64], owners: NDArray[np.int32], names: list[Any]) -> None:
        """Hold these places instead."""
        given: list[int] = as_places(places).tolist()
        numbers: list[int] = np.asarray(owners, np.int32).tolist()
        if len(numbers) != len(given):
            raise ValueError(f"places and owners differ in length: {len(given)} != {len(numbers)}")
        for k, number in enumerate(numbers):
            if not 0 <= number < len(names):
                raise ValueError(f"owners must be in [0, {len(names)}), got {number} at {k}")
            if k and given[k] < given[k - 1]:
                raise ValueError(f"places must ascend, got {given[k]} after {given[k - 1]}")
        self._places, self._owners, self._names = given, numbers, names.copy()

    def find(self, key: object, /) -> int:
        """Return the index of the first place above the key's, around the ring; 0 when empty."""
        digest = _hash(str(key).encode()).digest()
        place = _HIGH.unpack_from(digest)[0] if self._wide else _WORD.unpack_from(digest)[0] << 32
        at = bisect_right(self._places, place)
        return at if at < len(self._places) else 0

    def node(self, key: object, /) -> Any:
        """Return the name of the owner of a key's place; None when there is no place."""
        return self._names[self._owners[self.find(key)]] if self._places else None


class NodeFinder:
    """The base of a ring whose `get_node` calls the function that `find_in` was given."""

    _node_finder: Callable[[Any], Any]

    def find_in(self, node: Callable[[Any], Any], /) -> None:
        """Have `get_node` call `node`, a function from a key to a name."""
        self._node_finder = node

    def get_node(self, key: object, /) -> Any:
        """Return the name of the key's node."""
        return self._node_finder(key)
