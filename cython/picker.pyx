"""The one hot path of all pickers.

A picker is a stream of *runs*: arrays of indices that are valid as they stand. A pick
reads the next index of the current run and moves a cursor; only when the run is used up
does the algorithm take part (`refill`), and it answers with a whole run again:

    round robin                 the list itself, for ever
    weighted, and fair          the period table; without one, a stretch of equal weights
    interleaved                 the head of the queue
    weighted random             the next 64 draws

    run      | 2 | 0 | 1 | 2 | 0 | 1 |
                       ^ cursor        ^ end

Invariants
- cursor <= end, and every index in [cursor, end) is in [0, n), present, of weight > 0.
- cursor == end after `refill` if and only if nothing has weight: then a pick is None.
- An index is an instance's for as long as it stays. One that was left stands for nobody
  (None, weight 0) until a later `add` is given it, the one left last first.
- A change makes sure of all memory first, and of everything that could fail or run Python;
  the rest of it is plain C, so that nobody sees half of it, and the objects it lets go are
  let go last.

Changes, for algorithms. `weight[i]` changes in `reweigh` only. An algorithm gives
    begin       lay out the schedule from nothing: is_present, weight, start
    refill      the next run, at most `run_length` long (begun short after a change: it may
                be thrown away)
    resize      room for that many indices in its own arrays
    fetch       i is about to change: have memory fetched
    prepare     room for i to have that weight
    foresee     room for all that an update to a list of these weights does
    appear      i is new and has weight 0: its place is the last of the list
    reweigh     i has another weight from now on: bring the schedule to where the picks are
                (those handed out, not those of the run), and `note` it
    vanish      i, whose weight is 0, has no place any more
    reorder     the list is in another order
    write       the next indices into an array, where that can be done without the GIL
    options     the keyword arguments that make this picker again, and with them
    state       what a copy needs to go on from here, and
    restore     that put into force
Where the base does what is wanted a hook is left out.

Cost: a pick is two loads, a store and a reference count. No clock, lock, allocation or
Python frame. A lock is nothing under the GIL and a per-object one without.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.mem cimport (
    PyMem_Calloc, PyMem_Free, PyMem_RawFree, PyMem_RawMalloc, PyMem_Realloc,
)
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF

import operator
from types import GenericAlias

import numpy as np

from rota.arguments import (
    as_count, as_index, as_instances, as_int32_out, as_new_total, as_seed, as_start, as_uint64,
    as_weight, as_weights,
)
from rota.fork import unseeded
from rota.identity import match
from rota.outcome import unheard

cimport cython

from rota.kernels.picker cimport (
    AHEAD, FIRST_RUN, LONGEST_RUN, SHORTEST_RUN, given, hush, keep, lock, lock_t, prefetch,
    take, unhush, unlock,
)
from rota.kernels.splitmix64 cimport splitmix64_below

cdef extern from *:
    """
    #define rota_list_items(held) (((PyListObject*)(held))->ob_item)

    /* Whether an object is an int of one digit, at least 0; that is what nearly all are. */
    static inline int rota_is_small(PyObject *object, int64_t *value)
    {
        if (!PyLong_CheckExact(object)) return 0;
    #if PY_VERSION_HEX >= 0x030C0000
        if (!PyUnstable_Long_IsCompact((PyLongObject *)object)) return 0;
        *value = (int64_t)PyUnstable_Long_CompactValue((PyLongObject *)object);
        return *value >= 0;
    #else
        if ((size_t)Py_SIZE(object) > 1) return 0;
        *value = Py_SIZE(object) ? (int64_t)((PyLongObject *)object)->ob_digit[0] : 0;
        return 1;
    #endif
    }
    """
    bint is_small "rota_is_small"(object number, int64_t* value) noexcept
    PyObject** list_items "rota_list_items"(list held) noexcept
    void untrack "PyObject_GC_UnTrack"(void* container) noexcept
    void track "PyObject_GC_Track"(void* container) noexcept
    void drop "Py_DECREF"(PyObject* reference) noexcept

cdef enum:
    # `Attempts` asks the picker this often for an instance not tried yet before it draws one
    # by weight from those that are left.
    MOST_REPEATS = 16
    # Copies of fewer indices keep the GIL: letting it go costs more.
    COPY_WITH_GIL = 4096
    # Instances from which on their reference counts are fetched ahead.
    LARGE = 4096
    MOST_INSTANCES = 0x7FFFFFFF

cdef int64_t MOST_WEIGHT = 0x7FFFFFFFFFFFFFFF


cdef int32_t picker_index(Picker picker) noexcept nogil:
    cdef int32_t i
    if picker.cursor == picker.end:
        picker.refill()
        if picker.cursor == picker.end:
            return -1
    i = picker.cursor[0]
    picker.cursor += 1
    return i


cdef PyObject* locked_item(Picker picker) noexcept:
    """The next instance, a reference to it, for one of any number of threads; or NULL."""
    cdef lock_t section
    cdef int32_t i
    cdef PyObject* instance = NULL
    lock(&section, <PyObject*>picker)
    i = picker_index(picker)
    if i >= 0:
        instance = picker.items[i]
        keep(instance)
    unlock(&section)
    return instance


cdef table_t* new_table(Py_ssize_t capacity) noexcept nogil:
    """Return a table of that many indices, all 0, and AHEAD more; NULL without the memory."""
    cdef size_t size = sizeof(table_t) + (capacity + AHEAD) * sizeof(int32_t)
    cdef table_t* table = <table_t*>PyMem_RawMalloc(size)
    if table != NULL:
        memset(table, 0, size)
        table.capacity = capacity
    return table


cdef inline int64_t as_int64(object weight) except -1:
    """Return a weight as a C integer; the checks are those of `as_weight`."""
    cdef int64_t value
    if is_small(weight, &value):
        return value
    return as_weight(weight)


cdef Py_ssize_t present(Picker picker, object index) except -1:
    """Return the index of an instance that has not left."""
    cdef int64_t i
    if not is_small(index, &i) or i >= picker.n:
        i = as_index(index, picker.n)
    picker.fetch(i)
    if picker.weight[i] == 0 and not picker.is_present[i]:
        raise ValueError(f"index must be of an instance that has not left, got {i}")
    return i


cdef inline int free_table(Picker picker) except -1:
    """See to a table that can be written to, before a change of the schedule."""
    if picker.table != NULL and picker.table.n_readers and picker.spare == NULL:
        picker.spare = new_table(picker.table.capacity)
        if picker.spare == NULL:
            raise MemoryError
    return 0


cdef inline int give(Picker picker, Py_ssize_t i, int64_t weight) except -1:
    """Give i that weight; nothing where it has it."""
    cdef int64_t old = picker.weight[i]
    if weight == old:
        return 0
    if weight > MOST_WEIGHT - (picker.total - old):
        as_new_total(int(picker.total) - old + weight)
    free_table(picker)
    picker.prepare(i, weight)
    picker.reweigh(i, weight)
    return 0


@cython.no_gc_clear  # it holds raw addresses; cycles are broken at what the list holds
cdef class Picker:
    """The base of every compiled picker: all it does but the order itself.

    Not to be made by itself. Any number of threads may share a picker.
    """

    __class_getitem__ = classmethod(GenericAlias)

    def __cinit__(self):
        # Reading the arguments may run anything, and gc.get_objects gives whatever is tracked:
        # what is not made yet is not to be found there. `is_made` ends it.
        untrack(<void*>self)
        self.held = []
        self.weight_array = np.zeros(0, np.int64)
        self.run_length = LONGEST_RUN

    def __dealloc__(self):
        PyMem_RawFree(self.table)
        PyMem_RawFree(self.spare)
        PyMem_Free(self.is_present)
        PyMem_Free(self.vacant)

    # -- for the algorithms -------------------------------------------------------------

    cdef int hold(self, instances, weights, seed) except -1:
        """Check and keep the arguments; nothing of self changes before all are good."""
        cdef tuple checked = as_instances(instances)
        cdef object array = as_weights(weights, len(checked))
        cdef uint64_t random = as_seed(seed)
        cdef int64_t[::1] view = array
        cdef Py_ssize_t i, n = len(checked)
        self.is_present = <uint8_t*>PyMem_Calloc(max(n, 1), sizeof(uint8_t))
        if self.is_present == NULL:
            raise MemoryError
        self.held = list(checked)
        self.items = list_items(self.held)
        self.weight_array = array
        self.n = self.capacity = n
        self.random = random
        if n:
            self.weight = &view[0]
        for i in range(n):
            self.is_present[i] = True
            self.n_live += self.weight[i] > 0
            self.total += self.weight[i]
        self.is_large = n >= LARGE
        return 0

    cdef int rotate(self, start) except -1:
        """Set the rotation: `start` as given, or drawn where it is None."""
        if start is not None:
            self.start = as_start(start, self.n)
        elif self.n:
            self.start = splitmix64_below(&self.random, self.n)
        return 0

    cdef int is_made(self, seed) except -1:
        """All is there from here on: it may be found, and a fork may begin it anew."""
        track(<void*>self)
        if seed is None:
            unseeded.add(self)
        return 0

    cdef bint take_table(self, Py_ssize_t capacity) noexcept nogil:
        """See to a table of `capacity` indices and more, with nothing walked.

        False without the memory: nothing has changed.
        """
        cdef table_t* table = NULL
        if (self.table == NULL or self.table.capacity < capacity
                or (self.table.n_readers and self.spare == NULL)):
            table = new_table(capacity)
            if table == NULL:
                return False
        self.forget_run()
        if table != NULL:
            PyMem_RawFree(self.spare)
            self.spare = NULL
            self.give_up_table()
            self.table = table
        return True

    cdef void give_up_table(self) noexcept nogil:
        if self.table != NULL and self.table.n_readers:
            self.table.is_given_up = True
        else:
            PyMem_RawFree(self.table)
        self.table = NULL

    cdef void forget_run(self) noexcept nogil:
        """Forget the current run, and what was walked before it."""
        self.cursor = self.end = self.cycle = NULL
        self.period = self.n_walked = self.n_laps = 0
        self.run_length = FIRST_RUN
        if self.table != NULL and self.table.n_readers:
            self.give_up_table()
            self.table = self.spare
            self.spare = NULL

    cdef void lengthen_run(self) noexcept nogil:
        self.run_length = min(2 * self.run_length, LONGEST_RUN)

    cdef void close_cycle(self) noexcept nogil:
        """Repeat what was walked, for ever."""
        cdef int32_t* indices = &self.table.indices[0]
        cdef Py_ssize_t period = self.n_walked
        while self.n_walked < SHORTEST_RUN:
            memcpy(indices + self.n_walked, indices, period * sizeof(int32_t))
            self.n_walked += period
        self.cycle = indices
        self.period = self.n_walked
        self.n_laps = 0

    cdef void note(self, Py_ssize_t i, int64_t weight) noexcept nogil:
        """Keep the weight of i, and what follows from it."""
        self.n_live += <int>(weight > 0) - <int>(self.weight[i] > 0)
        self.total += weight - self.weight[i]
        self.weight[i] = weight
        self.version += 1

    # -- changes ------------------------------------------------------------------------

    cdef int make_room(self, Py_ssize_t coming) except -1:
        """See to room for so many more instances. Runs Python: the picker may change meanwhile."""
        cdef Py_ssize_t capacity, n
        cdef int64_t[::1] view
        cdef void* moved
        while self.n - self.n_vacant + coming > self.capacity:
            n = self.capacity
            capacity = max(2 * n, self.n - self.n_vacant + coming, 8)
            if capacity > MOST_INSTANCES:
                capacity = MOST_INSTANCES
                if self.n - self.n_vacant + coming > capacity:
                    raise ValueError(f"instances must number at most {MOST_INSTANCES}, got more")
            array = np.zeros(capacity, np.int64)
            held = [None] * capacity
            view = array
            if self.capacity != n:
                continue  # a finalizer was quicker
            self.resize(capacity)
            moved = PyMem_Realloc(self.is_present, capacity * sizeof(uint8_t))
            if moved == NULL:
                raise MemoryError
            self.is_present = <uint8_t*>moved
            if self.vacant != NULL:
                moved = PyMem_Realloc(self.vacant, capacity * sizeof(int32_t))
                if moved == NULL:
                    raise MemoryError
                self.vacant = <int32_t*>moved
            # Plain C from here on. The lists change places, with what they hold.
            memset(self.is_present + n, 0, capacity - n)
            if n:
                memcpy(&view[0], self.weight, n * sizeof(int64_t))
            swap_items(list_items(held), self.items, n)
            self.items = list_items(held)
            self.weight = &view[0]
            self.capacity = capacity
            self.held, held = held, self.held
            self.weight_array, array = array, self.weight_array
            self.is_large = self.is_large or capacity >= LARGE
        return 0

    cdef Py_ssize_t admit(self, PyObject* instance, int64_t weight) except -1:
        """Take in an instance there is room for; return its index. A reference is taken over."""
        cdef Py_ssize_t i
        cdef PyObject* nobody
        if weight > MOST_WEIGHT - self.total:
            as_new_total(int(self.total) + weight)
        i = self.vacant[self.n_vacant - 1] if self.n_vacant else self.n
        free_table(self)
        self.prepare(i, weight)
        if self.n_vacant:
            self.n_vacant -= 1
        else:
            self.n += 1
        nobody = self.items[i]
        self.items[i] = instance
        drop(nobody)  # None: runs nothing
        self.is_present[i] = True
        self.appear(i)
        if weight:
            self.reweigh(i, weight)
        self.version += 1
        return i

    cdef int may_vacate(self) except -1:
        """See to room for indices that are left: most pickers never need it."""
        if self.vacant == NULL:
            self.vacant = <int32_t*>PyMem_Calloc(self.capacity, sizeof(int32_t))
            if self.vacant == NULL:
                raise MemoryError
        return 0

    cdef PyObject* dismiss(self, Py_ssize_t i) except NULL:
        """Let the instance at i go; its reference is handed over, to be dropped last."""
        cdef PyObject* instance
        self.may_vacate()
        free_table(self)
        self.prepare(i, 0)
        if self.weight[i]:
            self.reweigh(i, 0)
        self.vanish(i)
        self.is_present[i] = False
        self.vacant[self.n_vacant] = i
        self.n_vacant += 1
        self.version += 1
        instance = self.items[i]
        keep(<PyObject*>None)
        self.items[i] = <PyObject*>None
        return instance

    # -- what each algorithm gives, and here what does for some -----------------------------

    cdef int begin(self) except -1:
        return 0

    cdef int resize(self, Py_ssize_t capacity) except -1:
        return 0

    cdef void fetch(self, Py_ssize_t i) noexcept nogil:
        prefetch(&self.weight[i], 1)

    cdef int prepare(self, Py_ssize_t i, int64_t weight) except -1:
        return 0

    cdef int foresee(self, weights) except -1:
        return 0

    cdef void appear(self, Py_ssize_t i) noexcept nogil:
        pass

    cdef void reweigh(self, Py_ssize_t i, int64_t weight) noexcept nogil:
        self.note(i, weight)

    cdef void vanish(self, Py_ssize_t i) noexcept nogil:
        pass

    cdef int reorder(self, const int32_t* order, Py_ssize_t count) except -1:
        return 0

    cdef void refill(self) noexcept nogil:
        if self.cycle != NULL:
            self.cursor = self.cycle
            self.end = self.cycle + self.period

    cdef int write(self, int32_t* out, Py_ssize_t count) except -1:
        """Write the next `count` indices to `out`, -1 where nothing has weight."""
        cdef Py_ssize_t k, i, period
        cdef const int32_t* source
        cdef const int32_t* cycle
        cdef table_t* table
        while count > 0:
            if self.cursor == self.end:
                self.refill()
                if self.cursor == self.end:
                    for i in range(count):
                        out[i] = -1
                    return 0
            source = self.cursor
            if self.cycle != NULL and self.end == self.cycle + self.period:
                # The whole range is known: reserve it, then copy without the GIL.
                table, cycle, period = self.table, self.cycle, self.period
                self.cursor = cycle + (source - cycle + count) % period
                self.n_laps += (source - cycle + count) // period
                if count < COPY_WITH_GIL:
                    copy_cycle(out, count, cycle, period, source - cycle)
                    return 0
                table.n_readers += 1
                with nogil:
                    copy_cycle(out, count, cycle, period, source - cycle)
                table.n_readers -= 1
                if table.is_given_up and table.n_readers == 0:
                    PyMem_RawFree(table)
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
        """Return what `restore` needs to go on from here; integers, in tuples and lists."""
        return None

    cdef int restore(self, state) except -1:
        """Go on from a state of a picker of the same indices and weights."""
        return 0

    # -- for everybody ------------------------------------------------------------------

    def next(self, ctx=None, request=None):
        """Return the next instance, or None: Kitex's Picker. Both arguments are ignored."""
        return take(self)

    def select(self):
        """Return (instance, done): Kratos' interface; None when nothing has weight. O(1).

        `done` is to be called when the call has ended. A picker that does not learn from
        calls does nothing then.
        """
        cdef PyObject* instance = locked_item(self)
        return None if instance == NULL else (given(instance), unheard)

    def __iter__(self):
        return self

    def __next__(self):
        cdef PyObject* instance = locked_item(self)
        if instance == NULL:
            raise StopIteration
        return given(instance)

    def pick_index(self):
        """Return the index of the next instance, or None when nothing has weight. O(1)."""
        cdef lock_t section
        cdef int32_t i
        lock(&section, <PyObject*>self)
        i = picker_index(self)
        unlock(&section)
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

    def set_weight(self, index, weight):
        """Give the instance at `index` another weight; the very next pick obeys it.

        0 drains it: it keeps its index and its place, and is not picked. Everybody else's
        state is kept. The cost does not grow with n; see the page of each picker.

        Raises
        ------
        TypeError, ValueError
            An index of nobody, or a weight out of range; nothing has changed.
        """
        cdef int64_t wanted = as_int64(weight)
        with cython.critical_section(self):
            give(self, present(self, index), wanted)

    def add(self, instance, weight=1):
        """Take an instance in, last in the list; return its index. The next pick obeys it.

        The index is the one that was left last, or else a new one. The cost does not grow
        with n, but that arrays double when they are full.

        Raises
        ------
        TypeError, ValueError
            A weight out of range; nothing has changed.
        """
        cdef int64_t wanted = as_int64(weight)
        cdef Py_ssize_t i
        with cython.critical_section(self):
            while self.n - self.n_vacant == self.capacity:
                self.make_room(1)
            i = self.admit(<PyObject*>instance, wanted)
            keep(<PyObject*>instance)
            return i

    def remove(self, index):
        """Let the instance at `index` go; the index stands for nobody until it is given out again.

        The cost does not grow with n.

        Raises
        ------
        TypeError, ValueError
            An index of nobody; nothing has changed.
        """
        cdef object instance
        with cython.critical_section(self):
            instance = given(self.dismiss(present(self, index)))
        del instance  # only now: it may run anything

    def replace(self, index, instance):
        """Put another object in the place of the instance at `index`. O(1).

        Its weight and all state stay: for a copy of which something else is known now.

        Raises
        ------
        TypeError, ValueError
            An index of nobody; nothing has changed.
        """
        cdef object old
        cdef Py_ssize_t i
        with cython.critical_section(self):
            i = present(self, index)
            old = given(self.items[i])
            keep(<PyObject*>instance)
            self.items[i] = <PyObject*>instance
            self.version += 1
        del old

    def update(self, instances, weights=None):
        """Go over to these instances and weights; who stays keeps index and state.

        An instance stays when one of the new list is the same: of the same `identity`, for
        those that have one (rota.Instance), else equal, else (what cannot be hashed) the
        very object. The order of the list is the new one's. O(n), and the changes' cost.

        Parameters
        ----------
        instances, weights : as when a picker is made

        Raises
        ------
        TypeError, ValueError
            As when a picker is made; nothing has changed.
        """
        cdef tuple wanted = as_instances(instances)
        cdef object array = as_weights(weights, len(wanted))
        cdef const int64_t[::1] view = array
        cdef int32_t[::1] whose
        cdef list gone
        cdef uint64_t version
        cdef Py_ssize_t k, i, n = len(wanted), n_stay
        with cython.critical_section(self):
            while True:
                version = self.version
                # No comprehensions: those of Cython 3.3 let an object go twice without memory.
                present, known = [], []
                for i in range(self.n):
                    if self.is_present[i]:
                        present.append(i)
                        known.append(<object>self.items[i])
                # Comparing runs Python, and so may the new arrays.
                indices, leaving = match(present, known, wanted)
                whose = indices
                self.make_room(n - (self.n - self.n_vacant) + len(leaving))
                free_table(self)
                if leaving:
                    self.may_vacate()
                # First the list: before Python 3.12 a finalizer may run where it is made, and
                # acquire what is foreseen to be nobody's.
                gone = [None] * (len(leaving) + n)
                self.foresee(array)
                if version == self.version:
                    break
            for k in range(len(leaving)):
                i = leaving[k]
                put(gone, k, self.dismiss(i))
            # Who loses weight first: the sum is never too large on the way.
            for k in range(n):
                if whose[k] >= 0 and view[k] < self.weight[whose[k]]:
                    give(self, whose[k], view[k])
            n_stay = len(leaving)
            for k in range(n):
                if whose[k] >= 0:
                    give(self, whose[k], view[k])
                    put(gone, n_stay + k, self.items[whose[k]])
                    keep(<PyObject*>wanted[k])
                    self.items[whose[k]] = <PyObject*>wanted[k]
                else:
                    keep(<PyObject*>wanted[k])
                    whose[k] = self.admit(<PyObject*>wanted[k], view[k])
            if n:
                self.reorder(&whose[0], n)
            self.version += 1
        del gone

    @property
    def instances(self):
        """The instances by index, a tuple; None where one has left."""
        return slots(self)

    @property
    def weights(self):
        """The weights by index: int64 array, a read-only view of the kernel's own memory.

        Live until the picker grows: from then on a view taken before keeps what it had.
        """
        with cython.critical_section(self):
            array, n = self.weight_array, self.n
        return np.asarray(memoryview(array).toreadonly())[:n]

    def __len__(self):
        return self.n - self.n_vacant

    def __repr__(self):
        return f"{type(self).__name__}({len(self)} instances, total weight {self.total})"

    def __reduce__(self):
        cdef Py_ssize_t i, k
        cdef int was
        is_unseeded = self in unseeded
        with cython.critical_section(self):
            was = hush()
            try:
                vacant = [self.vacant[k] for k in range(self.n_vacant)]
                state = (self.random, vacant, self.state(), is_unseeded)
                weights = [self.weight[i] for i in range(self.n)]
                instances = slots(self)
            finally:
                unhush(was)
        return _rebuild, (type(self), instances, np.array(weights, np.int64), self.options(), state)

    def __copy__(self):
        rebuild, arguments = self.__reduce__()
        return rebuild(*arguments)

    def _restore(self, state):
        """Go on from the state of another picker with the same arguments (unpickling)."""
        cdef uint64_t random
        cdef Py_ssize_t i, k
        cdef int was
        if not isinstance(state, tuple) or len(state) != 4:
            raise ValueError(f"state must have four parts, got {state!r}")
        random = as_uint64("state", state[0])
        cdef list vacant = [as_index(i, self.n) for i in state[1]]
        if len(set(vacant)) != len(vacant):
            raise ValueError(f"state must have indices that were left, got {vacant}")
        numbers = plain(state[2])
        # What is above may have run anything; what is below runs nobody else's code.
        with cython.critical_section(self):
            was = hush()
            try:
                for k in range(len(vacant)):
                    i = vacant[k]
                    if self.n_vacant or self.weight[i] or <object>self.items[i] is not None:
                        raise ValueError(f"state must have indices that were left, got {vacant}")
                if vacant:
                    self.may_vacate()
                free_table(self)
                for k in range(len(vacant)):
                    i = vacant[k]
                    self.vacant[k] = i
                    self.is_present[i] = False
                self.n_vacant += len(vacant)
                try:
                    self.restore(numbers)
                except BaseException:
                    self.n_vacant -= len(vacant)
                    for k in range(len(vacant)):
                        i = vacant[k]
                        self.is_present[i] = True
                    raise
                self.random = random
                self.version += 1
            finally:
                unhush(was)
        if state[3]:
            unseeded.add(self)  # a child of a fork goes its own way with a copy, too

    def _reseed(self):
        """Begin anew from the operating system's entropy: in the child of a fork."""
        cdef uint64_t random = as_seed(None)
        with cython.critical_section(self):
            free_table(self)  # the readers that a fork has left behind read for ever
            self.random = random
            self.start = splitmix64_below(&self.random, self.n) if self.n else 0
            self.begin()
            self.version += 1


