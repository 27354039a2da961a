"""Maglev hashing: a table that every instance fills in its own order.

Each instance has a permutation of the slots, (offset + j * skip) mod size, from the hash of
its name. In rounds the instances take, one after another, the next slot of theirs that is
still free, until none is. A heavier instance takes part in more rounds: it adds its weight
to its credit each round, and takes a slot when that reaches the greatest weight.

    round        1     2     3 ...
    a (weight 2) takes takes takes
    b (weight 1) -     takes -

A key's slot is its place times the size over 2**64. Shares are exact to a slot or two, far
more even than a ring's; in exchange a change moves some slots that it need not, and makes
the whole table anew.

Invariants
- every slot has an owner with weight, unless nothing has weight: then there is no table.
- the table depends on the names and weights alone, not on the order of the list: the
  instances take their turns in the order of their names.

Cost: pick O(1), one load after the hash; any change O(size) expected, and more where few
instances take part in most rounds: O(instances * size * greatest weight / sum). An `update`
costs that once, and once more for each instance that leaves.

Source: D. Eisenbud et al., "Maglev: a fast and reliable software network load balancer",
NSDI 2016, section 3.4; the weights after Envoy's maglev_lb.cc. Names are hashed by
MurmurHash3 x64-128: the first word gives the offset, the second the skip.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject

import numpy as np

from rota.arguments import as_table_size

cimport cython

from rota.kernels.hash_picker cimport Changing, HashPicker, instance_at, walk_t
from rota.kernels.murmur3 cimport hash128_t, murmur3_x64_128
from rota.kernels.picker cimport given, lock, lock_t, unlock
from rota.kernels.splitmix64 cimport uint128


cdef struct turn_t:
    uint64_t weight
    uint64_t credit
    uint32_t slot      # the next of its permutation
    uint32_t skip
    int32_t index


@cython.final
@cython.no_gc_clear
cdef class Maglev(HashPicker):
    """Maglev(instances, weights=None, *, table_size=65537, get_key=None, load_factor=None,
    replicas=None, name=None)

    A key's instance is the same in every process, and shares are even to a slot or two.

    Parameters
    ----------
    instances, weights, get_key, load_factor, replicas, name
        As `ConsistentHash` takes them.
    table_size : prime number, up to 5,000,011
        100 times the number of instances keeps shares within 1 %.

    Raises
    ------
    TypeError, ValueError
        An argument is of no use, two names are equal, or more instances than slots.

    Notes
    -----
    pick O(1); changes O(table_size); 4 bytes a slot. The replicas of a key are the next
    other instances in the table. Threads may share it.
    """

    def __cinit__(
        self, instances, weights=None, *, table_size=65537, get_key=None, load_factor=None,
        replicas=None, name=None,
    ):
        self.size = as_table_size(table_size)
        self.options = {
            "table_size": table_size, "get_key": get_key, "load_factor": load_factor,
            "replicas": replicas, "name": name,
        }
        self.hold(instances, weights, get_key, load_factor, replicas, name)

    def __dealloc__(self):
        PyMem_Free(self.table)

    def pick(self, key):
        """Return the instance that owns `key`, None when nothing has weight. O(1).

        Raises
        ------
        TypeError, ValueError
            `key` is no str, bytes, int or buffer; an int out of range; a lone surrogate.
        """
        cdef uint64_t place = 0
        cdef PyObject* instance
        cdef lock_t section
        self.place(key, &place)
        lock(&section, <PyObject*>self.slots)
        instance = instance_at(self, self.choose(place) if self.load_factor else self.owner(place))
        unlock(&section)
        return given(instance)

    def table_of_indices(self):
        """Return the owner of each slot: int32 array, shape (table_size,), a copy.

        Empty when nothing has weight.
        """
        with Changing(self):  # a change would free what this copies
            if self.table == NULL:
                return np.zeros(0, np.int32)
            return np.array(<int32_t[:self.size]>self.table)

    def __reduce__(self):
        return _rebuild, (self.present(), self.options)

    def _check(self, total, n_live):
        if n_live > self.size:
            raise ValueError(f"instances must number at most the {self.size} slots, got {n_live}")

    cdef int32_t owner(self, uint64_t place) noexcept nogil:
        if self.table == NULL:
            return -1
        return self.table[<Py_ssize_t>((<uint128>place * <uint128>self.size) >> 64)]

    cdef walk_t begin(self, uint64_t place) noexcept nogil:
        cdef walk_t walk
        walk.at = <uint64_t>((<uint128>place * <uint128>self.size) >> 64)
        walk.within = walk.n_done = 0
        walk.version = self.version
        return walk

    cdef int32_t step(self, walk_t* walk) noexcept nogil:
        cdef int32_t i
        if self.table == NULL or walk.n_done == self.size:
            return -1
        i = self.table[walk.at]
        walk.at = walk.at + 1 if <Py_ssize_t>walk.at + 1 < self.size else 0
        walk.n_done += 1
        return i

    cdef int follow(self, list indices) except -1:
        """Fill the table anew."""
        cdef list live = sorted(
            (name, i) for i, name in enumerate(self.roster.names)
            if name is not None and self.weight[i] > 0
        )
        cdef Py_ssize_t n = len(live), k
        cdef int32_t* table = NULL
        cdef int32_t* old
        cdef lock_t section
        cdef turn_t* turns = NULL
        cdef hash128_t digest
        if n:
            table = <int32_t*>PyMem_Malloc(self.size * sizeof(int32_t))
            turns = <turn_t*>PyMem_Malloc(n * sizeof(turn_t))
            if table == NULL or turns == NULL:
                PyMem_Free(table)
                PyMem_Free(turns)
                raise MemoryError
            for k in range(n):
                name, i = live[k]
                digest = murmur3_x64_128(
                    <const uint8_t*>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), 0
                )
                turns[k].index = i
                turns[k].weight = self.weight[i]
                turns[k].credit = 0
                turns[k].slot = <uint32_t>(digest.low % <uint64_t>self.size)
                turns[k].skip = <uint32_t>(digest.high % <uint64_t>(self.size - 1)) + 1
            populate(table, self.size, turns, n)
            PyMem_Free(turns)
        lock(&section, <PyObject*>self.slots)
        old = self.table
        self.table = table
        self.version += 1
        unlock(&section)
        PyMem_Free(old)
        return 0


cdef void populate(int32_t* table, Py_ssize_t size, turn_t* turns, Py_ssize_t n) noexcept nogil:
    """Fill the table in rounds; there is somebody with weight, and size is prime."""
    cdef Py_ssize_t left = size, k
    cdef uint64_t most = 0
    cdef turn_t* turn
    for k in range(size):
        table[k] = -1
    for k in range(n):
        most = max(most, turns[k].weight)
    while True:
        for k in range(n):
            turn = &turns[k]
            turn.credit += turn.weight
            if turn.credit < most:
                continue
            turn.credit -= most
            while table[turn.slot] >= 0:
                turn.slot = turn.slot + turn.skip
                if turn.slot >= <uint32_t>size:
                    turn.slot -= <uint32_t>size
            table[turn.slot] = turn.index
            left -= 1
            if left == 0:
                return


def _rebuild(present, options):
    """Make the picker that `__reduce__` described."""
    instances, weights = present
    return Maglev(instances, weights, **options)
