"""Balancers whose live pickers follow discovery: a change costs what has changed.

A picker is changed by index, discovery speaks of instances; so for each key there is a map
from instances to indices. A change is applied by it only where it is known to begin where
the picker is:

- `diff` has made it of the very result that the picker was brought to last, or
- somebody else has made it, says what has changed and not of what, and afterwards there are
  as many in the picker as there are in the result.

Otherwise (an event was lost, two have changed places, the picker was only just made, two
instances have one address) the picker goes over to the whole result: O(n), and always right.
"""

import logging
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice

from rota.discovery import Change, Instance
from rota.loadbalance.caching import CachingBalancer, Turn
from rota.loadbalance.interface import LivePicker, Picker

logger = logging.getLogger(__name__)

DEFAULT_WEIGHT = 10


def weigh(instances: Sequence[Instance]) -> list[int]:
    """Return the weights of instances: 10 where there is none, 0 for those that are drained."""
    return [
        DEFAULT_WEIGHT if (weight := instance.weight) is None else weight if weight > 0 else 0
        for instance in instances
    ]


class Followed(Turn):
    """The live picker of a key, and where in it each instance is.

    Invariants, between changes and while there is a `picker`:
    - `held[i]` is what the picker has at index i, None for nobody
    - `indices` has the index of everybody held, by the name that `identify` says
    - `drained` has the addresses of those without weight, under the same names
    - `instances` are those of the result that the picker was brought to last
    - `is_plain`: they have different addresses and different names, and all are held

    With these, a change that begins with `instances` is applied exactly. An updated one must
    be held under its name and address, a new one under neither, unless it takes the name
    over from one who leaves, and new addresses must differ: then those held are one for
    each address of the result, and if they are as many as the result has, they are it, and
    plain. Whatever does not fit goes to the whole.
    """

    __slots__ = (
        "drained",
        "held",
        "identify",
        "indices",
        "instances",
        "is_changing",
        "is_plain",
        "n_newly_drained",
        "picker",
    )

    def __init__(self, identify: Callable[[Instance], Hashable]) -> None:
        super().__init__()
        self.identify = identify
        self.is_changing = False
        self.is_plain = False
        self.picker: LivePicker[Instance] | None = None
        self.instances: tuple[Instance, ...] = ()
        self.held: list[Instance | None] = []
        self.indices: dict[Hashable, int] = {}
        self.drained: dict[Hashable, str] = {}
        self.n_newly_drained = 0

    def go_over(
        self,
        picker: LivePicker[Instance],
        instances: tuple[Instance, ...],
        members: Sequence[Instance],
        weights: list[int],
    ) -> None:
        """Bring `picker` to `members`, those of the result's `instances` that it has. O(n).

        It raises what the picker's `update` raises, and the picker is as it was.
        """
        with self._alone():
            picker.update(members, weights)
            identify = self.identify
            self.held = list(picker.instances)
            self.indices = {identify(who): i for i, who in enumerate(self.held) if who is not None}
            self.drained = {
                identify(who): who.address
                for who, weight in zip(members, weights, strict=True)
                if not weight
            }
            addresses = {instance.address for instance in instances}
            self.is_plain = len(addresses) == len(self.indices) == len(instances)
            self.instances = instances
            self.picker = picker

    def apply(self, change: Change) -> bool:
        """Make a change in the picker: O(changed). False: it could not be; nothing has changed."""
        picker, previous = self.picker, change.previous
        if picker is None or not self.is_plain:
            return False
        if previous is None:
            # Nothing changed, says somebody who may not know what was there before.
            if not change:
                return False
        elif previous.instances is not self.instances:
            return False
        undo: list[Callable[[], object]] = []
        is_done = False
        with self._alone():
            try:
                is_done = self._made(picker, change, undo)
            except Exception:
                # The picker has refused a step. It may take the whole; if not, it says why then.
                logger.debug("%r is compared as a whole", picker, exc_info=True)
            finally:
                if not is_done:
                    for step in reversed(undo):
                        step()
            if is_done:
                self.instances = change.result.instances
                self.picker = picker
        return is_done

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One change at a time, and none from within one: a finalizer may run anywhere."""
        if self.is_changing:
            raise RuntimeError("a picker cannot be changed from within its own change")
        self.is_changing = True
        self.picker = None  # whatever fails from here on: the next change begins anew
        try:
            yield
        finally:
            self.is_changing = False

    def _made(
        self,
        picker: LivePicker[Instance],
        change: Change,
        undo: list[Callable[[], object]],
    ) -> bool:
        identify, held, indices, drained = self.identify, self.held, self.indices, self.drained
        coming = (*change.added, *change.updated)
        addresses = {instance.address for instance in coming}
        if len(addresses) != len(coming):
            return False
        left = {instance.address for instance in change.removed} - addresses
        news = [True] * len(change.added) + [False] * len(change.updated)
        self.n_newly_drained = 0
        # Those without weight come last and nobody leaves before: who picks meanwhile always
        # finds somebody, if there is somebody before and after.
        steps = sorted(zip(coming, weigh(coming), news, strict=True), key=lambda it: not it[1])
        for instance, weight, is_new in steps:
            name = identify(instance)
            i = indices.get(name, -1)
            was = held[i] if i >= 0 else None
            is_same = was is not None and was.address == instance.address
            # A newcomer may take over the name of one who leaves.
            may_come = is_new and (was is None or was.address in left)
            if not (is_same or may_come):
                return False
            if was is None:
                i = picker.add(instance, weight)
                undo.append(partial(picker.remove, i))
                held.extend([None] * (i + 1 - len(held)))
                held[i], indices[name] = instance, i
            elif was is not instance:
                (was_weight,) = weigh((was,))
                if weight != was_weight:
                    picker.set_weight(i, weight)
                    undo.append(partial(picker.set_weight, i, was_weight))
                picker.replace(i, instance)
                undo.append(partial(picker.replace, i, was))
                held[i] = instance
            if weight:
                drained.pop(name, None)
            else:
                self.n_newly_drained += name not in drained
                drained[name] = instance.address
        for instance in change.removed:
            name = identify(instance)
            i = indices.get(name, -1)
            was = held[i] if i >= 0 else None
            # Gone already, or another has taken its place under the same name.
            if was is None or was.address != instance.address or was.address not in left:
                continue
            (was_weight,) = weigh((was,))
            picker.remove(i)
            undo.append(partial(picker.add, was, was_weight))
            held[i] = None
            del indices[name]
            drained.pop(name, None)
        return len(indices) == len(change.result.instances) == len(picker)


class FollowingBalancer(CachingBalancer):
    """A balancer that changes its live pickers in place, where they are `LivePicker`s.

    An instance without a weight has 10. One of 0 or less is drained: it keeps its place in
    the picker, with the weight 0, and gets no requests; one warning in the log tells of each
    set of these.

    A subclass makes its pickers of what `members` gives.
    """

    def identify(self, instance: Instance) -> Hashable:
        """Return by what a picker's instances differ: the address, as in `diff`."""
        return instance.address

    @abstractmethod
    def members(self, instances: tuple[Instance, ...]) -> tuple[Sequence[Instance], list[int]]:
        """Return who of these is in a picker, and their weights."""

    def weighed(self, instances: tuple[Instance, ...]) -> list[int]:
        """Return the weights of instances, and tell of those that are drained."""
        weights = weigh(instances)
        if weights and not min(weights):
            pairs = zip(instances, weights, strict=True)
            self._tell_drained([who.address for who, weight in pairs if not weight], len(weights))
        return weights

    def _turn(self) -> Turn:
        return Followed(self.identify)

    def _follow(self, turn: Turn, picker: Picker[Instance] | None, change: Change) -> bool:
        assert isinstance(turn, Followed)
        result = change.result
        if turn.picker is None or turn.picker is not picker:
            turn.picker = None  # another has been made meanwhile
            if not isinstance(picker, LivePicker):
                return False
        elif result.instances is turn.instances:
            return True  # told before
        if turn.apply(change):
            if turn.n_newly_drained:
                self._tell_drained(list(turn.drained.values()), len(result.instances))
            return True
        turn.go_over(picker, result.instances, *self.members(result.instances))
        return True

    def _tell_drained(self, addresses: list[str], n: int) -> None:
        if self.is_news("no weight", addresses):
            logger.warning(
                "%s: %d of %d instances have a weight of 0 or less and get no requests: %s%s",
                self.name,
                len(addresses),
                n,
                ", ".join(islice(addresses, 10)),
                ", ..." if len(addresses) > 10 else "",
            )
