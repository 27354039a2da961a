"""Which balancer a client goes by: Kratos' selectors in the place of Kitex' pickers."""

from typing import Any, cast

from rota.discovery import Change, Instance
from rota.loadbalance.caching import CachingBalancer, Turn
from rota.loadbalance.interface import LoadBalancer, Picker
from rota.selector import SelectorBuilder, engine, global_selector


class SelectorBalancer(CachingBalancer):
    """Keeps a selector for each service, and has it follow discovery.

    What a selector has learned stays: Kratos' gRPC client begins anew with every change.

    Parameters
    ----------
    builder : SelectorBuilder
    """

    def __init__(self, builder: SelectorBuilder) -> None:
        super().__init__()
        self._builder = builder
        self.name = f"selector {builder!r}"
        #: Whether it goes by a key.
        self.is_keyed = bool(getattr(builder.build(), "is_keyed", False))

    def build(self, instances: tuple[Instance, ...]) -> Picker[Instance]:
        """Return a new selector of these instances."""
        selector = self._builder.build()
        selector.apply(instances)
        return cast("Picker[Instance]", selector)

    def _follow(self, turn: Turn, picker: Picker[Instance] | None, change: Change) -> bool:
        if picker is None:
            return False
        cast(Any, picker).apply(change.result.instances)
        return True


def as_balancer(balancer: Any) -> LoadBalancer:
    """Return what a client goes by, from what it was given.

    Parameters
    ----------
    balancer : LoadBalancer, SelectorBuilder, type of picker, or None
        None: the global selector of now.

    Raises
    ------
    TypeError
        It is none of these.
    """
    if balancer is None:
        return SelectorBalancer(global_selector())
    if isinstance(balancer, type):
        if not callable(getattr(balancer, "pick", None)):
            raise TypeError(f"balancer must be a type of picker, got {balancer!r}")
        return SelectorBalancer(engine(balancer))
    if isinstance(balancer, LoadBalancer):
        return balancer
    if callable(getattr(balancer, "build", None)):
        return SelectorBalancer(balancer)
    raise TypeError(
        "balancer must be a LoadBalancer, a builder of selectors, a type of picker, or None, "
        f"got {balancer!r}"
    )
