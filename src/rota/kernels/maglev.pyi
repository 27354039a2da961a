from collections.abc import Callable, Iterable, Sequence
from typing import Any, SupportsIndex, TypeVar, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer, Self

from rota.kernels.hash_picker import HashPicker

_T = TypeVar("_T")

@final
class Maglev(HashPicker[_T]):
    def __new__(
        cls,
        instances: Iterable[_T],
        weights: Sequence[float] | NDArray[np.generic] | None = None,
        *,
        table_size: int = 65537,
        get_key: Callable[[Any, Any], Any] | None = None,
        load_factor: float | None = None,
        replicas: int | None = None,
        name: Callable[[_T], str | bytes] | None = None,
    ) -> Self: ...
    def pick(self, key: str | Buffer | SupportsIndex, /) -> _T | None: ...
    def table_of_indices(self) -> NDArray[np.int32]: ...
    def __reduce__(self) -> tuple[Any, ...]: ...
