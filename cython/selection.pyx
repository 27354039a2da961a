"""The way of a request through a selector, as far as nothing has to be found out.

    no filters                     all instances
    filters that were used before  the group of those that pass, from a dictionary
    anything else                  `_find`: filters run, groups are made, others are left out

and then the same for all: a picker is asked, and the peer of the context is told. Kratos goes
through all instances twice here, for every filter of every request.

Invariants
- _groups holds (version, group, its select) by filters; one that is not of `_version`, the
  very object, is of another list of instances, and not used.

Cost: O(1): a call, a look in a dictionary where there are filters, one in the context.
"""

cimport cython
from cpython.contextvars cimport get_value


@cython.auto_pickle(False)
cdef class Part:
    """Something known by what it is made of; that makes a key which is compared quickly.

    Parameters
    ----------
    parts : hashable objects
    """

    cdef readonly tuple parts
    cdef Py_hash_t hashed

    def __cinit__(self, *parts):
        self.parts = parts
        self.hashed = hash((type(self), parts))

    def __eq__(self, other):
        if self is other:
            return True
        return type(self) is type(other) and self.parts == (<Part>other).parts

    def __hash__(self):
        return self.hashed

    def __reduce__(self):
        return type(self), self.parts


cdef class Selection:
    """The base of a selector: how requests go through it.

    A subclass gives `_find(filters, exclude, key)`, the long way to what `select` returns or
    None, and `_refuse(filters, exclude)`, the error where there is none. It keeps in step:

    Attributes
    ----------
    _select : callable () -> (instance, done) or None
        Selects from all; not called when `_is_keyed`.
    _is_keyed : bool
        Whether it takes the key of a request.
    _version : object
        Another one for each list of instances.
    _groups : dict of tuple to (version, group, callable)
        By filters; a callable as `_select`.
    _peers : ContextVar
        Of an object with an attribute `node`, or None.
    """

    # Anybody may set them to anything: what is taken from them is looked at first.
    cdef public object _select
    cdef public bint _is_keyed
    cdef public object _version
    cdef public dict _groups
    cdef public object _peers

    def select(self, *, filters=(), exclude=(), key=None):
        """Select an instance for a request. O(1), but for filters that are not indexed.

        Parameters
        ----------
        filters : sequence of NodeFilter
            Applied in this order; see `version`, `metadata`, `subset`, `where`.
        exclude : iterable of Instance
            Not these: those tried before.
        key : str, bytes-like or int
            What the request is about, for pickers that go by it: ConsistentHash, Maglev.

        Returns
        -------
        (instance, done)
            Call `done(info)` with a DoneInfo, or `done(err=error)`, when the call has ended.
            The first report counts; without any, the call ends when `done` is let go.

        Raises
        ------
        NoAvailableInstance
            None is left; the message says what was filtered.
        TypeError
            A key where none is wanted, or none where one is; filters that are none.
        """
        cdef object selected = None, known, peer
        cdef bint is_plain = exclude is EMPTY and key is None and not self._is_keyed
        if is_plain and filters is EMPTY:
            selected = self._select()
        else:
            known = None
            if is_plain and type(filters) is tuple:
                try:
                    known = self._groups.get(filters)
                except TypeError:
                    pass  # a filter that is no key
            if is_tuple(known, 3) and (<tuple>known)[0] is self._version:
                selected = (<tuple>known)[2]()
            else:
                selected = self._find(filters, exclude, key)
        if selected is None:
            raise self._refuse(filters, exclude)
        if not is_tuple(selected, 2):
            raise TypeError(f"select must return (instance, done) or None, got {selected!r}")
        peer = get_value(self._peers)
        if peer is not None:
            peer.node = (<tuple>selected)[0]
        return selected

    def __reduce__(self):
        raise TypeError("a selector cannot be copied: its builder makes another one")


cdef tuple EMPTY = ()


cdef inline bint is_tuple(object found, Py_ssize_t length) noexcept:
    return isinstance(found, tuple) and len(<tuple>found) == length
