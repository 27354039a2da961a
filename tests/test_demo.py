"""The demo, end to end: real server processes, real requests, few of them."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

import rota
from rota.demo import slowdown
from rota.demo.selector_report import SelectorOutcome, selectors_as_json, show_selectors
from rota.demo.shares import judge
from rota.demo.shift import (
    LEAVE_WITHIN,
    RETURN_WITHIN,
    Call,
    Times,
    seconds_to_leave,
    seconds_to_return,
    shift_of,
)
from rota.selector import NoAvailableInstance, wrr
from tests.etcd_server import etcd
from tests.servers import program

N_REQUESTS = 600
BALANCERS = """
import random


class Picker:
    def __init__(self, instances):
        self.instances = instances

    def next(self, ctx=None, request=None):
        if not self.instances:
            return None
        weights = [instance.weight for instance in self.instances]
        return random.choices(self.instances, weights)[0]


class Mine:
    name = "mine"

    def get_picker(self, result):
        print("not JSON")
        return Picker(result.instances)


class Stuck(Mine):
    name = "stuck"

    def get_picker(self, result):
        return Picker(result.instances[:1])


class Dead(Mine):
    name = "dead"

    def get_picker(self, result):
        return Picker(())


class Useless:
    name = "useless"
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Run the command line with the balancers above at hand."""
    folder = tmp_path_factory.mktemp("balancers")
    (folder / "my_balancers.py").write_text(BALANCERS)
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(filter(None, paths))

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "rota", "demo", *arguments],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture(scope="module")
def results(demo):
    """Of rota's balancers and one that is not rota's."""
    arguments = ("--only", "balancers", "--requests", str(N_REQUESTS))
    done = demo("--json", *arguments, "--balancer", "my_balancers:Mine")
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)  # and nothing but JSON


@pytest.fixture(scope="module")
def whole_results(demo):
    """Of both parts, as they are without options.

    Whether traffic moved in time is not asserted of a live run: it goes by latencies, and on
    a loaded machine all servers are slow. The judges have tests of their own, on records.
    """
    done = demo("--json", "--requests", "100")
    results = json.loads(done.stdout)
    assert done.returncode == (0 if results["ok"] else 1), done.stderr
    return results


def shares_of(balancer, phase):
    return {share["server"]: share for share in balancer["shares"] if share["phase"] == phase}


def test_no_request_is_lost_and_all_is_well(results):
    assert results["ok"]
    assert results["implementation"] == rota.IMPLEMENTATION
    names = [balancer["name"] for balancer in results["balancers"]]
    assert names == [
        rota.WeightedRoundRobinBalancer.name,
        rota.InterleavedWeightedRoundRobinBalancer.name,
        rota.WeightedRandomBalancer.name,
        "mine",
    ]
    for balancer in results["balancers"]:
        assert balancer["ok"]
        assert balancer["requests"] == N_REQUESTS
        assert balancer["lost"] == 0


def test_clients_met_the_killed_server_and_went_on_to_another(results):
    for balancer in results["balancers"]:
        assert 0 < balancer["retried"] < N_REQUESTS


def test_shares_of_both_phases_are_whole(results):
    for balancer in results["balancers"]:
        for phase in ("before", "after"):
            shares = shares_of(balancer, phase).values()
            assert len(shares) == 5
            assert all(share["ok"] for share in shares)
            assert sum(share["expected"] for share in shares) == pytest.approx(1)
            assert sum(share["observed"] for share in shares) == pytest.approx(1)


def test_one_server_goes_one_comes_and_one_has_another_weight(results):
    for balancer in results["balancers"]:
        before, after = shares_of(balancer, "before"), shares_of(balancer, "after")
        assert len(before.keys() - after.keys()) == 1
        (new,) = after.keys() - before.keys()
        assert after[new]["observed"] > 0
        changed = [s for s in before.keys() & after.keys() if before[s] != after[s]]
        assert len([s for s in changed if before[s]["weight"] != after[s]["weight"]]) == 1


def test_costs_are_measured_and_the_speedup_where_there_is_a_twin(results):
    for balancer in results["balancers"]:
        assert balancer["ns_per_pick"] > 0
        assert balancer["picks_per_second"] == pytest.approx(1e9 / balancer["ns_per_pick"])
        assert balancer["requests_per_second"] > 0
    *own, mine = results["balancers"]
    assert all(balancer["speedup"] > 0 for balancer in own)
    assert mine["speedup"] is None


def test_wrong_shares_and_lost_requests_give_exit_code_1(demo):
    broken = ("my_balancers:Stuck", "my_balancers:Dead")
    done = demo("--json", "--only", "balancers", "--requests", "100", "--balancer", *broken)
    assert done.returncode == 1, done.stderr
    results = json.loads(done.stdout)
    assert not results["ok"]
    *own, stuck, dead = results["balancers"]
    assert all(balancer["ok"] for balancer in own)
    assert not stuck["ok"]
    assert not all(share["ok"] for share in stuck["shares"])
    assert not dead["ok"]
    assert dead["lost"] == dead["requests"] == 100


ETCD = ("--only", "balancers", "--requests", "200", "--discovery", "etcd")


def is_well(done):
    assert done.returncode == 0, done.stderr + done.stdout
    results = json.loads(done.stdout)
    assert [balancer["lost"] for balancer in results["balancers"]] == [0, 0, 0]
    return results["ok"]


def test_by_an_etcd_that_runs(demo, tmp_path):
    with etcd(tmp_path / "etcd") as member:
        assert is_well(demo("--json", *ETCD, "--etcd", member.url))
        assert member.entries("kitex/") == {}  # what it registered is gone


def test_by_an_etcd_of_its_own(demo):
    program("etcd", "etcd-server")
    assert is_well(demo("--json", *ETCD))


def test_without_an_etcd_it_says_what_to_do(demo, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    done = demo(*ETCD)
    assert (done.returncode, done.stdout) == (2, "")
    assert "The demo cannot run: there is no etcd to start; on Debian or Ubuntu: " in done.stderr
    assert "Traceback" not in done.stderr


def test_both_parts_are_played(whole_results):
    assert len(whole_results["balancers"]) == 3
    assert all(balancer["ok"] for balancer in whole_results["balancers"])
    assert whole_results["ok"] == whole_results["selector"]["ok"]


def test_one_part_alone(results):
    assert results["selector"] is None


def test_selectors_lose_nothing_while_a_server_is_slow(whole_results):
    part = whole_results["selector"]
    assert part["servers"] == 5
    assert part["slow_delay"] == pytest.approx(10 * part["delay"])
    assert part["leave_within"] == LEAVE_WITHIN
    assert part["return_within"] == RETURN_WITHIN
    assert part["window"] > 0
    assert [(s["name"], s["judged"]) for s in part["selectors"]] == [("p2c", True), ("wrr", False)]
    for selector in part["selectors"]:
        assert selector["lost"] == 0
        assert [phase["phase"] for phase in selector["phases"]] == ["before", "slow", "after"]
        assert sum(phase["requests"] for phase in selector["phases"]) == selector["requests"]
        for phase in selector["phases"]:
            assert phase["requests"] > 0
            assert 0 <= phase["share"] <= 1
            assert part["delay"] <= phase["p50"] <= phase["p99"]
        assert 0 <= selector["last_share"] <= 1
        for key in ("seconds_to_leave", "seconds_to_return"):
            assert selector[key] is None or selector[key] >= 0
    assert part["ok"] == all(selector["ok"] for selector in part["selectors"])


def test_turns_do_not_leave_a_slow_server(whole_results):
    """However loaded the machine: turns go by nothing but what they are."""
    *_, wrr = whole_results["selector"]["selectors"]
    assert wrr["ok"]
    assert wrr["seconds_to_leave"] is None
    assert wrr["seconds_to_return"] is None
    for phase in wrr["phases"]:
        # Off, at each end of the phase, by a cut cycle and by what 8 clients have under way.
        assert abs(phase["share"] - 1 / 5) <= 2 * (1 + 8) / phase["requests"]
        assert phase["p99"] >= (0.05 if phase["phase"] == "slow" else 0.005)


def test_tables_show_every_balancer(demo):
    done = demo("--only", "balancers", "--requests", "100", "--seed", "1")
    assert done.returncode == 0, done.stderr + done.stdout
    for name in ("weight_round_robin", "interleaved_weighted_round_robin", "weight_random"):
        assert name in done.stdout
    for word in ("expected", "observed", "bound", "killed", "new", "lost", "ns per pick"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--requests", "9"], "at least 10"),
        (["--only", "pickers"], "pickers"),
        (["--seed", "-1"], "--seed"),
        (["--etcd", "http://127.0.0.1:2379"], "--etcd is for --discovery etcd"),
        (["--discovery", "smoke"], "smoke"),
        (["--balancer", "no_such_module:Class"], "no_such_module"),
        (["--balancer", "my_balancers:NoSuchClass"], "NoSuchClass"),
        (["--balancer", "my_balancers"], "my_balancers"),
        (["--balancer", "my_balancers:Useless"], "get_picker"),
        (["--balancer", "my_balancers:Picker"], "instances"),
    ],
)
def test_bad_arguments_are_refused(demo, arguments, message):
    done = demo(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr


@pytest.mark.parametrize("package", ["rich", "urllib3"])
def test_a_missing_package_is_named(package):
    code = f"""
