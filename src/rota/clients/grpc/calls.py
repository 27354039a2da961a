"""What all calls have in common: whom one is tried with, and how an attempt's end is told."""

from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from inspect import iscoroutine
from time import monotonic
from typing import Any

import grpc

from rota.clients.dialing import Arguments
from rota.clients.grpc.errors import CallError
from rota.clients.grpc.subchannels import READY, Subchannel, Suspects
from rota.clients.members import Member, Members
from rota.clients.telemetry import RpcAttempt
from rota.discovery import Instance
from rota.outcome import Outcome, outcome_of, unheard
from rota.retry import DeadlineExceeded
from rota.retry.candidates import Done, candidates
from rota.retry.course import Course, check_time
from rota.selector import DoneInfo, NoAvailableInstance
from rota.selector.fleet import call_off

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

PUSHBACK = "grpc-retry-pushback-ms"

# Seconds between two looks of a call that waits until somebody is ready.
POLL = 0.02

# Statuses that grpcio gives a call by itself where nothing has come in.
_SILENT = {UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}


class Headers(Mapping[str, Any]):
    """Metadata, by names in any case. Of several of one name it is the first.

    Parameters
    ----------
    metadata : iterable of (str, str or bytes), or None
    """

    __slots__ = ("_metadata",)

    def __init__(self, metadata: Iterable[tuple[str, Any]] | None) -> None:
        self._metadata = () if metadata is None else metadata

    def __getitem__(self, name: str) -> Any:
        wanted = name.lower()
        for key, value in self._metadata:
            if key.lower() == wanted:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(key.lower() for key, _ in self._metadata))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"Headers({list(self._metadata)!r})"


class Request:
    """What a key, and a balancer, is told of a call.

    Attributes
    ----------
    method : str
        "/package.Service/Method".
    request : object
        The message; of a call with many the iterator, or None.
    """

    __slots__ = ("_metadata", "method", "request")

    def __init__(self, method: str, request: Any, metadata: Any) -> None:
        self.method = method
        self.request = request
        self._metadata = metadata

    @property
    def headers(self) -> Headers:
        """The metadata of the call."""
        return Headers(self._metadata)


class Use:
    """One attempt, from when its instance is chosen until its end was told.

    Parameters
    ----------
    members : Members
    done : callable
        The balancer's.

    Attributes
    ----------
    member : Member
    user : object
        What the member knows the attempt by.
    told : RpcAttempt or None
        What OpenTelemetry knows it by.
    """

    __slots__ = ("_done", "_members", "is_told", "member", "told", "user")

    def __init__(self, members: Members[Subchannel], done: Done) -> None:
        self._members = members
        self._done = done
        self.member: Member[Subchannel]
        self.user: object = self
        self.told: RpcAttempt | None = None
        self.is_told = False

    def tell_well(self, call: Any) -> None:
        """Say that it ended well. The first word counts.

        Parameters
        ----------
        call : grpc.Call or grpc.aio.Call
            It is over; asked for its trailing metadata where somebody may want that.
        """
        if self.is_told:
            return
        self.is_told = True
        self._members.release(self.member, self.user)
        if self.told is not None:
            self.told.end()
        done = self._done
        if done is unheard:
            return
        if hasattr(done, "release"):  # a lease of rota's pickers: they take the time
            done()
            return
        trailing = call.trailing_metadata()
        if iscoroutine(trailing):
            trailing = now(trailing)
        done(DoneInfo(None, Headers(trailing), True, True))

    def tell(self, error: BaseException, metadata: Any = None, was_heard: bool = False) -> None:
        """Say that it ended with an error. The first word counts.

        Parameters
        ----------
        error : BaseException
        metadata : iterable of (str, str or bytes), or None
            The trailing one.
        was_heard : bool
            Whether a message has come in before.
        """
        if self.is_told:
            return
        self.is_told = True
        self._members.release(self.member, self.user, outcome_of(error) is Outcome.FAILURE)
        if self.told is not None:
            self.told.end(error)
        if self._done is unheard:
            return
        is_sent = getattr(error, "unsent", False) is not True
        code = error.code() if isinstance(error, grpc.RpcError) else None
        is_heard = was_heard or code not in (None, *_SILENT) or bool(metadata)
        self._done(DoneInfo(error, Headers(metadata), is_sent, is_heard))


