"""A drop-in for uhashring's HashRing (2.5), in both of its modes.

    default            128-bit places: the MD5 of "NODE-k", k < vnodes * weight
    hash_fn="ketama"   32-bit places: the four words of each such MD5; a node's share of the
                       digests follows from everybody's weights
    hash_fn=function   places are whatever the function returns of "NODE-k"

A key belongs to the first point strictly above its own place, around the ring. The MD5
modes keep their points in sorted arrays of 64-bit places, each with the number of its owner;
the lists and dicts that uhashring shows are made from these when asked for. Two places of
the default mode that agree in their first 64 bits count as one.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, KeysView
from functools import cached_property
from itertools import chain
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rota.kernels import load

Conf = dict[str, Any]
Nodes = dict[Any, Any] | list[Any] | str
NamedConfs = Iterable[tuple[Any, Conf]]

_NO_NODES: list[Any] = []
_WEIGHT_1: Conf = {"weight": 1}
_NO_CONF: Conf = dict.fromkeys(("hostname", "instance", "nodename", "port", "vnodes", "weight"))
_SHAPING = {"nodename", "vnodes", "weight"}  # given anew, these have the node's points made anew


# Of either implementation, so nothing is known of its types here.
_md5: Any = load("md5")
_WORDS = Struct("<4I")


def _count(points: Any) -> int:
    """Return how many points that is; TypeError where it is no integer."""
    return len(range(points))


class _MD5Ring(ABC):
    """The sorted points of the MD5 modes, and how a key finds its own.

    Every change makes new arrays, so whoever looks up meanwhile sees the ring of before.
    """

    _wide: bool

    def __init__(self) -> None:
        self._nodes: dict[Any, Conf] = {}
        self._counts: dict[Any, int] = {}  # points made for each node
        self._look_up()
        self._hold(np.empty(0, np.uint64), np.empty(0, np.int32), [])

    def _hold(
        self, places: NDArray[np.uint64], owners: NDArray[np.int32], names: list[Any]
    ) -> None:
        self._places, self._owners, self._names = places, owners, names
        self.size = len(places)  # different places
        self._lookup.hold(places, owners, names)
        for made in ("_keys", "_ring", "_distribution"):
            self.__dict__.pop(made, None)

    def _look_up(self) -> None:
        self._lookup = _md5.Places(self._wide)
        self.node: Callable[[Any], Any] = self._lookup.node
        self.find: Callable[[Any], int] = self._lookup.find

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_keys", "_ring", "_distribution", "_lookup", "node", "find")
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._look_up()
        self._hold(self._places, self._owners, self._names)

    @property
    @abstractmethod
    def _keys(self) -> list[int]:
        """The places of all points, in order."""

    @cached_property
    def _ring(self) -> dict[int, Any]:
        names = self._names
        return dict(zip(self._keys, [names[i] for i in self._owners.tolist()], strict=True))

    @cached_property
    def _distribution(self) -> Counter[Any]:
        return Counter({name: count for name, count in self._counts.items() if count})

    def walk(self, start: int) -> Iterator[Any]:
        """Yield the owner of every point, once around from number `start`."""
        owners, names = self._owners.data, self._names
        for at in chain(range(start, len(owners)), range(start)):
            yield names[owners[at]]


class MetaRing(_MD5Ring):
    """The default mode: a node's points depend on nobody else, so a change moves only its own."""

    _wide = True

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._free: list[int] = []
        super().__init__()

    @property
    def _hash_fn(self) -> Callable[[Any], int]:
        return self.hashi

    def hashi(self, key: object) -> int:
        """Return the hash of a key, 128 bits."""
        digest: int = _md5.key_digest(key)
        return digest

    @cached_property
    def _keys(self) -> list[int]:
        whole = {point >> 64: point for points in self._node_points.values() for point in points}
        return [whole[place] for place in self._places.tolist()]

    @property
    def _node_points(self) -> dict[Any, list[int]]:
        hashed = _md5.key_digest
        return {
            name: [hashed(f"{name}-{k}") for k in range(count)]
            for name, count in self._counts.items()
        }

    def _create_ring(self, nodes: NamedConfs) -> None:
        """Make the points of these nodes anew; where two nodes have the same, the last has it."""
        counts = {name: _count(conf["vnodes"] * conf["weight"]) for name, conf in nodes}
        digests = b"".join([_md5.label_digests(f"{name}", n) for name, n in counts.items()])
        names = self._names.copy()
        old = self._without([self._numbers[name] for name in counts if name in self._numbers])
        for name, count in counts.items():
            if name not in self._numbers:
                self._numbers[name] = self._free.pop() if self._free else len(names)
            number = self._numbers[name]
            names[number : number + 1] = [name]
            self._counts.pop(name, None)
            self._counts[name] = count
        numbers = np.array([self._numbers[name] for name in counts], np.int32)
        owners = np.repeat(numbers, np.array([*counts.values()], np.intp))
        places = np.frombuffer(digests, ">u8")[::2].astype(np.uint64)
        self._hold(*_merged(*old, places, owners), names)

    def _remove_node(self, name: Any) -> None:
        if name not in self._nodes:
            raise KeyError(f"no node {name!r} among {list(self._nodes)}")
        del self._nodes[name]
        self._counts.pop(name, None)
        number = self._numbers.pop(name, None)
        if number is not None:
            names = self._names.copy()
            names[number] = None
            self._free.append(number)
            self._hold(*self._without([number]), names)

    def _without(self, numbers: list[int]) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
        """Return the places and owners, but for those that these nodes own."""
        if not numbers:
            return self._places, self._owners
        keep = np.isin(self._owners, numbers, invert=True)
        return self._places[keep], self._owners[keep]


