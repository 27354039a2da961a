"""What every hash picker is to C: from the place of a key to the index of its instance.

Consumers call the functions; fields and methods are for the kernels of this package
and may move between minor versions.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t

from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF

from rota.kernels.picker cimport lock, lock_t, unlock

# The lock that keeps picks and changes apart without a GIL is that of the list `slots`: so
# what the roster does to that list is kept apart too. Whoever holds it runs no Python and
# waits for nothing, for it would be let go meanwhile: a change makes ready all that it needs,
# takes the lock to put it in place, and gives back what was there before only afterwards.

# A walk clockwise from a place, for replicas.
cdef struct walk_t:
    uint64_t at        # where it is; what this means is the structure's affair
    Py_ssize_t within
    Py_ssize_t n_done  # steps taken
    uint64_t version   # the picker's when it began: of no use after a change

cdef class HashPicker:
    cdef object roster         # who is on the ring; rota.roster
    cdef list slots            # its instances by index; None where one has left. Never another
    cdef object get_key
    cdef object place_by_rule  # bytes -> place, or None: MurmurHash3
    cdef object weight_array   # the roster's, as of the last change
    cdef const int64_t* weight
    cdef int64_t total
    cdef Py_ssize_t n
    cdef object loads_array    # numpy int64: in flight, by index
    cdef int64_t* load
    cdef int64_t n_in_flight
    cdef object generations_array  # numpy int64
    cdef int64_t* generation   # of each index: raised when its instance leaves
    cdef uint64_t version      # raised whenever what a walk goes through has changed; from 1 on
    cdef uint64_t load_factor  # in 65,536ths; 0: loads make no difference
    cdef Py_ssize_t most_attempts
    cdef object lock           # held by whoever changes the picker
    cdef bint is_changing
    cdef object __weakref__

    cdef int hold(self, instances, weights, get_key, load_factor, replicas, name) except -1
    cdef int changed(self, list indices) except -1
    cdef int follow(self, list indices) except -1
    cdef int leave(self, list indices) except -1
    cdef object present(self)
    cdef int32_t owner(self, uint64_t place) noexcept nogil
    cdef walk_t begin(self, uint64_t place) noexcept nogil
    cdef int32_t step(self, walk_t* walk) noexcept nogil
    cdef bint is_full(self, int32_t i) noexcept nogil
    cdef int32_t choose(self, uint64_t place) noexcept nogil
    cdef void look_up(self, const uint64_t* places, int32_t* out, Py_ssize_t count) noexcept nogil
    cdef int place(self, object key, uint64_t* out) except -1

# One change of a picker at a time: what every change, and all that may take long to read a
# picker and runs Python meanwhile, is done within.
cdef class Changing:
    cdef HashPicker picker


# The index of the instance for a key at `place`, -1 when nothing has weight. O(1) expected,
# no Python, no GIL needed; any number of threads at once, as long as nobody changes the picker
# (with a load factor, acquire and release change it). Against changes the GIL helps; without
# one, `lock(&section, <PyObject*>picker.slots)`.
cdef int32_t hash_picker_index(HashPicker picker, uint64_t place) noexcept nogil


# A new reference to the instance of an index, to None for -1; under the lock.
cdef inline PyObject* instance_at(HashPicker picker, int32_t i) noexcept:
    cdef PyObject* instance = <PyObject*>None
    if <size_t>i < <size_t>PyList_GET_SIZE(picker.slots):
        instance = <PyObject*>PyList_GET_ITEM(picker.slots, i)
    Py_INCREF(<object>instance)
    return instance


# For other people's Cython, and through the table of include/rota.h; picker.pxd says what
# may change.

# Every index is below this; one whose instance has left counts too. With the GIL.
cdef Py_ssize_t hash_picker_length(HashPicker picker) noexcept

# The instance of an index, borrowed from the picker until that is changed: None where it has
# left, NULL for an index out of range, such as -1. O(1). With the GIL.
cdef PyObject* hash_picker_object(HashPicker picker, int32_t i) noexcept

# Find the place of a key by the picker's own rule; TypeError or ValueError for what can be no
# key. With the GIL.
cdef int hash_picker_place(HashPicker picker, object key, uint64_t* out) except -1