class Attempts:
    """Whom a call is tried with, one after another. Who drives it makes the attempts, and waits.

    As `rota.retry.call`, which is for attempts that block, or are awaited.

    Parameters
    ----------
    source : callable () -> picker or selector
    arguments : tuple
        Of `Dialer.arguments`.
    end : float or None
        When the call's deadline is, by `time.monotonic`.
    is_ready : callable (Instance) -> bool, or None
        Whether it is connected: of a call that waits until somebody is.
    is_selecting : bool
        Whether the source gives selectors.
    first : Instance or None
        Who was tried already, in the first round, which goes on.
    """

    __slots__ = (
        *("_course", "_end", "_filters", "_is_ready", "_is_selecting", "_key", "_policy"),
        *("_request", "_rest", "_round", "_selector", "_source", "_tried"),
    )

    def __init__(
        self,
        source: Callable[[], Any],
        arguments: Arguments,
        end: float | None,
        is_ready: Callable[[Instance], bool] | None,
        is_selecting: bool,
        first: Instance | None = None,
    ) -> None:
        self._source = source
        policy, _, self._request, self._filters, self._key, _, self._rest = arguments
        self._end = end
        self._is_ready = is_ready
        self._is_selecting = is_selecting
        self._policy = policy
        self._selector: Any = None  # of a round in which nobody rests, most are
        self._tried: tuple[Instance, ...] = ()  # in that
        self._round: Iterator[tuple[Instance, Done]] | None = None
        self._course: Course | None = None
        if first is not None:
            self._selector, self._tried = source(), (first,)
        elif policy.budget is not None:
            policy.budget.deposit()

    def next(self) -> tuple[Instance, Done] | float:
        """Return whom to try now, and who hears of that; or for how long to pause before, seconds.

        Raises
        ------
        NoAvailableInstance
            There is nobody, and the call does not wait.
        DeadlineExceeded
            The deadline has passed, before the first attempt or while the call waited.
        Exception
            The last error, where there is no time or leave for another round.
        """
        is_ready = self._is_ready
        if self._selector is None and self._round is None:
            self._begin_round()
        try:
            if self._selector is not None:
                return self._select()
            for candidate in self._round or ():
                is_there = False
                try:
                    is_there = is_ready is None or is_ready(candidate[0])
                finally:  # also where the channel was closed
                    if not is_there:
                        call_off(candidate[1])
                if is_there:
                    return candidate
        except NoAvailableInstance:
            if is_ready is None and self._course is None:
                raise
        self._selector = self._round = None
        if is_ready is not None:
            return self._wait()
        if self._course is None:
            raise NoAvailableInstance("no instance is available")
        return self._course.pause()

    def goes_on(self, error: Any) -> bool:
        """Whether another attempt follows one that ended with this error, and not by the caller.

        A server that is being stopped says CANCELLED to calls that it has no time for. That is no
        cancellation but a failure: where it is the last error it is UNAVAILABLE.
        """
        if self._is_ready is not None and getattr(error, "unsent", False) is True:
            return True
        if error.code() is grpc.StatusCode.CANCELLED:
            error = _as_failure(error)
        course = self._course
        if course is None:
            course = self._course = Course(self._policy, self._end)
        return course.goes_on(error)

    def forget(self) -> None:
        """Let all go: the call needs no more attempts."""
        self._round = self._selector = None
        if self._course is not None:
            self._course.forget()

    def _begin_round(self) -> None:
        end, rest = self._end, self._rest
        source = self._source()
        if end is not None and self._is_ready is None and self._course is not None:
            check_time(end, self._course)
        if self._is_selecting and self._is_ready is None and not rest:
            self._selector, self._tried = source, ()
            return
        is_first = self._course is None
        found = candidates(source, None, self._request, self._filters, self._key, is_first)
        self._round = rest.put_last(found) if rest else found

    def _select(self) -> tuple[Instance, Done]:
        tried = self._tried
        candidate: tuple[Instance, Done] = self._selector.select(
            filters=self._filters, exclude=tried, key=self._key
        )
        self._tried = (*tried, candidate[0])
        return candidate

    def _wait(self) -> float:
        if self._end is None:
            return POLL
        left = self._end - monotonic()
        if left <= 0:
            raise DeadlineExceeded("no instance was ready before the deadline")
        return min(POLL, left)


