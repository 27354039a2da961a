"""What all hash pickers share: the contract, on both pickers of both implementations."""

import copy
import gc
import pickle
import random
import sys
import threading
import weakref

import numpy as np
import pytest

import rota

NAMES = [f"10.0.0.{i}:80" for i in range(8)]
WEIGHTS = [1, 2, 0, 1, 3, 1, 0, 2]
LIVE = {name for name, weight in zip(NAMES, WEIGHTS, strict=True) if weight}
KEYS = [f"user:{i}" for i in range(300)]


# -- the doors agree ------------------------------------------------------------------------


def test_every_door_gives_the_same_owner(make_hash, impl):
    picker = make_hash(NAMES, WEIGHTS)
    owners = [picker.pick(key) for key in KEYS]
    assert picker.pick_many(KEYS) == owners
    assert picker.pick_many(iter(KEYS)) == owners
    assert [NAMES[picker.pick_index(key)] for key in KEYS] == owners
    assert [picker.next("ctx", key) for key in KEYS] == owners
    assert [picker.pick_n(key, 1)[0] for key in KEYS] == owners
    assert [picker.attempts(None, key).next() for key in KEYS] == owners
    places = np.array([impl.murmur3.key_hash(key) for key in KEYS], np.uint64)
    out = np.empty(len(KEYS), np.int32)
    picker.indices(places, out)
    assert [NAMES[i] for i in out] == owners
    assert set(owners) == LIVE


def test_an_owner_is_an_owner_for_all_kinds_of_keys(make_hash):
    picker = make_hash(NAMES)
    for text in ("a", "Grüße", "x" * 1000):
        data = text.encode()
        owner = picker.pick(text)
        assert picker.pick(data) == picker.pick(bytearray(data)) == owner
        assert picker.pick(memoryview(data)) == owner
    assert picker.pick(97) == picker.pick(b"a" + bytes(7))
    assert picker.pick("") in NAMES
    assert picker.pick(bytes(10**7)) in NAMES


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (None, TypeError),
        (1.5, TypeError),
        ([], TypeError),
        (2**64, ValueError),
        ("\ud800", ValueError),
    ],
)
def test_what_can_be_no_key(make_hash, key, error):
    picker = make_hash(NAMES)
    for door in (picker.pick, picker.pick_index, picker.acquire, lambda k: picker.pick_n(k, 2)):
        with pytest.raises(error):
            door(key)
    with pytest.raises(error):
        picker.pick_many(["good", key])
    assert picker.loads.sum() == 0


# -- nothing to pick ------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [[], [0], [0, 0, 0]])
def test_nothing_with_weight_gives_none(make_hash, weights):
    picker = make_hash(NAMES[: len(weights)], weights, load_factor=1.25)
    out = np.zeros(1, np.int32)
    picker.indices(np.zeros(1, np.uint64), out)
    assert out.tolist() == [-1]
    assert picker.pick("k") is None
    assert picker.pick_index("k") is None
    assert picker.pick_many(["k", "l"]) == [None, None]
    assert picker.pick_n("k", 3) == []
    assert picker.acquire("k") is None
    assert list(picker.attempts(None, "k")) == []
    assert picker.next(None, "k") is None


def test_one_instance_owns_everything(make_hash):
    picker = make_hash(["only"], [5])
    assert set(picker.pick_many(KEYS)) == {"only"}
    assert picker.pick_n("k", 10) == ["only"]


# -- requests and replicas ------------------------------------------------------------------


def test_an_empty_key_gives_none(make_hash):
    picker = make_hash(NAMES)
    for empty in (None, "", b""):
        assert picker.next(None, empty) is None
        assert picker.attempts(None, empty).next() is None
    assert picker.next(None, 0) in NAMES  # a key like others


def test_get_key_makes_the_key(make_hash):
    picker = make_hash(NAMES, get_key=lambda ctx, request: request["user"] + ctx)
    assert picker.next("1", {"user": "user:"}) == picker.pick("user:1")
    assert picker.attempts("1", {"user": "user:"}).next() == picker.pick("user:1")


def test_a_failing_get_key_comes_through_and_changes_nothing(make_hash):
    picker = make_hash(NAMES, get_key=lambda ctx, request: request["user"], load_factor=1.25)
    before = picker.pick_many(KEYS)
    for door in (picker.next, picker.attempts):
        with pytest.raises(KeyError, match="user"):
            door(None, {})
    assert picker.pick_many(KEYS) == before
    assert picker.loads.sum() == 0
    with pytest.raises(TypeError, match="get_key"):
        make_hash(NAMES, get_key="user")


