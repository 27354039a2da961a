"""Reference of kernels.peak_ewma."""

import copy
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rota.arguments import as_duration, as_moment
from rota.outcome import Outcome, outcome_of
from rota.reference.two_choices import Load, TwoChoices

T = TypeVar("T")

NOISE = 0.5  # differences in latency below a factor of 2**NOISE are none
SMOOTHING = 1 / 16  # of `typical`, by observation
MOST_TIMEOUTS = 32
LEAST_RTT = 1e-9

LN2 = 0.6931471805599453
TWO_OVER_LN2 = 2.8853900817779268
SQRT2 = 1.4142135623730951


def log2(x: float) -> float:
    """Return the logarithm of x > 0, by additions, products and one division alone.

    Whatever the C library, the same to the last bit; within 1e-7.
    """
    mantissa, exponent = math.frexp(x)
    mantissa *= 2.0
    exponent -= 1
    if mantissa > SQRT2:
        mantissa *= 0.5
        exponent += 1
    s = (mantissa - 1.0) / (mantissa + 1.0)
    q = s * s
    series = (1 / 3 + q * (1 / 5)) + (q * q) * (1 / 7)  # atanh
    return exponent + TWO_OVER_LN2 * (s + (s * q) * series)


def exp2(y: float) -> float:
    """Return 2**y for y <= 0, in the same way; within 1e-6 of it. 0 below 2**-1000."""
    if y < -1000.0:
        return 0.0
    whole = int(y - 0.5)
    t = (y - whole) * LN2
    q = t * t
    high = (1 / 24 + t * (1 / 120)) + q * (1 / 720)
    series = (1.0 + t) + q * (0.5 + t * (1 / 6)) + (q * q) * high
    return math.ldexp(series, whole)


class Averages:
    """What the pickers of the same instances share besides their loads."""

    def __init__(
        self,
        decay: float,
        timeout: float,
        clock: Callable[[], float] | None,
        classify: Callable[[object], int],
    ) -> None:
        self.decay = as_duration("decay", decay)
        self.timeout = as_duration("timeout", timeout)
        for name, function in (
            ("clock", time.monotonic if clock is None else clock),
            ("classify", classify),
        ):
            if not callable(function):
                raise TypeError(f"{name} must be callable, got {function!r}")
        self.clock, self.classify = clock, classify
        self.rate = 1.0 / (self.decay * LN2)
        self.since = self.now()
        self.is_warm = False
        self.typical = log2(self.timeout)  # log2 of seconds
        self.cold_key = 0.0
        self.last = 0.0  # time of the last call that ended, since `since`

    def now(self) -> float:
        """Return the time, seconds."""
        return time.monotonic() if self.clock is None else as_moment(self.clock())

    def __deepcopy__(self, memo: dict[int, Any]) -> "Averages":
        return copy.copy(self)  # a copy goes by the very same clock


class PeakEwma(TwoChoices[T]):
    """Two instances at random, and of them the one that should answer sooner."""

    def __init__(
        self,
        instances: Iterable[T],
        weights: Any = None,
        *,
        seed: int | None = None,
        decay: float = 10.0,
        timeout: float = 1.0,
        clock: Callable[[], float] | None = None,
        classify: Callable[[object], int] = outcome_of,
    ) -> None:
        self._averages = Averages(decay, timeout, clock, classify)
        super().__init__(instances, weights, seed)
        for load, weight in zip(self._loads, self._weight, strict=True):
            load.log2_weight = log2(float(weight)) if weight else 0.0

    def _now(self) -> float:
        return self._averages.now()

    def _options(self) -> dict[str, Any]:
        shared = self._averages
        return {
            "decay": shared.decay,
            "timeout": shared.timeout,
            "clock": shared.clock,
            "classify": shared.classify,
        }

    def _join(self, whole: Any) -> None:
        self._averages = whole._averages

    def _reweigh(self, i: int, old: int) -> None:
        super()._reweigh(i, old)
        weight = self._weight[i]
        self._loads[i].log2_weight = log2(float(weight)) if weight else 0.0

    def _prefer(self, first: int) -> int:
        second = self._second(first)
        one, other = self._loads[first], self._loads[second]
        latency = self._key(one) - self._key(other)
        if latency > NOISE:
            latency -= NOISE
        elif latency < -NOISE:
            latency += NOISE
        else:
            latency = 0.0
        busyness = self._busyness(one) - self._busyness(other)
        if not one.in_flight:
            busyness = min(busyness, 0.0)
        return second if latency + busyness > 0.0 else first

    def _key(self, load: Load) -> float:
        return load.key if load.cost else self._averages.cold_key

    def _busyness(self, load: Load) -> float:
        return log2(float(load.in_flight + 1)) - load.log2_weight

    def _observe(self, load: Load, rtt: float, now: float, error: object) -> None:
        shared = self._averages
        outcome = Outcome.SUCCESS if error is None else Outcome(shared.classify(error))
        with self._lock:
            now = max(now - shared.since, shared.last)  # time never goes back
            rtt = max(rtt, LEAST_RTT)
            share = exp2((load.stamp - now) * shared.rate)
            cost = load.cost * share
            if outcome == Outcome.SUCCESS:
                cost = rtt if rtt > cost else cost + rtt * (1.0 - share)
            elif outcome == Outcome.FAILURE:
                penalty = min(2.0 * cost, MOST_TIMEOUTS * shared.timeout)
                cost = max(rtt, shared.timeout, cost, penalty)
            elif load.cost:
                cost = max(cost, rtt)
            else:
                return
            level = log2(cost)
            load.cost, load.stamp, load.key = cost, now, level + now * shared.rate
            shared.last = now
            if outcome == Outcome.SUCCESS:
                if shared.is_warm:
                    shared.typical += (level - shared.typical) * SMOOTHING
                else:
                    shared.is_warm, shared.typical = True, level
            shared.cold_key = shared.typical + now * shared.rate

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for load, weight in zip(self._loads, self._weight, strict=True):
            load.log2_weight = log2(float(weight)) if weight else 0.0  # not that of the whole
        shared = self._averages  # the time since the last call has not passed
        shared.since = shared.now() - shared.last

    @property
    def latencies(self) -> NDArray[np.float64]:
        """Average latencies by index, seconds, as of each one's last call; NaN before that."""
        with self._lock:
            return np.array([load.cost or math.nan for load in self._loads], np.float64)
