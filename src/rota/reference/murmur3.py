"""Reference of kernels.murmur3: mmh3 does the hashing."""

from numbers import Integral
from typing import TYPE_CHECKING, SupportsIndex

import mmh3

from rota.arguments import as_uint64

if TYPE_CHECKING:
    from typing_extensions import Buffer


def digest(data: "Buffer", seed: int = 0) -> tuple[int, int]:
    """Return the hash of `data`, any contiguous buffer, as two integers of 64 bits."""
    low, high = mmh3.mmh3_x64_128_utupledigest(_contiguous(data), as_uint64("seed", seed))
    return low, high


def key_hash(key: "str | Buffer | SupportsIndex") -> int:
    """Return the place of a key on a ring, in [0, 2**64): the first word of its hash."""
    return digest(key_bytes(key))[0]


def key_bytes(key: "str | Buffer | SupportsIndex") -> bytes:
    """Return the bytes of a key, by the one rule for keys (see kernels.murmur3)."""
    if isinstance(key, str):
        return key.encode()
    if isinstance(key, Integral):
        number = int(key)
        if not -(2**63) <= number < 2**64:
            raise ValueError(f"an int key must be in [-2**63, 2**64), got {number}")
        return (number & 2**64 - 1).to_bytes(8, "little")
    return bytes(_contiguous(key))  # type: ignore[arg-type]  # whatever it is, the next one says


def _contiguous(data: "Buffer") -> memoryview:
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(
            f"a key must be str, bytes, int or a buffer, got {type(data).__name__}"
        ) from None
    if not view.c_contiguous:
        raise ValueError("a key must be contiguous in memory")
    return view
