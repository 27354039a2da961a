"""Kitex's layer: balancers that keep pickers and follow discovery."""

from rota.loadbalance.attempts import attempts
from rota.loadbalance.caching import CachingBalancer
from rota.loadbalance.consistent import ConsistentHashBalancer, ConsistentHashOptions
from rota.loadbalance.factory import AsyncBalancerFactory, BalancerFactory, dump
from rota.loadbalance.following import FollowingBalancer
from rota.loadbalance.interface import LivePicker, LoadBalancer, Picker, Rebalancer
from rota.loadbalance.services import ServiceBalancer
from rota.loadbalance.tagging import ANY, TaggingBalancer
from rota.loadbalance.weighted import (
    InterleavedWeightedRoundRobinBalancer,
    WeightedBalancer,
    WeightedRandomBalancer,
    WeightedRoundRobinBalancer,
)
from rota.loadbalance.wiring import connect

__all__ = [
    "ANY",
    "AsyncBalancerFactory",
    "BalancerFactory",
    "CachingBalancer",
    "ConsistentHashBalancer",
    "ConsistentHashOptions",
    "FollowingBalancer",
    "InterleavedWeightedRoundRobinBalancer",
    "LivePicker",
    "LoadBalancer",
    "Picker",
    "Rebalancer",
    "ServiceBalancer",
    "TaggingBalancer",
    "WeightedBalancer",
    "WeightedRandomBalancer",
    "WeightedRoundRobinBalancer",
    "attempts",
    "connect",
    "dump",
]
