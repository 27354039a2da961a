"""MurmurHash3 of a key.

Worst case: a long key, 4 KiB of bytes.
"""

import pytest

from bench.cases import HASHES, run


@pytest.mark.parametrize(
    ("kind", "who"), [(kind, who) for kind, cases in HASHES.items() for who in cases]
)
def test_key_hash(benchmark, kind, who):
    """1,000 hashes, one by one."""
    run(benchmark, HASHES[kind][who])
