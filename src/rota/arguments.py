"""One rule for the arguments of every picker, compiled or reference.

Both implementations call these functions before they build anything, so their errors
are equal by construction: a `TypeError` for what can never be right, a `ValueError` for
a value out of range, each naming the argument and the value.
"""

import math
import operator
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_INSTANCES = 2**31 - 1
MAX_WEIGHT_SUM = 2**63 - 1


def as_instances(instances: Iterable[Any]) -> tuple[Any, ...]:
    """Return `instances` as a tuple, O(n).

    Raises
    ------
    TypeError
        Not iterable, or a lone str or bytes (a list of one was surely meant).
    ValueError
        More than 2**31 - 1 instances.
    """
    if isinstance(instances, (str, bytes, bytearray)):
        raise TypeError(f"instances must be a sequence of instances, got {_short(instances)}")
    try:
        held = tuple(instances)
    except TypeError as error:
        if hasattr(type(instances), "__iter__"):
            raise  # its own iterator failed: that message says more than ours
        raise TypeError(
            f"instances must be a sequence of instances, got {_short(instances)}"
        ) from error
    if len(held) > MAX_INSTANCES:
        raise ValueError(f"instances must number at most {MAX_INSTANCES}, got {len(held)}")
    return held


def as_weights(weights: Any, n: int) -> NDArray[np.int64]:
    """Return a private int64 copy of `weights`, shape (n,), O(n).

    `None` gives each instance the weight 1. Floats are taken when they are whole numbers.

    Raises
    ------
    TypeError
        Not a sequence of numbers.
    ValueError
        Wrong shape, a negative, fractional, infinite or NaN weight, a weight or a sum of
        2**63 or more; the message names the first bad index.
    """
    if weights is None:
        return np.ones(n, np.int64)
    if isinstance(weights, (str, bytes, bytearray)):
        raise TypeError(f"weights must be a sequence of integers, got {_short(weights)}")
    try:
        given = np.asarray(weights)
    except ValueError:  # ragged
        raise ValueError(f"weights must have shape ({n},), got a ragged sequence") from None
    if given.dtype.kind == "f" and not isinstance(weights, np.ndarray):
        given = np.asarray(weights, object)  # integers beside floats would have been rounded
    if given.ndim == 0 and given.dtype.kind == "O":
        raise TypeError(f"weights must be a sequence of integers, got {_short(weights)}")
    if given.shape != (n,):
        raise ValueError(f"weights must have shape ({n},), got {given.shape}")
    checked = _as_int64(given)
    if n:
        low = int(checked.argmin())
        if checked[low] < 0:
            raise ValueError(f"weights must be >= 0, got weights[{low}] = {checked[low]}")
        # A float64 sum is within 2**-20 of the true one here: exact arithmetic only near the limit.
        if float(checked.sum(dtype=np.float64)) > 2.0**62:
            total = sum(checked.tolist())
            if total > MAX_WEIGHT_SUM:
                raise ValueError(f"weights must sum to less than 2**63, got {total}")
    return checked


def _as_int64(given: NDArray[Any]) -> NDArray[np.int64]:
    kind = given.dtype.kind
    if kind in "bi" or given.size == 0:
        return np.array(given, np.int64, order="C")
    if kind == "u":
        high = int(given.argmax())
        if int(given[high]) > MAX_WEIGHT_SUM:
            raise ValueError(f"weights must be below 2**63, got weights[{high}] = {given[high]}")
        return given.astype(np.int64)
    if kind == "f":
        whole = np.isfinite(given) & (np.floor(given) == given) & (np.abs(given) < 2.0**63)
        if not whole.all():
            bad = int(np.argmin(whole))
            raise ValueError(
                f"weights must be whole numbers below 2**63, got weights[{bad}] = {given[bad]}"
            )
        return given.astype(np.int64)
    if kind in "mM":
        raise TypeError(f"weights must be integers, got {given.dtype}")
    # Objects: Python integers too large for numpy's own types, or no numbers at all.
    exact = np.empty(given.shape, np.int64)
    for i, weight in enumerate(given.tolist()):
        if isinstance(weight, float):
            if not weight.is_integer():
                raise ValueError(
                    f"weights must be whole numbers below 2**63, got weights[{i}] = {weight}"
                )
            weight = int(weight)
        try:
            number = operator.index(weight)
        except TypeError:
            raise TypeError(
                f"weights must be integers, got weights[{i}] = {_short(weight)}"
            ) from None
        if number > MAX_WEIGHT_SUM:
            raise ValueError(f"weights must be below 2**63, got weights[{i}] = {number}")
        if number < 0:
            raise ValueError(f"weights must be >= 0, got weights[{i}] = {number}")
        exact[i] = number
    return exact


