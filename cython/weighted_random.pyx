"""Weighted random: an alias table, and after a change a tree of sums. Exact to the last bit.

At rest picks are drawn from the *table*. It has K = 2**k columns of equal probability,
K >= n. Column c belongs to index c with the share share[c] / W of its width and to one other
index, alias[c], with the rest; the shares are integers (in units of 1 / (K * W)), so that

    sum over c of share[c] [c == i] + (W - share[c]) [alias[c] == i]  =  K * w[i]

holds exactly, not within a rounding. One 64-bit draw makes one pick, and given random
draws (the generator has 2**64 of them) index i comes with the probability w[i] / W:

    | k bits: column | 32 bits: coin | the rest: ties |

    coin <  threshold[c]   the column's own index     threshold = floor(share * 2**32 / W)
    coin >  threshold[c]   its alias
    coin == threshold[c]   (1 in 2**32) the long division of share / W goes on bit by bit
                           against the remaining bits, and past these against a stream
                           seeded by the draw; so a pick always uses one number

A table cannot be changed in less than O(n). So a change throws it away with what was drawn
ahead, and picks are drawn from the *tree*, which every change keeps in step: over each 16
weights, and over each 16 sums below, the sums of those to the left.

    level[0]                      |   0 |  40 |  71 |                  the root
    level[1]       |   0 |  12 |  31 |   ...   |   0 |   8 | ...       (drawn 3 wide)
    weight      | 5 1 6 | 19 0 0 | 2 7 0 |   ...                       the base's own array

The draw becomes a number r in [0, W), and where the bits do not divide evenly (Lemire) the
stream seeded by the draw goes on; r is followed down to the first index whose cumulative
weight is above it. Meanwhile the table is made again, in parts:

    draws since the change   0 ... q - 1        q ... 2q - 1           2q ...
                             the tree alone     and the table made     the table

q = max(K / 8, 1): whoever changes all the time never pays for a table, and no refill does more
than 64 draws' part of the work. That is counted in draws, so that the sequence depends on the
seed and the calls alone, not on the length of the runs.

Invariants
- The tree is that of the weights; the table in force too.
- Every number of the stream makes one pick: what a change throws away is drawn again.
- A run is the tree's or the table's, never both.
- Nobody writes to a table while another thread draws from it.

Sources: A. J. Walker 1977, doi:10.1145/355744.355749; M. D. Vose 1991,
doi:10.1109/32.92917 (the two stacks, in Kitex's order: both pop from the top).
C. K. Wong, M. C. Easton 1980, doi:10.1137/0209009 (drawing by a tree of sums that changes);
P. M. Fenwick 1994, doi:10.1002/spe.4380240306; G. E. Pibiri, R. Venturini 2020,
doi:10.1002/spe.2918 (wide nodes of prefix sums). D. Lemire 2019, doi:10.1145/3230636.
Ours differs in the integers, the power of two (no second draw, no division), the tie, and in
the table that is made where it will stand: a column's mass is kept in its share and its
alias, the stacks in the thresholds.

Cost: pick O(1) at rest, one cache line of the table; O(log n) in base 16 after a change, and
24 steps of the table in every second eighth of K draws. set_weight, add, remove O(log n) in
base 16; an `add` that doubles the arrays O(n). Build O(n) in integers; 16 bytes a column with
K < 2n columns, and half a byte an instance for the tree. Picks are drawn 64 at a time, with
vectors where the machine has them, and the objects' reference counts are prefetched.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_RawFree, PyMem_RawMalloc

import numpy as np

from rota.arguments import as_uint64, as_weights

cimport cython

from rota.kernels.picker cimport Picker, prefetch, take
from rota.kernels.splitmix64 cimport (
    SPLITMIX_GAMMA, splitmix64_below, splitmix64_mix, splitmix64_next, uint128,
)

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

    /* Add `difference` to the sums right of place k. In C for the vectors, too. */
    ROTA_VECTORISED static void rota_shift(int64_t *sums, Py_ssize_t k, int64_t difference)
    {
        static const int64_t right[31] = {
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
        for (int j = 0; j < 16; j++)
            sums[j] += difference & right[15 - k + j];
    }
    """
    uint32_t rota_draw(const uint64_t* columns, int log2_columns, uint64_t stream,
                       int32_t* out, Py_ssize_t count) noexcept nogil
    void rota_shift(int64_t* sums, Py_ssize_t k, int64_t difference) noexcept nogil

