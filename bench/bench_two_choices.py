"""What the load-aware pickers share: the ways to begin and to end a call, and views.

A view of n instances costs what a picker of n costs to build, whoever it is among.
"""

import pytest

from bench.cases import LOADED, case, grid, run, title


@pytest.mark.parametrize("measure", ["acquire_release", "acquire_failed", "with", "select"])
@pytest.mark.parametrize("stem", LOADED)
@pytest.mark.parametrize(("n", "who"), grid(LOADED[0], "acquire_release", largest=1_000), ids=title)
def test_call(benchmark, stem, measure, n, who):
    """1,000 calls, begun and ended one by one."""
    run(benchmark, case(stem, measure, n, who), 1)


@pytest.mark.parametrize("stem", LOADED)
@pytest.mark.parametrize(("n", "who"), grid(LOADED[0], "among", largest=1_000), ids=title)
def test_among(benchmark, stem, n, who):
    """100 views of 10 instances."""
    run(benchmark, case(stem, "among", n, who), 100)