def _merged(
    places: NDArray[np.uint64],
    owners: NDArray[np.int32],
    new_places: NDArray[np.uint64],
    new_owners: NDArray[np.int32],
) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Return sorted places that differ, and new ones, as one; of equal places the last stays."""
    order = np.argsort(new_places, kind="stable")
    new_places, new_owners = new_places[order], new_owners[order]
    last = np.ones(len(order), bool)
    last[:-1] = new_places[1:] != new_places[:-1]
    new_places, new_owners = new_places[last], new_owners[last]
    at = np.searchsorted(places, new_places)
    taken = at[np.searchsorted(places, new_places, "right") > at]
    if len(taken):
        places, owners = np.delete(places, taken), np.delete(owners, taken)
        at = np.searchsorted(places, new_places)
    return np.insert(places, at, new_places), np.insert(owners, at, new_owners)


class KetamaRing(_MD5Ring):
    """The ketama mode: a change can move the points of every node."""

    _wide = False

    def __init__(self, replicas: int = 4) -> None:
        self._replicas = replicas
        self._digests: dict[str, bytes] = {}  # of each label, as many as were ever needed
        super().__init__()

    def hashi(self, key: object, replica: int = 0) -> int:
        """Return word number `replica` of the hash of a key."""
        digest: int = _md5.key_digest(key)
        word: int = _WORDS.unpack(digest.to_bytes(16, "big"))[replica]
        return word

    @cached_property
    def _keys(self) -> list[int]:
        words: list[int] = (self._places >> np.uint64(32)).tolist()
        return words

    def _create_ring(self, _nodes: NamedConfs) -> None:
        """Make the points of all nodes; where two nodes have the same, the last has it twice."""
        confs = self._nodes.values()
        self._weight_sum = sum(conf["weight"] for conf in confs)
        shares = [
            _count(conf["vnodes"] * len(confs) * conf["weight"] // self._weight_sum)
            for conf in confs
        ]
        used, digests = [], {}
        for name, share in zip(self._nodes, shares, strict=True):
            label = f"{name}"
            known = self._digests.get(label, b"")
            if len(known) < 16 * share:
                known = _md5.label_digests(label, share)
            digests[label] = known
            used.append(known[: 16 * share])
        words = np.frombuffer(b"".join(used), "<u4").reshape(-1, 4)[:, np.arange(self._replicas)]
        counts = np.array(shares, np.intp) * self._replicas
        owners = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
        points = np.sort(words.astype(np.uint64).ravel() << np.uint64(32) | owners)
        places, numbers = points >> np.uint64(32), points.astype(np.uint32).astype(np.int32)
        twice = np.flatnonzero(places[1:] == places[:-1])
        for at in twice[::-1].tolist():
            numbers[at] = numbers[at + 1]
        self._digests = digests
        self._counts = dict(zip(self._nodes, counts.tolist(), strict=True))
        self._hold(places << np.uint64(32), numbers, list(self._nodes))
        self.size -= len(twice)

    def _remove_node(self, name: Any) -> None:
        if name not in self._nodes:
            raise KeyError(f"no node {name!r} among {list(self._nodes)}")
        del self._nodes[name]
        self._create_ring(())


class FunctionRing:
    """The default mode with a hash of the user's own: any values that can be compared."""

    def __init__(self, hash_fn: Callable[[Any], Any]) -> None:
        if not callable(hash_fn):
            raise TypeError(f"hash_fn must be callable or 'ketama', got {hash_fn!r}")
        self._hash_fn = hash_fn
        self._nodes: dict[Any, Conf] = {}
        self._node_points: dict[Any, list[Any]] = {}
        self._ring: dict[Any, Any] = {}
        self._keys: list[Any] = []
        self._distribution: Counter[Any] = Counter()

    @property
    def size(self) -> int:
        """The number of points."""
        return len(self._ring)

    def hashi(self, key: Any) -> Any:
        """Return the hash of a key."""
        return self._hash_fn(key)

    def find(self, key: Any) -> int:
        """Return the index of the first point above the key's hash, around the ring."""
        at = bisect_right(self._keys, self._hash_fn(key))
        return at if at < len(self._keys) else 0

    def node(self, key: Any) -> Any:
        """Return the name of the node of a key; None when there is no point."""
        return self._ring[self._keys[self.find(key)]] if self._keys else None

    def walk(self, start: int) -> Iterator[Any]:
        """Yield the owner of every point, once around from number `start`."""
        keys, ring = self._keys, self._ring
        for at in chain(range(start, len(keys)), range(start)):
            yield ring[keys[at]]

    def _create_ring(self, nodes: NamedConfs) -> None:
        """Make the points of these nodes anew; where two nodes have the same, the last has it."""
        for name, conf in nodes:
            count = _count(conf["vnodes"] * conf["weight"])
            self._clear(name)
            points = [self._hash_fn(f"{name}-{k}") for k in range(count)]
            self._node_points[name] = points
            self._ring.update(dict.fromkeys(points, name))
            if points:
                self._distribution[name] = count
        self._keys = sorted(self._ring)

    def _remove_node(self, name: Any) -> None:
        if name not in self._nodes:
            raise KeyError(f"no node {name!r} among {list(self._nodes)}")
        del self._nodes[name]
        self._clear(name)
        self._keys = sorted(self._ring)

    def _clear(self, name: Any) -> None:
        """Drop the points that a node owns; those another one has taken over stay."""
        for point in self._node_points.pop(name, ()):
            if self._ring.get(point) == name:
                del self._ring[point]
        self._distribution.pop(name, None)