def as_seed(seed: int | None) -> int:
    """Return `seed`, or 64 bits of the operating system's entropy for `None`.

    Raises
    ------
    TypeError
        Not an integer.
    ValueError
        Outside [0, 2**64).
    """
    return int.from_bytes(os.urandom(8), "little") if seed is None else as_uint64("seed", seed)


def as_uint64(name: str, value: int, least: int = 0) -> int:
    """Return the argument `name`, an integer in [least, 2**64).

    Raises
    ------
    TypeError
        Not an integer.
    ValueError
        Out of range.
    """
    number = _as_integer(name, value)
    if not least <= number < 2**64:
        raise ValueError(f"{name} must be in [{least}, 2**64), got {number}")
    return number


def as_start(start: int, n: int) -> int:
    """Return the rotation `start` modulo n (0 when n is 0).

    Raises
    ------
    TypeError
        Not an integer.
    """
    number = _as_integer("start", start)
    return number % n if n else 0


def as_count(count: int) -> int:
    """Return the number of picks asked for.

    Raises
    ------
    TypeError
        Not an integer.
    ValueError
        Negative, or more than fits a list.
    """
    number = _as_integer("n", count)
    if not 0 <= number <= MAX_WEIGHT_SUM // 8:
        raise ValueError(f"n must be a number of picks >= 0, got {number}")
    return number


def _as_integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {_short(value)}") from None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def as_int32_out(out: Any) -> "memoryview[int]":
    """Return `out` as a writable one-dimensional view of 32-bit integers.

    Raises
    ------
    TypeError
        No buffer, or not of 32-bit integers.
    ValueError
        Read-only, not one-dimensional, or not C-contiguous.
    """
    try:
        view = memoryview(out)
    except TypeError:
        raise TypeError(f"out must be a writable buffer of int32, got {_short(out)}") from None
    if view.format not in ("i", "l") or view.itemsize != 4:
        raise TypeError(
            f"out must be a buffer of int32, got items of {view.itemsize} bytes "
            f"and format {view.format!r}"
        )
    if view.ndim != 1:
        raise ValueError(f"out must have one dimension, got shape {view.shape}")
    if view.readonly:
        raise ValueError("out must be writable, got a read-only buffer")
    if not view.c_contiguous:
        raise ValueError(f"out must be contiguous, got strides {view.strides}")
    return view


def as_weight(weight: int) -> int:
    """Return one weight.

    Raises
    ------
    TypeError
        Not an integer.
    ValueError
        Negative, or 2**63 or more.
    """
    number = _as_integer("weight", weight)
    if not 0 <= number <= MAX_WEIGHT_SUM:
        raise ValueError(f"weight must be in [0, 2**63), got {number}")
    return number


def as_new_total(total: int) -> int:
    """Return the sum that the weights would have after a change.

    Raises
    ------
    ValueError
        2**63 or more.
    """
    if total > MAX_WEIGHT_SUM:
        raise ValueError(f"weights must sum to less than 2**63, got {total}")
    return total


