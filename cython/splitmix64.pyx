"""SplitMix64: one 64-bit counter and a mixing function.

Source: G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014, doi:10.1145/2660193.2660195; constants of the fixed-increment
variant as published by S. Vigna (prng.di.unimi.it/splitmix64.c, public domain).

Invariant: number i of a stream is mix(seed + (i + 1) * gamma), so any number can be had
in O(1), a range of k numbers is reserved by one addition, and every 64-bit value comes
exactly once in a period of 2**64. That is why rota takes it and not a faster-mixing
generator with a larger state: a batch that runs without the GIL must be able to reserve
its numbers first.

Cost: two multiplications, no branch; about 1 ns in a loop.

The arithmetic is in the header, where the other kernels inline it; this module is its
Python door.
"""

from libc.stdint cimport uint64_t

from rota.arguments import as_count, as_seed, as_uint64

cimport cython

from rota.kernels.splitmix64 cimport SPLITMIX_GAMMA, splitmix64_below, splitmix64_next


@cython.final
cdef class SplitMix64:
    """SplitMix64(seed=None)

    A stream of 64-bit numbers, fixed for ever by `seed` in [0, 2**64).

    Raises
    ------
    TypeError, ValueError
        `seed` is not an integer, or out of range.
    """

    cdef uint64_t state

    def __cinit__(self, seed=None):
        self.state = as_seed(seed)

    def next(self):
        """Return the next number, in [0, 2**64). O(1)."""
        return splitmix64_next(&self.state)

    def below(self, bound):
        """Return an unbiased number in [0, bound), 1 <= bound < 2**64. O(1) expected."""
        cdef uint64_t limit = as_uint64("bound", bound, 1)
        return splitmix64_below(&self.state, limit)

    def skip(self, n):
        """Pass over n numbers. O(1)."""
        cdef uint64_t count = as_count(n)
        self.state += count * <uint64_t>SPLITMIX_GAMMA
