"""Kitex's weighted balancers: cached pickers over what discovery found."""

from collections.abc import Callable, Sequence

from rota.discovery import Instance
from rota.loadbalance.following import FollowingBalancer, weigh
from rota.loadbalance.interface import Picker
from rota.pickers import (
    InterleavedWeightedRoundRobin,
    RoundRobin,
    SplitMix64,
    WeightedRandom,
    WeightedRoundRobin,
)


class WeightedBalancer(FollowingBalancer):
    """What the weighted balancers share.

    A subclass has a `name` and a `schedule`, which is called with (instances, weights,
    seed=...) and gives the picker; a weight of 0 is that of an instance that gets no
    requests. Of equal weights a round robin makes the plain one, and they may become unequal
    while it lives.

    An instance without a weight has 10. One of 0 or less gets no requests, with one warning
    in the log for each set of them. Nobody with weight: a picker that gives None.

    A result that may not be cached gets a picker of its own with every call. A schedule
    begun anew for every pick would always serve its first instance, and starve others; so
    unequal weights are drawn at random then, which is fair one pick at a time.
    """

    schedule: Callable[..., Picker[Instance]]

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

    def members(self, instances: tuple[Instance, ...]) -> tuple[Sequence[Instance], list[int]]:
        """Return all of them: the drained have the weight 0."""
        return instances, self.weighed(instances)

    def build(self, instances: tuple[Instance, ...]) -> Picker[Instance]:
        """Return a new picker, of the schedule."""
        members, weights = self.members(instances)
        return type(self).schedule(members, weights, seed=self._seed())

    def build_uncached(self, instances: tuple[Instance, ...]) -> Picker[Instance]:
        """Return a new picker that is fair one pick at a time."""
        weights = self.weighed(instances)
        live = [who for who, weight in zip(instances, weights, strict=True) if weight]
        weights = weigh(live)
        if len(set(weights)) <= 1:
            # It begins anywhere: as good as a draw, and made at less cost.
            return RoundRobin(live, seed=self._seed())
        return WeightedRandom(live, weights, seed=self._seed())

    def _seed(self) -> int | None:
        return None if self._seeds is None else self._seeds.next()


class WeightedRoundRobinBalancer(WeightedBalancer):
    """Smooth weighted round robin (nginx's order): Kitex's default."""

    name = "weight_round_robin"
    schedule = WeightedRoundRobin


class InterleavedWeightedRoundRobinBalancer(WeightedBalancer):
    """Interleaved weighted round robin (Kitex's two queues)."""

    name = "interleaved_weighted_round_robin"
    schedule = InterleavedWeightedRoundRobin


class WeightedRandomBalancer(WeightedBalancer):
    """Weighted random, exact, in O(1)."""

    name = "weight_random"
    schedule = WeightedRandom

    def build_uncached(self, instances: tuple[Instance, ...]) -> Picker[Instance]:
        """Return a new picker, which draws as any other."""
        return self.build(instances)
