from collections.abc import Callable, Iterable, Sequence
from typing import Any, SupportsIndex, TypeVar, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer, Self

from rota.kernels.hash_picker import HashPicker

_T = TypeVar("_T")

@final
class ConsistentHash(HashPicker[_T]):
    def __new__(
        cls,
        instances: Iterable[_T],
        weights: Sequence[float] | NDArray[np.generic] | None = None,
        *,
        virtual_factor: int = 160,
        weighted: bool = True,
        points: str = "murmur3",
        get_key: Callable[[Any, Any], Any] | None = None,
        load_factor: float | None = None,
        replicas: int | None = None,
        name: Callable[[_T], str | bytes] | None = None,
    ) -> Self: ...
    def pick(self, key: str | Buffer | SupportsIndex, /) -> _T | None: ...
    def arcs(self) -> tuple[NDArray[np.uint64], list[bytes]]: ...
    def __reduce__(self) -> tuple[Any, ...]: ...
