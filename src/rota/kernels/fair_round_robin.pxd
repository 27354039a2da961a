"""The fair weighted order, for cimport; pick with `picker_index`."""

from libc.stdint cimport int32_t, int64_t, uint64_t

from rota.kernels.splitmix64 cimport int128
from rota.kernels.weight_groups cimport WeightGroups

# Where a group's keys begin, and its leader's window. Times are in units of 2**-64: a whole
# number of them and a part, part / weight.
cdef struct span_t:
    int128 base
    int128 start
    int128 finish
    uint64_t start_part
    uint64_t finish_part

cdef class FairRoundRobin(WeightGroups):
    cdef int128 now              # virtual time: now + now_part / total
    cdef uint64_t now_part
    cdef span_t* spans           # by id
    cdef int32_t* ready          # a heap of groups, by finish: all that are eligible
    cdef int32_t* waiting        # a heap of groups, by start: the rest
    cdef int32_t n_ready
    cdef int32_t n_waiting

    cdef void move_now(self, int128 credit) noexcept nogil
    cdef void take_over_now(self, int64_t total) noexcept nogil
    cdef bint is_eligible(self, int32_t g) noexcept nogil
    cdef void push(self, int32_t g) noexcept nogil
    cdef void pull_out(self, int32_t g) noexcept nogil
    cdef list starts(self, list counts)
