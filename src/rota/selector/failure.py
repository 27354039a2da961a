"""Which errors make an instance's success rate fall: two opinions for `Ewma`."""

from collections.abc import Callable

from rota.outcome import (
    CANCELLATIONS,
    NO_ANSWER,
    http_status_of,
    is_a,
    levels,
    outermost,
    rpc_status_of,
)

IsFailure = Callable[[BaseException], bool]

# Service unavailable, gateway timeout: the only answers that Kratos takes for failures.
_STATUSES = (503, 504)
_NAMES = ("UNAVAILABLE", "DEADLINE_EXCEEDED")


def transport_failure(error: BaseException) -> bool:
    """Whether a call came to no answer: Kratos' list of failures, found in wrapped errors too.

    Timeouts, cancellations, errors of the network (OSError), the HTTP statuses 503 and 504
    and their gRPC equals. The outermost error that says something decides, as in
    `rota.outcome.outcome_of`. Any other error is none, HTTP's 500 neither: for an opinion
    that counts what the server did wrong give `Ewma` one made of `outcome_of`.
    """
    return any(outermost(error, _is_no_answer))


def _is_no_answer(error: object) -> bool | None:
    if is_a(error, CANCELLATIONS):  # before the status: SystemExit has a `code`
        return True
    is_unavailable = _is_unavailable(error)
    if is_unavailable is None and is_a(error, NO_ANSWER):
        return True
    return is_unavailable


def kratos_failure(error: BaseException) -> bool:
    """Whether Kratos would count an error as a failure.

    As `transport_failure`, with these differences, the first of which is a flaw (Kratos gives
    the arguments of `errors.Is` in the wrong order):

    - a cancellation that another error wraps is none;
    - an error of the network counts wherever it is in the chain, also beneath an answer.
    """
    if is_a(error, CANCELLATIONS):
        return True
    answer = None
    for level in levels(error):
        for each in level:
            is_unavailable = _is_unavailable(each)
            if answer is None:
                answer = is_unavailable
            # With a status it is an answer, whatever its type: urllib's HTTPError is an OSError.
            if is_unavailable is None and is_a(each, NO_ANSWER):
                return True
    return bool(answer)


def _is_unavailable(error: object) -> bool | None:
    """Whether the status of an error is that of an instance unavailable; None: it has none."""
    status = http_status_of(error)
    if status is not None:
        return status in _STATUSES
    name = rpc_status_of(error)
    return None if name is None else name in _NAMES
