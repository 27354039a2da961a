"""Which balancer a client goes by: Kratos' selectors in the place of Kitex' pickers."""

from typing import Any, cast

from rota.discovery import Change, Instance
from rota.loadbalance.caching import CachingBalancer, Turn
from rota.loadbalance.interface import LoadBalancer, Picker
from rota.selector import SelectorBuilder, engine, global_selector

# What a selector calls of any picker, by which a type of one is known.
PICKER = ("select", "update")


class SelectorBalancer(CachingBalancer):
    """Keeps a selector for each service, and has it follow discovery.

    What a selector has learned stays: Kratos' gRPC client begins anew with every change.

    Parameters
    ----------
    builder : SelectorBuilder

    Raises
    ------
    TypeError
        What it builds is no selector.
    """

    def __init__(self, builder: SelectorBuilder) -> None:
        super().__init__()
        built = builder.build()
        if not callable(getattr(built, "apply", None)):
            raise TypeError(
                f"balancer must build selectors, as rota.selector.Builder does; {builder!r} "
                f"built {built!r}"
            )
        self._builder = builder
        self.name = f"selector {builder!r}"
        #: Whether it goes by a key.
        self.is_keyed = bool(getattr(built, "is_keyed", False))

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
        lacking = [name for name in PICKER if not callable(getattr(balancer, name, None))]
        if lacking:
            raise TypeError(
                f"balancer must be a type of picker, got {balancer!r} without "
                f"{', '.join(lacking)}; of a type of balancer or builder give an instance"
            )
        return SelectorBalancer(engine(balancer))
    if isinstance(balancer, LoadBalancer):
        return balancer
    if callable(getattr(balancer, "build", None)):
        return SelectorBalancer(balancer)
    raise TypeError(
        "balancer must be a LoadBalancer, a builder of selectors as p2c(), a type of picker, or "
        f"None, got {balancer!r}"
    )
