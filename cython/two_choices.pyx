"""What the load-aware pickers share: loads, leases, and the first and the second choice.

Two instances are drawn, and the one that is less loaded is picked: the longest queue is then
exponentially shorter than with one draw (M. Mitzenmacher 2001, doi:10.1109/71.963420), while
clients that know only their own requests do not all run to the same instance, as they would
to the least loaded of all.

    first    drawn in proportion to weight: the run of Draws
    second   drawn evenly among the others; taken only if that is clearly better

So where nothing tells two instances apart, the first draw stands, and picks are shared out
exactly by weight. What "better" means is the algorithm's. It gives
    prefer     the index to pick, where `first` was drawn and there are others
    now        the time, where it wants times
    observe    learn from a call that ended
    join       take over from the whole what a picker among its instances shares with it; that
               was made with the same options, but for the clock

A load (`load_t`) is an instance's own piece of memory: a picker holds it, and so do the
pickers `among` its instances, and every lease. It is let go with the last of them. So what
is learned through one picker is known to all, and a report that comes late, of an instance
that has left, is of no consequence.

Invariants
- in_flight is the number of leases that are open, and of indices acquired and not done.
- live[0:n_live] are the indices with weight; live[place[i]] == i for these.
- The current run (cursor .. end) has one index at most, and that has been used when anything
  else happens: the choice is made when it is asked for. draw .. last_draw is what Draws
  holds to be its run; the two change places before Draws does anything.

Cost: acquire and done O(1); 40 bytes of load an instance, and 16 to find them.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy, memset

from cpython.long cimport PyLong_AsLongAndOverflow
from cpython.mem cimport PyMem_Free, PyMem_RawFree, PyMem_RawMalloc, PyMem_Realloc
from cpython.object cimport PyObject

from types import GenericAlias

import numpy as np

from rota.arguments import as_seconds
from rota.fork import unseeded

cimport cython

from rota.kernels.picker cimport Picker, given, keep, lock, lock_t, prefetch, present, unlock
from rota.kernels.splitmix64 cimport splitmix64_below, splitmix64_next
from rota.kernels.two_choices cimport count, get
from rota.kernels.weighted_random cimport Draws


cdef str IS_VIEW = "a picker among others cannot be changed: change the whole"


cdef int32_t two_choices_acquire(TwoChoices picker) noexcept nogil:
    cdef int32_t i = picker.choose()
    if i >= 0:
        count(&picker.load[i].in_flight, 1)
    return i


cdef void two_choices_release(TwoChoices picker, int32_t i) noexcept nogil:
    cdef load_t* load = picker.load[i] if 0 <= i < picker.n else NULL
    if load != NULL and get(&load.in_flight) > 0:  # who has left may have no load at all
        count(&load.in_flight, -1)


cdef inline void let_go(load_t* load) noexcept nogil:
    if load != NULL and count(&load.n_holders, -1) == 0:
        PyMem_RawFree(load)


cdef inline void clear(load_t* load) noexcept nogil:
    memset(load, 0, sizeof(load_t))
    load.n_holders = 1
    load.key = -INFINITY


cdef inline load_t* new_load() noexcept nogil:
    cdef load_t* load = <load_t*>PyMem_RawMalloc(sizeof(load_t))
    if load != NULL:
        clear(load)
    return load


cdef inline load_t* next_spare(const load_t* load) noexcept nogil:
    cdef load_t* following
    memcpy(&following, &load.key, sizeof(load_t*))
    return following


cdef inline void put_spare(load_t** spare, load_t* load) noexcept nogil:
    memcpy(&load.key, spare, sizeof(load_t*))
    spare[0] = load


cdef inline double seconds_of(object rtt) except -1.0:
    """Return a number of seconds; the checks are those of `as_seconds`."""
    cdef double value
    if type(rtt) is float:
        value = rtt
        if 0.0 <= value < INFINITY:
            return value
    return as_seconds("rtt", rtt)


@cython.no_gc_clear
cdef class TwoChoices(Draws):
    """The base of the load-aware pickers. Not to be made by itself."""

    def __dealloc__(self):
        cdef Py_ssize_t i
        cdef load_t* spare
        for i in range(self.n_loads):
            let_go(self.load[i])
        while self.spare != NULL:
            spare, self.spare = self.spare, next_spare(self.spare)
            let_go(spare)
        PyMem_Free(self.load)
        PyMem_Free(self.live)
        PyMem_Free(self.place)

    # -- what each algorithm gives, and here what does for some -----------------------------

    cdef int32_t prefer(self, int32_t first) noexcept nogil:
        return first

    cdef int now(self, bint is_exact, double* seconds) except -1:
        """Write the time, seconds; 0 for a picker that wants no times. May run Python."""
        seconds[0] = 0.0
        return 0

    cdef int observe(self, load_t* load, double rtt, double now, object error) except -1:
        """Learn from a call that ended now. May run Python; the load is held."""
        return 0

    cdef int join(self, TwoChoices whole) except -1:
        return 0

    # -- the choice -------------------------------------------------------------------------

    cdef int32_t choose(self) noexcept nogil:
        """Return the index to pick, -1 when nothing has weight."""
        cdef int32_t first
        if self.n_live == 0:
            return -1
        if self.draw == self.last_draw:
            Draws.refill(self)
            self.draw, self.last_draw = self.cursor, self.end
            self.cursor = self.end = self.chosen
        first = self.draw[0]
        self.draw += 1
        return first if self.n_live == 1 else self.prefer(first)

    @cython.final
    cdef int32_t second(self, int32_t first) noexcept nogil:
        """Draw one of the others; there are some."""
        cdef Py_ssize_t place = splitmix64_below(&self.random, self.n_live - 1)
        if self.n_live == self.n:
            return place + (place >= first)
        return self.live[place + (place >= self.place[first])]

    @cython.final
    cdef int32_t at(self, Py_ssize_t place) noexcept nogil:
        """Return one of those with weight, place < n_live; in order where that is everybody."""
        return place if self.n_live == self.n else self.live[place]

    cdef void refill(self) noexcept nogil:
        self.chosen[0] = self.choose()
        self.cursor = self.chosen
        self.end = self.chosen + (self.chosen[0] >= 0)

    cdef int write(self, int32_t* out, Py_ssize_t n) except -1:
        return Picker.write(self, out, n)

    # -- changes ----------------------------------------------------------------------------

    cdef int hold_loads(self) except -1:
        """See to a load for each instance, and to the list of those with weight."""
        cdef Py_ssize_t i, n = 0
        for i in range(self.n):
            self.load[i] = new_load()
            if self.load[i] == NULL:
                raise MemoryError
            if self.weight[i]:
                self.live[n] = i
                self.place[i] = n
                n += 1
        return 0

    cdef void rewind(self) noexcept nogil:
        """Let Draws have its run again, before it takes part."""
        self.cursor, self.end = self.draw, self.last_draw
        self.draw = self.last_draw = NULL

    cdef int begin(self) except -1:
        self.rewind()
        return Draws.begin(self)

    cdef int resize(self, Py_ssize_t capacity) except -1:
        cdef void* moved = PyMem_Realloc(self.load, capacity * sizeof(load_t*))
        if moved == NULL:
            raise MemoryError
        self.load = <load_t**>moved
        if capacity > self.n_loads:
            memset(self.load + self.n_loads, 0, (capacity - self.n_loads) * sizeof(load_t*))
            self.n_loads = capacity
        moved = PyMem_Realloc(self.live, capacity * sizeof(int32_t))
        if moved == NULL:
            raise MemoryError
        self.live = <int32_t*>moved
        moved = PyMem_Realloc(self.place, capacity * sizeof(int32_t))
        if moved == NULL:
            raise MemoryError
        self.place = <int32_t*>moved
        return Draws.resize(self, capacity)

    cdef void fetch(self, Py_ssize_t i) noexcept nogil:
        Draws.fetch(self, i)
        prefetch(self.load[i], 1)

    cdef int prepare(self, Py_ssize_t i, int64_t weight) except -1:
        if self.is_view:
            raise TypeError(IS_VIEW)
        if self.load[i] == NULL:
            self.load[i] = new_load()
            if self.load[i] == NULL:
                raise MemoryError
        return 0

    cdef int foresee(self, weights) except -1:
        """See to loads for all who may come, and spare ones for those that others hold."""
        cdef Py_ssize_t i, n_spare = 0
        cdef load_t* load
        cdef load_t* spare
        if self.is_view:
            raise TypeError(IS_VIEW)
        for i in range(max(self.n, <Py_ssize_t>len(weights))):
            self.prepare(i, 0)
            n_spare += get(&self.load[i].n_holders) > 1
        spare = self.spare
        while spare != NULL and n_spare:
            spare = next_spare(spare)
            n_spare -= 1
        while n_spare:
            load = new_load()
            if load == NULL:
                raise MemoryError
            put_spare(&self.spare, load)
            n_spare -= 1
        return 0

    cdef void appear(self, Py_ssize_t i) noexcept nogil:
        self.rewind()
        Draws.appear(self, i)

    cdef void reweigh(self, Py_ssize_t i, int64_t weight) noexcept nogil:
        cdef int32_t last
        self.rewind()
        if self.weight[i] == 0:
            self.live[self.n_live] = i
            self.place[i] = self.n_live
        elif weight == 0:
            last = self.live[self.n_live - 1]
            self.live[self.place[i]] = last
            self.place[last] = self.place[i]
        Draws.reweigh(self, i, weight)

    cdef void vanish(self, Py_ssize_t i) noexcept nogil:
        """Forget the load of i; where others hold it, leave it to them."""
        cdef load_t* load = self.load[i]
        if get(&load.n_holders) > 1:
            self.load[i] = self.spare
            if self.spare != NULL:
                self.spare = next_spare(self.spare)
                clear(self.load[i])
            let_go(load)
        else:
            clear(load)

    cdef object state(self):
        """Return Draws' state, and the order of those with weight: second draws go by it."""
        cdef const int32_t* cursor = self.cursor
        cdef const int32_t* end = self.end
        cdef Py_ssize_t k
        cdef list live = []
        self.cursor, self.end = self.draw, self.last_draw
        try:
            stream, n_left = Draws.state(self)
        finally:
            self.cursor, self.end = cursor, end
        for k in range(self.n_live):
            live.append(int(self.live[k]))
        return stream, n_left, live

    cdef int restore(self, state) except -1:
        """Go on from a state; nothing is in flight."""
        cdef Py_ssize_t k, i
        if self.is_view:
            raise TypeError(IS_VIEW)
        if not isinstance(state, tuple) or len(state) != 3 or not isinstance(state[2], list):
            raise ValueError(f"state must have three parts, got {state!r}")
        cdef list live = state[2]
        if len(live) != self.n_live or len(set(live)) != len(live):
            raise ValueError(f"state must have the {self.n_live} indices with weight, got {live}")
        for i in live:
            if not 0 <= i < self.n or self.weight[i] == 0:
                raise ValueError(f"state must have indices with weight, got {i}")
        Draws.restore(self, state[:2])
        self.draw = self.last_draw = NULL
        for k in range(self.n_live):
            i = live[k]
            self.live[k] = i
            self.place[i] = k
        return 0

    # -- for everybody ----------------------------------------------------------------------

    def acquire(self):
        """Pick, and count one more in flight there, until the lease is released. O(1)."""
        return begin_call(self)

    def select(self):
        """Return (instance, done): Kratos' interface; None when nothing has weight. O(1).

        Call `done(info)` or `done(err=error)` when the call has ended; it takes the time.
        """
        cdef Lease lease = <Lease>Lease.__new__(Lease)
        self.now(True, &lease.start)
        lease.is_timed = True
        return (lease.instance, lease) if take_lease(self, lease) else None

    def among(self, indices):
        """Return a picker of these instances only, which shares their loads with this one.

        For a part of the fleet: what is in flight, and what is known of latencies, is known
        to both. It is of the instances and weights of now, and cannot be changed. O(n) of it.

        Raises
        ------
        TypeError, ValueError
            An index of nobody.
        """
        cdef list members = list(indices), instances, weights
        cdef uint64_t version
        cdef Py_ssize_t k, i
        cdef TwoChoices picker
        cdef str kind = type(self).__name__
        with cython.critical_section(self):
            for k in range(len(members)):  # asked once: a number of one's own may run anything
                i = present(self, members[k])
                members[k] = i
        while True:
            instances, weights = [], []
            with cython.critical_section(self):
                version = self.version
                for k in range(len(members)):
                    i = present(self, members[k])
                    instances.append(<object>self.items[i])
                    weights.append(self.weight[i])
                seed = None if self in unseeded else int(splitmix64_next(&self.random))
            options = self.options()
            options.pop("clock", None)  # one that changes this picker would go on for ever
            picker = type(self)(instances, weights, seed=seed, **options)
            with cython.critical_section(self, picker):
                if version != self.version:
                    continue  # making it ran something that changed this one
                if picker is self or picker.n != len(members):
                    raise TypeError(f"{kind} is not made of instances, so none is of some of them")
                for k in range(len(members)):
                    i = present(self, members[k])
                    count(&self.load[i].n_holders, 1)
                    let_go(picker.load[k])
                    picker.load[k] = self.load[i]
                picker.is_view = True
                picker.join(self)
                return picker

    def replace(self, index, instance):
        """Put another object in the place of the instance at `index`, which keeps its load. O(1).

        Raises
        ------
        TypeError, ValueError
            An index of nobody, or a picker among others; nothing has changed.
        """
        if self.is_view:
            raise TypeError(IS_VIEW)
        Picker.replace(self, index, instance)

    @property
    def loads(self):
        """Requests in flight by index: int64 array, a copy."""
        cdef Py_ssize_t i
        with cython.critical_section(self):
            n = self.n
        cdef object array = np.zeros(n, np.int64)
        cdef int64_t[::1] view = array
        with cython.critical_section(self):
            for i in range(min(view.shape[0], self.n)):
                if self.load[i] != NULL:
                    view[i] = get(&self.load[i].in_flight)
        return array


