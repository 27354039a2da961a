"""Finds services in etcd, and hears of each change at once."""

import asyncio
import logging
import ssl as ssl_module
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from rota.arguments import as_duration
from rota.discovery.described import Skipped
from rota.discovery.etcd.client import (
    MOST_PAUSE,
    OUT_OF_RANGE,
    Backoff,
    EtcdClient,
    EtcdError,
    EtcdUnavailable,
    News,
    WatchStream,
    settings_of,
)
from rota.discovery.etcd.layouts import KitexLayout, Layout
from rota.discovery.etcd.messages import Header, Notice
from rota.discovery.etcd.table import Table
from rota.discovery.resolver import service_of
from rota.discovery.result import Change, Result, diff

logger = logging.getLogger(__name__)

# For changes to arrive that etcd knows of, and the watch does not yet.
GRACE = 1.0


class EtcdResolver:
    """Finds services in etcd, and watches them.

    Parameters
    ----------
    endpoints : str or iterable of str
        "http://host:port" or "https://host:port" of the members of one cluster; "host:port"
        stands for one or the other, by `ssl`.
    layout : Layout
        How services are written: `KitexLayout`, `KratosLayout`, or one of your own.
    user, password : str or None
        Where etcd asks for them.
    ssl : ssl.SSLContext or None
        For https; None: the system's certificates.
    timeout : float, seconds, > 0
        For each endpoint to answer a request.
    heartbeat : float, seconds, > 0
        A watch that hears nothing for so long asks whether there was nothing to hear.

    Raises
    ------
    TypeError, ValueError
        An argument of no use.

    Notes
    -----
    Instances are in the order of their keys. An entry that describes no instance is skipped,
    with one warning in the log that names it; so is a later key of an address that an earlier
    one has. An instance whose entry comes to describe none is gone.

    Any number of threads and event loops may share one; nothing is open but in a `resolve` or a
    `watch`.
    """

    def __init__(
        self,
        endpoints: str | Iterable[str],
        *,
        layout: Layout | None = None,
        user: str | None = None,
        password: str | None = None,
        ssl: ssl_module.SSLContext | None = None,
        timeout: float = 5.0,
        heartbeat: float = 5.0,
    ) -> None:
        self._settings = settings_of(endpoints, user, password, ssl, timeout)
        self._layout = layout_of(layout)
        self._heartbeat = as_duration("heartbeat", heartbeat)
        self._skipped = Skipped(self.name)

    @property
    def name(self) -> str:
        """The resolver's name: layout, user and endpoints."""
        return f"etcd {self._layout.name} at {self._settings}"

    def target(self, endpoint: Any) -> str:
        """Return the service of an endpoint, "name" or "discovery:///name"."""
        service = service_of(endpoint)
        self._layout.prefix(service)
        return service

    async def resolve(self, desc: str) -> Result:
        """Return who is there now; nobody, where a service is not known.

        Raises
        ------
        EtcdUnavailable
            No endpoint has answered. It is a ConnectionError, too.
        EtcdError
            etcd has refused.
        ValueError
            A name that the layout does not take.
        """
        prefix = self._layout.prefix(desc)
        table = Table(self._layout, desc, self._skipped)
        async with EtcdClient(self._settings) as client:
            table.load((await client.list(prefix)).entries)
        return table.result

    async def watch(self, desc: str) -> AsyncGenerator[Result, None]:
        """Go through who is there: now, and after each change, for ever.

        The same object again says that nothing has changed. While etcd cannot be reached
        nothing comes, and it is tried again; the log says so once.

        Raises
        ------
        EtcdError
            etcd has refused.
        ValueError
            A name that the layout does not take.
        """
        prefix = self._layout.prefix(desc)
        table = Table(self._layout, desc, self._skipped)
        async with EtcdClient(self._settings) as client:
            follower = _Follower(client, prefix, table, self._heartbeat, f"{self.name}: {desc}")
            try:
                while True:
                    yield await follower.next()
            finally:
                await follower.close()

    def diff(self, cache_key: str, prev: Result, next: Result) -> Change:
        """Return what changed from `prev` to `next`."""
        return diff(cache_key, prev, next)


def layout_of(layout: Layout | None) -> Layout:
    """Return the layout that an argument is; None: Kitex's.

    Raises
    ------
    TypeError
        None.
    """
    if layout is None:
        return KitexLayout()
    if not isinstance(layout, Layout) or isinstance(layout, type):
        raise TypeError(f"layout must be a Layout, as KitexLayout(), got {layout!r}")
    return layout


class _NotTrusted(Exception):
    """What is known may not be what there is: it has to be listed anew."""


