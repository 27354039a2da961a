"""Reference of kernels.hash_picker: all that a hash picker does but its structure."""

import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from rota.arguments import as_count, as_int32_out, as_load_factor, as_places, as_replicas
from rota.roster import Roster

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

Key = Any


class HashPicker(Generic[T]):
    """The base of the reference hash pickers.

    Any number of threads may share it; a lock keeps picks and changes apart.

    A subclass gives `_place(key)`, `_walk(place)` (indices from a place on, clockwise,
    each at least once) and `_follow()` (called after every change).
    """

    def __init__(
        self,
        instances: Iterable[T],
        weights: Any,
        get_key: Callable[[Any, Any], Key] | None,
        load_factor: float | None,
        replicas: int | None,
        name: Callable[[Any], str | bytes] | None,
    ) -> None:
        if get_key is not None and not callable(get_key):
            raise TypeError(f"get_key must be callable, got {get_key!r}")
        self._load_factor = as_load_factor(load_factor)
        self._replicas = as_replicas(replicas)
        self._roster = Roster(instances, weights, name, self._check)
        self._get_key = get_key
        self._lock = threading.RLock()
        self._loads = [0] * len(self._roster.slots)
        self._generations = [0] * len(self._roster.slots)
        self._n_in_flight = 0
        self._follow()

    def _check(self, total: int, n_live: int) -> None:
        """Refuse what would be too large."""
        raise NotImplementedError

    def _follow(self) -> None:
        raise NotImplementedError

    def _place(self, key: Key) -> int:
        raise NotImplementedError

    def _walk(self, place: int) -> Iterator[int]:
        raise NotImplementedError

    def _choose(self, place: int) -> int:
        roster = self._roster
        first = -1
        for i in self._walk(place):
            if not self._load_factor:
                return i
            first = i if first < 0 else first
            # load < factor * (all + 1) * weight / total, in integers
            room = self._load_factor * (self._n_in_flight + 1) * int(roster.weights[i])
            if self._loads[i] * roster.total * 65536 < room:
                return i
        return first

    def _distinct(self, place: int) -> Iterator[int]:
        seen = set()
        for i in self._walk(place):
            if i not in seen:
                seen.add(i)
                yield i

    def pick(self, key: Key, /) -> T | None:
        """Return the instance that owns `key`, None when nothing has weight."""
        place = self._place(key)
        with self._lock:
            i = self._choose(place)
            return None if i < 0 else self._roster.slots[i]

    def pick_index(self, key: Key, /) -> int | None:
        """Return the index of the instance that owns `key`, or None."""
        place = self._place(key)
        with self._lock:
            i = self._choose(place)
        return None if i < 0 else i

    def pick_many(self, keys: Iterable[Key], /) -> list[T | None]:
        """Return the owners of `keys`: [pick(key) for key in keys]."""
        return [self.pick(key) for key in keys]

    def pick_n(self, key: Key, n: int) -> list[T]:
        """Return the first n distinct instances from the place of `key` on, clockwise."""
        count, place = as_count(n), self._place(key)
        with self._lock:
            walked = islice(self._distinct(place), count)
            return [self._roster.slots[i] for i in walked]

    def indices(self, hashes: "NDArray[np.uint64]", out: "NDArray[np.int32]") -> None:
        """Write the index of the owner of each place in `hashes` to `out`; -1 for none."""
        places, view = as_places(hashes), as_int32_out(out)
        if len(places) != len(view):
            raise ValueError(f"hashes and out differ in length: {len(places)} != {len(view)}")
        with self._lock:
            for k, place in enumerate(places.tolist()):
                view[k] = next(self._walk(place), -1)

    def next(self, ctx: object = None, request: object = None) -> T | None:
        """Return the instance for a request: Kitex's Picker. None for an empty key."""
        key = self._key(ctx, request)
        return None if key is None else self.pick(key)

    def _key(self, ctx: object, request: object) -> Key | None:
        key = request if self._get_key is None else self._get_key(ctx, request)
        return None if key is None or (isinstance(key, (str, bytes)) and not key) else key

    def attempts(self, ctx: object = None, request: object = None) -> "HashAttempts[T]":
        """Return an iterator over distinct instances in the order to try them."""
        return HashAttempts(self, self._key(ctx, request))

    def acquire(self, key: Key, /) -> "Lease[T] | None":
        """Pick for `key` and count one more in flight there, until the lease is released."""
        place = self._place(key)
        with self._lock:
            i = self._choose(place)
            if i < 0:
                return None
            self._loads[i] += 1
            self._n_in_flight += 1
            return Lease(self, i, self._roster.slots[i], self._generations[i])

    def select(self, key: Key, /) -> "tuple[T, Lease[T]] | None":
        """Return (instance, done) for `key`: Kratos' interface; None when nothing has weight."""
        lease = self.acquire(key)
        return None if lease is None else (lease.instance, lease)

    def set_weight(self, index: int, weight: int) -> None:
        """Give the instance at `index` another weight."""
        with self._lock:
            self._roster.set_weight(index, weight)
            self._follow()

    def replace(self, index: int, instance: T) -> None:
        """Put another object of the same ring name in the place of the instance at `index`."""
        with self._lock:
            self._roster.replace(index, instance)

    def add(self, instance: T, weight: int = 1) -> int:
        """Take an instance in; return its index."""
        with self._lock:
            i = self._roster.add(instance, weight)
            if i == len(self._loads):
                self._loads.append(0)
                self._generations.append(0)
            self._follow()
            return i

    def remove(self, index: int, /) -> None:
        """Let the instance at `index` go."""
        with self._lock:
            self._leave(self._roster.present(index))
            self._follow()

    def _leave(self, i: int) -> None:
        self._roster.drain(i)
        self._roster.forget(i)
        self._n_in_flight -= self._loads[i]
        self._loads[i] = 0
        self._generations[i] += 1

    def update(self, instances: Iterable[T], weights: Any = None) -> None:
        """Go over to these instances and weights; who stays keeps index, points and load."""
        with self._lock:
            _, _, leaving = self._roster.change(instances, weights)
            more = len(self._roster.slots) - len(self._loads)
            self._loads += [0] * more
            self._generations += [0] * more
            for i in leaving:
                self._leave(i)
            self._follow()

    @property
    def instances(self) -> tuple[T | None, ...]:
        """The instances by index, a tuple; None where one has left."""
        return tuple(self._roster.slots)

    @property
    def weights(self) -> NDArray[np.int64]:
        """The weights by index: a read-only view of the picker's own memory."""
        # Not every numpy is typed as a buffer.
        return np.asarray(memoryview(self._roster.weights).toreadonly())  # type: ignore[arg-type]

    @property
    def loads(self) -> NDArray[np.int64]:
        """How many are in flight at each instance, by index; a copy."""
        return np.array(self._loads, np.int64)

    def index_of(self, instance_name: str | bytes, /) -> int | None:
        """Return the index of the instance of this ring name, None when there is none."""
        own = instance_name.encode() if isinstance(instance_name, str) else instance_name
        return self._roster.by_name.get(own)

    def __len__(self) -> int:
        return len(self._roster)

    def __repr__(self) -> str:
        n, total = len(self._roster), self._roster.total
        return f"{type(self).__name__}({n} instances, total weight {total})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())


