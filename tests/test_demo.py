"""The demo, end to end: real server processes, real requests, few of them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import rota
from rota.demo.shares import judge

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
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "rota", "demo", *arguments],
            env=environment,
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture(scope="module")
def results(demo):
    """Of rota's balancers and one that is not rota's."""
    done = demo("--json", "--requests", str(N_REQUESTS), "--balancer", "my_balancers:Mine")
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)  # and nothing but JSON


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
    done = demo("--json", "--requests", "100", "--balancer", *broken)
    assert done.returncode == 1, done.stderr
    results = json.loads(done.stdout)
    assert not results["ok"]
    *own, stuck, dead = results["balancers"]
    assert all(balancer["ok"] for balancer in own)
    assert not stuck["ok"]
    assert not all(share["ok"] for share in stuck["shares"])
    assert not dead["ok"]
    assert dead["lost"] == dead["requests"] == 100


def test_tables_show_every_balancer(demo):
    done = demo("--requests", "100", "--seed", "1")
    assert done.returncode == 0, done.stderr + done.stdout
    for name in ("weight_round_robin", "interleaved_weighted_round_robin", "weight_random"):
        assert name in done.stdout
    for word in ("expected", "observed", "bound", "killed", "new", "lost", "ns per pick"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--requests", "9"], "at least 10"),
        (["--seed", "-1"], "--seed"),
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
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_server_outlives_the_demo(how):
    command = [sys.executable, "-m", "rota", "demo", "--json", "--requests", "1000000"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            while process.poll() is None and len(servers := servers_of(process.pid)) < 5:
                time.sleep(0.05)
            time.sleep(1)  # some requests under way, or the servers still on their way up
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