def test_replicas_are_distinct_complete_and_in_order(make_hash):
    picker = make_hash(NAMES, WEIGHTS)
    for key in KEYS:
        walked = picker.pick_n(key, 100)
        assert sorted(walked) == sorted(LIVE)
        for n in range(len(LIVE) + 1):
            assert picker.pick_n(key, n) == walked[:n]
        attempts = picker.attempts(None, key)
        assert list(attempts) == walked
        assert attempts.next() is None


def test_as_many_attempts_as_replicas_allow(make_hash):
    for replicas in (0, 1, 3):
        picker = make_hash(NAMES, replicas=replicas)
        assert list(picker.attempts(None, "k")) == picker.pick_n("k", replicas + 1)
    for bad, error in ((-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="replicas"):
            make_hash(NAMES, replicas=bad)


def test_attempts_know_instances_not_indices(make_hash):
    picker = make_hash(["a", "b", "c"])
    attempts = picker.attempts(None, "k")
    tried = [attempts.next(), attempts.next()]
    for name in tried:
        picker.remove(picker.index_of(name))
    (left,) = {"a", "b", "c"} - set(tried)
    picker.add("new")
    picker.add(tried[0])
    assert sorted(attempts) == sorted([left, "new"])


def test_attempts_survive_changes(make_hash):
    picker = make_hash(NAMES)
    attempts = picker.attempts(None, "k")
    first = attempts.next()
    for name in NAMES[:4]:
        if name != first:
            picker.remove(picker.index_of(name))
    picker.add("10.0.0.99:80", 5)
    rest = list(attempts)
    assert len(set(rest)) == len(rest)
    assert first not in rest
    assert set(rest) <= {i for i in picker.instances if i is not None}


# -- changes --------------------------------------------------------------------------------


def test_indices_stay_and_are_given_out_again(make_hash):
    picker = make_hash(["a", "b", "c"])
    assert picker.index_of("b") == picker.index_of(b"b") == 1
    picker.remove(1)
    assert picker.instances == ("a", None, "c")
    assert picker.weights.tolist() == [1, 0, 1]
    assert len(picker) == 2
    assert picker.index_of("b") is None
    assert picker.add("d", 4) == 1
    assert picker.add("e") == 3
    assert picker.instances == ("a", "d", "c", "e")
    assert picker.weights.tolist() == [1, 4, 1, 1]
    assert repr(picker).endswith("(4 instances, total weight 7)")


def test_the_next_pick_obeys(make_hash):
    picker = make_hash(NAMES)
    owner = picker.pick("k")
    i = picker.index_of(owner)
    picker.set_weight(i, 0)
    assert picker.pick("k") != owner
    picker.set_weight(i, 1)
    assert picker.pick("k") == owner
    picker.remove(i)
    assert picker.pick("k") != owner
    picker.add(owner)
    assert picker.pick("k") == owner


def test_one_grows_while_another_shrinks(make_hash):
    picker = make_hash(["a", "b"], [1, 1000])
    for weights in ([1000, 1], [1, 1000], [1000, 1]):
        picker.update(["a", "b"], weights)
        assert picker.pick_many(KEYS) == make_hash(["a", "b"], weights).pick_many(KEYS)
    names = [f"h{i}" for i in range(20)]
    picker = make_hash(names, [10, 100] * 10)
    picker.update(names, [100, 10] * 10)
    assert picker.pick_many(KEYS) == make_hash(names, [100, 10] * 10).pick_many(KEYS)


def test_the_heaviest_may_give_way_to_another(kernels):
    picker = kernels.ConsistentHash(["a"], [2**63 - 1], weighted=False)
    picker.update(["b"], [2**63 - 1])
    picker.set_weight(picker.index_of("b"), 5)
    assert picker.pick("k") == "b"
    assert repr(picker).endswith("total weight 5)")


def test_many_threads_change_one_picker(make_hash, impl):
    picker, errors = make_hash([]), []
    n_rounds = 60 if impl.name == "kernels" else 5

    def change(k):
        try:
            for i in range(n_rounds):
                own = [picker.add(f"{k}-{i}-{j}", 1 + j) for j in range(3)]
                picker.set_weight(own[0], 7)
                picker.remove(own[1])
                if i % 2:
                    picker.remove(own[0])
                copy.copy(picker)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=change, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    present = [(n, int(w)) for n, w in zip(picker.instances, picker.weights, strict=True) if n]
    fresh = make_hash([n for n, _ in present], [w for _, w in present])
    assert picker.pick_many(KEYS) == fresh.pick_many(KEYS)


def test_a_change_from_within_a_change_is_refused(kernels, hash_picker_name):
    """A name function stands for whatever Python may run inside: finalizers, GC callbacks."""
    picker = None
    refused = []

    def name(instance):
        if picker is not None:
            try:
                picker.set_weight(0, 5)
            except RuntimeError as error:
                refused.append(str(error))
        return instance

    picker = getattr(kernels, hash_picker_name)(["a", "b"], name=name)
    picker.add("c")
    assert refused == ["a picker cannot be changed from within its own change"]
    picker.set_weight(0, 2)
    assert picker.weights.tolist() == [2, 1, 1]


def test_another_object_in_the_place_of_one(make_hash):
    old = [rota.Instance(name) for name in NAMES]
    new = rota.Instance(NAMES[2], tags={"zone": "b"})
    picker = make_hash(old, [5] * 8, load_factor=1.25)
    owners = [picker.pick_index(key) for key in KEYS]
    attempts = picker.attempts(None, KEYS[owners.index(2)])
    assert attempts.next() is old[2]
    lease = picker.acquire(KEYS[owners.index(2)])
    assert lease.instance is old[2]
    loads = picker.loads.tolist()
    picker.replace(2, new)
    assert picker.instances[2] is new
    assert picker.weights.tolist() == [5] * 8
    assert picker.loads.tolist() == loads
    assert picker.index_of(NAMES[2]) == 2
    assert new not in attempts  # it has been tried
    assert lease.instance is old[2]
    lease.release()
    assert picker.loads.sum() == 0
    assert [picker.pick_index(key) for key in KEYS] == owners
    assert picker.pick(KEYS[owners.index(2)]) is new
    duplicate = copy.copy(picker)
    assert new in duplicate.instances


def test_update_keeps_who_stays(make_hash):
    picker = make_hash(["a", "b", "c"], [1, 2, 3])
    lease = next(lease for key in KEYS if (lease := picker.acquire(key)).instance == "c")
    picker.update(["d", "c", "a"], [7, 5, 1])
    assert picker.index_of("a") == 0
    assert picker.index_of("c") == 2
    assert set(picker.instances) - {None} == {"a", "c", "d"}
    assert picker.weights[picker.index_of("c")] == 5
    assert picker.loads[2] == 1
    lease.release()
    assert picker.loads[2] == 0
    picker.update([])
    assert picker.pick("k") is None
    picker.update(["z"])
    assert picker.pick("k") == "z"


def test_a_picker_after_changes_is_a_picker_made_new(make_hash):
    rng = random.Random(3)
    picker = make_hash([])
    for _ in range(60):
        names = rng.sample(NAMES, rng.randrange(9))
        weights = [rng.randrange(4) for _ in names]
        picker.update(names, weights)
        fresh = make_hash(names, weights)
        assert picker.pick_many(KEYS) == fresh.pick_many(KEYS)
        assert picker.pick_n("k", 9) == fresh.pick_n("k", 9)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda p: p.set_weight(9, 1), ValueError, "index"),
        (lambda p: p.set_weight(-1, 1), ValueError, "index"),
        (lambda p: p.set_weight(2, 1), ValueError, "index"),
        (lambda p: p.set_weight("0", 1), TypeError, "index"),
        (lambda p: p.set_weight(0, -1), ValueError, "weight"),
        (lambda p: p.set_weight(0, 1.5), TypeError, "weight"),
        (lambda p: p.set_weight(0, 2**63), ValueError, "weight"),
        (lambda p: p.add("a"), ValueError, "'a'"),
        (lambda p: p.add("z", -1), ValueError, "weight"),
        (lambda p: p.add("z", "1"), TypeError, "weight"),
        (lambda p: p.add(5), TypeError, "name"),
        (lambda p: p.add("\ud800"), ValueError, "surrogates"),
        (lambda p: p.replace(0, "b"), ValueError, r"b'a', got b'b'"),
        (lambda p: p.replace(0, "z"), ValueError, "name"),
        (lambda p: p.replace(0, 5), TypeError, "name"),
        (lambda p: p.replace(2, "c"), ValueError, "index"),
        (lambda p: p.replace("0", "a"), TypeError, "index"),
        (lambda p: p.remove(2), ValueError, "index"),
        (lambda p: p.remove(7), ValueError, "index"),
        (lambda p: p.remove(None), TypeError, "index"),
        (lambda p: p.update(["x", "x"]), ValueError, "different names"),
        (lambda p: p.update(["x"], [1, 2]), ValueError, "weights"),
        (lambda p: p.update("xy"), TypeError, "instances"),
        (lambda p: p.update(["x", 5]), TypeError, "name"),
    ],
)
def test_bad_changes_change_nothing(make_hash, change, error, words):
    picker = make_hash(["a", "b", "c"], [1, 2, 3])
    picker.remove(2)
    before = picker.pick_many(KEYS)
    state = (picker.instances, picker.weights.tolist(), len(picker), repr(picker))
    with pytest.raises(error, match=words):
        change(picker)
    assert picker.pick_many(KEYS) == before
    assert (picker.instances, picker.weights.tolist(), len(picker), repr(picker)) == state


