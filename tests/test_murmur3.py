"""MurmurHash3 x64-128 against mmh3, and the rule for keys."""

import array
import random

import mmh3
import numpy as np
import pytest


def test_bit_identical_to_mmh3(kernels):
    rng = random.Random(1)
    for length in range(301):
        for seed in (0, 1, 2**32 - 1, rng.getrandbits(32)):
            data = rng.randbytes(length)
            want = mmh3.mmh3_x64_128_utupledigest(data, seed)
            assert kernels.murmur3.digest(data, seed) == want, (length, seed)


def test_unaligned_and_long(kernels):
    data = random.Random(2).randbytes(10**7)
    assert kernels.murmur3.digest(data) == mmh3.mmh3_x64_128_utupledigest(data, 0)
    for offset in range(1, 9):
        part = memoryview(data)[offset : offset + 1000]
        assert kernels.murmur3.digest(part) == mmh3.mmh3_x64_128_utupledigest(bytes(part), 0)


# Written down once: places on a ring are the same for ever, everywhere.
GOLDEN = {"": 0, "a": 0x85555565F6597889, "user:123456": 0xB601EE22BA2079F0}


def test_golden_places(impl):
    assert {key: impl.murmur3.key_hash(key) for key in GOLDEN} == GOLDEN


@pytest.mark.parametrize(
    ("key", "data"),
    [
        ("", b""),
        ("user:42", b"user:42"),
        ("Grüße", "Grüße".encode()),
        ("\U0001f600" * 50, ("\U0001f600" * 50).encode()),
        (b"\x00\xff", b"\x00\xff"),
        (bytearray(b"abc"), b"abc"),
        (memoryview(b"abcdef")[1:4], b"bcd"),
        (array.array("i", [1, 2]), array.array("i", [1, 2]).tobytes()),
        (0, bytes(8)),
        (97, b"a" + bytes(7)),
        (-1, b"\xff" * 8),
        (-(2**63), bytes(7) + b"\x80"),
        (2**64 - 1, b"\xff" * 8),
        (True, b"\x01" + bytes(7)),
        (np.int16(97), b"a" + bytes(7)),
        (np.array([97], np.int16), b"a\x00"),
    ],
)
def test_the_rule_for_keys(impl, key, data):
    assert impl.murmur3.key_hash(key) == mmh3.mmh3_x64_128_utupledigest(data, 0)[0]


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (None, TypeError),
        (1.5, TypeError),
        (("a",), TypeError),
        (object(), TypeError),
        (2**64, ValueError),
        (-(2**63) - 1, ValueError),
        ("\ud800", ValueError),
        (np.zeros(6, np.int8)[::2], ValueError),
    ],
)
def test_what_can_be_no_key(impl, key, error):
    with pytest.raises(error):
        impl.murmur3.key_hash(key)


def test_bad_seeds_are_refused(impl):
    for seed in (-1, 2**64, "1"):
        with pytest.raises((TypeError, ValueError), match="seed"):
            impl.murmur3.digest(b"", seed)
