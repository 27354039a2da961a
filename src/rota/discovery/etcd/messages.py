"""What etcd's JSON gateway says: int64 as strings, bytes in base64, nothing where it is zero.

A watch answers with a stream of objects, one on each line, of which one may hold thousands of
events. Whatever is not as it should be raises `OddAnswer`, which says what it was.
"""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

INTEGER = re.compile(r"-?[0-9]{1,20}", re.ASCII)

# Of one message of a watch: etcd puts at most 1,000 revisions into one.
MOST_BYTES = 1 << 28


class OddAnswer(Exception):
    """etcd does not speak like this."""


@dataclass(frozen=True, slots=True)
class Header:
    """When the answer was true: the revision of the store, the term and the cluster."""

    revision: int
    term: int
    cluster: int

    def is_behind(self, known: "Header") -> bool:
        """Whether this is not the store that `known` came from, or what it was before.

        For answers that a majority stands behind: a member alone may lag.
        """
        return (
            self.revision < known.revision
            or self.term < known.term
            or self.cluster != known.cluster
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """A key with its value, and the revision of its last change; lease 0: none."""

    key: bytes
    value: bytes
    revision: int
    lease: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Entries of a range; `count` of them there are, of which fewer may have been asked for."""

    header: Header
    entries: tuple[Entry, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Event:
    """A key was written, or deleted: then its entry has no value."""

    entry: Entry
    is_deletion: bool


@dataclass(frozen=True, slots=True)
class Notice:
    """One message of a watch."""

    events: tuple[Event, ...]
    is_created: bool
    is_canceled: bool
    compacted: int
    reason: str


def text(octets: bytes) -> str:
    """Return bytes as the gateway takes them."""
    return b64encode(octets).decode("ascii")


def object_of(line: bytes) -> dict[str, Any]:
    """Return the JSON object that a line or an answer is."""
    try:
        said = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise OddAnswer(f"not JSON ({error}): {_short(line)}") from None
    if not isinstance(said, dict):
        raise OddAnswer(f"not a JSON object: {_short(said)}")
    return said


def fields_of(said: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the object of this name; an empty one where there is none."""
    found = said.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise OddAnswer(f"{name} must be an object, got {_short(found)}")
    return found


def integer(said: Mapping[str, Any], name: str) -> int:
    """Return the int64 of this name; 0 where there is none."""
    found = said.get(name)
    if found is None:
        return 0
    if isinstance(found, int) and not isinstance(found, bool):
        return found
    if isinstance(found, str) and INTEGER.fullmatch(found):
        return int(found)
    raise OddAnswer(f"{name} must be an integer, got {_short(found)}")


def octets(said: Mapping[str, Any], name: str) -> bytes:
    """Return the bytes of this name; none where there are none."""
    found = said.get(name)
    if found is None:
        return b""
    if isinstance(found, str):
        try:
            return b64decode(found, validate=True)
        except ValueError:
            pass
    raise OddAnswer(f"{name} must be in base64, got {_short(found)}")


def header_of(said: Mapping[str, Any]) -> Header:
    """Return the header of an answer."""
    header = fields_of(said, "header")
    return Header(
        integer(header, "revision"), integer(header, "raft_term"), integer(header, "cluster_id")
    )


def listing_of(said: Mapping[str, Any]) -> Listing:
    """Return what a range answers."""
    header = header_of(said)
    if header.revision < 1:
        raise OddAnswer(f"a range must have a revision, got {_short(said)}")
    entries = tuple([_entry_of(fields) for fields in _objects(said, "kvs")])
    return Listing(header, entries, integer(said, "count"))


def notice_of(said: Mapping[str, Any]) -> Notice:
    """Return what a line of a watch says, but for an error."""
    if "result" not in said:
        raise OddAnswer(f"a watch must give results, got {_short(said)}")
    result = fields_of(said, "result")
    reason = result.get("cancel_reason", "")
    return Notice(
        tuple([_event_of(fields) for fields in _objects(result, "events")]),
        _flag(result, "created"),
        _flag(result, "canceled"),
        integer(result, "compact_revision"),
        reason if isinstance(reason, str) else _short(reason),
    )


def _event_of(fields: Mapping[str, Any]) -> Event:
    kind = fields.get("type", "PUT")
    if kind not in ("PUT", "DELETE"):
        raise OddAnswer(f"an event's type must be PUT or DELETE, got {_short(kind)}")
    return Event(_entry_of(fields_of(fields, "kv")), kind == "DELETE")


def _entry_of(fields: Mapping[str, Any]) -> Entry:
    entry = Entry(
        octets(fields, "key"),
        octets(fields, "value"),
        integer(fields, "mod_revision"),
        integer(fields, "lease"),
    )
    if not entry.key or entry.revision < 1:
        raise OddAnswer(f"an entry must have a key and a revision, got {_short(fields)}")
    return entry


def _objects(said: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = said.get(name)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise OddAnswer(f"{name} must be a list of objects, got {_short(found)}")
    return found


def _flag(said: Mapping[str, Any], name: str) -> bool:
    found = said.get(name, False)
    if not isinstance(found, bool):
        raise OddAnswer(f"{name} must be true or false, got {_short(found)}")
    return found


def _short(value: object) -> str:
    shown = repr(value[:200] if isinstance(value, (str, bytes)) else value)
    return shown if len(shown) <= 200 else shown[:200] + "..."


class Lines:
    """Cuts a stream of bytes into lines, in O(bytes) however they are cut."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that end in this chunk, without the empty ones.

        Raises
        ------
        OddAnswer
            A line of more than 256 MiB.
        """
        first, *others = chunk.split(b"\n")
        self._parts.append(first)
        self._size += len(first)
        if self._size > MOST_BYTES:
            raise OddAnswer(f"a message must be of {MOST_BYTES} bytes at the most")
        if not others:
            return []
        lines = [b"".join(self._parts), *others]
        self._parts = [lines.pop()]
        self._size = len(self._parts[0])
        return [line for line in lines if line.strip()]

    def end(self) -> list[bytes]:
        """Return the line that has begun, as of a stream that is over: none, or one."""
        rest = b"".join(self._parts)
        self._parts, self._size = [], 0
        return [rest] if rest.strip() else []