def test_a_view_of_the_weights_is_live_until_the_picker_grows(make_hash):
    picker = make_hash(["a", "b"])
    view = picker.weights
    picker.set_weight(0, 9)
    assert view.tolist() == [9, 1]
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    for i in range(40):
        picker.add(f"n{i}")
    picker.set_weight(1, 5)
    assert picker.weights.tolist() == [9, 5] + [1] * 40
    assert view.tolist()[0] == 9


# -- names ----------------------------------------------------------------------------------


def test_names_on_the_ring(make_hash):
    moved_house = rota.Instance("10.0.0.1:80", hash_key="db-0")
    by_address = rota.Instance("10.0.0.2:80")
    picker = make_hash([moved_house, by_address, "plain", b"bytes"])
    assert [picker.index_of(n) for n in ("db-0", "10.0.0.2:80", "plain", "bytes")] == [0, 1, 2, 3]
    other = make_hash([rota.Instance("[::1]:9", hash_key="db-0"), by_address, "plain", b"bytes"])
    assert [picker.pick_index(key) for key in KEYS] == [other.pick_index(key) for key in KEYS]
    named = make_hash([1, 2], name=lambda number: f"n{number}")
    assert named.index_of("n2") == 1
    assert make_hash(np.array([b"a", b"b"])).index_of("b") == 1
    for bad in ([1, 2], [None], [object()]):
        with pytest.raises(TypeError, match="name"):
            make_hash(bad)
    with pytest.raises(TypeError, match="name"):
        make_hash([1], name=lambda number: number)
    with pytest.raises(ValueError, match=r"b'a' at 0 and 2"):
        make_hash(["a", "b", b"a"])


