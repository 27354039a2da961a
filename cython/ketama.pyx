"""The consistent hash ring: look-ups in one cache line, changes in place.

Each instance has many points on a ring of 2**64 places (160 for each unit of weight); a
key belongs to the first point at or after its place. A point depends on its instance's name
and its own number alone, so who comes or goes moves only its own arcs.

Points are hashes, so they are spread evenly, and the ring is cut into n_buckets equal
ranges with 2.2 points each on average. A bucket is a *line* of 64 bytes:

    line b | place 0..4, ascending | owner 0..4, and of the first point after |
             unused: 2**64 - 1       unused: the owner of the first point after

A look-up counts the places of the line that are below the key's, and that many is which
owner to take: no branch, no search, one cache line, whether the point lies in this bucket or
beyond. Buckets of more than 5 points (one in 40) go on in overflow lines.

Inserting or removing a point rewrites its bucket, and where that bucket's first owner has
changed, the last owner of the lines before it: O(1) expected, whatever the size of the ring.
When the points have outgrown the buckets, or shrunk far below them, the ring is laid out
again: O(points), after as many changes, so O(1) a point amortised.

Invariants
- the lines of a bucket, in order, hold its points in ascending order of place;
  all but the last are full.
- owner[j] for j >= the points of a line is the owner of the next point clockwise, around the
  end to the beginning; on an empty ring there are no lines.
- the points on the ring are, for every index, the first counts[index] of its rule.

Sources: D. Karger et al. 1997, doi:10.1145/258533.258660; R. Jones, libketama, 2007 (points
by hashing NAME-NUMBER, many for each instance). The layout is ours.

Cost: pick 20 to 30 ns for a short key while the lines in use fit the cache, one miss beyond
that; 35 bytes a point; building 50 to 100 ns a point.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject

import numpy as np

from rota.ring import rule as rule_of

cimport cython

from rota.kernels.hash_picker cimport Changing, HashPicker, instance_at, walk_t
from rota.kernels.murmur3 cimport MOST_DIGITS, decimal, murmur3_x64_128
from rota.kernels.picker cimport given, lock, lock_t, unlock
from rota.kernels.splitmix64 cimport uint128

cdef extern from *:
    void prefetch "__builtin_prefetch"(const void* address, int rw) noexcept nogil

cdef enum:
    # Points for each bucket, in tenths: when laid out, and when to lay out again.
    POINTS_LAID_OUT = 22
    POINTS_MOST = 44
    POINTS_LEAST = 8
    BLOCK = 32   # look-ups in flight at once

cdef uint64_t NO_PLACE = 0xFFFFFFFFFFFFFFFF


@cython.final
@cython.no_gc_clear
cdef class ConsistentHash(HashPicker):
    """ConsistentHash(instances, weights=None, *, virtual_factor=160, weighted=True,
    points="murmur3", get_key=None, load_factor=None, replicas=None, name=None)

    A key's instance is the same in every process, on every machine, whoever else is there.

    Parameters
    ----------
    instances : sequence of any objects, length n
        The name of each on the ring: its `hash_key` or `address`, itself if it is a str or
        bytes, else what `name(instance)` gives. Names must differ.
    weights : integers, shape (n,), >= 0; None: all 1
    virtual_factor : integer >= 1
        Points for each unit of weight; for each instance, where not `weighted`.
    weighted : bool
    points : {"murmur3", "nginx", "libketama", "ring_hash"}
        Whose ring: rota's own, or that of a fleet to join (see rota.ring).
    get_key : callable (ctx, request) -> key, or None
        For `next` and `attempts`; None: the request is the key.
    load_factor : number >= 1, or None
        Let no instance have more than this multiple of its share of what is in flight.
    replicas : integer >= 0, or None
        How many instances besides the owner `attempts` may give; None: all.
    name : callable (instance) -> str or bytes, or None

    Raises
    ------
    TypeError, ValueError
        An argument is of no use, two names are equal, or the ring would have more than
        33,554,432 points.

    Notes
    -----
    pick O(1) expected; add, remove, set_weight O(points that come or go), amortised; build
    O(points); 35 bytes a point. Keys: str (its UTF-8), bytes and other buffers, int (8
    bytes, little-endian). Threads may share it.
    """

    def __cinit__(
        self, instances, weights=None, *, virtual_factor=160, weighted=True, points="murmur3",
        get_key=None, load_factor=None, replicas=None, name=None,
    ):
        self.rule = rule_of(points, virtual_factor, weighted)
        self.is_murmur = points == "murmur3"
        self.place_by_rule = None if self.is_murmur else self.rule.place
        self.options = {
            "virtual_factor": virtual_factor, "weighted": weighted, "points": points,
            "get_key": get_key, "load_factor": load_factor, "replicas": replicas,
            "name": name,
        }
        self.hold(instances, weights, get_key, load_factor, replicas, name)

    def __dealloc__(self):
        release(&self.ring)

    def pick(self, key):
        """Return the instance that owns `key`, None when nothing has weight. O(1) expected.

        Raises
        ------
        TypeError, ValueError
            `key` is no str, bytes, int or buffer; an int out of range; a lone surrogate.
        """
        cdef uint64_t place = 0
        cdef PyObject* instance
        cdef lock_t section
        self.place(key, &place)
        lock(&section, <PyObject*>self.slots)
        instance = instance_at(self, self.choose(place) if self.load_factor else self.owner(place))
        unlock(&section)
        return given(instance)

    def arcs(self):
        """Return the places of all points, ascending, and the name of the owner of each.

        Returns
        -------
        (places, names)
            uint64 array, shape (points,); list of bytes. The arc that ends at a point
            belongs to its owner. O(points).
        """
        cdef Py_ssize_t b, k = 0, line, j
        cdef uint64_t[::1] view
        cdef list names = []
        with Changing(self):  # a change would move what this goes through
            places = np.empty(self.ring.n_points, np.uint64)
            view = places
            for b in range(self.ring.n_buckets):
                line = b
                while True:
                    for j in range(self.ring.n_in_line[line]):
                        view[k] = self.ring.lines[line].place[j]
                        names.append(self.names[self.ring.lines[line].owner[j]])
                        k += 1
                    line = self.ring.next_line[line]
                    if line == 0:
                        break
        return places, names

    def __reduce__(self):
        return _rebuild, (self.present(), self.options)

    def _check(self, total, n_live):
        self.rule.check(total, n_live)

    # -- looking up ---------------------------------------------------------------------

    cdef int32_t owner(self, uint64_t place) noexcept nogil:
        cdef line_t* line
        cdef uint32_t more
        cdef int k
        if self.ring.n_points == 0:
            return -1
        more = <uint32_t>((<uint128>place * <uint128>self.ring.n_buckets) >> 64)
        while True:
            line = &self.ring.lines[more]
            k = ((line.place[0] < place) + (line.place[1] < place) + (line.place[2] < place)
                 + (line.place[3] < place) + (line.place[4] < place))
            if k < LINE:
                return line.owner[k]
            more = self.ring.next_line[more]
            if more == 0:
                return line.owner[LINE]

    cdef void look_up(self, const uint64_t* places, int32_t* out, Py_ssize_t count) noexcept nogil:
        cdef Py_ssize_t done = 0, block, k
        while done < count:
            block = min(count - done, BLOCK)
            for k in range(block):
                prefetch(&self.ring.lines[bucket_of(&self.ring, places[done + k])], 0)
            for k in range(block):
                out[done + k] = self.owner(places[done + k])
            done += block

    cdef walk_t begin(self, uint64_t place) noexcept nogil:
        cdef walk_t walk
        cdef Py_ssize_t line
        walk.at = walk.within = walk.n_done = 0
        walk.version = self.version
        if self.ring.n_points == 0:
            return walk
        line = bucket_of(&self.ring, place)
        while True:
            while walk.within < self.ring.n_in_line[line]:
                if self.ring.lines[line].place[walk.within] >= place:
                    walk.at = line
                    return walk
                walk.within += 1
            if self.ring.next_line[line] == 0:
                walk.at = line  # the step goes on from the end of this line
                return walk
            line = self.ring.next_line[line]
            walk.within = 0

    cdef int32_t step(self, walk_t* walk) noexcept nogil:
        cdef Py_ssize_t line = walk.at
        if walk.n_done == self.ring.n_points:
            return -1
        while walk.within >= self.ring.n_in_line[line]:
            if self.ring.next_line[line]:
                line = self.ring.next_line[line]
            else:
                # The bucket after this line's: found by the last place in it, or its number.
                line = bucket_after(&self.ring, line)
            walk.within = 0
        walk.at = line
        walk.within += 1
        walk.n_done += 1
        return self.ring.lines[line].owner[walk.within - 1]

    # -- changing -----------------------------------------------------------------------

    cdef int follow(self, list indices) except -1:
        cdef list wanted
        cdef Py_ssize_t i, more = 0, growth = 0
        self.names = self.roster.names
        if self.counts is None:
            self.counts = []
        if len(self.counts) < self.n:
            self.counts += [0] * (self.n - len(self.counts))
        if self.rule.counts_are_own:
            counts = self.rule.counts(
                [self.weight[i] for i in indices], [self.names[i] for i in indices]
            )
            wanted = list(zip(indices, counts))
        else:
            wanted = list(enumerate(self.rule.counts(self.roster.weights.tolist(), self.names)))
        wanted = [(i, count) for i, count in wanted if count != self.counts[i]]
        for i, count in wanted:
            more += count - self.counts[i]
            growth += max(count - self.counts[i], 0)
        if self.ring.n_points == 0:
            return self.build(wanted, more)
        self.make_room(more, growth)
        # Who shrinks first, so that no bucket holds more than it will in the end.
        for i, count in sorted(wanted, key=lambda pair: pair[1] > self.counts[pair[0]]):
            self.resize(i, count)
        if self.ring.n_buckets > 1 and self.ring.n_points * 10 < POINTS_LEAST * self.ring.n_buckets:
            self.lay_out_again(self.ring.n_points)
        return 0

    cdef int build(self, list wanted, Py_ssize_t n) except -1:
        """Lay out an empty ring's first n points; `wanted` holds (index, points)."""
        cdef point_t* points = <point_t*>PyMem_Malloc(max(n, 1) * sizeof(point_t))
        cdef uint64_t* places
        cdef Py_ssize_t i, k, count, done = 0
        if points == NULL:
            raise MemoryError
        try:
            for i, count in wanted:
                places = self.places_of(self.names[i], 0, count)
                for k in range(count):
                    points[done + k].place = places[k]
                    points[done + k].index = i
                PyMem_Free(places)
                done += count
            self.lay_out(points, n, n, False)
        finally:
            PyMem_Free(points)
        for i, count in wanted:
            self.counts[i] = count
        return 0

    cdef int resize(self, Py_ssize_t index, Py_ssize_t count) except -1:
        """Give an index its first `count` points, no more and no fewer. There is room."""
        cdef Py_ssize_t have = self.counts[index], first = min(have, count), k, b
        cdef Py_ssize_t done = 0
        cdef Py_ssize_t n = max(have, count) - first
        cdef uint64_t* places = self.places_of(self.names[index], first, first + n)
        if self.ring.n_buckets > BLOCK:
            for k in range(n):
                b = bucket_of(&self.ring, places[k])
                prefetch(&self.ring.lines[b], 1)
                prefetch(&self.ring.next_line[b], 0)
                prefetch(&self.ring.n_in_line[b], 1)
        try:
            while done < n:
                # The last points go first: what stays is always the first so many.
                if count > have:
                    self.insert(places[done], index)
                else:
                    self.erase(places[n - 1 - done], index)
                done += 1
        finally:
            self.counts[index] = have + done if count > have else have - done
            PyMem_Free(places)
        return 0

    cdef int make_room(self, Py_ssize_t more, Py_ssize_t growth) except -1:
        """See that `growth` points can be inserted without running out of lines.

        There will be `more` points in the end than now: others leave.
        """
        cdef Py_ssize_t n = self.ring.n_points + max(more, 0)
        if n * 10 > POINTS_MOST * self.ring.n_buckets:
            self.lay_out_again(n)
        # A point makes one line at the most.
        if self.ring.n_lines + growth > self.ring.capacity:
            self.reserve(self.ring.n_lines + growth + self.ring.n_buckets // 16)
        return 0

    cdef int lay_out_again(self, Py_ssize_t target) except -1:
        cdef point_t* points = <point_t*>PyMem_Malloc(max(self.ring.n_points, 1) * sizeof(point_t))
        cdef Py_ssize_t b, line, j, k = 0
        if points == NULL:
            raise MemoryError
        for b in range(self.ring.n_buckets):
            line = b
            while True:
                for j in range(self.ring.n_in_line[line]):
                    points[k].place = self.ring.lines[line].place[j]
                    points[k].index = self.ring.lines[line].owner[j]
                    k += 1
                line = self.ring.next_line[line]
                if line == 0:
                    break
        try:
            self.lay_out(points, k, target, True)
        finally:
            PyMem_Free(points)
        return 0

    cdef int lay_out(self, point_t* points, Py_ssize_t n, Py_ssize_t target, bint sorted) except -1:
        """Replace the ring by these n points, in buckets for `target` of them."""
        cdef Py_ssize_t n_buckets = max(target * 10 // POINTS_LAID_OUT, 1), k, b, first, last
        cdef Py_ssize_t n_lines = n_buckets, n_in
        cdef uint32_t* ends = <uint32_t*>PyMem_Calloc(n_buckets + 1, sizeof(uint32_t))
        cdef point_t* ordered = NULL
        cdef point_t moved
        cdef ring_t ring
        try:
            if not sorted:
                ordered = <point_t*>PyMem_Malloc(max(n, 1) * sizeof(point_t))
            if ends == NULL or (not sorted and ordered == NULL):
                raise MemoryError
            # Into buckets by counting, and in order within each (a few points) by insertion.
            for k in range(n):
                ends[bucket_in(points[k].place, n_buckets) + 1] += 1
            for b in range(n_buckets):
                n_in = ends[b + 1]
                n_lines += (n_in - 1) // LINE if n_in > LINE else 0
                ends[b + 1] += ends[b]
            if not sorted:
                for k in range(n - 1, -1, -1):
                    b = bucket_in(points[k].place, n_buckets) + 1
                    ends[b] -= 1
                    ordered[ends[b]] = points[k]
                # ends[b + 1] is now where bucket b begins
                for b in range(n_buckets):
                    first = ends[b + 1]
                    last = ends[b + 2] if b + 2 <= n_buckets else n
                    for k in range(first + 1, last):
                        moved = ordered[k]
                        b_insert(self, ordered, first, k, moved)
                points = ordered
            empty(&ring, n_buckets, n_lines)
            ring.n_points = n
            first = 0
            for b in range(n_buckets):
                last = first
                while last < n and bucket_in(points[last].place, n_buckets) == b:
                    last += 1
                write_bucket(&ring, b, points + first, last - first)
                first = last
            link(&ring, points, n)
            self.replace(&ring)
        finally:
            PyMem_Free(ends)
            PyMem_Free(ordered)
        return 0

    cdef int reserve(self, Py_ssize_t capacity) except -1:
        """Take memory for more overflow lines."""
        cdef ring_t ring = self.ring
        cdef Py_ssize_t n = ring.n_lines
        take_lines(&ring, capacity)
        memcpy(ring.lines, self.ring.lines, n * sizeof(line_t))
        memcpy(ring.next_line, self.ring.next_line, n * sizeof(uint32_t))
        memcpy(ring.n_in_line, self.ring.n_in_line, n)
        self.replace(&ring)
        return 0

    cdef void replace(self, ring_t* ring) noexcept:
        """Put another ring in the place of the one there is, and free that."""
        cdef ring_t old = self.ring
        cdef lock_t section
        lock(&section, <PyObject*>self.slots)
        self.ring = ring[0]
        self.version += 1
        unlock(&section)
        release(&old)

    cdef int insert(self, uint64_t place, int32_t index) except -1:
        cdef ring_t* ring = &self.ring
        cdef Py_ssize_t b = bucket_of(ring, place), n = gather(ring, b, NULL)
        cdef point_t few[32]
        cdef point_t* points = few
        cdef point_t point
        cdef lock_t section
        if n >= 32:
            points = <point_t*>PyMem_Malloc((n + 1) * sizeof(point_t))
            if points == NULL:
                raise MemoryError
        gather(ring, b, points)
        point.place = place
        point.index = index
        b_insert(self, points, 0, n, point)
        lock(&section, <PyObject*>self.slots)
        write_bucket(ring, b, points, n + 1)
        ring.n_points += 1
        relink(ring, b)
        self.version += 1
        unlock(&section)
        if points != few:
            PyMem_Free(points)
        return 0

    cdef int erase(self, uint64_t place, int32_t index) except -1:
        cdef ring_t* ring = &self.ring
        cdef Py_ssize_t b = bucket_of(ring, place), n = gather(ring, b, NULL), k = 0
        cdef point_t few[32]
        cdef point_t* points = few
        cdef lock_t section
        if n > 32:
            points = <point_t*>PyMem_Malloc(n * sizeof(point_t))
            if points == NULL:
                raise MemoryError
        gather(ring, b, points)
        while k < n and (points[k].place != place or points[k].index != index):
            k += 1
        if k == n:
            if points != few:
                PyMem_Free(points)
            raise RuntimeError(f"the ring has no point of index {index} at {place}")
        for k in range(k, n - 1):
            points[k] = points[k + 1]
        lock(&section, <PyObject*>self.slots)
        write_bucket(ring, b, points, n - 1)
        ring.n_points -= 1
        relink(ring, b)
        self.version += 1
        unlock(&section)
        if points != few:
            PyMem_Free(points)
        return 0

    cdef uint64_t* places_of(self, bytes name, Py_ssize_t first, Py_ssize_t last) except? NULL:
        """Return a new array of the places of an instance's points first..last - 1."""
        cdef Py_ssize_t n = last - first, length = PyBytes_GET_SIZE(name), k, end
        cdef uint64_t* places = <uint64_t*>PyMem_Malloc(max(n, 1) * sizeof(uint64_t))
        cdef uint8_t* text
        cdef const uint64_t[::1] made
        if places == NULL:
            raise MemoryError
        if not self.is_murmur:
            try:
                made = np.ascontiguousarray(self.rule.places(name, first, last), np.uint64)
            except BaseException:
                PyMem_Free(places)
                raise
            for k in range(n):
                places[k] = made[k]
            return places
        text = <uint8_t*>PyMem_Malloc(length + 1 + MOST_DIGITS)
        if text == NULL:
            PyMem_Free(places)
            raise MemoryError
        memcpy(text, PyBytes_AS_STRING(name), length)
        text[length] = c"-"
        for k in range(n):
            end = length + 1 + decimal(text + length + 1, first + k)
            places[k] = murmur3_x64_128(text, end, 0).low
        PyMem_Free(text)
        return places


cdef inline Py_ssize_t bucket_in(uint64_t place, Py_ssize_t n_buckets) noexcept nogil:
    return <Py_ssize_t>((<uint128>place * <uint128>n_buckets) >> 64)


cdef inline Py_ssize_t bucket_of(ring_t* ring, uint64_t place) noexcept nogil:
    return bucket_in(place, ring.n_buckets)


cdef Py_ssize_t bucket_after(ring_t* ring, Py_ssize_t line) noexcept nogil:
    """Return the bucket after the one that a line belongs to."""
    cdef Py_ssize_t b = line
    if line >= ring.n_buckets:
        b = bucket_of(ring, ring.lines[line].place[0])
    return b + 1 if b + 1 < ring.n_buckets else 0


cdef line_t* aligned(void* memory) noexcept nogil:
    return <line_t*>((<size_t>memory + sizeof(line_t) - 1) & ~<size_t>(sizeof(line_t) - 1))


cdef int take_lines(ring_t* ring, Py_ssize_t capacity) except -1:
    """Give a ring memory for so many lines, whatever it had before; the rest stays."""
    cdef void* memory = PyMem_Malloc((capacity + 1) * sizeof(line_t))
    cdef uint32_t* next_line = <uint32_t*>PyMem_Calloc(capacity, sizeof(uint32_t))
    cdef uint8_t* n_in_line = <uint8_t*>PyMem_Calloc(capacity, 1)
    if memory == NULL or next_line == NULL or n_in_line == NULL:
        PyMem_Free(memory)
        PyMem_Free(next_line)
        PyMem_Free(n_in_line)
        raise MemoryError
    ring.memory = memory
    ring.lines = aligned(memory)
    ring.next_line = next_line
    ring.n_in_line = n_in_line
    ring.capacity = capacity
    return 0


cdef int empty(ring_t* ring, Py_ssize_t n_buckets, Py_ssize_t n_lines) except -1:
    """Make a new ring without points, with memory for n_lines lines and some more."""
    cdef Py_ssize_t line
    take_lines(ring, n_lines + n_buckets // 16 + 16)
    ring.n_buckets = ring.n_lines = n_buckets
    ring.free_line = 0
    ring.n_points = 0
    for line in range(n_buckets):
        clear(&ring.lines[line])
    return 0


cdef void release(ring_t* ring) noexcept:
    PyMem_Free(ring.memory)
    PyMem_Free(ring.next_line)
    PyMem_Free(ring.n_in_line)


cdef void clear(line_t* line) noexcept nogil:
    cdef int j
    for j in range(LINE):
        line.place[j] = NO_PLACE
        line.owner[j] = -1
    line.owner[LINE] = -1


cdef bint precedes(ConsistentHash picker, uint64_t place, int32_t index, uint64_t other_place,
                   int32_t other) noexcept:
    """Whether a point stands before another: by place; on one place by name.

    The fleets that others' rings are of go by the order of their lists instead.
    """
    if place != other_place:
        return place < other_place
    if picker.is_murmur:
        return picker.names[index] < picker.names[other]
    return index < other


cdef void b_insert(ConsistentHash picker, point_t* points, Py_ssize_t first, Py_ssize_t k,
                   point_t point) noexcept:
    """Put `point`, which stands at k, in order among points[first:k]."""
    while k > first and precedes(picker, point.place, point.index, points[k - 1].place,
                                 points[k - 1].index):
        points[k] = points[k - 1]
        k -= 1
    points[k] = point


cdef uint32_t new_line(ring_t* ring) noexcept nogil:
    """Return an overflow line, empty; there is room for it."""
    cdef uint32_t line = ring.free_line
    if line:
        ring.free_line = ring.next_line[line]
    else:
        line = <uint32_t>ring.n_lines
        ring.n_lines += 1
    clear(&ring.lines[line])
    ring.next_line[line] = 0
    ring.n_in_line[line] = 0
    return line


cdef void write_bucket(ring_t* ring, Py_ssize_t b, const point_t* points,
                       Py_ssize_t n) noexcept nogil:
    """Make these n points, in order, the bucket's; the owners after its last one not yet."""
    cdef Py_ssize_t line = b, done = 0, here, j
    cdef uint32_t spare
    while True:
        here = min(n - done, LINE)
        for j in range(here):
            ring.lines[line].place[j] = points[done + j].place
            ring.lines[line].owner[j] = points[done + j].index
        for j in range(here, LINE):
            ring.lines[line].place[j] = NO_PLACE
        ring.n_in_line[line] = <uint8_t>here
        done += here
        if done == n:
            break
        if ring.next_line[line] == 0:
            spare = new_line(ring)
            ring.next_line[line] = spare
        ring.lines[line].owner[LINE] = points[done].index
        line = ring.next_line[line]
    spare = ring.next_line[line]
    ring.next_line[line] = 0
    while spare:
        j = ring.next_line[spare]
        ring.next_line[spare] = ring.free_line
        ring.free_line = spare
        spare = <uint32_t>j


cdef Py_ssize_t last_line(ring_t* ring, Py_ssize_t b) noexcept nogil:
    while ring.next_line[b]:
        b = ring.next_line[b]
    return b


cdef void point_to(ring_t* ring, Py_ssize_t line, int32_t owner) noexcept nogil:
    """Say whose the first point after a line is."""
    cdef Py_ssize_t j
    for j in range(ring.n_in_line[line], LINE + 1):
        ring.lines[line].owner[j] = owner


cdef void link(ring_t* ring, const point_t* points, Py_ssize_t n) noexcept nogil:
    """Say in every bucket whose the first point after it is, from the last one backwards."""
    cdef Py_ssize_t b
    cdef int32_t after
    if n == 0:
        return
    after = points[0].index
    for b in range(ring.n_buckets - 1, -1, -1):
        point_to(ring, last_line(ring, b), after)
        if ring.n_in_line[b]:
            after = ring.lines[b].owner[0]


cdef void relink(ring_t* ring, Py_ssize_t b) noexcept nogil:
    """Bucket b was rewritten: mend whose the points after it, and before it, lead to."""
    cdef Py_ssize_t other = b, line
    cdef int32_t owner
    if ring.n_points == 0:
        return
    while True:
        other = other + 1 if other + 1 < ring.n_buckets else 0
        if ring.n_in_line[other]:
            break
    owner = ring.lines[other].owner[0]
    point_to(ring, last_line(ring, b), owner)
    if ring.n_in_line[b]:
        owner = ring.lines[b].owner[0]
    other = b
    while True:
        other = other - 1 if other else ring.n_buckets - 1
        if other == b:
            break
        line = last_line(ring, other)
        if ring.lines[line].owner[LINE] == owner:
            break
        point_to(ring, line, owner)
        if ring.n_in_line[other]:
            break


cdef Py_ssize_t gather(ring_t* ring, Py_ssize_t b, point_t* out) noexcept nogil:
    """Copy a bucket's points, in order, to `out` unless that is NULL; return how many."""
    cdef Py_ssize_t n = 0, j, line = b
    while True:
        for j in range(ring.n_in_line[line]):
            if out != NULL:
                out[n].place = ring.lines[line].place[j]
                out[n].index = ring.lines[line].owner[j]
            n += 1
        line = ring.next_line[line]
        if line == 0:
            return n


def _rebuild(present, options):
    """Make the ring that `__reduce__` described."""
    instances, weights = present
    return ConsistentHash(instances, weights, **options)
