"""Balancing within the group that a request belongs to, after kitex-contrib's tagging.

Instances are grouped by the value of a tag; each group has a picker of its own, made and kept by
another balancer. A change of the service becomes a change of each group that it touches.
"""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, Final

from rota.discovery import Change, Instance, Result, diff
from rota.loadbalance.attempts import attempts
from rota.loadbalance.caching import CachingBalancer, Turn
from rota.loadbalance.interface import LoadBalancer, Picker, Rebalancer

TagFunc = Callable[[Any, Any], str | None]


class Anybody:
    """The fallback to all instances: `ANY`."""

    def __repr__(self) -> str:
        return "ANY"


ANY: Final = Anybody()

Fallback = Anybody | str | None

_serials = count(1)


class TaggingAttempts:
    """Distinct instances in the order to try: those of the group, then of the fallback."""

    def __init__(self, candidates: Iterator[Instance]) -> None:
        self._candidates = candidates

    def next(self) -> Instance | None:
        """Return the next instance to try, or None when none is left."""
        return next(self._candidates, None)

    def __iter__(self) -> Iterator[Instance]:
        return self

    def __next__(self) -> Instance:
        return next(self._candidates)


class ByTag:
    """A picker that leads each request to its group. A subclass finds the picker of a group."""

    def __init__(self, tag_func: TagFunc, fallback: Fallback) -> None:
        self._tag_func = tag_func
        self._fallback = fallback

    def next(self, ctx: object = None, request: object = None) -> Instance | None:
        """Return an instance of the request's group; of the fallback where there is none."""
        picker = self._of(self._tag_func(ctx, request))
        if picker is not None:
            instance = picker.next(ctx, request)
            if instance is not None:
                return instance
        if self._fallback is None:
            return None
        picker = self._fallback_picker()
        return None if picker is None else picker.next(ctx, request)

    def attempts(self, ctx: object = None, request: object = None) -> TaggingAttempts:
        """Return the instances to try for one request, each once, those of the fallback last."""
        return TaggingAttempts(
            self._candidates(self._of(self._tag_func(ctx, request)), ctx, request)
        )

    def _candidates(
        self, picker: Picker[Instance] | None, ctx: object, request: object
    ) -> Iterator[Instance]:
        tried = set()
        if picker is not None:
            for instance in attempts(picker, ctx, request):
                tried.add(instance.identity)
                yield instance
        picker = None if self._fallback is None else self._fallback_picker()
        if picker is not None:
            for instance in attempts(picker, ctx, request):
                if instance.identity not in tried:
                    yield instance

    def _of(self, value: object) -> Picker[Instance] | None:
        """Return the picker of a group."""
        raise NotImplementedError

    def _fallback_picker(self) -> Picker[Instance] | None:
        raise NotImplementedError


