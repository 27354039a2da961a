"""Retries: whom a call tries, how often, after which errors, and who hears of it."""

import asyncio
import concurrent.futures
import contextlib
import gc
import http.client
import http.server
import inspect
import itertools
import logging
import os
import pickle
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import aiohttp
import httpx
import pytest
import requests
import urllib3
from hypothesis import example, given, settings
from hypothesis import strategies as st

import rota
from rota import (
    Event,
    EventBus,
    Instance,
    LeastRequest,
    MemoryRegistry,
    NoAvailableInstance,
    RetryBudget,
    RetryPolicy,
    RoundRobin,
    WeightedRoundRobin,
    WeightedRoundRobinBalancer,
    call,
    call_async,
)
from rota.retry import (
    DeadlineExceeded,
    any_failure,
    connect_failure,
    open_call,
    open_call_async,
)
from rota.retry.budget import SLOTS
from rota.selector import Builder, BuilderOf, engine, p2c, random, wrr

AT_ONCE = RetryPolicy(pause=0)  # no pauses
ANY = RetryPolicy(retry_on=Exception, pause=0, budget=None)

FLEETS = st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=6)  # weight, is up


class Attempts:
    """A function to call: some instances are down, and it keeps who was tried."""

    def __init__(self, down=(), error=ConnectionRefusedError):
        self.down = down
        self.error = error
        self.tried = []
        self.raised = []

    def __call__(self, instance):
        self.tried.append(instance)
        if instance in self.down:
            self.raised.append(self.error(f"{instance} is down"))
            raise self.raised[-1]
        return f"answered by {instance}"

    async def asynchronously(self, instance):
        await asyncio.sleep(0)
        return self(instance)


class Then(Attempts):
    """Attempts by any function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def __call__(self, instance):
        return self.function(instance)


class ByAddress(Attempts):
    """Attempts that know instances by their addresses."""

    def __call__(self, instance):
        return super().__call__(instance.address)


def run_async(source, attempts, policy, **options):
    """Make a call from asyncio as from anywhere else."""
    return asyncio.run(call_async(source, attempts.asynchronously, policy, **options))


def run(source, attempts, policy, **options):
    return call(source, attempts, policy, **options)


both = pytest.mark.parametrize("run", [run, run_async])


def check_fleet(run, source, fleet, max_attempts, policy=AT_ONCE, **options):
    """Make a call on names by index, and check whom it tried; returns the attempts."""
    names = [f"{i}:80" for i in range(len(fleet))]
    alive = {name for name, (weight, _) in zip(names, fleet, strict=True) if weight}
    attempts = Attempts({name for name, (_, is_up) in zip(names, fleet, strict=True) if not is_up})
    policy = replace(policy, max_attempts=max_attempts)
    if not alive:
        with pytest.raises(NoAvailableInstance):
            run(source, attempts, policy, **options)
        assert attempts.tried == []
        return attempts
    is_answered = False
    with contextlib.suppress(ConnectionRefusedError):
        is_answered = run(source, attempts, policy, **options)
    if is_answered:
        assert is_answered == f"answered by {attempts.tried[-1]}"
        assert attempts.tried[-1] not in attempts.down
    else:
        assert len(attempts.raised) == max_attempts
        assert alive <= attempts.down or max_attempts < len(alive)
    assert len(attempts.tried) <= max_attempts
    assert set(attempts.tried[:-1]) <= attempts.down
    for k in range(0, len(attempts.tried), len(alive)):  # one round
        tried = attempts.tried[k : k + len(alive)]
        assert len(set(tried)) == len(tried)
        assert set(tried) <= alive
    return attempts


# -- whom a call tries --------------------------------------------------------------------


@both
def test_each_instance_once_in_a_round_with_every_picker(make, run):
    @settings(max_examples=25, deadline=None)
    @given(FLEETS, st.integers(1, 14))
    def check(fleet, max_attempts):
        picker = make([f"{i}:80" for i in range(len(fleet))], [weight for weight, _ in fleet])
        check_fleet(run, picker, fleet, max_attempts)
        if hasattr(picker, "loads"):
            assert not picker.loads.any()

    check()


@both
def test_each_replica_once_in_a_round_with_every_hash_picker(make_hash, run):
    @settings(max_examples=25, deadline=None)
    @given(FLEETS, st.integers(1, 14), st.text(min_size=1))
    def check(fleet, max_attempts, key):
        picker = make_hash([f"{i}:80" for i in range(len(fleet))], [weight for weight, _ in fleet])
        attempts = check_fleet(run, picker, fleet, max_attempts, request=key)
        order = picker.pick_n(key, len(fleet))
        assert attempts.tried == (order * max_attempts)[: len(attempts.tried)]

    check()


def test_the_key_of_a_request_is_derived_by_the_picker(make_hash):
    picker = make_hash(["a", "b", "c"], get_key=lambda ctx, request: ctx + request["user"])
    attempts = Attempts({"a", "b", "c"})
    with pytest.raises(ConnectionRefusedError):
        call(picker, attempts, replace(AT_ONCE, max_attempts=3), ctx="x", request={"user": "ann"})
    assert attempts.tried == picker.pick_n("xann", 3)
    with pytest.raises(NoAvailableInstance):  # an empty key is nobody's
        call(picker, attempts, ctx="", request={"user": ""})


class Own:
    """A picker of the user's: only `next`."""

    def __init__(self, instances):
        self.instances = instances
        self.n_asked = 0
        self.asked_with = []

    def next(self, ctx=None, request=None):
        self.asked_with.append((ctx, request))
        self.n_asked += 1
        return self.instances[self.n_asked % len(self.instances)] if self.instances else None


@both
@given(fleet=st.lists(st.tuples(st.just(1), st.booleans()), max_size=6), n=st.integers(1, 14))
@settings(max_examples=50, deadline=None)
def test_a_picker_with_nothing_but_next(run, fleet, n):
    check_fleet(run, Own([f"{i}:80" for i in range(len(fleet))]), fleet, n)


def test_a_picker_of_ones_own_is_asked_with_the_request():
    own = Own(["a"])
    assert call(own, str.upper, ctx="ctx", request="request") == "A"
    assert own.asked_with == [("ctx", "request")]


class Reporting(Own):
    """A picker of the user's with Kratos' `select()`."""

    def __init__(self, instances):
        super().__init__(instances)
        self.reports = []

    def select(self):
        instance = self.next()
        if instance is None:
            return None
        return instance, lambda info=None, *, err=None: self.reports.append((instance, err))


@both
@given(fleet=st.lists(st.tuples(st.just(1), st.booleans()), max_size=6), n=st.integers(1, 14))
@settings(max_examples=50, deadline=None)
def test_a_picker_with_select_hears_of_each_attempt(run, fleet, n):
    picker = Reporting([f"{i}:80" for i in range(len(fleet))])
    attempts = check_fleet(run, picker, fleet, n)
    said = [
        (instance, error)
        for instance, error in picker.reports
        if not isinstance(error, concurrent.futures.CancelledError)  # selected again, not called
    ]
    errors = [*attempts.raised, None][: len(attempts.tried)]
    assert said == list(zip(attempts.tried, errors, strict=True))
    assert len(picker.reports) == picker.n_asked if fleet else picker.n_asked == 1


