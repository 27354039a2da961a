"""MurmurHash3 x64-128, for cimport."""

from libc.stdint cimport uint8_t, uint64_t

cdef struct hash128_t:
    uint64_t low    # the first 64-bit word of the digest: a key's place on a ring
    uint64_t high

# The hash of `length` bytes. Any number of threads.
cdef hash128_t murmur3_x64_128(const uint8_t* data, Py_ssize_t length, uint64_t seed) noexcept nogil

# The first word of the hash (seed 0) of a key, by the one rule for keys; raises TypeError
# or ValueError for what can be no key.
cdef int hash_key(object key, uint64_t* out) except -1

cdef enum:
    MOST_DIGITS = 20

# Write a number in decimal digits, for labels such as NAME-NUMBER; return how many.
cdef Py_ssize_t decimal(uint8_t* out, uint64_t number) noexcept nogil
