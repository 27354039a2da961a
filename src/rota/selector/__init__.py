"""Kratos' layer: nodes that learn from their calls, and balancers that decide between them."""

from rota.selector.balancer import Balancer, BalancerBuilder, BuilderOf
from rota.selector.errors import NoAvailableInstance
from rota.selector.ewma import Ewma, EwmaNode
from rota.selector.failure import kratos_failure, transport_failure
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

__all__ = [
    "DEFAULT_WEIGHT",
    "Balancer",
    "BalancerBuilder",
    "BuilderOf",
    "Direct",
    "DirectNode",
    "DoneFunc",
    "DoneInfo",
    "Ewma",
    "EwmaNode",
    "KratosP2C",
    "KratosRandom",
    "KratosWRR",
    "NoAvailableInstance",
    "WeightedNode",
    "WeightedNodeBuilder",
    "initial_weight",
    "kratos_failure",
    "transport_failure",
]