def test_a_picker_with_select_is_asked_until_somebody_new_comes():
    picker, attempts = Reporting(["a"] * 12 + ["b"]), Attempts({"a"})
    assert call(picker, attempts, AT_ONCE) == "answered by b"
    assert attempts.tried == ["a", "b"]
    picker, attempts = Reporting(["a"] * 99 + ["b"]), Attempts({"a"})
    with pytest.raises(ConnectionRefusedError):  # until there is no sense in it
        call(picker, attempts, replace(AT_ONCE, max_attempts=3))
    assert picker.n_asked <= 3 + 3 * 16


def test_a_pickers_own_attempts_go_before_select():
    class Ordered(Reporting):
        def attempts(self, ctx=None, request=None):
            return iter(self.instances)

    picker, attempts = Ordered(["a", "b", "c"]), Attempts({"a", "b"})
    assert call(picker, attempts, AT_ONCE) == "answered by c"
    assert attempts.tried == ["a", "b", "c"]
    assert picker.reports == []


@both
def test_a_call_follows_discovery(run):
    """The whole service moves elsewhere in the middle of it."""
    bus, balancer = EventBus(), WeightedRoundRobinBalancer()
    registry, disconnect = MemoryRegistry(bus), rota.connect(bus, balancer)
    registry.publish("users", Instance("old:1"), Instance("old:2"))

    class Moving(ByAddress):
        def __call__(self, instance):
            if len(self.tried) == 1:
                registry.publish("users", Instance("new:1"))
                registry.withdraw("users", "old:1", "old:2")
                bus.dispatch_and_wait(Event("done"))
            return super().__call__(instance)

    attempts = Moving({"old:1", "old:2"})
    answer = run(lambda: balancer.get_picker(registry.resolve("users")), attempts, AT_ONCE)
    disconnect()
    assert answer == "answered by new:1"
    assert len(attempts.tried) == 3


@both
def test_a_new_round_is_of_the_picker_of_then(run):
    pickers = iter([RoundRobin(["old"]), RoundRobin(["new"])])
    attempts = Attempts({"old"})
    assert run(lambda: next(pickers), attempts, AT_ONCE) == "answered by new"


def test_of_a_coroutine_function_the_picker_is_awaited():
    async def get_picker():
        await asyncio.sleep(0)
        return RoundRobin(["a", "b"])

    attempts = Attempts({"a", "b"})
    with pytest.raises(ConnectionRefusedError):
        run_async(get_picker, attempts, replace(AT_ONCE, max_attempts=5))
    assert Counter(attempts.tried[:4]) == {"a": 2, "b": 2}
    with (
        pytest.raises(TypeError, match="must give a picker"),
        contextlib.closing(get_picker()) as c,
    ):
        call(lambda: c, attempts)


@both
def test_a_callable_may_give_a_selector(run):
    selector = wrr(start=0).build()
    selector.apply([Instance("a:80"), Instance("b:80")])
    attempts = Attempts({Instance("a:80")})
    assert run(lambda: selector, attempts, AT_ONCE) == f"answered by {Instance('b:80')}"


@both
def test_nobody_in_a_later_round_is_the_last_error(run):
    pickers = iter([RoundRobin(["a"]), RoundRobin([])])
    attempts = Attempts({"a"})
    with pytest.raises(ConnectionRefusedError) as caught:
        run(lambda: next(pickers), attempts, AT_ONCE)
    assert [caught.value] == attempts.raised


def test_an_instance_that_leaves_meanwhile_is_not_tried(make):
    picker = make(["a", "b", "c"])
    tried = []

    def leave(instance):
        tried.append(instance)
        if len(tried) == 1:
            picker.remove(next(i for i in range(3) if picker.instances[i] != instance))
        raise ConnectionRefusedError(instance)

    with pytest.raises(ConnectionRefusedError):
        call(picker, leave, RetryPolicy(max_attempts=2, pause=0))
    assert len(set(tried)) == 2
    assert set(tried) <= {"a", "b", "c"} & {each for each in picker.instances if each}


# -- selectors ----------------------------------------------------------------------------


def instances_of(fleet):
    return [Instance(f"{i}:80", weight, version=str(i % 2)) for i, (weight, _) in enumerate(fleet)]


@pytest.mark.parametrize(
    "make_selector",
    [
        *(maker(mode).build for maker in (wrr, p2c, random) for mode in ("rota", "kratos")),
        engine(rota.LeastRequest).build,
        engine(rota.ConsistentHash, virtual_factor=20).build,
        engine(rota.Maglev, table_size=1009).build,
    ],
)
@both
def test_each_instance_once_in_a_round_with_every_selector(run, make_selector):
    @settings(max_examples=25, deadline=None)
    @given(FLEETS, st.integers(1, 14))
    def check(fleet, max_attempts):
        selector = make_selector()
        if "kratos" in repr(selector).lower():  # which do not look at weights
            fleet = [(1, is_up) for _, is_up in fleet]
        selector.apply(instances_of(fleet))
        is_keyed = isinstance(selector.picker, (rota.ConsistentHash, rota.Maglev))
        options = {"key": "ann"} if is_keyed else {}
        check_fleet(adapted(run), selector, fleet, max_attempts, **options)
        if hasattr(selector.picker, "loads"):
            assert not selector.picker.loads.any()

    check()


def adapted(run):
    """Have `check_fleet` see addresses, where a selector gives instances."""

    def run_by_address(source, attempts, policy, **options):
        by_address = ByAddress(attempts.down, attempts.error)
        by_address.tried, by_address.raised = attempts.tried, attempts.raised
        return run(source, by_address, policy, **options)

    return run_by_address


@both
def test_filters_hold_for_each_attempt(run):
    selector = wrr().build()
    selector.apply(instances_of([(1, False)] * 6))
    attempts = ByAddress({f"{i}:80" for i in range(6)})
    policy = RetryPolicy(max_attempts=7, pause=0)
    with pytest.raises(ConnectionRefusedError):
        run(selector, attempts, policy, filters=(rota.selector.version("1"),))
    assert Counter(attempts.tried[:6]) == {"1:80": 2, "3:80": 2, "5:80": 2}
    with pytest.raises(NoAvailableInstance, match="version == '7' left 0"):
        run(selector, attempts, policy, filters=[rota.selector.version("7")])


class Node:
    """A node of the user's that keeps what it hears."""

    def __init__(self, raw, reports):
        self.raw = raw
        self.reports = reports

    def weight(self):
        return 1.0

    def pick_elapsed(self):
        return 0.0

    def pick(self):
        return lambda info: self.reports.append((self.raw.address, info.err))