class TaggingPicker(ByTag):
    """The picker of a cached result. Changes come one at a time.

    Invariants, between changes:
    - `_results[value]` is what the group's picker was brought to last, and `_pickers[value]`
      that picker; for nobody there are neither
    - `_whole` is the result of all, under which `_everybody` picks
    - while `_instances` is not None, `_groups[value]` has the instances of the group in order,
      and `_values` the group, by address; and the addresses of all `_instances` differ

    With the last an update is applied by what has changed alone. What does not fit, or has
    failed in the middle, is compared group by group.
    """

    def __init__(self, balancer: "TaggingBalancer", result: Result) -> None:
        super().__init__(balancer.tag_func, balancer.fallback)
        self._tag = balancer.tag
        self._next = balancer.next
        self._rebalancer = self._next if isinstance(self._next, Rebalancer) else None
        self._serial = next(_serials)
        self._key = result.cache_key
        self._pickers: dict[object, Picker[Instance]] = {}
        self._results: dict[str, Result] = {}
        self._everybody: Picker[Instance] | None = None
        self._whole = Result(True, f"tagging#{self._serial} of {self._key}")
        self._instances: tuple[Instance, ...] | None = None
        self._groups: dict[str, dict[str, Instance]] = {}
        self._values: dict[str, str] = {}
        self._compare(result.instances)

    def follow(self, change: Change) -> None:
        """Make a change: O(changed), and a copy of the lists of the groups that it touches."""
        instances = change.result.instances
        previous = change.previous
        is_known = previous is not None and previous.instances is self._instances
        touched = self._touched(change) if is_known else None
        self._instances = None  # whatever fails from here on: the next change compares all
        if touched is None:
            self._compare(instances)
            return
        if self._fallback is ANY:
            self._follow_whole(instances, change.added, change.updated, change.removed)
        # A group that only grows goes first: who moves to it is never nowhere.
        for value in sorted(touched, key=lambda value: bool(touched[value][2])):
            group = self._groups.setdefault(value, {})
            for instance in (*touched[value][0], *touched[value][1]):
                group[instance.address] = instance
                self._values[instance.address] = value
        for value, (_, _, removed) in touched.items():
            group = self._groups[value]
            for instance in removed:
                del group[instance.address]
                if self._values[instance.address] == value:
                    del self._values[instance.address]
        for value in sorted(touched, key=lambda value: bool(touched[value][2])):
            self._follow_group(value, tuple(self._groups[value].values()), *touched[value])
            if not self._groups[value]:
                del self._groups[value]
        self._instances = instances

    def close(self) -> None:
        """Have the balancer of the groups forget their pickers; who holds this one may go on."""
        if self._rebalancer is not None:
            for result in (*self._results.values(), self._whole):
                self._forget(result)

    def _touched(self, change: Change) -> "dict[str, Parts] | None":
        """Return what a change adds to, updates in and removes from groups; None: it does not fit.

        Nothing is changed by it.
        """
        values, instances = self._values, change.result.instances
        touched: dict[str, Parts] = {}
        moved = [*change.added, *change.updated, *change.removed]
        if len({instance.address for instance in moved}) != len(moved):
            return None
        if len(values) + len(change.added) - len(change.removed) != len(instances):
            return None
        for instance in change.added:
            if instance.address in values:
                return None
            touched.setdefault(self._value(instance), ([], [], []))[0].append(instance)
        for instance in (*change.updated, *change.removed):
            was = values.get(instance.address)
            if was is None:
                return None
            touched.setdefault(was, ([], [], []))
        for instance in change.updated:
            was, value = values[instance.address], self._value(instance)
            if was == value:
                touched[value][1].append(instance)
            else:
                touched.setdefault(value, ([], [], []))[0].append(instance)
                touched[was][2].append(self._groups[was][instance.address])
        for instance in change.removed:
            was = values[instance.address]
            touched[was][2].append(self._groups[was][instance.address])
        return touched

    def _compare(self, instances: tuple[Instance, ...]) -> None:
        """Go over to these instances, group by group. O(n)."""
        lists: dict[str, list[Instance]] = {}
        for instance in instances:
            lists.setdefault(self._value(instance), []).append(instance)
        self._groups = {
            value: {instance.address: instance for instance in group}
            for value, group in lists.items()
        }
        self._values = {
            address: value for value, group in self._groups.items() for address in group
        }
        if self._fallback is ANY:
            whole = diff(self._whole.cache_key, self._whole, self._named(None, instances))
            self._follow_whole(instances, whole.added, whole.updated, whole.removed)
        for value in sorted(lists.keys() | self._results.keys(), key=lambda value: value in lists):
            group = tuple(lists.get(value, ()))
            before = self._results.get(value) or self._named(value, ())
            change = diff(before.cache_key, before, self._named(value, group))
            if change or len(group) != len(before.instances):
                parts = change.added, change.updated, change.removed
                self._follow_group(value, group, *parts)
        if len(self._values) == len(instances):
            self._instances = instances

    def _follow_whole(self, instances: tuple[Instance, ...], *parts: Any) -> None:
        before, now = self._whole, self._named(None, instances)
        if before.instances and not instances:
            self._everybody = None
            self._forget(before)
        elif instances:
            self._everybody = self._told(Change(now, *parts, previous=before))
        self._whole = now

    def _follow_group(self, value: str, group: tuple[Instance, ...], *parts: Any) -> None:
        before, now = self._results.get(value), self._named(value, group)
        if group:
            change = Change(now, *parts, previous=before or self._named(value, ()))
            self._pickers[value] = self._told(change)
            self._results[value] = now
        elif before is not None:
            del self._pickers[value]
            self._forget(before)
            del self._results[value]

    def _told(self, change: Change) -> Picker[Instance]:
        """Tell of a change, and return the picker that obeys it."""
        # There was nobody before: no picker has to be changed.
        if self._rebalancer is not None and change.previous and change.previous.instances:
            self._rebalancer.rebalance(change)
        return self._next.get_picker(change.result)

    def _forget(self, result: Result) -> None:
        if self._rebalancer is not None and result.instances:
            gone = Result(True, result.cache_key)
            self._rebalancer.delete(Change(gone, removed=result.instances, previous=result))

    def _named(self, value: str | None, instances: tuple[Instance, ...]) -> Result:
        """Return a result under the key of a group, or of everybody: of this picker alone."""
        group = "" if value is None else f" {value!r}"
        return Result(True, f"tagging#{self._serial}{group} of {self._key}", instances)

    def _value(self, instance: Instance) -> str:
        return instance.tags.get(self._tag, "")

    def _of(self, value: object) -> Picker[Instance] | None:
        try:
            return self._pickers[value]
        except (KeyError, TypeError):  # TypeError: it is not hashable
            return self._pickers.get(as_value(value))

    def _fallback_picker(self) -> Picker[Instance] | None:
        if self._fallback is ANY:
            return self._everybody
        return self._pickers.get(self._fallback)


