"""WeightedRandom: recorded tables, the exact distribution, then statistics."""

import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def shares_of_table(share, alias, n, total):
    """Return n exact numerators over len(share) * total: the mass that each index has."""
    mass = [0] * n
    for column, (own, other) in enumerate(zip(share.tolist(), alias.tolist(), strict=True)):
        if own:
            mass[column] += own
        if own != total:
            mass[other] += total - own
    return mass


def test_kitex_alias_tables(impl, vectors):
    """Kitex's table, in floats on n columns, is ours on as many, to float's precision."""
    for case in vectors("kitex_alias_and_weighted_random")["cases"]:
        weights = case["weights"]
        share, alias = impl.weighted_random.alias_table(weights)
        total = sum(weights)
        prob = [own / total for own in share.tolist()]
        assert prob == pytest.approx(case["prob"], rel=1e-12), case["name"]
        for column, own in enumerate(prob):
            if case["prob"][column] < 1:
                assert alias[column] == case["alias"][column], (case["name"], column)
            else:
                assert own == 1
        for draw in case["draws"]:
            own = Fraction(draw["f"]) < Fraction(int(share[draw["i"]]), total)
            assert (draw["i"] if own else alias[draw["i"]]) == draw["pick"]


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1000, 1024, 1025, 100_000])
def test_table_is_exactly_the_weights(kernels, n):
    rng = random.Random(n)
    for top in (1, 100, 2**40):
        weights = [rng.randrange(top + 1) for _ in range(n)]
        weights[rng.randrange(n)] += 1
        total = sum(weights)
        picker = kernels.WeightedRandom(range(n), weights, seed=1)
        share, alias = picker.alias_table()
        n_columns = len(share)
        assert n_columns == 1 << max(n - 1, 0).bit_length()
        assert shares_of_table(share, alias, n, total) == [w * n_columns for w in weights]


