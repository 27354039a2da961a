"""MurmurHash3 x64-128, the hash of the rings, and the one rule for keys.

Source: A. Appleby, smhasher/MurmurHash3.cpp (public domain), function
MurmurHash3_x64_128; written anew here. Bit-identical to mmh3, whose C has no interface for
others. Blocks are read as little-endian on every machine, so the hash of a key is the same
everywhere.

The rule for keys

    str           its UTF-8 (a lone surrogate has none: UnicodeEncodeError, a ValueError)
    bytes         as they are; so are bytearray, memoryview and other contiguous buffers
    int           8 bytes, little-endian, two's complement, in [-2**63, 2**64)

so "a" and b"a" are one key, and 97 is another.

Cost: some 10 ns for a key of 16 bytes, 0.3 ns a byte for long ones; no allocation.
"""

from libc.stdint cimport uint8_t, uint64_t

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.unicode cimport PyUnicode_AsUTF8AndSize

from numbers import Integral

from rota.arguments import as_uint64

cdef extern from *:
    """
    #include <string.h>
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    #define ROTA_LITTLE(word, bits) __builtin_bswap##bits(word)
    #else
    #define ROTA_LITTLE(word, bits) (word)
    #endif
    static inline uint64_t rota_read64(const uint8_t *p) {
        uint64_t word;
        memcpy(&word, p, 8);
        return ROTA_LITTLE(word, 64);
    }
    static inline uint64_t rota_read32(const uint8_t *p) {
        uint32_t word;
        memcpy(&word, p, 4);
        return ROTA_LITTLE(word, 32);
    }
    """
    uint64_t read64 "rota_read64"(const uint8_t* p) noexcept nogil
    uint64_t read32 "rota_read32"(const uint8_t* p) noexcept nogil


cdef inline uint64_t rotl(uint64_t x, int r) noexcept nogil:
    return (x << r) | (x >> (64 - r))


cdef inline uint64_t fmix(uint64_t k) noexcept nogil:
    k = (k ^ (k >> 33)) * <uint64_t>0xFF51AFD7ED558CCD
    k = (k ^ (k >> 33)) * <uint64_t>0xC4CEB9FE1A85EC53
    return k ^ (k >> 33)


cdef inline uint64_t mix1(uint64_t k) noexcept nogil:
    return rotl(k * <uint64_t>0x87C37B91114253D5, 31) * <uint64_t>0x4CF5AD432745937F


cdef inline uint64_t mix2(uint64_t k) noexcept nogil:
    return rotl(k * <uint64_t>0x4CF5AD432745937F, 33) * <uint64_t>0x87C37B91114253D5


cdef inline uint64_t read_part(const uint8_t* p, Py_ssize_t n, bint has_before) noexcept nogil:
    """Return n bytes, 1 <= n <= 8, as a word; the rest of it 0.

    Where 8 bytes end with the part they are read at once and shifted.
    """
    if n == 8:
        return read64(p)
    if has_before:
        return read64(p + n - 8) >> (64 - 8 * n)
    if n >= 4:
        return read32(p) | read32(p + n - 4) << (8 * (n - 4))
    return (
        <uint64_t>p[0]
        | <uint64_t>p[n >> 1] << (8 * (n >> 1))
        | <uint64_t>p[n - 1] << (8 * (n - 1))
    )


cdef hash128_t murmur3_x64_128(const uint8_t* data, Py_ssize_t length,
                               uint64_t seed) noexcept nogil:
    cdef uint64_t h1 = seed, h2 = seed
    cdef Py_ssize_t left = length
    cdef hash128_t digest
    while left >= 16:
        h1 = (rotl(h1 ^ mix1(read64(data)), 27) + h2) * 5 + <uint64_t>0x52DCE729
        h2 = (rotl(h2 ^ mix2(read64(data + 8)), 31) + h1) * 5 + <uint64_t>0x38495AB5
        data += 16
        left -= 16
    if left > 8:
        h2 ^= mix2(read_part(data + 8, left - 8, True))
        left = 8
    if left > 0:
        h1 ^= mix1(read_part(data, left, length >= 16))
    h1 ^= <uint64_t>length
    h2 ^= <uint64_t>length
    h1 += h2
    h2 += h1
    h1 = fmix(h1)
    h2 = fmix(h2)
    h1 += h2
    h2 += h1
    digest.low = h1
    digest.high = h2
    return digest


