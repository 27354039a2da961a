"""Calls that are tried again, on another instance, where that is safe.

`call` and `call_async` make one logical call of as many attempts as it takes; a `RetryPolicy`
says how many, and which errors may be followed by another; a `RetryBudget` keeps the retries of
a client a fraction of its calls. `open_call` and `open_call_async` are for calls that go on after
their function has returned, as streams do.
"""

from rota.retry.budget import RetryBudget
from rota.retry.calling import call, call_async, open_call, open_call_async
from rota.retry.course import DeadlineExceeded
from rota.retry.policy import RetryPolicy
from rota.retry.rest import Rest
from rota.retry.retryable import any_failure, connect_failure

__all__ = [
    "DeadlineExceeded",
    "Rest",
    "RetryBudget",
    "RetryPolicy",
    "any_failure",
    "call",
    "call_async",
    "connect_failure",
    "open_call",
    "open_call_async",
]
