"""What is said of single calls, and what a key is made of."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any

from rota.selector.filters import NodeFilter
from rota.selector.selector import as_chain

KeyOf = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What holds for the calls made in a context: see `call_options`."""

    filters: tuple[NodeFilter, ...] = ()
    key: Any = None
    idempotent: bool | None = None


NO_OPTIONS = CallOptions()

current: "ContextVar[CallOptions]" = ContextVar("rota_call_options", default=NO_OPTIONS)
"""The options of the current context."""


@contextmanager
def call_options(
    *, filters: Sequence[NodeFilter] = (), key: Any = None, idempotent: bool | None = None
) -> Iterator[None]:
    """Have the calls made in this context, by any balanced client, go by these options as well.

    Parameters
    ----------
    filters : sequence of NodeFilter
        Applied after the client's own, and after those of a context around this one.
    key : str, bytes or int
        What the call is about, where the balancer goes by a key: instead of the client's.
    idempotent : bool or None
        True: the call may be made twice, so that it is tried again where a server may have seen
        it. False: it may not. None: as the client knows it, of HTTP by the method.

    Raises
    ------
    TypeError
        Filters that are none; a function for a key, which only a client takes.

    Notes
    -----
    The context is that of `contextvars`: a thread's own, and in asyncio that of a task and of the
    tasks it starts.
    """
    if callable(key):
        raise TypeError(f"key must be the key itself here, str, bytes or int, got {key!r}")
    around = current.get()
    options = CallOptions(
        (*around.filters, *as_chain(filters)),
        around.key if key is None else key,
        around.idempotent if idempotent is None else idempotent,
    )
    token = current.set(options)
    try:
        yield
    finally:
        current.reset(token)


def header(name: str) -> KeyOf:
    """Return what makes the key of a call of a header: of HTTP, or gRPC's metadata.

    A call without it goes to an instance at random.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"name must be that of a header, got {name!r}")

    def key_of(request: Any) -> Any:
        return request.headers.get(name)

    return key_of


def cookie(name: str) -> KeyOf:
    """Return what makes the key of a call of a cookie. A call without it goes anywhere."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"name must be that of a cookie, got {name!r}")

    def key_of(request: Any) -> Any:
        said = request.headers.get("Cookie")
        if said is None:
            return None
        try:
            found = SimpleCookie(said).get(name)
        except CookieError:
            return None
        return None if found is None else found.value

    return key_of
