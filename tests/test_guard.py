"""The guard of instruction counts: what it lets pass and what not. Nothing is counted here."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STEMS = {path.stem for path in (ROOT / "cython").glob("*.pyx")}
HERE = {"compiler": "GCC: 12.2.0", "cython": "3_3_1", "python": "cpython-311", "flags": "-O3"}
RECORDED = {"ketama pick n=100": (180.0, 1.0), "round_robin pick n=100": (18.0, 0.0)}


def load_guard():
    spec = importlib.util.spec_from_file_location("guard", ROOT / "bench" / "guard.py")
    module = importlib.util.module_from_spec(spec)
    # Where a dataclass looks its module up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "guard", module)
        spec.loader.exec_module(module)
    return module


guard = load_guard()


def judged(now, here=HERE, recorded=RECORDED):
    return guard.judge([{"environment": HERE, "counts": recorded}], here, now)


def ketama(instructions, calls=1.0):
    return RECORDED | {"ketama pick n=100": (instructions, calls)}


def row(said, operation):
    """Return the words of the line about an operation."""
    (line,) = [line for line in said.splitlines() if line.startswith(operation)]
    return line.removeprefix(operation).split()


@pytest.mark.parametrize("instructions", [180.0, 180 * 1.02, 180 * 0.98, 180 * 1.0299])
def test_what_stays_passes(instructions):
    content, said = judged(ketama(instructions))
    assert content
    assert said == "instructions: 2 operations counted, all within 3% of what is recorded"


def test_what_has_grown_fails():
    content, said = judged(ketama(180 * 1.04))
    assert not content
    assert row(said, "ketama pick n=100") == ["instructions", "180", "187.2", "+4.0%", "grown"]
    assert "round_robin" not in said
    assert "ci/bench --guard --record" in said


def test_what_has_shrunk_is_said_and_passes():
    content, said = judged(ketama(180 * 0.9))
    assert content
    assert row(said, "ketama pick n=100") == ["instructions", "180", "162", "-10.0%", "shrunk"]
    assert "ci/bench --guard --record" in said


def test_another_call_out_fails():
    content, said = judged(ketama(180.0, 2.0))
    assert not content
    assert row(said, "ketama pick n=100") == ["calls", "1", "2", "+100.0%", "grown"]


@pytest.mark.parametrize(("calls", "passes"), [(0.005, True), (0.02, False), (1.0, False)])
def test_a_call_out_where_there_was_none(calls, passes):
    content, _ = judged(RECORDED | {"round_robin pick n=100": (18.0, calls)})
    assert content is passes


def test_one_that_grows_fails_whatever_shrinks():
    content, said = judged(ketama(100.0) | {"round_robin pick n=100": (20.0, 0.0)})
    assert not content
    assert row(said, "ketama pick n=100")[-1] == "shrunk"
    assert row(said, "round_robin pick n=100")[-1] == "grown"


def test_an_operation_without_a_record_fails():
    content, said = judged(RECORDED | {"md5 node": (128.0, 2.0)})
    assert not content
    lines = [line.split() for line in said.splitlines() if line.startswith("md5 node")]
    assert lines == [
        ["md5", "node", "instructions", "128", "record", "it"],
        ["md5", "node", "calls", "2", "record", "it"],
    ]


def test_a_record_without_an_operation_fails():
    content, said = judged({"ketama pick n=100": (180.0, 1.0)})
    assert not content
    assert said.count("gone") == 2


def test_another_environment_is_not_judged():
    here = HERE | {"compiler": "GCC: 14.2.0"}
    content, said = judged(ketama(1_000.0), here)
    assert content
    assert "skipped" in said
    assert "compiler: recorded with GCC: 12.2.0; here GCC: 14.2.0" in said
    assert "python" not in said
    assert "ci/bench --guard --record" in said


def test_the_most_similar_record_is_compared_with():
    far = {"environment": dict.fromkeys(HERE, "?"), "counts": {}}
    near = {"environment": HERE, "counts": {}}
    said = guard.skipped([far, near], HERE | {"flags": "-O2"})
    assert said.splitlines()[1:-1] == ["  flags: recorded with -O3; here -O2"]


def test_no_record_at_all_is_skipped():
    content, said = guard.judge([], HERE, RECORDED)
    assert content
    assert "nothing is recorded" in said


def test_to_record_replaces_the_environments_own_and_keeps_the_others():
    other = {"environment": HERE | {"cython": "3_4_0"}, "counts": {"a": [1.0, 0.0]}}
    own = {"environment": HERE, "counts": {"b": [2.0, 0.0]}}
    once = guard.record([other, own], HERE, RECORDED)
    assert once == [other, {"environment": HERE, "counts": RECORDED}]
    assert guard.record([other], HERE, RECORDED) == once
    assert own["counts"] == {"b": [2.0, 0.0]}


@pytest.mark.parametrize("n_records", [0, 1, 2])
def test_records_are_kept_one_operation_a_line(n_records):
    counted = {operation: list(numbers) for operation, numbers in RECORDED.items()}
    records = [{"environment": HERE, "counts": counted}] * n_records
    text = "\n".join(guard.lines(records))
    assert json.loads(text) == records
    assert text.count('\n   "ketama pick n=100": [180.0, 1.0]') == n_records


def test_what_is_recorded_covers_every_kernel():
    records = json.loads(guard.RECORDS.read_text())
    assert records
    for known in records:
        assert {operation.split()[0] for operation in known["counts"]} == STEMS
        assert list(known["environment"]) == ["compiler", "cython", "python", "cpu", "flags"]
    assert "\n".join(guard.lines(records)) + "\n" == guard.RECORDS.read_text()


DUMP = """\
# callgrind format
part: 2
desc: Timerange: Basic block 1 - 2
desc: Trigger: Client Request: operation 7
positions: line
events: Ir
summary: 999

ob=(1) /usr/lib/libpython3.11.so.1.0
fl=(1) ceval.c
fn=(1) eval
10 100
+5 3
cob=(2) /somewhere/rota/kernels/ketama.so
cfn=(2) pick
calls=50 0
* 4000

ob=(2)
fl=(2) ???
fn=(2)
0 600
cob=(3) /usr/lib/libc.so.6
cfi=(3) string.c
cfn=(3) memcpy
calls=50 20
0 1700
0 40
cob=(4) /somewhere/rota/kernels/murmur3.so
cfn=(4) hash
calls=50 0
0 900
cfn=(5) inner
calls=25 0
0 800

fn=(5)
0 800

ob=(4)
fn=(4)
0 860
cob=(1)
cfn=(6) PyLong_FromLong
calls=25 0
0 40

ob=(3)
fn=(3)
20 1700

totals: 999
"""


def test_what_is_counted_of_a_dump():
    """Rota's own, callees' cost apart, and its calls to others, not those among kernels."""
    assert guard.total(DUMP.splitlines()) == ("operation 7", (600 + 40 + 800 + 860, 50 + 25))
