"""What came of the balancers, as tables for people and as JSON for programs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from rota.demo.measure import Cost
from rota.demo.shares import Share
from rota.demo.traffic import AFTER, BEFORE, Tally
from rota.kernels import IMPLEMENTATION

SPEEDUP = f"speed-up: of a pick ({IMPLEMENTATION}) over the same picker in plain Python"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one balancer.

    Parameters
    ----------
    name : str
        The balancer's.
    n_requests : int
    tally : Tally
    requests_per_second : float
    shares : list of Share
        Of the phases in which nothing changes.
    bound : str
        What the shares' bounds are, in words.
    cost : Cost
    """

    name: str
    n_requests: int
    tally: Tally
    requests_per_second: float
    shares: list[Share]
    bound: str
    cost: Cost

    @property
    def ok(self) -> bool:
        """Whether no request was lost and every share is within its bound."""
        return self.tally.lost == 0 and all(share.ok for share in self.shares)


def as_json(outcomes: list[Outcome]) -> dict[str, Any]:
    """Return the results as `json.dumps` takes them."""
    return {
        "implementation": IMPLEMENTATION,
        "balancers": [
            {
                "name": outcome.name,
                "requests": outcome.n_requests,
                "lost": outcome.tally.lost,
                "retried": outcome.tally.retried,
                "shares": [
                    {
                        "phase": share.phase,
                        "server": share.server,
                        "weight": share.weight,
                        "expected": share.expected,
                        "observed": share.observed,
                        "bound": share.bound,
                        "ok": share.ok,
                    }
                    for share in outcome.shares
                ],
                "ns_per_pick": outcome.cost.ns_per_pick,
                "picks_per_second": 1e9 / outcome.cost.ns_per_pick,
                "speedup": outcome.cost.speedup,
                "requests_per_second": outcome.requests_per_second,
                "ok": outcome.ok,
            }
            for outcome in outcomes
        ],
        "ok": all(outcome.ok for outcome in outcomes),
    }


def show(outcomes: list[Outcome], console: Console) -> None:
    """Print a table of shares for each balancer, and one of all balancers."""
    for outcome in outcomes:
        console.print(_shares(outcome), "")
    console.print(_summary(outcomes), "")
    ok = all(outcome.ok for outcome in outcomes)
    console.print(
        "Every request was answered, and every server got its share."
        if ok
        else "A request was lost, or a server did not get its share."
    )


def _shares(outcome: Outcome) -> Table:
    table = Table(title=outcome.name, caption=f"bound: {outcome.bound}", box=box.SIMPLE_HEAD)
    table.add_column("phase", no_wrap=True)
    table.add_column("server", no_wrap=True)
    for header in ("weight", "expected", "observed", "bound"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("ok", no_wrap=True)
    before = {share.server: share.weight for share in outcome.shares if share.phase == BEFORE}
    after = {share.server for share in outcome.shares if share.phase == AFTER and share.weight}
    last_phase = BEFORE
    for share in outcome.shares:
        if share.phase != last_phase:
            table.add_section()
            last_phase = share.phase
        weight = str(share.weight)
        if share.phase == BEFORE and share.server not in after:
            weight = f"killed: {weight}"
        elif share.phase == AFTER and share.server not in before:
            weight = f"new: {weight}"
        elif share.phase == AFTER and share.weight != before[share.server]:
            weight = f"was {before[share.server]}: {weight}"
        table.add_row(
            share.phase,
            share.server,
            weight,
            f"{share.expected:.2%}",
            f"{share.observed:.2%}",
            f"{share.bound:.2%}",
            mark(share.ok),
        )
    return table


def _summary(outcomes: list[Outcome]) -> Table:
    table = Table(title="all balancers", caption=SPEEDUP, box=box.SIMPLE_HEAD)
    table.add_column("")
    for outcome in outcomes:
        table.add_column(outcome.name.replace("_", " "), justify="right")
    rows: tuple[tuple[str, Callable[[Outcome], str]], ...] = (
        ("requests", lambda o: f"{o.n_requests:,}"),
        ("lost", lambda o: f"{o.tally.lost:,}"),
        ("retried", lambda o: f"{o.tally.retried:,}"),
        ("requests/s", lambda o: f"{o.requests_per_second:,.0f}"),
        ("picks/s", lambda o: f"{1e9 / o.cost.ns_per_pick:,.0f}"),
        ("ns per pick", lambda o: f"{o.cost.ns_per_pick:,.1f}"),
        ("speed-up", lambda o: "-" if o.cost.speedup is None else f"{o.cost.speedup:.1f}x"),
        ("ok", lambda o: mark(o.ok)),
    )
    for header, cell in rows:
        table.add_row(header, *map(cell, outcomes))
    return table


def mark(ok: bool) -> str:
    """Return a yes or no for a table."""
    return "[green]yes[/]" if ok else "[bold red]NO[/]"
