"""Instances, results, and what changed: Kitex's recorded diffs, then our own rules."""

import copy
import pickle
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rota import Change, Event, EventBus, EventQueue, Instance, MemoryRegistry, Result, diff


def instance_of(entry):
    return Instance(
        entry["addr"], entry["weight"], network=entry["network"], tags=entry.get("tags") or {}
    )


def test_kitex_diffs(vectors):
    n_tags = 0
    for case in vectors("kitex_default_diff")["cases"]:
        prev = Result(case["prev_cacheable"], "", [instance_of(i) for i in case["prev"]])
        next_ = Result(case["next_cacheable"], "", [instance_of(i) for i in case["next"]])
        change = diff(case["cache_key"], prev, next_)
        assert change.result.cacheable == case["result"]["cacheable"]
        assert change.result.cache_key == case["result"]["cache_key"]
        assert change.result.instances == next_.instances
        if case["name"].startswith("tags-"):
            # Kitex does not see these; we do.
            n_tags += 1
            assert change
            assert change.updated == next_.instances
            continue
        assert bool(change) == case["changed"], case["name"]
        for kind in ("added", "updated", "removed"):
            want = [(i["addr"], i["weight"]) for i in case[kind] or []]
            assert [(i.address, i.weight) for i in getattr(change, kind)] == want, case["name"]
    assert n_tags == 2


@given(
    prev=st.dictionaries(st.integers(0, 20), st.integers(0, 3)),
    next_=st.dictionaries(st.integers(0, 20), st.integers(0, 3)),
)
def test_a_diff_leads_from_one_to_the_other(prev, next_):
    def result(weights):
        return Result(True, "k", [Instance(str(a), w) for a, w in weights.items()])

    change = diff("k", result(prev), result(next_))
    applied = dict(prev)
    for instance in change.removed:
        del applied[int(instance.address)]
    for instance in (*change.added, *change.updated):
        assert (int(instance.address) in applied) == (instance in change.updated)
        applied[int(instance.address)] = instance.weight
    assert applied == next_
    assert bool(change) == (prev != next_)


def plain_diff(prev, next_):
    """The rule as it reads, one copy at a time."""

    def described(i):
        return (i.weight, i.tags, i.version, i.service, i.scheme, i.hash_key)

    before = {i.address: i for i in prev}
    after = {i.address for i in next_}
    return (
        tuple(i for i in next_ if i.address not in before),
        tuple(
            i for i in next_ if i.address in before and described(i) != described(before[i.address])
        ),
        tuple(i for i in prev if i.address not in after),
    )


COPIES = st.builds(
    Instance,
    st.sampled_from("abcdef"),
    st.sampled_from([None, 0, 5]),
    network=st.sampled_from(["tcp", "unix"]),
    version=st.sampled_from(["", "2"]),
    tags=st.sampled_from([{}, {"zone": "a"}]),
)


@given(prev=st.lists(COPIES, max_size=8), next_=st.lists(COPIES, max_size=8))
def test_a_diff_is_what_the_rule_says(prev, next_):
    """With two of one address too, in either result."""
    anew = [copy.deepcopy(i) for i in prev]
    for one, other in ((prev, next_), (prev, prev), (prev, anew), (prev, anew[::-1])):
        change = diff("k", Result(True, "k", one), Result(True, "k", other))
        assert (change.added, change.updated, change.removed) == plain_diff(one, other)
        for kind, want in zip(("added", "updated"), plain_diff(one, other), strict=False):
            # Equal, and the very objects of the later result.
            assert list(map(id, getattr(change, kind))) == list(map(id, want))


@pytest.mark.parametrize(
    "other",
    [
        Instance("a:1", 5, version="2"),
        Instance("a:1", 5, service="s"),
        Instance("a:1", 5, scheme="http"),
        Instance("a:1", 5, hash_key="k"),
        Instance("a:1", 5, tags={"zone": "b"}),
        Instance("a:1"),
    ],
)
def test_whatever_else_is_known_of_a_copy_counts(other):
    change = diff("k", Result(True, "k", [Instance("a:1", 5)]), Result(True, "k", [other]))
    assert (change.added, change.updated, change.removed) == ((), (other,), ())