class First:
    """A balancer of the user's."""

    def pick(self, nodes):
        return nodes[0], nodes[0].pick()


@pytest.fixture
def reporting():
    """A selector of two instances, the first first, and what is reported to it."""
    reports = []
    nodes = SimpleNamespace(build=lambda instance: Node(instance, reports))
    selector = Builder(BuilderOf(First), nodes).build()
    selector.apply([Instance("a:80"), Instance("b:80")])
    return selector, reports


@both
def test_each_attempt_is_reported_with_its_own_error(reporting, run):
    selector, reports = reporting
    attempts = ByAddress({"a:80"})
    assert run(selector, attempts, AT_ONCE) == "answered by b:80"
    assert reports == [("a:80", attempts.raised[0]), ("b:80", None)]


@both
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, RuntimeError])
def test_what_ends_a_call_is_reported(reporting, run, kind):
    selector, reports = reporting
    attempts = ByAddress({"a:80"}, kind)
    with pytest.raises(kind) as caught:
        run(selector, attempts, AT_ONCE)
    assert reports == [("a:80", caught.value)]


@both
def test_p2c_learns_who_is_down(run):
    selector = p2c(seed=1).build()
    selector.apply([Instance(f"{i}:80") for i in range(5)])
    attempts = ByAddress({"2:80"})
    for _ in range(60):
        run(selector, attempts, AT_ONCE)
    assert len(attempts.raised) <= 3
    latencies = selector.picker.latencies
    assert latencies[2] >= 1 > latencies[[0, 1, 3, 4]].max()


def test_a_picker_by_load_learns_who_is_down(impl):
    picker = impl.PeakEwma([f"{i}:80" for i in range(5)], seed=1)
    attempts = Attempts({"2:80"})
    for _ in range(60):
        call(picker, attempts, AT_ONCE)
    assert len(attempts.raised) <= 3
    assert picker.latencies[2] >= 1
    assert not picker.loads.any()


def test_a_picker_by_load_counts_what_is_in_flight(impl):
    picker = impl.LeastRequest(["a", "b"], seed=1)
    seen = []

    def look(instance):
        seen.append(picker.loads.tolist())
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        call(picker, look, RetryPolicy(max_attempts=2))
    assert sorted(seen) == [[0, 1], [1, 0]]


# -- after which errors -------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("retry_on", "error", "is_retried"),
    [
        (connect_failure, ConnectionRefusedError, True),
        (connect_failure, ConnectionResetError, False),
        (any_failure, ConnectionResetError, True),
        (any_failure, lambda text: Answer(status=404), False),
        (any_failure, lambda text: Answer(status=503), True),
        (OSError, ConnectionResetError, True),
        (OSError, ValueError, False),
        ((ValueError, KeyError), KeyError, True),
        ((ValueError, KeyError), OSError, False),
        ((), OSError, False),
        (lambda error: "down" in str(error), ValueError, True),
        (lambda error: None, ValueError, False),
        (BaseException, KeyboardInterrupt, False),
        (BaseException, SystemExit, False),
        (BaseException, GeneratorExit, False),
        (BaseException, asyncio.CancelledError, False),
        (BaseException, concurrent.futures.CancelledError, False),
        (lambda error: True, concurrent.futures.CancelledError, False),
        (lambda error: True, asyncio.CancelledError, False),
        (lambda error: True, lambda text: chained(ValueError(), asyncio.CancelledError()), False),
    ],
)
def test_what_is_retried(run, retry_on, error, is_retried):
    attempts = Attempts({"a", "b"}, error)
    policy = RetryPolicy(max_attempts=2, retry_on=retry_on)
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        run(RoundRobin(["a", "b"]), attempts, policy)
    assert caught.value is attempts.raised[-1] or run is run_async  # a task makes them anew
    assert len(attempts.tried) == 1 + is_retried


def test_an_error_of_the_predicate_comes_out():
    attempts = Attempts({"a"})
    with pytest.raises(ZeroDivisionError) as caught:
        call(RoundRobin(["a"]), attempts, RetryPolicy(retry_on=lambda error: 1 / 0))
    assert caught.value.__context__ is attempts.raised[0]


class Answer(Exception):
    """An error with attributes."""

    def __init__(self, **attributes):
        super().__init__()
        self.__dict__.update(attributes)


class Several(Exception):
    """An ExceptionGroup, which Python 3.10 has not."""

    def __init__(self, *exceptions):
        super().__init__("several")
        self.exceptions = exceptions


def chained(outer, inner):
    """Raise one error from another."""
    try:
        raise outer from inner
    except BaseException as error:
        return error


def handling(outer, inner):
    """Raise one error while another is handled."""
    try:
        try:
            raise inner
        except BaseException:
            raise outer  # noqa: B904
    except BaseException as error:
        return error


REFUSED, RESET = ConnectionRefusedError(111, "refused"), ConnectionResetError(104, "reset")


@pytest.mark.parametrize(
    ("error", "is_connect"),
    [
        (REFUSED, True),
        (ConnectionRefusedError(), True),
        (socket.gaierror(-2, "unknown"), True),
        (OSError(113, "Connect call failed ('10.0.0.1', 80)"), True),
        (OSError(110, "Connect call failed ('10.0.0.1', 80)"), True),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed"), True),
        (chained(ValueError(), REFUSED), True),
        (chained(OSError("All connection attempts failed"), REFUSED), True),
        (chained(ConnectionError("no"), chained(RuntimeError(), REFUSED)), True),
        (Several(REFUSED, socket.gaierror()), True),
        (chained(OSError("none"), Several(REFUSED, REFUSED)), True),
        (urllib.error.URLError(REFUSED), True),
        (chained(ConnectionResetError(), None), False),
        (RESET, False),
        (ConnectionAbortedError(), False),
        (BrokenPipeError(32, "broken pipe"), False),
        (OSError(113, "No route to host"), False),
        (OSError(101, "Network is unreachable"), False),
        (OSError(), False),
        (TimeoutError(), False),
        (asyncio.TimeoutError(), False),
        (chained(asyncio.TimeoutError(), REFUSED), False),
        (chained(RESET, REFUSED), False),
        (chained(OSError(5, "input"), REFUSED), False),
        (handling(ValueError(), REFUSED), False),
        (handling(RESET, REFUSED), False),
        (chained(ValueError(), RESET), False),
        (Several(REFUSED, RESET), False),
        (Several(REFUSED, ValueError()), False),
        (Several(), False),
        (chained(Answer(status=502), REFUSED), False),
        (chained(Answer(code=SimpleNamespace(name="UNAVAILABLE")), REFUSED), False),
        (chained(asyncio.CancelledError(), REFUSED), False),
        (urllib.error.URLError(RESET), False),
        (urllib.error.URLError("unknown url type"), False),
        (chained(urllib.error.URLError("unknown"), REFUSED), False),
        (http.client.RemoteDisconnected(), False),
        (requests.ConnectionError(), False),
        (requests.ReadTimeout(), False),
        (requests.ConnectTimeout(), True),
        (httpx.ConnectTimeout("late"), True),
        (httpx.ReadTimeout("late"), False),
        (httpx.ReadError("cut"), False),
        (httpx.PoolTimeout("none free"), True),
        (httpx.RemoteProtocolError("cut"), False),
        (urllib3.exceptions.ConnectTimeoutError(), True),
        (urllib3.exceptions.ProtocolError("cut", RESET), False),
        (urllib3.exceptions.ReadTimeoutError(None, "/", "late"), False),
        (aiohttp.ServerDisconnectedError(), False),
        (aiohttp.ConnectionTimeoutError(), True),
        (aiohttp.SocketTimeoutError(), False),
        (aiohttp.ClientOSError(104, "reset"), False),
        (ValueError(), False),
        (KeyboardInterrupt(), False),
        (NoAvailableInstance(), False),
    ],
    ids=repr,
)
def test_connect_failures(error, is_connect):
    assert connect_failure(error) is is_connect


