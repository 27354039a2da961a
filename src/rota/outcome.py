"""How a call ended, as far as it tells of the server: read from the call's error.

Errors of any library are understood without importing one: by their type where it is Python's
own, and by what they say of an HTTP or gRPC status.
"""

import asyncio
import concurrent.futures
import math
import re
import time
from collections.abc import Callable, Iterator
from datetime import timezone
from email.utils import parsedate_to_datetime
from enum import IntEnum
from typing import Any, TypeVar

T = TypeVar("T")

CANCELLATIONS: tuple[type[BaseException], ...] = (
    asyncio.CancelledError,
    concurrent.futures.CancelledError,
    GeneratorExit,
    KeyboardInterrupt,
    SystemExit,
)

# Python 3.10 has three kinds of TimeoutError; later they are one, and an OSError.
NO_ANSWER: tuple[type[BaseException], ...] = (
    OSError,
    asyncio.TimeoutError,
    concurrent.futures.TimeoutError,
)

# An error and those it wraps, at most: a chain may be long, and a group wide.
MOST_ERRORS = 100


class Outcome(IntEnum):
    """How a call ended.

    SUCCESS: the server answered, if only to say that the request was wrong. FAILURE: it did
    not, or could not do what it should. CANCELLED: the caller gave up; nothing is known of
    the server but that it had not answered by then.
    """

    SUCCESS = 0
    FAILURE = 1
    CANCELLED = 2


_RPC_OUTCOMES = {
    "OK": Outcome.SUCCESS,
    "CANCELLED": Outcome.CANCELLED,
    "CANCELED": Outcome.CANCELLED,  # as Go spells it, and Connect
    "UNKNOWN": Outcome.FAILURE,
    "INVALID_ARGUMENT": Outcome.SUCCESS,
    "DEADLINE_EXCEEDED": Outcome.FAILURE,
    "NOT_FOUND": Outcome.SUCCESS,
    "ALREADY_EXISTS": Outcome.SUCCESS,
    "PERMISSION_DENIED": Outcome.SUCCESS,
    "RESOURCE_EXHAUSTED": Outcome.FAILURE,
    "FAILED_PRECONDITION": Outcome.SUCCESS,
    "ABORTED": Outcome.FAILURE,
    "OUT_OF_RANGE": Outcome.SUCCESS,
    "UNIMPLEMENTED": Outcome.SUCCESS,
    "INTERNAL": Outcome.FAILURE,
    "UNAVAILABLE": Outcome.FAILURE,
    "DATA_LOSS": Outcome.FAILURE,
    "UNAUTHENTICATED": Outcome.SUCCESS,
}

_TIMEOUT, _TOO_MANY = 408, 429


def unheard(info: object = None, *, err: object = None) -> None:
    """End a call that nobody learns from: the `done` of pickers without feedback."""


def outcome_of(error: object) -> Outcome:
    """Return how a call ended that ended with this error; None: with none.

    Parameters
    ----------
    error : object
        The exception, or None.

    Notes
    -----
    An error says something in one of these ways, the first that applies:

    - CANCELLED: it is a CancelledError (of asyncio or of concurrent.futures), GeneratorExit,
      KeyboardInterrupt or SystemExit.
    - It has an HTTP status (see `http_status_of`). SUCCESS: 300 to 499 but for 408 and 429,
      which is the caller's affair. FAILURE: these two, and 500 and above.
    - It has a gRPC status (see `rpc_status_of`). FAILURE: UNAVAILABLE, DEADLINE_EXCEEDED,
      RESOURCE_EXHAUSTED, INTERNAL, UNKNOWN, DATA_LOSS and ABORTED. CANCELLED: CANCELLED.
      SUCCESS: all others.
    - FAILURE: it is an OSError or a TimeoutError of any module. These must speak for
      themselves, since asyncio raises its TimeoutError from the CancelledError of the call
      that was too slow.

    Where it says nothing, the errors that it wraps are asked (see `levels`), and the outermost
    that says something decides: a RuntimeError around a CancelledError is CANCELLED, around a
    404 SUCCESS. Of several at one depth, as in an ExceptionGroup, a failure goes before a
    success and that before a cancellation. Where none says anything: FAILURE.

    It never raises, whatever the error's properties raise.
    """
    if error is None:
        return Outcome.SUCCESS
    said = outermost(error, _say)
    for outcome in (Outcome.FAILURE, Outcome.SUCCESS, Outcome.CANCELLED):
        if outcome in said:
            return outcome
    return Outcome.FAILURE


