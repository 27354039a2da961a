"""Smooth weighted round robin, for cimport; pick with `picker_index`."""

from libc.stdint cimport int32_t, int64_t

from rota.kernels.picker cimport Picker

# The instances of one weight, in turn. Those before `position` had their turn in this lap.
cdef struct group_t:
    int64_t weight       # over the gcd of all
    int32_t first        # members[first:first + length]
    int32_t length
    int32_t position

cdef class WeightedRoundRobin(Picker):
    cdef group_t* groups         # lightest first
    cdef void* current           # current weight of each group's next member; int64 or int128
    cdef bint is_narrow          # int64
    cdef int32_t n_groups
    cdef int32_t* members
    cdef int64_t divisor         # gcd of the weights
    cdef int64_t turns           # sum of the weights / gcd: the period
    cdef int32_t lead            # the group that the present stretch is of
    cdef int32_t stretch         # picks of it not yet counted in `current`
    cdef int32_t* table          # the period as far as it has been walked, or NULL
    cdef Py_ssize_t n_walked
