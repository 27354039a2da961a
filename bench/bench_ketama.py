"""The consistent hash ring, 160 points for each instance.

Worst case (test_pick_cold): every look-up is in a line of a large ring that no near cache holds.
"""

import pytest

from bench.cases import bytes_per_point, ring_case, ring_grid, run, title

STEM = "ketama"


@pytest.mark.parametrize(("n", "who"), ring_grid(STEM, "pick"), ids=title)
def test_pick(benchmark, n, who):
    """The owners of 1,024 keys, one by one; with rendezvous hashing, of 64."""
    run(benchmark, ring_case(STEM, "pick", n, who), 1)


@pytest.mark.parametrize(("n", "who"), ring_grid(STEM, "pick_cold"), ids=title)
def test_pick_cold(benchmark, n, who):
    """The owners of 262,144 keys, one by one."""
    run(benchmark, ring_case(STEM, "pick_cold", n, who), 1)


@pytest.mark.parametrize(("n", "who"), ring_grid(STEM, "pick_many"), ids=title)
def test_pick_many(benchmark, n, who):
    """One list of the owners of 1,024 keys."""
    run(benchmark, ring_case(STEM, "pick_many", n, who), 1)


@pytest.mark.parametrize(("n", "who"), ring_grid(STEM, "indices"), ids=title)
def test_indices(benchmark, n, who):
    """One array of the owners of 10,000 places."""
    run(benchmark, ring_case(STEM, "indices", n, who), 1)


@pytest.mark.parametrize(("n", "who"), ring_grid(STEM, "build"), ids=title)
def test_build(benchmark, n, who):
    """One build from a list of n instances."""
    run(benchmark, ring_case(STEM, "build", n, who), 1)


@pytest.mark.parametrize("measure", ["add", "remove"])
@pytest.mark.parametrize(("n", "who"), ring_grid(STEM, "add", twin=100), ids=title)
def test_change(benchmark, measure, n, who):
    """An instance comes, another one each time, and goes; only one of these is timed."""
    run(benchmark, ring_case(STEM, measure, n, who), 20)


@pytest.mark.parametrize(("n", "who"), ring_grid(STEM, "add_remove", twin=100), ids=title)
def test_add_remove(benchmark, n, who):
    """An instance comes and goes, another one each time."""
    run(benchmark, ring_case(STEM, "add_remove", n, who), 1)


@pytest.mark.parametrize(("n", "who"), ring_grid(STEM, "set_weight", twin=100), ids=title)
def test_set_weight(benchmark, n, who):
    """An instance's weight is raised to 2."""
    run(benchmark, ring_case(STEM, "set_weight", n, who), 20)


@pytest.mark.parametrize(("n", "who"), ring_grid(STEM, "moved"), ids=title)
def test_moved(benchmark, n, who):
    """Which share of the keys moves when one instance comes."""
    run(benchmark, ring_case(STEM, "moved", n, who), 1)


@pytest.mark.parametrize(("n", "who"), ring_grid(STEM, "pick_many", twin=1_000), ids=title)
def test_memory(benchmark, n, who):
    """Bytes a point, in extra_info; the time says nothing."""
    held = benchmark.pedantic(bytes_per_point, (STEM, n, who), rounds=1)
    benchmark.extra_info["bytes_per_point"] = held
