"""MD5 places: how the rings of others (uhashring, libketama's clients) find a key's point.

The hash is OpenSSL's, called through the library that Python's own `_hashlib` is linked
with, which leaves out the object that hashlib makes for every digest. Where Python has no
such library, or the library no such function, hashlib does the work.

A key belongs to the first place *above* its own (uhashring's rule; libketama's is "at or
above", which is the same with the key's place less one). Places are hashes, spread evenly,
so the range that a key's place falls into tells where to look: `first` has the index of
each range's first place, 2 to 4 ranges for a place, and a step on, if any, is the answer.

Invariants
- places ascend; first[r] is the index of the first place in range r or later, n where
  there is none.

Cost: some 200 ns for a short key, nearly all of it MD5; 24 to 32 bytes a place.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from posix.dlfcn cimport RTLD_NOW, dlopen, dlsym

import hashlib
from importlib import import_module

import numpy as np

from rota.arguments import as_places

cimport cython

from rota.kernels.murmur3 cimport MOST_DIGITS, decimal

cdef enum:
    RANGES = 2   # for each place, at least: a step more or less is a branch mispredicted

ctypedef uint8_t* (*md5_t)(const uint8_t* data, size_t length, uint8_t* digest) noexcept nogil

cdef md5_t openssl_md5 = NULL


cdef int find_openssl() except -1:
    """Point openssl_md5 to OpenSSL's MD5, if Python uses a shared OpenSSL that has it."""
    global openssl_md5
    cdef uint8_t digest[16]
    cdef void* library
    try:
        path = import_module("_hashlib").__file__.encode()
    except (AttributeError, ImportError):
        return 0
    library = dlopen(path, RTLD_NOW)
    if library == NULL:
        return 0
    openssl_md5 = <md5_t>dlsym(library, "MD5")
    # Not to be had where OpenSSL obeys FIPS; and a function of another kind is none.
    if openssl_md5 != NULL and (
            openssl_md5(<const uint8_t*>b"", 0, digest) == NULL
            or digest[:16] != hashlib.md5(b"", usedforsecurity=False).digest()):
        openssl_md5 = NULL
    return 0


find_openssl()


cdef int md5(const uint8_t* data, Py_ssize_t length, uint8_t* digest) except -1:
    cdef bytes made
    cdef int i
    if openssl_md5 != NULL and openssl_md5(data, length, digest) != NULL:
        return 0
    made = hashlib.md5(data[:length], usedforsecurity=False).digest()
    for i in range(16):
        digest[i] = <uint8_t>made[i]
    return 0


cdef int digest_of(object key, uint8_t* digest) except -1:
    """The MD5 of str(key), as UTF-8."""
    cdef Py_ssize_t length
    cdef const char* text
    cdef object string = key if type(key) is str else str(key)
    text = PyUnicode_AsUTF8AndSize(string, &length)
    return md5(<const uint8_t*>text, length, digest)


cdef uint32_t word_of(const uint8_t* digest) noexcept nogil:
    return (<uint32_t>digest[0] | <uint32_t>digest[1] << 8 | <uint32_t>digest[2] << 16
            | <uint32_t>digest[3] << 24)


def key_word(key):
    """Return the first word, little-endian, of the MD5 of str(key)."""
    cdef uint8_t digest[16]
    digest_of(key, digest)
    return word_of(digest)


def key_digest(key):
    """Return the MD5 of str(key) as an integer of 128 bits, big-endian."""
    cdef uint8_t digest[16]
    digest_of(key, digest)
    return int.from_bytes(digest[:16], "big")


def label_digests(str name, Py_ssize_t count):
    """Return the MD5 of "NAME-0", "NAME-1" and so on to count - 1, 16 bytes each. O(count)."""
    cdef bytes stem = f"{name}-".encode()
    cdef Py_ssize_t k, length = PyBytes_GET_SIZE(stem)
    cdef bytes digests = PyBytes_FromStringAndSize(NULL, 16 * max(count, 0))
    cdef uint8_t* out = <uint8_t*>PyBytes_AS_STRING(digests)
    cdef bytearray label = bytearray(length + MOST_DIGITS)
    cdef uint8_t* text = <uint8_t*>PyByteArray_AS_STRING(label)
    memcpy(text, PyBytes_AS_STRING(stem), length)
    for k in range(count):
        md5(text, length + decimal(text + length, k), out + 16 * k)
    return digests