def test_of_an_endless_chain_nothing_is_known():
    error = ValueError()
    error.__cause__ = error
    assert not connect_failure(error)
    assert not connect_failure(Several(*[error] * 1000))
    chain = REFUSED
    for _ in range(1000):
        chain = chained(ValueError(), chain)
    assert not connect_failure(chain)


def test_hostile_errors_are_no_connect_failures():
    class Hostile(Exception):
        __module__ = 5

        def __getattr__(self, name):
            raise KeyboardInterrupt

    class Silent(OSError):
        @property
        def errno(self):
            raise SystemExit

        strerror = errno

    assert not connect_failure(Hostile())
    assert not connect_failure(Silent(1, "x"))


def test_an_errors_own_class_may_derive_from_one_of_a_library():
    class Mine(httpx.ConnectError):
        pass

    assert connect_failure(Mine("no"))


# -- how often ----------------------------------------------------------------------------


@both
def test_the_last_error_comes_as_it_was_and_shows_the_others(run):
    attempts = Attempts({"a", "b", "c"})
    with pytest.raises(ConnectionRefusedError) as caught:
        run(RoundRobin(["a", "b", "c"]), attempts, RetryPolicy(max_attempts=3))
    last = caught.value
    assert last is attempts.raised[2]
    assert last.__context__ is attempts.raised[1]
    assert last.__context__.__context__ is attempts.raised[0]
    assert last.__context__.__context__.__context__ is None
    assert last.__cause__ is None
    text = "".join(traceback.format_exception(type(last), last, last.__traceback__))
    assert all(f"{instance} is down" in text for instance in "abc")


def test_a_call_that_is_tried_for_hours_keeps_few_errors():
    attempts = Attempts("a")
    with pytest.raises(ConnectionRefusedError) as caught:
        call(RoundRobin(["a"]), attempts, RetryPolicy(max_attempts=1000, pause=0))
    assert len(attempts.raised) == 1000
    chain, error = [], caught.value
    while error is not None:
        chain.append(error)
        error = error.__context__
    assert chain == attempts.raised[: -len(chain) - 1 : -1]
    assert len(chain) == 17


def test_earlier_errors_come_after_the_context_that_an_error_has():
    raised = []

    def send(instance):
        raised.append(handling(ValueError(instance), KeyError(instance)))
        raise raised[-1]

    with pytest.raises(ValueError, match=r"^[ab]$") as caught:
        call(RoundRobin(["a", "b"]), send, replace(ANY, max_attempts=2))
    first, last = raised
    assert caught.value is last
    assert isinstance(last.__context__, KeyError)
    assert last.__context__.__context__ is first


def test_the_same_error_again_makes_no_circle():
    error, other = ConnectionRefusedError(), ConnectionRefusedError()
    errors = iter([error, other, error, error])

    def send(instance):
        raise next(errors)

    for _ in range(2):
        with pytest.raises(ConnectionRefusedError) as caught:
            call(RoundRobin(["a", "b"]), send, RetryPolicy(max_attempts=2, pause=0))
        chain = []
        while (context := (chain or [caught.value])[-1].__context__) and len(chain) < 9:
            chain.append(context)
        assert len(chain) < 3


@both
@pytest.mark.parametrize("deadline", [None, 60])
def test_errors_and_instances_are_let_go(run, deadline):
    """By counting references alone: no circles are left to the collector."""

    class Refused(ConnectionRefusedError):
        """Unlike the builtin one, this can be referred to weakly."""

    class Named:
        def __str__(self):
            return "instance"

    def make_call():
        """Return references to all that the call has to do with, and keep nothing."""
        instances = [Named(), Named()]
        attempts = Attempts(instances, Refused)
        policy = RetryPolicy(max_attempts=4, pause=0, deadline=deadline)
        source = RoundRobin(instances)

        async def main():
            with contextlib.suppress(Refused):
                await call_async(source, attempts.asynchronously, policy)

        if run is run_async:
            with contextlib.closing(asyncio.new_event_loop()) as loop:
                loop.run_until_complete(main())
        else:
            with contextlib.suppress(Refused):
                call(source, attempts, policy)
        assert len(attempts.raised) == 4
        references = [weakref.ref(each) for each in (*instances, *attempts.raised)]
        attempts.raised.clear()  # a circle of the test's own
        return references

    gc.collect()
    gc.disable()
    try:
        assert [reference() for reference in make_call()] == [None] * 6
    finally:
        gc.enable()


PAUSES = st.just(0) | st.floats(1e-9, 1e9)


@given(pause=PAUSES, max_pause=PAUSES, n_rounds=st.integers(1, 2000))
@example(pause=0.02, max_pause=1.0, n_rounds=1)
@example(pause=0.02, max_pause=1.0, n_rounds=5)
def test_pauses(pause, max_pause, n_rounds):
    drawn = RetryPolicy(pause=pause, max_pause=max_pause).draw_pause(n_rounds)
    longest = min(Fraction(pause) * 2 ** (n_rounds - 1), Fraction(max_pause))
    assert longest * Fraction(0.4999) <= drawn <= longest * Fraction(1.0001)


def test_pauses_differ():
    policy = RetryPolicy()
    assert len({policy.draw_pause(1) for _ in range(100)}) > 90


@both
def test_there_is_a_pause_between_rounds_and_none_within(run):
    moments = []

    class Timed(Attempts):
        def __call__(self, instance):
            moments.append(time.monotonic())
            return super().__call__(instance)

    with pytest.raises(ConnectionRefusedError):
        run(RoundRobin(["a", "b"]), Timed("ab"), RetryPolicy(max_attempts=4, pause=0.1))
    assert moments[2] - moments[1] >= 0.049
    # No pause is before the second attempt, nor after the last: a policy whose pauses are for
    # ever comes to its end.
    forever = RetryPolicy(max_attempts=2, pause=1e6, max_pause=1e6)
    with pytest.raises(ConnectionRefusedError):
        run(RoundRobin(["a", "b"]), Attempts("ab"), forever)


