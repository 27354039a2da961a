"""Weighted random by an exact alias table, for cimport; pick with `picker_index`."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from rota.kernels.picker cimport Picker

cdef enum:
    N_DRAWN = 64

cdef class WeightedRandom(Picker):
    cdef uint64_t* columns       # alias << 32 | threshold, of 2**32
    cdef uint64_t* share         # exact numerators of the columns' own shares, over `total`
    cdef uint64_t total
    cdef int log2_columns
    cdef uint64_t stream         # SplitMix64 state of the draws
    cdef int32_t ahead[N_DRAWN]  # the draws of the current run

    cdef int32_t locate(self, uint64_t bits) noexcept nogil
    cdef int32_t alias(self, uint32_t column) noexcept nogil
    cdef int32_t settle(self, uint32_t column, uint64_t bits) noexcept nogil
    cdef void draw(self, int32_t* out, Py_ssize_t count, uint64_t stream) noexcept nogil
