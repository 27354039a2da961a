"""The rules of the rings against their originals, and the share of keys that moves."""

import hashlib
import pickle
import sys
import zlib
from bisect import bisect_left
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rota.ring import MAX_POINTS, RingHashRule, moved, rule

FAMILIES = ["murmur3", "nginx", "libketama", "ring_hash"]


class Ring:
    """A ring in the plainest way; at one place the instance that was given first is first."""

    def __init__(self, own, servers):
        self.rule = own
        self.names = [name.encode() for name, _ in servers]
        self.counts = own.counts([weight for _, weight in servers], self.names)
        self.points = sorted(
            (place, i)
            for i, (name, count) in enumerate(zip(self.names, self.counts, strict=True))
            for place in own.places(name, 0, count).tolist()
        )

    def owner(self, key):
        first = bisect_left(self.points, (self.rule.place(key.encode()), -1))
        return self.points[first % len(self.points)][1]

    def arcs(self):
        places = np.array([place for place, _ in self.points], np.uint64)
        return places, [self.names[i] for _, i in self.points]


class Arcs:
    """A ring of (place, name) alone."""

    def __init__(self, points):
        self.points = sorted(points, key=lambda point: point[0])

    def arcs(self):
        places = np.array([place for place, _ in self.points], np.uint64)
        return places, [name for _, name in self.points]

    def owner(self, place):
        return next((name for end, name in self.points if end >= place), self.points[0][1])


def test_murmur3_points_and_keys(vectors):
    recorded, own = vectors("ring_murmur3"), rule("murmur3", 160, True)
    assert [own.place(key.encode()) for key in recorded["keys"]] == recorded["key_places"]
    for name, points in recorded["points"].items():
        for k, place in zip(recorded["numbers"], points, strict=True):
            assert own.places(name.encode(), k, k + 1).tolist() == [place], (name, k)


@pytest.mark.parametrize("file", ["ring_nginx", "ring_pingora_ketama"])
def test_nginx_owners(vectors, file):
    recorded = vectors(file)
    for case in recorded["cases"]:
        servers = case["servers"]
        if file == "ring_pingora_ketama":  # hashes IPv6 without the brackets
            servers = [(name.replace("[", "").replace("]", ""), weight) for name, weight in servers]
        ring = Ring(rule("nginx", 160, True), servers)
        assert ring.counts == [160 * weight for _, weight in servers]
        assert [ring.owner(key) for key in recorded["keys"]] == case["owners"], case["name"]


def test_libketama_points_and_owners(vectors):
    recorded, own = vectors("ring_libketama"), rule("libketama", 160, True)
    places = [own.place(key.encode()) >> 32 for key in recorded["keys"]]
    assert places == recorded["key_points"]
    for case in recorded["cases"]:
        ring = Ring(own, case["servers"])
        assert ring.counts == case["counts"], case["name"]
        lines = [f"{place >> 32} {case['servers'][i][0]}\n" for place, i in ring.points]
        assert sha256(lines) == case["points_sha256"], case["name"]
        assert [ring.owner(key) for key in recorded["keys"]] == case["owners"], case["name"]


def test_ring_hash_points_and_owners(vectors):
    recorded = vectors("ring_grpc_ring_hash")
    for case in recorded["cases"]:
        own = RingHashRule(160, True, case["min_ring_size"], case["max_ring_size"])
        assert [own.place(key.encode()) for key in recorded["keys"]] == recorded["key_places"]
        ring = Ring(own, case["servers"])
        assert ring.counts == case["counts"], case["name"]
        lines = [f"{place} {case['servers'][i][0]}\n" for place, i in ring.points]
        assert sha256(lines) == case["points_sha256"], case["name"]
        assert [ring.owner(key) for key in recorded["keys"]] == case["owners"], case["name"]


def sha256(lines):
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("points", FAMILIES)
def test_a_point_depends_on_name_and_number_alone(points):
    own = rule(points, 160, True)
    every = own.places(b"10.0.0.1:80", 0, 50)
    assert every.dtype == np.uint64
    assert len(set(every.tolist())) == 50
    for first in range(12):
        for last in (first, first + 1, first + 6, 50):
            part = own.places(b"10.0.0.1:80", first, last)
            assert part.dtype == np.uint64
            assert part.tolist() == every[first:last].tolist()
    assert not set(every.tolist()) & set(own.places(b"10.0.0.2:80", 0, 50).tolist())


