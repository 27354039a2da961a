"""Writes docs/benchmarks.md and its plots from one run; no figure in them is typed by hand."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.peers.measure import ALGORITHMS, DISTURBED, SIZES, Row, rival_of
from bench.peers.quality import Hash, Load, Schedule

TIMES = "\N{MULTIPLICATION SIGN}"
ORIGINALS = ("kitex", "kitex alias", "kratos", "pingora", "pingora ketama")
ORDER = (
    *("rota", "rota C", "rota selector", "rota batch", "rota fill"),
    *ORIGINALS,
    *(
        "empty method",
        "itertools.cycle",
        "roundrobin",
        "random",
        "numpy",
        "uhashring",
        "pymemcache",
    ),
    "rota reference",
)
TITLES = {
    "pick": "One pick by a picker that is held",
    "call": "What a client does for each call",
    "filtered": "The same with a filter that every second instance passes",
    "batch": "Picks by the thousand, each",
    "build": "A picker from a list of instances",
    "change": "One instance changes, and the next pick",
    "change_1000": "One instance changes, and the next 1,000 picks",
    "refresh": "A new list comes in which one instance differs, and the next pick",
    "memory": "Bytes an instance",
}
COLOURS = {
    "rota": "#1f5fa8",
    "rota C": "#0b2f57",
    "rota selector": "#6ea3d8",
    "kitex": "#d1642a",
    "kitex alias": "#e8a27c",
    "kratos": "#2a8c5a",
    "pingora": "#8a4fa3",
    "pingora ketama": "#c49ad3",
}


@dataclass(frozen=True)
class Run:
    """All that one run found."""

    machine: dict[str, str]
    systems: dict[str, str]
    missing: dict[str, str]
    rows: list[Row]
    schedules: list[Schedule]
    hashes: list[Hash]
    loads: list[Load]

    def find(self, algorithm: str, n: int, operation: str, system: str) -> Row | None:
        """Return one row, if there is one."""
        return self._index.get((algorithm, n, operation, system))

    @property
    def _index(self) -> dict[tuple[str, int, str, str], Row]:
        index = self.__dict__.get("index")
        if index is None:
            index = {(r.algorithm, r.n, r.operation, r.system): r for r in self.rows}
            self.__dict__["index"] = index
        return index


# -- claims -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """Something rota promises: `what`, of all these (who, algorithm, n): at least `least` times.

    `cases` are pairs (rota's row, the other's row). `reason` is for the page where it does not
    hold everywhere.
    """

    what: str
    least: float
    cases: Callable[[Run], Iterator[tuple[Row, Row]]]
    reason: str = ""


def pairs(
    run: Run, ours: str, others: Sequence[str], operation: str, algorithms: Sequence[str],
    sizes: Sequence[int] = SIZES,
) -> Iterator[tuple[Row, Row]]:  # fmt: skip
    """Yield rota's row beside each other's, where there are both."""
    for algorithm in algorithms:
        for n in sizes:
            own = run.find(algorithm, n, operation, ours)
            for system in others:
                other = run.find(algorithm, n, operation, system)
                if own and other:
                    yield own, other


KITEX = ("kitex", "kitex alias")
CLAIMS = (
    Claim(
        "From C, rota picks faster than Kitex, for every algorithm at every n",
        1.0,
        lambda run: pairs(run, "rota C", KITEX, "pick", ALGORITHMS),
    ),
    Claim(
        "From Python, net of the loop, rota picks faster than Kitex does in Go, for every "
        "algorithm at every n",
        1.0,
        lambda run: pairs(run, "rota", KITEX, "pick", ALGORITHMS),
        "An evenly random pick is one draw and one look-up: in Go that takes about as long as "
        "Python takes to call an empty compiled method, before anything is done. With 10,000 "
        "instances and more a pick from Python counts a reference of an object that is in no near "
        "cache, where Go hands on a pointer. The claim above is without either.",
    ),
    Claim(
        "A filtered p2c select and done at n = 1,000 is 50 times as fast as Kratos'",
        50.0,
        lambda run: pairs(run, "rota selector", ("kratos",), "filtered", ("p2c",), (1_000,)),
    ),
    Claim(
        "A ring of 10,000 instances takes a change at least 1,000 times as fast as Kitex and "
        "Pingora rebuild theirs",
        1_000.0,
        lambda run: pairs(
            run, "rota", ("kitex", "pingora", "pingora ketama"), "change", ("consistent_hash",),
            (10_000,),
        ),
    ),
)  # fmt: skip


def times(ours: Row, other: Row) -> float | None:
    """Return how many times as fast rota is: by round where rota's is what others are held to."""
    if not ours.ns or other.ns is None:
        return None
    if ours.system == rival_of(other.system, other.operation) and other.ratio is not None:
        return other.ratio
    return other.ns / ours.ns


