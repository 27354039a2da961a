"""One logical request: distinct instances in the order to try them, of any picker."""

from collections.abc import Iterator
from typing import Generic, TypeVar

from rota.loadbalance.interface import Picker

T = TypeVar("T")

MOST_REPEATS = 16


class NextAttempts(Generic[T]):
    """The attempts of a picker that has only `next`. For one thread.

    It asks for the next instance until one comes that was not tried yet, and gives up
    after 16 repeats in a row.
    """

    def __init__(self, picker: Picker[T], ctx: object = None, request: object = None) -> None:
        self._picker = picker
        self._arguments = (ctx, request)
        self._tried: list[T] = []

    def next(self) -> T | None:
        """Return the next instance to try, or None when none is left."""
        for _ in range(MOST_REPEATS):
            instance = self._picker.next(*self._arguments)
            if instance is None:
                return None
            if not any(instance is tried for tried in self._tried):
                self._tried.append(instance)
                return instance
        return None

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        instance = self.next()
        if instance is None:
            raise StopIteration
        return instance


def attempts(picker: Picker[T], ctx: object = None, request: object = None) -> Iterator[T]:
    """Return an iterator over distinct instances in the order to try them for one request.

    The picker's own `attempts` where it has one, as rota's have; else by asking `next`.
    """
    own = getattr(picker, "attempts", None)
    if own is None:
        return NextAttempts(picker, ctx, request)
    own_attempts: Iterator[T] = own(ctx, request)
    return own_attempts