@cython.final
@cython.freelist(64)
@cython.no_gc_clear  # it counts down when it is let go
cdef class Lease:
    """One request in flight: reports how it ended, once. For `select` it is `done`.

    Let go without a report (an exception, a cancelled task) it is released: what was counted
    when it began is counted back exactly once, whatever happens.
    """

    cdef TwoChoices picker
    cdef load_t* load            # held; NULL until there is one
    cdef readonly object instance
    cdef readonly Py_ssize_t index
    cdef double start            # seconds, if it is timed
    cdef bint is_timed
    cdef bint is_open

    __class_getitem__ = classmethod(GenericAlias)

    def __dealloc__(self):
        if self.load != NULL:
            close(self)
            let_go(self.load)

    def done(self, rtt, error=None):
        """Say how the call has ended; the first report counts, others do nothing. O(1).

        Parameters
        ----------
        rtt : float
            How long it took, seconds.
        error : exception or None

        Raises
        ------
        TypeError, ValueError
            No finite number of seconds >= 0; the lease is still open.
        """
        cdef double seconds = seconds_of(rtt), now
        if close(self):  # first: the call has ended, even if the clock fails
            self.picker.now(False, &now)
            self.picker.observe(self.load, seconds, now, error)

    def release(self):
        """End the call without saying how; after a report it does nothing. O(1)."""
        close(self)

    def __call__(self, info=None, *, err=None):
        """Say how the call has ended, Kratos' way: the time since `select` is taken here.

        Parameters
        ----------
        info : DoneInfo, exception or None
            Of which `.err` is read.
        err : exception or None
            The error, where there is no more to say.
        """
        if close(self) and self.is_timed:
            if isinstance(info, BaseException):
                err = info
            elif info is not None:
                err = getattr(info, "err", info)
            tell(self, err)

    def __enter__(self):
        if self.is_open:
            self.picker.now(True, &self.start)
            self.is_timed = True
        return self.instance

    def __exit__(self, kind, error, traceback):
        if close(self) and self.is_timed:
            tell(self, error)

    def __reduce__(self):
        raise TypeError("a lease cannot be copied: it ends once")


