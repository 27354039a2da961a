"""Smooth weighted round robin: nginx's order, bit for bit, in stretches.

nginx's rule, O(n) a pick: add its weight to everybody's current weight, pick the greatest
(the first in the list on a tie), take the sum of all weights from the one picked. Weights
3, 3, 4 give  2 0 1 2 0 1 2 0 1 2  and begin again.

Ours gives the same sequence, because of three facts.
1. Instances of one weight keep one current weight, but for those already picked in this
   lap, who have W less. So a *group* (one distinct weight) is one number and a position,
   and a pick compares groups, not instances.
2. Current weights are straight lines: a group that leads now, leads until a heavier one
   overtakes it, and when that is follows from one division. Until then the picks are the
   group's members one after another: a *stretch*, handed out as it lies in memory. With
   10,000 instances of weights 1 to 100 a stretch is some 87 picks long.
3. All current weights are 0 again after W / gcd picks. A period of up to 65,536 picks is
   kept as it is walked for the first time and then repeated.

Memory picture

    members   | 2 7 9 | 0 4 | 1 3 5 6 8 |      by weight, then by place in the list
    groups      w=1     w=4   w=5
    position      ^       ^     ^              next of each group

Invariants (`current` counts in units of the gcd)
- current[g] is the current weight of members[first + position] before the present stretch;
  members before `position` have W less, those after it the same.
- -W < current weight of anybody, after every pick; all of them sum to 0.
- current weights stay below 64 W in size (the greedy rule is within H(n) picks of the
  exact share: Coppersmith et al. 2011), so int64 holds them while W / gcd < 2**56; beyond
  that the same code runs on 128 bits.

Cost: O(1) a pick from the table. Without one, and while it is walked for the first time,
O(distinct weights) for a stretch, and in the table its copy, 4 bytes a pick of it. Building
is O(n log n).

Sources: nginx, ngx_http_upstream_get_peer (I. Sysoev, 2012), the order of Kitex and Kratos;
D. Coppersmith, T. Nowicki, G. Paleologo, C. Tresser, C. W. Wu, "The optimality of the
online greedy algorithm in carpool and chairman assignment problems", ACM TALG 7(3), 2011,
doi:10.1145/1978782.1978792.
"""

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy

from cpython.mem cimport PyMem_Calloc, PyMem_Free

cimport cython

from rota.kernels.picker cimport AHEAD, Picker, take
from rota.kernels.splitmix64 cimport int128

cdef enum:
    LONGEST_TABLE = 65536   # slots of 4 bytes: 256 KiB
    SHORTEST_RUN = 64       # as in picker.pyx: a short period is laid out several times

ctypedef fused value_t:
    int64_t
    int128


cdef void catch_up(WeightedRoundRobin self, value_t* current) noexcept nogil:
    """Count the picks of the present stretch."""
    cdef value_t picks = self.stretch
    cdef int32_t g
    cdef group_t* lead = &self.groups[self.lead]
    if self.stretch == 0:
        return
    for g in range(self.n_groups):
        current[g] += <value_t>self.groups[g].weight * picks
    lead.position += self.stretch
    if lead.position == lead.length:
        lead.position = 0
        current[self.lead] -= <value_t>self.turns
    self.stretch = 0


cdef void elect(WeightedRoundRobin self, value_t* current) noexcept nogil:
    """Find the group that comes next, and for how many picks it stays ahead."""
    cdef group_t* groups = self.groups
    cdef int32_t g, best = 0
    cdef value_t value, ahead, gain
    cdef value_t most = current[0] + <value_t>groups[0].weight
    cdef value_t left
    for g in range(1, self.n_groups):
        value = current[g] + <value_t>groups[g].weight
        if value > most or (value == most and comes_first(self, g, best)):
            most = value
            best = g
    left = groups[best].length - groups[best].position
    # Only a heavier group gains on it, `gain` with each pick.
    for g in range(best + 1, self.n_groups):
        gain = <value_t>(groups[g].weight - groups[best].weight)
        ahead = current[best] - current[g]
        if gain >= ahead:  # level, or overtaken, after one pick
            left = 1
            break
        # Ahead after k picks while ahead > gain * k; a product of 64 bits could overflow.
        if <int128>gain * <int128>left >= <int128>ahead:
            left = (ahead - 1) / gain
            if left <= 1:
                left = 1
                break
    self.lead = best
    self.stretch = <int32_t>left