# -- the deadline -------------------------------------------------------------------------


@both
def test_no_attempt_begins_after_the_deadline(run):
    policy = RetryPolicy(max_attempts=10**6, deadline=0.2, pause=0.01, max_pause=0.01)
    began = []

    class Timed(Attempts):
        def __call__(self, instance):
            began.append(time.monotonic())
            return super().__call__(instance)

    attempts = Timed("ab")
    with pytest.raises(ConnectionRefusedError) as caught:
        run(RoundRobin(["a", "b"]), attempts, policy)
    assert caught.value is attempts.raised[-1]
    assert len(began) < 100
    # The deadline is from before the first; the last may have been stopped on its way to its clock.
    assert all(moment - began[0] <= 0.2 for moment in began[:-1])


def test_an_attempt_that_takes_longer_is_the_last():
    attempts = Attempts("ab")

    def slow(instance):
        time.sleep(0.02)
        return attempts(instance)

    with pytest.raises(ConnectionRefusedError):
        call(RoundRobin(["a", "b"]), slow, RetryPolicy(deadline=0.01))
    assert len(attempts.tried) == 1


@both
def test_a_pause_that_would_end_too_late_is_not_begun(run):
    attempts = Attempts("a")
    policy = RetryPolicy(deadline=1000, pause=1e6, max_pause=1e6)
    with pytest.raises(ConnectionRefusedError):
        run(RoundRobin(["a"]), attempts, policy)
    assert len(attempts.tried) == 1


def test_a_source_that_takes_too_long():
    def get_picker():
        time.sleep(0.02)
        return RoundRobin(["a"])

    async def get_picker_async():
        await asyncio.sleep(1000)

    attempts = Attempts()
    with pytest.raises(DeadlineExceeded):
        call(get_picker, attempts, RetryPolicy(deadline=0.01))
    with pytest.raises(DeadlineExceeded):
        run_async(get_picker_async, attempts, RetryPolicy(deadline=0.01))
    assert attempts.tried == []

    pickers = [RoundRobin(["a"])]

    def get_slowly():
        return pickers.pop() if pickers else get_picker()

    attempts = Attempts("a")
    with pytest.raises(ConnectionRefusedError):
        call(get_slowly, attempts, RetryPolicy(deadline=0.015, pause=0))
    assert len(attempts.tried) == 1


def test_the_deadline_cancels_an_attempt_which_is_reported_as_failed(reporting):
    selector, reports = reporting
    seen = []

    async def hang(instance):
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)  # is given the time to end
            seen.append(instance.address)
            raise

    async def main():
        with pytest.raises(DeadlineExceeded) as caught:
            await call_async(selector, hang, RetryPolicy(retry_on=Exception, deadline=0.3))
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return caught.value

    error = asyncio.run(main())
    assert seen == ["a:80"]
    assert reports == [("a:80", error)]
    assert rota.outcome.outcome_of(error) is rota.outcome.Outcome.FAILURE
    assert isinstance(error, TimeoutError)
    assert isinstance(error, asyncio.TimeoutError)


def test_the_deadline_in_a_later_attempt_shows_the_error_before():
    first = ConnectionRefusedError()

    async def send(instance):
        if instance == "a":
            raise first
        await asyncio.sleep(1000)

    with pytest.raises(DeadlineExceeded) as caught:
        asyncio.run(call_async(RoundRobin(["a", "b"], start=0), send, RetryPolicy(deadline=0.5)))
    chain, error = [], caught.value
    while error := error.__context__:
        chain.append(error)
    assert first in chain


@pytest.mark.parametrize("answer", ["late", ConnectionResetError()])
def test_at_the_deadline_an_answer_counts_and_an_error_does_not(answer):
    async def stubborn(instance):
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            if isinstance(answer, str):
                return answer
            raise answer from None

    made = call_async(RoundRobin(["a"]), stubborn, replace(ANY, deadline=0.3))
    if isinstance(answer, str):
        assert asyncio.run(made) == answer
    else:
        with pytest.raises(DeadlineExceeded) as caught:
            asyncio.run(made)
        assert caught.value.__cause__ is answer


def test_an_attempt_in_time_is_left_alone():
    variable = []

    async def send(instance):
        await asyncio.sleep(0.01)
        variable.append(asyncio.current_task())
        return instance

    async def main():
        answer = await call_async(RoundRobin(["a"]), send, RetryPolicy(deadline=100))
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return answer

    assert asyncio.run(main()) == "a"
    assert variable[0].done()


# -- cancellation -------------------------------------------------------------------------


@pytest.mark.parametrize("deadline", [None, 1000])
@pytest.mark.parametrize("retry_on", [connect_failure, BaseException])
def test_a_call_that_is_cancelled(reporting, deadline, retry_on):
    selector, reports = reporting
    tried = []

    async def hang(instance):
        tried.append(instance)
        await asyncio.sleep(1000)

    async def main():
        policy = RetryPolicy(retry_on=retry_on, deadline=deadline)
        task = asyncio.ensure_future(call_async(selector, hang, policy))
        while not tried:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    ((address, error),) = reports
    assert address == "a:80"
    assert isinstance(error, asyncio.CancelledError)
    assert len(tried) == 1


@pytest.mark.parametrize("deadline", [None, 1000, 0.3])
def test_a_call_that_is_cancelled_again_and_again_ends_after_its_attempt(reporting, deadline):
    """Also when that ignores it for a while, and fails in the end."""
    selector, reports = reporting
    events = []

    async def stubborn(instance):
        for _ in range(3):
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:  # noqa: PERF203
                events.append("cancelled")
        events.append("ended")
        raise ValueError

    async def main():
        task = asyncio.ensure_future(call_async(selector, stubborn, RetryPolicy(deadline=deadline)))
        while not task.done():
            await asyncio.sleep(0.02)
            task.cancel()
        with pytest.raises(ValueError if deadline is None else asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert events == ["cancelled"] * 3 + ["ended"]
    assert len(reports) == 1


def test_what_a_cancelled_attempt_raises_is_nobodys_complaint():
    complaints = []

    async def send(instance):
        try:
            await asyncio.sleep(1000)
        finally:
            raise ValueError

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, said: complaints.append(said))
        task = asyncio.ensure_future(
            call_async(RoundRobin(["a"]), send, RetryPolicy(deadline=1000))
        )
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        gc.collect()

    asyncio.run(main())
    assert complaints == []


def test_a_call_that_is_cancelled_in_a_pause(reporting):
    selector, reports = reporting
    attempts = ByAddress({"a:80", "b:80"})

    async def main():
        policy = RetryPolicy(pause=1000.0, max_pause=1000.0)
        task = asyncio.ensure_future(call_async(selector, attempts.asynchronously, policy))
        while len(reports) < 2:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert len(attempts.tried) == 2


