"""Watches of resolvers, with deadlines instead of sleeps."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager

DEADLINE = 60


@asynccontextmanager
async def watching(resolver, desc):
    """A watch that is closed at the end of the block."""
    watch = resolver.watch(desc)
    try:
        yield watch
    finally:
        await watch.aclose()


async def following(watch):
    """The next that the watch gives."""
    return await asyncio.wait_for(anext(watch), DEADLINE)


async def changed(watch, last):
    """The next that the watch gives that is another object than `last`."""
    while (result := await following(watch)) is last:
        pass
    return result


async def until(is_so):
    """Return when it is so."""
    end = time.monotonic() + DEADLINE
    while not is_so():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def eventually(is_so):
    """`until`, where there is no event loop."""
    end = time.monotonic() + DEADLINE
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def threads_named(name):
    """How many threads of this name there are."""
    return sum(name in thread.name for thread in threading.enumerate())


def addresses(result):
    """The addresses of a result."""
    return [instance.address for instance in result.instances]
