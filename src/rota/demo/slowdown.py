"""What happens to one selector: traffic, while one of five equal servers is slow for a time."""

import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import urllib3

from rota.demo.fleet import Fleet
from rota.demo.shift import (
    LAST_SECONDS,
    RETURN_WITHIN,
    WINDOW,
    Call,
    Shift,
    Times,
    seconds_to_return,
    shift_of,
)
from rota.demo.traffic import CLIENTS, Connections
from rota.selector import Selector

N_SERVERS = 5
DELAY = 0.005  # seconds that a request takes
SLOW_DELAY = 10 * DELAY

# By time and not by count of requests: a busy machine sends fewer, and a balancer that goes by
# latency forgets by time.
BEFORE_SECONDS = 2.0
SLOW_SECONDS = 3.0

TICK = 0.1  # seconds between two reports of progress


class Caller:
    """Sends one request after another through a selector, from a thread of its own.

    Parameters
    ----------
    selector : Selector
    slowed : str
        The address of the server that is slowed.

    Attributes
    ----------
    calls : list of Call
        Those that have ended.
    """

    def __init__(self, selector: Selector, slowed: str) -> None:
        self.calls: list[Call] = []
        self._selector = selector
        self._slowed = slowed
        self._connections = Connections()

    def run(self, stop: threading.Event) -> None:
        """Send requests until `stop` is set; sets it where something is wrong."""
        try:
            while not stop.is_set():
                self._send()
        except BaseException:
            stop.set()
            raise
        finally:
            self._connections.close()

    def since(self, moment: float) -> list[Call]:
        """Return the calls that have ended and began at `moment` or later."""
        return self.calls[bisect_left(self.calls, moment, key=lambda call: call.began) :]

    def _send(self) -> None:
        began = time.perf_counter()
        is_answered = True
        try:
            with self._selector.acquire() as node:
                self._connections.get(node.address)
        except urllib3.exceptions.HTTPError:
            is_answered = False  # no server is down: there is nothing to try again for
        seconds = time.perf_counter() - began
        self.calls.append(Call(began, seconds, node.address == self._slowed, is_answered))


def play(selector: Selector, report: Callable[[int], object]) -> Shift:
    """Send requests through `selector` to a fresh fleet; `report` gets the count so far.

    After 2 s one server becomes ten times slower, and recovers after another 3. Traffic ends
    1 s after its share has returned, or where it does not return 7 s after the recovery.
    """
    with Fleet() as fleet:
        instances = fleet.start(*[(1, DELAY)] * N_SERVERS)
        selector.apply(instances)
        slowed = instances[0].address
        callers = [Caller(selector, slowed) for _ in range(CLIENTS)]
        stop = threading.Event()

        def go_on(seconds: float) -> float:
            """Let the callers call for so long; returns what time it is then."""
            end = time.perf_counter() + seconds
            while (left := end - time.perf_counter()) > 0 and not stop.wait(min(left, TICK)):
                report(sum(len(caller.calls) for caller in callers))
            return time.perf_counter()

        with ThreadPoolExecutor(CLIENTS) as executor:
            try:
                running = [executor.submit(caller.run, stop) for caller in callers]
                slowed_at = go_on(BEFORE_SECONDS)
                fleet.set_delay(slowed, SLOW_DELAY)
                recovered_at = go_on(SLOW_SECONDS)
                fleet.set_delay(slowed, DELAY)
                while not stop.is_set():
                    times = Times(slowed_at, recovered_at, go_on(TICK))
                    if _is_over(callers, times):
                        break
            finally:
                stop.set()
        for future in running:
            future.result()
        calls = chain.from_iterable(caller.calls for caller in callers)
        return shift_of(calls, times, N_SERVERS)


def _is_over(callers: list[Caller], times: Times) -> bool:
    """Whether traffic has returned long enough ago, or there is no more time for it to."""
    since = times.ended - times.recovered
    if since >= RETURN_WITHIN + LAST_SECONDS:
        return True
    recent = sorted(call for caller in callers for call in caller.since(times.recovered - WINDOW))
    returned = seconds_to_return(recent, times, N_SERVERS)
    return returned is not None and since >= returned + LAST_SECONDS
