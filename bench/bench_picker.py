"""What all pickers share: the ways to pick, beside the floor.

The picker is a weighted round robin. Worst case (test_all_attempts): trying every instance
when one has nearly all of the weight, weighted random; every further attempt draws 16 times
and then goes through the list.
"""

import pytest

from bench.cases import balanced, case, floor, floor_of_one, grid, run, title

STEM = "weighted_round_robin"


@pytest.mark.parametrize("made", [floor, floor_of_one], ids=["no_argument", "one_argument"])
def test_floor(benchmark, made):
    """1,000 calls of a compiled method that returns an object it holds."""
    run(benchmark, made())


@pytest.mark.parametrize(("n", "who"), grid(STEM, "iter"), ids=title)
def test_iter(benchmark, n, who):
    """1,000 times next(picker)."""
    run(benchmark, case(STEM, "iter", n, who))


@pytest.mark.parametrize(("n", "who"), grid(STEM, "attempts"), ids=title)
def test_attempts(benchmark, n, who):
    """1,000 times attempts().next(): requests that succeed at once."""
    run(benchmark, case(STEM, "attempts", n, who))


@pytest.mark.parametrize(
    ("n", "who"), grid("weighted_random", "all_attempts", largest=1_000), ids=title
)
def test_all_attempts(benchmark, n, who):
    """One request that fails everywhere."""
    run(benchmark, case("weighted_random", "all_attempts", n, who), 1)


@pytest.mark.parametrize("n", [10, 100, 1_000, 10_000], ids=title)
def test_balancer(benchmark, n):
    """1,000 times get_picker(result).pick(), the picker being cached."""
    run(benchmark, balanced(n))
