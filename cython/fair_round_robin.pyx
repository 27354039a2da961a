"""Fair weighted round robin: nobody is ever a whole pick from its exact share.

Virtual time V grows by 1/W with each pick, W being the sum of the weights. An instance of
weight w is due once in each span of 1/w: its window begins at S and ends at F = S + 1/w. A
pick goes to the window that ends first among those that have begun (S <= V), the heaviest
on a tie, and of one weight the first in the list; then the instance's next window begins
where the last one ended. Weights 3, 3, 4 give  2 0 1 2 0 1 2 0 2 1  and begin again. What an
instance is owed, its lag, is (V - S) * w picks: t * w / W less the picks it has had.

Why each lag is between -1 and 1, and never reaches either, as long as weights stay:
1. Who is picked is owed 0 or more, so it is left with more than -1. (Somebody always is: all
   lags together are 0.)
2. Pick k of an instance of share u = w/W may come at t when k - 1 <= t * u, and its lag stays
   below 1 if it has come by the whole number of picks b, the least with b >= k / u. Take whole
   numbers a <= b. The picks that may not come before a and must have come by b are those with
   a - 1 < (k - 1) / u and k / u <= b, and of one instance they number less than u * (b - a + 1).
   So of all together they number less than b - a + 1: there is room for them. For jobs that
   take one slot each that is all it needs for earliest deadline first to meet every deadline,
   however it breaks ties; and to sort by k / u is to sort by b, too.

Changes keep lags. Who is drained keeps what it is owed; the others take it over in
proportion to their weights (V moves), and give it back when it returns. So all lags together
are always 0, whoever has gone. Who is removed is owed nothing when it comes again. After a
change lags are still kept above -1, or what they were; one stays below 1 + u * D, if D is the
sum of what the others were ahead by right after the change: so many windows more than the
rule of 2 allows may end at once. And from the moment on when all of these have been due again,
at the latest after W / w picks for each they were ahead, it is less than one pick for all.

    V, S, F     in units of 2**-64 and fractions of a unit, n/W and n/w: exact
    key         S * w, since the group opened: a pick adds exactly 2**64
    ready       groups by F of their leaders; all that are eligible, and some
                that a change has made wait again
    waiting     groups by S; they go over to the ready when V comes to it

All is exact but that a change of W rounds V down by less than 1/W of a unit, that is each lag
by less than 2**-64 picks, and that the lag of who changes is rounded to whole units.

Invariants
- a group is in one heap, at `place`; in `waiting` at -1 - `place`.
- no window that has begun is in `waiting` after `elect`.
- (V - base) * w < 2**127 while a group is open for fewer than 2**63 picks.

Cost: a pick is O(1) in a cycle, else O(log distinct weights) for a stretch of instances of
one weight. When windows of many weights begin at once, at the end of a period, all go over
with one pick. A change is that of a queue (weight_groups.pyx). 53 bytes an instance and
some 150 for each distinct weight.

Sources: R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32, 1980,
doi:10.1016/0012-365X(80)90269-1; S. Baruah, N. Cohen, C. Plaxton, D. Varvel, "Proportionate
progress", Algorithmica 15, 1996, doi:10.1007/BF01940883; I. Stoica, H. Abdel-Wahab, "Earliest
eligible virtual deadline first", Old Dominion University TR-95-22, 1995 (joining, leaving).
"""

from libc.stdint cimport int32_t, int64_t, uint64_t

from cpython.mem cimport PyMem_Free, PyMem_Realloc

from fractions import Fraction

from rota.arguments import as_index

cimport cython

from rota.kernels.picker cimport hush, take, unhush
from rota.kernels.splitmix64 cimport int128, uint128
from rota.kernels.weight_groups cimport WeightGroups, as_int128, from_int128, group_t

cdef extern from *:
    """
    #define ROTA_ONE ((__int128)1 << 64)  /* a pick */
    """
    const int128 ONE "ROTA_ONE"

cdef enum:
    NOWHERE = -0x7FFFFFFF - 1

cdef uint64_t LAST = 0xFFFFFFFFFFFFFFFF


cdef inline int128 quotient(int128 a, int64_t b, uint64_t* rest) noexcept nogil:
    """Return a / b rounded down, and what is left of a."""
    cdef int128 q = a / b, r
    r = a - q * b
    if r < 0:
        q -= 1
        r += b
    rest[0] = <uint64_t>r
    return q


cdef inline bint is_less(uint64_t a, int64_t v, uint64_t b, int64_t w) noexcept nogil:
    """Whether a / v < b / w."""
    cdef uint128 one = a, other = b
    one *= <uint64_t>w
    other *= <uint64_t>v
    return one < other


# -- the heaps --------------------------------------------------------------------------


