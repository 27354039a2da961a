"""What every picker is to C: a run of indices, and a way to begin the next one.

Consumers call the functions; the fields are for the kernels of this package and may
move between minor versions.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from cpython.object cimport PyObject

# Cython's own critical_section counts a reference to self, twice the cost of a pick.
# These are nothing under the GIL and the object's lock without it.
cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    typedef PyCriticalSection rota_lock_t;
    #define rota_lock(lock, self) PyCriticalSection_Begin(lock, self)
    #define rota_unlock(lock) PyCriticalSection_End(lock)
    #else
    typedef char rota_lock_t;
    #define rota_lock(lock, self) ((void)(lock), (void)(self))
    #define rota_unlock(lock) ((void)(lock))
    #endif
    #define rota_given(reference) (reference)

    /* Before 3.12 the garbage is collected where a container is made, and with that any
       finalizer runs. Not so between these two. */
    #if PY_VERSION_HEX < 0x030C0000
    #define rota_hush() PyGC_Disable()
    #define rota_unhush(was) ((was) ? (void)PyGC_Enable() : (void)0)
    #else
    #define rota_hush() 0
    #define rota_unhush(was) ((void)(was))
    #endif
    """
    ctypedef struct lock_t "rota_lock_t":
        pass
    void lock "rota_lock"(lock_t* section, PyObject* self) noexcept nogil
    void unlock "rota_unlock"(lock_t* section) noexcept nogil
    # 1: about to be written to.
    void prefetch "__builtin_prefetch"(const void* address, int rw) noexcept nogil
    # A reference is counted while the lock is held, and handed on after it.
    void keep "Py_INCREF"(PyObject* reference) noexcept
    object given "rota_given"(PyObject* reference)
    int hush "rota_hush"() noexcept
    void unhush "rota_unhush"(int was) noexcept

cdef enum:
    # A pick of a large picker fetches the reference count of the one that comes so many
    # picks later. Arrays of indices have as many valid ones beyond their end.
    AHEAD = 8
    # The first run after a change is short, for it may be thrown away by the next one;
    # each further run is twice as long.
    FIRST_RUN = 4
    # A cycle shorter than this is laid out several times over, so that the runs of a small
    # picker are long enough for `refill` not to show.
    SHORTEST_RUN = 64
    LONGEST_RUN = 1024

# A schedule, as far as it has been walked. Copied from without the GIL: so it is not written
# to while it has readers, and one that was given up is freed by the last of them.
cdef struct table_t:
    Py_ssize_t capacity
    int32_t n_readers
    bint is_given_up
    int32_t indices[1]           # capacity + AHEAD of them


