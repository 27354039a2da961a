"""What makes selectors, under Kratos' names, and which one makes those of a whole program.

    selector = p2c().build()

A builder is made once and makes any number of selectors: one for each service that is called.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

from rota.pickers import PeakEwma, WeightedRandom, WeightedRoundRobin
from rota.selector.balancer import BalancerBuilder, BuilderOf
from rota.selector.engine import Engine
from rota.selector.ewma import Ewma
from rota.selector.kratos import KratosP2C, KratosRandom, KratosWRR
from rota.selector.node import Direct, WeightedNodeBuilder
from rota.selector.selector import Selector

Mode = Literal["rota", "kratos"]


class SelectorBuilder(Protocol):
    """Makes selectors: what a client asks for, and `set_global_selector` takes."""

    def build(self) -> Selector:
        """Return a new selector."""
        ...


@dataclass(frozen=True, slots=True)
class Builder:
    """Makes selectors of a balancer and a kind of node; both may be the user's own.

    Parameters
    ----------
    balancer : BalancerBuilder
    node : WeightedNodeBuilder
    """

    balancer: BalancerBuilder
    node: WeightedNodeBuilder = field(default_factory=Direct)

    def build(self) -> Selector:
        """Return a new selector."""
        return Selector(self.balancer, self.node)


def engine(picker: Callable[..., Any], **options: Any) -> Builder:
    """Return the builder of selectors by any picker: `engine(rota.LeastRequest)`.

    Parameters
    ----------
    picker : type of picker
        One of rota's, or any like them.
    options : keyword arguments of it
    """
    return Builder(Engine(picker, **options))


def wrr(mode: Mode = "rota", **options: Any) -> Builder:
    """Return the builder of selectors by weighted round robin: nginx's smooth order.

    Parameters
    ----------
    mode : "rota" or "kratos"
        "kratos": Kratos' own arithmetic and flaws (`KratosWRR`), which takes no options.
    options : keyword arguments of WeightedRoundRobin
    """
    if _is_kratos(mode, options):
        return Builder(BuilderOf(KratosWRR))
    return engine(WeightedRoundRobin, **options)


def p2c(mode: Mode = "rota", **options: Any) -> Builder:
    """Return the builder of selectors by load: power of two choices, peak EWMA.

    Parameters
    ----------
    mode : "rota" or "kratos"
        "kratos": Kratos' own formulas and flaws (`KratosP2C` over `Ewma` nodes), which take
        a `seed` and no other options.
    options : keyword arguments of PeakEwma
    """
    if _is_kratos(mode, options, "seed"):
        return Builder(BuilderOf(partial(KratosP2C, **options)), Ewma())
    return engine(PeakEwma, **options)


def random(mode: Mode = "rota", **options: Any) -> Builder:
    """Return the builder of selectors that draw at random, by weight.

    Parameters
    ----------
    mode : "rota" or "kratos"
        "kratos": weights make no difference (`KratosRandom`); the one option is `seed`.
    options : keyword arguments of WeightedRandom
    """
    if _is_kratos(mode, options, "seed"):
        return Builder(BuilderOf(partial(KratosRandom, **options)))
    return engine(WeightedRandom, **options)


def _is_kratos(mode: str, options: dict[str, Any], *known: str) -> bool:
    if mode not in ("rota", "kratos"):
        raise ValueError(f"mode must be 'rota' or 'kratos', got {mode!r}")
    if mode == "kratos" and not options.keys() <= set(known):
        names = ", ".join(sorted(options.keys() - set(known)))
        raise TypeError(f"mode 'kratos' does not take {names}")
    return mode == "kratos"


_global: SelectorBuilder = wrr()


def set_global_selector(builder: SelectorBuilder) -> None:
    """Have clients that were not given a builder use this one, from the next one made on.

    Raises
    ------
    TypeError
        It has no method `build`.
    """
    global _global
    if not callable(getattr(builder, "build", None)):
        raise TypeError(f"builder must have a method build, got {builder!r}")
    _global = builder


def global_selector() -> SelectorBuilder:
    """Return the builder that clients use which were not given one: `wrr()` until it is set."""
    return _global
