# cython: language_level=3, boundscheck=False, wraparound=False
"""Requests dispatched from Cython."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from cpython.object cimport PyObject

from array import array

from rota.kernels.hash_picker cimport HashPicker, hash_picker_index, hash_picker_length
from rota.kernels.murmur3 cimport murmur3_x64_128
from rota.kernels.picker cimport Picker, picker_fill, picker_index, picker_length, picker_object
from rota.kernels.two_choices cimport TwoChoices, two_choices_acquire, two_choices_release

from dispatch.floor cimport nothing

cdef enum:
    BLOCK = 1024


def count_picks(Picker picker not None, Py_ssize_t n_requests):
    """Return how many of n requests went to each index, and last how many to nobody."""
    cdef Py_ssize_t length = picker_length(picker), _request
    cdef int64_t[::1] counts = array("q", bytes(8 * (length + 1)))
    cdef int32_t i
    with nogil:
        for _request in range(n_requests):
            i = picker_index(picker)
            counts[i if i >= 0 else length] += 1
    return list(counts)


def first_picks(Picker picker not None, Py_ssize_t n):
    """Return the next n picks, one at a time, as instances."""
    cdef list picks = []
    cdef PyObject* instance
    for _ in range(n):
        instance = picker_object(picker, picker_index(picker))
        picks.append(None if instance == NULL else <object>instance)
    return picks


def count_calls(TwoChoices picker not None, Py_ssize_t n_requests):
    """Return how many of n requests went to each index; BLOCK of them are in flight at once."""
    cdef int64_t[::1] counts = array("q", bytes(8 * picker_length(picker)))
    cdef int32_t in_flight[BLOCK]
    cdef Py_ssize_t request, k
    with nogil:
        for request in range(n_requests):
            k = request % BLOCK
            if request >= BLOCK:
                two_choices_release(picker, in_flight[k])
            in_flight[k] = two_choices_acquire(picker)
            if in_flight[k] >= 0:
                counts[in_flight[k]] += 1
        for k in range(min(n_requests, BLOCK)):
            two_choices_release(picker, in_flight[k])
    return list(counts)


def count_users(HashPicker ring not None, uint64_t n_users):
    """Return how many of the users 0, 1, .. n - 1, by number, belong to each index."""
    cdef int64_t[::1] counts = array("q", bytes(8 * hash_picker_length(ring)))
    cdef uint64_t user
    cdef uint8_t key[8]
    cdef int32_t i
    cdef int k
    with nogil:
        for user in range(n_users):
            for k in range(8):
                key[k] = <uint8_t>(user >> 8 * k)
            i = hash_picker_index(ring, murmur3_x64_128(key, 8, 0).low)
            if i >= 0:
                counts[i] += 1
    return list(counts)


# Three loops to be timed side by side, the same but for what they call.

def sum_of_picks(Picker picker not None, Py_ssize_t n):
    """Return the sum of the next n indices, picked one at a time."""
    cdef Py_ssize_t _k
    cdef int64_t total = 0
    with nogil:
        for _k in range(n):
            total += picker_index(picker)
    return total


def sum_of_nothing(Picker picker not None, Py_ssize_t n):
    """Return 0, after n calls of an empty function of another module."""
    cdef Py_ssize_t _k
    cdef int64_t total = 0
    with nogil:
        for _k in range(n):
            total += nothing(picker)
    return total


def sum_of_fills(Picker picker not None, Py_ssize_t n):
    """Return the sum of the next n indices, taken in blocks."""
    cdef Py_ssize_t k, block
    cdef int64_t total = 0
    cdef int32_t indices[BLOCK]
    with nogil:
        while n > 0:
            block = min(n, BLOCK)
            picker_fill(picker, indices, block)
            for k in range(block):
                total += indices[k]
            n -= block
    return total