@cython.final
cdef class Places:
    """Places(wide)

    Sorted places, and which of them a key belongs to: the first above its own.

    Parameters
    ----------
    wide : bool
        A key's place is the first 64 bits of its MD5, big-endian; otherwise its first
        word, little-endian, in the upper half.
    """

    def __cinit__(self, wide):
        self.wide = wide
        self.hold(np.empty(0, np.uint64), np.empty(0, np.int32), [])

    def hold(self, places, owners, list names not None):
        """Hold these places instead.

        Parameters
        ----------
        places : uint64 array, shape (n,), ascending
        owners : int32 array, shape (n,)
            The number of each place's owner, in [0, len(names)).
        names : list

        Raises
        ------
        TypeError, ValueError
            Another type, length or order; nothing has changed.
        """
        cdef const uint64_t[::1] given = as_places(places)
        cdef const int32_t[::1] numbers = np.ascontiguousarray(owners, np.int32)
        cdef Py_ssize_t n = given.shape[0], n_names = len(names), k, r
        cdef uint32_t[::1] first
        cdef int bits = 0
        if numbers.shape[0] != n:
            raise ValueError(f"places and owners differ in length: {n} != {numbers.shape[0]}")
        for k in range(n):
            if not 0 <= numbers[k] < n_names:
                raise ValueError(f"owners must be in [0, {n_names}), got {numbers[k]} at {k}")
            if k and given[k] < given[k - 1]:
                raise ValueError(f"places must ascend, got {given[k]} after {given[k - 1]}")
        while <Py_ssize_t>1 << bits < RANGES * n and bits < 31:
            bits += 1
        # Count up to the end of each range, from which follows where the next one begins.
        first = np.zeros((<Py_ssize_t>1 << bits) + 1, np.uint32)
        for k in range(n):
            first[((given[k] >> 1) >> (63 - bits)) + 1] = <uint32_t>(k + 1)
        for r in range(1, first.shape[0]):
            first[r] = max(first[r], first[r - 1])
        points = np.empty(n, [("place", np.uint64), ("owner", np.int64)])
        points["place"], points["owner"] = given, numbers
        self.points, self.names, self.first = points, names.copy(), first
        self.shift = 63 - bits   # of a place shifted by one already: 64 is too far
        self.n = n

    def find(self, key):
        """Return the index of the first place above the key's, around the ring; 0 when empty."""
        return self.index(key)

    def node(self, key):
        """Return the name of the owner of a key's place; None when there is no place."""
        return node_of(self, key)

    cdef Py_ssize_t index(self, key) except -1:
        cdef uint8_t digest[16]
        cdef uint64_t place = 0
        cdef Py_ssize_t i
        cdef int k
        if self.n == 0:
            return 0
        digest_of(key, digest)
        if self.wide:
            for k in range(8):
                place = place << 8 | digest[k]
        else:
            place = <uint64_t>word_of(digest) << 32
        i = self.first[(place >> 1) >> self.shift]
        while i < self.n and self.points[i].place <= place:
            i += 1
        return i if i < self.n else 0


cdef object node_of(Places places, key):
    cdef Py_ssize_t i = places.index(key)
    if places.n == 0:
        return None
    return <object>PyList_GET_ITEM(places.names, places.points[i].owner)


@cython.auto_pickle(False)
cdef class NodeFinder:
    """The base of a ring in Python whose `get_node` takes no Python frame.

    Until `find_in` has said where to look, and for a `node` that is no method of Places,
    it is an ordinary call.
    """

    cdef Places places
    cdef object node

    def find_in(self, node):
        """Have `get_node` call `node`, a function from a key to a name."""
        self.node = node
        held = getattr(node, "__self__", None)
        self.places = held if isinstance(held, Places) else None

    def get_node(self, key):
        """Return the name of the key's node."""
        if self.places is not None:
            return node_of(self.places, key)
        return self.node(key)
