"""Kitex's weighted balancers: cached pickers over what discovery found."""

import logging
import threading
from collections.abc import Callable

from rota.discovery import Change, Instance, Result
from rota.loadbalance.interface import Picker
from rota.pickers import (
    InterleavedWeightedRoundRobin,
    RoundRobin,
    SplitMix64,
    WeightedRandom,
    WeightedRoundRobin,
)

logger = logging.getLogger(__name__)

DEFAULT_WEIGHT = 10


class _Flight:
    """The making of one picker, which others wait for."""

    __slots__ = ("cancelled", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.cancelled = False


class WeightedBalancer:
    """What the weighted balancers share.

    A subclass has a `name`, a `schedule` that is called with (instances, weights, seed=...)
    and gives the picker of weights that differ, and a `plain` one for equal weights, called
    with (instances, seed=...).

    Cacheable results of one key share one picker, made once however many threads ask at
    the same time. `rebalance` puts a new one in its place, `delete` drops it.

    An instance without a weight has 10. Weights of 0 and less are left out, with one
    warning in the log. Equal weights need no schedule and get the plain picker. No
    instances left: a picker that gives None.

    A result that may not be cached gets a picker of its own with every call. A schedule
    begun anew for every pick would always serve its first instance, and starve others; so
    unequal weights are drawn at random then, which is fair one pick at a time.
    """

    name: str
    schedule: Callable[..., Picker[Instance]]
    plain: Callable[..., Picker[Instance]]

    def __init__(self, *, seed: int | None = None) -> None:
        """Start with no pickers.

        Parameters
        ----------
        seed : integer in [0, 2**64), or None
            Fixes what the pickers draw, such as the rotation of a round robin: each gets
            the next number of SplitMix64(seed) as its own. None: the operating system's
            entropy.

        Raises
        ------
        TypeError, ValueError
            The seed is no integer, or out of range.
        """
        self._seeds = None if seed is None else SplitMix64(seed)
        self._pickers: dict[str, Picker[Instance]] = {}
        self._flights: dict[str, _Flight] = {}
        self._lock = threading.Lock()

    def get_picker(self, result: Result) -> Picker[Instance]:
        """Return the picker of `result`: O(1) when cached, else O(n) or the schedule's build."""
        if result.cacheable:
            try:
                return self._pickers[result.cache_key]
            except KeyError:
                return self._fly(result)
        return self._build(result.instances, one_pick=True)

    def rebalance(self, change: Change) -> None:
        """Replace the picker of a cacheable result by one over its instances now."""
        result = change.result
        if result.cacheable:
            picker = self._build(result.instances)
            with self._lock:
                self._pickers[result.cache_key] = picker

    def delete(self, change: Change) -> None:
        """Drop the picker of a cacheable result, and one that is being made."""
        result = change.result
        if result.cacheable:
            with self._lock:
                self._pickers.pop(result.cache_key, None)
                flight = self._flights.pop(result.cache_key, None)
                if flight is not None:
                    flight.cancelled = True

    def _fly(self, result: Result) -> Picker[Instance]:
        key = result.cache_key
        with self._lock:
            flight = self._flights.setdefault(key, _Flight())
        with flight.lock:
            try:
                return self._pickers[key]
            except KeyError:
                pass
            try:
                picker = self._build(result.instances)
            finally:
                with self._lock:
                    if self._flights.get(key) is flight:
                        del self._flights[key]
            with self._lock:
                # A change may have come in the meantime: what it left is newer than ours.
                if not flight.cancelled:
                    picker = self._pickers.setdefault(key, picker)
            return picker

    def _build(
        self, instances: tuple[Instance, ...], *, one_pick: bool = False
    ) -> Picker[Instance]:
        weights = [
            DEFAULT_WEIGHT if instance.weight is None else instance.weight for instance in instances
        ]
        if weights and min(weights) <= 0:
            dropped = [
                i.address for i, weight in zip(instances, weights, strict=True) if weight <= 0
            ]
            logger.warning(
                "%s: %d of %d instances have a weight of 0 or less and get no requests: %s%s",
                self.name,
                len(dropped),
                len(instances),
                ", ".join(dropped[:10]),
                ", ..." if len(dropped) > 10 else "",
            )
            instances = tuple(i for i, weight in zip(instances, weights, strict=True) if weight > 0)
            weights = [weight for weight in weights if weight > 0]
        seed = None if self._seeds is None else self._seeds.next()
        if len(set(weights)) <= 1:
            return type(self).plain(instances, seed=seed)
        if one_pick:
            return WeightedRandom(instances, weights, seed=seed)
        return type(self).schedule(instances, weights, seed=seed)


class WeightedRoundRobinBalancer(WeightedBalancer):
    """Smooth weighted round robin (nginx's order): Kitex's default."""

    name = "weight_round_robin"
    schedule = WeightedRoundRobin
    plain = RoundRobin


class InterleavedWeightedRoundRobinBalancer(WeightedBalancer):
    """Interleaved weighted round robin (Kitex's two queues)."""

    name = "interleaved_weighted_round_robin"
    schedule = InterleavedWeightedRoundRobin
    plain = RoundRobin


class WeightedRandomBalancer(WeightedBalancer):
    """Weighted random, exact, in O(1)."""

    name = "weight_random"
    schedule = WeightedRandom
    plain = WeightedRandom