def test_an_instance_is_a_value():
    tags = {"zone": "a"}
    one = Instance("a:1", 5, tags=tags, version="2")
    tags["zone"] = "b"
    assert one.tag("zone") == "a"
    assert one.tag("rack") is None
    assert one.tag("rack", "r1") == "r1"
    assert one == Instance("a:1", 5, tags={"zone": "a"}, version="2")
    assert hash(one) == hash(Instance("a:1", 5, tags={"zone": "a"}, version="2"))
    assert one.identity == ("tcp", "a:1")
    with pytest.raises(AttributeError):
        one.weight = 7
    with pytest.raises(TypeError):
        one.tags["zone"] = "c"
    for duplicate in (pickle.loads(pickle.dumps(one)), copy.copy(one), copy.deepcopy(one)):
        assert duplicate == one
        assert duplicate.tags == one.tags


@pytest.mark.parametrize(
    ("fields", "error", "name"),
    [
        ({"address": 5}, TypeError, "address"),
        ({"address": ""}, ValueError, "address"),
        ({"address": "a", "weight": 1.5}, TypeError, "weight"),
        ({"address": "a", "weight": "5"}, TypeError, "weight"),
        ({"address": "a", "weight": True}, TypeError, "weight"),
        ({"address": "a", "network": None}, TypeError, "network"),
        ({"address": "a", "version": 2}, TypeError, "version"),
        ({"address": "a", "tags": ["x"]}, TypeError, "tags"),
        ({"address": "a", "hash_key": 7}, TypeError, "hash_key"),
    ],
)
def test_bad_fields_are_refused(fields, error, name):
    with pytest.raises(error, match=name):
        Instance(**fields)


def test_bad_results_and_changes_are_refused():
    with pytest.raises(TypeError, match="instances"):
        Result(True, "k", "abc")
    with pytest.raises(TypeError, match="instances"):
        Result(True, "k", 5)
    with pytest.raises(TypeError, match="cache_key"):
        Result(True, 5)
    with pytest.raises(TypeError, match="result"):
        Change(None)


def test_the_default_result_is_not_cacheable():
    assert Result() == Result(False, "", ())
    assert not Change(Result())


class Followed:
    """A registry and what came out of it on the bus."""

    def __init__(self):
        self.bus = EventBus()
        self.queue = EventQueue()
        self.bus.watch("discovery_change", self.queue.push)
        self.bus.watch("discovery_delete", self.queue.push)
        self.registry = MemoryRegistry(self.bus)

    def events(self):
        self.bus.dispatch_and_wait(Event("marker"))
        return self.queue.dump()[::-1]


def test_the_registry_publishes_changes():
    followed = Followed()
    registry = followed.registry
    a, b = Instance("a:1", 5), Instance("b:1", 5)
    assert registry.publish("s", a, b).added == (a, b)
    assert not registry.publish("s", a)
    heavier = Instance("a:1", 9)
    assert registry.publish("s", heavier).updated == (heavier,)
    assert registry.resolve("s").instances == (heavier, b)
    assert registry.withdraw("s", "b:1", "unknown:1").removed == (b,)
    assert registry.resolve("s") == Result(True, "s", (heavier,))
    assert registry.resolve("other") == Result(True, "other", ())
    registry.delete("s")
    registry.delete("s")
    events = followed.events()
    assert [event.name for event in events] == ["discovery_change"] * 3 + ["discovery_delete"]
    assert [event.detail for event in events] == ["s"] * 4
    assert events[2].extra == Change(Result(True, "s", (heavier,)), removed=(b,))
    assert events[3].extra.result == Result(True, "s")


def test_the_registry_keeps_what_was_published_last():
    followed = Followed()
    followed.registry.publish("s", Instance("/run/a"))
    assert not followed.registry.publish("s", Instance("/run/a", network="unix"))
    assert followed.registry.resolve("s").instances == (Instance("/run/a", network="unix"),)
    assert not followed.registry.withdraw("unknown", "a")
    followed.registry.delete("unknown")
    assert len(followed.events()) == 1


def test_a_bad_instance_publishes_nothing():
    followed = Followed()
    with pytest.raises(TypeError, match="instances"):
        followed.registry.publish("s", Instance("a:1"), "b:1")
    assert followed.registry.resolve("s").instances == ()
    assert followed.events() == []


def test_changes_of_many_threads_go_out_in_order():
    followed = Followed()

    def publish(k):
        for i in range(20):
            followed.registry.publish("s", Instance(f"{k}:{i}"))

    threads = [threading.Thread(target=publish, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = followed.events()
    assert [len(event.extra.result.instances) for event in events] == list(range(1, 161))
