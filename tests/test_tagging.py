"""TaggingBalancer: Kitex's groups by tag, which follow discovery at the cost of a change."""

import gc
import logging
import random
import sys
import threading
import weakref
from collections import Counter
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rota
from rota import (
    Change,
    ConsistentHashBalancer,
    ConsistentHashOptions,
    Event,
    EventBus,
    Instance,
    InterleavedWeightedRoundRobinBalancer,
    MemoryRegistry,
    Result,
    TaggingBalancer,
    WeightedRandomBalancer,
    WeightedRoundRobinBalancer,
    diff,
)
from rota.loadbalance import ANY
from tests.threads import run_threads


def by_request(ctx, request):
    return request


def copy_of(name, zone=None, weight=10, **options):
    tags = {} if zone is None else {"zone": zone}
    return Instance(f"{name}:80", weight, tags=tags | options.pop("tags", {}), **options)


def cached(*instances, key="s"):
    return Result(True, key, instances)


def step(before, *instances):
    return diff("s", before, cached(*instances))


def tagging(inner=None, **options):
    return TaggingBalancer("zone", by_request, inner or WeightedRoundRobinBalancer(), **options)


def picks(picker, request, n=60):
    """Who is given for a request, by the name before the colon."""
    got = [picker.next(None, request) for _ in range(n)]
    return {instance and instance.address.partition(":")[0] for instance in got}


def tries(picker, request):
    return [i.address.partition(":")[0] for i in rota.attempts(picker, None, request)]


A, B, C, D = copy_of("a", "1"), copy_of("b", "1"), copy_of("c", "2"), copy_of("d")


class Recording(WeightedRoundRobinBalancer):
    """Remembers what it was told and asked."""

    def __init__(self):
        super().__init__(seed=1)
        self.calls = []

    def get_picker(self, result):
        self.calls.append(("get_picker", result))
        return super().get_picker(result)

    def rebalance(self, change):
        self.calls.append(("rebalance", change))
        super().rebalance(change)

    def delete(self, change):
        self.calls.append(("delete", change))
        super().delete(change)

    def told(self):
        """Return what it was told since the last time: addresses, of whom, in which way."""
        told = [
            (name, *["".join(i.address[0] for i in part) for part in parts_of(change)])
            for name, change in self.calls
            if name != "get_picker"
        ]
        self.calls.clear()
        return told


def parts_of(change):
    return change.result.instances, change.added, change.updated, change.removed


# -- Kitex's behaviour ----------------------------------------------------------------------


def test_each_group_has_its_own(uncached_or_cached):
    picker = tagging().get_picker(uncached_or_cached(A, B, C, D))
    assert picks(picker, "1") == {"a", "b"}
    assert picks(picker, "2") == {"c"}
    assert picks(picker, "") == {"d"}  # those without the tag
    assert picks(picker, None) == {"d"}
    assert picks(picker, "3") == {None}  # Kitex: nobody
    assert tries(picker, "3") == []
    assert sorted(tries(picker, "1")) == ["a", "b"]


@pytest.fixture(params=[True, False], ids=["cached", "uncached"])
def uncached_or_cached(request):
    return lambda *instances: Result(request.param, "s", instances)


def test_the_name_and_the_protocols():
    balancer = tagging()
    assert balancer.name == "tagging_weight_round_robin"
    assert TaggingBalancer("v", by_request, balancer).name == "tagging_tagging_weight_round_robin"
    assert isinstance(balancer, rota.LoadBalancer)
    assert isinstance(balancer, rota.Rebalancer)
    assert isinstance(balancer.get_picker(cached(A)), rota.Picker)


def test_tag_func_sees_context_and_request(uncached_or_cached):
    seen = []

    def tag_func(ctx, request):
        seen.append((ctx, request))
        return "1"

    balancer = TaggingBalancer("zone", tag_func, WeightedRoundRobinBalancer())
    picker = balancer.get_picker(uncached_or_cached(A))
    assert picker.next("ctx", "request") is A
    assert picker.attempts("ctx", "request").next() is A
    assert picker.next() is A
    assert seen == [("ctx", "request"), ("ctx", "request"), (None, None)]


def test_the_inner_picker_gets_the_request(uncached_or_cached):
    """By zone first, then by key within the zone."""
    options = ConsistentHashOptions(lambda ctx, request: request["user"])
    balancer = TaggingBalancer(
        "zone", lambda ctx, request: request["zone"], ConsistentHashBalancer(options)
    )
    instances = [copy_of(f"{z}{i}", z) for z in "xy" for i in range(20)]
    picker = balancer.get_picker(uncached_or_cached(*instances))
    own = ConsistentHashBalancer(options).get_picker(cached(*instances[:20]))
    for k in range(50):
        request = {"zone": "x", "user": f"user:{k}"}
        assert picker.next(None, request) is own.pick(f"user:{k}")
        assert next(picker.attempts(None, request)) is own.pick(f"user:{k}")
    assert picker.next(None, {"zone": "x", "user": ""}) is None


def test_a_tag_that_is_no_str_counts_as_none():
    odd = Instance("o:80", tags={"zone": ["1"]})
    balancer = tagging()
    picker = balancer.get_picker(cached(A, odd))
    assert picks(picker, "") == {"o"}
    balancer.rebalance(step(cached(A, odd), A, copy_of("o", "1")))
    assert picks(picker, "1") == {"a", "o"}


def test_weights_and_draining_are_the_inner_balancers(caplog):
    drained = copy_of("e", "1", 0)
    picker = tagging().get_picker(cached(copy_of("a", "1", 30), B, drained, C))
    counts = Counter(picker.next(None, "1").address for _ in range(400))
    assert counts == {"a:80": 300, "b:80": 100}
    assert "weight_round_robin: 1 of 3 instances" in caplog.text


