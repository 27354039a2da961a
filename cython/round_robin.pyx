"""Round robin: the instances in the order of the list, for ever.

The list is an array of indices by *rank*, and one bit for each rank says whether its
instance has weight. After a pick comes the next rank that has: a run is read off the bits,
a word of 64 ranks at a time. The round is kept as it is walked and then repeated as one
cycle (see picker.pyx), until a change begins that anew.

    order   | 3 | 0 | - | 1 | 4 |      index by rank; - was left
    bits      1   0   0   1   1        0 is drained
                      ^ position       the rank after that of the last pick

Invariants
- In any n_live consecutive picks without a change each instance with weight comes exactly
  once.
- A change moves nobody else in the list, nor the position.
- n_ranks == 0, or somebody has the rank n_ranks - 1; position < n_ranks, or both are 0.

Cost: O(1) a pick; after a change the next round is read off the bits (some 2 ns a pick),
at 40,000 drained ranks a microsecond to step over. set_weight, add and remove O(1); once
there have been twice as many ranks as there is room for instances, an `add` closes the
gaps, O(n), 3 ns an instance. Building is O(n), 33 bytes an instance.

Source: folklore; the random rotation is Kitex's, which starts its counter at a random
number so that the clients of a fleet do not walk in step.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memset

from cpython.mem cimport PyMem_Free, PyMem_Realloc

from rota.arguments import as_index

cimport cython

from rota.kernels.picker cimport SHORTEST_RUN, Picker, take

cdef extern from *:
    int lowest "__builtin_ctzll"(unsigned long long bits) noexcept nogil


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
    pick O(1); set_weight, add, remove O(1); build O(n); 33 bytes an instance. Any number of
    threads may share it.
    """

    def __cinit__(self, instances, weights=None, *, seed=None, start=None):
        self.hold(instances, weights, seed)
        self.rotate(start)
        self.resize(self.capacity)
        self.begin()
        self.is_made(seed)

    def __dealloc__(self):
        PyMem_Free(self.order)
        PyMem_Free(self.rank)
        PyMem_Free(self.bits)

    def pick(self):
        """Return the next instance, or None when nothing has weight. O(1)."""
        return take(self)

    cdef int resize(self, Py_ssize_t capacity) except -1:
        cdef Py_ssize_t words = 2 * capacity // 64 + 1, position = self.where()
        cdef void* moved
        moved = PyMem_Realloc(self.order, max(2 * capacity, 1) * sizeof(int32_t))
        if moved == NULL:
            raise MemoryError
        self.order = <int32_t*>moved
        moved = PyMem_Realloc(self.rank, max(capacity, 1) * sizeof(int32_t))
        if moved == NULL:
            raise MemoryError
        self.rank = <int32_t*>moved
        moved = PyMem_Realloc(self.bits, words * sizeof(uint64_t))
        if moved == NULL:
            raise MemoryError
        self.bits = <uint64_t*>moved
        memset(self.bits + self.n_words, 0, (words - self.n_words) * sizeof(uint64_t))
        self.n_words = words
        if not self.take_table(max(capacity, 2 * SHORTEST_RUN)):
            raise MemoryError
        self.position = position
        return 0

    cdef int begin(self) except -1:
        cdef Py_ssize_t i
        self.forget_run()
        memset(self.bits, 0, self.n_words * sizeof(uint64_t))
        self.n_ranks = self.position = 0
        for i in range(self.n):
            if i == self.start:
                self.position = self.n_ranks
            if self.is_present[i]:
                self.place(i)
        self.wrap()
        if self.n_live:
            # The whole round, now and not at the first pick.
            i = self.position
            self.walk(&self.table.indices[0], self.n_live)
            self.n_walked = self.n_live
            self.close_cycle()
            self.position = i
        return 0

    cdef void place(self, int32_t i) noexcept nogil:
        """Give i the last rank."""
        self.order[self.n_ranks] = i
        self.rank[i] = self.n_ranks
        self.n_ranks += 1
        self.switch(i, self.weight[i] > 0)

    cdef void wrap(self) noexcept nogil:
        if self.position >= self.n_ranks:
            self.position = 0

    cdef void switch(self, Py_ssize_t i, bint is_live) noexcept nogil:
        cdef uint64_t bit = <uint64_t>1 << (self.rank[i] & 63)
        if is_live:
            self.bits[self.rank[i] >> 6] |= bit
        else:
            self.bits[self.rank[i] >> 6] &= ~bit

    cdef void refill(self) noexcept nogil:
        cdef Py_ssize_t length
        if self.cycle != NULL:
            self.cursor = self.cycle
            self.end = self.cycle + self.period
            return
        if self.n_live == 0:
            return
        length = min(self.run_length, self.n_live - self.n_walked)
        self.cursor = &self.table.indices[self.n_walked]
        self.end = self.cursor + length
        self.walk(&self.table.indices[self.n_walked], length)
        self.n_walked += length
        self.lengthen_run()
        if self.n_walked == self.n_live:
            self.close_cycle()

    cdef void walk(self, int32_t* out, Py_ssize_t length) noexcept nogil:
        """Write the next `length` <= n_live indices, and move the position past them."""
        cdef Py_ssize_t word = self.position >> 6
        cdef Py_ssize_t last = (self.n_ranks - 1) >> 6
        cdef uint64_t left = self.bits[word] >> (self.position & 63) << (self.position & 63)
        cdef Py_ssize_t k = 0, rank = 0
        while k < length:
            while left == 0:
                word = 0 if word == last else word + 1
                left = self.bits[word]
            rank = (word << 6) + lowest(left)
            out[k] = self.order[rank]
            left &= left - 1
            k += 1
        self.position = rank + 1
        self.wrap()

    cdef Py_ssize_t where(self) noexcept nogil:
        """Return the rank after that of the last pick."""
        cdef Py_ssize_t rank
        if self.cursor == NULL:
            return self.position
        rank = 1 + self.rank[
            self.cycle[self.period - 1] if self.cursor == self.cycle else (self.cursor - 1)[0]
        ]
        return rank if rank < self.n_ranks else 0

    cdef void settle(self) noexcept nogil:
        """Put the position behind the last pick, and forget the run."""
        self.position = self.where()
        self.forget_run()

    cdef void appear(self, Py_ssize_t i) noexcept nogil:
        self.settle()
        if self.n_ranks == 2 * self.capacity:
            self.close_gaps()
        self.place(i)

    cdef void reweigh(self, Py_ssize_t i, int64_t weight) noexcept nogil:
        if (weight > 0) != (self.weight[i] > 0):
            self.settle()
            self.switch(i, weight > 0)
        self.note(i, weight)

    cdef void vanish(self, Py_ssize_t i) noexcept nogil:
        self.settle()
        self.order[self.rank[i]] = -1
        while self.n_ranks and self.order[self.n_ranks - 1] < 0:
            self.n_ranks -= 1
        self.wrap()

    cdef void close_gaps(self) noexcept nogil:
        """Give the ranks out again from 0, in the same order."""
        cdef Py_ssize_t rank, n_ranks = self.n_ranks, position = self.position
        memset(self.bits, 0, self.n_words * sizeof(uint64_t))
        self.n_ranks = 0
        for rank in range(n_ranks):
            if rank == position:
                self.position = self.n_ranks
            if self.order[rank] >= 0:
                self.place(self.order[rank])

    cdef int reorder(self, const int32_t* order, Py_ssize_t count) except -1:
        """Take the order of the list; who was next is next."""
        cdef Py_ssize_t k, rank = 0
        cdef int32_t following
        for k in range(count):  # the same order needs nothing
            while self.order[rank] < 0:
                rank += 1
            if order[k] != self.order[rank]:
                break
            rank += 1
        else:
            return 0
        self.settle()
        rank = self.position
        while self.order[rank] < 0:
            rank += 1
        following = self.order[rank]
        memset(self.bits, 0, self.n_words * sizeof(uint64_t))
        self.n_ranks = 0
        for k in range(count):
            if order[k] == following:
                self.position = k
            self.place(order[k])
        return 0

    cdef object state(self):
        """Return (the indices in the order of the list, the place of the next)."""
        cdef Py_ssize_t rank, position = 0, where = self.where()
        cdef list order = []
        for rank in range(self.n_ranks):
            if rank == where:
                position = len(order)
            if self.order[rank] >= 0:
                order.append(self.order[rank])
        return order, position

    cdef int restore(self, state) except -1:
        cdef Py_ssize_t k, position, count
        order, place = state
        order = [as_index(i, self.n) for i in order]
        count = len(order)
        position = as_index(place, max(count, 1))
        if (count != self.n - self.n_vacant or len(set(order)) != count
                or not all([self.is_present[<Py_ssize_t>i] for i in order])):
            raise ValueError(f"state must be an order and a place in it, got {state!r}")
        self.forget_run()
        memset(self.bits, 0, self.n_words * sizeof(uint64_t))
        self.n_ranks = 0
        for k in range(count):
            self.place(order[k])
        self.position = position
        return 0
