"""Peak EWMA, with as many calls in flight as instances.

Worst case: instances, and what is known of them, that are not in the cache, n = 1,000,000.
"""

import pytest

from bench.cases import bytes_per_instance, case, grid, run, title

STEM = "peak_ewma"


@pytest.mark.parametrize(("n", "who"), grid(STEM, "pick"), ids=title)
def test_pick(benchmark, n, who):
    """1,000 picks, one by one."""
    run(benchmark, case(STEM, "pick", n, who))


@pytest.mark.parametrize(("n", "who"), grid(STEM, "acquire_done", largest=10_000), ids=title)
def test_acquire_done(benchmark, n, who):
    """1,000 calls, begun and ended one by one."""
    run(benchmark, case(STEM, "acquire_done", n, who), 1)


@pytest.mark.parametrize(("n", "who"), grid(STEM, "next"), ids=title)
def test_next(benchmark, n, who):
    """1,000 times next(ctx, request), Kitex's way to pick."""
    run(benchmark, case(STEM, "next", n, who))


@pytest.mark.parametrize(("n", "who"), grid(STEM, "pick_many"), ids=title)
def test_pick_many(benchmark, n, who):
    """10 lists of 1,000 picks."""
    run(benchmark, case(STEM, "pick_many", n, who), 10)


@pytest.mark.parametrize(("n", "who"), grid(STEM, "fill"), ids=title)
def test_fill(benchmark, n, who):
    """10 arrays of 10,000 indices."""
    run(benchmark, case(STEM, "fill", n, who), 10)


@pytest.mark.parametrize(("n", "who"), grid(STEM, "change"), ids=title)
def test_change(benchmark, n, who):
    """1,000 times another weight and a pick."""
    run(benchmark, case(STEM, "change", n, who), 1)


@pytest.mark.parametrize(("n", "who"), grid(STEM, "remove_add"), ids=title)
def test_remove_add(benchmark, n, who):
    """1,000 times an instance that goes and comes again."""
    run(benchmark, case(STEM, "remove_add", n, who), 1)


@pytest.mark.parametrize(("n", "who"), grid(STEM, "build"), ids=title)
def test_build(benchmark, n, who):
    """One build from a list of n instances and one of n weights."""
    run(benchmark, case(STEM, "build", n, who), 1)


@pytest.mark.parametrize(("n", "who"), grid(STEM, "build"), ids=title)
def test_memory(benchmark, n, who):
    """Bytes an instance, in extra_info; the time says nothing."""
    held = benchmark.pedantic(bytes_per_instance, (STEM, n, who), rounds=1)
    benchmark.extra_info["bytes_per_instance"] = held