cdef enum:
    # Below this the objects stay in the cache anyway.
    PREFETCH_FROM = 1024
    # Steps to make a column: lay it out, give it its alias, and its threshold.
    STEPS = 3
    CACHE_LINE = 64

cdef uint64_t LOW = 0xFFFFFFFF


# -- the alias table ------------------------------------------------------------------------
#
# While it is made, column c has what it will keep and what is only needed until then:
#
#     share[c]    the low 64 bits of the mass that c still has; the mass is < W from when c
#                 is on the small stack, and is then the share
#     column[c]   | the high 32 bits of the mass, then the alias | place c of the stacks |

cdef columns_t* new_columns(Py_ssize_t n_columns) noexcept nogil:
    """Return a table to be made; NULL without the memory."""
    cdef columns_t* table = <columns_t*>PyMem_RawMalloc(
        sizeof(columns_t) + 2 * n_columns * sizeof(uint64_t)
    )
    if table != NULL:
        memset(table, 0, sizeof(columns_t))
        table.n_columns = table.large = n_columns
        table.share = &table.column[n_columns]
    return table


cdef inline int32_t alias_of(const columns_t* table, Py_ssize_t c) noexcept nogil:
    return <int32_t>(table.column[c] >> 32)


cdef inline void set_low(uint64_t* column, uint64_t low) noexcept nogil:
    column[0] = column[0] & ~LOW | low


cdef inline void set_high(uint64_t* column, uint64_t high) noexcept nogil:
    column[0] = column[0] & LOW | high << 32


cdef void make_columns(columns_t* table, const int64_t* weight, Py_ssize_t n,
                       Py_ssize_t n_steps) noexcept nogil:
    """Go on making the exact table of n weights, until so many steps are done in all."""
    cdef Py_ssize_t n_columns = table.n_columns, small = table.small, large = table.large
    cdef Py_ssize_t c, g, k, _k
    cdef uint64_t total = table.total, w
    cdef uint64_t* share = table.share
    cdef uint64_t* column = &table.column[0]
    cdef uint128 mass, width = total
    for c in range(table.n_done, min(n_steps, n_columns)):
        w = weight[c] if c < n else 0
        mass = <uint128>w * <uint128>n_columns
        share[c] = <uint64_t>mass
        set_high(&column[c], <uint64_t>(mass >> 64))
        if mass < width:
            set_low(&column[small], c)
            small += 1
        else:
            large -= 1
            set_low(&column[large], c)
    for _k in range(max(table.n_done, n_columns), min(n_steps, 2 * n_columns)):
        if small > 0 and large < n_columns:
            small -= 1
            c = <uint32_t>column[small]
            g = <uint32_t>column[large]
            mass = column[g] >> 32
            mass = (mass << 64) + share[g] + share[c]
            mass = mass - width
            share[g] = <uint64_t>mass
            set_high(&column[g], <uint64_t>(mass >> 64))
            set_high(&column[c], g)
            if mass < width:
                large += 1
                set_low(&column[small], g)
                small += 1
        else:
            # Exact integers leave only columns that are exactly full.
            if small > 0:
                small -= 1
                c = <uint32_t>column[small]
            else:
                c = <uint32_t>column[large]
                large += 1
            share[c] = total
            set_high(&column[c], c)
    for k in range(max(table.n_done, 2 * n_columns), min(n_steps, STEPS * n_columns)):
        c = k - 2 * n_columns
        set_low(&column[c], threshold(share[c], total))
    table.n_done = max(table.n_done, n_steps)
    table.small, table.large = small, large


cdef uint32_t threshold(uint64_t share, uint64_t total) noexcept nogil:
    """Return floor(share * 2**32 / total), 2**32 - 1 for a column that is all its own."""
    cdef uint128 scaled = <uint128>share
    if share >= total:
        return 0xFFFFFFFF
    scaled = (scaled << 32) / <uint128>total
    return <uint32_t>scaled


