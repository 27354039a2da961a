"""How a call ended, from its error: of every library's making, wrapped, and hostile."""

import asyncio
import concurrent.futures
import enum
import http.client
import io
import math
import sys
import time
import urllib.error
from email.utils import formatdate
from http import HTTPStatus
from types import SimpleNamespace

import pytest
import urllib3.exceptions
from hypothesis import given
from hypothesis import strategies as st

from rota.outcome import (
    MOST_ERRORS,
    Outcome,
    http_status_of,
    levels,
    outcome_of,
    retry_after_of,
    rpc_status_of,
)

SUCCESS, FAILURE, CANCELLED = Outcome


class Answer(Exception):
    """An error with attributes."""

    def __init__(self, **attributes):
        super().__init__()
        self.__dict__.update(attributes)


class Code(enum.Enum):
    """As grpc's StatusCode: the name says what it is, the value is no HTTP status."""

    OK = (0, "ok")
    CANCELLED = (1, "cancelled")
    UNKNOWN = (2, "unknown")
    INVALID_ARGUMENT = (3, "invalid argument")
    DEADLINE_EXCEEDED = (4, "deadline exceeded")
    NOT_FOUND = (5, "not found")
    ALREADY_EXISTS = (6, "already exists")
    PERMISSION_DENIED = (7, "permission denied")
    RESOURCE_EXHAUSTED = (8, "resource exhausted")
    FAILED_PRECONDITION = (9, "failed precondition")
    ABORTED = (10, "aborted")
    OUT_OF_RANGE = (11, "out of range")
    UNIMPLEMENTED = (12, "unimplemented")
    INTERNAL = (13, "internal")
    UNAVAILABLE = (14, "unavailable")
    DATA_LOSS = (15, "data loss")
    UNAUTHENTICATED = (16, "unauthenticated")


RPC_FAILURES = {
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "INTERNAL",
    "UNKNOWN",
    "DATA_LOSS",
    "ABORTED",
}


def rpc_error(code):
    return Answer(code=lambda: code)


def wrapping(outer, inner):
    """Raise one error from another."""
    try:
        raise outer from inner
    except BaseException as error:
        return error


def while_handling(outer, inner):
    """Raise one error while another is handled."""
    try:
        try:
            raise inner
        except BaseException:
            raise outer  # noqa: B904
    except BaseException as error:
        return error


class Group(Exception):
    """An ExceptionGroup, which Python 3.10 has not."""

    def __init__(self, *exceptions):
        super().__init__("several")
        self.exceptions = exceptions


def http_error(status):
    """urllib's, which is an OSError."""
    return urllib.error.HTTPError("http://a/", status, "", http.client.HTTPMessage(), io.BytesIO())


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, SUCCESS),
        (asyncio.CancelledError(), CANCELLED),
        (concurrent.futures.CancelledError(), CANCELLED),
        (GeneratorExit(), CANCELLED),
        (KeyboardInterrupt(), CANCELLED),
        (SystemExit(1), CANCELLED),
        (SystemExit(404), CANCELLED),
        (TimeoutError(), FAILURE),
        (asyncio.TimeoutError(), FAILURE),
        (concurrent.futures.TimeoutError(), FAILURE),
        (ConnectionRefusedError(), FAILURE),
        (OSError(5, "i/o"), FAILURE),
        (urllib.error.URLError("no route"), FAILURE),
        (urllib3.exceptions.ProtocolError(), FAILURE),
        (ValueError(), FAILURE),
        (EOFError(), FAILURE),
        ("no error at all", FAILURE),
        (404, FAILURE),
    ],
)
def test_by_type(error, outcome):
    assert outcome_of(error) is outcome


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (302, SUCCESS),
        (304, SUCCESS),
        (400, SUCCESS),
        (404, SUCCESS),
        (407, SUCCESS),
        (408, FAILURE),
        (409, SUCCESS),
        (428, SUCCESS),
        (429, FAILURE),
        (430, SUCCESS),
        (499, SUCCESS),
        (500, FAILURE),
        (503, FAILURE),
        (599, FAILURE),
        # Not the status of an error, or no HTTP status: nothing is said.
        (200, FAILURE),
        (1006, FAILURE),
        (-32600, FAILURE),
        (0, FAILURE),
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda status: Answer(status=status),
        lambda status: Answer(status_code=status),
        lambda status: Answer(code=status),
        lambda status: Answer(response=SimpleNamespace(status_code=status)),
        lambda status: Answer(status="bad", code=None, status_code=status),
        http_error,
    ],
)
def test_by_http_status(make, status, outcome):
    assert outcome_of(make(status)) is outcome


