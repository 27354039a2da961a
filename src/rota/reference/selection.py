"""Reference of kernels.selection."""

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any


class Part:
    """Something known by what it is made of."""

    __slots__ = ("parts",)

    parts: tuple[Any, ...]

    def __new__(cls, *parts: Any) -> "Part":
        self = super().__new__(cls)
        hash(parts)
        self.parts = parts
        return self

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash((type(self), self.parts))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.parts


class Selection:
    """The base of a selector: how requests go through it."""

    _select: Callable[..., Any]
    _is_keyed: bool
    _version: object
    _groups: dict[Any, tuple[object, Any, Callable[..., Any]]]
    _peers: ContextVar[Any]

    def select(
        self,
        *,
        filters: Sequence[Any] = (),
        exclude: Iterable[Any] = (),
        key: Any = None,
    ) -> tuple[Any, Any]:
        """Select an instance for a request: (instance, done)."""
        selected = self._by_known(filters, exclude, key)
        if selected is None:
            raise self._refuse(filters, exclude)
        if not isinstance(selected, tuple) or len(selected) != 2:
            raise TypeError(f"select must return (instance, done) or None, got {selected!r}")
        peer = self._peers.get()
        if peer is not None:
            peer.node = selected[0]
        return selected

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a selector cannot be copied: its builder makes another one")

    def _by_known(self, filters: Sequence[Any], exclude: Iterable[Any], key: Any) -> Any:
        if exclude == () and key is None and not self._is_keyed:
            if filters == ():
                return self._select()
            try:
                known = self._groups.get(filters)
            except TypeError:
                known = None  # a list, or a filter that is no key
            if isinstance(known, tuple) and len(known) == 3 and known[0] is self._version:
                return known[2]()
        return self._find(filters, exclude, key)

    def _find(self, filters: Sequence[Any], exclude: Iterable[Any], key: Any) -> Any:
        raise NotImplementedError

    def _refuse(self, filters: Sequence[Any], exclude: Iterable[Any]) -> Exception:
        raise NotImplementedError
