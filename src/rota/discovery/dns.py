"""Services by DNS: A and AAAA records with a known port, or SRV records. Needs `rota[dns]`.

Weights of SRV records (RFC 2782) as integers. The RFC draws a number from 0 to W, the sum of
the weights: each of these W + 1 numbers is one part of the requests. A record of weight w has
w parts, and all records of weight 0 have one part together. So with z > 0 such records, each
of them has the weight 1 and any other w * z, exactly; without any, w. Where all are 0 they
are equal.

A target's weight is shared by its addresses: with k addresses each has a kth of it. To stay
whole numbers, all are multiplied by the least common multiple of the ks; beyond 1,000,000,
which takes rare numbers of addresses, by that, and rounded.
"""

import asyncio
import ipaddress
import logging
import math
import random
import re
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rota.discovery.instance import Instance
from rota.discovery.result import Change, Result, diff
from rota.discovery.watching import kept

try:
    import dns.asyncbackend
    import dns.asyncresolver
    import dns.exception
    import dns.name
    import dns.rdatatype
    import dns.resolver
except ImportError as error:
    raise ImportError('DnsResolver needs dnspython: pip install "rota[dns]"') from error

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What fits into one packet everywhere; answers that are longer come by TCP.
PAYLOAD = 1232

# Questions of one look at the same time.
MOST_AT_ONCE = 16

MOST_PARTS = 1_000_000

TYPES = ("A", "AAAA")


@dataclass(frozen=True, slots=True)
class _Target:
    """What is asked for: a name's addresses, with a port; or its SRV records, without."""

    name: str
    port: int | None

    @property
    def desc(self) -> str:
        if self.port is None:
            return self.name
        return _address(self.name, self.port)


@dataclass(slots=True)
class _Look:
    """One look at a name: how it is asked, and how long what was found is valid."""

    resolver: dns.asyncresolver.Resolver
    ttls: list[float] = field(default_factory=list)
    # Asked first: one semaphore is of one event loop.
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MOST_AT_ONCE))


