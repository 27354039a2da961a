"""Peak EWMA, for cimport; pick with `picker_index`, or `two_choices_acquire`."""

from libc.stdint cimport int32_t

from rota.kernels.two_choices cimport TwoChoices, load_t


cdef class Averages:
    cdef double decay      # seconds
    cdef double timeout
    cdef double rate       # of keys, in 1 / s
    cdef double since      # what stamps count from, seconds
    cdef bint is_warm
    cdef double typical    # log2 of the seconds that a call takes
    cdef double cold_key   # of instances of which nothing is known
    cdef double last       # time of the last call that ended, since `since`
    cdef object clock
    cdef object classify

    cdef int now(self, bint is_exact, double* seconds) except -1


cdef class PeakEwma(TwoChoices):
    cdef Averages averages

    cdef double key_of(self, const load_t* load) noexcept nogil
