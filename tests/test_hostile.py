"""What was found by attacking pickers by load and selectors: each was a defect once."""

import copy
import ctypes
import functools
import gc
import itertools
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import pytest

import rota
from rota.discovery import Instance
from rota.selector import (
    BuilderOf,
    Direct,
    Engine,
    Ewma,
    KratosP2C,
    KratosWRR,
    NoAvailableInstance,
    Peer,
    Selector,
    engine,
    metadata,
    where,
    wrr,
)
from rota.selector.ewma import EwmaNode
from rota.selector.node import DoneInfo
from tests.conftest import PICKERS

LOADED = ("LeastRequest", "PeakEwma")


@pytest.fixture(params=LOADED)
def loaded_name(request):
    """The class name of each picker by load."""
    return request.param


# -- half made --------------------------------------------------------------------------------

HALF_MADE = """
import gc, sys
from importlib import import_module

Made = getattr(import_module(f"rota.kernels.{sys.argv[1]}"), sys.argv[2])
found = 0

def poke():
    global found
    for each in gc.get_objects():
        if type(each) is Made:
            found += 1
            for name in ("pick", "select", "acquire", "attempts", "__reduce__", "_reseed"):
                try:
                    getattr(each, name, list)()
                except Exception:
                    pass
            each.pick_many(50), [each.add(k, k) for k in range(20)], each.update(range(50))
    return 0

class Number:
    __index__ = __float__ = lambda self: poke()

def instances():
    poke()
    yield from range(5)

def clock():
    return float(poke())

for arguments, options in [
    ((instances(),), {}),
    ((range(5), [Number()] * 5), {}),
    ((range(5),), {"seed": Number()}),
    ((range(5),), {"start": Number()}),
    ((range(5),), {"clock": clock}),
    ((range(5),), {"decay": Number()}),
]:
    try:
        picker = Made(*arguments, **options)
    except (TypeError, ValueError):  # no such option; no such duration
        continue
    for k in range(40):
        picker.add(k)
    picker.pick_many(3000)
    assert gc.is_tracked(picker)
    del picker
    gc.collect()
print(found)
"""


@pytest.mark.parametrize(("stem", "name"), PICKERS.items())
def test_what_is_half_made_is_found_by_nobody(stem, name):
    """Reading arguments may run anything, and the garbage collector lists all that there is."""
    done = subprocess.run(
        [sys.executable, "-c", HALF_MADE, stem, name],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0\n"


# -- the way through a selector ---------------------------------------------------------------


@pytest.fixture
def bare(impl):
    """Return a function that makes a selection which selects what it is given."""

    def make(selected, groups=None):
        made = impl.selection.Selection()
        made._select = lambda: selected
        made._is_keyed = False
        made._version = None
        made._groups = {} if groups is None else groups
        made._peers = rota.selector.peer
        return made

    return make


@pytest.mark.parametrize("selected", [(), [], (1,), [1, 2], (1, 2, 3), 5, "ab", {}, object()])
def test_what_is_no_selection_is_refused(bare, selected):
    """Also where a peer is to be told the first of it."""
    for context in (Peer(), threading.Lock()):
        with context, pytest.raises(TypeError, match=r"select must return \(instance, done\)"):
            bare(selected).select()


@pytest.mark.parametrize("group", [5, (), (None,), (None, 1), [None, 1, 2], (1, 2, 3, 4), None])
def test_groups_that_are_none_are_not_known(impl, bare, group):
    class Own(impl.selection.Selection):
        def _find(self, filters, exclude, key):
            return "found", filters

    made = bare(("all", "done"))
    own = Own()
    for name in ("_select", "_is_keyed", "_version", "_peers"):
        setattr(own, name, getattr(made, name))
    own._groups = {("filter",): group}
    assert own.select(filters=("filter",)) == ("found", ("filter",))


def test_a_selector_is_not_copied(impl):
    """A copy would have the fleet of the original, and instances of its own."""
    for made in (impl.selection.Selection(), wrr().build()):
        for how in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="a selector cannot be copied"):
                how(made)
    # Cython's own way to make one of a state would not have looked at its length.
    assert not hasattr(impl.selection, "__pyx_unpickle_Selection")


