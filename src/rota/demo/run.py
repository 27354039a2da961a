"""The demo: rota's three balancers, and any others, one after another."""

import json
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rota.demo.report import Outcome, as_json, show
from rota.demo.scenario import play
from rota.demo.shares import in_words, judge
from rota.demo.traffic import AFTER, BEFORE
from rota.loadbalance import (
    InterleavedWeightedRoundRobinBalancer,
    LoadBalancer,
    WeightedRandomBalancer,
    WeightedRoundRobinBalancer,
)

IN_TURN = (WeightedRoundRobinBalancer, InterleavedWeightedRoundRobinBalancer)


def run(
    n_requests: int, seed: int | None, others: Iterable[LoadBalancer], *, json_only: bool
) -> int:
    """Play every balancer and print what came of it; about 4 s each for 10,000 requests.

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

    Returns
    -------
    int
        The exit code: 0, or 1 where a request was lost or a share was out of its bound.
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
    # What a balancer prints is not to get into the JSON.
    with redirect_stdout(sys.stderr), progress:
        outcomes = [_play(balancer, n_requests, progress) for balancer in balancers]
    results = as_json(outcomes)
    if json_only:
        print(json.dumps(results, indent=2))
    else:
        show(outcomes, Console())
    return 0 if results["ok"] else 1


def _play(balancer: LoadBalancer, n_requests: int, progress: Progress) -> Outcome:
    task = progress.add_task(balancer.name, total=n_requests)
    played = play(balancer, n_requests, lambda n: progress.update(task, completed=n))
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