@pytest.mark.parametrize("deadline", [None, 1000])
def test_a_call_that_is_closed(reporting, deadline):
    selector, reports = reporting

    async def hang(instance):
        await asyncio.sleep(1000)

    async def main():
        made = call_async(selector, hang, RetryPolicy(deadline=deadline))
        steps = made.__await__()
        next(steps)
        await asyncio.sleep(0)
        steps.close()
        made.close()
        for _ in range(3):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    ((address, error),) = reports
    assert address == "a:80"
    assert isinstance(error, GeneratorExit)


# -- budgets ------------------------------------------------------------------------------


class Clock:
    """A clock for tests: says what it was set to."""

    def __init__(self, now=0.0):
        self.now = now

    def __call__(self):
        return self.now


TICK = 0.125  # seconds; exact in binary
STEPS = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(["deposit", "withdraw"]), st.integers(1, 12)),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(
    steps=STEPS,
    percent=st.sampled_from([0, 0.1, 0.2, 0.29, 1, 2.5]),
    per_second=st.sampled_from([0, 0.3, 1, 2.5]),
    ttl=st.sampled_from([0.5, 2.5, 10]),
    begin=st.sampled_from([0.0, -3.0, 12345.625]),
)
def test_a_budgets_bounds_hold_in_every_window(steps, percent, per_second, ttl, begin):
    clock = Clock(begin)
    budget = RetryBudget(percent, per_second, ttl, clock=clock)
    exact = Fraction(str(percent))
    reserve = Fraction(str(per_second)) * Fraction(str(ttl))
    calls, retries = [], []
    n_refused = 0

    def within(moments, seconds):
        return sum(moment > clock.now - seconds for moment in moments)

    for n_ticks, step, times in steps:
        clock.now += n_ticks * TICK
        for _ in range(times):
            if step == "deposit":
                budget.deposit()
                calls.append(clock.now)
                continue
            balance = budget.balance
            is_let = budget.withdraw()
            assert is_let is (balance >= 1)
            n_refused += not is_let
            if is_let:
                assert budget.balance == balance - 1
                retries.append(clock.now)
                assert within(retries, ttl) <= reserve + exact * within(calls, ttl)
            else:
                # No more is refused than what a twentieth of the window can make of it.
                most = within(retries, ttl + ttl / SLOTS) + 1
                assert most > reserve + exact * within(calls, ttl - ttl / SLOTS)
    assert (budget.n_calls, budget.n_retries, budget.n_refused) == (
        len(calls),
        len(retries),
        n_refused,
    )


def test_a_budget_as_it_is_by_default():
    clock = Clock(1000.0)
    budget = RetryBudget(clock=clock)
    assert budget.balance == 100
    for _ in range(1000):
        budget.deposit()
    assert budget.balance == 300
    assert sum(budget.withdraw() for _ in range(1000)) == 300
    assert repr(budget) == "RetryBudget(0.2, 10, 10: 1000 calls, 300 retries, 700 refused)"
    clock.now += 10.5  # all is forgotten
    assert budget.balance == 100
    clock.now += 1e9
    assert budget.balance == 100


@pytest.mark.parametrize("ttl", [0.3, 1, 10])
def test_a_call_counts_until_it_is_too_old_and_a_retry_until_it_surely_is(ttl):
    clock = Clock()
    budget = RetryBudget(1, 0, ttl, clock=clock)
    slot = ttl / SLOTS
    budget.deposit()
    clock.now = ttl - slot * 0.5
    assert budget.balance == 1
    clock.now = ttl
    assert budget.balance == 0
    budget = RetryBudget(0, 1 / ttl, ttl, clock=clock)
    clock.now = ttl + slot * 0.9
    assert budget.withdraw()
    clock.now += ttl
    assert budget.balance == 0
    clock.now += slot
    assert budget.balance == 1


def test_percentages_are_decimal():
    """0.29 * 100 is 28.999999999999996."""
    budget = RetryBudget(0.29, 0)
    for _ in range(100):
        budget.deposit()
    assert budget.balance == 29


def test_a_clock_that_goes_back_stands_still():
    clock = Clock(100.0)
    budget = RetryBudget(0, 1, 10, clock=clock)
    assert sum(budget.withdraw() for _ in range(20)) == 10
    clock.now = 0.0
    assert not budget.withdraw()
    clock.now = 100.0
    assert not budget.withdraw()
    clock.now = 111.0
    assert budget.balance == 10


def test_threads_share_a_budget():
    """Each call fails on each attempt: retries are exactly what the budget lets through."""
    budget = RetryBudget(0.2, 10, 10, clock=Clock())
    policy = RetryPolicy(max_attempts=3, retry_on=OSError, pause=0, budget=budget)
    n_threads, n_calls = 8, 250
    picker = RoundRobin(["a", "b", "c"])
    tried = []
    barrier = threading.Barrier(n_threads)

    def make_calls():
        attempts = Attempts("abc", ConnectionResetError)
        barrier.wait()
        for _ in range(n_calls):
            with pytest.raises(ConnectionResetError):
                call(picker, attempts, policy)
        tried.append(len(attempts.tried))

    with ThreadPoolExecutor(n_threads) as executor:
        for future in [executor.submit(make_calls) for _ in range(n_threads)]:
            future.result()
    assert budget.n_calls == n_threads * n_calls
    assert sum(tried) == budget.n_calls + budget.n_retries
    assert budget.n_retries == 100 + budget.n_calls // 5
    assert budget.balance == 0


@both
def test_what_a_budget_refuses_is_raised_as_it_was(run, caplog):
    budget = RetryBudget(0, 0)
    attempts = Attempts("ab", ConnectionResetError)
    with (
        caplog.at_level(logging.DEBUG, "rota.retry"),
        pytest.raises(ConnectionResetError) as caught,
    ):
        run(RoundRobin(["a", "b"]), attempts, RetryPolicy(retry_on=OSError, budget=budget))
    assert [caught.value] == attempts.raised
    assert (budget.n_calls, budget.n_retries, budget.n_refused) == (1, 0, 1)
    assert "lets no retry through" in caplog.text


@both
def test_only_retries_are_taken_from_a_budget(run):
    budget = RetryBudget(0, 1, 2, clock=Clock())
    policy = RetryPolicy(max_attempts=2, retry_on=OSError, budget=budget, pause=0)
    run(RoundRobin(["a"]), Attempts(), policy)
    for error in (ConnectionResetError, ValueError, ConnectionResetError):
        with pytest.raises(error):
            run(RoundRobin(["a"]), Attempts("a", error), policy)
    assert (budget.n_calls, budget.n_retries, budget.n_refused) == (4, 2, 0)


@both
def test_what_no_server_has_seen_is_not_taken_from_a_budget(run):
    """With one of three instances down a third of all calls needs another attempt."""
    budget = RetryBudget(0, 0)
    policy = RetryPolicy(retry_on=any_failure, budget=budget, pause=0)
    for _ in range(100):
        run(RoundRobin(["a", "b", "c"]), Attempts("a"), policy)
    assert (budget.n_calls, budget.n_retries, budget.n_refused) == (100, 0, 0)


