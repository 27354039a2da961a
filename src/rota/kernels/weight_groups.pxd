"""Instances by weight, each weight a queue: for the kernels of this package.

See weight_groups.pyx. Pick with `picker_index`.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t

from rota.kernels.picker cimport AHEAD, Picker
from rota.kernels.splitmix64 cimport int128

cdef enum:
    LONGEST_STRETCH = 96
    LONGEST_TABLE = 65536   # slots of 4 bytes: 256 KiB
    LAST_RANK = 0x7FFFFFFF

cdef struct node_t:
    int128 key          # when it is next: the least comes first. Without weight: its credit
    int32_t next        # in the chain; in the heap: its place there
    int32_t prev        # in the chain; IN_HEAP
    int32_t group       # -1 without weight
    int32_t ahead       # one that comes some picks later, as a rule: to be fetched

# One of a heap, with what it is compared by: its node is elsewhere in memory.
cdef struct stranger_t:
    int128 key
    int32_t rank
    int32_t index

cdef struct group_t:
    int64_t weight      # 0: an id that is free
    int128 led          # for the algorithm's own use
    int32_t leader      # who comes first of all members, -1 when there are none
    int32_t head        # of the chain, a ring of nodes in order; -1
    int32_t n_members
    int32_t n_heap
    int32_t heap_capacity
    int32_t place       # for the algorithm's own use
    stranger_t* heap    # those who came out of order: four children each, the least on top

cdef struct mark_t:
    int128 key          # of the leader, when the walk began
    int32_t leader

cdef class WeightGroups(Picker):
    cdef node_t* nodes           # by index
    cdef int32_t* rank           # by index, place in the list: decides between equal keys
    cdef group_t* groups         # by id
    cdef int32_t n_groups        # in use
    cdef int32_t n_ids           # given out
    cdef int32_t free_id         # a list through `place`, -1 at its end
    cdef int32_t group_capacity
    cdef int32_t* buckets        # ids by weight, open addressing; -1
    cdef Py_ssize_t n_buckets    # a power of two, at least twice the ids
    cdef int32_t next_rank
    cdef Py_ssize_t n_strangers  # in heaps
    cdef int64_t divisor         # gcd of the weights; 0: to be found
    cdef int32_t stretch[LONGEST_STRETCH + AHEAD]   # the run, where no table is walked
    cdef const int32_t* run      # where the current run began, or NULL
    cdef int32_t run_group       # whose members it is of
    cdef bint is_walking         # the run is of the table
    cdef bint was_looked_at      # whether a table would do, since the last change
    cdef bint is_turning         # since the walk began, each pick went behind the tail
    cdef Py_ssize_t lap          # picks in a period, of the table
    cdef mark_t* marks           # by id
    cdef void* entries           # for `lay_out`

    # What the algorithms use.
    cdef void join(self, Py_ssize_t i, int64_t weight, int128 credit) noexcept nogil
    cdef int128 leave(self, Py_ssize_t i) noexcept nogil
    cdef void serve(
        self, int32_t g, const int32_t* run, Py_ssize_t count, int128 turn
    ) noexcept nogil
    cdef bint has_equals(self, int32_t g) noexcept nogil
    cdef Py_ssize_t equals(self, int32_t g, int32_t* out, Py_ssize_t most) noexcept nogil
    cdef void choose(self, int32_t g) noexcept nogil
    cdef int128 credit(self, Py_ssize_t i) noexcept nogil
    cdef int64_t common_divisor(self) noexcept nogil
    cdef int room_to_lay_out(self, Py_ssize_t count) except -1
    cdef int lay_out(self) except -1
    cdef int renumber(self) except -1
    cdef void count(self, Py_ssize_t picks) noexcept nogil
    cdef void rest(self) noexcept nogil
    cdef bint begin_walk(self) noexcept nogil
    cdef bint is_back(self) noexcept nogil
    cdef void replay(self, Py_ssize_t picks) noexcept nogil
    cdef void settle(self) noexcept nogil
    cdef list picked(self)
    cdef list order(self)
    cdef int take_order(self, list indices) except -1

    # What each of them gives.
    cdef int reserve_groups(self, int32_t capacity) except -1
    cdef void clear(self) noexcept nogil
    cdef void opened(self, int32_t g) noexcept nogil
    cdef void lead(self, int32_t g) noexcept nogil
    cdef void closed(self, int32_t g) noexcept nogil
    cdef int128 line(self, int32_t g) noexcept nogil
    cdef int128 turn(self) noexcept nogil
    cdef int32_t elect(self) noexcept nogil
    cdef Py_ssize_t lead_of(self, int32_t g, Py_ssize_t most) noexcept nogil
    cdef void passed(self, Py_ssize_t picks) noexcept nogil
    cdef void lapped(self, uint64_t laps) noexcept nogil


cdef inline object from_int128(int128 value):
    cdef int64_t high = <int64_t>(value >> 62)
    cdef int64_t low = <int64_t>(value & <int128>0x3FFFFFFFFFFFFFFF)
    return (<object>high << 62) + low


cdef inline int128 as_int128(object value) except? -1:
    cdef int128 wide = <int64_t>(value >> 62)
    cdef int128 low = <int64_t>(value & 0x3FFFFFFFFFFFFFFF)
    wide = wide * <int128>0x4000000000000000
    return wide + low
