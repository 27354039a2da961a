"""ConsistentHash: golden places, identity with a ring made anew, what moves, how even."""

import os
import random
import subprocess
import sys
from fractions import Fraction

import mmh3
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import rota
from rota.kernels.ketama import ConsistentHash as Kernel
from rota.reference.ketama import ConsistentHash as Reference

KEYS = [f"user:{i}" for i in range(1000)]

# Owners of KEYS[:40] on the ring of GOLDEN_RING, written down once: they are a promise.
GOLDEN_RING = (["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"], [1, 2, 3, 0])
GOLDEN = "1332232222212233331133333231333333323232"


def same_ring(one, other):
    places, names = one.arcs()
    other_places, other_names = other.arcs()
    np.testing.assert_array_equal(places, other_places)
    assert names == other_names


def test_points_are_where_the_definition_says(impl):
    """Point k of NAME: the first word of MurmurHash3 x64-128 of "NAME-k"."""
    weights = {"a:1": 2, "b:2": 1}
    ring = impl.ConsistentHash(list(weights), list(weights.values()), virtual_factor=7)
    want = sorted(
        (mmh3.mmh3_x64_128_utupledigest(f"{name}-{k}".encode(), 0)[0], name.encode())
        for name, weight in weights.items()
        for k in range(7 * weight)
    )
    places, names = ring.arcs()
    assert list(zip(places.tolist(), names, strict=True)) == want


def test_a_key_belongs_to_the_first_point_at_or_after_its_place(impl):
    ring = impl.ConsistentHash(["a", "b", "c"], virtual_factor=40)
    places, names = ring.arcs()
    on, before, after = places, places - np.uint64(1), places + np.uint64(1)
    out = np.empty(len(places), np.int32)
    for given, shift in ((on, 0), (before, 0), (after, 1)):
        ring.indices(given, out)
        for k, i in enumerate(out):
            assert ring.instances[i].encode() == names[(k + shift) % len(names)]
    ends = np.array([0, 2**64 - 1], np.uint64)
    ring.indices(ends, out[:2])
    assert ring.instances[out[0]].encode() == ring.instances[out[1]].encode() == names[0]


def test_golden_owners(impl):
    ring = impl.ConsistentHash(*GOLDEN_RING)
    assert "".join(ring.pick(key)[7] for key in KEYS[:40]) == GOLDEN