def test_what_is_an_http_status():
    assert http_status_of(Answer(code=HTTPStatus.NOT_FOUND)) == 404
    assert http_status_of(Answer(status="404")) is None
    assert http_status_of(Answer(status=404.0)) is None
    assert http_status_of(Answer(status=True)) is None
    assert http_status_of(Answer(code=enum.Enum("Code", {"BAD": 404}).BAD)) is None
    assert http_status_of(Answer(code=lambda: 404)) is None
    assert http_status_of(Answer(status=200, status_code=503)) == 503
    assert http_status_of(Answer(response=None)) is None
    for status, is_one in ((299, False), (300, True), (599, True), (600, False)):
        assert http_status_of(Answer(code=status)) == (status if is_one else None)

    class Odd(int):
        def __index__(self):
            raise RuntimeError

        __int__ = __le__ = __lt__ = __ge__ = __eq__ = __index__

    assert http_status_of(Answer(status=Odd(503))) == 503


@pytest.mark.parametrize("code", Code)
def test_by_rpc_status(code):
    outcome = FAILURE if code.name in RPC_FAILURES else SUCCESS
    outcome = CANCELLED if code is Code.CANCELLED else outcome
    assert outcome_of(rpc_error(code)) is outcome
    # An enum in an attribute, as others have it.
    assert outcome_of(Answer(status=code)) is outcome
    assert outcome_of(Answer(code=code)) is outcome


def test_what_is_an_rpc_status():
    assert rpc_status_of(rpc_error(Code.ABORTED)) == "ABORTED"
    assert rpc_status_of(Answer(code=lambda: SimpleNamespace(name="CANCELED"))) == "CANCELED"
    assert rpc_status_of(Answer(code=lambda: SimpleNamespace(name="EHOSTUNREACH"))) is None
    assert rpc_status_of(Answer(code=lambda: SimpleNamespace(name=5))) is None
    assert rpc_status_of(Answer(code=lambda needed: needed)) is None
    assert rpc_status_of(Answer(name="NOT_FOUND")) is None


@pytest.mark.parametrize("wrap", [wrapping, while_handling, lambda outer, inner: Group(inner)])
def test_wrapped_errors(wrap):
    for inner, outcome in (
        (asyncio.CancelledError(), CANCELLED),
        (Answer(status=404), SUCCESS),
        (Answer(status=503), FAILURE),
        (rpc_error(Code.NOT_FOUND), SUCCESS),
        (ValueError(), FAILURE),
    ):
        once = wrap(RuntimeError("failed"), inner)
        assert outcome_of(once) is outcome
        assert outcome_of(wrap(KeyError("again"), once)) is outcome


def test_the_outermost_that_says_something_decides():
    assert outcome_of(wrapping(Answer(status=503), Answer(status=404))) is FAILURE
    assert outcome_of(wrapping(Answer(status=404), Answer(status=503))) is SUCCESS
    assert outcome_of(wrapping(asyncio.CancelledError(), ConnectionResetError())) is CANCELLED
    # A second try could not connect, while the first try's error was handled.
    assert outcome_of(while_handling(ConnectionRefusedError(), Answer(status=404))) is FAILURE
    deep = wrapping(ValueError(), wrapping(ValueError(), Answer(status=404)))
    assert outcome_of(Group(deep, wrapping(ValueError(), asyncio.CancelledError()))) is CANCELLED


def test_a_timeout_is_no_cancellation():
    """asyncio cancels the slow call, and raises its TimeoutError from that."""

    async def slow():
        await asyncio.Event().wait()

    async def call():
        await asyncio.wait_for(slow(), 0.001)

    with pytest.raises(asyncio.TimeoutError) as caught:
        asyncio.run(call())
    assert outcome_of(caught.value) is FAILURE
    assert outcome_of(wrapping(asyncio.TimeoutError(), asyncio.CancelledError())) is FAILURE


def test_a_cause_hides_the_context():
    error = while_handling(RuntimeError(), Answer(status=404))
    assert outcome_of(error) is SUCCESS
    error.__suppress_context__ = True  # raise ... from None
    assert outcome_of(error) is FAILURE
    error = while_handling(RuntimeError(), Answer(status=404))
    error.__cause__ = asyncio.CancelledError()
    error.__suppress_context__ = False
    assert outcome_of(error) is CANCELLED


