"""What discovery found, and what changed since it looked last."""

from collections.abc import Iterable
from dataclasses import dataclass

from rota.discovery.instance import Instance


@dataclass(frozen=True, slots=True)
class Result:
    """The copies of one service.

    Parameters
    ----------
    cacheable : bool
        Whether balancers may keep one picker for all results of this key.
    cache_key : str
        The key; of no meaning where not cacheable.
    instances : sequence of Instance
        Kept as a tuple.

    Raises
    ------
    TypeError
        A field of another type.
    """

    cacheable: bool = False
    cache_key: str = ""
    instances: tuple[Instance, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.cache_key, str):
            raise TypeError(f"cache_key must be a str, got {self.cache_key!r}")
        if type(self.instances) is not tuple:
            if isinstance(self.instances, (str, bytes)) or not isinstance(self.instances, Iterable):
                raise TypeError(f"instances must be a sequence, got {self.instances!r}")
            object.__setattr__(self, "instances", tuple(self.instances))


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a service between two looks at it. False when nothing did.

    Parameters
    ----------
    result : Result
        How things stand now.
    added, updated, removed : sequence of Instance
        New copies; copies with another weight or other tags, as they are now; copies
        that are gone.
    """

    result: Result
    added: tuple[Instance, ...] = ()
    updated: tuple[Instance, ...] = ()
    removed: tuple[Instance, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.result, Result):
            raise TypeError(f"result must be a Result, got {self.result!r}")
        for name in ("added", "updated", "removed"):
            given = getattr(self, name)
            if type(given) is not tuple:
                object.__setattr__(self, name, tuple(given))

    def __bool__(self) -> bool:
        return bool(self.added or self.updated or self.removed)


def diff(cache_key: str, prev: Result, next: Result) -> Change:
    """Return what changed from `prev` to `next`.

    Parameters
    ----------
    cache_key : str
        The key of the change's result.
    prev, next : Result

    Returns
    -------
    Change
        Its result is `next` under `cache_key`. Added and updated are in the order of
        `next`, removed in that of `prev`.

    Notes
    -----
    O(n). As Kitex's DefaultDiff, a copy is known by its address, and its network is not
    looked at; unlike it, any other difference than the weight is an update too (Kitex
    leaves groups by tag stale until a weight changes).
    """
    before = {instance.address: instance for instance in prev.instances}
    after = {instance.address for instance in next.instances}
    added: list[Instance] = []
    updated: list[Instance] = []
    for instance in next.instances:
        known = before.get(instance.address)
        if known is None:
            added.append(instance)
        elif known is not instance and _described(known) != _described(instance):
            updated.append(instance)
    removed = [instance for instance in prev.instances if instance.address not in after]
    return Change(
        Result(next.cacheable, cache_key, next.instances),
        tuple(added),
        tuple(updated),
        tuple(removed),
    )


def _described(instance: Instance) -> tuple[object, ...]:
    return (
        instance.weight,
        instance.tags,
        instance.version,
        instance.service,
        instance.scheme,
        instance.hash_key,
    )
