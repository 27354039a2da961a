"""MD5 places, for the rings of others (rota.compat)."""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef packed struct point_t:
    uint64_t place
    int64_t owner

cdef class Places:
    cdef bint wide
    cdef const point_t[::1] points
    cdef list names
    cdef uint32_t[::1] first    # of each range of places: the index of its first one
    cdef int shift              # from a place to the number of its range
    cdef Py_ssize_t n

    cdef Py_ssize_t index(self, key) except -1
