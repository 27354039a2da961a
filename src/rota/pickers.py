"""The pickers under their public names, of the implementation in force."""

from typing import TYPE_CHECKING

from rota.kernels import load

if TYPE_CHECKING:
    from rota.kernels.fair_round_robin import FairRoundRobin
    from rota.kernels.interleaved_weighted_round_robin import InterleavedWeightedRoundRobin
    from rota.kernels.ketama import ConsistentHash
    from rota.kernels.least_request import LeastRequest
    from rota.kernels.maglev import Maglev
    from rota.kernels.peak_ewma import PeakEwma
    from rota.kernels.picker import Attempts
    from rota.kernels.round_robin import RoundRobin
    from rota.kernels.splitmix64 import SplitMix64
    from rota.kernels.weighted_random import WeightedRandom
    from rota.kernels.weighted_round_robin import WeightedRoundRobin
else:
    Attempts = load("picker").Attempts
    ConsistentHash = load("ketama").ConsistentHash
    FairRoundRobin = load("fair_round_robin").FairRoundRobin
    InterleavedWeightedRoundRobin = load(
        "interleaved_weighted_round_robin"
    ).InterleavedWeightedRoundRobin
    LeastRequest = load("least_request").LeastRequest
    Maglev = load("maglev").Maglev
    PeakEwma = load("peak_ewma").PeakEwma
    RoundRobin = load("round_robin").RoundRobin
    SplitMix64 = load("splitmix64").SplitMix64
    WeightedRandom = load("weighted_random").WeightedRandom
    WeightedRoundRobin = load("weighted_round_robin").WeightedRoundRobin

__all__ = [
    "Attempts",
    "ConsistentHash",
    "FairRoundRobin",
    "InterleavedWeightedRoundRobin",
    "LeastRequest",
    "Maglev",
    "PeakEwma",
    "RoundRobin",
    "SplitMix64",
    "WeightedRandom",
    "WeightedRoundRobin",
]
