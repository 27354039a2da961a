"""Whom to try for one call: distinct instances, round by round, each with who hears of it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from types import MethodType
from typing import Any, Protocol, TypeVar

from rota.loadbalance import attempts
from rota.outcome import unheard
from rota.selector.errors import NoAvailableInstance
from rota.selector.fleet import call_off

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Done = Callable[..., object]  # (info=None, *, err=None), as of Kratos
Candidate = tuple[T, Done]

# An instance that was tried is selected in vain so often before the others are looked for.
MOST_REPEATS = 16

_UNHEARD = repeat(unheard)


class Selecting(Protocol[T_co]):
    """Selects an instance that is not excluded, and hears how its call ended: a `Selector`."""

    def select(
        self, *, filters: Sequence[Any] = (), exclude: Iterable[Any] = (), key: Any = None
    ) -> tuple[T_co, Done]:
        """Return (instance, done); raises NoAvailableInstance where there is none."""
        ...


def ask(source: Any) -> Any:
    """Return a picker or selector itself, of a callable what it gives: that, or an awaitable.

    Raises
    ------
    TypeError
        `source` is none of these.
    """
    if type(source) is MethodType:  # as `get_picker` of a service; the others take longer
        return source()
    if hasattr(source, "next") or hasattr(source, "select"):
        return source
    if not callable(source):
        raise TypeError(
            f"source must be a picker, a selector, or a callable that gives one, got {source!r}"
        )
    return source()


def candidates(
    source: Any,
    ctx: object,
    request: object,
    filters: Sequence[Any],
    key: Any,
    is_first: bool,
) -> Iterator[Candidate[Any]]:
    """Return an iterator over (instance, done), each instance once: one round.

    That of a selector raises NoAvailableInstance where nobody is there for the first round.

    Parameters
    ----------
    source : picker or Selecting
    ctx, request
        For a picker.
    filters, key
        For a selector.

    Raises
    ------
    TypeError
        `source` is neither, or an argument is for the other kind.
    """
    if hasattr(source, "next"):
        if key is not None or filters != ():
            raise TypeError(f"filters and key are for selectors, got {filters!r}, {key!r}")
        if is_reporting(source):
            return _reported(source)
        return zip(attempts(source, ctx, request), _UNHEARD)  # noqa: B905  it costs 0.1 us
    if not hasattr(source, "select"):
        raise TypeError(f"source must give a picker or a selector, got {source!r}")
    if ctx is not None or request is not None:
        raise TypeError(f"ctx and request are for pickers, got {ctx!r}, {request!r}")
    return _selected(source, filters, key, is_first)


def is_reporting(picker: Any) -> bool:
    """Whether a picker is to hear of each call.

    Those of rota that go by load are: they pick among some of theirs. One of the user's own is
    where it has Kratos' `select()`, and has no order of attempts by itself.
    """
    return hasattr(picker, "among" if hasattr(picker, "attempts") else "select")


def _selected(
    selector: Selecting[T], filters: Sequence[Any], key: Any, is_first: bool
) -> Iterator[Candidate[T]]:
    tried: tuple[T, ...] = ()
    while True:
        try:
            candidate = selector.select(filters=filters, exclude=tried, key=key)
        except NoAvailableInstance:
            if tried or not is_first:
                return
            raise
        tried += (candidate[0],)
        yield candidate


def _reported(picker: Any) -> Iterator[Candidate[Any]]:
    tried: list[Any] = []
    while True:
        candidate = _select_untried(picker, tried)
        if candidate is None:
            return
        tried.append(candidate[0])
        yield candidate


def _select_untried(picker: Any, tried: list[Any]) -> Candidate[Any] | None:
    for _ in range(MOST_REPEATS):
        selected = picker.select()
        if selected is None:
            return None
        instance, done = selected
        if not _is_in(instance, tried):
            return instance, done
        call_off(done)
    if not hasattr(picker, "among"):
        return None
    for _ in range(MOST_REPEATS):
        left = [
            index
            for index, instance in enumerate(picker.instances)
            if instance is not None and not _is_in(instance, tried)
        ]
        try:
            rest = picker.among(left)
        except ValueError:
            continue  # one of them has left since
        last: Candidate[Any] | None = rest.select()
        return last
    return None


def _is_in(instance: object, tried: list[Any]) -> bool:
    for each in tried:  # noqa: SIM110  a generator costs more than all the rest of a call
        if instance is each:
            return True
    return False
