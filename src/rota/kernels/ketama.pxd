"""The consistent hash ring, for cimport; pick with `hash_picker_index`."""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from rota.kernels.hash_picker cimport HashPicker

cdef enum:
    LINE = 5   # points in a line

# One cache line: some neighbouring points of the ring and who owns them. Slots without a
# point have the place 2**64 - 1 and, as has the last owner, the owner of the point after.
cdef struct line_t:
    uint64_t place[LINE]
    int32_t owner[LINE + 1]

cdef struct point_t:
    uint64_t place
    int32_t index

cdef struct ring_t:
    line_t* lines         # bucket b begins at line b; lines beyond are for overflow
    void* memory          # what `lines`, on a cache line's boundary, lies in
    uint32_t* next_line   # of each line: where its bucket goes on, 0: nowhere
    uint8_t* n_in_line    # points in each line
    Py_ssize_t n_buckets
    Py_ssize_t n_lines    # in use, of buckets and of overflow
    Py_ssize_t capacity   # lines there is memory for
    uint32_t free_line    # overflow lines to use again, linked by next_line; 0: none
    Py_ssize_t n_points

cdef class ConsistentHash(HashPicker):
    cdef ring_t ring
    cdef object rule
    cdef list names              # the roster's
    cdef list counts             # points of each index
    cdef dict options
    cdef bint is_murmur

    cdef int build(self, list wanted, Py_ssize_t n) except -1
    cdef int resize(self, Py_ssize_t index, Py_ssize_t count) except -1
    cdef int make_room(self, Py_ssize_t more, Py_ssize_t growth) except -1
    cdef int lay_out_again(self, Py_ssize_t target) except -1
    cdef int lay_out(self, point_t* points, Py_ssize_t n, Py_ssize_t target, bint sorted) except -1
    cdef int reserve(self, Py_ssize_t capacity) except -1
    cdef void replace(self, ring_t* ring) noexcept
    cdef int insert(self, uint64_t place, int32_t index) except -1
    cdef int erase(self, uint64_t place, int32_t index) except -1
    cdef uint64_t* places_of(self, bytes name, Py_ssize_t first, Py_ssize_t last) except? NULL
