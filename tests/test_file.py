"""Services in a file: what publishers write, what readers see, and who is killed in between."""

import asyncio
import gc
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rota import Instance, Result
from rota.discovery import FileRegistry, FileResolver
from tests.threads import run_threads
from tests.watches import addresses, changed, eventually, following, threads_named, until, watching

POLL = 0.01
THREAD = "rota file resolver"


@pytest.fixture
def path(tmp_path):
    """Where no file is yet."""
    return tmp_path / "services.json"


def written(path, services):
    path.write_text(json.dumps(services))
    return path


def resolved(path, service):
    return FileResolver(path).resolve(service)


# What is published is found


def test_publish_withdraw_replace_delete(path):
    registry = FileRegistry(path)
    a, b = Instance("a:1", 5, service="users"), Instance("b:1", service="users")
    assert registry.publish("users", a, b).added == (a, b)
    assert resolved(path, "users") == Result(True, "users", (a, b))
    heavy = Instance("a:1", 9, tags={"zone": "z"}, service="users")
    change = registry.publish("users", heavy)
    assert (change.added, change.updated, change.removed) == ((), (heavy,), ())
    assert resolved(path, "users").instances == (heavy, b)
    assert registry.withdraw("users", "b:1", "unknown:1").removed == (b,)
    assert not registry.withdraw("other", "b:1")
    assert resolved(path, "users").instances == (heavy,)
    change = registry.replace("discovery:///users", iter([b, Instance("c:1")]))
    assert addresses(change.result) == ["b:1", "c:1"]
    assert change.removed == (heavy,)
    registry.publish("other", a)
    registry.delete("users")
    registry.delete("users")
    assert json.loads(path.read_text()) == {
        "other": [{"network": "tcp", "address": "a:1", "weight": 5, "service": "users"}]
    }
    registry.withdraw("other", "a:1")
    assert json.loads(path.read_text()) == {"other": []}


def test_copies_are_told_apart_by_network_and_address(path):
    registry = FileRegistry(path)
    registry.publish("s", Instance("x"), Instance("x", network="unix"), Instance("x", 3))
    assert [(i.network, i.weight) for i in resolved(path, "s").instances] == [
        ("tcp", 3),
        ("unix", None),
    ]
    registry.publish("s", Instance("x", 4, network="unix"))
    assert [i.weight for i in resolved(path, "s").instances] == [3, 4]
    registry.withdraw("s", "x")
    assert resolved(path, "s").instances == ()


def test_every_field_comes_back(path):
    whole = Instance(
        "[::1]:80",
        0,
        network="unix",
        scheme="grpc",
        service="other",
        version="2",
        tags={"zone": "é", "": '"\ud800'},
        hash_key="",
    )
    FileRegistry(path).publish("s", whole)
    assert resolved(path, "s").instances == (whole,)
    path.read_bytes().decode("ascii")


TEXTS = st.text(max_size=4)
INSTANCES = st.builds(
    Instance,
    st.sampled_from(["a:1", "b:1", "c:1", "ü"]),
    st.one_of(st.none(), st.integers(-1, 9)),
    network=st.sampled_from(["tcp", "unix", ""]),
    version=TEXTS,
    tags=st.dictionaries(TEXTS, TEXTS, max_size=2),
    hash_key=st.one_of(st.none(), TEXTS),
)
SERVICES = st.sampled_from(["s", "t"])
STEPS = st.one_of(
    st.tuples(st.just("publish"), SERVICES, st.lists(INSTANCES, max_size=3)),
    st.tuples(st.just("replace"), SERVICES, st.lists(INSTANCES, max_size=3)),
    st.tuples(st.just("withdraw"), SERVICES, st.lists(st.sampled_from(["a:1", "b:1", "ü"]))),
    st.tuples(st.just("delete"), SERVICES, st.none()),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(STEPS, max_size=8))
