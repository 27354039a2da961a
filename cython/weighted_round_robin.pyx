"""Smooth weighted round robin: nginx's order, bit for bit, in stretches.

nginx's rule, O(n) a pick: add its weight to everybody's current weight, pick the greatest
(the first in the list on a tie), take the sum of all weights W from the one picked. Weights
3, 3, 4 give  2 0 1 2 0 1 2 0 1 2  and begin again.

Ours gives the same sequence, also after any change of weights and list, because of three
facts.
1. Current weights are straight lines whose slope is the weight. So of those of one weight
   who is ahead stays ahead until it is picked: each weight is a queue (weight_groups.pyx;
   a current weight is a credit there, and W is a turn), and a pick compares the leaders of
   the queues, not the instances.
2. A group that leads now, leads until a heavier one overtakes it, and when that is follows
   from one division. Until then the picks are its members of equal current weight one
   after another: a *stretch*. With 10,000 instances of weights 1 to 100 a stretch is some
   87 picks long.
3. From some pick on the sequence repeats itself every W / gcd picks, at once where it began
   with no current weights. A period of up to 65,536 picks is kept as it is walked, and when
   the state at its end is that of its beginning (all groups have the same leader with the
   same current weight, and nobody came out of order), it is a cycle.

    place    0    1    2            groups side by side, for vectors
    rate     1    4    5            their weights
    front    4    2    5            what the leader of each will have at the next pick
             |
             queue: 7 -> 2 -> 9 -> (7)

Invariants
- front[k] + pending * rate[k] is the current weight of the leader at place k, plus its
  weight, as of the last `count`: the picks of the present run are not in it, nor, in a
  cycle, any since its beginning.
- W < 2**50 and |current weight| < 2**56 while fronts are int64 (`is_narrow`); beyond that
  the same rule runs on 128 bits, for good. That is room: greedy is within H(n) turns of the
  exact share, whatever changes (Coppersmith et al. 2011), and H(2**31) < 23.

Cost: a pick is O(1) in a cycle, else O(distinct weights / 8) for a stretch, with vectors,
and some 10 ns for each pick of it. A change is that of a queue, and the next pick looks at all
distinct weights; the first change in a cycle goes through up to half of the period, 32,768
picks at most (some 50 us), to find the state. Widening, at the change that brings W to
2**50, is O(distinct weights). Building is O(n log n); 53 bytes an instance and some 100 for
each distinct weight.

Sources: nginx, ngx_http_upstream_get_peer (I. Sysoev, 2012), the order of Kitex and Kratos;
D. Coppersmith, T. Nowicki, G. Paleologo, C. Tresser, C. W. Wu, "The optimality of the
online greedy algorithm in carpool and chairman assignment problems", ACM TALG 7(3), 2011,
doi:10.1145/1978782.1978792.
"""

from libc.stdint cimport int32_t, int64_t

from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc

from rota.arguments import as_index

cimport cython

from rota.kernels.picker cimport hush, take, unhush
from rota.kernels.splitmix64 cimport int128
from rota.kernels.weight_groups cimport (
    LONGEST_STRETCH, WeightGroups, as_int128, from_int128, group_t,
)

