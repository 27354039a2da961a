"""Services whose copies are known beforehand, and stay."""

from collections.abc import Iterable, Mapping
from typing import Any

from rota.discovery.instance import Instance
from rota.discovery.resolver import numbered, service_of
from rota.discovery.result import Change, Result, diff


class StaticResolver:
    """The copies of services as they were given.

    Parameters
    ----------
    services : mapping of str to iterable of Instance or str
        By the name of the service. A str is the address of a copy of it.

    Raises
    ------
    TypeError, ValueError
        Something of another kind; an empty address; a name that no endpoint can have.

    Notes
    -----
    Each service is one `Result` object, for ever. No two such resolvers have one name.
    """

    def __init__(self, services: Mapping[str, Iterable[Instance | str]]) -> None:
        if not isinstance(services, Mapping):
            raise TypeError(f"services must be a mapping of names to instances, got {services!r}")
        self._results = {service: _result(service, given) for service, given in services.items()}
        self._name = numbered("static")

    @property
    def name(self) -> str:
        """The resolver's name."""
        return self._name

    def target(self, endpoint: Any) -> str:
        """Return the service of an endpoint: "name", or "discovery:///name"."""
        return service_of(endpoint)

    def resolve(self, desc: str) -> Result:
        """Return the copies of a service. O(1).

        Raises
        ------
        LookupError
            There is no such service, and never will be.
        """
        result = self._results.get(desc)
        if result is None:
            known = ", ".join(map(repr, sorted(self._results)[:10])) or "none"
            raise LookupError(f"{desc!r} is not among the {len(self._results)} services: {known}")
        return result

    def diff(self, cache_key: str, prev: Result, next: Result) -> Change:
        """Return what changed from `prev` to `next`."""
        return diff(cache_key, prev, next)


def _result(service: str, given: Iterable[Instance | str]) -> Result:
    if service_of(service) != service:
        raise ValueError(f"services must be by name, got {service!r}")
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise TypeError(f"services must be lists of instances, got {given!r} for {service!r}")
    instances = []
    for instance in given:
        if isinstance(instance, str):
            instance = Instance(instance, service=service)
        elif not isinstance(instance, Instance):
            raise TypeError(
                f"services must be of Instance objects or addresses, got {instance!r} "
                f"for {service!r}"
            )
        instances.append(instance)
    return Result(True, service, tuple(instances))
