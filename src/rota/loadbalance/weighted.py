"""Kitex's weighted balancers: cached pickers over what discovery found."""

import logging
from collections.abc import Callable

from rota.discovery import Instance
from rota.loadbalance.caching import CachingBalancer
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


def with_weight(
    balancer: CachingBalancer, instances: tuple[Instance, ...]
) -> tuple[tuple[Instance, ...], list[int]]:
    """Return the instances of weight 1 and more, and their weights.

    An instance without a weight has 10. Those of 0 and less are left out, with one warning
    in the log for each set of them.
    """
    weights = [DEFAULT_WEIGHT if i.weight is None else i.weight for i in instances]
    if not weights or min(weights) > 0:
        return instances, weights
    dropped = [i.address for i, weight in zip(instances, weights, strict=True) if weight <= 0]
    if balancer.is_news("no weight", dropped):
        logger.warning(
            "%s: %d of %d instances have a weight of 0 or less and get no requests: %s%s",
            balancer.name,
            len(dropped),
            len(instances),
            ", ".join(dropped[:10]),
            ", ..." if len(dropped) > 10 else "",
        )
    return (
        tuple(i for i, weight in zip(instances, weights, strict=True) if weight > 0),
        [weight for weight in weights if weight > 0],
    )


class WeightedBalancer(CachingBalancer):
    """What the weighted balancers share.

    A subclass has a `name`, a `schedule` that is called with (instances, weights, seed=...)
    and gives the picker of weights that differ, and a `plain` one for equal weights, called
    with (instances, seed=...). Equal weights need no schedule.

    An instance without a weight has 10. Weights of 0 and less are left out, with one
    warning in the log. No instances left: a picker that gives None.

    A result that may not be cached gets a picker of its own with every call. A schedule
    begun anew for every pick would always serve its first instance, and starve others; so
    unequal weights are drawn at random then, which is fair one pick at a time.
    """

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
        super().__init__()
        self._seeds = None if seed is None else SplitMix64(seed)

    def build(self, instances: tuple[Instance, ...]) -> Picker[Instance]:
        """Return a new picker: the schedule, or the plain one for equal weights."""
        return self._make(type(self).schedule, instances)

    def build_uncached(self, instances: tuple[Instance, ...]) -> Picker[Instance]:
        """Return a new picker that is fair one pick at a time."""
        return self._make(WeightedRandom, instances)

    def _make(
        self, unequal: Callable[..., Picker[Instance]], instances: tuple[Instance, ...]
    ) -> Picker[Instance]:
        live, weights = with_weight(self, instances)
        seed = None if self._seeds is None else self._seeds.next()
        if len(set(weights)) <= 1:
            return type(self).plain(live, seed=seed)
        return unequal(live, weights, seed=seed)


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
