"""Balancing by tag: a request's tag says among which instances it is balanced.

After kitex-contrib's loadbalance-tagging. The instances of a result are split into groups by
their value of one tag, and another balancer has the picker of each group. A change is split
likewise: each group that it touches gets a change of its own, made of what the inner balancer
knows of that group, so that a balancer that follows discovery applies it in place; all other
groups keep their pickers as they are.

Inner results are kept under keys of their own: a random token for each picker of ours, the
tag, and the group. So they meet neither each other nor anybody else's, though the inner
balancer may serve others too.
"""

import logging
import secrets
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal, NamedTuple, Protocol

from rota.discovery import Change, Instance, Result, diff
from rota.identity import identity_of
from rota.loadbalance.attempts import attempts
from rota.loadbalance.caching import CachingBalancer, Turn
from rota.loadbalance.following import weigh
from rota.loadbalance.interface import LoadBalancer, Picker, Rebalancer

logger = logging.getLogger(__name__)


class Fallback(Enum):
    """Where a request may go whose group has nobody, besides another group."""

    ANY = "any"

    def __repr__(self) -> str:
        return self.name


ANY: Final = Fallback.ANY

# A value of the tag; or ANY, for the picker over all instances.
Name = str | Literal[Fallback.ANY]


def value_of(instance: Instance, tag: str) -> str:
    """Return in which group an instance is: "" where it has no such tag, or one that is no str."""
    value = instance.tags.get(tag)
    return value if isinstance(value, str) else ""


