"""Services in a file: JSON, or TOML to read; any number of processes may publish to it.

How publishers keep out of each other's way: each change reads the file, writes the whole anew
under another name, and puts that in the file's place, all under a lock (flock) on a file
beside it that nobody ever replaces. Whoever reads needs no lock: what has the file's name is
whole. A publisher that is killed leaves at most the file of the other name, which the next
one writes over; the kernel takes its lock back.

How readers know of a change: by asking for the file's state a few times a second (`os.stat`,
microseconds), which unlike inotify works on every file system, across machines, and on the
symbolic links of mounted Kubernetes config maps.
"""

import json
import logging
import marshal
import math
import os
import stat
import sys
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rota.background import in_thread
from rota.discovery.described import Skipped, described, instance_of
from rota.discovery.instance import Instance
from rota.discovery.resolver import service_of
from rota.discovery.result import Change, Result, diff
from rota.discovery.watching import FRESH, Bells, kept

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

DEFAULT_POLL = 0.2

# A file that is younger than this may change again without looking changed: file systems
# write down times in steps, of up to 2 s. Until then its content is compared.
SETTLED = 2.5

Path = str | os.PathLike[str]
Entries = Sequence[tuple[Any, Instance | None]]
"""What a file says of each copy of a service, and the copy; None where it says nothing of use."""

Known = dict[str, tuple[bytes | None, Instance]]
"""How a file has spelled a copy, and the copy, by its address."""


class FileRegistry:
    """Publishes services to a JSON file that `FileResolver`s read.

    Parameters
    ----------
    path : str or path
        Made with the first change; its folder must be there. A symbolic link stays one: the
        file that it leads to is changed.

    Raises
    ------
    TypeError, ValueError
        No path; a TOML file, which people write and no program.
    RuntimeError
        The platform has no `fcntl.flock`, as Windows: then publishers would lose each other's
        changes.

    Notes
    -----
    Any number of threads and processes may publish to one file; each change is whole, and on
    the disk when the method returns. Readers see the file as it was before or after it. The
    file keeps its mode, and its owner where the process may say so. What else is in it stays
    as it is: fields and entries that mean nothing to rota too.

    A change costs O(all that is in the file), and waits for the disk: from an event loop call
    it by `asyncio.to_thread`. One that changes nothing writes nothing. A file that is not as
    it should be raises ValueError, one that cannot be read or written OSError; it is then as
    it was.
    """

    def __init__(self, path: Path) -> None:
        self._path = os.path.abspath(_as_path(path))
        if self._path.endswith(".toml"):
            raise ValueError(f"path must be that of a JSON file, got {path!r}")
        if fcntl is None:
            raise RuntimeError("FileRegistry needs fcntl.flock, which is not on this platform")
        # What entries were read as last time, by service and address; used under the lock.
        self._read_before: dict[str, Known] = {}

    def publish(self, service: str, *instances: Instance) -> Change:
        """Add copies of a service, or replace those of the same network and address."""
        name = service_of(service)
        entries = _entries_of(name, instances)

        def publish(known: Entries) -> Entries:
            news: dict[Hashable, tuple[Any, Instance] | None]
            news = {instance.identity: (entry, instance) for entry, instance in entries}
            now: list[tuple[Any, Instance | None]] = []
            for entry, instance in known:
                if instance is None or instance.identity not in news:
                    now.append((entry, instance))
                elif new := news[instance.identity]:
                    now.append(new)
                    news[instance.identity] = None  # a second one of it goes
            return now + [new for new in news.values() if new]

        return self._change(name, publish)

    def withdraw(self, service: str, *addresses: str) -> Change:
        """Take copies of a service away; unknown addresses are ignored."""
        name = service_of(service)
        for address in addresses:
            if not isinstance(address, str):
                raise TypeError(f"addresses must be strs, got {address!r}")
        gone = frozenset(addresses)
        return self._change(
            name,
            lambda known: [
                (entry, instance)
                for entry, instance in known
                if instance is None or instance.address not in gone
            ],
            is_made=False,
        )

    def replace(self, service: str, instances: Iterable[Instance]) -> Change:
        """Have a service consist of these copies alone."""
        name = service_of(service)
        if isinstance(instances, (str, bytes)) or not isinstance(instances, Iterable):
            raise TypeError(f"instances must be Instance objects, got {instances!r}")
        entries = _entries_of(name, instances)
        return self._change(name, lambda _: entries)

    def delete(self, service: str) -> None:
        """Forget a service."""
        name = service_of(service)
        path = os.path.realpath(self._path)
        with _locked(path):
            services = _published(path)
            if name in services:
                del services[name]
                _write(path, services)

    def _change(
        self, service: str, change: Callable[[Entries], Entries], is_made: bool = True
    ) -> Change:
        # Where the link leads at this moment: to lock, read and write the same file.
        path = os.path.realpath(self._path)
        with _locked(path):
            services = _published(path)
            before = self._read_before.get(service, {})
            known = [
                (entry, _known(before, entry) or _instance_or_none(entry, service))
                for entry in services.get(service, [])
            ]
            self._read_before[service] = {
                i.address: (_spelled(entry), i) for entry, i in known if i
            }
            now = change(known)
            # What is known already stays as it is written, which may say more than we know of.
            written = {instance: entry for entry, instance in reversed(known)}
            entries = [written.get(i, entry) if i else entry for entry, i in now]
            if entries != services.get(service, None if is_made else []):
                services[service] = entries
                _write(path, services)
        return diff(service, _result_of(service, known), _result_of(service, now))


