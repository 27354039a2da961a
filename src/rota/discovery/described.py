"""Instances as registries describe them: mappings of strings, of which some may be malformed.

The fields are those that Kitex's registries write (network, address, weight, tags), and the
others of `Instance`.
"""

import logging
from collections.abc import Mapping
from typing import Any

from rota.discovery.instance import Instance

logger = logging.getLogger(__name__)

MOST_TOLD = 10_000

# The weights of a picker must stay below 2**63 in all: one entry is not to spoil a list.
MOST_WEIGHT = 1 << 40


def instance_of(described: Any, service: str) -> Instance:
    """Return the instance that a registry's entry describes.

    Parameters
    ----------
    described : mapping
        "address" is needed. "weight" may be left out, or null, and is at most 2**40. "tags" are
        strs, or numbers and booleans, which are taken as they are written in JSON. What else
        there is in it is ignored.
    service : str
        Where the entry does not say.

    Raises
    ------
    ValueError, TypeError
        It describes none; the message says why.
    """
    if not isinstance(described, Mapping):
        raise TypeError(f"an instance must be an object, got {described!r}")
    if "address" not in described:
        raise ValueError(f"an instance must have an address, got {described!r}")
    weight = described.get("weight")
    if isinstance(weight, int) and weight > MOST_WEIGHT:
        raise ValueError(f"weight must be <= {MOST_WEIGHT}, got one of {weight.bit_length()} bits")
    return Instance(
        described["address"],
        weight,
        network=_or(described.get("network"), "tcp"),
        scheme=_or(described.get("scheme"), ""),
        service=_or(described.get("service"), service),
        version=_or(described.get("version"), ""),
        tags=tags_of(described.get("tags")),
        hash_key=described.get("hash_key"),
    )


def described(instance: Instance) -> dict[str, Any]:
    """Return the fields of an instance that are not as they are without being said.

    `instance_of` makes the same instance of it.
    """
    fields: dict[str, Any] = {"network": instance.network, "address": instance.address}
    if instance.weight is not None:
        fields["weight"] = instance.weight
    for name in ("scheme", "service", "version"):
        if value := getattr(instance, name):
            fields[name] = value
    if instance.tags:
        fields["tags"] = dict(instance.tags)
    if instance.hash_key is not None:
        fields["hash_key"] = instance.hash_key
    return fields


def tags_of(given: Any) -> dict[str, str]:
    """Return tags as strs.

    Raises
    ------
    TypeError
        Not a mapping of strs to strs, numbers or booleans.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"tags must be an object, got {given!r}")
    return {_text(key, "a tag's key"): _tag(key, value) for key, value in given.items()}


def _tag(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    return _text(value, f"the tag {key!r}")


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a string, got {value!r}")
    return value


def _or(value: Any, default: Any) -> Any:
    # An empty network is none: Go writes fields that nobody has set.
    return default if value is None or value == "" else value


class Skipped:
    """Tells of entries that were skipped: once for each, until it is well or says another thing.

    Parameters
    ----------
    source : str
        What they were read from.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._told: dict[str, str] = {}

    def tell(self, key: str, error: object) -> None:
        """Log one warning that names the entry and says what is wrong with it."""
        why = str(error)
        if self._told.get(key) != why:
            if len(self._told) >= MOST_TOLD:
                self._told.clear()
            self._told[key] = why
            logger.warning("%s: %s is skipped: %s", self._source, key, why)

    def forget(self, key: str) -> None:
        """The entry is well, or gone: if it is not again, tell of it again."""
        self._told.pop(key, None)
