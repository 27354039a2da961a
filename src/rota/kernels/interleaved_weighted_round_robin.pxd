"""Interleaved weighted round robin, for cimport; pick with `picker_index`."""

from libc.stdint cimport int32_t, int64_t

from rota.kernels.picker cimport Picker

cdef class InterleavedWeightedRoundRobin(Picker):
    cdef int32_t* order          # lightest first, equals in rotated order
    cdef bint is_first_cycle
    cdef int32_t* queue          # the first cycle's present pass, in rotated order
    cdef Py_ssize_t length       # of the present pass
    cdef Py_ssize_t n_read       # of it, handed out so far
    cdef Py_ssize_t n_kept       # of these, staying for the next pass
    cdef Py_ssize_t first        # order[first:] takes part in the present pass
    cdef int64_t divisor         # gcd of the weights
    cdef int64_t level           # divisor times the number of the present pass, from 1
    cdef int64_t heaviest
    cdef int32_t* next_first     # for each first of a weight: where the next weight begins

    cdef void refill_first_cycle(self) noexcept nogil