def shortfall(run: Run, own: Row, other: Row, ratio: float) -> str:
    """Return where rota is too slow, with both times and that of an empty method."""
    times = [f"rota {duration(own.ns or 0)}", f"{other.system} {duration(other.ns or 0)}"]
    floor = run.find(own.algorithm, own.n, own.operation, "empty method")
    if floor and floor.ns:
        times.append(f"empty method {duration(floor.ns)}")
    where = f"{plain(own.algorithm)}, n = {own.n:,}"
    disturbed = "; disturbed" if DISTURBED in (own.note, other.note) else ""
    return f"{where}: {number(ratio)} {TIMES} ({', '.join(times)}{disturbed})"


def claimed(run: Run) -> Iterator[str]:
    """Yield the lines on the claims."""
    yield "| claim | least | holds in | where it does not |"
    yield "|---|---|---|---|"
    for claim in CLAIMS:
        found = [(own, other, times(own, other)) for own, other in claim.cases(run)]
        judged = [(own, other, ratio) for own, other, ratio in found if ratio is not None]
        if not judged:
            yield f"| {claim.what} | | not measured: somebody is missing | |"
            continue
        failed = [line for line in judged if line[2] < claim.least]
        least = min(line[2] for line in judged)
        said = "; ".join(shortfall(run, *line) for line in failed)
        if failed and claim.reason:
            said += f". {claim.reason}"
        holds = f"{len(judged) - len(failed)} of {len(judged)}"
        yield f"| {claim.what} | {number(least)} {TIMES} | {holds} | {said} |"


def slower(run: Run) -> Iterator[str]:
    """Yield where an original is faster than the rota it is held against, worst first."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in run.rows:
        if row.system in ORIGINALS and row.ratio is not None and row.ratio < 1:
            found.setdefault((row.operation, row.system, row.algorithm), []).append(row)
    yield from head("operation", "faster than rota", "algorithm", "n", "least ratio")
    for (operation, system, algorithm), rows in sorted(
        found.items(), key=lambda item: min(row.ratio or 0 for row in item[1])
    ):
        sizes = "; ".join(f"{row.n:,}" for row in rows)
        least = number(min(row.ratio or 0 for row in rows))
        yield f"| {operation} | {system} | {plain(algorithm)} | {sizes} | {least} {TIMES} |"


# -- numbers ------------------------------------------------------------------------------


def number(value: float) -> str:
    """Return three digits of a number, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def duration(ns: float) -> str:
    """Return a time with its unit."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{number(ns / size)} {unit}"
    return "0 ns" if ns == 0 else f"{number(ns)} ns"


def plain(name: str) -> str:
    """Return the name of an algorithm for readers."""
    return name.replace("_", " ")


# -- tables -------------------------------------------------------------------------------


def cell(row: Row | None) -> str:
    """Return what a table says of a row: the time, and the ratio to rota's with its spread."""
    if row is None:
        return ""
    if row.bytes is not None:
        return number(row.bytes / row.n)
    if row.ns is None:
        return ""
    mark = {DISTURBED: "~"}.get(row.note, "\\*" if row.note else "")
    is_rival = row.system == rival_of(row.system, row.operation)
    if row.ratio is None or is_rival or row.ratio_quartiles is None:
        return duration(row.ns) + mark
    low, high = row.ratio_quartiles
    return f"{duration(row.ns)}{mark} ({number(row.ratio)} {TIMES}; {number(low)}-{number(high)})"


def head(*columns: str) -> Iterator[str]:
    """Yield the two lines with which a table begins."""
    yield "| " + " | ".join(columns) + " |"
    yield "|---" * len(columns) + "|"


def table(run: Run, algorithm: str, operation: str) -> Iterator[str]:
    """Yield the lines of one table: systems by number of instances."""
    rows = [r for r in run.rows if r.algorithm == algorithm and r.operation == operation]
    systems = [one for one in ORDER if any(row.system == one for row in rows)]
    sizes = sorted({row.n for row in rows})
    if not systems:
        return
    yield from head(plain(algorithm), *(f"n = {n:,}" for n in sizes))
    for system in systems:
        cells = [cell(run.find(algorithm, n, operation, system)) for n in sizes]
        yield f"| {system} | " + " | ".join(cells) + " |"
    yield ""


def growth(run: Run) -> Iterator[str]:
    """Yield how costs grow from one size to the next, ten times as large."""
    yield from head("", "", *(f"{few:,} to {many:,}" for few, many in pairwise(SIZES)))
    for operation in ("pick", "change", "refresh"):
        for algorithm in ALGORITHMS:
            for system in ("rota", "rota selector", *ORIGINALS):
                found = [run.find(algorithm, n, operation, system) for n in SIZES]
                grown = [
                    f"{number(after.ns / before.ns)} {TIMES}"
                    if before and after and before.ns and after.ns
                    else ""
                    for before, after in pairwise(found)
                ]
                if any(grown):
                    what = f"{plain(operation)}, {plain(algorithm)}"
                    yield f"| {what} | {system} | " + " | ".join(grown) + " |"
    yield ""


