"""ConsistentHashBalancer: Kitex's options and cache, rebalanced in place."""

import logging
import threading

import pytest

import rota
from rota import (
    Change,
    ConsistentHashBalancer,
    ConsistentHashOptions,
    Event,
    EventBus,
    Instance,
    MemoryRegistry,
    Result,
)

KEYS = [f"user:{i}" for i in range(400)]


def balancer_of(**options):
    return ConsistentHashBalancer(ConsistentHashOptions(lambda ctx, request: request, **options))


def instances_of(*weights):
    return tuple(Instance(f"10.0.0.{i}:80", weight) for i, weight in enumerate(weights))


def cached(*instances, key="s"):
    return Result(True, key, instances)


def owners(picker):
    return [picker.next(None, key).address for key in KEYS]


def test_name_and_defaults():
    options = ConsistentHashOptions(len)
    assert (options.virtual_factor, options.weighted, options.replicas) == (100, True, None)
    assert balancer_of().name == "consist"
    assert isinstance(balancer_of(), rota.LoadBalancer)
    assert isinstance(balancer_of(), rota.Rebalancer)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"get_key": None}, TypeError, "get_key"),
        ({"get_key": len, "virtual_factor": 0}, ValueError, "virtual_factor"),
        ({"get_key": len, "virtual_factor": "1"}, TypeError, "virtual_factor"),
        ({"get_key": len, "replicas": -1}, ValueError, "replicas"),
    ],
)
def test_bad_options_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        ConsistentHashOptions(**options)


def test_options_are_needed():
    with pytest.raises(TypeError, match="get_key"):
        ConsistentHashOptions()
    with pytest.raises(TypeError, match="options"):
        ConsistentHashBalancer(None)


def test_an_empty_key_or_list_gives_none():
    picker = balancer_of().get_picker(cached(*instances_of(1, 2)))
    assert picker.next(None, "") is None
    assert picker.next(None, None) is None
    empty = balancer_of().get_picker(cached())
    assert empty.next(None, "k") is None


def test_a_failing_get_key_comes_through():
    balancer = ConsistentHashBalancer(ConsistentHashOptions(lambda ctx, request: request["id"]))
    picker = balancer.get_picker(cached(*instances_of(1, 2)))
    with pytest.raises(KeyError, match="id"):
        picker.next(None, {})
    assert picker.next(None, {"id": "k"}) is not None


@pytest.mark.parametrize("cacheable", [True, False])
def test_all_balancers_and_pickers_agree(cacheable):
    result = Result(cacheable, "s", instances_of(*[10] * 9))
    one = owners(balancer_of().get_picker(result))
    for _ in range(3):
        assert owners(balancer_of().get_picker(result)) == one
    assert len(set(one)) == 9


def test_the_ring_is_that_of_the_options():
    instances = instances_of(None, 20, 30)
    ring = rota.ConsistentHash(instances, [10, 20, 30], virtual_factor=100)
    assert owners(balancer_of().get_picker(cached(*instances))) == [
        ring.pick(key).address for key in KEYS
    ]
    ring = rota.ConsistentHash(instances, [1, 1, 1], virtual_factor=7)
    picker = balancer_of(virtual_factor=7, weighted=False).get_picker(cached(*instances))
    assert owners(picker) == [ring.pick(key).address for key in KEYS]


def test_zero_weights_are_dropped_with_one_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="rota.loadbalance"):
        picker = balancer_of().get_picker(cached(*instances_of(0, 1, -5)))
    assert set(owners(picker)) == {"10.0.0.1:80"}
    assert len(caplog.records) == 1
    assert balancer_of().get_picker(cached(*instances_of(0, 0))).next(None, "k") is None


def test_two_of_one_name_are_one(caplog):
    twice = (Instance("a:1", 1), Instance("b:1", 1), Instance("a:1", 5))
    with caplog.at_level(logging.WARNING, logger="rota.loadbalance.consistent"):
        picker = balancer_of().get_picker(cached(*twice))
    assert len(picker) == 2
    assert picker.weights.tolist() == [1, 1]
    assert "1 of 3 instances" in caplog.text


