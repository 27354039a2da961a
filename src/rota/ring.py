"""Where the points of an instance lie on a hash ring, and which share of keys a change moves.

A *rule* says, for one family of rings, how many points each instance has, where point
number k of an instance lies, and where a key lies. Places are integers in [0, 2**64);
families that know only 32 bits have theirs in the upper half. Both implementations of
`ConsistentHash` follow these rules, so they cannot disagree.

A point depends on the instance's name and the point's number alone, never on who else is
on the ring. In the two families whose *counts* depend on everybody's weights, a change of
one weight adds or takes away the last points of others.

Where points of two instances have one place, nginx and libketama give it to the instance
that comes first in their configuration.
"""

import hashlib
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from importlib import import_module
from typing import Protocol

import mmh3
import numpy as np
from numpy.typing import NDArray

from rota.arguments import as_uint64

MAX_POINTS = 2**25
"""The largest ring: 33,554,432 points, about 1 GiB."""


class Rule(ABC):
    """What is common to all families.

    Parameters
    ----------
    virtual_factor : int
        The points for each unit of weight; where `counts_are_own` is False, of an instance
        of average weight.
    weighted : bool
        False gives every weight above 0 the points of weight 1.
    """

    counts_are_own = False
    """Whether the number of points of an instance depends on its own weight alone."""

    def __init__(self, virtual_factor: int, weighted: bool) -> None:
        self._factor, self._weighted = virtual_factor, weighted

    def check(self, total: int, n_live: int) -> None:
        """Refuse a ring of more than MAX_POINTS points.

        Parameters
        ----------
        total, n_live
            The sum of the weights, and how many are above 0.
        """
        points = self._size(total, n_live)
        if points > MAX_POINTS:
            raise ValueError(
                f"virtual_factor and weights must give at most {MAX_POINTS} points, "
                f"got about {points}"
            )

    @abstractmethod
    def counts(self, weights: Sequence[int], names: Sequence[bytes | None]) -> list[int]:
        """Return the number of points of each instance; 0 for weight 0.

        Where the weight is 0 the name does not matter and may be None.
        """

    @abstractmethod
    def places(self, name: bytes, first: int, last: int) -> NDArray[np.uint64]:
        """Return the places of the points first..last - 1 of an instance, by number."""

    @abstractmethod
    def place(self, key: bytes) -> int:
        """Return the place of a key."""

    def _effective(self, weights: Sequence[int]) -> Sequence[int]:
        return weights if self._weighted else [int(weight > 0) for weight in weights]

    def _size(self, total: int, n_live: int) -> int:
        return self._factor * n_live


class _OwnCounts(Rule):
    """A family in which an instance has virtual_factor points for each unit of its weight."""

    counts_are_own = True

    def count(self, weight: int) -> int:
        """Return the number of points of an instance of this weight."""
        return self._factor * (weight if self._weighted else int(weight > 0))

    def counts(self, weights: Sequence[int], names: Sequence[bytes | None]) -> list[int]:
        """Return the number of points of each instance: count(weight)."""
        return [self.count(weight) for weight in weights]

    def _size(self, total: int, n_live: int) -> int:
        return self._factor * (total if self._weighted else n_live)


class Murmur3Rule(_OwnCounts):
    """rota's own: point k of NAME is the first word of MurmurHash3 x64-128 of "NAME-k"."""

    def places(self, name: bytes, first: int, last: int) -> NDArray[np.uint64]:
        """Return the places of the points first..last - 1 of an instance, by number."""
        digest = mmh3.mmh3_x64_128_utupledigest
        return np.array([digest(b"%b-%d" % (name, k), 0)[0] for k in range(first, last)], np.uint64)

    def place(self, key: bytes) -> int:
        """Return the place of a key: the first word of its hash."""
        return mmh3.mmh3_x64_128_utupledigest(key, 0)[0]


