"""A client of etcd's JSON gateway (/v3, etcd 3.4 and later), for one use on one event loop.

What the gateway is, and how it is asked: https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/
"""

import asyncio
import json
import logging
import random
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from rota.arguments import as_duration
from rota.background import in_thread
from rota.discovery.etcd.messages import (
    Entry,
    Lines,
    Listing,
    Notice,
    OddAnswer,
    fields_of,
    integer,
    listing_of,
    notice_of,
    object_of,
    text,
)

T = TypeVar("T")

LEAST_PAUSE, MOST_PAUSE = 0.05, 2.0

# By gRPC's codes: cancelled, unknown, deadline exceeded, resource exhausted, aborted, internal,
# unavailable. The others are refusals, which another endpoint would repeat.
PASSING = frozenset({1, 2, 4, 8, 10, 13, 14})
NOT_FOUND, AUTH_NOT_ENABLED, OUT_OF_RANGE, UNAUTHENTICATED = 5, 9, 11, 16

# What etcd says, with the code of a bad argument, to a token that is none any more.
STALE = ("user name is empty", "revision of auth store is old", "invalid auth token")

HEADERS = {
    "Content-Type": "application/json",
    # A member that knows of no leader is to say so, at once and in the middle of a watch.
    "Grpc-Metadata-hasleader": "true",
}


class EtcdError(Exception):
    """etcd has refused.

    Attributes
    ----------
    code : int or None
        gRPC's code of it, where etcd has said one.
    """

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class EtcdUnavailable(EtcdError, ConnectionError):
    """No endpoint has answered, or none of use. It may pass."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How etcd is reached; shared by all clients of one resolver or registry."""

    endpoints: tuple[str, ...]
    user: str | None
    password: str | None = field(repr=False)
    ssl: ssl.SSLContext | None
    timeout: float

    def __str__(self) -> str:
        who = "" if self.user is None else f"{self.user} at "
        return who + ",".join(sorted(self.endpoints))


def settings_of(
    endpoints: str | Iterable[str],
    user: str | None,
    password: str | None,
    ssl_context: ssl.SSLContext | None,
    timeout: float,
) -> Settings:
    """Return the settings that these arguments are.

    Raises
    ------
    TypeError, ValueError
        One of no use.
    """
    given = (endpoints,) if isinstance(endpoints, str) else endpoints
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise TypeError(f"endpoints must be URLs, got {endpoints!r}")
    if ssl_context is not None and not isinstance(ssl_context, ssl.SSLContext):
        raise TypeError(f"ssl must be an ssl.SSLContext or None, got {ssl_context!r}")
    urls = tuple(dict.fromkeys(_url(one, ssl_context is not None) for one in given))
    if not urls:
        raise ValueError("endpoints must not be empty")
    if user is not None and not isinstance(user, str):
        raise TypeError(f"user must be a str or None, got {user!r}")
    if password is not None and not isinstance(password, str):
        raise TypeError(f"password must be a str or None, got {type(password).__name__}")
    if (user is None) != (password is None):
        raise ValueError("user and password must be given together")
    return Settings(urls, user, password, ssl_context, as_duration("timeout", timeout))


def _range_of(prefix: str) -> dict[str, Any]:
    """Return the range of the keys that begin with a prefix."""
    first = prefix.encode()
    return {"key": text(first), "range_end": text(first[:-1] + bytes([first[-1] + 1]))}


def _url(endpoint: object, is_secure: bool) -> str:
    if not isinstance(endpoint, str):
        raise TypeError(f"endpoints must be URLs, got {endpoint!r}")
    url = endpoint
    if "://" not in url:  # as Go's clients are given them
        url = f"{'https' if is_secure else 'http'}://{url}"
    try:
        parts = urlsplit(url)
        is_of_use = (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.path in ("", "/")
            and not parts.query
            and not parts.fragment
            and "@" not in parts.netloc
            and parts.port != 0
        )
    except ValueError:
        is_of_use = False
    if not is_of_use:
        raise ValueError(
            f"endpoints must be of the form http://host:port or https://host:port, got {endpoint!r}"
        )
    if is_secure and parts.scheme != "https":
        raise ValueError(f"endpoints must be https:// where ssl is given, got {endpoint!r}")
    return f"{parts.scheme}://{parts.netloc}"


