"""The one hot path of all pickers.

A picker is a stream of *runs*: arrays of indices that are valid as they stand. A pick
reads the next index of the current run and moves a cursor; only when the run is used up
does the algorithm take part (`refill`), and it answers with a whole run again:

    round robin                 one run, the list itself, for ever
    weighted round robin        the period table; without one, a stretch of equal weights
    interleaved                 one pass over the instances still in the round
    weighted random             the next 64 draws

    run      | 2 | 0 | 1 | 2 | 0 | 1 |
                       ^ cursor        ^ end

Invariants
- cursor <= end, and every index in [cursor, end) is in [0, n) and has weight > 0.
- cursor == end after `refill` if and only if nothing has weight: then a pick is None.
- The instances are held by one tuple; indices are all that the algorithms see.

Cost: a pick is two loads, a store and a reference count. No clock, lock, allocation or
Python frame. `critical_section` is nothing under the GIL and a per-object lock without.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF

from types import GenericAlias

import numpy as np

from rota.arguments import (
    as_count, as_instances, as_int32_out, as_seed, as_start, as_uint64, as_weights,
)

cimport cython

from rota.kernels.picker cimport AHEAD, lock, lock_t, take, unlock
from rota.kernels.splitmix64 cimport splitmix64_below

cdef extern from *:
    """
    #define rota_tuple_items(held) (((PyTupleObject*)(held))->ob_item)
    """
    PyObject** tuple_items "rota_tuple_items"(object held) noexcept

# A cycle shorter than this is laid out several times over, so that the runs of a small
# picker are long enough for `refill` not to show.
cdef enum:
    SHORTEST_RUN = 64
# `Attempts` asks the picker this often for an instance not tried yet before it draws one
# by weight from those that are left.
    MOST_REPEATS = 16
# Copies of fewer indices keep the GIL: letting it go costs more.
    COPY_WITH_GIL = 4096
# Instances from which on their reference counts are fetched ahead.
    LARGE = 4096


cdef struct entry_t:
    int64_t weight
    int32_t place
    int32_t index


cdef int lighter(const void* one, const void* other) noexcept nogil:
    cdef const entry_t* a = <const entry_t*>one
    cdef const entry_t* b = <const entry_t*>other
    if a.weight != b.weight:
        return -1 if a.weight < b.weight else 1
    return a.place - b.place


cdef int32_t picker_index(Picker picker) noexcept nogil:
    cdef int32_t i
    if picker.cursor == picker.end:
        picker.refill()
        if picker.cursor == picker.end:
            return -1
    i = picker.cursor[0]
    picker.cursor += 1
    return i


cdef inline int32_t locked_index(Picker picker) noexcept:
    """The next index, for one of any number of threads."""
    cdef lock_t section
    cdef int32_t i = -1
    lock(&section, <PyObject*>picker)
    if picker.cursor == picker.end:
        picker.refill()
    if picker.cursor != picker.end:
        i = picker.cursor[0]
        picker.cursor += 1
    unlock(&section)
    return i


@cython.no_gc_clear  # it holds raw addresses; cycles are broken at what the tuple holds
cdef class Picker:
    """The base of every compiled picker: all it does but the order itself.

    Not to be made by itself. Any number of threads may share a picker.
    """

    __class_getitem__ = classmethod(GenericAlias)

    def __cinit__(self):
        self.held = ()
        self.weight_array = np.zeros(0, np.int64)

    def __dealloc__(self):
        PyMem_Free(self.cycle)

    # -- for the algorithms -------------------------------------------------------------

    cdef int hold(self, instances, weights, seed) except -1:
        """Check and keep the arguments; nothing of self changes before all are good."""
        cdef tuple held = as_instances(instances)
        cdef object array = as_weights(weights, len(held))
        cdef uint64_t random = as_seed(seed)
        cdef const int64_t[::1] view = array
        cdef Py_ssize_t i
        self.held = held
        self.items = tuple_items(held)
        self.weight_array = array
        self.n = len(held)
        self.random = random
        array.setflags(write=False)  # to all but the kernel, which has its address
        if self.n:
            self.weight = &view[0]
        for i in range(self.n):
            self.n_live += self.weight[i] > 0
        self.is_large = self.n >= LARGE
        return 0

    cdef int rotate(self, start) except -1:
        """Set the rotation: `start` as given, or drawn where it is None."""
        if start is not None:
            self.start = as_start(start, self.n)
        elif self.n:
            self.start = splitmix64_below(&self.random, self.n)
        return 0

    cdef int32_t* live_from_start(self) except? NULL:
        """Return a new array of the n_live indices with weight, in rotated order, and AHEAD more.

        NULL when there are none. The caller frees it.
        """
        cdef Py_ssize_t i, k = 0
        if self.n_live == 0:
            return NULL
        cdef int32_t* order = <int32_t*>PyMem_Calloc(self.n_live + AHEAD, sizeof(int32_t))
        if order == NULL:
            raise MemoryError
        for i in range(self.start, self.n):
            if self.weight[i] > 0:
                order[k] = i
                k += 1
        for i in range(self.start):
            if self.weight[i] > 0:
                order[k] = i
                k += 1
        return order

    cdef int32_t* live_by_weight(self) except? NULL:
        """Return a new array of the n_live indices, lightest first, equals in rotated order.

        NULL when there are none. The caller frees it. O(n log n).
        """
        cdef int32_t* order = self.live_from_start()
        cdef Py_ssize_t k
        if order == NULL:
            return NULL
        cdef entry_t* entries = <entry_t*>PyMem_Malloc(self.n_live * sizeof(entry_t))
        if entries == NULL:
            PyMem_Free(order)
            raise MemoryError
        for k in range(self.n_live):
            entries[k].weight = self.weight[order[k]]
            entries[k].place = k
            entries[k].index = order[k]
        qsort(entries, self.n_live, sizeof(entry_t), lighter)
        for k in range(self.n_live):
            order[k] = entries[k].index
        PyMem_Free(entries)
        return order

    cdef int64_t weight_gcd(self) noexcept nogil:
        """Return the greatest common divisor of the weights; 0 when nothing has weight."""
        cdef int64_t divisor = 0, a, b
        cdef Py_ssize_t i
        for i in range(self.n):
            a = self.weight[i]
            b = divisor
            while b:
                a, b = b, a % b
            divisor = a
            if divisor == 1:
                break
        return divisor

    cdef int cycle_through(self, int32_t* schedule, Py_ssize_t period) except -1:
        """Repeat `schedule` (period >= 1) from now on; self owns a copy of it."""
        cdef Py_ssize_t laps = (SHORTEST_RUN + period - 1) // period, lap
        cdef int32_t* cycle = <int32_t*>PyMem_Calloc(laps * period + AHEAD, sizeof(int32_t))
        if cycle == NULL:
            raise MemoryError
        for lap in range(laps):
            memcpy(cycle + lap * period, schedule, period * sizeof(int32_t))
        PyMem_Free(self.cycle)
        self.cycle = cycle
        self.period = laps * period
        self.cursor = self.end = cycle
        return 0

    cdef void refill(self) noexcept nogil:
        """Begin the next run. Here: the cycle once more."""
        if self.cycle != NULL:
            self.cursor = self.cycle
            self.end = self.cycle + self.period

    cdef int write(self, int32_t* out, Py_ssize_t count) except -1:
        """Write the next `count` indices to `out`, -1 where nothing has weight."""
        cdef Py_ssize_t k, i, period
        cdef const int32_t* source
        cdef const int32_t* cycle
        while count > 0:
            if self.cursor == self.end:
                self.refill()
                if self.cursor == self.end:
                    for i in range(count):
                        out[i] = -1
                    return 0
            source = self.cursor
            if self.end == self.cycle + self.period and self.cycle != NULL:
                # The whole range is known: reserve it, then copy without the GIL.
                cycle, period = self.cycle, self.period
                self.cursor = cycle + (source - cycle + count) % period
                if count < COPY_WITH_GIL:
                    copy_cycle(out, count, cycle, period, source - cycle)
                else:
                    with nogil:
                        copy_cycle(out, count, cycle, period, source - cycle)
                return 0
            k = min(count, self.end - source)
            self.cursor = source + k
            memcpy(out, source, k * sizeof(int32_t))
            out += k
            count -= k
        return 0

    cdef dict options(self):
        """Return the keyword arguments, besides the seed, that make this picker again."""
        return {"start": self.start}

    cdef object state(self):
        """Return what `restore` needs to go on from here; a tuple of integers."""
        return (self.cursor - self.cycle) % self.period if self.cycle != NULL else 0

    cdef int restore(self, state) except -1:
        """Go on from a state of a picker with the same instances, weights and start."""
        cdef Py_ssize_t position = state
        if not 0 <= position < max(self.period, 1):
            raise ValueError(f"state must be a position in the cycle, got {state!r}")
        self.refill()
        self.cursor += position
        return 0

    # -- for everybody ------------------------------------------------------------------

    def next(self, ctx=None, request=None):
        """Return the next instance, or None: Kitex's Picker. Both arguments are ignored."""
        return take(self)

    def __iter__(self):
        return self

    def __next__(self):
        cdef int32_t i = locked_index(self)
        if i < 0:
            raise StopIteration
        return <object>self.items[i]

    def pick_index(self):
        """Return the index of the next instance, or None when nothing has weight. O(1)."""
        cdef int32_t i = locked_index(self)
        if i < 0:
            return None
        return i

    def pick_many(self, n):
        """Return the next n picks as a list: [pick() for _ in range(n)], O(n).

        Raises
        ------
        TypeError, ValueError
            n is no integer, or negative.
        """
        cdef Py_ssize_t count = as_count(n), k
        cdef int32_t i
        cdef list picks = PyList_New(count)
        cdef object instance
        with cython.critical_section(self):
            for k in range(count):
                i = picker_index(self)
                instance = None if i < 0 else <object>self.items[i]
                Py_INCREF(instance)  # PyList_SET_ITEM takes this one over
                PyList_SET_ITEM(picks, k, instance)
        return picks

    def fill(self, out):
        """Write the indices of the next len(out) picks to `out`; -1 where there is none.

        Parameters
        ----------
        out : writable buffer of int32, shape (k,), C-contiguous
            Such as a numpy array or an array.array("i").

        Raises
        ------
        TypeError
            `out` is no buffer, or not of 32-bit integers.
        ValueError
            `out` is read-only, not one-dimensional, or not contiguous.

        Notes
        -----
        O(k). The range is reserved before the GIL is let go (copies of 4,096 indices or
        more from a cycle, and all random draws), so that concurrent picks neither repeat
        nor skip.
        """
        cdef Py_buffer view
        if not int32_view(out, &view):
            as_int32_out(out)  # raises, and says why
            raise TypeError(f"out must be a buffer of int32, got {out!r}")
        try:
            with cython.critical_section(self):
                self.write(<int32_t*>view.buf, view.len // sizeof(int32_t))
        finally:
            PyBuffer_Release(&view)

    def attempts(self, ctx=None, request=None):
        """Return an iterator over distinct instances in the order to try them.

        It serves one logical request: the first is one pick, each further one is the
        next pick not tried yet (drawn by weight among those left when 16 picks in a row
        bring only tried ones), and `.next()` gives None when every instance with weight
        has been tried. O(1) for the first; O(n) at worst for a later one.
        """
        return Attempts(self)

    @property
    def instances(self):
        """The instances, a tuple."""
        return self.held

    @property
    def weights(self):
        """The weights: int64 array of shape (n,), a read-only view of the kernel's own memory."""
        return np.asarray(memoryview(self.weight_array).toreadonly())

    def __len__(self):
        return self.n

    def __repr__(self):
        total = sum(self.weight_array.tolist())
        return f"{type(self).__name__}({self.n} instances, total weight {total})"

    def __reduce__(self):
        with cython.critical_section(self):
            state = (self.random, self.state())
        return _rebuild, (type(self), self.held, self.weight_array.copy(), self.options(), state)

    def __copy__(self):
        rebuild, arguments = self.__reduce__()
        return rebuild(*arguments)

    def _restore(self, state):
        """Go on from the state of another picker with the same arguments (unpickling)."""
        cdef uint64_t random
        if not isinstance(state, tuple) or len(state) != 2:
            raise ValueError(f"state must be a pair, got {state!r}")
        random = as_uint64("state", state[0])
        with cython.critical_section(self):
            self.restore(state[1])
            self.random = random


def _rebuild(cls, instances, weights, options, state):
    """Make the picker that `__reduce__` described."""
    cdef Picker picker = cls(instances, weights, seed=0, **options)
    picker._restore(state)
    return picker


cdef void copy_cycle(int32_t* out, Py_ssize_t count, const int32_t* cycle, Py_ssize_t period,
                     Py_ssize_t position) noexcept nogil:
    """Write `count` indices of the cycle from `position`, by copies that double in length."""
    cdef Py_ssize_t done = min(count, period - position), k
    memcpy(out, cycle + position, done * sizeof(int32_t))
    if done == count:
        return
    k = min(count - done, position)
    memcpy(out + done, cycle, k * sizeof(int32_t))
    done += k
    # out[0:period] is now one whole lap (or all there is to write): repeat it, by whole
    # laps, and not from further back than the nearest cache holds.
    while done < count:
        k = min(count - done, done, max(period, COPY_WITH_GIL // period * period))
        memcpy(out + done, out, k * sizeof(int32_t))
        done += k


cdef bint int32_view(object out, Py_buffer* view) except -1:
    """Take `out` as a buffer of int32; False, with nothing held, where it is none."""
    try:
        PyObject_GetBuffer(out, view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
    except (BufferError, TypeError, ValueError):
        return False
    if (view.ndim == 1 and view.itemsize == sizeof(int32_t) and view.format != NULL
            and view.format[0] in b"il" and view.format[1] == 0):
        return True
    PyBuffer_Release(view)
    return False


@cython.final
@cython.no_gc_clear
@cython.freelist(8)
cdef class Attempts:
    """The instances to try for one request, each at most once. For one thread."""

    cdef Picker picker
    cdef uint8_t* tried        # one bit per index; NULL until the second attempt
    cdef Py_ssize_t n_tried
    cdef int32_t first

    __class_getitem__ = classmethod(GenericAlias)

    def __cinit__(self, Picker picker not None):
        self.picker = picker

    def __dealloc__(self):
        PyMem_Free(self.tried)

    def next(self):
        """Return the next instance to try, or None when none is left."""
        cdef int32_t i = self.next_index()
        return None if i < 0 else <object>self.picker.items[i]

    def __iter__(self):
        return self

    def __next__(self):
        cdef int32_t i = self.next_index()
        if i < 0:
            raise StopIteration
        return <object>self.picker.items[i]

    cdef int32_t next_index(self) except -2:
        cdef Picker picker = self.picker
        cdef int32_t i
        if self.n_tried >= picker.n_live:
            return -1
        with cython.critical_section(picker):
            if self.n_tried == 0:
                i = self.first = picker_index(picker)
            else:
                if self.tried == NULL:
                    self.tried = <uint8_t*>PyMem_Calloc((picker.n + 7) // 8, 1)
                    if self.tried == NULL:
                        raise MemoryError
                    self.mark(self.first)
                i = self.untried(picker)
                self.mark(i)
        self.n_tried += 1
        return i

    cdef bint was_tried(self, int32_t i) noexcept nogil:
        return self.tried[i >> 3] >> (i & 7) & 1

    cdef void mark(self, int32_t i) noexcept nogil:
        self.tried[i >> 3] |= 1 << (i & 7)

    cdef int32_t untried(self, Picker picker) noexcept nogil:
        """Return an index with weight that was not tried; there is one."""
        cdef Py_ssize_t i, _repeat
        cdef uint64_t left = 0, drawn
        for _repeat in range(MOST_REPEATS):
            i = picker_index(picker)
            if not self.was_tried(i):
                return i
        for i in range(picker.n):
            if not self.was_tried(i):
                left += picker.weight[i]
        drawn = splitmix64_below(&picker.random, left)
        for i in range(picker.n):
            if not self.was_tried(i):
                if drawn < <uint64_t>picker.weight[i]:
                    return i
                drawn -= picker.weight[i]
        return -1


# -- for other people's C -------------------------------------------------------------------

cdef void picker_fill(Picker picker, int32_t* out, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t k
    while count > 0:
        if picker.cursor == picker.end:
            picker.refill()
            if picker.cursor == picker.end:
                for k in range(count):
                    out[k] = -1
                return
        k = min(count, picker.end - picker.cursor)
        memcpy(out, picker.cursor, k * sizeof(int32_t))
        picker.cursor += k
        out += k
        count -= k


cdef Py_ssize_t picker_length(Picker picker) noexcept:
    return picker.n


cdef PyObject* picker_object(Picker picker, int32_t i) noexcept:
    return picker.items[i] if 0 <= i < picker.n else NULL


include "c_api.pxi"
