"""rota, and what people use in Python in its place, behind the protocol of PROTOCOL.md.

usage: python -m bench.peers.python_peer FROM_C FLOOR      (compiled; see build.py)

    rota                 pickers, and Kitex's shape: a balancer's cached picker and `next`
    rota selector        Kratos' shape: select, and done
    rota batch           pick_many, a list of instances
    rota fill            fill, an array of indices
    rota C               from_c.pyx, no Python between the picks
    rota reference       the same pickers in plain Python
    empty method         of a compiled class: what a call costs before anything is done
    itertools.cycle      over the instances
    roundrobin           basic and smooth of the package of that name
    random               random.choice, random.choices with cum_weights
    numpy                Generator.choice, with p where there are weights
    uhashring            its HashRing as it comes
    pymemcache           its RendezvousHash
"""

import itertools
import json
import platform
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from math import gcd
from pathlib import Path
from time import perf_counter_ns
from types import ModuleType
from typing import Any

import numpy as np

import rota
from bench.cases import bytes_held
from bench.extension import loaded
from rota import reference, selector
from rota.loadbalance import LoadBalancer

SERVICE = "service"
BATCH = 1_000
VIRTUAL_FACTOR = 160
MOST_FOR_MEMORY = 100_000  # picks after which memory is looked at
LONGEST_FOR_MEMORY = 5_000_000_000  # ns of picks, if that is sooner
LIBRARIES = ("mmh3", "numpy", "pymemcache", "roundrobin", "uhashring")

PICKERS = {
    "round_robin": "RoundRobin",
    "weighted_round_robin": "WeightedRoundRobin",
    "interleaved_weighted_round_robin": "InterleavedWeightedRoundRobin",
    "random": "WeightedRandom",
    "weighted_random": "WeightedRandom",
    "consistent_hash": "ConsistentHash",
    "p2c": "PeakEwma",
}
BALANCERS: dict[str, Callable[[], LoadBalancer]] = {
    "round_robin": rota.WeightedRoundRobinBalancer,
    "weighted_round_robin": rota.WeightedRoundRobinBalancer,
    "interleaved_weighted_round_robin": rota.InterleavedWeightedRoundRobinBalancer,
    "random": rota.WeightedRandomBalancer,
    "weighted_random": rota.WeightedRandomBalancer,
    "consistent_hash": lambda: rota.ConsistentHashBalancer(
        rota.ConsistentHashOptions(own_key, virtual_factor=VIRTUAL_FACTOR)
    ),
}
BUILDERS = {
    "weighted_round_robin": selector.wrr,
    "random": selector.random,
    "weighted_random": selector.random,
    "p2c": selector.p2c,
}
# Where it is not the weight of one that changes, but one that comes and goes.
MEMBERSHIP = ("round_robin", "random", "consistent_hash", "p2c")


class NotThereError(Exception):
    """A system does not have what was asked for."""


def own_key(ctx: Any, request: str) -> str:
    """Return the key of a request: itself."""
    return request


@dataclass(frozen=True)
class Loop:
    """An operation as its users write it, in a loop of Python's: `for _ in repeat(None, count)`.

    With `keys` the loop goes through them, as `key`. The empty loop is the same around `pass`.
    """

    statement: str
    names: dict[str, Any]
    keys: Sequence[str] = ()

    def time(self, count: int) -> dict[str, int]:
        """Return the nanoseconds of `count` turns of the loop, and of the empty one."""
        ns = [self._loop(text)(self._turns(count), perf_counter_ns) for text in self._texts()]
        return {"ns": ns[0], "empty_ns": ns[1]}

    def _texts(self) -> tuple[str, str]:
        return self.statement, "pass"

    def _turns(self, count: int) -> Iterator[Any]:
        if self.keys:
            return itertools.islice(itertools.cycle(self.keys), count)
        return itertools.repeat(None, count)

    def _loop(self, statement: str) -> Any:
        # Compiled once: CPython's interpreter has then specialised the loop for this operation.
        if statement not in self._loops:
            scope: dict[str, Any] = {}
            names = ", ".join(f"{name}={name}" for name in self.names)
            exec(LOOP.format(names=names, statement=statement), dict(self.names), scope)
            self._loops[statement] = scope["loop"]
        return self._loops[statement]

    _loops: dict[str, Any] = field(default_factory=dict, init=False, repr=False)


LOOP = """
def loop(_turns, _clock, {names}):
    _began = _clock()
    for key in _turns:
        {statement}
    return _clock() - _began
"""


