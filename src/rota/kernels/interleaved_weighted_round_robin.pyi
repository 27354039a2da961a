from collections.abc import Iterable, Sequence
from typing import TypeVar, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from rota.kernels.picker import Picker

T = TypeVar("T")

@final
class InterleavedWeightedRoundRobin(Picker[T]):
    def __new__(
        cls,
        instances: Iterable[T],
        weights: Sequence[float] | NDArray[np.generic] | None = None,
        *,
        seed: int | None = None,
        start: int | None = None,
    ) -> Self: ...
    def pick(self) -> T | None: ...
