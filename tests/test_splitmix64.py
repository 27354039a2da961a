import random

import numpy as np
import pytest

# The first numbers of seed 1234567 as published with splitmix64.c (S. Vigna; Rosetta Code,
# "Pseudo-random numbers/Splitmix64").
PUBLISHED = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def test_published_numbers(impl):
    stream = impl.splitmix64.SplitMix64(1234567)
    assert [stream.next() for _ in PUBLISHED] == PUBLISHED


def test_skip_equals_drawing(impl):
    for n in (0, 1, 7, 10**18):
        one, other = impl.splitmix64.SplitMix64(5), impl.splitmix64.SplitMix64(5)
        one.skip(n)
        for _ in range(min(n, 10)):
            other.next()
        if n <= 10:
            assert one.next() == other.next()


def test_below_is_in_range_and_equal_on_both(kernels, reference):
    rng = random.Random(1)
    for _ in range(2000):
        bound = rng.choice([1, 2, 3, 10, 2**32 + 1, 2**63 + 1, 2**64 - 1])
        seed = rng.getrandbits(64)
        one, other = kernels.splitmix64.SplitMix64(seed), reference.splitmix64.SplitMix64(seed)
        drawn = [one.below(bound) for _ in range(5)]
        assert drawn == [other.below(bound) for _ in range(5)]
        assert all(0 <= number < bound for number in drawn)
        assert one.next() == other.next()


def test_below_is_unbiased(impl):
    # A bound of 3 * 2**62: without rejection the first two thirds would come half as often
    # again. 6,000 draws: each third within 5 standard deviations (false alarm 2e-6).
    bound = 3 * 2**62
    stream = impl.splitmix64.SplitMix64(9)
    thirds = np.bincount([stream.below(bound) // 2**62 for _ in range(6000)], minlength=3)
    assert abs(thirds - 2000).max() < 5 * (6000 * 2 / 9) ** 0.5


@pytest.mark.parametrize(
    ("seed", "error"), [(-1, ValueError), (2**64, ValueError), ("1", TypeError)]
)
def test_bad_seeds_are_refused(impl, seed, error):
    with pytest.raises(error, match="seed"):
        impl.splitmix64.SplitMix64(seed)


@pytest.mark.parametrize("bound", [0, -1, 2**64, 1.5, "1", None])
def test_bad_bounds_are_refused(impl, bound):
    with pytest.raises((ValueError, TypeError), match="bound"):
        impl.splitmix64.SplitMix64(1).below(bound)


def test_no_seed_means_entropy(impl):
    assert impl.splitmix64.SplitMix64().next() != impl.splitmix64.SplitMix64().next()