def test_two_tags_nested(uncached_or_cached):
    inner = WeightedRoundRobinBalancer()
    by_version = TaggingBalancer("version", lambda ctx, request: request[1], inner, fallback="1")
    balancer = TaggingBalancer("zone", lambda ctx, request: request[0], by_version, fallback="x")
    instances = [
        copy_of(f"{zone}{version}{i}", zone, tags={"version": version})
        for zone, version in ("x1", "x2", "y1")
        for i in range(2)
    ]
    picker = balancer.get_picker(uncached_or_cached(*instances))
    assert picks(picker, "x1") == {"x10", "x11"}
    assert picks(picker, "x2") == {"x20", "x21"}
    assert picks(picker, "y2") == {"y10", "y11"}  # the inner fallback comes first
    assert picks(picker, "z2") == {"x20", "x21"}
    assert [sorted(tries(picker, "y1")[k : k + 2]) for k in (0, 2)] == [
        ["y10", "y11"],
        ["x10", "x11"],
    ]
    assert len(tries(picker, "x2")) == 4
    if uncached_or_cached().cacheable:
        newer = copy_of("y10", "y", tags={"version": "2"})
        change = step(cached(*instances), *[newer if i is instances[4] else i for i in instances])
        balancer.rebalance(change)
        assert balancer.get_picker(change.result) is picker
        assert picks(picker, "y2") == {"y10"}
        assert picks(picker, "y1") == {"y11"}
        balancer.delete(change)
        assert by_version._pickers == by_version._turns == {}
        assert inner._pickers == inner._turns == {}


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((1, by_request, WeightedRoundRobinBalancer()), {}, "tag must be a str, got 1"),
        (("t", "f", WeightedRoundRobinBalancer()), {}, "tag_func must be callable, got 'f'"),
        (("t", by_request, object()), {}, "next must be a LoadBalancer, got <object"),
        (("t", by_request, WeightedRoundRobinBalancer()), {"fallback": 2}, "fallback must be"),
    ],
)
def test_bad_arguments_are_refused(arguments, options, words):
    with pytest.raises(TypeError, match=words):
        TaggingBalancer(*arguments, **options)


@pytest.mark.parametrize("wrong", [1, 0, False, b"1", ["1"], ANY], ids=repr)
def test_what_tag_func_returns_must_be_a_str(wrong, uncached_or_cached):
    picker = tagging(fallback=ANY).get_picker(uncached_or_cached(A, D))
    for call in (picker.next, picker.attempts):
        with pytest.raises(TypeError, match="tag_func must return a str or None, got"):
            call(None, wrong)
    if wrong is not ANY:
        with pytest.raises(TypeError, match="name must be a str or ANY, got"):
            picker.group(wrong)


def test_what_tag_func_raises_comes_as_it_is(uncached_or_cached):
    error = TypeError("mine")

    def tag_func(ctx, request):
        raise error

    balancer = TaggingBalancer("zone", tag_func, WeightedRoundRobinBalancer(), fallback=ANY)
    picker = balancer.get_picker(uncached_or_cached(A))
    for call in (picker.next, picker.attempts):
        with pytest.raises(TypeError) as raised:
            call(None, None)
        assert raised.value is error


def test_any_has_a_name():
    assert repr(ANY) == "ANY"
    assert rota.loadbalance.ANY is ANY


# -- tags change (Kitex: not until a weight does) -------------------------------------------


@pytest.fixture
def discovered():
    """A balancer that follows a registry, and how to publish to it."""
    bus = EventBus()
    registry, balancer = MemoryRegistry(bus), tagging()
    disconnect = rota.connect(bus, balancer)

    def publish(*instances):
        registry.publish("s", *instances)
        bus.dispatch_and_wait(Event("marker"))
        return balancer.get_picker(registry.resolve("s"))

    yield publish
    disconnect()


def test_an_instance_whose_tag_alone_changes_moves_at_once(discovered):
    picker = discovered(A, B, C)
    assert picks(picker, "1") == {"a", "b"}
    moved = copy_of("a", "2")
    assert discovered(moved) is picker
    assert picks(picker, "1") == {"b"}
    assert picks(picker, "2") == {"a", "c"}
    assert moved in [picker.next(None, "2") for _ in range(2)]  # the copy as it is now
    discovered(copy_of("a"))
    assert picks(picker, "2") == {"c"}
    assert picks(picker, "") == {"a"}
    discovered(copy_of("a", "new"))
    assert picks(picker, "") == {None}
    assert picks(picker, "new") == {"a"}
    discovered(copy_of("a", "1"))
    assert picks(picker, "1") == {"a", "b"}


def test_a_tag_and_a_weight_change_together(discovered):
    picker = discovered(A, B, C)
    discovered(copy_of("a", "2", 30))
    counts = Counter(picker.next(None, "2").address for _ in range(40))
    assert counts == {"a:80": 30, "c:80": 10}


def test_another_tag_changes_the_copy_and_not_the_group(discovered):
    picker = discovered(A, B, C)
    newer = copy_of("a", "1", tags={"rack": "7"})
    discovered(newer)
    assert newer in [picker.next(None, "1") for _ in range(2)]
    assert picks(picker, "1") == {"a", "b"}


def test_a_diff_that_knows_no_tags_does_not_hide_the_move():
    """A resolver may bring Kitex's diff: its change says that nothing has changed."""
    balancer = tagging()
    picker = balancer.get_picker(cached(A, B, C))
    balancer.rebalance(Change(cached(copy_of("a", "2"), B, C)))
    assert picks(picker, "1") == {"b"}
    assert picks(picker, "2") == {"a", "c"}


# -- fallbacks ------------------------------------------------------------------------------


def test_any_is_everybody(uncached_or_cached):
    picker = tagging(fallback=ANY).get_picker(uncached_or_cached(A, B, C, D))
    assert picks(picker, "3", 400) == {"a", "b", "c", "d"}
    assert picks(picker, "2") == {"c"}
    for _ in range(20):
        order = tries(picker, "1")
        assert sorted(order[:2]) == ["a", "b"]
        assert sorted(order[2:]) == ["c", "d"]
        assert sorted(tries(picker, "3")) == ["a", "b", "c", "d"]
    attempts = picker.attempts(None, "2")
    got = [attempts.next() for _ in range(5)]
    assert got[0] is C
    assert got[4] is None
    assert attempts.next() is None


def test_a_group_may_be_the_fallback(uncached_or_cached):
    picker = tagging(fallback="2").get_picker(uncached_or_cached(A, B, C, D))
    assert picks(picker, "3") == {"c"}
    assert picks(picker, "1") == {"a", "b"}
    order = tries(picker, "1")
    assert sorted(order[:2]) == ["a", "b"]
    assert order[2:] == ["c"]
    assert tries(picker, "2") == ["c"]


