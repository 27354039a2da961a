"""Balancers that keep one picker for each key."""

import os
import threading
import weakref
from abc import ABC, abstractmethod

from rota.discovery import Change, Instance, Result
from rota.loadbalance.interface import Picker

MOST_TOLD = 100  # sets of one kind that a warning was given of


class _Flight:
    """The making of one picker, which others wait for."""

    __slots__ = ("has_landed", "lock", "thread")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.has_landed = False
        self.thread: int | None = None


class Turn:
    """What changes of one key take turns with. A subclass may keep more about the key."""

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a log handler may make changes too


class CachingBalancer(ABC):
    """A balancer whose cacheable results of one key share one picker.

    A subclass has a `name` and makes pickers: `build` for a key, `build_uncached` for a
    result that may not be cached. A picker is made once, however many threads ask for it
    at the same time; a change that comes meanwhile wins. Changes of one key are made one
    after another.
    """

    name: str

    def __init__(self) -> None:
        self._pickers: dict[str, Picker[Instance]] = {}
        self._begin_anew()
        _balancers[id(self)] = self
        self._told: dict[str, dict[frozenset[str], None]] = {}

    def is_news(self, what: str, addresses: list[str]) -> bool:
        """Whether these have not been told of: one warning for each set, not one a request."""
        told, news = self._told.setdefault(what, {}), frozenset(addresses)
        if news in told:
            return False
        if len(told) >= MOST_TOLD:
            told.clear()
        told[news] = None
        return True

    def _begin_anew(self) -> None:
        # In a forked child: another thread of the parent may have been in the middle of a change,
        # with locks held.
        self._lock = threading.Lock()
        self._flights: dict[str, _Flight] = {}
        self._turns: dict[str, Turn] = {}

    @abstractmethod
    def build(self, instances: tuple[Instance, ...]) -> Picker[Instance]:
        """Return a new picker over these instances."""

    def build_uncached(self, instances: tuple[Instance, ...]) -> Picker[Instance]:
        """Return a new picker that will serve one request, as like as not."""
        return self.build(instances)

    def get_picker(self, result: Result) -> Picker[Instance]:
        """Return the picker of `result`: O(1) when cached, else what making one costs."""
        if result.cacheable:
            try:
                return self._pickers[result.cache_key]
            except KeyError:
                pass
            return self._fly(result)
        return self.build_uncached(result.instances)

    def rebalance(self, change: Change) -> None:
        """Make picks of a cacheable result's key follow its instances of now."""
        result = change.result
        if not result.cacheable:
            return
        key = result.cache_key
        is_made = False
        while not is_made:
            with self._lock:
                turn = self._turns.get(key)
                if turn is None:
                    turn = self._turns[key] = self._turn()
            with turn.lock:
                with self._lock:
                    if self._turns.get(key) is not turn:
                        continue  # deleted while we waited: others have another turn by now
                    picker = self._pickers.get(key)
                is_made = True
                if not self._follow(turn, picker, change):
                    made = self.build(result.instances)
                    out: Picker[Instance] | None = made
                    with self._lock:
                        # Deleted meanwhile: then it stays deleted.
                        if self._turns.get(key) is turn:
                            out = self._pickers.get(key)
                            self._pickers[key] = made
                    if out is not None:
                        self._let_go(out)

    def delete(self, change: Change) -> None:
        """Drop the picker of a cacheable result, and one that is being made."""
        result = change.result
        if result.cacheable:
            with self._lock:
                picker = self._pickers.pop(result.cache_key, None)
                self._flights.pop(result.cache_key, None)
                self._turns.pop(result.cache_key, None)
            if picker is not None:
                self._let_go(picker)

    def _turn(self) -> Turn:
        return Turn()

    def _follow(self, turn: Turn, picker: Picker[Instance] | None, change: Change) -> bool:
        """Make a change in the live picker of its key, if any. False: make a new one."""
        return False

    def _let_go(self, picker: Picker[Instance]) -> None:  # noqa: B027 - most need not know
        """Hear that a picker of `build` is its key's no more, or never came to be it.

        Once for each, with no lock held but, after a change, the turn of the key. Whoever was
        given it may still pick.
        """

    def _fly(self, result: Result) -> Picker[Instance]:
        key = result.cache_key
        while True:
            with self._lock:
                picker = self._pickers.get(key)
                if picker is not None:
                    return picker
                flight = self._flights.setdefault(key, _Flight())
            if flight.thread == threading.get_ident():
                # Asked for in the middle of making it, by a log handler perhaps.
                return self.build_uncached(result.instances)
            with flight.lock:
                if flight.has_landed:
                    continue  # what it brought is cached by now, or it failed
                flight.thread = threading.get_ident()
                try:
                    made = picker = self.build(result.instances)
                    is_kept = False
                    with self._lock:
                        # A change may have come meanwhile: what it left is newer than ours.
                        if self._flights.get(key) is flight:
                            picker = self._pickers.setdefault(key, made)
                            is_kept = picker is made
                    if not is_kept:
                        self._let_go(made)
                    return picker
                finally:
                    with self._lock:
                        flight.has_landed = True
                        if self._flights.get(key) is flight:
                            del self._flights[key]


# By what they are, not by what they are equal to.
_balancers: "weakref.WeakValueDictionary[int, CachingBalancer]" = weakref.WeakValueDictionary()


def _in_child() -> None:
    for balancer in list(_balancers.values()):
        balancer._begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
