"""How many retries there may be for so many calls: Finagle's retry budget.

Retries help as long as few calls need one. When many do, the service is overloaded or down, and
each retry makes it worse; a budget lets a fraction of the calls be retried, whatever happens.

Time is cut into slots of a twentieth of `ttl`. The last 21 of them, the one that has begun
included, cover `ttl` seconds at the least, and there all retries are counted; the last 20 cover
`ttl` at the most, and there all calls are. So the bound holds in every window, wherever it
begins. All amounts are integers: 0.2 means a fifth.

Source: com.twitter.finagle.service.RetryBudget.
"""

import math
import os
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any
from weakref import WeakSet

from rota.arguments import as_duration

SLOTS = 20  # of calls; there is one more, the oldest, of retries

_NANOSECONDS = 1_000_000_000


class RetryBudget:
    """Lets a retry through as long as the last `ttl` seconds have seen few enough of them.

    That is `per_second` * `ttl`, and `percent` of the calls. One budget is for all calls of one
    client to one service. Any number of threads and tasks may share it.

    Parameters
    ----------
    percent : float >= 0
        Retries for each call, as a fraction: 0.2 is 20 %.
    per_second : float >= 0
        Retries a second for a client that makes few calls.
    ttl : float
        The length of the window, seconds, in [1e-6, 1e9].
    clock : callable
        Gives seconds. One that goes back stands still until it has caught up.

    Attributes
    ----------
    n_calls, n_retries, n_refused : int
        Deposits, and withdrawals let and refused, since it was made.

    Raises
    ------
    TypeError, ValueError
        An argument of no use.

    Notes
    -----
    A call counts for `ttl` seconds or up to a twentieth of that less, a retry for up to a
    twentieth more: of retries there may be fewer than said, and never more.
    """

    def __init__(
        self,
        percent: float = 0.2,
        per_second: float = 10,
        ttl: float = 10,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        share = _as_rate("percent", percent)
        rate = _as_rate("per_second", per_second)
        seconds = as_duration("ttl", ttl)
        if not callable(clock):
            raise TypeError(f"clock must be callable, got {clock!r}")
        self._options = percent, per_second, ttl
        self._clock = clock
        self._slot = max(1, round(seconds * _NANOSECONDS / SLOTS))
        # In units of which a retry takes `_of_retry`, and a call brings `_of_call`.
        reserve = rate * Fraction(repr(seconds))
        self._of_retry = math.lcm(share.denominator, reserve.denominator)
        self._of_call = int(share * self._of_retry)
        self._reserve = int(reserve * self._of_retry)
        # Reentrant: the handler of a signal may make a call in the middle of this.
        self._lock = threading.RLock()
        self._last = self._now()  # slot, since the clock's beginning
        self._calls = [0] * (SLOTS + 1)  # by slot, modulo 21
        self._retries = [0] * (SLOTS + 1)
        self.n_calls = self.n_retries = self.n_refused = 0
        _budgets.add(self)

    def deposit(self) -> None:
        """Count a call; not its retries. O(1)."""
        now = round(self._clock() * _NANOSECONDS) // self._slot  # `_now`, for every call
        with self._lock:
            last = self._last
            slot = last % (SLOTS + 1) if now == last else self._turn_to(now)
            self._calls[slot] += 1
            self.n_calls += 1

    def withdraw(self) -> bool:
        """Return whether a retry may be made, and count it if so. O(1)."""
        now = self._now()
        with self._lock:
            slot = self._turn_to(now)
            if self._left() < self._of_retry:
                self.n_refused += 1
                return False
            self._retries[slot] += 1
            self.n_retries += 1
            return True

    @property
    def balance(self) -> int:
        """How many retries would be let through now, one after another."""
        now = self._now()
        with self._lock:
            self._turn_to(now)
            return max(0, self._left() // self._of_retry)

    def __repr__(self) -> str:
        percent, per_second, ttl = self._options
        return (
            f"RetryBudget({percent!r}, {per_second!r}, {ttl!r}: {self.n_calls} calls, "
            f"{self.n_retries} retries, {self.n_refused} refused)"
        )

    def _now(self) -> int:
        """Return the slot that it is now."""
        return round(self._clock() * _NANOSECONDS) // self._slot

    def _turn_to(self, now: int) -> int:
        """Forget what is too old; return where to count."""
        last = self._last
        if now > last:
            for slot in range(max(last + 1, now - SLOTS), now + 1):
                self._calls[slot % (SLOTS + 1)] = self._retries[slot % (SLOTS + 1)] = 0
            self._last = last = now
        return last % (SLOTS + 1)

    def _left(self) -> int:
        """Return the units that are left."""
        n_calls = sum(self._calls) - self._calls[(self._last + 1) % (SLOTS + 1)]
        return self._reserve + n_calls * self._of_call - sum(self._retries) * self._of_retry

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()


def _as_rate(name: str, value: Any) -> Fraction:
    """Return the argument `name`, a finite number >= 0, as the decimal that it is written as."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # an integer of more digits than that
        number = math.inf
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be a finite number >= 0, got {number}")
    return Fraction(repr(number))


_budgets: "WeakSet[RetryBudget]" = WeakSet()


def _renew_locks() -> None:
    """In the child of a fork: another thread of the parent may have held one."""
    for budget in list(_budgets):
        budget._renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