@dataclass(frozen=True)
class Inside:
    """An operation that has its loop inside: `run(count)`, and `empty(count)` without it."""

    run: Callable[[int], Any]
    empty: Callable[[int], Any]

    def time(self, count: int) -> dict[str, int]:
        """Return the nanoseconds of `run` and of `empty`."""
        began = perf_counter_ns()
        self.run(count)
        between = perf_counter_ns()
        self.empty(count)
        return {"ns": between - began, "empty_ns": perf_counter_ns() - between}


def by_the_thousand(call: Callable[[], Any]) -> Inside:
    """Return the operation of BATCH picks by each `call()`."""

    def run(count: int) -> None:
        for _ in itertools.repeat(None, count // BATCH):
            call()

    def empty(count: int) -> None:
        for _ in itertools.repeat(None, count // BATCH):
            pass

    return Inside(run, empty)


@dataclass
class Task:
    """What a picker is to be made of, as asked for by `make`."""

    system: str
    algorithm: str
    weights: list[int]
    keys: list[str]
    from_c: ModuleType
    floor: ModuleType

    def __post_init__(self) -> None:
        n = len(self.weights)
        self.instances = [instance(i, weight) for i, weight in enumerate(self.weights)]
        self.newcomer = instance(n, self.weights[0])
        self.changes_members = self.algorithm in MEMBERSHIP
        self.index = {one.address: i for i, one in enumerate([*self.instances, self.newcomer])}

    @property
    def period(self) -> int:
        """Picks after which a schedule begins again."""
        return sum(self.weights) // gcd(*self.weights)

    def lists(self) -> tuple[list[rota.Instance], list[rota.Instance]]:
        """Return the instances, and as they are once one has changed.

        They have no object in common, as what a resolver makes anew each time.
        """
        changed = list(self.weights)
        if self.changes_members:
            changed.append(changed[0])
        else:
            changed[len(changed) // 2] += 1
        return self.instances, [instance(i, weight) for i, weight in enumerate(changed)]


def instance(i: int, weight: int) -> rota.Instance:
    """Return instance number i."""
    address = f"10.{i >> 16 & 255}.{i >> 8 & 255}.{i & 255}:8888"
    return rota.Instance(address, weight, version=str(i % 2))


Operation = Loop | Inside


class System:
    """One system, which has made a picker of a task."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.made = self.make()

    def make(self) -> Any:
        """Return a fresh picker."""
        raise NotImplementedError

    def operations(self) -> dict[str, Operation]:
        """Return what it can do, by the names of the protocol."""
        raise NotImplementedError

    def pick_with(self, made: Any, key: str) -> Any:
        """Return whom a picker picks, or its address."""
        raise NotImplementedError

    def picks(self, count: int) -> list[int]:
        """Return the indices of the first picks of a fresh picker."""
        made = self.make()
        keys = itertools.cycle(self.task.keys or [""])
        return self.indices([self.pick_with(made, key) for key in itertools.islice(keys, count)])

    def indices(self, picked: Sequence[Any]) -> list[int]:
        """Return the indices of instances, or of addresses."""
        return [self.task.index.get(getattr(one, "address", one), -1) for one in picked]

    def add(self, made: Any, newcomer: rota.Instance) -> None:
        """Have another instance come to a picker by key."""
        raise NotThereError(f"nothing comes to {self.task.system}")

    def moved(self) -> dict[str, list[int]]:
        """Return who has each key, before and after an instance has come."""
        made, keys = self.make(), self.task.keys
        before = self.indices([self.pick_with(made, key) for key in keys])
        self.add(made, self.task.newcomer)
        return {
            "before": before,
            "added": self.indices([self.pick_with(made, key) for key in keys]),
        }

    def memory(self) -> int:
        """Return the bytes of a picker that has gone round once."""
        turns = min(self.task.period, MOST_FOR_MEMORY)
        keys = list(itertools.islice(itertools.cycle(self.task.keys or [""]), turns))

        def make() -> Any:
            made, began = self.make(), perf_counter_ns()
            for key in keys:
                self.pick_with(made, key)
                if perf_counter_ns() - began > LONGEST_FOR_MEMORY:
                    break
            return made

        return bytes_held(make)


class Rota(System):
    """The picker held, and Kitex's shape around it."""

    package: Any = rota

    def make(self) -> Any:
        task, options = self.task, {}
        if task.algorithm not in PICKERS:
            raise NotThereError(f"{task.system} has no {task.algorithm}")
        make = getattr(self.package, PICKERS[task.algorithm])
        if task.algorithm == "consistent_hash":
            options = {"virtual_factor": VIRTUAL_FACTOR, "get_key": own_key}
        elif task.algorithm.endswith("robin"):
            options = {"start": 0}
        else:
            options = {"seed": 42}
        return make(task.instances, task.weights, **options)

    def pick_with(self, made: Any, key: str) -> Any:
        return made.pick(key) if self.task.algorithm == "consistent_hash" else made.pick()

    def add(self, made: Any, newcomer: rota.Instance) -> None:
        made.add(newcomer, self.task.weights[0])

    def operations(self) -> dict[str, Operation]:
        task, names = self.task, {"p": self.made, "make": self.make}
        pick = {"consistent_hash": "p.pick(key)", "p2c": "p.acquire().done(0.001)"}
        pick_text = pick.get(task.algorithm, "p.pick()")
        found: dict[str, Operation] = {
            "pick": Loop(pick_text, names, task.keys),
            "build": Loop("make()", names),
        }
        # Changed in place, by a picker of its own: so what is picked elsewhere stays as it is.
        changed = self.make()
        thousand = list(itertools.islice(itertools.cycle(task.keys or [""]), BATCH))
        names = {"p": changed, "change": self.change_of(changed), "thousand": thousand}
        found["change"] = Loop(f"change(); {pick_text}", names, task.keys)
        many = f"change()\n        for key in thousand: {pick_text}"
        found["change_1000"] = Loop(many, names)
        if task.algorithm in BALANCERS:
            found |= self.balanced()
        return found

    def changes(self) -> Iterator[int]:
        """Return the weights that the one in the middle takes in turn."""
        weight = self.task.weights[len(self.task.weights) // 2]
        return itertools.cycle([weight + 1, weight])

    def change_of(self, made: Any) -> Callable[[], Any]:
        """Return what changes one instance of a picker there and back in turn."""
        middle, weights = len(self.task.weights) // 2, self.changes()
        if not self.task.changes_members:
            return lambda: made.set_weight(middle, next(weights))
        newcomer, weight, index = self.task.newcomer, self.task.weights[0], []

        def come_or_go() -> None:
            if index:
                made.remove(index.pop())
            else:
                index.append(made.add(newcomer, weight))

        return come_or_go

    def balanced(self) -> dict[str, Operation]:
        """Return what is done by way of a balancer."""
        task = self.task
        balancer = BALANCERS[task.algorithm]()
        results = [rota.Result(True, SERVICE, tuple(listed)) for listed in task.lists()]
        balancer.get_picker(results[0])
        steps = itertools.cycle([(results[0], results[1]), (results[1], results[0])])

        def refresh(key: str) -> None:
            before, after = next(steps)
            balancer.rebalance(rota.diff(SERVICE, before, after))
            balancer.get_picker(after).next(None, key)

        names = {"balancer": balancer, "result": results[0], "ctx": object(), "refresh": refresh}
        # The calls have a balancer of their own, which nothing changes.
        calls = BALANCERS[task.algorithm]()
        calls.get_picker(results[0])
        called = {"balancer": calls, "result": results[0], "ctx": object()}
        statement = "balancer.get_picker(result).next(ctx, key)"
        return {
            "call": Loop(statement, called, task.keys),
            "refresh": Loop("refresh(key)", names, task.keys),
        }


class RotaReference(Rota):
    """The same in plain Python."""

    package = reference

    def operations(self) -> dict[str, Operation]:
        found = super().operations()
        return {what: found[what] for what in ("pick", "build", "change", "change_1000")}


class RotaSelector(System):
    """Kratos' shape."""

    def make(self) -> Any:
        task = self.task
        if task.algorithm not in BUILDERS:
            raise NotThereError(f"{task.system} has no {task.algorithm}")
        options = {"start": 0} if task.algorithm.endswith("robin") else {"seed": 42}
        made = BUILDERS[task.algorithm](**options).build()
        made.apply(task.instances)
        return made

    def pick_with(self, made: Any, key: str) -> Any:
        node, done = made.select()
        done()
        return node

    def operations(self) -> dict[str, Operation]:
        names = {"p": self.made, "make": self.make, "filters": (selector.version("1"),)}
        changed = self.make()
        lists = itertools.cycle(self.task.lists()[::-1])
        change = "p.apply(next(lists)); node, done = p.select(); done()"
        refresh = Loop(change, {"p": changed, "lists": lists})
        many = "p.apply(next(lists))\n        for key in thousand: node, done = p.select(); done()"
        select = Loop("node, done = p.select(); done()", names)
        return {
            "pick": select,
            "call": select,
            "filtered": Loop("node, done = p.select(filters=filters); done()", names),
            "build": Loop("make()", names),
            "change": refresh,
            "refresh": refresh,
            "change_1000": Loop(many, {"p": changed, "lists": lists, "thousand": range(BATCH)}),
        }


class RotaBatch(Rota):
    """Lists of instances."""

    def operations(self) -> dict[str, Operation]:
        task, made = self.task, self.made
        if task.algorithm == "p2c":
            raise NotThereError("calls are begun one at a time")
        if task.algorithm != "consistent_hash":
            return {"batch": by_the_thousand(lambda: made.pick_many(BATCH))}
        keys = list(itertools.islice(itertools.cycle(task.keys), BATCH))
        return {"batch": by_the_thousand(lambda: made.pick_many(keys))}


class RotaFill(Rota):
    """Arrays of indices."""

    def operations(self) -> dict[str, Operation]:
        if self.task.algorithm in ("p2c", "consistent_hash"):
            raise NotThereError(f"{self.task.algorithm} has no fill")
        made, out = self.made, np.empty(BATCH, np.int32)
        return {"batch": by_the_thousand(lambda: made.fill(out))}


class RotaC(Rota):
    """As a service in C picks."""

    def operations(self) -> dict[str, Operation]:
        task, made, c = self.task, self.made, self.task.from_c
        if task.algorithm == "p2c":
            raise NotThereError("C reports no latencies")
        port = np.arange(len(task.weights), dtype=np.int64)
        if task.algorithm == "consistent_hash":
            keys = c.Keys(task.keys)
            return {
                "pick": Inside(
                    lambda count: c.owners(made, keys, port, count),
                    lambda count: c.empty_owners(keys, port, count),
                )
            }
        return {
            "pick": Inside(
                lambda count: c.picks(made, port, count), lambda count: c.empty_picks(port, count)
            ),
            "batch": Inside(
                lambda count: c.fills(made, port, count), lambda count: c.empty_picks(port, count)
            ),
        }


class EmptyMethod(System):
    """Returns an instance that it holds; compiled as the kernels are."""

    def make(self) -> Any:
        return self.task.floor.Floor(self.task.instances[0])

    def pick_with(self, made: Any, key: str) -> Any:
        return made.one_argument(key) if self.task.keys else made.no_argument()

    def operations(self) -> dict[str, Operation]:
        statement = "p.one_argument(key)" if self.task.keys else "p.no_argument()"
        return {"pick": Loop(statement, {"p": self.made}, self.task.keys)}


class OfPython(System):
    """What people use: made by a function of a task; a statement picks."""

    def __init__(
        self, task: Task, makers: dict[str, Callable[[Task], Any]], pick: str, batch: str = ""
    ) -> None:
        if task.algorithm not in makers:
            raise NotThereError(f"{task.system} has no {task.algorithm}")
        self.maker, self.pick, self.batch = makers[task.algorithm], pick, batch
        self.names = {"servers": task.instances, "n": len(task.weights), "random": random}
        super().__init__(task)
        self.one = eval(f"lambda p, key: {pick}", self.names)

    def make(self) -> Any:
        return self.maker(self.task)

    def pick_with(self, made: Any, key: str) -> Any:
        one = self.one(made, key)
        return self.task.instances[one] if isinstance(one, (int, np.integer)) else one

    def add(self, made: Any, newcomer: rota.Instance) -> None:
        made.add_node(newcomer.address)

    def operations(self) -> dict[str, Operation]:
        names = self.names | {"p": self.made, "make": self.make}
        found: dict[str, Operation] = {
            "pick": Loop(self.pick, names, self.task.keys),
            "build": Loop("make()", names),
        }
        if self.batch:
            found["batch"] = by_the_thousand(
                eval(f"lambda: {self.batch}", names | {"BATCH": BATCH})
            )
        if self.task.algorithm == "consistent_hash":
            made, newcomer, there = self.make(), self.task.newcomer.address, []

            def change() -> None:
                if there:
                    made.remove_node(there.pop())
                else:
                    made.add_node(newcomer)
                    there.append(newcomer)

            changed = names | {"p": made, "change": change}
            found["change"] = Loop(f"change(); {self.pick}", changed, self.task.keys)
        return found


def accumulated(task: Task) -> list[int]:
    """Return the sums of the weights, for random.choices."""
    return list(itertools.accumulate(task.weights))


def generator(task: Task) -> tuple[np.random.Generator, Any]:
    """Return numpy's generator and the shares it draws by; None: all alike."""
    shares = None
    if task.algorithm == "weighted_random":
        shares = np.array(task.weights) / sum(task.weights)
    return np.random.default_rng(42), shares


def cycle(task: Task) -> OfPython:
    """Return the system itertools.cycle."""
    return OfPython(task, {"round_robin": lambda task: itertools.cycle(task.instances)}, "next(p)")


def roundrobin_package(task: Task) -> OfPython:
    """Return the system roundrobin."""
    import roundrobin

    makers = {
        "round_robin": lambda task: roundrobin.basic(task.instances),
        "weighted_round_robin": lambda task: roundrobin.smooth(
            list(zip(task.instances, task.weights, strict=True))
        ),
    }
    return OfPython(task, makers, "p()")


def standard_random(task: Task) -> OfPython:
    """Return the system random."""
    makers = {"random": lambda task: None, "weighted_random": accumulated}
    if task.algorithm == "random":
        return OfPython(task, makers, "random.choice(servers)", "random.choices(servers, k=BATCH)")
    pick = "random.choices(servers, cum_weights=p)[0]"
    return OfPython(task, makers, pick, "random.choices(servers, cum_weights=p, k=BATCH)")


def numpy_choice(task: Task) -> OfPython:
    """Return the system numpy."""
    makers = dict.fromkeys(("random", "weighted_random"), generator)
    return OfPython(task, makers, "p[0].choice(n, p=p[1])", "p[0].choice(n, BATCH, p=p[1])")


def uhashring_ring(task: Task) -> OfPython:
    """Return the system uhashring."""
    import uhashring

    def make(task: Task) -> Any:
        return uhashring.HashRing([one.address for one in task.instances])

    return OfPython(task, {"consistent_hash": make}, "p.get_node(key)")


def rendezvous(task: Task) -> OfPython:
    """Return the system pymemcache."""
    from pymemcache.client.rendezvous import RendezvousHash

    def make(task: Task) -> Any:
        return RendezvousHash([one.address for one in task.instances])

    return OfPython(task, {"consistent_hash": make}, "p.get_node(key)")


SYSTEMS: dict[str, Callable[[Task], System]] = {
    "rota": Rota,
    "rota selector": RotaSelector,
    "rota batch": RotaBatch,
    "rota fill": RotaFill,
    "rota C": RotaC,
    "rota reference": RotaReference,
    "empty method": EmptyMethod,
    "itertools.cycle": cycle,
    "roundrobin": roundrobin_package,
    "random": standard_random,
    "numpy": numpy_choice,
    "uhashring": uhashring_ring,
    "pymemcache": rendezvous,
}


class Peer:
    """What answers the requests, one after another."""

    def __init__(self, from_c: ModuleType, floor: ModuleType) -> None:
        self.from_c, self.floor = from_c, floor
        self.system: System | None = None
        self.operations: dict[str, Operation] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request; raise what is wrong with it."""
        do = request["do"]
        if do == "describe":
            systems = {"rota": f"{rota.__version__} ({rota.IMPLEMENTATION})"}
            for name in LIBRARIES:
                with suppress(metadata.PackageNotFoundError):
                    systems[name] = metadata.version(name)
            runtime = f"{platform.python_implementation()} {platform.python_version()}"
            return {"systems": systems, "runtime": runtime}
        if do == "make":
            self.system, self.operations = None, {}
            name = request["system"]
            if name not in SYSTEMS:
                raise NotThereError(f"there is no {name}")
            algorithm, given, keys = request["algorithm"], request["weights"], request["keys"]
            task = Task(name, algorithm, given, keys, self.from_c, self.floor)
            self.system = SYSTEMS[name](task)
            self.operations = self.system.operations()
            return {}
        if self.system is None:
            raise NotThereError("nothing has been made")
        if do == "time":
            operation = self.operations.get(request["operation"])
            if operation is None:
                raise NotThereError(f"{self.system.task.system} has no {request['operation']}")
            return operation.time(request["count"])
        if do == "picks":
            return {"picks": self.system.picks(request["count"])}
        if do == "moved":
            return self.system.moved()
        if do == "memory":
            return {"bytes": self.system.memory()}
        raise NotThereError(f"there is no {do}")


def main() -> None:
    """Answer until there are no more requests."""
    peer = Peer(*(loaded(Path(path)) for path in sys.argv[1:]))
    for line in sys.stdin:
        try:
            answer = peer.answer(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