Parts = tuple[list[Instance], list[Instance], list[Instance]]  # added, updated, removed


class UncachedPicker(ByTag):
    """The picker of a result that may not be cached: a group is looked for when it is needed."""

    def __init__(self, balancer: "TaggingBalancer", instances: tuple[Instance, ...]) -> None:
        super().__init__(balancer.tag_func, balancer.fallback)
        self._balancer = balancer
        self._instances = instances

    def _of(self, value: object) -> Picker[Instance] | None:
        tag, wanted = self._balancer.tag, as_value(value)
        return self._picker([i for i in self._instances if i.tags.get(tag, "") == wanted])

    def _fallback_picker(self) -> Picker[Instance] | None:
        if self._fallback is ANY:
            return self._picker(self._instances)
        return self._of(self._fallback)

    def _picker(self, instances: Any) -> Picker[Instance] | None:
        if not instances:
            return None
        return self._balancer.next.get_picker(Result(instances=instances))


def as_value(value: object) -> str:
    """Return the value that a `tag_func` gave, "" for None.

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


class TaggingBalancer(CachingBalancer):
    """Leads each request to the instances whose tag has the value that it asks for.

    Parameters
    ----------
    tag : str
        The tag's key. An instance without it is in the group "".
    tag_func : callable (ctx, request) -> str or None
        Says which group a request belongs to; None: "". What it raises comes as it is.
    next : LoadBalancer
        Balances within a group; another `TaggingBalancer`, to go by several tags.
    fallback : None, ANY, or str
        Who is picked where the group is missing, or has nobody with weight: nobody, as in
        Kitex; anybody; or the group of that value.

    Raises
    ------
    TypeError
        An argument of another kind.

    Notes
    -----
    A change costs what has changed, and a copy of the lists of the groups that it touches.
    Groups that it does not touch keep their pickers, and these their turns. An instance is
    known by its address, as in `diff`.
    """

    def __init__(
        self, tag: str, tag_func: TagFunc, next: LoadBalancer, *, fallback: Fallback = None
    ) -> None:
        if not isinstance(tag, str):
            raise TypeError(f"tag must be a str, got {tag!r}")
        if not callable(tag_func):
            raise TypeError(f"tag_func must be callable, got {tag_func!r}")
        if not isinstance(next, LoadBalancer):
            raise TypeError(f"next must have a name and get_picker, got {next!r}")
        if fallback is not None and fallback is not ANY and not isinstance(fallback, str):
            raise TypeError(f"fallback must be None, ANY or a str, got {fallback!r}")
        super().__init__()
        self.tag = tag
        self.tag_func = tag_func
        self.next = next
        self.fallback = fallback
        self.name = f"tagging_{next.name}"

    def build(self, instances: tuple[Instance, ...]) -> UncachedPicker:
        """Return a picker that looks for the group of a request when it is asked."""
        return UncachedPicker(self, instances)

    def build_cached(self, result: Result) -> TaggingPicker:
        """Return a new picker, and have `next` make one for each group. O(n)."""
        return TaggingPicker(self, result)

    def discard(self, picker: Picker[Instance]) -> None:
        """Have `next` forget what it made for a picker that is not kept any more."""
        if isinstance(picker, TaggingPicker):
            picker.close()

    def _follow(self, turn: Turn, picker: Picker[Instance] | None, change: Change) -> bool:
        if not isinstance(picker, TaggingPicker):
            return False
        picker.follow(change)
        return True
