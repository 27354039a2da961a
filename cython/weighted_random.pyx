"""Weighted random in O(1): an alias table, exact to the last bit.

The table has K = 2**k columns of equal probability. Column c belongs to index c with the
share share[c] / W of its width and to one other index, alias[c], with the rest; the
shares are integers (in units of 1 / (K * W)), so that

    sum over c of share[c] [c == i] + (W - share[c]) [alias[c] == i]  =  K * w[i]

holds exactly, not within a rounding. One 64-bit draw makes one pick, and given random
draws (the generator has 2**64 of them) index i comes with the probability w[i] / W:

    | k bits: column | 32 bits: coin | the rest: ties |

    coin <  threshold[c]   the column's own index     threshold = floor(share * 2**32 / W)
    coin >  threshold[c]   its alias
    coin == threshold[c]   (1 in 2**32) the long division of share / W goes on bit by bit
                           against the remaining bits, and past these against a stream
                           seeded by the draw; so a pick always uses one number

Sources: A. J. Walker 1977, doi:10.1145/355744.355749; M. D. Vose 1991,
doi:10.1109/32.92917 (the two stacks, in Kitex's order: both pop from the top).
Ours differs in the integers, the power of two (no second draw, no division) and the tie.

Cost: pick O(1), one cache line of the table; build O(n) in integers, 16 bytes a column
with K < 2n columns. Picks are drawn 64 at a time, with vectors where the machine has them,
and the objects' reference counts are prefetched.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from cpython.mem cimport PyMem_Free, PyMem_Malloc

import numpy as np

from rota.arguments import as_uint64, as_weights

cimport cython

from rota.kernels.picker cimport Picker, prefetch, take
from rota.kernels.splitmix64 cimport SPLITMIX_GAMMA, splitmix64_mix, splitmix64_next, uint128

cdef extern from *:
    """
    #include <string.h>
    #if defined(__x86_64__) && defined(__GLIBC__) && __GNUC__ >= 12 && !defined(__clang__)
    /* One clone for each width of vectors; the loader takes the one this machine has. */
    #define ROTA_VECTORISED __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
    #else
    #define ROTA_VECTORISED
    #endif

    /* Write the draws that follow `stream` to out; non-zero if any was a tie of the coin
       (these are not valid). No branch, no dependency between rounds: in C, because only
       here can the compiler be told to make vectors of it. */
    ROTA_VECTORISED static uint32_t rota_draw(const uint64_t *columns, int log2_columns,
                                              uint64_t stream, int32_t *out, Py_ssize_t count)
    {
        uint32_t ties = 0;
        for (Py_ssize_t k = 0; k < count; k++) {
            uint64_t bits = stream + (uint64_t)(k + 1) * 0x9E3779B97F4A7C15u;  /* SplitMix64 */
            bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9u;
            bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBu;
            bits ^= bits >> 31;
            uint32_t column = (uint32_t)((bits >> 1) >> (63 - log2_columns));
            uint32_t coin = (uint32_t)((bits << log2_columns) >> 32);
            uint64_t entry = columns[column];
            uint32_t threshold = (uint32_t)entry, alias = (uint32_t)(entry >> 32);
            uint32_t own = 0u - (uint32_t)(coin < threshold);
            out[k] = (int32_t)(alias ^ ((alias ^ column) & own));
            ties |= coin == threshold;
        }
        return ties;
    }
    """
    uint32_t rota_draw(const uint64_t* columns, int log2_columns, uint64_t stream,
                       int32_t* out, Py_ssize_t count) noexcept nogil

cdef enum:
    # Below this the objects stay in the cache anyway.
    PREFETCH_FROM = 1024


cdef int vose(const int64_t* weight, Py_ssize_t n, Py_ssize_t n_columns, uint64_t total,
              uint64_t* share, uint32_t* alias) except -1:
    """Fill the exact alias table of `weight` on n_columns >= n columns; total >= 1.

    share[c] in [0, total]: the numerator of column c's own part. A column that is all its
    own has the alias c.
    """
    cdef uint128 width = total
    cdef uint128* mass = <uint128*>PyMem_Malloc(n_columns * sizeof(uint128))
    cdef uint32_t* stack = <uint32_t*>PyMem_Malloc(n_columns * sizeof(uint32_t))
    cdef Py_ssize_t small = 0, large = n_columns, c   # stack[:small] and stack[large:]
    cdef uint32_t s, g
    cdef uint128 m
    if mass == NULL or stack == NULL:
        PyMem_Free(mass)
        PyMem_Free(stack)
        raise MemoryError
    for c in range(n_columns):
        m = 0
        if c < n:
            m = <uint128>weight[c]
            m = m * <uint128>n_columns
        mass[c] = m
        if m < width:
            stack[small] = c
            small += 1
        else:
            large -= 1
            stack[large] = c
    while small > 0 and large < n_columns:
        small -= 1
        s = stack[small]
        g = stack[large]
        share[s] = <uint64_t>mass[s]
        alias[s] = g
        m = mass[g] + mass[s]
        m = m - width
        mass[g] = m
        if m < width:
            large += 1
            stack[small] = g
            small += 1
    # Exact integers leave only columns that are exactly full.
    while large < n_columns:
        g = stack[large]
        share[g] = total
        alias[g] = g
        large += 1
    while small > 0:
        small -= 1
        share[stack[small]] = total
        alias[stack[small]] = stack[small]
    PyMem_Free(mass)
    PyMem_Free(stack)
    return 0


def alias_table(weights, n_columns=None):
    """Return the exact alias table of `weights` on `n_columns` columns (default: n of them).

    Parameters
    ----------
    weights : integers, shape (n,), >= 0, 1 <= sum < 2**63
    n_columns : integer in [n, 2**31)

    Returns
    -------
    share : uint64 array, shape (n_columns,), in [0, sum]
        Numerator, over the sum of the weights, of the part of column c that is c's own.
    alias : int32 array, shape (n_columns,), in [0, n)
        Whose the rest of the column is.

    Raises
    ------
    TypeError, ValueError
        The weights are of no use, or sum to 0, or there are too few columns.

    Notes
    -----
    O(n_columns). Vose 1991, doi:10.1109/32.92917, in integers.
    """
    cdef Py_ssize_t n = len(weights), columns
    array = as_weights(weights, n)
    cdef const int64_t[::1] view = array
    cdef uint64_t total = sum(array.tolist())
    if total == 0:
        raise ValueError("weights must have a sum >= 1, got 0")
    wanted = n if n_columns is None else as_uint64("n_columns", n_columns)
    if not n <= wanted < 2**31:
        raise ValueError(f"n_columns must be in [{n}, 2**31), got {wanted}")
    columns = wanted
    share = np.empty(columns, np.uint64)
    alias = np.empty(columns, np.uint32)
    cdef uint64_t[::1] share_view = share
    cdef uint32_t[::1] alias_view = alias
    vose(&view[0], n, columns, total, &share_view[0], &alias_view[0])
    return share, alias.astype(np.int32)


@cython.final
cdef class WeightedRandom(Picker):
    """WeightedRandom(instances, weights=None, *, seed=None)

    Every pick is independent; an instance comes with the probability exactly w / W.

    Parameters
    ----------
    instances : sequence of any objects, length n
    weights : integers, shape (n,), >= 0, sum < 2**63; None: all 1
    seed : integer in [0, 2**64); None: the operating system's entropy

    Raises
    ------
    TypeError, ValueError
        An argument is of no use; the message names it and the value.

    Notes
    -----
    pick O(1); build O(n); 32 to 48 bytes an instance. Any number of threads may share it.
    The numbers are SplitMix64(seed), one for each pick.
    Walker 1977, doi:10.1145/355744.355749; Vose 1991, doi:10.1109/32.92917.
    """

    def __cinit__(self, instances, weights=None, *, seed=None):
        self.hold(instances, weights, seed)
        self.is_large = False  # `refill` fetches for the whole run
        self.stream = self.random
        self.random = ~self.random
        self.cursor = self.end = self.ahead
        cdef Py_ssize_t i, n_columns
        cdef uint32_t* alias
        if self.n_live == 0:
            return
        for i in range(self.n):
            self.total += self.weight[i]
        while <Py_ssize_t>1 << self.log2_columns < self.n:
            self.log2_columns += 1
        n_columns = <Py_ssize_t>1 << self.log2_columns
        self.columns = <uint64_t*>PyMem_Malloc(n_columns * sizeof(uint64_t))
        self.share = <uint64_t*>PyMem_Malloc(n_columns * sizeof(uint64_t))
        alias = <uint32_t*>PyMem_Malloc(n_columns * sizeof(uint32_t))
        try:
            if self.columns == NULL or self.share == NULL or alias == NULL:
                raise MemoryError
            vose(self.weight, self.n, n_columns, self.total, self.share, alias)
            for i in range(n_columns):
                self.columns[i] = <uint64_t>alias[i] << 32 | threshold(self.share[i], self.total)
        finally:
            PyMem_Free(alias)

    def __dealloc__(self):
        PyMem_Free(self.columns)
        PyMem_Free(self.share)

    def pick(self):
        """Return the next instance, or None when nothing has weight. O(1)."""
        return take(self)

    cdef int32_t locate(self, uint64_t bits) noexcept nogil:
        """Return the index that the 64-bit draw `bits` selects."""
        cdef uint32_t column = <uint32_t>((bits >> 1) >> (63 - self.log2_columns))
        cdef uint32_t coin = <uint32_t>((bits << self.log2_columns) >> 32)
        cdef uint32_t threshold = <uint32_t>self.columns[column]
        if coin == threshold:
            return self.settle(column, bits)
        return <int32_t>column if coin < threshold else self.alias(column)

    cdef int32_t alias(self, uint32_t column) noexcept nogil:
        return <int32_t>(self.columns[column] >> 32)

    cdef int32_t settle(self, uint32_t column, uint64_t bits) noexcept nogil:
        """Decide a tie of the coin: compare further binary digits of share / W and the draw."""
        cdef uint64_t stream = bits
        cdef int left = 32 - self.log2_columns     # bits of the draw not used yet
        cdef uint64_t drawn = bits << (self.log2_columns + 32)
        cdef uint128 total = self.total
        cdef uint128 rest
        cdef int digit, bit
        if self.share[column] >= self.total:
            return <int32_t>column
        rest = <uint128>self.share[column]
        rest = (rest << 32) % total
        while rest != 0:
            if left == 0:
                drawn = splitmix64_next(&stream)
                left = 64
            rest = rest << 1
            digit = rest >= total
            if digit:
                rest = rest - total
            bit = drawn >> 63
            drawn = drawn << 1
            left -= 1
            if bit != digit:
                return <int32_t>column if bit < digit else self.alias(column)
        return self.alias(column)

    cdef void draw(self, int32_t* out, Py_ssize_t count, uint64_t stream) noexcept nogil:
        """Write the `count` draws that follow `stream` in SplitMix64's sequence."""
        cdef Py_ssize_t k
        if rota_draw(self.columns, self.log2_columns, stream, out, count):
            for k in range(count):
                stream += <uint64_t>SPLITMIX_GAMMA
                out[k] = self.locate(splitmix64_mix(stream))

    cdef void refill(self) noexcept nogil:
        cdef Py_ssize_t k
        if self.n_live == 0:
            return
        self.draw(self.ahead, N_DRAWN, self.stream)
        self.stream += <uint64_t>N_DRAWN * <uint64_t>SPLITMIX_GAMMA
        self.cursor = self.ahead
        self.end = self.ahead + N_DRAWN
        if self.n >= PREFETCH_FROM:
            for k in range(N_DRAWN):
                prefetch(self.items[self.ahead[k]], 1)  # its reference count

    cdef int write(self, int32_t* out, Py_ssize_t count) except -1:
        """Take what was drawn ahead, reserve the rest of the range, draw it without the GIL."""
        cdef Py_ssize_t k = min(count, self.end - self.cursor)
        cdef uint64_t stream
        if self.n_live == 0:
            return Picker.write(self, out, count)
        Picker.write(self, out, k)
        stream = self.stream
        self.stream += <uint64_t>(count - k) * <uint64_t>SPLITMIX_GAMMA
        with nogil:
            self.draw(out + k, count - k, stream)
        return 0

    def index_of(self, bits):
        """Return the index that the 64-bit draw `bits` selects; None when nothing has weight.

        A picker's draws are the numbers of SplitMix64(seed). O(1).

        Raises
        ------
        TypeError, ValueError
            `bits` is no integer, or outside [0, 2**64).
        """
        cdef uint64_t drawn = as_uint64("bits", bits)
        return None if self.n_live == 0 else self.locate(drawn)

    def alias_table(self):
        """Return (share, alias), the integers that picks are made of; see `alias_table`.

        The number of columns is the least power of two that is n or more. Two empty arrays
        when nothing has weight. O(n).
        """
        cdef Py_ssize_t n_columns = 0, c
        if self.n_live:
            n_columns = <Py_ssize_t>1 << self.log2_columns
        share = np.empty(n_columns, np.uint64)
        alias = np.empty(n_columns, np.int32)
        cdef uint64_t[::1] share_view = share
        cdef int32_t[::1] alias_view = alias
        for c in range(n_columns):
            share_view[c] = self.share[c]
            alias_view[c] = self.alias(c)
        return share, alias

    cdef dict options(self):
        return {}

    cdef object state(self):
        # As if nothing had been drawn ahead.
        return int(self.stream - <uint64_t>(self.end - self.cursor) * <uint64_t>SPLITMIX_GAMMA)

    cdef int restore(self, state) except -1:
        self.stream = as_uint64("state", state)
        self.cursor = self.end = self.ahead
        return 0


cdef uint32_t threshold(uint64_t share, uint64_t total) noexcept nogil:
    """Return floor(share * 2**32 / total), 2**32 - 1 for a column that is all its own."""
    cdef uint128 scaled = <uint128>share
    if share >= total:
        return 0xFFFFFFFF
    scaled = (scaled << 32) / <uint128>total
    return <uint32_t>scaled
