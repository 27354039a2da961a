"""The clients of the demo: threads that send real requests, and count what became of them."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import urllib3

from rota.discovery import Instance
from rota.loadbalance import Picker
from rota.retry import RetryPolicy, call
from rota.selector import NoAvailableInstance

PHASES = BEFORE, DURING, AFTER = "before", "during", "after"

CLIENTS = 8
TIMEOUT = urllib3.Timeout(connect=5, read=10)

# As often as Kitex tries to connect; after any failure, since a request may be made twice here;
# without a budget, since none may be lost however many meet the server that was killed.
POLICY = RetryPolicy(max_attempts=6, retry_on=urllib3.exceptions.HTTPError, budget=None)


class Tickets:
    """Numbers the requests, and says to which phase each belongs.

    The first 40 % are `before`, the next 20 % `during`, the rest `after`. Nobody gets a
    ticket of `after` until `open_after` is called. Any number of threads may take.

    Parameters
    ----------
    n_requests : int
    begin_during : callable
        Called once, by the thread that takes the first ticket of `during`, before that
        request is sent.

    Attributes
    ----------
    n_taken : int
    during : threading.Event
        Set once `during` has begun, or the tickets were stopped.
    """

    def __init__(self, n_requests: int, begin_during: Callable[[], object]) -> None:
        self.n_requests = n_requests
        self.n_taken = 0
        self.during = threading.Event()
        self._first_during = n_requests * 4 // 10
        self._first_after = n_requests * 6 // 10
        self._begin_during = begin_during
        self._lock = threading.Lock()
        self._after = threading.Event()
        self._stopped = False

    def take(self) -> str | None:
        """Return the phase of the next request, None when there are no more."""
        with self._lock:
            if self._stopped or self.n_taken == self.n_requests:
                return None
            number = self.n_taken
            self.n_taken += 1
        if number < self._first_during:
            return BEFORE
        if number == self._first_during:
            self._begin_during()
            self.during.set()
        if number < self._first_after:
            return DURING
        self._after.wait()
        return None if self._stopped else AFTER

    def open_after(self) -> None:
        """Let the last phase begin."""
        self._after.set()

    def stop(self) -> None:
        """Hand out no more tickets; those who wait for one get None."""
        self._stopped = True
        self.during.set()
        self._after.set()


@dataclass(slots=True)
class Tally:
    """What became of requests.

    Parameters
    ----------
    first_picks : dict of str to Counter
        For each phase, how often each address was the first to be tried.
    lost : int
        Requests that no attempt answered.
    retried : int
        Requests that took more than one attempt.
    """

    first_picks: dict[str, Counter[str]] = field(
        default_factory=lambda: {phase: Counter() for phase in PHASES}
    )
    lost: int = 0
    retried: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            {phase: self.first_picks[phase] + other.first_picks[phase] for phase in PHASES},
            self.lost + other.lost,
            self.retried + other.retried,
        )


class Connections:
    """One thread's connections, kept open from request to request."""

    def __init__(self) -> None:
        self._pools: dict[str, urllib3.HTTPConnectionPool] = {}

    def get(self, address: str) -> None:
        """Send a request to the server at `address`; returns when it has answered 200.

        Raises
        ------
        urllib3.exceptions.HTTPError
            It did not.
        """
        pool = self._pools.get(address)
        if pool is None:
            host, _, port = address.rpartition(":")
            pool = urllib3.HTTPConnectionPool(host, int(port), timeout=TIMEOUT, retries=False)
            self._pools[address] = pool
        status = pool.urlopen("GET", "/").status
        if status != 200:
            raise urllib3.exceptions.HTTPError(f"{address} answered {status}")

    def close(self) -> None:
        """Close them all."""
        for pool in self._pools.values():
            pool.close()


class Client:
    """Sends a request for each ticket, from a thread of its own.

    Parameters
    ----------
    get_picker : callable
        Gives the picker to use now.
    on_failure : callable
        Called after each attempt that got no answer.
    """

    def __init__(
        self, get_picker: Callable[[], Picker[Instance]], on_failure: Callable[[], object]
    ) -> None:
        self._get_picker = get_picker
        self._on_failure = on_failure
        self._connections = Connections()
        self._tally = Tally()

    def run(self, tickets: Tickets) -> Tally:
        """Send a request for each ticket, until there are no more."""
        try:
            while (phase := tickets.take()) is not None:
                self._send(self._tally.first_picks[phase])
        except BaseException:
            tickets.stop()
            raise
        finally:
            self._connections.close()
        return self._tally

    def _send(self, first_picks: Counter[str]) -> None:
        n_failed = 0

        def send(instance: Instance) -> None:
            nonlocal n_failed
            if n_failed == 0:
                first_picks[instance.address] += 1
            elif n_failed == 1:
                self._tally.retried += 1
            try:
                self._connections.get(instance.address)
            except urllib3.exceptions.HTTPError:
                n_failed += 1
                self._on_failure()
                raise

        try:
            call(self._get_picker, send, POLICY)
        except (urllib3.exceptions.HTTPError, NoAvailableInstance):
            self._tally.lost += 1
