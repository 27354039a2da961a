"""What came of the selectors, as tables for people and as JSON for programs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from rota.demo.report import mark
from rota.demo.shift import LEAVE_WITHIN, RETURN_WITHIN, WINDOW, Shift
from rota.demo.slowdown import DELAY, N_SERVERS, SLOW_DELAY

SLOWED = (
    f"{N_SERVERS} servers that take {DELAY * 1e3:.0f} ms; share: of the one that takes "
    f"{SLOW_DELAY * 1e3:.0f} ms while it is slow"
)
LIMITS = (
    f"leave: its share below a quarter of an equal one, within {LEAVE_WITHIN:g} s; "
    f"return: half of one, within {RETURN_WITHIN:g} s"
)


@dataclass(frozen=True, slots=True)
class SelectorOutcome:
    """What came of one selector.

    Parameters
    ----------
    name : str
        Of its builder.
    is_judged : bool
        Whether it should leave a slow server; who takes turns only must not lose requests.
    shift : Shift
    """

    name: str
    is_judged: bool
    shift: Shift

    @property
    def ok(self) -> bool:
        """Whether it did what it should."""
        return self.shift.ok if self.is_judged else self.shift.lost == 0


def selectors_as_json(outcomes: list[SelectorOutcome]) -> dict[str, Any]:
    """Return the results as `json.dumps` takes them; all times are seconds."""
    return {
        "servers": N_SERVERS,
        "delay": DELAY,
        "slow_delay": SLOW_DELAY,
        "window": WINDOW,
        "leave_within": LEAVE_WITHIN,
        "return_within": RETURN_WITHIN,
        "selectors": [
            {
                "name": outcome.name,
                "judged": outcome.is_judged,
                "requests": outcome.shift.n_requests,
                "lost": outcome.shift.lost,
                "phases": [
                    {
                        "phase": phase.name,
                        "requests": phase.n_requests,
                        "share": phase.share,
                        "p50": phase.p50,
                        "p99": phase.p99,
                    }
                    for phase in outcome.shift.phases
                ],
                "last_share": outcome.shift.last_share,
                "seconds_to_leave": outcome.shift.left,
                "seconds_to_return": outcome.shift.returned,
                "ok": outcome.ok,
            }
            for outcome in outcomes
        ],
        "ok": all(outcome.ok for outcome in outcomes),
    }


def show_selectors(outcomes: list[SelectorOutcome], console: Console) -> None:
    """Print a table of phases, and one of what each selector did about the slow server."""
    console.print(_phases(outcomes), "")
    console.print(_summary(outcomes), "")
    console.print(
        "Traffic left the slow server in time and returned to it, and every request was answered."
        if all(outcome.ok for outcome in outcomes)
        else "A request was lost, or traffic did not leave the slow server or return in time."
    )


def _phases(outcomes: list[SelectorOutcome]) -> Table:
    table = Table(title="one server slow for a time", caption=SLOWED, box=box.SIMPLE_HEAD)
    table.add_column("selector", no_wrap=True)
    table.add_column("phase", no_wrap=True)
    for header in ("requests", "share", "p50", "p99"):
        table.add_column(header, justify="right", no_wrap=True)
    for outcome in outcomes:
        for phase in outcome.shift.phases:
            table.add_row(
                outcome.name,
                phase.name,
                f"{phase.n_requests:,}",
                f"{phase.share:.2%}",
                f"{phase.p50 * 1e3:.1f} ms",
                f"{phase.p99 * 1e3:.1f} ms",
            )
        table.add_section()
    return table


def _summary(outcomes: list[SelectorOutcome]) -> Table:
    table = Table(title="all selectors", caption=LIMITS, box=box.SIMPLE_HEAD)
    table.add_column("")
    for outcome in outcomes:
        table.add_column(outcome.name, justify="right")
    rows: tuple[tuple[str, Callable[[SelectorOutcome], str]], ...] = (
        ("seconds to leave", lambda o: _seconds(o.shift.left)),
        (
            "seconds to return",
            lambda o: "-" if o.shift.left is None else _seconds(o.shift.returned),
        ),
        ("share, last second", lambda o: f"{o.shift.last_share:.2%}"),
        ("requests", lambda o: f"{o.shift.n_requests:,}"),
        ("lost", lambda o: f"{o.shift.lost:,}"),
        ("ok", lambda o: mark(o.ok) if o.is_judged else f"{mark(o.ok)} (lost alone)"),
    )
    for header, cell in rows:
        table.add_row(header, *map(cell, outcomes))
    return table


def _seconds(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.2f}"