cdef int32_t locate(const columns_t* table, uint64_t bits) noexcept nogil:
    """Return the index that the 64-bit draw `bits` selects."""
    cdef uint32_t column = <uint32_t>((bits >> 1) >> (63 - table.log2_columns))
    cdef uint32_t coin = <uint32_t>((bits << table.log2_columns) >> 32)
    cdef uint32_t threshold = <uint32_t>table.column[column]
    if coin == threshold:
        return settle(table, column, bits)
    return <int32_t>column if coin < threshold else alias_of(table, column)


cdef int32_t settle(const columns_t* table, uint32_t column, uint64_t bits) noexcept nogil:
    """Decide a tie of the coin: compare further binary digits of share / W and the draw."""
    cdef uint64_t stream = bits
    cdef int left = 32 - table.log2_columns     # bits of the draw not used yet
    cdef uint64_t drawn = bits << (table.log2_columns + 32)
    cdef uint128 total = table.total
    cdef uint128 rest
    cdef int digit, bit
    if table.share[column] >= table.total:
        return <int32_t>column
    rest = <uint128>table.share[column]
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
            return <int32_t>column if bit < digit else alias_of(table, column)
    return alias_of(table, column)


cdef void draw(const columns_t* table, int32_t* out, Py_ssize_t count,
               uint64_t stream) noexcept nogil:
    """Write the `count` draws that follow `stream` in SplitMix64's sequence."""
    cdef Py_ssize_t k
    if rota_draw(&table.column[0], table.log2_columns, stream, out, count):
        for k in range(count):
            stream += <uint64_t>SPLITMIX_GAMMA
            out[k] = locate(table, splitmix64_mix(stream))


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
    cdef columns_t* table
    if total == 0:
        raise ValueError("weights must have a sum >= 1, got 0")
    wanted = n if n_columns is None else as_uint64("n_columns", n_columns)
    if not n <= wanted < 2**31:
        raise ValueError(f"n_columns must be in [{n}, 2**31), got {wanted}")
    columns = wanted
    table = new_columns(columns)
    if table == NULL:
        raise MemoryError
    try:
        table.total = total
        make_columns(table, &view[0], n, STEPS * columns)
        return arrays(table)
    finally:
        PyMem_RawFree(table)


cdef tuple arrays(const columns_t* table):
    """Return (share, alias) of a table; two empty arrays for NULL."""
    cdef Py_ssize_t n_columns = 0 if table == NULL else table.n_columns, c
    share = np.empty(n_columns, np.uint64)
    alias = np.empty(n_columns, np.int32)
    cdef uint64_t[::1] share_view = share
    cdef int32_t[::1] alias_view = alias
    for c in range(n_columns):
        share_view[c] = table.share[c]
        alias_view[c] = alias_of(table, c)
    return share, alias


cdef void release(columns_t* table) noexcept nogil:
    """End a reader's use of a table."""
    table.n_readers -= 1
    if table.is_given_up and table.n_readers == 0:
        PyMem_RawFree(table)


cdef void give_up(columns_t* table) noexcept nogil:
    """Free a table, or leave that to the last of its readers."""
    if table != NULL and table.n_readers:
        table.is_given_up = True
    else:
        PyMem_RawFree(table)


# -- the tree -------------------------------------------------------------------------------

cdef inline Py_ssize_t child(const int64_t* sums, int64_t r) noexcept nogil:
    """Return the last of WIDTH children, the sums to the left of which are <= r. No branch."""
    cdef Py_ssize_t k = 4 * ((sums[4] <= r) + (sums[8] <= r) + (sums[12] <= r))
    return k + (sums[k + 1] <= r) + (sums[k + 2] <= r) + (sums[k + 3] <= r)


