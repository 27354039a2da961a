"""MD5 places: the hash of a key, and its node on 16,000 places, beside the twin and hashlib."""

import pytest

from bench.cases import md5_cases, run

CASES = {
    (measure, who): made
    for measure in ("key_word", "node")
    for who, made in md5_cases(measure).items()
}


@pytest.mark.parametrize(("measure", "who"), CASES)
def test_key(benchmark, measure, who):
    """1,000 look-ups of one key, one by one."""
    run(benchmark, CASES[measure, who])
