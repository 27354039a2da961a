"""rota beside the originals, in one run. Run by ci/bench --peers.

usage: python -m bench.peers [--quick] [--algorithms A ...] [--json FILE] [--page]

With --page docs/benchmarks.md, its plots and docs/benchmarks.json, which has every figure of
them, are written anew from this run alone; with --from FILE from a run that was written before.
"""

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from bench.peers import build, measure, quality
from bench.peers.processes import ROOT, Peer, processor
from bench.peers.report import Run, page, plots, tables
from bench.ratios import machine

TEMPLATE = Path(__file__).with_name("page.md")


def described(commands: dict[str, list[str]]) -> dict[str, str]:
    """Return the versions that the peers say they are made of."""
    found: dict[str, str] = {}
    for command in commands.values():
        with Peer(command) as peer:
            said = peer.ask("describe")
        for system, version in said["systems"].items():
            found[system] = f"{version}, on {said['runtime']}"
    return found


def taken(arguments: argparse.Namespace) -> Run:
    """Ask all peers, and return what was found."""
    on = machine()  # with the load before we add to it
    on["date"] = date.today().isoformat()
    on["kernel"] = f"{platform.system()} {platform.release()}"
    pinned = processor()
    on["pinned to"] = "nothing: not possible here" if pinned is None else f"processor {pinned}"
    commands, missing = build.built()
    for peer, why in missing.items():
        print(f"the peer in {peer} is missing: {why}", file=sys.stderr)
    print("what the picks are worth", file=sys.stderr, flush=True)
    schedules = list(quality.schedules(commands))
    hashes, loads = list(quality.hashes(commands)), list(quality.loads(commands))
    sizes = measure.SIZES[:3] if arguments.quick else measure.SIZES
    rows = []
    for row in measure.measured(commands, arguments.algorithms, sizes):
        rows.append(row)
        said = row.note
        if row.ns is not None:
            said = f"{row.ns:,.1f} ns {row.note}"
        elif row.bytes is not None:
            said = f"{row.bytes:,} bytes"
        print(
            f"{row.algorithm}, n = {row.n:,}, {row.operation}, {row.system}: {said}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    return Run(on, described(commands), missing, rows, schedules, hashes, loads)


def rounded(value: Any) -> Any:
    """Return what JSON is made of, with four digits of each number that is not whole."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, (list, tuple)) else value


def written(run: Run) -> str:
    """Return a run as JSON, a row a line."""
    parts = []
    for key, value in asdict(run).items():
        if isinstance(value, list):
            lines = ",\n".join(json.dumps(rounded(one)) for one in value)
            parts.append(f'"{key}": [\n{lines}\n]')
        else:
            parts.append(f'"{key}": {json.dumps(value)}')
    return "{" + ",\n".join(parts) + "}\n"


def read(file: Path) -> Run:
    """Return a run that was written."""
    found: dict[str, Any] = json.loads(file.read_text())
    for name, kind in (
        ("rows", measure.Row),
        ("schedules", quality.Schedule),
        ("hashes", quality.Hash),
        ("loads", quality.Load),
    ):
        found[name] = [kind(**one) for one in found[name]]
    return Run(**found)


def main() -> None:
    """Measure, print the tables, write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="n up to 1,000")
    parser.add_argument(
        "--algorithms", nargs="+", choices=measure.ALGORITHMS, default=measure.ALGORITHMS
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--from", type=Path, metavar="FILE", dest="file", help="ask nobody")
    parser.add_argument("--page", action="store_true", help="write docs/benchmarks.md and plots")
    arguments = parser.parse_args()
    began = time.perf_counter()
    run = read(arguments.file) if arguments.file else taken(arguments)
    if not arguments.file:
        run.machine["took"] = f"{(time.perf_counter() - began) / 60:.0f} minutes"
        run.machine["load after"] = f"{os.getloadavg()[0]:.1f}"
    if arguments.json:
        arguments.json.write_text(written(run))
    for operation in (*measure.OPERATIONS, "memory"):
        print(f"\n{operation}\n")
        print("\n".join(tables(run, operation)))
    if arguments.page:
        docs = ROOT / "docs"
        (docs / "benchmarks.json").write_text(written(run))
        run = read(docs / "benchmarks.json")  # so that the page is what anybody can make of it
        (docs / "benchmarks.md").write_text(page(run, TEMPLATE.read_text()))
        plots(run, docs / "img")


if __name__ == "__main__":
    main()