cdef bint close(Lease lease) noexcept:
    """Count one less in flight; whether it was open."""
    cdef lock_t section
    cdef bint was_open
    lock(&section, <PyObject*>lease)
    was_open, lease.is_open = lease.is_open, False
    if was_open and get(&lease.load.in_flight) > 0:
        count(&lease.load.in_flight, -1)
    unlock(&section)
    return was_open


cdef int tell(Lease lease, object error) except -1:
    """Have the picker learn from a timed call, which has just ended."""
    cdef double now
    lease.picker.now(True, &now)
    lease.picker.observe(lease.load, max(now - lease.start, 0.0), now, error)
    return 0


cdef object begin_call(TwoChoices picker):
    cdef Lease lease = <Lease>Lease.__new__(Lease)
    return lease if take_lease(picker, lease) else None


cdef bint take_lease(TwoChoices picker, Lease lease) noexcept:
    """Pick, and make the lease one of that; False when nothing has weight."""
    cdef lock_t section
    cdef int32_t i
    cdef PyObject* instance = NULL
    lock(&section, <PyObject*>picker)
    i = two_choices_acquire(picker)
    if i >= 0:
        instance = picker.items[i]
        keep(instance)
        lease.load = picker.load[i]
        count(&lease.load.n_holders, 1)
    unlock(&section)
    if i < 0:
        return False
    lease.instance = given(instance)
    lease.picker = picker
    lease.index = i
    lease.is_open = True
    return True