def _as_failure(cancellation: Any) -> Any:
    """Return a CANCELLED of a server as the failure that it is."""
    details = f"cancelled by the server: {cancellation.details()}"
    failure: Any = CallError(UNAVAILABLE, details)
    if isinstance(cancellation, grpc.aio.AioRpcError):
        metadata = cancellation.initial_metadata(), cancellation.trailing_metadata()
        failure = grpc.aio.AioRpcError(UNAVAILABLE, *metadata, details, details)
    failure.retry_after = getattr(cancellation, "retry_after", None)
    failure.__cause__ = cancellation
    return failure


def judge(error: Any, use: Use, rest: Suspects) -> bool:
    """Take notice of what an error says of its instance; return whether a retry is not forbidden.

    An error of a call that was never sent gets the attribute `unsent`, for
    `rota.retry.connect_failure`; where the server wants to be left alone, by the metadata
    "grpc-retry-pushback-ms" (gRFC A6), it gets `retry_after`, seconds.
    """
    subchannel = use.member.connection
    if error.code() is UNAVAILABLE:
        rest.suspect(subchannel)
        if subchannel.is_unsent(error.details()):
            error.unsent = True
            return True
    for key, value in error.trailing_metadata() or ():
        if key == PUSHBACK:
            try:
                milliseconds = int(value)
            except ValueError:
                return False  # as of a negative one
            if milliseconds < 0:
                return False
            error.retry_after = milliseconds / 1000
            rest.leave_alone(use.member.instance, milliseconds / 1000)
    return True


def ready_of(members: Members[Subchannel]) -> Callable[[Instance], bool]:
    """Return what tells whether an instance is connected, and has it connect."""

    def is_ready(instance: Instance) -> bool:
        member = members.reach(instance)
        return member is not None and member.connection.look(True) is READY

    return is_ready


def as_idempotent(idempotent: Any) -> Callable[[str], bool]:
    """Return what tells whether a method may be called twice, by its full name.

    Parameters
    ----------
    idempotent : callable (str) -> bool, or collection of str
        The names as in "/package.Service/Method".

    Raises
    ------
    TypeError, ValueError
        Neither; a name without a slash in front.
    """
    if callable(idempotent):
        return lambda name: bool(idempotent(name))
    if isinstance(idempotent, (str, bytes)) or not isinstance(idempotent, Iterable):
        raise TypeError(f"idempotent must be a callable or names of methods, got {idempotent!r}")
    names = frozenset(idempotent)
    for name in names:
        if not isinstance(name, str) or not name.startswith("/"):
            raise ValueError(
                f"idempotent must be of names like '/pkg.Service/Method', got {name!r}"
            )
    return names.__contains__


def now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Return what a coroutine gives that has nothing to wait for; None where it has."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    return None


def left_of(end: float | None) -> float | None:
    """Return the seconds until then; once that has passed less than 0, which grpcio refuses."""
    return None if end is None else end - monotonic()


def end_of(timeout: float | None, deadline: float | None) -> float | None:
    """Return when the first of both is, by `time.monotonic`."""
    if timeout is None:
        return None if deadline is None else monotonic() + deadline
    return monotonic() + (timeout if deadline is None else min(timeout, deadline))
