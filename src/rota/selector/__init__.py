"""Kratos' layer: from a request to an instance, and back with what became of it.

A `Selector` is a balancer over nodes, behind filters; all three may be the user's own. `wrr`,
`p2c`, `random` and `engine` make builders of selectors.
"""

from rota.selector.balancer import Balancer, BalancerBuilder, BuilderOf
from rota.selector.builders import (
    Builder,
    SelectorBuilder,
    engine,
    global_selector,
    p2c,
    random,
    set_global_selector,
    wrr,
)
from rota.selector.engine import Engine
from rota.selector.errors import NoAvailableInstance
from rota.selector.ewma import Ewma, EwmaNode
from rota.selector.failure import kratos_failure, transport_failure
from rota.selector.filters import NodeFilter, metadata, subset, version, where
from rota.selector.kratos import KratosP2C, KratosRandom, KratosWRR
from rota.selector.node import (
    DEFAULT_WEIGHT,
    Direct,
    DirectNode,
    DoneFunc,
    DoneInfo,
    WeightedNode,
    WeightedNodeBuilder,
    initial_weight,
)
from rota.selector.peer import Peer, peer
from rota.selector.selector import Rebalancer, Selector

__all__ = [
    "DEFAULT_WEIGHT",
    "Balancer",
    "BalancerBuilder",
    "Builder",
    "BuilderOf",
    "Direct",
    "DirectNode",
    "DoneFunc",
    "DoneInfo",
    "Engine",
    "Ewma",
    "EwmaNode",
    "KratosP2C",
    "KratosRandom",
    "KratosWRR",
    "NoAvailableInstance",
    "NodeFilter",
    "Peer",
    "Rebalancer",
    "Selector",
    "SelectorBuilder",
    "WeightedNode",
    "WeightedNodeBuilder",
    "engine",
    "global_selector",
    "initial_weight",
    "kratos_failure",
    "metadata",
    "p2c",
    "peer",
    "random",
    "set_global_selector",
    "subset",
    "transport_failure",
    "version",
    "where",
    "wrr",
]
