"""The entries of one service, and the instances that they describe."""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

from rota.discovery.described import Skipped
from rota.discovery.etcd.layouts import Layout
from rota.discovery.etcd.messages import Entry, Listing
from rota.discovery.instance import Instance
from rota.discovery.result import Result

MOST_SAID = 300


@dataclass(slots=True)
class _Row:
    """What stands under a key; `instance` is None where it is malformed, or not asked for."""

    value: bytes
    revision: int
    lease: int
    instance: Instance | None


class Table:
    """Instances in the order of their keys; each stays the very same object until it changes.

    A change costs a search, and the moving of references; `result`, after changes, a copy of
    the references. Of two keys with one address the first is shown.
    """

    def __init__(self, layout: Layout, service: str, skipped: Skipped) -> None:
        self._layout = layout
        self._service = service
        self._skipped = skipped
        self._rows: dict[bytes, _Row] = {}
        self._claims: dict[str, list[bytes]] = {}  # by address the keys, sorted: the first is shown
        # What is shown, in the order of keys.
        self._keys: list[bytes] = []
        self._instances: list[Instance] = []
        self._result: Result | None = None

    @property
    def result(self) -> Result:
        """What there is: the same object until something changes."""
        if self._result is None:
            self._result = Result(True, self._service, tuple(self._instances))
        return self._result

    def is_as(self, found: Listing) -> bool:
        """Whether this is how many entries there are, and the newest of them here, too. O(n).

        Of the same history both are as they are, then: whatever becomes different makes a newer
        revision, or fewer entries. Of another one it would take a miracle, and a lease of the
        same number.
        """
        if found.count != len(self._rows):
            return False
        if not found.entries:
            return found.count == 0
        newest = found.entries[0]
        row = self._rows.get(newest.key)
        return (
            row is not None
            and row.lease == newest.lease
            and row.revision == newest.revision
            and row.revision == max([row.revision for row in self._rows.values()])
        )

    def load(self, entries: Iterable[Entry]) -> None:
        """Have it consist of these entries."""
        listed = {entry.key: entry for entry in entries}
        for key in self._rows.keys() - listed.keys():
            self.delete(key)
        for entry in listed.values():
            self.put(entry)

    def put(self, entry: Entry) -> None:
        """An entry is new, or has changed."""
        key = entry.key
        row = self._rows.get(key)
        if row is not None and row.value == entry.value:
            row.revision, row.lease = entry.revision, entry.lease
            return
        was = None if row is None else row.instance
        now = self._read(entry)
        if now == was:
            now = was
        self._rows[key] = _Row(entry.value, entry.revision, entry.lease, now)
        if now is was:
            return
        if was is not None and now is not None and was.address == now.address:
            if self._claims[now.address][0] == key:
                self._instances[bisect_left(self._keys, key)] = now
                self._result = None
            return
        if was is not None:
            self._withdraw(key, was.address)
        if now is not None:
            self._claim(key, now.address)

    def delete(self, key: bytes) -> None:
        """An entry is gone; nothing happens where there is none."""
        row = self._rows.pop(key, None)
        if row is not None:
            if row.instance is not None:
                self._withdraw(key, row.instance.address)
            self._skipped.forget(_shown(key))

    def _read(self, entry: Entry) -> Instance | None:
        try:
            entry.key.decode()
            instance = self._layout.read(entry.value, self._service)
        except Exception as error:  # of a layout that is not ours, too
            self._skipped.tell(_shown(entry.key), _cut(f"{type(error).__name__}: {error}"))
            return None
        if instance is None:
            self._skipped.forget(_shown(entry.key))
        return instance

    def _claim(self, key: bytes, address: str) -> None:
        claims = self._claims.setdefault(address, [])
        insort(claims, key)
        if claims[0] != key:
            self._shadow(key, claims[0], address)
            return
        if len(claims) > 1:
            self._hide(claims[1])
            self._shadow(claims[1], key, address)
        self._show(key)

    def _withdraw(self, key: bytes, address: str) -> None:
        claims = self._claims[address]
        is_shown = claims[0] == key
        claims.remove(key)
        if is_shown:
            self._hide(key)
            if claims:
                self._show(claims[0])
        if not claims:
            del self._claims[address]

    def _show(self, key: bytes) -> None:
        place = bisect_left(self._keys, key)
        instance = self._rows[key].instance
        assert instance is not None
        self._keys.insert(place, key)
        self._instances.insert(place, instance)
        self._result = None
        self._skipped.forget(_shown(key))

    def _hide(self, key: bytes) -> None:
        place = bisect_left(self._keys, key)
        del self._keys[place], self._instances[place]
        self._result = None

    def _shadow(self, key: bytes, first: bytes, address: str) -> None:
        self._skipped.tell(_shown(key), _cut(f"{_shown(first)} has its address {address!r}"))


def _shown(key: bytes) -> str:
    return _cut(key.decode(errors="backslashreplace"))


def _cut(text: str) -> str:
    return text if len(text) <= MOST_SAID else text[:MOST_SAID] + "..."