# -- pickers by load --------------------------------------------------------------------------


def test_some_of_what_is_not_made_of_instances(kernels):
    """The base of the pickers by load takes no instances; some of these were looked for, for
    ever."""

    class Own(kernels.two_choices.TwoChoices):
        def __new__(cls, *arguments, **options):
            return super().__new__(cls)

        def __init__(self, *arguments, **options):
            pass

    class Single(Own):
        def __new__(cls, *arguments, **options):
            cls.only = getattr(cls, "only", None) or super().__new__(cls)
            return cls.only

    for kind in (kernels.two_choices.TwoChoices, Own, Single):
        picker = kind()
        picker.add("a"), picker.add("b")
        with pytest.raises(TypeError, match="is not made of instances"):
            picker.among([1, 0])
        assert picker.acquire().instance in "ab"


def test_a_clock_that_always_changes_the_picker(impl):
    """Some of the instances are had all the same."""
    picker = None

    def clock():
        if picker is not None:
            picker.add("more")
        return 0.0

    picker = impl.PeakEwma(["a", "b"], seed=1, clock=clock)
    part = picker.among([1])
    assert picker.instances == ("a", "b")
    node, done = part.select()
    done()
    assert node == "b"
    assert len(picker) == 4


def test_a_copy_of_some_has_a_load_for_each_index(impl, loaded_name):
    whole = getattr(impl, loaded_name)(["a", "b"], seed=1)
    part = whole.among([0, 0, 1])
    twin = copy.copy(part)
    lease = twin.acquire()
    assert twin.loads.sum() == 1
    lease.release()
    lease = part.acquire()  # here both have one load
    assert part.loads.sum() == (1 if lease.index == 2 else 2)


def test_states_of_nonsense_are_refused(kernels):
    """Numbers that no latency, no time and no logarithm can be."""
    import struct

    def bits(x):
        return struct.unpack("q", struct.pack("d", x))[0]

    picker, untouched = (
        kernels.PeakEwma(["a", "b", "c"], seed=1, clock=lambda: 7.0) for _ in range(2)
    )
    for each in (picker, untouched):
        each.acquire().done(0.5)
    _, (_, _, _, _, state) = picker.__reduce__()
    random, vacant, parts, is_unseeded = state
    nonsense = [float("nan"), float("inf"), -float("inf"), 1e300, -1e300, -1.0, 3e9]
    for place in (4, 5, 6):
        for x in nonsense:
            bad = [*parts]
            bad[place] = [bits(x), *parts[place][1:]]
            with pytest.raises(ValueError, match="state must have"):
                picker._restore((random, vacant, tuple(bad), is_unseeded))
    for place, values in ((1, [*nonsense[:5], 3e9]), (2, [*nonsense[:6]])):
        for x in values:
            bad = [*parts]
            bad[7] = [*parts[7]]
            bad[7][place] = bits(x)
            with pytest.raises(ValueError, match="state must have"):
                picker._restore((random, vacant, tuple(bad), is_unseeded))
    assert repr(picker.latencies) == repr(untouched.latencies)
    assert picker.pick_many(200) == untouched.pick_many(200)


@pytest.mark.parametrize("name", ["LeastRequest", "PeakEwma"])
def test_a_part_of_nobody_is_not_updated(impl, name):
    part = getattr(impl, name)(["a"]).among([])
    with pytest.raises(TypeError, match="a picker among others cannot be changed"):
        part.update([])


def test_a_part_is_not_restored(kernels, loaded_name):
    """What it would be given is the whole's."""
    whole = getattr(kernels, loaded_name)(["a", "b", "c"], seed=1)
    part = whole.among([0, 1])
    _, (*_, state) = copy.copy(part).__reduce__()
    with pytest.raises(TypeError, match="a picker among others cannot be changed"):
        part._restore(state)