class DnsResolver:
    """Finds services by DNS, and asks again when what it was told has run out.

    Targets are ``dns:///name:port`` or ``name:port``, for A and AAAA records; and
    ``srv:///_service._proto.name``, or ``dns:///`` with such a name and no port, for SRV
    records. An address in the place of the name stands for itself.

    Parameters
    ----------
    nameservers : iterable of str, or None
        Addresses of the servers to ask. None: those of the system, with its search list
        (/etc/resolv.conf, read at each look). The names of a hosts file are not looked up.
    port : int
        Of the servers.
    lifetime : float, seconds, > 0
        For each question, with all its repeats.
    min_ttl, max_ttl : float, seconds, 0 < min_ttl <= max_ttl
        Bounds of the time after which a watch asks again.
    types : iterable of "A" and "AAAA"
        Which addresses to ask for.

    Raises
    ------
    TypeError, ValueError
        An argument of no use.

    Notes
    -----
    Addresses are sorted, as strs. Each instance has the tag "host", the name it is an address
    of, without a dot at its end; by SRV also "priority". By SRV only those of the lowest
    priority at which there are any addresses are found; their weights are by RFC 2782, exactly
    (the module says how). Others have none.

    A name that does not exist, or has no such records, has no instances. Where one of the
    questions fails (no server answers in time, or all refuse) the look fails as a whole: half
    the addresses would pass for all.

    Any number of threads and event loops may share one; it keeps nothing between looks.
    """

    def __init__(
        self,
        *,
        nameservers: Iterable[str] | None = None,
        port: int = 53,
        lifetime: float = 5.0,
        min_ttl: float = 1.0,
        max_ttl: float = 30.0,
        types: Iterable[str] = TYPES,
    ) -> None:
        if isinstance(nameservers, str):
            raise TypeError(f"nameservers must be a list of addresses, got {nameservers!r}")
        self._nameservers = None if nameservers is None else tuple(nameservers)
        for server in self._nameservers or ():
            if not isinstance(server, str):
                raise TypeError(f"nameservers must be addresses, got {server!r}")
            if not _is_address(server):
                raise ValueError(f"nameservers must be addresses, got {server!r}")
        if self._nameservers == ():
            raise ValueError("nameservers must not be empty")
        if not isinstance(port, int) or isinstance(port, bool):
            raise TypeError(f"port must be an integer, got {port!r}")
        if not 0 < port < 65536:
            raise ValueError(f"port must be from 1 to 65535, got {port}")
        for what, given in (("lifetime", lifetime), ("min_ttl", min_ttl), ("max_ttl", max_ttl)):
            if not isinstance(given, (int, float)) or isinstance(given, bool):
                raise TypeError(f"{what} must be a number of seconds, got {given!r}")
            if not 0 < given < math.inf:
                raise ValueError(f"{what} must be > 0 and finite, got {given!r}")
        if min_ttl > max_ttl:
            raise ValueError(f"min_ttl must be <= max_ttl, got {min_ttl!r} > {max_ttl!r}")
        self._types = (types,) if isinstance(types, str) else tuple(dict.fromkeys(types))
        if not self._types or not set(self._types) <= set(TYPES):
            raise ValueError(f"types must be of 'A' and 'AAAA', got {types!r}")
        self._port = port
        self._lifetime = lifetime
        self._min_ttl = min_ttl
        self._max_ttl = max_ttl

    @property
    def name(self) -> str:
        """The resolver's name: those that ask the same servers the same find the same."""
        servers = ",".join(self._nameservers or ("system",))
        return f"dns:{servers}:{self._port}:{','.join(sorted(self._types))}"

    def target(self, endpoint: Any) -> str:
        """Return "name:port", or "_service._proto.name", in lower case and ASCII.

        Raises
        ------
        TypeError, ValueError
            It is no such target.
        """
        return _target(endpoint).desc

    async def resolve(self, desc: str) -> Result:
        """Return the addresses of a target, from the servers.

        Raises
        ------
        OSError
            There is no answer.
        TypeError, ValueError
            It is no target.
        """
        result, _ = await self._look(_target(desc))
        return result

    def diff(self, cache_key: str, prev: Result, next: Result) -> Change:
        """Return what changed from `prev` to `next`."""
        return diff(cache_key, prev, next)

    async def watch(self, desc: str) -> AsyncGenerator[Result, None]:
        """Go through the addresses of a target: now, and whenever the last answer has run out.

        When nothing has changed it is the same object again. While there is no answer,
        nothing: it asks again, later each time up to `max_ttl`, with one warning in the log.

        Raises
        ------
        TypeError, ValueError
            It is no target.
        """
        target = _target(desc)
        clock = asyncio.get_running_loop().time
        last: Result | None = None
        n_failures = 0
        while True:
            try:
                result, ttl = await self._look(target)
            except OSError as error:
                n_failures += 1
                if n_failures == 1:
                    logger.warning("%s; asked again until there is an answer", error)
                pause = min(self._max_ttl, self._min_ttl * 2.0 ** min(n_failures - 1, 30))
                await asyncio.sleep(pause * random.uniform(0.5, 1))
                continue
            if n_failures:
                n_failures = 0
                logger.info("%s: there is an answer again", target.desc)
            again = clock() + ttl
            last = kept(last, result)
            yield last
            await asyncio.sleep(max(0.0, again - clock()))

    async def _look(self, target: _Target) -> tuple[Result, float]:
        """Return who is there, and the seconds after which to look again."""
        try:
            look = _Look(self._resolver())
            if target.port is None:
                instances = await self._by_srv(look, target.name)
            else:
                instances = await self._by_address(look, target.name, target.port)
        except (dns.exception.DNSException, OSError) as error:
            raise OSError(f"{target.desc} cannot be looked up: {error}") from error
        ttl = min(look.ttls, default=0.0)
        return (
            Result(True, target.desc, tuple(sorted(instances, key=lambda i: i.address))),
            min(max(ttl, self._min_ttl), self._max_ttl),
        )

    def _resolver(self) -> dns.asyncresolver.Resolver:
        resolver = dns.asyncresolver.Resolver(configure=self._nameservers is None)
        if self._nameservers is not None:
            resolver.nameservers = list(self._nameservers)
            # Not this machine's, which says nothing about these servers.
            resolver.domain = dns.name.root
        resolver.port = self._port
        resolver.use_edns(0, 0, PAYLOAD)
        return resolver

    async def _by_address(self, look: _Look, name: str, port: int) -> list[Instance]:
        if _is_address(name):
            look.ttls.append(math.inf)
            return [Instance(_address(name, port), service=name)]
        addresses = await self._addresses(look, dns.name.from_text(name, None))
        host = name.rstrip(".")
        return [
            Instance(_address(address, port), service=host, tags={"host": host})
            for address in set(addresses)
        ]

    async def _by_srv(self, look: _Look, name: str) -> list[Instance]:
        records = await self._ask(look, dns.name.from_text(name, None), "SRV")
        by_priority: dict[int, list[Any]] = {}
        for record in sorted(records, key=lambda record: str(record.target).lower()):
            if record.target != dns.name.root:  # that is how one says: there is no such service
                by_priority.setdefault(record.priority, []).append(record)
        for priority, group in sorted(by_priority.items()):
            hosts = list(dict.fromkeys(record.target for record in group))
            found = dict(
                zip(
                    hosts,
                    await _together([self._addresses(look, host) for host in hosts]),
                    strict=True,
                )
            )
            group = [record for record in group if found[record.target]]
            if group:
                return self._instances(name.rstrip("."), priority, group, found)
        return []

    def _instances(
        self,
        service: str,
        priority: int,
        records: Sequence[Any],
        found: dict[dns.name.Name, list[str]],
    ) -> list[Instance]:
        weights: dict[str, int] = {}
        hosts: dict[str, str] = {}
        sharing = [(record.weight, len(found[record.target])) for record in records]
        for record, weight in zip(records, shares(sharing), strict=True):
            for ip in found[record.target]:
                # Two records may lead to one place: it has the parts of both.
                address = _address(ip, record.port)
                weights[address] = weights.get(address, 0) + weight
                hosts.setdefault(address, record.target.to_text(omit_final_dot=True).lower())
        return [
            Instance(
                address,
                weight,
                service=service,
                tags={"host": hosts[address], "priority": str(priority)},
            )
            for address, weight in weights.items()
        ]

    async def _addresses(self, look: _Look, name: dns.name.Name) -> list[str]:
        # Those that come beside a SRV record are no answer: servers leave out what there is no
        # room for, and do not say so.
        found = await _together([self._ask(look, name, type_) for type_ in self._types])
        return [record.address for records in found for record in records]

    async def _ask(self, look: _Look, name: dns.name.Name, type_: str) -> list[Any]:
        """Return the records of a name, none where it does not exist."""
        try:
            async with look.turns:
                answer = await look.resolver.resolve(
                    name,
                    type_,
                    raise_on_no_answer=False,
                    lifetime=self._lifetime,
                    search=True,
                    backend=dns.asyncbackend.get_backend("asyncio"),
                )
        except dns.resolver.NXDOMAIN as error:
            # Of several names that were tried by the search list: the last.
            response = list(error.kwargs["responses"].values())[-1]
            ttl, records = response.resolve_chaining().minimum_ttl, []
        else:
            response, ttl = answer.response, answer.chaining_result.minimum_ttl
            records = list(answer.rrset or ())
        # Nothing holds for as long as a record of the zone says, and else for no time (RFC 2308).
        # But who has one kind of address is not asked all the time for the other.
        if records or any(found.rdtype == dns.rdatatype.SOA for found in response.authority):
            look.ttls.append(ttl)
        return records


