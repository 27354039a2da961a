"""Weighted random by exact tables and trees, for cimport; pick with `picker_index`."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from rota.kernels.picker cimport AHEAD, Picker

cdef enum:
    N_DRAWN = 64
    WIDTH = 16       # of the tree: weights, or sums, under one sum
    MOST_LEVELS = 7  # WIDTH**(7 + 1) > 2**31 weights

# An alias table, or what there is of it. Read without the GIL: so it is not written to while
# it has readers, and one that was given up is freed by the last of them.
cdef struct columns_t:
    int32_t n_readers
    bint is_given_up
    int log2_columns             # of a picker's
    Py_ssize_t n_columns
    uint64_t total               # sum of the weights
    Py_ssize_t n_done            # steps of the work to make it
    Py_ssize_t small             # columns not made yet that want mass, and
    Py_ssize_t large             # n_columns less those that have too much
    uint64_t* share              # exact numerators of the columns' own shares, over `total`
    uint64_t column[1]           # alias << 32 | threshold, of 2**32


cdef class Draws(Picker):
    cdef columns_t* columns      # NULL until there is something to lay out
    cdef bint is_by_table        # the run is the table's
    cdef int log2_columns        # of the table for the instances of now
    cdef Py_ssize_t wait         # draws after a change before the table is begun
    cdef Py_ssize_t n_left       # draws of the tree yet to be made; 0: the table's turn
    cdef int n_levels            # of the tree
    cdef int64_t* level[MOST_LEVELS]  # its nodes, WIDTH sums each; level[0] is the root
    cdef void* tree              # the memory of it
    cdef uint64_t stream         # SplitMix64 state of the draws
    cdef int32_t ahead[N_DRAWN + AHEAD]  # the draws of the current run

    cdef void start_over(self) noexcept nogil
    cdef void sum_up(self) noexcept nogil
    cdef void shift(self, size_t i, int64_t difference) noexcept nogil
    cdef inline int32_t find(self, uint64_t bits) noexcept nogil
    cdef bint has_columns(self) noexcept nogil
    cdef int make_whole(self) except -1
    cdef void make_ready(self) noexcept nogil
    cdef bint is_table_next(self) noexcept nogil


cdef class WeightedRandom(Draws):
    pass
