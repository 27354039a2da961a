"""What a client keeps of each instance that it calls: its connections, and how calls ended."""

import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from rota.discovery import Change, Instance

C = TypeVar("C")

# An instance that has left may still be picked, by who was about to, for so many seconds.
LATE = 60.0


class Member(Generic[C]):
    """One instance, as its client knows it.

    Attributes
    ----------
    instance : Instance
        As it was when the first call went to it.
    connection : object
        What calls go through.
    n_calls, n_failures : int
        Attempts begun, and those that failed (see `rota.outcome`).
    users : set
        One object for each call that goes on. Added to with the members' lock held; anybody may
        take theirs out, also while garbage is collected.
    """

    __slots__ = ("connection", "instance", "is_leaving", "n_calls", "n_failures", "users")

    def __init__(self, instance: Instance, connection: C) -> None:
        self.instance = instance
        self.connection = connection
        self.n_calls = 0
        self.n_failures = 0
        self.users: set[object] = set()
        self.is_leaving = False


class Members(Generic[C]):
    """The members of a client. Any number of threads may use it.

    A connection is made with an instance's first call, and closed when the instance has left and
    the last call to it has ended.

    Parameters
    ----------
    connect : callable (Instance) -> connection
    close : callable (connection) -> None

    Attributes
    ----------
    n_calls, n_failures : int
        Of all members, also of those that have left.
    """

    def __init__(self, connect: Callable[[Instance], C], close: Callable[[C], object]) -> None:
        self._connect = connect
        self._close = close
        self._lock = threading.RLock()  # who collects garbage may release
        self._members: dict[Hashable, Member[C]] = {}
        self._leaving: set[Member[C]] = set()
        self._gone: dict[Hashable, float] = {}  # when, by `time.monotonic`
        self._is_closed = False
        self.n_calls = self.n_failures = 0
        _all_members.add(self)

    def take(self, instance: Instance, user: object) -> Member[C]:
        """Return the member of an instance, which `user` uses until it is released.

        Raises
        ------
        RuntimeError
            Closed.
        """
        identity = instance.network, instance.address  # its `identity`, for every call
        with self._lock:
            member = self._members.get(identity)
            if member is None:
                member = self._make(identity, instance)
            member.users.add(user)
            member.n_calls += 1
            self.n_calls += 1
            return member

    def release(self, member: Member[C], user: object, failed: bool = False) -> None:
        """End a use; it does nothing where that has ended."""
        try:
            member.users.remove(user)
        except KeyError:
            return
        if failed or member.is_leaving:
            with self._lock:
                member.n_failures += failed
                self.n_failures += failed
                is_last = member in self._leaving and not member.users
                if is_last:
                    self._leaving.discard(member)
            if is_last:
                self._close(member.connection)

    def reach(self, instance: Instance) -> Member[C] | None:
        """Return the member of an instance without using it, None where the instance has left.

        Raises
        ------
        RuntimeError
            Closed.
        """
        identity = instance.identity
        with self._lock:
            member = self._members.get(identity)
            if member is None and identity not in self._gone:
                member = self._make(identity, instance)
            return member

    def follow(self, change: Change) -> None:
        """Let the connections go to those who have left."""
        now = time.monotonic()
        idle = []
        with self._lock:
            for identity, moment in list(self._gone.items()):
                if moment > now - LATE:
                    break  # they are in order
                del self._gone[identity]
            for instance in change.added:
                self._gone.pop(instance.identity, None)
            for instance in change.removed:
                identity = instance.identity
                self._gone.pop(identity, None)
                self._gone[identity] = now
                member = self._members.pop(identity, None)
                if member is not None:
                    member.is_leaving = True
                    if member.users:
                        self._leaving.add(member)
                    else:
                        idle.append(member)
        for member in idle:
            self._close(member.connection)

    def now(self) -> list[Member[C]]:
        """Return the members of now, and those who leave."""
        with self._lock:
            return [*self._members.values(), *self._leaving]

    def close(self) -> list[C]:
        """Take no calls any more; returns all connections, to be closed.

        Those with users are closed again when the last has ended: one may just have been
        connecting.
        """
        with self._lock:
            self._is_closed = True
            members = self.now()
            self._members.clear()
            for member in members:
                member.is_leaving = True
            self._leaving = {member for member in members if member.users}
        return [member.connection for member in members]

    def _make(self, identity: Hashable, instance: Instance) -> Member[C]:
        if self._is_closed:
            raise RuntimeError("the client is closed")
        member = Member(instance, self._connect(instance))
        if self._gone.get(identity, -math.inf) > time.monotonic() - LATE:
            # Picked before it left: for this one use, unless others come meanwhile.
            member.is_leaving = True
            self._leaving.add(member)
        else:
            self._members[identity] = member
        return member

    def _begin_anew(self) -> None:
        # The connections are the parent's: two who speak over one get each other's answers. They
        # are not closed, which may tell the server; and calls that go on do so in the parent.
        self._lock = threading.RLock()
        self._members = {}
        self._leaving = set()


_all_members: "weakref.WeakSet[Members[Any]]" = weakref.WeakSet()


def _in_child() -> None:
    """In the child of a fork: another thread of the parent may have held a lock."""
    for members in list(_all_members):
        members._begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
