"""The benchmark beside the originals: its peer in Python, what it makes of answers, its page."""

import importlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rota

ROOT = Path(__file__).parent.parent
WEIGHTS = [5, 1, 1, 3]
KEYS = [f"user:{k}" for k in range(50)]


@pytest.fixture(scope="module")
def bench():
    """Imports a module of bench/, which is no part of the package."""
    sys.path.insert(0, str(ROOT))
    yield importlib.import_module
    sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def modules(bench, tmp_path_factory):
    """The paths of from_c.pyx and floor.pyx, compiled."""
    build, folder = bench("bench.peers.build"), tmp_path_factory.mktemp("modules")
    compiled = bench("bench.extension").compiled
    return [str(compiled(source, folder)) for source in (build.FROM_C, build.FLOOR)]


@pytest.fixture(scope="module")
def peer(modules):
    """Asks the peer in Python: a real process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.peers.python_peer", *modules],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    def ask(line=None, **request):
        process.stdin.write((json.dumps(request) if line is None else line) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield ask
    process.stdin.close()
    assert process.wait(60) == 0
    process.stdout.close()


pytestmark = pytest.mark.skipif(
    rota.IMPLEMENTATION != "compiled", reason="the benchmark is of the compiled pickers"
)


def make(peer, system, algorithm):
    keys = KEYS if algorithm == "consistent_hash" else []
    weights = [1] * 4 if algorithm in ("random", "round_robin", "consistent_hash") else WEIGHTS
    return peer(do="make", system=system, algorithm=algorithm, weights=weights, keys=keys)


def test_every_system_does_what_it_is_asked_for(bench, peer):
    measure = bench("bench.peers.measure")
    timed = dict.fromkeys(measure.OPERATIONS, 0)
    for algorithm, systems in measure.SYSTEMS["python"].items():
        for system in systems:
            if system == "roundrobin":
                continue  # not among what tests install
            assert make(peer, system, algorithm) == {}, (system, algorithm)
            for operation in measure.OPERATIONS:
                count = 2_000 if operation == "batch" else 3
                answer = peer(do="time", operation=operation, count=count)
                if "error" in answer:
                    assert answer["error"] == f"NotThereError: {system} has no {operation}"
                    continue
                assert answer["ns"] > 0, (system, algorithm, operation)
                assert answer["empty_ns"] >= 0
                timed[operation] += 1
            if system != "empty method":
                picks = peer(do="picks", count=100)["picks"]
                assert len(picks) == 100
                assert set(picks) <= set(range(4))
            assert "bytes" in peer(do="memory")
    assert all(timed.values()), timed


@pytest.mark.parametrize("system", ["rota", "rota C", "rota batch", "rota fill", "rota reference"])
def test_picks_are_the_pickers_own(peer, system):
    for algorithm, name, options in (
        ("round_robin", "RoundRobin", {"start": 0}),
        ("weighted_round_robin", "WeightedRoundRobin", {"start": 0}),
        ("interleaved_weighted_round_robin", "InterleavedWeightedRoundRobin", {"start": 0}),
        ("weighted_random", "WeightedRandom", {"seed": 42}),
    ):
        assert make(peer, system, algorithm) == {}
        weights = [1] * 4 if algorithm == "round_robin" else WEIGHTS
        picker = getattr(rota.reference, name)(range(4), weights, **options)
        wanted = [picker.pick() for _ in range(40)]
        assert peer(do="picks", count=40)["picks"] == wanted, algorithm


def test_the_selector_picks_as_kratos_does(peer):
    make(peer, "rota selector", "weighted_round_robin")
    wanted = rota.WeightedRoundRobin(range(4), WEIGHTS, start=0).pick_many(40)
    assert peer(do="picks", count=40)["picks"] == wanted


def test_a_newcomer_takes_keys_and_nobody_else_does(peer):
    for system in ("rota", "rota reference", "uhashring", "pymemcache"):
        make(peer, system, "consistent_hash")
        moved = peer(do="moved")
        assert set(moved["before"]) == set(range(4)), system
        changed = [
            after
            for before, after in zip(moved["before"], moved["added"], strict=True)
            if before != after
        ]
        assert changed, system
        assert set(changed) == {4}, system


def test_what_goes_wrong_is_answered(peer):
    assert make(peer, "rota", "weighted_round_robin") == {}
    assert "JSONDecodeError" in peer("no json")["error"]
    assert peer(do="dance")["error"] == "NotThereError: there is no dance"
    assert "there is no nginx" in make(peer, "nginx", "random")["error"]
    assert "nothing has been made" in peer(do="picks", count=1)["error"]
    assert "has no random" in make(peer, "uhashring", "random")["error"]
    assert peer(do="describe")["systems"]["rota"] == f"{rota.__version__} (compiled)"


def test_loops_in_c_pick(bench, modules):
    """They return the sum of what belongs to the picked: of the index here, so it can be told."""
    from_c = bench("bench.extension").loaded(Path(modules[0]))
    port = np.arange(4, dtype=np.int64)
    for loop in (from_c.picks, from_c.fills):
        picker = rota.WeightedRoundRobin(list("abcd"), WEIGHTS, start=0)
        twin = rota.WeightedRoundRobin(list("abcd"), WEIGHTS, start=0)
        assert loop(picker, port, 2_500) == sum(twin.pick_index() for _ in range(2_500))
        assert picker.pick() == twin.pick()
    ring = rota.ConsistentHash(list("abcd"))
    keys = list(itertools.islice(itertools.cycle(KEYS), 120))
    owners = from_c.owners(ring, from_c.Keys(KEYS), port, 120)
    assert owners == sum(ring.pick_index(key) for key in keys)
    assert from_c.empty_picks(port, 6) == 0 + 1 + 2 + 3 + 0 + 1


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.lists(st.integers(1, 9), min_size=5, max_size=5),
)
def test_deviation_and_runs(picks, weights):
    sys.path.insert(0, str(ROOT))
    try:
        quality = importlib.import_module("bench.peers.quality")
    finally:
        sys.path.remove(str(ROOT))
    total, had, worst = sum(weights), [0] * 5, 0.0
    for t, i in enumerate(picks, 1):
        had[i] += 1
        worst = max(worst, *(abs(h - t * w / total) for h, w in zip(had, weights, strict=True)))
    found = np.array(picks, np.int64)
    assert quality.deviation(found, weights) == pytest.approx(worst)
    longest = max(len(list(same)) for _, same in itertools.groupby(picks))
    assert quality.longest_run(found) == longest


def test_orders_are_recognised_from_wherever_they_begin(bench):
    order_of = bench("bench.peers.quality").order_of
    for start, shift, said in (
        (0, 0, "rota's"),
        (2, 0, "rota's, list turned by 2"),
        (3, 1, "rota's, list turned by 3, cycle by 1"),
    ):
        period = rota.WeightedRoundRobin(range(4), WEIGHTS, start=start).pick_many(10)
        picks = np.roll(np.array(period), -shift)
        assert order_of("weighted_round_robin", WEIGHTS, picks) == said
    assert (
        order_of("weighted_round_robin", WEIGHTS, np.array([0] * 5 + [1, 2, 3, 3, 3])) == "its own"
    )


def test_rings_are_recognised(bench):
    quality, keys = bench("bench.peers.quality"), bench("bench.cases").keys
    names = [f"10.0.0.{i}:8888" for i in range(4)]
    for points in quality.POINTS:
        ring = rota.ConsistentHash(names, points=points)
        owners = np.array([ring.pick_index(key) for key in keys(quality.KEYS)])
        assert quality.owners_of(names, owners) == f"rota's, points = {points}"
    owners[0] = (owners[0] + 1) % 4
    assert quality.owners_of(names, owners) == "its own"


# -- the page -----------------------------------------------------------------------------


def made_up(bench, kitex=20.0, missing=None):
    """Return a run of two systems."""
    measure, quality = bench("bench.peers.measure"), bench("bench.peers.quality")
    report = bench("bench.peers.report")
    rows = []
    for n in (10, 100):
        for system, ns in (("rota", 7.0), ("rota C", 1.0), ("kitex", kitex)):
            row = measure.Row("random", n, "pick", system, ns, (ns, ns), rounds=9)
            rows.append(measure.against(row, [(ns, 7.0), (ns, 7.0)]))
    rows.append(measure.Row("random", 10, "memory", "rota", bytes=640))
    rows.append(measure.Row("random", 10, "pick", "pingora", note="it refuses"))
    schedule = quality.Schedule("random", 10, "rota", 100, 4.25, 3, False, "random")
    ring = quality.Hash(10, "rota", 1.1, 0.07, 1.04, 0.0, "rota's, points = murmur3")
    load = quality.Load("kratos", "p2c", 8.0, 287.0, 638.0, 0.01, 0.02, 0.03)
    machine, systems = {"cpu": "a processor"}, {"rota": "1.0, on CPython"}
    return report.Run(machine, systems, missing or {}, rows, [schedule], [ring], [load])


def test_the_page_says_what_the_run_found(bench):
    report = bench("bench.peers.report")
    template = (ROOT / "bench" / "peers" / "page.md").read_text()
    page = report.page(made_up(bench), template)
    assert "{{" not in page
    assert "| kitex | 20.0 ns (2.86 \N{MULTIPLICATION SIGN}; 2.86-2.86)" in page
    assert "| rota | 7.00 ns | 7.00 ns |" in page
    assert "| rota | 64.0 |" in page  # bytes an instance
    assert "pingora, random, n = 10: it refuses" in page
    assert "| 2 of 2 |  |" in page  # the claims hold
    assert "not measured: somebody is missing" in page
    assert "287" in page
    assert "4.25" in page


def test_a_claim_that_does_not_hold_is_said_with_its_reason(bench):
    report = bench("bench.peers.report")
    lines = list(report.claimed(made_up(bench, kitex=4.0)))
    line = next(line for line in lines if "From Python" in line)
    assert "0 of 2" in line
    assert "random, n = 100" in line
    assert "rota 7.00 ns, kitex 4.00 ns" in line
    assert "empty compiled method" in line


def test_who_is_missing_is_named(bench, monkeypatch, tmp_path):
    report, build = bench("bench.peers.report"), bench("bench.peers.build")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build, "USUAL", ())
    for name in ("go", "rust"):
        with pytest.raises(build.UnavailableError, match=r"here: install"):
            build.PEERS[name]()
    page = list(report.missing(made_up(bench, missing={"go": "no go on the PATH"})))
    assert page == ["- **The peer in go is missing**: no go on the PATH"]


def test_runs_are_read_as_they_were_written(bench, tmp_path):
    main, run = bench("bench.peers.__main__"), made_up(bench)
    file = tmp_path / "run.json"
    file.write_text(main.written(run))
    assert main.written(main.read(file)) == file.read_text()
    assert len(main.read(file).rows) == len(run.rows)


def test_the_published_page_is_its_run(bench):
    """No figure on it is typed by hand."""
    docs = ROOT / "docs"
    run = bench("bench.peers.__main__").read(docs / "benchmarks.json")
    template = (ROOT / "bench" / "peers" / "page.md").read_text()
    assert bench("bench.peers.report").page(run, template) == (docs / "benchmarks.md").read_text()
