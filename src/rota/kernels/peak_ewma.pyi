from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self, disjoint_base

from rota.kernels.two_choices import TwoChoices

_T = TypeVar("_T")

def log2(x: float, /) -> float: ...
def exp2(y: float, /) -> float: ...

@disjoint_base
class Averages: ...

@final
class PeakEwma(TwoChoices[_T]):
    def __new__(
        cls,
        instances: Iterable[_T],
        weights: Sequence[float] | NDArray[np.generic] | None = None,
        *,
        seed: int | None = None,
        decay: float = 10.0,
        timeout: float = 1.0,
        clock: Callable[[], float] | None = None,
        classify: Callable[[object], int] = ...,
    ) -> Self: ...
    def acquire_index(self) -> int | None: ...
    def done(self, index: int, rtt: float, error: object = None) -> None: ...
    def pick(self) -> _T | None: ...
    @property
    def latencies(self) -> NDArray[np.float64]: ...
