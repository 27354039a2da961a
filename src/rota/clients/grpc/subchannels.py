"""A channel of grpcio to each instance, what is known of its connection, and with which options.

`Subchannel.is_unsent` is what makes it safe to try any call again: grpcio says UNAVAILABLE both
of a call that was never sent and of one whose connection broke, and of what a server answers.
"""

import ipaddress
import json
import re
from collections.abc import Callable, Hashable, Iterable
from time import monotonic
from typing import Any
from urllib.parse import quote, unquote

import grpc
import grpc.experimental

from rota.discovery import Instance
from rota.discovery.resolver import service_of
from rota.retry import Rest

READY = grpc.ChannelConnectivity.READY
SHUTDOWN = grpc.ChannelConnectivity.SHUTDOWN
TRANSIENT_FAILURE = grpc.ChannelConnectivity.TRANSIENT_FAILURE

# An aggregate is in the first of these that one of its subchannels is in.
_ORDER = (
    READY,
    grpc.ChannelConnectivity.CONNECTING,
    grpc.ChannelConnectivity.IDLE,
    TRANSIENT_FAILURE,
)

_STATES = {state.value[0]: state for state in grpc.ChannelConnectivity}

# Seconds that a connection may take before others are preferred.
PATIENCE = 1.0

# What grpcio says where there was no connection for a call.
_NOT_CONNECTED = (
    "failed to connect to all addresses",
    "errors resolving ",
    "DNS resolution failed",
)

# Milliseconds. Servers of gRPC take pings more often than every 5 minutes for an attack, unless
# told otherwise. With a keepalive TCP gives up on what is not acknowledged within its timeout.
DEFAULT_OPTIONS: dict[str, Any] = {
    "grpc.keepalive_time_ms": 300_000,
    "grpc.keepalive_timeout_ms": 20_000,
    "grpc.max_reconnect_backoff_ms": 10_000,  # of grpcio itself: 2 minutes
}

# Retries that a service config says would come on top of ours, and hide whether a server has
# seen the call.
_OWN = {"grpc.service_config_disable_resolution": 1}
_SINGLE_THREADED = grpc.experimental.ChannelOptions.SingleThreadedUnaryStream

# That may stand in an authority, besides letters, digits and "-._~" (RFC 3986, section 3.2).
_OF_AUTHORITY = "!$&'()*+,;=:[]@"