cdef inline Py_ssize_t leaf(const int64_t* weight, Py_ssize_t count, int64_t r) noexcept nogil:
    """Return the first of `count` <= WIDTH weights, the sum up to which is > r."""
    cdef int64_t one, two, three, up_to = 0
    cdef Py_ssize_t k, found = 0
    if count == WIDTH:  # as in `child`: four quarters, and the fourths of one
        one = weight[0] + weight[1] + weight[2] + weight[3]
        two = weight[4] + weight[5] + weight[6] + weight[7]
        three = weight[8] + weight[9] + weight[10] + weight[11]
        found = 4 * ((one <= r) + (one + two <= r) + (one + two + three <= r))
        r -= ((one & -<int64_t>(found >= 4)) + (two & -<int64_t>(found >= 8))
              + (three & -<int64_t>(found >= 12)))
        weight += found
        one = weight[0]
        two = one + weight[1]
        three = two + weight[2]
        return found + (one <= r) + (two <= r) + (three <= r)
    for k in range(count):
        up_to += weight[k]
        found += up_to <= r
    return found


cdef inline uint64_t below(uint64_t bits, uint64_t bound) noexcept nogil:
    """Make of a draw an unbiased number in [0, bound)."""
    cdef uint128 product = <uint128>bits * <uint128>bound
    cdef uint64_t low = <uint64_t>product
    if low < bound and low < (0 - bound) % bound:
        return splitmix64_below(&bits, bound)
    return <uint64_t>(product >> 64)


