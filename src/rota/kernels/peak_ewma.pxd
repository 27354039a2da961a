"""Peak EWMA, for cimport; pick with `picker_index`, or `two_choices_acquire`."""

from libc.stdint cimport int32_t

from rota.kernels.two_choices cimport TwoChoices


cdef class Averages:
    cdef double decay      # seconds
    cdef double timeout
    cdef double rate       # of keys, in 1 / s
    cdef double since      # what stamps count from, seconds
    cdef bint is_warm
    cdef double typical    # log2 of the seconds that a call takes
    cdef double typical_key
    cdef double last       # time of the last call that ended, since `since`
    cdef object clock
    cdef object classify

    cdef int now(self, bint is_exact, double* seconds) except -1


cdef class PeakEwma(TwoChoices):
    cdef Averages averages

    cdef int32_t better(self, int32_t one, int32_t other) noexcept nogil
