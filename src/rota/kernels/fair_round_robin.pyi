from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TypeVar, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from rota.kernels.picker import Picker

_T = TypeVar("_T")

@final
class FairRoundRobin(Picker[_T]):
    def __new__(
        cls,
        instances: Iterable[_T],
        weights: Sequence[float] | NDArray[np.generic] | None = None,
        *,
        seed: int | None = None,
        start: int | None = None,
    ) -> Self: ...
    def pick(self) -> _T | None: ...
    @property
    def lags(self) -> list[Fraction]: ...