class FileResolver:
    """Finds services in a file, and sees it change.

    Parameters
    ----------
    path : str or path
        JSON, ``{"service": [{"address": "10.0.0.1:80", "weight": 5}, ...], ...}``; or TOML of
        the same shape where it ends in ".toml". Besides "address" an entry may have what an
        `Instance` has: "weight", "network", "scheme", "service", "version", "tags", "hash_key".
    poll : float, seconds, > 0
        How often a watched file is looked at.

    Raises
    ------
    TypeError, ValueError
        An argument of no use.
    ImportError
        A TOML file before Python 3.11, without `rota[file]`.

    Notes
    -----
    Any number of threads and event loops may share one: the file is read once for each of its
    changes, and one daemon thread looks at it, while anybody watches. What has not changed
    stays the very same objects. An entry that describes no instance, or another's address, is
    skipped, with one warning in the log that names it.

    A look fails as a whole with OSError where the file cannot be read, and with ValueError
    where it is not a table of lists, or empty: so is one that is just being written by who
    does not do it under another name.
    """

    def __init__(self, path: Path, *, poll: float = DEFAULT_POLL) -> None:
        self._path = os.path.abspath(_as_path(path))
        if isinstance(poll, bool) or not isinstance(poll, (int, float)):
            raise TypeError(f"poll must be a number of seconds, got {poll!r}")
        if not 0 < poll <= threading.TIMEOUT_MAX:
            raise ValueError(
                f"poll must be > 0 and at most {threading.TIMEOUT_MAX:.0f}, got {poll!r}"
            )
        self._poll = poll
        self._load = _toml() if self._path.endswith(".toml") else json.loads
        self._skipped = Skipped(self._path)
        self._was_skipped: set[str] = set()
        self._skips: dict[str, str] = {}  # not told yet
        # When a look last went well, and what it saw: replaced as one.
        self._seen: tuple[float, dict[str, Result]] = (-math.inf, {})
        # What was read of each entry, by service and address: what is read again is mostly so.
        self._read_before: dict[str, Known] = {}
        # What the file looked like when it was read, whether it can change and look the same,
        # its content if so, and why that is of no use, if it is not.
        self._stamp: tuple[int, ...] = ()
        self._is_settled = False
        self._content: bytes | None = None
        self._flaw: str | None = None
        self._stop: threading.Event | None = None
        self._begin_anew()
        _resolvers.add(self)

    @property
    def name(self) -> str:
        """The resolver's name: those of one file find the same."""
        return f"file:{self._path}"

    def target(self, endpoint: Any) -> str:
        """Return the service of an endpoint: "name", or "discovery:///name"."""
        return service_of(endpoint)

    def resolve(self, desc: str) -> Result:
        """Return the copies of a service; no instances for one that is not in the file.

        O(1), and O(all that is in the file) after it has changed. It may wait for the disk.

        Raises
        ------
        OSError, ValueError
            The file cannot be read; or is not as it should be.
        """
        return self._look().get(desc) or Result(True, desc)

    def diff(self, cache_key: str, prev: Result, next: Result) -> Change:
        """Return what changed from `prev` to `next`."""
        return diff(cache_key, prev, next)

    async def watch(self, desc: str) -> AsyncGenerator[Result, None]:
        """Go through the copies of a service: now, and whenever they have changed.

        Every few seconds in which the file was looked at and had not changed, the same object
        again. While it cannot be read, or is not as it should be, nothing, with one warning
        in the log.

        Raises
        ------
        OSError, ValueError
            It is so at the beginning, when there is no list to go on with.
        """
        bell = self._bells.hang(desc)
        try:
            self._have_looked()
            await in_thread(self._look)
            last: Result | None = None
            told = -math.inf
            while True:
                seen, results = self._seen
                result = results.get(desc)
                if result is None:
                    result = last if last and not last.instances else Result(True, desc)
                if result is not last or seen > told:
                    last, told = result, seen
                    yield result
                await bell.wait(FRESH)
        finally:
            self._bells.take(desc, bell)
            self._is_watched()

    def _look(self) -> dict[str, Result]:
        with self._lock:
            now = time.monotonic()
            found = os.stat(self._path)
            if self._stamp != _stamp(found) or not self._is_settled:
                if not stat.S_ISREG(found.st_mode):
                    raise ValueError(f"{self._path} must be a file")
                self._read()
            if self._flaw is not None:
                raise ValueError(f"{self._path}: {self._flaw}")
            results = self._seen[1]
            self._seen = (now, results)
            skips, self._skips = self._skips, {}
        # Without the lock: who handles logs may look, too.
        for key, why in skips.items():
            self._skipped.tell(key, why)
        return results

    def _read(self) -> None:
        with open(self._path, "rb") as file:
            # Before the content: what changes in between looks changed at the next look.
            found = os.fstat(file.fileno())
            age = time.time() - found.st_ctime
            content = file.read()
        if content != self._content:
            try:
                services = _services(content, self._load)
            except (ValueError, RecursionError) as error:
                self._flaw = str(error)
            else:
                self._flaw = None
                self._take(services)
        self._stamp = _stamp(found)
        self._is_settled = age > SETTLED
        self._content = None if self._is_settled else content

    def _take(self, services: dict[str, list[Any]]) -> None:
        before = self._seen[1]
        skips: dict[str, str] = {}
        results = {}
        read_before, self._read_before = self._read_before, {}
        for service, entries in services.items():
            instances: dict[Any, Instance] = {}
            known = read_before.get(service, {})
            read = self._read_before[service] = {}
            for i, entry in enumerate(entries):
                try:
                    instance = _known(known, entry) or instance_of(entry, service)
                except (TypeError, ValueError) as error:
                    skips[f"{service}[{i}]"] = str(error)
                    continue
                if instances.setdefault(instance.identity, instance) is instance:
                    read[instance.address] = _spelled(entry), instance
                else:
                    skips[f"{service}[{i}]"] = f"{instance.address!r} is there already"
            found = Result(True, service, tuple(instances.values()))
            results[service] = kept(before.get(service), found)
        for key in self._was_skipped - skips.keys():
            self._skipped.forget(key)
        self._was_skipped = set(skips)
        self._skips = skips
        self._seen = (self._seen[0], results)
        self._bells.ring(
            [key for key in before.keys() | results if before.get(key) is not results.get(key)]
        )

    def _have_looked(self) -> None:
        """See to it that a thread looks at the file, for as long as anybody watches."""
        with self._watch_lock:
            if self._stop is None:
                stop = threading.Event()
                threading.Thread(
                    target=self._keep_looking, args=(stop,), name="rota file resolver", daemon=True
                ).start()
                self._stop = stop

    def _is_watched(self) -> bool:
        """Whether anybody watches; the thread ends where nobody does."""
        with self._watch_lock:
            if self._bells:
                return True
            if self._stop is not None:
                self._stop.set()
                self._stop = None
            return False

    def _keep_looking(self, stop: threading.Event) -> None:
        trouble: str | None = None
        while not stop.wait(self._poll):
            # A loop may have been closed over its watches, which then cannot say so.
            self._bells.prune()
            if self._is_watched():
                trouble = self._look_again(trouble)

    def _look_again(self, trouble: str | None) -> str | None:
        """Look; return what is wrong, which is told where it is not what was wrong before."""
        try:
            self._look()
        except Exception as error:  # whatever it is, the next look may go well
            if str(error) != trouble:
                logger.warning("%s; what was read of %s before stays", error, self._path)
            return str(error)
        if trouble is not None:
            logger.info("%s can be read again", self._path)
        return None

    def _begin_anew(self) -> None:
        # In a forked child: locks may be held by, and watches be of, who is not there.
        self._lock, self._watch_lock = threading.Lock(), threading.Lock()
        self._bells = Bells()
        self._stop = None