def test_attempts_take_no_turns_of_the_group_twice():
    """Where the fallback is the request's own group it is gone through once."""
    instances = [copy_of(f"c{i}", "2", 5 + 2 * i) for i in range(5)]
    one, other = (
        tagging(WeightedRoundRobinBalancer(seed=1), fallback=fallback).get_picker(
            cached(*instances)
        )
        for fallback in ("2", None)
    )
    for _ in range(10):
        assert tries(one, "2") == tries(other, "2")
        assert one.next(None, "2") is other.next(None, "2")


def test_a_fallback_that_is_nobody(uncached_or_cached):
    for fallback in ("9", ANY, None):
        picker = tagging(fallback=fallback).get_picker(uncached_or_cached())
        assert picks(picker, "1") == {None}
        assert tries(picker, "1") == []
    picker = tagging(fallback="9").get_picker(uncached_or_cached(A))
    assert picks(picker, "3") == picks(picker, "9") == {None}
    assert tries(picker, "1") == ["a"]


@pytest.mark.parametrize("fallback", ["2", ANY], ids=repr)
def test_a_drained_group_falls_back(fallback, uncached_or_cached):
    instances = (copy_of("a", "1", 0), copy_of("b", "1", -1), C)
    picker = tagging(fallback=fallback).get_picker(uncached_or_cached(*instances))
    assert picks(picker, "1") == {"c"}
    assert tries(picker, "1") == ["c"]
    picker = tagging().get_picker(uncached_or_cached(*instances))
    assert picks(picker, "1") == {None}


@pytest.mark.parametrize("fallback", ["2", ANY], ids=repr)
def test_fallbacks_follow_changes(fallback):
    balancer = tagging(fallback=fallback)
    first = cached(A, B)
    picker = balancer.get_picker(first)
    change = step(first, copy_of("a", "1", 0), C)
    balancer.rebalance(change)
    assert picks(picker, "1") == {"c"}
    change = step(change.result, A, C)
    balancer.rebalance(change)
    assert picks(picker, "1") == {"a"}
    balancer.rebalance(step(change.result, C))
    assert picks(picker, "1") == {"c"}
    assert balancer.get_picker(first) is picker


def test_who_was_tried_in_the_group_is_not_tried_again_after_it_moved():
    balancer = tagging(fallback="2")
    picker = balancer.get_picker(cached(A, B, C))
    attempts = rota.attempts(picker, None, "1")
    first = attempts.next()
    moved = copy_of(first.address[0], "2")
    stays = B if first is A else A
    balancer.rebalance(step(cached(A, B, C), moved, stays, C))
    assert list(attempts) == [stays, C]


def test_attempts_that_begin_with_nobody_find_who_comes():
    balancer = tagging(fallback=ANY)
    picker = balancer.get_picker(cached(C))
    attempts = picker.attempts(None, "1")
    assert attempts.next() is C
    balancer.rebalance(step(cached(C), C, D))
    assert attempts.next() is D
    assert attempts.next() is None


def test_the_picker_of_one_group(uncached_or_cached):
    picker = tagging(fallback=ANY).get_picker(uncached_or_cached(A, B, C))
    assert set(picker.group("1").pick_many(20)) == {A, B}
    assert set(picker.group(ANY).pick_many(200)) == {A, B, C}
    assert picker.group("9") is None
    assert tagging().get_picker(uncached_or_cached(A)).group(ANY) is None


# -- in place -------------------------------------------------------------------------------


def test_untouched_groups_keep_their_state():
    """Of two balancers of one seed one hears of changes elsewhere: the same picks."""
    instances = [copy_of(f"x{i}", "x", 1 + i) for i in range(5)]
    ys = [copy_of(f"y{i}", "y") for i in range(3)]
    balancer, quiet = (tagging(InterleavedWeightedRoundRobinBalancer(seed=3)) for _ in range(2))
    first = cached(*instances, *ys)
    picker, expected = balancer.get_picker(first), quiet.get_picker(first)
    result = first
    group = picker.group("x")
    for others in ([copy_of("y7", "y"), copy_of("z", "z")], [], [copy_of("q")], []):
        for told in (True, False, True):  # the one after an event was lost is compared as a whole
            extra = copy_of(f"more{len(others)}", "y", 5 + told)
            change = step(result, *instances, *others, extra)
            result = change.result
            if told:
                balancer.rebalance(change)
            assert picker.group("x") is group
            assert [picker.next(None, "x") for _ in range(7)] == [
                expected.next(None, "x") for _ in range(7)
            ]
    assert balancer.get_picker(first) is picker


def test_groups_that_a_change_touches_keep_the_state_of_who_stays():
    instances = [copy_of(f"x{i}", "x") for i in range(4)]
    y = copy_of("y", "y")
    balancer = tagging()
    picker = balancer.get_picker(cached(*instances, y))
    group = picker.group("x")
    served = [picker.next(None, "x") for _ in range(2)]
    newer = copy_of("y", "x")
    balancer.rebalance(step(cached(*instances, y), *instances, newer))
    assert picker.group("x") is group
    # Those who have not had their turn have it before anybody has another.
    rest = [picker.next(None, "x") for _ in range(3)]
    assert set(served) | set(rest) == {*instances, newer}


