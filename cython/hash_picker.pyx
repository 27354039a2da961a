"""What all hash pickers share: keys, replicas, loads, and changes in place.

A key has a place, a 64-bit number; a structure (a ring, a table) says which index owns a
place, and which come next clockwise. This file is everything around the structure.

Bounded loads (V. Mirrokni, M. Thorup, M. Zadimoghaddam, "Consistent hashing with bounded
loads", SODA 2018, arXiv 1608.01350): an instance is full when its requests in flight would
exceed its share of all by more than the load factor c,

    load >= c * (all + 1) * weight / sum of weights,

and a pick goes on clockwise past those that are full. The bounds sum to c * (all + 1) or
more, so somebody always has room. In integers, c counting in 65,536ths.

Invariants
- an index is an instance's for as long as it stays; `generations` tells a lease from the
  time of another owner of its index.
- n_in_flight is the sum of the loads.
- what a pick reads changes only under the lock (`slots`, see the .pxd), from one state that
  a pick can use to the next; a pick holds the lock from its look-up until it has a reference
  to the instance. So no pick gives an instance that had left before it began.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy

from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE, PyList_SET_ITEM
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF

from threading import RLock
from types import GenericAlias

import numpy as np

from rota.arguments import (
    MAX_INSTANCES, as_count, as_int32_out, as_load_factor, as_places, as_replicas,
)
from rota.reference.murmur3 import key_bytes
from rota.roster import Roster

cimport cython

from rota.kernels.hash_picker cimport instance_at
from rota.kernels.murmur3 cimport hash_key
from rota.kernels.picker cimport given, lock, lock_t, unlock
from rota.kernels.splitmix64 cimport uint128


cdef enum:
    BLOCK = 32   # look-ups in flight at once
    STRETCH = 4096   # look-ups under one lock, so that others get their turn


cdef int32_t hash_picker_index(HashPicker picker, uint64_t place) noexcept nogil:
    return picker.choose(place) if picker.load_factor else picker.owner(place)


cdef int32_t locked_index(HashPicker picker, uint64_t place) noexcept:
    cdef lock_t section
    cdef int32_t i
    lock(&section, <PyObject*>picker.slots)
    i = hash_picker_index(picker, place)
    unlock(&section)
    return i


@cython.no_gc_clear  # its methods rely on the lists; cycles are broken there
cdef class HashPicker:
    """The base of every compiled hash picker. Not to be made by itself."""

    __class_getitem__ = classmethod(GenericAlias)

    def __cinit__(self):
        self.slots = []
        self.lock = RLock()
        self.version = 1

    # -- for the structures ---------------------------------------------------------------

    cdef int hold(self, instances, weights, get_key, load_factor, replicas, name) except -1:
        """Check and keep the arguments."""
        if get_key is not None and not callable(get_key):
            raise TypeError(f"get_key must be callable, got {get_key!r}")
        self.load_factor = as_load_factor(load_factor)
        self.most_attempts = MAX_INSTANCES
        if replicas is not None:
            self.most_attempts = min(as_replicas(replicas) + 1, MAX_INSTANCES)
        self.roster = Roster(instances, weights, name, self._check)
        self.slots = self.roster.slots
        self.get_key = get_key
        self.loads_array = np.zeros(len(self.slots), np.int64)
        self.generations_array = np.zeros(len(self.slots), np.int64)
        return self.changed(list(range(len(self.slots))))

    cdef int changed(self, list indices) except -1:
        """Bring everything in line with the roster, where `indices` have changed."""
        cdef object weight_array = self.roster.weights
        cdef object loads_array = self.loads_array, generations_array = self.generations_array
        cdef const int64_t[::1] weights = weight_array
        cdef int64_t[::1] loads, generations
        cdef int64_t total = self.roster.total
        cdef Py_ssize_t capacity
        cdef lock_t section
        if len(loads_array) < weights.shape[0]:
            capacity = max(2 * weights.shape[0], 8)
            loads_array = np.zeros(capacity, np.int64)
            generations_array = np.zeros(capacity, np.int64)
        loads, generations = loads_array, generations_array
        # In one go, without a chance for another thread's pick or lease.
        lock(&section, <PyObject*>self.slots)
        if self.load != NULL and self.load != &loads[0]:
            memcpy(&loads[0], self.load, self.n * sizeof(int64_t))
            memcpy(&generations[0], self.generation, self.n * sizeof(int64_t))
        self.n = weights.shape[0]
        self.weight = &weights[0] if self.n else NULL
        self.load = &loads[0] if self.n else NULL
        self.generation = &generations[0] if self.n else NULL
        # By exchange: the old arrays go when these variables do, not under the lock.
        self.weight_array, weight_array = weight_array, self.weight_array
        self.loads_array, loads_array = loads_array, self.loads_array
        self.generations_array, generations_array = generations_array, self.generations_array
        self.total = total
        unlock(&section)
        return self.follow(indices)

    cdef int follow(self, list indices) except -1:
        """Bring the structure in line with the roster, where `indices` have changed."""
        return 0

    cdef int32_t owner(self, uint64_t place) noexcept nogil:
        """Return the index that owns a place, -1 when nothing has weight."""
        return -1

    cdef walk_t begin(self, uint64_t place) noexcept nogil:
        """Return the walk whose first step is the owner of `place`."""
        cdef walk_t walk
        walk.at = place
        walk.within = walk.n_done = 0
        walk.version = self.version
        return walk

    cdef int32_t step(self, walk_t* walk) noexcept nogil:
        """Return the next index clockwise, repeats among them; -1 after the whole round.

        The walk began under the lock of now, or of the same version.
        """
        return -1

    cdef bint is_full(self, int32_t i) noexcept nogil:
        cdef uint128 load = <uint128>self.load[i]
        cdef uint128 room = <uint128>self.load_factor
        load = load * <uint128>self.total
        load = load << 16
        room = room * <uint128>(self.n_in_flight + 1)
        room = room * <uint128>self.weight[i]
        return load >= room

    cdef int32_t choose(self, uint64_t place) noexcept nogil:
        """Return the first index from a place on that is not full."""
        cdef int32_t i = self.owner(place), other
        cdef walk_t walk
        if i < 0 or not self.is_full(i):
            return i
        walk = self.begin(place)
        while True:
            other = self.step(&walk)
            if other < 0:
                return i  # weights and loads do not match: a change is under way
            if not self.is_full(other):
                return other

    cdef int place(self, object key, uint64_t* out) except -1:
        if self.place_by_rule is None:
            return hash_key(key, out)
        out[0] = self.place_by_rule(key_bytes(key))
        return 0

    cdef object present(self):
        """Return the instances that have not left, and their weights."""
        with Changing(self):
            weights = self.roster.weights.tolist()
            indices = [i for i, name in enumerate(self.roster.names) if name is not None]
            return [self.slots[i] for i in indices], [weights[i] for i in indices]

    def _check(self, total, n_live):
        """Refuse what would be too large."""

    # -- for everybody --------------------------------------------------------------------

    def next(self, ctx=None, request=None):
        """Return the instance for a request: Kitex's Picker. None for an empty key.

        The key is get_key(ctx, request); without a `get_key`, the request itself.
        """
        cdef uint64_t place = 0
        cdef PyObject* instance
        cdef lock_t section
        key = request_key(self, ctx, request)
        if key is None:
            return None
        self.place(key, &place)
        lock(&section, <PyObject*>self.slots)
        instance = instance_at(self, hash_picker_index(self, place))
        unlock(&section)
        return given(instance)

    def pick_index(self, key):
        """Return the index of the instance that owns `key`, or None. O(1) expected."""
        cdef uint64_t place = 0
        cdef int32_t i
        self.place(key, &place)
        i = locked_index(self, place)
        return None if i < 0 else i

    def pick_many(self, keys):
        """Return the owners of `keys`: [pick(key) for key in keys], looked up in blocks."""
        cdef list asked = list(keys)
        cdef Py_ssize_t n = len(asked), k, done = 0, block
        cdef uint64_t places[BLOCK]
        cdef int32_t found[BLOCK]
        cdef list picks = [None] * n
        cdef PyObject* instance
        cdef lock_t section
        while done < n:
            block = min(n - done, BLOCK)
            for k in range(block):
                self.place(asked[done + k], &places[k])
            lock(&section, <PyObject*>self.slots)
            if self.load_factor:
                for k in range(block):
                    found[k] = self.choose(places[k])
            else:
                self.look_up(places, found, block)
            for k in range(block):
                instance = instance_at(self, found[k])
                PyList_SET_ITEM(picks, done + k, <object>instance)  # takes the reference over
                Py_DECREF(None)  # which stood there
            unlock(&section)
            done += block
        return picks

    def pick_n(self, key, n):
        """Return the first n distinct instances from the place of `key` on, clockwise.

        Fewer when there are fewer. O(n) steps expected.
        """
        cdef uint64_t place = 0
        cdef list found = []
        cdef Py_ssize_t count = min(as_count(n), self.roster.n_live)
        cdef HashAttempts attempts
        cdef walk_t walk
        self.place(key, &place)
        attempts = HashAttempts(self, key)
        walk.version = 0  # not begun
        while len(found) < count:
            instance = attempts.untried(&walk, place)
            if instance is None:
                break
            found.append(instance)
        return found

    def indices(self, hashes, out):
        """Write the index of the owner of each place in `hashes` to `out`; -1 for none.

        Parameters
        ----------
        hashes : uint64 array, shape (k,)
            Places, such as `rota.kernels.murmur3.key_hash` gives. Loads make no difference.
        out : writable buffer of int32, shape (k,), C-contiguous

        Raises
        ------
        TypeError, ValueError
            Another type, dimension or length.

        Notes
        -----
        O(k) expected; places are looked up in blocks, their memory fetched ahead.
        """
        cdef const uint64_t[::1] places = as_places(hashes)
        cdef int32_t[::1] view = as_int32_out(out)
        cdef Py_ssize_t done = 0, n
        cdef lock_t section
        if places.shape[0] != view.shape[0]:
            raise ValueError(
                f"hashes and out differ in length: {places.shape[0]} != {view.shape[0]}"
            )
        while done < view.shape[0]:
            n = min(view.shape[0] - done, STRETCH)
            lock(&section, <PyObject*>self.slots)
            self.look_up(&places[done], &view[done], n)
            unlock(&section)
            done += n

    cdef void look_up(self, const uint64_t* places, int32_t* out, Py_ssize_t count) noexcept nogil:
        cdef Py_ssize_t k
        for k in range(count):
            out[k] = self.owner(places[k])

    def attempts(self, ctx=None, request=None):
        """Return an iterator over distinct instances in the order to try them: the replicas.

        The first is the pick; the others follow clockwise, whatever their load. `.next()`
        gives None when none is left, after as many as `replicas` allows, or for an empty key.
        """
        return HashAttempts(self, request_key(self, ctx, request))

    def acquire(self, key):
        """Pick for `key` and count one more in flight there, until the lease is released.

        Returns
        -------
        Lease or None
            With `.instance`, `.index`, `.release()`; a context manager that gives the
            instance. None when nothing has weight.
        """
        cdef uint64_t place = 0
        cdef int32_t i
        cdef Lease lease = <Lease>Lease.__new__(Lease)
        cdef PyObject* instance = NULL
        cdef lock_t section
        self.place(key, &place)
        lock(&section, <PyObject*>self.slots)
        i = hash_picker_index(self, place)
        if i >= 0:
            instance = instance_at(self, i)
            lease.index = i
            lease.generation = self.generation[i]
            self.load[i] += 1
            self.n_in_flight += 1
        unlock(&section)
        if i < 0:
            return None
        lease.instance = given(instance)
        lease.picker = self
        return lease

    def select(self, key):
        """Return (instance, done) for `key`: Kratos' interface; None when nothing has weight.

        It counts as in flight until `done()` is called: the lease of `acquire`.
        """
        lease = self.acquire(key)
        return None if lease is None else (lease.instance, lease)

    def set_weight(self, index, weight):
        """Give the instance at `index` another weight; the next pick obeys it.

        Raises
        ------
        TypeError, ValueError
            An index of nobody, a weight out of range, too many points; nothing has changed.
        """
        with Changing(self):
            self.changed([self.roster.set_weight(index, weight)])

    def replace(self, index, instance):
        """Put another object of the same ring name in the place of the instance at `index`.

        Weight, points and load stay: for a copy of which something else has changed.

        Raises
        ------
        TypeError, ValueError
            An index of nobody, another name on the ring; nothing has changed.
        """
        with Changing(self):
            self.roster.replace(index, instance)

    def add(self, instance, weight=1):
        """Take an instance in; return its index. The next pick obeys it.

        Raises
        ------
        TypeError, ValueError
            A name that is on the ring already, a weight out of range, too many points;
            nothing has changed.
        """
        cdef Py_ssize_t i
        with Changing(self):
            i = self.roster.add(instance, weight)
            self.changed([i])
            return i

    def remove(self, index):
        """Let the instance at `index` go; its index stands for nobody until it is given out again.

        Raises
        ------
        TypeError, ValueError
            An index of nobody; nothing has changed.
        """
        with Changing(self):
            self.leave([self.roster.present(index)])

    cdef int leave(self, list indices) except -1:
        cdef lock_t section
        cdef Py_ssize_t i
        if not indices:
            return 0
        for i in indices:
            self.roster.drain(i)
        self.changed(indices)
        for i in indices:
            self.roster.forget(i)
            lock(&section, <PyObject*>self.slots)
            self.n_in_flight -= self.load[i]
            self.load[i] = 0
            self.generation[i] += 1
            unlock(&section)
        return 0

    def update(self, instances, weights=None):
        """Go over to these instances and weights; who stays keeps index, points and load.

        Instances are the same when their names are. O(n) to compare, and the cost of what
        changes.

        Raises
        ------
        TypeError, ValueError
            As when a picker is made; nothing has changed.
        """
        with Changing(self):
            changed, coming, leaving = self.roster.change(instances, weights)
            # First who comes, then who leaves: at no moment is there nobody.
            self.changed(changed + coming)
            self.leave(leaving)

    @property
    def instances(self):
        """The instances by index, a tuple; None where one has left."""
        return tuple(self.slots)

    @property
    def weights(self):
        """The weights by index: int64 array, a read-only view of the picker's own memory.

        Live until the picker grows or is updated: from then on a view taken before keeps what
        it had.
        """
        return np.asarray(memoryview(self.roster.weights).toreadonly())

    @property
    def loads(self):
        """How many are in flight at each instance, by index: int64 array, a copy."""
        cdef lock_t section
        cdef int64_t[::1] view
        lock(&section, <PyObject*>self.slots)
        n = self.n
        unlock(&section)
        loads = np.empty(n, np.int64)
        if n:
            view = loads
            lock(&section, <PyObject*>self.slots)  # by now there may be more
            memcpy(&view[0], self.load, view.shape[0] * sizeof(int64_t))
            unlock(&section)
        return loads

    def index_of(self, instance_name):
        """Return the index of the instance of this ring name, None when there is none."""
        name = instance_name.encode() if isinstance(instance_name, str) else instance_name
        return self.roster.by_name.get(name)

    def __len__(self):
        return len(self.roster)

    def __repr__(self):
        return f"{type(self).__name__}({len(self)} instances, total weight {self.roster.total})"


@cython.final
@cython.auto_pickle(False)
cdef class Changing:
    """One change of a picker at a time; within one, another is refused.

    Python may run anything inside a change where it allocates: a finalizer, a callback of
    the garbage collector. A lock alone would let these in, or wait for ever.
    """

    def __cinit__(self, HashPicker picker not None):
        self.picker = picker

    def __enter__(self):
        self.picker.lock.acquire()
        if self.picker.is_changing:
            self.picker.lock.release()
            raise RuntimeError("a picker cannot be changed from within its own change")
        self.picker.is_changing = True

    def __exit__(self, kind, error, trace):
        self.picker.is_changing = False
        self.picker.lock.release()


cdef object item_of(list items, Py_ssize_t i):
    """Return items[i], where another thread may be changing the list."""
    cdef PyObject* item
    cdef lock_t section
    lock(&section, <PyObject*>items)
    item = <PyObject*>PyList_GET_ITEM(items, i)
    Py_INCREF(<object>item)
    unlock(&section)
    return given(item)


cdef bint is_of(HashPicker picker, uint64_t version) noexcept:
    """Whether the picker is still of this version."""
    cdef lock_t section
    cdef bint answer
    lock(&section, <PyObject*>picker.slots)
    answer = picker.version == version
    unlock(&section)
    return answer


cdef object request_key(HashPicker picker, object ctx, object request):
    """Return the key of a request, None for an empty one."""
    key = request if picker.get_key is None else picker.get_key(ctx, request)
    if key is None or (isinstance(key, (str, bytes)) and len(key) == 0):
        return None
    return key


@cython.final
@cython.auto_pickle(False)
cdef class HashAttempts:
    """The owner of a key and then the other instances, clockwise, each once. For one thread."""

    cdef HashPicker picker
    cdef object key
    cdef set tried   # names

    __class_getitem__ = classmethod(GenericAlias)

    def __cinit__(self, HashPicker picker not None, key):
        self.picker = picker
        self.key = key
        self.tried = set()

    def next(self):
        """Return the next instance to try, or None when none is left."""
        cdef uint64_t place = 0
        cdef walk_t walk
        if self.key is None or len(self.tried) >= self.picker.most_attempts:
            return None
        self.picker.place(self.key, &place)
        if not self.tried:
            return self.first(place)
        if self.is_exhausted():
            return None
        walk.version = 0  # not begun
        return self.untried(&walk, place)

    cdef object first(self, uint64_t place):
        """Return the pick, and remember its name."""
        cdef HashPicker picker = self.picker
        cdef lock_t section
        cdef int32_t i
        cdef uint64_t version
        while True:
            lock(&section, <PyObject*>picker.slots)
            i = hash_picker_index(picker, place)
            instance = given(instance_at(picker, i))
            version = picker.version
            unlock(&section)
            if i < 0:
                return None
            name = item_of(picker.roster.names, i)
            if is_of(picker, version):
                self.tried.add(name)
                return instance

    cdef bint is_exhausted(self) except -1:
        """Whether everybody with weight was tried; without the walk around that would show it."""
        roster = self.picker.roster
        if len(self.tried) < roster.n_live:
            return False
        indices = [roster.by_name.get(name, -1) for name in self.tried]
        return sum([1 for i in indices if i >= 0 and roster.weights[i] > 0]) >= roster.n_live

    cdef object untried(self, walk_t* walk, uint64_t place):
        """Return the next instance of the walk that is not tried yet; None after all.

        A change of the picker begins the walk anew, past those already tried.
        """
        cdef HashPicker picker = self.picker
        cdef lock_t section
        cdef int32_t i
        cdef list names = picker.roster.names
        while True:
            lock(&section, <PyObject*>picker.slots)
            if walk.version != picker.version:
                walk[0] = picker.begin(place)
            i = picker.step(walk)
            instance = given(instance_at(picker, i))
            unlock(&section)
            if i < 0:
                return None
            name = item_of(names, i)
            # By now the index may be somebody else's.
            if name not in self.tried and is_of(picker, walk.version):
                self.tried.add(name)
                return instance

    def __iter__(self):
        return self

    def __next__(self):
        instance = self.next()
        if instance is None:
            raise StopIteration
        return instance


@cython.final
@cython.auto_pickle(False)
cdef class Lease:
    """One request in flight at `instance`; ends once: by release(), `with`, or being forgotten.

    Made by `acquire`; one made otherwise counts for nothing.
    """

    cdef HashPicker picker
    cdef readonly Py_ssize_t index
    cdef readonly object instance
    cdef int64_t generation

    __class_getitem__ = classmethod(GenericAlias)

    def release(self):
        """Count the request as ended; of no effect from the second time on."""
        end(self)

    def __call__(self, info=None, *, err=None):
        """Count the request as ended, Kratos' way; how it did makes no difference."""
        end(self)

    def __enter__(self):
        return self.instance

    def __exit__(self, kind, error, trace):
        end(self)

    def __del__(self):
        end(self)

    def __reduce__(self):
        raise TypeError("a lease cannot be copied: it ends once")


cdef void end(Lease lease) noexcept:
    cdef HashPicker picker = None
    cdef lock_t section
    # By exchange: of several threads that end it, one gets the picker.
    lock(&section, <PyObject*>lease)
    lease.picker, picker = picker, lease.picker
    unlock(&section)
    if picker is None:
        return
    lock(&section, <PyObject*>picker.slots)
    # An index given out again since is somebody else's.
    if picker.generation[lease.index] == lease.generation:
        picker.load[lease.index] -= 1
        picker.n_in_flight -= 1
    unlock(&section)


# -- for other people's C -------------------------------------------------------------------

cdef Py_ssize_t hash_picker_length(HashPicker picker) noexcept:
    return PyList_GET_SIZE(picker.slots)


cdef PyObject* hash_picker_object(HashPicker picker, int32_t i) noexcept:
    if not 0 <= i < PyList_GET_SIZE(picker.slots):
        return NULL
    return <PyObject*>PyList_GET_ITEM(picker.slots, i)


cdef int hash_picker_place(HashPicker picker, object key, uint64_t* out) except -1:
    return picker.place(key, out)