def _rebuild(cls, instances, weights, options, state):
    """Make the picker that `__reduce__` described."""
    cdef Picker picker = cls(instances, weights, seed=0, **options)
    picker._restore(state)
    return picker


cdef object plain(state):
    """Return a state, of integers and of lists of integers, as just these."""
    if not isinstance(state, tuple):
        return state
    try:
        return tuple([
            [operator.index(number) for number in part] if isinstance(part, (list, tuple))
            else operator.index(part)
            for part in state
        ])
    except TypeError:
        raise TypeError(f"state must be of integers, got {state!r}") from None


cdef tuple slots(Picker picker):
    """Return the instances by index."""
    cdef Py_ssize_t i
    cdef list found = []
    with cython.critical_section(picker):
        for i in range(picker.n):
            found.append(<object>picker.items[i])
    return tuple(found)


cdef void swap_items(PyObject** one, PyObject** other, Py_ssize_t n) noexcept:
    cdef Py_ssize_t i
    for i in range(n):
        one[i], other[i] = other[i], one[i]


cdef void put(list slots, Py_ssize_t k, PyObject* reference) noexcept:
    """Put a reference, which the list takes over, where None is."""
    cdef PyObject** items = list_items(slots)
    drop(items[k])
    items[k] = reference


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
    """The instances to try for one request, each at most once. For one thread.

    The picker may change meanwhile: who comes is tried too, who is drained is not.
    """

    cdef Picker picker
    cdef uint64_t version      # of the picker, that the rest is of
    cdef int32_t first
    cdef bint has_begun
    cdef object first_tried    # the instance
    cdef list tried            # further ones: index, instance
    cdef uint8_t* is_tried     # one bit per index; NULL until the second attempt
    cdef Py_ssize_t n_tried    # instances with weight among them

    __class_getitem__ = classmethod(GenericAlias)

    def __cinit__(self, Picker picker not None):
        self.picker = picker

    def __dealloc__(self):
        PyMem_Free(self.is_tried)

    def next(self):
        """Return the next instance to try, or None when none is left."""
        cdef PyObject* instance = self.next_item()
        return None if instance == NULL else given(instance)

    def __iter__(self):
        return self

    def __next__(self):
        cdef PyObject* instance = self.next_item()
        if instance == NULL:
            raise StopIteration
        return given(instance)

    cdef PyObject* next_item(self) except? NULL:
        """Return a reference to the next instance, or NULL when none is left."""
        cdef Picker picker = self.picker
        cdef PyObject* instance
        cdef object one
        cdef int32_t i
        with cython.critical_section(picker):
            if not self.has_begun:
                i = picker_index(picker)
                if i < 0:
                    return NULL
                instance = picker.items[i]
                self.has_begun, self.first, self.first_tried = True, i, <object>instance
                self.version, self.n_tried = picker.version, 1
            else:
                if self.is_tried == NULL or self.version != picker.version:
                    self.look_again()
                if self.n_tried >= picker.n_live:
                    return NULL
                i = self.untried(picker)
                instance = picker.items[i]
                one = <object>instance  # kept, whatever making the pair collects
                self.tried.append((i, one))
                self.mark(i)
                self.n_tried += 1
            keep(instance)
        return instance

    cdef int look_again(self) except -1:
        """Find who of those tried is still there, under the same index."""
        cdef Picker picker = self.picker
        cdef tuple pair
        if self.tried is None:
            self.tried = []
        cdef uint8_t* is_tried = <uint8_t*>PyMem_Calloc(picker.n // 8 + 1, 1)
        if is_tried == NULL:
            raise MemoryError
        PyMem_Free(self.is_tried)
        self.is_tried = is_tried
        self.version, self.n_tried = picker.version, 0
        self.count(self.first, <PyObject*>self.first_tried)
        for pair in self.tried:
            self.count(pair[0], <PyObject*>pair[1])
        return 0

    cdef void count(self, Py_ssize_t i, PyObject* instance) noexcept:
        if self.picker.items[i] == instance and not self.was_tried(i):
            self.mark(i)
            self.n_tried += self.picker.weight[i] > 0

    cdef bint was_tried(self, int32_t i) noexcept nogil:
        return self.is_tried[i >> 3] >> (i & 7) & 1

    cdef void mark(self, int32_t i) noexcept nogil:
        self.is_tried[i >> 3] |= 1 << (i & 7)

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