cdef extern from *:
    """
    #include <stdint.h>
    #if defined(__x86_64__) && defined(__GLIBC__) && __GNUC__ >= 12 && !defined(__clang__)
    /* One clone for each width of vectors; the loader takes the one this machine has. */
    #define ROTA_VECTORISED __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
    #else
    #define ROTA_VECTORISED
    #endif
    /* Add `picks` rates to each of n fronts, n a multiple of 16; return the place of the
       greatest, or -1 where several are; it goes to `greatest`. */
    ROTA_VECTORISED static Py_ssize_t rota_advance(int64_t *restrict front,
                                                   const int64_t *restrict rate, Py_ssize_t n,
                                                   int64_t picks, int64_t *greatest)
    {
        int64_t top = INT64_MIN, count = 0, place = 0;
        n = n / 16 * 16;
        if (picks == 1)
            for (Py_ssize_t k = 0; k < n; k++) {
                int64_t value = front[k] += rate[k];
                top = value > top ? value : top;
            }
        else
            for (Py_ssize_t k = 0; k < n; k++) {
                /* Of a cycle's picks it may wrap, and `lead` brings it back. */
                int64_t value = front[k] =
                    (int64_t)((uint64_t)front[k] + (uint64_t)rate[k] * (uint64_t)picks);
                top = value > top ? value : top;
            }
        for (Py_ssize_t k = 0; k < n; k++) {
            int64_t is_top = front[k] == top;
            count += is_top;
            place += is_top * k;
        }
        *greatest = top;
        return count == 1 ? place : -1;
    }

    /* Return for how many picks, up to `left`, nobody heavier comes level with a group of
       this front and rate: while its lead is more than what the other gains in them. */
    ROTA_VECTORISED static Py_ssize_t rota_lead(const int64_t *front, const int64_t *rate,
                                                Py_ssize_t n, int64_t own_front,
                                                int64_t own_rate, Py_ssize_t left)
    {
        for (Py_ssize_t b = 0; b < n && left > 1; b += 64) {
            Py_ssize_t end = b + 64 < n ? b + 64 : n;
            int64_t is_level = 0;
            for (Py_ssize_t k = b; k < end; k++) {
                int64_t gain = rate[k] - own_rate, lead = own_front - front[k] + gain;
                is_level |= (gain > 0) & (gain * left >= lead);
            }
            if (is_level)
                for (Py_ssize_t k = b; k < end; k++) {
                    int64_t gain = rate[k] - own_rate, lead = own_front - front[k] + gain;
                    if (gain > 0 && gain * left >= lead) left = lead > 0 ? (lead - 1) / gain : 0;
                }
        }
        return left > 1 ? left : 1;
    }
    """
    Py_ssize_t rota_advance(int64_t* front, const int64_t* rate, Py_ssize_t n, int64_t picks,
                            int64_t* greatest) noexcept nogil
    Py_ssize_t rota_lead(const int64_t* front, const int64_t* rate, Py_ssize_t n,
                         int64_t own_front, int64_t own_rate, Py_ssize_t left) noexcept nogil
    int64_t NOBODY "(INT64_MIN / 2)"

cdef enum:
    BLOCK = 16

cdef int64_t NARROW_TOTAL = <int64_t>1 << 50
cdef int64_t NARROW_CREDIT = <int64_t>1 << 56


cdef Py_ssize_t padded(Py_ssize_t n) noexcept nogil:
    return (n + BLOCK - 1) // BLOCK * BLOCK


