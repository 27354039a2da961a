"""How services are written in etcd: as Kitex's registry-etcd does it, and as Kratos does.

Sources: kitex-contrib/registry-etcd (common.go, etcd_registry.go, etcd_resolver.go) and
go-kratos/kratos (contrib/registry/etcd, registry/registry.go, internal/endpoint).
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable
from urllib.parse import parse_qs, urlsplit

from rota.discovery.described import described, instance_of, tags_of
from rota.discovery.instance import Instance

# Weights add up in 64 bits. Whoever writes more than this means to break something.
MOST_WEIGHT = 2**32

WEIGHT = re.compile(r"[+-]?[0-9]{1,10}", re.ASCII)

# What Go's strconv.ParseBool takes for true.
TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})


@runtime_checkable
class Layout(Protocol):
    """Where the entries of a service are, and what they say. A class of your own will do."""

    @property
    def name(self) -> str:
        """Its name: two of one name read and write the same."""
        ...

    def prefix(self, service: str) -> str:
        """Return what the keys of a service begin with, and no others; it ends in ASCII.

        Raises ValueError for what no service can be called.
        """
        ...

    def read(self, value: bytes, service: str) -> Instance | None:
        """Return the instance that an entry describes; None: one that is not asked for.

        Raises ValueError or TypeError where it describes none: then it is skipped.
        """
        ...

    def write(self, service: str, instance: Instance) -> tuple[str, bytes]:
        """Return the key and the value of an instance.

        Raises ValueError for what cannot be written.
        """
        ...


class KitexLayout:
    """Kitex's: ``<prefix>/<service>/<address>``, with network, address, weight and tags in JSON.

    Parameters
    ----------
    prefix : str
        Kitex's `WithEtcdServicePrefix`.

    Raises
    ------
    TypeError, ValueError
        No str, or empty.

    Notes
    -----
    To Kitex a weight of 0 or less is one that was not said, and so it is read here: as None.
    An instance that is to be drained cannot be written, therefore. What else an `Instance` has
    (scheme, version, service, hash_key) is written into fields of their own, which Kitex
    passes over.
    """

    def __init__(self, prefix: str = "kitex/registry-etcd") -> None:
        self._prefix = _checked("prefix", prefix)

    @property
    def name(self) -> str:
        """Its name."""
        return f"kitex {self._prefix}"

    def prefix(self, service: str) -> str:
        """Return what the keys of a service begin with."""
        if "/" in _checked("service", service):
            raise ValueError(f"a service of Kitex must not have a '/' in its name, got {service!r}")
        return f"{self._prefix}/{service}/"

    def read(self, value: bytes, service: str) -> Instance | None:
        """Return the instance that an entry describes."""
        fields = _parsed(value)
        weight = fields.get("weight")
        if isinstance(weight, int) and not isinstance(weight, bool):
            if weight > MOST_WEIGHT:
                raise ValueError(f"weight must be at most 2**32, got {weight}")
            if weight <= 0:
                del fields["weight"]
        return instance_of(fields, service)

    def write(self, service: str, instance: Instance) -> tuple[str, bytes]:
        """Return the key and the value of an instance."""
        prefix = self.prefix(service)
        weight = _weight_of(instance)
        if weight is not None and weight <= 0:
            raise ValueError(
                f"weight must be at least 1, got {weight}: Kitex reads 0 or less as its default of "
                "10. To send an instance no more requests, close its registration"
            )
        fields = described(instance)
        if fields.get("service") == service:
            del fields["service"]  # the key says it
        return prefix + instance.address, _written(fields)


class KratosLayout:
    """Kratos': ``<namespace>/<name>/<id>``, with id, name, version, metadata and endpoints.

    Parameters
    ----------
    scheme : "http", "grpc" or another
        Which endpoint of an instance is asked for: the first of this scheme.
    namespace : str
        Kratos' `etcd.Namespace`.
    secure : bool
        Of "https" or "grpcs"; an endpoint that ends in ``?isSecure=true``, as old versions of
        Kratos wrote them, is one of these.
    endpoints : iterable of str
        URLs that are written beside the instance's own, as "grpc://10.0.0.1:9000".

    Raises
    ------
    TypeError, ValueError
        An argument of no use.

    Notes
    -----
    Metadata are the tags, of which "weight" is the weight where it is an integer (0 or less:
    drained); a weight that is none is none, as with Kratos. An instance without an endpoint of
    the scheme, or of another name, is not asked for: it is no mistake.

    The id that is written is the instance's hash_key, else its address: it stays the same when
    a process starts again.
    """

    def __init__(
        self,
        scheme: str,
        namespace: str = "/microservices",
        *,
        secure: bool = False,
        endpoints: Iterable[str] = (),
    ) -> None:
        scheme = _checked("scheme", scheme)
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
            raise ValueError(f"scheme must be 'http', 'grpc' or alike, got {scheme!r}")
        if not isinstance(secure, bool):
            raise TypeError(f"secure must be True or False, got {secure!r}")
        self._scheme = f"{scheme}s" if secure else scheme
        self._namespace = _checked("namespace", namespace)
        if isinstance(endpoints, (str, bytes)) or not isinstance(endpoints, Iterable):
            raise TypeError(f"endpoints must be URLs, got {endpoints!r}")
        self._endpoints = tuple(endpoints)
        for endpoint in self._endpoints:
            if not _endpoint(endpoint)[1]:
                raise ValueError(f"endpoints must be URLs, got {endpoint!r}")

    @property
    def name(self) -> str:
        """Its name."""
        return f"kratos {self._namespace} {self._scheme}"

    def prefix(self, service: str) -> str:
        """Return what the keys of a service begin with."""
        return f"{self._namespace}/{_checked('service', service)}/"

    def read(self, value: bytes, service: str) -> Instance | None:
        """Return the instance that an entry describes, where it has an endpoint of the scheme."""
        fields = _parsed(value)
        name = fields.get("name")
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, got {name!r}")
        if name != service:
            return None
        endpoints = fields.get("endpoints")
        if not isinstance(endpoints, list):
            if endpoints is None:
                return None
            raise TypeError(f"endpoints must be a list, got {endpoints!r}")
        for endpoint in endpoints:
            scheme, address = _endpoint(endpoint)
            if scheme == self._scheme:
                break
        else:
            return None
        tags = tags_of(fields.get("metadata"))
        said = tags.get("weight", "")
        weight = int(said) if WEIGHT.fullmatch(said) else None
        return Instance(
            address,
            None if weight is None or weight > MOST_WEIGHT else weight,
            scheme=scheme,
            service=name,
            version=fields.get("version") or "",
            tags=tags,
            hash_key=fields.get("hash_key"),
        )

    def write(self, service: str, instance: Instance) -> tuple[str, bytes]:
        """Return the key and the value of an instance."""
        prefix = self.prefix(service)
        weight = _weight_of(instance)
        if instance.network != "tcp":
            raise ValueError(f"network must be 'tcp', got {instance.network!r}")
        scheme = instance.scheme or self._scheme
        own = f"{scheme}://{instance.address}"
        try:
            is_legible = _endpoint(own) == (scheme, instance.address)
        except ValueError:
            is_legible = False
        if not is_legible:
            raise ValueError(f"scheme and address must make a URL, got {own!r}")
        metadata = dict(instance.tags)
        if weight is not None:
            metadata["weight"] = str(weight)
        identity = instance.hash_key or instance.address
        value: dict[str, Any] = {
            "id": identity,
            "name": service,
            "version": instance.version,
            "metadata": metadata,
            "endpoints": [own, *self._endpoints],
        }
        if instance.hash_key is not None:
            value["hash_key"] = instance.hash_key  # Kratos passes over it
        return prefix + identity, _written(value)


def _endpoint(url: object) -> tuple[str, str]:
    """Return the scheme and the address of an endpoint, as Kratos reads it."""
    if not isinstance(url, str):
        raise TypeError(f"an endpoint must be a string, got {url!r}")
    parts = urlsplit(url)
    scheme, address = parts.scheme, parts.netloc.rpartition("@")[2]
    secure = parse_qs(parts.query).get("isSecure", [""])
    if scheme not in ("https", "grpcs") and secure[0] in TRUE:
        scheme += "s"
    return scheme, address


def _parsed(value: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(value.decode())
    except RecursionError:
        raise ValueError("an entry must not be nested so deeply") from None
    if not isinstance(fields, dict):
        raise TypeError(f"an entry must be a JSON object, got {fields!r}")
    if b"\\u" in value:
        # Half of a character would make trouble later, where text becomes bytes.
        json.dumps(fields, ensure_ascii=False).encode()
    return fields


def _written(fields: Mapping[str, Any]) -> bytes:
    # As Go writes it; a lone surrogate is a ValueError.
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def _weight_of(instance: Instance) -> int | None:
    if not isinstance(instance, Instance):
        raise TypeError(f"instance must be an Instance, got {instance!r}")
    if instance.weight is not None and instance.weight > MOST_WEIGHT:
        raise ValueError(f"weight must be at most 2**32, got {instance.weight}")
    return instance.weight


def _checked(name: str, value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {value!r}")
    if not value:
        raise ValueError(f"{name} must not be empty")
    return value
