"""Smooth weighted round robin, for cimport; pick with `picker_index`."""

from libc.stdint cimport int32_t, int64_t

from rota.kernels.splitmix64 cimport int128
from rota.kernels.weight_groups cimport WeightGroups, group_t

cdef class WeightedRoundRobin(WeightGroups):
    # By place: the groups side by side, for vectors. Fronts are int64, or int128 for very large weights.
    cdef void* front             # each leader's current weight at the next pick
    cdef int64_t* rate           # weight of each group
    cdef int32_t* at             # which group that is
    cdef int64_t greatest        # of the fronts
    cdef int64_t pending         # picks that the fronts have not grown by yet
    cdef bint is_narrow          # int64
    cdef const int32_t* run      # where the current run began, or NULL
    cdef int32_t run_group       # whose members it is of
    cdef bint is_walking         # the run is of the table
    cdef bint was_looked_at      # whether a table would do, since the last change
    cdef Py_ssize_t lap          # picks in a period, of the table
    cdef void* mark              # fronts, and
    cdef int32_t* mark_leader    # leaders at the table's beginning

    cdef void vacate(self, Py_ssize_t place) noexcept nogil
    cdef int32_t first_of(self, int32_t g, int32_t other) noexcept nogil
    cdef list credits(self)
    cdef int128 front_of(self, int32_t g) noexcept nogil
    cdef void set_front(self, int32_t g, int128 value) noexcept nogil
    cdef int widen(self) except -1
    cdef Py_ssize_t grow(self) noexcept nogil
    cdef int32_t elect(self) noexcept nogil
    cdef Py_ssize_t lead_of(self, int32_t g, Py_ssize_t most) noexcept nogil
    cdef void count(self, Py_ssize_t picks) noexcept nogil
    cdef bint begin_walk(self) noexcept nogil
    cdef bint is_back(self) noexcept nogil
    cdef void replay(self, Py_ssize_t picks) noexcept nogil