# -- bounded loads --------------------------------------------------------------------------


@pytest.mark.parametrize("load_factor", [1, 1.25, 2.0])
def test_nobody_is_loaded_beyond_the_bound_and_everybody_is_served(make_hash, load_factor):
    rng = random.Random(1)
    picker = make_hash(NAMES, WEIGHTS, load_factor=load_factor)
    leases = []
    for step in range(600):
        lease = picker.acquire(rng.choice(KEYS[:5]))  # few keys: they would crowd together
        assert lease is not None
        leases.append(lease)
        total, loads = len(leases), picker.loads
        assert loads.sum() == total
        for i, weight in enumerate(WEIGHTS):
            # Full means load >= c * (all + 1) * w / W at the moment of the pick.
            assert loads[i] <= load_factor * total * weight / sum(WEIGHTS) + 1
        if step % 3 == 2:
            leases.pop(rng.randrange(len(leases))).release()


def test_without_load_the_owner_is_picked_and_a_full_one_is_passed(make_hash):
    picker, plain = make_hash(NAMES, load_factor=1.25), make_hash(NAMES)
    assert picker.pick_many(KEYS) == plain.pick_many(KEYS)
    first, second = plain.pick_n("k", 2)
    with picker.acquire("k") as instance:
        assert instance == first
        assert picker.pick("k") == second
        assert picker.next(None, "k") == second
        assert picker.attempts(None, "k").next() == second
        assert picker.pick_n("k", 2) == [first, second]  # replicas are who they are
    assert picker.pick("k") == first


def test_a_lease_ends_once(make_hash):
    picker = make_hash(NAMES, load_factor=1.25)
    lease, other = picker.acquire("k"), picker.acquire("l")
    assert picker.loads.sum() == 2
    lease.release()
    lease.release()
    assert picker.loads.sum() == 1
    del other
    gc.collect()
    assert picker.loads.sum() == 0
    lease = picker.acquire("k")
    with pytest.raises(RuntimeError, match="mine"), lease:
        raise RuntimeError("mine")
    assert picker.loads.sum() == 0