@cython.no_gc_clear
cdef class Draws(Picker):
    """Weighted random draws: the runs of WeightedRandom, and the first choice of others.

    Not to be made by itself.
    """

    def __dealloc__(self):
        give_up(self.columns)
        PyMem_Free(self.tree)

    cdef int resize(self, Py_ssize_t capacity) except -1:
        """Lay the tree out for so many weights, and sum up those that there are."""
        cdef Py_ssize_t n_sums[MOST_LEVELS]   # from the lowest level upwards
        cdef Py_ssize_t count = (capacity + WIDTH - 1) // WIDTH, size = 0
        cdef int n_levels = 0, k
        cdef int64_t* sums
        cdef void* tree
        while count > 1:
            count = (count + WIDTH - 1) // WIDTH
            n_sums[n_levels] = count * WIDTH
            size += count * WIDTH
            n_levels += 1
        tree = PyMem_Malloc(size * sizeof(int64_t) + CACHE_LINE)
        if tree == NULL:
            raise MemoryError
        PyMem_Free(self.tree)
        self.tree = tree
        self.n_levels = n_levels
        sums = <int64_t*>((<uintptr_t>tree + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE)
        memset(sums, 0, size * sizeof(int64_t))
        for k in range(n_levels):
            self.level[k] = sums
            sums += n_sums[n_levels - 1 - k]
        self.sum_up()
        return 0

    @cython.final
    cdef void sum_up(self) noexcept nogil:
        """Fill the tree, which is all 0, from the weights."""
        cdef Py_ssize_t i, count = (self.n + WIDTH - 1) // WIDTH
        cdef int64_t total = 0, one
        cdef int k = self.n_levels - 1
        cdef int64_t* sums
        if k < 0:
            return
        for i in range(self.n):
            self.level[k][i // WIDTH] += self.weight[i]
        while k >= 0:
            sums = self.level[k]
            for i in range(count):
                if i % WIDTH == 0:
                    total = 0
                one = sums[i]
                sums[i] = total
                total += one
                if k > 0 and (i % WIDTH == WIDTH - 1 or i == count - 1):
                    self.level[k - 1][i // WIDTH] = total
            # To the right of the last child nothing is to be found.
            for i in range(count, (count + WIDTH - 1) // WIDTH * WIDTH):
                sums[i] = total
            count = (count + WIDTH - 1) // WIDTH
            k -= 1

    @cython.final
    cdef void shift(self, size_t i, int64_t difference) noexcept nogil:
        """Bring the tree to another weight of i."""
        cdef int k
        for k in range(self.n_levels - 1, -1, -1):
            i //= WIDTH
            rota_shift(self.level[k] + i // WIDTH * WIDTH, i % WIDTH, difference)

    @cython.final
    cdef inline int32_t find(self, uint64_t bits) noexcept nogil:
        """Return the index that the 64-bit draw `bits` selects, by the tree."""
        cdef int64_t r = below(bits, self.total)
        cdef Py_ssize_t node = 0, c
        cdef const int64_t* sums
        cdef int k
        for k in range(self.n_levels):
            sums = self.level[k] + node * WIDTH
            c = child(sums, r)
            r -= sums[c]
            node = node * WIDTH + c
        node *= WIDTH
        return node + leaf(self.weight + node, min(WIDTH, self.capacity - node), r)

    cdef int begin(self) except -1:
        self.start_over()
        self.stream = self.random
        self.random = ~self.random
        self.make_whole()
        self.n_left = 0
        self.run_length = N_DRAWN
        return 0

    @cython.final
    cdef int make_whole(self) except -1:
        """See to a table that is ready."""
        if self.n_live:
            if not self.has_columns():
                raise MemoryError
            make_columns(self.columns, self.weight, self.n, STEPS * self.columns.n_columns)
        return 0

    @cython.final
    cdef void start_over(self) noexcept nogil:
        """Throw away what was drawn ahead, and the table: the weights are about to change."""
        self.stream -= <uint64_t>(self.end - self.cursor) * <uint64_t>SPLITMIX_GAMMA
        self.forget_run()
        self.run_length = 1  # a number drawn for nothing is a way down the tree for nothing
        self.is_large = False  # `refill` fetches for the whole run
        self.is_by_table = False
        while <Py_ssize_t>1 << self.log2_columns < self.n:
            self.log2_columns += 1
        self.wait = max((<Py_ssize_t>1 << self.log2_columns) >> 3, 1)
        self.n_left = 2 * self.wait
        if self.columns != NULL:
            if self.columns.n_readers:
                give_up(self.columns)
                self.columns = NULL
            else:
                self.columns.n_done = 0

    @cython.final
    cdef bint has_columns(self) noexcept nogil:
        """See to a table that is as wide as it must be now; False without the memory."""
        cdef Py_ssize_t n_columns = <Py_ssize_t>1 << self.log2_columns
        if self.columns == NULL or self.columns.n_columns != n_columns:
            give_up(self.columns)
            self.columns = new_columns(n_columns)
            if self.columns == NULL:
                return False
        if self.columns.n_done == 0:
            self.columns.log2_columns = self.log2_columns
            self.columns.total = self.total
            self.columns.small, self.columns.large = 0, n_columns
        return True

    cdef void refill(self) noexcept nogil:
        cdef Py_ssize_t k, length, left
        if self.n_live == 0:
            return
        length = min(self.run_length, N_DRAWN)
        self.is_by_table = self.n_left == 0
        if self.is_by_table:
            draw(self.columns, self.ahead, length, self.stream)
        else:
            # Not past where the table is begun: a change may come before that.
            left = self.n_left - self.wait
            length = min(length, left if left > 0 else self.n_left)
            for k in range(length):
                self.ahead[k] = self.find(
                    splitmix64_mix(self.stream + (k + 1) * <uint64_t>SPLITMIX_GAMMA)
                )
            self.n_left -= length
            if self.n_left < self.wait:
                self.make_ready()
        self.stream += <uint64_t>length * <uint64_t>SPLITMIX_GAMMA
        self.cursor = self.ahead
        self.end = self.ahead + length
        self.lengthen_run()
        if self.n >= PREFETCH_FROM:
            for k in range(length):
                prefetch(self.items[self.ahead[k]], 1)  # its reference count

    @cython.final
    cdef void make_ready(self) noexcept nogil:
        """Make as much of the table as is due."""
        cdef Py_ssize_t n_steps = STEPS * (<Py_ssize_t>1 << self.log2_columns)
        if self.has_columns():
            n_steps = n_steps // self.wait * (self.wait - self.n_left)
            make_columns(self.columns, self.weight, self.n, n_steps)
        else:
            self.n_left = 2 * self.wait  # the tree does, too

    @cython.final
    cdef bint is_table_next(self) noexcept nogil:
        """Whether the next pick is the table's."""
        return self.is_by_table or self.n_left == 0 and self.cursor == self.end

    cdef void appear(self, Py_ssize_t i) noexcept nogil:
        self.start_over()

    cdef void reweigh(self, Py_ssize_t i, int64_t weight) noexcept nogil:
        self.start_over()
        self.shift(i, weight - self.weight[i])
        self.note(i, weight)

    cdef dict options(self):
        return {}

    cdef object state(self):
        """Return (stream, draws left of the tree), as if nothing had been drawn ahead."""
        cdef Py_ssize_t ahead = self.end - self.cursor
        return (
            int(self.stream - <uint64_t>ahead * <uint64_t>SPLITMIX_GAMMA),
            0 if self.is_by_table else self.n_left + ahead,
        )

    cdef int restore(self, state) except -1:
        """Go on from a state; the table is made at once, and waits until it is due."""
        if not isinstance(state, tuple) or len(state) != 2:
            raise ValueError(f"state must be a pair, got {state!r}")
        cdef uint64_t stream = as_uint64("state", state[0])
        cdef uint64_t n_left = as_uint64("state", state[1])
        if n_left > <uint64_t>(2 * self.wait):
            raise ValueError(f"state must have at most {2 * self.wait} draws, got {n_left}")
        self.make_whole()
        self.forget_run()
        self.run_length = N_DRAWN
        self.is_by_table = False
        self.stream, self.n_left = stream, n_left
        return 0


@cython.final
@cython.no_gc_clear
cdef class WeightedRandom(Draws):
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
    pick O(1), after a change O(log n) for a while; set_weight, add, remove O(log n), in base
    16, but O(n) when an `add` doubles the arrays; build O(n); 34 to 50 bytes an instance. Any
    number of threads may share it. The numbers are SplitMix64(seed), one for each pick.
    Walker 1977, doi:10.1145/355744.355749; Vose 1991, doi:10.1109/32.92917.
    """

    def __cinit__(self, instances, weights=None, *, seed=None):
        self.hold(instances, weights, seed)
        self.resize(self.capacity)
        self.begin()
        self.is_made(seed)

    def pick(self):
        """Return the next instance, or None when nothing has weight. O(1)."""
        return take(self)

    cdef int write(self, int32_t* out, Py_ssize_t count) except -1:
        """Take runs up to the table's turn; reserve the rest, and draw it without the GIL."""
        cdef Py_ssize_t k
        cdef uint64_t stream
        cdef columns_t* columns
        if self.n_live == 0:
            return Picker.write(self, out, count)
        while count and (self.cursor < self.end or self.n_left):
            if self.cursor == self.end:
                self.refill()
            k = min(count, self.end - self.cursor)
            memcpy(out, self.cursor, k * sizeof(int32_t))
            self.cursor += k
            out += k
            count -= k
        if count == 0:
            return 0  # and there may be no table yet
        stream, columns = self.stream, self.columns
        self.stream += <uint64_t>count * <uint64_t>SPLITMIX_GAMMA
        columns.n_readers += 1
        with nogil:
            draw(columns, out, count, stream)
        release(columns)
        return 0

    def index_of(self, bits):
        """Return the index that the 64-bit draw `bits` selects; None when nothing has weight.

        A picker's draws are the numbers of SplitMix64(seed). Which index it is changes with
        the weights, and when the table of them is ready. O(1), or O(log n) before that.

        Raises
        ------
        TypeError, ValueError
            `bits` is no integer, or outside [0, 2**64).
        """
        cdef uint64_t drawn = as_uint64("bits", bits)
        with cython.critical_section(self):
            if self.n_live == 0:
                return None
            return locate(self.columns, drawn) if self.is_table_next() else self.find(drawn)

    def alias_table(self):
        """Return (share, alias), the integers that picks are made of; see `alias_table`.

        The number of columns is the least power of two that is len(weights) or more. Two
        empty arrays when nothing has weight, and after a change until the table is ready
        (a quarter as many picks as it has columns). O(n).
        """
        cdef columns_t* columns = NULL
        with cython.critical_section(self):
            if self.n_live and self.is_table_next():
                columns = self.columns
                columns.n_readers += 1
        try:
            return arrays(columns)
        finally:
            if columns != NULL:
                with cython.critical_section(self):
                    release(columns)
