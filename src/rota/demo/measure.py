"""What a pick costs, and how much more it costs in plain Python."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from statistics import median
from typing import Any

import rota
from rota import reference
from rota.discovery import Instance
from rota.loadbalance import Picker

N_ROUNDS = 15
ROUND = 0.01  # seconds, about, of each loop in a round


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a pick.

    Parameters
    ----------
    ns_per_pick : float
        Nanoseconds, net of the loop around it; the median of 15 rounds.
    speedup : float or None
        How many times longer the plain-Python twin takes, the median of the rounds' ratios;
        None where the picker has no twin.
    """

    ns_per_pick: float
    speedup: float | None


def measure(picker: Picker[Instance]) -> Cost:
    """Measure `picker.pick`, or `picker.next` where there is no pick; takes about 0.5 s."""
    pick = _pick_of(picker)
    twin = _twin(picker)
    twin_pick = None if twin is None else _pick_of(twin)
    n = _count(pick)
    n_twin = 0 if twin_pick is None else _count(twin_pick)
    costs, ratios = [], []
    for _ in range(N_ROUNDS):
        empty = _time_empty(n) / n
        cost = max(_time(pick, n) / n - empty, 1e-10)
        costs.append(cost)
        if twin_pick is not None:
            ratios.append((_time(twin_pick, n_twin) / n_twin - empty) / cost)
    return Cost(median(costs) * 1e9, median(ratios) if ratios else None)


def _pick_of(picker: Picker[Instance]) -> Callable[[], object]:
    pick: Callable[[], object] = getattr(picker, "pick", picker.next)
    return pick


def _twin(picker: Any) -> Picker[Instance] | None:
    """Return the plain-Python picker of the same instances and weights, for rota's own."""
    name = type(picker).__name__
    make = getattr(reference, name, None)
    if make is None or type(picker) is not getattr(rota, name, None):
        return None
    twin: Picker[Instance] = make(picker.instances, picker.weights)
    return twin


def _count(pick: Callable[[], object]) -> int:
    """Return about how many picks fill a round."""
    n = 100
    while (seconds := _time(pick, n)) < ROUND / 4:
        n *= 2
    return max(1, round(n * ROUND / seconds))


def _time(pick: Callable[[], object], n: int) -> float:
    began = time.perf_counter()
    for _ in repeat(None, n):
        pick()
    return time.perf_counter() - began


def _time_empty(n: int) -> float:
    began = time.perf_counter()
    for _ in repeat(None, n):
        pass
    return time.perf_counter() - began
