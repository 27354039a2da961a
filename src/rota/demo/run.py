"""The demo: rota's three balancers, any others, and two selectors, one after another."""

import json
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rota.demo.registries import FILE, Registry, opened
from rota.demo.report import Outcome, as_json, show
from rota.demo.scenario import play
from rota.demo.selector_report import SelectorOutcome, selectors_as_json, show_selectors
from rota.demo.shares import in_words, judge
from rota.demo.slowdown import play as play_selector
from rota.demo.traffic import AFTER, BEFORE
from rota.loadbalance import (
    InterleavedWeightedRoundRobinBalancer,
    LoadBalancer,
    WeightedRandomBalancer,
    WeightedRoundRobinBalancer,
)
from rota.selector import SelectorBuilder, p2c, wrr

IN_TURN = (WeightedRoundRobinBalancer, InterleavedWeightedRoundRobinBalancer)

BALANCERS, SELECTOR = "balancers", "selector"  # the parts


def run(
    n_requests: int,
    seed: int | None,
    others: Iterable[LoadBalancer],
    *,
    json_only: bool,
    only: str | None = None,
    discovery: str = FILE,
    etcd: list[str] | None = None,
) -> int:
    """Play balancers and selectors, and print what came of each.

    A balancer takes about 4 s for 10,000 requests, the selectors 20 s at the most.

    Parameters
    ----------
    n_requests : int
        For each balancer.
    seed : int or None
        Of rota's balancers.
    others : iterable of LoadBalancer
        Balancers to play besides.
    json_only : bool
        Print one JSON document instead of tables.
    only : "balancers", "selector" or None
        The part to play; None: both.
    discovery : "file" or "etcd"
        Where the servers of the balancers are published and found.
    etcd : list of str, or None
        The endpoints of etcd; None: one is started.

    Returns
    -------
    int
        The exit code: 0, or 1 where a request was lost, a share was out of its bound, or
        `p2c` did not leave a slow server and return in time.
    """
    makers: tuple[Callable[..., LoadBalancer], ...] = (*IN_TURN, WeightedRandomBalancer)
    balancers = [*(make(seed=seed) for make in makers), *others]
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    outcomes: list[Outcome] = []
    selectors: list[SelectorOutcome] = []
    # What a balancer prints is not to get into the JSON.
    with redirect_stdout(sys.stderr), progress:
        if only != SELECTOR:
            with opened(discovery, etcd) as registry:
                outcomes = [
                    _play(balancer, registry, n_requests, progress) for balancer in balancers
                ]
        if only != BALANCERS:
            selectors = [
                _play_selector("p2c", p2c(), progress, is_judged=True),
                _play_selector("wrr", wrr(), progress, is_judged=False),
            ]
    results = as_json(outcomes)
    results["selector"] = selectors_as_json(selectors) if selectors else None
    results["ok"] &= all(outcome.ok for outcome in selectors)
    if json_only:
        print(json.dumps(results, indent=2))
    else:
        if outcomes:
            show(outcomes, Console())
        if selectors:
            show_selectors(selectors, Console())
    return 0 if results["ok"] else 1


def _play(
    balancer: LoadBalancer, registry: Registry, n_requests: int, progress: Progress
) -> Outcome:
    task = progress.add_task(balancer.name, total=n_requests)
    played = play(balancer, registry, n_requests, lambda n: progress.update(task, completed=n))
    progress.stop_task(task)
    in_turn = type(balancer) in IN_TURN
    first_picks = played.tally.first_picks
    return Outcome(
        name=balancer.name,
        n_requests=n_requests,
        tally=played.tally,
        requests_per_second=n_requests / played.seconds,
        shares=[
            *judge(BEFORE, played.before, first_picks[BEFORE], in_turn=in_turn),
            *judge(AFTER, played.after, first_picks[AFTER], in_turn=in_turn),
        ],
        bound=in_words(in_turn=in_turn),
        cost=played.cost,
    )


def _play_selector(
    name: str, builder: SelectorBuilder, progress: Progress, *, is_judged: bool
) -> SelectorOutcome:
    task = progress.add_task(name, total=None)  # it goes by time
    shift = play_selector(builder.build(), lambda n: progress.update(task, completed=n))
    progress.update(task, total=shift.n_requests, completed=shift.n_requests)
    return SelectorOutcome(name, is_judged, shift)