def wanted_by(value: object) -> str:
    """Return the group that a `tag_func` has named.

    Raises
    ------
    TypeError
        Neither a str nor None.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"tag_func must return a str or None, got {value!r}")
    return value


class Pickers(Protocol):
    """The pickers of groups: a dict, or what makes them when they are asked for."""

    def get(self, name: Name, /) -> Picker[Instance] | None:
        """Return the picker of a group, None where nobody is in it."""
        ...


class TaggingAttempts:
    """The instances to try for one request: its group's, then the fallback's. For one thread.

    Of the fallback's, those whose `identity` was tried already are passed over.
    """

    __slots__ = ("_arguments", "_attempts", "_fallback", "_pickers", "_tried", "_tried_before")

    def __init__(
        self,
        pickers: Pickers,
        value: str,
        fallback: Name | None,
        ctx: object,
        request: object,
    ) -> None:
        self._pickers = pickers
        self._fallback = fallback  # None, too, once it is gone through
        self._arguments = (ctx, request)
        self._tried: list[Instance] = []
        self._tried_before: frozenset[Hashable] = frozenset()
        self._attempts = self._begun(value)

    def _begun(self, name: Name) -> Iterator[Instance]:
        picker = self._pickers.get(name)
        return iter(()) if picker is None else attempts(picker, *self._arguments)

    def next(self) -> Instance | None:
        """Return the next instance to try, or None when none is left."""
        return next(self, None)

    def __iter__(self) -> Iterator[Instance]:
        return self

    def __next__(self) -> Instance:
        while True:
            for instance in self._attempts:
                if self._tried_before and identity_of(instance) in self._tried_before:
                    continue
                self._tried.append(instance)
                return instance
            if self._fallback is None:
                raise StopIteration
            self._attempts, self._fallback = self._begun(self._fallback), None
            self._tried_before = frozenset(map(identity_of, self._tried))


class TaggingPicker:
    """Asks the picker of the group that a request goes to.

    Who is next depends on the request, so there is no `pick`; `group` gives the picker of one
    group, with all that it can do.
    """

    def __init__(
        self,
        tag_func: Callable[[Any, Any], str | None],
        fallback: Name | None,
        pickers: Pickers,
        groups: "Groups | None",
    ) -> None:
        self._tag_func = tag_func
        self._fallback = fallback
        self._pickers = pickers
        self._groups = groups

    def next(self, ctx: object = None, request: object = None) -> Instance | None:
        """Return the instance for this request, None when there is none. O(1) and a pick.

        Raises
        ------
        TypeError
            `tag_func` has returned neither a str nor None. What it raises comes as it is.
        """
        value = self._tag_func(ctx, request)
        if type(value) is not str:
            value = wanted_by(value)
        picker = self._pickers.get(value)
        if picker is not None:
            instance = picker.next(ctx, request)
            if instance is not None:
                return instance
        if self._fallback is None:
            return None
        other = self._pickers.get(self._fallback)
        return None if other is None else other.next(ctx, request)

    def attempts(self, ctx: object = None, request: object = None) -> Iterator[Instance]:
        """Return an iterator over distinct instances in the order to try them.

        Those of the request's group, in the order of its picker's attempts; when these are
        used up, the others of the fallback. It raises what `next` raises.
        """
        value = wanted_by(self._tag_func(ctx, request))
        fallback = None if self._fallback == value else self._fallback
        if fallback is None:
            picker = self._pickers.get(value)
            if picker is not None:
                return attempts(picker, ctx, request)
        return TaggingAttempts(self._pickers, value, fallback, ctx, request)

    def group(self, name: Name) -> Picker[Instance] | None:
        """Return the inner balancer's picker of a group, None where nobody is in it. O(1).

        ANY: the one over all instances, where that is the fallback. Ask again for each
        request: a change may have put another in its place.

        Raises
        ------
        TypeError
            Neither a str nor ANY.
        """
        if not isinstance(name, str) and name is not ANY:
            raise TypeError(f"name must be a str or ANY, got {name!r}")
        if name is ANY and self._fallback is not ANY:
            return None
        return self._pickers.get(name)


class UnkeptPickers:
    """The pickers of a result that may not be cached: each is made when it is asked for. O(n)."""

    def __init__(self, inner: LoadBalancer, tag: str, instances: tuple[Instance, ...]) -> None:
        self._inner = inner
        self._tag = tag
        self._instances = instances
        self._made: dict[Name, Picker[Instance]] = {}

    def get(self, name: Name, /) -> Picker[Instance] | None:
        """Return the picker of a group, None where nobody is in it."""
        picker = self._made.get(name)
        if picker is None:
            members = self._instances
            if name is not ANY:
                tag = self._tag
                members = tuple([who for who in members if value_of(who, tag) == name])
            if not members:
                return None
            made = self._inner.get_picker(Result(False, "", members))
            picker = self._made.setdefault(name, made)
        return picker


@dataclass(slots=True)
class Group:
    """Who has one value of the tag, or ANY: all.

    `result` is what the inner balancer was told last. `members` has the same instances by
    address, where no two have one; it is of no use for ANY.
    """

    result: Result
    members: dict[str, Instance]


class Step(NamedTuple):
    """What becomes of one group in a change, and its members afterwards."""

    name: Name
    before: Result
    change: Change
    members: dict[str, Instance]


def rank(step: Step) -> int:
    """Return when in a change a step is made.

    Groups that somebody with weight joins come first, those that have lost everybody last. So
    a request whose group loses everybody finds its fallback, if that has somebody afterwards.
    """
    change = step.change
    if not change.result.instances:
        return 2
    return 0 if any(weigh((*change.added, *change.updated))) else 1


class Groups:
    """The groups of one key: their pickers, and what the inner balancer was told of them.

    Invariants, between changes:
    - `instances` are those of the result that the groups were brought to last
    - `groups` has them all by their value of the tag, and besides under ANY, if `has_all`;
      no group is empty
    - `pickers` has the inner balancer's picker of each group
    - `is_plain`: no two instances have one address; then `where` has the group of each address
    - `is_lost`: what the inner balancer knows is not known; the groups must be made anew

    An instance for which no change was told stays the object that it was, even if the result
    has another that is equal.
    """

    def __init__(self, inner: LoadBalancer, tag: str, has_all: bool) -> None:
        self.inner = inner
        # One that cannot be told of changes keeps no pickers: it makes new ones.
        self.rebalancer = inner if isinstance(inner, Rebalancer) else None
        self.tag = tag
        self.has_all = has_all
        self.pickers: dict[Name, Picker[Instance]] = {}
        self.groups: dict[Name, Group] = {}
        self.instances: tuple[Instance, ...] = ()
        self.where: dict[str, str] = {}
        self.is_plain = True
        self.is_lost = False
        self._prefix = f"tagging:{secrets.token_hex(16)}:{tag}"
        self._lock = threading.Lock()
        self._is_changing = False
        self._is_let_go = False

    def follow(self, change: Change) -> bool:
        """Bring the groups to `change.result`. False: they cannot be, and must be made anew.

        O(changed) and a copy of each group that is touched, where the change says that it
        begins where the groups are; else O(n). What the inner balancer raises comes as it
        is, and the groups are as they were.
        """
        if not self._enter():
            return True  # deleted meanwhile: it stays deleted
        try:
            if self.is_lost:
                return False
            instances = change.result.instances
            if instances is self.instances:
                return True  # told before
            steps = self._split(change)
            if steps is None:
                steps, where = self._compare(instances)
                self._make(steps)
                self.where, self.is_plain = where, len(where) == len(instances)
            else:
                self._make(steps)
                for instance in change.removed:
                    del self.where[instance.address]
                for instance in (*change.added, *change.updated):
                    self.where[instance.address] = value_of(instance, self.tag)
            self.instances = instances
            self.is_lost = False
            return True
        finally:
            self._leave()

    def let_go(self) -> None:
        """Have the inner balancer forget all groups; those who pick still may."""
        with self._lock:
            self._is_let_go = True
            if self._is_changing:
                return  # it does so when it is done
        self._forget()

    def _enter(self) -> bool:
        with self._lock:
            if self._is_changing:
                raise RuntimeError("a picker cannot be changed from within its own change")
            self._is_changing = not self._is_let_go
            return self._is_changing

    def _leave(self) -> None:
        with self._lock:
            self._is_changing = False
            is_let_go = self._is_let_go
        if is_let_go:
            self._forget()

    def _forget(self) -> None:
        if self.rebalancer is None:
            return
        with ExitStack() as stack:  # all of them, also where one fails
            for name in self.groups.keys() | self.pickers.keys():
                before = self._known(name)
                now = Result(True, before.cache_key)
                gone = Change(now, removed=before.instances, previous=before)
                stack.callback(self.rebalancer.delete, gone)

    def _known(self, name: Name) -> Result:
        """Return what the inner balancer was told of a group."""
        group = self.groups.get(name)
        if group is not None:
            return group.result
        return Result(True, self._prefix + ("*" if name is ANY else f"={name}"))

    def _split(self, change: Change) -> list[Step] | None:
        """Return the steps of a change that begins where the groups are; None: it does not."""
        previous = change.previous
        # One that does not say where it begins is not by our `diff`, and may know no tags.
        if previous is None or previous.instances is not self.instances or not self.is_plain:
            return None
        known = self.where.keys()
        new = {instance.address for instance in change.added}
        old = {instance.address for instance in (*change.updated, *change.removed)}
        if not (
            len(new) == len(change.added)
            and len(old) == len(change.updated) + len(change.removed)
            and known.isdisjoint(new)
            and known >= old
            and len(known) + len(new) - len(change.removed) == len(change.result.instances)
        ):
            return None
        parts: defaultdict[str, tuple[list[Instance], list[Instance], list[Instance]]]
        parts = defaultdict(lambda: ([], [], []))  # added, updated, removed
        for instance in change.added:
            parts[value_of(instance, self.tag)][0].append(instance)
        for instance in change.updated:
            was, value = self.where[instance.address], value_of(instance, self.tag)
            if value == was:
                parts[value][1].append(instance)
            else:
                parts[was][2].append(self.groups[was].members[instance.address])
                parts[value][0].append(instance)
        for instance in change.removed:
            was = self.where[instance.address]
            parts[was][2].append(self.groups[was].members[instance.address])
        steps = [self._part(name, *part) for name, part in parts.items()]
        if self.has_all and change:
            before = self._known(ANY)
            now = Result(True, before.cache_key, change.result.instances)
            of_all = Change(now, change.added, change.updated, change.removed, previous=before)
            steps.append(Step(ANY, before, of_all, {}))
        return steps

    def _part(
        self, name: str, added: list[Instance], updated: list[Instance], removed: list[Instance]
    ) -> Step:
        before, group = self._known(name), self.groups.get(name)
        members = {} if group is None else group.members.copy()
        for instance in removed:
            del members[instance.address]
        for instance in (*added, *updated):
            members[instance.address] = instance
        now = Result(True, before.cache_key, tuple(members.values()))
        change = Change(now, tuple(added), tuple(updated), tuple(removed), previous=before)
        return Step(name, before, change, members)

    def _compare(self, instances: tuple[Instance, ...]) -> tuple[list[Step], dict[str, str]]:
        """Return the steps from what is to `instances`, and the group of each address. O(n)."""
        where: dict[str, str] = {}
        split: defaultdict[Name, list[Instance]] = defaultdict(list)
        for instance in instances:
            value = where[instance.address] = value_of(instance, self.tag)
            split[value].append(instance)
        wanted = {name: tuple(members) for name, members in split.items()}
        if self.has_all and instances:
            wanted[ANY] = instances
        # `diff` knows everybody by address.
        says_all = self.is_plain and len(where) == len(instances)
        steps = []
        for name in {**self.groups, **wanted}:
            before = self._known(name)
            now = Result(True, before.cache_key, wanted.get(name, ()))
            change = diff(before.cache_key, before, now)
            if change if says_all else before.instances != now.instances:
                members = {instance.address: instance for instance in now.instances}
                steps.append(Step(name, before, change, members))
        return steps, where

    def _make(self, steps: list[Step]) -> None:
        """Make all steps, or none. Until the caller is done as well, the groups are lost."""
        self.is_lost = True
        made: list[tuple[Step, Picker[Instance] | None]] = []
        try:
            for step in sorted(steps, key=rank):
                made.append((step, self.pickers.get(step.name)))
                self._tell(step.name, step.change)
        except BaseException:
            # One that has failed may have been made in part.
            taken_back = [self._take_back(*step) for step in reversed(made)]
            self.is_lost = not all(taken_back)
            raise
        for step in steps:
            if step.change.result.instances:
                self.groups[step.name] = Group(step.change.result, step.members)
            else:
                self.groups.pop(step.name, None)

    def _take_back(self, step: Step, picker: Picker[Instance] | None) -> bool:
        if self.rebalancer is None:
            if picker is None:
                self.pickers.pop(step.name, None)
            else:
                self.pickers[step.name] = picker
            return True
        now = step.change.result
        try:
            self._tell(step.name, diff(now.cache_key, now, step.before))
        except Exception:
            logger.exception("%r cannot go back to %d instances", step.name, len(now.instances))
            return False
        return True

    def _tell(self, name: Name, change: Change) -> None:
        """Have the inner balancer make the change of a group."""
        result = change.result
        if not result.instances:
            self.pickers.pop(name, None)
            if self.rebalancer is not None:
                self.rebalancer.delete(change)
        elif self.rebalancer is None:
            self.pickers[name] = self.inner.get_picker(Result(False, "", result.instances))
        else:
            if name in self.pickers:
                self.rebalancer.rebalance(change)
            self.pickers[name] = self.inner.get_picker(result)


class TaggingBalancer(CachingBalancer):
    """Balances each request among the instances of its group.

    The instances that have the same value of a tag are a group; those without the tag are the
    group "". Another balancer picks within a group: weights, draining and order are its own.

    Parameters
    ----------
    tag : str
        The tag's key.
    tag_func : callable (ctx, request) -> str or None
        Which group a request goes to; None: "".
    next : LoadBalancer
        Makes the pickers of the groups. Any object that has `name` and `get_picker`, a
        TaggingBalancer of another tag too. One with `rebalance` and `delete` is told of
        the changes of each group; any other makes a new picker of each group that a change
        touches.
    fallback : None, ANY or str
        Where a request goes whose group has nobody, or nobody with weight: nowhere, as in
        Kitex; among all instances; to the group of this value.

    Raises
    ------
    TypeError
        An argument of another type.

    Notes
    -----
    A change costs what has changed, and one copy of each group that it touches. Groups that
    it does not touch keep their pickers, with their state.
    """

    def __init__(
        self,
        tag: str,
        tag_func: Callable[[Any, Any], str | None],
        next: LoadBalancer,
        *,
        fallback: Name | None = None,
    ) -> None:
        if not isinstance(tag, str):
            raise TypeError(f"tag must be a str, got {tag!r}")
        if not callable(tag_func):
            raise TypeError(f"tag_func must be callable, got {tag_func!r}")
        if not isinstance(next, LoadBalancer):
            raise TypeError(f"next must be a LoadBalancer, got {next!r}")
        if not (fallback is None or fallback is ANY or isinstance(fallback, str)):
            raise TypeError(f"fallback must be None, ANY or a str, got {fallback!r}")
        super().__init__()
        self.name = f"tagging_{next.name}"
        self._tag = tag
        self._tag_func = tag_func
        self._inner = next
        self._fallback = fallback

    def build(self, instances: tuple[Instance, ...]) -> Picker[Instance]:
        """Return a new picker, and have the inner balancer keep one for each group. O(n)."""
        groups = Groups(self._inner, self._tag, has_all=self._fallback is ANY)
        groups.follow(Change(Result(True, "", instances)))
        return TaggingPicker(self._tag_func, self._fallback, groups.pickers, groups)

    def build_uncached(self, instances: tuple[Instance, ...]) -> Picker[Instance]:
        """Return a new picker that makes those of the groups it is asked for, uncached."""
        pickers = UnkeptPickers(self._inner, self._tag, instances)
        return TaggingPicker(self._tag_func, self._fallback, pickers, None)

    def _follow(self, turn: Turn, picker: Picker[Instance] | None, change: Change) -> bool:
        if not isinstance(picker, TaggingPicker) or picker._groups is None:
            return False
        return picker._groups.follow(change)

    def _let_go(self, picker: Picker[Instance]) -> None:
        if isinstance(picker, TaggingPicker) and picker._groups is not None:
            picker._groups.let_go()