_resolvers: "weakref.WeakSet[FileResolver]" = weakref.WeakSet()


def _in_child() -> None:
    for resolver in list(_resolvers):
        resolver._begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _as_path(path: Any) -> str:
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise TypeError(f"path must be a str or a path, got {path!r}")
    if not os.fspath(path):
        raise ValueError("path must not be empty")
    return os.fspath(path)


def _toml() -> Callable[[bytes], Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise ImportError(
                'a TOML file needs Python 3.11, or tomli: pip install "rota[file]"'
            ) from error
    return lambda content: tomllib.loads(content.decode("utf-8-sig"))


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _services(content: bytes, load: Callable[[bytes], Any]) -> dict[str, list[Any]]:
    if not content.strip():
        raise ValueError("is empty")
    services = load(content)
    if not isinstance(services, dict):
        raise ValueError(f"must be an object of services, got {services!r:.80}")
    for service, entries in services.items():
        if not isinstance(entries, list):
            raise ValueError(f"{service!r} must be a list of instances, got {entries!r:.80}")
    return services


def _spelled(entry: Any) -> bytes | None:
    """Return the same for the same entries alone: to ==, 1 is true. None: it cannot be said."""
    try:
        return marshal.dumps(entry, 2)
    except ValueError:  # TOML has dates
        return None


def _known(known: Known, entry: Any) -> Instance | None:
    """Return the instance that the same entry has been read as."""
    if not known or not isinstance(entry, dict) or type(address := entry.get("address")) is not str:
        return None
    spelling, instance = known.get(address, (None, None))
    return instance if spelling is not None and spelling == _spelled(entry) else None


def _instance_or_none(entry: Any, service: str) -> Instance | None:
    try:
        return instance_of(entry, service)
    except (TypeError, ValueError):
        return None


def _entries_of(service: str, instances: Iterable[Instance]) -> list[tuple[Any, Instance]]:
    """Return the instances as they are written, and as they will be read; the last of each."""
    entries: dict[Any, tuple[Any, Instance]] = {}
    for instance in instances:
        if not isinstance(instance, Instance):
            raise TypeError(f"instances must be Instance objects, got {instance!r}")
        entry = described(instance)
        read = instance_of(entry, service)
        entries[read.identity] = entry, read
    return list(entries.values())


def _result_of(service: str, entries: Entries) -> Result:
    return Result(True, service, tuple([i for _, i in entries if i is not None]))


def _published(path: str) -> dict[str, list[Any]]:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return {}
    if not content.strip():
        return {}
    try:
        return _services(content, json.loads)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Keep all others out who publish to this file."""
    folder, name = os.path.split(path)
    lock = os.path.join(folder, f".{name}.lock")
    with open(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # A child forked meanwhile has the file open too: closing is not enough.
            fcntl.flock(file, fcntl.LOCK_UN)


def _write(path: str, services: dict[str, list[Any]]) -> None:
    """Put a file with these services in the place of `path`. Under its lock."""
    folder, name = os.path.split(path)
    content = _text(services).encode()
    found = None
    with suppress(FileNotFoundError):
        found = os.stat(path)
    # One name, for whoever holds the lock: what another left when it was killed goes.
    new = os.path.join(folder, f".{name}.new")
    with suppress(FileNotFoundError):
        os.unlink(new)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(new, flags, 0o666 if found is None else 0o600), "wb") as file:
        try:
            if found is not None:
                with suppress(PermissionError):
                    os.fchown(file.fileno(), found.st_uid, found.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(found.st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(new, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(new)
            raise
    # The name is on the disk when the folder is; some file systems cannot be asked for that.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _text(services: dict[str, list[Any]]) -> str:
    """Return them as JSON with a line for each entry: for people, and for `diff`."""
    lists = []
    for service, entries in services.items():
        lines = ",".join(f"\n    {json.dumps(entry)}" for entry in entries)
        lists.append(f"\n  {json.dumps(service)}: [{lines}" + ("\n  ]" if entries else "]"))
    return "{" + ",".join(lists) + ("\n}\n" if lists else "}\n")
