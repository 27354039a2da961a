"""Which of discovery's results to believe, and when.

A registry that restarts, a network that splits, a deploy of everything at once: discovery then
says what is not so, or says it in a hundred small steps. Kitex believes an empty list and
fails every request; Kratos never believes one and keeps a dead list for ever. Here an empty
list is believed once it has been said for long enough. After Finagle's StabilizingAddr, which
holds back what is removed; and gRPC's and Envoy's windows, which gather changes.

No clock and no timer: whoever has one asks.
"""

import math
from dataclasses import dataclass

from rota.arguments import as_duration, as_seconds
from rota.discovery.instance import Instance
from rota.discovery.result import Result


@dataclass(frozen=True, slots=True)
class UpdatePolicy:
    """What is believed of discovery.

    Parameters
    ----------
    empty_grace : float, seconds >= 0
        For how long a list must have been empty to be believed; inf: never.
    max_removed : float in (0, 1], or None
        The share of the instances that may leave in one step; at least one may. None: all.
    step : float, seconds in [1e-6, 1e9]
        Between two such steps.
    debounce : float, seconds >= 0, finite
        A change that comes later than this after the last one is made at once; what comes
        sooner is gathered until then.

    Raises
    ------
    TypeError, ValueError
        A number of use to nobody.
    """

    empty_grace: float = 30.0
    max_removed: float | None = None
    step: float = 5.0
    debounce: float = 0.1

    def __post_init__(self) -> None:
        as_duration("step", self.step)
        as_seconds("debounce", self.debounce)
        if self.empty_grace != math.inf:
            as_seconds("empty_grace", self.empty_grace)
        share = self.max_removed
        if share is None:
            return
        if isinstance(share, bool) or not isinstance(share, (int, float)):
            raise TypeError(f"max_removed must be a number or None, got {share!r}")
        if not 0 < share <= 1:
            raise ValueError(f"max_removed must be in (0, 1], got {share}")


class Stabilizer:
    """Takes what discovery says, and gives what is believed of it.

    Parameters
    ----------
    first : Result
        Believed at once: there was nothing before.
    policy : UpdatePolicy

    Notes
    -----
    Times are seconds of any one clock that does not go back.
    """

    def __init__(self, first: Result, policy: UpdatePolicy) -> None:
        self._policy = policy
        self._believed = first
        self._said = first  # last
        self._good = first  # what was said last of somebody
        self._considered = first  # what `believed` was made of
        self._n_kept = 0  # who is said to have left, and is believed to be there
        self._empty_since: float | None = None  # since when nobody is said to be there
        self._is_empty_believed = True
        self._quiet_from = -math.inf  # from then on a change is made at once
        self._next_step = -math.inf

    @property
    def believed(self) -> Result:
        """What is believed."""
        return self._believed

    def offer(self, said: Result, now: float) -> None:
        """Discovery says this. O(1)."""
        self._said = said
        if said.instances:
            self._good = said
            self._empty_since = None
            self._is_empty_believed = False
        elif self._empty_since is None:
            self._empty_since = now
            self._is_empty_believed = not self._believed.instances

    def due(self) -> float | None:
        """Return from when on `release` gives something; None: it would not."""
        dues = []
        if self._wanted is not self._considered:
            dues.append(self._quiet_from)
        elif self._n_kept:
            dues.append(self._next_step)
        if not self._is_empty_believed and self._empty_since is not None:
            dues.append(self._empty_since + self._policy.empty_grace)
        due = max(self._quiet_from, min(dues, default=math.inf))
        return None if due == math.inf else due

    def release(self, now: float) -> Result | None:
        """Return what is to be believed from now on; None: nothing new. O(n)."""
        if now < self._quiet_from:
            return None
        if self._empty_since is not None and now >= self._empty_since + self._policy.empty_grace:
            self._is_empty_believed = True
        wanted = self._wanted
        if wanted is self._considered and not (self._n_kept and now >= self._next_step):
            return None
        kept = self._kept(wanted, now)
        self._considered = self._believed = wanted
        self._n_kept = len(kept)
        self._quiet_from = now + self._policy.debounce
        if kept:
            instances = (*wanted.instances, *kept)
            self._believed = Result(wanted.cacheable, wanted.cache_key, instances)
        return self._believed

    @property
    def _wanted(self) -> Result:
        return self._said if self._said.instances or self._is_empty_believed else self._good

    def _kept(self, wanted: Result, now: float) -> tuple[Instance, ...]:
        """Return who would leave, but not in this step."""
        share = self._policy.max_removed
        if share is None:
            return ()
        before = self._believed.instances
        there = {instance.address for instance in wanted.instances}
        leaving = tuple([instance for instance in before if instance.address not in there])
        if not leaving or now < self._next_step:
            return leaving
        self._next_step = now + self._policy.step
        return leaving[max(1, int(share * len(before))) :]
