"""HashRing does what uhashring's does: by its promises, and side by side with the original."""

import copy
import hashlib
import pickle
import types
import zlib
from collections import Counter
from itertools import pairwise
from uuid import UUID

import pytest
import uhashring
from hypothesis import given, settings
from hypothesis import strategies as st

from rota.compat.uhashring import HashRing

KEYS = [f"key-{i}" for i in range(1000)]
NODES = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]
LOOK_UPS = (
    "get",
    "get_node",
    "get_node_hostname",
    "get_node_instance",
    "get_node_port",
    "get_node_pos",
    "get_node_weight",
    "get_server",
    "__getitem__",
)


@pytest.fixture(params=[None, "ketama", lambda key: zlib.crc32(str(key).encode())])
def hash_fn(request):
    """Each mode: the default, ketama, a function of one's own."""
    return request.param


@pytest.fixture(params=[None, "ketama"])
def md5_mode(request):
    """Each mode that hashes with MD5."""
    return request.param


def md5(text):
    """Return the MD5 of a text."""
    return hashlib.md5(text.encode(), usedforsecurity=False).digest()


def owners(ring):
    """Return the node of every key."""
    return {key: ring.get_node(key) for key in KEYS}


# -- places ---------------------------------------------------------------------------------


def test_the_points_of_the_default_mode():
    ring = HashRing({"a": 1, "b": 2}, vnodes=3)
    points = {int.from_bytes(md5(f"a-{k}"), "big"): "a" for k in range(3)}
    points |= {int.from_bytes(md5(f"b-{k}"), "big"): "b" for k in range(6)}
    assert ring.ring == points
    assert ring._keys == sorted(points)
    assert ring.runtime._node_points["a"] == [p for p, name in points.items() if name == "a"]


