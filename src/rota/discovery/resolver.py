"""What finds the copies of a service: Kitex's interface, and what can watch besides.

They are protocols: a class of the user's own with these methods works wherever rota's do.
"""

import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from typing import Any, Protocol, runtime_checkable

from rota.discovery.result import Change, Result, diff

SCHEME = "discovery:///"

_numbers = count(1)
_numbers_lock = threading.Lock()


@runtime_checkable
class Resolver(Protocol):
    """Finds the copies of a service."""

    @property
    def name(self) -> str:
        """The resolver's name: two of one name find the same, and may share what was found."""
        ...

    def target(self, endpoint: Any) -> str:
        """Return the description of a target: what it is resolved by, and known by in caches.

        Raises ValueError or TypeError for what cannot be one.
        """
        ...

    def resolve(self, desc: str) -> Result | Awaitable[Result]:
        """Return who is there now.

        Either may be a coroutine function, which is awaited, or a function, which may block:
        it is called on a thread of its own.
        """
        ...

    def diff(self, cache_key: str, prev: Result, next: Result) -> Change:
        """Return what changed from `prev` to `next`, under `cache_key`."""
        ...


@runtime_checkable
class WatchingResolver(Resolver, Protocol):
    """A resolver whose source pushes."""

    def watch(self, desc: str) -> AsyncIterator[Result]:
        """Go through who is there: now, and after each change, for ever.

        The same object again says that nothing has changed, and that this is known. A watch
        reconnects by itself where it can go on from where it was. Where it raises, or ends,
        it is begun anew, later each time. It runs on an event loop and must not block that;
        when it is closed nothing of it is left.
        """
        ...


def service_of(endpoint: Any) -> str:
    """Return the name of the service of an endpoint: "name", or "discovery:///name".

    Raises
    ------
    TypeError, ValueError
        Not a str; no name in it.
    """
    if not isinstance(endpoint, str):
        raise TypeError(f"endpoint must be a str, got {endpoint!r}")
    service = endpoint.removeprefix(SCHEME).strip("/")
    if not service or "://" in service:
        raise ValueError(f"endpoint must be 'name' or 'discovery:///name', got {endpoint!r}")
    return service


def numbered(kind: str) -> str:
    """Return a name that no other resolver of this process has, or has had."""
    with _numbers_lock:
        return f"{kind}-{next(_numbers)}"


class SynthesizedResolver:
    """A resolver of four callables, as Kitex's.

    Parameters
    ----------
    resolve : callable (desc) -> Result
        Or a coroutine function.
    target : callable (endpoint) -> str, or None
        None: the endpoint, as a str.
    diff : callable (cache_key, prev, next) -> Change, or None
        None: `rota.diff`.
    name : callable () -> str, a str, or None
        None: one that no other resolver has. (Kitex's is empty, so that two of them pass
        for one and the same where balancers are shared.)

    Raises
    ------
    TypeError
        Something of another kind.
    """

    def __init__(
        self,
        resolve: Callable[[str], Result | Awaitable[Result]],
        *,
        target: Callable[[Any], str] | None = None,
        diff: Callable[[str, Result, Result], Change] | None = None,
        name: Callable[[], str] | str | None = None,
    ) -> None:
        for what, given in (("resolve", resolve), ("target", target), ("diff", diff)):
            if not callable(given) and (given is not None or what == "resolve"):
                raise TypeError(f"{what} must be callable, got {given!r}")
        if name is not None and not isinstance(name, str) and not callable(name):
            raise TypeError(f"name must be a str or callable, got {name!r}")
        self._resolve = resolve
        self._target = target
        self._diff = diff
        # Not of its id(): that of one who is gone is soon another's.
        self._name = numbered("synthesized") if name is None else name

    @property
    def name(self) -> str:
        """The resolver's name."""
        return self._name if isinstance(self._name, str) else self._name()

    def target(self, endpoint: Any) -> str:
        """Return the description of a target."""
        return str(endpoint) if self._target is None else self._target(endpoint)

    def resolve(self, desc: str) -> Result | Awaitable[Result]:
        """Return who is there now."""
        return self._resolve(desc)

    def diff(self, cache_key: str, prev: Result, next: Result) -> Change:
        """Return what changed from `prev` to `next`."""
        return (self._diff or diff)(cache_key, prev, next)