def test_no_memory_for_a_copy_changes_nothing(kernels, loaded_name):
    """Where its draws are read there is a moment when they are not where they belong."""
    testcapi = pytest.importorskip("_testcapi")
    kind = getattr(kernels, loaded_name)
    for start in range(200):
        picker, untouched = (kind(range(20), seed=1) for _ in range(2))
        for each in (picker, untouched):
            each.pick_many(7)
        testcapi.set_nomemory(start, start + 1)
        try:
            picker.__reduce__()
            is_done = True
        except MemoryError:
            is_done = False
        finally:
            testcapi.remove_mem_hooks()
        assert picker.pick_many(100) == untouched.pick_many(100)
        if is_done and start > 40:
            break


@pytest.mark.parametrize("n_open", [1, 2])
def test_a_call_ended_from_c_of_who_has_left(kernels, loaded_name, n_open):
    """Its load is with the leases that are open, and the index has none."""

    def function(name, result, *arguments):
        capsule = kernels.two_choices.__pyx_capi__[name]
        api = ctypes.pythonapi
        api.PyCapsule_GetName.restype = ctypes.c_char_p
        api.PyCapsule_GetName.argtypes = [ctypes.py_object]
        api.PyCapsule_GetPointer.restype = ctypes.c_void_p
        api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
        address = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
        return ctypes.PYFUNCTYPE(result, *arguments)(address)

    acquire = function("two_choices_acquire", ctypes.c_int32, ctypes.py_object)
    release = function("two_choices_release", None, ctypes.py_object, ctypes.c_int32)
    picker = getattr(kernels, loaded_name)(["a"], seed=1)
    leases = [picker.acquire() for _ in range(n_open)]
    assert acquire(picker) == 0
    picker.remove(0)
    for i in (-1, 0, 0, 1, 2**31 - 1):
        release(picker, i)
    assert picker.add("b") == 0
    del leases
    assert picker.loads.tolist() == [0]


# -- selectors --------------------------------------------------------------------------------


def addresses(selector, n=20, **arguments):
    return {selector.select(**arguments)[0].address for _ in range(n)}


def test_two_of_one_identity_are_two(impl):
    """A filter that is asked every time may let either pass."""
    for builder in (wrr(), wrr("kratos"), engine(rota.PeakEwma)):
        selector = builder.build()
        selector.apply([Instance("a", version=f"v{k}") for k in range(3)])
        for _ in range(2):
            for k in range(3):
                chain = (where(lambda node, k=k: node.version == f"v{k}"),)
                for _ in range(3):
                    assert selector.select(filters=chain)[0].version == f"v{k}"
            selector.apply([Instance("a", 5, version=f"v{k}") for k in range(3)])


def test_tags_that_nobody_has_are_not_kept():
    """What a request asks for may be anything; the index does not grow with it."""
    selector = wrr().build()
    selector.apply([Instance(f"a{k}", tags={"zone": "x"}) for k in range(3)])
    for k in range(100):
        with pytest.raises(NoAvailableInstance):
            selector.select(filters=(metadata(f"key {k}", "x"),))
    assert len(addresses(selector, filters=(metadata("zone", "x"),))) == 3
    assert len(selector._index._places) == 1


@pytest.mark.parametrize("given", [None, 5])
def test_a_filter_that_returns_nothing(given):
    selector = wrr().build()
    selector.apply([Instance("a")])
    with pytest.raises(TypeError, match=r"filters must return some of their nodes, .* gave"):
        selector.select(filters=(lambda nodes: given,))


def test_a_refusal_asks_each_filter_once():
    selector = wrr().build()
    selector.apply([Instance("a", 0), Instance("b", 0)])
    asked = []

    def each(nodes):
        asked.append(len(nodes))
        return nodes[1:]

    with pytest.raises(NoAvailableInstance, match=r"left 1; .* left 0"):
        selector.select(filters=(each, each))
    assert asked == [2, 1] * 2  # to select, and to say why not


def test_an_engine_of_any_callable():
    """A partial has no name."""
    selector = engine(functools.partial(rota.PeakEwma, decay=1.0)).build()
    selector.apply([Instance("a")])
    assert "PeakEwma" in repr(selector)
    assert addresses(selector) == {"a"}


