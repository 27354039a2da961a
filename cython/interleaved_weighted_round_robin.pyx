"""Interleaved weighted round robin: Kitex's two queues, moved a run at a time.

Kitex's rule: take the head of the `current` queue and lower its remainder by the gcd of
all weights; while something remains, it goes to the back of `current`, else its remainder
is its weight again and it goes to the back of `next`; when `current` is empty the two
change places and a new round begins. Weights 3, 3, 4 give  0 1 2 0 1 2 0 1 2 2  and begin
again.

Each queue is an array. `current` is gone through in passes. Nobody joins it in the middle
of a round, so all in it have had the same: instead of a remainder each, there is one
`level`, the divisor times the number of the pass, and who has reached its `goal` (its
weight as the round began) goes to the back of `next`. Who has not stays, and keeps its slot
but where others before it have left.

    current   | . | 4 | 1 | . | 0 | 2 | 3 |        . is free
                    ^ first         ^ head  ^ length
                            ^ kept
    next      | 5 | - | 6 |                        - is a gap: it was drained
                            ^ n_waiting

In this pass 4 and 1 were picked and stay, 0 was picked last and left, 2 and 3 are to come;
the next pass is [first, kept).

`refill` moves nothing: it copies the next indices of the pass into `run`. What a pick does
to the queues is done for the whole run when it is used up, or, as far as it was picked,
before somebody comes or is drained (`settle`). The last passes, of a heavy few, are copied
as often as all of them stay. And a round of all that goes lightest first, as every round
does after one without a change, ends as it began: a short one stays in `run`, and nothing
is moved at all.

Changes. Who is drained leaves a gap, and gaps are stepped over; who comes, or has weight
again, goes to the back of `next`; a new weight is the goal of who waits in `next`, and else
counts from the next round. A round keeps its divisor, the gcd of the weights as it begins.
`common` divides all weights at any time. It is lowered with each new one; when one goes,
the gcd may be greater than that, and is looked for when the next round begins, until the
weights looked at have no greater one than `common`.

Invariants
- An instance with weight stands in one slot, its `place`; one without in none.
- first <= kept <= head <= length; each goal in `current` is a multiple of `divisor`, and
  not below `level`, or in [first, kept) above it.
- Who waits in `next` has its weight as its goal.
- A run is laps of `lap_length` indices: whole rounds, or passes of which nobody leaves but
  in the last, or one stretch. One of whole rounds is dropped when it has been settled.
- Gaps would fill `next` if the same one came and went for ever. While more slots than
  `capacity` are in use, each newcomer moves four more to the front (`sweep`). A sweep that
  begins with s slots is over after s / 3 newcomers, and leaves capacity + s / 3 at most in
  use: so s stays within 3/2 capacity, and the slots in use within 2 capacity.

Cost: a pick is O(1), a run no longer than 1,024 (3 us); set_weight, add and remove are O(1). Each
gap is stepped over once (1 ns), by the pick that comes to it. The first pick of a round
after a change looks for the gcd: a few weights; at worst, where all but that one have a
greater divisor, all of them (5 ns each, and a round has n picks or more). Building is O(n);
4 KiB, and 49 bytes an instance.

Source: Kitex, pkg/loadbalance/interleaved_weighted_round_robin.go (CloudWeGo, 2024). The
order is bursty: after the first round it goes lightest first, and the heaviest comes many
times in a row at the end of a round. Take `WeightedRoundRobin` for an even spread.
"""

from libc.stdint cimport int32_t, int64_t

from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Realloc

from rota.arguments import as_index, as_uint64

cimport cython

from rota.kernels.picker cimport AHEAD, LONGEST_RUN, Picker, prefetch, take

cdef enum:
    MARGIN = 8   # slots, for what the bound above rounds off
    STEPS = 4    # of the sweep


cdef int64_t MOST_WEIGHT = 0x7FFFFFFFFFFFFFFF


