import gc
import logging
import threading
import weakref

import pytest

from rota import Event, EventBus, EventQueue


def test_watchers_get_their_events_in_order():
    bus, got = EventBus(), []
    bus.watch("a", got.append)
    for i in range(100):
        bus.dispatch(Event("a", extra=i))
        bus.dispatch(Event("b", extra=i))
    bus.dispatch_and_wait(Event("marker"))
    assert [event.extra for event in got] == list(range(100))


def test_nothing_is_called_before_a_dispatch_and_dispatch_does_not_wait():
    bus, started, go_on = EventBus(), threading.Event(), threading.Event()

    def slow(event):
        started.set()
        go_on.wait(60)

    bus.watch("a", slow)
    assert not started.is_set()
    bus.dispatch(Event("a"))
    assert started.wait(60)
    assert not go_on.is_set()  # dispatch came back while the callback is still at it
    go_on.set()
    bus.dispatch_and_wait(Event("a"))


def test_dispatch_and_wait_waits():
    bus, done = EventBus(), []

    def slow(event):
        threading.Event().wait(0.05)
        done.append(event)

    bus.watch("a", slow)
    bus.watch("a", slow)
    bus.dispatch_and_wait(Event("a"))
    assert len(done) == 2


def test_unwatch_silences_one_watch():
    bus, one, other = EventBus(), [], []
    bus.watch("a", one.append)
    bus.watch("a", one.append)
    bus.watch("a", other.append)
    bus.unwatch("a", one.append)
    bus.unwatch("a", print)
    bus.unwatch("never", print)
    bus.dispatch_and_wait(Event("a"))
    assert (len(one), len(other)) == (1, 1)


def test_a_failing_callback_hinders_nobody(caplog):
    bus, got = EventBus(), []
    bus.watch("a", lambda event: 1 / 0)
    bus.watch("a", got.append)
    with caplog.at_level(logging.ERROR, logger="rota.events"):
        bus.dispatch_and_wait(Event("a"))
        bus.dispatch_and_wait(Event("a"))
    assert len(got) == 2
    assert [record.exc_info[0] for record in caplog.records] == [ZeroDivisionError] * 2


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_callback_cannot_end_the_bus(error, caplog):
    bus, got = EventBus(), []

    def fail(event):
        raise error

    bus.watch("a", fail)
    bus.watch("a", got.append)
    for _ in range(20):
        bus.dispatch(Event("a"))
    bus.dispatch_and_wait(Event("a"))
    assert len(got) == 21
    assert len(caplog.records) == 21


def test_events_from_within_a_callback():
    bus, got = EventBus(), []

    def outer(event):
        bus.dispatch(Event("inner", extra="later"))
        bus.dispatch_and_wait(Event("inner", extra="now"))
        got.append("outer")

    bus.watch("outer", outer)
    bus.watch("inner", lambda event: got.append(event.extra))
    bus.dispatch_and_wait(Event("outer"))
    bus.dispatch_and_wait(Event("marker"))
    assert got == ["now", "outer", "later"]


def test_many_dispatchers():
    bus, got = EventBus(), []
    bus.watch("a", got.append)

    def dispatch(k):
        for i in range(200):
            bus.dispatch(Event("a", extra=(k, i)))

    threads = [threading.Thread(target=dispatch, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bus.dispatch_and_wait(Event("marker"))
    for k in range(8):
        assert [event.extra[1] for event in got if event.extra[0] == k] == list(range(200))


def test_an_idle_bus_keeps_no_thread_and_can_be_forgotten():
    bus = EventBus()
    bus.dispatch_and_wait(Event("a"))
    watched = weakref.ref(bus)
    for thread in threading.enumerate():
        if thread.name == "rota-event-bus":
            thread.join(60)
    assert all(thread.name != "rota-event-bus" for thread in threading.enumerate())
    del bus
    gc.collect()
    assert watched() is None


def test_the_queue_keeps_the_last_newest_first():
    queue = EventQueue()
    events = [Event("a", extra=i) for i in range(250)]
    for event in events:
        queue.push(event)
    assert len(queue) == 200
    assert queue.dump() == events[:49:-1]
    small = EventQueue(2)
    for event in events:
        small.push(event)
    assert small.dump() == [events[249], events[248]]


@pytest.mark.parametrize(
    ("capacity", "error"), [(0, ValueError), (-1, ValueError), ("2", TypeError), (1.5, TypeError)]
)
def test_bad_capacities_are_refused(capacity, error):
    with pytest.raises(error, match="capacity"):
        EventQueue(capacity)


def test_bad_events_and_callbacks_are_refused():
    bus = EventBus()
    with pytest.raises(TypeError, match="callback"):
        bus.watch("a", "print")
    with pytest.raises(TypeError, match="event"):
        bus.dispatch("a")
    with pytest.raises(TypeError, match="event"):
        bus.dispatch_and_wait(None)
    caught = []

    def inner(event):
        with pytest.raises(TypeError, match="event"):
            bus.dispatch_and_wait("a")
        caught.append(event)

    bus.watch("b", inner)
    bus.dispatch_and_wait(Event("b"))
    assert len(caught) == 1


def test_a_finalizer_may_end_a_watch_anywhere():
    bus, heard = EventBus(), []
    bus.watch("it", heard.append)

    class Watching:
        def __del__(self):
            bus.unwatch("it", heard.append)

    with bus._lock:
        Watching()
    bus.dispatch_and_wait(Event("it"))
    assert heard == []