@cython.final
cdef class WeightedRoundRobin(WeightGroups):
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
    walked), else O(distinct weights) for each stretch of picks of one weight; set_weight,
    add, remove O(log n), and O(distinct weights) for the pick after it; build O(n log n);
    53 bytes an instance and some 100 for each distinct weight. Any number of threads may
    share it.
    The order is that of nginx, Kitex (who begins one pick later) and Kratos; after a change
    it is the one nginx goes on with from the same current weights.
    """

    def __cinit__(self, instances, weights=None, *, seed=None, start=None):
        self.hold(instances, weights, seed)
        self.rotate(start)
        self.resize(self.capacity)
        self.begin()
        self.is_made(seed)

    def __dealloc__(self):
        PyMem_Free(self.front)
        PyMem_Free(self.rate)
        PyMem_Free(self.at)

    def pick(self):
        """Return the next instance, or None when nothing has weight. O(1)."""
        return take(self)

    # -- the groups, side by side -----------------------------------------------------------

    cdef int reserve_groups(self, int32_t capacity) except -1:
        cdef void* moved
        cdef Py_ssize_t n, k
        cdef size_t width = sizeof(int64_t) if self.is_narrow else sizeof(int128)
        if capacity > self.group_capacity:
            n = padded(max(capacity, 2 * self.group_capacity, 4))
            moved = PyMem_Realloc(self.front, n * width)
            if moved == NULL:
                raise MemoryError
            self.front = moved
            moved = PyMem_Realloc(self.rate, n * sizeof(int64_t))
            if moved == NULL:
                raise MemoryError
            self.rate = <int64_t*>moved
            moved = PyMem_Realloc(self.at, n * sizeof(int32_t))
            if moved == NULL:
                raise MemoryError
            self.at = <int32_t*>moved
            WeightGroups.reserve_groups(self, capacity)
            for k in range(self.n_groups, n):
                self.vacate(k)
        return 0

    cdef void vacate(self, Py_ssize_t place) noexcept nogil:
        """Leave a place that nobody is elected from."""
        self.rate[place] = 0
        if self.is_narrow:
            (<int64_t*>self.front)[place] = NOBODY
        else:
            (<int128*>self.front)[place] = 0

    cdef void clear(self) noexcept nogil:
        cdef Py_ssize_t place
        for place in range(padded(self.group_capacity)):
            self.vacate(place)
        self.pending = 0

    cdef int128 front_of(self, int32_t g) noexcept nogil:
        if self.is_narrow:
            return (<int64_t*>self.front)[self.groups[g].place]
        return (<int128*>self.front)[self.groups[g].place]

    cdef void set_front(self, int32_t g, int128 value) noexcept nogil:
        if self.is_narrow:
            (<int64_t*>self.front)[self.groups[g].place] = <int64_t>value
        else:
            (<int128*>self.front)[self.groups[g].place] = value

    cdef void opened(self, int32_t g) noexcept nogil:
        cdef int32_t place = self.n_groups - 1
        self.groups[g].place = place
        self.at[place] = g
        self.rate[place] = self.groups[g].weight
        self.set_front(g, 0)

    cdef void closed(self, int32_t g) noexcept nogil:
        """The last group takes the place of the one that goes."""
        cdef int32_t last = self.at[self.n_groups - 1], place = self.groups[g].place
        cdef int128 value = self.front_of(last)
        self.at[place] = last
        self.rate[place] = self.rate[self.n_groups - 1]
        self.vacate(self.n_groups - 1)
        self.groups[last].place = place
        if last != g:
            self.set_front(last, value)

    cdef void lead(self, int32_t g) noexcept nogil:
        cdef group_t* group = &self.groups[g]
        self.set_front(g, self.front_of(g) + group.led - self.nodes[group.leader].key)
        group.led = self.nodes[group.leader].key

    cdef int128 line(self, int32_t g) noexcept nogil:
        cdef int128 growth = self.groups[g].weight
        return self.front_of(g) + self.groups[g].led + growth * <int128>(self.pending - 1)

    # -- picks --------------------------------------------------------------------------

    cdef Py_ssize_t grow(self) noexcept nogil:
        """Let the fronts grow by the picks counted since; return the place of the greatest.

        -1 where several are, and on 128 bits.
        """
        cdef int128* wide = <int128*>self.front
        cdef int128 growth
        cdef Py_ssize_t k, place = -1
        if self.is_narrow:
            place = rota_advance(<int64_t*>self.front, self.rate, padded(self.n_groups),
                                 self.pending, &self.greatest)
        else:
            for k in range(self.n_groups):
                growth = self.rate[k]
                wide[k] += growth * <int128>self.pending
        self.pending = 0
        return place

    cdef int32_t elect(self) noexcept nogil:
        """Return the group that comes next."""
        cdef int64_t* front = <int64_t*>self.front
        cdef int128* wide = <int128*>self.front
        cdef int32_t k, n = self.n_groups, best = -1
        cdef Py_ssize_t place = self.grow()
        if place >= 0:
            return self.at[place]
        if self.is_narrow:
            for k in range(n):
                if front[k] == self.greatest:
                    best = self.first_of(best, self.at[k])
            return best
        for k in range(n):
            if best < 0 or wide[k] > self.front_of(best):
                best = self.at[k]
            elif wide[k] == self.front_of(best):
                best = self.first_of(best, self.at[k])
        return best

    cdef int32_t first_of(self, int32_t g, int32_t other) noexcept nogil:
        """Return the group whose leader is first in the list; g may be -1."""
        if g < 0 or (self.rank[self.groups[other].leader]
                     < self.rank[self.groups[g].leader]):
            return other
        return g

    cdef Py_ssize_t lead_of(self, int32_t g, Py_ssize_t most) noexcept nogil:
        """Return for how many picks, up to `most`, no other group overtakes g, which is next."""
        cdef int128* front = <int128*>self.front
        cdef int128 own = self.front_of(g), gain, lead
        cdef int128 left = most
        cdef int64_t weight = self.groups[g].weight
        cdef int32_t k
        if self.is_narrow:
            return rota_lead(<int64_t*>self.front, self.rate, padded(self.n_groups),
                             <int64_t>own, weight, most)
        for k in range(self.n_groups):
            gain = self.rate[k] - weight
            lead = own - front[k] + gain
            if gain > 0 and gain * left >= lead:
                left = 0
                if lead > 0:
                    left = (lead - 1) / gain
                if left <= 1:
                    return 1
        return <Py_ssize_t>left

    cdef int128 turn(self) noexcept nogil:
        return self.total

    cdef void passed(self, Py_ssize_t picks) noexcept nogil:
        self.pending += picks
        if not -2 * LONGEST_STRETCH <= self.pending <= 2 * LONGEST_STRETCH:
            # Many, of a cycle: short of them a front might not fit, and the leaders that
            # bring it back are about to be told of.
            self.grow()

    # -- changes ------------------------------------------------------------------------

    cdef int prepare(self, Py_ssize_t i, int64_t weight) except -1:
        cdef int64_t others = self.total - (self.weight[i] if i < self.n else 0)
        if self.is_narrow and others + weight >= NARROW_TOTAL:
            self.widen()
        return WeightGroups.prepare(self, i, weight)

    cdef int foresee(self, weights) except -1:
        # On the way it is never more than before and after.
        if self.is_narrow and sum(weights.tolist()) >= NARROW_TOTAL:
            self.widen()
        return WeightGroups.foresee(self, weights)

    cdef int widen(self) except -1:
        """Go over to 128 bits."""
        cdef Py_ssize_t n = padded(self.group_capacity), k
        cdef int128* wide = <int128*>PyMem_Malloc(max(n, 1) * sizeof(int128))
        if wide == NULL:
            raise MemoryError
        self.settle()
        self.grow()
        for k in range(n):
            wide[k] = (<int64_t*>self.front)[k] if k < self.n_groups else 0
        PyMem_Free(self.front)
        self.front = wide
        self.is_narrow = False
        return 0

    cdef int begin(self) except -1:
        self.settle()
        if self.front == NULL:
            self.is_narrow = self.total < NARROW_TOTAL
        elif self.is_narrow and self.total >= NARROW_TOTAL:
            self.widen()
        return WeightGroups.begin(self)

    @property
    def current_weights(self):
        """nginx's current weights after the last pick, a list of n integers, by index.

        They sum to 0 as long as nobody has left, and 0 is where everybody begins. Who is
        drained keeps what it had. O(n), and O(period) from a table. All later picks follow
        from them.
        """
        cdef int was
        with cython.critical_section(self):
            was = hush()
            try:
                return self.credits()
            finally:
                unhush(was)

    cdef list credits(self):
        cdef Py_ssize_t i
        cdef list counts = self.picked()
        picks, total = sum(counts), self.total
        return [
            from_int128(self.credit(i)) + picks * self.weight[i] - total * counts[i]
            for i in range(self.n)
        ]

    cdef object state(self):
        """Return (current weights by index, the indices in the order of the list)."""
        return self.credits(), self.order()

    cdef int restore(self, state) except -1:
        cdef Py_ssize_t i
        cdef list values, indices
        value, order = state
        values, indices = list(value), [as_index(i, self.n) for i in order]
        if (len(values) != self.n or not all([isinstance(value, int) for value in values])
                or any([abs(value) >> 80 for value in values])):
            raise ValueError(f"state must be a list of {self.n} current weights, got {values!r}")
        if self.is_narrow and any([abs(value) >= NARROW_CREDIT for value in values]):
            self.widen()
        self.room_to_lay_out(self.n_live)
        self.settle()
        self.take_order(indices)
        for i in range(self.n):
            self.nodes[i].key = as_int128(values[i])
        self.lay_out()
        self.rest()
        return 0
