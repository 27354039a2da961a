"""Whether traffic moved off a server that became slow, and when it returned: from the calls."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from math import ceil
from typing import NamedTuple

from rota.demo.traffic import AFTER, BEFORE

SLOW = "slow"

WINDOW = 0.25  # seconds
LEAST_PICKS = 20  # in a window that is to tell anything: four for each of five servers
OFF = 1 / 4  # of an equal share: below it traffic has moved off
BACK = 1 / 2  # of an equal share: from it on traffic has returned

LEAVE_WITHIN = 1.0  # seconds
RETURN_WITHIN = 6.0
LAST_SECONDS = 1.0  # of the traffic, after the return


class Call(NamedTuple):
    """One request.

    Parameters
    ----------
    began, seconds : float
        When, by any clock, and how long it took.
    is_slowed : bool
        Whether it went to the server that is slowed.
    is_answered : bool
    """

    began: float
    seconds: float
    is_slowed: bool
    is_answered: bool = True


@dataclass(frozen=True, slots=True)
class Times:
    """When the server was slowed, when it recovered, and when traffic ended."""

    slowed: float
    recovered: float
    ended: float


@dataclass(frozen=True, slots=True)
class Phase:
    """The requests that began in one phase.

    Parameters
    ----------
    name : str
    n_requests : int
    share : float
        Of the slowed server, a fraction of 1.
    p50, p99 : float
        Seconds that half, and 99 of 100, took at most.
    """

    name: str
    n_requests: int
    share: float
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Shift:
    """What traffic did about a server that was slow for a time.

    Parameters
    ----------
    phases : list of Phase
        Before, while it was slow, and after it had recovered.
    last_share : float
        That of the slowed server in the last second: after the return, where there was one.
    lost : int
        Requests that were not answered.
    left : float or None
        Seconds from the slowing until traffic had moved off; None: it had not when the
        server recovered.
    returned : float or None
        Seconds from the recovery until it had returned; None: it had not in the end, or it
        had not left.
    """

    phases: list[Phase]
    last_share: float
    lost: int
    left: float | None
    returned: float | None

    @property
    def n_requests(self) -> int:
        """How many requests were sent."""
        return sum(phase.n_requests for phase in self.phases)

    @property
    def has_left(self) -> bool:
        """Whether traffic left the slow server at all: otherwise it cannot return."""
        return self.left is not None

    @property
    def ok(self) -> bool:
        """Whether traffic left and returned in time, and none was lost."""
        return (
            self.lost == 0
            and self.left is not None
            and self.left <= LEAVE_WITHIN
            and self.returned is not None
            and self.returned <= RETURN_WITHIN
        )


def shift_of(calls: Iterable[Call], times: Times, n_servers: int) -> Shift:
    """Return what came of these calls, to so many servers of equal weight."""
    ordered = sorted(calls)
    slowed, recovered = times.slowed, times.recovered
    last = max(recovered, times.ended - LAST_SECONDS)
    left = seconds_to_leave(ordered, times, n_servers)
    return Shift(
        phases=[
            _phase(BEFORE, [call for call in ordered if call.began < slowed]),
            _phase(SLOW, [call for call in ordered if slowed <= call.began < recovered]),
            _phase(AFTER, [call for call in ordered if recovered <= call.began]),
        ],
        last_share=_share([call for call in ordered if last <= call.began]),
        lost=sum(not call.is_answered for call in ordered),
        left=left,
        returned=None if left is None else seconds_to_return(ordered, times, n_servers),
    )


def seconds_to_leave(calls: list[Call], times: Times, n_servers: int) -> float | None:
    """Return how long after the slowing traffic had moved off: below a quarter of an equal share.

    `calls` are in the order in which they began. None: it had not when the server recovered.
    """
    return _seconds_until(
        lambda share: share < OFF / n_servers, calls, times.slowed, times.recovered
    )


def seconds_to_return(calls: list[Call], times: Times, n_servers: int) -> float | None:
    """Return how long after the recovery traffic had returned: half of an equal share, or more.

    `calls` are in the order in which they began. None: it had not when traffic ended.
    """
    return _seconds_until(
        lambda share: share >= BACK / n_servers, calls, times.recovered, times.ended
    )


def _seconds_until(
    holds: Callable[[float], bool], calls: list[Call], begin: float, end: float
) -> float | None:
    """Return how long after `begin` it holds of the share, and does until `end`; or None.

    That is at the first pick where it holds of all picks in the window that ends there, and
    of all that follow, taken together. The window looks back, so nothing is said to have
    happened before it had. What follows is not judged window by window: to try a slow server
    again now and then is a selector's duty, and no return.
    """
    began = [call.began for call in calls]
    n_slowed = [0, *accumulate(call.is_slowed for call in calls)]
    first, last = bisect_left(began, begin), bisect_right(began, end)
    for k in range(first, last):
        oldest = bisect_left(began, began[k] - WINDOW)
        n = k + 1 - oldest
        if n < LEAST_PICKS or not holds((n_slowed[k + 1] - n_slowed[oldest]) / n):
            continue
        n_rest = last - (k + 1)
        if n_rest == 0 or holds((n_slowed[last] - n_slowed[k + 1]) / n_rest):
            return began[k] - begin
    return None


def _phase(name: str, calls: list[Call]) -> Phase:
    n = len(calls)
    seconds = sorted(call.seconds for call in calls) or [0.0]
    p50, p99 = (seconds[max(0, ceil(n * part) - 1)] for part in (0.5, 0.99))
    return Phase(name, n, _share(calls), p50, p99)


def _share(calls: list[Call]) -> float:
    """Return the slowed server's share of these calls."""
    return sum(call.is_slowed for call in calls) / max(1, len(calls))
