"""ROTA_IMPLEMENTATION: compiled, reference, or unset."""

import os
import subprocess
import sys

import pytest

REPORT = "import rota; print(rota.IMPLEMENTATION, rota.RoundRobin.__module__)"
WITHOUT_A_KERNEL = "import sys; sys.modules['rota.kernels.weighted_random'] = None; " + REPORT


def run(program, implementation):
    environment = {k: v for k, v in os.environ.items() if k != "ROTA_IMPLEMENTATION"}
    if implementation is not None:
        environment["ROTA_IMPLEMENTATION"] = implementation
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("wanted", [None, "", "compiled"])
def test_the_kernels_are_taken(wanted):
    done = run(REPORT, wanted)
    assert done.stdout.split() == ["compiled", "rota.kernels.round_robin"]
    assert done.stderr == ""


def test_the_reference_is_taken_when_asked_for():
    done = run(REPORT, "reference")
    assert done.stdout.split() == ["reference", "rota.reference.round_robin"]
    assert done.stderr == ""


def test_a_missing_kernel_is_told_once_and_replaced():
    done = run(WITHOUT_A_KERNEL, None)
    assert done.stdout.split() == ["reference", "rota.reference.round_robin"]
    assert done.stderr.count("RuntimeWarning") == 1
    assert "rota.kernels.weighted_random" in done.stderr


def test_compiled_never_falls_back():
    done = run(WITHOUT_A_KERNEL, "compiled")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith(("ImportError", "ModuleNotFoundError"))


def test_reference_needs_no_kernel():
    assert run(WITHOUT_A_KERNEL, "reference").stdout.split()[0] == "reference"


def test_anything_else_is_refused():
    done = run(REPORT, "fast")
    assert done.returncode != 0
    assert "'fast'" in done.stderr.splitlines()[-1]


def test_this_run_is_of_the_implementation_it_claims():
    import rota

    wanted = os.environ.get("ROTA_IMPLEMENTATION") or "compiled"
    assert wanted == rota.IMPLEMENTATION
    folder = "kernels" if wanted == "compiled" else "reference"
    for name in ("RoundRobin", "WeightedRoundRobin", "WeightedRandom", "Attempts"):
        assert getattr(rota, name).__module__.startswith(f"rota.{folder}.")