def test_the_file_is_what_a_dictionary_would_be(steps):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "services.json"
        registry, resolver = FileRegistry(path), FileResolver(path)
        registry.publish("first", Instance("a:1"))  # so that there is a file
        model = {"s": {}, "t": {}}
        for what, service, given_ in steps:
            known = model[service]
            if what == "delete":
                registry.delete(service)
                known.clear()
            elif what == "withdraw":
                registry.withdraw(service, *given_)
                model[service] = {k: i for k, i in known.items() if i.address not in given_}
            else:
                news = {(i.network or "tcp", i.address): i for i in given_}
                model[service] = known | news if what == "publish" else news
                if what == "publish":
                    registry.publish(service, *given_)
                else:
                    registry.replace(service, given_)
            for name, copies in model.items():
                found = resolver.resolve(name).instances
                assert [i.identity for i in found] == list(copies)
                for instance, copy in zip(found, copies.values(), strict=True):
                    for field in ("weight", "version", "tags", "hash_key"):
                        assert getattr(instance, field) == getattr(copy, field)


def test_what_others_wrote_stays(path):
    """Entries and fields that mean nothing to us, and all other services."""
    services = {
        "s": [{"address": "a:1", "owner": "ann"}, {"broken": True}, 5, {"address": "b:1"}],
        "t": [{"address": "c:1", "note": "by hand", "weight": "heavy"}],
    }
    written(path, services)
    registry = FileRegistry(path)
    assert not registry.publish("s", Instance("a:1", service="s"))  # it is so already
    assert json.loads(path.read_text()) == services
    registry.publish("s", Instance("b:1", 5))
    services["s"][3] = {"network": "tcp", "address": "b:1", "weight": 5}
    assert json.loads(path.read_text()) == services
    registry.withdraw("s", "a:1")
    del services["s"][0]
    registry.publish("u")
    services["u"] = []
    assert json.loads(path.read_text()) == services


def test_one_address_twice_is_one(path):
    """The first counts; who publishes or withdraws it means both."""
    twice = [{"address": "a:1", "weight": 1}, {"address": "a:1", "weight": 2}]
    written(path, {"s": twice})
    assert [i.weight for i in resolved(path, "s").instances] == [1]
    FileRegistry(path).publish("s", Instance("a:1", 3))
    assert len(json.loads(path.read_text())["s"]) == 1
    written(path, {"s": twice})
    FileRegistry(path).withdraw("s", "a:1")
    assert json.loads(path.read_text()) == {"s": []}


def test_a_change_that_changes_nothing_writes_nothing(path):
    registry = FileRegistry(path)
    registry.withdraw("s", "a:1")
    registry.delete("s")
    assert not path.exists()
    registry.publish("s", Instance("a:1"), Instance("b:1", 5, tags={"zone": "z"}))
    before = path.stat()
    registry.publish("s", Instance("b:1", 5, tags={"zone": "z"}))
    registry.replace("s", resolved(path, "s").instances)
    registry.withdraw("s", "c:1")
    registry.delete("t")
    assert path.stat() == before


def test_people_can_read_it(path):
    registry = FileRegistry(path)
    registry.publish("s", Instance("a:1", 5), Instance("b:1"))
    registry.publish("t")
    assert path.read_text() == (
        "{\n"
        '  "s": [\n'
        '    {"network": "tcp", "address": "a:1", "weight": 5},\n'
        '    {"network": "tcp", "address": "b:1"}\n'
        "  ],\n"
        '  "t": []\n'
        "}\n"
    )
    registry.delete("s")
    registry.delete("t")
    assert path.read_text() == "{}\n"
    assert resolved(path, "s") == Result(True, "s")


# Refusals


def test_bad_input_changes_nothing(path):
    registry = FileRegistry(path)
    registry.publish("s", Instance("a:1"))
    before = path.read_bytes(), path.stat()
    for call, error, name in (
        (lambda: registry.publish("s", Instance("b:1"), "c:1"), TypeError, "instances"),
        (lambda: registry.publish("s", Instance("b:1", tags={"x": object()})), TypeError, "'x'"),
        (lambda: registry.publish("s", Instance("b:1", tags={5: "x"})), TypeError, "key"),
        (lambda: registry.publish("", Instance("b:1")), ValueError, "endpoint"),
        (lambda: registry.publish(None, Instance("b:1")), TypeError, "endpoint"),
        (lambda: registry.replace("s", "b:1"), TypeError, "instances"),
        (lambda: registry.replace("s", 5), TypeError, "instances"),
        (lambda: registry.replace("s", [Instance("b:1"), None]), TypeError, "instances"),
        (lambda: registry.withdraw("s", "a:1", 5), TypeError, "addresses"),
        (lambda: registry.delete("x://s"), ValueError, "endpoint"),
    ):
        with pytest.raises(error, match=name):
            call()
        assert (path.read_bytes(), path.stat()) == before
    assert sorted(os.listdir(path.parent)) == [".services.json.lock", "services.json"]