cdef class Picker:
    cdef const int32_t* cursor   # the next index of the current run
    cdef const int32_t* end      # one past its last
    cdef const int32_t* cycle    # a schedule that repeats for ever (in `table`), or NULL
    cdef Py_ssize_t period       # its length
    cdef uint64_t n_laps         # how often it was gone through (for those who count it)
    cdef table_t* table
    cdef table_t* spare          # for a change while `table` has readers
    cdef Py_ssize_t n_walked     # of the table
    cdef Py_ssize_t run_length   # of the next run, at most
    cdef PyObject** items        # the instances: the list's own array
    cdef list held               # the list, `capacity` long; None where there is no instance
    cdef object weight_array     # numpy int64, shape (capacity,)
    cdef int64_t* weight         # its data
    cdef uint8_t* is_present     # by index
    cdef int32_t* vacant         # indices that were left, the last one on top; or NULL
    cdef Py_ssize_t n_vacant
    cdef Py_ssize_t capacity     # indices there is room for
    cdef Py_ssize_t n            # indices given out so far
    cdef Py_ssize_t n_live       # instances with weight > 0
    cdef int64_t total           # sum of the weights
    cdef uint64_t version        # raised by each change
    cdef bint is_large           # too many for the cache: fetch reference counts ahead
    cdef Py_ssize_t start        # rotation of the list, in [0, n)
    cdef uint64_t random         # SplitMix64 state for what is not the schedule itself
    cdef object __weakref__

    # What the algorithms use.
    cdef int hold(self, instances, weights, seed) except -1
    cdef int rotate(self, start) except -1
    cdef int is_made(self, seed) except -1
    cdef bint take_table(self, Py_ssize_t capacity) noexcept nogil
    cdef void give_up_table(self) noexcept nogil
    cdef void forget_run(self) noexcept nogil
    cdef void lengthen_run(self) noexcept nogil
    cdef void close_cycle(self) noexcept nogil
    cdef void note(self, Py_ssize_t i, int64_t weight) noexcept nogil
    cdef int make_room(self, Py_ssize_t coming) except -1
    cdef Py_ssize_t admit(self, PyObject* instance, int64_t weight) except -1
    cdef int may_vacate(self) except -1
    cdef PyObject* dismiss(self, Py_ssize_t i) except NULL

    # What each algorithm gives; see picker.pyx.
    cdef int begin(self) except -1
    cdef void refill(self) noexcept nogil
    cdef int write(self, int32_t* out, Py_ssize_t count) except -1
    cdef int resize(self, Py_ssize_t capacity) except -1
    cdef void fetch(self, Py_ssize_t i) noexcept nogil
    cdef int prepare(self, Py_ssize_t i, int64_t weight) except -1
    cdef int foresee(self, weights) except -1
    cdef void appear(self, Py_ssize_t i) noexcept nogil
    cdef void reweigh(self, Py_ssize_t i, int64_t weight) noexcept nogil
    cdef void vanish(self, Py_ssize_t i) noexcept nogil
    cdef int reorder(self, const int32_t* order, Py_ssize_t count) except -1
    cdef dict options(self)
    cdef object state(self)
    cdef int restore(self, state) except -1


# The index of an instance that has not left; ValueError or TypeError for any other. Under the
# lock.
cdef Py_ssize_t present(Picker picker, object index) except -1


# The index of the next instance, -1 when nothing has weight. O(1), no Python, no GIL
# needed; one thread at a time on one picker.
cdef int32_t picker_index(Picker picker) noexcept nogil


# For other people's Cython, and, through the table of include/rota.h, for C and C++. Both rest
# on this: a function is never removed here, nor given other arguments, another result, other
# demands on its caller or another meaning (that raises ROTA_ABI_VERSION); new ones come at the
# end, of these and of the table. Of each it is said who may call it; "one thread" means one at a
# time on one picker, with no change and no pick of it from Python meanwhile. `picker_index`,
# above, is one of them: one thread. A thread that picks without the GIL takes a picker of its
# own, copy.copy(picker) or one made with a start or seed of its own.

# Write the next `count` indices, -1 where nothing has weight. O(count), no Python, no GIL
# needed; one thread.
cdef void picker_fill(Picker picker, int32_t* out, Py_ssize_t count) noexcept nogil

# Every index is below this; one whose instance has left counts too. With the GIL.
cdef Py_ssize_t picker_length(Picker picker) noexcept

# The instance of an index, borrowed from the picker until that is changed: None where it has
# left, NULL for an index out of range, such as -1. O(1). With the GIL.
cdef PyObject* picker_object(Picker picker, int32_t i) noexcept


# The body of every `pick`. CPython's interpreter takes its short way into a compiled method
# only where the method belongs to the very class of the object, so each picker has a `pick`
# of its own around this.
cdef inline object take(Picker picker):
    cdef lock_t section
    cdef PyObject* instance
    lock(&section, <PyObject*>picker)
    if picker.cursor == picker.end:
        picker.refill()
        if picker.cursor == picker.end:
            unlock(&section)
            return None
    instance = picker.items[picker.cursor[0]]
    if picker.is_large:
        prefetch(picker.items[picker.cursor[AHEAD]], 1)
    picker.cursor += 1
    keep(instance)
    unlock(&section)
    return given(instance)
