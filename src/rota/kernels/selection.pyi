from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any

from typing_extensions import disjoint_base

@disjoint_base
class Part:
    def __new__(cls, *parts: Any) -> Part: ...
    @property
    def parts(self) -> tuple[Any, ...]: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

@disjoint_base
class Selection:
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
    ) -> tuple[Any, Any]: ...
    def __reduce__(self) -> tuple[Any, ...]: ...