class HashAttempts(Generic[T]):
    """The owner of a key and then the other instances, clockwise, each once. For one thread."""

    def __init__(self, picker: HashPicker[T], key: Key | None) -> None:
        self._picker = picker
        self._key = key
        self._tried: set[bytes | None] = set()  # names

    def next(self) -> T | None:
        """Return the next instance to try, or None when none is left."""
        picker = self._picker
        if self._key is None:
            return None
        if picker._replicas is not None and len(self._tried) > picker._replicas:
            return None
        place = picker._place(self._key)
        with picker._lock:
            if not self._tried:
                i = picker._choose(place)
            else:
                names, tried = picker._roster.names, self._tried
                i = next((i for i in picker._walk(place) if names[i] not in tried), -1)
            if i < 0:
                return None
            self._tried.add(picker._roster.names[i])
            instance: T = picker._roster.slots[i]
            return instance

    def __iter__(self) -> "Self":
        return self

    def __next__(self) -> T:
        instance = self.next()
        if instance is None:
            raise StopIteration
        return instance


class Lease(Generic[T]):
    """One request in flight at `instance`; ends once, by release(), `with`, or being forgotten."""

    def __init__(self, picker: HashPicker[T], index: int, instance: T, generation: int) -> None:
        self._picker: HashPicker[T] | None = picker
        self._generation = generation
        self.index = index
        self.instance = instance

    def release(self) -> None:
        """Count the request as ended; of no effect from the second time on."""
        picker = self._picker
        if picker is None:
            return
        with picker._lock:
            if self._picker is None:
                return  # another thread was first
            self._picker = None
            # An index given out again since is somebody else's.
            if picker._generations[self.index] == self._generation:
                picker._loads[self.index] -= 1
                picker._n_in_flight -= 1

    def __call__(self, info: object = None, *, err: object = None) -> None:
        """Count the request as ended, Kratos' way; how it did makes no difference."""
        self.release()

    def __enter__(self) -> T:
        return self.instance

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()

    def __reduce__(self) -> "tuple[Any, ...]":
        raise TypeError("a lease cannot be copied: it ends once")