cdef int32_t begin_index(TwoChoices picker) noexcept:
    cdef lock_t section
    cdef int32_t i
    lock(&section, <PyObject*>picker)
    i = two_choices_acquire(picker)
    unlock(&section)
    return i


cdef int end_index(TwoChoices picker, object index, object rtt, object error) except -1:
    cdef double seconds = seconds_of(rtt), now
    cdef load_t* load = NULL
    cdef lock_t section
    cdef int overflow = 0
    cdef long i = -1
    if type(index) is int:
        i = PyLong_AsLongAndOverflow(index, &overflow)
    lock(&section, <PyObject*>picker)
    if 0 <= i < picker.n and picker.is_present[i]:
        load = end_one(picker, i)
    unlock(&section)
    if load == NULL:
        with cython.critical_section(picker):
            load = end_one(picker, present(picker, index))
    try:
        picker.now(False, &now)
        picker.observe(load, seconds, now, error)
    finally:
        let_go(load)
    return 0


cdef inline load_t* end_one(TwoChoices picker, Py_ssize_t i) noexcept nogil:
    """Count one less in flight at i; return its load, held."""
    cdef load_t* load = picker.load[i]
    count(&load.n_holders, 1)
    if get(&load.in_flight) > 0:
        count(&load.in_flight, -1)
    return load