cdef bint comes_first(WeightedRoundRobin self, int32_t g, int32_t other) noexcept nogil:
    """Whether the next member of g stands before that of `other` in the rotated list."""
    cdef Py_ssize_t a = self.members[self.groups[g].first + self.groups[g].position]
    cdef Py_ssize_t b = self.members[self.groups[other].first + self.groups[other].position]
    a -= self.start
    b -= self.start
    return (a + self.n if a < 0 else a) < (b + self.n if b < 0 else b)


cdef list occurrences(Py_ssize_t n, const int32_t* run, Py_ssize_t length):
    """Return how often each of n indices occurs in a run."""
    cdef list counts = [0] * n
    cdef Py_ssize_t k
    for k in range(length):
        counts[run[k]] += 1
    return counts


cdef object value_of(WeightedRoundRobin self, int32_t g):
    """Return current[g] as a Python integer."""
    cdef int128 wide
    cdef object high, low
    if self.is_narrow:
        return (<int64_t*>self.current)[g]
    wide = (<int128*>self.current)[g]
    high = <int64_t>(wide >> 62)
    low = <int64_t>(wide & <int128>0x3FFFFFFFFFFFFFFF)
    return (high << 62) + low


@cython.final
cdef class WeightedRoundRobin(Picker):
    """WeightedRoundRobin(instances, weights=None, *, seed=None, start=None)

    Instances in proportion to their weights, spread as evenly as nginx spreads them.

    Parameters
    ----------
    instances : sequence of any objects, length n
    weights : integers, shape (n,), >= 0, sum < 2**63; None: all 1
    seed : integer in [0, 2**64); None: the operating system's entropy
    start : integer; None: drawn from the seed
        The order is nginx's for the list rotated by start % n; 0: for the list itself.

    Raises
    ------
    TypeError, ValueError
        An argument is of no use; the message names it and the value.

    Notes
    -----
    Each instance comes exactly w / gcd times in each period of W / gcd picks. pick O(1)
    while the period is at most 65,536 picks (a table of 4 bytes a slot, filled as it is
    walked), else O(distinct weights) for each stretch of picks of one weight; build
    O(n log n). Any number of threads may share it.
    The order is that of nginx, Kitex (who begins one pick later) and Kratos.
    """

    def __cinit__(self, instances, weights=None, *, seed=None, start=None):
        self.hold(instances, weights, seed)
        self.rotate(start)
        cdef Py_ssize_t i, k, slots
        cdef int32_t g
        cdef int64_t weight
        if self.n_live == 0:
            return
        self.divisor = self.weight_gcd()
        for i in range(self.n):
            self.turns += self.weight[i] / self.divisor
        self.members = self.live_by_weight()
        self.n_groups = 1
        for k in range(1, self.n_live):
            self.n_groups += self.weight[self.members[k]] != self.weight[self.members[k - 1]]
        self.is_narrow = self.turns < <int64_t>1 << 56
        self.groups = <group_t*>PyMem_Calloc(self.n_groups, sizeof(group_t))
        self.current = PyMem_Calloc(
            self.n_groups, sizeof(int64_t) if self.is_narrow else sizeof(int128)
        )
        if self.groups == NULL or self.current == NULL:
            raise MemoryError
        g = -1
        weight = 0
        for k in range(self.n_live):
            if self.weight[self.members[k]] != weight:
                weight = self.weight[self.members[k]]
                g += 1
                self.groups[g].weight = weight / self.divisor
                self.groups[g].first = k
            self.groups[g].length += 1
        if self.turns <= LONGEST_TABLE:
            slots = (SHORTEST_RUN + self.turns - 1) / self.turns * self.turns
            self.table = <int32_t*>PyMem_Calloc(slots + AHEAD, sizeof(int32_t))
            if self.table == NULL:
                raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.groups)
        PyMem_Free(self.current)
        PyMem_Free(self.members)
        if self.cycle == NULL:  # else it is the cycle, and freed as that
            PyMem_Free(self.table)

    cdef void refill(self) noexcept nogil:
        cdef Py_ssize_t period = self.turns, length
        cdef const int32_t* source
        if self.cycle != NULL:
            self.cursor = self.cycle
            self.end = self.cycle + self.period
            return
        if self.n_live == 0:
            return
        if self.is_narrow:
            catch_up(self, <int64_t*>self.current)
            elect(self, <int64_t*>self.current)
        else:
            catch_up(self, <int128*>self.current)
            elect(self, <int128*>self.current)
        source = (self.members + self.groups[self.lead].first
                  + self.groups[self.lead].position)
        if self.table == NULL:
            self.cursor = source
            self.end = source + self.stretch
            return
        length = min(self.stretch, period - self.n_walked)
        self.stretch = length
        memcpy(self.table + self.n_walked, source, length * sizeof(int32_t))
        self.cursor = self.table + self.n_walked
        self.end = self.cursor + length
        self.n_walked += length
        if self.n_walked == period:
            self.period = (SHORTEST_RUN + period - 1) / period * period
            while self.n_walked < self.period:
                memcpy(self.table + self.n_walked, self.table, period * sizeof(int32_t))
                self.n_walked += period
            self.cycle = self.table

    def pick(self):
        """Return the next instance, or None when nothing has weight. O(1)."""
        return take(self)

    @property
    def current_weights(self):
        """nginx's current weights after the last pick, a list of n integers that sum to 0.

        O(n), and O(period) from a table. All later picks follow from them.
        """
        with cython.critical_section(self):
            return self.state()

    cdef object state(self):
        cdef Py_ssize_t k, picks
        cdef int32_t g
        cdef group_t* group
        cdef list weights = [0] * self.n
        if self.n_live == 0:
            return weights
        # Before the present stretch ...
        for g in range(self.n_groups):
            group = &self.groups[g]
            value = value_of(self, g)
            for k in range(group.length):
                weights[self.members[group.first + k]] = value - (
                    self.turns if k < group.position else 0
                )
        # ... and what was picked since. A walked table is back where it began.
        if self.cycle != NULL:
            picked = occurrences(self.n, self.cycle, self.cursor - self.cycle)
            picks = self.cursor - self.cycle
            for k in range(self.stretch):
                picked[self.members[self.groups[self.lead].first
                                    + self.groups[self.lead].position + k]] += 1
            picks += self.stretch
        else:
            picks = self.stretch - (self.end - self.cursor)
            picked = occurrences(self.n, self.end - self.stretch, picks)
        divisor = self.divisor
        turns = self.turns
        return [
            (value + picks * (weight // divisor) - turns * count) * divisor
            for value, weight, count in zip(weights, self.weight_array.tolist(), picked)
        ]

    cdef int restore(self, state) except -1:
        """Go on from the current weights `state`; they must be of one point of a schedule."""
        cdef Py_ssize_t k
        cdef int32_t g
        cdef int128 wide
        cdef list values, positions
        if not isinstance(state, list) or len(state) != self.n:
            raise ValueError(f"state must be a list of {self.n} current weights, got {state!r}")
        if any(state[k] != 0 for k in range(self.n) if self.weight[k] == 0):
            raise ValueError(f"state must be 0 where the weight is, got {state!r}")
        total = int(self.turns) * self.divisor
        values, positions = [], []
        for g in range(self.n_groups):
            group = [state[self.members[self.groups[g].first + k]]
                     for k in range(self.groups[g].length)]
            top = group[len(group) - 1]
            position = sum(1 for value in group if value != top)
            if (not isinstance(top, int) or not -total < top < 64 * total or top % self.divisor
                    or any(value != top - total for value in group[:position])):
                raise ValueError(
                    f"state must be current weights of these instances, got {group!r} for those "
                    f"of weight {self.groups[g].weight * self.divisor}"
                )
            values.append(top // self.divisor)
            positions.append(position)
        if sum(state):
            raise ValueError(f"state must be current weights that sum to 0, got {sum(state)}")
        for g in range(self.n_groups):
            self.groups[g].position = positions[g]
            if self.is_narrow:
                (<int64_t*>self.current)[g] = values[g]
            else:
                wide = <int64_t>(values[g] >> 62)
                (<int128*>self.current)[g] = (
                    (wide << 62) + <int128><int64_t>(values[g] & 0x3FFFFFFFFFFFFFFF)
                )
        if self.cycle != NULL:
            self.table = self.cycle
            self.cycle = NULL
        self.cursor = self.end = NULL
        self.stretch = 0
        self.n_walked = 0
        return 0