@pytest.mark.parametrize(
    "content", ["[]", "5", '{"s": 5}', '{"s": {"address": "a:1"}}', "{", "\xff", "[" * 100_000]
)
def test_a_file_that_is_not_as_it_should_be_stays_as_it_is(path, content):
    path.write_bytes(content.encode("latin-1"))
    registry = FileRegistry(path)
    for change in (
        lambda: registry.publish("s", Instance("a:1")),
        lambda: registry.replace("s", []),
        lambda: registry.withdraw("s", "a:1"),
        lambda: registry.delete("s"),
    ):
        with pytest.raises(ValueError, match=r"services\.json"):
            change()
    assert path.read_bytes() == content.encode("latin-1")
    resolver = FileResolver(path)
    for _ in range(2):  # the second look does not read it again
        with pytest.raises(ValueError, match=r"services\.json"):
            resolver.resolve("s")


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_file_is_one_to_write_to_but_none_to_read(path, content):
    path.write_text(content)
    with pytest.raises(ValueError, match="is empty"):
        resolved(path, "s")
    FileRegistry(path).publish("s", Instance("a:1"))
    assert addresses(resolved(path, "s")) == ["a:1"]


def test_arguments_of_no_use():
    for made in (FileRegistry, FileResolver):
        with pytest.raises(TypeError, match="path"):
            made(5)
        with pytest.raises(TypeError, match="path"):
            made(b"services.json")
        with pytest.raises(ValueError, match="path"):
            made("")
    with pytest.raises(ValueError, match=r"JSON.*services\.toml"):
        FileRegistry("services.toml")
    for poll, error in ((0, ValueError), (-1, ValueError), ("1", TypeError), (True, TypeError)):
        with pytest.raises(error, match="poll"):
            FileResolver("services.json", poll=poll)
    for poll in (float("nan"), float("inf"), 10**400):
        with pytest.raises(ValueError, match="poll"):
            FileResolver("services.json", poll=poll)


def test_a_file_that_is_not_there_or_is_none(path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"services\.json"):
        resolved(path, "s")
    with pytest.raises(ValueError, match="must be a file"):
        resolved(tmp_path, "s")
    os.mkfifo(path)
    with pytest.raises(ValueError, match="must be a file"):  # it would wait for a writer
        resolved(path, "s")
    with pytest.raises(FileNotFoundError):
        FileRegistry(tmp_path / "no folder" / "x.json").publish("s", Instance("a:1"))


def test_without_flock_there_is_no_registry(path, monkeypatch):
    monkeypatch.setattr("rota.discovery.file.fcntl", None)
    with pytest.raises(RuntimeError, match=r"fcntl\.flock"):
        FileRegistry(path)


def test_a_disk_that_is_full(path):
    """Here: a limit to the size of files, in a process of its own."""
    registry = FileRegistry(path)
    registry.publish("s", Instance("a:1"))
    before = path.read_bytes()
    program = f"""
import resource, signal
from rota import Instance
from rota.discovery import FileRegistry
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    FileRegistry({str(path)!r}).publish("s", *[Instance(f"b:{{i}}") for i in range(1000)])
except OSError:
    print("refused")
"""
    assert run_program(program) == "refused\n"
    assert path.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == [".services.json.lock", "services.json"]


# The file as a file


