"""What the channels for threads and for asyncio have in common."""

import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import grpc

from rota.clients.dialing import Arguments, Dialer
from rota.clients.grpc.calls import (
    Attempts,
    Request,
    Use,
    as_idempotent,
    end_of,
    judge,
    ready_of,
)
from rota.clients.grpc.subchannels import (
    SHUTDOWN,
    Method,
    Subchannel,
    Suspects,
    aggregate,
    as_options,
    target_of,
)
from rota.clients.options import KeyOf
from rota.clients.snapshot import ServiceStats, service_stats
from rota.clients.telemetry import Telemetry, as_telemetry
from rota.discovery import Instance
from rota.discovery.resolver import Resolver, service_of
from rota.loadbalance.services import ServiceBalancer
from rota.retry import RetryPolicy
from rota.retry.candidates import Done
from rota.selector.filters import NodeFilter

logger = logging.getLogger(__name__)

IDLE = grpc.ChannelConnectivity.IDLE

CLOSED = "Cannot invoke RPC on closed channel!"  # as grpcio says it


class Balanced:
    """A channel to a service: a subchannel to each instance, and who decides between them.

    Parameters
    ----------
    endpoint : str
        "discovery:///name", or "name".
    discovery : Resolver or factory
        A resolver gets a factory of the channel's own, which is closed with it. A
        `BalancerFactory` (of a channel for asyncio an `AsyncBalancerFactory`) may be shared, and
        brings its own balancer.
    credentials : grpc.ChannelCredentials or None
    balancer : LoadBalancer, SelectorBuilder, type of picker, or None
        Who decides: one of `rota.loadbalance`, a builder of `rota.selector` as `p2c()`, a type
        of picker as `rota.PeakEwma`, or a class of your own like these. None:
        `rota.selector.global_selector()`.
    filters : sequence of NodeFilter
        For all calls; selectors only.
    key : callable (request) -> str, bytes, int or None
        What a call is about, for a selector that goes by a key: `rota.clients.header("x-user")`,
        or any function of an object with `method`, `headers` (the metadata) and `request`.
    policy : RetryPolicy or None
        None: `RetryPolicy(retry_on=any_failure)`, with a budget.
    idempotent : callable (str) -> bool, or collection of str
        The methods that may be called twice, "/package.Service/Method". Asked once for each.
    options, compression, interceptors
        Of each subchannel. Interceptors are those of grpc.aio.
    authority : str or None
        What the servers take themselves for: the header :authority, and the name in their
        certificates. None: the service's name.
    telemetry : bool or Telemetry
        Whether OpenTelemetry hears of each attempt: see `rota.clients.telemetry`.

    Attributes
    ----------
    plain : tuple of NodeFilter, or None
        The filters of a call that nothing is said of; None where each call may go by others.

    Raises
    ------
    TypeError, ValueError
        An argument of no use.
    """

    _kind: type[Any]

    def __init__(
        self,
        endpoint: str,
        discovery: Resolver | Any,
        credentials: Any,
        *,
        balancer: Any = None,
        filters: Sequence[NodeFilter] = (),
        key: KeyOf | None = None,
        policy: RetryPolicy | None = None,
        idempotent: Any = (),
        options: Any = None,
        compression: Any = None,
        authority: str | None = None,
        telemetry: "bool | Telemetry" = True,
    ) -> None:
        service_of(endpoint)
        if credentials is not None and not isinstance(credentials, grpc.ChannelCredentials):
            raise TypeError(f"credentials must be grpc.ChannelCredentials, got {credentials!r}")
        self.endpoint = endpoint
        self.is_closed = False
        self._credentials = credentials
        self._compression = compression
        self._options = as_options(options, endpoint, authority, credentials is not None)
        self._is_idempotent = as_idempotent(idempotent)
        self.telemetry = as_telemetry(telemetry)
        self._methods: WeakValueDictionary[Any, Method] = WeakValueDictionary()
        self.held: ServiceBalancer | None = None  # so that it is followed
        self._dialer: Dialer[Any, Subchannel] = Dialer(
            self._kind,
            discovery,
            balancer=balancer,
            filters=filters,
            key=key,
            policy=policy,
            connect=self._connect,
            close=self._let_go,
        )
        self.rest = self._dialer.rest = Suspects()
        self.members = self._dialer.members
        self.budget = self._dialer.budget
        self._deadline = None if policy is None else policy.deadline
        self.plain = None if self._deadline else self._dialer.plain_filters
        self._is_ready = ready_of(self.members)

    def stats(self) -> list[ServiceStats]:
        """Return what has been counted: one row, of the service. O(instances); any thread."""
        return [service_stats(self.endpoint, self.members, self.held, self.budget)]

    # -- subchannels ----------------------------------------------------------------------

    def _connect(self, instance: Instance) -> Subchannel:
        subchannel = self._make(instance, target_of(instance))
        self.rest.suspect(subchannel)
        logger.debug("%s: subchannel to %s", self.endpoint, instance.address)
        return subchannel

    def _make(self, instance: Instance, target: str) -> Subchannel:
        raise NotImplementedError

    def _let_go(self, subchannel: Subchannel) -> None:
        self.rest.forget(subchannel)
        for reference in self._methods.valuerefs():  # in one step: stubs are made meanwhile
            method = reference()
            if method is not None:
                method.callables.pop(subchannel, None)
        logger.debug("%s: no subchannel to %s any more", self.endpoint, subchannel.instance.address)
        self._close_later(subchannel)

    def _close_later(self, subchannel: Subchannel) -> None:
        raise NotImplementedError

    # -- calls ----------------------------------------------------------------------------

    def method_of(
        self, kind: str, name: str, serializer: Any, deserializer: Any, is_registered: Any
    ) -> Method:
        """Return the method that a stub asks for: one object for all stubs that ask the same."""
        if not isinstance(name, str):
            raise TypeError(f"method must be a str, got {name!r}")
        same = (kind, name, serializer, deserializer, bool(is_registered))
        method = self._methods.get(same)
        if method is None:
            is_idempotent = self._is_idempotent(name)
            method = Method(
                kind, name, serializer, deserializer, bool(is_registered), is_idempotent
            )
            self._methods[same] = method
        return method

    def end_of(self, timeout: float | None) -> float | None:
        """Return when a call of now has to end, by `time.monotonic`."""
        return end_of(timeout, self._deadline)

    def attempts_of(
        self,
        service: ServiceBalancer,
        arguments: Arguments,
        end: float | None,
        wait_for_ready: bool | None,
        first: Instance | None = None,
    ) -> Attempts:
        """Return whom a call is tried with; `first` is who was tried already."""
        self.held = service
        is_ready = self._is_ready if wait_for_ready else None
        is_selecting = self._dialer.is_selecting
        return Attempts(service.get_picker, arguments, end, is_ready, is_selecting, first)

    def arguments_of(self, method: Method, request: Any, metadata: Any) -> Arguments:
        """Return what `Attempts` needs; called in the context of who calls."""
        request = Request(method.name, request, metadata)
        return self._dialer.arguments(request, method.is_idempotent)

    def begin(
        self, method: Method, instance: Instance, done: Done, metadata: Any, n_before: int
    ) -> tuple[Use, Any, Any]:
        """Begin an attempt; return its use, what to call, and with which metadata.

        Parameters
        ----------
        method : Method
        instance, done
            As selected.
        metadata : tuple of (str, str or bytes), or None
            Of the call.
        n_before : int
            Attempts of this call before.

        Raises
        ------
        Exception
            No subchannel could be made; the balancer has been told.
        """
        use = Use(self.members, done)
        try:
            use.member = member = self._dialer.begin(instance, use)
        except BaseException as error:
            done(err=error)
            raise
        try:
            telemetry = self.telemetry
            if telemetry is not None and telemetry.is_heard():
                said = [] if metadata is None else list(metadata)
                service = service_of(self.endpoint)
                use.told = telemetry.rpc_attempt(method.name, service, instance, n_before, said)
                metadata = tuple(said)
            return use, method.on(member.connection), metadata
        except BaseException as error:
            use.tell(error)
            raise

    def may_repeat(self, error: Any, use: Use) -> bool:
        """Take notice of the error of an attempt; return whether another may follow, by that."""
        return judge(error, use, self.rest) and not self.is_closed

    # -- state ----------------------------------------------------------------------------

    def state_of(
        self, service: ServiceBalancer | None, try_to_connect: bool
    ) -> grpc.ChannelConnectivity:
        """Return the state of all subchannels together.

        Whoever was not called yet is IDLE; `try_to_connect` has all of them connect.
        """
        if self.is_closed:
            return SHUTDOWN
        if service is None:
            return IDLE
        known = {member.instance.identity: member for member in self.members.now()}
        states = []
        for instance in service.instances:
            member = known.get(instance.identity)
            if member is None and try_to_connect:
                member = self.members.reach(instance)
            states.append(IDLE if member is None else member.connection.look(try_to_connect))
        return aggregate(states)