class _Follower:
    """Keeps a table as it is in etcd, through everything that may happen in between.

    It lists, and watches from there. A watch that breaks is begun again, at the next endpoint,
    from the last revision that is known; but first it asks how many entries there were at that
    revision, and which was the newest: where both are as in the table, so is everything
    (`Table.is_as`). Where they are not, etcd has lost its data, and goes on with others.

    Then, and whenever nothing has come for a while, it asks the same of now. Where the answer is
    not as the table, what is missing has a moment to come, before it lists anew.
    """

    def __init__(
        self, client: EtcdClient, prefix: str, table: Table, heartbeat: float, source: str
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._table = table
        self._heartbeat = heartbeat
        self._source = source
        self._news = News(logger, source)
        self._backoff = Backoff()
        self._loop = asyncio.get_running_loop()
        self._known: Header | None = None  # what the table is as of; None: it has to be listed
        self._is_interrupted = False  # since then
        self._stream: WatchStream | None = None
        self._begun = 0.0  # the stream
        self._check_at = 0.0
        self._is_suspicious = False  # the last check has found that something is missing

    async def next(self) -> Result:
        """Return the next result."""
        while not await self._goes_on():
            pass
        return self._table.result

    async def close(self) -> None:
        """Close the watch."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()

    async def _goes_on(self) -> bool:
        """Do what is to be done next, or see to what was in its way. True: there is a result."""
        try:
            has_result = await self._step()
            if has_result and self._stream is not None:
                self._news.back()
            return has_result
        except EtcdUnavailable as error:
            self._news.lost(error)
        except _NotTrusted as why:
            logger.info("%s: is listed anew: %s", self._source, why)
            self._known = None
        await self._pause()
        return False

    async def _pause(self) -> None:
        if self._stream is not None and self._loop.time() - self._begun > MOST_PAUSE:
            self._backoff.reset()
        await self.close()
        self._is_interrupted = True
        self._check_at = 0.0  # at once, when there is a watch again
        self._client.rotate()
        await asyncio.sleep(self._backoff.next())

    async def _step(self) -> bool:
        """Do what is to be done next. True: now the table is known to be as it is in etcd."""
        if self._known is None:
            listing = await self._client.list(self._prefix)
            self._table.load(listing.entries)
            self._known = listing.header
            self._is_interrupted = False
            # A watch that comes after a loss has to prove itself first.
            self._check_at = 0.0 if self._news.is_lost else self._loop.time() + self._heartbeat
            return True
        if self._stream is None:
            if self._is_interrupted:
                await self._verify(self._known)
            self._stream = await self._client.watch(self._prefix, self._known.revision + 1)
            self._begun = self._loop.time()
            self._is_suspicious = False
            return False
        wait = self._check_at - self._loop.time()
        if wait <= 0:
            return await self._check(self._stream)
        notices = await self._stream.receive(wait)
        if notices is None:
            return False
        if not self._is_suspicious:
            self._check_at = self._loop.time() + self._heartbeat
        for notice in notices:
            self._known = self._apply(notice, self._known)
        return any(notice.events for notice in notices)

    def _apply(self, notice: Notice, known: Header) -> Header:
        revision = known.revision
        for event in notice.events:
            entry = event.entry
            # What a check has found to be known already comes nevertheless.
            if entry.revision <= known.revision:
                continue
            if event.is_deletion:
                self._table.delete(entry.key)
            else:
                self._table.put(entry)
            revision = max(revision, entry.revision)
        if notice.compacted:
            raise _NotTrusted(f"revisions before {notice.compacted} are compacted")
        if notice.is_canceled:
            # Of a token that has run out, perhaps: whether it is refused the list will tell.
            self._client.forget_token()
            raise _NotTrusted(f"the watch was canceled: {notice.reason}")
        return Header(revision, known.term, known.cluster)

    async def _verify(self, known: Header) -> None:
        """See whether etcd still has the history that the table is from."""
        try:
            found = await self._client.newest(self._prefix, revision=known.revision)
        except EtcdError as error:
            if error.code != OUT_OF_RANGE:
                raise
            if "compacted" in str(error):
                raise _NotTrusted(str(error)) from error
            told = str(error)
        else:
            if not found.header.is_behind(known) and self._table.is_as(found):
                return
            told = f"it was another at revision {known.revision}"
        logger.warning("%s: etcd has lost what it had: %s", self._source, told)
        raise _NotTrusted("it is another store than before")

    async def _check(self, stream: WatchStream) -> bool:
        found = await self._client.newest(self._prefix, endpoint=stream.endpoint)
        if self._table.is_as(found):
            self._known = found.header
            self._is_suspicious = False
            self._check_at = self._loop.time() + self._heartbeat
            return True
        if self._is_suspicious:
            raise _NotTrusted("the watch has missed something")
        self._is_suspicious = True
        self._check_at = self._loop.time() + GRACE
        return False