def test_only_the_groups_that_are_touched_are_told():
    inner = Recording()
    balancer = tagging(inner)
    first = cached(A, B, C, D)
    balancer.get_picker(first)
    assert [name for name, _ in inner.calls] == ["get_picker"] * 3
    inner.calls.clear()
    e = copy_of("e", "3")
    # a changes its weight, b goes over to zone 2, c leaves, e comes alone.
    change = step(first, copy_of("a", "1", 3), copy_of("b", "2"), D, e)
    balancer.rebalance(change)
    assert sorted(inner.told()) == [
        ("rebalance", "a", "", "a", "b"),
        ("rebalance", "b", "b", "", "c"),
    ]
    change = step(change.result, copy_of("a", "1", 3), copy_of("b", "3"), D)
    balancer.rebalance(change)
    assert sorted(inner.told()) == [
        ("delete", "", "", "", "b"),  # nobody is left there
        ("rebalance", "b", "b", "", "e"),
    ]
    balancer.rebalance(change)
    assert inner.told() == []
    f = copy_of("f")
    change = step(change.result, *change.result.instances, f)
    balancer.rebalance(change)
    assert inner.told() == [("rebalance", "df", "f", "", "")]
    for again in (Change(change.result), Change(cached(*change.result.instances[::-1]))):
        balancer.rebalance(again)  # the same as before
        assert inner.told() == []
    change = step(cached(), *[i for i in change.result.instances if i is not f])
    balancer.rebalance(change)
    assert inner.told() == [("rebalance", "d", "", "", "f")]
    balancer.rebalance(Change(cached(D)))
    assert sorted(inner.told()) == [("delete", "", "", "", "a"), ("delete", "", "", "", "b")]
    balancer.rebalance(Change(cached()))
    assert inner.told() == [("delete", "", "", "", "d")]
    assert inner._pickers == inner._turns == {}


def test_inner_changes_begin_where_the_inner_balancer_is():
    inner = Recording()
    balancer = tagging(inner, fallback=ANY)
    result = cached(A, B, C)
    balancer.get_picker(result)
    known = {r.cache_key: r.instances for name, r in inner.calls}
    rng = random.Random(5)
    n_told = 0
    for k in range(60):
        names = rng.sample("abcdefg", rng.randrange(0, 7))
        change = step(result, *[copy_of(n, rng.choice("123"), rng.randrange(4)) for n in names])
        result = change.result
        inner.calls.clear()
        if k % 5:  # else an event is lost
            balancer.rebalance(change)
        for name, told in inner.calls:
            if name == "get_picker":
                assert known.setdefault(told.cache_key, told.instances) is told.instances
                continue
            n_told += 1
            assert told.previous.instances is known.pop(told.result.cache_key)
            assert parts_match(told)
            if name == "rebalance":
                known[told.result.cache_key] = told.result.instances
    assert n_told > 50


def parts_match(told):
    """Whether a change says what has changed, in whatever order."""
    expected = diff("", told.previous, told.result)
    return all(
        Counter(map(id, mine)) == Counter(map(id, theirs))
        for mine, theirs in zip(parts_of(told), parts_of(expected), strict=True)
    )


# -- always right ---------------------------------------------------------------------------

COPIES = st.builds(
    copy_of,
    st.sampled_from("abcdef"),
    st.sampled_from([None, "1", "2", "3"]),
    st.sampled_from([None, 0, -2, 1, 3, 10]),
    network=st.sampled_from(["tcp", "tcp", "unix"]),
    tags=st.sampled_from([{}, {"rack": "7"}]),
    hash_key=st.sampled_from([None, None, "db-0", "db-1"]),
)
UNIQUE = st.lists(COPIES, max_size=6, unique_by=lambda i: i.address)
# What becomes of the event that tells of a result.
FATES = st.sampled_from(["told", "told", "told", "lost", "twice", "by hand", "deleted", "late"])


def consistent():
    options = ConsistentHashOptions(lambda ctx, request: f"user:{ctx}", virtual_factor=3)
    return ConsistentHashBalancer(options)


def nested():
    return TaggingBalancer(
        "rack", lambda ctx, request: "7", WeightedRoundRobinBalancer(), fallback=ANY
    )


class Making:
    """A balancer that keeps no pickers, and has no way to be told of changes."""

    name = "making"

    def get_picker(self, result):
        assert not result.cacheable
        weights = [10 if i.weight is None else max(i.weight, 0) for i in result.instances]
        return rota.RoundRobin(result.instances, weights)


class Own:
    """A user's balancer, that follows: pickers by key, made anew with each change."""

    name = "own"

    def __init__(self):
        self.pickers = {}

    def get_picker(self, result):
        return self.pickers.setdefault(result.cache_key, Making().get_picker(uncached(result)))

    def rebalance(self, change):
        assert change.result.cache_key in self.pickers
        self.pickers[change.result.cache_key] = Making().get_picker(uncached(change.result))

    def delete(self, change):
        del self.pickers[change.result.cache_key]


def uncached(result):
    return Result(False, "", result.instances)


INNER = {
    "weight_round_robin": WeightedRoundRobinBalancer,
    "interleaved_weighted_round_robin": InterleavedWeightedRoundRobinBalancer,
    "weight_random": WeightedRandomBalancer,
    "consist": consistent,
    "tagging": nested,
    "making": Making,
    "own": Own,
}


def held(picker, names=("", "1", "2", "3", "7", ANY)):
    """Who is in which group with which weight: all but the network, which discovery ignores."""
    if picker is None:
        return None
    if isinstance(picker, rota.loadbalance.tagging.TaggingPicker):
        return {name: held(picker.group(name)) for name in names}
    return Counter(
        (i.address, i.weight, i.hash_key, tuple(sorted(i.tags.items())), int(weight))
        for i, weight in zip(picker.instances, picker.weights, strict=True)
        if i is not None
    )


def names_held(picker):
    """Who is in which group, by the name on a ring."""
    return {
        name: sorted(hash_key or address for address, _, hash_key, _, _ in group or ())
        for name, group in held(picker).items()
    }


def check_groups(balancer, picker, instances):
    """What we know of the groups is what there is."""
    groups = picker._groups
    assert groups.pickers.keys() == groups.groups.keys()
    assert not groups.is_lost
    assert groups.is_plain == (len({i.address for i in instances}) == len(instances))
    assert groups.where.keys() == {i.address for i in instances}
    if isinstance(balancer._inner, Own):
        keys = {group.result.cache_key for group in groups.groups.values()}
        assert balancer._inner.pickers.keys() == keys
    for group in groups.groups.values():
        if groups.is_plain and group is not groups.groups.get(ANY):
            assert tuple(group.members.values()) == group.result.instances


