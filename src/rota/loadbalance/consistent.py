"""Kitex's consistent hash balancer, over a ring that is consistent."""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from rota.arguments import as_replicas, as_uint64
from rota.discovery import Instance
from rota.loadbalance.following import FollowingBalancer
from rota.loadbalance.interface import Picker
from rota.pickers import ConsistentHash
from rota.roster import ring_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConsistentHashOptions:
    """How a `ConsistentHashBalancer` hashes.

    Parameters
    ----------
    get_key : callable (ctx, request) -> str, bytes or int
        The key of a request. An empty one, or None, gets no instance.
    replicas : int or None
        How many instances besides the owner the attempts of a request may go to; None:
        all of them.
    virtual_factor : int >= 1
        Points for each unit of weight (Kitex: 100; an instance without a weight has 10).
    weighted : bool
        False: as many points for every instance.

    Raises
    ------
    TypeError, ValueError
        A field is of no use.
    """

    get_key: Callable[[Any, Any], Any]
    replicas: int | None = None
    virtual_factor: int = 100
    weighted: bool = True

    def __post_init__(self) -> None:
        if not callable(self.get_key):
            raise TypeError(f"get_key must be callable, got {self.get_key!r}")
        as_replicas(self.replicas)
        as_uint64("virtual_factor", self.virtual_factor, 1)


class ConsistentHashBalancer(FollowingBalancer):
    """A request's key decides; the same key goes to the same instance, from every client.

    A change moves only the keys of what has changed, and is made in the ring that is there:
    the points that come or go. Two instances of one name are one, the first with weight, with
    a warning in the log. Weights as in the weighted balancers.
    """

    name = "consist"

    def __init__(self, options: ConsistentHashOptions) -> None:
        if not isinstance(options, ConsistentHashOptions):
            raise TypeError(f"options must be ConsistentHashOptions, got {options!r}")
        super().__init__()
        self._options = options

    def build(self, instances: tuple[Instance, ...]) -> Picker[Instance]:
        """Return a new ring. O(points)."""
        members, weights = self.members(instances)
        options = self._options
        return ConsistentHash(
            members,
            weights,
            virtual_factor=options.virtual_factor,
            weighted=options.weighted,
            get_key=options.get_key,
            replicas=options.replicas,
        )

    def identify(self, instance: Instance) -> Hashable:
        """Return the name on the ring, which may outlive an address."""
        return ring_name(instance, None)

    def members(self, instances: tuple[Instance, ...]) -> tuple[Sequence[Instance], list[int]]:
        """Return the instances of different names, and their weights."""
        weights = self.weighed(instances)
        by_name: dict[Hashable, tuple[Instance, int]] = {}
        twice = []
        for instance, weight in zip(instances, weights, strict=True):
            name = self.identify(instance)
            first = by_name.setdefault(name, (instance, weight))
            if first[0] is not instance and weight:
                if first[1]:
                    twice.append(instance.address)
                else:
                    by_name[name] = instance, weight
        if twice and self.is_news("two of one name", twice):
            logger.warning(
                "%s: %d of %d instances have the ring name of another and get no requests",
                self.name,
                len(twice),
                sum(weight > 0 for weight in weights),
            )
        return [who for who, _ in by_name.values()], [weight for _, weight in by_name.values()]
