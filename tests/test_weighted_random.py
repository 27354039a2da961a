"""WeightedRandom: recorded tables, the exact distribution, statistics, then changes."""

import copy
import pickle
import random
import threading
from fractions import Fraction
from itertools import accumulate

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
    pairs = [(-1, 0), (2**64, 0), ("a", 0), (0, -1), (0, 3), (0, "a")]
    for state in (-1, "a", None, (), (0,), *pairs):
        with pytest.raises((ValueError, TypeError), match="state"):
            picker._restore((0, [], state, False))
    picker.set_weight(0, 5)  # there is no table now, and the state asks for one
    picker._restore((0, [], (7, 0), False))
    assert_table_is_exact(picker)


# -- changes --------------------------------------------------------------------------------


def n_columns_of(picker):
    return 1 << max(len(picker.weights) - 1, 0).bit_length()


def n_draws_of_the_tree(picker):
    """After a change; from then on the picks are the table's."""
    return 2 * max(n_columns_of(picker) // 8, 1)


def assert_tree_is_exact(picker):
    """The first and the last draw of each index are where the cumulative weights say."""
    weights = picker.weights.tolist()
    total = sum(weights)
    assert picker.alias_table()[0].shape == (0,)
    for i, (weight, end) in enumerate(zip(weights, accumulate(weights), strict=True)):
        if weight:
            first = -(-((end - weight) << 64) // total)
            # The lowest of the draws that give one number may be one too many: see `below`.
            first += first * total % 2**64 < 2**64 % total
            last = -(-(end << 64) // total) - 1
            assert picker.index_of(first) == i
            assert picker.index_of(last) == i


def assert_table_is_exact(picker):
    weights = picker.weights.tolist()
    share, alias = picker.alias_table()
    assert len(share) == n_columns_of(picker)
    mass = shares_of_table(share, alias, len(weights), sum(weights))
    assert mass == [weight * len(share) for weight in weights]


def assert_is_exact_from_here(picker):
    """By the tree now, and by the table when it is made."""
    assert_tree_is_exact(picker)
    picker.pick_many(n_draws_of_the_tree(picker))
    assert_table_is_exact(picker)


@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 255, 256, 257, 1000, 4097])
@pytest.mark.parametrize("top", [1, 100, 2**49])
def test_exact_after_every_change(impl, n, top):
    rng = random.Random(n * top)
    picker = impl.WeightedRandom(range(n), [rng.randrange(top + 1) for _ in range(n)], seed=1)
    for _ in range(8):
        i = rng.randrange(n)
        picker.set_weight(i, int(picker.weights[i]) + 1)
        assert_tree_is_exact(picker)
        picker.pick_many(rng.choice([0, 1, 5, n]))
        picker.set_weight(rng.randrange(n), top + 1)
    picker.set_weight(n // 2, top + 3)
    assert_is_exact_from_here(picker)


def test_the_very_next_pick_obeys(impl):
    picker = impl.WeightedRandom(range(40), seed=1)
    for _ in range(5):
        for i in range(40):
            picker.pick_many(i)
            picker.update(range(40), [3 * (k == i) for k in range(40)])
            assert picker.pick_many(1 + i) == [i] * (1 + i)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 16, 17, 33, 100])
def test_the_table_comes_after_so_many_draws(impl, n):
    picker = impl.WeightedRandom(range(n), range(1, n + 1), seed=3)
    stream = impl.splitmix64.SplitMix64(3)
    picker.pick_many(5)
    stream.skip(5)
    for door in (1, 2, 3, 50):
        picker.set_weight(n - 1, int(picker.weights[-1]) + 1)
        left = n_draws_of_the_tree(picker)
        while left > 0:
            assert picker.alias_table()[0].shape == (0,)
            count = min(door, left)
            if count == 1:
                assert picker.index_of(stream.next()) == picker.pick()
            else:
                picker.pick_many(count)
                stream.skip(count)
            left -= count
        assert_table_is_exact(picker)
        assert [picker.index_of(stream.next()) for _ in range(90)] == picker.pick_many(90)