@pytest.mark.parametrize("inner", INNER)
@settings(deadline=None, max_examples=100)
@given(
    steps=st.lists(st.tuples(st.one_of(UNIQUE, st.lists(COPIES, max_size=6)), FATES), max_size=8),
    fallback=st.sampled_from([None, "2", ANY]),
)
def test_the_groups_are_those_of_the_latest_result(inner, steps, fallback):
    """Whatever happens to the events on the way; two of one address or ring name among them."""
    logging.disable(logging.WARNING)
    try:
        balancer = tagging(INNER[inner](), fallback=fallback)
        before = cached()
        balancer.get_picker(before)
        older = None
        for instances, fate in steps:
            now = cached(*instances)
            change = diff("s", before, now)
            before = now
            if fate == "lost":
                continue
            if fate == "deleted":
                balancer.delete(change)
                balancer.get_picker(now)
            elif fate == "by hand":
                # It says what it is to lead to, and nothing of what has changed.
                balancer.rebalance(Change(now))
            else:
                if fate == "late" and older is not None:
                    balancer.rebalance(older)
                balancer.rebalance(change)
                if fate == "twice":
                    balancer.rebalance(change)
            older = change
            picker = balancer.get_picker(now)
            fresh = tagging(INNER[inner](), fallback=fallback).get_picker(now)
            names = {i.hash_key or i.address for i in instances}
            if inner == "consist" and len(names) < len(instances):
                # The first of one ring name is served, and who joins a group comes last.
                assert names_held(picker) == names_held(fresh)
            else:
                assert held(picker) == held(fresh)
            check_groups(balancer, picker, instances)
            # Two of one ring name are one.
            check_picks(picker, instances, fallback, is_all=inner != "consist")
    finally:
        logging.disable(logging.NOTSET)


def check_picks(picker, instances, fallback, is_all):
    """Each request gets who is in its group, or in the fallback where nobody there has weight."""
    live = {name: [] for name in ("", "1", "2", "3")}
    for i in instances:
        if i.weight is None or i.weight > 0:
            live[i.tags.get("zone", "")].append(i.address)
    live[ANY] = [address for name in ("", "1", "2", "3") for address in live[name]]
    for name in ("", "1", "2", "3", "4"):
        want = live.get(name) or live.get(fallback) or [None]
        got = picker.next(name, name)
        assert (got and got.address) in want
        order = [i.address for i in picker.attempts(name, name)]
        group, rest = set(live.get(name, ())), set(live.get(fallback, ()))
        assert set(order[: len(group) if is_all else 1]) <= (group or rest)
        assert set(order) <= group | rest
        if fallback is not None or group:
            assert bool(order) == bool(group | rest)


@pytest.mark.parametrize(
    "change",
    [
        Change(cached(C, D), added=[C, D], removed=[A]),
        Change(cached(C, D), added=[A, C], removed=[A, B]),
        Change(cached(C, D), updated=[D]),
        Change(cached(C, D), removed=[C]),
        Change(cached(C, D), added=[C, D], removed=[A, A]),
        Change(cached(C, D), added=[C, C], removed=[A]),
        Change(cached(C, D), updated=[A], removed=[A]),
    ],
    ids=lambda change: "",
)
def test_a_change_that_is_wrong_is_compared_as_a_whole(change):
    """A diff of one's own may say what cannot be: what counts is how things stand."""
    for fallback in (None, ANY):
        balancer = tagging(fallback=fallback)
        first = cached(A, B)
        picker = balancer.get_picker(first)
        balancer.rebalance(Change(change.result, *parts_of(change)[1:], previous=first))
        fresh = tagging(fallback=fallback).get_picker(change.result)
        assert held(picker) == held(fresh)
        check_groups(balancer, picker, change.result.instances)


# -- what it costs --------------------------------------------------------------------------


class Watched(Instance):
    """An instance that counts what is read of it."""

    __slots__ = ()
    n_read = 0

    def __getattribute__(self, name):
        Watched.n_read += 1
        return super().__getattribute__(name)


def work_of(call):
    """Return how many lines of the package a call runs, and how often instances are read.

    What pickers do is their affair.
    """
    n_lines = 0

    def count(frame, event, argument):
        nonlocal n_lines
        where = frame.f_code.co_filename
        if "loadbalance" not in where and "discovery" not in where and where != "<string>":
            return None
        n_lines += event in ("line", "call")
        return count

    tracer, n_read = sys.gettrace(), Watched.n_read
    sys.settrace(count)
    try:
        call()
    finally:
        sys.settrace(tracer)
    return n_lines, Watched.n_read - n_read