def as_index(index: int, n: int) -> int:
    """Return an index of one of n instances.

    Raises
    ------
    TypeError
        Not an integer.
    ValueError
        Not in [0, n).
    """
    number = _as_integer("index", index)
    if not 0 <= number < n:
        raise ValueError(f"index must be in [0, {n}), got {number}")
    return number


def as_load_factor(load_factor: float | None) -> int:
    """Return the load factor in 65,536ths, rounded up; 0 for None.

    Raises
    ------
    TypeError
        Not a number.
    ValueError
        Below 1 (somebody would always be full), or above 65,536.
    """
    if load_factor is None:
        return 0
    if isinstance(load_factor, (str, bytes)) or not hasattr(load_factor, "__float__"):
        raise TypeError(f"load_factor must be a number or None, got {_short(load_factor)}")
    number = float(load_factor)
    if not 1 <= number <= 65536:
        raise ValueError(f"load_factor must be in [1, 65536], got {number}")
    return math.ceil(number * 65536)


def as_places(hashes: Any) -> NDArray[np.uint64]:
    """Return `hashes` as a contiguous array of uint64, shape (k,), without copying one that is.

    Raises
    ------
    TypeError
        Not an array of unsigned 64-bit integers.
    ValueError
        Not one-dimensional.
    """
    places = np.asarray(hashes)
    if places.dtype != np.uint64 and places.size:
        raise TypeError(f"hashes must be an array of uint64, got {places.dtype}")
    if places.ndim != 1:
        raise ValueError(f"hashes must have one dimension, got shape {places.shape}")
    return np.ascontiguousarray(places, np.uint64)


def as_replicas(replicas: int | None) -> int | None:
    """Return how many instances besides the owner `attempts` may give; None: all.

    Raises
    ------
    TypeError
        Not an integer.
    ValueError
        Negative.
    """
    if replicas is None:
        return None
    number = _as_integer("replicas", replicas)
    if number < 0:
        raise ValueError(f"replicas must be >= 0, got {number}")
    return number


def as_table_size(table_size: int) -> int:
    """Return the size of a Maglev table.

    Raises
    ------
    TypeError
        Not an integer.
    ValueError
        Not a prime number in [3, 5,000,011]: permutations would not reach every slot.
    """
    number = _as_integer("table_size", table_size)
    if not 3 <= number <= 5_000_011 or any(
        number % k == 0 for k in range(2, math.isqrt(number) + 1)
    ):
        raise ValueError(f"table_size must be a prime number in [3, 5000011], got {number}")
    return number


def as_seconds(name: str, value: float) -> float:
    """Return the argument `name`, a finite number of seconds >= 0.

    Raises
    ------
    TypeError
        Not a number.
    ValueError
        Negative, infinite or NaN.
    """
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number of seconds, got {_short(value)}")
    seconds = _as_float(value)
    if not 0.0 <= seconds < math.inf:
        raise ValueError(f"{name} must be a finite number of seconds >= 0, got {seconds}")
    return seconds


def as_duration(name: str, value: float) -> float:
    """Return the argument `name`, a number of seconds in [1e-6, 1e9].

    Raises
    ------
    TypeError
        Not a number.
    ValueError
        Out of range.
    """
    seconds = as_seconds(name, value)
    if not 1e-6 <= seconds <= 1e9:
        raise ValueError(f"{name} must be in [1e-6, 1e9] seconds, got {seconds}")
    return seconds


def as_moment(value: float) -> float:
    """Return what a clock gave, a number of seconds in [-1e15, 1e15].

    Raises
    ------
    TypeError
        Not a number.
    ValueError
        Out of range, or NaN.
    """
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"clock must give a number of seconds, got {_short(value)}")
    seconds = _as_float(value)
    if not -1e15 <= seconds <= 1e15:
        raise ValueError(f"clock must give seconds in [-1e15, 1e15], got {seconds}")
    return seconds


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of more digits than that
        return math.inf
