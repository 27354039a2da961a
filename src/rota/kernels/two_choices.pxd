"""What the load-aware pickers are to C: pick and count, and say how it ended."""

from libc.stdint cimport int32_t, uint64_t

from rota.kernels.picker cimport AHEAD
from rota.kernels.weighted_random cimport Draws

# Loads are shared by a picker, those among its instances, and leases; under the GIL one at a
# time. Without one the numbers are read and written each by itself, and never torn.
cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    #define rota_get(field) __atomic_load_n(field, __ATOMIC_RELAXED)
    #define rota_count(field, more) __atomic_add_fetch(field, more, __ATOMIC_RELAXED)
    #define ROTA_READ_AND_WRITE(type, suffix)                                        \
        static inline type rota_read##suffix(const type *field)                      \
        {                                                                            \
            type value;                                                              \
            __atomic_load(field, &value, __ATOMIC_RELAXED);                          \
            return value;                                                            \
        }                                                                            \
        static inline void rota_write##suffix(type *field, type value)               \
        {                                                                            \
            __atomic_store(field, &value, __ATOMIC_RELAXED);                         \
        }
    ROTA_READ_AND_WRITE(double, )
    ROTA_READ_AND_WRITE(float, _float)
    #else
    #define rota_get(field) (*(field))
    #define rota_count(field, more) (*(field) += (more))
    #define rota_read(field) (*(field))
    #define rota_write(field, value) ((void)(*(field) = (value)))
    #define rota_read_float rota_read
    #define rota_write_float rota_write
    #endif
    """
    int32_t get "rota_get"(const int32_t* field) noexcept nogil
    int32_t count "rota_count"(int32_t* field, int32_t more) noexcept nogil
    double read "rota_read"(const double* field) noexcept nogil
    void write "rota_write"(double* field, double value) noexcept nogil
    float read_float "rota_read_float"(const float* field) noexcept nogil
    void write_float "rota_write_float"(float* field, float value) noexcept nogil

# What is known of one instance's load. It stays where it is, for as long as a picker or a
# lease knows of it.
cdef struct load_t:
    int32_t n_holders
    int32_t in_flight    # requests begun and not ended
    double key           # of the average latency, as it is compared (peak_ewma.pyx); -inf: none
    double cost          # the average latency when it was last changed, seconds; 0: none yet
    double stamp         # that time
    float log2_weight
    float last_rtt       # the latency before, seconds


cdef class TwoChoices(Draws):
    cdef load_t** load           # by index
    cdef int32_t* live           # the indices with weight, in no order
    cdef int32_t* place          # of each index there
    cdef const int32_t* draw     # the draws of the current run that were not used yet
    cdef const int32_t* last_draw
    cdef int32_t chosen[1 + AHEAD]
    cdef bint is_view            # among the instances of another picker
    cdef load_t* spare           # for an update, where others hold what it forgets
    cdef Py_ssize_t n_loads      # room for so many

    cdef int hold_loads(self) except -1
    cdef void rewind(self) noexcept nogil
    cdef int32_t choose(self) noexcept nogil
    cdef int32_t second(self, int32_t first) noexcept nogil
    cdef int32_t at(self, Py_ssize_t place) noexcept nogil

    # What each algorithm gives; see two_choices.pyx.
    cdef int32_t prefer(self, int32_t first) noexcept nogil
    cdef int now(self, bint is_exact, double* seconds) except -1
    cdef int observe(self, load_t* load, double rtt, double now, object error) except -1
    cdef int join(self, TwoChoices whole) except -1


# The body of every `acquire`; each picker has one of its own, as `pick` (see `take`).
cdef object begin_call(TwoChoices picker)

# The same of `acquire_index` and `done`.
cdef int32_t begin_index(TwoChoices picker) noexcept
cdef int end_index(TwoChoices picker, object index, object rtt, object error) except -1

# Pick, and count one more in flight there: the index, -1 when nothing has weight. O(1), no
# Python, no GIL needed; one thread at a time on one picker.
cdef int32_t two_choices_acquire(TwoChoices picker) noexcept nogil

# Count one less in flight at an index that was acquired. O(1), no Python, no GIL needed; one
# thread at a time on one picker.
cdef void two_choices_release(TwoChoices picker, int32_t i) noexcept nogil
