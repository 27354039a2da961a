"""What rota.compat.uhashring costs beside uhashring itself, side by side in one process.

    python bench/compat_uhashring.py [--rounds 25]

Medians over the rounds, GC off. A look-up is measured at 100 nodes over 2,000 keys, the
loop included; a change at 1,000 nodes.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from timeit import Timer
from typing import Any

import uhashring
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rota.compat.uhashring import HashRing

MODES = {"default": None, "ketama": "ketama"}
MAKERS = {"uhashring": uhashring.HashRing, "rota": HashRing}
KEYS = [f"user:{i * 7919}:session" for i in range(2_000)]
LOOK_UPS = {
    "get_node(k)": "for k in keys: ring.get_node(k)",
    "get(k)": "for k in keys: ring.get(k)",
    "ring[k]": "for k in keys: ring[k]",
    "get_node_hostname(k)": "for k in keys: ring.get_node_hostname(k)",
    "get_node_pos(k)": "for k in keys: ring.get_node_pos(k)",
    "get_server(k)": "for k in keys: ring.get_server(k)",
    "list(range(k, 3))": "for k in keys: list(ring.range(k, 3))",
}
BAR = 8.0  # uhashring / rota, of get_node


def names(n: int) -> list[str]:
    """Return n addresses."""
    return [f"10.0.{i // 256}.{i % 256}:11211" for i in range(n)]


def medians(timers: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Return each timer's median in seconds; in a round they take turns."""
    for timer in timers.values():
        timer()
    times: dict[str, list[float]] = {who: [] for who in timers}
    for _ in range(rounds):
        for who, timer in timers.items():
            times[who].append(timer())
    return {who: statistics.median(took) for who, took in times.items()}


def look_up(make: Callable[..., Any], hash_fn: Any, statement: str) -> Callable[[], float]:
    """Return a function that gives the seconds of one look-up."""
    timer = Timer(statement, globals={"ring": make(names(100), hash_fn=hash_fn), "keys": KEYS})
    return lambda: timer.timeit(1) / len(KEYS)


def build(make: Callable[..., Any], hash_fn: Any) -> Callable[[], float]:
    """Return a function that gives the seconds of building a ring of 1,000 nodes."""
    timer = Timer(lambda: make(names(1_000), hash_fn=hash_fn))
    return lambda: timer.timeit(1)


def change(make: Callable[..., Any], hash_fn: Any) -> Callable[[], float]:
    """Return a function that gives the seconds of add_node and one look-up, at 1,000 nodes."""
    ring = make(names(1_000), hash_fn=hash_fn)

    def timer() -> float:
        began = time.perf_counter()
        ring.add_node("new")
        ring.get_node("key")
        took = time.perf_counter() - began
        ring.remove_node("new")
        return took

    return timer


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    table = Table("mode", "what", "uhashring", "rota", "uhashring / rota", "bar")
    gc.disable()
    for mode, hash_fn in MODES.items():
        measured = {
            what: ({who: look_up(make, hash_fn, statement) for who, make in MAKERS.items()}, rounds)
            for what, statement in LOOK_UPS.items()
        }
        few = max(rounds // 8, 1)
        changes = {who: change(make, hash_fn) for who, make in MAKERS.items()}
        measured["add_node to 1,000, and a look-up"] = changes, few
        builds = {who: build(make, hash_fn) for who, make in MAKERS.items()}
        measured["build with 1,000"] = builds, max(rounds // 12, 1)
        for what, (timers, times) in measured.items():
            took = medians(timers, times)
            ratio = took["uhashring"] / took["rota"]
            bar = ""
            if what == "get_node(k)":
                bar = f">= {BAR:g}: {'holds' if ratio >= BAR else 'does not hold'}"
            shown = [f"{took[who] * 1e6:,.2f} us" for who in MAKERS]
            table.add_row(mode, escape(what), *shown, f"{ratio:.1f}", bar)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
