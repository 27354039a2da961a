"""Interleaved weighted round robin, for cimport; pick with `picker_index`."""

from libc.stdint cimport int32_t, int64_t

from rota.kernels.picker cimport Picker

# What is known of an instance with weight.
cdef struct node_t:
    int64_t goal                 # the level of its last turn of the round
    int64_t place                # 2 * slot + which of the two queues

cdef class InterleavedWeightedRoundRobin(Picker):
    cdef node_t* nodes           # by index
    cdef int32_t* queues[2]      # indices by slot, -1 a gap; 2 * capacity + MARGIN slots each
    cdef int which               # of the two is `current`
    cdef Py_ssize_t head         # current: slots before it are done with in this pass
    cdef Py_ssize_t first        # current: from here on, and
    cdef Py_ssize_t kept         # before here: the next pass
    cdef Py_ssize_t length       # current: slots of this pass
    cdef Py_ssize_t n_waiting    # next: slots in use
    cdef Py_ssize_t swept        # next: slots looked at by the sweep
    cdef Py_ssize_t swept_to     # next: slots it has filled
    cdef int64_t divisor         # of the round
    cdef int64_t level           # divisor times the number of the pass, from 1
    cdef int64_t common          # divides all weights, 0 without any
    cdef bint may_be_greater     # the greatest that does may be a multiple of it
    cdef Py_ssize_t witness      # the weight that last made it smaller was this one's
    cdef int32_t* run            # the current run: a copy
    cdef const int32_t* moved    # of the run, what comes before this has been moved
    cdef bint is_whole_rounds    # the run is, and so is repeated
    cdef Py_ssize_t lap_length   # of the run

    cdef void clear(self) noexcept nogil
    cdef void drop_run(self) noexcept nogil
    cdef Py_ssize_t repeat(self, Py_ssize_t count, Py_ssize_t longest) noexcept nogil
    cdef void settle(self) noexcept nogil
    cdef void await_next(self, int32_t i) noexcept nogil
    cdef void sweep(self) noexcept nogil
    cdef void begin_round(self) noexcept nogil
    cdef void find_head(self) noexcept nogil
    cdef void find_common(self) noexcept nogil