@pytest.mark.parametrize(
    ("name", "host", "port"),
    [
        (b"10.0.0.1:80", b"10.0.0.1", b"80"),
        (b"10.0.0.1", b"10.0.0.1", b""),
        (b"host.example:080", b"host.example", b"080"),
        (b"host.example:http", b"host.example:http", b""),
        (b"host.example:", b"host.example", b""),
        (b"[::1]:443", b"[::1]", b"443"),
        (b"[::1]", b"[::1]", b""),
        (b"::1:7777", b"::1", b"7777"),
        (b"unix:/run/a.sock", b"/run/a.sock", b""),
        (b"Unix:/run/a.sock:80", b"/run/a.sock:80", b""),
        (b":80", b"", b"80"),
        (b"80", b"80", b""),
        (b"", b"", b""),
    ],
)
def test_host_and_port_as_nginx_splits_them(name, host, port):
    first = zlib.crc32(host + b"\0" + port + bytes(4))
    second = zlib.crc32(host + b"\0" + port + first.to_bytes(4, "little"))
    assert rule("nginx", 160, True).places(name, 0, 2).tolist() == [first << 32, second << 32]


@pytest.mark.parametrize("points", ["murmur3", "nginx"])
def test_counts_of_their_own(points):
    weights, names = [3, 0, 1], [b"a", None, b"b"]
    own = rule(points, 40, True)
    assert own.counts_are_own
    assert own.counts(weights, names) == [120, 0, 40] == [own.count(w) for w in weights]
    own = rule(points, 40, False)
    assert own.counts(weights, names) == [40, 0, 40] == [own.count(w) for w in weights]


@pytest.mark.parametrize("points", ["libketama", "ring_hash"])
def test_counts_that_depend_on_everybody(points):
    own = rule(points, 160, True)
    assert not own.counts_are_own
    assert own.counts([], []) == []
    assert own.counts([0, 0], [b"a", None]) == [0, 0]
    # Who has no weight is not there.
    a, none, b = own.counts([3, 0, 1], [b"a", None, b"b"])
    assert [a, b] == own.counts([3, 1], [b"a", b"b"])
    assert none == 0
    assert a > b > 0
    unweighted = rule(points, 160, False).counts([3, 0, 9], [b"a", None, b"b"])
    assert unweighted == own.counts([1, 0, 1], [b"a", None, b"b"])


def test_the_factor_of_libketama_is_that_of_an_average_server():
    names = [b"a", b"b"]
    assert rule("libketama", 8, True).counts([1, 1], names) == [8, 8]
    assert rule("libketama", 1600, True).counts([3, 1], names) == [2400, 800]


# Places in sixteenths of the key space: asking for every one of these keys is exact.
SIXTEENTHS = st.integers(0, 15).map(lambda k: k << 60)
NAMES = st.sampled_from([b"a", b"b", b"c"])


@given(st.lists(st.tuples(SIXTEENTHS, NAMES)), st.lists(st.tuples(SIXTEENTHS, NAMES)))
def test_moved_is_what_moves_of_all_keys(old, new):
    before, after = Arcs(old), Arcs(new)
    share = moved(before, after)
    if old and new:
        keys = [k << 60 for k in range(16)]
        assert share == Fraction(sum(before.owner(key) != after.owner(key) for key in keys), 16)
    else:
        assert share == (bool(old) != bool(new))
    assert share == moved(after, before)
    assert moved(before, before) == moved(after, after) == 0


def arc_lengths(ends):
    starts = [ends[-1] - 2**64, *ends[:-1]]
    return [end - start for start, end in zip(starts, ends, strict=True)]


PLACES = st.one_of(st.integers(0, 3), st.integers(2**64 - 4, 2**64 - 1), st.integers(0, 2**64 - 1))
POINTS = st.lists(st.tuples(PLACES, NAMES), min_size=1)