def test_the_points_of_ketama():
    ring = HashRing({"a": 1, "b": 2}, hash_fn="ketama", vnodes=3)
    points = {}
    for name, share in (("a", 3 * 2 * 1 // 3), ("b", 3 * 2 * 2 // 3)):
        for k in range(share):
            digest = md5(f"{name}-{k}")
            for i in range(0, 16, 4):
                points[int.from_bytes(digest[i : i + 4], "little")] = name
    assert ring.ring == points


def test_the_points_of_a_function():
    ring = HashRing(["a", "b"], hash_fn=lambda label: label[::-1], vnodes=2)
    assert ring.get_points() == [("0-a", "a"), ("0-b", "b"), ("1-a", "a"), ("1-b", "b")]
    assert [ring.get_node(key) for key in ("", "a-0", "a-1", "z")] == ["a", "b", "b", "a"]


def test_hashes():
    digest = md5("key")
    default, ketama = HashRing(), HashRing(hash_fn="ketama")
    assert default.hashi("key") == default.get_key("key") == int.from_bytes(digest, "big")
    assert ketama.hashi("key") == ketama.get_key("key") == int.from_bytes(digest[:4], "little")
    assert ketama.hashi("key", 3) == int.from_bytes(digest[12:], "little")
    assert ketama.hashi("key", replica=1) == int.from_bytes(digest[4:8], "little")
    with pytest.raises(IndexError):
        ketama.hashi("key", 4)


def test_a_node_has_160_points(md5_mode):
    ring = HashRing(NODES, hash_fn=md5_mode)
    assert ring.size == len(ring._keys) == len(ring._ring) == len(ring.get_points()) == 480
    assert ring.distribution == Counter(dict.fromkeys(NODES, 160))


def test_replicas():
    ring = HashRing([1, 2], hash_fn="ketama", replicas=3)
    assert ring.runtime._replicas == 3
    assert ring.distribution == {1: 120, 2: 120}
    with pytest.raises(IndexError):
        HashRing([1, 2], hash_fn="ketama", replicas=5)


def test_a_key_belongs_to_the_next_point(hash_fn):
    ring = HashRing(NODES, hash_fn=hash_fn)
    points = ring.get_points()
    for key in KEYS:
        above = [point for point in points if point[0] > ring.hashi(key)]
        assert ring.get_server(key) == (above or points)[0]
        assert points[ring.get_node_pos(key)] == ring.get_server(key)


def test_a_key_on_a_point_belongs_to_the_one_after(hash_fn):
    ring = HashRing(NODES, hash_fn=hash_fn)
    points = ring.get_points()
    after = dict(pairwise([*points, points[0]]))
    for name in NODES:
        label = f"{name}-0"
        point = ring.hashi(label), ring.ring[ring.hashi(label)]
        assert ring.get_server(label) == after[point]


def test_keys_are_hashed_as_their_str(hash_fn):
    ring = HashRing(NODES, hash_fn=hash_fn)
    for key in (7, None, 1.5, b"x", ("a", 1), UUID(int=7)):
        assert ring.get_node(key) == ring.get_node(str(key))

    class Loud(str):
        def __str__(self):
            return self.upper()

    assert [ring.get_node(Loud(key)) for key in KEYS] == [ring.get_node(k.upper()) for k in KEYS]


def test_long_keys_and_other_scripts(md5_mode):
    ring = HashRing(NODES, hash_fn=md5_mode)
    for key in ["x" * n for n in (54, 55, 56, 63, 64, 65, 119, 120, 1000)] + ["schlüssel", "鍵"]:
        word = int.from_bytes(md5(key)[:4], "little")
        whole = int.from_bytes(md5(key), "big")
        assert ring.hashi(key) == (word if md5_mode else whole)
        points = ring.get_points()
        above = [point for point in points if point[0] > ring.hashi(key)]
        assert ring.get_server(key) == (above or points)[0]


def test_a_lone_surrogate_has_no_place(md5_mode):
    with pytest.raises(UnicodeEncodeError):
        HashRing(NODES, hash_fn=md5_mode).get_node("\ud800")


# -- nodes ----------------------------------------------------------------------------------


def test_four_ways_to_say_the_same(hash_fn):
    rings = [
        HashRing(nodes, hash_fn=hash_fn)
        for nodes in ("a", ["a"], {"a": 1}, {"a": {"weight": 1, "unknown": "dropped"}})
    ]
    assert all(ring.ring == rings[0].ring and ring.conf == rings[0].conf for ring in rings)
    assert rings[0].conf == {
        "a": {
            "hostname": "a",
            "instance": None,
            "nodename": "a",
            "port": None,
            "vnodes": 40 if hash_fn == "ketama" else 160,
            "weight": 1,
        }
    }


@pytest.mark.parametrize("nodes", [None, ("a",), {"a": "heavy"}, {"a": 1.5}, {"a": None}, 7])
def test_nodes_of_no_known_form_are_refused(nodes, hash_fn):
    with pytest.raises(ValueError, match="must be"):
        HashRing(nodes, hash_fn=hash_fn)


def test_what_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match="hash_fn"):
        HashRing(hash_fn="md4")
    for weight_fn in (12, "heavy"):
        with pytest.raises(TypeError, match="weight_fn"):
            HashRing(NODES, weight_fn=weight_fn)


def test_unknown_keywords_are_ignored():
    assert HashRing(NODES, compat=True, replicas=9).ring == HashRing(NODES).ring


def test_a_fractional_weight_is_refused_and_the_points_stay():
    ring = HashRing(NODES)
    before = owners(ring)
    with pytest.raises(TypeError):
        ring.add_node("new", {"weight": 1.5})
    assert owners(ring) == before


def test_ketama_without_any_weight_has_no_shares():
    with pytest.raises(ZeroDivisionError):
        HashRing({"a": 0}, hash_fn="ketama")


@pytest.mark.parametrize("weights", [{}, {"a": 0}])
def test_an_empty_ring(weights):
    ring = HashRing(weights)
    assert all(getattr(ring, name)("key") is None for name in LOOK_UPS)
    assert list(ring.range("key")) == ring.get_points() == ring._keys == []
    assert list(ring.iterate_nodes("key")) == [None]
    assert ring.ring == ring.distribution == {}
    assert ring.size == 0


def test_weights_decide_how_much(hash_fn):
    ring = HashRing({"a": 1, "b": 3, "c": 0}, hash_fn=hash_fn)
    assert ring.distribution["b"] == 3 * ring.distribution["a"]
    assert ring.distribution["c"] == 0
    counts = Counter(owners(ring).values())
    assert 600 < counts["b"] < 900
    assert counts["a"] + counts["b"] == 1000


def test_one_by_one_is_as_all_at_once(hash_fn):
    once, grown = HashRing(NODES, hash_fn=hash_fn), HashRing(hash_fn=hash_fn)
    for name in NODES:
        grown.add_node(name)
    assert (grown.conf, grown.ring, grown._keys) == (once.conf, once.ring, once._keys)
    assert grown.distribution == once.distribution
    assert owners(grown) == owners(once)


def test_only_keys_of_a_removed_node_move_and_come_back(hash_fn):
    ring = HashRing(NODES, hash_fn=hash_fn)
    before = owners(ring)
    del ring[NODES[1]]
    after = owners(ring)
    assert {k for k in KEYS if before[k] != after[k]} == {k for k in KEYS if before[k] == NODES[1]}
    with pytest.raises(KeyError):
        ring.remove_node(NODES[1])
    ring[NODES[1]] = 1
    assert owners(ring) == before


def test_removing_all_leaves_nothing(hash_fn):
    ring = HashRing(NODES, hash_fn=hash_fn)
    for name in NODES:
        ring.remove_node(name)
    assert ring.ring == ring.distribution == ring.conf == {}
    assert ring.get_node("key") is None


def test_a_node_without_weight_can_be_removed():
    """The original removes it too, but raises KeyError all the same."""
    ring = HashRing({"a": 1, "b": 0})
    ring.remove_node("b")
    assert list(ring.get_nodes()) == ["a"]


def test_a_new_weight_replaces_the_old(hash_fn):
    ring = HashRing(NODES, hash_fn=hash_fn)
    for weight in (3, 1, 2):
        ring.add_node(NODES[0], weight)
        fresh = HashRing({**dict.fromkeys(NODES, 1), NODES[0]: weight}, hash_fn=hash_fn)
        assert ring.ring == fresh.ring
        assert owners(ring) == owners(fresh)


def test_nodes_with_one_label_share_their_points(hash_fn):
    """The last one has them; when it goes they are gone, until everything is made anew."""
    ring = HashRing(["1"], hash_fn=hash_fn, vnodes=5)
    size = ring.size
    ring.add_node(1)
    assert ring.size == size
    assert ring.get_node("key") == 1
    ring.remove_node(1)
    ring.regenerate()
    assert ring.get_node("key") == "1"
    assert ring.size == size


def test_many_changes_reuse_numbers():
    ring = HashRing(["a"])
    for i in range(50):
        ring.add_node(f"n{i}")
        ring.add_node(f"m{i}")
        ring.remove_node(f"n{i}")
        ring.remove_node(f"m{i}")
    assert len(ring.runtime._names) == 3
    assert set(owners(ring).values()) == {"a"}


def test_weight_fn_decides_and_regenerate_asks_again(hash_fn):
    load = {"a": 1, "b": 3}
    ring = HashRing(list(load), hash_fn=hash_fn, weight_fn=lambda **conf: load[conf["hostname"]])
    assert ring.ring == HashRing(load, hash_fn=hash_fn).ring
    load["b"] = 1
    assert ring.get_node_weight("key") in (1, 3)
    ring.regenerate()
    assert ring.ring == HashRing(load, hash_fn=hash_fn).ring
    assert {conf["weight"] for conf in ring.conf.values()} == {1}


def test_regenerating_nothing(hash_fn):
    ring = HashRing(hash_fn=hash_fn)
    ring.regenerate()
    assert ring.ring == {}


# -- what members return --------------------------------------------------------------------


def test_what_is_known_of_a_node(hash_fn):
    conf = {"hostname": "a.example", "port": 80, "instance": object(), "weight": 2}
    ring = HashRing({"a": conf}, hash_fn=hash_fn)
    assert ring["key"] is ring.get_node_instance("key") is conf["instance"]
    assert ring.get_node("key") == "a"
    assert ring.get_node_hostname("key") == "a.example"
    assert ring.get_node_port("key") == 80
    assert ring.get_node_weight("key") == 2
    assert ring.get_instances() == [conf["instance"]]
    assert ring.get("key") is ring.conf["a"]
    ring.conf["a"]["port"] = 81
    assert ring.get_node_port("key") == 81


def test_types(hash_fn):
    ring = HashRing(NODES, hash_fn=hash_fn)
    assert isinstance(ring.get_nodes(), type({}.keys()))
    assert isinstance(ring.range("key"), types.GeneratorType)
    assert isinstance(ring.iterate_nodes("key"), types.GeneratorType)
    assert type(ring.distribution) is Counter
    assert type(ring.ring) is dict
    assert type(ring._keys) is type(ring.get_points()) is type(ring.get_instances()) is list
    assert type(ring.get_server("key")) is tuple
    assert ring.ring is ring.ring


def test_aliases(hash_fn):
    ring = HashRing(NODES, hash_fn=hash_fn)
    assert ring.add_node == ring.__setitem__
    assert ring.remove_node == ring.__delitem__
    assert ring.get_node_instance == ring.__getitem__
    assert ring.nodes is ring.conf is ring._nodes is ring.runtime._nodes
    assert ring.continuum is ring.ring is ring._ring is ring.runtime._ring
    assert ring._keys is ring.runtime._keys
    assert ring.distribution is ring.runtime._distribution


def test_range(hash_fn):
    ring = HashRing(NODES, hash_fn=hash_fn)
    for key in KEYS[:100]:
        all_points = [conf["nodename"] for conf in ring.range(key, unique=False)]
        start = ring.get_node_pos(key)
        names = [name for _, name in ring.get_points()]
        assert all_points == names[start:] + names[:start]
        distinct = list(dict.fromkeys(all_points))
        assert list(ring.iterate_nodes(key)) == distinct
        assert list(ring.iterate_nodes(key, distinct=False)) == all_points
        assert [conf["nodename"] for conf in ring.range(key, 2)] == distinct[:2]
        assert [c["nodename"] for c in ring.range(key, 2, unique=False)] == all_points[:2]


def test_print_continuum(capsys):
    HashRing().print_continuum()
    assert capsys.readouterr().out == "Continuum empty\n"
    ring = HashRing(["a"], vnodes=2)
    ring.print_continuum()
    first, second = ring._keys
    assert capsys.readouterr().out == f"Numpoints in continuum: 2\na ({first})\na ({second})\n"


# -- objects --------------------------------------------------------------------------------


def test_copies_go_their_own_way(hash_fn):
    ring = HashRing(NODES, hash_fn=hash_fn)
    before = owners(ring)
    other = copy.deepcopy(ring)
    other.remove_node(NODES[0])
    assert owners(ring) == before
    assert NODES[0] not in owners(other).values()
    shallow = copy.copy(ring)
    ring.remove_node(NODES[1])
    assert owners(shallow) == owners(ring) != before


def test_pickling(md5_mode):
    ring = HashRing({"a": 1, "b": 3}, hash_fn=md5_mode)
    other = pickle.loads(pickle.dumps(ring))
    assert owners(other) == owners(ring)
    other.add_node("c")
    assert other.ring == HashRing({"a": 1, "b": 3, "c": 1}, hash_fn=md5_mode).ring


def test_a_subclass_has_its_own_get_node(hash_fn):
    class Lower(HashRing):
        def get_node(self, key):
            return super().get_node(key.lower())

    ring, lower = HashRing(NODES, hash_fn=hash_fn), Lower(NODES, hash_fn=hash_fn)
    assert [lower.get_node(key.upper()) for key in KEYS] == [ring.get_node(key) for key in KEYS]


# -- side by side with the original ---------------------------------------------------------


def weak(key):
    """Hash to few places, so that nodes collide."""
    return zlib.crc32(str(key).encode()) % 31


def as_text(key):
    """Hash to what is no number."""
    return md5(str(key)).hex()


names = st.sampled_from(["a", "b", "c:1", "d-1", "ü", "1", 1, True, 2])
small = st.integers(-1, 5)
confs = small | st.fixed_dictionaries(
    {},
    optional={
        "weight": small,
        "vnodes": small,
        "port": st.integers(1, 9),
        "hostname": st.sampled_from(["x", "y"]),
        "nodename": st.sampled_from(["x", "y"]),
        "instance": st.sampled_from([0, "one"]),
        "unknown": st.none(),
    },
)
changes = st.lists(
    st.one_of(
        st.tuples(st.just("add_node"), names, confs),
        st.tuples(st.just("add_node"), names),
        st.tuples(st.just("remove_node"), names),
        st.tuples(st.just("regenerate")),
    ),
    max_size=8,
)
options = st.fixed_dictionaries(
    {"hash_fn": st.sampled_from([None, "ketama", "ketama", weak, as_text])},
    optional={
        "vnodes": st.integers(0, 6),
        "replicas": st.integers(0, 4),
        "weight_fn": st.sampled_from([None, lambda **conf: len(str(conf["hostname"]))]),
        "compat": st.booleans(),
    },
)


def outcome(function, *arguments):
    """Return what a call returns, or the type of what it raises."""
    try:
        return function(*arguments)
    except Exception as error:
        return type(error)


def seen(ring, keys):
    """Return all that one can see of a ring."""
    members = ("conf", "nodes", "ring", "continuum", "distribution", "size", "_keys", "_ring")
    private = ("_nodes", "_keys", "_ring", "_distribution", "_replicas", "_weight_sum")
    state = {name: getattr(ring, name) for name in members}
    state["runtime"] = [getattr(ring.runtime, name, None) for name in (*private, "_node_points")]
    state["listed"] = ring.get_points(), list(ring.get_nodes()), ring.get_instances()
    for key in keys:
        state[f"look-ups of {key!r}"] = [getattr(ring, name)(key) for name in LOOK_UPS]
        state[f"hashes of {key!r}"] = ring.get_key(key), ring.hashi(key)
        state[f"ranges of {key!r}"] = [
            list(ring.range(key, size, unique)) for size in (None, 0, 2) for unique in (True, False)
        ]
        state[f"walks of {key!r}"] = [list(ring.iterate_nodes(key, d)) for d in (True, False)]
    return state


def changed(ring, change):
    """Make one change, and return what it raised."""
    name, *arguments = change
    return outcome(getattr(ring, name), *arguments)


@settings(max_examples=300, deadline=None)
@given(
    options,
    st.dictionaries(names, confs, max_size=4) | st.lists(names, max_size=4) | names,
    changes,
    st.lists(st.text(max_size=70) | st.integers() | st.binary(max_size=9), max_size=4),
)
def test_side_by_side(options, nodes, changes, keys):
    """Every member agrees, after every change, until one is refused."""
    theirs = outcome(lambda: uhashring.HashRing(nodes, **options))
    ours = outcome(lambda: HashRing(nodes, **options))
    if isinstance(theirs, type):
        assert ours is theirs
        return
    keys = [*keys, "a-0", "b-1", "1-0"]
    assert seen(ours, keys) == seen(theirs, keys)
    for change in changes:
        known = change[1] in theirs.conf if len(change) > 1 else True
        raised = changed(theirs, change)
        if change[0] == "remove_node" and raised is KeyError and known:
            raised = None  # a node without points: the original has removed it all the same
        assert changed(ours, change) is raised
        if raised not in (None, KeyError):
            return
        assert seen(ours, keys) == seen(theirs, keys)