def edits(copies, n):
    """Yield the copies after one edit of each kind after another."""

    def at(i, zone, weight=5, **options):
        copies[i] = Watched(copies[i].address, weight, tags={"zone": zone}, **options)

    for edit in (
        lambda: copies.append(Watched("new:1", 5, tags={"zone": "0"})),
        lambda: copies.append(Watched("alone:1", 5, tags={"zone": "alone"})),
        lambda: at(n // 2, "0", 9),
        lambda: at(n // 2, "0", 9, version="2"),
        lambda: at(n // 2, "0", 0),
        lambda: at(n // 2, "1", 3),  # goes over
        lambda: at(n // 2, "more"),  # to a new group
        lambda: at(n // 2, "0"),  # and back, its group is gone
        lambda: copies.pop(0),
        lambda: copies.pop(),  # the last of a group
        lambda: None,
    ):
        edit()
        yield cached(*copies)


@pytest.mark.parametrize("inner", [i for i in INNER if i not in ("making", "own")])
@pytest.mark.parametrize("fallback", [None, ANY], ids=repr)
def test_a_change_costs_what_has_changed(inner, fallback):
    costs = {}
    for n in (100, 10_000):
        copies = [
            Watched(f"10.0.{i >> 8}.{i & 255}:80", 5, tags={"zone": str(i % 2)}) for i in range(n)
        ]
        balancer = tagging(INNER[inner](), fallback=fallback)
        result = cached(*copies)
        picker = balancer.get_picker(result)
        # The first change of each inner picker is compared as a whole.
        copies[0] = Watched(copies[0].address, 7, tags={"zone": "0"})
        copies[1] = Watched(copies[1].address, 7, tags={"zone": "1"})
        change = step(result, *copies)
        balancer.rebalance(change)
        costs[n] = []
        for now in edits(copies, n):
            change = diff("s", change.result, now)
            costs[n].append(work_of(partial(balancer.rebalance, change)))
            costs[n].append(work_of(partial(balancer.rebalance, change)))  # told again
        assert balancer.get_picker(result) is picker
        fresh = tagging(INNER[inner](), fallback=fallback).get_picker(change.result)
        assert held(picker) == held(fresh)
    assert costs[100] == costs[10_000]
    assert costs[100][0] != (0, 0)
    # And what is counted would show it: the whole costs more by as much as there are more.
    (n_lines, n_read) = work_of(partial(balancer.rebalance, Change(cached(*copies))))
    assert min(n_lines, n_read) > 10_000


# -- all or nothing -------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [i for i in INNER if i not in ("making", "own", "consist")])
@pytest.mark.parametrize("fallback", [None, ANY], ids=repr)
def test_a_change_that_fails_leaves_all_groups_as_they_were(inner, fallback):
    balancer = tagging(INNER[inner](), fallback=fallback)
    first = cached(A, B, C, D)
    balancer.get_picker(first)
    change = step(first, *first.instances, copy_of("e", "2"))
    balancer.rebalance(change)
    picker = balancer.get_picker(first)
    before = held(picker)
    e = change.result.instances[-1]
    # Everything that can happen to a group, and one whose weights are too much.
    bad = (copy_of("a", "3", 5), B, C, e, *[copy_of(f"big{i}", "2", 2**62) for i in range(2)])
    failing = step(change.result, *bad)
    for _ in range(2):
        with pytest.raises(ValueError, match="weights"):
            balancer.rebalance(failing)
        assert balancer.get_picker(first) is picker
        assert held(picker) == before
        check_groups(balancer, picker, change.result.instances)
    with pytest.raises(ValueError, match="weights"):
        balancer.rebalance(Change(failing.result))  # compared as a whole
    assert held(picker) == before
    good = step(failing.result, copy_of("a", "3"), B, C)
    balancer.rebalance(good)
    assert balancer.get_picker(first) is picker
    assert held(picker) == held(tagging(INNER[inner](), fallback=fallback).get_picker(good.result))


class Refusing(Own):
    """Refuses some instances, after it has made the change; and to go back, if it is told to."""

    def __init__(self):
        super().__init__()
        self.refused = None
        self.goes_back = True

    def rebalance(self, change):
        super().rebalance(change)
        if any(i.address == self.refused for i in change.result.instances) or not (
            self.goes_back or change.added or change.updated
        ):
            raise OSError("no")


def test_what_was_told_is_taken_back():
    inner = Refusing()
    balancer = tagging(inner)
    first = cached(A, B, C)
    picker = balancer.get_picker(first)
    before = held(picker)
    inner.refused = "e:80"
    change = step(first, copy_of("a", "1", 30), copy_of("b", "3"), C, copy_of("e", "2"))
    with pytest.raises(OSError, match="no"):
        balancer.rebalance(change)
    assert held(picker) == before
    assert balancer.get_picker(first) is picker
    check_groups(balancer, picker, first.instances)
    inner.refused = None
    balancer.rebalance(change)
    assert balancer.get_picker(first) is picker
    assert held(picker) == held(tagging(Own()).get_picker(change.result))


def test_what_cannot_be_taken_back_is_made_anew(caplog):
    inner = Refusing()
    balancer = tagging(inner)
    first = cached(A, B, C)
    picker = balancer.get_picker(first)
    inner.refused, inner.goes_back = "e:80", False
    change = step(first, A, B, C, copy_of("e", "2"))
    with pytest.raises(OSError, match="no"):
        balancer.rebalance(change)
    assert "cannot go back" in caplog.text
    inner.refused, inner.goes_back = None, True
    change = step(change.result, A, B, C, D)
    balancer.rebalance(change)
    anew = balancer.get_picker(first)
    assert anew is not picker
    assert held(anew) == held(tagging(Own()).get_picker(change.result))
    check_groups(balancer, anew, change.result.instances)


def test_a_change_of_a_balancer_that_is_not_told_is_taken_back():
    """It makes pickers, and fails for the last of three groups: the others' very ones are back."""
    balancer = tagging(Making())
    c2 = copy_of("c2", "2")
    first = cached(A, B, C, c2)
    picker = balancer.get_picker(first)
    before = [picker.group(name) for name in ("1", "2", "3")]
    heavier = (copy_of("a", "3"), copy_of("b", "1", 20))
    change = step(first, *heavier, copy_of("c", "2", 2**62), copy_of("c2", "2", 2**62))
    with pytest.raises(ValueError, match="weights"):
        balancer.rebalance(change)
    assert [picker.group(name) for name in ("1", "2", "3")] == before
    balancer.rebalance(step(change.result, *heavier))
    assert [picks(picker, name) for name in ("1", "2", "3")] == [{"b"}, {None}, {"a"}]
    assert picker.group("1") is not before[0]


def test_a_picker_that_cannot_be_made_leaves_nothing_behind():
    inner = Own()
    balancer = tagging(inner, fallback=ANY)
    bad = [copy_of(f"big{i}", "2", 2**62) for i in range(2)]
    for result in (cached(A, *bad, D), Result(True, "other", (A, *bad, D))):
        with pytest.raises(ValueError, match="weights"):
            balancer.get_picker(result)
        with pytest.raises(ValueError, match="weights"):
            balancer.rebalance(Change(result))
    assert inner.pickers == balancer._pickers == balancer._flights == {}


def test_a_request_whose_group_leaves_finds_the_fallback():
    """The fallback gets somebody before the group loses everybody, in one change."""
    seen = []

    class Looking(Own):
        def look(self):
            # With the other fallback, group 2 has nobody before the first change.
            for request in ("1", "2") if fallback is ANY else ("1",):
                seen.append(picker.next(None, request))
                seen.append(next(picker.attempts(None, request), None))

        def rebalance(self, change):
            super().rebalance(change)
            self.look()

        def delete(self, change):
            super().delete(change)
            self.look()

    for fallback in ("2", ANY):
        balancer = tagging(Looking(), fallback=fallback)
        e = copy_of("e", "3")
        first = cached(A, copy_of("c", "2", 0), e)
        picker = balancer.get_picker(first)
        drains = step(first, copy_of("a", "1", 0), copy_of("c", "2", 10), e)
        balancer.rebalance(drains)
        back = step(drains.result, A, copy_of("c", "2", 10), e)
        balancer.rebalance(back)
        moves = step(back.result, copy_of("a", "2"), e)
        balancer.rebalance(moves)
        alone = step(moves.result, copy_of("a", "2", 0), copy_of("f", "1"))
        balancer.rebalance(alone)
        assert None not in seen
        joins = step(alone.result, copy_of("a", "2"))
        balancer.rebalance(joins)
        assert None not in seen
        assert len(seen) >= 10
        seen.clear()


# -- keys -----------------------------------------------------------------------------------


def test_keys_meet_nobody_elses():
    """One inner balancer for two taggings, for itself, and for services of hostile names."""
    inner = Own()
    one, two = tagging(inner, fallback=ANY), TaggingBalancer("rack", by_request, inner)
    names = ["s", "", "1", "s=1", "*", "tagging:", "s:zone=1"]
    for name in names:
        instances = [copy_of(f"{z}-{k}", z) for k, z in enumerate(["", "1", "=1", "*", "1=1"])]
        result = Result(True, name, tuple(instances))
        assert held(one.get_picker(result).group("1")) == held(Making().get_picker(
            Result(False, "", (instances[1],))
        ))  # fmt: skip
        for zone, instance in zip(["", "1", "=1", "*", "1=1"], instances, strict=True):
            assert one.get_picker(result).next(None, zone) is instance
        assert one.get_picker(result).group(ANY).instances == result.instances
        assert two.get_picker(result).group("").instances == result.instances
        assert inner.get_picker(result).instances == result.instances
    assert len(inner.pickers) == len(names) * (6 + 1 + 1)
    for name in names:
        one.delete(Change(Result(True, name)))
        two.delete(Change(Result(True, name)))
    assert inner.pickers.keys() == set(names)


# -- deleted --------------------------------------------------------------------------------


def test_delete_frees():
    inner = WeightedRoundRobinBalancer()
    balancer = tagging(inner, fallback=ANY)
    first = cached(A, B, C)
    picker = balancer.get_picker(first)
    change = step(first, A, B, C, D)
    balancer.rebalance(change)
    refs = [weakref.ref(picker), *[weakref.ref(picker.group(n)) for n in ("", "1", "2", ANY)]]
    balancer.delete(change)
    assert inner._pickers == inner._turns == balancer._pickers == balancer._turns == {}
    assert picks(picker, "1") == {"a", "b"}  # whoever has it may still pick
    del picker
    gc.collect()
    assert [ref() for ref in refs] == [None] * 5
    assert balancer.get_picker(first).next(None, "2") is C
    balancer.delete(Change(Result(True, "unknown")))
    balancer.delete(Change(Result(False, "s")))
    assert picks(balancer.get_picker(first), "1") == {"a", "b"}


def test_a_group_that_is_gone_is_freed():
    inner = WeightedRoundRobinBalancer()
    balancer = tagging(inner)
    first = cached(A, C)
    picker = balancer.get_picker(first)
    gone = weakref.ref(picker.group("2"))
    change = step(first, A)
    balancer.rebalance(change)
    gc.collect()
    assert gone() is None
    assert len(inner._pickers) == 1
    balancer.rebalance(step(change.result, A, C))
    assert picks(picker, "2") == {"c"}


def test_a_delete_that_fails_for_one_group_deletes_the_others():
    class Failing(Own):
        n_failed = 0

        def delete(self, change):
            super().delete(change)
            if not self.n_failed:
                self.n_failed += 1
                raise OSError("no")

    inner = Failing()
    balancer = tagging(inner)
    balancer.get_picker(cached(A, C, D))
    with pytest.raises(OSError, match="no"):
        balancer.delete(Change(cached()))
    assert inner.pickers == balancer._pickers == {}


class Gate(Own):
    """Can be held up in the middle of making a picker, or a change."""

    def __init__(self):
        super().__init__()
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.thread = None

    def wait(self):
        if threading.current_thread() is self.thread:
            self.reached.set()
            assert self.go_on.wait(60)

    def get_picker(self, result):
        picker = super().get_picker(result)
        self.wait()
        return picker

    def hold_up(self, call):
        """Call on a thread, up to the gate; returns what it will have returned."""
        got = []
        self.thread = threading.Thread(target=lambda: got.append(call()))
        self.thread.start()
        assert self.reached.wait(60)
        return got

    def let_on(self):
        self.go_on.set()
        self.thread.join()


def test_a_picker_is_made_once():
    inner = Gate()
    balancer = tagging(inner)
    result = cached(A, B, C, D)
    got = inner.hold_up(lambda: balancer.get_picker(result))
    others = [threading.Thread(target=lambda: got.append(balancer.get_picker(result)))] * 1
    for thread in others:
        thread.start()
    inner.let_on()
    for thread in others:
        thread.join()
    assert len(got) == 2
    assert got[0] is got[1]
    assert len(inner.pickers) == 3


def test_a_delete_while_a_picker_is_made_leaves_nothing_behind():
    inner = Gate()
    balancer = tagging(inner)
    got = inner.hold_up(lambda: balancer.get_picker(cached(A, B, C)))
    balancer.delete(Change(cached()))
    inner.let_on()
    assert picks(got[0], "1") == {"a", "b"}
    assert inner.pickers == balancer._pickers == {}


def test_a_change_while_a_picker_is_made_wins():
    inner = Gate()
    balancer = tagging(inner)
    got = inner.hold_up(lambda: balancer.get_picker(cached(A, B, C)))
    balancer.rebalance(step(cached(A, B, C), A, D))
    inner.let_on()
    assert got == [balancer.get_picker(cached())]
    assert picks(got[0], "1") == {"a"}
    assert len(inner.pickers) == 2  # those of the other are gone


def test_a_delete_during_a_change_leaves_nothing_behind():
    inner = Gate()
    balancer = tagging(inner)
    first = cached(A, B, C)
    picker = balancer.get_picker(first)
    change = step(first, copy_of("a", "new"), B, C)
    inner.hold_up(lambda: balancer.rebalance(change))
    balancer.delete(change)
    inner.let_on()
    assert inner.pickers == balancer._pickers == balancer._turns == {}
    assert picks(picker, "new") == {"a"}  # for those who have it
    anew = balancer.get_picker(change.result)
    assert anew is not picker
    balancer.rebalance(step(change.result, A))
    assert picks(anew, "1") == {"a"}


def test_a_change_of_a_picker_that_was_let_go_does_nothing():
    inner = Own()
    balancer = tagging(inner)
    picker = balancer.get_picker(cached(A))
    balancer.delete(Change(cached()))
    assert picker._groups.follow(step(cached(A), B))
    assert inner.pickers == {}


def test_a_balancer_that_asks_in_the_middle_of_making_is_answered():
    """A log handler of the inner balancer's warning, perhaps."""
    balancer = tagging()
    got = []

    class Asking(logging.Handler):
        def emit(self, record):
            got.append(balancer.get_picker(cached(A, B)).next(None, "1"))

    handler = Asking()
    logger = logging.getLogger("rota.loadbalance.following")
    logger.addHandler(handler)
    try:
        picker = balancer.get_picker(cached(A, copy_of("b", "1", 0)))
        balancer.rebalance(step(cached(A), copy_of("a", "1", 0), C))
    finally:
        logger.removeHandler(handler)
    assert len(got) == 2
    assert got[0] in (A, B)
    assert picks(picker, "2") == {"c"}


def test_a_change_from_within_a_change_is_refused():
    class Changing(Own):
        refused = None

        def rebalance(self, change):
            super().rebalance(change)
            with pytest.raises(RuntimeError, match="within its own change") as raised:
                balancer.rebalance(Change(cached(D)))
            self.refused = raised

    inner = Changing()
    balancer = tagging(inner)
    picker = balancer.get_picker(cached(A))
    balancer.rebalance(step(cached(A), A, B))
    assert inner.refused is not None
    assert picks(picker, "1") == {"a", "b"}


# -- results that may not be cached ---------------------------------------------------------


def test_only_the_group_that_is_needed_is_made():
    inner = Recording()
    balancer = tagging(inner, fallback="2")
    result = Result(False, "s", (A, B, C, D))
    picker = balancer.get_picker(result)
    assert inner.calls == []
    for _ in range(3):
        picker.next(None, "1")
    assert inner.calls == [("get_picker", Result(False, "", (A, B)))]
    assert picker.next(None, "9") is C
    assert inner.calls[1:] == [("get_picker", Result(False, "", (C,)))]
    assert balancer.get_picker(result) is not picker
    balancer.rebalance(Change(result))
    balancer.delete(Change(result))
    assert inner._pickers == inner._turns == balancer._turns == {}


def test_a_result_that_may_not_be_cached_starves_nobody():
    balancer = tagging()
    instances = (copy_of("a", "1", 3), copy_of("b", "1", 1), copy_of("c", "1", 1), D)
    counts = Counter(
        balancer.get_picker(Result(False, "", instances)).next(None, "1").address[0]
        for _ in range(5000)
    )
    # 5 standard deviations of 5,000 draws at 3/5: 173.
    for name, share in (("a", 3000), ("b", 1000), ("c", 1000)):
        assert abs(counts[name] - share) < 175


# -- threads --------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["weight_round_robin", "weight_random", "own", "making"])
def test_picks_during_changes_are_of_their_group(inner):
    """Groups "x" and "y" always have somebody; "z" comes and goes, and falls back to "x"."""
    balancer = tagging(INNER[inner](), fallback="x")
    first = cached(copy_of("x", "x"), copy_of("y", "y"))
    picker = balancer.get_picker(first)
    stop = threading.Event()

    def pick():
        rng = random.Random()
        while not stop.is_set():
            for _ in range(50):
                zone = rng.choice("xyz")
                zones = {"x": "x", "y": "yx", "z": "zx"}[zone]
                if rng.random() < 0.7:
                    got = picker.next(None, zone)
                    assert got.tags["zone"] in (zone if zone != "z" else zones)
                else:
                    got = [i.tags["zone"] for i in picker.attempts(None, zone)]
                    assert got
                    assert got[0] in zones
                    assert set(got) <= set(zones)

    def change():
        rng = random.Random(1)
        result = first
        try:
            for _ in range(300):
                names = rng.sample("abcdef", 4)
                made = step(
                    result,
                    copy_of(names[0], "x", rng.randrange(1, 5)),
                    copy_of(names[1], "y", rng.randrange(1, 5)),
                    *[copy_of(n, rng.choice("xyz"), rng.randrange(5)) for n in names[2:]],
                )
                result = made.result
                if rng.random() < 0.9:
                    balancer.rebalance(made)
        finally:
            stop.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    logging.disable(logging.WARNING)
    try:
        run_threads(change, pick, pick, pick)
    finally:
        sys.setswitchinterval(interval)
        logging.disable(logging.NOTSET)
    assert balancer.get_picker(first) is picker


def test_changes_of_one_key_take_turns():
    inner = WeightedRoundRobinBalancer()
    balancer = tagging(inner, fallback=ANY)
    first = cached(A, B, C)
    balancer.get_picker(first)

    def change(k):
        rng = random.Random(k)
        before = first
        for _ in range(60):
            names = rng.sample("abcdefghij", rng.randrange(1, 9))
            now = [copy_of(n, rng.choice("123"), rng.randrange(1, 5)) for n in names]
            made = step(before, *now)
            before = made.result
            balancer.rebalance(made)
            if rng.random() < 0.1:
                balancer.delete(made)
            assert balancer.get_picker(before).next(None, "1") is not None

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        run_threads(*[partial(change, k) for k in range(4)])
    finally:
        sys.setswitchinterval(interval)
    last = cached(A, D)
    balancer.rebalance(step(first, *last.instances))
    picker = balancer.get_picker(last)
    assert held(picker) == held(tagging(fallback=ANY).get_picker(last))
    keys = {group.result.cache_key for group in picker._groups.groups.values()}
    assert inner._pickers.keys() == keys  # nobody's are left behind
    balancer.delete(Change(last))
    assert inner._pickers == inner._turns == {}
