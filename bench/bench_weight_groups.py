"""The queues of one weight, as the tests see them; what they cost a picker is in its own bench.

The door is a method of several arguments, which is most of what these times are.
"""

import pytest

from bench.cases import queue_case, run


@pytest.mark.parametrize("who", ["kernel", "twin"])
@pytest.mark.parametrize("n", [10, 1_000])
def test_pick_of(benchmark, n, who):
    """1,000 picks from a ring of n, one by one."""
    run(benchmark, queue_case("pick_of", n, who))


@pytest.mark.parametrize("who", ["kernel", "twin"])
@pytest.mark.parametrize("n", [10, 1_000])
def test_withdraw_and_enter(benchmark, n, who):
    """1,000 times one member out of the middle and in again, out of order."""
    run(benchmark, queue_case("withdraw_enter", n, who))