class Backoff:
    """Pauses that double, from 0.05 s to 2 s, each shortened by up to a half at random."""

    def __init__(self) -> None:
        self._pause = LEAST_PAUSE

    def next(self) -> float:
        """Return the seconds to pause."""
        pause, self._pause = self._pause, min(self._pause * 2, MOST_PAUSE)
        return pause * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin with the least pause again."""
        self._pause = LEAST_PAUSE


class News:
    """Tells the log once that etcd is lost, and once that it is back; `is_lost` in between."""

    def __init__(self, logger: logging.Logger, source: str) -> None:
        self._logger = logger
        self._source = source
        self.is_lost = False

    def lost(self, error: object) -> None:
        """Something has failed that is tried again."""
        if not self.is_lost:
            self.is_lost = True
            self._logger.warning("%s: etcd is lost, trying again: %s", self._source, error)

    def back(self) -> None:
        """Something has succeeded."""
        if self.is_lost:
            self.is_lost = False
            self._logger.info("%s: etcd is back", self._source)


async def within(coroutine: Coroutine[Any, Any, T], seconds: float) -> T:
    """Return what comes of a coroutine; whatever happens, it has ended then.

    Raises
    ------
    asyncio.TimeoutError
        Nothing has come of it in time, and it was cancelled.
    """
    # Not wait_for, which before Python 3.12 may lose a cancellation.
    task = asyncio.ensure_future(coroutine)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        is_late = not task.done()
        if is_late:
            task.cancel()
            await asyncio.wait({task})
        elif not task.cancelled():
            task.exception()  # seen, should we be cancelled ourselves
    if is_late and (task.cancelled() or task.exception() is not None):
        raise asyncio.TimeoutError
    return task.result()


class _Names(AbstractResolver):
    """Looks names up on threads that nobody has to wait for."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await in_thread(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=int(address[1]),
                family=of,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for of, _, proto, _, address in found
        ]

    async def close(self) -> None:
        pass