def test_a_lease_cannot_be_copied(make_hash):
    picker = make_hash(NAMES, load_factor=1.25)
    lease = picker.acquire("k")
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="lease"):
            duplicate(lease)
    assert picker.loads.sum() == 1
    lease.release()
    assert picker.loads.sum() == 0


def test_a_lease_of_one_who_left_counts_for_nobody(make_hash):
    picker = make_hash(["a"], load_factor=1.25)
    lease = picker.acquire("k")
    picker.remove(lease.index)
    assert picker.loads.sum() == 0
    assert picker.add("b") == lease.index
    with picker.acquire("k") as instance:
        assert instance == "b"
        lease.release()
        assert picker.loads.tolist() == [1]
    assert picker.loads.tolist() == [0]


@pytest.mark.parametrize(
    ("load_factor", "error"),
    [
        (0.99, ValueError),
        (-1, ValueError),
        (float("nan"), ValueError),
        (1e9, ValueError),
        ("2", TypeError),
    ],
)
def test_bad_load_factors_are_refused(make_hash, load_factor, error):
    with pytest.raises(error, match="load_factor"):
        make_hash(NAMES, load_factor=load_factor)


# -- copies, refusals, memory ---------------------------------------------------------------


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))]
)
def test_a_duplicate_owns_the_same(make_hash, duplicate):
    picker = make_hash(NAMES, WEIGHTS, load_factor=1.5, replicas=2)
    picker.remove(4)
    other = duplicate(picker)
    assert other.pick_many(KEYS) == picker.pick_many(KEYS)
    assert list(other.attempts(None, "k")) == list(picker.attempts(None, "k"))


@pytest.mark.parametrize(
    ("hashes", "out", "error", "words"),
    [
        (np.zeros(3, np.int64), np.zeros(3, np.int32), TypeError, "hashes"),
        (np.zeros((3, 1), np.uint64), np.zeros(3, np.int32), ValueError, "hashes"),
        (np.zeros(3, np.uint64), np.zeros(2, np.int32), ValueError, "3 != 2"),
        (np.zeros(3, np.uint64), np.zeros(3, np.int64), TypeError, "out"),
        ("abc", np.zeros(3, np.int32), TypeError, "hashes"),
    ],
)
def test_bad_arrays_are_refused(make_hash, hashes, out, error, words):
    with pytest.raises(error, match=words):
        make_hash(NAMES).indices(hashes, out)


def test_bad_instances_and_weights_are_refused(make_hash):
    for instances in ("abc", 5, None):
        with pytest.raises(TypeError, match="instances"):
            make_hash(instances)
    for weights in ([1], [-1, 1], [1.5, 1], [2**63, 1]):
        with pytest.raises(ValueError, match="weights"):
            make_hash(["a", "b"], weights)


class Thing:
    def __init__(self, address):
        self.address = address


def test_references_and_garbage(make_hash):
    thing = Thing("a")
    before = sys.getrefcount(thing)
    picker = make_hash([thing, Thing("b")])
    picks = picker.pick_many(KEYS) + picker.pick_n("k", 2) + list(picker.attempts(None, "k"))
    leases = [picker.acquire(key) for key in KEYS]
    assert sys.getrefcount(thing) > before
    del picks, leases, picker
    gc.collect()
    assert sys.getrefcount(thing) == before
    thing.picker = make_hash([thing])
    thing.lease = thing.picker.acquire("k")
    watched = weakref.ref(thing)
    del thing
    gc.collect()
    assert watched() is None


def test_new_without_init(kernels, hash_picker_name):
    cls = getattr(kernels, hash_picker_name)
    with pytest.raises(TypeError):
        cls.__new__(cls)
    lease = kernels.hash_picker.Lease()
    lease.release()
    del lease


def test_threads_pick_while_the_picker_changes(make_hash):
    picker = make_hash(NAMES, load_factor=1.25)
    known = {*NAMES, *(f"n{k}" for k in range(50))}
    stop, errors = threading.Event(), []

    def pick():
        try:
            while not stop.is_set():
                for key in KEYS[:50]:
                    assert picker.pick(key) in known
                    with picker.acquire(key) as instance:
                        assert instance in known
                    assert len(set(picker.attempts(None, key))) > 0
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=pick) for _ in range(4)]
    for thread in threads:
        thread.start()
    for k in range(50):
        i = picker.add(f"n{k}", 1 + k % 3)
        picker.set_weight(i, k % 2)
        picker.update(NAMES[k % 4 :])
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    gc.collect()
    assert picker.loads.sum() == 0
