"""Least request, for cimport; pick with `picker_index`, or `two_choices_acquire`."""

from libc.stdint cimport int32_t

from rota.kernels.two_choices cimport TwoChoices


cdef class LeastRequest(TwoChoices):
    cdef bint is_less(self, int32_t one, int32_t other) noexcept nogil
