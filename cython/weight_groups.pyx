"""Instances of one weight as one queue: what the smooth and the fair round robin share.

Both orders say who is next by one number for each instance, its *credit*: what it is owed.
It grows at a rate that its weight gives, and falls by one turn when it is picked. So of
those of one weight, a *group*, who is ahead stays ahead until it is picked: each group is a
queue, and only the leaders of the groups need comparing (the algorithm's part).

A queue is kept by *keys*, which rest while credits grow:

    credit of i  =  line of its group  -  key of i

    chain   head -> . -> . -> .      in order of (key, rank); a pick puts the head behind
                                     the tail, a turn later
    heap    those who came out of order: with a change, a credit from another group

Who is picked has paid a turn, which as a rule puts it behind the tail, wherever it came
from: so a heap empties by itself within a round after the last change, and a queue is a
ring again that turns without any comparison.

When all groups together have led for W / gcd picks, every queue has as a rule turned a whole
number of times: the order repeats itself. A period of up to 65,536 picks is kept as it is
walked. When at its end each group has the leader it had at its beginning, moved on by exactly
w / gcd turns, and every pick on the way went from the head of a chain to its tail, then the
rest of each chain has moved on by as much, and the table is a cycle.

Invariants
- the chain is sorted by (key, rank), and so is every path down the heap.
- the leader is the less of the chain's head and the heap's top.
- a group is open while it has members; `find` gives the group of a weight.

Cost: a pick O(1), and O(log members) for who comes from a heap; joining and leaving
O(log members) at worst; a heap that is full grows by half. The first change in a cycle goes
through up to half of the period, 32,768 picks at most (some 50 us), to find the state.
Laying out is O(n log n). 36 bytes an instance, and 32 to 48 for its place in a heap.

Source: ours. The gap of a removed group in the hash table is closed after D. E. Knuth, The
Art of Computer Programming, vol. 3, 6.4, algorithm R.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memset

from cpython.mem cimport (
    PyMem_Free, PyMem_Malloc, PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc, PyMem_Realloc,
)

from rota.arguments import as_count, as_weight

cimport cython

from rota.kernels.picker cimport SHORTEST_RUN, Picker, prefetch
from rota.kernels.splitmix64 cimport int128

cdef enum:
    IN_HEAP = -2
    AHEAD_IN_CHAIN = 24   # fetched that much before its turn

cdef struct entry_t:
    int64_t weight
    int128 credit
    int32_t rank
    int32_t index


cdef int in_order(const void* one, const void* other) noexcept nogil:
    """By weight, then who has more credit, then by rank."""
    cdef const entry_t* a = <const entry_t*>one
    cdef const entry_t* b = <const entry_t*>other
    if a.weight != b.weight:
        return -1 if a.weight < b.weight else 1
    if a.credit != b.credit:
        return -1 if a.credit > b.credit else 1
    return -1 if a.rank < b.rank else 1


# -- order ------------------------------------------------------------------------------


cdef inline bint precedes(WeightGroups self, int32_t i, int32_t j) noexcept nogil:
    """Whether one is before the other in the queue of their group."""
    cdef const node_t* one = &self.nodes[i]
    cdef const node_t* other = &self.nodes[j]
    return one.key < other.key or (one.key == other.key and self.rank[i] < self.rank[j])


# -- the chain --------------------------------------------------------------------------


cdef inline void link(node_t* nodes, int32_t i, int32_t before) noexcept nogil:
    """Put i into a ring, before a member of it; -1: i is the ring."""
    if before < 0:
        nodes[i].next = nodes[i].prev = nodes[i].ahead = i
        return
    nodes[i].next = before
    nodes[i].prev = nodes[before].prev
    nodes[i].ahead = nodes[nodes[i].prev].ahead
    nodes[nodes[i].prev].next = i
    nodes[before].prev = i


cdef inline void unlink(node_t* nodes, int32_t i) noexcept nogil:
    nodes[nodes[i].prev].next = nodes[i].next
    nodes[nodes[i].next].prev = nodes[i].prev


cdef void insert(WeightGroups self, group_t* group, int32_t i) noexcept nogil:
    """Put i, whose key is set, where it belongs."""
    cdef node_t* nodes = self.nodes
    cdef int32_t head = group.head
    if head < 0:
        link(nodes, i, -1)
        group.head = i
    elif not precedes(self, i, nodes[head].prev):
        link(nodes, i, head)
    elif precedes(self, i, head):
        link(nodes, i, head)
        group.head = i
    elif has_room(group):
        nodes[i].prev = IN_HEAP
        group.n_heap += 1
        self.n_strangers += 1
        rise(nodes, group.heap, group.n_heap - 1, nodes[i].key, self.rank[i], i)
    else:
        # No memory: find the place one by one.
        while precedes(self, head, i):
            head = nodes[head].next
        link(nodes, i, head)


# -- the heap ---------------------------------------------------------------------------


cdef bint has_room(group_t* group) noexcept nogil:
    """See to room for one more in the heap."""
    cdef size_t capacity
    cdef void* moved
    if group.n_heap == group.heap_capacity:
        capacity = max(4, group.n_heap + group.n_heap // 2)
        moved = PyMem_RawRealloc(group.heap, capacity * sizeof(stranger_t))
        if moved == NULL:
            return False
        group.heap = <stranger_t*>moved
        group.heap_capacity = capacity
    return True


cdef inline bint is_less(const stranger_t* one, int128 key, int32_t rank) noexcept nogil:
    return one.key < key or (one.key == key and one.rank < rank)


cdef inline void rise(node_t* nodes, stranger_t* heap, int32_t place, int128 key, int32_t rank,
                      int32_t i) noexcept nogil:
    """Put i at a free place of the heap, or above it, where it belongs."""
    cdef int32_t up
    while place > 0:
        up = (place - 1) >> 2
        if is_less(&heap[up], key, rank):
            break
        heap[place] = heap[up]
        nodes[heap[place].index].next = place
        place = up
    heap[place].key = key
    heap[place].rank = rank
    heap[place].index = i
    nodes[i].next = place


cdef void pull(WeightGroups self, group_t* group, int32_t place) noexcept nogil:
    """Take who is at `place` out of the heap.

    The least child moves up, all the way down, and the last of the heap rises from there
    (R. W. Floyd's way). Four children: they are side by side in memory.
    """
    cdef node_t* nodes = self.nodes
    cdef stranger_t* heap = group.heap
    cdef int32_t down, k, best, last = group.n_heap - 1
    group.n_heap = last
    self.n_strangers -= 1
    if place == last:
        return
    while True:
        down = 4 * place + 1
        if down >= last:
            break
        best = down
        for k in range(down + 1, min(down + 4, last)):
            if is_less(&heap[k], heap[best].key, heap[best].rank):
                best = k
        heap[place] = heap[best]
        nodes[heap[place].index].next = place
        place = best
    rise(nodes, heap, place, heap[last].key, heap[last].rank, heap[last].index)


# -- groups by weight -------------------------------------------------------------------


cdef inline Py_ssize_t home_of(WeightGroups self, int64_t weight) noexcept nogil:
    return <Py_ssize_t>(
        <uint64_t>weight * <uint64_t>0x9E3779B97F4A7C15 >> 32
    ) & (self.n_buckets - 1)


cdef inline int32_t find(WeightGroups self, int64_t weight) noexcept nogil:
    """Return the group of a weight, -1 when nobody has it."""
    cdef Py_ssize_t b
    if self.n_buckets == 0:
        return -1
    b = home_of(self, weight)
    while self.buckets[b] >= 0 and self.groups[self.buckets[b]].weight != weight:
        b = (b + 1) & (self.n_buckets - 1)
    return self.buckets[b]


cdef int32_t open_group(WeightGroups self, int64_t weight) noexcept nogil:
    """Return a new group; there is room for it."""
    cdef Py_ssize_t b = home_of(self, weight)
    cdef int32_t g = self.free_id
    if g >= 0:
        self.free_id = self.groups[g].place
    else:
        g = self.n_ids
        self.n_ids += 1
    while self.buckets[b] >= 0:
        b = (b + 1) & (self.n_buckets - 1)
    self.buckets[b] = g
    self.groups[g].weight = weight
    self.groups[g].head = self.groups[g].leader = -1
    self.groups[g].n_members = self.groups[g].n_heap = 0
    self.groups[g].led = 0
    self.n_groups += 1
    self.divisor = 0
    self.opened(g)
    return g


cdef void close_group(WeightGroups self, int32_t g) noexcept nogil:
    cdef Py_ssize_t mask = self.n_buckets - 1
    cdef Py_ssize_t b = home_of(self, self.groups[g].weight), hole
    self.closed(g)
    while self.buckets[b] != g:
        b = (b + 1) & mask
    # Who was pushed past the gap comes back.
    hole = b
    while True:
        b = (b + 1) & mask
        if self.buckets[b] < 0:
            break
        if ((b - home_of(self, self.groups[self.buckets[b]].weight)) & mask) >= ((b - hole) & mask):
            self.buckets[hole] = self.buckets[b]
            hole = b
    self.buckets[hole] = -1
    self.groups[g].weight = 0
    self.groups[g].place = self.free_id
    self.free_id = g
    self.n_groups -= 1
    self.divisor = 0


@cython.no_gc_clear
cdef class WeightGroups(Picker):
    """The base of WeightedRoundRobin and FairRoundRobin. Not to be made by itself."""

    def __cinit__(self):
        self.free_id = -1

    def __dealloc__(self):
        cdef int32_t g
        for g in range(self.n_ids):
            PyMem_RawFree(self.groups[g].heap)
        PyMem_Free(self.groups)
        PyMem_Free(self.nodes)
        PyMem_Free(self.rank)
        PyMem_Free(self.buckets)
        PyMem_Free(self.entries)
        PyMem_RawFree(self.marks)

    cdef int128 credit(self, Py_ssize_t i) noexcept nogil:
        """Return the credit of i, as of the last `settle`."""
        cdef int128 value = self.nodes[i].key
        if self.nodes[i].group >= 0:
            value = self.line(self.nodes[i].group) - value
        return value

    cdef void choose(self, int32_t g) noexcept nogil:
        """Find the leader of a group, and tell."""
        cdef group_t* group = &self.groups[g]
        group.leader = group.head
        if group.n_heap and (
            group.head < 0
            or is_less(group.heap, self.nodes[group.head].key, self.rank[group.head])
        ):
            group.leader = group.heap[0].index
        prefetch(&self.items[group.leader], 0)
        self.lead(g)

    cdef int reserve_groups(self, int32_t capacity) except -1:
        """See to room for that many groups; what was there stays."""
        cdef void* moved
        cdef int32_t g
        cdef Py_ssize_t n_buckets = 16, b
        cdef int32_t* buckets
        if capacity <= self.group_capacity:
            return 0
        capacity = max(capacity, 2 * self.group_capacity, 4)
        moved = PyMem_Realloc(self.groups, capacity * sizeof(group_t))
        if moved == NULL:
            raise MemoryError
        self.groups = <group_t*>moved
        memset(&self.groups[self.group_capacity], 0,
               (capacity - self.group_capacity) * sizeof(group_t))
        while n_buckets < 2 * capacity:
            n_buckets *= 2
        buckets = <int32_t*>PyMem_Malloc(n_buckets * sizeof(int32_t))
        if buckets == NULL:
            raise MemoryError
        memset(buckets, 0xFF, n_buckets * sizeof(int32_t))
        PyMem_Free(self.buckets)
        self.buckets = buckets
        self.n_buckets = n_buckets
        for g in range(self.n_ids):
            if self.groups[g].weight:
                b = home_of(self, self.groups[g].weight)
                while buckets[b] >= 0:
                    b = (b + 1) & (n_buckets - 1)
                buckets[b] = g
        self.group_capacity = capacity
        return 0

    cdef int64_t common_divisor(self) noexcept nogil:
        """Return the greatest common divisor of the weights; O(groups) after one came or went."""
        cdef int64_t a, b, divisor = self.divisor
        cdef int32_t g
        if divisor:
            return divisor
        for g in range(self.n_ids):
            a = self.groups[g].weight
            b = divisor
            while b:
                a, b = b, a % b
            divisor = a
            if divisor == 1:
                break
        self.divisor = divisor
        return divisor

    # -- coming, going, being picked --------------------------------------------------------

    cdef void join(self, Py_ssize_t i, int64_t weight, int128 credit) noexcept nogil:
        """Put i, which is in no group, into that of its weight."""
        cdef int32_t g = find(self, weight)
        cdef node_t* node = &self.nodes[i]
        cdef group_t* group
        if g < 0:
            g = open_group(self, weight)
        group = &self.groups[g]
        node.group = g
        node.key = self.line(g) - credit
        group.n_members += 1
        insert(self, group, i)
        if group.leader < 0 or precedes(self, i, group.leader):
            group.leader = i
            prefetch(&self.items[i], 0)
            self.lead(g)

    cdef int128 leave(self, Py_ssize_t i) noexcept nogil:
        """Take i out of its group; return its credit."""
        cdef node_t* node = &self.nodes[i]
        cdef int32_t g = node.group
        cdef group_t* group = &self.groups[g]
        cdef int128 credit = self.line(g) - node.key
        group.n_members -= 1
        if node.prev == IN_HEAP:
            pull(self, group, node.next)
        elif node.next == i:
            group.head = -1
        else:
            unlink(self.nodes, i)
            if group.head == i:
                group.head = node.next
        node.group = -1
        node.key = credit
        if group.n_members == 0:
            close_group(self, g)
        elif group.leader == i:
            self.choose(g)
        return credit

    cdef bint has_equals(self, int32_t g) noexcept nogil:
        """Whether the leader of a group is the head of the chain, and the next has its key."""
        cdef int32_t i = self.groups[g].leader, following = self.nodes[i].next
        return (self.groups[g].head == i and following != i
                and self.nodes[following].key == self.nodes[i].key)

    cdef Py_ssize_t equals(self, int32_t g, int32_t* out, Py_ssize_t most) noexcept nogil:
        """Write who comes next in a group and follows with the same key; return how many.

        At most `most`, each once.
        """
        cdef group_t* group = &self.groups[g]
        cdef node_t* nodes = self.nodes
        cdef int32_t i = group.leader, head = group.head
        cdef const node_t* node = &nodes[i]
        cdef int128 key = node.key
        cdef Py_ssize_t k = 1
        out[0] = i
        if i != head or most == 1 or (group.n_heap and group.heap[0].key == key):
            return 1
        while k < most:
            i = node.next
            node = &nodes[i]
            prefetch(&nodes[node.ahead], 1)
            if i == head or node.key != key:
                break
            out[k] = i
            k += 1
        return k

    cdef void serve(
        self, int32_t g, const int32_t* run, Py_ssize_t count, int128 turn
    ) noexcept nogil:
        """Count the picks of the first `count` >= 1 of what `equals` gave: a turn each."""
        cdef group_t* group = &self.groups[g]
        cdef node_t* nodes = self.nodes
        cdef int32_t i = run[0], after
        cdef Py_ssize_t k
        if nodes[i].prev == IN_HEAP:
            self.is_turning = False
            pull(self, group, 0)
            nodes[i].key += turn
            insert(self, group, i)
        else:
            for k in range(count):
                nodes[run[k]].key += turn
            after = nodes[run[count - 1]].next
            if after == i or not precedes(self, i, nodes[i].prev):
                group.head = after  # behind the tail: the ring turns
            else:
                self.is_turning = False
                for k in range(count):
                    unlink(nodes, run[k])
                group.head = after
                for k in range(count):
                    insert(self, group, run[k])
        self.choose(g)

    # -- picks --------------------------------------------------------------------------

    cdef void count(self, Py_ssize_t picks) noexcept nogil:
        """Count the first picks of the present run."""
        if picks:
            self.passed(picks)
            self.serve(self.run_group, self.run, picks, self.turn())
        self.run = NULL

    cdef void refill(self) noexcept nogil:
        cdef int32_t* out = &self.stretch[0]
        cdef Py_ssize_t most = min(self.run_length, LONGEST_STRETCH)
        if self.cycle != NULL:
            self.n_laps += 1
            self.cursor = self.cycle
            self.end = self.cycle + self.period
            return
        if self.n_groups == 0:
            return
        if self.run != NULL:
            self.count(self.end - self.run)
        if self.is_walking and not self.is_turning:
            self.is_walking = False
        if self.is_walking and self.n_walked == self.lap:
            if self.is_back():
                PyMem_RawFree(self.marks)
                self.marks = NULL
                self.close_cycle()
                self.cursor = self.cycle
                self.end = self.cycle + self.period
                return
            self.is_walking = False
            self.was_looked_at = False
        if (not self.is_walking and not self.was_looked_at and self.n_strangers == 0
                and self.run_length >= LONGEST_STRETCH):
            self.is_walking = self.begin_walk()
        if self.is_walking:
            out = &self.table.indices[self.n_walked]
            most = min(most, self.lap - self.n_walked)
        self.run_group = self.elect()
        if most > 1:
            most = self.lead_of(self.run_group, most) if self.has_equals(self.run_group) else 1
        most = self.equals(self.run_group, out, most)
        self.run = self.cursor = out
        self.end = out + most
        if self.is_walking:
            self.n_walked += most
        self.lengthen_run()

    # -- the period -----------------------------------------------------------------------

    cdef void rest(self) noexcept nogil:
        """No change is in sight: take the memory for the table now, and not at a pick."""
        self.run_length = LONGEST_STRETCH
        self.is_walking = self.n_groups > 0 and self.begin_walk()

    cdef bint begin_walk(self) noexcept nogil:
        """Note the state, if the period from here on can be kept."""
        cdef int64_t lap = self.total / self.common_divisor()
        cdef Py_ssize_t length = self.run_length, capacity
        cdef int32_t g
        self.was_looked_at = True
        if lap > LONGEST_TABLE:
            return False
        capacity = (SHORTEST_RUN + lap - 1) / lap * lap
        if not self.take_table(capacity):
            return False
        self.run_length = length
        PyMem_RawFree(self.marks)
        self.marks = <mark_t*>PyMem_RawMalloc(self.n_ids * sizeof(mark_t))
        if self.marks == NULL:
            return False
        for g in range(self.n_ids):
            if self.groups[g].weight:
                self.marks[g].leader = self.groups[g].leader
                self.marks[g].key = self.nodes[self.groups[g].leader].key
        self.lap = lap
        self.is_turning = True
        return True

    cdef bint is_back(self) noexcept nogil:
        """Whether the state is that of the table's beginning, moved on by one period."""
        cdef int128 turn = self.turn()
        cdef int128 way
        cdef int64_t divisor = self.common_divisor()
        cdef int32_t g, leader
        for g in range(self.n_ids):
            if self.groups[g].weight:
                leader = self.groups[g].leader
                way = self.groups[g].weight / divisor
                if (leader != self.marks[g].leader
                        or self.nodes[leader].key != self.marks[g].key + way * turn):
                    return False
        return True

    cdef void replay(self, Py_ssize_t picks) noexcept nogil:
        """Go so many picks on from the cycle's beginning, or back where negative.

        Its end is the same state as its beginning. The queues only turn.
        """
        cdef int128 turn = self.turn()
        cdef Py_ssize_t k
        cdef int32_t i, g
        for k in range(picks):
            i = self.cycle[k]
            self.nodes[i].key += turn
            self.groups[self.nodes[i].group].head = self.nodes[i].next
        for k in range(self.lap - 1, self.lap - 1 + min(picks, 0), -1):
            i = self.cycle[k]
            self.nodes[i].key -= turn
            self.groups[self.nodes[i].group].head = i
        self.passed(picks)
        for g in range(self.n_ids):
            if self.groups[g].weight:
                self.choose(g)

    cdef void settle(self) noexcept nogil:
        """Count the picks handed out, and forget the run."""
        cdef Py_ssize_t picks
        cdef uint64_t laps
        if self.cycle != NULL:
            picks = self.cursor - self.cycle
            laps = self.n_laps * <uint64_t>(self.period / self.lap) + <uint64_t>(picks / self.lap)
            picks %= self.lap
            if picks > self.lap - picks:
                picks -= self.lap
                laps += 1
            if laps:
                self.lapped(laps)
            self.replay(picks)
        elif self.run != NULL:
            self.count(self.cursor - self.run)
        self.run = NULL
        self.is_walking = self.was_looked_at = False
        self.forget_run()
        self.run_length = 1

    cdef list picked(self):
        """Return how often each index was picked since the state was last counted, by index.

        Whole periods of a cycle are not in it.
        """
        cdef Py_ssize_t k, picks = 0
        cdef const int32_t* run = self.run
        cdef list counts = [0] * self.n
        if self.cycle != NULL:
            run = self.cycle
            picks = (self.cursor - self.cycle) % self.lap
        elif run != NULL:
            picks = self.cursor - run
        for k in range(picks):
            counts[run[k]] += 1
        return counts

    cdef list order(self):
        """Return the indices in the order of the list."""
        cdef Py_ssize_t i
        present = [i for i in range(self.n) if self.is_present[i]]
        present.sort(key=[self.rank[i] for i in range(self.n)].__getitem__)
        return present

    cdef int take_order(self, list indices) except -1:
        """Go over to the order that another picker's `order` gave."""
        cdef Py_ssize_t k, count = len(indices)
        if (count != self.n - self.n_vacant or len(set(indices)) != count
                or not all([self.is_present[<Py_ssize_t>i] for i in indices])):
            raise ValueError(f"state must be an order of the instances, got {indices!r}")
        for k in range(count):
            self.rank[<Py_ssize_t>indices[k]] = k
        self.next_rank = count
        return 0

    # -- changes ------------------------------------------------------------------------

    cdef int resize(self, Py_ssize_t capacity) except -1:
        cdef void* moved = PyMem_Realloc(self.nodes, max(capacity, 1) * sizeof(node_t))
        if moved == NULL:
            raise MemoryError
        self.nodes = <node_t*>moved
        moved = PyMem_Realloc(self.rank, max(capacity, 1) * sizeof(int32_t))
        if moved == NULL:
            raise MemoryError
        self.rank = <int32_t*>moved
        return 0

    cdef void fetch(self, Py_ssize_t i) noexcept nogil:
        prefetch(&self.nodes[i], 1)
        prefetch(&self.weight[i], 1)

    cdef int prepare(self, Py_ssize_t i, int64_t weight) except -1:
        if self.next_rank == LAST_RANK:
            self.renumber()
        if self.n_groups == self.group_capacity:
            self.reserve_groups(self.n_groups + 1)
        return 0

    cdef int foresee(self, weights) except -1:
        cdef Py_ssize_t count = len(weights)
        if LAST_RANK - self.next_rank <= count:
            self.renumber()
        self.reserve_groups(self.n_groups + len(set(weights.tolist())))
        return self.room_to_lay_out(count)

    cdef void appear(self, Py_ssize_t i) noexcept nogil:
        self.nodes[i].group = -1
        self.nodes[i].key = 0
        self.rank[i] = self.next_rank
        self.next_rank += 1

    cdef void reweigh(self, Py_ssize_t i, int64_t weight) noexcept nogil:
        cdef int128 credit
        self.settle()
        credit = self.leave(i) if self.nodes[i].group >= 0 else self.nodes[i].key
        self.note(i, weight)
        if weight:
            self.join(i, weight, credit)

    cdef void vanish(self, Py_ssize_t i) noexcept nogil:
        self.nodes[i].key = 0

    cdef int reorder(self, const int32_t* order, Py_ssize_t count) except -1:
        """Take the order of the list, which only matters between equals."""
        cdef Py_ssize_t k, first = self.start % count
        for k in range(1, count):
            if (self.rank[order[(first + k) % count]]
                    < self.rank[order[(first + k - 1) % count]]):
                break
        else:
            PyMem_Free(self.entries)
            self.entries = NULL
            return 0
        self.settle()
        for k in range(count):
            self.nodes[order[k]].key = self.credit(order[k])
        # Only now: a credit is reckoned from its group.
        for k in range(count):
            self.rank[order[(first + k) % count]] = k
        self.next_rank = count
        return self.lay_out()

    cdef int renumber(self) except -1:
        """Give the ranks out again from 0, in the same order: once in 2**31 additions."""
        cdef entry_t* entries = <entry_t*>PyMem_Malloc(max(self.n, 1) * sizeof(entry_t))
        cdef Py_ssize_t i, k, count = 0
        cdef int32_t g, place
        if entries == NULL:
            raise MemoryError
        for i in range(self.n):
            if self.is_present[i]:
                entries[count].weight = 0
                entries[count].credit = 0
                entries[count].rank = self.rank[i]
                entries[count].index = i
                count += 1
        qsort(entries, count, sizeof(entry_t), in_order)
        for k in range(count):
            self.rank[entries[k].index] = k
        self.next_rank = count
        PyMem_Free(entries)
        for g in range(self.n_ids):
            for place in range(self.groups[g].n_heap):
                i = self.groups[g].heap[place].index
                self.groups[g].heap[place].rank = self.rank[i]
        return 0

    cdef int begin(self) except -1:
        cdef Py_ssize_t i
        cdef int32_t rank = 0
        self.room_to_lay_out(self.n_live)
        for i in range(self.n):
            self.nodes[i].key = 0
        for i in range(self.start, self.n):
            self.rank[i] = rank
            rank += self.is_present[i]
        for i in range(self.start):
            self.rank[i] = rank
            rank += self.is_present[i]
        self.next_rank = rank
        self.lay_out()
        self.rest()
        return 0

    cdef int room_to_lay_out(self, Py_ssize_t count) except -1:
        """See to the memory in which `lay_out` sorts so many with weight."""
        cdef void* moved = PyMem_Realloc(self.entries, max(count, 1) * sizeof(entry_t))
        if moved == NULL:
            raise MemoryError
        self.entries = moved
        return 0

    cdef int lay_out(self) except -1:
        """Form the groups anew from weights, ranks, and credits (which the keys are). O(n log n).

        There is room; it can only fail where there were fewer groups.
        """
        cdef entry_t* entries = <entry_t*>self.entries
        cdef Py_ssize_t i, k, count = 0, first
        cdef int32_t g, n_groups = 0, length
        for i in range(self.n):
            if self.weight[i]:
                entries[count].weight = self.weight[i]
                entries[count].credit = self.nodes[i].key
                entries[count].rank = self.rank[i]
                entries[count].index = i
                count += 1
        qsort(entries, count, sizeof(entry_t), in_order)
        for k in range(count):
            n_groups += k == 0 or entries[k].weight != entries[k - 1].weight
        self.reserve_groups(n_groups)
        for i in range(self.n):
            self.nodes[i].group = -1
        self.forget_run()
        self.run = NULL
        self.is_walking = False
        self.n_groups = self.n_ids = self.n_strangers = 0
        self.free_id = -1
        self.divisor = 0
        for g in range(self.group_capacity):
            PyMem_RawFree(self.groups[g].heap)
        if self.group_capacity:
            memset(self.groups, 0, self.group_capacity * sizeof(group_t))
            memset(self.buckets, 0xFF, self.n_buckets * sizeof(int32_t))
        self.clear()
        first = 0
        while first < count:
            length = 1
            while (first + length < count
                   and entries[first + length].weight == entries[first].weight):
                length += 1
            g = open_group(self, entries[first].weight)
            for k in range(first, first + length):
                i = entries[k].index
                self.nodes[i].group = g
                self.nodes[i].key = self.line(g) - entries[k].credit
                link(self.nodes, i, self.groups[g].head)
                if self.groups[g].head < 0:
                    self.groups[g].head = i
            for k in range(length):
                self.nodes[entries[first + k].index].ahead = (
                    entries[first + (k + AHEAD_IN_CHAIN) % length].index
                )
            self.groups[g].n_members = length
            self.choose(g)
            first += length
        PyMem_Free(self.entries)
        self.entries = NULL
        return 0

    # -- what each algorithm gives ------------------------------------------------------------

    cdef void clear(self) noexcept nogil:
        """Forget all groups, and begin with no credit anywhere."""

    cdef void opened(self, int32_t g) noexcept nogil:
        """There is a new group."""

    cdef void lead(self, int32_t g) noexcept nogil:
        """The leader of a group, or its key, is another."""

    cdef void closed(self, int32_t g) noexcept nogil:
        """A group is about to go."""

    cdef int128 line(self, int32_t g) noexcept nogil:
        """Return credit + key of any member of a group; of an empty one, what it should be."""
        return 0

    cdef int128 turn(self) noexcept nogil:
        """Return what a pick costs who is picked."""
        return 0

    cdef int32_t elect(self) noexcept nogil:
        """Return the group that comes next; there is one."""
        cdef int32_t g = 0
        while self.groups[g].weight == 0:
            g += 1
        return g

    cdef Py_ssize_t lead_of(self, int32_t g, Py_ssize_t most) noexcept nogil:
        """Return for how many picks, up to `most`, no other group overtakes g, which is next."""
        return 1

    cdef void passed(self, Py_ssize_t picks) noexcept nogil:
        """Let lines grow by so many picks, or fall back where negative."""

    cdef void lapped(self, uint64_t laps) noexcept nogil:
        """So many periods of a cycle have passed, that no key has been told of."""


@cython.final
cdef class Queues(WeightGroups):
    """Queues(n)

    The queues alone, of n members 0 .. n - 1 that have no weight at first. For tests.

    Keys are integers below 2**100; between equal ones the lower member comes first.
    """

    def __cinit__(self, n):
        self.hold(range(as_count(n)), [0] * n, 0)
        self.resize(self.capacity)
        self.begin()

    cdef void refill(self) noexcept nogil:
        """There is no order between the queues: nothing to pick."""

    cdef int check(self, Py_ssize_t i, bint is_member) except -1:
        if not 0 <= i < self.n or (self.nodes[i].group >= 0) != is_member:
            raise ValueError(f"i must be {'in' if is_member else 'out of'} the queues, got {i}")
        return 0

    def enter(self, i, weight, key):
        """Put i, which is in no queue, into that of its weight."""
        cdef int64_t wanted = as_weight(weight)
        cdef int128 credit = as_int128(-key)
        if wanted == 0:
            raise ValueError("weight must be >= 1, got 0")
        with cython.critical_section(self):
            self.check(i, False)
            self.prepare(i, wanted)
            self.join(i, wanted, credit)

    def withdraw(self, i):
        """Take i out of its queue; return its key."""
        with cython.critical_section(self):
            self.check(i, True)
            return -from_int128(self.leave(i))

    def leader(self, weight):
        """Return who comes first of a weight, None where nobody has it."""
        with cython.critical_section(self):
            g = find(self, as_weight(weight))
            return None if g < 0 else self.groups[g].leader

    def pick_of(self, weight, most):
        """Pick who comes first of a weight, and of those that follow with the same key.

        Return them, at most `most` and at least one; each has a key one higher then.
        """
        cdef int32_t run[LONGEST_STRETCH]
        cdef Py_ssize_t count = min(as_count(most), LONGEST_STRETCH)
        with cython.critical_section(self):
            g = find(self, as_weight(weight))
            if g < 0 or count == 0:
                return []
            count = self.equals(g, run, count)
            self.serve(g, run, count, 1)
            return [run[k] for k in range(count)]
