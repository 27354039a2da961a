from collections.abc import Iterable, Sequence
from typing import TypeVar, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from rota.kernels.picker import Picker

T = TypeVar("T")

def alias_table(
    weights: Sequence[float] | NDArray[np.generic], n_columns: int | None = None
) -> tuple[NDArray[np.uint64], NDArray[np.int32]]: ...

@final
class WeightedRandom(Picker[T]):
    def __new__(
        cls,
        instances: Iterable[T],
        weights: Sequence[float] | NDArray[np.generic] | None = None,
        *,
        seed: int | None = None,
    ) -> Self: ...
    def pick(self) -> T | None: ...
    def index_of(self, bits: int) -> int | None: ...
    def alias_table(self) -> tuple[NDArray[np.uint64], NDArray[np.int32]]: ...
