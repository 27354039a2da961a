"""Least request: of two instances at random, the one with fewer requests in flight.

The load of an instance is what it would be with one more request, for its weight:

    (in_flight + 1) / weight

compared exactly, by integers. The second of two draws (see two_choices.pyx) is taken if its
load is less; a first draw that is idle always stands. So at rest picks are shared out by
weight, equal loads are a matter of chance, and under load those in flight are.

With two choices of two instances the worse one is still picked where it was both drawn
first and less loaded; with a few instances two draws say little. So up to FULL_SCAN of them
all are compared, from a random one on.

Invariants: those of two_choices.pyx.

Sources: M. Mitzenmacher 2001, doi:10.1109/71.963420; Envoy's least request, which compares
the same for equal weights; its full scan.

Cost: pick O(1), two loads; acquire and release one count each. No clock.
"""

from libc.stdint cimport int32_t, int64_t

cimport cython

from rota.kernels.picker cimport take
from rota.kernels.splitmix64 cimport splitmix64_below, uint128
from rota.kernels.two_choices cimport TwoChoices, begin_call, begin_index, end_index, get

cdef enum:
    FULL_SCAN = 8


@cython.final
@cython.no_gc_clear
cdef class LeastRequest(TwoChoices):
    """LeastRequest(instances, weights=None, *, seed=None)

    Of two instances at random, the one with fewer requests in flight for its weight.

    Parameters
    ----------
    instances : sequence of any objects, length n
    weights : integers, shape (n,), >= 0, sum < 2**63; None: all 1
    seed : integer in [0, 2**64); None: the operating system's entropy

    Raises
    ------
    TypeError, ValueError
        An argument is of no use; the message names it and the value.

    Notes
    -----
    `acquire` counts a request in flight until its lease is released; `pick` goes by these
    counts and leaves them alone. O(1), but for a scan of up to 8 instances where there are
    no more. Errors and latencies make no difference: an instance that fails at once has
    little in flight and attracts requests. See PeakEwma.
    Mitzenmacher 2001, doi:10.1109/71.963420.
    """

    def __cinit__(self, instances, weights=None, *, seed=None):
        self.hold(instances, weights, seed)
        self.resize(self.capacity)
        self.hold_loads()
        self.begin()
        self.is_made(seed)

    def pick(self):
        """Return the next instance, or None when nothing has weight. O(1).

        Nothing is counted; see `acquire`.
        """
        return take(self)

    cdef bint is_less(self, int32_t one, int32_t other) noexcept nogil:
        """Whether one more request is less of a load for `one` than for `other`."""
        cdef uint128 a = <uint128>(<int64_t>get(&self.load[one].in_flight) + 1)
        cdef uint128 b = <uint128>(<int64_t>get(&self.load[other].in_flight) + 1)
        a = a * <uint128>self.weight[other]
        b = b * <uint128>self.weight[one]
        return a < b

    def acquire(self):
        """Pick, and count one more in flight there, until the lease is released. O(1).

        Returns
        -------
        Lease or None
            With `.instance`, `.index`, `.done(rtt, error)`, `.release()`; a context manager
            that gives the instance and reports by itself. None when nothing has weight.
        """
        return begin_call(self)

    def acquire_index(self):
        """Pick, and count one more in flight there: the index, or None. O(1).

        The caller owes one `done` of that index; `acquire` sees to that by itself.
        """
        cdef int32_t i = begin_index(self)
        return None if i < 0 else i

    def done(self, index, rtt, error=None):
        """Say that a call that `acquire_index` began has ended; how makes no difference. O(1).

        Raises
        ------
        TypeError, ValueError
            An index of nobody, no finite number of seconds >= 0; nothing has changed.
        """
        end_index(self, index, rtt, error)

    cdef int32_t prefer(self, int32_t first) noexcept nogil:
        cdef Py_ssize_t _k, place
        cdef int32_t i, best
        if get(&self.load[first].in_flight) <= 0:
            return first
        if self.n_live > FULL_SCAN:
            i = self.second(first)
            return i if self.is_less(i, first) else first
        best = first
        place = splitmix64_below(&self.random, self.n_live)
        for _k in range(self.n_live):
            i = self.at(place)
            if self.is_less(i, best):
                best = i
            place = place + 1 if place + 1 < self.n_live else 0
        return best
