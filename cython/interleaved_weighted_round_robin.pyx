"""Interleaved weighted round robin: Kitex's two queues, without the queues.

Kitex's rule: take the head of the `current` queue and lower its remainder by the gcd of
all weights; while something remains, it goes to the back of `current`, else its remainder
is its weight again and it goes to the back of `next`; when `current` is empty the two
change places. Weights 3, 3, 4 give  0 1 2 0 1 2 0 1 2 2  and begin again.

Seen from further away, a cycle is a series of passes: pass p visits, in order, those of
weight >= p * gcd. Who leaves in pass p joins `next` behind those who left before, so every
cycle but the first goes through the instances lightest first (equals in the order of the
first cycle), and a pass is a suffix of that one array:

    order     | w=1 w=1 | w=2 | w=5 w=5 |
    pass 1      ^first
    pass 2                ^first
    pass 3, 4, 5                ^first

No queue moves, nothing is counted down: a pass is a run (see picker.pyx). The first cycle
keeps the order of the list; its passes are made in place, in parts of 1,024.

Invariants
- level = gcd * number of the pass; order[first:] are those of weight >= level.
- first cycle: queue[:n_kept] stay for the next pass, queue[n_read:length] are to come.

Cost: pick O(1), no more than 1,024 steps in any one pick; build O(n log n); 12 bytes an
instance (16 in the first cycle).

Source: Kitex, pkg/loadbalance/interleaved_weighted_round_robin.go (CloudWeGo, 2024). The
order is bursty: the heaviest comes many times in a row at the end of a cycle. Take
`WeightedRoundRobin` for an even spread.
"""

from libc.stdint cimport int32_t, int64_t

from cpython.mem cimport PyMem_Free, PyMem_Malloc

cimport cython

from rota.kernels.picker cimport Picker, take

cdef enum:
    PART = 1024   # of the first cycle's passes


@cython.final
cdef class InterleavedWeightedRoundRobin(Picker):
    """InterleavedWeightedRoundRobin(instances, weights=None, *, seed=None, start=None)

    Instances in proportion to their weights, one pass over the list after another.

    Parameters
    ----------
    instances : sequence of any objects, length n
    weights : integers, shape (n,), >= 0, sum < 2**63; None: all 1
    seed : integer in [0, 2**64); None: the operating system's entropy
    start : integer; None: drawn from the seed
        The first pass goes through the list rotated by start % n.

    Raises
    ------
    TypeError, ValueError
        An argument is of no use; the message names it and the value.

    Notes
    -----
    Each instance comes exactly w / gcd times in each cycle of W / gcd picks. pick O(1);
    build O(n log n); 28 bytes an instance. Any number of threads may share it.
    The order is Kitex's.
    """

    def __cinit__(self, instances, weights=None, *, seed=None, start=None):
        self.hold(instances, weights, seed)
        self.rotate(start)
        cdef Py_ssize_t k, next_first
        if self.n_live == 0:
            return
        self.divisor = self.weight_gcd()
        self.order = self.live_by_weight()
        self.queue = self.live_from_start()
        self.heaviest = self.weight[self.order[self.n_live - 1]]
        self.next_first = <int32_t*>PyMem_Malloc(self.n_live * sizeof(int32_t))
        if self.next_first == NULL:
            raise MemoryError
        next_first = self.n_live
        for k in range(self.n_live - 1, -1, -1):
            if k + 1 < self.n_live and self.weight[self.order[k]] != self.weight[self.order[k + 1]]:
                next_first = k + 1
            self.next_first[k] = next_first
        self.level = self.divisor
        self.length = self.n_live
        self.is_first_cycle = True

    def __dealloc__(self):
        PyMem_Free(self.order)
        PyMem_Free(self.queue)
        PyMem_Free(self.next_first)

    def pick(self):
        """Return the next instance, or None when nothing has weight. O(1)."""
        return take(self)

    cdef void refill(self) noexcept nogil:
        if self.n_live == 0:
            return
        if self.is_first_cycle:
            self.refill_first_cycle()
            return
        if self.weight[self.order[self.first]] == self.level:
            self.first = self.next_first[self.first]
        if self.first == self.n_live:
            self.first = 0
            self.level = 0
        self.level += self.divisor
        self.cursor = self.order + self.first
        self.end = self.order + self.n_live

    cdef void refill_first_cycle(self) noexcept nogil:
        cdef Py_ssize_t part = (self.n_read - 1) // PART * PART if self.n_read else 0
        cdef Py_ssize_t k
        # Of the part just handed out, keep those who have a turn in the next pass too.
        for k in range(part, self.n_read):
            if self.weight[self.queue[k]] > self.level:
                self.queue[self.n_kept] = self.queue[k]
                self.n_kept += 1
        if self.n_read == self.length:
            if self.n_kept == 0:
                self.is_first_cycle = False
                self.level = self.divisor
                self.cursor = self.order
                self.end = self.order + self.n_live
                return
            self.length = self.n_kept
            self.n_read = self.n_kept = 0
            self.level += self.divisor
        self.cursor = self.queue + self.n_read
        self.n_read = min(self.length, self.n_read + PART)
        self.end = self.queue + self.n_read

    cdef object state(self):
        cdef const int32_t* run = self.queue if self.is_first_cycle else self.order + self.first
        cdef Py_ssize_t n_done = self.cursor - run if self.cursor != NULL else 0
        return (bool(self.is_first_cycle), self.level, n_done)

    cdef int restore(self, state) except -1:
        """Go on from (is_first_cycle, level, picks done in the present pass)."""
        cdef Py_ssize_t n_done, k, n_in_pass = 0, step
        cdef int64_t level
        cdef int32_t* queue
        if self.n_live == 0:
            return 0
        if not isinstance(state, tuple) or len(state) != 3:
            raise ValueError(f"state must be a triple, got {state!r}")
        is_first_cycle, level, n_done = state
        if type(is_first_cycle) is not bool:
            raise ValueError(f"state must begin with a bool, got {is_first_cycle!r}")
        if not 0 < level <= self.heaviest or level % self.divisor:
            raise ValueError(f"state must have a level of this cycle, got {level}")
        for k in range(self.n_live):
            n_in_pass += self.weight[self.order[k]] >= level
        if not 0 <= n_done <= n_in_pass:
            raise ValueError(f"state must be within a pass of {n_in_pass} picks, got {n_done}")
        queue = self.live_from_start()
        PyMem_Free(self.queue)
        self.queue = queue
        self.level = level
        self.is_first_cycle = is_first_cycle
        if not self.is_first_cycle:
            self.first = self.n_live - n_in_pass
            self.cursor = self.order + self.first + n_done
            self.end = self.order + self.n_live
            return 0
        self.length = self.n_read = self.n_kept = 0
        for k in range(self.n_live):
            if self.weight[queue[k]] >= level:
                queue[self.length] = queue[k]
                self.length += 1
        self.cursor = self.end = queue
        while n_done > 0:
            self.refill()
            step = min(n_done, self.end - self.cursor)
            self.cursor += step
            n_done -= step
        return 0
