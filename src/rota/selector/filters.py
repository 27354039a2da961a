"""Which of the instances a request may go to.

A filter is any callable that takes a sequence of instances and returns those that may be
chosen, in any order, as in Kratos. Filters are applied in the order given, each to what the
one before has left.

What a filter returns may depend on anything, so it is called for every request. A filter that
has the attribute `is_pure`, true, says that it depends on the instances alone, and that equal
filters return the same; what it returned is kept until other instances are applied. Those made
here by `version`, `metadata` and `subset` are pure, and found by an index.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

from rota.discovery import Instance
from rota.kernels import load

if TYPE_CHECKING:
    from rota.kernels.selection import Part
else:
    Part = load("selection").Part


class NodeFilter(Protocol):
    """Takes instances, and returns those that a request may go to."""

    def __call__(self, nodes: Sequence[Instance], /) -> Iterable[Instance]:
        """Return some of `nodes`."""
        ...


Condition = tuple[str, str]  # (what, value): "version", or a tag with TAG before its key
TAG = "tag:"


def value_of(node: Instance, what: str) -> str | None:
    """Return what an instance has for one side of a condition."""
    return node.tags.get(what[len(TAG) :]) if what.startswith(TAG) else node.version


class Index:
    """Where in a list of instances those are that meet a condition.

    Made of one side of a condition at a time, when it is first asked for: O(n).
    """

    def __init__(self, nodes: Sequence[Instance]) -> None:
        self.nodes = nodes
        self._places: dict[str, dict[str, list[int]]] = {}

    @cached_property
    def identities(self) -> list[Hashable]:
        """Those of the instances."""
        return [node.identity for node in self.nodes]

    @cached_property
    def names(self) -> list[Hashable]:
        """What the instances are known by from list to list, no two by the same.

        Their identities; of several of one identity the second has its number with it.
        """
        counts: dict[Hashable, int] = {}
        found: list[Hashable] = []
        for identity in self.identities:
            n = counts[identity] = counts.get(identity, 0) + 1
            found.append(identity if n == 1 else (identity, n))
        return found

    def where(self, condition: Condition) -> list[int]:
        """Return the places of the instances that meet a condition, ascending. O(1)."""
        what, value = condition
        places = self._places.get(what)
        if places is None:
            places = {}
            for k, node in enumerate(self.nodes):
                found = value_of(node, what)
                if isinstance(found, str):  # a tag may be anything, a condition's value is a str
                    places.setdefault(found, []).append(k)
            if places:  # nobody has it: so many things may be asked for
                self._places[what] = places
        return places.get(value, [])

    def among(self, places: Iterable[int] | None, conditions: Iterable[Condition]) -> list[int]:
        """Return those of `places` (None: all) that meet all conditions, in their order."""
        rest = list(conditions)
        if places is None:
            if not rest:
                return list(range(len(self.nodes)))
            lists = sorted((self.where(condition) for condition in rest), key=len)
            places, rest = lists[0], rest if len(rest) > 1 else []
        return [
            k for k in places if all(value_of(self.nodes[k], what) == value for what, value in rest)
        ]


class Indexed(Part):
    """A filter that is found by an index: equal ones are one, however often they are made."""

    is_pure = True

    def places(self, index: Index, among: list[int] | None) -> list[int]:
        """Return those of the places `among` (None: all) that pass."""
        raise NotImplementedError

    def __call__(self, nodes: Sequence[Instance], /) -> list[Instance]:
        """Return those of `nodes` that pass. O(n)."""
        return [nodes[k] for k in self.places(Index(nodes), None)]


class Match(Indexed):
    """Lets those pass that meet a condition: its parts."""

    def places(self, index: Index, among: list[int] | None) -> list[int]:
        """Return those of the places `among` (None: all) that pass."""
        return index.where(self.parts) if among is None else index.among(among, [self.parts])

    def __repr__(self) -> str:
        what, value = self.parts
        return f"{what.removeprefix(TAG)} == {value!r}"


class Subset(Indexed):
    """Lets those pass that meet some conditions; where there are none, others.

    Its parts are the conditions, and the name of a fallback or the conditions of that.
    """

    def places(self, index: Index, among: list[int] | None) -> list[int]:
        """Return those of the places `among` (None: all) that pass."""
        wanted, fallback = self.parts
        found = index.among(among, wanted)
        if found or fallback == "none":
            return found
        if fallback == "any":
            return index.among(among, ())
        if fallback == "fewer keys":
            for n_keys in range(len(wanted) - 1, 0, -1):
                found = index.among(among, wanted[:n_keys])
                if found:
                    break
            return found
        return index.among(among, fallback)

    def __repr__(self) -> str:
        wanted, fallback = self.parts
        if not isinstance(fallback, str):
            fallback = _words(fallback)
        return f"subset {_words(wanted)}, else {fallback}"


class Where:
    """Lets those pass of which a predicate says so. Asked again for every request."""

    __slots__ = ("_predicate",)

    def __init__(self, predicate: Callable[[Instance], object]) -> None:
        self._predicate = predicate

    def places(self, index: Index, among: list[int] | None) -> list[int]:
        """Return those of the places `among` (None: all) that pass."""
        predicate, nodes = self._predicate, index.nodes
        return [k for k in (range(len(nodes)) if among is None else among) if predicate(nodes[k])]

    def __call__(self, nodes: Sequence[Instance], /) -> list[Instance]:
        """Return those of `nodes` that pass. O(n)."""
        predicate = self._predicate
        return [node for node in nodes if predicate(node)]

    def __repr__(self) -> str:
        return f"where {getattr(self._predicate, '__qualname__', self._predicate)}"


def version(value: str) -> NodeFilter:
    """Return the filter that lets instances of one version pass, by exact equality.

    Raises
    ------
    TypeError
        Not a str.
    """
    return Match("version", _text("value", value))


def metadata(key: str, value: str) -> NodeFilter:
    """Return the filter that lets instances pass whose tag `key` is `value`.

    Raises
    ------
    TypeError
        Not strs.
    """
    return Match(TAG + _text("key", key), _text("value", value))


def where(predicate: Callable[[Instance], object]) -> NodeFilter:
    """Return the filter that lets instances pass for which `predicate(instance)` is true.

    It is asked about every instance for every request: O(n). What depends on the instances
    alone is better said by `version`, `metadata` or `subset`.

    Raises
    ------
    TypeError
        Not callable.
    """
    if not callable(predicate):
        raise TypeError(f"predicate must be callable, got {predicate!r}")
    return Where(predicate)


def subset(
    wanted: Mapping[str, str],
    *,
    fallback: Literal["none", "any", "fewer keys"] | Mapping[str, str] = "none",
) -> NodeFilter:
    """Return the filter that lets instances pass that have all of some metadata.

    Parameters
    ----------
    wanted : mapping of str to str
        Tags; the key "version" is the instance's version.
    fallback : "none", "any", "fewer keys", or a mapping as `wanted`
        Who passes where nobody has all of it: nobody; everybody; who has all but the last
        key, all but the last two, and so on down to the first; or a default subset.

    Raises
    ------
    TypeError, ValueError
        Not strs; another fallback.

    Notes
    -----
    The fallbacks are those of Envoy's subset load balancer.
    """
    if not isinstance(fallback, Mapping) and fallback not in ("none", "any", "fewer keys"):
        raise ValueError(
            "fallback must be 'none', 'any', 'fewer keys' or a mapping of str to str, "
            f"got {fallback!r}"
        )
    return Subset(
        _conditions("wanted", wanted),
        fallback if isinstance(fallback, str) else _conditions("fallback", fallback),
    )


def _conditions(name: str, wanted: Mapping[str, str]) -> tuple[Condition, ...]:
    if not isinstance(wanted, Mapping):
        raise TypeError(f"{name} must be a mapping of str to str, got {wanted!r}")
    return tuple(
        (key if key == "version" else TAG + _text(f"{name}'s keys", key), _text(name, value))
        for key, value in wanted.items()
    )


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {value!r}")
    return value


def _words(conditions: Iterable[Condition]) -> str:
    return "{" + ", ".join(f"{w.removeprefix(TAG)}: {value!r}" for w, value in conditions) + "}"
