"""When a call is tried again."""

from collections.abc import Callable
from dataclasses import dataclass
from random import SystemRandom
from typing import Any

from rota.arguments import as_duration, as_seconds, as_uint64
from rota.outcome import Outcome, outcome_of
from rota.retry.budget import RetryBudget
from rota.retry.retryable import connect_failure

RetryOn = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], object]

# One of its own, where any retry may burden a server.
_FITTING: Any = object()

# The system's: the children of a fork do not wait in step, and nobody's seeded numbers are used.
_random = SystemRandom()


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a call is tried again, and how often.

    Make one for each client and keep it: its budget is for all calls made under it.

    Parameters
    ----------
    max_attempts : int >= 1
        For one call, in all its rounds, the first included.
    retry_on : exception type, tuple of these, or callable (error) -> bool
        The errors after which another attempt may be made. The default, `connect_failure`: those
        after which no server has seen the request. For calls that may be made twice:
        `any_failure`. What is no Exception is never retried, nor a cancellation, wrapped or not.
    deadline : float or None
        Seconds for the call and all its attempts and pauses, in [1e-6, 1e9]. No attempt begins
        after it; `call_async` cancels one that is under way by then.
    budget : RetryBudget or None
        What retries are taken from, but for those after a `connect_failure`, since a connect that
        is refused is no burden to a server; None: there may be any number. The default is none
        for `retry_on=connect_failure`, and else a `RetryBudget()` of this policy's own.
    pause : float
        Seconds between the first round and the second, at the most; twice as long before each
        round that follows. A pause is drawn between half of that and all of it. Within a round
        there is none.
    max_pause : float
        Seconds that no pause is longer than. Where all servers have said to be left alone for
        longer (Retry-After) there is no other round.

    Raises
    ------
    TypeError, ValueError
        A field of no use.
    """

    max_attempts: int = 6
    retry_on: RetryOn = connect_failure
    deadline: float | None = None
    budget: RetryBudget | None = _FITTING
    pause: float = 0.02
    max_pause: float = 1.0

    def __post_init__(self) -> None:
        as_uint64("max_attempts", self.max_attempts, 1)
        on = self.retry_on
        kinds: Any = on if isinstance(on, tuple) else (on,)
        if (isinstance(on, (tuple, type)) or not callable(on)) and not all(
            isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds
        ):
            raise TypeError(f"retry_on must be exception types or a callable, got {on!r}")
        if self.deadline is not None:
            as_duration("deadline", self.deadline)
        as_seconds("pause", self.pause)
        as_seconds("max_pause", self.max_pause)
        if self.budget is _FITTING:
            object.__setattr__(self, "budget", None if on is connect_failure else RetryBudget())
        elif self.budget is not None and not isinstance(self.budget, RetryBudget):
            raise TypeError(f"budget must be a RetryBudget or None, got {self.budget!r}")

    def may_follow(self, error: BaseException) -> bool:
        """Whether another attempt may be made after one that ended with this error."""
        if not isinstance(error, Exception) or outcome_of(error) is Outcome.CANCELLED:
            return False
        on = self.retry_on
        if isinstance(on, (type, tuple)):
            return isinstance(error, on)
        return bool(on(error))

    def draw_pause(self, n_rounds: int) -> float:
        """Return how long to wait after so many rounds, seconds: another number each time."""
        doublings = min(n_rounds - 1, 1000)  # a float holds no more than 1023
        longest = min(self.pause * 2.0**doublings, self.max_pause)
        return _random.uniform(longest / 2, longest)