class Wait(Exception):
    """A server's wish to be left alone."""

    status = 503

    def __init__(self, retry_after):
        super().__init__(retry_after)
        self.retry_after = retry_after


@both
def test_a_server_that_says_when_to_come_back_is_not_asked_before(run):
    moments = []

    def send(instance):
        moments.append(time.monotonic())
        if len(moments) < 3:
            raise Wait(0.2)
        return instance

    policy = RetryPolicy(retry_on=any_failure, pause=0)
    assert run(RoundRobin(["a"]), Then(send), policy) == "a"
    assert moments[1] - moments[0] >= 0.2
    assert moments[2] - moments[1] >= 0.2


@both
def test_a_server_that_wants_to_be_left_alone_for_long_is(run):
    attempts = Attempts("ab", lambda message: Wait(1.5))
    policy = RetryPolicy(retry_on=any_failure, pause=0, max_pause=1)
    with pytest.raises(Wait):
        run(RoundRobin(["a", "b"]), attempts, policy)
    assert len(attempts.tried) == 2  # the other one may be asked at once


def test_whose_budget_it_is():
    assert RetryPolicy().budget is None
    own = RetryPolicy(retry_on=any_failure)
    assert isinstance(own.budget, RetryBudget)
    assert RetryPolicy(retry_on=OSError).budget is not own.budget
    assert replace(own, max_attempts=2).budget is own.budget
    assert RetryPolicy(retry_on=any_failure, budget=None).budget is None


def test_policies_are_values():
    policy = RetryPolicy(max_attempts=3, retry_on=(OSError,), budget=None)
    assert policy == RetryPolicy(max_attempts=3, retry_on=(OSError,), budget=None)
    assert hash(policy) == hash(pickle.loads(pickle.dumps(policy)))
    with pytest.raises(AttributeError):
        policy.max_attempts = 4