import sys
sys.modules[{package!r}] = None
from rota.__main__ import main
sys.exit(main(["demo"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f'The demo needs {package}: pip install "rota[demo]"\n'


def servers_of(pid):
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.skipif(
    not Path("/proc/self/task", str(os.getpid()), "children").exists(), reason="reads Linux's /proc"
)
@pytest.mark.parametrize("part", ["balancers", "selector", "etcd"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_server_outlives_the_demo(how, part):
    options = ETCD[2:] if part == "etcd" else ["--only", part]
    if part == "etcd":
        program("etcd", "etcd-server")
    command = [sys.executable, "-m", "rota", "demo", "--json", *options]
    command += ["--requests", "1000000"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            while process.poll() is None and len(servers := servers_of(process.pid)) < 5:
                time.sleep(0.05)
            time.sleep(1)  # some requests under way, or the servers still on their way up
            servers += [etcd for server in servers for etcd in servers_of(server)]
            assert (len(servers) > 5) == (part == "etcd")
            process.send_signal(how)
            stdout, stderr = process.communicate()
        finally:
            process.kill()
    assert stdout == ""
    if how == signal.SIGINT:
        assert process.returncode == 130, stderr
        assert not any(map(is_running, servers))
    while any(map(is_running, servers)):  # they notice by themselves
        time.sleep(0.05)


@pytest.mark.skipif(
    not Path("/proc/self/task", str(os.getpid()), "children").exists(), reason="reads Linux's /proc"
)
@pytest.mark.parametrize("is_broken", [False, True])
def test_no_server_outlives_a_selector(monkeypatch, is_broken):
    for name in ("BEFORE_SECONDS", "SLOW_SECONDS", "RETURN_WITHIN", "LAST_SECONDS"):
        monkeypatch.setattr(slowdown, name, 0.2)
    others = set(servers_of(os.getpid()))
    servers = set()
    selector = wrr().build()

    def report(n_calls):
        servers.update(servers_of(os.getpid()))
        if is_broken:
            selector.apply([])  # and so the clients find nobody to call

    if is_broken:
        with pytest.raises(NoAvailableInstance):
            slowdown.play(selector, report)
    else:
        assert slowdown.play(selector, report).lost == 0
    assert len(servers - others) == 5
    assert not any(map(is_running, servers - others))


WEIGHTS = {"a": 5, "b": 3, "c": 2}


def test_the_bound_of_turns_is_a_cycle_and_a_pick_for_each_client():
    shares = judge("before", WEIGHTS, Counter(a=517, b=283, c=200), in_turn=True)
    assert [share.bound for share in shares] == [(10 + 8) / 1000] * 3
    assert [share.ok for share in shares] == [True, True, True]
    shares = judge("before", WEIGHTS, Counter(a=520, b=280, c=200), in_turn=True)
    assert [share.ok for share in shares] == [False, False, True]


def test_the_bound_of_chance_is_five_standard_deviations():
    shares = judge("before", WEIGHTS, Counter(a=500, b=300, c=200), in_turn=False)
    assert shares[0].bound == pytest.approx(5 * (0.5 * 0.5 / 1000) ** 0.5)
    shares = judge("before", WEIGHTS, Counter(a=580, b=240, c=180), in_turn=False)
    assert [share.ok for share in shares] == [False, True, True]


@pytest.mark.parametrize("in_turn", [True, False])
def test_a_server_that_is_not_to_be_picked_has_no_share(in_turn):
    *_, gone = judge("after", WEIGHTS, Counter(a=500, b=300, c=199, d=1), in_turn=in_turn)
    assert (gone.server, gone.weight, gone.expected, gone.ok) == ("d", 0, 0, False)


def test_no_picks_at_all_are_no_shares():
    shares = judge("after", WEIGHTS, Counter(), in_turn=False)
    assert [share.observed for share in shares] == [0, 0, 0]


TIMES = Times(slowed=2.0, recovered=5.0, ended=10.0)


def calls_of(*parts):
    """Return 1000 calls a second; parts: (until, one in so many goes to the slowed server)."""
    calls, began = [], 0
    for until, every in parts:
        for k in range(began, round(until * 1000)):
            is_slowed = every is not None and k % every == 0
            calls.append(Call(k / 1000, 0.05 if is_slowed else 0.005, is_slowed))
        began = round(until * 1000)
    return calls


def test_a_selector_that_leaves_and_returns_in_time_is_well():
    shift = shift_of(calls_of((2.4, 5), (8, 100), (10, 5)), TIMES, 5)
    # The window has to be rid of what was picked before, down to a quarter and up to a half.
    assert shift.left == pytest.approx(0.4 + 0.25 * 5 / 6, abs=0.03)
    assert shift.returned == pytest.approx(3 + 0.25 / 2, abs=0.03)
    assert shift.n_requests == 10_000
    assert shift.lost == 0
    assert shift.last_share == pytest.approx(1 / 5)
    assert shift.ok
    before, slow, after = shift.phases
    assert (before.name, slow.name, after.name) == ("before", "slow", "after")
    assert [phase.n_requests for phase in shift.phases] == [2000, 3000, 5000]
    assert before.share == pytest.approx(1 / 5)
    assert slow.share == pytest.approx((400 / 5 + 2600 / 100) / 3000)
    assert after.share == pytest.approx((3000 / 100 + 2000 / 5) / 5000)
    assert (before.p50, before.p99) == (0.005, 0.05)


def test_percentiles_are_of_the_calls_that_began_in_the_phase():
    calls = [Call(2 + k / 1000, k / 1000, False) for k in range(1, 201)]
    _, slow, after = shift_of(calls, TIMES, 5).phases
    assert (slow.p50, slow.p99) == (0.1, 0.198)
    assert (after.n_requests, after.share, after.p50, after.p99) == (0, 0, 0, 0)


def test_leaving_too_late_is_not_well():
    shift = shift_of(calls_of((3.2, 5), (8, 100), (10, 5)), TIMES, 5)
    assert shift.left > LEAVE_WITHIN
    assert not shift.ok


def test_turns_never_leave_and_have_nowhere_to_return_from():
    shift = shift_of(calls_of((10, 5)), TIMES, 5)
    assert (shift.left, shift.returned) == (None, None)
    assert not shift.has_left
    assert not shift.ok


def test_never_to_return_is_not_well():
    shift = shift_of(calls_of((2.4, 5), (10, 100)), TIMES, 5)
    assert shift.has_left
    assert shift.returned is None
    assert not shift.ok


def test_to_return_too_late_is_not_well():
    times = Times(slowed=2.0, recovered=5.0, ended=15.0)
    shift = shift_of(calls_of((2.4, 5), (13, 100), (15, 5)), times, 5)
    assert shift.returned > RETURN_WITHIN
    assert not shift.ok


def test_a_lost_request_is_not_well():
    calls = calls_of((2.4, 5), (8, 100), (10, 5))
    calls[7] = calls[7]._replace(is_answered=False)
    shift = shift_of(calls, TIMES, 5)
    assert shift.lost == 1
    assert not shift.ok


def test_a_pause_is_no_leaving():
    """To leave the server for half a second and come back is not to have moved off."""
    assert seconds_to_leave(calls_of((2.2, 5), (2.7, None), (5, 5)), TIMES, 5) is None


def test_a_burst_is_no_return():
    calls = calls_of((2.4, 5), (5.2, 100), (5.6, 5), (10, 100))
    assert seconds_to_return(calls, TIMES, 5) is None


def test_to_try_a_slow_server_again_is_to_have_left_it():
    calls = calls_of((2.2, 5), (3.5, 100), (3.6, 5), (5, 100))
    assert seconds_to_leave(calls, TIMES, 5) == pytest.approx(0.4, abs=0.03)


def test_too_few_calls_tell_nothing():
    calls = [Call(2 + k / 10, 0.005, False) for k in range(30)]  # two or three in a window
    assert seconds_to_leave(calls, TIMES, 5) is None
    assert seconds_to_leave([], TIMES, 5) is None
    assert seconds_to_return([], TIMES, 5) is None


def test_calls_may_come_in_any_order():
    calls = calls_of((2.4, 5), (8, 100), (10, 5))
    assert shift_of(reversed(calls), TIMES, 5) == shift_of(calls, TIMES, 5)


def test_tables_and_judgement_of_selectors():
    moved = shift_of(calls_of((2.4, 5), (8, 100), (10, 5)), TIMES, 5)
    stayed = shift_of(calls_of((10, 5)), TIMES, 5)

    def printed(*outcomes):
        console = Console(file=io.StringIO(), width=100)
        show_selectors(list(outcomes), console)
        return console.file.getvalue()

    well = [SelectorOutcome("p2c", True, moved), SelectorOutcome("wrr", False, stayed)]
    assert selectors_as_json(well)["ok"]
    for text in ("p2c", "wrr", "20.00%", "50.0 ms", "never", "lost", f"{moved.left:.2f}"):
        assert text in printed(*well)
    assert "every request was answered" in printed(*well)

    ill = [SelectorOutcome("p2c", True, stayed), SelectorOutcome("wrr", False, stayed)]
    assert not selectors_as_json(ill)["ok"]
    assert [outcome["ok"] for outcome in selectors_as_json(ill)["selectors"]] == [False, True]
    assert "NO" in printed(*ill)
    assert "did not leave" in printed(*ill)
