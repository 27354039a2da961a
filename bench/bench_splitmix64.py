"""SplitMix64. There is no worst case: every number costs the same."""

import pytest

from bench.cases import NUMBERS, run


@pytest.mark.parametrize("who", NUMBERS)
def test_next(benchmark, who):
    """1,000 numbers of 64 bits, one by one."""
    run(benchmark, NUMBERS[who])