@settings(max_examples=200, deadline=None)
@given(
    weights=st.one_of(
        st.lists(st.integers(0, 9), min_size=1, max_size=40),
        st.lists(st.integers(0, (2**63 - 1) // 8), min_size=1, max_size=8),
    ).filter(any),
    n_more=st.integers(0, 20),
)
def test_tables_are_exact_and_equal_on_both(kernels, reference, weights, n_more):
    n = len(weights)
    share, alias = kernels.weighted_random.alias_table(weights, n + n_more)
    share2, alias2 = reference.weighted_random.alias_table(weights, n + n_more)
    np.testing.assert_array_equal(share, share2)
    np.testing.assert_array_equal(alias, alias2)
    mass = shares_of_table(share, alias, n, sum(weights))
    assert mass == [w * (n + n_more) for w in weights]


def test_draws_split_each_column_where_the_share_says(impl):
    """Just below and just above share / W, to the last bit that a draw has."""
    rng = random.Random(4)
    for _ in range(300):
        n = rng.randrange(1, 20)
        weights = [rng.randrange(2**40) for _ in range(n)]
        weights[0] += 1
        total = sum(weights)
        picker = impl.WeightedRandom(range(n), weights, seed=1)
        share, alias = picker.alias_table()
        k = len(share).bit_length() - 1
        for column, own in enumerate(share.tolist()):
            edge, rest = divmod(own << (64 - k), total)
            base = column << (64 - k)
            if edge > 0:
                assert picker.index_of(base + edge - 1) == column
            if rest == 0 and edge < 1 << (64 - k):
                assert picker.index_of(base + edge) == alias[column]
            if edge + 1 < 1 << (64 - k):
                assert picker.index_of(base + edge + 1) == alias[column]


@given(
    weights=st.lists(st.integers(0, 2**58), min_size=1, max_size=17).filter(any),
    column=st.integers(0, 31),
    noise=st.integers(-2, 2),
    low=st.integers(0, 2**32 - 1),
)
@settings(max_examples=400, deadline=None)
def test_ties_are_settled_alike_on_both(kernels, reference, weights, column, noise, low):
    """Draws whose coin is the threshold, or next to it."""
    n, total = len(weights), sum(weights)
    one = kernels.WeightedRandom(range(n), weights, seed=1)
    other = reference.WeightedRandom(range(n), weights, seed=1)
    share, _ = one.alias_table()
    k = len(share).bit_length() - 1
    column %= len(share)
    coin = min(max((int(share[column]) << 32) // total + noise, 0), 2**32 - 1)
    n_low = 32 - k
    edge = (int(share[column]) << (64 - k)) // total
    for bits in (
        column << (64 - k) | coin << n_low | low & ((1 << n_low) - 1),
        column << (64 - k) | min(edge, (1 << (64 - k)) - 1),
    ):
        assert one.index_of(bits) == other.index_of(bits)


def test_one_number_of_the_stream_for_each_pick(impl):
    weights = [5, 0, 1, 7, 3]
    picker = impl.WeightedRandom(range(5), weights, seed=99)
    stream = impl.splitmix64.SplitMix64(99)
    assert picker.pick_many(200) == [picker.index_of(stream.next()) for _ in range(200)]


def test_sequence_is_fixed_for_ever(impl):
    picker = impl.WeightedRandom(range(5), [5, 1, 1, 0, 3], seed=42)
    assert picker.pick_many(24) == GOLDEN


GOLDEN = [0, 1, 2, 2, 0, 4, 1, 4, 2, 0, 1, 0, 4, 4, 0, 1, 0, 0, 0, 0, 4, 0, 0, 0]


@pytest.mark.parametrize("n", [3, 100, 1000])
def test_chi_square(kernels, n):
    # 4 * 10**6 draws; the statistic is within 5 standard deviations of its mean with a
    # probability of more than 1 - 1e-5.
    weights = np.random.default_rng(n).integers(1, 101, n)
    picker = kernels.WeightedRandom(range(n), weights, seed=7)
    out = np.empty(4_000_000, np.int32)
    picker.fill(out)
    expected = weights * (len(out) / weights.sum())
    statistic = ((np.bincount(out, minlength=n) - expected) ** 2 / expected).sum()
    assert abs(statistic - (n - 1)) < 5 * (2 * (n - 1)) ** 0.5


def test_consecutive_picks_are_independent(kernels):
    # Pairs of picks over 4 instances: 16 cells, 10**6 pairs, 15 degrees of freedom; the
    # 1 - 1e-6 quantile of the statistic is 57.
    picker = kernels.WeightedRandom(range(4), [1, 2, 3, 4], seed=11)
    out = np.empty(2_000_000, np.int32)
    picker.fill(out)
    pairs = np.bincount(out[::2] * 4 + out[1::2], minlength=16)
    share = np.arange(1, 5) / 10
    expected = np.outer(share, share).ravel() * 1_000_000
    assert ((pairs - expected) ** 2 / expected).sum() < 57


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.integers(0, 2**50), max_size=70),
    seed=st.integers(0, 2**64 - 1),
    batches=st.lists(st.integers(0, 150), max_size=6),
)
def test_kernel_equals_reference_and_batches_equal_singles(
    kernels, reference, weights, seed, batches
):
    n = len(weights)
    one = kernels.WeightedRandom(range(n), weights, seed=seed)
    other = reference.WeightedRandom(range(n), weights, seed=seed)
    for i, size in enumerate(batches):
        out = np.empty(size, np.int32)
        if i % 2:
            one.fill(out)
            got = [None if index < 0 else index for index in out.tolist()]
        else:
            got = [one.pick() for _ in range(size)]
        assert got == other.pick_many(size)


@pytest.mark.parametrize(("weights", "n_columns"), [([], None), ([0, 0], None), ([1, 2], 1)])
def test_tables_that_cannot_be_are_refused(impl, weights, n_columns):
    with pytest.raises(ValueError, match=r"weights|n_columns"):
        impl.weighted_random.alias_table(weights, n_columns)


@pytest.mark.parametrize("bits", [-1, 2**64, "1", 1.5])
def test_bad_draws_are_refused(impl, bits):
    with pytest.raises((ValueError, TypeError), match="bits"):
        impl.WeightedRandom(range(3)).index_of(bits)


def test_states_are_checked(kernels):
    picker = kernels.WeightedRandom(range(3), seed=1)
    for state in (-1, "a", None, (), (0,), (-1, 0), (2**64, 0), ("a", 0), (0, -1), (0, 3), (0, "a")):
        with pytest.raises((ValueError, TypeError), match="state"):
            picker._restore((0, [], state))