def test_the_mode_stays(path):
    registry = FileRegistry(path)
    mask = os.umask(0o027)
    try:
        registry.publish("s", Instance("a:1"))
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        registry.publish("s", Instance("b:1"))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_stays(path):
    registry = FileRegistry(path)
    registry.publish("s", Instance("a:1"))
    os.chown(path, 1234, 4321)
    registry.publish("s", Instance("b:1"))
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


def test_a_link_stays_one(path, tmp_path):
    real = tmp_path / "elsewhere"
    real.mkdir()
    path.symlink_to("elsewhere/real.json")  # not there yet
    registry = FileRegistry(path)
    registry.publish("s", Instance("a:1"))
    registry.publish("s", Instance("b:1"))
    assert path.is_symlink()
    assert addresses(resolved(real / "real.json", "s")) == ["a:1", "b:1"]
    assert addresses(resolved(path, "s")) == ["a:1", "b:1"]
    assert sorted(os.listdir(real)) == [".real.json.lock", "real.json"]
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "services.json"]


def test_what_a_killed_publisher_left_is_no_hindrance(path, tmp_path):
    registry = FileRegistry(path)
    registry.publish("s", Instance("a:1"))
    other = tmp_path / "other"
    other.write_text("not to be touched")
    left = tmp_path / ".services.json.new"
    left.symlink_to(other)  # nor written through, if somebody means harm
    registry.publish("s", Instance("b:1"))
    assert addresses(resolved(path, "s")) == ["a:1", "b:1"]
    assert not left.is_symlink()
    assert not left.exists()
    assert other.read_text() == "not to be touched"


