"""An etcd for the originals and for rota, and a fleet of Kratos' servers in it."""

from contextlib import ExitStack
from pathlib import Path

import pytest

import rota
from tests.etcd_server import Etcd
from tests.etcd_server import etcd as running_etcd
from tests.interop.originals import Original, kratos

FLEET = "helloworld"

# id: (version, metadata)
SERVERS = {
    "a": ("1", {"weight": "5", "zone": "east"}),
    "b": ("1", {"weight": "1", "zone": "west"}),
    "c": ("2", {"weight": "2"}),
}


def pytest_collection_modifyitems(items) -> None:
    """Give the tests here the time to build the originals, which the first of them does."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session", autouse=True)
def only_once() -> None:
    """Where all tests run twice, with the kernels and without, these are run with them."""
    if rota.IMPLEMENTATION == "reference":
        pytest.skip("what is tested here is the same with the reference")


@pytest.fixture(scope="session")
def etcd(only_once, tmp_path_factory) -> Etcd:
    """One etcd, with whatever the tests leave in it: each has services of its own."""
    with running_etcd(tmp_path_factory.mktemp("etcd")) as member:
        yield member


@pytest.fixture(scope="session")
def fleet(etcd, tmp_path_factory) -> dict[str, Original]:
    """Servers of Kratos by their id, registered as `FLEET`. They stay: stop your own."""
    directory = tmp_path_factory.mktemp("fleet")
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(kratos(etcd, directory, FLEET, name, version, metadata))
            for name, (version, metadata) in SERVERS.items()
        }
