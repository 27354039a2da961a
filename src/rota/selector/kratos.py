"""The balancers of Kratos as they are, their flaws included.

For whoever comes from Kratos and wants its very picks. Each names its flaws; rota's own
pickers and balancers do not have them.
"""

import math
import threading
from collections.abc import Callable, Sequence

from rota.fork import unseeded
from rota.pickers import SplitMix64
from rota.selector.errors import NoAvailableInstance
from rota.selector.node import DoneFunc, WeightedNode

Draw = Callable[[int], int]

# Seconds.
FORCE_AFTER = 3.0


class KratosWRR:
    """Smooth weighted round robin over the nodes' weights of now, in floats.

    Each node's current weight grows by its weight; the greatest, the first of equals, is
    picked, and loses the sum of all. Current weights are by address.

    Notes
    -----
    Any number of threads may share it; they take turns. Flaws, all Kratos':

    - When another set of addresses comes, those who are not in it lose their current weight.
      So filters that differ from call to call starve nodes: of two filters in turn each gets
      the first of its nodes every time.
    - A set is taken for the last one where it has no other addresses and is as long: after
      [a, b], [a, a] keeps what b has.
    - Nodes of one address share a current weight, which grows by the weight of each.
    - Weights of zero and less take part: where all are zero the first gets everything.
    - A pick is O(n).
    """

    def __init__(self) -> None:
        # Reentrant: a signal's handler may pick in the middle of a pick.
        self._lock = threading.RLock()
        self._current: dict[str, float] = {}
        self._known: frozenset[str] = frozenset()
        self._n_known = 0

    def pick(self, nodes: Sequence[WeightedNode]) -> tuple[WeightedNode, DoneFunc]:
        """Return the node whose turn it is, picked, and what to call at the call's end.

        Raises
        ------
        NoAvailableInstance
            There are no nodes.
        """
        if not nodes:
            raise NoAvailableInstance()
        with self._lock:
            self._forget_others(nodes)
            total = 0.0
            chosen, greatest = nodes[0], -math.inf
            for node in nodes:
                weight = node.weight()
                total += weight
                address = node.raw.address
                current = self._current.get(address, 0.0) + weight
                self._current[address] = current
                if current > greatest:
                    chosen, greatest = node, current
            self._current[chosen.raw.address] = greatest - total
            return chosen, chosen.pick()

    def _forget_others(self, nodes: Sequence[WeightedNode]) -> None:
        addresses = frozenset(node.raw.address for node in nodes)
        if len(nodes) == self._n_known and addresses <= self._known:
            return
        self._known, self._n_known = addresses, len(nodes)
        self._current = {a: weight for a, weight in self._current.items() if a in addresses}


class _Drawing:
    """Draws numbers, one thread at a time; without a seed, a forked child draws others."""

    def __init__(self, seed: int | None = None, *, draw: Draw | None = None) -> None:
        if draw is None:
            draw = SplitMix64(seed).below
            if seed is None:
                unseeded.add(self)
        elif seed is not None:
            raise ValueError(f"seed must be None where draw is given, got {seed!r}")
        self._draw = draw
        self._lock = threading.RLock()

    def _reseed(self) -> None:
        self._lock = threading.RLock()  # another thread of the parent may have held it
        self._draw = SplitMix64().below


class KratosP2C(_Drawing):
    """Of two nodes drawn at random the one of greater weight; for `Ewma` nodes.

    Where the other has not been picked for more than three seconds it is taken instead, so
    that something new is learned of it; one such pick at a time.

    Parameters
    ----------
    seed : int or None
        Of the draws; None: from the operating system.
    draw : callable (n) -> int, or None
        Draws in [0, n), instead of a seed: for two nodes of n it is called with n, then
        with n - 1.

    Raises
    ------
    TypeError, ValueError
        The seed is no integer in [0, 2**64), or there is a `draw` besides.

    Notes
    -----
    O(1). Any number of threads may share it. Flaws, all Kratos':

    - Without many calls at a time the winner takes all: the node that looks best gets nearly
      every call, for nothing new is learned of the others but every three seconds.
    - An instance that fails at once, with an error that is none to the nodes' `is_failure`,
      is the fastest and draws the traffic.
    - The weight that discovery gave has no part in it: `Ewma` nodes do not look at it.
    - A node that was never picked counts as not picked for ever: of two new nodes always the
      one drawn second is taken.
    """

    def __init__(self, seed: int | None = None, *, draw: Draw | None = None) -> None:
        super().__init__(seed, draw=draw)
        self._forcing = threading.Lock()

    def pick(self, nodes: Sequence[WeightedNode]) -> tuple[WeightedNode, DoneFunc]:
        """Return the better of two nodes, picked, and what to call at the call's end.

        Raises
        ------
        NoAvailableInstance
            There are no nodes.
        """
        n = len(nodes)
        if n == 0:
            raise NoAvailableInstance()
        if n == 1:
            return nodes[0], nodes[0].pick()
        with self._lock:
            i = self._draw(n)
            j = self._draw(n - 1)
        chosen, other = nodes[i], nodes[j + (j >= i)]
        if other.weight() > chosen.weight():
            chosen, other = other, chosen
        if other.pick_elapsed() > FORCE_AFTER and self._forcing.acquire(blocking=False):
            try:
                return other, other.pick()
            finally:
                self._forcing.release()
        return chosen, chosen.pick()


class KratosRandom(_Drawing):
    """One of the nodes, drawn at random, each as likely.

    Parameters
    ----------
    seed : int or None
        Of the draws; None: from the operating system.
    draw : callable (n) -> int, or None
        Draws in [0, n), instead of a seed.

    Raises
    ------
    TypeError, ValueError
        The seed is no integer in [0, 2**64), or there is a `draw` besides.

    Notes
    -----
    O(1). Any number of threads may share it. Its flaw, which is Kratos': weights are not
    looked at, so that a node drained with a weight of zero gets its calls too.
    """

    def pick(self, nodes: Sequence[WeightedNode]) -> tuple[WeightedNode, DoneFunc]:
        """Return any node, picked, and what to call at the call's end.

        Raises
        ------
        NoAvailableInstance
            There are no nodes.
        """
        if not nodes:
            raise NoAvailableInstance()
        with self._lock:
            chosen = nodes[self._draw(len(nodes))]
        return chosen, chosen.pick()
