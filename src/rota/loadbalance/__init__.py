"""Kitex's layer: balancers that keep pickers and follow discovery."""

from rota.loadbalance.attempts import attempts
from rota.loadbalance.caching import CachingBalancer
from rota.loadbalance.consistent import ConsistentHashBalancer, ConsistentHashOptions
from rota.loadbalance.following import FollowingBalancer
from rota.loadbalance.interface import LivePicker, LoadBalancer, Picker, Rebalancer
from rota.loadbalance.weighted import (
    InterleavedWeightedRoundRobinBalancer,
    WeightedBalancer,
    WeightedRandomBalancer,
    WeightedRoundRobinBalancer,
)
from rota.loadbalance.wiring import connect

__all__ = [
    "CachingBalancer",
    "ConsistentHashBalancer",
    "ConsistentHashOptions",
    "FollowingBalancer",
    "InterleavedWeightedRoundRobinBalancer",
    "LivePicker",
    "LoadBalancer",
    "Picker",
    "Rebalancer",
    "WeightedBalancer",
    "WeightedRandomBalancer",
    "WeightedRoundRobinBalancer",
    "attempts",
    "connect",
]