def quality(run: Run) -> Iterator[str]:
    """Yield the tables of what picks are worth."""
    yield from head(
        *("algorithm", "n", "system", "picks", "furthest from the exact share", "longest run"),
        *("exact in the end", "order"),
    )
    for one in run.schedules:
        yield (
            f"| {plain(one.algorithm)} | {one.n:,} | {one.system} | {one.picks:,} | "
            f"{number(one.deviation)} | {one.run} | {'yes' if one.exact else 'no'} | {one.order} |"
        )
    yield ""
    yield from head(
        *("ring, n", "system", "most keys / mean", "standard deviation / mean"),
        *("keys moved / least possible", "gone astray", "owners"),
    )
    for ring in run.hashes:
        yield (
            f"| {ring.n:,} | {ring.system} | {ring.most:.2f} | {ring.deviation:.3f} | "
            f"{ring.moved:.2f} | {ring.astray:.2%} | {ring.order} |"
        )
    yield ""
    yield from head(
        *("load-aware", "policy", "p50, ms", "p99, ms", "p99.9, ms", "failed calls"),
        *("to who refuses", "to the two slow"),
    )
    for load in run.loads:
        yield (
            f"| {load.system} | {load.policy} | {number(load.p50)} | {number(load.p99)} | "
            f"{number(load.p99_9)} | {load.errors:.2%} | {load.failing:.2%} | {load.slow:.2%} |"
        )
    yield ""


def page(run: Run, template: str) -> str:
    """Return the page: the template with its marks, `{{name}}`, filled."""
    parts: dict[str, Iterator[str]] = {
        "claims": claimed(run),
        "slower": slower(run),
        "machine": (f"- {key}: {value}" for key, value in run.machine.items()),
        "systems": (f"- {key}: {value}" for key, value in run.systems.items()),
        "missing": missing(run),
        "growth": growth(run),
        "quality": quality(run),
        "notes": notes(run),
    }
    for operation in TITLES:
        parts[operation] = tables(run, operation)
    for name, lines in parts.items():
        template = template.replace("{{" + name + "}}", "\n".join(lines).strip())
    return template.strip() + "\n"


def tables(run: Run, operation: str) -> Iterator[str]:
    """Yield the tables of one operation."""
    for algorithm in ALGORITHMS:
        yield from table(run, algorithm, operation)


def missing(run: Run) -> Iterator[str]:
    """Yield who could not take part."""
    for peer, why in run.missing.items():
        yield f"- **The peer in {peer} is missing**: {why}"


def notes(run: Run) -> Iterator[str]:
    """Yield what is to be said of single systems, once each."""
    said: dict[str, list[str]] = {}
    for row in run.rows:
        if row.note and row.note != DISTURBED:
            said.setdefault(f"{row.system}, {plain(row.algorithm)}, n = {row.n:,}: {row.note}", [])
    for note in said:
        yield f"- {note}"


# -- plots --------------------------------------------------------------------------------


def plots(run: Run, folder: Path) -> None:
    """Draw the growth of a pick and of a change, a panel for each algorithm."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    settings = {"svg.fonttype": "none", "svg.hashsalt": "rota", "font.size": 8}
    plt.rcParams.update(settings)
    drawn = {
        "pick": ("rota", "rota C", *ORIGINALS),
        "change": ("rota", "rota selector", *ORIGINALS),
    }
    titles = {
        "pick": "One pick, ns net of the loop",
        "change": "One instance changes, and the next pick, ns",
    }
    for operation, systems in drawn.items():
        figure, panels = plt.subplots(2, 4, figsize=(9.6, 5.0), sharey=True)
        *axes, last = panels.flat
        handles: dict[str, Any] = {}
        for axis, algorithm in zip(axes, ALGORITHMS, strict=True):
            for system in systems:
                rows = [run.find(algorithm, n, operation, system) for n in SIZES]
                points = [(row.n, row.ns) for row in rows if row and row.ns]
                if not points:
                    continue
                (handles[system],) = axis.plot(
                    *zip(*points, strict=True), marker="o", markersize=3, linewidth=1.4,
                    color=COLOURS[system], label=system,
                )  # fmt: skip
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_title(plain(algorithm), fontsize=8, loc="left")
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", linewidth=0.3)
        last.axis("off")
        last.legend(
            handles.values(), handles.keys(), frameon=False, loc="center", title=titles[operation]
        )
        figure.supxlabel("instances", fontsize=8)
        figure.tight_layout()
        figure.savefig(folder / f"benchmarks_{operation}.svg", metadata={"Date": None})
        plt.close(figure)