FORK = """
import os, threading, warnings
from rota import RetryBudget
warnings.simplefilter("ignore")
budget = RetryBudget(0, 1, 10)
held, release = threading.Event(), threading.Event()
def hold():
    with budget._lock:
        held.set()
        release.wait()
threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if not child:
    os._exit(0 if budget.withdraw() else 1)
status = os.waitpid(child, 0)[1]
release.set()
assert status == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_may_use_a_budget_that_a_thread_of_the_parent_held():
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)


# -- calls whose end is not their result --------------------------------------------------


def run_open(source, attempts, policy=AT_ONCE, **options):
    """Open a call that ends with its function."""

    def attempt(instance, done):
        answer = attempts(instance)
        done()
        return answer

    return open_call(source, attempt, policy, **options)


def run_open_async(source, attempts, policy=AT_ONCE, **options):
    async def attempt(instance, done):
        answer = await attempts.asynchronously(instance)
        done()
        return answer

    return asyncio.run(open_call_async(source, attempt, policy, **options))


@pytest.mark.parametrize("run", [run_open, run_open_async])
@settings(max_examples=25, deadline=None)
@given(FLEETS, st.integers(1, 14))
def test_an_opened_call_tries_whom_another_would(run, fleet, max_attempts):
    instances = [Instance(f"{i}:80", weight) for i, (weight, _) in enumerate(fleet)]
    selector = engine(LeastRequest).build()
    selector.apply(instances)
    attempts = ByAddress()
    down = {f"{i}:80" for i, (_, is_up) in enumerate(fleet) if not is_up}
    attempts.down = down
    alive = [each for each in instances if each.weight]
    policy = replace(AT_ONCE, max_attempts=max_attempts)
    try:
        answer = run(selector, attempts, policy)
    except NoAvailableInstance:
        assert not alive
    except ConnectionRefusedError:
        assert len(attempts.raised) == max_attempts
    else:
        assert answer == f"answered by {attempts.tried[-1]}"
    assert not selector.picker.loads.any()


@pytest.mark.parametrize("is_async", [False, True])
def test_an_opened_call_is_in_flight_until_it_is_done(is_async):
    picker = LeastRequest(["a", "b"])
    kept = []

    def attempt(instance, done):
        kept.append((instance, done))
        return instance

    async def attempt_async(instance, done):
        return attempt(instance, done)

    def begin():
        if is_async:
            return asyncio.run(open_call_async(picker, attempt_async))
        return open_call(picker, attempt)

    assert {begin(), begin()} == {"a", "b"}
    assert picker.loads.tolist() == [1, 1]
    for _, done in kept:
        done()
    assert not picker.loads.any()
    begin()
    kept.clear()  # let go
    gc.collect()
    assert not picker.loads.any()


@pytest.mark.parametrize("is_async", [False, True])
def test_what_an_opened_call_raises_is_reported(is_async):
    heard = []
    in_turn = itertools.cycle("abc")

    class Hearing(Own):
        def select(self):
            return next(in_turn), lambda info=None, *, err=None: heard.append(err)

    def attempt(instance, done):
        if len(heard) < 2:
            raise ConnectionRefusedError(instance)
        return done

    async def attempt_async(instance, done):
        return attempt(instance, done)

    picker = Hearing(["a", "b", "c"])
    if is_async:
        done = asyncio.run(open_call_async(picker, attempt_async, AT_ONCE))
    else:
        done = open_call(picker, attempt, AT_ONCE)
    assert [type(error) for error in heard] == [ConnectionRefusedError] * 2
    done()
    assert heard[2:] == [None]


# -- real sockets -------------------------------------------------------------------------


class Server(socketserver.ThreadingTCPServer):
    """An HTTP server on loopback that answers, or reads a request and resets the connection."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.requests = []
        self.address = f"127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.requests.append(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.answers:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")
        else:
            hard = struct.pack("ii", 1, 0)  # a close that resets
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, hard)
            self.rfile.close()
            self.wfile.close()
            self.connection.close()
            self.close_connection = True

    def finish(self):
        if not self.wfile.closed:
            super().finish()

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serving(answers):
    with Server(answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def closed():
    """An address where nobody listens, and nobody else will: it is bound."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def by_http_client(address):
    connection = http.client.HTTPConnection(address, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/", b"body")
        return connection.getresponse().read()


def by_urllib(address):
    with urllib.request.urlopen(f"http://{address}/", b"body", timeout=30) as answer:
        return answer.read()


def by_urllib3(address):
    with urllib3.PoolManager() as pool:
        return pool.request("POST", f"http://{address}/", body=b"body", retries=False).data


def by_urllib3_with_retries(address):
    with urllib3.PoolManager() as pool:
        return pool.request("POST", f"http://{address}/", body=b"body", retries=1).data


def by_requests(address):
    with requests.Session() as session:
        session.trust_env = False
        return session.post(f"http://{address}/", b"body").content


def by_httpx(address):
    with httpx.Client(trust_env=False) as client:
        return client.post(f"http://{address}/", content=b"body").content


async def by_streams(address):
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(b"POST / HTTP/1.0\r\nContent-Length: 4\r\n\r\nbody")
        return (await reader.read()).partition(b"\r\n\r\n")[2]
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def by_httpx_async(address):
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.post(f"http://{address}/", content=b"body")).content


async def by_aiohttp(address):
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{address}/", data=b"body") as answer,
    ):
        return await answer.read()


clients = pytest.mark.parametrize(
    "client",
    [
        by_http_client,
        by_urllib,
        by_urllib3,
        by_urllib3_with_retries,
        by_requests,
        by_httpx,
        by_streams,
        by_httpx_async,
        by_aiohttp,
    ],
)


def call_by(client, source, *policy):
    if inspect.iscoroutinefunction(client):
        return asyncio.run(call_async(source, client, *policy))
    return call(source, client, *policy)


@clients
def test_a_refused_connect_is_tried_elsewhere(client, closed):
    with serving(True) as server:
        picker = RoundRobin([closed, server.address], start=0)
        assert call_by(client, picker) == b"ok"
        assert server.requests == [b"body"]


@clients
def test_everybody_may_be_back_in_the_next_round(client, closed):
    """All instances restart at once."""
    with contextlib.ExitStack() as stack:
        pickers = [RoundRobin([closed])]

        def get_picker():
            if not pickers:
                pickers.append(RoundRobin([stack.enter_context(serving(True)).address]))
            return pickers.pop()

        assert call_by(client, get_picker) == b"ok"


@clients
def test_a_reset_in_the_middle_is_not_retried_unless_asked_for(client):
    with serving(False) as resetting, serving(True) as server:
        picker = RoundRobin([resetting.address, server.address], start=0)
        with pytest.raises(Exception, match=r".*") as caught:
            call_by(client, picker)
        assert not connect_failure(caught.value)
        assert any_failure(caught.value)
        assert len(resetting.requests) == 1
        assert server.requests == []
        picker = RoundRobin([resetting.address, server.address], start=0)
        assert call_by(client, picker, RetryPolicy(retry_on=any_failure)) == b"ok"


def test_many_threads_meet_a_server_that_is_down(closed):
    with serving(True) as server:
        selector = p2c(seed=1).build()
        selector.apply([Instance(closed), Instance(server.address)])

        def send(node):
            return by_http_client(node.address)

        with ThreadPoolExecutor(8) as executor:
            made = [executor.submit(call, selector, send) for _ in range(200)]
            assert {future.result() for future in made} == {b"ok"}
        assert len(server.requests) == 200
        assert not selector.picker.loads.any()


def test_many_tasks_meet_instances_that_are_down():
    selector = p2c(seed=1).build()
    selector.apply([Instance(f"{i}:80") for i in range(5)])
    attempts = ByAddress({"1:80", "3:80"})

    async def main():
        made = [call_async(selector, attempts.asynchronously, AT_ONCE) for _ in range(300)]
        return await asyncio.gather(*made)

    assert set(asyncio.run(main())) <= {f"answered by {i}:80" for i in (0, 2, 4)}
    assert not selector.picker.loads.any()


# -- arguments ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (ValueError, {"max_attempts": 0}),
        (ValueError, {"max_attempts": -1}),
        (TypeError, {"max_attempts": 1.5}),
        (TypeError, {"max_attempts": None}),
        (TypeError, {"retry_on": None}),
        (TypeError, {"retry_on": int}),
        (TypeError, {"retry_on": (OSError, int)}),
        (TypeError, {"retry_on": (OSError, connect_failure)}),
        (TypeError, {"retry_on": "OSError"}),
        (TypeError, {"deadline": "1"}),
        (ValueError, {"deadline": 0}),
        (ValueError, {"deadline": float("nan")}),
        (ValueError, {"deadline": -1}),
        (TypeError, {"budget": 0.2}),
        (ValueError, {"pause": -1}),
        (ValueError, {"pause": float("inf")}),
        (TypeError, {"pause": None}),
        (ValueError, {"max_pause": float("nan")}),
    ],
)
def test_policies_of_no_use_are_refused(error, options):
    (name,) = options
    with pytest.raises(error, match=name):
        RetryPolicy(**options)


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (ValueError, {"percent": -0.1}),
        (ValueError, {"percent": float("nan")}),
        (ValueError, {"percent": float("inf")}),
        (TypeError, {"percent": "20%"}),
        (ValueError, {"per_second": -1}),
        (ValueError, {"per_second": 10**400}),
        (TypeError, {"per_second": None}),
        (ValueError, {"ttl": 0}),
        (TypeError, {"ttl": "10"}),
        (TypeError, {"clock": 5}),
    ],
)
def test_budgets_of_no_use_are_refused(error, options):
    (name,) = options
    with pytest.raises(error, match=name):
        RetryBudget(**options)


@pytest.mark.parametrize("value", [1e-300, 1e300, 0.1, 5, Fraction(1, 3)])
def test_budgets_of_any_size(value):
    budget = RetryBudget(value, value)
    budget.deposit()
    assert budget.balance == int(Fraction(repr(float(value))) * 11)
    assert budget.withdraw() is (value * 11 >= 1)


SELECTOR = wrr().build()
SELECTOR.apply([Instance("a:80")])


@both
@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (None, {}, "source must be"),
        ("a:80", {}, "source must be"),
        (lambda: ["a:80"], {}, "source must give"),
        (lambda: None, {}, "source must give"),
        (RoundRobin(["a"]), {"key": "ann"}, "filters and key are for selectors"),
        (RoundRobin(["a"]), {"filters": (str,)}, "filters and key are for selectors"),
        (SELECTOR, {"request": 1}, "ctx and request are for pickers"),
        (SELECTOR, {"ctx": 1}, "ctx and request are for pickers"),
        (SELECTOR, {"key": "ann"}, "key must be None"),
        (SELECTOR, {"filters": 5}, "filters must be"),
    ],
)
def test_sources_of_no_use_are_refused(run, source, options, message):
    attempts = Attempts()
    with pytest.raises(TypeError, match=message):
        run(source, attempts, ANY, **options)
    assert attempts.tried == []


def test_functions_and_policies_of_no_use_are_refused():
    picker = RoundRobin(["a"])
    with pytest.raises(TypeError, match="function must be callable"):
        call(picker, None)
    with pytest.raises(TypeError, match="policy must be"):
        call(picker, str, {"max_attempts": 3})

    async def send(instance):
        raise AssertionError

    with pytest.raises(TypeError, match="function must return a result"):
        call(picker, send)


def test_an_error_of_a_picker_comes_as_it_is():
    class Broken:
        def next(self, ctx=None, request=None):
            raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        call(Broken(), str, ANY)
    assert call(WeightedRoundRobin(["a"]), str) == "a"
