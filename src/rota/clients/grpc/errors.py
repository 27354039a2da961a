"""Errors of calls that no server has answered: no instance, no time, cancelled before the first."""

from typing import Any, NoReturn

import grpc

from rota.retry import DeadlineExceeded
from rota.selector import NoAvailableInstance

CANCELLED_DETAILS = "Locally cancelled by application!"  # as grpcio says it


class CallError(grpc.RpcError, grpc.Call, grpc.Future):
    """A call that has ended without a server's answer: an error of gRPC, and a call that is over.

    Parameters
    ----------
    code : grpc.StatusCode
    details : str
    """

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self._code = code
        self._details = details

    def code(self) -> grpc.StatusCode:
        """Return the status."""
        return self._code

    def details(self) -> str:
        """Return what there is to say."""
        return self._details

    def debug_error_string(self) -> str:
        """Return the status and what there is to say."""
        return f"{self._code.name}:{self._details}"

    def initial_metadata(self) -> Any:
        """Return no metadata."""
        return ()

    def trailing_metadata(self) -> Any:
        """Return no metadata."""
        return ()

    def is_active(self) -> bool:
        """Return False."""
        return False

    def time_remaining(self) -> None:
        """Return None."""

    def add_callback(self, callback: Any) -> bool:
        """Return False: it is over."""
        return False

    def cancel(self) -> bool:
        """Return False: it is over."""
        return False

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._code is grpc.StatusCode.CANCELLED

    def running(self) -> bool:
        """Return False."""
        return False

    def done(self) -> bool:
        """Return True."""
        return True

    def result(self, timeout: float | None = None) -> NoReturn:
        """Raise this, or FutureCancelledError."""
        raise self if not self.cancelled() else grpc.FutureCancelledError()

    def exception(self, timeout: float | None = None) -> "CallError":
        """Return this, or raise FutureCancelledError."""
        if self.cancelled():
            raise grpc.FutureCancelledError
        return self

    def traceback(self, timeout: float | None = None) -> Any:
        """Return where this was raised, or raise FutureCancelledError."""
        return self.exception().__traceback__

    def add_done_callback(self, fn: Any) -> None:
        """Call it at once."""
        fn(self)

    def __str__(self) -> str:
        return self.debug_error_string()


class ChannelClosed(CallError):
    """CANCELLED: the channel was closed, and not the call by whom it is of."""

    def __init__(self) -> None:
        super().__init__(grpc.StatusCode.CANCELLED, "Channel closed!")  # as grpcio says it

    def cancelled(self) -> bool:
        """Return False."""
        return False


class NoInstance(CallError, NoAvailableInstance):
    """UNAVAILABLE: nobody is there to call, or the service was not found."""

    code = CallError.code  # type: ignore[assignment]  # not an HTTP status

    def __init__(self, details: str) -> None:
        super().__init__(grpc.StatusCode.UNAVAILABLE, details)


class DeadlineError(CallError, DeadlineExceeded):
    """DEADLINE_EXCEEDED, before an attempt or between two."""

    def __init__(self, details: str) -> None:
        super().__init__(grpc.StatusCode.DEADLINE_EXCEEDED, details)