cdef inline bint begins_first(FairRoundRobin self, int32_t a, int32_t b) noexcept nogil:
    """Whether a's window begins before b's; the heavier one's, where they begin together."""
    cdef span_t* one = &self.spans[a]
    cdef span_t* other = &self.spans[b]
    cdef int64_t v = self.groups[a].weight, w = self.groups[b].weight
    if one.start != other.start:
        return one.start < other.start
    if is_less(one.start_part, v, other.start_part, w):
        return True
    return v > w and not is_less(other.start_part, w, one.start_part, v)


cdef inline bint ends_first(FairRoundRobin self, int32_t a, int32_t b) noexcept nogil:
    """Whether a's window ends before b's; the heavier one's, where they end together."""
    cdef span_t* one = &self.spans[a]
    cdef span_t* other = &self.spans[b]
    cdef int64_t v = self.groups[a].weight, w = self.groups[b].weight
    if one.finish != other.finish:
        return one.finish < other.finish
    if is_less(one.finish_part, v, other.finish_part, w):
        return True
    return v > w and not is_less(other.finish_part, w, one.finish_part, v)


cdef inline bint is_before(
    FairRoundRobin self, bint is_ready, int32_t a, int32_t b
) noexcept nogil:
    return ends_first(self, a, b) if is_ready else begins_first(self, a, b)


cdef inline void put(
    FairRoundRobin self, bint is_ready, int32_t* heap, int32_t place, int32_t g
) noexcept nogil:
    heap[place] = g
    self.groups[g].place = place if is_ready else -1 - place


cdef void settle_in(
    FairRoundRobin self, bint is_ready, int32_t place, int32_t g
) noexcept nogil:
    """Put g at a free place of a heap, or above or below it, where it belongs."""
    cdef int32_t* heap = self.ready if is_ready else self.waiting
    cdef int32_t n = self.n_ready if is_ready else self.n_waiting, other
    while place > 0:
        other = (place - 1) >> 1
        if not is_before(self, is_ready, g, heap[other]):
            break
        put(self, is_ready, heap, place, heap[other])
        place = other
    while True:
        other = 2 * place + 1
        if other >= n:
            break
        if other + 1 < n:
            other += is_before(self, is_ready, heap[other + 1], heap[other])
        if not is_before(self, is_ready, heap[other], g):
            break
        put(self, is_ready, heap, place, heap[other])
        place = other
    put(self, is_ready, heap, place, g)