class EtcdClient:
    """An async context manager; left, it has no connection open.

    Its requests go to one endpoint, the next one when that cannot answer, and so once round.
    They may be made twice, which changes nothing but that a lease may be left to run out.

    Raises
    ------
    EtcdUnavailable
        From every method: no endpoint has answered in `Settings.timeout` seconds each, or of
        use.
    EtcdError
        From every method: etcd has refused.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # Each begins elsewhere, so that their load is spread.
        self._endpoints = random.sample(settings.endpoints, len(settings.endpoints))
        self._token: str | None = None
        self._session: aiohttp.ClientSession | None = None
        self._responses: set[aiohttp.ClientResponse] = set()  # of watches

    async def __aenter__(self) -> "EtcdClient":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=_Names(), ssl=self._settings.ssl or True),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=HEADERS,
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        session, self._session = self._session, None
        for response in self._responses:  # of a watch that began as we were cancelled
            response.close()
        if session is not None:
            await session.close()
            await asyncio.sleep(0)  # transports close their sockets in the loop's next round

    def rotate(self) -> None:
        """Begin with the next endpoint from now on: this one did not do well."""
        self._endpoints.append(self._endpoints.pop(0))

    def forget_token(self) -> None:
        """Log in anew before the next request."""
        self._token = None

    async def list(self, prefix: str) -> Listing:
        """Return all entries whose keys begin with a prefix, in the order of their keys."""
        return await self._ask("/v3/kv/range", _range_of(prefix), listing_of)

    async def newest(
        self, prefix: str, *, revision: int = 0, endpoint: str | None = None
    ) -> Listing:
        """Return how many entries there are, and the one that changed last, without its value.

        Parameters
        ----------
        prefix : str
        revision : int
            As of this one; 0: as of now. A majority stands behind it. EtcdError of code
            OUT_OF_RANGE: it is compacted, or there was none.
        endpoint : str or None
            This one alone. None: any.
        """
        query = _range_of(prefix) | {
            "revision": str(revision),
            "limit": "1",
            "sort_order": "DESCEND",
            "sort_target": "MOD",
            "keys_only": True,
        }
        if endpoint is None:
            return await self._ask("/v3/kv/range", query, listing_of)
        return await self._logged_in(
            endpoint, lambda endpoint: self._ask_at(endpoint, "/v3/kv/range", query, listing_of)
        )

    async def get(self, key: str) -> Entry | None:
        """Return the entry of a key, if there is one."""
        found = await self._ask("/v3/kv/range", {"key": text(key.encode())}, listing_of)
        return found.entries[0] if found.entries else None

    async def put(self, key: str, value: bytes, lease: int) -> None:
        """Write a key under a lease. EtcdError of code NOT_FOUND: there is no such lease."""
        put = {"key": text(key.encode()), "value": text(value), "lease": str(lease)}
        await self._ask("/v3/kv/put", put, lambda said: None)

    async def grant(self, ttl: int) -> int:
        """Return a new lease of so many seconds."""

        def lease_of(said: Mapping[str, Any]) -> int:
            lease = integer(said, "ID")
            if lease <= 0:
                raise OddAnswer(f"a lease must have an ID, got {lease}")
            return lease

        return await self._ask("/v3/lease/grant", {"TTL": str(ttl)}, lease_of)

    async def keep_alive(self, lease: int) -> bool:
        """Renew a lease. False: there is none."""

        def is_alive(said: Mapping[str, Any]) -> bool:
            return integer(fields_of(said, "result"), "TTL") > 0

        return await self._ask("/v3/lease/keepalive", {"ID": str(lease)}, is_alive)

    async def revoke(self, lease: int) -> None:
        """End a lease, and delete its keys; nothing happens where there is none."""
        try:
            await self._ask("/v3/lease/revoke", {"ID": str(lease)}, lambda said: None)
        except EtcdError as error:
            if error.code != NOT_FOUND:
                raise

    async def watch(self, prefix: str, revision: int) -> "WatchStream":
        """Return a watch of what changes from a revision on, begun, which is to be closed."""
        create = {"create_request": _range_of(prefix) | {"start_revision": str(revision)}}
        body = json.dumps(create).encode()

        async def begin(endpoint: str) -> WatchStream:
            response = await self._send(endpoint, "/v3/watch", body, is_endless=True)
            self._responses = {one for one in self._responses if not one.closed} | {response}
            stream = WatchStream(endpoint, response)
            try:
                if response.status != 200:
                    raise _refusal(endpoint, response.status, await response.read())
                await stream.begin()
            except BaseException:
                await stream.close()
                raise
            return stream

        async def begin_in_time(endpoint: str) -> WatchStream:
            try:
                return await within(begin(endpoint), self._settings.timeout)
            except asyncio.TimeoutError:
                raise _silent(endpoint, self._settings.timeout) from None
            except EtcdError:
                raise
            except (aiohttp.ClientError, OSError) as error:
                raise _unavailable(endpoint, error) from error

        return await self._anywhere(begin_in_time)

    async def _ask(
        self, path: str, query: Mapping[str, Any], parse: Callable[[Mapping[str, Any]], T]
    ) -> T:
        return await self._anywhere(lambda endpoint: self._ask_at(endpoint, path, query, parse))

    async def _ask_at(
        self,
        endpoint: str,
        path: str,
        query: Mapping[str, Any],
        parse: Callable[[Mapping[str, Any]], T],
    ) -> T:
        said = await self._post(endpoint, path, query)
        try:
            return parse(said)
        except OddAnswer as error:
            raise _odd(endpoint + path, error) from error

    async def _anywhere(self, ask: Callable[[str], Awaitable[T]]) -> T:
        failures = []
        for _ in self._settings.endpoints:
            endpoint = self._endpoints[0]
            try:
                return await self._logged_in(endpoint, ask)
            except EtcdUnavailable as error:
                failures.append(str(error))
                self.rotate()
        raise EtcdUnavailable("; ".join(failures))

    async def _logged_in(self, endpoint: str, ask: Callable[[str], Awaitable[T]]) -> T:
        if self._settings.user is None:
            return await ask(endpoint)
        is_new = self._token is None
        if is_new:
            await self._log_in(endpoint)
        try:
            return await ask(endpoint)
        except EtcdError as error:
            if is_new or not _is_stale(error):
                raise
        await self._log_in(endpoint)
        return await ask(endpoint)

    async def _log_in(self, endpoint: str) -> None:
        self._token = None
        query = {"name": self._settings.user, "password": self._settings.password}
        try:
            said = await self._post(endpoint, "/v3/auth/authenticate", query)
        except EtcdError as error:
            if error.code != AUTH_NOT_ENABLED:
                raise
            self._token = ""  # nobody needs one
            return
        token = said.get("token")
        if not (isinstance(token, str) and token.isascii() and token.isprintable() and token):
            raise _odd(endpoint, "a login must give a token")
        self._token = token

    async def _post(self, endpoint: str, path: str, query: Mapping[str, Any]) -> dict[str, Any]:
        body = json.dumps(query).encode()
        try:
            try:
                status, said = await self._exchange(endpoint, path, body)
            except (aiohttp.ServerDisconnectedError, ConnectionResetError):
                # It may have been a connection that was idle for too long.
                status, said = await self._exchange(endpoint, path, body)
        except asyncio.TimeoutError:
            raise _silent(endpoint, self._settings.timeout) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _unavailable(endpoint, error) from error
        if status != 200:
            raise _refusal(endpoint, status, said)
        try:
            answer = object_of(said)
        except OddAnswer as error:
            raise _odd(endpoint + path, error) from error
        if answer.get("error"):  # in the middle of a stream, of which the status was well
            raise _refusal(endpoint, status, said)
        return answer

    async def _exchange(self, endpoint: str, path: str, body: bytes) -> tuple[int, bytes]:
        response = await self._send(endpoint, path, body)
        async with response:
            return response.status, await response.read()

    async def _send(
        self, endpoint: str, path: str, body: bytes, is_endless: bool = False
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("the client is closed")
        timeout = aiohttp.ClientTimeout(total=None if is_endless else self._settings.timeout)
        return await self._session.post(
            endpoint + path,
            data=body,
            headers={"Authorization": self._token} if self._token else None,
            timeout=timeout,
            allow_redirects=False,
        )


def _is_stale(error: EtcdError) -> bool:
    return error.code == UNAUTHENTICATED or any(said in str(error) for said in STALE)


def _silent(endpoint: str, seconds: float) -> EtcdUnavailable:
    return EtcdUnavailable(f"{endpoint}: no answer in {seconds:g} s")


def _unavailable(endpoint: str, error: BaseException) -> EtcdUnavailable:
    return EtcdUnavailable(f"{endpoint}: {type(error).__name__}: {error}")


def _odd(where: str, error: object) -> EtcdUnavailable:
    return EtcdUnavailable(f"{where}: odd answer: {error}")


def _refusal(endpoint: str, status: int, body: bytes) -> EtcdError:
    """Return the error that an answer is."""
    try:
        said = object_of(body)
        # Of one answer; or of a stream, one level below, with other names in etcd 3.4.
        told = said["error"] if isinstance(said.get("error"), dict) else said
        code = integer(told, "grpc_code") or integer(told, "code")
        message = told.get("message")
    except OddAnswer:
        code, message = 0, None
    if not isinstance(message, str) or not code:
        return _odd(endpoint, f"status {status}, {body[:200]!r}")
    if status >= 500 or code in PASSING:
        return EtcdUnavailable(f"{endpoint}: {message}", code)
    return EtcdError(f"{endpoint}: {message}", code)


class WatchStream:
    """What comes of a watch at one endpoint."""

    def __init__(self, endpoint: str, response: aiohttp.ClientResponse) -> None:
        self.endpoint = endpoint
        self._response = response
        self._lines = Lines()
        self._notices: list[Notice] = []
        self._reading: asyncio.Task[bytes] | None = None

    async def begin(self) -> None:
        """Wait until etcd says that it watches."""
        while not self._notices:
            self._notices = await self.receive(3600.0) or []
        if not self._notices[0].is_created:
            raise _odd(self.endpoint, "a watch must begin by saying so")

    async def receive(self, seconds: float) -> list[Notice] | None:
        """Return what has come, the end of which may be yet to come; None: nothing in time.

        Raises
        ------
        EtcdUnavailable
            It is over.
        """
        if self._notices:
            notices, self._notices = self._notices, []
            return notices
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._response.content.readany())
        done, _ = await asyncio.wait({self._reading}, timeout=seconds)
        if not done:
            return None
        reading, self._reading = self._reading, None
        try:
            chunk = reading.result()
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            raise _unavailable(self.endpoint, error) from error
        try:
            # An error at the end of all comes without a newline.
            lines = self._lines.feed(chunk) if chunk else self._lines.end()
            if chunk or lines:
                return [self._notice_of(line) for line in lines]
        except OddAnswer as error:
            raise _odd(self.endpoint, error) from error
        raise EtcdUnavailable(f"{self.endpoint}: has ended the watch")

    def _notice_of(self, line: bytes) -> Notice:
        said = object_of(line)
        if said.get("error"):
            # Where it is refused for good, what is asked next is refused, too.
            raise EtcdUnavailable(str(_refusal(self.endpoint, 200, line)))
        return notice_of(said)

    async def close(self) -> None:
        """Close the connection."""
        reading, self._reading = self._reading, None
        try:
            if reading is not None:
                reading.cancel()
                await asyncio.wait({reading})
                if not reading.cancelled():
                    reading.exception()  # seen
        finally:
            self._response.close()
