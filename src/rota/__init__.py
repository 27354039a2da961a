"""rota: whose turn is it? Client-side load balancing at C speed.

Pickers say which of several copies of a service gets the next request; balancers make
pickers of what discovery found, and keep them in step with its changes; selectors put filters
before them, and learn from how requests end.
"""

from pathlib import Path

from rota.discovery import Change, Instance, MemoryRegistry, Result, UpdatePolicy, diff
from rota.events import Event, EventBus, EventQueue
from rota.kernels import IMPLEMENTATION
from rota.loadbalance import (
    AsyncBalancerFactory,
    BalancerFactory,
    ConsistentHashBalancer,
    ConsistentHashOptions,
    InterleavedWeightedRoundRobinBalancer,
    LoadBalancer,
    Picker,
    Rebalancer,
    TaggingBalancer,
    WeightedRandomBalancer,
    WeightedRoundRobinBalancer,
    attempts,
    connect,
)
from rota.pickers import (
    Attempts,
    ConsistentHash,
    FairRoundRobin,
    InterleavedWeightedRoundRobin,
    LeastRequest,
    Maglev,
    PeakEwma,
    RoundRobin,
    WeightedRandom,
    WeightedRoundRobin,
)
from rota.retry import RetryBudget, RetryPolicy, call, call_async
from rota.ring import moved
from rota.selector import NoAvailableInstance, Selector

__version__ = "0.1.0"

__all__ = [
    "IMPLEMENTATION",
    "AsyncBalancerFactory",
    "Attempts",
    "BalancerFactory",
    "Change",
    "ConsistentHash",
    "ConsistentHashBalancer",
    "ConsistentHashOptions",
    "Event",
    "EventBus",
    "EventQueue",
    "FairRoundRobin",
    "Instance",
    "InterleavedWeightedRoundRobin",
    "InterleavedWeightedRoundRobinBalancer",
    "LeastRequest",
    "LoadBalancer",
    "Maglev",
    "MemoryRegistry",
    "NoAvailableInstance",
    "PeakEwma",
    "Picker",
    "Rebalancer",
    "Result",
    "RetryBudget",
    "RetryPolicy",
    "RoundRobin",
    "Selector",
    "TaggingBalancer",
    "UpdatePolicy",
    "WeightedRandom",
    "WeightedRandomBalancer",
    "WeightedRoundRobin",
    "WeightedRoundRobinBalancer",
    "attempts",
    "call",
    "call_async",
    "connect",
    "diff",
    "get_include",
    "moved",
]


def get_include() -> str:
    """Return the folder of rota.h, for the compiler of an extension that picks from C."""
    return str(Path(__file__).parent / "include")