class NginxRule(_OwnCounts):
    """nginx's `hash ... consistent`: chained CRC-32, 160 points for each unit of weight.

    Point k is the CRC-32 of HOST, a zero byte, PORT and the point before (4 bytes,
    little-endian; 0 for the first). HOST and PORT are of the name as written in the
    `server` directive, never resolved nor completed: "a" and "a:80" have other points.

    Pingora's ketama is the same but for IPv6, which it hashes without the brackets: its
    instance [::1]:80 has the points of the name "::1:80" here.

    ngx_http_upstream_hash_module.c (nginx 1.22.1); pingora-ketama 0.9.1.
    """

    def places(self, name: bytes, first: int, last: int) -> NDArray[np.uint64]:
        """Return the places of the points first..last - 1 of an instance, in O(last)."""
        base, point, found = zlib.crc32(b"\0".join(_host_and_port(name))), 0, []
        for _ in range(last):
            point = zlib.crc32(point.to_bytes(4, "little"), base)
            found.append(point)
        return np.array(found[first:], np.uint64) << np.uint64(32)

    def place(self, key: bytes) -> int:
        """Return the place of a key: its CRC-32. (nginx itself takes turns on an empty key.)"""
        return zlib.crc32(key) << 32


def _host_and_port(name: bytes) -> tuple[bytes, bytes]:
    """Split a name as nginx does: at the last colon, if nothing but digits follows it."""
    if name[:5].lower() == b"unix:":
        return name[5:], b""
    host, colon, port = name.rpartition(b":")
    return (host, port) if colon and not port.strip(b"0123456789") else (name, b"")


