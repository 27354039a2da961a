"""Loops and functions behind the caller's back."""

import asyncio
import contextvars
import gc
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError

import pytest

from rota.background import LoopThread, in_thread


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def is_running(name):
    return name in {thread.name for thread in threading.enumerate()}


async def answer(value=42):
    await asyncio.sleep(0)
    return value


def test_a_coroutine_runs_on_the_thread():
    loop = LoopThread("loop-a")
    assert not is_running("loop-a")  # there is no need for it yet

    async def where():
        return threading.current_thread().name, loop.is_current

    assert loop.run(where()) == ("loop-a", True)
    assert not loop.is_current
    assert loop.submit(answer(1)).result(30) == 1
    with pytest.raises(ZeroDivisionError):
        loop.run(fail())
    thread = next(each for each in threading.enumerate() if each.name == "loop-a")
    assert thread.daemon
    loop.close()
    assert not is_running("loop-a")


async def fail():
    raise ZeroDivisionError


def test_closed_it_refuses():
    loop = LoopThread("loop-b")
    loop.run(answer())
    loop.close()
    loop.close()
    for ask in (loop.run, loop.submit):
        with pytest.raises(RuntimeError, match="loop-b is closed"):
            ask(answer())
    loop.call(print)  # nothing happens
    never_begun = LoopThread("loop-c")
    never_begun.close()
    with pytest.raises(RuntimeError, match="loop-c is closed"):
        never_begun.run(answer())


def test_closing_ends_tasks_and_what_they_open():
    ended, late = [], []

    async def generate():
        try:
            while True:
                yield 1
                await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0)
            ended.append("generator")

    async def work():
        try:
            async for _ in generate():
                pass
        finally:
            late.append(asyncio.get_running_loop().create_task(asyncio.sleep(1000)))
            ended.append("task")

    loop = LoopThread("loop-d")
    future = loop.submit(work())
    loop.run(asyncio.sleep(0.01))
    loop.close()
    with pytest.raises(CancelledError):
        future.result(30)
    assert sorted(ended) == ["generator", "task"]
    assert late[0].cancelled()  # one that began while all was ending


def test_it_does_not_wait_for_itself():
    loop = LoopThread("loop-e")

    async def ask():
        loop.run(answer())

    with pytest.raises(RuntimeError, match="loop-e would wait for itself"):
        loop.run(ask())
    loop.close()


def test_closed_from_within():
    loop = LoopThread("loop-f")

    async def close():
        loop.close()

    loop.submit(close())
    until(lambda: not is_running("loop-f"))


def test_a_timeout_cancels():
    loop = LoopThread("loop-g")
    ended = threading.Event()

    async def wait():
        try:
            await asyncio.sleep(1000)
        finally:
            ended.set()

    with pytest.raises(Exception) as caught:  # noqa: PT011
        loop.run(wait(), timeout=0.01)
    assert type(caught.value).__name__ == "TimeoutError"
    assert ended.wait(30)
    loop.close()


def test_forgotten_it_ends():
    loop = LoopThread("loop-h")
    loop.run(answer())
    gone = weakref.ref(loop)
    del loop
    gc.collect()
    assert gone() is None
    until(lambda: not is_running("loop-h"))


def test_forgotten_it_is_not_waited_for(monkeypatch):
    """Whoever collects garbage may hold what a task at its end waits for."""
    monkeypatch.setattr("rota.background.PATIENCE", 1e6)
    lock = threading.Lock()

    async def work():
        try:
            await asyncio.sleep(1000)
        finally:
            with lock:
                pass

    loop = LoopThread("loop-j")
    loop.submit(work())
    loop.run(asyncio.sleep(0.01))
    with lock:
        del loop
        gc.collect()
        assert is_running("loop-j")
    until(lambda: not is_running("loop-j"))


def test_what_cannot_begin_leaves_nothing(monkeypatch):
    def fail(*_):
        raise OSError("none left")

    loop = LoopThread("loop-k")
    for owner, name in ((threading.Thread, "start"), (asyncio, "new_event_loop")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(OSError, match="none left"):
                loop.run(answer())
        gc.collect()  # nothing was left open, or never awaited
    assert loop.run(answer(1), 30) == 1
    loop.close()
    with monkeypatch.context() as patch:
        never_begun = LoopThread("loop-l")
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(OSError, match="none left"):
            never_begun.run(answer())
        never_begun.close()


def test_a_finalizer_may_close_it_anywhere():
    loop = LoopThread("loop-m")

    class Closing:
        def __del__(self):
            loop.close()

    with loop._lock:
        Closing()
    with pytest.raises(RuntimeError, match="loop-m is closed"):
        loop.run(answer())


def told(loop, k):
    try:
        return loop.run(answer(k), 30) == k
    except RuntimeError as error:
        return "closed" in str(error)


def test_calls_and_closing_at_once_all_have_an_answer():
    for _ in range(50):
        loop = LoopThread("loop-i")
        answers = []

        def ask(loop=loop, answers=answers):
            for k in range(20):
                answers.append(told(loop, k))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        loop.close()
        for thread in threads:
            thread.join(60)
        assert len(answers) == 80
        assert all(answers)


def test_in_thread_returns_and_raises_what_the_function_does():
    variable = contextvars.ContextVar("variable", default=0)

    def work(value):
        if isinstance(value, type):
            raise value("because")
        return value, variable.get(), threading.current_thread().daemon

    async def main():
        variable.set(7)
        assert await in_thread(work, 1) == (1, 7, True)
        with pytest.raises(ValueError, match="because"):
            await in_thread(work, ValueError)
        for kind in (StopIteration, SystemExit, KeyboardInterrupt):
            with pytest.raises(RuntimeError, match=f"raised {kind.__name__}"):
                await in_thread(work, kind)

    asyncio.run(main())


def test_in_thread_given_up():
    gate, n_done = threading.Event(), []

    def work():
        gate.wait(30)
        n_done.append(1)

    async def main():
        task = asyncio.create_task(in_thread(work))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        while not n_done:
            await asyncio.sleep(0.002)
        gate.clear()
        last = asyncio.create_task(in_thread(work))
        await asyncio.sleep(0.01)
        last.cancel()

    asyncio.run(main())
    gate.set()  # its loop is closed by now: the result is for nobody
    until(lambda: len(n_done) == 2)


LATE = """
import atexit, asyncio, time, weakref

class Owner: pass
owner = Owner()
early = weakref.finalize(owner, print, "finalized")  # registers weakref's own end before ours

from rota.background import LoopThread

loop, other = LoopThread("one"), LoopThread("other")

async def work(name):
    try:
        await asyncio.sleep(1000)
    finally:
        print(name, "ended")

for each in (loop, other):
    each.submit(work(each._name))
    each.run(asyncio.sleep(0.01))
atexit.register(loop.close)
"""


@pytest.mark.parametrize("is_early", [True, False])
def test_at_the_end_of_the_interpreter_all_are_stopped(is_early):
    """Whoever else has something to do there, before or after."""
    # What is registered last is called first.
    code = LATE if is_early else "from rota.background import LoopThread\n" + LATE
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert sorted(done.stdout.splitlines()) == ["finalized", "one ended", "other ended"]
    assert (done.returncode, done.stderr) == (0, "")
