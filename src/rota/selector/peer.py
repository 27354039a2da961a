"""Which instance a request went to, for whoever asks around the call: Kratos' peer.

with Peer() as caller:
    client.get("/")
caller.node        # the instance that a selector chose last in there
"""

from contextvars import ContextVar, Token
from types import TracebackType

from rota.discovery import Instance


class Peer:
    """The other end of the requests made in its context. A context manager that gives itself.

    Attributes
    ----------
    node : Instance or None
        The instance that a selector chose last; None before that.

    Notes
    -----
    The context is that of `contextvars`: a thread's own, and in asyncio that of a task and of
    the tasks it starts. One peer serves one `with` at a time.
    """

    __slots__ = ("_tokens", "node")

    def __init__(self) -> None:
        self.node: Instance | None = None
        self._tokens: list[Token[Peer | None]] = []

    def __enter__(self) -> "Peer":
        self._tokens.append(peer.set(self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        peer.reset(self._tokens.pop())

    def __repr__(self) -> str:
        return f"Peer(node={self.node!r})"


peer: "ContextVar[Peer | None]" = ContextVar("rota_peer", default=None)
"""The peer of the current context, or None; every selector writes to it."""