class LibketamaRule(Rule):
    """libketama's: the MD5 of "NAME-k" gives four points; an average server has 160.

    An instance has floor(share of the weight * virtual_factor / 4 * instances) digests, in
    the mixture of single and double precision of the C: of 61 equal servers each has 39
    digests, not 40, and one that is too light has none. A key's place is the first word of
    its MD5.

    R. Jones, libketama/ketama.c (2007), as compiled for x86-64.
    """

    def __init__(self, virtual_factor: int, weighted: bool) -> None:
        super().__init__(virtual_factor, weighted)
        if virtual_factor < 8:  # rounding could leave nobody a digest
            raise ValueError(
                f"virtual_factor must be at least 8 for points 'libketama', got {virtual_factor}"
            )

    def counts(self, weights: Sequence[int], names: Sequence[bytes | None]) -> list[int]:
        """Return the number of points of each instance, four for each digest."""
        effective = self._effective(weights)
        n = sum(weight > 0 for weight in effective)
        if not n:
            return [0] * len(weights)
        single = np.array([*effective, sum(effective)], np.uint64).astype(np.float32)
        shares = (single[:-1] / single[-1]).astype(np.float64)
        digests = np.floor((shares * (self._factor / 4) * n).astype(np.float32))
        return [4 * int(count) for count in digests]

    def places(self, name: bytes, first: int, last: int) -> NDArray[np.uint64]:
        """Return the places of the points first..last - 1 of an instance, by number."""
        digests = range(first // 4, (last + 3) // 4)
        words = b"".join(
            hashlib.md5(b"%b-%d" % (name, k), usedforsecurity=False).digest() for k in digests
        )
        skipped = first - 4 * digests.start
        places = np.frombuffer(words, "<u4").astype(np.uint64) << np.uint64(32)
        return places[skipped : skipped + last - first]

    def place(self, key: bytes) -> int:
        """Return the place of a key: the first word of its MD5."""
        digest = hashlib.md5(key, usedforsecurity=False).digest()
        return int.from_bytes(digest[:4], "little") << 32


class RingHashRule(Rule):
    """gRPC's and Envoy's ring_hash: point k of ADDRESS is the xxHash64 of "ADDRESS_k".

    The ring has the fewest points, at least `min_ring_size` and about `max_ring_size` at
    most, that give the lightest instance a whole number of them. Going through the
    instances by name, a running total of the exact shares is rounded up, in double
    precision, so one that is too light for the largest ring may have no point.
    virtual_factor plays no part. These are the counts of grpc-go 1.85 (`newRing` in
    ring.go) on x86-64. Envoy goes through its hosts in an order of its own: the points lie
    at the same places, but an instance may have one more or less.

    Raises
    ------
    ImportError
        xxhash is not installed.
    """

    def __init__(
        self,
        virtual_factor: int,
        weighted: bool,
        min_ring_size: int = 1024,
        max_ring_size: int = 4096,
    ) -> None:
        super().__init__(virtual_factor, weighted)
        self._least = as_uint64("min_ring_size", min_ring_size, 1)
        self._most = as_uint64("max_ring_size", max_ring_size, 1)
        if not self._least <= self._most <= MAX_POINTS:
            raise ValueError(
                f"max_ring_size must be in [min_ring_size = {self._least}, {MAX_POINTS}], "
                f"got {self._most}"
            )
        try:
            self._hash = import_module("xxhash").xxh64_intdigest
        except ImportError as error:
            raise ImportError(
                "points 'ring_hash' need xxhash: pip install \"rota[ring-hash]\""
            ) from error

    def counts(self, weights: Sequence[int], names: Sequence[bytes | None]) -> list[int]:
        """Return the number of points of each instance; who is first in order of name matters."""
        effective, counts = self._effective(weights), [0] * len(weights)
        live = sorted((name or b"", i) for i, name in enumerate(names) if effective[i])
        if not live:
            return counts
        total = sum(effective)
        least = min(effective[i] for _, i in live) / total
        scale = min(math.ceil(least * self._least) / least, self._most)
        target, current = 0.0, 0
        for _, i in live:
            target += scale * (effective[i] / total)
            counts[i] = math.ceil(target) - current
            current += counts[i]
        return counts

    def places(self, name: bytes, first: int, last: int) -> NDArray[np.uint64]:
        """Return the places of the points first..last - 1 of an instance, by number."""
        return np.array([self._hash(b"%b_%d" % (name, k)) for k in range(first, last)], np.uint64)

    def place(self, key: bytes) -> int:
        """Return the place of a key: its xxHash64."""
        place: int = self._hash(key)
        return place

    def _size(self, total: int, n_live: int) -> int:
        return self._most


_RULES: dict[str, type[Rule]] = {
    "murmur3": Murmur3Rule,
    "nginx": NginxRule,
    "libketama": LibketamaRule,
    "ring_hash": RingHashRule,
}


def rule(points: str, virtual_factor: int, weighted: bool) -> Rule:
    """Return the rule of the family `points`.

    Raises
    ------
    TypeError
        virtual_factor is not an integer.
    ValueError
        points is none of "murmur3", "nginx", "libketama", "ring_hash", or virtual_factor
        is below 1, or below 8 for "libketama".
    ImportError
        "ring_hash" without xxhash.
    """
    factor = as_uint64("virtual_factor", virtual_factor, 1)
    if points not in list(_RULES):
        raise ValueError(f"points must be one of {', '.join(map(repr, _RULES))}, got {points!r}")
    return _RULES[points](factor, weighted)


class Ring(Protocol):
    """A ring whose arcs can be seen: `ConsistentHash`."""

    def arcs(self) -> tuple[NDArray[np.uint64], list[bytes]]:
        """Return the places of all points, ascending, and the name of the owner of each."""


def moved(before: Ring, after: Ring) -> Fraction:
    """Return the exact share of the key space that `after` gives to another name than `before`.

    An arc belongs to the point at its end; of several points at one place, to the first.
    An empty ring owns nothing: from there to any other, everything moves. Linear time.
    """
    (old, old_names), (new, new_names) = before.arcs(), after.arcs()
    if not len(old) or not len(new):
        return Fraction(len(old) != len(new))
    number = {name: i for i, name in enumerate({*old_names, *new_names})}
    ends = np.concatenate([old, new])
    ends.sort(kind="stable")  # two ascending runs: merged
    moves = _owners(ends, old, old_names, number) != _owners(ends, new, new_names, number)
    if moves.all():
        return Fraction(1)  # whose numerator, 2**64, no uint64 holds
    lengths = ends - np.roll(ends, 1)  # modulo 2**64, so over the top as well
    return Fraction(int(lengths[moves].sum()), 2**64)


def _owners(
    ends: NDArray[np.uint64],
    places: NDArray[np.uint64],
    names: list[bytes],
    number: dict[bytes, int],
) -> NDArray[np.int64]:
    """Return the number of the name that owns the arc up to each of `ends`."""
    owners = np.fromiter(map(number.__getitem__, names), np.int64, len(names))
    found: NDArray[np.int64] = owners[np.searchsorted(places, ends) % len(places)]
    return found
