"""Which errors a call may be repeated after: two opinions for a `RetryPolicy`.

Both are asked with the error, and understand those of any library without importing one.
"""

import asyncio
import concurrent.futures
import socket
from typing import Any

from rota.outcome import (
    CANCELLATIONS,
    MOST_ERRORS,
    Outcome,
    http_status_of,
    is_a,
    outcome_of,
    read,
    rpc_status_of,
)

# What libraries raise where no connection could be made, by top package and class.
_CONNECT_ERRORS = {
    ("aiohttp", "ClientConnectorError"),
    ("aiohttp", "ConnectionTimeoutError"),
    ("anyio", "ConnectionFailed"),
    ("httpcore", "ConnectError"),
    ("httpcore", "ConnectTimeout"),
    ("httpcore", "PoolTimeout"),
    ("httpx", "ConnectError"),
    ("httpx", "ConnectTimeout"),
    ("httpx", "PoolTimeout"),
    ("requests", "ConnectTimeout"),
    ("urllib3", "ConnectTimeoutError"),
    ("urllib3", "NewConnectionError"),
}

# Those that wrap whatever has happened, and where they have it.
_WRAPPERS = {
    ("requests", "ConnectionError"): "args",
    ("urllib", "URLError"): "reason",
    ("urllib3", "MaxRetryError"): "reason",
}

# After these it is not known what has become of the request.
_UNCERTAIN: tuple[type[BaseException], ...] = (
    *CANCELLATIONS,
    ConnectionResetError,
    ConnectionAbortedError,
    BrokenPipeError,
    TimeoutError,  # one kind with the other two from Python 3.11 on
    asyncio.TimeoutError,
    concurrent.futures.TimeoutError,
)


def any_failure(error: BaseException) -> bool:
    """Whether a call failed, whatever may have become of the request.

    That is what `rota.outcome.outcome_of` calls a FAILURE: no answer, a timeout, HTTP 408, 429,
    500 and above, their gRPC equals, and errors that say nothing. For calls that may be made
    twice: reads, and writes that are the same when done again.
    """
    return outcome_of(error) is Outcome.FAILURE


def connect_failure(error: BaseException) -> bool:
    """Whether an error says that no connection was made, so that the request was not sent.

    Notes
    -----
    It is so of

    - ConnectionRefusedError; failed look-ups of a name (`socket.gaierror`); what asyncio raises
      where a connect fails, for whatever reason;
    - ConnectError, ConnectTimeout and PoolTimeout of httpx and httpcore, NewConnectionError and
      ConnectTimeoutError of urllib3, ConnectTimeout of requests, ClientConnectorError and
      ConnectionTimeoutError of aiohttp, ConnectionFailed of anyio, and what derives from them;
    - any error with an attribute `unsent` that is True, as rota's gRPC clients give it to those of
      calls that were never sent;
    - an error that says nothing itself and was raised `from` one of these, or wraps one the way
      that urllib, urllib3 and requests do; of several, as in an ExceptionGroup, if it is so of
      all of them.

    It is not so of a reset or broken connection; of a timeout that does not say what it waited
    for; of other errors of the network, also "no route to host", for which a connection that was
    made may end as well; of any other HTTP or gRPC status, also UNAVAILABLE; and not of an error
    that was raised while a failed connect was handled, but not from it: it may be of anything.
    """
    todo: list[object] = [error]
    for _ in range(MOST_ERRORS):
        each = todo.pop()
        if not _is_connect_error(each):
            inner = _wrapped_by(each)
            if not inner:
                return False
            todo += inner
        if not todo:
            return True
    return False


def _is_connect_error(error: object) -> bool:
    if read(error, "unsent") is True:
        return True
    if is_a(error, (ConnectionRefusedError, socket.gaierror, socket.herror)):
        return True
    if not _kinds(error).isdisjoint(_CONNECT_ERRORS):
        return True
    # asyncio says so in words alone; of several addresses in the words of an OSError without
    # a number.
    if type(error) is OSError and error.errno is None:
        return str(error).startswith("Multiple exceptions: ")
    return is_a(error, (OSError,)) and str(read(error, "strerror")).startswith(
        "Connect call failed "
    )


def _wrapped_by(error: object) -> list[Any]:
    """Return the errors that speak for one that says nothing itself."""
    members = read(error, "exceptions")
    if type(members) in (tuple, list):
        return list(members)
    if http_status_of(error) is not None or rpc_status_of(error) is not None:
        return []
    for kind in _kinds(error):
        where = _WRAPPERS.get(kind)
        if where is not None:
            wrapped = read(error, where)
            if where == "args" and wrapped:
                wrapped = wrapped[0]
            return [wrapped] if isinstance(wrapped, BaseException) else []
    if is_a(error, _UNCERTAIN) or (is_a(error, (OSError,)) and read(error, "errno") is not None):
        return []
    cause = read(error, "__cause__")
    return [] if cause is None else [cause]


def _kinds(error: object) -> set[tuple[str, str]]:
    """Return the top package and the name of each class that an error is of."""
    return {
        (str(read(kind, "__module__")).partition(".")[0], kind.__name__)
        for kind in type(error).__mro__
    }
