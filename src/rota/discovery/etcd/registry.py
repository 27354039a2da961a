"""Writes instances to etcd, and sees to it that they stay there for as long as they should."""

import asyncio
import logging
import os
import ssl as ssl_module
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from types import TracebackType
from weakref import WeakSet

from rota.background import LoopThread
from rota.discovery.etcd.client import (
    NOT_FOUND,
    Backoff,
    EtcdClient,
    EtcdError,
    EtcdUnavailable,
    News,
    Settings,
    settings_of,
    within,
)
from rota.discovery.etcd.layouts import Layout
from rota.discovery.etcd.resolver import layout_of
from rota.discovery.instance import Instance

logger = logging.getLogger(__name__)

# Seconds for a lease to be revoked; then it is left to run out.
FAREWELL = 2.0

_registries: "WeakSet[EtcdRegistry]" = WeakSet()


class AsyncRegistration:
    """An instance that stands in etcd, on the event loop on which it was made.

    Made by `EtcdRegistry.registered`, until the end of whose block it lasts.
    """

    def __init__(
        self, settings: Settings, layout: Layout, ttl: int, service: str, instance: Instance
    ) -> None:
        # One endpoint that says nothing must not cost the lease.
        self._settings = replace(settings, timeout=min(settings.timeout, ttl / 3))
        self._limit = settings.timeout * len(settings.endpoints)
        self._layout = layout
        self._ttl = ttl
        self._service = service
        self._instance = instance
        self._key, self._wanted = layout.write(service, instance)
        self._written: bytes | None = None
        self._lease: int | None = None
        self._former: int | None = None  # the one that has run out, of which the key may not know
        self._is_others = False
        self._waiters: list[asyncio.Future[None]] = []
        self._failure: Exception | None = None
        self._news = News(logger, f"{self._key} at {settings}")
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._pid = os.getpid()

    @property
    def key(self) -> str:
        """Where it stands."""
        return self._key

    @property
    def instance(self) -> Instance:
        """What stands there, or will."""
        return self._instance

    @property
    def is_open(self) -> bool:
        """Whether it is kept there, by this process."""
        return self._task is not None and not self._task.done() and self._pid == os.getpid()

    async def begin(self) -> None:
        """Write it, and keep it there from now on."""
        self._task = asyncio.ensure_future(self._run())
        try:
            await self._landing()
        except BaseException:
            await self.close()
            raise

    async def update(self, instance: Instance) -> None:
        """Have it say something else from now on: another weight, other tags.

        Raises
        ------
        ValueError
            Of another key: that is another registration. Or what the layout does not write.
        EtcdUnavailable, EtcdError
            It is not written in time, or was refused. It will be, as soon as it can be.
        RuntimeError
            Closed.
        """
        key, value = self._layout.write(self._service, instance)
        if key != self._key:
            raise ValueError(f"instance must be the one at {self._key}, got one of {key}")
        if not self.is_open:
            raise RuntimeError(f"the registration of {self._key} is closed")
        self._instance = instance
        self._wanted = value
        self._written = None
        self._wake.set()
        await self._landing()

    async def close(self) -> None:
        """Have it gone, and keep it no longer; 2 s at the most. It may be closed already.

        Where etcd cannot be reached it goes when its lease has run out.
        """
        task = self._task
        if task is None:
            return
        task.cancel()
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            await asyncio.wait({task})  # not before it is done
            raise

    async def _landing(self) -> None:
        """Wait until what is wanted is written."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            done, _ = await asyncio.wait({waiter}, timeout=self._limit)
        finally:
            waiter.cancel()
        if done:
            waiter.result()
            return
        why = self._failure or "no answer"
        raise EtcdUnavailable(f"{self._key} is not written in {self._limit:g} s: {why}")

    def _land(self, error: Exception | None) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)

    async def _run(self) -> None:
        backoff = Backoff()
        async with EtcdClient(self._settings) as client:
            try:
                while True:
                    pause = self._ttl / 3
                    self._wake.clear()
                    try:
                        await self._keep(client)
                    except Exception as error:  # whatever it is: nobody else would go on
                        self._failure = error
                        self._news.lost(error)
                        if not isinstance(error, EtcdUnavailable):
                            self._land(error)
                        client.rotate()
                        pause = min(pause, backoff.next())
                    else:
                        backoff.reset()
                        self._news.back()
                        if self._written is self._wanted:
                            self._land(None)
                    with suppress(asyncio.TimeoutError):
                        await within(self._wake.wait(), pause)
            finally:
                self._land(EtcdUnavailable(f"the registration of {self._key} is closed"))
                await self._leave(client)

    async def _keep(self, client: EtcdClient) -> None:
        """See to it that what is wanted stands there, under a lease that is alive."""
        wanted = self._wanted
        if self._lease is not None and not await client.keep_alive(self._lease):
            logger.warning("%s: its lease has run out, it is registered anew", self._key)
            self._former, self._lease = self._lease, None
        if self._written is wanted and not await self._is_missing(client):
            return
        if self._lease is None:
            self._lease = await client.grant(self._ttl)
        try:
            await client.put(self._key, wanted, self._lease)
        except EtcdError as error:
            if error.code == NOT_FOUND:
                self._former, self._lease = self._lease, None
            raise
        self._written = wanted

    async def _is_missing(self, client: EtcdClient) -> bool:
        """Whether it does not stand there as it should. Another's word is left to stand."""
        entry = await client.get(self._key)
        if entry is None:
            if self._lease is not None:
                logger.warning("%s was deleted, it is written again", self._key)
            self._is_others = False
            return True
        is_others = entry.lease not in (self._lease, self._former)
        if is_others and not self._is_others:
            logger.warning("%s was written by another, whose word stands while it lasts", self._key)
        self._is_others = is_others
        # Not ours as it should be: of a put, say, that arrived after the next one.
        return not is_others and (entry.lease != self._lease or entry.value != self._wanted)

    async def _leave(self, client: EtcdClient) -> None:
        lease, self._lease = self._lease, None
        if lease is None:
            return
        try:
            await within(client.revoke(lease), FAREWELL)
        except (EtcdError, asyncio.TimeoutError) as error:
            logger.warning(
                "%s: is not taken away, but goes in %d s at the latest: %s",
                self._key, self._ttl, str(error) or "no answer",
            )  # fmt: skip