def test_of_several_at_one_depth_the_worse_for_the_server():
    cancelled, wrong, down = asyncio.CancelledError(), Answer(status=404), ConnectionError()
    assert outcome_of(Group(cancelled, wrong, down)) is FAILURE
    assert outcome_of(Group(cancelled, wrong)) is SUCCESS
    assert outcome_of(Group(cancelled, ValueError())) is CANCELLED
    assert outcome_of(Group(ValueError(), ValueError())) is FAILURE
    # Members and cause are as deep as each other.
    assert outcome_of(wrapping(Group(wrong), down)) is FAILURE


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no exception groups")
def test_exception_groups():
    group = BaseExceptionGroup("g", [asyncio.CancelledError(), ValueError()])  # noqa: F821
    assert outcome_of(group) is CANCELLED
    group = ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [TimeoutError()])])  # noqa: F821
    assert outcome_of(group) is FAILURE


def test_cycles_and_depths():
    one, other = RuntimeError(), RuntimeError()
    one.__cause__, other.__context__ = other, one
    assert outcome_of(one) is FAILURE
    group = Group(one)
    group.exceptions = (group, one, other)
    assert [len(level) for level in levels(group)] == [1, 2]

    class Endless(Exception):
        @property
        def __cause__(self):
            return Endless()

    assert outcome_of(Endless()) is FAILURE
    # So far, and no further.
    chain = asyncio.CancelledError()
    for _ in range(MOST_ERRORS - 1):
        chain = wrapping(RuntimeError(), chain)
    assert outcome_of(chain) is CANCELLED
    assert outcome_of(wrapping(RuntimeError(), chain)) is FAILURE
    assert sum(map(len, levels(Group(*[ValueError() for _ in range(10**5)])))) == MOST_ERRORS


RAISED = st.sampled_from([RuntimeError, AttributeError, asyncio.CancelledError, SystemExit])
ATTRIBUTES = (
    "status",
    "status_code",
    "code",
    "response",
    "exceptions",
    "__cause__",
    "__context__",
    "__suppress_context__",
    "__class__",
)


@given(hostile=st.dictionaries(st.sampled_from(ATTRIBUTES), RAISED), status=st.booleans())
def test_whatever_properties_raise(hostile, status):
    """An attribute that cannot be read says nothing; the others still do."""

    class Hostile(Exception):
        if status:
            status_code = 404

        def __getattribute__(self, name):
            if name in hostile:
                raise hostile[name]
            return super().__getattribute__(name)

    says = status and "status_code" not in hostile
    assert outcome_of(Hostile()) is (SUCCESS if says else FAILURE)
    assert outcome_of(rpc_error(Hostile())) is FAILURE
    assert outcome_of(wrapping(RuntimeError(), Hostile())) is (SUCCESS if says else FAILURE)


@pytest.mark.parametrize("value", [5, "abc", object(), {1: 2}, iter([ValueError()]), [None, 5]])
@pytest.mark.parametrize("name", ATTRIBUTES[:5])
def test_attributes_of_any_type(name, value):
    assert outcome_of(Answer(**{name: value})) is FAILURE


def test_code_that_raises():
    def code():
        raise asyncio.CancelledError

    assert outcome_of(Answer(code=code)) is FAILURE
    assert outcome_of(Answer(code=code, status=404)) is SUCCESS


# -- Retry-After --------------------------------------------------------------------------


def httpdate(seconds):
    return formatdate(time.time() + seconds, usegmt=True)


def test_what_says_nothing_of_when_to_come_back():
    for header in ("", "soon", "-1", "1.5", "1e3", "٣", "9" * 10, "Mon, 99 Nov", "\0", "1 2"):
        assert retry_after_of(Answer(headers={"Retry-After": header})) is None, header
    for error in (None, Answer(), Answer(headers=None), Answer(headers={}), Answer(headers="x")):
        assert retry_after_of(error) is None
    for number in (math.inf, math.nan):
        assert retry_after_of(Answer(retry_after=number)) is None


def test_when_a_server_wants_to_be_asked_again():
    assert retry_after_of(Answer(retry_after=2)) == 2
    assert retry_after_of(Answer(retry_after=-2)) == 0
    assert retry_after_of(Answer(headers={"Retry-After": "120"})) == 120
    assert retry_after_of(Answer(response=SimpleNamespace(headers={"Retry-After": " 0 "}))) == 0
    assert retry_after_of(Answer(headers={"Retry-After": httpdate(-100)})) == 0
    assert 90 < retry_after_of(Answer(headers={"Retry-After": httpdate(100)})) <= 100
    zoneless = httpdate(100).replace("GMT", "-0000")
    assert 90 < retry_after_of(Answer(headers={"Retry-After": zoneless})) <= 100


@given(st.text())
def test_no_header_makes_trouble(header):
    after = retry_after_of(Answer(headers={"Retry-After": header}))
    assert after is None or after >= 0