class Subchannel:
    """What calls to one instance go through.

    Parameters
    ----------
    instance : Instance
    channel : grpc.Channel or grpc.aio.Channel
    check : callable (try_to_connect) -> grpc.ChannelConnectivity
        Its state.

    Attributes
    ----------
    since : float
        When it was suspected last, by `time.monotonic`.
    """

    __slots__ = ("_check", "_marks", "channel", "instance", "since")

    def __init__(self, instance: Instance, channel: Any, check: Callable[[bool], Any]) -> None:
        self.instance = instance
        self.channel = channel
        self.since = monotonic()
        self._check = check
        self._marks = marks_of(instance)

    def look(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Return the state of its connection; less than 1 us."""
        try:
            return self._check(try_to_connect)
        except (ValueError, grpc.aio.UsageError):  # closed
            return SHUTDOWN

    def is_unsent(self, details: str | None) -> bool:
        """Whether a call that failed with UNAVAILABLE, and with these details, was never sent.

        Notes
        -----
        That is where grpcio says that it could not connect, names this very instance, and is not
        connected now. The words alone prove nothing: a server that fails to reach another one
        passes them on. Of an instance with the name of a host the port alone tells.
        """
        if details is None or not details.startswith(_NOT_CONNECTED):
            return False
        words = unquote(details)
        return any(mark in words for mark in self._marks) and self.look() is not READY


class Method:
    """A method of a service, as a stub calls it.

    Attributes
    ----------
    kind : str
        What makes its multicallable: "unary_unary" and so on.
    name : str
        "/package.Service/Method".
    serializer, deserializer : callable or None
    is_registered : bool
        Generated stubs say so.
    is_idempotent : bool
    takes_stream : bool
        Whether it has many requests.
    callables : dict
        The multicallable of each subchannel that was used.
    """

    __slots__ = (
        *("__weakref__", "callables", "deserializer", "is_idempotent", "is_registered", "kind"),
        *("name", "serializer", "takes_stream"),
    )

    def __init__(
        self,
        kind: str,
        name: str,
        serializer: Any,
        deserializer: Any,
        is_registered: bool,
        is_idempotent: bool,
    ) -> None:
        self.kind = kind
        self.name = name
        self.serializer = serializer
        self.deserializer = deserializer
        self.is_registered = is_registered
        self.is_idempotent = is_idempotent
        self.takes_stream = kind.startswith("stream")
        self.callables: dict[Subchannel, Any] = {}

    def on(self, subchannel: Subchannel) -> Any:
        """Return what calls it through a subchannel, made once. O(1)."""
        made = self.callables.get(subchannel)
        if made is None:
            make = getattr(subchannel.channel, self.kind)
            options = {"_registered_method": True} if self.is_registered else {}
            made = make(self.name, self.serializer, self.deserializer, **options)
            self.callables[subchannel] = made
        return made


class Suspects(Rest):
    """Who rests, and whose connection is not there: they are tried after all others.

    An instance is suspected when it is first called, and when a call ends with UNAVAILABLE, until
    it is seen connected. It counts as absent once connecting has failed, or takes longer than
    `PATIENCE`.

    Attributes
    ----------
    suspects : dict
        Their subchannels, by identity.
    """

    __slots__ = ("suspects",)

    def __init__(self) -> None:
        super().__init__()
        self.suspects: dict[Hashable, Subchannel] = {}

    def __bool__(self) -> bool:
        return bool(self.suspects or self.until)

    def suspect(self, subchannel: Subchannel) -> None:
        """Look at the connection of an instance with each call, until it is there."""
        identity = subchannel.instance.identity
        if self.suspects.get(identity) is not subchannel:
            subchannel.since = monotonic()
            self.suspects[identity] = subchannel

    def forget(self, subchannel: Subchannel) -> None:
        """Suspect it no more: it is gone."""
        identity = subchannel.instance.identity
        if self.suspects.get(identity) is subchannel:
            self.suspects.pop(identity, None)

    def is_resting(self, instance: Any) -> bool:
        """Whether an instance rests now, or is absent. O(1)."""
        subchannel = self.suspects.get(instance.identity)
        if subchannel is not None:
            state = subchannel.look(True)
            if state is READY:
                self.forget(subchannel)
            elif (
                state in (TRANSIENT_FAILURE, SHUTDOWN) or subchannel.since < monotonic() - PATIENCE
            ):
                return True
        return super().is_resting(instance)


def aggregate(states: Iterable[grpc.ChannelConnectivity]) -> grpc.ChannelConnectivity:
    """Return the state of all together; TRANSIENT_FAILURE where there is none."""
    found = set(states)
    for state in _ORDER:
        if state in found:
            return state
    return TRANSIENT_FAILURE


def check_channel(channel: grpc.Channel) -> Callable[[bool], grpc.ChannelConnectivity]:
    """Return what gives the state of a channel of grpcio, as `grpc.aio.Channel.get_state` does.

    A `grpc.Channel` tells it in public only by `subscribe`, which takes a thread for each channel,
    and tells it too late to know whether a call that has just failed was sent.
    """
    check = channel._channel.check_connectivity_state
    return lambda try_to_connect: _STATES[check(try_to_connect)]


def target_of(instance: Instance) -> str:
    """Return what grpcio takes for an instance's address."""
    address = instance.address
    if instance.network == "unix":
        return f"unix:{quote(address)}"
    found = _split(address)
    if found is None:
        return f"dns:///{address}"
    host, port = found
    return f"ipv4:{host}:{port}" if host.version == 4 else f"ipv6:[{host}]:{port}"


def marks_of(instance: Instance) -> tuple[str, ...]:
    """Return what the details of grpcio contain where they are about this instance."""
    target = target_of(instance)
    if not target.startswith("dns:"):
        return (f"{unquote(target)}: ",)
    address = instance.address
    port = address.rpartition(":")[2]
    return f":{port}: ", f"errors resolving {address}", f"resolution failed for {address}"


def _split(address: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int] | None:
    """Return the IP and the port of an address, None where it has none of these."""
    host, _, port = address.rpartition(":")
    if not re.fullmatch("[0-9]{1,5}", port, re.ASCII):
        return None
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    try:
        return ipaddress.ip_address(host), int(port)
    except ValueError:
        return None


def as_options(
    options: Any, endpoint: str, authority: str | None, is_secure: bool
) -> tuple[tuple[str, Any], ...]:
    """Return the options of subchannels.

    Parameters
    ----------
    options : sequence of (str, value), or None
        They go before the defaults.
    endpoint : str
    authority : str or None
        What the servers take themselves for. None: the service's name.
    is_secure : bool

    Raises
    ------
    TypeError, ValueError
        No such pairs; an option that would undo what this channel promises.
    """
    given: dict[str, Any] = {}
    for pair in () if options is None else options:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
            raise TypeError(f"options must be pairs of a str and its value, got {pair!r}")
        given[pair[0]] = pair[1]
    for name in (_SINGLE_THREADED, *_OWN):
        if name in given:
            raise ValueError(f"options must be without {name!r}: it is the balanced channel's")
    if _has_retries(given.get("grpc.service_config")):
        raise ValueError("options must be without retries of gRPC's own: use a RetryPolicy")
    service = service_of(endpoint)
    if authority is None:
        authority = quote(service, safe=_OF_AUTHORITY)
    elif not isinstance(authority, str) or not authority:
        raise ValueError(f"authority must be a host's name or None, got {authority!r}")
    names = {"grpc.default_authority": authority}
    if is_secure:  # the name in the certificate, without a port
        names["grpc.ssl_target_name_override"] = re.sub(r":[0-9]+$", "", authority)
    return tuple({**DEFAULT_OPTIONS, **names, **given, **_OWN}.items())


def _has_retries(config: Any) -> bool:
    try:
        methods = json.loads(config).get("methodConfig", ())
        return any("retryPolicy" in each or "hedgingPolicy" in each for each in methods)
    except (TypeError, ValueError, AttributeError):
        return False  # no service config; grpcio says so
