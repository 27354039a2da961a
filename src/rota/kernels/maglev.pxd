"""Maglev hashing, for cimport; pick with `hash_picker_index`."""

from libc.stdint cimport int32_t

from rota.kernels.hash_picker cimport HashPicker

cdef class Maglev(HashPicker):
    cdef int32_t* table      # who owns each slot; NULL when nothing has weight
    cdef Py_ssize_t size
    cdef dict options