def test_the_same_in_another_process():
    program = (
        "import sys, rota; ring = rota.ConsistentHash(['10.0.0.1:80', '10.0.0.2:80', "
        "'10.0.0.3:80', '10.0.0.4:80'], [1, 2, 3, 0]); "
        "print(''.join(ring.pick(f'user:{i}')[7] for i in range(40)))"
    )
    for seed in ("0", "12345"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.strip() == GOLDEN


def test_order_and_length_of_names_move_nothing(impl):
    """Kitex moves 90 % of the keys when one longer address joins."""
    names = [f"10.0.0.{i}:80" for i in range(9)]
    ring = impl.ConsistentHash(names, virtual_factor=50)
    shuffled = random.Random(1).sample(names, 9)
    same_ring(ring, impl.ConsistentHash(shuffled, virtual_factor=50))
    longer = impl.ConsistentHash([*names, "10.0.0.100:8080"], virtual_factor=50)
    for key in KEYS[:300]:
        assert longer.pick(key) in (ring.pick(key), "10.0.0.100:8080")


# -- what a change moves, exactly -----------------------------------------------------------


def share_of(ring, name):
    """The exact share of the key space that a name owns."""
    places, names = ring.arcs()
    whole = [*places.tolist()]
    return Fraction(
        sum((p - whole[k - 1]) % 2**64 for k, p in enumerate(whole) if names[k] == name), 2**64
    )


def test_leaving_moves_exactly_the_arcs_of_who_left(impl):
    names = [f"10.0.0.{i}:80" for i in range(10)]
    before, after = (impl.ConsistentHash(names, virtual_factor=30) for _ in range(2))
    after.remove(3)
    assert rota.moved(before, after) == share_of(before, b"10.0.0.3:80")
    for key in KEYS:
        if before.pick(key) != names[3]:
            assert after.pick(key) == before.pick(key)
    back = impl.ConsistentHash(names, virtual_factor=30)
    assert rota.moved(after, back) == rota.moved(before, after)
    assert rota.moved(before, back) == 0


def test_coming_moves_only_arcs_to_who_came(impl):
    names = [f"10.0.0.{i}:80" for i in range(10)]
    before, after = (impl.ConsistentHash(names, virtual_factor=30) for _ in range(2))
    after.add("new:1", 2)
    assert rota.moved(before, after) == share_of(after, b"new:1")
    for key in KEYS:
        assert after.pick(key) in (before.pick(key), "new:1")


def test_another_weight_moves_only_to_or_from_its_owner(impl):
    names = [f"10.0.0.{i}:80" for i in range(10)]
    light, heavy = (impl.ConsistentHash(names, virtual_factor=30) for _ in range(2))
    heavy.set_weight(4, 3)
    grown = share_of(heavy, names[4].encode()) - share_of(light, names[4].encode())
    assert rota.moved(light, heavy) == grown
    heavy.set_weight(4, 1)
    same_ring(light, heavy)


# -- identity with a ring made anew ---------------------------------------------------------


class Changes(RuleBasedStateMachine):
    """A ring changed in place, its twin, and rings made anew are one, point for point."""

    def __init__(self):
        super().__init__()
        self.weights = {}

    @initialize(
        n=st.integers(0, 6),
        factor=st.sampled_from([1, 3, 40]),
        weighted=st.booleans(),
        points=st.sampled_from(["murmur3", "murmur3", "nginx"]),
    )
    def start(self, n, factor, weighted, points):
        self.options = {"virtual_factor": factor, "weighted": weighted, "points": points}
        self.weights = {f"10.0.0.{i}:80": i % 3 for i in range(n)}
        names, weights = list(self.weights), list(self.weights.values())
        self.ring = Kernel(names, weights, **self.options)
        self.twin = Reference(names, weights, **self.options)

    @rule(i=st.integers(0, 30), weight=st.integers(0, 5))
    def add(self, i, weight):
        name = f"10.0.0.{i}:80"
        if name not in self.weights:
            assert self.ring.add(name, weight) == self.twin.add(name, weight)
            self.weights[name] = weight

    @precondition(lambda self: self.weights)
    @rule(data=st.data())
    def remove(self, data):
        name = data.draw(st.sampled_from(sorted(self.weights)))
        self.twin.remove(self.ring.index_of(name))
        self.ring.remove(self.ring.index_of(name))
        del self.weights[name]

    @precondition(lambda self: self.weights)
    @rule(data=st.data(), weight=st.integers(0, 60))
    def set_weight(self, data, weight):
        name = data.draw(st.sampled_from(sorted(self.weights)))
        self.ring.set_weight(self.ring.index_of(name), weight)
        self.twin.set_weight(self.twin.index_of(name), weight)
        self.weights[name] = weight

    @rule(weights=st.dictionaries(st.integers(0, 12), st.integers(0, 4), max_size=9))
    def update(self, weights):
        self.weights = {f"10.0.0.{i}:80": weight for i, weight in weights.items()}
        for ring in (self.ring, self.twin):
            ring.update(list(self.weights), list(self.weights.values()))

    @invariant()
    def one_ring(self):
        if not hasattr(self, "ring"):
            return
        same_ring(self.ring, self.twin)
        if self.options["points"] == "murmur3":
            # Where points of others' rings fall together, the order of the list decides.
            new = Kernel(list(self.weights), list(self.weights.values()), **self.options)
            same_ring(self.ring, new)
        assert self.ring.instances == self.twin.instances
        assert self.ring.pick_n("k", 40) == self.twin.pick_n("k", 40)


Changes.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestChanges = Changes.TestCase


@pytest.mark.parametrize("points", ["murmur3", "nginx", "libketama"])
def test_two_hundred_random_changes(points):
    rng = random.Random(points)
    options = {"points": points, "virtual_factor": 40}
    weights = {}
    ring, twin = Kernel([], **options), Reference([], **options)
    for _ in range(200):
        name = f"10.0.{rng.randrange(3)}.{rng.randrange(20)}:80"
        if name not in weights:
            weights[name] = rng.choice([0, 1, 1, 2, 10])
            assert ring.add(name, weights[name]) == twin.add(name, weights[name])
        elif rng.random() < 0.5:
            del weights[name]
            twin.remove(ring.index_of(name))
            ring.remove(ring.index_of(name))
        else:
            weights[name] = rng.randrange(12)
            twin.set_weight(ring.index_of(name), weights[name])
            ring.set_weight(ring.index_of(name), weights[name])
    same_ring(ring, twin)
    keys = KEYS[:200]
    assert ring.pick_many(keys) == twin.pick_many(keys)


def test_a_ring_that_grows_and_shrinks_by_far(kernels):
    """Laid out again on the way up and on the way down."""
    ring = kernels.ConsistentHash([])
    for i in range(300):
        ring.add(f"n{i}:80", 1 + i % 2)
    same_ring(ring, kernels.ConsistentHash([f"n{i}:80" for i in range(300)], [1, 2] * 150))
    for i in range(297):
        ring.remove(i)
    same_ring(ring, kernels.ConsistentHash(["n297:80", "n298:80", "n299:80"], [2, 1, 2]))
    for i in (297, 298, 299):
        ring.remove(i)
    assert ring.pick("k") is None
    assert len(ring.arcs()[0]) == 0


def test_points_on_one_place(impl):
    """By name on rota's ring; by the order of the list on the rings of others."""
    places = np.array([5, 5, 2**63, 2**64 - 1], np.uint64)

    class Colliding:
        counts_are_own = True

        def counts(self, weights, names):
            return [4 * (weight > 0) for weight in weights]

        def places(self, name, first, last):
            return places[first:last]

        def place(self, key):
            return int.from_bytes(key, "big")

        def check(self, total, n_live):
            pass

    module = impl.ketama
    original = module.rule if impl.name == "reference" else module.rule_of
    attribute = "rule" if impl.name == "reference" else "rule_of"
    try:
        setattr(module, attribute, lambda *arguments: Colliding())
        if getattr(module, attribute) is original:
            pytest.fail("the rule was not replaced")
        ring = module.ConsistentHash(["c", "a", "b"], points="nginx")
        assert ring.arcs()[1] == [b"c", b"c", b"a", b"a", b"b", b"b", *[b"c", b"a", b"b"] * 2]
        ring.remove(0)
        assert ring.arcs()[1] == [b"a", b"a", b"b", b"b", b"a", b"b", b"a", b"b"]
        assert ring.pick(b"\xff" * 8) == "a"
        assert ring.pick(b"\x06") == "a"
        ring.remove(1)
        ring.remove(2)
        assert ring.pick(b"") is None
    finally:
        setattr(module, attribute, original)


# -- how even -------------------------------------------------------------------------------


def test_load_of_equal_instances(kernels):
    ring = kernels.ConsistentHash([f"10.0.{i // 10}.{i % 10}:8080" for i in range(100)])
    owners = ring_counts(ring, 10**6)
    assert owners.std() / owners.mean() <= 0.085


def test_load_follows_weights(kernels):
    weights = np.array([1, 2, 3] * 33)
    ring = kernels.ConsistentHash([f"10.0.{i // 10}.{i % 10}:8080" for i in range(99)], weights)
    load = ring_counts(ring, 10**6) / weights
    assert load.std() / load.mean() <= 0.085


def ring_counts(ring, n_keys):
    """How many of n_keys random places each index owns."""
    places = np.random.default_rng(1).integers(0, 2**64, n_keys, dtype=np.uint64)
    out = np.empty(n_keys, np.int32)
    ring.indices(places, out)
    return np.bincount(out, minlength=len(ring.instances))


# -- refusals and sizes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"virtual_factor": 0}, ValueError, "virtual_factor"),
        ({"virtual_factor": -1}, ValueError, "virtual_factor"),
        ({"virtual_factor": 1.5}, TypeError, "virtual_factor"),
        ({"virtual_factor": 2**25}, ValueError, "33554432"),
        ({"virtual_factor": 10**30}, ValueError, "virtual_factor"),
        ({"points": "md5"}, ValueError, "points"),
        ({"points": None}, ValueError, "points"),
    ],
)
def test_bad_options_are_refused(impl, options, error, words):
    with pytest.raises(error, match=words):
        impl.ConsistentHash(["a", "b"], **options)


def test_a_ring_cannot_be_changed_into_one_that_is_too_large(impl):
    ring = impl.ConsistentHash(["a", "b"])
    before = ring.pick_many(KEYS[:50])
    for change in (
        lambda: ring.set_weight(0, 10**9),
        lambda: ring.add("c", 10**9),
        lambda: ring.update(["a"], [10**9]),
    ):
        with pytest.raises(ValueError, match="33554432"):
            change()
    assert ring.pick_many(KEYS[:50]) == before
    assert ring.weights.tolist() == [1, 1]
    assert len(ring) == 2


def test_unweighted(impl):
    ring = impl.ConsistentHash(["a", "b", "c"], [1, 5, 0], virtual_factor=10, weighted=False)
    _, names = ring.arcs()
    assert (names.count(b"a"), names.count(b"b"), names.count(b"c")) == (10, 10, 0)


def test_a_hundred_thousand_instances(kernels):
    ring = kernels.ConsistentHash([f"n{i}" for i in range(100_000)], virtual_factor=16)
    assert len(ring.arcs()[0]) == 1_600_000
    owner = ring.pick("k")
    ring.remove(ring.index_of(owner))
    assert ring.pick("k") != owner
    assert len(set(ring.pick_n("k", 1000))) == 1000
