"""Watches in tests: what they say is waited for, and nothing of them may be left."""

import asyncio
import gc
import os
import threading
import time
from contextlib import asynccontextmanager, contextmanager, suppress

from rota.discovery.etcd.client import within
from tests.etcd_server import wait_for


def addresses(result):
    return [instance.address for instance in result.instances]


def open_files():
    """Return what this process has open, where that can be known."""
    found = []
    with suppress(FileNotFoundError):
        for fd in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):
                found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(found)


@contextmanager
def nothing_left():
    """Fail where a thread or a file of the block is left."""
    gc.collect()
    threads, files = set(threading.enumerate()), open_files()
    yield
    gc.collect()
    wait_for(lambda: set(threading.enumerate()) <= threads, "the threads have ended")
    wait_for(lambda: len(open_files()) <= len(files), "the files are closed")


def run(main):
    """Run a coroutine; afterwards no task, thread or file of it is left."""

    async def checked():
        await main
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with nothing_left():
        asyncio.run(checked())


class Watched:
    """What a watch has said so far."""

    def __init__(self):
        self.results = []
        self._news = asyncio.Event()

    async def follow(self, resolver, service):
        async for result in resolver.watch(service):
            self.results.append(result)
            self._news.set()
        raise AssertionError("a watch must not end")

    @property
    def result(self):
        return self.results[-1] if self.results else None

    async def until(self, condition, seconds=60.0):
        """Return when the last result is as it should be."""
        deadline = time.monotonic() + seconds
        while self.result is None or not condition(self.result):
            self._news.clear()
            left = deadline - time.monotonic()
            try:
                await within(self._news.wait(), left)
            except asyncio.TimeoutError:
                raise AssertionError(f"not in {seconds} s, but {self.result!r}") from None
        return self.result

    async def shows(self, *want, seconds=60.0):
        """Return when it shows these addresses."""
        return await self.until(lambda result: addresses(result) == list(want), seconds)

    async def confirms(self):
        """Return when it has said once more that this is how it is."""
        n = len(self.results)
        await self.until(lambda _: len(self.results) > n)


@asynccontextmanager
async def watching(resolver, service):
    """Watch a service until the end of the block; nothing must be raised."""
    watched = Watched()
    task = asyncio.ensure_future(watched.follow(resolver, service))
    try:
        yield watched
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.wait({task})
