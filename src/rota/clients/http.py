"""What the balanced HTTP clients have in common: which answers are failures, and names in URLs."""

from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from typing import Any
from urllib.parse import unquote, urlsplit

from rota.discovery import Instance
from rota.discovery.resolver import service_of
from rota.outcome import Outcome, outcome_of, parse_retry_after, unheard
from rota.selector import DoneInfo

# RFC 9110, section 9.2.2.
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})

# Too Many Requests, Bad Gateway, Service Unavailable, Gateway Timeout.
RETRY_STATUSES = frozenset({429, 502, 503, 504})

PORTS = {"http": 80, "https": 443}


class StatusError(Exception):
    """An answer whose status says that the server could not do what it should.

    Attributes
    ----------
    status : int
    retry_after : float or None
        For how many seconds the server wants to be left alone.
    response : object
        The answer, of the client's library; its body has not been read.
    """

    def __init__(self, status: int, retry_after: float | None, response: Any = None) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status
        self.retry_after = retry_after
        self.response = response


def failure_of(status: int, retry_after: str | None, response: Any = None) -> StatusError | None:
    """Return the error of a status that is one, None of any other.

    Those are 408, 429, and 500 and above: see `rota.outcome`.
    """
    if status < 400:
        return None
    wait = None if retry_after is None else parse_retry_after(retry_after)
    error = StatusError(status, wait, response)
    return error if outcome_of(error) is Outcome.FAILURE else None


def as_statuses(statuses: Iterable[int]) -> frozenset[int]:
    """Return the statuses that are retried.

    Raises
    ------
    TypeError, ValueError
        Not of integers; one that is not a failure, which no retry would mend.
    """
    if isinstance(statuses, (str, bytes)) or not isinstance(statuses, Iterable):
        raise TypeError(f"retry_statuses must be integers, got {statuses!r}")
    chosen = frozenset(statuses)
    for status in chosen:
        if not isinstance(status, int) or isinstance(status, bool):
            raise TypeError(f"retry_statuses must be integers, got {status!r}")
        if not 100 <= status < 600 or failure_of(status, None) is None:
            raise ValueError(f"retry_statuses must be 408, 429 or 500 to 599, got {status}")
    return chosen


def split_target(path: bytes) -> tuple[str, bytes]:
    """Return the service and the rest of the path of ``discovery:///service/rest?query``.

    Raises
    ------
    ValueError
        No service is named.
    """
    path, mark, query = path.partition(b"?")  # a query may have slashes
    first, _, rest = path.lstrip(b"/").partition(b"/")
    service = unquote(first.decode("ascii", "replace"))
    return service_of(service), b"/" + rest + mark + query


def origin_of(endpoint: str, origin: Any) -> str:
    """Return what the URLs of a service begin with, as "https://host" or "https://host:port".

    Parameters
    ----------
    endpoint : str
        "discovery:///name", or "name".
    origin : str, URL of a library, or None
        None: "http://name".

    Raises
    ------
    ValueError
        The service's name cannot be a host's, and no origin is given; or that is none.
    """
    if origin is None:
        try:
            service = service_of(endpoint)
        except ValueError as error:
            raise ValueError(f"{error}; any other needs an origin") from None
        found = _split_origin(f"http://{service}")
        if found is None or ":" in service:
            raise ValueError(f"origin must be given for a service that is no host, got {service!r}")
        return found
    found = _split_origin(str(origin))
    if found is None:
        raise ValueError(f"origin must be 'https://host', got {origin!r}")
    return found


def _split_origin(url: str) -> str | None:
    if not url.isprintable() or " " in url:  # urlsplit takes some of these out
        return None
    try:
        parts = urlsplit(url)
        is_fit = parts.scheme in PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    if not is_fit or any(mark in parts.netloc for mark in "@%\\"):
        return None
    # Compared since the scheme may have been in capitals.
    rest = url[len(parts.scheme) :].removesuffix("/")
    return parts.scheme + rest if rest == f"://{parts.netloc}" else None


def split_address(instance: Instance, scheme: str) -> tuple[str, int]:
    """Return the host and the port of an instance's address; the scheme's port where it has none.

    Raises
    ------
    ValueError
        It has none.
    """
    address = instance.address
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, port = address, str(PORTS[scheme])
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if (
        not host
        or "/" in host
        or not port.isascii()
        or not port.isdigit()
        or not 0 < int(port) < 65536
    ):
        raise ValueError(f"address must be 'host:port', got {address!r}")
    return host, int(port)


class Ending:
    """The end of a call's attempt, told once: to the balancer, and to who counts it.

    Let go without a word it was cancelled.

    Parameters
    ----------
    done : callable
        The balancer's.
    release : callable (failed) -> None
    told : HttpAttempt of rota.clients.telemetry, or None

    Attributes
    ----------
    error : StatusError or None
        What the status was; None at first.
    headers : mapping of str to str, or None
        Of the answer.
    """

    __slots__ = ("_done", "_release", "_told", "error", "headers", "is_told")

    def __init__(
        self,
        done: Callable[..., object],
        release: Callable[[bool], object],
        told: Any = None,
    ) -> None:
        self._done = done
        self._release = release
        self._told = told
        self.error: StatusError | None = None
        self.headers: Any = None
        self.is_told = False

    def tell(self, error: BaseException | None = None) -> None:
        """Say how the body ended: with this error, or well. The first word counts."""
        if self.is_told:
            return
        self.is_told = True
        if self._told is not None:
            self._told.end(error)
        error = self.error or error  # a status says more than how the body ended
        self._release(error is not None and outcome_of(error) is Outcome.FAILURE)
        done = self._done
        if done is not unheard:
            done(DoneInfo(error, self.headers, True, True))

    def hush(self) -> None:
        """Leave the balancer out: it has heard of the end already."""
        self._done = unheard

    def __del__(self) -> None:
        if not self.is_told:
            if self._told is not None:
                self._told.abandon()
            self.tell(CancelledError())
