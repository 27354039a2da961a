"""The way of a request through a selector: kernel and twin take the same one."""

import pickle
from contextvars import ContextVar
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rota.selector import filters as rota_filters

PEERS = ContextVar("peers", default=None)


class Refused(Exception):
    pass


def make(impl, *, is_keyed=False, found=("found", "done")):
    """Return a selection that says which way it took: (log, selection)."""
    log = []

    class Made(impl.selection.Selection):
        def _find(self, filters, exclude, key):
            log.append(("find", filters, exclude, key))
            return found

        def _refuse(self, filters, exclude):
            log.append(("refuse", filters, exclude))
            return Refused()

    made = Made()

    def select(name):
        def called():
            log.append(name)
            return found and (name, found[1])

        return called

    made._select = select("all")
    made._is_keyed = is_keyed
    made._version = object()
    made._groups = {}
    made._peers = PEERS
    made.select_of = select
    return log, made


def test_without_filters(impl):
    log, selection = make(impl)
    assert selection.select() == ("all", "done")
    assert selection.select(filters=(), exclude=(), key=None) == ("all", "done")
    assert log == ["all", "all"]


def test_known_filters(impl):
    log, selection = make(impl)
    chain = (len, repr)
    selection._groups[chain] = (selection._version, None, selection.select_of("group"))
    assert selection.select(filters=chain) == ("group", "done")
    assert selection.select(filters=(len, repr)) == ("group", "done")
    assert log == ["group"] * 2
    # Of another list of instances, and equal is not the same: not used.
    for version in (object(), (1, 2)):
        selection._groups[chain] = (version, None, selection.select_of("group"))
        selection._version = (1, 3)[:1] + (2,)
        log.clear()
        assert selection.select(filters=chain) == ("found", "done")
        assert log == [("find", chain, (), None)]


@pytest.mark.parametrize(
    "arguments",
    [
        {"filters": (len,)},
        {"filters": [len]},
        {"filters": []},
        {"filters": ([].append,)},
        {"filters": (SimpleNamespace(),)},  # cannot be hashed
        {"exclude": [1]},
        {"exclude": (1,)},
        {"key": "k"},
        {"key": 0},
        {"filters": (len,), "exclude": (1,), "key": "k"},
        {"filters": "x"},
        {"filters": None},
        {"filters": 5},
    ],
    ids=str,
)
def test_the_long_way(impl, arguments):
    log, selection = make(impl)
    if arguments.keys() & {"exclude", "key"}:
        selection._groups[(len,)] = (selection._version, None, selection.select_of("group"))
    assert selection.select(**arguments) == ("found", "done")
    full = {"filters": (), "exclude": (), "key": None} | arguments
    assert log == [("find", full["filters"], full["exclude"], full["key"])]


def test_keyed(impl):
    log, selection = make(impl, is_keyed=True)
    selection._groups[(len,)] = (selection._version, None, selection.select_of("group"))
    for arguments in ({}, {"key": "k"}, {"filters": (len,)}):
        selection.select(**arguments)
    assert [way[0] for way in log] == ["find"] * 3


def test_nobody_is_left(impl):
    log, selection = make(impl, found=None)
    chain = (len,)
    selection._groups[chain] = (selection._version, None, selection.select_of("group"))
    peer = SimpleNamespace(node="before")
    token = PEERS.set(peer)
    for arguments in ({}, {"filters": chain}, {"exclude": (1,)}):
        with pytest.raises(Refused):
            selection.select(**arguments)
    PEERS.reset(token)
    assert log == [
        "all",
        ("refuse", (), ()),
        "group",
        ("refuse", chain, ()),
        ("find", (), (1,), None),
        ("refuse", (), (1,)),
    ]
    assert peer.node == "before"


def test_the_peer_is_told(impl):
    _, selection = make(impl)
    peer = SimpleNamespace(node=None)
    token = PEERS.set(peer)
    selection.select()
    assert peer.node == "all"
    selection.select(exclude=(1,))
    assert peer.node == "found"
    PEERS.reset(token)
    selection.select()
    assert peer.node == "found"


def test_errors_come_as_they_are(impl):
    _, selection = make(impl)

    def fail():
        raise KeyError("picker")

    selection._select = fail
    with pytest.raises(KeyError, match="picker"):
        selection.select()
    selection._groups[(len,)] = (selection._version, None, fail)
    with pytest.raises(KeyError, match="picker"):
        selection.select(filters=(len,))


def test_arguments_have_names(impl):
    _, selection = make(impl)
    with pytest.raises(TypeError):
        selection.select(())
    with pytest.raises(TypeError):
        selection.select(filter=())


# -- parts ----------------------------------------------------------------------------------


@pytest.fixture
def kinds(impl):
    """Two types of parts."""
    part = impl.selection.Part
    return part, type("One", (part,), {}), type("Other", (part,), {})


def test_parts_are_equal_where_all_of_them_are(kinds):
    part, one, other = kinds
    for kind in kinds:
        assert kind(1, "a") == kind(1, "a")
        assert hash(kind(1, "a")) == hash(kind(1, "a"))
        assert kind(1, "a").parts == (1, "a")
        assert kind() == kind()
        for unlike in (kind(1), kind(1, "b"), kind("a", 1), (1, "a"), None):
            assert kind(1, "a") != unlike
    assert one(1) != other(1)
    assert part(1) != one(1)
    assert len({one(1), other(1), part(1), one(1), other(1)}) == 3


def test_parts_that_are_no_key(kinds):
    for kind in kinds:
        with pytest.raises(TypeError, match="unhashable"):
            kind([])
        with pytest.raises(TypeError):
            sorted([kind(1), kind(2)])


class Unequal:
    """An object whose comparison fails."""

    def __eq__(self, other):
        raise KeyError("compared")

    def __hash__(self):
        return 1


def test_comparisons_that_fail(kinds):
    for kind in kinds:
        same = kind(Unequal())
        assert same == same
        with pytest.raises(KeyError):
            assert kind(Unequal()) == kind(Unequal())


@pytest.mark.parametrize(
    "made",
    [
        rota_filters.version("1"),
        rota_filters.subset({"a": "1"}, fallback={"b": "2"}),
        rota_filters.metadata("a", "1"),
    ],
)
def test_filters_are_copied_whole(made):
    again = pickle.loads(pickle.dumps(made))
    assert again == made
    assert hash(again) == hash(made)


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(0, 2), st.text("ab", max_size=1), st.tuples()), max_size=3))
def test_parts_of_kernel_and_twin(kernels, reference, parts):
    one, other = kernels.selection.Part(*parts), reference.selection.Part(*parts)
    assert one.parts == other.parts == tuple(parts)
    assert one == type(one)(*one.parts)
    assert other == type(other)(*one.parts)
    assert one.__reduce__()[1] == other.__reduce__()[1]
