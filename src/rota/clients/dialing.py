"""What all balanced clients have in common: from a name to a call that goes on elsewhere."""

import random
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from rota.clients.balancing import SelectorBalancer, as_balancer
from rota.clients.members import Member, Members
from rota.clients.options import KeyOf, current
from rota.discovery import Change, Instance
from rota.discovery.resolver import Resolver
from rota.loadbalance.factory import AsyncBalancerFactory, BalancerFactory, Factory
from rota.retry import Rest, RetryBudget, RetryPolicy, any_failure, connect_failure
from rota.selector.filters import NodeFilter
from rota.selector.peer import peer
from rota.selector.selector import as_chain

C = TypeVar("C")
F = TypeVar("F", BalancerFactory, AsyncBalancerFactory)

# (policy, ctx, request, filters, key, True, rest): what follows the source and the function.
Arguments = tuple[RetryPolicy, None, Any, tuple[NodeFilter, ...], Any, bool, Rest]

# Of a call without a key. Not to be foreseen, and nobody's seeded numbers are used.
_random = random.SystemRandom()


class Dialer(Generic[F, C]):
    """Whom a client calls, and how: made once for each client.

    Parameters
    ----------
    kind : BalancerFactory or AsyncBalancerFactory
        What the client can use.
    discovery : Resolver or factory
        A resolver gets a factory of the client's own, which is closed with it. A factory may be
        shared by any number of clients, and brings its own balancer.
    balancer : LoadBalancer, SelectorBuilder, type of picker, or None
        None: `rota.selector.global_selector()`.
    filters : sequence of NodeFilter
        For each call; selectors only.
    key : callable (request) -> str, bytes, int or None; or None
        What the call is about, where a selector goes by a key. Of None it goes to an instance
        at random.
    policy : RetryPolicy or None
        None: `RetryPolicy(retry_on=any_failure)`. Calls that may not be made twice are tried
        again only where the policy allows it and no server has seen them.
    connect, close : callable
        See `Members`.

    Attributes
    ----------
    factory : BalancerFactory or AsyncBalancerFactory
    is_owner : bool
        Whether the factory is to be closed with the client.
    is_selecting : bool
        Whether it goes by selectors, which tell the peer by themselves; else by Kitex' pickers.
    members : Members
    rest : Rest

    Raises
    ------
    TypeError
        Something of another kind; or that is for another kind of balancer.
    """

    def __init__(
        self,
        kind: Callable[..., F],
        discovery: Any,
        *,
        balancer: Any,
        filters: Sequence[NodeFilter],
        key: KeyOf | None,
        policy: RetryPolicy | None,
        connect: Callable[[Instance], C],
        close: Callable[[C], object],
    ) -> None:
        chain = as_chain(filters)
        if key is not None and not callable(key):
            raise TypeError(f"key must be a callable of a request, got {key!r}")
        policy = RetryPolicy(retry_on=any_failure) if policy is None else policy
        if not isinstance(policy, RetryPolicy):
            raise TypeError(f"policy must be a RetryPolicy or None, got {policy!r}")
        is_shared = isinstance(discovery, (BalancerFactory, AsyncBalancerFactory))
        if is_shared:
            if not isinstance(discovery, kind):  # type: ignore[arg-type]
                raise TypeError(f"discovery must be a {kind.__name__}, got {discovery!r}")
            if balancer is not None:
                raise TypeError(f"balancer is the factory's, got {balancer!r} as well")
        elif not isinstance(discovery, Resolver):
            raise TypeError(
                f"discovery must be a Resolver or a factory, got {discovery!r}; of a fixed list: "
                "StaticResolver({'name': ['host:port']})"
            )
        chosen = discovery.balancer if is_shared else as_balancer(balancer)
        self.is_selecting = isinstance(chosen, SelectorBalancer)
        is_keyed = isinstance(chosen, SelectorBalancer) and chosen.is_keyed
        if key is not None and not is_keyed:
            raise TypeError(f"key is for selectors that go by one, not for {chosen.name!r}")
        if chain and not self.is_selecting:
            raise TypeError(f"filters are for selectors, not for {chosen.name!r}")
        self._is_keyed = is_keyed
        self._filters = chain
        self._key = key
        self._policy = policy
        self._cautious = replace(policy, retry_on=_unseen(policy), budget=None)
        self.rest = Rest()
        self.members: Members[C] = Members(connect, close)
        self.factory: F = discovery if is_shared else kind(discovery, chosen)
        self.is_owner = not is_shared
        follow = _Following(self.members, self.factory)
        unhooks = (
            self.factory.add_rebalance_hook(follow),
            self.factory.add_delete_hook(follow),
        )
        self._unhook: weakref.finalize[..., Any] = weakref.finalize(self, _call_all, unhooks)
        self._unhook.atexit = False

    def arguments(self, request: Any, is_idempotent: bool, can_repeat: bool = True) -> "Arguments":
        """Return the arguments of `rota.retry.calling.make_call` for this request.

        Parameters
        ----------
        request : object
            For pickers, and for what makes the key.
        is_idempotent : bool
            Unless `call_options` says something else.
        can_repeat : bool
            False: it cannot be sent twice, whatever anybody says of it.

        Raises
        ------
        TypeError
            Filters or a key of `call_options` that are not for this balancer.
        """
        said = current.get()
        if said.idempotent is not None:
            is_idempotent = said.idempotent
        policy = self._policy if is_idempotent and can_repeat else self._cautious
        if not self.is_selecting:
            if said.filters or said.key is not None:
                raise TypeError("filters and key are for selectors, the balancer is none")
            return policy, None, request, (), None, True, self.rest
        filters = self._filters
        if said.filters:
            filters += said.filters
        key = None
        if self._is_keyed:
            key = said.key
            if key is None and self._key is not None:
                key = self._key(request)
            if key is None:
                key = _random.getrandbits(63)
        return policy, None, None, filters, key, True, self.rest

    @property
    def plain_filters(self) -> tuple[NodeFilter, ...] | None:
        """The filters of all calls that nothing is said of; None where they go by more."""
        return None if self._is_keyed or not self.is_selecting else self._filters

    @property
    def deadline(self) -> float | None:
        """Seconds for a call with all its attempts, or None."""
        return self._policy.deadline

    @property
    def budget(self) -> RetryBudget | None:
        """What lets retries through; None where all are."""
        return self._policy.budget

    def begin(self, instance: Instance, user: object) -> Member[C]:
        """Begin an attempt; return the member that it is made through, to be released."""
        if not self.is_selecting:
            caller = peer.get()
            if caller is not None:
                caller.node = instance
        return self.members.take(instance, user)

    def close(self) -> list[C]:
        """Take no calls any more; returns the connections, to be closed."""
        self._unhook()
        return self.members.close()


def _call_all(functions: Sequence[Callable[[], object]]) -> None:
    for function in functions:
        function()


class _Following:
    """Tells members of changes, and keeps nothing alive: a factory may outlive its clients.

    Of a factory of several services all changes come; who has left one may be in another.
    """

    def __init__(self, members: "Members[Any]", factory: Factory) -> None:
        self._members = weakref.ref(members)
        self._factory = weakref.ref(factory)

    def __call__(self, change: Change) -> None:
        members = self._members()
        factory = self._factory()
        if members is None or factory is None:
            return
        if change.removed:
            results = factory.results().values()
            others = [each for each in results if each.cache_key != change.result.cache_key]
            if others:
                left = {each.identity for each in change.removed}
                for other in others:
                    left.difference_update(each.identity for each in other.instances)
                removed = tuple(each for each in change.removed if each.identity in left)
                change = replace(change, removed=removed)
        members.follow(change)


def _unseen(policy: RetryPolicy) -> Callable[[BaseException], bool]:
    def is_unseen(error: BaseException) -> bool:
        return connect_failure(error) and policy.may_follow(error)

    return is_unseen
