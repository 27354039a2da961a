"""The pickers in plain Python: oracle of the tests, fallback, baseline of the benchmarks.

Same names, arguments, errors and sequences as `rota.kernels`, by the shortest obvious
code and, where there is one, another method. Each module is the twin of the kernel of the
same name.
"""

from rota.reference.fair_round_robin import FairRoundRobin
from rota.reference.interleaved_weighted_round_robin import InterleavedWeightedRoundRobin
from rota.reference.ketama import ConsistentHash
from rota.reference.least_request import LeastRequest
from rota.reference.maglev import Maglev
from rota.reference.peak_ewma import PeakEwma
from rota.reference.round_robin import RoundRobin
from rota.reference.weighted_random import WeightedRandom
from rota.reference.weighted_round_robin import WeightedRoundRobin

__all__ = [
    "ConsistentHash",
    "FairRoundRobin",
    "InterleavedWeightedRoundRobin",
    "LeastRequest",
    "Maglev",
    "PeakEwma",
    "RoundRobin",
    "WeightedRandom",
    "WeightedRoundRobin",
]