def test_one_warning_of_each_kind(caplog):
    balancer = balancer_of()
    instances = (Instance("a:1", 0), Instance("b:1", 1), Instance("b:1", 2))
    for _ in range(5):
        balancer.get_picker(Result(False, "", instances))
    assert len(caplog.records) == 2


def test_a_log_handler_may_pick():
    balancer = balancer_of()
    result = cached(*instances_of(0, 1, 2))
    picked = []

    class Picking(logging.Handler):
        def emit(self, record):
            picked.append(balancer.get_picker(result).next(None, "k"))

    handler, logger = Picking(), logging.getLogger("rota.loadbalance")
    logger.addHandler(handler)
    try:
        picker = balancer.get_picker(result)
    finally:
        logger.removeHandler(handler)
    assert picked == [picker.next(None, "k")]
    assert balancer.get_picker(result) is picker


def test_replicas_bound_the_attempts():
    picker = balancer_of(replicas=1).get_picker(cached(*instances_of(1, 1, 1, 1)))
    assert len(list(rota.attempts(picker, None, "k"))) == 2
    everybody = balancer_of().get_picker(cached(*instances_of(1, 1, 1, 1)))
    assert len(list(rota.attempts(everybody, None, "k"))) == 4


def test_rebalance_changes_the_ring_in_place():
    balancer = balancer_of(virtual_factor=5)
    picker = balancer.get_picker(cached(*instances_of(10, 10, 10)))
    before = owners(picker)
    balancer.rebalance(Change(cached(*instances_of(10, 10, 10))))  # nothing has changed
    assert owners(picker) == before
    more = (*instances_of(10, 10, 10), Instance("10.0.0.9:80", 10))
    balancer.rebalance(Change(cached(*more)))
    assert balancer.get_picker(cached()) is picker
    after = owners(picker)
    assert {new for old, new in zip(before, after, strict=True) if old != new} == {"10.0.0.9:80"}
    fresh = balancer_of(virtual_factor=5).get_picker(cached(*more))
    assert owners(fresh) == after
    balancer.rebalance(Change(cached()))
    assert picker.next(None, "k") is None
    balancer.delete(Change(cached()))
    assert balancer.get_picker(cached(*more)) is not picker


def test_a_bad_change_changes_nothing():
    balancer = balancer_of()
    picker = balancer.get_picker(cached(*instances_of(1, 1)))
    before = owners(picker)
    with pytest.raises(ValueError, match="33554432"):
        balancer.rebalance(Change(cached(*instances_of(1, 10**9))))
    assert owners(picker) == before


def test_it_follows_discovery():
    bus, balancer = EventBus(), balancer_of(virtual_factor=20)
    registry = MemoryRegistry(bus)
    rota.connect(bus, balancer)
    registry.publish("s", *instances_of(1, 1, 1))
    bus.dispatch_and_wait(Event("marker"))
    picker = balancer.get_picker(registry.resolve("s"))
    assert len(picker) == 3
    registry.withdraw("s", "10.0.0.0:80")
    bus.dispatch_and_wait(Event("marker"))
    assert balancer.get_picker(registry.resolve("s")) is picker
    assert set(owners(picker)) == {"10.0.0.1:80", "10.0.0.2:80"}


def test_picks_go_on_while_the_ring_changes():
    balancer = balancer_of(virtual_factor=20)
    picker = balancer.get_picker(cached(*instances_of(1, 1, 1)))
    stop, errors = threading.Event(), []

    def pick():
        try:
            while not stop.is_set():
                assert all(picker.next(None, key) is not None for key in KEYS[:50])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=pick) for _ in range(4)]
    for thread in threads:
        thread.start()
    for k in range(100):
        # Nobody of one list is in the next.
        weights = [1 + k % 3] * (1 + k % 5)
        instances = [Instance(f"{k % 2}.0.0.{i}:80", w) for i, w in enumerate(weights)]
        balancer.rebalance(Change(cached(*instances)))
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
