"""Round robin, for cimport; pick with `picker_index`."""

from libc.stdint cimport int32_t, uint64_t

from rota.kernels.picker cimport Picker

cdef class RoundRobin(Picker):
    cdef int32_t* order          # indices by rank, -1 for who has left; 2 * capacity of them
    cdef int32_t* rank           # by index
    cdef uint64_t* bits          # by rank: has weight
    cdef Py_ssize_t n_words      # of 64 bits
    cdef Py_ssize_t n_ranks      # given out
    cdef Py_ssize_t position     # the rank after that of the last pick, or the run's last

    cdef void switch(self, Py_ssize_t i, bint is_live) noexcept nogil
    cdef void place(self, int32_t i) noexcept nogil
    cdef void wrap(self) noexcept nogil
    cdef void walk(self, int32_t* out, Py_ssize_t length) noexcept nogil
    cdef Py_ssize_t where(self) noexcept nogil
    cdef void settle(self) noexcept nogil
    cdef void close_gaps(self) noexcept nogil