cdef int64_t gcd(int64_t a, int64_t b) noexcept nogil:
    while b:
        a, b = b, a % b
    return a


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
    Each instance comes exactly w / gcd times in each round of W / gcd picks. A new weight
    counts from the instance's next round, weight 0 at once, a newcomer from the next round.
    pick O(1); set_weight, add, remove O(1); build O(n); 4 KiB, and 49 bytes an instance. Any
    number of threads may share it. The order is Kitex's.
    """

    def __cinit__(self, instances, weights=None, *, seed=None, start=None):
        self.hold(instances, weights, seed)
        self.rotate(start)
        self.run = <int32_t*>PyMem_Calloc(LONGEST_RUN + AHEAD, sizeof(int32_t))
        if self.run == NULL:
            raise MemoryError
        self.resize(self.capacity)
        self.begin()
        self.is_made(seed)

    def __dealloc__(self):
        PyMem_Free(self.nodes)
        PyMem_Free(self.queues[0])
        PyMem_Free(self.queues[1])
        PyMem_Free(self.run)

    def pick(self):
        """Return the next instance, or None when nothing has weight. O(1)."""
        return take(self)

    cdef int resize(self, Py_ssize_t capacity) except -1:
        cdef void* larger = PyMem_Realloc(self.nodes, max(capacity, 1) * sizeof(node_t))
        cdef Py_ssize_t k
        if larger == NULL:
            raise MemoryError
        self.nodes = <node_t*>larger
        for k in range(2):
            larger = PyMem_Realloc(self.queues[k], (2 * capacity + MARGIN) * sizeof(int32_t))
            if larger == NULL:
                raise MemoryError
            self.queues[k] = <int32_t*>larger
        return 0

    cdef int begin(self) except -1:
        cdef Py_ssize_t k, i
        self.clear()
        for k in range(self.n):
            i = self.start + k
            if i >= self.n:
                i -= self.n
            if self.weight[i]:
                self.await_next(i)
        self.common = self.n_live > 0
        self.may_be_greater = True
        self.find_common()
        return 0

    cdef void clear(self) noexcept nogil:
        """Empty both queues."""
        self.drop_run()
        self.head = self.first = self.kept = self.length = 0
        self.n_waiting = self.swept = self.swept_to = 0

    cdef void drop_run(self) noexcept nogil:
        """Forget what of the run was not picked."""
        self.forget_run()
        self.moved = NULL
        self.is_whole_rounds = False

    # -- picks --------------------------------------------------------------------------

    cdef void refill(self) noexcept nogil:
        cdef int32_t* run = self.run
        cdef const int32_t* queue
        cdef Py_ssize_t slot, stop, k, count = 0
        if self.is_whole_rounds and 2 * (self.end - run) > LONGEST_RUN:
            # No longer one is to be had.
            self.cursor = self.moved = run
            return
        self.settle()
        self.is_whole_rounds = False
        if self.n_live == 0:
            return
        self.find_head()
        queue = self.queues[self.which]
        stop = min(self.length, self.head + self.run_length)
        for slot in range(self.head, stop):
            run[count] = queue[slot]
            count += queue[slot] >= 0
        run[count] = 0  # not a gap: `pick` looks ahead
        if self.is_large:
            for k in range(count):
                prefetch(&self.nodes[run[k]], 1)
            k = count
            for slot in range(stop, min(self.length, stop + AHEAD)):
                if queue[slot] >= 0:
                    run[k] = queue[slot]
                    k += 1
        self.lap_length = count
        if stop == self.length and self.kept == self.first:
            count = self.repeat(count, self.run_length)
        self.cursor = self.moved = run
        self.end = run + count
        self.lengthen_run()

    cdef Py_ssize_t repeat(self, Py_ssize_t count, Py_ssize_t longest) noexcept nogil:
        """Go on with a run that is all of `current`, as long as that is simple; its length."""
        cdef int32_t* run = self.run
        cdef Py_ssize_t length = count, first = 0, k
        cdef int64_t goal, fewest = MOST_WEIGHT, previous = 0, level = self.level
        cdef bint repeats = (
            count == self.n_live and self.total // self.common <= longest
            and self.divisor == self.common == level and not self.may_be_greater
        )
        if not repeats and 2 * count > longest:
            return count
        for k in range(count):
            goal = self.nodes[run[k]].goal
            repeats = repeats and goal == self.weight[run[k]] and goal >= previous
            fewest = min(fewest, goal)
            previous = goal
        if repeats:
            # The round begins, and goes lightest first: so will all to come. A pass is the
            # rest of the first one.
            while True:
                while first < count and self.nodes[run[first]].goal <= level:
                    first += 1
                if first == count:
                    break
                level += self.divisor
                for k in range(first, count):
                    run[length] = run[k]
                    length += 1
            self.is_whole_rounds = True
            self.lap_length = count = length
            length *= longest // count
        else:
            length *= min((fewest - level) // self.divisor + 1, longest // count)
        for k in range(count, length):
            run[k] = run[k - count]
        return length

    cdef void settle(self) noexcept nogil:
        """Move those of the run that were picked."""
        cdef node_t* node
        cdef const int32_t* moved = self.moved
        cdef const int32_t* cursor = self.cursor
        cdef Py_ssize_t slot, head = self.head, first = self.first, kept = self.kept
        cdef Py_ssize_t laps
        cdef int64_t level = self.level
        if moved == self.run and cursor - moved > self.lap_length:
            # A lap ends as it began, but for the level. Only the last is walked: after it
            # there may be others in `current`.
            laps = (cursor - moved - 1) // self.lap_length
            moved += laps * self.lap_length
            if not self.is_whole_rounds:
                level += laps * self.divisor
        while moved != cursor:
            node = &self.nodes[moved[0]]
            slot = node.place >> 1
            if slot < head:
                # The next pass: of those that were kept, no more than were gone through.
                self.length = kept
                level += self.divisor
                kept = first
            head = slot + 1
            if node.goal <= level:
                if kept == first:
                    first = kept = head
                self.await_next(moved[0])
            else:
                if kept != slot:
                    self.queues[self.which][kept] = moved[0]
                    node.place = 2 * kept + self.which
                kept += 1
            moved += 1
        self.moved = cursor
        self.level = level
        self.head = head
        self.first = first
        self.kept = kept

    cdef void await_next(self, int32_t i) noexcept nogil:
        """Put i at the back of `next`."""
        self.nodes[i].goal = self.weight[i]
        self.nodes[i].place = 2 * self.n_waiting + (1 - self.which)
        self.queues[1 - self.which][self.n_waiting] = i
        self.n_waiting += 1
        if self.n_waiting > self.capacity:
            self.sweep()

    cdef void sweep(self) noexcept nogil:
        """Take some steps more to close the gaps of `next`."""
        cdef int32_t* queue = self.queues[1 - self.which]
        cdef int32_t i
        cdef Py_ssize_t _step
        for _step in range(STEPS):
            if self.swept == self.n_waiting:
                self.n_waiting = self.swept_to
                self.swept = self.swept_to = 0
                return
            i = queue[self.swept]
            queue[self.swept] = -1
            self.swept += 1
            if i >= 0:
                queue[self.swept_to] = i
                self.nodes[i].place = 2 * self.swept_to + (1 - self.which)
                self.swept_to += 1

    cdef void begin_round(self) noexcept nogil:
        """Let the two queues change places."""
        self.which = 1 - self.which
        self.length = self.n_waiting
        self.head = self.first = self.kept = 0
        self.n_waiting = self.swept = self.swept_to = 0
        self.find_common()
        self.divisor = self.level = self.common

    cdef void find_head(self) noexcept nogil:
        """Put `head` before the next instance; there is one."""
        while True:
            while self.head < self.length:
                if self.queues[self.which][self.head] >= 0:
                    return
                self.head += 1
            if self.kept > self.first:
                self.length = self.kept
                self.head = self.kept = self.first
                self.level += self.divisor
            else:
                self.begin_round()

    cdef void find_common(self) noexcept nogil:
        """Make `common` the greatest common divisor of the weights."""
        cdef int64_t found, smaller
        cdef Py_ssize_t i
        if not self.may_be_greater:
            return
        self.may_be_greater = False
        # Who made it small is likely to do so again.
        found = self.weight[self.witness] if self.witness < self.n else 0
        for i in range(self.n):
            if found == self.common:
                return
            if self.weight[i] != found:
                smaller = gcd(self.weight[i], found)
                if smaller != found:
                    self.witness = i
                    found = smaller
        self.common = found

    # -- changes ------------------------------------------------------------------------

    cdef void fetch(self, Py_ssize_t i) noexcept nogil:
        prefetch(&self.nodes[i], 1)
        prefetch(&self.weight[i], 1)

    cdef void reweigh(self, Py_ssize_t i, int64_t weight) noexcept nogil:
        cdef int64_t old = self.weight[i]
        cdef node_t* node = &self.nodes[i]
        if self.is_whole_rounds or not old or not weight:
            self.settle()
            if self.is_whole_rounds or (not weight and node.place & 1 == self.which):
                self.drop_run()
        self.note(i, weight)
        if not old:
            self.await_next(i)
        elif not weight:
            self.queues[node.place & 1][node.place >> 1] = -1
        else:
            # Who was picked for the last time, but is not moved yet, takes its goal from
            # its weight when it is. No branch: where i is, nothing foretells.
            node.goal = node.goal if node.place & 1 == self.which else weight
        self.may_be_greater = self.may_be_greater or old > 0
        if weight and self.common != 1:
            weight = gcd(weight, self.common)
            if weight != self.common:
                self.common = weight
                self.witness = i
        if self.n_live == 0:
            self.common = 0
            self.may_be_greater = False

    # -- copies -------------------------------------------------------------------------

    cdef object state(self):
        """Return (divisor, the indices in `current`, their remainders, those in `next`)."""
        cdef list current = [], remainders = [], waiting = []
        cdef const int32_t* queue
        cdef Py_ssize_t slot
        self.settle()
        if self.is_whole_rounds:
            self.drop_run()  # such a run is settled once only
        queue = self.queues[self.which]
        for slot in range(self.head, self.length):
            if queue[slot] >= 0:
                current.append(queue[slot])
                remainders.append(self.nodes[queue[slot]].goal - self.level + self.divisor)
        for slot in range(self.first, self.kept):
            if queue[slot] >= 0:
                current.append(queue[slot])
                remainders.append(self.nodes[queue[slot]].goal - self.level)
        queue = self.queues[1 - self.which]
        for slot in range(self.n_waiting):
            if queue[slot] >= 0:
                waiting.append(queue[slot])
        return self.divisor, current, remainders, waiting

    cdef int restore(self, state) except -1:
        cdef int64_t divisor, remainder
        cdef Py_ssize_t k
        cdef int32_t i
        cdef list current, remainders, waiting
        if not isinstance(state, tuple) or len(state) != 4:
            raise ValueError(f"state must be of four parts, got {state!r}")
        divisor = state[0]
        current = [as_index(index, self.n) for index in state[1]]
        remainders = [as_uint64("state", turns) for turns in state[2]]
        waiting = [as_index(index, self.n) for index in state[3]]
        if (len(set(current + waiting)) != len(current) + len(waiting)
                or len(remainders) != len(current) or not 0 <= divisor
                or not all(0 < turns <= MOST_WEIGHT and divisor and turns % divisor == 0
                           for turns in remainders)):
            raise ValueError(f"state must be a round and two queues, got {state!r}")
        # What is above may have run anything; what is below is plain C.
        for k in range(len(current) + len(waiting)):
            i = current[k] if k < len(current) else waiting[k - len(current)]
            if self.weight[i] == 0:
                break
        else:
            k = len(current) + len(waiting)
        if k != self.n_live or k != len(current) + len(waiting):
            raise ValueError(f"state must have all that have weight, got {state!r}")
        self.clear()
        self.divisor = self.level = divisor
        for k in range(len(current)):
            i = current[k]
            remainder = remainders[k]
            self.queues[self.which][k] = i
            self.nodes[i].place = 2 * k + self.which
            self.nodes[i].goal = remainder
        self.length = len(current)
        for k in range(len(waiting)):
            self.await_next(waiting[k])
        return 0
