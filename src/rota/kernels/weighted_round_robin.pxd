"""Smooth weighted round robin, for cimport; pick with `picker_index`."""

from libc.stdint cimport int32_t, int64_t

from rota.kernels.splitmix64 cimport int128
from rota.kernels.weight_groups cimport WeightGroups

cdef class WeightedRoundRobin(WeightGroups):
    # By place: the groups side by side, for vectors. Fronts are int64, or int128 for very
    # large weights.
    cdef void* front             # each leader's current weight at the next pick
    cdef int64_t* rate           # weight of each group
    cdef int32_t* at             # which group that is
    cdef int64_t greatest        # of the fronts
    cdef int64_t pending         # picks that the fronts have not grown by yet
    cdef bint is_narrow          # int64

    cdef void vacate(self, Py_ssize_t place) noexcept nogil
    cdef int32_t first_of(self, int32_t g, int32_t other) noexcept nogil
    cdef list credits(self)
    cdef int128 front_of(self, int32_t g) noexcept nogil
    cdef void set_front(self, int32_t g, int128 value) noexcept nogil
    cdef int widen(self) except -1
    cdef Py_ssize_t grow(self) noexcept nogil