class Own:
    """A picker of the user's own, with reports that are plain functions."""

    def __init__(self, instances, weights):
        self.instances, self.reports = tuple(instances), []

    def update(self, instances, weights):
        self.instances = tuple(instances)

    def select(self):
        return (self.instances[0], self.done) if self.instances else None

    def done(self, info=None, *, err=None):
        self.reports.append(err)


def test_excluding_beside_a_picker_of_ones_own():
    """What was selected in vain is reported as called off."""
    selector = engine(Own).build()
    selector.apply([Instance("a"), Instance("b")])
    assert addresses(selector, 1, exclude=[Instance("a")]) == {"b"}
    assert selector.picker.reports
    assert all(isinstance(each, CancelledError) for each in selector.picker.reports)


def test_excluding_by_key_goes_around_as_far_as_it_must():
    """Also where many names on the ring have one identity."""
    selector = engine(rota.ConsistentHash).build()
    same = [Instance("a", hash_key=f"name {k}") for k in range(30)]
    others = [Instance("b"), Instance("c")]
    selector.apply(same + others)
    for key in range(50):
        first = selector.select(key=key, exclude=same[:1])[0]
        assert first in others
        second = selector.select(key=key, exclude=[first, same[0]])[0]
        assert {first, second} == set(others)
        with pytest.raises(NoAvailableInstance):
            selector.select(key=key, exclude=[*others, same[3]])


def test_a_filter_that_always_applies_other_instances():
    selector = wrr().build()
    selector.apply([Instance("a")])
    numbers = itertools.count()

    def meddler(nodes):
        selector.apply([Instance(f"a{next(numbers)}")])
        return nodes

    for arguments in ({}, {"exclude": [Instance("x")]}):
        with pytest.raises(RuntimeError, match="filters must not apply other instances"):
            selector.select(filters=(meddler,), **arguments)
    assert len(addresses(selector)) == 1


def test_applying_within_applying():
    """Whoever is let go, or built, cannot apply others: half of two lists is none."""
    refused = []

    class Last(Instance):
        def __del__(self):
            try:
                selector.apply([Instance("inner")])
            except RuntimeError as error:
                refused.append(str(error))

    selector = wrr().build()
    selector.apply([Last("old")])
    selector.apply([Instance("new")])
    gc.collect()
    assert refused == ["instances cannot be applied from within apply"]
    assert addresses(selector) == {"new"}

    class Builder:
        def build(self, instance):
            selector.apply([Instance("inner")])

    selector = Selector(BuilderOf(KratosWRR), Builder())
    with pytest.raises(RuntimeError, match="from within apply"):
        selector.apply([Instance("new")])
    assert selector.nodes == ()


def test_after_an_error_the_list_of_before_is_applied_again():
    """It is the one that is known, and may not be the one that is in force."""

    class Torn(Own):
        is_failing = False

        def update(self, instances, weights):
            super().update(instances, weights)
            if self.is_failing:
                raise KeyboardInterrupt

    selector = engine(Torn).build()
    selector.apply([Instance("a")])
    selector.picker.is_failing = True
    with pytest.raises(KeyboardInterrupt):
        selector.apply([Instance("b")])
    selector.picker.is_failing = False
    selector.apply([Instance("a")])
    assert addresses(selector) == {"a"}


class Node:
    """A node of the user's own."""

    def __init__(self, instance):
        self.raw, self.weighs = instance, 1.0

    def weight(self):
        return self.weighs

    def pick(self):
        return lambda info: None

    def pick_elapsed(self):
        return 0.0


def test_one_node_for_two_instances():
    """Its weight is that of both places in the picker."""

    class Builder:
        def __init__(self):
            self.nodes = {}

        def build(self, instance):
            return self.nodes.setdefault(instance.address, Node(instance))

    nodes = Builder()
    selector = Selector(Engine(rota.WeightedRoundRobin), nodes)
    selector.apply([Instance("a"), Instance("a"), Instance("b")])
    assert addresses(selector) == {"a", "b"}
    nodes.nodes["a"].weighs = 0.0
    assert addresses(selector) == {"b"}