def shares(targets: Sequence[tuple[int, int]]) -> list[int]:
    """Return the weight of each address of SRV targets of one priority.

    Parameters
    ----------
    targets : sequence of (weight, k)
        A target's weight, 0 to 65535, and how many addresses share it, at least 1.

    Returns
    -------
    list of int
        For each target the weight of each of its addresses, at least 1.
    """
    n_zeros = sum(not weight for weight, _ in targets)
    parts = min(math.lcm(*(k for _, k in targets)), MOST_PARTS)
    return [
        max(1, (weight * max(1, n_zeros) if weight else 1) * parts // k) for weight, k in targets
    ]


def _target(endpoint: Any) -> _Target:
    if not isinstance(endpoint, str):
        raise TypeError(f"endpoint must be a str, got {endpoint!r}")
    is_srv = endpoint.startswith("srv:///")
    rest = endpoint.removeprefix("srv:///" if is_srv else "dns:///")
    name, colon, port = rest.rpartition(":")
    if not colon:
        name = rest
        is_srv = is_srv or rest.startswith("_")
    if is_srv == bool(colon):
        raise ValueError(
            "endpoint must be 'dns:///name:port' or 'srv:///_service._proto.name', "
            f"got {endpoint!r}"
        )
    if is_srv:
        labels = name.split(".")
        if len(labels) < 3 or not all(label.startswith("_") for label in labels[:2]):
            raise ValueError(f"endpoint must be 'srv:///_service._proto.name', got {endpoint!r}")
        return _Target(_canonical(name, endpoint), None)
    if not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise ValueError(f"endpoint must have a port from 1 to 65535, got {endpoint!r}")
    if name.startswith("[") and name.endswith("]") and _is_address(name[1:-1]) and ":" in name:
        return _Target(str(ipaddress.ip_address(name[1:-1])), int(port))
    return _Target(_canonical(name, endpoint), int(port))


def _canonical(name: str, endpoint: str) -> str:
    try:
        parsed = dns.name.from_text(name, None)
    except (dns.exception.DNSException, UnicodeError) as error:
        raise ValueError(f"endpoint must have a name of DNS, got {endpoint!r}: {error}") from error
    if not any(parsed.labels) or set(name) & set(":/@[]"):
        raise ValueError(f"endpoint must have a name of DNS, got {endpoint!r}")
    return parsed.canonicalize().to_text()


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _address(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


async def _together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await them all; where one raises, none of the others is left running."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
