"""The queues of one weight, as the tests see them; what they cost a picker is in its own bench.

The door is a method of three arguments, which is most of what these times are.
"""

import pytest

from rota.kernels.weight_groups import Queues
from rota.reference.weight_groups import Queues as QueuesTwin


@pytest.mark.parametrize("who", [Queues, QueuesTwin], ids=["kernel", "twin"])
@pytest.mark.parametrize("n", [10, 1_000])
def test_pick_of(benchmark, n, who):
    """One pick from a ring of n."""
    queues = who(n)
    for i in range(n):
        queues.enter(i, 1, 0)
    benchmark(queues.pick_of, 1, 1)


@pytest.mark.parametrize("who", [Queues, QueuesTwin], ids=["kernel", "twin"])
@pytest.mark.parametrize("n", [10, 1_000])
def test_withdraw_and_enter(benchmark, n, who):
    """One member out of the middle and in again, out of order."""
    queues = who(n)
    for i in range(n):
        queues.enter(i, 1, i)

    def out_and_in():
        queues.enter(n // 2, 1, queues.withdraw(n // 2))

    benchmark(out_and_in)
