from collections.abc import Iterable, Sequence
from typing import TypeVar, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from rota.kernels.two_choices import TwoChoices

_T = TypeVar("_T")

@final
class LeastRequest(TwoChoices[_T]):
    def __new__(
        cls,
        instances: Iterable[_T],
        weights: Sequence[float] | NDArray[np.generic] | None = None,
        *,
        seed: int | None = None,
    ) -> Self: ...
    def acquire_index(self) -> int | None: ...
    def done(self, index: int, rtt: float, error: object = None) -> None: ...
    def pick(self) -> _T | None: ...
