"""One copy of a service, as discovery describes it."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_NO_TAGS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Instance:
    """One copy of a service: where it is, and what is known of it.

    Parameters
    ----------
    address : str
        "host:port", or a path where network is "unix".
    weight : int or None
        Its share of the requests, relative to the others; None: the default of whoever
        balances (Kitex 10, Kratos 100). 0 or less: drained, it gets no requests.
    network : str
        "tcp" or "unix", as Kitex writes it.
    scheme : str
        "http", "grpc", ... where discovery says so (Kratos).
    service, version : str
        What it is a copy of.
    tags : mapping of str to str
        Metadata; kept as a read-only copy.
    hash_key : str or None
        Its name on a hash ring, where that must survive a change of address; None: the
        address.

    Raises
    ------
    TypeError, ValueError
        A field of another type; an empty address.

    Notes
    -----
    Frozen and hashable. Two instances are equal when all fields are; they are the same
    copy of the service when `identity` is.
    """

    address: str
    weight: int | None = None
    network: str = field(default="tcp", kw_only=True)
    scheme: str = field(default="", kw_only=True)
    service: str = field(default="", kw_only=True)
    version: str = field(default="", kw_only=True)
    tags: Mapping[str, str] = field(default_factory=lambda: _NO_TAGS, kw_only=True, hash=False)
    hash_key: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("address", "network", "scheme", "service", "version"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(f"{name} must be a str, got {value!r}")
        if not self.address:
            raise ValueError("address must not be empty")
        if self.weight is not None and (
            not isinstance(self.weight, int) or isinstance(self.weight, bool)
        ):
            raise TypeError(f"weight must be an int or None, got {self.weight!r}")
        if self.hash_key is not None and not isinstance(self.hash_key, str):
            raise TypeError(f"hash_key must be a str or None, got {self.hash_key!r}")
        if self.tags is not _NO_TAGS:
            if not isinstance(self.tags, Mapping):
                raise TypeError(f"tags must be a mapping of str to str, got {self.tags!r}")
            object.__setattr__(self, "tags", MappingProxyType(dict(self.tags)))

    @property
    def identity(self) -> Hashable:
        """(network, address): which copy this is, whatever else is known of it."""
        return (self.network, self.address)

    def tag(self, key: str, default: str | None = None) -> str | None:
        """Return the value of a tag, `default` where there is none."""
        return self.tags.get(key, default)

    def __reduce__(self) -> tuple[object, ...]:
        # A read-only mapping does not pickle.
        return _make, (
            self.address, self.weight, self.network, self.scheme, self.service, self.version,
            dict(self.tags), self.hash_key,
        )  # fmt: skip


def _make(
    address: str,
    weight: int | None,
    network: str,
    scheme: str,
    service: str,
    version: str,
    tags: dict[str, str],
    hash_key: str | None,
) -> Instance:
    return Instance(
        address,
        weight,
        network=network,
        scheme=scheme,
        service=service,
        version=version,
        tags=tags or _NO_TAGS,
        hash_key=hash_key,
    )
