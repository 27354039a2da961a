"""The ketama ring as a hasher for pymemcache's HashClient: pass the class, not an instance."""

import hashlib
from bisect import bisect_left
from struct import Struct

_DIGESTS = 40
_WORD, _WORDS = Struct("<I"), Struct("<4I")


class KetamaHasher:
    """Give every key the server that libmemcached gives it (weighted ketama, equal weights).

    Number k of a server's 40 digests is the MD5 of "HOST:PORT-k", its four little-endian
    words are points of the ring; a key belongs to the first point at or after the first word
    of its MD5, around the ring. The port 11211 is left out of the label, "HOST-k"; that of
    a socket is "PATH:0-k".

    add_node and remove_node O(points), get_node O(log points).
    """

    silent_port = "11211"
    """The port that labels leave out; None, in a subclass, for libketama and uhashring."""

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self._points: list[tuple[int, str]] = []
        self._places: list[int] = []

    def add_node(self, node: str) -> None:
        """Add a server, "host:port" or the path of its socket; again changes nothing."""
        if node not in self.nodes:
            self.nodes.append(node)
            self._hold(self._points + [(place, node) for place in self._places_of(node)])

    def remove_node(self, node: str) -> None:
        """Remove a server; ValueError when it is not there."""
        if node not in self.nodes:
            raise ValueError(f"no node {node!r} among {self.nodes}")
        self.nodes.remove(node)
        self._hold([point for point in self._points if point[1] != node])

    def get_node(self, key: str | bytes) -> str | None:
        """Return the server of a key, None when there are none; "a" and b"a" are one key."""
        if not self._points:
            return None
        raw = key.encode() if isinstance(key, str) else key
        digest = hashlib.md5(raw, usedforsecurity=False).digest()
        at = bisect_left(self._places, _WORD.unpack_from(digest)[0])
        return self._points[at if at < len(self._points) else 0][1]

    def _hold(self, points: list[tuple[int, str]]) -> None:
        self._points = sorted(points)
        self._places = [place for place, _ in self._points]

    def _places_of(self, node: str) -> list[int]:
        host, _, port = node.rpartition(":")
        label = host if port == self.silent_port else node
        if node.startswith("/"):
            label = f"{node}:0"
        return [
            place
            for k in range(_DIGESTS)
            for place in _WORDS.unpack(
                hashlib.md5(f"{label}-{k}".encode(), usedforsecurity=False).digest()
            )
        ]
