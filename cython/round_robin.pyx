"""Round robin: the instances in the order of the list, for ever.

Invariant: in any n_live consecutive picks each instance with weight comes exactly once.

The schedule is the list of indices itself, rotated, as one cycle; see picker.pyx.

Cost: O(1) a pick; O(n) and 4 bytes an instance to build.

Source: folklore; the random rotation is Kitex's, which starts its counter at a random
number so that the clients of a fleet do not walk in step.
"""

from libc.stdint cimport int32_t

from cpython.mem cimport PyMem_Free

cimport cython

from rota.kernels.picker cimport Picker, take


@cython.final
cdef class RoundRobin(Picker):
    """RoundRobin(instances, weights=None, *, seed=None, start=None)

    Every instance in turn, whatever its weight; those of weight 0 are left out.

    Parameters
    ----------
    instances : sequence of any objects, length n
    weights : integers, shape (n,), >= 0, sum < 2**63; None: all 1
        Only whether a weight is 0 matters here.
    seed : integer in [0, 2**64); None: the operating system's entropy
    start : integer; None: drawn from the seed
        The first pick is instances[start % n], if that has weight.

    Raises
    ------
    TypeError, ValueError
        An argument is of no use; the message names it and the value.

    Notes
    -----
    pick O(1); build O(n); 20 bytes an instance. Any number of threads may share it.
    """

    def __cinit__(self, instances, weights=None, *, seed=None, start=None):
        self.hold(instances, weights, seed)
        self.rotate(start)
        cdef int32_t* order = self.live_from_start()
        if order == NULL:
            return
        try:
            self.cycle_through(order, self.n_live)
        finally:
            PyMem_Free(order)

    def pick(self):
        """Return the next instance, or None when nothing has weight. O(1)."""
        return take(self)