@given(POINTS, POINTS)
def test_moved_is_exact_to_the_last_key(old, new):
    before, after = Arcs(old), Arcs(new)
    ends = sorted({place for place, _ in old + new})
    share = sum(
        Fraction(length, 2**64)
        for end, length in zip(ends, arc_lengths(ends), strict=True)
        if before.owner(end) != after.owner(end)
    )
    assert moved(before, after) == share


def test_moved_at_the_edges():
    a, b = Arcs([(0, b"a")]), Arcs([(2**64 - 1, b"b")])
    assert moved(a, b) == 1
    assert moved(a, Arcs([(5, b"a")])) == 0
    assert moved(a, Arcs(a.points + b.points)) == 1 - Fraction(1, 2**64)
    assert moved(b, Arcs(a.points + b.points)) == Fraction(1, 2**64)
    assert moved(Arcs([(7, b"a"), (7, b"b")]), a) == 0
    assert moved(Arcs([(7, b"b"), (7, b"a")]), a) == 1
    assert moved(Arcs([]), Arcs([])) == 0
    assert type(moved(a, b)) is Fraction


@pytest.mark.parametrize("points", FAMILIES)
def test_who_leaves_takes_along_what_was_theirs(points):
    servers = [(f"10.0.0.{i}:80", 1) for i in range(8)]
    own = rule(points, 40, True)
    before, after = Ring(own, servers), Ring(own, servers[:-1])
    if not own.counts_are_own:  # the others may have more points than before
        after.points = [point for point in before.points if point[1] != 7]
    lengths = arc_lengths([place for place, _ in before.points])
    theirs = sum(n for n, (_, i) in zip(lengths, before.points, strict=True) if i == 7)
    assert 0 < moved(before, after) == Fraction(theirs, 2**64)


@pytest.mark.parametrize("points", FAMILIES)
def test_rules_can_be_pickled(points):
    own = rule(points, 160, True)
    copy = pickle.loads(pickle.dumps(own))
    assert copy.counts([2, 1], [b"a", b"b"]) == own.counts([2, 1], [b"a", b"b"])
    assert copy.places(b"a", 0, 9).tolist() == own.places(b"a", 0, 9).tolist()
    assert copy.place(b"key") == own.place(b"key")


@pytest.mark.parametrize("points", FAMILIES)
@pytest.mark.parametrize(
    ("factor", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("9", TypeError)]
)
def test_a_factor_must_be_a_positive_integer(points, factor, error):
    with pytest.raises(error, match=f"virtual_factor .*{factor}"):
        rule(points, factor, True)


@pytest.mark.parametrize("points", ["", "ketama", "Murmur3", None, 3, ["nginx"]])
def test_an_unknown_family(points):
    with pytest.raises(ValueError, match="points must be one of 'murmur3', 'nginx'") as refusal:
        rule(points, 160, True)
    assert repr(points) in str(refusal.value)


def test_libketama_needs_two_digests_on_average():
    with pytest.raises(ValueError, match=r"virtual_factor must be at least 8.*got 7"):
        rule("libketama", 7, True)
    for n in range(1, 500):
        assert sum(rule("libketama", 8, True).counts([1] * n, [b"a"] * n)) > 0, n


@pytest.mark.parametrize(("least", "most"), [(0, 9), (9, 8), (1, MAX_POINTS + 1), (1, 0)])
def test_the_sizes_of_a_ring_hash(least, most):
    with pytest.raises(ValueError, match=r"m.._ring_size"):
        RingHashRule(160, True, least, most)


def test_ring_hash_without_xxhash(monkeypatch):
    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.raises(ImportError, match=r'pip install "rota\[ring-hash\]"'):
        rule("ring_hash", 160, True)


@pytest.mark.parametrize("points", ["murmur3", "nginx", "libketama"])
def test_a_ring_too_large(points):
    own = rule(points, 2**20, True)
    own.check(32, 32)
    with pytest.raises(ValueError, match=r"virtual_factor and weights .* got about 34603008"):
        own.check(33, 33)


def test_weights_count_for_the_size_where_they_make_points():
    with pytest.raises(ValueError, match="points"):
        rule("murmur3", 160, True).check(2**40, 1)
    rule("murmur3", 160, False).check(2**40, 1)
    rule("libketama", 160, True).check(2**40, 1)
    rule("ring_hash", 160, True).check(2**40, 2**20)