@cython.final
cdef class FairRoundRobin(WeightGroups):
    """FairRoundRobin(instances, weights=None, *, seed=None, start=None)

    Instances in proportion to their weights, each less than one pick from its exact share.

    Parameters
    ----------
    instances : sequence of any objects, length n
    weights : integers, shape (n,), >= 0, sum < 2**63; None: all 1
    seed : integer in [0, 2**64); None: the operating system's entropy
    start : integer; None: drawn from the seed
        Ties go to the heaviest, and of one weight to the first in the list rotated by
        start % n; 0: in the list itself.

    Raises
    ------
    TypeError, ValueError
        An argument is of no use; the message names it and the value.

    Notes
    -----
    After t picks an instance of weight w has had more than t*w/W - 1 and fewer than
    t*w/W + 1 of them, W being the sum of the weights, for any weights; after a change the
    same holds around what `lags` carried over, once who was ahead has been due again.
    Each instance comes exactly w / gcd times in each period of W / gcd picks. pick O(1)
    while the period is at most 65,536 picks (a table of 4 bytes a slot, filled as it is
    walked), else O(log distinct weights) for each stretch of picks of one weight; set_weight,
    add, remove O(log n); build O(n log n); 53 bytes an instance and 150 for each distinct
    weight. Any number of threads may share it.
    """

    def __cinit__(self, instances, weights=None, *, seed=None, start=None):
        self.hold(instances, weights, seed)
        self.rotate(start)
        self.resize(self.capacity)
        self.begin()
        self.is_made(seed)

    def __dealloc__(self):
        PyMem_Free(self.spans)
        PyMem_Free(self.ready)
        PyMem_Free(self.waiting)

    def pick(self):
        """Return the next instance, or None when nothing has weight. O(1)."""
        return take(self)

    # -- virtual time -----------------------------------------------------------------------

    cdef void move_now(self, int128 credit) noexcept nogil:
        """Let virtual time go on by credit / total."""
        self.now += quotient(credit + self.now_part, self.total, &self.now_part)

    cdef void take_over_now(self, int64_t total) noexcept nogil:
        """Keep virtual time, that was in parts of `total`, in those of the total of now."""
        cdef uint128 part = self.now_part
        if total == 0 or self.total == 0:
            self.now = self.now_part = 0
            return
        part *= <uint64_t>self.total
        part /= <uint64_t>total
        self.now_part = <uint64_t>part

    cdef bint is_eligible(self, int32_t g) noexcept nogil:
        """Whether the leader's window has begun."""
        cdef span_t* span = &self.spans[g]
        if span.start != self.now:
            return span.start < self.now
        return not is_less(self.now_part, self.total, span.start_part, self.groups[g].weight)

    cdef int128 line(self, int32_t g) noexcept nogil:
        cdef int128 weight = self.groups[g].weight
        cdef uint128 part = self.now_part
        part *= <uint64_t>self.groups[g].weight
        part /= <uint64_t>self.total
        return (self.now - self.spans[g].base) * weight + <int128>part

    cdef int128 turn(self) noexcept nogil:
        return ONE

    cdef void passed(self, Py_ssize_t picks) noexcept nogil:
        cdef int128 credit = picks
        self.move_now(credit * ONE)

    cdef void lapped(self, uint64_t laps) noexcept nogil:
        """Move everybody on, by parts of a unit: who changes is rounded as on a long walk.

        Virtual time moves by 1 / gcd with each period. Whole picks of it make no difference,
        so that up to gcd - 1 periods are left.
        """
        cdef int64_t divisor = self.common_divisor()
        cdef Py_ssize_t i
        cdef int128 left = laps % <uint64_t>divisor, part
        cdef uint64_t rest
        if left == 0:
            return
        left *= ONE
        # In wholes and parts, for weights are as large as their sum allows.
        self.now += quotient(left, divisor, &rest)
        part = rest
        self.move_now(part * <int128>(self.total / divisor))
        for i in range(self.n):
            if self.nodes[i].group >= 0:
                self.nodes[i].key += left * <int128>(self.weight[i] / divisor)

    # -- groups -----------------------------------------------------------------------------

    cdef int reserve_groups(self, int32_t capacity) except -1:
        cdef void* moved
        if capacity > self.group_capacity:
            capacity = max(capacity, 2 * self.group_capacity, 4)
            moved = PyMem_Realloc(self.spans, capacity * sizeof(span_t))
            if moved == NULL:
                raise MemoryError
            self.spans = <span_t*>moved
            moved = PyMem_Realloc(self.ready, capacity * sizeof(int32_t))
            if moved == NULL:
                raise MemoryError
            self.ready = <int32_t*>moved
            moved = PyMem_Realloc(self.waiting, capacity * sizeof(int32_t))
            if moved == NULL:
                raise MemoryError
            self.waiting = <int32_t*>moved
            WeightGroups.reserve_groups(self, capacity)
        return 0

    cdef void clear(self) noexcept nogil:
        self.n_ready = self.n_waiting = 0

    cdef void opened(self, int32_t g) noexcept nogil:
        self.spans[g].base = self.now
        self.groups[g].place = NOWHERE

    cdef void closed(self, int32_t g) noexcept nogil:
        self.pull_out(g)

    cdef void lead(self, int32_t g) noexcept nogil:
        cdef group_t* group = &self.groups[g]
        cdef span_t* span = &self.spans[g]
        cdef uint64_t weight = group.weight
        cdef bint is_ready
        span.start = span.base + quotient(
            self.nodes[group.leader].key, group.weight, &span.start_part
        )
        # 2**64 / weight, which 64 bits do not hold where it is 1.
        span.finish = span.start + <int128>(LAST / weight)
        span.finish_part = span.start_part + LAST % weight + 1
        if span.finish_part >= weight:
            span.finish_part -= weight
            span.finish += 1
        is_ready = self.is_eligible(g)
        if group.place == NOWHERE:
            self.push(g)
        elif is_ready == (group.place >= 0):
            settle_in(self, is_ready, group.place if is_ready else -1 - group.place, g)
        else:
            self.pull_out(g)
            self.push(g)

    cdef void push(self, int32_t g) noexcept nogil:
        """Put a group that is nowhere into its heap."""
        if self.is_eligible(g):
            self.n_ready += 1
            settle_in(self, True, self.n_ready - 1, g)
        else:
            self.n_waiting += 1
            settle_in(self, False, self.n_waiting - 1, g)

    cdef void pull_out(self, int32_t g) noexcept nogil:
        """Take a group out of its heap."""
        cdef int32_t place = self.groups[g].place, last
        if place >= 0:
            self.n_ready -= 1
            last = self.ready[self.n_ready]
            if last != g:
                settle_in(self, True, place, last)
        elif place != NOWHERE:
            self.n_waiting -= 1
            last = self.waiting[self.n_waiting]
            if last != g:
                settle_in(self, False, -1 - place, last)
        self.groups[g].place = NOWHERE

    # -- picks --------------------------------------------------------------------------

    cdef int32_t elect(self) noexcept nogil:
        cdef int32_t g
        while self.n_waiting and self.is_eligible(self.waiting[0]):
            g = self.waiting[0]
            self.pull_out(g)
            self.push(g)
        while self.n_ready and not self.is_eligible(self.ready[0]):
            g = self.ready[0]
            self.pull_out(g)
            self.push(g)
        # Nobody is eligible only by what changes have rounded.
        return self.ready[0] if self.n_ready else self.waiting[0]

    cdef Py_ssize_t lead_of(self, int32_t g, Py_ssize_t most) noexcept nogil:
        """At least until a window begins."""
        cdef uint128 left
        if self.n_ready == 0:
            return 1
        if self.n_waiting:
            # In units, less than there is; then in picks, more than V stays short of it.
            left = <uint128>(self.spans[self.waiting[0]].start - self.now)
            if left == 0:
                return 1
            left -= 1
            if left > <uint128>LAST:
                left = <uint128>LAST
            left *= <uint64_t>self.total
            left = (left >> 64) + 1
            if left < <uint128>most:
                return <Py_ssize_t>left
        return most

    # -- changes ------------------------------------------------------------------------

    cdef void reweigh(self, Py_ssize_t i, int64_t weight) noexcept nogil:
        cdef int64_t total = self.total
        cdef int128 credit
        self.settle()
        if self.nodes[i].group >= 0:
            credit = self.leave(i)
        else:
            credit = self.nodes[i].key
            if total:
                self.move_now(-credit)  # the others had it meanwhile
            else:
                credit = 0
        self.note(i, weight)
        self.take_over_now(total)
        if weight:
            self.join(i, weight, credit)
        elif self.total:
            self.move_now(credit)  # to the others, in proportion to their weights

    cdef int begin(self) except -1:
        self.room_to_lay_out(self.n_live)
        self.settle()
        self.now = self.now_part = 0
        return WeightGroups.begin(self)

    @property
    def lags(self):
        """How many picks each instance is owed (negative: ahead), exactly, by index.

        A list of n fractions.Fraction: the sum of its shares w/W so far less the picks it has
        had. They sum to 0, and 0 is where everybody begins. Who is drained keeps what it
        had. O(n), and O(period) from a table.
        """
        cdef list counts, keys, weights
        cdef int was
        with cython.critical_section(self):
            was = hush()
            try:
                counts = self.picked()
                keys = self.starts(counts)
                weights = [self.weight[i] for i in range(self.n)]
                total, now = int(self.total), int(self.now_part)
            finally:
                unhush(was)
        now += sum(counts) * 2**64
        return [
            Fraction(now * weight - key * total, total * 2**64) if weight else Fraction(key, 2**64)
            for weight, key in zip(weights, keys)
        ]

    cdef list starts(self, list counts):
        """Return the keys by index after the picks of `counts`, reckoned from self.now."""
        cdef Py_ssize_t i
        cdef int32_t g
        cdef int128 key
        cdef list keys = []
        for i in range(self.n):
            g, key = self.nodes[i].group, self.nodes[i].key
            if g >= 0:
                key -= (self.now - self.spans[g].base) * <int128>self.weight[i]
            keys.append(from_int128(key) + counts[i] * 2**64)
        return keys

    cdef object state(self):
        """Return (part of virtual time, lags in units, the indices in the order of the list)."""
        cdef list counts = self.picked(), weights = [self.weight[i] for i in range(self.n)]
        cdef list keys
        total, divisor, laps = int(self.total), int(self.common_divisor()), 0
        if self.cycle != NULL:
            # As `lapped` has it.
            laps = int(self.n_laps) * (self.period // self.lap)
            laps = (laps + (self.cursor - self.cycle) // self.lap) % divisor
            counts = [
                count + laps * (weight // divisor) for count, weight in zip(counts, weights)
            ]
        keys = self.starts(counts)
        if total == 0:
            return 0, keys, self.order()
        now = int(self.now_part) + sum(counts) * 2**64
        lags = [
            now * weight // total - key if weight else key for weight, key in zip(weights, keys)
        ]
        return now % total, lags, self.order()

    cdef int restore(self, state) except -1:
        cdef Py_ssize_t i
        cdef list lags, indices
        part, lag, order = state
        lags, indices = list(lag), [as_index(i, self.n) for i in order]
        if not isinstance(part, int) or not 0 <= part < max(self.total, 1):
            raise ValueError(f"state must have a part of the total weight, got {part!r}")
        if (len(lags) != self.n or not all([isinstance(lag, int) for lag in lags])
                or any([abs(lag) >> 100 for lag in lags])):
            raise ValueError(f"state must be a list of {self.n} lags, got {lags!r}")
        self.room_to_lay_out(self.n_live)
        self.settle()
        self.take_order(indices)
        self.now, self.now_part = 0, part
        for i in range(self.n):
            self.nodes[i].key = as_int128(lags[i])
        self.lay_out()
        self.rest()
        return 0
