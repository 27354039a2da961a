"""Whether each server got its share of the requests."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd, sqrt

from rota.demo.traffic import CLIENTS

STANDARD_DEVIATIONS = 5


@dataclass(frozen=True, slots=True)
class Share:
    """The share of one server in one phase. All but the weight are fractions of 1.

    Parameters
    ----------
    phase, server : str
    weight : int
        0 for one that was not to be picked.
    expected, observed : float
        The weight by the sum of weights; the first picks by all first picks of the phase.
    bound : float
        How far the two may be apart.
    """

    phase: str
    server: str
    weight: int
    expected: float
    observed: float
    bound: float

    @property
    def ok(self) -> bool:
        """Whether the share is within its bound."""
        return abs(self.observed - self.expected) <= self.bound


def judge(
    phase: str, weights: Mapping[str, int], picks: Counter[str], *, in_turn: bool
) -> list[Share]:
    """Return the share of each server that has weight or was picked.

    Parameters
    ----------
    phase : str
    weights : mapping of address to weight
    picks : Counter
        How often each address was picked first.
    in_turn : bool
        Whether the balancer takes turns. Otherwise it draws, and the bound is 5 standard
        deviations of the binomial distribution.

    Notes
    -----
    The bound of turns is one cycle of sum / gcd picks, and one pick for each client. Every
    cycle is exact, so what is off comes from the parts of cycles at both ends of a phase:
    half a cycle at most, in any order of turns. The other half is for retries, which take
    picks of their own. Each client may hold a ticket of one phase while others are in the
    next. Who has no weight may not be picked at all.
    """
    n = max(1, picks.total())
    total = sum(weights.values())
    cycle = total // gcd(*weights.values())
    shares = []
    for server in (*weights, *(picks.keys() - weights.keys())):
        weight = weights.get(server, 0)
        expected = weight / total
        if in_turn and weight:
            bound = (cycle + CLIENTS) / n
        else:
            bound = STANDARD_DEVIATIONS * sqrt(expected * (1 - expected) / n)
        shares.append(Share(phase, server, weight, expected, picks[server] / n, bound))
    return shares


def in_words(*, in_turn: bool) -> str:
    """Say what the bound of `judge` is."""
    if in_turn:
        return f"one cycle (sum of weights / gcd), and a pick for each of {CLIENTS} clients"
    return f"{STANDARD_DEVIATIONS} standard deviations of the binomial distribution"
