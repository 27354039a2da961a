"""SplitMix64 as two inline functions, for the kernels of this package.

The state is one counter, so a thread that needs k numbers takes them with one addition
(`state += k * SPLITMIX_GAMMA`) and computes them later, without the GIL: nobody else
repeats or skips a number.
"""

from libc.stdint cimport uint64_t

cdef enum:
    SPLITMIX_GAMMA = 0x9E3779B97F4A7C15


cdef inline uint64_t splitmix64_mix(uint64_t z) noexcept nogil:
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return z ^ (z >> 31)


cdef inline uint64_t splitmix64_next(uint64_t* state) noexcept nogil:
    state[0] += <uint64_t>SPLITMIX_GAMMA
    return splitmix64_mix(state[0])


# Not "extern cython.uint128": Cython has no such type; arithmetic on it must be spelled
# out in variables of this type.
cdef extern from *:
    """
    typedef unsigned __int128 rota_uint128;
    typedef __int128 rota_int128;
    """
    ctypedef unsigned long long uint128 "rota_uint128"
    ctypedef long long int128 "rota_int128"


cdef inline uint64_t splitmix64_below(uint64_t* state, uint64_t bound) noexcept nogil:
    """Return an unbiased number in [0, bound), bound >= 1 (Lemire 2019, arXiv 1805.10941)."""
    cdef uint128 product = <uint128>splitmix64_next(state) * <uint128>bound
    cdef uint64_t low = <uint64_t>product
    cdef uint64_t threshold
    if low < bound:
        threshold = (0 - bound) % bound
        while low < threshold:
            product = <uint128>splitmix64_next(state) * <uint128>bound
            low = <uint64_t>product
    return <uint64_t>(product >> 64)
