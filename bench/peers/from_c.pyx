# cython: language_level=3, boundscheck=False, wraparound=False
"""Picks as a service written in C or Cython makes them: no Python between one and the next.

After each pick the loop reads something the service keeps by instance, `port`, as Go's loops do
of the instance that they got; the sums are returned, so nothing can be left out by the compiler.
The `empty_` loops read the same of an index that nobody picked.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc

from rota.kernels.hash_picker cimport HashPicker, hash_picker_index
from rota.kernels.murmur3 cimport murmur3_x64_128
from rota.kernels.picker cimport Picker, picker_fill, picker_index

cdef enum:
    BLOCK = 1_000


cdef class Keys:
    """Keys as C has them: where each begins and how long it is."""

    cdef list held
    cdef const uint8_t** text
    cdef Py_ssize_t* length
    cdef Py_ssize_t n

    def __cinit__(self, keys):
        self.held = [key.encode() for key in keys]
        self.n = len(self.held)
        self.text = <const uint8_t**>PyMem_Malloc(max(self.n, 1) * sizeof(uint8_t*))
        self.length = <Py_ssize_t*>PyMem_Malloc(max(self.n, 1) * sizeof(Py_ssize_t))
        if self.text == NULL or self.length == NULL:
            raise MemoryError
        for k, key in enumerate(self.held):
            self.text[k] = <const uint8_t*>PyBytes_AS_STRING(key)
            self.length[k] = PyBytes_GET_SIZE(key)

    def __dealloc__(self):
        PyMem_Free(self.text)
        PyMem_Free(self.length)


def picks(Picker picker not None, const int64_t[::1] port, Py_ssize_t count):
    """Pick `count` times, one at a time; return the sum of the ports."""
    cdef Py_ssize_t _k
    cdef int64_t total = 0
    with nogil:
        for _k in range(count):
            total += port[picker_index(picker)]
    return total


def empty_picks(const int64_t[::1] port, Py_ssize_t count):
    """Do the same without a pick."""
    cdef Py_ssize_t _k, i = 0, n = port.shape[0]
    cdef int64_t total = 0
    with nogil:
        for _k in range(count):
            total += port[i]
            i = i + 1 if i + 1 < n else 0
    return total


def owners(HashPicker ring not None, Keys keys not None, const int64_t[::1] port, Py_ssize_t count):
    """Hash and look up `count` keys, round and round; return the sum of the ports."""
    cdef Py_ssize_t _k, at = 0
    cdef int64_t total = 0
    with nogil:
        for _k in range(count):
            total += port[hash_picker_index(
                ring, murmur3_x64_128(keys.text[at], keys.length[at], 0).low
            )]
            at = at + 1 if at + 1 < keys.n else 0
    return total


def empty_owners(Keys keys not None, const int64_t[::1] port, Py_ssize_t count):
    """Do the same without a look-up: the keys are gone through and looked into."""
    cdef Py_ssize_t _k, at = 0
    cdef int64_t total = 0
    with nogil:
        for _k in range(count):
            total += port[0] + keys.text[at][0] + keys.length[at]
            at = at + 1 if at + 1 < keys.n else 0
    return total


def fills(Picker picker not None, const int64_t[::1] port, Py_ssize_t count):
    """Pick `count` times, BLOCK at a time; return the sum of the ports."""
    cdef Py_ssize_t k, block
    cdef int64_t total = 0
    cdef int32_t indices[BLOCK]
    with nogil:
        while count > 0:
            block = min(count, BLOCK)
            picker_fill(picker, indices, block)
            for k in range(block):
                total += port[indices[k]]
            count -= block
    return total