@pytest.mark.parametrize("seed", range(20))
def test_draws_that_do_not_divide_evenly_go_on(kernels, reference, seed):
    """With a sum of 1.5 * 2**62 every fourth draw is one too many, of the first two in three."""
    rng = random.Random(seed)
    weights = [rng.randrange(2**58) for _ in range(8)]
    total = 3 * 2**61 + seed
    one = kernels.WeightedRandom(range(8), weights, seed=seed)
    other = reference.WeightedRandom(range(8), weights, seed=seed)
    for picker in (one, other):
        picker.set_weight(7, total - sum(weights[:7]))
    ends = list(accumulate(one.weights.tolist()))
    n_settled = 0
    for _ in range(200):
        drawn = -(-(rng.randrange(total) << 64) // total)
        if drawn * total % 2**64 < 2**64 % total:
            n_settled += 1
            r = reference.splitmix64.SplitMix64(drawn).below(total)
            assert one.index_of(drawn) == next(i for i, end in enumerate(ends) if end > r)
        assert one.index_of(drawn) == other.index_of(drawn)
    assert n_settled > 100
    assert one.pick_many(300) == other.pick_many(300)


@pytest.mark.parametrize("n", [1, 3, 17, 70])
def test_storms_are_alike_on_both(kernels, reference, n):
    rng = random.Random(n)
    one = kernels.WeightedRandom(range(n), seed=n)
    other = reference.WeightedRandom(range(n), seed=n)
    for _ in range(2000):
        i, weight = rng.randrange(n), rng.choice([0, 1, 2, 10**9])
        n_picks = rng.choice([0, 1, 1, 1, 2, 5, n // 8, n // 4, n])
        for picker in (one, other):
            picker.set_weight(i, weight)
        assert one.pick_many(n_picks) == other.pick_many(n_picks)


def test_growth(impl):
    """One by one over every power of 16, and of 2, that comes."""
    picker = impl.WeightedRandom([], seed=4)
    assert picker.pick() is None
    for n in range(1, 600):
        assert picker.add(n, n % 7) == n - 1
        picker.pick()
        if n % 37 == 0 or n.bit_count() == 1 or (n - 1).bit_count() <= 1:
            picker.set_weight(n // 2, 1 + n)
            assert_is_exact_from_here(picker)


def test_growth_of_the_kernel(kernels):
    picker = kernels.WeightedRandom(range(4095), seed=4)
    for n in range(4096, 4110):
        picker.add(n, n)
        assert_tree_is_exact(picker)
    assert_is_exact_from_here(picker)


def test_to_nothing_and_back(impl):
    picker = impl.WeightedRandom(range(20), seed=5)
    for _ in range(3):
        for i in range(20):
            picker.set_weight(i, 0)
        assert picker.pick_many(3) == [None] * 3
        assert picker.index_of(2**63) is None
        assert [len(part) for part in picker.alias_table()] == [0, 0]
        for i in range(20):
            picker.remove(i)
        assert len(picker) == 0
        for i in range(20):
            picker.add(i, 2)
        assert_is_exact_from_here(picker)


def test_huge_weights(impl):
    picker = impl.WeightedRandom(range(3), [2**62, 1, 2**61], seed=6)
    for weights in ([2**62, 2**62 - 1, 0], [1, 2**62, 2**62 - 2], [0, 0, 2**63 - 1], [1, 0, 2**62]):
        picker.update(range(3), weights)
        assert_is_exact_from_here(picker)
    with pytest.raises(ValueError, match="weights"):
        picker.set_weight(1, 2**62)
    assert_table_is_exact(picker)  # as if that had not been


def test_the_weight_of_one_only(impl):
    picker = impl.WeightedRandom(range(300), [0] * 300, seed=7)
    for i in (0, 15, 16, 255, 256, 299):
        picker.set_weight(i, 1)
        assert_tree_is_exact(picker)
        assert picker.pick_many(300) == [i] * 300
        picker.set_weight(i, 0)


def test_a_copy_goes_on_wherever_the_table_is(impl):
    picker = impl.WeightedRandom(range(100), range(100), seed=8)
    picker.set_weight(3, 50)
    picker.remove(7)
    for n_picks in (0, 1, 9, 15, 1, 1, 3, 1, 1):  # 32 are the tree's
        picker.pick_many(n_picks)
        copies = [copy.copy(picker), pickle.loads(pickle.dumps(picker))]
        copies[0].set_weight(3, 50)  # changes nothing
        expected = copy.copy(picker).pick_many(150)
        assert [other.pick_many(150) for other in copies] == [expected] * 2
        for other in copies:
            other.set_weight(3, 51)
        assert copies[0].pick_many(150) == copies[1].pick_many(150)


@pytest.mark.parametrize("n", [3, 100, 1000])
def test_chi_square_after_changes(kernels, n):
    # As above; 4,000 times a change and 1, 10 or 100 picks, all the tree's where n is large.
    rng = random.Random(n)
    for n_picks in (1, 10, 100):
        weights = [rng.randrange(1, 101) for _ in range(n)]
        picker = kernels.WeightedRandom(range(n), weights, seed=n)
        counts = np.zeros(n)
        for k in range(4000):
            picker.set_weight(k % n, weights[k % n] + 1)
            picker.set_weight(k % n, weights[k % n])
            counts += np.bincount(picker.pick_many(n_picks), minlength=n)
        expected = np.array(weights) * (counts.sum() / sum(weights))
        statistic = ((counts - expected) ** 2 / expected).sum()
        # The variance of a statistic of small expected counts is larger by the sum of 1 / them.
        spread = (2 * (n - 1) + (1 / expected).sum()) ** 0.5
        assert abs(statistic - (n - 1)) < 6 * spread


def test_a_fill_draws_from_the_table_it_began_with(kernels):
    """Changes and new tables while the GIL is let go: each fill is of one set of weights."""
    n, sides = 64, ([1] * 32 + [0] * 32, [0] * 32 + [1] * 32)
    picker = kernels.WeightedRandom(range(n), sides[0], seed=9)
    outs = [np.empty(1_000_000, np.int32) for _ in range(8)]
    fills = threading.Thread(target=lambda: [picker.fill(out) for out in outs])
    fills.start()
    k = 0
    while fills.is_alive():
        k += 1
        picker.update(range(n), sides[k % 2])
        picked = picker.pick_many(k % 200)
        assert all((i < 32) == (k % 2 == 0) for i in picked)
    fills.join()
    for out in outs:
        assert ((out < 32) == (out[0] < 32)).all()
        assert (np.bincount(out % 32) > 1_000_000 // 40).all()