def run_program(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PUBLISH = """
import sys
from rota import Instance
from rota.discovery import FileRegistry
path, who, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
registry = FileRegistry(path)
for i in range(n):
    registry.publish("s", Instance(f"{who}:{i}", tags={"filler": "x" * 200}))
    if not i:
        print("begun", flush=True)
"""


def publisher(path, who, n):
    return subprocess.Popen(
        [sys.executable, "-c", PUBLISH, str(path), str(who), str(n)], stdout=subprocess.PIPE
    )


def test_nothing_is_lost_among_many_processes(path):
    """And while they publish, whoever reads finds a whole file, and never less than before."""
    publishers = [publisher(path, who, 25) for who in range(8)]
    try:
        for one in publishers:
            one.stdout.readline()
        resolver, seen, n_looks = FileResolver(path), set(), 0
        while any(one.poll() is None for one in publishers):
            json.loads(path.read_bytes())
            found = set(addresses(resolver.resolve("s")))
            assert seen <= found
            seen = found
            n_looks += 1
        assert [one.returncode for one in publishers] == [0] * 8
    finally:
        for one in publishers:
            one.kill()
            one.wait()
            one.stdout.close()
    assert n_looks > 0
    want = {f"{who}:{i}" for who in range(8) for i in range(25)}
    assert set(addresses(resolver.resolve("s"))) == want


def test_nothing_is_lost_among_many_threads(path):
    """Of one registry, and of several."""
    shared = FileRegistry(path)

    def publish(k):
        registry = shared if k % 2 else FileRegistry(path)
        for i in range(10):
            registry.publish("s", Instance(f"{k}:{i}"))

    run_threads(*[lambda k=k: publish(k) for k in range(6)])
    want = {f"{k}:{i}" for k in range(6) for i in range(10)}
    assert set(addresses(resolved(path, "s"))) == want


def test_publishers_that_are_killed_leave_a_whole_file(path):
    n_before = 0
    for i in range(6):
        one = publisher(path, i, 1_000_000)
        try:
            one.stdout.readline()
            time.sleep(0.03 * (i + 1))
        finally:
            one.kill()
            one.wait()
            one.stdout.close()
        found = addresses(resolved(path, "s"))
        assert len(found) > n_before  # nothing of those before is lost
        n_before = len(found)
        FileRegistry(path).publish("t", Instance(f"a:{i}"))  # the lock is free
        assert sorted(os.listdir(path.parent)) == [".services.json.lock", "services.json"]
    assert len(resolved(path, "t").instances) == 6


# What is read


def test_toml(tmp_path):
    path = tmp_path / "services.toml"
    path.write_text(
        """
[[users]]
address = "a:1"
weight = 5
tags = { zone = "z", rack = 7 }

[[users]]
address = "/run/b"
network = "unix"

[[orders]]
address = "c:1"
"""
    )
    resolver = FileResolver(path)
    assert resolver.resolve("users").instances == (
        Instance("a:1", 5, tags={"zone": "z", "rack": "7"}, service="users"),
        Instance("/run/b", network="unix", service="users"),
    )
    assert addresses(resolver.resolve("orders")) == ["c:1"]
    for broken in ("[[users]", "", "users = 5", "\xff"):
        path.write_bytes(broken.encode("latin-1"))
        with pytest.raises(ValueError, match=r"services\.toml"):
            resolver.resolve("users")
    path.write_bytes(b"\xef\xbb\xbf[[users]]\r\naddress = 'a:2'\r\n")
    assert addresses(resolver.resolve("users")) == ["a:2"]


def test_entries_of_no_use_are_skipped_and_told_of_once(path, caplog):
    bad = [{"address": ""}, {"weight": 5}, "a:1", None, {"address": "x:1", "weight": 1e9}]
    bad += [{"address": "x:1", "tags": {"a": []}}, {"address": "a:1"}]
    written(path, {"s": [{"address": "a:1"}, *bad, {"address": "b:1"}], "t": [5]})
    resolver = FileResolver(path)
    for _ in range(3):
        assert addresses(resolver.resolve("s")) == ["a:1", "b:1"]
        assert resolver.resolve("t").instances == ()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == len(bad) + 1
    assert all(str(path) in message for message in told)
    for i in range(len(bad)):
        assert any(f"s[{i + 1}] is skipped" in message for message in told)
    written(path, {"s": [{"address": "a:1"}, 5]})  # another thing is wrong with s[1]
    resolver.resolve("s")
    assert len(caplog.records) == len(told) + 1
    written(path, {"s": [{"address": "a:1"}]})
    resolver.resolve("s")
    written(path, {"s": [{"address": "a:1"}, 5]})  # it was well, and is not again
    resolver.resolve("s")
    assert len(caplog.records) == len(told) + 2


def test_who_handles_logs_may_look_too(path):
    resolver, seen = FileResolver(written(path, {"s": [{"address": "a:1"}, 5, 6]})), []

    class Looking(logging.Handler):
        def emit(self, record):
            seen.append(addresses(resolver.resolve("s")))

    handler = Looking()
    logging.getLogger("rota").addHandler(handler)
    try:
        resolver.resolve("s")
    finally:
        logging.getLogger("rota").removeHandler(handler)
    assert seen == [["a:1"]] * 2


def test_a_relative_path_is_that_of_the_beginning(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    registry, resolver = FileRegistry("services.json"), FileResolver("services.json")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    registry.publish("s", Instance("a:1"))
    assert addresses(resolver.resolve("s")) == ["a:1"]
    assert path.exists()


def test_what_has_not_changed_is_the_same_object(path):
    resolver, registry = FileResolver(path), FileRegistry(path)
    registry.publish("s", Instance("a:1", tags={"zone": "z"}), Instance("b:1"))
    registry.publish("t", Instance("a:1"))
    s, t = resolver.resolve("s"), resolver.resolve("t")
    assert resolver.resolve("s") is s
    registry.publish("s", Instance("b:1", 5))
    now = resolver.resolve("s")
    assert now.instances[0] is s.instances[0]
    assert now.instances[1] == Instance("b:1", 5, service="s")
    assert resolver.resolve("t") is t
    path.write_text(json.dumps(json.loads(path.read_text()), indent=8))
    assert resolver.resolve("s") is now
    assert resolver.resolve("unknown") == Result(True, "unknown")
    registry.delete("s")
    assert resolver.resolve("s") == Result(True, "s")


@pytest.mark.parametrize("is_coarse", [False, True])
def test_a_change_that_leaves_size_and_times_as_they_were(path, monkeypatch, is_coarse):
    """In place, so that the inode is the same, too: as often as one can.

    Where times are so fine that this shows, we look away: on many file systems it does not.
    """
    if is_coarse:
        monkeypatch.setattr("rota.discovery.file._stamp", lambda found: (found.st_ino,))
    written(path, {"s": [{"address": "a:0"}]})
    resolver = FileResolver(path)
    for i in range(200):
        before = path.stat()
        with path.open("r+b") as file:
            file.write(json.dumps({"s": [{"address": f"a:{i % 10}"}]}).encode())
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert addresses(resolver.resolve("s")) == [f"a:{i % 10}"]


def test_a_file_that_has_settled_is_read_once(path, monkeypatch):
    written(path, {"s": [{"address": "a:1"}]})
    resolver = FileResolver(path)
    last = resolver.resolve("s")
    monkeypatch.setattr("rota.discovery.file.SETTLED", 0)
    assert resolver.resolve("s") is last
    path.chmod(0o600)  # looks changed: is read, and nothing is made anew
    assert resolver.resolve("s") is last
    n_reads = []
    monkeypatch.setattr(resolver, "_read", lambda: n_reads.append(1))
    assert resolver.resolve("s") is last
    assert n_reads == []


# Watches


def test_a_watch_sees_the_changes_of_its_service(path):
    registry = FileRegistry(path)
    registry.publish("s", Instance("a:1"))
    resolver = FileResolver(path, poll=POLL)

    async def main():
        async with watching(resolver, "s") as watch, watching(resolver, "none") as none:
            one, nobody = await following(watch), await following(none)
            assert addresses(one) == ["a:1"]
            assert nobody == Result(True, "none")
            registry.publish("s", Instance("b:1"))
            two = await changed(watch, one)
            assert addresses(two) == ["a:1", "b:1"]
            assert two.instances[0] is one.instances[0]
            registry.delete("s")
            three = await changed(watch, two)
            assert three == Result(True, "s")
            registry.publish("none", Instance("c:1"))
            assert addresses(await changed(none, nobody)) == ["c:1"]
            registry.publish("s", Instance("d:1"))
            assert addresses(await changed(watch, three)) == ["d:1"]
            registry.replace("s", [])
            registry.delete("s")
            assert (await changed(watch, three)).instances in ((), (Instance("d:1"),))

    asyncio.run(main())


def test_the_same_object_says_that_the_file_was_looked_at(path, monkeypatch):
    monkeypatch.setattr("rota.discovery.file.FRESH", 0.02)
    registry = FileRegistry(path)
    registry.publish("s", Instance("a:1"))
    resolver = FileResolver(path, poll=POLL)

    async def main():
        async with watching(resolver, "s") as watch, watching(resolver, "none") as none:
            last, nobody = await following(watch), await following(none)
            registry.publish("t", Instance("b:1"))  # no news for either
            for _ in range(3):
                assert await following(watch) is last
                assert await following(none) is nobody

    asyncio.run(main())


def test_nothing_is_said_while_the_file_is_not_looked_at(path, monkeypatch):
    monkeypatch.setattr("rota.discovery.file.FRESH", 0.01)
    FileRegistry(path).publish("s", Instance("a:1"))
    resolver = FileResolver(path, poll=3600)

    async def main():
        async with watching(resolver, "s") as watch:
            await following(watch)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(watch), 0.2)
        await until(lambda: not threads_named(THREAD))  # it does not wait for its hour to be over

    asyncio.run(main())


@pytest.mark.parametrize("trouble", ["broken", "empty", "removed", "folder"])
def test_the_last_list_stays_while_the_file_is_of_no_use(path, trouble, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("rota.discovery.file.FRESH", 0.02)
    registry = FileRegistry(path)
    registry.publish("s", Instance("a:1"))
    resolver = FileResolver(path, poll=POLL)
    new = path.with_name("new")  # so that nobody sees it half written

    async def main():
        async with watching(resolver, "s") as watch:
            last = await following(watch)
            content = path.read_bytes()
            if trouble == "removed":
                path.unlink()
            elif trouble == "folder":
                new.symlink_to(path.parent)
                os.replace(new, path)
            else:
                new.write_bytes(b"" if trouble == "empty" else content[:-9])
                os.replace(new, path)
            await until(lambda: caplog.records)
            task = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0.2)
            if task.done():  # of a look before the trouble
                assert task.result() is last
                task = asyncio.ensure_future(anext(watch))
                await asyncio.sleep(0.2)
            assert not task.done()
            new.write_bytes(content)
            os.replace(new, path)
            assert await task is last
            registry.publish("s", Instance("b:1"))
            assert addresses(await changed(watch, last)) == ["a:1", "b:1"]

    asyncio.run(main())
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert all(str(path) in record.getMessage() for record in caplog.records)


def test_a_watch_that_has_nothing_to_begin_with_raises(path):
    resolver = FileResolver(path, poll=POLL)

    async def main():
        with pytest.raises(FileNotFoundError):
            await following(resolver.watch("s"))
        path.write_text("{")
        with pytest.raises(ValueError, match=r"services\.json"):
            await following(resolver.watch("s"))
        FileRegistry(written(path, {})).publish("s", Instance("a:1"))
        async with watching(resolver, "s") as watch:
            assert addresses(await following(watch)) == ["a:1"]
        await until(lambda: not threads_named(THREAD))

    asyncio.run(main())


def test_a_mounted_config_map(tmp_path):
    """The file is a link to a link that is exchanged, as Kubernetes does it."""

    def mount(version, services):
        folder = tmp_path / version
        folder.mkdir()
        written(folder / "services.json", services)
        (tmp_path / "new").symlink_to(version)
        os.replace(tmp_path / "new", tmp_path / "..data")

    mount("1", {"s": [{"address": "a:1"}]})
    path = tmp_path / "services.json"
    path.symlink_to("..data/services.json")
    resolver = FileResolver(path, poll=POLL)

    async def main():
        async with watching(resolver, "s") as watch:
            last = await following(watch)
            mount("2", {"s": [{"address": "b:1"}]})
            last = await changed(watch, last)
            assert addresses(last) == ["b:1"]
            shutil.rmtree(tmp_path / "1")
            mount("3", {"s": [{"address": "c:1"}]})
            assert addresses(await changed(watch, last)) == ["c:1"]

    asyncio.run(main())


def test_all_watches_of_a_resolver_share_what_one_look_found(path):
    """Those of two event loops, and of one."""
    registry, resolver = FileRegistry(path), FileResolver(path, poll=POLL)
    registry.publish("s", Instance("a:0"))
    found = [[] for _ in range(6)]

    async def follow(results):
        async with watching(resolver, "s") as watch:
            results.append(await following(watch))
            while addresses(results[-1]) != ["a:9"]:
                results.append(await changed(watch, results[-1]))

    async def follow_all(lists):
        await asyncio.gather(*map(follow, lists))

    def publish():
        for i in range(10):
            registry.replace("s", [Instance(f"a:{i}")])
            time.sleep(2 * POLL)

    run_threads(
        lambda: asyncio.run(follow_all(found[:3])),
        lambda: asyncio.run(follow_all(found[3:])),
        publish,
    )
    objects = {}
    for results in found:
        for result in results:
            assert objects.setdefault(addresses(result)[0], result) is result


@pytest.mark.parametrize("how", ["closed", "cancelled", "in the first look", "loop closed"])
def test_nothing_is_left_of_watches(path, how):
    written(path, {f"s{i}": [{"address": f"a:{i}"}] for i in range(20)})
    resolver = FileResolver(path, poll=POLL)
    n_files = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0

    async def main():
        watches = [resolver.watch(f"s{i}") for i in range(20)]
        if how != "in the first look":
            for watch in watches:
                await following(watch)
            assert threads_named(THREAD) == 1
        if how in ("in the first look", "cancelled"):
            tasks = [asyncio.ensure_future(anext(watch)) for watch in watches]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if how == "loop closed":
            return watches
        for watch in watches:
            await watch.aclose()
        assert len(asyncio.all_tasks()) == 1
        return []

    loop = asyncio.new_event_loop()
    watches = loop.run_until_complete(main())
    loop.close()
    eventually(lambda: not threads_named(THREAD))
    assert not resolver._bells
    for watch in watches:
        with pytest.raises(StopIteration):
            watch.aclose().send(None)
    if sys.platform == "linux":
        eventually(lambda: len(os.listdir("/proc/self/fd")) <= n_files)


def test_a_resolver_that_is_forgotten_is_gone(path):
    async def main():
        resolver = FileResolver(written(path, {}), poll=POLL)
        async with watching(resolver, "s") as watch:
            await following(watch)
        return weakref.ref(resolver)

    resolver = asyncio.run(main())
    eventually(lambda: not threads_named(THREAD))
    gc.collect()
    assert resolver() is None


FORK = """
import asyncio, os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from rota import Instance
from rota.discovery import FileRegistry, FileResolver

path = sys.argv[1]
registry, resolver = FileRegistry(path), FileResolver(path, poll=0.001)
registry.publish("s", Instance("a:1"))

async def follow(act):
    watch = resolver.watch("s")
    last = await asyncio.wait_for(anext(watch), 60)
    act()
    while (now := await asyncio.wait_for(anext(watch), 60)) is last:
        pass
    await watch.aclose()
    return len(now.instances)

async def parent():
    watch = resolver.watch("s")
    await anext(watch)
    pids = []
    for _ in range(20):  # beside the thread that looks, which holds the lock now and then
        pid = os.fork()
        if pid == 0:
            asyncio.events._set_running_loop(None)
            loop = asyncio.new_event_loop()
            publish = lambda: registry.publish("s", Instance(f"b:{os.getpid()}"))
            os._exit(0 if loop.run_until_complete(follow(publish)) > 1 else 1)
        pids.append(pid)
    codes = [os.waitpid(pid, 0)[1] for pid in pids]
    while len((await asyncio.wait_for(anext(watch), 60)).instances) < 21:
        pass
    await watch.aclose()
    print(codes == [0] * 20)

asyncio.run(parent())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_child_watches_for_itself(path):
    assert run_program(FORK, str(path)) == "True\n"


def test_no_thread_keeps_the_interpreter_alive(path):
    program = """
import asyncio, sys
from rota.discovery import FileResolver
watch = FileResolver(sys.argv[1]).watch("s")
loop = asyncio.new_event_loop()
print(len(loop.run_until_complete(anext(watch)).instances))
"""
    written(path, {"s": [{"address": "a:1"}]})
    assert run_program(program, str(path)) == "1\n"


def test_what_is_equal_and_not_the_same_is_read_anew(path):
    """To Python 1 == 1.0 == True, but not to a tag, nor to a weight."""
    resolver = FileResolver(path)
    seen = []
    for tag in ("1", "true", "1.0", '"1"'):
        path.write_text(f'{{"s": [{{"address": "a:1", "tags": {{"x": {tag}}}}}]}}')
        seen.append(resolver.resolve("s").instances[0].tags["x"])
    assert seen == ["1", "true", "1.0", "1"]
    for weight, n in (("1", 1), ("true", 0), ("1", 1), ("1.0", 0)):
        path.write_text(f'{{"s": [{{"address": "a:1", "weight": {weight}}}]}}')
        assert len(resolver.resolve("s").instances) == n
    registry = FileRegistry(path)
    path.write_text('{"s": [{"address": "a:1", "tags": {"x": 1}}]}')
    registry.publish("s", Instance("b:1"))
    path.write_text('{"s": [{"address": "a:1", "tags": {"x": true}}, {"address": "b:1"}]}')
    change = registry.publish("s", Instance("c:1"))
    assert change.result.instances[0].tags == {"x": "true"}


def test_an_absurd_weight_is_skipped(path, caplog):
    """The weights of a picker must stay below 2**63: it would spoil the whole list."""
    entries = [{"address": "a:1", "weight": 10**400}, {"address": "b:1", "weight": 2**40}]
    path.write_text(json.dumps({"s": entries}))
    assert addresses(FileResolver(path).resolve("s")) == ["b:1"]
    (record,) = caplog.records
    assert "weight must be <= 1099511627776, got one of 1329 bits" in record.getMessage()
