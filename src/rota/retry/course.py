"""How one call goes on under its policy: what `call` and `call_async` have in common."""

import asyncio
import logging
import math
import sys
from collections import deque
from collections.abc import Iterable
from time import monotonic

from rota.outcome import retry_after_of
from rota.retry.policy import RetryPolicy
from rota.retry.retryable import connect_failure

logger = logging.getLogger(__name__)

# That a traceback shows: a call may be tried again for hours.
MOST_ERRORS = 16

if sys.version_info >= (3, 11):

    class DeadlineExceeded(TimeoutError):
        """The deadline of a call has passed in the middle of an attempt, or before the first."""

else:

    class DeadlineExceeded(TimeoutError, asyncio.TimeoutError):
        """The deadline of a call has passed in the middle of an attempt, or before the first."""


def check(function: object, policy: object) -> None:
    """Raise TypeError where an argument of `call` is of no use."""
    if not callable(function):
        raise TypeError(f"function must be callable, got {function!r}")
    if not isinstance(policy, RetryPolicy):
        raise TypeError(f"policy must be a RetryPolicy, got {policy!r}")


def begin(policy: RetryPolicy) -> float | None:
    """Count a call in; return when its deadline is, by `time.monotonic`."""
    if policy.budget is not None:
        policy.budget.deposit()
    return None if policy.deadline is None else monotonic() + policy.deadline


def check_time(end: float, course: "Course | None") -> None:
    """Raise what there is to raise where the deadline has passed before a round could begin."""
    if monotonic() >= end:
        if course is not None:
            raise course.last_error()
        raise DeadlineExceeded("the deadline passed before there was an instance to try")


class Course:
    """How a call goes on, once an attempt of it has failed.

    Parameters
    ----------
    policy : RetryPolicy
    end : float or None
        What `begin` gave.
    """

    __slots__ = ("_end", "_errors", "_n_before", "_n_failed", "_n_rounds", "_policy", "_soonest")

    def __init__(self, policy: RetryPolicy, end: float | None) -> None:
        self._policy = policy
        self._end = end
        self._errors: deque[BaseException] = deque(maxlen=MOST_ERRORS)  # that another followed
        self._n_failed = 0  # attempts that another follows
        self._n_before = 0  # of these, those before this round
        self._n_rounds = 1
        self._soonest = math.inf  # when one of those tried in this round may be tried again

    def goes_on(self, error: BaseException) -> bool:
        """Whether another attempt follows one that ended with this error. False: raise it."""
        policy = self._policy
        n_attempts = self._n_failed + 1
        if (
            n_attempts < policy.max_attempts
            and not self._is_late()
            and policy.may_follow(error)
            and self._is_let(error)
        ):
            logger.debug("attempt %d failed, another follows: %r", n_attempts, error)
            self._errors.append(error)
            self._n_failed += 1
            self._soonest = min(self._soonest, monotonic() + (retry_after_of(error) or 0.0))
            return True
        _show_earlier(error, self._errors)
        return False

    def pause(self) -> float:
        """Return how long to wait between the round that has ended and the next, seconds.

        Raises
        ------
        Exception
            The last error, where nobody was there this time, or no time is left for a pause, or
            all servers want to be left alone for longer than the policy's `max_pause`.
        """
        is_nobody_there = self._n_failed == self._n_before
        now = monotonic()
        wanted = self._soonest - now
        seconds = max(self._policy.draw_pause(self._n_rounds), wanted)
        is_too_long = wanted > self._policy.max_pause or (
            self._end is not None and now + seconds >= self._end
        )
        if is_nobody_there or is_too_long:
            raise self.last_error()
        self._n_rounds += 1
        self._n_before = self._n_failed
        self._soonest = math.inf
        return seconds

    def last_error(self) -> BaseException:
        """Return the last error, to be raised."""
        error = self._errors.pop()
        _show_earlier(error, self._errors)
        return error

    def forget(self) -> None:
        """Let the errors go: their tracebacks hold whoever holds them."""
        self._errors.clear()

    def _is_late(self) -> bool:
        return self._end is not None and monotonic() >= self._end

    def _is_let(self, error: BaseException) -> bool:
        budget = self._policy.budget
        if budget is None or connect_failure(error) or budget.withdraw():
            return True
        logger.debug("%r lets no retry through after %r", budget, error)
        return False


def _show_earlier(error: BaseException, earlier: Iterable[BaseException]) -> None:
    """Have the traceback of an error show earlier ones, the latest first.

    As Python does where an error is raised while another one is handled: the earlier one becomes
    the context of the first error in its chain. One that is in the chain already, since the same
    object was raised again, is left out.
    """
    chain = _contexts(error)
    seen = {id(each) for each in chain}
    for older in reversed(tuple(earlier)):
        more = _contexts(older)
        if seen.isdisjoint(map(id, more)):
            chain[-1].__context__ = older
            chain = more
            seen.update(map(id, more))


def _contexts(error: BaseException) -> list[BaseException]:
    """Return an error, its context, the context of that, and so on, each once."""
    found: list[BaseException] = []
    seen: set[int] = set()
    context: BaseException | None = error
    while context is not None and id(context) not in seen:
        found.append(context)
        seen.add(id(context))
        context = context.__context__
    return found
