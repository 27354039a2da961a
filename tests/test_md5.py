"""MD5 places against hashlib, and the look-up against a scan."""

import hashlib
import random

import numpy as np
import pytest


def digest(text):
    return hashlib.md5(text.encode(), usedforsecurity=False).digest()


@pytest.mark.parametrize("key", ["", "a", "user:42", "Grüße", "x" * 1000, b"x", None, 5, (1, "a")])
def test_the_hash_of_a_key_is_that_of_its_str(impl, key):
    whole = digest(str(key))
    assert impl.md5.key_digest(key) == int.from_bytes(whole, "big")
    assert impl.md5.key_word(key) == int.from_bytes(whole[:4], "little")


def test_lengths_around_the_block(impl):
    for length in range(130):
        assert impl.md5.key_digest("x" * length) == int.from_bytes(digest("x" * length), "big")


def test_labels(impl):
    for name in ("10.0.0.1:80", "", "Grüße"):
        want = b"".join(digest(f"{name}-{k}") for k in range(1200))
        assert impl.md5.label_digests(name, 1200) == want
    assert impl.md5.label_digests("a", 0) == b""


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3, 100, 5000])
def test_a_key_belongs_to_the_first_place_above_its_own(impl, wide, n):
    rng = random.Random(n)
    keys = [f"user:{i}" for i in range(300)]

    def place_of(key):
        whole = digest(key)
        if wide:
            return int.from_bytes(whole[:8], "big")
        return int.from_bytes(whole[:4], "little") << 32

    # Some places are keys' own: these do not belong to them.
    own = [place_of(key) for key in keys[: n // 3]]
    places = sorted([*own, *(rng.getrandbits(64) for _ in range(n - len(own)))])
    owners = [rng.randrange(7) for _ in places]
    names = list("abcdefg")
    found = impl.md5.Places(wide)
    found.hold(np.array(places, np.uint64), np.array(owners, np.int32), names)
    for key in keys:
        at = next((k for k, place in enumerate(places) if place > place_of(key)), 0)
        assert found.find(key) == at
        assert found.node(key) == names[owners[at]]


def test_crowded_places(impl):
    """All in one range of the index, the first and the last included."""
    for base in (0, 2**63, 2**64 - 64):
        found = impl.md5.Places(True)
        places = np.array([base + k for k in range(64)], np.uint64)
        found.hold(places, np.arange(64, dtype=np.int32), list(range(64)))
        assert found.find("user:1") == 0  # above it nothing, or all


def test_nothing_held(impl):
    found = impl.md5.Places(True)
    assert found.find("a") == 0
    assert found.node("a") is None


@pytest.mark.parametrize(
    ("places", "owners", "words"),
    [
        ([1, 2], [0], "length"),
        ([1, 2], [0, 2], "owners"),
        ([1, 2], [0, -1], "owners"),
        ([2, 1], [0, 0], "ascend"),
    ],
)
def test_bad_places_change_nothing(impl, places, owners, words):
    found = impl.md5.Places(True)
    found.hold(np.array([5], np.uint64), np.array([1], np.int32), ["a", "b"])
    with pytest.raises(ValueError, match=words):
        found.hold(np.array(places, np.uint64), np.array(owners, np.int32), ["a", "b"])
    assert found.node("x") == "b"


def test_other_types_are_refused(impl):
    found = impl.md5.Places(False)
    with pytest.raises(TypeError, match="hashes"):
        found.hold(np.array([1.5]), np.array([0], np.int32), ["a"])
    with pytest.raises(UnicodeEncodeError):
        impl.md5.key_word("\ud800")
