"""MD5 places: the hash of a key, and its node on 16,000 places, beside the twin and hashlib."""

import hashlib

import numpy as np
import pytest

from rota.kernels import md5 as kernel
from rota.reference import md5 as twin

KEY = "user:123456"


@pytest.mark.parametrize("module", [kernel, twin], ids=["kernel", "twin"])
def test_key_word(benchmark, module):
    benchmark(module.key_word, KEY)


def test_key_word_by_hashlib(benchmark):
    benchmark(lambda: hashlib.md5(KEY.encode()).digest()[:4])


@pytest.mark.parametrize("module", [kernel, twin], ids=["kernel", "twin"])
def test_node(benchmark, module):
    rng = np.random.default_rng(1)
    places = np.sort(rng.integers(0, 2**64, 16_000, dtype=np.uint64))
    found = module.Places(True)
    found.hold(places, rng.integers(0, 100, 16_000, dtype=np.int32), list(range(100)))
    benchmark(found.node, KEY)
