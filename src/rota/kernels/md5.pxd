"""MD5 places, for the rings of others (rota.compat)."""

from libc.stdint cimport int32_t, uint32_t, uint64_t


cdef class Places:
    cdef bint wide
    cdef const uint64_t[::1] places
    cdef const int32_t[::1] owners
    cdef list names
    cdef uint32_t[::1] first    # of each range of places: the index of its first one
    cdef int shift              # from a place to the number of its range
    cdef Py_ssize_t n

    cdef Py_ssize_t index(self, key) except -1
