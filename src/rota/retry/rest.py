"""Instances that have asked to be left alone for a while, by Retry-After."""

from collections.abc import Callable, Hashable, Iterator
from time import monotonic
from typing import Any

from rota.identity import identity_of
from rota.selector.fleet import call_off

# Seconds. Nobody is believed who wants to be left alone for longer.
LONGEST = 300.0


class Rest:
    """Who rests, and until when. One for all calls of a client; any number of threads may use it.

    Who rests is tried after all others, in the order of before.

    Attributes
    ----------
    until : dict of identity to float
        When a rest ends, by `time.monotonic`; it may have.
    """

    __slots__ = ("until",)

    def __init__(self) -> None:
        self.until: dict[Hashable, float] = {}  # by `time.monotonic`

    def leave_alone(self, instance: object, seconds: float) -> None:
        """Let an instance rest for so many seconds, at most 300."""
        now = monotonic()
        for identity, end in list(self.until.items()):
            if end <= now:
                self.until.pop(identity, None)
        if seconds > 0:
            self.until[identity_of(instance)] = now + min(seconds, LONGEST)

    def __bool__(self) -> bool:
        return bool(self.until)

    def is_resting(self, instance: object) -> bool:
        """Whether an instance rests now. O(1)."""
        end = self.until.get(identity_of(instance))
        if end is None:
            return False
        if end <= monotonic():
            self.until.pop(identity_of(instance), None)
            return False
        return True

    def put_last(self, candidates: Iterator[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """Return an iterator over (instance, done), with those who rest after the others."""
        late: list[tuple[Any, Callable[..., object]]] = []
        try:
            for candidate in candidates:
                if self.is_resting(candidate[0]):
                    late.append(candidate)
                else:
                    yield candidate
            while late:
                yield late.pop(0)
        finally:
            for _, done in late:  # they were never called
                call_off(done)
