"""Filters: by an index or one by one, the same instances as by a plain comprehension."""

import pickle
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rota import Instance
from rota.selector import metadata, subset, version, where, wrr
from rota.selector.filters import Index
from rota.selector.selector import passing

VALUES = st.sampled_from(["", "1", "2"])
KEYS = ("zone", "stage", "version")
NODES = st.lists(
    st.builds(
        lambda address, version, tags: Instance(f"{address}:80", version=version, tags=tags),
        st.integers(0, 5),
        VALUES,
        st.dictionaries(st.sampled_from(KEYS), VALUES),
    ),
    max_size=8,
)
WANTED = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3)


# The naive model: a filter is a function of a list; where it is not indexed the model is itself.


def has_all(node, wanted):
    return all(
        (node.version if key == "version" else node.tags.get(key)) == value
        for key, value in wanted.items()
    )


def plain_subset(wanted, fallback):
    def left(nodes):
        found = [node for node in nodes if has_all(node, wanted)]
        if found or fallback == "none":
            return found
        if fallback == "any":
            return nodes
        if fallback == "fewer keys":
            keys = list(wanted)
            while len(keys) > 1 and not found:
                keys.pop()
                found = [node for node in nodes if has_all(node, {k: wanted[k] for k in keys})]
            return found
        return [node for node in nodes if has_all(node, fallback)]

    return left


def by_version(value):
    return version(value), lambda nodes: [node for node in nodes if node.version == value]


def by_metadata(key, value):
    return metadata(key, value), lambda nodes: [n for n in nodes if n.tags.get(key) == value]


def by_subset(wanted, fallback):
    return subset(wanted, fallback=fallback), plain_subset(wanted, fallback)


def by_address(limit):
    return where(lambda node: node.address < limit), lambda nodes: [
        node for node in nodes if node.address < limit
    ]


CHAINS = st.lists(
    st.one_of(
        st.builds(by_version, VALUES),
        st.builds(by_metadata, st.sampled_from(KEYS), VALUES),
        st.builds(
            by_subset, WANTED, st.one_of(st.sampled_from(["none", "any", "fewer keys"]), WANTED)
        ),
        st.builds(by_address, st.sampled_from(["2", "4", "9"])),
    ),
    max_size=4,
)


@settings(deadline=None, max_examples=300)
@given(nodes=NODES, chain=CHAINS)
def test_chains_leave_what_comprehensions_leave(nodes, chain):
    expected = nodes
    for _, plain in chain:
        expected = plain(expected)
    index = Index(tuple(nodes))
    filters = [each for each, _ in chain]
    for _ in range(2):  # made, and then used
        places = passing(filters, index)
        assert [nodes[k] for k in places] == expected
        assert len(set(places)) == len(places)
    left = nodes
    for each in filters:  # as functions, Kratos' way
        left = list(each(left))
    assert left == expected


@settings(deadline=None, max_examples=100)
@given(lists=st.lists(NODES, max_size=3), chain=CHAINS)
def test_selectors_give_whom_comprehensions_leave(lists, chain):
    """Through a selector, in lists of instances that follow one another, twice each."""
    selector = wrr().build()
    filters = tuple(each for each, _ in chain)
    for nodes in lists:
        selector.apply(nodes)
        expected = nodes
        for _, plain in chain:
            expected = plain(expected)
        for _ in range(2):
            found = [selector.select(filters=filters)[0] for _ in expected]
            # Of equal weights each comes once.
            assert sorted(n.address for n in found) == sorted(n.address for n in expected)
            assert all(any(node is one for one in selector.nodes) for node in found)
            if not expected:
                with pytest.raises(LookupError):
                    selector.select(filters=filters)


