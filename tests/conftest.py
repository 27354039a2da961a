"""Run each test that asks for `impl` on the kernels and on the reference."""

import json
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

VECTORS = Path(__file__).parent / "vectors"

PICKERS = {
    "round_robin": "RoundRobin",
    "weighted_round_robin": "WeightedRoundRobin",
    "fair_round_robin": "FairRoundRobin",
    "interleaved_weighted_round_robin": "InterleavedWeightedRoundRobin",
    "weighted_random": "WeightedRandom",
    "least_request": "LeastRequest",
    "peak_ewma": "PeakEwma",
}

# Those that draw: they have no start, and no turn.
AT_RANDOM = {"WeightedRandom", "LeastRequest", "PeakEwma"}

OTHER_STEMS = (
    "hash_picker",
    "md5",
    "murmur3",
    "picker",
    "selection",
    "splitmix64",
    "two_choices",
    "weight_groups",
)

HASH_PICKERS = {"ketama": "ConsistentHash", "maglev": "Maglev"}


def load_implementation(name: str) -> SimpleNamespace:
    """Return the pickers, and the modules by stem, of "kernels" or "reference"."""
    modules: dict[str, ModuleType] = {
        stem: import_module(f"rota.{name}.{stem}")
        for stem in (
            *PICKERS,
            *HASH_PICKERS,
            *OTHER_STEMS,
        )
    }
    pickers = {
        class_name: getattr(modules[stem], class_name)
        for stem, class_name in (PICKERS | HASH_PICKERS).items()
    }
    return SimpleNamespace(name=name, **modules, **pickers)


@pytest.fixture(params=["kernels", "reference"], scope="session")
def impl(request):
    """One implementation: its pickers by class name, its modules by stem."""
    return load_implementation(request.param)


@pytest.fixture(scope="session")
def kernels():
    """The compiled implementation."""
    return load_implementation("kernels")


@pytest.fixture(scope="session")
def reference():
    """The reference implementation."""
    return load_implementation("reference")


@pytest.fixture(params=PICKERS.values())
def picker_name(request):
    """The class name of each picker."""
    return request.param


@pytest.fixture(params=HASH_PICKERS.values())
def hash_picker_name(request):
    """The class name of each hash picker."""
    return request.param


@pytest.fixture
def make_hash(impl, hash_picker_name):
    """Each hash picker class of each implementation, Maglev with a small table."""
    if hash_picker_name == "Maglev":
        return partial(impl.Maglev, table_size=1009)
    return partial(impl.ConsistentHash, virtual_factor=20)


@pytest.fixture
def make(impl, picker_name):
    """Each picker class of each implementation."""
    return getattr(impl, picker_name)


@pytest.fixture(scope="session")
def vectors():
    """Return a function that reads a file of recorded sequences."""
    return lambda name: json.loads((VECTORS / f"{name}.json").read_text())