class HashRing(_md5.NodeFinder):  # type: ignore[misc]  # the base is known when it runs
    """A consistent hash ring with uhashring's members.

    Parameters
    ----------
    nodes : str, list of names, dict of name -> weight, or dict of name -> dict
        Of such a dict the items hostname, instance, nodename, port, vnodes and weight count.
    hash_fn : callable or "ketama", optional
        Gives the place of a label or key; MD5 when left out.
    vnodes : int, optional
        Points (ketama: digests) of a node of weight 1 (ketama: of mean weight), if the node
        does not say otherwise: 160, ketama 40.
    weight_fn : callable, optional
        Called with a node's items as keywords, returns its weight.
    replicas : int
        Points for each digest, at most 4; ketama only.

    Other keywords are ignored. All methods that take a key return None on an empty ring.

    Raises
    ------
    TypeError, ValueError
        `hash_fn` or `weight_fn` cannot be called; `nodes`, or one of them, is of no such form.
    """

    runtime: MetaRing | KetamaRing | FunctionRing

    def __init__(
        self,
        nodes: Nodes = _NO_NODES,
        *,
        hash_fn: Callable[[Any], Any] | str | None = None,
        vnodes: int | None = None,
        weight_fn: Callable[..., int] | None = None,
        replicas: int = 4,
        **_ignored: object,
    ) -> None:
        if hash_fn == "ketama":
            self.runtime = KetamaRing(replicas)
        elif hash_fn:
            self.runtime = FunctionRing(hash_fn)  # type: ignore[arg-type]  # it refuses a str
        else:
            self.runtime = MetaRing()
        if weight_fn and not callable(weight_fn):
            raise TypeError(f"weight_fn must be callable, got {weight_fn!r}")
        if vnodes is None:
            vnodes = 40 if hash_fn == "ketama" else 160
        self._default_vnodes = vnodes
        self._weight_fn = weight_fn
        self._nodes = self.runtime._nodes
        self.hashi = self.runtime.hashi
        self._bind()
        if self._configure_nodes(nodes):
            self.runtime._create_ring(self._nodes.items())

    def _bind(self) -> None:
        """Let get_node lead straight to the look-up."""
        self._node = self.runtime.node
        self.find_in(self._node)

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_node", "_node_finder")
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind()

    def _configure_nodes(self, nodes: Nodes) -> bool:
        """Take these nodes in, and return whether that changes points."""
        if isinstance(nodes, str):
            nodes = [nodes]
        if not isinstance(nodes, (dict, list)):
            raise ValueError(f"nodes must be a list or a dict, got {type(nodes).__name__}")
        changed = False
        for name in nodes:
            given = nodes[name] if isinstance(nodes, dict) else {}
            old = self._nodes.get(name, _NO_CONF)
            conf = {
                "hostname": name,
                "instance": None,
                "nodename": name,
                "port": None,
                "vnodes": self._default_vnodes,
                "weight": 1,
            }
            if isinstance(given, int):
                conf["weight"] = given
            elif isinstance(given, dict):
                conf |= {item: value for item, value in given.items() if item in conf}
                changed |= any(old[item] != conf[item] for item in _SHAPING & given.keys())
            else:
                raise ValueError(f"a node must be a dict or an int, got {type(given).__name__}")
            if self._weight_fn:
                conf["weight"] = self._weight_fn(**conf)
            changed |= old is _NO_CONF or old["weight"] != conf["weight"]
            self._nodes[name] = conf
        return changed

    def __setitem__(self, name: Any, conf: Conf | int = _WEIGHT_1) -> None:
        """Add a node, or give it a new configuration."""
        if self._configure_nodes({name: conf}):
            self.runtime._create_ring([(name, self._nodes[name])])

    add_node = __setitem__

    def __delitem__(self, name: Any) -> None:
        """Remove a node; KeyError when there is none of this name."""
        self.runtime._remove_node(name)

    remove_node = __delitem__

    def regenerate(self) -> None:
        """Ask weight_fn for every weight again, and make all points anew."""
        self._configure_nodes(self._nodes.copy())
        self.runtime._create_ring(self._nodes.items())

    def __getitem__(self, key: Any) -> Any:
        """Return the instance of the key's node."""
        return self._nodes.get(self._node(key), _NO_CONF)["instance"]

    get_node_instance = __getitem__

    def get(self, key: Any) -> Conf | None:
        """Return the configuration of the key's node, not a copy."""
        return self._nodes.get(self._node(key))

    def get_node_hostname(self, key: Any) -> Any:
        """Return the hostname of the key's node."""
        return self._nodes.get(self._node(key), _NO_CONF)["hostname"]

    def get_node_port(self, key: Any) -> Any:
        """Return the port of the key's node."""
        return self._nodes.get(self._node(key), _NO_CONF)["port"]

    def get_node_weight(self, key: Any) -> Any:
        """Return the weight of the key's node."""
        return self._nodes.get(self._node(key), _NO_CONF)["weight"]

    def get_node_pos(self, key: Any) -> int | None:
        """Return the number of the key's point, in ascending order."""
        runtime = self.runtime
        return runtime.find(key) if runtime.size else None

    def get_server(self, key: Any) -> tuple[Any, Any] | None:
        """Return the place of the key's point, and its node's name."""
        runtime = self.runtime
        if not runtime.size:
            return None
        place = runtime._keys[runtime.find(key)]
        return place, runtime._ring[place]

    def get_key(self, key: Any) -> Any:
        """Return the hash of a key."""
        return self.hashi(key)

    def get_nodes(self) -> KeysView[Any]:
        """Return the names of all nodes."""
        return self._nodes.keys()

    def get_instances(self) -> list[Any]:
        """Return the instances of all nodes that have one."""
        return [conf["instance"] for conf in self._nodes.values() if conf["instance"]]

    def get_points(self) -> list[tuple[Any, Any]]:
        """Return all points in ascending order, each with its node's name."""
        ring = self.ring
        return [(place, ring[place]) for place in self._keys]

    def range(self, key: Any, size: int | None = None, unique: bool = True) -> Iterator[Conf]:
        """Yield the configurations of the nodes from the key's on, around the ring.

        At most `size` of them if given; each node once, unless `unique` is false.
        """
        if unique:
            size = size or len(self._nodes)
        seen = set()
        n_yielded = 0
        for name in self.runtime.walk(self.runtime.find(key)):
            if unique:
                if name in seen:
                    continue
                seen.add(name)
            yield self._nodes[name]
            n_yielded += 1
            if n_yielded == size:
                return

    def iterate_nodes(self, key: Any, distinct: bool = True) -> Iterator[Any]:
        """Yield the names of the nodes from the key's on, around the ring; None when empty."""
        if not self.runtime.size:
            yield None
        for conf in self.range(key, unique=distinct):
            yield conf["nodename"]

    def print_continuum(self) -> None:
        """Print the number of points, and each with its node."""
        points = self.get_points()
        print(f"Numpoints in continuum: {len(points)}" if points else "Continuum empty")
        for place, name in points:
            print(f"{name} ({place})")

    @property
    def conf(self) -> dict[Any, Conf]:
        """The configuration of each node, not a copy."""
        return self._nodes

    nodes = conf

    @property
    def ring(self) -> dict[Any, Any]:
        """The owner of each place."""
        return self.runtime._ring

    _ring = continuum = ring

    @property
    def _keys(self) -> list[Any]:
        return self.runtime._keys

    @property
    def distribution(self) -> Counter[Any]:
        """The number of points made for each node that has any."""
        return self.runtime._distribution

    @property
    def size(self) -> int:
        """The number of different places."""
        return self.runtime.size