A = Instance("a:1", version="1", tags={"zone": "x", "stage": "prod"})
B = Instance("b:1", version="2", tags={"zone": "x", "stage": "test"})
C = Instance("c:1", version="1", tags={"zone": "y", "stage": "test"})
D = Instance("d:1")


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (version("1"), [A, C]),
        (version("3"), []),
        (version(""), [D]),
        (version("1.0"), []),
        (metadata("zone", "x"), [A, B]),
        (metadata("zone", ""), []),  # a tag that is not there is not the empty one
        (metadata("version", "1"), []),  # the tag, not the version
        (subset({"version": "1", "zone": "x"}), [A]),
        (subset({"zone": "z"}), []),
        (subset({}), [A, B, C, D]),
        (subset({"zone": "z"}, fallback="none"), []),
        (subset({"zone": "z"}, fallback="any"), [A, B, C, D]),
        (subset({"zone": "x", "stage": "new"}, fallback="fewer keys"), [A, B]),
        (subset({"zone": "x", "stage": "test", "a": "b"}, fallback="fewer keys"), [B]),
        (subset({"zone": "z", "stage": "test"}, fallback="fewer keys"), []),  # the first must be
        (subset({"zone": "z"}, fallback={"stage": "test", "zone": "y"}), [C]),
        (subset({"zone": "z"}, fallback={}), [A, B, C, D]),
        (subset({"zone": "z"}, fallback={"zone": "w"}), []),
        (subset({"zone": "y"}, fallback={"stage": "prod"}), [C]),
        (where(lambda node: node.address > "b:1"), [C, D]),
        (where(lambda node: node.tags), [A, B, C]),  # any truth will do
    ],
    ids=repr,
)
def test_who_passes(made, expected):
    assert made([A, B, C, D]) == expected
    assert made((A, B, C, D)) == expected
    assert [(A, B, C, D)[k] for k in passing([made], Index((A, B, C, D)))] == expected


def test_fallbacks_are_of_what_came_before():
    """ "Any" is any of those that the filters before it have left."""
    chain = [version("1"), subset({"zone": "z"}, fallback="any")]
    assert passing(chain, Index((A, B, C, D))) == [0, 2]
    chain = [version("1"), subset({"stage": "prod", "zone": "y"}, fallback="fewer keys")]
    assert passing(chain, Index((A, B, C, D))) == [0]


def test_equal_filters_are_one():
    assert version("1") == version("1")
    assert hash(version("1")) == hash(version("1"))
    assert version("1") != version("2")
    assert version("1") != metadata("version", "1")
    assert subset({"version": "1"}) != version("1")
    assert subset({"a": "1", "b": "2"}) == subset({"a": "1", "b": "2"})
    assert subset({"a": "1", "b": "2"}) != subset({"b": "2", "a": "1"})  # fewer keys differ
    assert subset({"a": "1"}) == subset({"a": "1"}, fallback="none")
    assert subset({"a": "1"}) != subset({"a": "1"}, fallback="any")
    wanted = {"a": "1"}
    made = subset(wanted, fallback=MappingProxyType({"b": "1"}))
    wanted["a"] = "2"
    assert made == subset({"a": "1"}, fallback={"b": "1"})
    assert pickle.loads(pickle.dumps(made)) == made
    assert where(len) != where(len)  # what a predicate says may change with every request


def test_what_filters_say_of_themselves():
    def is_good(node):
        return True

    assert repr(version("1")) == "version == '1'"
    assert repr(metadata("zone", "x")) == "zone == 'x'"
    assert repr(subset({"version": "1", "zone": "x"})) == (
        "subset {version: '1', zone: 'x'}, else none"
    )
    assert repr(subset({"a": "1"}, fallback={"b": "2"})) == "subset {a: '1'}, else {b: '2'}"
    assert repr(where(is_good)).endswith("is_good")


def test_tags_that_are_no_text():
    """A tag may be anything, and one that is no str meets no condition."""
    odd = Instance("odd:1", tags={"zone": ["x"], "stage": None})
    index = Index((odd, A))
    assert passing([metadata("zone", "x")], index) == [1]
    assert passing([version(""), metadata("zone", "x")], index) == []
    assert passing([metadata("stage", "None")], index) == []


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: version(1), TypeError, "value must be a str, got 1"),
        (lambda: metadata(1, "a"), TypeError, "key must be a str, got 1"),
        (lambda: metadata("a", None), TypeError, "value must be a str, got None"),
        (lambda: where("x"), TypeError, "predicate must be callable, got 'x'"),
        (lambda: subset("zone"), TypeError, "wanted must be a mapping of str to str, got 'zone'"),
        (lambda: subset({1: "a"}), TypeError, "wanted's keys must be a str, got 1"),
        (lambda: subset({"a": 1}), TypeError, "wanted must be a str, got 1"),
        (lambda: subset({"version": 1}), TypeError, "wanted must be a str, got 1"),
        (lambda: subset({}, fallback="some"), ValueError, "fallback must be 'none', .*'some'"),
        (lambda: subset({}, fallback=None), ValueError, "fallback must be .*None"),
        (lambda: subset({}, fallback={"a": 1}), TypeError, "fallback must be a str, got 1"),
        (lambda: subset({}, fallback=["any"]), ValueError, "fallback must be"),
    ],
    ids=str,
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()
