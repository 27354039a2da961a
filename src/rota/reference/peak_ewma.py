"""Reference of kernels.peak_ewma."""

import copy
import math
import time
from collections.abc import Callable, Iterable
from struct import Struct
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rota.arguments import as_duration, as_moment
from rota.outcome import Outcome, outcome_of
from rota.reference.two_choices import Load, TwoChoices

T = TypeVar("T")

NOISE = 2.0  # differences in latency below a factor of 2**NOISE are none
PATIENCE = 7.0  # of what is typical, as a factor of 2**PATIENCE, failures count at most
RISE = 0.375  # of the way up, at a call
SMOOTHING = 1 / 16  # of what is typical, by call
WALK = 4  # more are looked at where both draws are bad
LEAST_RTT, MOST_RTT = 1e-4, 1e9
UNKNOWN = -10.0  # log2 of what is typical, as a part of the timeout, until it is known

FLOAT32 = Struct("f")
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
    """Return 2**y for y <= 1000, in the same way; within 1e-6 of it. 0 below 2**-1000."""
    if y < -1000.0:
        return 0.0
    y = min(y, 1000.0)
    whole = int(y - 0.5 if y < 0.0 else y + 0.5)
    t = (y - whole) * LN2
    q = t * t
    high = (1 / 24 + t * (1 / 120)) + q * (1 / 720)
    series = (1.0 + t) + q * (0.5 + t * (1 / 6)) + (q * q) * high
    return math.ldexp(series, whole)


def decayed(x: float) -> float:
    """Return 2**-x for x >= 0, in the same way; shorter where x is small."""
    if x >= 1 / 64:
        return exp2(-x)
    t = x * LN2
    return (1.0 - t) + (t * t) * (0.5 - t * (1 / 6))


def log2_near_1(x: float) -> float:
    """Return the logarithm of 1 + x for 0 <= x < 1/256; within 1e-10."""
    return (x * (1.0 - x * (0.5 - x * (1 / 3)))) * 1.4426950408889634


def as_float32(x: float) -> float:
    """Return x rounded to 32 bits: as the kernel keeps what matters less."""
    rounded: float = FLOAT32.unpack(FLOAT32.pack(x))[0]
    return rounded


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
        self.typical = log2(self.timeout) + UNKNOWN  # log2 of seconds
        self.typical_key = self.typical
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
        decay: float = 5.0,
        timeout: float = 1.0,
        clock: Callable[[], float] | None = None,
        classify: Callable[[object], int] = outcome_of,
    ) -> None:
        self._averages = Averages(decay, timeout, clock, classify)
        super().__init__(instances, weights, seed)
        for load, weight in zip(self._loads, self._weight, strict=True):
            load.log2_weight = as_float32(log2(float(weight))) if weight else 0.0

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
        self._loads[i].log2_weight = as_float32(log2(float(weight))) if weight else 0.0

    def _prefer(self, first: int) -> int:
        best = self._better(first, self._second(first))
        if self._loads[best].key > self._averages.typical_key + NOISE:
            order = self._in_order()
            place = self._random.below(len(order))
            for k in range(min(len(order), WALK)):
                best = self._better(best, order[(place + k) % len(order)])
        return best

    def _better(self, one: int, other: int) -> int:
        """Return the one that should answer sooner, the first where nothing tells."""
        a, b, least = self._loads[one], self._loads[other], self._averages.typical_key
        slower = max(a.key, least) - max(b.key, least)
        if -NOISE <= slower <= NOISE:
            slower = 0.0
        busier = self._busyness(a) - self._busyness(b)
        if not a.in_flight:
            busier = min(busier, 0.0)
        return other if slower + busier > 0.0 else one

    def _busyness(self, load: Load) -> float:
        return log2(float(load.in_flight + 1)) - load.log2_weight

    def _observe(self, load: Load, rtt: float, now: float, error: object) -> None:
        shared = self._averages
        outcome = Outcome.SUCCESS if error is None else Outcome(shared.classify(error))
        with self._lock:
            now = max(now - shared.since, shared.last)  # time never goes back
            rtt = min(max(rtt, LEAST_RTT), MOST_RTT)
            share = decayed((now - load.stamp) * shared.rate)
            left = load.cost * share
            if outcome == Outcome.SUCCESS:
                if load.cost:
                    peak = min(rtt, load.last_rtt)
                    cost = max(left + rtt * (1.0 - share), left + (peak - left) * RISE)
                elif shared.is_warm:
                    cost = exp2(shared.typical)
                    cost += (rtt - cost) * RISE
                else:
                    cost = rtt
                load.last_rtt = as_float32(rtt)
            elif outcome == Outcome.FAILURE:
                cost = max(left, min(2.0 * load.cost, exp2(shared.typical + PATIENCE)))
                cost = min(max(cost, rtt, shared.timeout), MOST_RTT)
                load.last_rtt = as_float32(cost)
            elif load.cost:
                cost = max(left, rtt)
            else:
                return
            if cost - left < left * (1 / 256):
                load.key += log2_near_1((cost - left) / left)
                height = load.key - now * shared.rate
            else:
                height = log2(cost)
                load.key = height + now * shared.rate
            load.cost, load.stamp = cost, now
            shared.last = now
            if outcome == Outcome.SUCCESS:
                if shared.is_warm:
                    shared.typical += (height - shared.typical) * SMOOTHING
                else:
                    shared.is_warm, shared.typical = True, height
            shared.typical_key = shared.typical + now * shared.rate

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for load, weight in zip(self._loads, self._weight, strict=True):
            load.log2_weight = (
                as_float32(log2(float(weight))) if weight else 0.0
            )  # not that of the whole
        shared = self._averages  # the time since the last call has not passed
        shared.since = shared.now() - shared.last

    @property
    def latencies(self) -> NDArray[np.float64]:
        """Average latencies by index, seconds, as of each one's last call; NaN before that."""
        with self._lock:
            return np.array([load.cost or math.nan for load in self._loads], np.float64)
