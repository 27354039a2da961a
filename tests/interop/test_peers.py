"""Kitex' and Kratos' own pickers, asked through the benchmark's peer, beside rota's."""

import importlib
from pathlib import Path

import numpy as np
import pytest

import rota
from tests.servers import program, unavailable

ROOT = Path(__file__).parent.parent.parent
WEIGHTS = {"small": [5, 1, 1], "alike": [3, 3, 3], "many": [1 + 7 * i % 23 for i in range(40)]}


@pytest.fixture(scope="module")
def bench(only_once):
    """Imports a module of bench/, which is no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield importlib.import_module


@pytest.fixture(scope="module")
def originals(bench):
    """The peer in Go: a real process around the published modules."""
    program("go", "golang-go")
    build = bench("bench.peers.build")
    build.BUILT.mkdir(exist_ok=True)
    try:
        command = build.go_peer()
    except build.UnavailableError as error:
        unavailable(str(error))
    with bench("bench.peers.processes").Peer(command) as peer:
        yield peer


def asked(originals, system, algorithm, weights, count, keys=()):
    """Return the first picks of a fresh picker."""
    made = {"system": system, "algorithm": algorithm, "weights": weights, "keys": list(keys)}
    assert originals.ask("make", **made) == {}
    return originals.ask("picks", count=count)["picks"]


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_smooth_weighted_round_robin_is_kratos(originals, weights):
    count = 2 * sum(weights)
    picks = rota.WeightedRoundRobin(range(len(weights)), weights, start=0).pick_many(count)
    assert asked(originals, "kratos", "weighted_round_robin", weights, count) == picks


@pytest.mark.parametrize("algorithm", ["weighted_round_robin", "interleaved_weighted_round_robin"])
def test_round_robins_are_kitexs(bench, originals, algorithm):
    """Which begins at a random instance of the list."""
    weights = WEIGHTS["many"]
    picks = asked(originals, "kitex", algorithm, weights, sum(weights))
    order = bench("bench.peers.quality").order_of(algorithm, weights, np.array(picks))
    assert order.startswith("rota's"), order


@pytest.mark.parametrize("system", ["kitex", "kitex alias"])
def test_weighted_random_draws_from_the_same_distribution(originals, system):
    """Chi square with 39 degrees of freedom is above 90 once in 10**5 runs."""
    weights, count = WEIGHTS["many"], 50_000
    picks = asked(originals, system, "weighted_random", weights, count)
    for had in (
        np.bincount(picks, minlength=40),
        np.bincount(rota.WeightedRandom(range(40), weights).pick_many(count), minlength=40),
    ):
        wanted = np.array(weights) * count / sum(weights)
        assert ((had - wanted) ** 2 / wanted).sum() < 90


def test_a_change_of_kitexs_ring_may_move_every_key(originals):
    """It hashes addresses padded to the longest: the 11th is longer than the ten before.

    rota's moves what it must.
    """
    keys = [f"user:{k}" for k in range(2_000)]
    asked(originals, "kitex", "consistent_hash", [1] * 10, 1, keys)
    moved = originals.ask("moved")
    theirs = np.mean(np.array(moved["before"]) != np.array(moved["added"]))
    ring = rota.ConsistentHash([f"10.0.0.{i}:8888" for i in range(10)])
    before = [ring.pick(key) for key in keys]
    ring.add("10.0.0.10:8888")
    ours = np.mean([old != ring.pick(key) for old, key in zip(before, keys, strict=True)])
    assert ours < 0.2 < 0.5 < theirs


def test_p2c_of_kratos_plays_the_same_day(bench, originals):
    """On a fake clock, in its own code: requests take as long as the work in them says."""
    simulation = bench("bench.simulation")
    scenario = simulation.Scenario([simulation.Backend(slots=1)] * 3, 500)
    requests = simulation.drawn(scenario, 7)
    made = {"system": "kratos", "algorithm": "p2c", "weights": [10] * 3, "keys": []}
    originals.ask("make", **made)
    said = originals.ask(
        "simulate", backends=[{"mean": 0.01, "slots": 1, "failing": 0.0}] * 3,
        gaps=requests.gap, work=requests.work, luck=requests.luck, refusal=simulation.REFUSAL,
    )  # fmt: skip

    class Recorded:
        """Picks as was picked there."""

        def __init__(self) -> None:
            self.picks = iter(said["chosen"])

        def pick_index(self) -> int:
            return next(self.picks)

    outcome = simulation.run(scenario, lambda cluster, seed: Recorded(), 7)
    assert len(set(said["chosen"])) == 3
    assert said["latency"] == pytest.approx(outcome.latency.tolist())
    assert not any(said["failed"])
