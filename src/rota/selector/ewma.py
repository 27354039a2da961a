"""Nodes that weigh themselves by latency and success: Kratos' EWMA, to the last bit."""

import math
import threading
import time
from dataclasses import dataclass

from rota.discovery import Instance
from rota.selector.failure import IsFailure, transport_failure
from rota.selector.node import Clock, DoneFunc, DoneInfo, TimedNode

# Nanoseconds, as all times here.
TAU = 600_000_000
CACHE_TIME = 5_000_000
ZONE_GAP = 5_000_000

# The load for each call in flight before anything is known.
PENALTY = 100_000
WHOLE_SUCCESS = 1000
LEAST_SUCCESS = 10
N_SLOTS = 200


class EwmaNode(TimedNode):
    """An instance whose weight follows from its latency, its success and its calls in flight.

    Weight = success * 10,000 / load, where load = sqrt(latency + 5 ms) * calls in flight, in
    nanoseconds; latency and success are averages that decay with exp(-t / 600 ms). Where more
    than half of the calls in flight are slower than the average, their mean takes its place.
    A node of which nothing is known has weight 100.

    Parameters
    ----------
    instance : Instance
    is_failure : callable (error) -> bool
        Which errors count against success: the whole judgement, not an addition to one.
        One that raises counts as a failure, and what it raises comes out of `done`.
    clock : callable
        Returns nanoseconds.

    Attributes
    ----------
    lag, success : int
        The averages: nanoseconds, and thousandths.
    in_flight : int
        Calls that have not ended, and one: the load of an idle node is not zero.
    requests : int
        Calls begun.
    stamp, last_pick : int or None
        When the latest call ended and began, by the clock.

    Notes
    -----
    Any number of threads may share it. A pick, `done` and a weight asked for within 5 ms of
    the last are O(1); a weight worked out anew is O(calls in flight, 200 at the most). Memory
    is by calls in flight, where Kratos has 200 slots in each node. `done` counts once,
    however often it is called; Kratos counts every call of it, and divides by zero in the end.

    Kept as they are, for whoever wants Kratos' behaviour:

    - The weight that discovery gave is not looked at.
    - Only what `is_failure` says counts: an HTTP 500 is by default as good as an answer, and
      an instance that fails at once is the fastest of all, and draws the traffic.
    - The averages change when a call ends and at no other time: what was known of an instance
      that gets no calls stays as it was, however long ago.
    - A first call of no latency at all leaves the node as unknown as before.
    - Of more than 200 calls in flight the rest have no part in the prediction.
    """

    def __init__(
        self,
        instance: Instance,
        *,
        is_failure: IsFailure = transport_failure,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        super().__init__(instance, clock)
        self._is_failure = is_failure
        # Reentrant: a finaliser, or a signal's handler, may end a call in the middle of ours.
        self._lock = threading.RLock()
        self.lag = 0
        self.success = WHOLE_SUCCESS
        self.in_flight = 1
        self.requests = 0
        self.stamp: int | None = None
        self._starts: dict[int, int] = {}  # when the call in each slot began
        self._weight = 0.0
        self._weighed_at: int | None = None

    @property
    def n_slots_used(self) -> int:
        """How many calls in flight the prediction looks at: 200 at the most."""
        return len(self._starts)

    def weight(self) -> float:
        """Return the weight, at most 5 ms old."""
        now = self._clock()
        with self._lock:
            if self._weighed_at is None or now - self._weighed_at > CACHE_TIME:
                self._weight = self._weigh(now)
                self._weighed_at = now
            return self._weight

    def fresh_weight(self) -> float:
        """Return the weight of this very moment. What `weight` remembers stays."""
        now = self._clock()
        with self._lock:
            return self._weigh(now)

    def trial_weight(self) -> float:
        """Return the least weight with which it still gets a call now and then.

        It is that of a success of 1 in 100. An instance whose latest calls have failed weighs
        0; a balancer that picks by weight alone would never know it to be well again.
        """
        now = self._clock()
        with self._lock:
            return LEAST_SUCCESS * 10_000 / self._load(now)

    def pick(self) -> DoneFunc:
        """Count a call that begins; return what to call, once, when it has ended."""
        start = self._clock()
        with self._lock:
            self.last_pick = start
            self.in_flight += 1
            self.requests += 1
            slot = self.requests % N_SLOTS
            has_slot = slot not in self._starts
            if has_slot:
                self._starts[slot] = start
        is_open = True

        def done(info: DoneInfo) -> None:
            nonlocal is_open
            with self._lock:
                if not is_open:
                    return
                is_open = False  # first: the call has ended, even if the clock fails
                self.in_flight -= 1
                if has_slot:
                    del self._starts[slot]
            now = self._clock()
            is_failed = info.err is not None
            try:
                if info.err is not None:
                    is_failed = self._is_failure(info.err)
            finally:
                with self._lock:
                    self._learn(now, now - start, 0 if is_failed else WHOLE_SUCCESS)

        return done

    def _learn(self, now: int, lag: int, success: int) -> None:
        since = 0 if self.stamp is None else max(now - self.stamp, 0)
        # The first latency counts alone: there is no average yet.
        old_share = math.exp(-since / TAU) if self.lag else 0.0
        share = 1.0 - old_share
        self.stamp = now
        self.lag = int(self.lag * old_share + max(lag, 0) * share)
        self.success = int(self.success * old_share + success * share)

    def _weigh(self, now: int) -> float:
        return self.success * 10_000 / self._load(now)

    def _load(self, now: int) -> int:
        if not self.lag:
            return PENALTY * self.in_flight
        lag = max(self.lag, self._predict(now))
        return int(math.sqrt(lag + ZONE_GAP)) * self.in_flight

    def _predict(self, now: int) -> int:
        """Return the mean latency so far of the calls slower than average, 0 if few are."""
        slow = [lag for start in self._starts.values() if (lag := now - start) > self.lag]
        return sum(slow) // len(slow) if len(slow) > len(self._starts) // 2 else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ewma:
    """Makes an `EwmaNode` of each instance.

    Parameters
    ----------
    is_failure : callable (error) -> bool
        Which errors count against an instance: `transport_failure`; `kratos_failure`, which
        is Kratos'; or one's own.
    clock : callable
        Returns nanoseconds.

    Notes
    -----
    Kratos' `ErrHandler` adds to its list of failures and cannot take away from it. Here:
    `Ewma(is_failure=lambda error: kratos_failure(error) or handler(error))`.
    """

    is_failure: IsFailure = transport_failure
    clock: Clock = time.monotonic_ns

    def build(self, instance: Instance) -> EwmaNode:
        """Return a new node, of which nothing is known."""
        return EwmaNode(instance, is_failure=self.is_failure, clock=self.clock)
