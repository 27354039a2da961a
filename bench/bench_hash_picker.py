"""What all hash pickers share: the ways to pick beside pick(key), and pickling.

The picker is a ring. Worst case (test_all_attempts): trying every instance, one after
another; the walk begins anew with each.
"""

import pytest

from bench.cases import floor_of_keys, ring_case, ring_grid, run, title

STEM = "ketama"


def grid(measure, **limits):
    """Return every (n, who) of a measure, the large twins apart: they are built in seconds."""
    return ring_grid(STEM, measure, **{"twin": 1_000} | limits)


def test_floor(benchmark):
    """1,024 calls with a key of a compiled method that returns an object it holds."""
    run(benchmark, floor_of_keys(), 1)


@pytest.mark.parametrize(("n", "who"), grid("pick_n"), ids=title)
def test_pick_n(benchmark, n, who):
    """The first 3 instances of 1,024 keys."""
    run(benchmark, ring_case(STEM, "pick_n", n, who), 1)


@pytest.mark.parametrize(("n", "who"), grid("attempts"), ids=title)
def test_attempts(benchmark, n, who):
    """1,024 times attempts(None, key).next(): requests that succeed at once."""
    run(benchmark, ring_case(STEM, "attempts", n, who), 1)


@pytest.mark.parametrize(("n", "who"), grid("all_attempts", largest=100), ids=title)
def test_all_attempts(benchmark, n, who):
    """One request that fails everywhere."""
    run(benchmark, ring_case(STEM, "all_attempts", n, who), 1)


@pytest.mark.parametrize("measure", ["next", "next_get_key"])
@pytest.mark.parametrize(("n", "who"), grid("next"), ids=title)
def test_next(benchmark, measure, n, who):
    """1,024 times next(ctx, request), Kitex's way to pick; the request is the key."""
    run(benchmark, ring_case(STEM, measure, n, who), 1)


@pytest.mark.parametrize(("n", "who"), grid("acquire"), ids=title)
def test_acquire(benchmark, n, who):
    """1,024 times acquire(key).release(), bounded by a load factor of 1.25."""
    run(benchmark, ring_case(STEM, "acquire", n, who), 1)


@pytest.mark.parametrize(("n", "who"), grid("pickle"), ids=title)
def test_pickle(benchmark, n, who):
    """There and back, once."""
    run(benchmark, ring_case(STEM, "pickle", n, who), 1)
