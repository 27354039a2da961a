"""Tells when the processor is the peers' own.

A virtual machine shares cores with neighbours that it does not see. While one is at work on the
other half of a core everything takes longer, and not by the same factor: where this was written
calls in Python 1.7 times as long, in Go 1.7, in Rust 1.3, and such moments come and go within a
second. So there is a probe: some evenly random picks of Kitex take so long when nobody
disturbs, the twentieth part of all its times that is least; a moment in which it takes more than
MOST times that is not a quiet one. Where there is no Go, the probe is an empty method of Python's.
"""

from bisect import insort

from bench.peers.processes import Peer

MOST = 1.15
COUNT = 100_000  # picks of the probe: about half a millisecond
FIRST = 10_000  # times that it is tried before all else
PROBES = {"go": ("kitex", "random"), "python": ("empty method", "round_robin")}


class Probe:
    """Something short, on the processor of the peers, that takes longer when they are disturbed."""

    def __init__(self, commands: dict[str, list[str]]) -> None:
        name = next(name for name in PROBES if name in commands)
        system, algorithm = PROBES[name]
        self._peer = Peer(commands[name])
        self._times: list[int] = []  # sorted
        self._peer.ask("make", system=system, algorithm=algorithm, weights=[1] * 10, keys=[])
        for _ in range(FIRST):
            self.is_quiet()

    def is_quiet(self) -> bool:
        """Say whether nobody disturbs now."""
        times = self._times
        ns: int = self._peer.ask("time", operation="pick", count=COUNT)["ns"]
        insort(times, ns)
        return ns <= MOST * times[len(times) // 20]

    def close(self) -> None:
        """End the probe."""
        self._peer.close()

    def __enter__(self) -> "Probe":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