cdef Py_ssize_t decimal(uint8_t* out, uint64_t number) noexcept nogil:
    cdef uint8_t digits[MOST_DIGITS]
    cdef Py_ssize_t n = 0, k
    while True:
        digits[n] = <uint8_t>(c"0" + number % 10)
        n += 1
        number = number // 10
        if number == 0:
            break
    for k in range(n):
        out[k] = digits[n - 1 - k]
    return n


cdef int hash_key(object key, uint64_t* out) except -1:
    cdef Py_ssize_t length
    cdef const char* text
    cdef Py_buffer view
    if isinstance(key, str):
        text = PyUnicode_AsUTF8AndSize(key, &length)
        out[0] = murmur3_x64_128(<const uint8_t*>text, length, 0).low
    elif isinstance(key, bytes):
        text = PyBytes_AS_STRING(key)
        out[0] = murmur3_x64_128(<const uint8_t*>text, PyBytes_GET_SIZE(key), 0).low
    elif type(key) is int:
        out[0] = hash_word(as_word(key))
    elif isinstance(key, (bytearray, memoryview)) or not isinstance(key, Integral):
        take_buffer(key, &view)
        out[0] = murmur3_x64_128(<const uint8_t*>view.buf, view.len, 0).low
        PyBuffer_Release(&view)
    else:  # numpy's integers too
        out[0] = hash_word(as_word(int(key)))
    return 0


cdef uint64_t hash_word(uint64_t word) noexcept nogil:
    cdef uint8_t data[8]
    cdef int i
    for i in range(8):
        data[i] = <uint8_t>(word >> (8 * i))
    return murmur3_x64_128(data, 8, 0).low


cdef uint64_t as_word(object number) except? 0:
    """The 64 bits of an int in two's complement."""
    cdef int overflow = 0
    cdef long long word = PyLong_AsLongLongAndOverflow(number, &overflow)
    if overflow == 0:
        return <uint64_t>word
    if overflow < 0 or number >= 2**64:
        raise ValueError(f"an int key must be in [-2**63, 2**64), got {number}")
    return number


cdef int take_buffer(object key, Py_buffer* view) except -1:
    try:
        PyObject_GetBuffer(key, view, PyBUF_SIMPLE)
    except TypeError:
        raise TypeError(
            f"a key must be str, bytes, int or a buffer, got {type(key).__name__}"
        ) from None
    except BufferError:
        raise ValueError("a key must be contiguous in memory") from None
    return 0


def digest(data, seed=0):
    """Return the hash of `data`, any contiguous buffer, as two integers of 64 bits.

    Parameters
    ----------
    data : buffer
    seed : integer in [0, 2**64)
        mmh3 takes seeds of 32 bits only.

    Raises
    ------
    TypeError, ValueError
        `data` is no contiguous buffer; the seed is no integer, or out of range.
    """
    cdef uint64_t start = as_uint64("seed", seed)
    cdef Py_buffer view
    cdef hash128_t result
    take_buffer(data, &view)
    result = murmur3_x64_128(<const uint8_t*>view.buf, view.len, start)
    PyBuffer_Release(&view)
    return result.low, result.high


def key_hash(key):
    """Return the place of a key on a ring, in [0, 2**64): the first word of its hash.

    Parameters
    ----------
    key : str, bytes, int or contiguous buffer
        str: its UTF-8; int: 8 bytes little-endian, in [-2**63, 2**64).

    Raises
    ------
    TypeError, ValueError
        Of another type; an int out of range; a str with a lone surrogate.
    """
    cdef uint64_t place = 0
    hash_key(key, &place)
    return place