def _say(error: object) -> Outcome | None:
    if is_a(error, CANCELLATIONS):  # before the status: SystemExit has a `code`
        return Outcome.CANCELLED
    status = http_status_of(error)
    if status is not None:
        is_failure = status >= 500 or status in (_TIMEOUT, _TOO_MANY)
        return Outcome.FAILURE if is_failure else Outcome.SUCCESS
    name = rpc_status_of(error)
    if name is not None:
        return _RPC_OUTCOMES[name]
    return Outcome.FAILURE if is_a(error, NO_ANSWER) else None


def is_a(error: object, kinds: tuple[type[BaseException], ...]) -> bool:
    """Whether an error is of one of these types; unlike isinstance, it asks the type alone."""
    return issubclass(type(error), kinds)


def http_status_of(error: object) -> int | None:
    """Return the HTTP status that an error tells of, in [300, 600), or None.

    It is the first integer in that range of the attributes `status`, `status_code`, `code`
    and `response.status_code`. A lesser status is no error's, and other numbers are no HTTP
    status: a `code` may be anything.
    """
    for name in ("status", "status_code", "code"):
        status = _as_status(read(error, name))
        if status is not None:
            return status
    return _as_status(read(read(error, "response"), "status_code"))


def rpc_status_of(error: object) -> str | None:
    """Return the name of the gRPC status that an error tells of, or None.

    It is the `name` of what the method `code` returns, as of grpc's errors, or of the attribute
    `code` or `status`.
    """
    for key in ("code", "status"):
        status = read(error, key)
        if key == "code" and callable(status):
            status = _guarded(status)
        name = read(status, "name")
        if type(name) is str and name in _RPC_OUTCOMES:
            return name
    return None


def retry_after_of(error: object) -> float | None:
    """Return for how many seconds a server wants to be left alone, or None where it says nothing.

    It is the first of the attribute `retry_after`, a number of seconds, and the header
    Retry-After (RFC 9110, section 10.2.3) of `headers` and of `response.headers`, seconds or a
    date. Not less than 0.
    """
    said = read(error, "retry_after")
    if isinstance(said, (int, float)):
        return _as_wait(float(said))
    for owner in (error, read(error, "response")):
        header = _guarded(read(read(owner, "headers"), "get"), "Retry-After")
        if isinstance(header, str):
            return parse_retry_after(header)
    return None


def parse_retry_after(header: str) -> float | None:
    """Return the seconds that a header Retry-After says, from now on; None where it is none."""
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", header, re.ASCII):
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
        if moment.tzinfo is None:  # "-0000", as mail has it
            moment = moment.replace(tzinfo=timezone.utc)
        return _as_wait(moment.timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _as_wait(seconds: float) -> float | None:
    return max(0.0, seconds) if math.isfinite(seconds) else None


def outermost(error: object, say: Callable[[object], T | None]) -> list[T]:
    """Return what is said at the least depth at which an error says anything (is not None)."""
    for level in levels(error):
        said = [found for each in level if (found := say(each)) is not None]
        if said:
            return said
    return []


def levels(error: object) -> Iterator[list[object]]:
    """Go through an error and those it wraps, all of one depth at a time.

    An error wraps its `__cause__`; where it has none its `__context__`, unless suppressed; and
    its `exceptions`, as an ExceptionGroup has. Each comes once, and 100 at the most.
    """
    seen = {id(error)}
    level = [error]
    while level:
        yield level
        inner = []
        for each in level:
            for wrapped in _wrapped_by(each):
                if id(wrapped) not in seen and len(seen) < MOST_ERRORS:
                    seen.add(id(wrapped))
                    inner.append(wrapped)
        level = inner


def _wrapped_by(error: object) -> list[object]:
    found: list[object] = []
    members = read(error, "exceptions")
    if type(members) in (tuple, list):
        found += members[:MOST_ERRORS]
    cause = read(error, "__cause__")
    if cause is None and read(error, "__suppress_context__") is not True:
        cause = read(error, "__context__")
    if cause is not None:
        found.append(cause)
    return found


def _as_status(value: Any) -> int | None:
    if not issubclass(type(value), int):
        return None
    number = int.__index__(value)  # of a subclass, what it holds and not what it makes of that
    return number if 300 <= number < 600 else None


def read(owner: object, name: str) -> Any:
    """Return an attribute, None where there is none or where reading it raises."""
    return _guarded(getattr, owner, name, None)


def _guarded(call: Callable[..., Any], *arguments: object) -> Any:
    try:
        return call(*arguments)
    except BaseException:
        # Also one that is no Exception: a property that raises a CancelledError must not
        # end the task of whoever asks how a call ended.
        return None
