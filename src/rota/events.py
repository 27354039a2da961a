"""The event bus that carries discovery's changes to those who balance."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

DISCOVERY_CHANGE = "discovery_change"
DISCOVERY_DELETE = "discovery_delete"

DEFAULT_CAPACITY = 200


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Parameters
    ----------
    name : str
        What; those who watch this name are called.
    detail : str
        For people.
    extra : object
        For programs: the `Change`, with the two discovery events.
    time : float
        Seconds since the epoch.
    """

    name: str
    detail: str = ""
    extra: object = None
    time: float = field(default_factory=time.time)


Callback = Callable[[Event], object]


@dataclass(slots=True)
class _Delivery:
    event: Event
    callbacks: tuple[Callback, ...]
    done: threading.Event = field(default_factory=threading.Event)


class EventBus:
    """Calls those who watch an event, in the order in which events were dispatched.

    Callbacks run one after another on one thread of the bus, which lives only while there
    is something to deliver. One that raises is logged and hinders nobody. After Kitex's
    bus, which calls each on a goroutine of its own, so that two changes of one service can
    overtake each other.

    A child process forked while nothing is being dispatched has a working bus of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer may end a watch in the middle of anything
        self._watchers: dict[str, tuple[Callback, ...]] = {}
        self._pending: deque[_Delivery] = deque()
        self._worker: threading.Thread | None = None

    def watch(self, name: str, callback: Callback) -> None:
        """Call `callback` with each event of this name, once for each time it watches."""
        if not callable(callback):
            raise TypeError(f"callback must be callable, got {callback!r}")
        with self._lock:
            self._watchers[name] = (*self._watchers.get(name, ()), callback)

    def unwatch(self, name: str, callback: Callback) -> None:
        """Take one watch of `callback` back; nothing happens when there is none."""
        with self._lock:
            watchers = list(self._watchers.get(name, ()))
            if callback in watchers:
                watchers.remove(callback)
                self._watchers[name] = tuple(watchers)

    def dispatch(self, event: Event) -> None:
        """Have the event delivered to those who watch it now; returns at once."""
        self._enqueue(event)

    def dispatch_and_wait(self, event: Event) -> None:
        """Deliver the event; returns when every callback has.

        From within a callback it is delivered at once, ahead of what else is pending:
        waiting for its turn would wait for ever.
        """
        if threading.current_thread() is self._worker:
            _deliver(self._delivery(event))
        else:
            self._enqueue(event).done.wait()

    def _delivery(self, event: Event) -> _Delivery:
        if not isinstance(event, Event):
            raise TypeError(f"event must be an Event, got {event!r}")
        return _Delivery(event, self._watchers.get(event.name, ()))

    def _enqueue(self, event: Event) -> _Delivery:
        with self._lock:
            delivery = self._delivery(event)
            self._pending.append(delivery)
            # In a child process the worker's thread is not alive.
            if self._worker is None or not self._worker.is_alive():
                self._worker = threading.Thread(
                    target=self._work, name="rota-event-bus", daemon=True
                )
                self._worker.start()
        return delivery

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._pending:
                    self._worker = None
                    return
                delivery = self._pending.popleft()
            _deliver(delivery)


def _deliver(delivery: _Delivery) -> None:
    for callback in delivery.callbacks:
        _call(callback, delivery.event)
    delivery.done.set()


def _call(callback: Callback, event: Event) -> None:
    try:
        callback(event)
    except BaseException:  # SystemExit too: the thread is the bus's, not the callback's to end
        logger.exception("%r failed on the event %r", callback, event.name)


class EventQueue:
    """The last `capacity` events, for those who look afterwards.

    Parameters
    ----------
    capacity : int, >= 1

    Raises
    ------
    TypeError, ValueError
        `capacity` is no integer, or less than 1.
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        if not isinstance(capacity, int) or isinstance(capacity, bool):
            raise TypeError(f"capacity must be an integer, got {capacity!r}")
        if capacity < 1:
            raise ValueError(f"capacity must be >= 1, got {capacity}")
        self._events: deque[Event] = deque(maxlen=capacity)

    def push(self, event: Event) -> None:
        """Add an event; the oldest makes room. Fit to watch an `EventBus`."""
        self._events.append(event)

    def dump(self) -> list[Event]:
        """Return the events, newest first."""
        return list(self._events)[::-1]

    def __len__(self) -> int:
        return len(self._events)
