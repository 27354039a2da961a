"""Requests through a selector: a selection and its report.

Worst case: a predicate, which is asked about every instance for every request, n = 10,000.
"""

import pytest

from bench.cases import SELECTORS, run, select_case, select_grid, title

CASES = [
    (name, measure, n, who)
    for name in SELECTORS
    for measure in ("select", "filtered")
    for n, who in select_grid(name, measure)
]
WAYS = [
    (measure, n)
    for measure in ("filter made", "two filters", "predicate", "retry", "acquire")
    for n in (10, 10_000)
]


@pytest.mark.parametrize(("name", "measure", "n", "who"), CASES, ids=title)
def test_select(benchmark, name, measure, n, who):
    """1,000 selections and reports, with and without a filter."""
    run(benchmark, select_case(name, measure, n, who))


@pytest.mark.parametrize(("measure", "n"), WAYS, ids=title)
def test_ways(benchmark, measure, n):
    """100 requests in the other ways, by load."""
    run(benchmark, select_case("p2c", measure, n), 100)