class Registration:
    """An instance that stands in etcd until `close`. A context manager; for any thread.

    Made by `EtcdRegistry.register`.
    """

    def __init__(self, registry: "EtcdRegistry", made: AsyncRegistration) -> None:
        self._registry = registry
        self._made = made

    @property
    def key(self) -> str:
        """Where it stands."""
        return self._made.key

    @property
    def instance(self) -> Instance:
        """What stands there, or will."""
        return self._made.instance

    def update(self, instance: Instance) -> None:
        """Have it say something else from now on: another weight, other tags.

        Raises
        ------
        ValueError
            Of another key: that is another registration. Or what the layout does not write.
        EtcdUnavailable, EtcdError
            It is not written in time, or was refused. It will be, as soon as it can be.
        RuntimeError
            Closed, or the parent's of this process.
        """
        if not self._made.is_open:
            raise RuntimeError(f"the registration of {self.key} is closed")
        self._registry._thread.run(self._made.update(instance))

    def close(self) -> None:
        """Have it gone, and keep it no longer; 2 s at the most. It may be closed already.

        Where etcd cannot be reached it goes when its lease has run out. In a forked child this
        does nothing: the registration is the parent's.
        """
        if self._made.is_open:
            try:
                self._registry._thread.run(self._made.close())
            except RuntimeError:
                if self._made.is_open:  # else the registry was closed at the same time
                    raise

    def __enter__(self) -> "Registration":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class EtcdRegistry:
    """Registers instances of this process in etcd, each under a lease that it keeps alive.

    Parameters
    ----------
    endpoints, layout, user, password, ssl
        As `EtcdResolver`'s.
    ttl : int, seconds, >= 1
        For how long an instance stands there after its process has died, or cannot reach etcd.
    timeout : float, seconds, > 0
        For each endpoint to answer a request (ttl / 3, where that is less); and, for each of
        them, for something to be written.

    Raises
    ------
    TypeError, ValueError
        An argument of no use.

    Notes
    -----
    Every ttl / 3 seconds the lease is renewed, and the key looked at: it is written again when
    it is gone. Where another process has written it, as the next one of the same address may
    before this one ends, that is left alone until it is gone.

    All of `register` runs on one daemon thread. When the interpreter ends, or the registry
    and its registrations are forgotten, they are taken away as by `close`. In a forked child
    there are none of the parent's.
    """

    def __init__(
        self,
        endpoints: str | Iterable[str],
        *,
        layout: Layout | None = None,
        ttl: int = 15,
        user: str | None = None,
        password: str | None = None,
        ssl: ssl_module.SSLContext | None = None,
        timeout: float = 5.0,
    ) -> None:
        self._settings = settings_of(endpoints, user, password, ssl, timeout)
        self._layout = layout_of(layout)
        if not isinstance(ttl, int) or isinstance(ttl, bool):
            raise TypeError(f"ttl must be an integer, got {ttl!r}")
        if not 1 <= ttl <= 9_000_000_000:
            raise ValueError(f"ttl must be from 1 to 9,000,000,000 seconds, got {ttl}")
        self._ttl = ttl
        self._is_closed = False
        self._thread = LoopThread("rota etcd registry")
        _registries.add(self)

    def register(self, service: str, instance: Instance) -> Registration:
        """Write an instance, and keep it there until its registration is closed; waits.

        What another has written in its place is written over.

        Raises
        ------
        EtcdUnavailable
            etcd cannot be reached in `timeout` seconds for each endpoint. Nothing is kept then.
        EtcdError
            etcd has refused.
        TypeError, ValueError
            What the layout does not write.
        RuntimeError
            Closed.
        """
        made = self._made(service, instance)
        self._thread.run(made.begin())
        return Registration(self, made)

    @asynccontextmanager
    async def registered(
        self, service: str, instance: Instance
    ) -> AsyncIterator[AsyncRegistration]:
        """Have an instance registered until the end of the block, on the loop that runs here.

        Raises as `register` does. `close` of the registry does not end it.
        """
        made = self._made(service, instance)
        await made.begin()
        try:
            yield made
        finally:
            await made.close()

    def close(self) -> None:
        """Close what `register` has made, all at once; nothing can be registered any more."""
        self._is_closed = True
        self._thread.close()

    def __enter__(self) -> "EtcdRegistry":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _made(self, service: str, instance: Instance) -> AsyncRegistration:
        if self._is_closed:
            raise RuntimeError("the registry is closed")
        return AsyncRegistration(self._settings, self._layout, self._ttl, service, instance)


def _renew_locks() -> None:
    for registry in list(_registries):
        registry._thread.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