def test_a_weight_that_could_not_be_set_is_set_later():
    """Of the weights that changed, those before it are known to have."""

    class Stubborn:
        def __init__(self, instances, weights):
            self.inner = rota.WeightedRoundRobin(instances, weights)
            self.n_left = 1

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def set_weight(self, index, weight):
            if index == 1 and self.n_left:
                self.n_left = 0
                raise MemoryError
            self.inner.set_weight(index, weight)

    class Builder:
        def build(self, instance):
            return Node(instance)

    selector = Selector(Engine(Stubborn), Builder())
    selector.apply([Instance("a"), Instance("b")])
    assert addresses(selector) == {"a", "b"}
    one, other = selector._fleet.nodes
    one.weighs = other.weighs = 0.25
    with pytest.raises(MemoryError):
        selector.select()
    one.weighs, other.weighs = 1.0, 1.0
    picks = [selector.select()[0].address for _ in range(20)]
    assert picks.count("a") == picks.count("b")


def test_a_report_within_a_report():
    """A handler of a signal may come at any moment, and is not kept waiting."""
    from rota.selector.fleet import Once

    reports = []
    once = Once(reports.append)

    def trace(frame, event, arg):
        if event == "line" and frame.f_code is Once.__call__.__code__:
            sys.settrace(None)
            frame.f_trace = None
            once(err=KeyError())
        return trace

    sys.settrace(trace)
    try:
        once(err=OSError())
    finally:
        sys.settrace(None)
    assert len(reports) == 1


def test_a_clock_that_fails_leaves_no_call_in_flight():
    times = [0, 10]
    node = EwmaNode(Instance("a"), clock=lambda: times.pop(0))
    first, second = node.pick(), node.pick()
    assert node.in_flight == 3
    for done in (first, second):
        with pytest.raises(IndexError):
            done(DoneInfo())
        done(DoneInfo())
    assert (node.in_flight, node.n_slots_used) == (1, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_in_the_middle_of_a_draw():
    """Its lock is nobody's in the child."""
    inside, go = threading.Event(), threading.Event()
    balancer = KratosP2C()
    draw = balancer._draw

    def slow(n):
        inside.set()
        go.wait(10)
        return draw(n)

    balancer._draw = slow
    nodes = [Direct().build(Instance(address)) for address in "ab"]
    thread = threading.Thread(target=balancer.pick, args=(nodes,))
    thread.start()
    inside.wait(10)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            own = threading.Thread(target=balancer.pick, args=(nodes,), daemon=True)
            own.start()
            own.join(10)
            status = int(own.is_alive())
        finally:
            os._exit(status)
    go.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_classify_that_fails_ends_both_reports():
    """Of a node's call, what the engine's picker and what the node makes of it."""

    def classify(error):
        raise ZeroDivisionError

    selector = Selector(Engine(rota.PeakEwma, classify=classify), Ewma())
    selector.apply([Instance("a")])
    _, done = selector.select()
    with pytest.raises(ZeroDivisionError):
        done(err=OSError())
    assert selector._fleet.nodes[0].in_flight == 1


NO_MEMORY = """
import copy, sys, _testcapi
import rota

Kind = getattr(rota, sys.argv[1])
picker = Kind(list("abcdefgh"), [3, 1, 4, 1, 5, 0, 2, 6], seed=1)
arguments = {"weights": [3, 1, 4, 1, 5, 0, 2, 6], "seed": 2**40}
held = []
for start in range(150):
    held += [(start, i) for i in range(3000)]  # no tuple is left to be used again
    for call in (lambda: copy.copy(picker), lambda: Kind.__new__(Kind, range(8), **arguments)):
        for stop in (start + 1, 0):
            _testcapi.set_nomemory(start, stop)
            try:
                call()
            except (MemoryError, RuntimeError, SystemError):
                pass  # numpy and threading have words of their own for it
            finally:
                _testcapi.remove_mem_hooks()
"""


@pytest.mark.parametrize("name", ["WeightedRandom", "PeakEwma", "RoundRobin"])
def test_no_memory_for_the_names_of_arguments(kernels, name):
    """They were let go before they were there: a crash."""
    pytest.importorskip("_testcapi")
    done = subprocess.run(
        [sys.executable, "-c", NO_MEMORY, name], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
