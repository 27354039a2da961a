from collections.abc import Iterable, Sequence
from typing import TypeVar, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self, disjoint_base

from rota.kernels.picker import Picker

_T = TypeVar("_T")

def alias_table(
    weights: Sequence[float] | NDArray[np.generic], n_columns: int | None = None
) -> tuple[NDArray[np.uint64], NDArray[np.int32]]: ...

@disjoint_base
class Draws(Picker[_T]): ...

@final
class WeightedRandom(Draws[_T]):
    def __new__(
        cls,
        instances: Iterable[_T],
        weights: Sequence[float] | NDArray[np.generic] | None = None,
        *,
        seed: int | None = None,
    ) -> Self: ...
    def pick(self) -> _T | None: ...
    def index_of(self, bits: int, /) -> int | None: ...
    def alias_table(self) -> tuple[NDArray[np.uint64], NDArray[np.int32]]: ...
